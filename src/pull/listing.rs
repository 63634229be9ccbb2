//! Lists that only the upstream can give: tags, which are passed on, and referrers, which are kept as documents.

use std::sync::Arc;

use bytes::Bytes;

use crate::oci::Algorithm;
use crate::oci::Digest;
use crate::oci::MediaType;
use crate::oci::Repository;
use crate::oci::Tag;
use crate::oci::Verified;
use crate::oci::filter_referrers;
use crate::store::Document;

use super::Inner;
use super::access;
use super::error::Error;
use super::manifest::Manifest;
use super::outcome::Outcome;
use super::tag;
use super::tag::Subject;

/// Which page of a tag list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TagQuery {
    /// At most so many.
    pub n: Option<u32>,
    /// Those after this one.
    pub last: Option<Tag>,
}

/// A page of a tag list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagPage {
    /// The tags, in the upstream's order.
    pub tags: Vec<String>,
    /// There are more after the last one.
    pub has_more: bool,
    /// How it came about.
    pub outcome: Outcome,
}

/// What refers to a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Referrers {
    /// An OCI image index, as JSON.
    pub index: Bytes,
    /// It is filtered by artifact type.
    pub filtered: bool,
    /// How it came about.
    pub outcome: Outcome,
}

pub(super) async fn tags(inner: &Inner, repository: &Repository, query: &TagQuery) -> Result<TagPage, Error> {
    let outcome = Outcome::Miss { stored: false };
    let last = query.last.as_ref().map(Tag::as_str);
    let page = inner.upstream.list_tags(repository, query.n, last).await;
    let page = page.map_err(|error| Error::from_upstream(error, Error::NameUnknown))?;
    Ok(TagPage { tags: page.tags, has_more: page.has_more, outcome })
}

/// All referrers, by the rules of a tag: kept, checked after the registry's `tag_ttl`, stale when it cannot answer. The
/// filter is applied here, so that one list serves all.
pub(super) async fn referrers(
    inner: &Arc<Inner>,
    repository: &Repository,
    digest: &Digest,
    artifact_type: Option<&str>,
) -> Result<Referrers, Error> {
    let found = tag::resolve(inner, repository, &tag_of(digest), Subject::Referrers(*digest)).await;
    let found = found.map_err(|error| match error {
        Error::ManifestUnknown { .. } => Error::ReferrersUnsupported,
        other => other,
    })?;
    let outcome = found.outcome;
    let Some(artifact_type) = artifact_type else {
        return Ok(Referrers { index: found.bytes, filtered: false, outcome });
    };
    let kept = filter_referrers(&found.bytes, artifact_type);
    let index = kept.ok_or_else(|| Error::Internal { reason: "a kept list of referrers is no index".to_owned() })?;
    Ok(Referrers { index: index.into(), filtered: true, outcome })
}

/// Asks the upstream for all referrers, and keeps the list as a document of its own.
pub(super) async fn fetch_referrers(inner: &Inner, repository: &Repository, of: &Digest) -> Result<Manifest, Error> {
    let page = inner.upstream.referrers(repository, of, None).await;
    let page = page.map_err(|error| Error::from_upstream(error, Error::ReferrersUnsupported))?;
    let digest = Digest::of(Algorithm::Sha256, &page.index);
    let verified = Verified::check(&digest, &page.index)?;
    let document = Document { bytes: page.index.clone(), media_type: MediaType::oci_index() };
    let kept = inner.store.put_document(verified, document, repository, &access::proof(&page.identity)).await;
    if let Err(error) = &kept {
        tracing::error!(%repository, %of, %error, "a list of referrers could not be kept");
    }
    let outcome = Outcome::Miss { stored: kept.is_ok() };
    Ok(Manifest { digest, media_type: MediaType::oci_index(), bytes: page.index, outcome })
}

/// What begins the names under which lists are kept among the tags of their repository.
const PREFIX: &str = "_referrers.";

/// The name under which the list of a digest's referrers is kept.
fn tag_of(digest: &Digest) -> Tag {
    let hex = Digest::of(Algorithm::Sha256, digest.to_string().as_bytes()).to_string();
    let hex = hex.split_once(':').map_or(hex.as_str(), |(_, hex)| hex);
    format!("{PREFIX}{hex}").parse().expect("the prefix and hexadecimal digits are a tag")
}

/// Whether a list is kept under this name: no tag that a client may ask for.
pub fn is_listing(tag: &Tag) -> bool {
    tag.as_str().starts_with(PREFIX)
}
