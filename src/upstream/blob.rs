//! Blobs: HEAD, and GET of a part as a stream (distribution-spec, "Pulling blobs"; RFC 9110 section 14).

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use http::HeaderValue;
use http::Method;
use http::StatusCode;
use http::header::CONTENT_RANGE;
use http::header::ETAG;
use reqwest::Response;
use url::Url;

use super::Identity;
use super::endpoint::Endpoint;
use super::error::Error;
use super::request::Kind;
use super::request::Question;
use super::request::RegistryClient;
use super::throttle::Share;
use super::throttle::TURN_BYTES;
use super::throttle::Throttle;
use super::wire::Wire;
use super::wire::content_length;
use super::wire::refuse_content_coding;
use crate::oci::ContentRange;
use crate::oci::Digest;
use crate::oci::RepositoryName;

/// The part `[start, end)` of a blob, up to its end where `end` is `None`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The first byte.
    pub start: u64,
    /// One past the last byte.
    pub end: Option<u64>,
}

impl Part {
    /// All of it, asked for without a `Range`.
    pub fn whole() -> Self {
        Self { start: 0, end: None }
    }

    fn range_header(self) -> Option<String> {
        match (self.start, self.end) {
            (0, None) => None,
            (start, None) => Some(format!("bytes={start}-")),
            (start, Some(end)) => Some(format!("bytes={start}-{}", end.saturating_sub(1))),
        }
    }
}

/// What a HEAD says about a blob.
#[derive(Clone, Debug)]
pub struct BlobHead {
    /// The registry answers HEAD. Otherwise (405, 501) nothing is known, not even that there is such a blob.
    pub is_supported: bool,
    /// The size of the whole, when the registry says so.
    pub size_bytes: Option<u64>,
    /// Who asked.
    pub identity: Identity,
}

/// The endpoint that was asked for a blob, whatever it redirected to.
#[derive(Clone, Debug)]
pub struct Source(Arc<Endpoint>);

impl Source {
    /// Its base URL.
    pub fn base(&self) -> &Url {
        self.0.base()
    }

    /// Puts the other endpoints of the registry before this one for some minutes: its bytes were wrong.
    pub fn distrust(&self) {
        self.0.distrust();
    }
}

/// A blob on its way. Its digest is not verified. Dropping it ends the transfer.
pub struct BlobBody {
    response: Response,
    wire: Wire,
    throttle: Throttle,
    share: Share,
    endpoint: Arc<Endpoint>,
    identity: Identity,
    extent: Extent,
    received_bytes: u64,
    /// Received, and not handed on yet: the throttle has not let it through.
    held: Bytes,
}

/// Which bytes the body holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extent {
    start: u64,
    size_bytes: Option<u64>,
    total_bytes: Option<u64>,
}

impl BlobBody {
    /// Where the bytes begin: the asked start, or 0 when the registry ignored the range.
    pub fn start(&self) -> u64 {
        self.extent.start
    }

    /// The size of the whole blob, when the registry says so.
    pub fn total_bytes(&self) -> Option<u64> {
        self.extent.total_bytes
    }

    /// Who asked.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The validator that came with it (RFC 9110 section 8.8.3): another answer for the same bytes should have the same.
    pub fn etag(&self) -> Option<&[u8]> {
        self.response.headers().get(ETAG).map(HeaderValue::as_bytes)
    }

    /// Who answered.
    pub fn source(&self) -> Source {
        Source(self.endpoint.clone())
    }

    /// Its place where bandwidth is limited: its own, until it takes another's.
    pub fn share(&self) -> Share {
        self.share.clone()
    }

    /// Takes the place of another part of the same download.
    pub fn take_share(&mut self, share: &Share) {
        self.share = share.clone();
    }

    /// The next bytes; `None` at the clean end. Fails with `Cut` when the connection ends before the announced length,
    /// with `TimedOut` after silence. Only time spent in this call counts as silence, and of that not what it waits for
    /// its share of the bandwidth. A call that is given up loses no bytes.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        if self.throttle.is_unlimited() {
            return self.receive().await;
        }
        while self.held.is_empty() {
            match self.receive().await? {
                Some(bytes) => self.held = bytes,
                None => return Ok(None),
            }
        }
        let turn_bytes = self.held.len().min(TURN_BYTES);
        self.throttle.take(&self.share, turn_bytes).await;
        Ok(Some(self.held.split_to(turn_bytes)))
    }

    async fn receive(&mut self) -> Result<Option<Bytes>, Error> {
        let next = self.wire.chunk(&mut self.response, self.received_bytes).await;
        let next = next.inspect_err(|_| self.endpoint.failed())?;
        let wanted = self.extent.size_bytes;
        match next {
            Some(bytes) => {
                self.received_bytes += bytes.len() as u64;
                if wanted.is_some_and(|wanted| self.received_bytes > wanted) {
                    return Err(Error::protocol("the registry sent more bytes than it announced"));
                }
                Ok(Some(bytes))
            }
            None if wanted.is_some_and(|wanted| self.received_bytes < wanted) => {
                self.endpoint.failed();
                Err(Error::Cut { after_bytes: self.received_bytes, reason: "the body ended early".to_owned() })
            }
            None => Ok(None),
        }
    }
}

impl fmt::Debug for BlobBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The response would print its URL, whose query may be a signature.
        f.debug_struct("BlobBody").field("extent", &self.extent).field("received_bytes", &self.received_bytes).finish()
    }
}

impl RegistryClient {
    pub(super) async fn head_blob(&self, repository: &RepositoryName, digest: &Digest) -> Result<BlobHead, Error> {
        let answer = self.open(&question(Kind::BlobHead, Method::HEAD, repository, digest, None)).await?;
        let (status, identity) = (answer.response.status(), answer.identity);
        if status.is_success() {
            let size_bytes = content_length(answer.response.headers());
            return Ok(BlobHead { is_supported: true, size_bytes, identity });
        }
        if !answer.elsewhere {
            return Ok(BlobHead { is_supported: false, size_bytes: None, identity });
        }
        // URLs are often signed for one method, and HEAD is not it.
        let first_byte = Part { start: 0, end: Some(1) }.range_header();
        let answer = self.open(&question(Kind::BlobHead, Method::GET, repository, digest, first_byte)).await?;
        let size_bytes = total_bytes(answer.response.status(), answer.response.headers());
        Ok(BlobHead { is_supported: true, size_bytes, identity: answer.identity })
    }

    pub(super) async fn get_blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        part: Part,
    ) -> Result<BlobBody, Error> {
        if part.end.is_some_and(|end| end <= part.start) {
            return Err(Error::protocol("an empty part of a blob was asked for"));
        }
        let question = &question(Kind::Blob, Method::GET, repository, digest, part.range_header());
        // What goes on where it broke has more to lose than what begins.
        self.over_endpoints(Kind::Blob, part.start > 0, |endpoint| async move {
            let answer = self.ask(endpoint, question).await?;
            let headers = answer.response.headers();
            refuse_content_coding(headers)?;
            let extent = extent(answer.response.status(), headers, part)?;
            Ok(BlobBody {
                response: answer.response,
                wire: self.wire.clone(),
                throttle: self.throttle.clone(),
                share: Share::default(),
                endpoint: answer.endpoint,
                identity: answer.identity,
                extent,
                received_bytes: 0,
                held: Bytes::new(),
            })
        })
        .await
    }
}

fn question<'a>(
    kind: Kind,
    method: Method,
    repository: &'a RepositoryName,
    digest: &Digest,
    range: Option<String>,
) -> Question<'a> {
    Question { kind, method, repository, path: format!("blobs/{digest}"), query: None, accept: None, range }
}

/// The size of the whole in the answer to a range: `bytes 0-0/10`, `bytes */0`, or the whole itself.
fn total_bytes(status: StatusCode, headers: &HeaderMap) -> Option<u64> {
    if status == StatusCode::OK {
        return content_length(headers);
    }
    headers.get(CONTENT_RANGE)?.to_str().ok()?.rsplit_once('/')?.1.trim().parse().ok()
}

/// Reads what the body will hold, and refuses a part other than the asked one.
fn extent(status: StatusCode, headers: &HeaderMap, part: Part) -> Result<Extent, Error> {
    let length = content_length(headers);
    if status != StatusCode::PARTIAL_CONTENT {
        return Ok(Extent { start: 0, size_bytes: length, total_bytes: length });
    }
    let wrong = || Error::protocol("the registry answered a range with another one than was asked for");
    let mut values = headers.get_all(CONTENT_RANGE).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return Err(wrong());
    };
    let found: ContentRange = value.to_str().ok().and_then(|text| text.parse().ok()).ok_or_else(wrong)?;
    let wanted_end = match (part.end, found.total_bytes) {
        (Some(end), Some(total)) => Some(end.min(total)),
        (end, total) => end.or(total),
    };
    let size_bytes = found.range.size_bytes();
    let fits = found.range.start() == part.start
        && wanted_end.is_none_or(|end| end == found.range.end())
        && length.is_none_or(|length| length == size_bytes);
    if !fits || part.range_header().is_none() {
        return Err(wrong());
    }
    Ok(Extent { start: part.start, size_bytes: Some(size_bytes), total_bytes: found.total_bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(status: u16, content_range: Option<&str>, length: Option<&str>, part: Part) -> Result<Extent, Error> {
        let mut headers = HeaderMap::new();
        for (name, value) in [("content-range", content_range), ("content-length", length)] {
            if let Some(value) = value {
                headers.insert(name, value.parse().unwrap());
            }
        }
        extent(StatusCode::from_u16(status).unwrap(), &headers, part)
    }

    #[test]
    fn content_range_table() {
        let rest = Part { start: 10, end: None };
        let middle = Part { start: 10, end: Some(20) };
        let good = |size_bytes, total_bytes| Ok(Extent { start: 10, size_bytes: Some(size_bytes), total_bytes });
        assert_eq!(read(206, Some("bytes 10-99/100"), Some("90"), rest), good(90, Some(100)));
        assert_eq!(read(206, Some("bytes 10-99/*"), None, rest), good(90, None));
        assert_eq!(read(206, Some("bytes 10-19/100"), Some("10"), middle), good(10, Some(100)));
        assert_eq!(read(206, Some("bytes 10-14/15"), Some("5"), middle), good(5, Some(15)));
        for (range, length, part) in [
            (None, Some("90"), rest),
            (Some("bytes 0-99/100"), Some("100"), rest),
            (Some("bytes 10-50/100"), Some("41"), rest),
            (Some("bytes 10-99/100"), Some("91"), rest),
            (Some("bytes 10-99/100"), Some("90"), middle),
            (Some("bytes 10-14/100"), Some("5"), middle),
            (Some("bytes */100"), None, rest),
            (Some("bytes 0-99/100"), Some("100"), Part::whole()),
        ] {
            assert!(read(206, range, length, part).is_err(), "{range:?} {length:?} {part:?}");
        }
        let whole = Extent { start: 0, size_bytes: Some(100), total_bytes: Some(100) };
        assert_eq!(read(200, None, Some("100"), rest), Ok(whole), "an ignored range is the whole");
        assert_eq!(read(200, None, None, rest), Ok(Extent { start: 0, size_bytes: None, total_bytes: None }));
    }

    #[test]
    fn range_headers() {
        assert_eq!(Part::whole().range_header(), None);
        assert_eq!(Part { start: 5, end: None }.range_header().unwrap(), "bytes=5-");
        assert_eq!(Part { start: 0, end: Some(1) }.range_header().unwrap(), "bytes=0-0");
    }
}
