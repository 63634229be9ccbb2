//! Answers to 401: which challenge, which token, which secret for whom. A new kind of authentication goes here.
//!
//! Promises: credentials leave only for an endpoint of the registry or for a realm that [`realm`] calls its own; what
//! is remembered of an endpoint and repository saves the 401 of the next request, and nothing else depends on it.
//! Must never know: redirects, retries, bodies.

mod bearer;
mod challenge;
mod helper;
mod login;
mod realm;

use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::RwLock;

use http::HeaderMap;
use http::HeaderValue;
use moka::sync::Cache;
use url::Url;

use self::bearer::TokenRequest;
use self::bearer::Tokens;
use self::challenge::Wanted;
use self::login::Account;
use self::login::Login;
use self::realm::Trust;
use super::Identity;
use super::error::Error;
use super::error::SetupError;
use super::options::Credentials;
use super::options::RegistryOptions;
use super::redirect;
use super::status::TokenStatus;
use super::wire::Wire;
use crate::oci::Registry;
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
    /// Who we said that we are.
    account: Option<Arc<Account>>,
}

impl Authorization {
    /// Who we said that we are may have changed: the helper that told us can be asked again.
    pub(super) fn is_renewable(&self) -> bool {
        self.account.as_ref().is_some_and(|account| account.is_kept)
    }
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
    registry: Registry,
    login: RwLock<Arc<Login>>,
    token_realms: Vec<String>,
    tokens: Tokens,
    /// By endpoint and repository. The token of a redirect's own challenge is not remembered here.
    remembered: Cache<(Url, RepositoryName), Answer>,
}

impl Auth {
    pub(super) fn new(options: &RegistryOptions) -> Result<Self, SetupError> {
        Ok(Self {
            registry: options.registry.clone(),
            login: RwLock::new(Arc::new(Login::new(&options.registry, options.credentials.as_ref())?)),
            token_realms: options.token_realms.clone(),
            tokens: Tokens::new(),
            remembered: Cache::new(MAX_REMEMBERED),
        })
    }

    /// Is somebody else from now on.
    pub(super) fn set_credentials(&self, credentials: Option<&Credentials>) -> Result<(), SetupError> {
        let login = Login::new(&self.registry, credentials)?;
        *self.login.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(login);
        self.remembered.invalidate_all();
        self.tokens.forget_all();
        Ok(())
    }

    fn login(&self) -> Arc<Login> {
        self.login.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Who we are where we are asked, as far as known.
    pub(super) fn identity(&self) -> Identity {
        self.login().identity()
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
        if let Some(account) = &refused.account {
            self.login().forget(account);
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
                let account = self.login().account().await?;
                if trust == Trust::Foreign && account.is_some() {
                    return Err(Error::protocol(format!(
                        "the registry sends its users to {} for tokens; the credentials go there only if token_realms names it",
                        redirect::origin_text(&realm)
                    )));
                }
                let identity = account.map_or(Identity::Anonymous, |account| account.identity.clone());
                Answer::Bearer(token_request(realm, service, scope, repository, identity))
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
        let request = token_request(realm, service, scope, repository, Identity::Anonymous);
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
        let (login, request) = match answer {
            Answer::Basic => {
                let account = self.login().account().await?.ok_or_else(|| Error::Denied {
                    reason: "the registry wants a user name and password, and none are configured".to_owned(),
                    with_credentials: false,
                })?;
                let (header, identity) = (account.basic()?, account.identity.clone());
                return Ok(Authorization {
                    header,
                    identity,
                    fresh: !account.is_kept,
                    token: None,
                    account: Some(account),
                });
            }
            Answer::Bearer(request) if request.identity == Identity::Anonymous => (None, request),
            Answer::Bearer(request) => (Some(self.login()), request),
        };
        let of_request = |account: &Arc<Account>| account.identity == request.identity;
        let another = || Error::Denied {
            reason: "the credentials are of somebody else by now".to_owned(),
            with_credentials: true,
        };
        let mut account = match &login {
            Some(login) => Some(login.account().await?.filter(of_request).ok_or_else(another)?),
            None => None,
        };
        let mut got = self.tokens.get(wire, request, account.as_ref()).await;
        if let (Err(Error::Denied { .. }), Some(login), Some(kept)) = (&got, &login, &account)
            && kept.is_kept
        {
            login.forget(kept);
            account = Some(login.account().await?.filter(of_request).ok_or_else(another)?);
            got = self.tokens.get(wire, request, account.as_ref()).await;
        }
        let (header, fresh) = got?;
        let identity = request.identity.clone();
        Ok(Authorization { header, identity, fresh, token: Some(request.clone()), account })
    }
}

fn token_request(
    realm: Url,
    service: Option<String>,
    scope: Option<String>,
    repository: &RepositoryName,
    identity: Identity,
) -> TokenRequest {
    let scope = scope.unwrap_or_else(|| format!("repository:{repository}:pull"));
    let mut scopes: Vec<String> = scope.split_ascii_whitespace().map(str::to_owned).collect();
    scopes.sort_unstable();
    TokenRequest { realm, service, scopes, identity }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_sorted_and_default_to_pull() {
        let realm: Url = "https://a.example".parse().unwrap();
        let name = "a/b".parse().unwrap();
        let request = token_request(
            realm.clone(),
            None,
            Some("repository:z:pull  repository:a:pull".into()),
            &name,
            Identity::Anonymous,
        );
        assert_eq!(request.scopes, ["repository:a:pull", "repository:z:pull"]);
        assert_eq!(token_request(realm, None, None, &name, Identity::Anonymous).scopes, ["repository:a/b:pull"]);
    }
}
