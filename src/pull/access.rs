//! Who may read what: the rule of grants, in one place.
//!
//! A grant for public content has no end. One for content that was fetched with credentials runs out after `grant_ttl` and
//! is asked for again by HEAD, once for all who wait, 2 s at most where it has not run out for `stale_if_error`: a yes
//! renews it, no answer leaves it, a 404 takes it back, and a 401 or 403 takes all such grants of the repository back.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio::time::timeout_at;

use crate::oci::Digest;
use crate::oci::Reference;
use crate::oci::Repository;
use crate::store::Grant;
use crate::store::Proof;
use crate::store::Standing;
use crate::store::Timestamp;
use crate::upstream::Identity;

use super::Inner;
use super::STALE_AFTER;
use super::error::Error;
use super::flight::Seat;
use super::flight::Wait;
use super::freshness::Freshness;
use super::freshness::Policy;
use super::freshness::judge_age;
use super::outcome::StaleReason;

/// All content is looked at to close a repository: not more often than that for the same one.
const CLOSE_PAUSE: Duration = Duration::from_secs(1);

/// Which API of the upstream has the content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Manifest,
    Blob,
}

impl Kind {
    /// What a 404 means for it.
    pub(super) fn absent(self) -> Error {
        match self {
            Self::Manifest => Error::ManifestUnknown { is_remembered: false },
            Self::Blob => Error::BlobUnknown,
        }
    }
}

/// What a repository may do with content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// It is not here.
    Absent,
    /// Serve it.
    Granted,
    /// Serve it: the upstream was asked and has it.
    Confirmed,
    /// Serve it: the grant has run out, and the upstream could not be asked.
    Stale(StaleReason),
    /// Serve it: the grant has run out, and nobody is to be asked.
    Offline,
    /// The upstream has it in this repository, but that is not enough to open what is here: fetch it from there.
    Refetch,
}

/// What a confirmation flight is about, and what it announces.
pub(super) type Question = (Repository, Digest, Kind);
pub(super) type Answer = Result<Option<Identity>, Error>;

/// Decides whether a repository may have content from the store; asks upstream when nothing is known.
pub(super) async fn admit(
    inner: &Arc<Inner>,
    repository: &Repository,
    digest: &Digest,
    kind: Kind,
) -> Result<Admission, Error> {
    // What came as a manifest is no blob until the upstream's blob API gives it, and the other way round.
    if kind == Kind::Blob && inner.store.is_document(digest) {
        return Ok(Admission::Refetch);
    }
    match inner.store.standing(repository, digest) {
        Standing::Absent => return Ok(Admission::Absent),
        Standing::Granted => {
            if let Some(grant) = inner.store.grant_of(repository, digest) {
                return granted(inner, repository, digest, kind, grant).await;
            }
        }
        Standing::Ungranted => {}
    }
    let answer = ask(inner, repository, digest, kind).value().await.ok_or_else(Error::abandoned)?;
    match answer? {
        Some(identity) => Ok(admit_confirmed(inner, repository, digest, &identity).await),
        None => Ok(Admission::Refetch),
    }
}

/// Serves by a grant, which may have to be renewed.
async fn granted(
    inner: &Arc<Inner>,
    repository: &Repository,
    digest: &Digest,
    kind: Kind,
    grant: Grant,
) -> Result<Admission, Error> {
    let freshness = judge_by(&*inner.policy(repository)?, &grant);
    if freshness == Freshness::Fresh {
        return Ok(Admission::Granted);
    }
    if inner.upstream.is_offline(&repository.registry) {
        return Ok(Admission::Offline);
    }
    let may_wait_forever = freshness == Freshness::Unusable;
    if !may_wait_forever && let Some(advice) = inner.troubles.advice(&repository.registry, &(repository, digest)) {
        if advice.is_turn {
            drop(ask(inner, repository, digest, kind));
        }
        return Ok(Admission::Stale(advice.reason));
    }
    let wait = ask(inner, repository, digest, kind);
    let deadline = wait.since() + STALE_AFTER;
    let answer = match may_wait_forever {
        true => wait.value().await,
        false => match timeout_at(deadline, wait.value()).await {
            Ok(answer) => answer,
            Err(_) => {
                inner.troubles.note(&repository.registry, StaleReason::Slow);
                return Ok(Admission::Stale(StaleReason::Slow));
            }
        },
    };
    match answer.ok_or_else(Error::abandoned)? {
        Ok(Some(identity)) => Ok(admit_confirmed(inner, repository, digest, &identity).await),
        // A registry without HEAD says nothing: only the content itself does.
        Ok(None) => Ok(Admission::Refetch),
        Err(error) => match error.stale_reason() {
            Some(reason) if !may_wait_forever => Ok(Admission::Stale(reason)),
            _ => Err(error),
        },
    }
}

/// Whether a grant still stands by itself.
fn judge_grant(grant: &Grant, grant_ttl: Duration, stale_if_error: Duration) -> Freshness {
    if grant.is_public {
        return Freshness::Fresh;
    }
    let confirmed_at = grant.confirmed_at.unwrap_or(Timestamp::from_millis(0));
    judge_age(confirmed_at, grant_ttl, stale_if_error, Timestamp::now())
}

/// The same under a registry's policy.
pub(super) fn judge_by(policy: &Policy, grant: &Grant) -> Freshness {
    judge_grant(grant, policy.grant_ttl, policy.stale_if_error)
}

/// Whether a repository may serve content while its upstream cannot be asked.
pub(super) fn is_open_stale(inner: &Inner, repository: &Repository, digest: &Digest) -> bool {
    let (grant, policy) = (inner.store.grant_of(repository, digest), inner.policy(repository));
    matches!((grant, policy), (Some(grant), Ok(policy)) if judge_by(&policy, &grant) != Freshness::Unusable)
}

/// The same, when the upstream has just said to `identity` that this repository has the content.
pub(super) async fn admit_confirmed(
    inner: &Inner,
    repository: &Repository,
    digest: &Digest,
    identity: &Identity,
) -> Admission {
    if inner.store.standing(repository, digest) == Standing::Absent {
        return Admission::Absent;
    }
    // Also of a grant: the account may be another than the one that got it.
    if !inner.store.is_opened_by(digest, &repository.registry, account(identity).as_deref()) {
        return Admission::Refetch;
    }
    if !is_young(inner, repository, digest) {
        inner.store.grant(repository, digest, &Proof::Confirmed).await;
    }
    Admission::Confirmed
}

/// A grant in the first half of its time is not written anew.
fn is_young(inner: &Inner, repository: &Repository, digest: &Digest) -> bool {
    let (grant, policy) = (inner.store.grant_of(repository, digest), inner.policy(repository));
    let (Some(grant), Ok(policy)) = (grant, policy) else { return false };
    judge_grant(&grant, policy.grant_ttl / 2, policy.stale_if_error) == Freshness::Fresh
}

/// Asks the upstream once for all who wait whether the repository has the content.
fn ask(inner: &Arc<Inner>, repository: &Repository, digest: &Digest, kind: Kind) -> Wait<Answer> {
    match inner.confirmations.board(&(repository.clone(), *digest, kind)) {
        Seat::Follow(wait) => wait,
        Seat::Lead(permit) => {
            let wait = permit.wait();
            let (inner, repository, digest) = (inner.clone(), repository.clone(), *digest);
            inner.clone().spawn(async move {
                permit.land(confirm(&inner, &repository, &digest, kind).await);
            });
            wait
        }
    }
}

/// Asks the upstream whether the repository has the content, and says who asked; `None` when its HEAD says nothing.
pub(super) async fn confirm(
    inner: &Inner,
    repository: &Repository,
    digest: &Digest,
    kind: Kind,
) -> Result<Option<Identity>, Error> {
    let asked = match kind {
        Kind::Blob => {
            let head = inner.upstream.head_blob(repository, digest).await;
            head.map(|head| head.is_supported.then_some(head.identity))
        }
        Kind::Manifest => {
            let head = inner.upstream.head_manifest(repository, &Reference::Digest(*digest)).await;
            head.map(|head| head.is_supported.then_some(head.identity))
        }
    };
    let answer = asked.map_err(|error| Error::from_upstream(error, kind.absent()));
    heard(inner, repository, Some(digest), answer.as_ref().err()).await;
    if let Ok(Some(identity)) = &answer {
        // Whoever asked for it: a grant that stood on it stands on.
        renew(inner, repository, digest, identity).await;
    }
    answer
}

async fn renew(inner: &Inner, repository: &Repository, digest: &Digest, identity: &Identity) {
    if inner.store.standing(repository, digest) == Standing::Granted {
        let _ = admit_confirmed(inner, repository, digest, identity).await;
    }
}

/// What an answer of the upstream about a repository, or about content of it, means beyond the request at hand.
pub(super) async fn heard(inner: &Inner, repository: &Repository, digest: Option<&Digest>, error: Option<&Error>) {
    match error {
        Some(error) if error.is_trouble() => {
            let reason = error.stale_reason().unwrap_or(StaleReason::UpstreamError);
            return inner.troubles.note(&repository.registry, reason);
        }
        Some(Error::Denied { .. }) => close(inner, repository).await,
        Some(Error::ManifestUnknown { .. } | Error::BlobUnknown) => {
            if let Some(digest) = digest {
                inner.store.revoke(repository, digest).await;
            }
        }
        Some(Error::Offline | Error::UnknownRegistry | Error::Internal { .. }) => return,
        // It is open, so that there may be grants again.
        None => inner.closed.invalidate(repository),
        Some(_) => {}
    }
    inner.troubles.clear(&repository.registry);
}

/// The registry closed the repository to us.
async fn close(inner: &Inner, repository: &Repository) {
    if inner.closed.get(repository).is_some_and(|at| at.elapsed() < CLOSE_PAUSE) {
        return;
    }
    inner.closed.insert(repository.clone(), Instant::now());
    let grants = inner.store.revoke_all(repository).await;
    if grants > 0 {
        tracing::warn!(%repository, grants, "the registry refuses: what was fetched with credentials is closed");
    }
}

/// The account that an identity stands for.
pub(super) fn account(identity: &Identity) -> Option<Arc<str>> {
    match identity {
        Identity::Anonymous => None,
        Identity::Account(name) => Some(name.clone()),
    }
}

/// The proof that fetching all of the content with this identity makes.
pub(super) fn proof(identity: &Identity) -> Proof {
    Proof::Content { account: account(identity) }
}
