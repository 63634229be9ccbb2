//! Status and headers of every answer (OCI distribution-spec "Pulling"; RFC 9110 sections 13 to 15; RFC 9211).

use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCEPT_RANGES, ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderName,
    LINK, RETRY_AFTER, WARNING, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use super::body::{Body, Content};
use super::error::{Failure, Lookup};
use super::exchange::Exchange;
use crate::metrics::Source;
use crate::oci::{ByteRange, ContentRange, Digest, MediaType};
use crate::pull::Outcome;

const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");
const NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// As many as an answer has, so that their table is made once.
const MAX_HEADERS: usize = 16;
/// `Basic` alone: clients that see `Bearer` as well ask a token service, and there is none. A token that is sent as it is
/// counts all the same.
const CHALLENGE: HeaderValue = HeaderValue::from_static("Basic realm=\"forebay\"");
/// What a digest names never changes.
const FOREVER: HeaderValue = HeaderValue::from_static("max-age=31536000");

/// Where an answer came from: its metrics labels, its `Cache-Status` and perhaps a warning.
#[derive(Debug)]
pub(super) struct Provenance {
    pub(super) label: &'static str,
    pub(super) source: Source,
    /// Why, in one word, where there is more to say than the label.
    pub(super) detail: Option<&'static str>,
    cache_status: HeaderValue,
    warning: Option<HeaderValue>,
}

impl Provenance {
    /// Made here, without looking anything up.
    pub(super) fn local() -> Self {
        Self {
            label: "bypass",
            source: Source::Local,
            detail: None,
            cache_status: HeaderValue::from_static("forebay; fwd=bypass"),
            warning: None,
        }
    }

    fn of(outcome: &Outcome) -> Self {
        let (mut warning, mut detail) = (None, None);
        let cache_status = match outcome {
            Outcome::Hit => HeaderValue::from_static("forebay; hit"),
            Outcome::Revalidated => HeaderValue::from_static("forebay; hit; detail=revalidated"),
            Outcome::Negative => HeaderValue::from_static("forebay; hit; detail=negative"),
            Outcome::Miss { stored: true } => HeaderValue::from_static("forebay; fwd=miss; stored"),
            Outcome::Miss { stored: false } => HeaderValue::from_static("forebay; fwd=miss"),
            Outcome::Join => HeaderValue::from_static("forebay; fwd=miss; collapsed"),
            Outcome::Offline => HeaderValue::from_static("forebay; hit; detail=offline"),
            Outcome::MoveRefused => {
                let text = "299 - \"the registry moved this tag; it is immutable here and stays where it was\"";
                warning = Some(HeaderValue::from_static(text));
                HeaderValue::from_static("forebay; hit; detail=move-refused")
            }
            Outcome::Stale { reason } => {
                let reason = reason.as_str();
                detail = Some(reason);
                warning = Some(ascii(format!("299 - \"stale: the registry could not be asked ({reason})\"")));
                ascii(format!("forebay; fwd=stale; detail={reason}"))
            }
        };
        Self { label: outcome.as_str(), source: outcome.source(), detail, cache_status, warning }
    }

    fn of_failure(failure: &Failure) -> Self {
        let (label, forward) = match failure.lookup {
            Lookup::None => ("bypass", "bypass"),
            Lookup::Remembered => return Self { detail: failure.detail, ..Self::of(&Outcome::Negative) },
            Lookup::Upstream if failure.status == StatusCode::NOT_FOUND => ("unknown", "miss"),
            Lookup::Upstream => ("error", "miss"),
        };
        let cache_status = match failure.detail {
            Some(detail) => ascii(format!("forebay; fwd={forward}; detail={detail}")),
            None => ascii(format!("forebay; fwd={forward}")),
        };
        Self { label, detail: failure.detail, cache_status, ..Self::local() }
    }
}

/// An answer as a `GET` gets it, before the headers that all answers share.
#[derive(Debug)]
pub(super) struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    content: Content,
    provenance: Provenance,
}

impl Reply {
    fn new(status: StatusCode, content: Content, provenance: Provenance) -> Self {
        Self { status, headers: HeaderMap::with_capacity(MAX_HEADERS), content, provenance }
    }

    fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// The headers by which clients check content.
    fn identified(self, digest: &Digest) -> Self {
        let quoted = Bytes::from(format!("\"{digest}\""));
        let bare = quoted.slice(1..quoted.len() - 1);
        self.with(CONTENT_DIGEST, ascii(bare)).with(ETAG, ascii(quoted))
    }

    /// `GET /v2/`. Some clients learn from it alone whether to send credentials at all, and podman and its kin do so from a
    /// 200 as well (RFC 9110 section 11.6.1).
    pub(super) fn ping(invites_login: bool) -> Self {
        let reply = Self::json(Bytes::from_static(b"{}"), Provenance::local());
        if invites_login { reply.with(WWW_AUTHENTICATE, CHALLENGE) } else { reply }
    }

    fn json(bytes: Bytes, provenance: Provenance) -> Self {
        Self::new(StatusCode::OK, Content::Full(bytes), provenance).with(CONTENT_TYPE, JSON)
    }

    /// A manifest, whole whatever range was asked for.
    pub(super) fn manifest(digest: &Digest, media_type: &MediaType, bytes: Bytes, outcome: &Outcome) -> Self {
        Self::new(StatusCode::OK, Content::Full(bytes), Provenance::of(outcome))
            .with(CONTENT_TYPE, ascii(media_type.to_string()))
            .identified(digest)
    }

    /// The client has this content already.
    pub(super) fn not_modified(digest: &Digest, outcome: &Outcome) -> Self {
        Self::new(StatusCode::NOT_MODIFIED, Content::Empty, Provenance::of(outcome)).identified(digest)
    }

    /// A blob, whole.
    pub(super) fn blob(digest: &Digest, content: Content, outcome: &Outcome) -> Self {
        Self::new(StatusCode::OK, content, Provenance::of(outcome))
            .with(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"))
            .with(ACCEPT_RANGES, HeaderValue::from_static("bytes"))
            .with(CACHE_CONTROL, FOREVER)
            .identified(digest)
    }

    /// One part of a blob of `size_bytes` in all.
    pub(super) fn part(digest: &Digest, range: ByteRange, size_bytes: u64, part: Content, outcome: &Outcome) -> Self {
        let content_range = ContentRange { range, total_bytes: Some(size_bytes) };
        let mut reply = Self::blob(digest, part, outcome).with(CONTENT_RANGE, ascii(content_range.to_string()));
        reply.status = StatusCode::PARTIAL_CONTENT;
        reply
    }

    /// Several parts of a blob. Their ranges are in the body, never in the head (RFC 9110 section 15.3.7.2).
    pub(super) fn parts(digest: &Digest, boundary: &str, parts: Content, outcome: &Outcome) -> Self {
        let media_type = format!("multipart/byteranges; boundary={boundary}");
        let mut reply = Self::blob(digest, parts, outcome).with(CONTENT_TYPE, ascii(media_type));
        reply.status = StatusCode::PARTIAL_CONTENT;
        reply
    }

    /// What a `HEAD` of a blob gets; its length is left out when nobody knows it.
    pub(super) fn blob_head(digest: &Digest, size_bytes: Option<u64>, outcome: &Outcome) -> Self {
        let reply = Self::blob(digest, Content::Empty, outcome);
        match size_bytes {
            Some(size_bytes) => reply.with(CONTENT_LENGTH, HeaderValue::from(size_bytes)),
            None => reply,
        }
    }

    /// No part of the blob is in the range.
    pub(super) fn unsatisfiable(size_bytes: u64, outcome: &Outcome) -> Self {
        let mut reply = Self::failure(&Failure::unsatisfiable_range(size_bytes))
            .with(CONTENT_RANGE, ascii(format!("bytes */{size_bytes}")))
            .with(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        reply.provenance = Provenance { source: Source::Local, ..Provenance::of(outcome) };
        reply
    }

    /// A page of tags; `outcome` is `None` when nobody had to be asked.
    pub(super) fn tags(name: &str, tags: &[String], next_page: Option<String>, outcome: Option<&Outcome>) -> Self {
        let body = serde_json::json!({ "name": name, "tags": tags }).to_string();
        let reply = Self::json(body.into(), outcome.map_or_else(Provenance::local, Provenance::of));
        match next_page {
            Some(link) => reply.with(LINK, ascii(link)),
            None => reply,
        }
    }

    /// An index of referrers.
    pub(super) fn referrers(index: Bytes, filtered: bool, outcome: &Outcome) -> Self {
        let reply = Self::new(StatusCode::OK, Content::Full(index), Provenance::of(outcome))
            .with(CONTENT_TYPE, ascii(MediaType::oci_index().to_string()));
        if filtered { reply.with(FILTERS_APPLIED, HeaderValue::from_static("artifactType")) } else { reply }
    }

    /// A refusal or failure.
    pub(super) fn failure(failure: &Failure) -> Self {
        let mut reply = Self::json(failure.body(), Provenance::of_failure(failure));
        reply.status = failure.status;
        if failure.status == StatusCode::METHOD_NOT_ALLOWED {
            reply = reply.with(ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        if let Some(wait) = failure.retry_after {
            reply = reply.with(RETRY_AFTER, HeaderValue::from(whole_seconds(wait)));
        }
        if failure.challenge {
            reply = reply.with(WWW_AUTHENTICATE, CHALLENGE);
        }
        if failure.close {
            reply = reply.with(CONNECTION, HeaderValue::from_static("close"));
        }
        reply
    }

    /// The finished response. A `HEAD` gets the headers of the `GET`, with its length, and no body.
    pub(super) fn into_response(mut self, to_head: bool, mut exchange: Exchange) -> Response<Body> {
        if to_head {
            // An exact length of zero stays out: a client would read it as the length of the content.
            if let Some(size_bytes) = self.content.size_bytes().filter(|&size| size > 0) {
                self.headers.insert(CONTENT_LENGTH, HeaderValue::from(size_bytes));
            }
            self.content = Content::Empty;
        }
        let headers = &mut self.headers;
        headers.insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(CACHE_STATUS, self.provenance.cache_status.clone());
        headers.insert(REQUEST_ID, exchange.request_id().clone());
        if let Some(target) = exchange.target() {
            headers.insert(NAMESPACE, ascii(Bytes::copy_from_slice(target.registry.as_str().as_bytes())));
        }
        if let Some(warning) = self.provenance.warning.take() {
            headers.insert(WARNING, warning);
        }
        exchange.answered(self.status.as_u16(), &self.provenance);
        let mut response = Response::new(Body::new(self.content, exchange));
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        response
    }
}

/// Rounded up, so that a client never comes back too early.
fn whole_seconds(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}

fn ascii(text: impl Into<Bytes>) -> HeaderValue {
    HeaderValue::from_maybe_shared(text.into())
        .expect("registries, digests, media types and links are printable ASCII by their grammar")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;
    use crate::oci::Algorithm;
    use http_body::Body as _;

    fn digest() -> Digest {
        Digest::of(Algorithm::Sha256, b"abc")
    }

    fn respond(reply: Reply, to_head: bool) -> Response<Body> {
        let (parts, ()) = http::Request::get("/v2/").header("x-request-id", "id-1").body(()).unwrap().into_parts();
        reply.into_response(to_head, Exchange::begin(&parts, Metrics::disabled()))
    }

    fn header<'a>(response: &'a Response<Body>, name: &str) -> Option<&'a str> {
        response.headers().get(name).map(|value| value.to_str().unwrap())
    }

    #[test]
    fn head_has_the_headers_of_get() {
        let reply = || {
            let bytes = Bytes::from_static(b"abc");
            Reply::manifest(&digest(), &MediaType::oci_index(), bytes, &Outcome::Hit)
        };
        let (get, head) = (respond(reply(), false), respond(reply(), true));
        assert_eq!(get.body().size_hint().exact(), Some(3));
        assert_eq!(header(&get, "content-length"), None, "left to the size hint");
        assert_eq!(header(&head, "content-length"), Some("3"));
        assert!(head.body().is_end_stream());
        for (name, value) in [
            ("content-type", "application/vnd.oci.image.index.v1+json"),
            ("docker-content-digest", &*digest().to_string()),
            ("etag", &*format!("\"{}\"", digest())),
            ("docker-distribution-api-version", "registry/2.0"),
            ("x-content-type-options", "nosniff"),
            ("cache-status", "forebay; hit"),
            ("x-request-id", "id-1"),
        ] {
            assert_eq!(header(&get, name), Some(value));
            assert_eq!(header(&head, name), Some(value));
        }
        assert_eq!(header(&get, "content-encoding"), None);
    }

    #[test]
    fn blob_headers() {
        let whole = respond(Reply::blob(&digest(), Content::Full("abc".into()), &Outcome::Join), false);
        let range = ByteRange::new(1..3).unwrap();
        let part = Reply::part(&digest(), range, 3, Content::Full("bc".into()), &Outcome::Join);
        let part = respond(part, false);
        let parts = respond(Reply::parts(&digest(), "b1", Content::Full("--b1".into()), &Outcome::Hit), false);
        assert_eq!((parts.status().as_u16(), header(&parts, "content-range")), (206, None));
        assert_eq!(header(&parts, "content-type"), Some("multipart/byteranges; boundary=b1"));
        assert_eq!(header(&parts, "accept-ranges"), Some("bytes"));
        let head = respond(Reply::blob_head(&digest(), Some(3), &Outcome::Hit), true);
        let unknown = respond(Reply::blob_head(&digest(), None, &Outcome::Hit), true);
        for response in [&whole, &part, &head, &unknown] {
            assert_eq!(header(response, "content-type"), Some("application/octet-stream"));
            assert_eq!(header(response, "accept-ranges"), Some("bytes"));
            assert_eq!(header(response, "cache-control"), Some("max-age=31536000"));
            assert_eq!(header(response, "docker-content-digest"), Some(&*digest().to_string()));
        }
        assert_eq!(part.status(), 206);
        assert_eq!(header(&part, "content-range"), Some("bytes 1-2/3"));
        assert_eq!(header(&whole, "cache-status"), Some("forebay; fwd=miss; collapsed"));
        assert_eq!(header(&head, "content-length"), Some("3"));
        assert_eq!(header(&unknown, "content-length"), None);
        let none = respond(Reply::unsatisfiable(3, &Outcome::Hit), false);
        assert_eq!((none.status().as_u16(), header(&none, "content-range")), (416, Some("bytes */3")));
        let unmodified = respond(Reply::not_modified(&digest(), &Outcome::Hit), false);
        assert_eq!(unmodified.status(), 304);
        assert!(unmodified.body().is_end_stream() && header(&unmodified, "content-length").is_none());
    }

    #[test]
    fn failures_say_how_to_go_on() {
        let push = respond(Reply::failure(&super::super::route::Rejection::Method.into()), false);
        assert_eq!(push.status(), 405);
        assert_eq!(header(&push, "allow"), Some("GET, HEAD"));
        assert_eq!(header(&push, "connection"), Some("close"));
        assert_eq!(header(&push, "cache-status"), Some("forebay; fwd=bypass"));
        assert_eq!(header(&push, "content-type"), Some("application/json"));
        assert_eq!(header(&push, "www-authenticate"), None);
        let unknown = respond(Reply::failure(&crate::access::Refusal::Missing.into()), true);
        assert_eq!(
            (unknown.status().as_u16(), header(&unknown, "www-authenticate")),
            (401, Some("Basic realm=\"forebay\""))
        );
        assert_eq!(header(&unknown, "cache-status"), Some("forebay; fwd=bypass; detail=missing"));
        let busy = respond(Reply::failure(&crate::access::Refusal::Busy.into()), false);
        assert_eq!((header(&busy, "retry-after"), header(&busy, "www-authenticate")), (Some("5"), None));
        assert_eq!(whole_seconds(Duration::from_millis(1200)), 2);
        assert_eq!(whole_seconds(Duration::from_secs(7)), 7);
    }

    #[test]
    fn lists() {
        let tags = respond(Reply::tags("a/b", &[], Some("</v2/a/b>".into()), None), true);
        assert_eq!(header(&tags, "content-length"), Some("24"));
        assert_eq!(header(&tags, "link"), Some("</v2/a/b>"));
        let index = respond(Reply::referrers("{}".into(), true, &Outcome::Miss { stored: false }), false);
        assert_eq!(header(&index, "content-type"), Some("application/vnd.oci.image.index.v1+json"));
        assert_eq!(header(&index, "oci-filters-applied"), Some("artifactType"));
        assert_eq!(header(&index, "cache-status"), Some("forebay; fwd=miss"));
    }
}
