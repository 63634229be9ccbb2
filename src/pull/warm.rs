//! Fetching an image before anybody asks for it: the same decisions and downloads as for a client, with nobody to send
//! the bytes to.
//!
//! `image` reads the manifests and lists all parts → the blobs, a few at once. Each part goes through the same door as a
//! client's request, so grants, flights, limits and verification are the same.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use futures_util::StreamExt as _;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::oci::Digest;
use crate::oci::ImageName;
use crate::oci::Reference;
use crate::oci::Repository;

use super::Inner;
use super::Puller;
use super::ReadError;
use super::blob;
use super::error::Error;
use super::image;
use super::image::Choice;
use super::image::ImageError;
use super::pin;

/// Blobs of one image that are fetched at once, as engines do.
const BLOBS_AT_ONCE: usize = 3;

/// Why an image was not fetched.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WarmError {
    /// Its parts cannot be told.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A blob of it cannot be had.
    #[error("{digest}: {error}")]
    Blob {
        /// Which one.
        digest: Digest,
        /// Why.
        error: Error,
    },
    /// A blob broke off.
    #[error("{digest}: {error}")]
    Broken {
        /// Which one.
        digest: Digest,
        /// Why.
        error: ReadError,
    },
    /// It was told to stop.
    #[error("it was stopped")]
    Stopped,
}

/// A fetch that goes on. Cheap to clone.
#[derive(Clone)]
pub struct Warming {
    counts: Arc<Counts>,
    end: watch::Receiver<Option<Result<(), WarmError>>>,
    stop: CancellationToken,
}

/// How far a fetch is. Totals are zero until all manifests are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WarmProgress {
    /// Manifests that are here.
    pub manifests: u64,
    /// All blobs.
    pub blobs: u64,
    /// Of those, the ones that are here.
    pub blobs_done: u64,
    /// Bytes of the blobs, as manifests claim.
    pub bytes: u64,
    /// Of those, the ones that are here.
    pub bytes_done: u64,
    /// Of those, the ones that had to be downloaded.
    pub bytes_fetched: u64,
}

#[derive(Default)]
struct Counts {
    manifests: AtomicU64,
    blobs: AtomicU64,
    blobs_done: AtomicU64,
    bytes: AtomicU64,
    bytes_done: AtomicU64,
    bytes_fetched: AtomicU64,
    root: Mutex<Option<Digest>>,
}

impl Warming {
    /// How far it is.
    pub fn progress(&self) -> WarmProgress {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        WarmProgress {
            manifests: read(&self.counts.manifests),
            blobs: read(&self.counts.blobs),
            blobs_done: read(&self.counts.blobs_done),
            bytes: read(&self.counts.bytes),
            bytes_done: read(&self.counts.bytes_done),
            bytes_fetched: read(&self.counts.bytes_fetched),
        }
    }

    /// The digest that the image has, once it is known.
    pub fn digest(&self) -> Option<Digest> {
        *self.counts.root.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How it ended; `None` while it goes on.
    pub fn end(&self) -> Option<Result<(), WarmError>> {
        self.end.borrow().clone()
    }

    /// Ends it; what was fetched stays.
    pub fn stop(&self) {
        self.stop.cancel();
    }
}

impl Puller {
    /// Fetches an image in the background, on the runtime of the data path.
    pub fn warm(&self, image: ImageName, choice: Choice, runtime: &Handle) -> Warming {
        let (sender, end) = watch::channel(None);
        let stop = self.inner.stop.child_token();
        let warming = Warming { counts: Arc::default(), end, stop: stop.clone() };
        let warmer = Warmer { inner: self.inner.clone(), repository: image.repository, counts: warming.counts.clone() };
        let work = async move {
            let fetched = Box::pin(warmer.image(&image.reference, &choice));
            let ended = stop.run_until_cancelled(fetched).await;
            sender.send_replace(Some(ended.unwrap_or(Err(WarmError::Stopped))));
        };
        self.inner.tasks.spawn_on(work, runtime);
        warming
    }
}

struct Warmer {
    inner: Arc<Inner>,
    repository: Repository,
    counts: Arc<Counts>,
}

impl Warmer {
    async fn image(&self, reference: &Reference, choice: &Choice) -> Result<(), WarmError> {
        self.inner.allowed(&self.repository).map_err(ImageError::from)?;
        let image = image::walk(&self.inner, &self.repository, reference, choice).await?;
        *self.counts.root.lock().unwrap_or_else(PoisonError::into_inner) = Some(image.root);
        let (manifests, blobs): (Vec<_>, Vec<_>) = image.parts.into_iter().partition(|part| part.is_manifest);
        self.counts.manifests.store(manifests.len() as u64, Ordering::Relaxed);
        self.counts.blobs.store(blobs.len() as u64, Ordering::Relaxed);
        self.counts.bytes.store(blobs.iter().map(|blob| blob.size_bytes).sum(), Ordering::Relaxed);
        let each = blobs.into_iter().map(|blob| self.blob(blob.digest, blob.size_bytes));
        let mut running = futures_util::stream::iter(each).buffer_unordered(BLOBS_AT_ONCE);
        while let Some(done) = running.next().await {
            done?;
        }
        Ok(())
    }

    /// Reads along to the end, so that the download has a reader and goes on; what is here already is not read.
    async fn blob(&self, digest: Digest, claimed_bytes: u64) -> Result<(), WarmError> {
        let blob = blob::get(&self.inner, &self.repository, &digest).await;
        let blob = blob.map_err(|error| WarmError::Blob { digest, error })?;
        let mut counted_bytes = 0;
        if blob.parts(&[]).is_none() {
            let mut reader = blob.read(None);
            while let Some(piece) = reader.next().await {
                let piece = piece.map_err(|error| WarmError::Broken { digest, error })?;
                let bytes = piece.size_bytes();
                self.counts.bytes_fetched.fetch_add(bytes, Ordering::Relaxed);
                let counted = bytes.min(claimed_bytes - counted_bytes);
                counted_bytes += counted;
                self.counts.bytes_done.fetch_add(counted, Ordering::Relaxed);
            }
            // The last byte goes out with the verdict; the content is here a moment later.
            pin::landed(&self.inner, &self.repository, &digest).await;
        }
        self.counts.bytes_done.fetch_add(claimed_bytes - counted_bytes, Ordering::Relaxed);
        self.counts.blobs_done.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}
