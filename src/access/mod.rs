//! Who asks, and what they may read.
//!
//! What it is for: telling the clients of the registry port apart by what they show (a password, a token, a certificate that
//! TLS has verified), and deciding by rules which repositories each may read.
//!
//! A request comes with a certificate or without, and with the value of one `Authorization` header or without. The header
//! counts where there is one, and is wrong or right; else the certificate's name; else the client is `anonymous`, where that
//! is allowed. A password that was right or wrong before is so at once; else it waits for its turn with bcrypt, which runs
//! beside the asynchronous threads, a few at a time. The client that comes out of this is asked once more when the
//! repository is known: without rules it may read everything, with rules what one of them allows.
//!
//! What it promises: a wrong password takes the same time for every name; guesses cost no more than a part of the
//! processors, and neither slow down nor push out those who are known already; tokens are compared in constant time; all of
//! one request is judged by the same users and rules, also while they are exchanged; nothing that proves a client is
//! printed.
//!
//! What it must never know: HTTP, sockets, files, status codes, content.

mod certificate;
mod credentials;
mod line;
mod name;
mod passwords;
mod rules;
#[cfg(test)]
mod tests;
mod tokens;

use std::fmt;
use std::sync::Arc;
use std::thread::available_parallelism;

use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

pub use self::certificate::Certificate;
pub use self::line::BadLine;
pub use self::name::ClientPattern;
pub use self::name::InvalidClientName;
pub use self::name::InvalidClientPattern;
pub use self::rules::Rule;

use self::credentials::Credentials;
use self::credentials::Malformed;
use self::name::ANONYMOUS;
use self::name::ClientName;
use self::passwords::Known;
use self::passwords::Passwords;
use self::tokens::Tokens;
use crate::oci::Repository;

/// Most passwords that are checked at once; on small machines half of the processors.
const MAX_CHECKS: usize = 8;
/// Most passwords that wait for that.
const MAX_WAITING_CHECKS: usize = 128;

/// Who may ask. What is `None` nobody can show.
#[derive(Clone, Default)]
pub struct Options {
    /// Lines of `name:bcrypt`.
    pub htpasswd: Option<Vec<u8>>,
    /// Lines of `name:hex of the token's SHA-256`.
    pub tokens: Option<Vec<u8>>,
    /// Clients that show nothing may ask.
    pub anonymous: bool,
    /// What clients may read: everything, where there is none.
    pub rules: Vec<Rule>,
}

/// Shows nothing: what proves clients is in it.
impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Options")
    }
}

/// The clients cannot be told apart by these files.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidOptions {
    /// The passwords.
    #[error("{0}")]
    Htpasswd(BadLine),
    /// The tokens.
    #[error("{0}")]
    Tokens(BadLine),
    /// The system gives no random key.
    #[error("the system has no randomness: {0}")]
    Randomness(String),
}

/// The clients of a configuration, and their rules.
pub struct Clients {
    passwords: Option<Passwords>,
    tokens: Option<Tokens>,
    anonymous: bool,
    rules: Vec<Rule>,
}

/// Shows nothing: what proves clients is in it.
impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clients")
    }
}

/// The turns of passwords that are checked. Outlives the clients that are checked.
#[derive(Debug)]
pub struct Checks {
    running: Arc<Semaphore>,
    places: Arc<Semaphore>,
}

/// A request that is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It shows nothing; a password or a token would help.
    Missing,
    /// It shows what cannot be read.
    Malformed,
    /// The name, the password or the token is wrong.
    Wrong,
    /// Too many passwords wait to be checked.
    Busy,
    /// Its certificate names nobody, and nothing else is asked for.
    Nameless,
    /// The client is known, and no rule lets it read this.
    Denied,
}

impl Refusal {
    /// The same as one word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Malformed => "malformed",
            Self::Wrong => "wrong",
            Self::Busy => "busy",
            Self::Nameless => "nameless",
            Self::Denied => "denied",
        }
    }
}

/// A client that is known, or anonymous where that is allowed.
#[derive(Clone, Debug)]
pub struct Client {
    /// `None` is anonymous.
    name: Option<ClientName>,
    clients: Arc<Clients>,
}

impl Checks {
    /// As many as this machine should do at once.
    pub fn new() -> Self {
        let processors = available_parallelism().map_or(1, usize::from);
        let at_once = (processors / 2).clamp(1, MAX_CHECKS);
        Self {
            running: Arc::new(Semaphore::new(at_once)),
            places: Arc::new(Semaphore::new(at_once + MAX_WAITING_CHECKS)),
        }
    }
}

impl Default for Checks {
    fn default() -> Self {
        Self::new()
    }
}

impl Clients {
    /// Reads the files' content.
    pub fn new(options: Options) -> Result<Self, InvalidOptions> {
        let mut key = [0; 32];
        getrandom::fill(&mut key).map_err(|error| InvalidOptions::Randomness(error.to_string()))?;
        let Options { htpasswd, tokens, anonymous, rules } = options;
        let passwords = htpasswd.map(|text| Passwords::parse(&text, key)).transpose();
        let tokens = tokens.map(|text| Tokens::parse(&text)).transpose();
        Ok(Self {
            passwords: passwords.map_err(InvalidOptions::Htpasswd)?,
            tokens: tokens.map_err(InvalidOptions::Tokens)?,
            anonymous,
            rules,
        })
    }

    /// Takes over what is known of those whose lines have not changed: they need no new check.
    pub fn inherit(mut self, before: &Self) -> Self {
        self.passwords = match (self.passwords, &before.passwords) {
            (Some(passwords), Some(before)) => Some(passwords.inherit(before)),
            (passwords, _) => passwords,
        };
        self
    }

    /// Finds out who asks, by its certificate and the value of its `Authorization` header. A header that nothing here could
    /// check is not looked at.
    pub async fn identify(
        self: &Arc<Self>,
        checks: &Checks,
        certificate: Option<&Certificate>,
        authorization: Option<&[u8]>,
    ) -> Result<Client, Refusal> {
        let shown = match authorization.filter(|_| self.can_log_in()) {
            Some(value) => Credentials::parse(value).map_err(|Malformed| Refusal::Malformed)?,
            None => None,
        };
        let name = match shown {
            Some(Credentials::Bearer(token)) => self.tokens.as_ref().and_then(|tokens| tokens.find(&token)).cloned(),
            Some(Credentials::Basic { name, password }) => self.log_in(checks, name, password).await?,
            None => return self.unasked(certificate),
        };
        Ok(Client { name: Some(name.ok_or(Refusal::Wrong)?), clients: self.clone() })
    }

    /// Who it is that sends no credentials.
    fn unasked(self: &Arc<Self>, certificate: Option<&Certificate>) -> Result<Client, Refusal> {
        let name = certificate.and_then(Certificate::name);
        if name.is_some() || self.anonymous {
            return Ok(Client { name: name.cloned(), clients: self.clone() });
        }
        Err(if self.can_log_in() { Refusal::Missing } else { Refusal::Nameless })
    }

    /// Whether there is anything that a header could prove.
    fn can_log_in(&self) -> bool {
        self.passwords.is_some() || self.tokens.is_some()
    }

    /// The client, when the password is its own, or a token of its own: most engines can send nothing else. A token is told at once.
    async fn log_in(
        self: &Arc<Self>,
        checks: &Checks,
        name: String,
        password: Vec<u8>,
    ) -> Result<Option<ClientName>, Refusal> {
        let Ok(client) = name.parse::<ClientName>() else { return Ok(None) };
        if self.tokens.as_ref().and_then(|tokens| tokens.find(&password)) == Some(&client) {
            return Ok(Some(client));
        }
        let Some(passwords) = &self.passwords else { return Ok(None) };
        let is_right = match passwords.recall(&name, &password) {
            Known::Right => true,
            Known::Wrong => false,
            Known::Not => self.check(checks, name, password).await?,
        };
        Ok(is_right.then_some(client))
    }

    /// Waits for its turn, and looks once more: an engine that begins sends the same password many times at once.
    async fn check(self: &Arc<Self>, checks: &Checks, name: String, password: Vec<u8>) -> Result<bool, Refusal> {
        let _place = checks.places.try_acquire().map_err(|_| Refusal::Busy)?;
        let turn = checks.running.clone().acquire_owned().await.map_err(|_| Refusal::Busy)?;
        let Some(passwords) = &self.passwords else { return Ok(false) };
        match passwords.recall(&name, &password) {
            Known::Right => return Ok(true),
            Known::Wrong => return Ok(false),
            Known::Not => {}
        }
        let clients = self.clone();
        // What is begun is finished and remembered, also when nobody waits for it any more.
        let checked = spawn_blocking(move || {
            let _turn = turn;
            clients.passwords.as_ref().is_some_and(|passwords| passwords.check(&name, &password))
        });
        Ok(checked.await.unwrap_or(false))
    }
}

impl Client {
    /// The name, or `anonymous`; safe in a log line.
    pub fn name(&self) -> Arc<str> {
        self.name.as_ref().map_or_else(|| ANONYMOUS.into(), ClientName::shared)
    }

    /// Lets the client read the repository, or says why not.
    pub fn may_read(&self, repository: &Repository) -> Result<(), Refusal> {
        let rules = &self.clients.rules;
        if rules.is_empty() || rules.iter().any(|rule| rule.allows(self.name.as_ref(), repository)) {
            return Ok(());
        }
        Err(if self.could_log_in() { Refusal::Missing } else { Refusal::Denied })
    }

    /// Whether it is anonymous, and might read more if it were not.
    pub fn could_log_in(&self) -> bool {
        self.name.is_none() && self.clients.can_log_in()
    }
}
