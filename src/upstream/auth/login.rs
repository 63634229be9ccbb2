//! Who we are at a registry, and how that is proven.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;

use super::helper::Helper;
use crate::oci::Registry;
use crate::upstream::Credentials;
use crate::upstream::Identity;
use crate::upstream::Secret;
use crate::upstream::error::Error;
use crate::upstream::error::SetupError;

/// Where the account of a registry comes from.
#[derive(Debug)]
pub(super) enum Login {
    Nobody,
    Fixed(Arc<Account>),
    Helper(Helper),
}

/// A user of a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) username: String,
    pub(super) proof: Proof,
    pub(super) identity: Identity,
    /// A helper told us some time ago, and can be asked again.
    pub(super) is_kept: bool,
}

/// What an account is proven by. Never prints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Proof {
    /// A ready `Basic` header, marked sensitive.
    Password(HeaderValue),
    /// For a token service.
    RefreshToken(Secret),
}

impl Login {
    pub(super) fn new(registry: &Registry, credentials: Option<&Credentials>) -> Result<Self, SetupError> {
        let bad = || SetupError::BadCredentials { registry: registry.clone() };
        let fixed = |account: Option<Account>| account.map(|account| Self::Fixed(Arc::new(account))).ok_or_else(bad);
        match credentials {
            None => Ok(Self::Nobody),
            Some(Credentials::Password { username, password }) => {
                fixed(Account::by_password(registry, username, password))
            }
            Some(Credentials::IdentityToken { username, token }) => fixed(Account::by_token(registry, username, token)),
            Some(Credentials::Helper { program, server }) => {
                Ok(Self::Helper(Helper::new(registry.clone(), program.clone(), server.clone())))
            }
        }
    }

    /// `None`: anonymous. May have to ask a helper.
    pub(super) async fn account(&self) -> Result<Option<Arc<Account>>, Error> {
        match self {
            Self::Nobody => Ok(None),
            Self::Fixed(account) => Ok(Some(account.clone())),
            Self::Helper(helper) => helper.account().await,
        }
    }

    /// As far as known without asking.
    pub(super) fn identity(&self) -> Identity {
        let account = match self {
            Self::Nobody => None,
            Self::Fixed(account) => Some(account.clone()),
            Self::Helper(helper) => helper.kept(),
        };
        account.map_or(Identity::Anonymous, |account| account.identity.clone())
    }

    /// The registry refused it: a helper is asked again.
    pub(super) fn forget(&self, refused: &Account) {
        if let Self::Helper(helper) = self {
            helper.forget(refused);
        }
    }
}

impl Account {
    /// `None` when it does not fit into a header.
    pub(super) fn by_password(registry: &Registry, username: &str, password: &Secret) -> Option<Self> {
        let proof = Proof::Password(basic_header(username, password.expose())?);
        Some(Self::new(registry, username, proof))
    }

    /// `None` when the user name cannot be one.
    pub(super) fn by_token(registry: &Registry, username: &str, token: &Secret) -> Option<Self> {
        let is_sane = !username.contains(|c: char| c == ':' || c.is_control());
        is_sane.then(|| Self::new(registry, username, Proof::RefreshToken(token.clone())))
    }

    fn new(registry: &Registry, username: &str, proof: Proof) -> Self {
        let name = if username.is_empty() { "<token>" } else { username };
        let identity = Identity::Account(format!("{name}@{registry}").into());
        Self { username: username.to_owned(), proof, identity, is_kept: false }
    }

    /// The header for a registry that asks for Basic.
    pub(super) fn basic(&self) -> Result<HeaderValue, Error> {
        match &self.proof {
            Proof::Password(header) => Ok(header.clone()),
            Proof::RefreshToken(_) => Err(Error::Denied {
                reason: "the registry wants a password, and the configured credentials are a token".to_owned(),
                with_credentials: false,
            }),
        }
    }
}

/// RFC 7617.
fn basic_header(username: &str, password: &str) -> Option<HeaderValue> {
    if username.contains(|c: char| c == ':' || c.is_control()) {
        return None;
    }
    let coded = STANDARD.encode(format!("{username}:{password}"));
    let mut header = HeaderValue::try_from(format!("Basic {coded}")).ok()?;
    header.set_sensitive(true);
    Some(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_do_not_print() {
        let registry: Registry = "r.example".parse().unwrap();
        let secret = Secret::from("hunter2".to_owned());
        let password = Account::by_password(&registry, "me", &secret).unwrap();
        let token = Account::by_token(&registry, "", &secret).unwrap();
        let printed = format!("{password:?} {token:?} {:?}", password.basic());
        assert!(!printed.contains("hunter2") && !printed.contains(&STANDARD.encode("me:hunter2")), "{printed}");
        assert_eq!(password.basic().unwrap(), "Basic bWU6aHVudGVyMg==");
        assert_eq!(token.identity, Identity::Account("<token>@r.example".into()));
        for name in ["a:b", "a\nb"] {
            assert!(Account::by_password(&registry, name, &secret).is_none());
            assert!(Account::by_token(&registry, name, &secret).is_none());
        }
    }
}
