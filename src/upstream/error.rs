//! What can go wrong between Forebay and a registry. No message holds a secret or a query string.

use std::error::Error as _;
use std::fmt::Write as _;
use std::time::Duration;

use crate::oci::Registry;

/// Longest reason taken over from a library.
const MAX_REASON_CHARS: usize = 300;

/// An exchange with a registry failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not among the configured registries.
    #[error("the registry is not configured")]
    UnknownRegistry,
    /// The registry is switched offline: nobody is asked.
    #[error("the registry is switched offline")]
    Offline,
    /// 404 or 410.
    #[error("the registry does not have it")]
    NotFound,
    /// 401 after an authenticated try, 403, or the token service refused.
    #[error("{reason}")]
    Denied {
        /// Who refused and how.
        reason: String,
        /// Whether the configured credentials were sent.
        with_credentials: bool,
    },
    /// 429, or a `Retry-After` that still runs.
    #[error("the registry limits the rate of requests")]
    RateLimited {
        /// How long it wants to be left alone, at most an hour.
        retry_after: Option<Duration>,
    },
    /// A 5xx answer.
    #[error("the registry answered {status}")]
    Unavailable {
        /// The status code.
        status: u16,
    },
    /// No answer: DNS, TCP, TLS, or a connection lost before the response head.
    #[error("the registry cannot be reached: {reason}")]
    Unreachable {
        /// The chain of causes.
        reason: String,
    },
    /// The program that knows the credentials did not give any.
    #[error("{reason}")]
    Helper {
        /// Which one and why, without what it wrote.
        reason: String,
    },
    /// Silence for longer than a time limit.
    #[error("the registry took too long ({what})")]
    TimedOut {
        /// What was waited for.
        what: &'static str,
    },
    /// The body broke off; the rest can be asked for.
    #[error("the transfer broke off after {after_bytes} bytes: {reason}")]
    Cut {
        /// How many bytes of this body had arrived.
        after_bytes: u64,
        /// The chain of causes.
        reason: String,
    },
    /// The answer breaks HTTP, the distribution specification or a limit of ours.
    #[error("{reason}")]
    Protocol {
        /// Which rule was broken.
        reason: String,
    },
}

impl Error {
    /// A later try or another endpoint may help. A rate limit is not transient: it has its own clock.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unavailable { .. } | Self::Unreachable { .. } | Self::TimedOut { .. } | Self::Cut { .. } => true,
            Self::UnknownRegistry
            | Self::Offline
            | Self::NotFound
            | Self::Denied { .. }
            | Self::RateLimited { .. }
            | Self::Helper { .. }
            | Self::Protocol { .. } => false,
        }
    }

    pub(super) fn protocol(reason: impl Into<String>) -> Self {
        Self::Protocol { reason: reason.into() }
    }

    /// A request that got no response head.
    pub(super) fn unanswered(error: reqwest::Error) -> Self {
        if error.is_timeout() {
            Self::TimedOut { what: "connection" }
        } else {
            Self::Unreachable { reason: reason(error) }
        }
    }

    /// A body that ended early.
    pub(super) fn cut(after_bytes: u64, error: reqwest::Error) -> Self {
        Self::Cut { after_bytes, reason: reason(error) }
    }
}

/// The chain of causes; the URL is taken out because a redirect's query is a signature.
fn reason(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let _ = write!(text, ": {inner}");
        cause = inner.source();
    }
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_REASON_CHARS).collect()
}

/// The options cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetupError {
    /// A registry without endpoints.
    #[error("registry `{registry}` has no endpoint")]
    NoEndpoint {
        /// Which one.
        registry: Registry,
    },
    /// The same registry twice.
    #[error("registry `{registry}` is configured twice")]
    Duplicate {
        /// Which one.
        registry: Registry,
    },
    /// Not a plain `http` or `https` base URL.
    #[error(
        "an endpoint of registry `{registry}` is not an http:// or https:// URL without user, password, query and fragment"
    )]
    BadEndpoint {
        /// Of which registry.
        registry: Registry,
    },
    /// The extra roots cannot be read.
    #[error("the CA certificates of registry `{registry}` cannot be used: {reason}")]
    BadCa {
        /// Of which registry.
        registry: Registry,
        /// Why.
        reason: String,
    },
    /// The certificate for TLS and its key cannot be used.
    #[error("the client certificate of registry `{registry}` cannot be used: {reason}")]
    BadClientCertificate {
        /// Of which registry.
        registry: Registry,
        /// Why.
        reason: String,
    },
    /// The proxy cannot be used.
    #[error("the proxy of registry `{registry}` cannot be used: {reason}")]
    BadProxy {
        /// Of which registry.
        registry: Registry,
        /// Why.
        reason: String,
    },
    /// It was not configured at start.
    #[error("registry `{registry}` was not configured at start")]
    UnknownRegistry {
        /// Which one.
        registry: Registry,
    },
    /// User name and password do not fit into a header.
    #[error("the credentials of registry `{registry}` cannot be used: a user name has no `:` and no control character")]
    BadCredentials {
        /// Of which registry.
        registry: Registry,
    },
    /// The HTTP client refused its settings: proxy variables, user agent.
    #[error("the HTTP client cannot be set up: {reason}")]
    Client {
        /// Why.
        reason: String,
    },
}

impl SetupError {
    pub(super) fn client(error: reqwest::Error) -> Self {
        Self::Client { reason: reason(error) }
    }

    pub(super) fn proxy(registry: &Registry, error: reqwest::Error) -> Self {
        Self::BadProxy { registry: registry.clone(), reason: reason(error) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn reasons_never_hold_the_query() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let url = "http://127.0.0.1:1/blob?X-Signature=topsecret";
        let error = reqwest::Client::new().get(url).send().await.unwrap_err();
        let printed = format!("{:?}", Error::unanswered(error));
        assert!(printed.contains("Unreachable") && !printed.contains("topsecret"), "{printed}");
    }

    #[test]
    fn what_is_transient() {
        assert!(Error::Unavailable { status: 503 }.is_transient());
        assert!(Error::TimedOut { what: "x" }.is_transient());
        assert!(!Error::NotFound.is_transient());
        assert!(!Error::RateLimited { retry_after: None }.is_transient());
    }
}
