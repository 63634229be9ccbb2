//! The account of one request: its id, span, metrics and line in the access log.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Method, Uri};
use opentelemetry::global;
use opentelemetry_http::HeaderExtractor;
use tracing::field::Empty;
use tracing::{Span, info, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use super::reply::Provenance;
use super::target::Target;
use crate::metrics::{Kind, Metrics, Source};

/// The header of a W3C trace context.
const TRACE_PARENT: &str = "traceparent";
/// Longest request id of a client that is kept.
const MAX_REQUEST_ID_CHARS: usize = 128;
/// How many sent bytes may wait before they are counted, so that a long download shows while it runs.
const COUNT_EVERY_BYTES: u64 = 8 * 1024 * 1024;
/// Stands for the registry of a request that has none.
const NO_REGISTRY: &str = "-";
/// The outcome of a request whose client left before it was answered.
const ABANDONED: &str = "abandoned";

/// Follows a request from its head to the last byte of its answer; dropping it writes the access log.
#[derive(Debug)]
pub(super) struct Exchange {
    started: Instant,
    metrics: Metrics,
    span: Span,
    method: Method,
    uri: Uri,
    request_id: HeaderValue,
    kind: Kind,
    client: Option<Arc<str>>,
    target: Option<Target>,
    status: Option<u16>,
    outcome: &'static str,
    detail: Option<&'static str>,
    source: Source,
    sent_bytes: u64,
    uncounted_bytes: u64,
    promised_bytes: Option<u64>,
    ended: bool,
}

impl Exchange {
    /// Starts the clock.
    pub(super) fn begin(request: &Parts, metrics: Metrics) -> Self {
        let given = request.headers.get("x-request-id").filter(|value| value.to_str().is_ok_and(is_sane));
        let request_id = given.cloned().unwrap_or_else(next_request_id);
        let (method, uri) = (request.method.clone(), request.uri.clone());
        let span = info_span!(
            "request",
            method = method.as_str(),
            path = uri.path(),
            request_id = text(&request_id),
            client = Empty,
            kind = Empty,
            status = Empty,
            outcome = Empty
        );
        if request.headers.contains_key(TRACE_PARENT) {
            // Taken in only where spans are exported: without that nobody reads it.
            let parent = global::get_text_map_propagator(|known| known.extract(&HeaderExtractor(&request.headers)));
            let _ = span.set_parent(parent);
        }
        Self {
            started: Instant::now(),
            metrics,
            span,
            method,
            uri,
            request_id,
            kind: Kind::Other,
            client: None,
            target: None,
            status: None,
            outcome: ABANDONED,
            detail: None,
            source: Source::Local,
            sent_bytes: 0,
            uncounted_bytes: 0,
            promised_bytes: None,
            ended: false,
        }
    }

    /// Everything done for the request happens in this span.
    pub(super) fn span(&self) -> Span {
        self.span.clone()
    }

    /// A token: safe in a header and a log.
    pub(super) fn request_id(&self) -> &HeaderValue {
        &self.request_id
    }

    pub(super) fn target(&self) -> Option<&Target> {
        self.target.as_ref()
    }

    pub(super) fn is_of_kind(&mut self, kind: Kind) {
        self.kind = kind;
        self.span.record("kind", kind.as_str());
    }

    /// Who asks, where clients are told apart; safe in a log.
    pub(super) fn is_from(&mut self, client: Arc<str>) {
        self.span.record("client", &*client);
        self.client = Some(client);
    }

    /// The client is not let in: `reason` is one word of a fixed set.
    pub(super) fn is_denied(&self, reason: &'static str) {
        self.metrics.client_denied(reason);
    }

    pub(super) fn is_about(&mut self, target: Target) {
        self.target = Some(target);
    }

    /// The head of the answer is decided.
    pub(super) fn answered(&mut self, status: u16, provenance: &Provenance) {
        self.status = Some(status);
        self.outcome = provenance.label;
        self.detail = provenance.detail;
        self.source = provenance.source;
        self.span.record("status", status).record("outcome", self.outcome);
        self.metrics.first_byte(self.kind, self.started.elapsed().as_secs_f64());
    }

    /// The body will have this many bytes; `None` when that is not known.
    pub(super) fn promise(&mut self, size_bytes: Option<u64>) {
        self.promised_bytes = size_bytes;
    }

    /// Bytes of the body were handed over.
    pub(super) fn sent(&mut self, bytes: u64) {
        self.sent_bytes += bytes;
        self.uncounted_bytes += bytes;
        if self.uncounted_bytes >= COUNT_EVERY_BYTES {
            self.count();
        }
    }

    /// The body came to its clean end.
    pub(super) fn ended(&mut self) {
        self.ended = true;
    }

    fn count(&mut self) {
        let bytes = std::mem::take(&mut self.uncounted_bytes);
        if bytes > 0 {
            self.metrics.bytes_sent(self.registry().unwrap_or(NO_REGISTRY), self.source, bytes);
        }
    }

    fn registry(&self) -> Option<&str> {
        self.target.as_ref().map(|target| target.registry.as_str())
    }

    fn is_complete(&self) -> bool {
        match self.promised_bytes {
            Some(promised) => self.status.is_some() && self.sent_bytes == promised,
            None => self.ended,
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.count();
        self.metrics.request(self.registry().unwrap_or(NO_REGISTRY), self.kind, self.outcome);
        let repository = self.target.as_ref().and_then(|target| target.repository.as_ref());
        info!(
            parent: None,
            method = self.method.as_str(),
            path = self.uri.path(),
            client = self.client.as_deref(),
            registry = self.registry(),
            repository = repository.map(|repository| display(&repository.name)),
            kind = self.kind.as_str(),
            status = self.status,
            outcome = self.outcome,
            detail = self.detail,
            bytes = self.sent_bytes,
            complete = self.is_complete(),
            duration_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            request_id = text(&self.request_id),
            "request"
        );
    }
}

fn is_sane(request_id: &str) -> bool {
    let sane = |b: u8| b.is_ascii_alphanumeric() || b"-_.~+=:/@".contains(&b);
    (1..=MAX_REQUEST_ID_CHARS).contains(&request_id.len()) && request_id.bytes().all(sane)
}

/// Unique within the process by its counter, and among processes by a random prefix.
fn next_request_id() -> HeaderValue {
    static PREFIX: OnceLock<u64> = OnceLock::new();
    static COUNTER: AtomicU64 = AtomicU64::new(1);
    let prefix = PREFIX.get_or_init(|| RandomState::new().build_hasher().finish());
    let id = format!("{prefix:016x}-{:x}", COUNTER.fetch_add(1, Ordering::Relaxed));
    HeaderValue::from_maybe_shared(Bytes::from(id)).expect("hexadecimal digits are a header's value")
}

fn text(request_id: &HeaderValue) -> &str {
    request_id.to_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids() {
        let longest = "a".repeat(MAX_REQUEST_ID_CHARS);
        for id in ["7", "3f2a-11", "Root=1-67891233-abcdef", &longest] {
            assert!(is_sane(id), "{id}");
        }
        let too_long = "a".repeat(MAX_REQUEST_ID_CHARS + 1);
        for id in ["", "a b", "a\tb", "a\"b", "é", "a;b", &too_long] {
            assert!(!is_sane(id), "{id}");
        }
        let (first, second) = (next_request_id(), next_request_id());
        assert!(is_sane(text(&first)) && first != second);
    }

    fn exchange() -> Exchange {
        let (parts, ()) = http::Request::get("/v2/").body(()).unwrap().into_parts();
        Exchange::begin(&parts, Metrics::disabled())
    }

    #[test]
    fn complete_means_every_promised_byte() {
        let mut known = exchange();
        assert!(!known.is_complete(), "not answered yet");
        known.answered(200, &Provenance::local());
        known.promise(Some(5));
        known.sent(3);
        assert!(!known.is_complete());
        known.sent(2);
        assert!(known.is_complete());

        let mut unknown = exchange();
        unknown.answered(200, &Provenance::local());
        unknown.promise(None);
        unknown.sent(COUNT_EVERY_BYTES);
        assert!(!unknown.is_complete());
        unknown.ended();
        assert!(unknown.is_complete());
        assert_eq!(unknown.uncounted_bytes, 0);
    }
}
