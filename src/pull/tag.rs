//! Manifests by tag: served fresh, checked once for all who wait, stale when the upstream cannot answer.

use std::sync::Arc;

use tokio::time::Instant;
use tokio::time::timeout_at;

use crate::oci::Reference;
use crate::oci::Repository;
use crate::oci::Tag;
use crate::store::Moved;
use crate::store::TagRecord;
use crate::store::Timestamp;

use super::Inner;
use super::STALE_AFTER;
use super::TROUBLE_PAUSE;
use super::access;
use super::access::Kind;
use super::error::Error;
use super::flight::Seat;
use super::flight::Wait;
use super::freshness::Freshness;
use super::freshness::judge;
use super::manifest;
use super::manifest::Manifest;
use super::outcome::Outcome;
use super::outcome::StaleReason;

pub(super) async fn manifest(inner: &Arc<Inner>, repository: &Repository, tag: &Tag) -> Result<Manifest, Error> {
    // A tag that is gone has no record, so a fresh one needs no look at those that are absent.
    let record = match judged(inner, repository, tag)? {
        Judged::Fresh(record) => return manifest::by_digest(inner, repository, &record.digest).await,
        Judged::Check(record) => Some(record),
        Judged::Unusable => None,
    };
    let key = (repository.clone(), tag.clone());
    if inner.absent_tags.get(&key).is_some_and(|until| Instant::now() < until) {
        return Err(Error::ManifestUnknown { is_remembered: true });
    }
    let known = match record {
        Some(record) => manifest::granted(inner, repository, &record.digest).await,
        None => None,
    };
    let is_troubled = inner.troubled.get(&repository.registry).is_some_and(|until| Instant::now() < until);
    if let Some(known) = known.as_ref().filter(|_| is_troubled) {
        return Ok(Manifest { outcome: Outcome::Stale { reason: StaleReason::Unreachable }, ..known.clone() });
    }
    let wait = match inner.checks.board(&key) {
        Seat::Follow(wait) => wait,
        Seat::Lead(permit) => {
            // The check that another led may have ended between our look at the record and our lead.
            if let Judged::Fresh(record) = judged(inner, repository, tag)? {
                drop(permit);
                return manifest::by_digest(inner, repository, &record.digest).await;
            }
            let wait = permit.wait();
            let (inner, (repository, tag)) = (inner.clone(), key);
            // It goes on when nobody waits any more.
            inner.clone().spawn(async move {
                permit.announce(check(&inner, &repository, &tag).await);
            });
            wait
        }
    };
    let Some(known) = known else { return wait.value().await.ok_or_else(Error::abandoned)? };
    let answered = checked_or_stale(wait, known).await;
    match &answered {
        Ok(Manifest { outcome: Outcome::Stale { .. }, .. }) => {
            inner.troubled.insert(repository.registry.clone(), Instant::now() + TROUBLE_PAUSE);
        }
        _ => inner.troubled.invalidate(&repository.registry),
    }
    answered
}

/// What the record of a tag is good for now.
enum Judged {
    Fresh(Arc<TagRecord>),
    Check(Arc<TagRecord>),
    Unusable,
}

fn judged(inner: &Inner, repository: &Repository, tag: &Tag) -> Result<Judged, Error> {
    let Some(record) = inner.store.tag(repository, tag) else { return Ok(Judged::Unusable) };
    Ok(match judge(&record, inner.policy(repository)?, Timestamp::now()) {
        Freshness::Fresh => Judged::Fresh(record),
        Freshness::Check => Judged::Check(record),
        Freshness::Unusable => Judged::Unusable,
    })
}

/// Waits for the check as long as a known digest may wait, then serves that.
async fn checked_or_stale(wait: Wait<Result<Manifest, Error>>, known: Manifest) -> Result<Manifest, Error> {
    let deadline = wait.since() + STALE_AFTER;
    let reason = match timeout_at(deadline, wait.value()).await {
        Ok(Some(Ok(manifest))) => return Ok(manifest),
        Ok(Some(Err(error))) => error.stale_reason().ok_or(error)?,
        Ok(None) => StaleReason::UpstreamError,
        Err(_) => StaleReason::Slow,
    };
    Ok(Manifest { outcome: Outcome::Stale { reason }, ..known })
}

/// One check of a tag for all who wait.
async fn check(inner: &Arc<Inner>, repository: &Repository, tag: &Tag) -> Result<Manifest, Error> {
    match ask(inner, repository, tag).await {
        Ok(manifest) => {
            // Content first, tag pointer last.
            let moved = inner.store.point_tag(repository, tag, &manifest.digest).await;
            if let Moved::From(from) = moved {
                tracing::info!(%repository, %tag, %from, to = %manifest.digest, "a tag moved");
            }
            Ok(manifest)
        }
        Err(error) => {
            if matches!(error, Error::ManifestUnknown { .. }) {
                let until = Instant::now() + inner.policy(repository)?.not_found_ttl;
                inner.absent_tags.insert((repository.clone(), tag.clone()), until);
                inner.store.forget_tag(repository, tag).await;
            }
            Err(error)
        }
    }
}

/// HEAD, and then only what is not here by GET.
async fn ask(inner: &Arc<Inner>, repository: &Repository, tag: &Tag) -> Result<Manifest, Error> {
    let reference = Reference::Tag(tag.clone());
    let head = inner.upstream.head_manifest(repository, &reference).await;
    let head = head.map_err(|error| Error::from_upstream(error, Kind::Manifest.absent()))?;
    let Some(digest) = head.digest else {
        return manifest::fetch_unnamed(inner, repository, &reference).await;
    };
    let admission = access::admit_confirmed(inner, repository, &digest, &head.identity).await;
    manifest::admitted(inner, repository, &digest, admission).await
}
