//! The pull engine: every decision between a request and the bytes of its answer.
//!
//! What it is for: serve what is here and may be read, join a download in progress, or lead one; keep tags fresh; ask the
//! upstream whenever a right is not proven. Bytes are shared, rights are not.
//!
//! A blob: `access` asks whether this repository may have it (a grant; else one HEAD upstream, and only public content or
//! content fetched with the same account is opened by that). Here and admitted: a reader of the store. Absent: `flight`
//! gives the first request the lead, who spawns a detached `fill`; all, the leader too, follow the growing spool. Here but
//! not opened: the repository fetches all of it itself, in a fill of its own. What cannot be kept is passed through,
//! verified, without the store.
//!
//! A manifest by digest: the same, whole and in memory. By tag: `freshness` judges the record; a fresh one is served as
//! it stands; else one flight a tag asks upstream by HEAD, fetches what is new, content first and tag pointer last. A
//! known digest waits for that at most 2 s, then goes out stale while the check goes on.
//!
//! A pin: `image` reads the image's manifests as a pull would and lists all their parts; the store writes them down, or
//! refuses with the arithmetic; then the keeper (`pin`) fetches what is missing, through the same door as every pull, so
//! that grants come as usual. It looks again every minute: content that went by damage comes back, and the pin of a tag
//! follows when a pull has shown that the tag moved.
//!
//! What it must never know: HTTP types, status codes, sockets, files, sled, configuration.

mod access;
mod blob;
mod error;
mod fill;
mod flight;
mod freshness;
mod image;
mod listing;
mod manifest;
mod outcome;
mod passthrough;
mod pin;
mod progress;
mod reader;
mod relay;
mod tag;
mod warm;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;
use tokio::sync::Notify;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::metrics::Metrics;
use crate::oci::Digest;
use crate::oci::Reference;
use crate::oci::Registry;
use crate::oci::Repository;
use crate::oci::Tag;
use crate::store::Stats;
use crate::store::Store;
use crate::upstream::Upstream;

use self::fill::FillKey;
use self::fill::Opened;
use self::flight::Flights;

pub use self::blob::{Blob, BlobInfo};
pub use self::error::Error;
pub use self::freshness::Policy;
pub use self::image::{Choice, ImageError};
pub use self::listing::{Referrers, TagPage, TagQuery};
pub use self::manifest::Manifest;
pub use self::outcome::{Outcome, StaleReason};
pub use self::pin::{PinFailure, PinState};
pub use self::progress::{FillProgress, FillStage};
pub use self::reader::BlobReader;
pub use self::warm::{WarmError, WarmProgress, WarmRequest, Warming};
pub use crate::store::ReadError;

/// How long an answer with a known digest waits for the upstream before it goes out stale.
const STALE_AFTER: Duration = Duration::from_secs(2);
/// How long a registry that could not answer is left alone about tags that are known.
const TROUBLE_PAUSE: Duration = Duration::from_secs(10);
/// Most digests remembered as not kept.
const MAX_UNKEPT: u64 = 10_000;
/// Most registries remembered as troubled.
const MAX_TROUBLED: u64 = 1024;
/// Most tags remembered as absent.
const MAX_NEGATIVE_TAGS: u64 = 10_000;

/// What the pull engine is told at start.
#[derive(Clone, Debug)]
pub struct Options {
    /// How fresh each registry's tags are kept; a registry without one is unknown.
    pub policies: HashMap<Registry, Policy>,
    /// How each registry's blobs are downloaded; the default where there is none.
    pub fill_policies: HashMap<Registry, FillPolicy>,
    /// Most downloads at once, 256 by default; further ones wait in order. At least one.
    pub max_fills: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { policies: HashMap::new(), fill_policies: HashMap::new(), max_fills: 256 }
    }
}

/// How a registry's blobs are downloaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FillPolicy {
    /// Most upstream connections of one large blob, beside those for readers far ahead.
    pub lanes_per_blob: usize,
    /// A large download that nobody reads any more is parked before its half; else it is always finished.
    pub parks_deserted: bool,
    /// Most downloads at once, so that a dead registry does not take the slots of all. At least one.
    pub max_fills: usize,
}

impl Default for FillPolicy {
    fn default() -> Self {
        Self { lanes_per_blob: 1, parks_deserted: true, max_fills: 64 }
    }
}

/// The pull engine. Cheap to clone.
#[derive(Clone)]
pub struct Puller {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    upstream: Upstream,
    metrics: Metrics,
    policies: HashMap<Registry, Policy>,
    fills: Flights<FillKey, Opened>,
    documents: Flights<(Repository, Digest), Result<Manifest, Error>>,
    checks: Flights<(Repository, Tag), Result<Manifest, Error>>,
    /// Tags that the upstream does not have, and until when that is believed.
    absent_tags: Cache<(Repository, Tag), Instant>,
    /// Registries that could not answer a check, and until when their known tags go out stale without another.
    troubled: Cache<Registry, Instant>,
    /// Downloads that our disk could not take, and until when they are passed through.
    unkept: Cache<Digest, Instant>,
    fill_policies: HashMap<Registry, FillPolicy>,
    /// Of one registry, and of all: taken in this order, by downloads only.
    registry_slots: HashMap<Registry, Semaphore>,
    fill_slots: Semaphore,
    /// Pins that the keeper should look at now.
    pins_changed: Arc<Notify>,
    pin_problems: pin::Problems,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Puller {
    /// Joins a store and the upstreams. Must be called within a tokio runtime: pins are kept by a task of it.
    pub fn new(options: Options, store: Store, upstream: Upstream, metrics: Metrics) -> Self {
        let slots = |registry: &Registry| {
            let policy = options.fill_policies.get(registry).copied().unwrap_or_default();
            (registry.clone(), Semaphore::new(policy.max_fills))
        };
        let inner = Inner {
            store,
            upstream,
            metrics,
            registry_slots: options.policies.keys().map(slots).collect(),
            policies: options.policies,
            fill_policies: options.fill_policies,
            fills: Flights::new(),
            documents: Flights::new(),
            checks: Flights::new(),
            absent_tags: Cache::new(MAX_NEGATIVE_TAGS),
            troubled: Cache::new(MAX_TROUBLED),
            unkept: Cache::new(MAX_UNKEPT),
            fill_slots: Semaphore::new(options.max_fills),
            pins_changed: Arc::default(),
            pin_problems: pin::Problems::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        };
        let inner = Arc::new(inner);
        inner.spawn(pin::keep(Arc::downgrade(&inner)));
        Self { inner }
    }

    /// A manifest, whole and verified.
    pub async fn manifest(&self, repository: &Repository, reference: &Reference) -> Result<Manifest, Error> {
        self.inner.policy(repository)?;
        match reference {
            Reference::Digest(digest) => manifest::by_digest(&self.inner, repository, digest).await,
            Reference::Tag(tag) => tag::manifest(&self.inner, repository, tag).await,
        }
    }

    /// A blob, as soon as its first bytes may be read.
    pub async fn blob(&self, repository: &Repository, digest: &Digest) -> Result<Blob, Error> {
        self.inner.policy(repository)?;
        blob::get(&self.inner, repository, digest).await
    }

    /// What a blob is, without its bytes. Starts no download.
    pub async fn head_blob(&self, repository: &Repository, digest: &Digest) -> Result<BlobInfo, Error> {
        self.inner.policy(repository)?;
        blob::head(&self.inner, repository, digest).await
    }

    /// One page of a repository's tags, as the upstream has them now.
    pub async fn tags(&self, repository: &Repository, query: &TagQuery) -> Result<TagPage, Error> {
        self.inner.policy(repository)?;
        listing::tags(&self.inner, repository, query).await
    }

    /// What refers to a manifest, as the upstream has it now.
    pub async fn referrers(
        &self,
        repository: &Repository,
        digest: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Referrers, Error> {
        self.inner.policy(repository)?;
        listing::referrers(&self.inner, repository, digest, artifact_type).await
    }

    /// How much the store holds.
    pub fn stats(&self) -> Stats {
        self.inner.store.stats()
    }

    /// Ends what goes on in the background. Downloads that are not finished are parked.
    pub async fn stop(&self) {
        self.inner.stop.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }
}

impl Inner {
    fn policy(&self, repository: &Repository) -> Result<&Policy, Error> {
        self.policies.get(&repository.registry).ok_or(Error::UnknownRegistry)
    }

    fn slots_of(&self, registry: &Registry) -> &Semaphore {
        self.registry_slots.get(registry).unwrap_or(&self.fill_slots)
    }

    /// Work that outlives the request that began it, and minds [`Puller::stop`] itself.
    fn spawn_minding(self: &Arc<Self>, work: impl Future<Output = ()> + Send + 'static) {
        use tracing::Instrument as _;
        self.tasks.spawn(work.in_current_span());
    }

    /// Work that outlives the request that began it, but not [`Puller::stop`].
    fn spawn(self: &Arc<Self>, work: impl Future<Output = ()> + Send + 'static) {
        use tracing::Instrument as _;
        let stop = self.stop.clone();
        let bounded = async move {
            stop.run_until_cancelled_owned(work).await;
        };
        self.tasks.spawn(bounded.in_current_span());
    }
}
