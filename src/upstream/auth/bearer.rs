//! Tokens: one request for all who wait, kept until shortly before they expire (distribution-spec token flow).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use futures_util::future::WeakShared;
use http::HeaderValue;
use http::StatusCode;
use http::header::ACCEPT;
use http::header::ACCEPT_ENCODING;
use http::header::AUTHORIZATION;
use http::header::CONTENT_TYPE;
use moka::ops::compute::Op;
use moka::sync::Cache;
use serde::Deserialize;
use url::Url;
use url::form_urlencoded::Serializer;

use super::login::Account;
use super::login::Proof;
use crate::upstream::Identity;
use crate::upstream::Secret;
use crate::upstream::error::Error;
use crate::upstream::redirect;
use crate::upstream::retry;
use crate::upstream::status::TokenStatus;
use crate::upstream::status::millis;
use crate::upstream::wire::Wire;

/// Most tokens kept of one registry; one repository needs one.
const MAX_TOKENS: u64 = 10_000;
const MAX_TOKEN_REPLY_BYTES: usize = 256 * 1024;
/// What the token specification says when `expires_in` is missing.
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
const LONGEST_LIFE: Duration = Duration::from_secs(24 * 3600);
/// Our name at token services.
const CLIENT_ID: &str = "forebay";
/// The share of its life after which a token is renewed.
const RENEW_AT: f64 = 0.9;

/// Everything a token depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct TokenRequest {
    pub(super) realm: Url,
    pub(super) service: Option<String>,
    /// Sorted.
    pub(super) scopes: Vec<String>,
    /// Whose token it is.
    pub(super) identity: Identity,
}

impl TokenRequest {
    fn url(&self, account: Option<&str>) -> Url {
        let mut url = self.realm.clone();
        let mut query = url.query_pairs_mut();
        if let Some(service) = &self.service {
            query.append_pair("service", service);
        }
        for scope in &self.scopes {
            query.append_pair("scope", scope);
        }
        if let Some(account) = account {
            query.append_pair("account", account);
        }
        drop(query);
        url
    }

    /// The body of the OAuth2 flow (distribution-spec token flow, `POST`): one scope field for all.
    fn form(&self, refresh_token: &Secret) -> String {
        let mut form = Serializer::new(String::new());
        form.append_pair("grant_type", "refresh_token").append_pair("refresh_token", refresh_token.expose());
        form.append_pair("client_id", CLIENT_ID).append_pair("scope", &self.scopes.join(" "));
        if let Some(service) = &self.service {
            form.append_pair("service", service);
        }
        form.finish()
    }
}

#[derive(Clone)]
struct Token {
    /// `Bearer …`, marked sensitive.
    header: HeaderValue,
    got_at: Instant,
    renew_at: Instant,
}

type Fetch = BoxFuture<'static, Result<Token, Error>>;

/// The tokens of one registry. Cheap to clone.
#[derive(Clone)]
pub(super) struct Tokens {
    kept: Cache<TokenRequest, Token>,
    /// Weak, so that a fetch that nobody waits for any more is not resumed long after its time limits.
    flights: Arc<Mutex<HashMap<TokenRequest, WeakShared<Fetch>>>>,
}

impl Tokens {
    pub(super) fn new() -> Self {
        Self { kept: Cache::new(MAX_TOKENS), flights: Arc::default() }
    }

    /// Drops the token that was refused, and no newer one.
    pub(super) fn forget(&self, request: &TokenRequest, refused: &HeaderValue) {
        self.kept.entry_by_ref(request).and_compute_with(|kept| match kept {
            Some(kept) if kept.value().header == *refused => Op::Remove,
            _ => Op::Nop,
        });
    }

    pub(super) fn forget_all(&self) {
        self.kept.invalidate_all();
        self.flights.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// What is kept, for people.
    pub(super) fn status(&self) -> TokenStatus {
        let (mut count, now) = (0, Instant::now());
        let (mut oldest, mut next) = (None, None);
        for (_, token) in &self.kept {
            count += 1;
            oldest = oldest.max(Some(now.saturating_duration_since(token.got_at)));
            let renewed_in = token.renew_at.saturating_duration_since(now);
            next = Some(next.map_or(renewed_in, |next: Duration| next.min(renewed_in)));
        }
        TokenStatus { count, oldest_age_ms: oldest.map(millis), renewed_in_ms: next.map(millis) }
    }

    /// A token for `request`, and whether it is new: kept, or asked for once for all who wait. `account` is ignored for
    /// an anonymous request.
    pub(super) async fn get(
        &self,
        wire: &Wire,
        request: &TokenRequest,
        account: Option<&Arc<Account>>,
    ) -> Result<(HeaderValue, bool), Error> {
        if let Some(token) = self.kept.get(request)
            && Instant::now() < token.renew_at
        {
            return Ok((token.header, false));
        }
        let flight = {
            let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
            match flights.get(request).and_then(WeakShared::upgrade) {
                Some(flight) => flight,
                None => {
                    let account = account.filter(|_| request.identity != Identity::Anonymous).cloned();
                    let (kept, wire, request) = (self.kept.clone(), wire.clone(), request.clone());
                    let key = request.clone();
                    let fetch = async move {
                        let token = fetch(&wire, &request, account.as_deref()).await?;
                        kept.insert(request, token.clone());
                        Ok(token)
                    };
                    let flight = fetch.boxed().shared();
                    flights.retain(|_, flight| flight.upgrade().is_some());
                    flights.extend(flight.downgrade().map(|weak| (key, weak)));
                    flight
                }
            }
        };
        flight.await.map(|token| (token.header, true))
    }
}

#[derive(Deserialize)]
struct Reply {
    token: Option<String>,
    access_token: Option<String>,
    /// Some services send it as a fraction.
    expires_in: Option<f64>,
}

async fn fetch(wire: &Wire, request: &TokenRequest, account: Option<&Account>) -> Result<Token, Error> {
    let origin = redirect::origin_text(&request.realm);
    tracing::debug!(registry = %wire.registry(), realm = origin, anonymous = account.is_none(), "asking for a token");
    let asking = match account.map(|account| (account, &account.proof)) {
        None => wire.meta().get(request.url(None)),
        Some((account, Proof::Password(basic))) => {
            wire.meta().get(request.url(Some(&account.username))).header(AUTHORIZATION, basic.clone())
        }
        Some((_, Proof::RefreshToken(token))) => {
            let form = HeaderValue::from_static("application/x-www-form-urlencoded");
            wire.meta().post(request.realm.clone()).header(CONTENT_TYPE, form).body(request.form(token))
        }
    };
    let asked_at = Instant::now();
    let asking = asking.header(ACCEPT, "application/json").header(ACCEPT_ENCODING, "identity");
    let response = wire.exchange(asking).await?;
    let status = response.status();
    if status != StatusCode::OK {
        return Err(refused(status, response.headers(), &origin, account.is_some()));
    }
    let body = wire.whole(response, MAX_TOKEN_REPLY_BYTES).await?;
    let wrong = |why: &str| Error::protocol(format!("the token service {origin} {why}"));
    // The parse error is left out: it could quote the reply.
    let reply: Reply = serde_json::from_slice(&body).map_err(|_| wrong("sent no JSON"))?;
    let token = reply.access_token.or(reply.token).filter(|token| !token.is_empty());
    let token = token.ok_or_else(|| wrong("sent no token"))?;
    let mut header = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| wrong("sent an unusable token"))?;
    header.set_sensitive(true);
    let life = reply
        .expires_in
        .filter(|seconds| *seconds > 0.0)
        .map_or(DEFAULT_LIFE, |seconds| Duration::try_from_secs_f64(seconds).unwrap_or(LONGEST_LIFE).min(LONGEST_LIFE));
    Ok(Token { header, got_at: asked_at, renew_at: asked_at + life.mul_f64(RENEW_AT) })
}

fn refused(status: StatusCode, headers: &http::HeaderMap, origin: &str, with_credentials: bool) -> Error {
    match status.as_u16() {
        429 => retry::rate_limited(headers),
        code @ 500.. => Error::Unavailable { status: code },
        300..400 => Error::protocol(format!("the token service {origin} redirects, which is not followed")),
        code => Error::Denied {
            reason: match with_credentials {
                true => format!("the token service {origin} refused the configured credentials ({code})"),
                false => format!("the token service {origin} gives no anonymous token ({code})"),
            },
            with_credentials,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_refused_token_is_forgotten() {
        let request = TokenRequest {
            realm: "https://a.example/token".parse().unwrap(),
            service: None,
            scopes: Vec::new(),
            identity: Identity::Anonymous,
        };
        let tokens = Tokens::new();
        let (old, new) = (HeaderValue::from_static("Bearer old"), HeaderValue::from_static("Bearer new"));
        tokens
            .kept
            .insert(request.clone(), Token { header: new.clone(), got_at: Instant::now(), renew_at: Instant::now() });
        tokens.forget(&request, &old);
        assert!(tokens.kept.contains_key(&request));
        tokens.forget(&request, &new);
        assert!(!tokens.kept.contains_key(&request));
    }

    #[test]
    fn the_request_keeps_the_query_of_the_realm() {
        let request = TokenRequest {
            realm: "https://a.example/token?x=1".parse().unwrap(),
            service: Some("reg istry".to_owned()),
            scopes: vec!["repository:a/b:pull".to_owned(), "repository:c:pull".to_owned()],
            identity: Identity::Anonymous,
        };
        assert_eq!(
            request.form(&Secret::from("r&t".to_owned())),
            "grant_type=refresh_token&refresh_token=r%26t&client_id=forebay\
             &scope=repository%3Aa%2Fb%3Apull+repository%3Ac%3Apull&service=reg+istry"
        );
        let url = request.url(Some("me"));
        assert_eq!(
            url.query(),
            Some("x=1&service=reg+istry&scope=repository%3Aa%2Fb%3Apull&scope=repository%3Ac%3Apull&account=me")
        );
    }
}
