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
//! known digest waits for that at most 2 s, then goes out stale while the check goes on; from then on nobody waits for
//! that registry about what is known, until it answers a check in the background (`trouble`).
//!
//! While the upstream answers, `lookahead` asks it in the background for the rights to what a manifest names and another
//! repository has brought here: so that all of an image, and not its manifest alone, is there when the upstream is not.
//!
//! Each tag is under one rule: the first of the registry's that fits, else the registry itself. A tag that a rule calls
//! immutable stays where it first pointed; the move is remembered, counted and said loudly. `why` tells all of it of one
//! reference without asking anybody.
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
mod lookahead;
mod manifest;
mod outcome;
mod passthrough;
mod pin;
mod progress;
mod reader;
mod relay;
mod tag;
#[cfg(test)]
mod tests;
mod trouble;
mod warm;
mod why;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::RwLock;
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
use crate::store::Timestamp;
use crate::upstream::Credentials;
use crate::upstream::SetupError;
use crate::upstream::Upstream;

use self::fill::FillKey;
use self::fill::Opened;
use self::flight::Flights;
use self::trouble::Troubles;

pub use self::blob::{Blob, BlobInfo};
pub use self::error::Error;
pub use self::freshness::{Policy, TagRule};
pub use self::image::{Choice, ImageError};
pub use self::listing::{Referrers, TagPage, TagQuery, is_listing};
pub use self::manifest::Manifest;
pub use self::outcome::{Outcome, StaleReason};
pub use self::pin::{PinFailure, PinState};
pub use self::progress::{FillProgress, FillStage};
pub use self::reader::BlobReader;
pub use self::warm::{WarmError, WarmProgress, Warming};
pub use self::why::{Right, Source, Verdict, Why};
pub use crate::store::{Past, ReadError, TagRecord};
pub use crate::upstream::{EndpointStatus, Health, RateLimit, RegistryStatus, TokenStatus};

/// How long an answer with a known digest waits for the upstream before it goes out stale.
const STALE_AFTER: Duration = Duration::from_secs(2);
/// Most digests remembered as not kept.
const MAX_UNKEPT: u64 = 10_000;
/// Most repositories remembered as closed a moment ago.
const MAX_CLOSED: u64 = 1024;
/// Most manifests remembered as looked at.
const MAX_LOOKED_AT: u64 = 10_000;
/// Most manifests looked at, at once.
const MAX_LOOKERS: usize = 4;
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
    policies: RwLock<HashMap<Registry, Arc<Policy>>>,
    fills: Flights<FillKey, Opened>,
    documents: Flights<(Repository, Digest), Result<Manifest, Error>>,
    checks: Flights<(Repository, Tag), Result<Manifest, Error>>,
    confirmations: Flights<access::Question, access::Answer>,
    /// Tags that the upstream does not have, and when it said so.
    absent_tags: Cache<(Repository, Tag), Instant>,
    troubles: Troubles,
    /// Manifests whose content was asked about in the background, and when.
    looked_at: Cache<(Repository, Digest), Instant>,
    /// Looks at once, of all registries.
    lookers: Semaphore,
    /// Repositories whose registry refused, and when their grants were taken back.
    closed: Cache<Repository, Instant>,
    /// Downloads that our disk could not take, and until when they are passed through.
    unkept: Cache<Digest, Instant>,
    limits: RwLock<Arc<Limits>>,
    /// Pins that the keeper should look at now.
    pins_changed: Arc<Notify>,
    pin_problems: pin::Problems,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// How much may be downloaded at once, and how.
struct Limits {
    fill_policies: HashMap<Registry, FillPolicy>,
    /// Of one registry, and of all: taken in this order, by downloads only.
    registry_slots: HashMap<Registry, Arc<Semaphore>>,
    fill_slots: Arc<Semaphore>,
    max_fills: usize,
}

impl Puller {
    /// Joins a store and the upstreams.
    pub fn new(options: Options, store: Store, upstream: Upstream, metrics: Metrics) -> Self {
        let inner = Inner {
            store,
            upstream,
            metrics,
            limits: RwLock::new(Arc::new(Limits::new(&options, None))),
            policies: RwLock::new(shared(options.policies)),
            fills: Flights::new(),
            documents: Flights::new(),
            checks: Flights::new(),
            confirmations: Flights::new(),
            absent_tags: Cache::new(MAX_NEGATIVE_TAGS),
            troubles: Troubles::default(),
            looked_at: Cache::new(MAX_LOOKED_AT),
            lookers: Semaphore::new(MAX_LOOKERS),
            closed: Cache::new(MAX_CLOSED),
            unkept: Cache::new(MAX_UNKEPT),
            pins_changed: Arc::default(),
            pin_problems: pin::Problems::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// A manifest, whole and verified.
    pub async fn manifest(&self, repository: &Repository, reference: &Reference) -> Result<Manifest, Error> {
        self.inner.allowed(repository)?;
        match reference {
            Reference::Digest(digest) => manifest::by_digest(&self.inner, repository, digest).await,
            Reference::Tag(tag) => tag::manifest(&self.inner, repository, tag).await,
        }
    }

    /// A blob, as soon as its first bytes may be read.
    pub async fn blob(&self, repository: &Repository, digest: &Digest) -> Result<Blob, Error> {
        self.inner.allowed(repository)?;
        blob::get(&self.inner, repository, digest).await
    }

    /// What a blob is, without its bytes. Starts no download.
    pub async fn head_blob(&self, repository: &Repository, digest: &Digest) -> Result<BlobInfo, Error> {
        self.inner.allowed(repository)?;
        blob::head(&self.inner, repository, digest).await
    }

    /// One page of a repository's tags, as the upstream has them now.
    pub async fn tags(&self, repository: &Repository, query: &TagQuery) -> Result<TagPage, Error> {
        self.inner.allowed(repository)?;
        listing::tags(&self.inner, repository, query).await
    }

    /// What refers to a manifest, as fresh as a tag.
    pub async fn referrers(
        &self,
        repository: &Repository,
        digest: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Referrers, Error> {
        self.inner.allowed(repository)?;
        listing::referrers(&self.inner, repository, digest, artifact_type).await
    }

    /// What a request for this reference would get now, and why. Asks nobody.
    pub fn why(&self, repository: &Repository, reference: &Reference) -> Result<Why, Error> {
        why::why(&self.inner, repository, reference, Timestamp::now())
    }

    /// Where a tag has pointed, and since when; `None` when it was never seen. Asks nobody.
    pub fn history(&self, repository: &Repository, tag: &Tag) -> Result<Option<Arc<TagRecord>>, Error> {
        self.inner.policy(repository)?;
        Ok(self.inner.store.tag_record(repository, tag))
    }

    /// From now on nobody asks this registry, or any, or they are asked again. Downloads in progress go on. A registry is
    /// asked only when neither it nor all are switched offline.
    pub fn set_offline(&self, registry: Option<&Registry>, is_offline: bool) -> Result<(), Error> {
        let set = self.inner.upstream.set_offline(registry, is_offline);
        set.map_err(|error| Error::from_upstream(error, Error::UnknownRegistry))?;
        let which = registry.map_or("all registries", Registry::as_str);
        tracing::warn!(registry = which, is_offline, "switched by the operator");
        Ok(())
    }

    /// Whether all registries are switched offline.
    pub fn is_offline(&self) -> bool {
        self.inner.upstream.is_all_offline()
    }

    /// How the registries are, by name.
    pub fn upstreams(&self) -> Vec<RegistryStatus> {
        self.inner.upstream.status()
    }

    /// Other policies and limits, from the next request on; downloads in progress go on as they began, beside those of
    /// a limit that has changed.
    pub fn reconfigure(&self, options: Options) {
        let limits = Limits::new(&options, Some(&self.inner.limits()));
        *self.inner.limits.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(limits);
        self.set_policies(options.policies);
    }

    /// Other credentials for a registry, from the next question on. Tokens that were got with the former are dropped.
    pub fn set_credentials(&self, registry: &Registry, credentials: Option<Credentials>) -> Result<(), SetupError> {
        self.inner.upstream.set_credentials(registry, credentials)
    }

    /// Other policies for the registries that the upstream layer knows, from the next request on. Others stay unknown.
    pub fn set_policies(&self, policies: HashMap<Registry, Policy>) {
        let known = |(registry, _): &(Registry, Policy)| self.inner.upstream.knows(registry);
        let policies = shared(policies.into_iter().filter(known).collect());
        *self.inner.policies.write().unwrap_or_else(PoisonError::into_inner) = policies;
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

fn shared(policies: HashMap<Registry, Policy>) -> HashMap<Registry, Arc<Policy>> {
    policies.into_iter().map(|(registry, policy)| (registry, Arc::new(policy))).collect()
}

impl Inner {
    fn policy(&self, repository: &Repository) -> Result<Arc<Policy>, Error> {
        let policies = self.policies.read().unwrap_or_else(PoisonError::into_inner);
        policies.get(&repository.registry).cloned().ok_or(Error::UnknownRegistry)
    }

    /// Refuses what is unknown, and what the operator keeps out.
    fn allowed(&self, repository: &Repository) -> Result<(), Error> {
        if self.policy(repository)?.allows(&repository.name) { Ok(()) } else { Err(Error::NotAllowed) }
    }

    fn limits(&self) -> Arc<Limits> {
        self.limits.read().unwrap_or_else(PoisonError::into_inner).clone()
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

impl Limits {
    /// Takes over from `before` the slots whose number is the same.
    fn new(options: &Options, before: Option<&Self>) -> Self {
        let slots = |registry: &Registry| {
            let max_fills = options.fill_policies.get(registry).copied().unwrap_or_default().max_fills;
            let same = before.filter(|before| before.policy(registry).max_fills == max_fills);
            let slots = same.and_then(|before| before.registry_slots.get(registry)).cloned();
            (registry.clone(), slots.unwrap_or_else(|| Arc::new(Semaphore::new(max_fills))))
        };
        let same = before.filter(|before| before.max_fills == options.max_fills);
        let fill_slots = same.map(|before| before.fill_slots.clone());
        Self {
            registry_slots: options.policies.keys().map(slots).collect(),
            fill_policies: options.fill_policies.clone(),
            fill_slots: fill_slots.unwrap_or_else(|| Arc::new(Semaphore::new(options.max_fills))),
            max_fills: options.max_fills,
        }
    }

    fn policy(&self, registry: &Registry) -> FillPolicy {
        self.fill_policies.get(registry).copied().unwrap_or_default()
    }

    fn slots_of(&self, registry: &Registry) -> &Semaphore {
        self.registry_slots.get(registry).unwrap_or(&self.fill_slots)
    }
}
