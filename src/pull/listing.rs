//! Lists that only the upstream can give: tags and referrers. Passed on, not kept.

use bytes::Bytes;

use crate::oci::Digest;
use crate::oci::Repository;
use crate::oci::Tag;

use super::Inner;
use super::error::Error;
use super::outcome::Outcome;

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
    /// The upstream has filtered it by artifact type.
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

pub(super) async fn referrers(
    inner: &Inner,
    repository: &Repository,
    digest: &Digest,
    artifact_type: Option<&str>,
) -> Result<Referrers, Error> {
    let page = inner.upstream.referrers(repository, digest, artifact_type).await;
    let page = page.map_err(|error| Error::from_upstream(error, Error::ReferrersUnsupported))?;
    Ok(Referrers { index: page.index, filtered: page.filtered, outcome: Outcome::Miss { stored: false } })
}
