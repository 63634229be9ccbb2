//! What a request would get, and why: the rules of [`super::tag`] and [`super::access`] read out, asking nobody.

use std::sync::Arc;

use serde::Serialize;

use crate::oci::Digest;
use crate::oci::Reference;
use crate::oci::Repository;
use crate::oci::Tag;
use crate::store::Standing;
use crate::store::TagRecord;
use crate::store::Timestamp;

use super::Inner;
use super::access;
use super::error::Error;
use super::freshness::Freshness;
use super::freshness::Policy;
use super::freshness::TagPolicy;
use super::freshness::judge;

/// The account of one reference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Why {
    /// What a request would get.
    pub verdict: Verdict,
    /// Where the bytes would come from.
    pub source: Source,
    /// The manifest or blob meant; `None` for a tag that is not known.
    pub digest: Option<Digest>,
    /// Its length, when it is here.
    pub size_bytes: Option<u64>,
    /// When the upstream last said where the tag points.
    pub checked_at: Option<Timestamp>,
    /// Up to when the tag is served without asking.
    pub fresh_until: Option<Timestamp>,
    /// Up to when the tag is served though the upstream cannot be asked; `None` for a digest.
    pub stale_until: Option<Timestamp>,
    /// The pattern of the rule that decided; `None`: the registry's own keys.
    pub rule: Option<String>,
    /// The tag stays where it points.
    pub immutable: bool,
    /// Where the upstream says that an immutable tag points now.
    pub refused_digest: Option<Digest>,
    /// Whether the repository may serve it.
    pub right: Right,
    /// The registry's trouble, while it cannot be asked: the `detail` of a stale answer.
    pub trouble: Option<&'static str>,
}

/// What a request would get.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// What is here, without asking.
    Hit,
    /// What is here, after asking the upstream; also when that cannot answer within 2 s.
    Check,
    /// What is here, while the upstream has trouble.
    Stale,
    /// What is here: nobody is to be asked.
    Offline,
    /// What is here, when the upstream confirms that this repository has it.
    Confirm,
    /// What the upstream sends.
    Fetch,
    /// Nothing: the upstream said a short while ago that there is none.
    Absent,
    /// Nothing: it is not here, and nobody is to be asked.
    Unavailable,
    /// Nothing: the operator does not let the repository be pulled.
    NotAllowed,
}

/// Where the bytes would come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// What is here.
    Store,
    /// The registry.
    Upstream,
    /// Nowhere.
    None,
}

/// The right of a repository to some content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Right {
    /// The content is not here.
    NotHere,
    /// It is here, and this repository has not shown that it has it.
    None,
    /// It was fetched without credentials, and the repository has shown that it has it.
    Public,
    /// It was fetched with credentials, and the repository has shown that it has it.
    Private {
        /// When it last did.
        confirmed_at: Option<Timestamp>,
        /// When it has to again.
        expires_at: Timestamp,
    },
}

pub(super) fn why(inner: &Inner, repository: &Repository, reference: &Reference, now: Timestamp) -> Result<Why, Error> {
    let policy = inner.policy(repository)?;
    let mut why = match reference {
        Reference::Digest(digest) => of_digest(inner, repository, digest, &policy),
        Reference::Tag(tag) => of_tag(inner, repository, tag, &policy, now),
    };
    if !policy.allows(&repository.name) {
        (why.verdict, why.source) = (Verdict::NotAllowed, Source::None);
    }
    Ok(why)
}

fn of_digest(inner: &Inner, repository: &Repository, digest: &Digest, policy: &Policy) -> Why {
    let right = right(inner, repository, digest, policy);
    let grant = inner.store.grant_of(repository, digest);
    let is_offline = inner.upstream.is_offline(&repository.registry);
    let trouble = inner.troubles.reason(&repository.registry);
    let verdict = match (right, grant.map(|grant| access::judge_by(policy, &grant))) {
        (Right::NotHere | Right::None, _) if is_offline => Verdict::Unavailable,
        (Right::NotHere, _) => Verdict::Fetch,
        (_, Some(Freshness::Fresh)) => Verdict::Hit,
        (_, Some(_)) if is_offline => Verdict::Offline,
        (_, Some(Freshness::Check)) if trouble.is_some() => Verdict::Stale,
        (_, Some(Freshness::Check)) => Verdict::Check,
        _ => Verdict::Confirm,
    };
    Why {
        verdict,
        source: source(verdict),
        digest: Some(*digest),
        size_bytes: inner.store.size_bytes(digest),
        checked_at: None,
        fresh_until: None,
        stale_until: None,
        rule: None,
        immutable: false,
        refused_digest: None,
        right,
        trouble: trouble.map(super::StaleReason::as_str),
    }
}

fn of_tag(inner: &Inner, repository: &Repository, tag: &Tag, policy: &Policy, now: Timestamp) -> Why {
    let rule = policy.for_tag(&repository.name, tag);
    let record = inner.store.tag(repository, tag);
    let content = record.as_ref().map(|record| of_digest(inner, repository, &record.digest, policy));
    let said_absent_at = inner.absent_tags.get(&(repository.clone(), tag.clone()));
    let is_absent = said_absent_at.is_some_and(|said_at| said_at.elapsed() < policy.not_found_ttl);
    let is_offline = rule.offline || inner.upstream.is_offline(&repository.registry);
    let verdict = match (&record, &content) {
        _ if is_absent && !is_offline => Verdict::Absent,
        (Some(record), Some(content)) => of_record(inner, repository, record, content.verdict, &rule, now, is_offline),
        _ if is_offline => Verdict::Unavailable,
        _ => Verdict::Fetch,
    };
    let after = |wait| record.as_ref().map(|record| later(record.checked_at, wait));
    Why {
        verdict,
        source: source(verdict),
        digest: record.as_ref().map(|record| record.digest),
        size_bytes: content.as_ref().and_then(|content| content.size_bytes),
        checked_at: record.as_ref().map(|record| record.checked_at),
        fresh_until: after(rule.tag_ttl),
        stale_until: after(rule.stale_if_error),
        rule: rule.pattern.as_ref().map(ToString::to_string),
        immutable: rule.immutable,
        refused_digest: record.as_ref().and_then(|record| record.refused.as_ref()).map(|past| past.digest),
        right: content.map_or(Right::NotHere, |content| content.right),
        trouble: inner.troubles.reason(&repository.registry).map(super::StaleReason::as_str),
    }
}

/// `content` is what a request for the digest would get.
fn of_record(
    inner: &Inner,
    repository: &Repository,
    record: &Arc<TagRecord>,
    content: Verdict,
    rule: &TagPolicy,
    now: Timestamp,
    is_offline: bool,
) -> Verdict {
    let is_here = matches!(content, Verdict::Hit | Verdict::Check | Verdict::Stale | Verdict::Offline);
    match judge(record, rule, now) {
        Freshness::Fresh => content,
        _ if is_offline && is_here => Verdict::Offline,
        _ if is_offline => content,
        Freshness::Check if !is_here => Verdict::Fetch,
        Freshness::Check if inner.troubles.reason(&repository.registry).is_some() => Verdict::Stale,
        Freshness::Check => Verdict::Check,
        Freshness::Unusable => Verdict::Fetch,
    }
}

fn source(verdict: Verdict) -> Source {
    match verdict {
        Verdict::Hit | Verdict::Check | Verdict::Stale | Verdict::Offline | Verdict::Confirm => Source::Store,
        Verdict::Fetch => Source::Upstream,
        Verdict::Absent | Verdict::Unavailable | Verdict::NotAllowed => Source::None,
    }
}

fn right(inner: &Inner, repository: &Repository, digest: &Digest, policy: &Policy) -> Right {
    match (inner.store.standing(repository, digest), inner.store.grant_of(repository, digest)) {
        (Standing::Absent, _) => Right::NotHere,
        (_, None) => Right::None,
        (_, Some(grant)) if grant.is_public => Right::Public,
        (_, Some(grant)) => {
            let confirmed_at = grant.confirmed_at;
            let expires_at = later(confirmed_at.unwrap_or(Timestamp::from_millis(0)), policy.grant_ttl);
            Right::Private { confirmed_at, expires_at }
        }
    }
}

fn later(time: Timestamp, wait: std::time::Duration) -> Timestamp {
    let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
    Timestamp::from_millis(time.as_millis().saturating_add(wait_ms))
}
