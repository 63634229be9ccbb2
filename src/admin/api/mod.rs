//! The admin API, version 1: `/api/v1/…`, JSON both ways, described by `openapi.json` beside this file.
//!
//! A request: `guard` says who may ask → `ROUTES` says what is asked → the body is read, within a limit → one function a
//! resource → JSON. `GET` changes nothing. Fields and resources are added, never changed; what breaks that is version 2.

mod content;
mod failure;
mod guard;
mod references;
mod status;
#[cfg(test)]
mod tests;
mod types;
mod upstreams;
mod verify;
mod warm;

use bytes::Bytes;
use http::HeaderValue;
use http::Method;
use http::Request;
use http::Response;
use http::StatusCode;
use http::header;
use http_body_util::BodyExt as _;
use http_body_util::Full;
use http_body_util::Limited;
use hyper::body::Body;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Control;
use super::images::Outlines;
use super::traffic::Ring;
use crate::store::Timestamp;

pub(super) use self::failure::Failure;
pub(super) use self::guard::Guard;
pub use self::types::*;
pub use self::verify::{RottenBlob, Verify, VerifyBody, VerifyState};
use self::warm::Jobs;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Where the API begins.
pub(super) const PREFIX: &str = "/api/";
const ID: &str = "{id}";
/// Largest body of a request.
const MAX_BODY_BYTES: usize = 64 * 1024;
/// Most entries of one page of a list.
const MAX_PAGE: usize = 10_000;
/// Entries of a page when the request does not say.
const DEFAULT_PAGE: usize = 1000;

/// What can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Resource {
    Description,
    Status,
    Traffic,
    Images,
    Blobs,
    Fills,
    LogLevel,
    SetLogLevel,
    Warm,
    Warms,
    WarmById,
    StopWarm,
    Why,
    History,
    Upstreams,
    SetOffline,
    Pins,
    Pin,
    Unpin,
    Purge,
    Reload,
    Verify,
    Verification,
    StopVerify,
}

/// Every method and path, once. `{id}` stands for one part.
const ROUTES: &[(Method, &str, Resource)] = &[
    (Method::GET, "/api/v1/openapi.json", Resource::Description),
    (Method::GET, "/api/v1/status", Resource::Status),
    (Method::GET, "/api/v1/traffic", Resource::Traffic),
    (Method::GET, "/api/v1/images", Resource::Images),
    (Method::GET, "/api/v1/blobs", Resource::Blobs),
    (Method::GET, "/api/v1/fills", Resource::Fills),
    (Method::GET, "/api/v1/log-level", Resource::LogLevel),
    (Method::PUT, "/api/v1/log-level", Resource::SetLogLevel),
    (Method::POST, "/api/v1/warm", Resource::Warm),
    (Method::GET, "/api/v1/warm", Resource::Warms),
    (Method::GET, "/api/v1/warm/{id}", Resource::WarmById),
    (Method::DELETE, "/api/v1/warm/{id}", Resource::StopWarm),
    (Method::GET, "/api/v1/why", Resource::Why),
    (Method::GET, "/api/v1/history", Resource::History),
    (Method::GET, "/api/v1/upstreams", Resource::Upstreams),
    (Method::PUT, "/api/v1/offline", Resource::SetOffline),
    (Method::GET, "/api/v1/pins", Resource::Pins),
    (Method::POST, "/api/v1/pins", Resource::Pin),
    (Method::POST, "/api/v1/unpin", Resource::Unpin),
    (Method::POST, "/api/v1/purge", Resource::Purge),
    (Method::POST, "/api/v1/reload", Resource::Reload),
    (Method::POST, "/api/v1/verify", Resource::Verify),
    (Method::GET, "/api/v1/verify", Resource::Verification),
    (Method::DELETE, "/api/v1/verify", Resource::StopVerify),
];

/// The API of one admin port.
pub(super) struct Api {
    control: Control,
    guard: Guard,
    started_at: Timestamp,
    outlines: Outlines,
    ring: Ring,
    jobs: Jobs,
}

/// What was asked, read as far as its resource needs.
struct Question {
    /// What stands for `{id}` in the path.
    id: Option<String>,
    query: Vec<(String, String)>,
    body: Bytes,
}

impl Api {
    pub(super) fn new(control: Control, guard: Guard) -> Self {
        let (outlines, ring, jobs) = (Outlines::default(), Ring::default(), Jobs::default());
        let api = Self { control, guard, started_at: Timestamp::now(), outlines, ring, jobs };
        api.sample();
        api
    }

    /// Notes what was served so far.
    pub(super) fn sample(&self) {
        self.ring.add(Timestamp::now(), self.traffic());
    }

    pub(super) async fn answer<B: Body<Error: Into<BoxError>>>(&self, request: Request<B>) -> Response<Full<Bytes>> {
        let mut answer = self.try_answer(request).await.unwrap_or_else(|failure| refusal(&failure));
        let headers = answer.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        answer
    }

    async fn try_answer<B: Body<Error: Into<BoxError>>>(
        &self,
        request: Request<B>,
    ) -> Result<Response<Full<Bytes>>, Failure> {
        let (request, body) = request.into_parts();
        self.guard.admit(&request.method, &request.headers)?;
        let (resource, id) = find(&request.method, request.uri.path())?;
        let query = url::form_urlencoded::parse(request.uri.query().unwrap_or_default().as_bytes());
        let query = query.map(|(name, value)| (name.into_owned(), value.into_owned())).collect();
        let body = match request.method {
            Method::GET | Method::HEAD => Bytes::new(),
            _ => Limited::new(body, MAX_BODY_BYTES)
                .collect()
                .await
                .map_err(|_| Failure::too_large(MAX_BODY_BYTES))?
                .to_bytes(),
        };
        self.ask(resource, &Question { id, query, body }).await
    }

    async fn ask(&self, resource: Resource, question: &Question) -> Result<Response<Full<Bytes>>, Failure> {
        match resource {
            Resource::Description => Ok(respond(StatusCode::OK, include_str!("openapi.json"))),
            Resource::Status => json(&self.status().await),
            Resource::Traffic => json(&self.traffic_history(question)?),
            Resource::Images => json(&self.images(question).await?),
            Resource::Blobs => json(&self.blobs(question).await?),
            Resource::Fills => json(&self.fills()),
            Resource::LogLevel => json(&self.log_level()),
            Resource::SetLogLevel => json(&self.set_log_level(question)?),
            Resource::Warm => json(&self.warm(question)?),
            Resource::Warms => json(&self.warms()),
            Resource::WarmById => json(&self.warm_by_id(question)?),
            Resource::StopWarm => json(&self.stop_warm(question)?),
            Resource::Why => json(&self.why(question)?),
            Resource::History => json(&self.history(question)?),
            Resource::Upstreams => json(&self.upstreams()),
            Resource::SetOffline => json(&self.set_offline(question)?),
            Resource::Pins => json(&self.pins()),
            Resource::Pin => json(&self.pin(question).await?),
            Resource::Unpin => json(&self.unpin(question).await?),
            Resource::Purge => json(&self.purge(question).await?),
            Resource::Reload => json(&self.reload().await?),
            Resource::Verify => json(&self.start_verify(question)?),
            Resource::Verification => json(&self.verification()),
            Resource::StopVerify => json(&self.stop_verify()),
        }
    }
}

/// What a method and path ask for, and about what. `HEAD` asks for what `GET` does.
fn find(method: &Method, path: &str) -> Result<(Resource, Option<String>), Failure> {
    let method = if *method == Method::HEAD { &Method::GET } else { method };
    let here: Vec<_> = ROUTES.iter().filter(|(_, known, _)| fits(known, path)).collect();
    if here.is_empty() {
        return Err(Failure::not_found(format!("there is no {path}; /api/v1/openapi.json says what there is")));
    }
    match here.iter().find(|(known, _, _)| known == method) {
        Some((_, known, resource)) => {
            let id = known.ends_with(ID).then(|| path.rsplit('/').next().unwrap_or_default().to_owned());
            Ok((*resource, id))
        }
        None => {
            let allowed: Vec<_> = here.iter().map(|(known, _, _)| known.as_str()).collect();
            Err(Failure::method_not_allowed(&allowed.join(", ")))
        }
    }
}

fn fits(known: &str, path: &str) -> bool {
    match known.strip_suffix(ID) {
        Some(before) => path.strip_prefix(before).is_some_and(|id| !id.is_empty() && !id.contains('/')),
        None => known == path,
    }
}

impl Question {
    /// The number in the path.
    fn id(&self) -> Result<u64, Failure> {
        let id = self.id.as_deref().unwrap_or_default();
        id.parse().map_err(|_| Failure::not_found(format!("there is no job {id}")))
    }

    /// The body, which has to be there.
    fn json<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        serde_json::from_slice(&self.body)
            .map_err(|error| Failure::bad_request(format!("the body is not right: {error}")))
    }

    fn parameter(&self, name: &str) -> Option<&str> {
        self.query
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
            .filter(|value| !value.is_empty())
    }

    fn number(&self, name: &str, default: usize, most: usize) -> Result<usize, Failure> {
        let Some(text) = self.parameter(name) else { return Ok(default) };
        let wrong = || Failure::bad_request(format!("{name} is a number up to {most}"));
        text.parse().ok().filter(|&number| number <= most).ok_or_else(wrong)
    }

    /// The page of a list that is asked for.
    fn page(&self) -> Result<Page, Failure> {
        let limit = self.number("limit", DEFAULT_PAGE, MAX_PAGE)?;
        Ok(Page { limit, offset: self.number("offset", 0, usize::MAX)? })
    }
}

/// A part of a list.
#[derive(Clone, Copy, Debug)]
struct Page {
    limit: usize,
    offset: usize,
}

impl Page {
    fn of<T>(self, all: Vec<T>) -> Vec<T> {
        all.into_iter().skip(self.offset).take(self.limit).collect()
    }
}

/// Computes off the thread that answers: probes must not wait for a long list.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// A time as the API says it.
pub(super) fn rfc3339(at: Timestamp) -> String {
    let millis = i64::try_from(at.as_millis()).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(millis).unwrap_or(jiff::Timestamp::MAX).to_string()
}

fn json<T: Serialize>(value: &T) -> Result<Response<Full<Bytes>>, Failure> {
    let body = serde_json::to_vec(value).map_err(|error| Failure::internal(error.to_string()))?;
    Ok(respond(StatusCode::OK, body))
}

fn refusal(failure: &Failure) -> Response<Full<Bytes>> {
    let mut answer = respond(failure.status, serde_json::to_vec(&failure.body()).unwrap_or_default());
    if failure.status == StatusCode::UNAUTHORIZED {
        answer
            .headers_mut()
            .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"forebay admin\""));
    }
    if let Some(allow) = failure.allowed().and_then(|allowed| HeaderValue::from_str(allowed).ok()) {
        answer.headers_mut().insert(header::ALLOW, allow);
    }
    answer
}

fn respond(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}
