//! One exchange with one server: the HTTP clients of a registry, time limits, and bytes counted.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use bytes::BytesMut;
use http::HeaderMap;
use http::header::CONTENT_ENCODING;
use http::header::CONTENT_LENGTH;
use opentelemetry::global;
use opentelemetry_http::HeaderInjector;
use reqwest::Client;
use reqwest::RequestBuilder;
use reqwest::Response;
use reqwest::redirect::Policy;
use tokio::time::timeout;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use super::dial::Guard;
use super::dial::Resolver;
use super::error::Error;
use super::error::SetupError;
use super::options::Proxy;
use super::options::RegistryOptions;
use super::tls::Tls;
use crate::metrics::Metrics;
use crate::oci::Registry;

/// Longest time for a body that is read whole, however steadily it drips.
const WHOLE_BODY_TIMEOUT: Duration = Duration::from_secs(120);
const MAX_IDLE_PER_HOST: usize = 32;
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
const TCP_KEEPALIVE: Duration = Duration::from_secs(30);

/// The clients of one registry. Cheap to clone.
#[derive(Clone)]
pub(super) struct Wire {
    registry: Registry,
    metrics: Metrics,
    silence: Duration,
    meta: Client,
    bulk: Client,
    guard: Arc<Guard>,
}

impl Wire {
    pub(super) fn new(
        options: &RegistryOptions,
        user_agent: &str,
        tls: &Tls,
        metrics: Metrics,
    ) -> Result<Self, SetupError> {
        let guard = Arc::new(Guard::new(&options.endpoints, &options.token_realms, &options.proxy));
        let proxy = match &options.proxy {
            Proxy::Environment | Proxy::None => None,
            Proxy::Url(url) => Some(reqwest::Proxy::all(url.clone()))
                .transpose()
                .map_err(|error| SetupError::proxy(&options.registry, error))?,
        };
        let builder = || {
            let builder = match (&options.proxy, &proxy) {
                (Proxy::Environment, _) => Client::builder(),
                (_, None) => Client::builder().no_proxy(),
                (_, Some(proxy)) => Client::builder().no_proxy().proxy(proxy.clone()),
            };
            builder
                .user_agent(user_agent)
                .redirect(Policy::none())
                .referer(false)
                .connect_timeout(options.connect_timeout)
                .tcp_keepalive(TCP_KEEPALIVE)
                .pool_idle_timeout(IDLE_TIMEOUT)
                .pool_max_idle_per_host(MAX_IDLE_PER_HOST)
                .dns_resolver(Arc::new(Resolver(guard.clone())))
        };
        // Blobs go over HTTP/1.1: with HTTP/2 all of a host share one connection and its congestion window.
        let bulk = builder().http1_only().tls_backend_preconfigured(tls.config(&["http/1.1"])).build();
        let meta = builder().tls_backend_preconfigured(tls.config(&["h2", "http/1.1"])).build();
        Ok(Self {
            registry: options.registry.clone(),
            metrics,
            silence: options.read_timeout,
            meta: meta.map_err(SetupError::client)?,
            bulk: bulk.map_err(SetupError::client)?,
            guard,
        })
    }

    pub(super) fn registry(&self) -> &Registry {
        &self.registry
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// For everything small.
    pub(super) fn meta(&self) -> &Client {
        &self.meta
    }

    /// For blobs.
    pub(super) fn bulk(&self) -> &Client {
        &self.bulk
    }

    /// Whether the registry's own endpoints live at private addresses, as far as known.
    pub(super) fn private_addresses(&self) -> bool {
        self.guard.private_addresses()
    }

    /// Sends one request and waits for the response head. Nothing is followed, nothing repeated.
    pub(super) async fn exchange(&self, request: RequestBuilder) -> Result<Response, Error> {
        let answered = match timeout(self.silence, request.headers(trace_context()).send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(Error::unanswered(error)),
            Err(_) => Err(Error::TimedOut { what: "response head" }),
        };
        let status = match &answered {
            Ok(response) => response.status().as_str().to_owned(),
            Err(Error::TimedOut { .. }) => "timeout".to_owned(),
            Err(_) => "error".to_owned(),
        };
        self.metrics.upstream_request(self.registry.as_str(), &status);
        answered
    }

    /// The next bytes of a body. The timer runs only inside this call, so a slow reader cannot fire it.
    pub(super) async fn chunk(&self, response: &mut Response, after_bytes: u64) -> Result<Option<Bytes>, Error> {
        match timeout(self.silence, response.chunk()).await {
            Ok(Ok(Some(bytes))) => {
                self.metrics.upstream_bytes(self.registry.as_str(), bytes.len() as u64);
                Ok(Some(bytes))
            }
            Ok(Ok(None)) => Ok(None),
            Ok(Err(error)) => Err(Error::cut(after_bytes, error)),
            Err(_) => Err(Error::TimedOut { what: "body" }),
        }
    }

    /// A whole body of at most `limit_bytes`.
    pub(super) async fn whole(&self, mut response: Response, limit_bytes: usize) -> Result<Bytes, Error> {
        let too_large = || Error::protocol(format!("the registry's answer is larger than {limit_bytes} bytes"));
        if content_length(response.headers()).is_some_and(|length| length > limit_bytes as u64) {
            return Err(too_large());
        }
        let reading = async {
            let mut body = BytesMut::new();
            while let Some(bytes) = self.chunk(&mut response, body.len() as u64).await? {
                if body.len() + bytes.len() > limit_bytes {
                    return Err(too_large());
                }
                body.extend_from_slice(&bytes);
            }
            Ok(body.freeze())
        };
        timeout(WHOLE_BODY_TIMEOUT, reading).await.unwrap_or(Err(Error::TimedOut { what: "whole body" }))
    }
}

/// The span that asks, for who is asked; empty where spans are not exported.
fn trace_context() -> HeaderMap {
    let mut headers = HeaderMap::new();
    let context = Span::current().context();
    global::get_text_map_propagator(|known| known.inject_context(&context, &mut HeaderInjector(&mut headers)));
    headers
}

pub(super) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}

/// Digests are over the bytes as they are: a coded body is of no use.
pub(super) fn refuse_content_coding(headers: &HeaderMap) -> Result<(), Error> {
    let coded =
        headers.get_all(CONTENT_ENCODING).iter().any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity"));
    if coded { Err(Error::protocol("the registry answered with a Content-Encoding nobody asked for")) } else { Ok(()) }
}
