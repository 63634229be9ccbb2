//! A request to an answer.

use super::MetricsText;
use super::Readiness;
use super::api;
use super::api::Api;
use super::page;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Body;

const NOT_FOUND: &str = "not found; here are /, /healthz, /readyz, /metrics and /api/v1/\n";
const TEXT: &str = "text/plain; charset=utf-8";
/// The text format of the Prometheus exposition.
const PROMETHEUS_TEXT: &str = "text/plain; version=0.0.4";

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What the answers are made of.
pub(super) struct Answers {
    pub(super) readiness: Readiness,
    pub(super) metrics_text: MetricsText,
    pub(super) api: Api,
}

impl Answers {
    pub(super) async fn answer<B: Body<Error: Into<BoxError>>>(&self, request: Request<B>) -> Response<Full<Bytes>> {
        let path = request.uri().path();
        if path.starts_with(api::PREFIX) {
            return self.api.answer(request).await;
        }
        if !matches!(path, "/" | "/healthz" | "/readyz" | "/metrics") {
            return text(StatusCode::NOT_FOUND, TEXT, NOT_FOUND.to_owned());
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET and HEAD are allowed here\n".into());
            answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return answer;
        }
        match path {
            "/" => page::answer(),
            "/metrics" => text(StatusCode::OK, PROMETHEUS_TEXT, (self.metrics_text)()),
            "/readyz" => match self.readiness.reason() {
                None => {
                    let problem = self.readiness.degraded().map(|problem| format!("ready, degraded: {problem}"));
                    text(StatusCode::OK, TEXT, problem.unwrap_or_else(|| "ready".to_owned()))
                }
                Some(reason) => text(StatusCode::SERVICE_UNAVAILABLE, TEXT, reason),
            },
            _ => text(StatusCode::OK, TEXT, "ok".to_owned()),
        }
    }
}

fn text(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}
