//! The log, and what is measured: a subscriber that writes to standard error, the meters behind the metrics, and the way
//! to an OpenTelemetry collector when one is configured.
//!
//! Promises that a failing collector costs neither a request nor the end of the process more than `SHUTDOWN_LIMIT`.
//! Must never know what is logged or counted.

mod line;

use bytes::Bytes;
use http::{Request, Response};
use opentelemetry::metrics::{Meter, MeterProvider};
use opentelemetry::trace::TracerProvider;
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{
    ExporterBuildError, MetricExporter, Protocol, SpanExporter, WithExportConfig, WithHttpConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkError;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use prometheus::TextEncoder;
use std::fmt;
use std::future::Future;
use std::io::IsTerminal;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tracing::{Dispatch, Metadata};
use tracing_subscriber::filter::{LevelFilter, filter_fn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};
use url::{Host, Url};

/// Longest time that one export may take.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest answer of a collector that is read; it is a few bytes.
const MAX_EXPORT_ANSWER_BYTES: usize = 64 * 1024;
/// Longest wait for the last spans and metrics to leave.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(5);
/// Spans of the way to the collector would make spans of their own, for ever. Beginnings of targets.
const TARGETS_NOT_EXPORTED: [&str; 5] = ["hyper", "h2", "reqwest", "rustls", "opentelemetry"];
/// The name of the instrumentation.
const SCOPE: &str = "forebay";

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One flat JSON object a line.
    Json,
}

/// What telemetry is set up with.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directives of an event filter. Default `info`.
    pub log_level: String,
    /// How a log line looks. Default text.
    pub log_format: Format,
    /// Base URL of an OTLP/HTTP collector. Default none.
    pub otlp_endpoint: Option<Url>,
    /// The name under which the process reports. Default `forebay`.
    pub service_name: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            log_level: "info".to_owned(),
            log_format: Format::default(),
            otlp_endpoint: None,
            service_name: "forebay".to_owned(),
        }
    }
}

/// Telemetry cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not a filter.
    #[error("the log level is not a filter")]
    Level(#[from] InvalidLevel),
    /// Something has installed a subscriber already.
    #[error("cannot install the log")]
    Install(#[from] tracing_subscriber::util::TryInitError),
    /// The text exporter.
    #[error("cannot set up the metrics")]
    Metrics(#[from] OTelSdkError),
    /// The exporter to the collector.
    #[error("cannot set up the export to the collector")]
    Export(#[from] ExporterBuildError),
    /// The HTTP client to the collector.
    #[error("cannot set up the HTTP client for the collector")]
    Client(#[from] reqwest::Error),
}

/// The running telemetry. Ends with [`Telemetry::shutdown`].
pub struct Telemetry {
    meters: SdkMeterProvider,
    spans: Option<SdkTracerProvider>,
    prometheus: prometheus::Registry,
    level: LogLevel,
}

/// The text is not a filter of log events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write off, error, warn, info, debug or trace, or directives such as info,forebay=debug")]
pub struct InvalidLevel;

/// Checks a filter. A single word must be a level: the filter's own grammar would take a misspelt level for the name of a
/// module and stay silent.
pub fn parse_level(text: &str) -> Result<EnvFilter, InvalidLevel> {
    let is_plain = |word: &str| !word.contains("::") && !word.contains('=') && !word.contains('[');
    let mut directives = text.split(',').map(str::trim).filter(|directive| is_plain(directive));
    let levels_are_real = directives.all(|word| !word.is_empty() && word.parse::<LevelFilter>().is_ok());
    if text.trim().is_empty() || !levels_are_real {
        return Err(InvalidLevel);
    }
    EnvFilter::try_new(text).map_err(|_| InvalidLevel)
}

/// What is logged now, and the way to change it. Cheap to clone.
#[derive(Clone)]
pub struct LogLevel(Arc<Mutex<Level>>);

struct Level {
    text: String,
    /// None where no log was installed.
    apply: Option<Box<dyn Fn(EnvFilter) -> bool + Send>>,
}

impl LogLevel {
    /// A level that filters nothing: for a process without a log.
    pub fn fixed(text: &str) -> Self {
        Self(Arc::new(Mutex::new(Level { text: text.to_owned(), apply: None })))
    }

    /// The directives in force.
    pub fn get(&self) -> String {
        self.level().text.clone()
    }

    /// Changes what is logged from now on.
    pub fn set(&self, text: &str) -> Result<(), InvalidLevel> {
        let filter = parse_level(text)?;
        let mut level = self.level();
        if level.apply.as_ref().is_none_or(|apply| apply(filter)) {
            text.clone_into(&mut level.text);
        }
        Ok(())
    }

    fn level(&self) -> MutexGuard<'_, Level> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.get())
    }
}

impl Telemetry {
    /// Sets up the meters and installs the log for the whole process: once in a process.
    pub fn start(options: &Options, runtime: Handle) -> Result<Self, Error> {
        let telemetry = Self::without_log(options, runtime)?;
        let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        telemetry.log(options, std::io::stderr, colours)?.try_init()?;
        if telemetry.spans.is_some() {
            // Spans of ours go between those of who asks and of who is asked (W3C trace context).
            opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
        }
        Ok(telemetry)
    }

    /// Sets up the meters and the way to the collector only. `runtime` carries the exports and must live until
    /// [`Telemetry::shutdown`].
    pub fn without_log(options: &Options, runtime: Handle) -> Result<Self, Error> {
        let resource = Resource::builder()
            .with_service_name(options.service_name.clone())
            .with_attribute(opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        let prometheus = prometheus::Registry::new();
        let text = opentelemetry_prometheus::exporter()
            .with_registry(prometheus.clone())
            .scope_info_enabled(false)
            .without_target_info()
            .build()?;
        let mut meters = SdkMeterProvider::builder().with_resource(resource.clone()).with_reader(text);
        let mut spans = None;
        if let Some(endpoint) = &options.otlp_endpoint {
            let bridge = Bridge::new(endpoint, runtime)?;
            let exporter = MetricExporter::builder()
                .with_http()
                .with_http_client(bridge.clone())
                .with_protocol(Protocol::HttpBinary)
                .with_timeout(EXPORT_TIMEOUT)
                .with_endpoint(signal_url(endpoint, "v1/metrics"))
                .build()?;
            meters = meters.with_reader(PeriodicReader::builder(exporter).build());
            let exporter = SpanExporter::builder()
                .with_http()
                .with_http_client(bridge)
                .with_protocol(Protocol::HttpBinary)
                .with_timeout(EXPORT_TIMEOUT)
                .with_endpoint(signal_url(endpoint, "v1/traces"))
                .build()?;
            spans = Some(SdkTracerProvider::builder().with_resource(resource).with_batch_exporter(exporter).build());
        }
        let level = LogLevel::fixed(&options.log_level);
        Ok(Self { meters: meters.build(), spans, prometheus, level })
    }

    /// What is logged, and the way to change it.
    pub fn level(&self) -> LogLevel {
        self.level.clone()
    }

    /// The meter that makes the instruments.
    pub fn meter(&self) -> Meter {
        self.meters.meter(SCOPE)
    }

    /// All metrics as Prometheus text. May be called from any thread.
    pub fn prometheus(&self) -> PrometheusText {
        PrometheusText(self.prometheus.clone())
    }

    /// Sends what is left to the collector and stops. Takes at most `SHUTDOWN_LIMIT`.
    pub async fn shutdown(self) {
        let (done, finished) = oneshot::channel::<()>();
        // Both block, and wait for exports that this runtime carries. A thread of its own, not one of the runtime's
        // pool, can be left behind when the collector hangs.
        let worker = std::thread::Builder::new().name("forebay-flush".to_owned()).spawn(move || {
            if let Some(spans) = &self.spans {
                let _ = spans.shutdown_with_timeout(SHUTDOWN_LIMIT);
            }
            let _ = self.meters.shutdown_with_timeout(SHUTDOWN_LIMIT);
            let _ = done.send(());
        });
        if worker.is_ok() {
            let _ = tokio::time::timeout(SHUTDOWN_LIMIT, finished).await;
        }
    }

    /// A subscriber that writes events to `writer` and gives spans to the collector.
    fn log<W>(&self, options: &Options, writer: W, colours: bool) -> Result<Dispatch, Error>
    where
        W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
    {
        let (filter, handle) = reload::Layer::new(parse_level(&options.log_level)?);
        self.level.level().apply = Some(Box::new(move |filter| handle.reload(filter).is_ok()));
        // A log that cannot be written must not panic in the middle of a request: internal errors go to standard error,
        // which is what has failed.
        let lines = tracing_subscriber::fmt::layer().with_writer(writer).log_internal_errors(false);
        let lines = match options.log_format {
            Format::Text if colours => lines.with_ansi(true).boxed(),
            Format::Text => lines.with_ansi(false).fmt_fields(line::Fields).event_format(line::Lines).boxed(),
            Format::Json => lines.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed(),
        };
        let spans = self.spans.as_ref().map(|provider| {
            let exported = filter_fn(is_exported).with_max_level_hint(LevelFilter::INFO);
            tracing_opentelemetry::layer().with_tracer(provider.tracer(SCOPE)).with_filter(exported)
        });
        Ok(tracing_subscriber::registry().with(spans).with(lines.with_filter(filter)).into())
    }
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Telemetry").field("exports", &self.spans.is_some()).finish_non_exhaustive()
    }
}

/// Makes the text of `/metrics`. Cheap to clone.
#[derive(Clone, Debug)]
pub struct PrometheusText(prometheus::Registry);

impl PrometheusText {
    /// The text of now.
    pub fn text(&self) -> String {
        let mut text = String::new();
        if let Err(error) = TextEncoder::new().encode_utf8(&self.0.gather(), &mut text) {
            tracing::warn!(%error, "cannot write the metrics as text");
        }
        text
    }
}

fn is_exported(metadata: &Metadata<'_>) -> bool {
    *metadata.level() <= tracing::Level::INFO
        && !TARGETS_NOT_EXPORTED.iter().any(|beginning| metadata.target().starts_with(beginning))
}

fn signal_url(endpoint: &Url, signal: &str) -> String {
    format!("{}/{signal}", endpoint.as_str().trim_end_matches('/'))
}

// === Bridge ===

/// Carries exports, which begin on plain threads, to the runtime that the HTTP client needs.
#[derive(Clone, Debug)]
struct Bridge {
    client: reqwest::Client,
    runtime: Handle,
}

impl Bridge {
    fn new(endpoint: &Url, runtime: Handle) -> Result<Self, reqwest::Error> {
        let mut client = reqwest::Client::builder()
            .timeout(EXPORT_TIMEOUT)
            .referer(false)
            .redirect(reqwest::redirect::Policy::none());
        if endpoint.scheme() == "http" {
            // An image without any certificates can still report in plain text.
            client = client.tls_certs_only([]);
        }
        if is_loopback(endpoint) {
            client = client.no_proxy();
        }
        Ok(Self { client: client.build()?, runtime })
    }
}

fn is_loopback(endpoint: &Url) -> bool {
    match endpoint.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

impl HttpClient for Bridge {
    fn send_bytes<'me, 'answer>(
        &'me self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'answer>>
    where
        'me: 'answer,
        Self: 'answer,
    {
        let sent = self.runtime.spawn(send(self.client.clone(), request));
        Box::pin(async move { sent.await? })
    }
}

async fn send(client: reqwest::Client, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
    let mut response = client.execute(request.try_into()?).await?;
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > MAX_EXPORT_ANSWER_BYTES {
            return Err(format!("the collector's answer is larger than {MAX_EXPORT_ANSWER_BYTES} bytes").into());
        }
        body.extend_from_slice(&chunk);
    }
    let mut answer = Response::new(Bytes::from(body));
    *answer.status_mut() = response.status();
    *answer.headers_mut() = std::mem::take(response.headers_mut());
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Kind, Metrics, Source};
    use http_body_util::{BodyExt, Full};
    use hyper::server::conn::http1;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use std::collections::BTreeSet;
    use std::io;
    use std::sync::{Arc, Mutex};
    use tokio::net::TcpListener;
    use tokio::sync::mpsc;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Lines {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(options: &Options, events: impl FnOnce()) -> String {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let telemetry = Telemetry::without_log(options, runtime.handle().clone()).unwrap();
        let lines = Lines::default();
        let sink = lines.clone();
        let log = telemetry.log(options, move || sink.clone(), false).unwrap();
        tracing::dispatcher::with_default(&log, events);
        lines.text()
    }

    #[test]
    fn text_lines_are_as_the_subscriber_writes_them() {
        let events = || {
            let span = tracing::info_span!("outer", id = "a b", kind = tracing::field::Empty);
            let _inside = span.enter();
            span.record("kind", "blob");
            tracing::info!(n = 7u64, minus = -1, yes = true, text = "a \"b\"\\", shown = %"x y", r#type = "t", "said");
            tracing::warn!(
                error = &io::Error::other("broken") as &(dyn std::error::Error + 'static),
                none = None::<u64>
            );
            tracing::error!(parent: None, "{}", "bare");
        };
        let text = logged(&Options::default(), events);
        let lines = Lines::default();
        let writer = lines.clone();
        let theirs = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(move || writer.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(theirs), events);
        let without_time = |text: &str| -> Vec<String> {
            text.lines().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
        };
        assert_eq!(without_time(&text), without_time(&lines.text()));
        assert_eq!(without_time(&text).len(), 3);
    }

    #[test]
    fn text_lines_leave_the_terminal_alone() {
        let text =
            logged(&Options::default(), || tracing::info!(shown = %"\u{1b}[2J\u{7}", text = "\u{1b}", "a\u{1b}b"));
        assert!(text.ends_with("a\\u{1b}b shown=\\u{1b}[2J\\u{7} text=\"\\u{1b}\"\n"), "{text:?}");
    }

    #[test]
    fn json_lines_are_flat() {
        let options = Options { log_format: Format::Json, ..Options::default() };
        let text = logged(&options, || {
            let _span = tracing::info_span!("request", id = 7).entered();
            tracing::info!(listener = "registry", address = %"127.0.0.1:40123", "listening");
            tracing::debug!("not at this level");
        });
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        let keys: BTreeSet<&str> = line.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys, BTreeSet::from(["timestamp", "level", "target", "message", "listener", "address"]));
        assert_eq!((line["level"].as_str(), line["message"].as_str()), (Some("INFO"), Some("listening")));
        assert_eq!(line["address"], "127.0.0.1:40123");
        assert!(line["target"].as_str().unwrap().starts_with("forebay::"));
        assert!(line["timestamp"].as_str().unwrap().ends_with('Z'));
    }

    #[test]
    fn text_lines_hold_the_fields() {
        let options = Options { log_level: "warn,forebay=debug".to_owned(), ..Options::default() };
        let text = logged(&options, || {
            tracing::debug!(size_bytes = 5, "kept");
            tracing::info!(target: "elsewhere", "dropped");
        });
        assert!(text.ends_with("DEBUG forebay::telemetry::tests: kept size_bytes=5\n"), "{text:?}");
        assert!(!text.contains("dropped"));
    }

    #[tokio::test]
    async fn prometheus_names_are_the_documented_ones() {
        let telemetry = Telemetry::without_log(&Options::default(), Handle::current()).unwrap();
        let metrics = Metrics::new(&telemetry.meter());
        metrics.request("docker.io", Kind::Blob, "hit");
        metrics.first_byte(Kind::Blob, 0.1);
        metrics.bytes_sent("docker.io", Source::Store, 3);
        metrics.upstream_bytes("docker.io", 3);
        metrics.upstream_request("docker.io", "200");
        metrics.ratelimit_remaining("docker.io", 9);
        metrics.fills_in_flight(1);
        metrics.fill_failure("digest");
        metrics.stored(1, 2);
        metrics.evicted(4);
        let text = telemetry.prometheus().text();
        let families: BTreeSet<&str> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        let expected = [
            "forebay_requests_total counter",
            "forebay_bytes_sent_total counter",
            "forebay_upstream_bytes_total counter",
            "forebay_upstream_requests_total counter",
            "forebay_fills_in_flight gauge",
            "forebay_fill_failures_total counter",
            "forebay_store_bytes gauge",
            "forebay_store_blobs gauge",
            "forebay_evicted_bytes_total counter",
            "forebay_first_byte_seconds histogram",
            "forebay_upstream_ratelimit_remaining gauge",
        ];
        assert_eq!(families, BTreeSet::from(expected), "{text}");
        let sample = "forebay_requests_total{kind=\"blob\",outcome=\"hit\",registry=\"docker.io\"} 1\n";
        assert!(text.contains(sample), "{text}");
        assert!(!text.contains("otel_scope"), "{text}");
    }

    /// A collector that says what it was sent.
    async fn collector() -> (Url, mpsc::UnboundedReceiver<(String, Bytes)>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/base/", listener.local_addr().unwrap()).parse().unwrap();
        let (sender, received) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let sender = sender.clone();
                let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                    let sender = sender.clone();
                    async move {
                        let path = request.uri().path().to_owned();
                        let body = request.into_body().collect().await?.to_bytes();
                        let _ = sender.send((path, body));
                        Ok::<_, hyper::Error>(Response::new(Full::new(Bytes::new())))
                    }
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        (url, received)
    }

    fn holds(body: &Bytes, text: &str) -> bool {
        body.windows(text.len()).any(|window| window == text.as_bytes())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn spans_and_metrics_reach_a_collector() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let (url, mut received) = collector().await;
        let options = Options { otlp_endpoint: Some(url), service_name: "cache-7".to_owned(), ..Options::default() };
        let telemetry = Telemetry::without_log(&options, Handle::current()).unwrap();
        let log = telemetry.log(&options, io::sink, false).unwrap();
        tracing::dispatcher::with_default(&log, || {
            tracing::info_span!("pull-one").in_scope(|| tracing::info!("inside"));
            tracing::info_span!(target: "hyper::proto", "never-seen").in_scope(|| ());
        });
        drop(log);
        Metrics::new(&telemetry.meter()).evicted(4);
        telemetry.shutdown().await;

        let mut bodies = std::collections::BTreeMap::new();
        while let Ok((path, body)) = received.try_recv() {
            assert!(holds(&body, "cache-7"), "{path}");
            bodies.insert(path, body);
        }
        let spans = &bodies["/base/v1/traces"];
        assert!(holds(spans, "pull-one") && !holds(spans, "never-seen"));
        assert!(holds(&bodies["/base/v1/metrics"], "forebay_evicted_bytes"));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_dead_collector_does_not_hold_the_end() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        // Bound but never accepting: connections succeed, answers never come.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", silent.local_addr().unwrap()).parse().unwrap();
        let options = Options { otlp_endpoint: Some(url), ..Options::default() };
        let telemetry = Telemetry::without_log(&options, Handle::current()).unwrap();
        let log = telemetry.log(&options, io::sink, false).unwrap();
        tracing::dispatcher::with_default(&log, || tracing::info_span!("lost").in_scope(|| ()));
        Metrics::new(&telemetry.meter()).evicted(4);
        let begun = std::time::Instant::now();
        telemetry.shutdown().await;
        // An export alone would take longer.
        assert!(begun.elapsed() < EXPORT_TIMEOUT, "{:?}", begun.elapsed());
    }
}
