//! Fetching an image before anybody asks for it: the same decisions and downloads as for a client, with nobody to send
//! the bytes to.
//!
//! Manifest → of an index, the members for the wanted platforms → their blobs, a few at once → what refers to any of them.
//! Each part goes through the same door as a client's request, so grants, flights, limits and verification are the same.

use std::collections::HashSet;
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
use crate::oci::Outline;
use crate::oci::Platform;
use crate::oci::Reference;
use crate::oci::Repository;
use crate::oci::outline;

use super::Manifest;
use super::Outcome;
use super::Puller;
use super::error::Error;

/// Blobs of one image that are fetched at once, as engines do.
const BLOBS_AT_ONCE: usize = 3;
/// Most manifests of one image, referrers included.
const MAX_MANIFESTS: usize = 1000;

/// What is to be fetched.
#[derive(Clone, Debug)]
pub struct WarmRequest {
    /// The image.
    pub image: ImageName,
    /// Of an index, these; all of them where empty.
    pub platforms: Vec<Platform>,
    /// Also what refers to it: signatures, attestations.
    pub referrers: bool,
}

/// Why an image was not fetched.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WarmError {
    /// Something of it cannot be had.
    #[error("{what}: {error}")]
    Pull {
        /// Which part.
        what: String,
        /// Why.
        error: Error,
    },
    /// A blob broke off.
    #[error("{digest}: {reason}")]
    Broken {
        /// Which one.
        digest: Digest,
        /// Why.
        reason: String,
    },
    /// The index has no such member.
    #[error("there is no image for {wanted} in the index; it has {present}")]
    NoPlatform {
        /// What was asked for.
        wanted: String,
        /// What there is.
        present: String,
    },
    /// It names more than anybody needs.
    #[error("it names more than {MAX_MANIFESTS} manifests")]
    TooMany,
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

/// How far a fetch is. Totals grow as manifests are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WarmProgress {
    /// Manifests that are here.
    pub manifests: u64,
    /// Blobs known so far.
    pub blobs: u64,
    /// Of those, the ones that are here.
    pub blobs_done: u64,
    /// Bytes of the blobs known so far, as manifests claim.
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
    pub fn warm(&self, request: WarmRequest, runtime: &Handle) -> Warming {
        let (sender, end) = watch::channel(None);
        let stop = self.inner.stop.child_token();
        let warming = Warming { counts: Arc::default(), end, stop: stop.clone() };
        let warmer = Warmer {
            puller: self.clone(),
            repository: request.image.repository,
            platforms: request.platforms,
            referrers: request.referrers,
            counts: warming.counts.clone(),
        };
        let reference = request.image.reference;
        let work = async move {
            let ended = stop.run_until_cancelled(Box::pin(warmer.image(&reference))).await;
            sender.send_replace(Some(ended.unwrap_or(Err(WarmError::Stopped))));
        };
        self.inner.tasks.spawn_on(work, runtime);
        warming
    }
}

struct Warmer {
    puller: Puller,
    repository: Repository,
    platforms: Vec<Platform>,
    referrers: bool,
    counts: Arc<Counts>,
}

impl Warmer {
    /// All of it, breadth first; each document and each blob once.
    async fn image(&self, reference: &Reference) -> Result<(), WarmError> {
        let (mut seen, mut seen_blobs) = (HashSet::new(), HashSet::new());
        let mut open = vec![(reference.clone(), true)];
        while let Some((reference, is_wanted)) = open.pop() {
            let manifest = self.manifest(&reference).await?;
            if !seen.insert(manifest.digest) {
                continue;
            }
            if seen.len() > MAX_MANIFESTS {
                return Err(WarmError::TooMany);
            }
            self.counts.root.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(manifest.digest);
            self.counts.manifests.fetch_add(1, Ordering::Relaxed);
            let outline = outline(&manifest.bytes);
            open.extend(
                self.members(&outline, is_wanted)?.into_iter().map(|digest| (Reference::Digest(digest), is_wanted)),
            );
            let mut blobs: Vec<_> = outline.config.into_iter().chain(outline.layers).collect();
            blobs.retain(|(digest, _)| seen_blobs.insert(*digest));
            self.blobs(blobs).await?;
            if self.referrers {
                let found = self.referrers(&manifest.digest).await?;
                open.extend(found.into_iter().map(|digest| (Reference::Digest(digest), false)));
            }
        }
        Ok(())
    }

    async fn manifest(&self, reference: &Reference) -> Result<Manifest, WarmError> {
        let found = self.puller.manifest(&self.repository, reference).await;
        found.map_err(|error| WarmError::Pull { what: format!("manifest {reference}"), error })
    }

    /// The members of an index that are wanted. What refers to an image is taken whole.
    fn members(&self, outline: &Outline, is_wanted: bool) -> Result<Vec<Digest>, WarmError> {
        let all = || outline.members.iter();
        if self.platforms.is_empty() || !is_wanted || outline.members.is_empty() {
            return Ok(all().map(|member| member.digest).collect());
        }
        let mut chosen = Vec::new();
        for wanted in &self.platforms {
            let before = chosen.len();
            let fits = |platform: &Platform| wanted.admits(platform);
            chosen
                .extend(all().filter(|member| member.platform.as_ref().is_some_and(fits)).map(|member| member.digest));
            if chosen.len() == before {
                let present: Vec<_> =
                    all().filter_map(|member| member.platform.as_ref()).map(Platform::to_string).collect();
                return Err(WarmError::NoPlatform { wanted: wanted.to_string(), present: present.join(", ") });
            }
        }
        Ok(chosen)
    }

    async fn blobs(&self, blobs: Vec<(Digest, u64)>) -> Result<(), WarmError> {
        let bytes = blobs.iter().map(|(_, size_bytes)| size_bytes).sum();
        self.counts.blobs.fetch_add(blobs.len() as u64, Ordering::Relaxed);
        self.counts.bytes.fetch_add(bytes, Ordering::Relaxed);
        let each = blobs.into_iter().map(|(digest, size_bytes)| self.blob(digest, size_bytes));
        let mut running = futures_util::stream::iter(each).buffer_unordered(BLOBS_AT_ONCE);
        while let Some(done) = running.next().await {
            done?;
        }
        Ok(())
    }

    /// Reads along to the end, so that the download has a reader and goes on; what is here already is not read.
    async fn blob(&self, digest: Digest, claimed_bytes: u64) -> Result<(), WarmError> {
        let blob = self.puller.blob(&self.repository, &digest).await;
        let blob = blob.map_err(|error| WarmError::Pull { what: format!("blob {digest}"), error })?;
        let mut counted_bytes = 0;
        if !matches!(blob.outcome(), Outcome::Hit | Outcome::Revalidated) {
            let mut reader = blob.read(None);
            while let Some(piece) = reader.next().await {
                let piece = piece.map_err(|error| WarmError::Broken { digest, reason: error.to_string() })?;
                let bytes = piece.len() as u64;
                self.counts.bytes_fetched.fetch_add(bytes, Ordering::Relaxed);
                let counted = bytes.min(claimed_bytes - counted_bytes);
                counted_bytes += counted;
                self.counts.bytes_done.fetch_add(counted, Ordering::Relaxed);
            }
        }
        self.counts.bytes_done.fetch_add(claimed_bytes - counted_bytes, Ordering::Relaxed);
        self.counts.blobs_done.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// What refers to a manifest. A registry without referrers has none.
    async fn referrers(&self, digest: &Digest) -> Result<Vec<Digest>, WarmError> {
        match self.puller.referrers(&self.repository, digest, None).await {
            Ok(found) => Ok(outline(&found.index).members.into_iter().map(|member| member.digest).collect()),
            Err(Error::ReferrersUnsupported) => Ok(Vec::new()),
            Err(error) => Err(WarmError::Pull { what: format!("referrers of {digest}"), error }),
        }
    }
}
