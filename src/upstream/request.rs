//! One question to a registry: endpoints in order, tries, authentication, redirects, and what the status means.

use std::future::Future;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use std::time::Instant;

use backon::Retryable as _;
use bytes::Bytes;
use http::HeaderValue;
use http::Method;
use http::StatusCode;
use http::header::ACCEPT;
use http::header::ACCEPT_ENCODING;
use http::header::AUTHORIZATION;
use http::header::RANGE;
use reqwest::Response;
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tokio::time::timeout;
use url::Url;

use super::Identity;
use super::auth::Auth;
use super::auth::Authorization;
use super::auth::Visitor;
use super::breaker::Pass;
use super::budget::Budget;
use super::endpoint::Endpoint;
use super::endpoint::Endpoints;
use super::error::Error;
use super::options::RegistryOptions;
use super::redirect;
use super::redirect::MAX_REDIRECTS;
use super::redirect::Policy;
use super::redirect::same_origin;
use super::retry;
use super::status::RateLimit;
use super::status::millis;
use super::throttle::Throttle;
use super::wire::Wire;
use crate::oci::RepositoryName;

/// Most times that one try asks the registry itself: with a remembered token; without, with a kept token; without, with a
/// new one; and once more after a refused redirect.
const MAX_ROUNDS: usize = 6;
/// Most questions of a registry at a time, downloads of blobs apart; further ones wait in order.
pub(super) const MAX_QUESTIONS: usize = 64;
/// Longest wait for that.
const TURN_TIMEOUT: Duration = Duration::from_secs(60);
/// A registry that asks to be left alone for no longer than that is waited for, once a question.
const SHORT_QUIET: Duration = Duration::from_secs(5);
const MAX_ERROR_BODY_BYTES: usize = 16 * 1024;
const MAX_ERROR_CODE_CHARS: usize = 40;

/// What a question is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Manifest,
    Listing,
    BlobHead,
    Blob,
}

impl Kind {
    /// Left unasked while `Retry-After` runs. Registries count manifests; blobs in progress should end.
    fn waits_for_retry_after(self) -> bool {
        matches!(self, Self::Manifest | Self::Listing)
    }
}

/// A question, whatever endpoint answers it.
#[derive(Debug)]
pub(super) struct Question<'a> {
    pub(super) kind: Kind,
    pub(super) method: Method,
    pub(super) repository: &'a RepositoryName,
    /// Behind `/v2/<repository>/`.
    pub(super) path: String,
    pub(super) query: Option<String>,
    pub(super) accept: Option<&'static str>,
    pub(super) range: Option<String>,
}

impl Question<'_> {
    /// HEAD of a blob, not the GET that may follow it.
    fn is_blob_head(&self) -> bool {
        self.kind == Kind::BlobHead && self.method == Method::HEAD
    }
}

/// A 200 or 206 with its body unread; to a HEAD also a status that says nothing about the content.
pub(super) struct Answer {
    pub(super) response: Response,
    /// From the target of a redirect.
    pub(super) elsewhere: bool,
    pub(super) identity: Identity,
    pub(super) endpoint: Arc<Endpoint>,
}

/// Where a walk through redirects ended.
struct Arrival {
    response: Response,
    /// Not on the endpoint that was asked.
    elsewhere: bool,
}

/// One registry: its endpoints and all that is remembered of it.
pub(super) struct RegistryClient {
    /// What it was made of.
    pub(super) options: RegistryOptions,
    pub(super) endpoints: Endpoints,
    pub(super) wire: Wire,
    /// For blobs.
    pub(super) throttle: Throttle,
    pub(super) auth: Auth,
    /// Fair; [`MAX_QUESTIONS`].
    pub(super) turns: Semaphore,
    pub(super) budget: Budget,
    pub(super) is_offline: AtomicBool,
    pub(super) said_limit: Mutex<Option<(RateLimit, Instant)>>,
}

impl RegistryClient {
    /// An answer whose body the caller reads.
    pub(super) async fn open(&self, question: &Question<'_>) -> Result<Answer, Error> {
        self.over_endpoints(question.kind, false, |endpoint| self.ask(endpoint, question)).await
    }

    /// An answer with its whole body; a body that breaks off is asked for again.
    pub(super) async fn whole(
        &self,
        question: &Question<'_>,
        limit_bytes: usize,
    ) -> Result<(http::HeaderMap, Bytes, Identity), Error> {
        self.over_endpoints(question.kind, false, |endpoint| async move {
            let answer = self.ask(endpoint, question).await?;
            super::wire::refuse_content_coding(answer.response.headers())?;
            let headers = answer.response.headers().clone();
            let body = self.wire.whole(answer.response, limit_bytes).await?;
            Ok((headers, body, answer.identity))
        })
        .await
    }

    /// The first endpoint that has an answer. A rate limit that is over soon is waited for.
    pub(super) async fn over_endpoints<T, F, Fut>(&self, kind: Kind, is_patient: bool, ask: F) -> Result<T, Error>
    where
        F: Fn(Arc<Endpoint>) -> Fut,
        Fut: Future<Output = Result<T, Error>>,
    {
        match self.once_over_endpoints(kind, is_patient, &ask).await {
            Err(Error::RateLimited { retry_after: Some(wait) }) if wait <= SHORT_QUIET => {
                tracing::info!(registry = %self.wire.registry(), ?wait, "waiting for the registry's rate limit");
                sleep(wait).await;
                self.once_over_endpoints(kind, is_patient, &ask).await
            }
            answered => answered,
        }
    }

    async fn once_over_endpoints<T, F, Fut>(&self, kind: Kind, is_patient: bool, ask: &F) -> Result<T, Error>
    where
        F: Fn(Arc<Endpoint>) -> Fut,
        Fut: Future<Output = Result<T, Error>>,
    {
        let _turn = match kind {
            Kind::Blob => None,
            Kind::Manifest | Kind::Listing | Kind::BlobHead => {
                let turn = timeout(TURN_TIMEOUT, self.turns.acquire()).await;
                Some(turn.map_err(|_| Error::TimedOut { what: "turn" })?)
            }
        };
        let mut failure = Error::UnknownRegistry;
        for endpoint in self.endpoints.in_order() {
            let pass = match endpoint.breaker().pass(is_patient).await {
                Ok(pass) => pass,
                Err(error) => {
                    failure = error;
                    continue;
                }
            };
            let once = || ask(endpoint.clone());
            let answered = once.retry(retry::backoff()).when(retry::again_here).await;
            self.note_health(&endpoint, pass, answered.as_ref().err());
            match answered {
                Err(error) if retry::elsewhere(&error) => {
                    tracing::warn!(registry = %self.wire.registry(), endpoint = %endpoint.base(), %error, "endpoint failed");
                    if !matches!(error, Error::RateLimited { .. }) {
                        endpoint.failed();
                    }
                    failure = error;
                }
                answered => {
                    if answered.as_ref().err().is_none_or(retry::is_answer) {
                        endpoint.works();
                    }
                    return answered;
                }
            }
        }
        Err(failure)
    }

    fn note_health(&self, endpoint: &Endpoint, pass: Pass<'_>, error: Option<&Error>) {
        let (registry, base) = (self.wire.registry(), endpoint.base());
        match error.filter(|error| retry::is_silence(error)) {
            None => {
                if !pass.answered() {
                    return;
                }
                tracing::info!(%registry, endpoint = %base, "the endpoint answers again");
            }
            Some(error) => {
                let Some(pause) = pass.failed(error) else { return };
                tracing::warn!(%registry, endpoint = %base, ?pause, %error, "the endpoint is left alone");
            }
        }
        self.wire.metrics().breaker_open(registry.as_str(), self.endpoints.open_breakers());
    }

    /// One try at one endpoint.
    pub(super) async fn ask(&self, endpoint: Arc<Endpoint>, question: &Question<'_>) -> Result<Answer, Error> {
        if question.kind.waits_for_retry_after()
            && let Some(left) = endpoint.quiet_for()
        {
            return Err(Error::RateLimited { retry_after: Some(left) });
        }
        let url = endpoint.url(question.repository, &question.path, question.query.as_deref());
        let remembered = self.auth.remembered(&self.wire, endpoint.base(), question.repository).await;
        let mut authorization = remembered.inspect_err(|error| leave_alone(&endpoint, error))?;
        let mut asked_again = false;
        for _ in 0..MAX_ROUNDS {
            let arrival = self.walk(&url, question, authorization.as_ref()).await?;
            match (arrival.response.status(), arrival.elsewhere) {
                (StatusCode::UNAUTHORIZED, false) => match authorization.take() {
                    Some(used) if used.fresh => {
                        self.auth.forget(endpoint.base(), question.repository, &used);
                        return Err(denied(arrival.response, &self.wire, &used.identity).await);
                    }
                    // Some registries answer a stale token with another challenge than no token: ask without first.
                    Some(used) => self.auth.forget(endpoint.base(), question.repository, &used),
                    None => {
                        let headers = arrival.response.headers();
                        let answer = self.auth.answer(&self.wire, endpoint.base(), question.repository, headers).await;
                        authorization = Some(answer.inspect_err(|error| leave_alone(&endpoint, error))?);
                    }
                },
                // Some registries answer so to a password that has expired.
                (StatusCode::FORBIDDEN, false) if authorization.as_ref().is_some_and(Authorization::is_renewable) => {
                    if let Some(used) = authorization.take() {
                        self.auth.forget(endpoint.base(), question.repository, &used);
                    }
                }
                // A signed URL that has expired, or was made for somebody else: the registry makes a new one.
                (StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST, true) if !question.is_blob_head() && !asked_again => {
                    asked_again = true;
                }
                _ => {
                    let identity = authorization.map_or(Identity::Anonymous, |used| used.identity);
                    return self.settle(arrival, endpoint, question, identity).await;
                }
            }
        }
        Err(Error::protocol("the registry keeps asking for authentication"))
    }

    /// Follows redirects. `Authorization` stays with its origin; a target's own challenge is answered anonymously, once.
    async fn walk(
        &self,
        start: &Url,
        question: &Question<'_>,
        authorization: Option<&Authorization>,
    ) -> Result<Arrival, Error> {
        let mut url = start.clone();
        let mut header = authorization.map(|authorization| authorization.header.clone());
        let mut visitor: Option<Visitor> = None;
        let mut redirects = 0;
        loop {
            // Where blobs are kept is not the registry.
            if same_origin(start, &url) {
                self.budget.take().await?;
            }
            let response = self.send(&url, question, header.as_ref()).await?;
            let policy = Policy { private_addresses: self.wire.private_addresses() };
            if let Some(next) = redirect::next(&url, response.status(), response.headers(), policy)? {
                redirects += 1;
                if redirects > MAX_REDIRECTS {
                    return Err(Error::protocol(format!("the registry redirects more than {MAX_REDIRECTS} times")));
                }
                if !same_origin(&url, &next) {
                    header = None;
                }
                url = next;
                continue;
            }
            let elsewhere = !same_origin(start, &url);
            if elsewhere && response.status() == StatusCode::UNAUTHORIZED {
                if let Some(refused) = visitor.take() {
                    self.auth.forget_visitor(&refused);
                    if !refused.fresh {
                        header = None;
                        continue;
                    }
                } else {
                    let headers = response.headers();
                    visitor = self.auth.answer_stranger(&self.wire, &url, question.repository, headers).await?;
                    if let Some(visitor) = &visitor {
                        header = Some(visitor.header.clone());
                        continue;
                    }
                }
            }
            return Ok(Arrival { response, elsewhere });
        }
    }

    async fn send(
        &self,
        url: &Url,
        question: &Question<'_>,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response, Error> {
        let client = if question.kind == Kind::Blob { self.wire.bulk() } else { self.wire.meta() };
        let mut request = client.request(question.method.clone(), url.clone()).header(ACCEPT_ENCODING, "identity");
        if let Some(accept) = question.accept {
            request = request.header(ACCEPT, accept);
        }
        if let Some(range) = &question.range {
            request = request.header(RANGE, range);
        }
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let response = self.wire.exchange(request).await?;
        tracing::debug!(
            registry = %self.wire.registry(),
            origin = redirect::origin_text(url),
            method = %question.method,
            repository = %question.repository,
            about = question.path,
            status = response.status().as_u16(),
            "asked the registry"
        );
        Ok(response)
    }

    /// What the final status means.
    async fn settle(
        &self,
        arrival: Arrival,
        endpoint: Arc<Endpoint>,
        question: &Question<'_>,
        identity: Identity,
    ) -> Result<Answer, Error> {
        let Arrival { response, elsewhere } = arrival;
        if !elsewhere {
            self.note_rate_limit(&response);
        }
        let answer =
            |response| Ok(Answer { response, elsewhere, identity: identity.clone(), endpoint: endpoint.clone() });
        match response.status().as_u16() {
            200 | 206 => answer(response),
            405 | 501 if question.method == Method::HEAD => answer(response),
            400 | 403 if question.is_blob_head() && elsewhere => answer(response),
            // The first byte of an empty blob.
            416 if question.kind == Kind::BlobHead => answer(response),
            404 | 410 => Err(Error::NotFound),
            401 | 403 => Err(denied(response, &self.wire, &identity).await),
            408 => Err(Error::TimedOut { what: "request" }),
            429 => {
                let error = retry::rate_limited(response.headers());
                // Where blobs are kept is not the registry: its limits say nothing about manifests.
                if !elsewhere {
                    leave_alone(&endpoint, &error);
                    self.note_quiet(&error);
                }
                Err(error)
            }
            status @ 500.. => Err(Error::Unavailable { status }),
            status => Err(Error::protocol(format!("the registry answered {status}"))),
        }
    }

    fn note_rate_limit(&self, response: &Response) {
        let headers = response.headers();
        let Some(remaining) = retry::ratelimit(headers, "ratelimit-remaining") else {
            return;
        };
        let limit = retry::ratelimit(headers, "ratelimit-limit");
        let window_seconds = retry::window_seconds(headers, "ratelimit-limit")
            .or_else(|| retry::window_seconds(headers, "ratelimit-remaining"));
        let registry = self.wire.registry().as_str();
        tracing::debug!(registry, remaining, limit, "rate limit");
        self.wire.metrics().ratelimit_remaining(registry, remaining);
        if let Some(limit) = limit {
            self.wire.metrics().ratelimit_limit(registry, limit);
        }
        let said = RateLimit { limit, remaining, window_seconds, age_ms: 0 };
        *self.said_limit.lock().unwrap_or_else(PoisonError::into_inner) = Some((said, Instant::now()));
    }

    fn note_quiet(&self, error: &Error) {
        if let Error::RateLimited { retry_after } = error {
            let until = jiff::Timestamp::now().as_second()
                + retry_after.unwrap_or(retry::DEFAULT_QUIET).as_secs().cast_signed();
            self.wire.metrics().quiet_until(self.wire.registry().as_str(), until.unsigned_abs());
        }
    }

    /// What the registry last said of its rate limit.
    pub(super) fn rate_limit(&self) -> Option<RateLimit> {
        let said = self.said_limit.lock().unwrap_or_else(PoisonError::into_inner).clone();
        said.map(|(said, at)| RateLimit { age_ms: millis(at.elapsed()), ..said })
    }

    /// Questions on their way.
    pub(super) fn questions_in_flight(&self) -> usize {
        MAX_QUESTIONS.saturating_sub(self.turns.available_permits())
    }
}

/// After a rate limit, for as long as was asked for.
fn leave_alone(endpoint: &Endpoint, error: &Error) {
    if let Error::RateLimited { retry_after } = error {
        endpoint.leave_alone(retry_after.unwrap_or(retry::DEFAULT_QUIET));
    }
}

#[derive(Deserialize)]
struct ErrorBody {
    errors: Vec<ErrorItem>,
}

#[derive(Deserialize)]
struct ErrorItem {
    code: String,
}

/// Status and error code only: messages are free text of somebody else.
async fn denied(response: Response, wire: &Wire, identity: &Identity) -> Error {
    let status = response.status().as_u16();
    let body = wire.whole(response, MAX_ERROR_BODY_BYTES).await.unwrap_or_default();
    let code = serde_json::from_slice::<ErrorBody>(&body).ok().and_then(|body| body.errors.into_iter().next());
    let code = code
        .map(|item| item.code)
        .filter(|code| code.len() <= MAX_ERROR_CODE_CHARS && code.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'));
    let with_credentials = *identity != Identity::Anonymous;
    let who = if with_credentials { "the configured credentials" } else { "anonymous access" };
    let code = code.map(|code| format!(" {code}")).unwrap_or_default();
    Error::Denied { reason: format!("the registry refused {who} ({status}{code})"), with_credentials }
}
