//! The decision for a blob: serve, join or lead.

use std::sync::Arc;

use crate::oci::ByteRange;
use crate::oci::Digest;
use crate::oci::Repository;
use crate::store::Content;
use crate::store::Growing;
use crate::store::Store;
use crate::upstream::Identity;

use super::Inner;
use super::access;
use super::access::Admission;
use super::access::Kind;
use super::error::Error;
use super::fill;
use super::fill::FillKey;
use super::fill::Opened;
use super::flight::Seat;
use super::flight::Wait;
use super::outcome::Outcome;
use super::passthrough::PassThrough;
use super::reader::BlobReader;
use super::relay::Relay;

/// How often a decision is taken anew when what it stood on is gone: evicted, or a leader that left.
const MAX_DECISIONS: usize = 4;

/// A blob whose bytes can be read.
pub struct Blob {
    digest: Digest,
    size_bytes: Option<u64>,
    outcome: Outcome,
    place: Place,
}

enum Place {
    Stored(Content, Store),
    /// With what goes on at the upstream when our disk cannot.
    Growing(Growing, Box<PassThrough>),
    /// With what goes on alone where the stream cannot be shared.
    Relayed(Relay, Box<PassThrough>),
}

/// What a blob is, without its bytes.
#[derive(Clone, Debug)]
pub struct BlobInfo {
    /// Its digest.
    pub digest: Digest,
    /// Its length, where it is known.
    pub size_bytes: Option<u64>,
    /// How that is known.
    pub outcome: Outcome,
}

impl Blob {
    /// Its digest.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Its length; `None` while it comes from an upstream that does not say.
    pub fn size_bytes(&self) -> Option<u64> {
        self.size_bytes
    }

    /// How it came about.
    pub fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// A reader of each part, in this order; `None` unless all of it is in the store.
    pub fn parts(&self, ranges: &[ByteRange]) -> Option<Vec<BlobReader>> {
        let Place::Stored(content, store) = &self.place else { return None };
        let reader = |range: &ByteRange| BlobReader::stored(content.read(Some(*range)), store.clone(), self.digest);
        Some(ranges.iter().map(reader).collect())
    }

    /// A reader of one part, or of the whole. A part can be asked for only where the length is known.
    pub fn read(self, range: Option<ByteRange>) -> BlobReader {
        // A range over all of it is the whole, and is verified as such.
        let is_whole = |range: &ByteRange| range.start() == 0 && Some(range.end()) == self.size_bytes;
        match self.place {
            Place::Stored(content, store) => BlobReader::stored(content.read(range), store, self.digest),
            Place::Growing(growing, alone) => {
                BlobReader::growing(growing, range.filter(|range| !is_whole(range)), alone)
            }
            Place::Relayed(relay, alone) => BlobReader::relayed(&relay, range.filter(|range| !is_whole(range)), alone),
        }
    }
}

pub(super) async fn get(inner: &Arc<Inner>, repository: &Repository, digest: &Digest) -> Result<Blob, Error> {
    for _ in 0..MAX_DECISIONS {
        let admission = access::admit(inner, repository, digest, Kind::Blob).await?;
        let decided = match admission {
            Admission::Granted => stored(inner, repository, digest, Outcome::Hit).await?,
            Admission::Confirmed => stored(inner, repository, digest, Outcome::Revalidated).await?,
            Admission::Stale(reason) => stored(inner, repository, digest, Outcome::Stale { reason }).await?,
            Admission::Offline => stored(inner, repository, digest, Outcome::Offline).await?,
            Admission::Absent => Box::pin(download(inner, repository, FillKey::shared(digest))).await?,
            Admission::Refetch => download_alone(inner, repository, digest).await?,
        };
        if let Some(blob) = decided {
            return Ok(blob);
        }
    }
    Err(Error::abandoned())
}

/// From the store; `None` when it is gone by now. What our disk does not give, this repository fetches for itself: the
/// upstream still has it, and the new copy takes the place of the other.
async fn stored(
    inner: &Arc<Inner>,
    repository: &Repository,
    digest: &Digest,
    outcome: Outcome,
) -> Result<Option<Blob>, Error> {
    match inner.store.content(digest).await {
        Ok(None) => Ok(None),
        Ok(Some(content)) => {
            let size_bytes = Some(content.size_bytes());
            let place = Place::Stored(content, inner.store.clone());
            Ok(Some(Blob { digest: *digest, size_bytes, outcome, place }))
        }
        Err(error) => {
            tracing::error!(%digest, %error, "stored content cannot be opened; it is fetched again");
            download_alone(inner, repository, digest).await
        }
    }
}

/// From a download, ours or another's; `None` when the decision has to be taken anew. Callers put it on the heap: every hit
/// would carry the room for its state through the layers.
async fn download(inner: &Arc<Inner>, repository: &Repository, key: FillKey) -> Result<Option<Blob>, Error> {
    let (wait, outcome) = match inner.fills.board(&key) {
        Seat::Follow(wait) => (wait, Outcome::Join),
        Seat::Lead(permit) => {
            // The flight that filled it may have ended between our look at the store and our lead.
            if key.is_shared() && inner.store.size_bytes(key.digest()).is_some() {
                return Ok(None);
            }
            let wait = permit.wait();
            inner.spawn_minding(fill::run(inner.clone(), repository.clone(), *key.digest(), permit));
            (wait, Outcome::Miss { stored: true })
        }
    };
    follow(inner, repository, &key, wait, outcome).await
}

async fn follow(
    inner: &Arc<Inner>,
    repository: &Repository,
    key: &FillKey,
    wait: Wait<Opened>,
    outcome: Outcome,
) -> Result<Option<Blob>, Error> {
    let digest = *key.digest();
    let Some(opened) = wait.value().await else { return Ok(None) };
    match opened {
        Opened::Failed { leader, error } if leader == *repository => {
            access::heard(inner, repository, Some(&digest), Some(&error)).await;
            Err(error)
        }
        // What one repository cannot have says nothing about another.
        Opened::Failed { .. } => download_alone(inner, repository, &digest).await,
        Opened::Relayed { leader, identity, size_bytes, relay } => {
            if !may_follow(inner, repository, &digest, &leader, &identity).await? {
                return download_alone(inner, repository, &digest).await;
            }
            let passed = Box::new(PassThrough::new(inner.upstream.clone(), repository.clone(), digest, None));
            let outcome = Outcome::Miss { stored: false };
            Ok(Some(Blob { digest, size_bytes, outcome, place: Place::Relayed(relay, passed) }))
        }
        Opened::Growing { leader, identity, growing } => {
            if !may_follow(inner, repository, &digest, &leader, &identity).await? {
                return download_alone(inner, repository, &digest).await;
            }
            let size_bytes = growing.size_bytes();
            let passed = Box::new(PassThrough::new(inner.upstream.clone(), repository.clone(), digest, None));
            Ok(Some(Blob { digest, size_bytes, outcome, place: Place::Growing(growing, passed) }))
        }
    }
}

/// Whether a repository may read along in another's download: its own upstream has to confirm, and that has to be enough.
async fn may_follow(
    inner: &Inner,
    repository: &Repository,
    digest: &Digest,
    leader: &Repository,
    fetched_by: &Identity,
) -> Result<bool, Error> {
    if leader == repository {
        return Ok(true);
    }
    let confirmed = access::confirm(inner, repository, digest, Kind::Blob).await?;
    Ok(confirmed.is_some_and(|confirmed| fill::is_opened_by(leader, fetched_by, repository, &confirmed)))
}

/// A download of this repository's own, whatever others do.
async fn download_alone(inner: &Arc<Inner>, repository: &Repository, digest: &Digest) -> Result<Option<Blob>, Error> {
    Box::pin(download(inner, repository, FillKey::own(digest, repository))).await
}

pub(super) async fn head(inner: &Arc<Inner>, repository: &Repository, digest: &Digest) -> Result<BlobInfo, Error> {
    let info = |size_bytes, outcome| Ok(BlobInfo { digest: *digest, size_bytes, outcome });
    match access::admit(inner, repository, digest, Kind::Blob).await? {
        Admission::Granted => info(inner.store.size_bytes(digest), Outcome::Hit),
        Admission::Confirmed => info(inner.store.size_bytes(digest), Outcome::Revalidated),
        Admission::Stale(reason) => info(inner.store.size_bytes(digest), Outcome::Stale { reason }),
        Admission::Offline => info(inner.store.size_bytes(digest), Outcome::Offline),
        Admission::Absent | Admission::Refetch => Box::pin(head_elsewhere(inner, repository, digest)).await,
    }
}

/// Of what is not in the store, or not for this repository.
async fn head_elsewhere(inner: &Arc<Inner>, repository: &Repository, digest: &Digest) -> Result<BlobInfo, Error> {
    let info = |size_bytes, outcome| Ok(BlobInfo { digest: *digest, size_bytes, outcome });
    let flying = inner.fills.find(&FillKey::shared(digest)).and_then(|wait| wait.value_now());
    if let Some(Opened::Growing { leader, growing, .. }) = flying
        && leader == *repository
        && let Some(size_bytes) = growing.size_bytes()
    {
        return info(Some(size_bytes), Outcome::Join);
    }
    let head = inner.upstream.head_blob(repository, digest).await;
    let head = head.map_err(|error| Error::from_upstream(error, Error::BlobUnknown))?;
    if !head.is_supported {
        // Only the content itself says whether it is there.
        let blob = get(inner, repository, digest).await?;
        return info(blob.size_bytes, blob.outcome);
    }
    info(head.size_bytes, Outcome::Miss { stored: false })
}
