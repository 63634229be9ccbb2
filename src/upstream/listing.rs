//! Tags and referrers (distribution-spec, "Content Discovery").

use std::collections::BTreeMap;

use bytes::Bytes;
use http::HeaderMap;
use http::Method;
use http::header::LINK;
use serde::Deserialize;
use serde_json::value::RawValue;
use url::Url;
use url::form_urlencoded::Serializer;

use super::Identity;
use super::error::Error;
use super::request::Kind;
use super::request::Question;
use super::request::RegistryClient;
use crate::oci::Digest;
use crate::oci::RepositoryName;
use crate::oci::Tag;

/// Largest listing, all pages together.
const MAX_LISTING_BYTES: usize = 4 * 1024 * 1024;
const MAX_REFERRERS_PAGES: usize = 32;
/// Most tags that a registry is asked for at once: ECR refuses more.
const MAX_TAGS_ASKED: u32 = 1000;
/// Most pages of tags that are read until one has a tag on it.
const MAX_TAG_PAGES: usize = 32;
const MAX_LINK_QUERY_BYTES: usize = 4096;
const REFERRERS_ACCEPT: &str = "application/vnd.oci.image.index.v1+json";

/// One page of tags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagPage {
    /// In the registry's order; what is no tag is left out.
    pub tags: Vec<String>,
    /// There are more behind the last one. Never so when there is none.
    pub has_more: bool,
}

/// All referrers of a digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReferrersPage {
    /// An OCI image index as JSON: the registry's bytes, or all its pages merged into the first.
    pub index: Bytes,
    /// The registry said `OCI-Filters-Applied: artifactType`.
    pub filtered: bool,
    /// Who asked.
    pub identity: Identity,
}

#[derive(Deserialize)]
struct TagList {
    /// Some registries send `null` for none.
    tags: Option<Vec<String>>,
}

impl RegistryClient {
    pub(super) async fn list_tags(
        &self,
        repository: &RepositoryName,
        n: Option<u32>,
        last: Option<&str>,
    ) -> Result<TagPage, Error> {
        let n_pair = n.map(|n| ("n", n.min(MAX_TAGS_ASKED).to_string()));
        let last_pair = last.map(|last| ("last", last.to_owned()));
        let query = Serializer::new(String::new()).extend_pairs(n_pair.into_iter().chain(last_pair)).finish();
        let mut asking = question(repository, "tags/list".to_owned(), query, "application/json");
        let mut read_bytes = 0;
        let mut pages = 0;
        let (mut tags, mut has_more) = loop {
            let (headers, body, _) = self.whole(&asking, MAX_LISTING_BYTES - read_bytes).await?;
            read_bytes += body.len();
            pages += 1;
            let tags = read_tags(&body, last)?;
            let next = next_query(&headers);
            // A client goes on behind the last tag of a page, so a page without one would be its end.
            if tags.is_empty() && n != Some(0) && next.is_some() {
                if pages == MAX_TAG_PAGES {
                    return Err(Error::protocol(format!("the registry lists no tag on {MAX_TAG_PAGES} pages")));
                }
                asking.query = next;
            } else {
                break (tags, next.is_some() && n != Some(0));
            }
        };
        if let Some(n) = n.and_then(|n| usize::try_from(n).ok())
            && tags.len() > n
        {
            tags.truncate(n);
            has_more = n > 0;
        }
        Ok(TagPage { tags, has_more })
    }

    pub(super) async fn referrers(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<ReferrersPage, Error> {
        let path = format!("referrers/{digest}");
        let filter = artifact_type.map(|artifact_type| ("artifactType", artifact_type));
        let query = Serializer::new(String::new()).extend_pairs(filter).finish();
        let mut asking = question(repository, path, query, REFERRERS_ACCEPT);
        let (mut headers, first, identity) = self.whole(&asking, MAX_LISTING_BYTES).await?;
        let filtered = is_filtered(&headers);
        let mut items = String::new();
        let mut index = read_index(&first, &mut items)?;
        let mut read_bytes = first.len();
        let mut pages = 1;
        while let Some(next) = next_query(&headers) {
            pages += 1;
            if pages > MAX_REFERRERS_PAGES {
                return Err(Error::protocol(format!("the referrers fill more than {MAX_REFERRERS_PAGES} pages")));
            }
            asking.query = Some(next);
            let (page_headers, page, _) = self.whole(&asking, MAX_LISTING_BYTES - read_bytes).await?;
            read_bytes += page.len();
            read_index(&page, &mut items)?;
            headers = page_headers;
        }
        if pages == 1 {
            return Ok(ReferrersPage { index: first, filtered, identity });
        }
        let merged = RawValue::from_string(format!("[{items}]"));
        index.insert("manifests".to_owned(), merged.expect("JSON values between commas are a JSON array"));
        let index = serde_json::to_vec(&index).expect("an object of JSON values is JSON");
        Ok(ReferrersPage { index: index.into(), filtered, identity })
    }
}

fn question<'a>(repository: &'a RepositoryName, path: String, query: String, accept: &'static str) -> Question<'a> {
    let query = (!query.is_empty()).then_some(query);
    Question { kind: Kind::Listing, method: Method::GET, repository, path, query, accept: Some(accept), range: None }
}

fn is_filtered(headers: &HeaderMap) -> bool {
    let applied = headers.get("oci-filters-applied").and_then(|value| value.to_str().ok()).unwrap_or_default();
    applied.split(',').any(|filter| filter.trim() == "artifactType")
}

/// The tags of a page, after `last`: not every registry knows `last` and `n`; the client that asked for a page gets one.
fn read_tags(body: &[u8], last: Option<&str>) -> Result<Vec<String>, Error> {
    let list: TagList =
        serde_json::from_slice(body).map_err(|_| Error::protocol("the registry's list of tags cannot be read"))?;
    let mut tags = list.tags.unwrap_or_default();
    tags.retain(|tag| tag.parse::<Tag>().is_ok());
    if let Some(at) = last.and_then(|last| tags.iter().position(|tag| tag == last)) {
        tags.drain(..=at);
    }
    Ok(tags)
}

/// The index without its manifests, whose text is added to `items`. Values stay text: trees of them would take many times
/// their size.
fn read_index(bytes: &[u8], items: &mut String) -> Result<BTreeMap<String, Box<RawValue>>, Error> {
    let wrong = || Error::protocol("the registry's list of referrers is no image index");
    let mut index: BTreeMap<String, Box<RawValue>> = serde_json::from_slice(bytes).map_err(|_| wrong())?;
    let manifests = index.remove("manifests").ok_or_else(wrong)?;
    let manifests: Vec<&RawValue> = serde_json::from_str(manifests.get()).map_err(|_| wrong())?;
    for manifest in manifests {
        if !items.is_empty() {
            items.push(',');
        }
        items.push_str(manifest.get());
    }
    Ok(index)
}

/// The query of `Link: <…>; rel="next"` (RFC 8288). Only the query is taken: the next page is of the same path.
fn next_query(headers: &HeaderMap) -> Option<String> {
    headers.get_all(LINK).iter().filter_map(|value| value.to_str().ok()).find_map(|text| {
        let (target, params) = text.trim().strip_prefix('<')?.split_once('>')?;
        let is_next = params.split(';').any(|param| {
            let (name, value) = param.split_once('=').unwrap_or_default();
            name.trim().eq_ignore_ascii_case("rel") && value.trim().trim_matches('"').eq_ignore_ascii_case("next")
        });
        let base = Url::parse("http://base.invalid/").ok()?;
        let query = base.join(target).ok()?.query()?.to_owned();
        (is_next && query.len() <= MAX_LINK_QUERY_BYTES).then_some(query)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links() {
        for (link, query) in [
            (r#"</v2/a/tags/list?n=2&last=b>; rel="next""#, Some("n=2&last=b")),
            ("<https://evil.test/x?last=b>;rel=next", Some("last=b")),
            ("<?last=b>; title=x; REL=Next", Some("last=b")),
            (r#"</v2/a?last=b>; rel="prev""#, None),
            ("</v2/a>; rel=next", None),
            ("nonsense", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(LINK, link.parse().unwrap());
            assert_eq!(next_query(&headers).as_deref(), query, "{link}");
        }
    }

    #[test]
    fn an_index_has_manifests() {
        let mut items = String::new();
        let index = read_index(br#"{"schemaVersion":2,"manifests":[{}, {"a": [1]}]}"#, &mut items).unwrap();
        assert_eq!((index.len(), items.as_str()), (1, r#"{},{"a": [1]}"#));
        for text in ["", "[]", "{}", r#"{"manifests":null}"#] {
            assert!(read_index(text.as_bytes(), &mut items).is_err(), "{text}");
        }
    }
}
