//! Manifests by tag: served fresh, checked once for all who wait, stale when the upstream cannot answer.

use std::sync::Arc;

use tokio::time::Instant;
use tokio::time::timeout_at;

use crate::metrics::Move;
use crate::oci::Digest;
use crate::oci::Reference;
use crate::oci::Repository;
use crate::oci::Tag;
use crate::store::Moved;
use crate::store::TagRecord;
use crate::store::Timestamp;

use super::Inner;
use super::STALE_AFTER;
use super::access;
use super::access::Kind;
use super::error::Error;
use super::flight::Seat;
use super::flight::Wait;
use super::freshness::Freshness;
use super::freshness::TagPolicy;
use super::freshness::judge;
use super::listing::fetch_referrers;
use super::listing::is_listing;
use super::lookahead;
use super::manifest;
use super::manifest::Manifest;
use super::outcome::Outcome;
use super::outcome::StaleReason;

type Checked = Wait<Result<Manifest, Error>>;

/// What a tag is asked for as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    /// A tag of the registry.
    Tag,
    /// The name of the list of what refers to this digest.
    Referrers(Digest),
}

pub(super) async fn manifest(inner: &Arc<Inner>, repository: &Repository, tag: &Tag) -> Result<Manifest, Error> {
    if is_listing(tag) {
        return Err(Error::ManifestUnknown { is_remembered: false });
    }
    resolve(inner, repository, tag, Subject::Tag).await
}

/// By the rule that the tag is under: from the store, or after a check.
pub(super) async fn resolve(
    inner: &Arc<Inner>,
    repository: &Repository,
    tag: &Tag,
    subject: Subject,
) -> Result<Manifest, Error> {
    let policy = inner.policy(repository)?;
    let rule = match subject {
        Subject::Tag => policy.for_tag(&repository.name, tag),
        Subject::Referrers(_) => policy.without_rules(),
    };
    if rule.offline || inner.upstream.is_offline(&repository.registry) {
        return unasked(inner, repository, tag, &rule).await;
    }
    // A tag that is gone has no record, so a fresh one needs no look at those that are absent.
    let record = match judged(inner, repository, tag, &rule) {
        Judged::Fresh(record) => return fresh(inner, repository, &record).await,
        Judged::Check(record) => Some(record),
        Judged::Unusable => None,
    };
    let key = (repository.clone(), tag.clone());
    if inner.absent_tags.get(&key).is_some_and(|said_at| said_at.elapsed() < policy.not_found_ttl) {
        return Err(Error::ManifestUnknown { is_remembered: true });
    }
    let known = match record {
        Some(record) => manifest::granted(inner, repository, &record.digest).await,
        None => None,
    };
    if let Some(known) = &known
        && let Some(advice) = inner.troubles.advice(&repository.registry, &key)
    {
        if advice.is_turn {
            drop(board(inner, &key, &rule, subject));
        }
        return Ok(stale(known, advice.reason));
    }
    let wait = match board(inner, &key, &rule, subject) {
        Boarded::Waiting(wait) => wait,
        // The check that another led ended between our look at the record and our lead.
        Boarded::Fresh(record) => return fresh(inner, repository, &record).await,
    };
    match known {
        Some(known) => checked_or_stale(inner, repository, wait, known).await,
        None => match wait.value().await.ok_or_else(Error::abandoned)? {
            Err(error) if was_absent(inner, &key, &error, &rule) => Err(Error::ManifestUnknown { is_remembered: true }),
            answered => answered,
        },
    }
}

/// Nobody is to be asked where the tag points: it points where it last did, however long ago.
async fn unasked(inner: &Arc<Inner>, repository: &Repository, tag: &Tag, rule: &TagPolicy) -> Result<Manifest, Error> {
    let record = inner.store.tag(repository, tag).ok_or(Error::Offline)?;
    let found = manifest::by_digest(inner, repository, &record.digest).await?;
    let is_fresh = judge(&record, rule, Timestamp::now()) == Freshness::Fresh;
    let outcome = if found.outcome == Outcome::Hit && !is_fresh { Outcome::Offline } else { found.outcome };
    Ok(Manifest { outcome, ..found })
}

async fn fresh(inner: &Arc<Inner>, repository: &Repository, record: &TagRecord) -> Result<Manifest, Error> {
    let found = manifest::by_digest(inner, repository, &record.digest).await?;
    let is_held = record.refused.is_some() && found.outcome == Outcome::Hit;
    let outcome = if is_held { Outcome::MoveRefused } else { found.outcome };
    Ok(Manifest { outcome, ..found })
}

fn stale(known: &Manifest, reason: StaleReason) -> Manifest {
    Manifest { outcome: Outcome::Stale { reason }, ..known.clone() }
}

/// What the record of a tag is good for now.
enum Judged {
    Fresh(Arc<TagRecord>),
    Check(Arc<TagRecord>),
    Unusable,
}

fn judged(inner: &Inner, repository: &Repository, tag: &Tag, rule: &TagPolicy) -> Judged {
    let Some(record) = inner.store.tag(repository, tag) else { return Judged::Unusable };
    match judge(&record, rule, Timestamp::now()) {
        Freshness::Fresh => Judged::Fresh(record),
        Freshness::Check => Judged::Check(record),
        Freshness::Unusable => Judged::Unusable,
    }
}

enum Boarded {
    Waiting(Checked),
    Fresh(Arc<TagRecord>),
}

/// A wait for the one check of this tag, which is begun where there is none. It goes on when nobody waits any more.
fn board(inner: &Arc<Inner>, key: &(Repository, Tag), rule: &TagPolicy, subject: Subject) -> Boarded {
    let permit = match inner.checks.board(key) {
        Seat::Follow(wait) => return Boarded::Waiting(wait),
        Seat::Lead(permit) => permit,
    };
    if let Judged::Fresh(record) = judged(inner, &key.0, &key.1, rule) {
        return Boarded::Fresh(record);
    }
    let wait = permit.wait();
    let (inner, (repository, tag), rule) = (inner.clone(), key.clone(), rule.clone());
    inner.clone().spawn(async move {
        permit.land(check(&inner, &repository, &tag, &rule, subject).await);
    });
    Boarded::Waiting(wait)
}

/// Waits for the check as long as a known digest may wait, then serves that.
async fn checked_or_stale(
    inner: &Inner,
    repository: &Repository,
    wait: Checked,
    known: Manifest,
) -> Result<Manifest, Error> {
    let deadline = wait.since() + STALE_AFTER;
    match timeout_at(deadline, wait.value()).await {
        Ok(Some(Ok(manifest))) => Ok(manifest),
        Ok(Some(Err(Error::Offline))) => Ok(Manifest { outcome: Outcome::Offline, ..known }),
        Ok(Some(Err(error))) => error.stale_reason().map(|reason| stale(&known, reason)).ok_or(error),
        Ok(None) => Ok(stale(&known, StaleReason::UpstreamError)),
        Err(_) => {
            inner.troubles.note(&repository.registry, StaleReason::Slow);
            Ok(stale(&known, StaleReason::Slow))
        }
    }
}

/// Whether the upstream, which cannot be asked now, said before that there is no such tag. That is enough for a tag that
/// speaks of a digest: signatures and referrers that an image does not have must not keep it from being pulled.
fn was_absent(inner: &Inner, key: &(Repository, Tag), error: &Error, rule: &TagPolicy) -> bool {
    let said_at = inner
        .absent_tags
        .get(key)
        .filter(|_| error.stale_reason().is_some() && (is_listing(&key.1) || names_a_digest(&key.1)));
    said_at.is_some_and(|said_at| said_at.elapsed() < rule.stale_if_error)
}

/// The tag schema of referrers (distribution-spec "Referrers Tag Schema") and of cosign: `sha256-<hex>`, with a suffix or
/// without.
fn names_a_digest(tag: &Tag) -> bool {
    let Some((algorithm, rest)) = tag.as_str().split_once('-') else { return false };
    let hex = rest.split('.').next().unwrap_or_default();
    format!("{algorithm}:{hex}").parse::<Digest>().is_ok()
}

/// One check of a tag for all who wait.
async fn check(
    inner: &Arc<Inner>,
    repository: &Repository,
    tag: &Tag,
    rule: &TagPolicy,
    subject: Subject,
) -> Result<Manifest, Error> {
    let key = (repository.clone(), tag.clone());
    let asked = match subject {
        Subject::Tag => ask(inner, repository, tag, rule).await,
        Subject::Referrers(of) => fetch_referrers(inner, repository, &of).await.map(Pointed::There),
    };
    access::heard(inner, repository, None, asked.as_ref().err()).await;
    match asked {
        Ok(Pointed::There(manifest)) => {
            inner.absent_tags.invalidate(&key);
            // Content first, tag pointer last.
            let moved = inner.store.point_tag(repository, tag, &manifest.digest).await;
            if let (Moved::From(from), Subject::Tag) = (moved, subject) {
                tracing::info!(%repository, %tag, %from, to = %manifest.digest, "a tag moved");
                inner.metrics.tag_move(repository.registry.as_str(), Move::Followed);
                inner.pins_changed.notify_one();
            }
            if subject == Subject::Tag {
                lookahead::begin(inner, repository, &manifest);
            }
            Ok(manifest)
        }
        Ok(Pointed::Held(manifest)) => Ok(manifest),
        Err(error) => {
            if matches!(error, Error::ManifestUnknown { .. } | Error::ReferrersUnsupported) {
                inner.absent_tags.insert(key, Instant::now());
                inner.store.forget_tag(repository, tag).await;
            }
            Err(error)
        }
    }
}

/// What a check found.
enum Pointed {
    /// Follow it.
    There(Manifest),
    /// The tag is held where it was.
    Held(Manifest),
}

/// HEAD, and then only what is not here by GET.
async fn ask(inner: &Arc<Inner>, repository: &Repository, tag: &Tag, rule: &TagPolicy) -> Result<Pointed, Error> {
    let reference = Reference::Tag(tag.clone());
    let held_at = inner.store.tag_record(repository, tag).filter(|_| rule.immutable).map(|record| record.digest);
    let head = inner.upstream.head_manifest(repository, &reference).await;
    let head = head.map_err(|error| Error::from_upstream(error, Kind::Manifest.absent()))?;
    let Some(digest) = head.digest else { return follow_content(inner, repository, tag, held_at).await };
    if let Some(known) = held_at
        && known != digest
    {
        return hold(inner, repository, tag, &known, &digest).await;
    }
    let admission = access::admit_confirmed(inner, repository, &digest, &head.identity).await;
    match manifest::admitted(inner, repository, &digest, admission).await {
        // Some registries name another digest on HEAD than they have: the content names its own.
        Err(Error::ManifestUnknown { .. }) => follow_content(inner, repository, tag, held_at).await,
        admitted => admitted.map(Pointed::There),
    }
}

/// Where the content itself says that the tag points.
async fn follow_content(
    inner: &Arc<Inner>,
    repository: &Repository,
    tag: &Tag,
    held_at: Option<Digest>,
) -> Result<Pointed, Error> {
    let found = manifest::fetch_unnamed(inner, repository, &Reference::Tag(tag.clone())).await?;
    match held_at {
        Some(known) if known != found.digest => hold(inner, repository, tag, &known, &found.digest).await,
        _ => Ok(Pointed::There(found)),
    }
}

/// Refuses a move: the known digest goes on being served.
async fn hold(
    inner: &Arc<Inner>,
    repository: &Repository,
    tag: &Tag,
    known: &Digest,
    to: &Digest,
) -> Result<Pointed, Error> {
    tracing::error!(%repository, %tag, from = %known, %to, "an immutable tag was moved by its registry; it is held");
    if inner.store.refuse_move(repository, tag, to).await {
        inner.metrics.tag_move(repository.registry.as_str(), Move::Refused);
    }
    match manifest::by_digest(inner, repository, known).await {
        Ok(manifest) => Ok(Pointed::Held(Manifest { outcome: Outcome::MoveRefused, ..manifest })),
        Err(Error::ManifestUnknown { .. }) => Err(Error::UpstreamWrong {
            reason: format!("{tag} is immutable here, the registry moved it to {to} and no longer has {known}"),
        }),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_that_speak_of_a_digest() {
        let hex = "a".repeat(64);
        for (text, expected) in [
            (format!("sha256-{hex}"), true),
            (format!("sha256-{hex}.sig"), true),
            (format!("sha256-{hex}.att.x"), true),
            (format!("sha512-{}", "b".repeat(100)), false),
            (format!("sha256-{}", &hex[1..]), false),
            (format!("sha256-{hex}-x"), false),
            ("latest".to_owned(), false),
            ("sha256-".to_owned(), false),
        ] {
            assert_eq!(names_a_digest(&text.parse().unwrap()), expected, "{text}");
        }
    }
}
