//! The one download of a digest: detached from every client, verified, resumed where it broke.
//!
//! The order: upstream's head → room and spool, with what is parked → announced to all who wait → bodies to spool, by the
//! lanes that the [`conductor`] flies → verdict → published and granted → the flight leaves the table, last, so that no
//! request falls between download and store. A download that ends without a verdict is parked with what came in order:
//! the next one fetches only the rest.

mod conductor;
mod lane;
mod tuning;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use tokio::time::Instant;

use crate::metrics::Metrics;
use crate::oci::Digest;
use crate::oci::Repository;
use crate::store::FinishError;
use crate::store::Growing;
use crate::store::ReadError;
use crate::store::Spool;
use crate::store::WriteError;
use crate::upstream;
use crate::upstream::BlobBody;
use crate::upstream::Identity;
use crate::upstream::Part;

use self::conductor::Brought;
use self::conductor::Conductor;
use self::lane::Plan;
use self::lane::Provenance;
use super::Inner;
use super::access;
use super::error::Error;
use super::flight::Permit;
use super::passthrough::PassThrough;
use super::relay::Relay;

/// A download that our disk ended is passed through when it is asked for again within this time.
const UNKEPT_FOR: Duration = Duration::from_secs(300);

/// What a download is for: everybody who may have it, or one repository that has to fetch it itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct FillKey {
    digest: Digest,
    only_for: Option<Repository>,
}

impl FillKey {
    pub(super) fn shared(digest: &Digest) -> Self {
        Self { digest: *digest, only_for: None }
    }

    pub(super) fn own(digest: &Digest, repository: &Repository) -> Self {
        Self { digest: *digest, only_for: Some(repository.clone()) }
    }

    pub(super) fn digest(&self) -> &Digest {
        &self.digest
    }

    pub(super) fn is_shared(&self) -> bool {
        self.only_for.is_none()
    }
}

/// What a download announces once the upstream has answered.
#[derive(Clone)]
pub(super) enum Opened {
    /// Bytes are coming.
    Growing {
        /// Whose download it is.
        leader: Repository,
        /// Who the upstream gave them to.
        identity: Identity,
        growing: Growing,
    },
    /// Bytes are coming, but there is no room to keep them.
    Relayed { leader: Repository, identity: Identity, size_bytes: Option<u64>, relay: Relay },
    /// The upstream did not give it.
    Failed { leader: Repository, error: Error },
}

/// Whether a repository that the upstream has confirmed may read along: the rule of [`access`], for content in the making.
pub(super) fn is_opened_by(
    leader: &Repository,
    fetched_by: &Identity,
    repository: &Repository,
    confirmed_for: &Identity,
) -> bool {
    match fetched_by {
        Identity::Anonymous => true,
        Identity::Account(_) => leader.registry == repository.registry && fetched_by == confirmed_for,
    }
}

/// Why a download ends without content.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Upstream(#[from] upstream::Error),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("the upstream changed its mind: {0}")]
    Changed(String),
    #[error("nobody reads it any more")]
    Deserted,
    #[error("the proxy stops")]
    Stopped,
}

/// Downloads, from the first request to the end of the flight.
pub(super) async fn run(inner: Arc<Inner>, repository: Repository, digest: Digest, permit: Permit<FillKey, Opened>) {
    // In this order: the gauge still counts it when the flight leaves the table.
    let (_in_flight, permit) = (InFlight::new(inner.metrics.clone()), permit);
    let limits = inner.limits();
    let opening = async {
        let slots = (limits.slots_of(&repository.registry).acquire().await, limits.fill_slots.acquire().await);
        (slots, open(&inner, &repository, &digest).await)
    };
    let Some((_slots, opened)) = inner.stop.run_until_cancelled(opening).await else { return };
    let body = match opened {
        Ok(body) => body,
        Err(error) => {
            inner.metrics.fill_failure("upstream");
            let error = Error::from_upstream(error, Error::BlobUnknown);
            return permit.announce(Opened::Failed { leader: repository, error });
        }
    };
    let size_bytes = body.total_bytes();
    let Some(spool) = begin(&inner, &repository, &digest, size_bytes).await else {
        inner.metrics.fill_failure("no-room");
        return relay(&inner, repository, &digest, body, &permit).await;
    };
    let (identity, growing) = (body.identity().clone(), spool.follow());
    let fill = Fill { inner: &inner, repository: &repository, digest: &digest };
    permit.announce(Opened::Growing { leader: repository.clone(), identity, growing });
    match fill.bring(&spool, body).await {
        Ok(brought) => fill.keep(spool, brought).await,
        Err(broken) => fill.give_up(spool, broken).await,
    }
}

/// Streams what cannot be kept to all who wait for it, and who come in time.
async fn relay(inner: &Inner, leader: Repository, digest: &Digest, body: BlobBody, permit: &Permit<FillKey, Opened>) {
    let (relay, size_bytes, identity) = (Relay::new(digest), body.total_bytes(), body.identity().clone());
    let open = Some(body).filter(|body| body.start() == 0);
    let stream = PassThrough::new(inner.upstream.clone(), leader.clone(), *digest, open);
    permit.announce(Opened::Relayed { leader, identity, size_bytes, relay: relay.clone() });
    inner.stop.run_until_cancelled(relay.run(stream)).await;
}

/// Asks for all of it, or for what follows the parked part.
async fn open(inner: &Inner, repository: &Repository, digest: &Digest) -> Result<BlobBody, upstream::Error> {
    let start = inner.store.parked_bytes(digest, repository).unwrap_or(0);
    match inner.upstream.get_blob(repository, digest, Part { start, end: None }).await {
        // What is parked may be all of it, or longer: then it cannot be asked what follows.
        Err(upstream::Error::Protocol { .. }) if start > 0 => {
            inner.upstream.get_blob(repository, digest, Part::whole()).await
        }
        answered => answered,
    }
}

/// A spool, where there is room for one, and there was room a short while ago.
async fn begin(inner: &Inner, repository: &Repository, digest: &Digest, size_bytes: Option<u64>) -> Option<Spool> {
    if inner.unkept.get(digest).is_some_and(|until| Instant::now() < until) {
        tracing::info!(%digest, ?size_bytes, "content that could not be kept a short while ago is passed through");
        return None;
    }
    let begun = inner.store.begin(digest, size_bytes, repository).await;
    begun.inspect_err(|error| tracing::warn!(%digest, ?size_bytes, %error, "content is passed through, not kept")).ok()
}

struct Fill<'a> {
    inner: &'a Arc<Inner>,
    repository: &'a Repository,
    digest: &'a Digest,
}

impl Fill<'_> {
    async fn bring(&self, spool: &Spool, first: BlobBody) -> Result<Brought, Broken> {
        let plan = Plan {
            upstream: self.inner.upstream.clone(),
            repository: self.repository.clone(),
            digest: *self.digest,
            size_bytes: first.total_bytes(),
            brought_bytes: AtomicU64::new(0),
            provenance: Provenance::new(&first),
            share: first.share(),
        };
        let policy = self.inner.limits().policy(&self.repository.registry);
        let stop = self.inner.stop.clone();
        Conductor::new(plan, spool, stop, policy.lanes_per_blob, policy.parks_deserted).download(first).await
    }

    /// The verdict; then published, with the grant that it makes.
    async fn keep(&self, spool: Spool, brought: Brought) {
        let complete = match spool.finish().await {
            Ok(complete) => complete,
            Err(FinishError::Disk(error)) => {
                self.inner.metrics.fill_failure("store");
                return tracing::error!(digest = %self.digest, %error, "a download could not be read back");
            }
            Err(FinishError::Mismatch(mismatch)) => {
                let endpoint = brought.source.base().as_str();
                brought.source.distrust();
                self.inner.metrics.fill_failure("digest");
                return tracing::error!(repository = %self.repository, endpoint, %mismatch, "the upstream sent wrong content");
            }
        };
        let proof = access::proof(&brought.identity);
        if let Err(error) = self.inner.store.publish(complete, self.repository, &proof).await {
            self.inner.metrics.fill_failure("store");
            tracing::error!(digest = %self.digest, %error, "verified content could not be kept");
        }
        self.inner.closed.invalidate(self.repository);
    }

    /// Ends it for its readers, and keeps what can be used again.
    async fn give_up(&self, spool: Spool, broken: Broken) {
        let (repository, digest) = (self.repository, self.digest);
        let reason = match broken {
            Broken::Upstream(_) => "upstream",
            Broken::Changed(_) | Broken::Write(WriteError::TooLong { .. }) => "protocol",
            Broken::Write(WriteError::Store(_)) => "store",
            Broken::Deserted | Broken::Stopped => "parked",
        };
        self.inner.metrics.fill_failure(reason);
        tracing::warn!(%repository, %digest, error = %broken, "a download ended early");
        match broken {
            Broken::Write(WriteError::Store(_)) => {
                self.inner.unkept.insert(*digest, Instant::now() + UNKEPT_FOR);
                spool.fail(ReadError::Unkept);
            }
            // Whoever came since that was found goes on alone.
            Broken::Deserted => self.inner.store.park(spool, digest, repository, ReadError::Unkept).await,
            Broken::Upstream(_) | Broken::Stopped => {
                let error = ReadError::Failed(broken.to_string().into());
                self.inner.store.park(spool, digest, repository, error).await;
            }
            Broken::Changed(_) | Broken::Write(_) => spool.fail(ReadError::Failed(broken.to_string().into())),
        }
    }
}

/// One download in the gauge.
struct InFlight(Metrics);

impl InFlight {
    fn new(metrics: Metrics) -> Self {
        metrics.fills_in_flight(1);
        Self(metrics)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fills_in_flight(-1);
    }
}
