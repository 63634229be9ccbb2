//! Every instrument of the program in one catalogue.
//!
//! Labels are enums or configured registries, so the number of series is bounded by the configuration. Nothing else in
//! the program creates an instrument.

use std::sync::Arc;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Gauge, Histogram, Meter, UpDownCounter};

/// What a request was for: the `kind` label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `GET /v2/`.
    Ping,
    /// A manifest, by tag or digest.
    Manifest,
    /// A blob.
    Blob,
    /// `tags/list`.
    Tags,
    /// `referrers`.
    Referrers,
    /// Anything else, also what is refused.
    Other,
}

impl Kind {
    /// The label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ping => "ping",
            Self::Manifest => "manifest",
            Self::Blob => "blob",
            Self::Tags => "tags",
            Self::Referrers => "referrers",
            Self::Other => "other",
        }
    }
}

/// Where the bytes of an answer came from: the `source` label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The store or memory.
    Store,
    /// A download in progress.
    Fill,
    /// The upstream, not kept.
    Upstream,
    /// Made here: errors, `/v2/`.
    Local,
}

impl Source {
    /// The label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Store => "store",
            Self::Fill => "fill",
            Self::Upstream => "upstream",
            Self::Local => "local",
        }
    }
}

/// Who found content that is rotten: the `found_by` label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FoundBy {
    /// Somebody asked for it.
    Read,
    /// The background scrub.
    Scrub,
    /// A verification that was asked for, with a repair.
    Verify,
}

impl FoundBy {
    /// The label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Scrub => "scrub",
            Self::Verify => "verify",
        }
    }
}

/// The instruments. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Instruments>);

#[derive(Debug)]
struct Instruments {
    requests: Counter<u64>,
    bytes_sent: Counter<u64>,
    upstream_bytes: Counter<u64>,
    upstream_requests: Counter<u64>,
    fills_in_flight: UpDownCounter<i64>,
    fill_failures: Counter<u64>,
    store_bytes: Gauge<u64>,
    store_blobs: Gauge<u64>,
    evicted_bytes: Counter<u64>,
    rotten: Counter<u64>,
    scrubbed_bytes: Counter<u64>,
    store_writable: Gauge<u64>,
    disk_errors: Counter<u64>,
    first_byte_seconds: Histogram<f64>,
    upstream_ratelimit_remaining: Gauge<u64>,
    upstream_ratelimit_limit: Gauge<u64>,
    upstream_quiet_until_seconds: Gauge<u64>,
    upstream_breaker_open: Gauge<u64>,
    tag_moves: Counter<u64>,
}

/// What became of a tag's move: the `verdict` label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    /// The tag points elsewhere now.
    Followed,
    /// A rule says that it stays.
    Refused,
}

impl Metrics {
    /// Creates the instruments. Counter names get `_total` in the Prometheus text.
    pub fn new(meter: &Meter) -> Self {
        let counter = |name: &'static str, text: &'static str| meter.u64_counter(name).with_description(text).build();
        let gauge = |name: &'static str, text: &'static str| meter.u64_gauge(name).with_description(text).build();
        Self(Arc::new(Instruments {
            requests: counter("forebay_requests", "Requests on the registry port"),
            bytes_sent: counter("forebay_bytes_sent", "Body bytes sent to clients"),
            upstream_bytes: counter("forebay_upstream_bytes", "Body bytes received from registries"),
            upstream_requests: counter(
                "forebay_upstream_requests",
                "Requests sent to registries, by status or failure",
            ),
            fills_in_flight: meter
                .i64_up_down_counter("forebay_fills_in_flight")
                .with_description("Downloads in progress")
                .build(),
            fill_failures: counter("forebay_fill_failures", "Downloads that ended without content, by reason"),
            store_bytes: gauge("forebay_store_bytes", "Bytes of stored content"),
            store_blobs: gauge("forebay_store_blobs", "Stored blobs and manifests"),
            evicted_bytes: counter("forebay_evicted_bytes", "Bytes of content evicted to make room"),
            rotten: counter("forebay_rotten_blobs", "Stored content that proved wrong, by who found it"),
            scrubbed_bytes: counter("forebay_scrubbed_bytes", "Bytes that the background scrub has hashed"),
            store_writable: gauge("forebay_store_writable", "1 while the disk takes new content, else 0"),
            disk_errors: counter("forebay_disk_errors", "Operations that the disk refused"),
            first_byte_seconds: meter
                .f64_histogram("forebay_first_byte_seconds")
                .with_description("From request to response head")
                .with_boundaries(vec![
                    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
                ])
                .build(),
            upstream_ratelimit_remaining: gauge(
                "forebay_upstream_ratelimit_remaining",
                "Last RateLimit-Remaining of a registry",
            ),
            upstream_ratelimit_limit: gauge("forebay_upstream_ratelimit_limit", "Last RateLimit-Limit of a registry"),
            upstream_quiet_until_seconds: gauge(
                "forebay_upstream_quiet_until_seconds",
                "Unix time up to which a registry asked to be left alone, last",
            ),
            upstream_breaker_open: gauge(
                "forebay_upstream_breaker_open",
                "Endpoints of a registry that are not asked because they do not answer",
            ),
            tag_moves: counter("forebay_tag_moves", "Tags that registries moved, followed or refused"),
        }))
    }

    /// Instruments that nobody reads, for tests and benches.
    pub fn disabled() -> Self {
        Self::new(&opentelemetry::global::meter("disabled"))
    }

    /// One request was answered. `registry` is a configured one, or `-`.
    pub fn request(&self, registry: &str, kind: Kind, outcome: &'static str) {
        let labels = [
            KeyValue::new("registry", registry.to_owned()),
            KeyValue::new("kind", kind.as_str()),
            KeyValue::new("outcome", outcome),
        ];
        self.0.requests.add(1, &labels);
    }

    /// Time from the request to the head of its answer.
    pub fn first_byte(&self, kind: Kind, seconds: f64) {
        self.0.first_byte_seconds.record(seconds, &[KeyValue::new("kind", kind.as_str())]);
    }

    /// Body bytes went to a client.
    pub fn bytes_sent(&self, registry: &str, source: Source, bytes: u64) {
        let labels = [KeyValue::new("registry", registry.to_owned()), KeyValue::new("source", source.as_str())];
        self.0.bytes_sent.add(bytes, &labels);
    }

    /// Body bytes came from a registry.
    pub fn upstream_bytes(&self, registry: &str, bytes: u64) {
        self.0.upstream_bytes.add(bytes, &[KeyValue::new("registry", registry.to_owned())]);
    }

    /// A request to a registry ended; `status` is a status code, `timeout` or `error`.
    pub fn upstream_request(&self, registry: &str, status: &str) {
        let labels = [KeyValue::new("registry", registry.to_owned()), KeyValue::new("status", status.to_owned())];
        self.0.upstream_requests.add(1, &labels);
    }

    /// A registry said how many requests are left.
    pub fn ratelimit_remaining(&self, registry: &str, remaining: u64) {
        self.0.upstream_ratelimit_remaining.record(remaining, &[KeyValue::new("registry", registry.to_owned())]);
    }

    /// A registry said how many requests it allows in its window.
    pub fn ratelimit_limit(&self, registry: &str, limit: u64) {
        self.0.upstream_ratelimit_limit.record(limit, &[KeyValue::new("registry", registry.to_owned())]);
    }

    /// A registry asked to be left alone until then, in seconds since the Unix epoch.
    pub fn quiet_until(&self, registry: &str, unix_seconds: u64) {
        self.0.upstream_quiet_until_seconds.record(unix_seconds, &[KeyValue::new("registry", registry.to_owned())]);
    }

    /// So many endpoints of a registry are not asked.
    pub fn breaker_open(&self, registry: &str, endpoints: u64) {
        self.0.upstream_breaker_open.record(endpoints, &[KeyValue::new("registry", registry.to_owned())]);
    }

    /// A registry moved a tag.
    pub fn tag_move(&self, registry: &str, verdict: Move) {
        let verdict = match verdict {
            Move::Followed => "followed",
            Move::Refused => "refused",
        };
        self.0.tag_moves.add(1, &[KeyValue::new("registry", registry.to_owned()), KeyValue::new("verdict", verdict)]);
    }

    /// A download began (`1`) or ended (`-1`).
    pub fn fills_in_flight(&self, change: i64) {
        self.0.fills_in_flight.add(change, &[]);
    }

    /// A download ended without content.
    pub fn fill_failure(&self, reason: &'static str) {
        self.0.fill_failures.add(1, &[KeyValue::new("reason", reason)]);
    }

    /// What the store holds now.
    pub fn stored(&self, bytes: u64, blobs: u64) {
        self.0.store_bytes.record(bytes, &[]);
        self.0.store_blobs.record(blobs, &[]);
    }

    /// Stored content proved wrong.
    pub fn rotten(&self, found_by: FoundBy) {
        self.0.rotten.add(1, &[KeyValue::new("found_by", found_by.as_str())]);
    }

    /// The scrub has hashed so many bytes.
    pub fn scrubbed(&self, bytes: u64) {
        self.0.scrubbed_bytes.add(bytes, &[]);
    }

    /// Whether the disk takes new content.
    pub fn store_writable(&self, is_writable: bool) {
        self.0.store_writable.record(u64::from(is_writable), &[]);
    }

    /// The disk refused: `operation` is `read`, `write` or `remove`.
    pub fn disk_error(&self, operation: &'static str) {
        self.0.disk_errors.add(1, &[KeyValue::new("operation", operation)]);
    }

    /// Content was evicted.
    pub fn evicted(&self, bytes: u64) {
        self.0.evicted_bytes.add(bytes, &[]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Options;
    use crate::telemetry::Telemetry;
    use std::collections::BTreeMap;
    use std::collections::BTreeSet;
    use std::fmt::Write as _;
    use tokio::runtime::Handle;

    const DOCUMENT: &str = "deploy/metrics.md";
    const BEGIN: &str = "<!-- generated: begin -->\n";
    const END: &str = "<!-- generated: end -->\n";

    /// Everything once, so that the text shows each instrument with its labels.
    fn use_all(metrics: &Metrics) {
        metrics.request("r", Kind::Blob, "hit");
        metrics.first_byte(Kind::Blob, 0.1);
        metrics.bytes_sent("r", Source::Store, 3);
        metrics.upstream_bytes("r", 3);
        metrics.upstream_request("r", "200");
        metrics.ratelimit_remaining("r", 9);
        metrics.ratelimit_limit("r", 100);
        metrics.quiet_until("r", 1);
        metrics.breaker_open("r", 1);
        metrics.tag_move("r", Move::Followed);
        metrics.fills_in_flight(1);
        metrics.fill_failure("digest");
        metrics.stored(1, 2);
        metrics.rotten(FoundBy::Scrub);
        metrics.scrubbed(1);
        metrics.store_writable(true);
        metrics.disk_error("write");
        metrics.evicted(4);
    }

    /// `| name | type | labels | meaning |`, by name.
    fn table(text: &str) -> String {
        let mut kinds = BTreeMap::new();
        let mut meanings = BTreeMap::new();
        let mut labels: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for line in text.lines() {
            if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
                kinds.insert(name, kind);
            } else if let Some((name, meaning)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
                meanings.insert(name, meaning);
            } else if let Some((series, list)) = line.split_once('{') {
                let parts = ["_bucket", "_count", "_sum"].iter().find_map(|part| series.strip_suffix(part));
                let name = parts.filter(|name| kinds.get(name) == Some(&"histogram")).unwrap_or(series);
                let (list, _) = list.rsplit_once('}').unwrap();
                let names = list.split(',').filter_map(|pair| pair.split_once('=')).map(|(name, _)| name);
                labels.entry(name).or_default().extend(names.filter(|name| *name != "le"));
            }
        }
        let mut table = "| Metric | Type | Labels | Meaning |\n|---|---|---|---|\n".to_owned();
        for (name, kind) in kinds {
            let labels = labels.get(name).into_iter().flatten().map(|label| format!("`{label}`"));
            let labels = labels.collect::<Vec<_>>().join(", ");
            let meaning = meanings.get(name).copied().unwrap_or_default();
            assert!(!meaning.is_empty(), "{name} says nothing");
            let _ = writeln!(table, "| `{name}` | {kind} | {labels} | {meaning} |");
        }
        table
    }

    /// `FOREBAY_BLESS=1 cargo test --lib catalogue` writes it.
    #[tokio::test]
    #[expect(clippy::disallowed_methods, reason = "a document that is generated")]
    async fn the_catalogue_is_documented() {
        let telemetry = Telemetry::without_log(&Options::default(), Handle::current()).unwrap();
        use_all(&Metrics::new(&telemetry.meter()));
        let expected = table(&telemetry.prometheus().text());
        let document = std::fs::read_to_string(DOCUMENT).unwrap();
        let (before, rest) = document.split_once(BEGIN).unwrap();
        let (written, after) = rest.split_once(END).unwrap();
        if std::env::var_os("FOREBAY_BLESS").is_some() {
            std::fs::write(DOCUMENT, format!("{before}{BEGIN}{expected}{END}{after}")).unwrap();
            return;
        }
        assert_eq!(written, expected, "FOREBAY_BLESS=1 writes it");
        // An instrument that `use_all` forgets would be missing in the table.
        let (catalogue, _) = include_str!("metrics.rs").split_once("#[cfg(test)]").unwrap();
        let made = catalogue.matches("\"forebay_").count();
        assert_eq!(expected.matches("| `forebay_").count(), made, "an instrument is not in the table");
    }
}
