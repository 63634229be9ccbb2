//! Answers to 401: which challenge, which token, which secret for whom. A new kind of authentication goes here.
//!
//! Promises: credentials leave only for an endpoint of the registry or for a realm that [`realm`] calls its own; what
//! is remembered of an endpoint and repository saves the 401 of the next request, and nothing else depends on it.
//! Must never know: redirects, retries, bodies.

mod bearer;
mod challenge;
mod realm;

use http::HeaderMap;
use http::HeaderValue;
use moka::sync::Cache;
use url::Url;

use self::bearer::Account;
use self::bearer::TokenRequest;
use self::bearer::Tokens;
use self::challenge::Wanted;
use self::realm::Trust;
use super::Identity;
use super::error::Error;
use super::error::SetupError;
use super::options::RegistryOptions;
use super::redirect;
use super::status::TokenStatus;
use super::wire::Wire;
use crate::oci::RepositoryName;

/// Most (endpoint, repository) pairs whose challenge is remembered.
const MAX_REMEMBERED: u64 = 10_000;

/// A ready `Authorization` header and who it makes us.
#[derive(Clone)]
pub(super) struct Authorization {
    pub(super) header: HeaderValue,
    pub(super) identity: Identity,
    /// Made anew for this very request, so that another 401 is final.
    pub(super) fresh: bool,
    token: Option<TokenRequest>,
}

/// An anonymous token for the target of a redirect.
pub(super) struct Visitor {
    pub(super) header: HeaderValue,
    /// Made anew for this very request.
    pub(super) fresh: bool,
    request: TokenRequest,
}

#[derive(Clone)]
enum Answer {
    Basic,
    Bearer(TokenRequest),
}

/// The authentication state of one registry.
pub(super) struct Auth {
    account: Option<Account>,
    identity: Identity,
    token_realms: Vec<String>,
    tokens: Tokens,
    /// By endpoint and repository. The token of a redirect's own challenge is not remembered here.
    remembered: Cache<(Url, RepositoryName), Answer>,
}

impl Auth {
    pub(super) fn new(options: &RegistryOptions) -> Result<Self, SetupError> {
        let bad = || SetupError::BadCredentials { registry: options.registry.clone() };
        let mut account = None;
        let mut identity = Identity::Anonymous;
        if let Some(credentials) = &options.credentials {
            let username = credentials.username.clone();
            if username.contains(|c: char| c == ':' || c.is_control()) {
                return Err(bad());
            }
            identity = Identity::Account(format!("{username}@{}", options.registry).into());
            let basic = basic_header(&username, credentials.password.expose()).ok_or_else(bad)?;
            account = Some(Account { username, basic });
        }
        Ok(Self {
            account,
            identity,
            token_realms: options.token_realms.clone(),
            tokens: Tokens::new(),
            remembered: Cache::new(MAX_REMEMBERED),
        })
    }

    /// Who we are where we are asked.
    pub(super) fn identity(&self) -> &Identity {
        &self.identity
    }

    pub(super) fn token_status(&self) -> TokenStatus {
        self.tokens.status()
    }

    /// What worked for this endpoint and repository before. A refusal to renew it is no error: the endpoint will be asked
    /// without and says anew what it wants. A token service that cannot answer is one: it would be asked again at once.
    pub(super) async fn remembered(
        &self,
        wire: &Wire,
        endpoint: &Url,
        repository: &RepositoryName,
    ) -> Result<Option<Authorization>, Error> {
        let key = (endpoint.clone(), repository.clone());
        let Some(answer) = self.remembered.get(&key) else { return Ok(None) };
        match self.authorize(wire, &answer).await {
            // The challenge may have changed since, so that even a new token is not the last word.
            Ok(authorization) => Ok(Some(Authorization { fresh: false, ..authorization })),
            Err(error) if error.is_transient() || matches!(error, Error::RateLimited { .. }) => Err(error),
            Err(_) => {
                self.remembered.invalidate(&key);
                Ok(None)
            }
        }
    }

    /// Forgets what no longer works, the token included, but not what another request has put in its place.
    pub(super) fn forget(&self, endpoint: &Url, repository: &RepositoryName, refused: &Authorization) {
        self.remembered.invalidate(&(endpoint.clone(), repository.clone()));
        if let Some(request) = &refused.token {
            self.tokens.forget(request, &refused.header);
        }
    }

    /// Answers the 401 of an endpoint of the registry.
    pub(super) async fn answer(
        &self,
        wire: &Wire,
        endpoint: &Url,
        repository: &RepositoryName,
        headers: &HeaderMap,
    ) -> Result<Authorization, Error> {
        let answer = match challenge::wanted(headers) {
            Some(Wanted::Basic) => Answer::Basic,
            Some(Wanted::Bearer { realm, service, scope }) => {
                let (realm, trust) = self.realm(endpoint, &realm)?;
                if trust == Trust::Foreign && self.account.is_some() {
                    return Err(Error::protocol(format!(
                        "the registry sends its users to {} for tokens; the credentials go there only if token_realms names it",
                        redirect::origin_text(&realm)
                    )));
                }
                Answer::Bearer(token_request(realm, service, scope, repository, self.account.is_some()))
            }
            None => {
                let reason = "the registry answered 401 without a challenge that can be answered".to_owned();
                return Err(Error::Denied { reason, with_credentials: false });
            }
        };
        let authorization = self.authorize(wire, &answer).await?;
        self.remembered.insert((endpoint.clone(), repository.clone()), answer);
        Ok(authorization)
    }

    /// Answers the 401 of a redirect's target: anonymously or not at all.
    pub(super) async fn answer_stranger(
        &self,
        wire: &Wire,
        target: &Url,
        repository: &RepositoryName,
        headers: &HeaderMap,
    ) -> Result<Option<Visitor>, Error> {
        let Some(Wanted::Bearer { realm, service, scope }) = challenge::wanted(headers) else {
            return Ok(None);
        };
        let (realm, _) = self.realm(target, &realm)?;
        let request = token_request(realm, service, scope, repository, false);
        let (header, fresh) = self.tokens.get(wire, &request, None).await?;
        Ok(Some(Visitor { header, fresh, request }))
    }

    /// The target refused the token that it had asked for.
    pub(super) fn forget_visitor(&self, visitor: &Visitor) {
        self.tokens.forget(&visitor.request, &visitor.header);
    }

    fn realm(&self, asked: &Url, realm: &str) -> Result<(Url, Trust), Error> {
        let mut realm =
            asked.join(realm).map_err(|_| Error::protocol("the registry names a token realm that is no URL"))?;
        realm.set_fragment(None);
        let trust = realm::judge(asked, &realm, &self.token_realms).map_err(|why| {
            Error::protocol(format!("the token realm {} is refused: {why}", redirect::origin_text(&realm)))
        })?;
        Ok((realm, trust))
    }

    async fn authorize(&self, wire: &Wire, answer: &Answer) -> Result<Authorization, Error> {
        match answer {
            Answer::Basic => {
                let account = self.account.as_ref().ok_or_else(|| Error::Denied {
                    reason: "the registry wants a user name and password, and none are configured".to_owned(),
                    with_credentials: false,
                })?;
                let (header, identity) = (account.basic.clone(), self.identity.clone());
                Ok(Authorization { header, identity, fresh: true, token: None })
            }
            Answer::Bearer(request) => {
                let (header, fresh) = self.tokens.get(wire, request, self.account.as_ref()).await?;
                let identity = if request.with_credentials { self.identity.clone() } else { Identity::Anonymous };
                Ok(Authorization { header, identity, fresh, token: Some(request.clone()) })
            }
        }
    }
}

fn token_request(
    realm: Url,
    service: Option<String>,
    scope: Option<String>,
    repository: &RepositoryName,
    with_credentials: bool,
) -> TokenRequest {
    let scope = scope.unwrap_or_else(|| format!("repository:{repository}:pull"));
    let mut scopes: Vec<String> = scope.split_ascii_whitespace().map(str::to_owned).collect();
    scopes.sort_unstable();
    TokenRequest { realm, service, scopes, with_credentials }
}

/// RFC 7617.
fn basic_header(username: &str, password: &str) -> Option<HeaderValue> {
    let mut header =
        HeaderValue::try_from(format!("Basic {}", base64(format!("{username}:{password}").as_bytes()))).ok()?;
    header.set_sensitive(true);
    Some(header)
}

/// RFC 4648 section 4, with padding.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |at: usize| u32::from(group.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for at in 0..4 {
            let index = (bits >> (18 - 6 * at)) & 63;
            let digit = if at <= group.len() { ALPHABET[index as usize] } else { b'=' };
            text.push(char::from(digit));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_vectors() {
        for (plain, coded) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
        assert_eq!(base64(&[0xfb, 0xff, 0xfe]), "+//+");
    }

    #[test]
    fn headers_do_not_print() {
        let header = basic_header("me", "hunter2").unwrap();
        assert!(!format!("{header:?}").contains(&base64(b"me:hunter2")));
    }

    #[test]
    fn scopes_are_sorted_and_default_to_pull() {
        let realm: Url = "https://a.example".parse().unwrap();
        let name = "a/b".parse().unwrap();
        let request =
            token_request(realm.clone(), None, Some("repository:z:pull  repository:a:pull".into()), &name, false);
        assert_eq!(request.scopes, ["repository:a:pull", "repository:z:pull"]);
        assert_eq!(token_request(realm, None, None, &name, false).scopes, ["repository:a/b:pull"]);
    }
}
