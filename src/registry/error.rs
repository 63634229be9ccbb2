//! Everything that can go wrong, as status, registry error code and a message that says what to do. Nothing else
//! chooses the status of a failed request.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;

use super::query::BadQuery;
use super::route::Rejection;
use super::target::NoTarget;
use crate::access::Refusal;
use crate::oci::{InvalidName, Repository};
use crate::pull::Error;

/// Sent with a 429 whose registry did not say how long.
const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(60);
/// Sent to a client whose password could not be checked for all the others.
const RETRY_AFTER_CHECKS: Duration = Duration::from_secs(5);
/// Longest text of another party that is repeated in a message.
const MAX_REASON_CHARS: usize = 300;

/// A refused or failed request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) status: StatusCode,
    /// An error code of the distribution specification or of its reference implementation.
    pub(super) code: &'static str,
    pub(super) message: String,
    pub(super) retry_after: Option<Duration>,
    /// A body may follow that nobody will read.
    pub(super) close: bool,
    /// The client should say who it is.
    pub(super) challenge: bool,
    /// How its lookup came out, where there was one.
    pub(super) lookup: Lookup,
    /// Why, in one word, where the layers below said no.
    pub(super) detail: Option<&'static str>,
}

/// Who said no.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lookup {
    /// Nothing was looked up.
    None,
    /// The upstream, just now.
    Upstream,
    /// The upstream, a short while ago.
    Remembered,
}

impl Failure {
    fn local(status: StatusCode, code: &'static str, message: String) -> Self {
        let (close, challenge) = (false, false);
        Self { status, code, message, retry_after: None, close, challenge, lookup: Lookup::None, detail: None }
    }

    /// The request's own form could be read in two ways by two parties.
    pub(super) fn ambiguous(message: &'static str) -> Self {
        Self { close: true, ..Self::local(StatusCode::BAD_REQUEST, "UNSUPPORTED", message.to_owned()) }
    }

    /// No part of the content was asked for.
    pub(super) fn unsatisfiable_range(size_bytes: u64) -> Self {
        let message = format!("the content has {size_bytes} bytes; none of them is in the range");
        Self::local(StatusCode::RANGE_NOT_SATISFIABLE, "RANGE_INVALID", message)
    }

    /// The answer of the layers below to a request for this repository.
    pub(super) fn pulling(error: &Error, repository: &Repository) -> Self {
        use StatusCode as S;
        let registry = &repository.registry;
        let (status, code, message) = match error {
            Error::UnknownRegistry => {
                (S::NOT_FOUND, "NAME_UNKNOWN", format!("{registry} is not a registry of this cache"))
            }
            Error::ManifestUnknown { .. } => (
                S::NOT_FOUND,
                "MANIFEST_UNKNOWN",
                format!("{repository} has no such manifest; check the tag or digest"),
            ),
            Error::BlobUnknown => (S::NOT_FOUND, "BLOB_UNKNOWN", format!("{repository} has no such blob")),
            Error::NameUnknown => (S::NOT_FOUND, "NAME_UNKNOWN", format!("{registry} has no such repository")),
            Error::ReferrersUnsupported => {
                (S::NOT_FOUND, "UNSUPPORTED", format!("{registry} has no referrers API; use the tag schema"))
            }
            Error::Denied { reason, with_credentials: true } => {
                let advice = "check the configured username and password of this registry and their rights";
                let message = format!(
                    "{registry} refused the configured credentials for {repository}; {advice}: {}",
                    clip(reason)
                );
                (S::FORBIDDEN, "DENIED", message)
            }
            Error::Denied { reason, with_credentials: false } => {
                let advice = "it may not exist, or be private: then configure credentials for this registry";
                (S::FORBIDDEN, "DENIED", format!("{registry} denied {repository}; {advice}: {}", clip(reason)))
            }
            Error::NotAllowed => {
                (S::FORBIDDEN, "DENIED", format!("{repository} is not among the repositories that this cache may pull"))
            }
            Error::Offline => {
                let advice = "it is asked again when that is switched off";
                let message = format!("{registry} is switched offline in this cache, and this is not stored; {advice}");
                (S::SERVICE_UNAVAILABLE, "UNAVAILABLE", message)
            }
            Error::RateLimited { .. } => {
                let advice = "wait, or configure credentials for it to get a higher limit";
                (S::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", format!("{registry} limits the rate of requests; {advice}"))
            }
            Error::UpstreamUnavailable { status } => {
                (S::BAD_GATEWAY, "UNAVAILABLE", format!("{registry} answered {status}; try again later"))
            }
            Error::UpstreamUnreachable { reason } => {
                let advice = "check the network, the proxy settings and the endpoints of this registry";
                (S::BAD_GATEWAY, "UNAVAILABLE", format!("{registry} cannot be reached; {advice}: {}", clip(reason)))
            }
            Error::UpstreamTimedOut { what } => (
                S::GATEWAY_TIMEOUT,
                "UNAVAILABLE",
                format!("{registry} did not answer in time ({what}); try again later"),
            ),
            Error::UpstreamWrong { reason } => {
                (S::BAD_GATEWAY, "UNAVAILABLE", format!("{registry} sent what cannot be served: {}", clip(reason)))
            }
            Error::Internal { reason } => {
                let advice = "see the log of the proxy";
                (S::INTERNAL_SERVER_ERROR, "UNKNOWN", format!("the proxy failed; {advice}: {}", clip(reason)))
            }
        };
        let lookup = match error {
            Error::ManifestUnknown { is_remembered: true } => Lookup::Remembered,
            Error::NotAllowed | Error::Offline => Lookup::None,
            _ => Lookup::Upstream,
        };
        let detail = Some(error.detail());
        Self { retry_after: retry_after(error), lookup, detail, ..Self::local(status, code, message) }
    }

    /// The body of the distribution specification, "Error codes".
    pub(super) fn body(&self) -> Bytes {
        let error = serde_json::json!({ "code": self.code, "message": self.message });
        serde_json::json!({ "errors": [error] }).to_string().into()
    }
}

fn retry_after(error: &Error) -> Option<Duration> {
    match error {
        Error::RateLimited { retry_after } => Some(retry_after.unwrap_or(DEFAULT_RETRY_AFTER)),
        _ => None,
    }
}

fn clip(reason: &str) -> &str {
    reason.char_indices().nth(MAX_REASON_CHARS).map_or(reason, |(end, _)| &reason[..end])
}

impl From<Rejection> for Failure {
    fn from(rejection: Rejection) -> Self {
        let (status, code) = match rejection {
            Rejection::NotFound | Rejection::Catalog => (StatusCode::NOT_FOUND, "UNSUPPORTED"),
            Rejection::Method => (StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED"),
            Rejection::Path | Rejection::Name(InvalidName::Registry | InvalidName::Repository) => {
                (StatusCode::BAD_REQUEST, "NAME_INVALID")
            }
            Rejection::Tag(_) => (StatusCode::BAD_REQUEST, "TAG_INVALID"),
            Rejection::Digest(_) => (StatusCode::BAD_REQUEST, "DIGEST_INVALID"),
        };
        Self { close: rejection == Rejection::Method, ..Self::local(status, code, rejection.to_string()) }
    }
}

impl From<BadQuery> for Failure {
    fn from(bad: BadQuery) -> Self {
        let code = match bad {
            BadQuery::Namespace | BadQuery::RepeatedNamespace | BadQuery::TooLong => "NAME_INVALID",
            BadQuery::Number => "PAGINATION_NUMBER_INVALID",
            BadQuery::Last(_) => "TAG_INVALID",
        };
        Self::local(StatusCode::BAD_REQUEST, code, bad.to_string())
    }
}

impl From<NoTarget> for Failure {
    fn from(none: NoTarget) -> Self {
        match none {
            NoTarget::Unknown { .. } | NoTarget::Unnamed { .. } => {
                Self::local(StatusCode::NOT_FOUND, "NAME_UNKNOWN", none.to_string())
            }
        }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        use StatusCode as S;
        let (status, code, message) = match refusal {
            Refusal::Missing => {
                (S::UNAUTHORIZED, "UNAUTHORIZED", "this cache asks for a login: send a name with a password or token")
            }
            Refusal::Malformed => (
                S::UNAUTHORIZED,
                "UNAUTHORIZED",
                "`Authorization` cannot be read: send `Basic` with a name and a password or token, or `Bearer` with a token",
            ),
            Refusal::Wrong => (S::UNAUTHORIZED, "UNAUTHORIZED", "the name, the password or the token is wrong"),
            Refusal::Busy => {
                (S::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", "too many passwords wait to be checked; try again")
            }
            Refusal::Nameless => {
                (S::FORBIDDEN, "DENIED", "the client's certificate has no name that could be used here")
            }
            Refusal::Denied => (S::FORBIDDEN, "DENIED", "no rule of this cache lets this client read this repository"),
        };
        Self {
            retry_after: (refusal == Refusal::Busy).then_some(RETRY_AFTER_CHECKS),
            challenge: status == S::UNAUTHORIZED,
            detail: Some(refusal.as_str()),
            ..Self::local(status, code, message.to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{InvalidDigest, InvalidTag};

    fn text(words: &str) -> String {
        words.to_owned()
    }

    #[test]
    fn errors_of_the_layers_below() {
        let repository = Repository { registry: "docker.io".parse().unwrap(), name: "library/alpine".parse().unwrap() };
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        for (error, status, code, retry_after) in [
            (Error::UnknownRegistry, 404, "NAME_UNKNOWN", None),
            (Error::ManifestUnknown { is_remembered: false }, 404, "MANIFEST_UNKNOWN", None),
            (Error::BlobUnknown, 404, "BLOB_UNKNOWN", None),
            (Error::NameUnknown, 404, "NAME_UNKNOWN", None),
            (Error::ReferrersUnsupported, 404, "UNSUPPORTED", None),
            (Error::Denied { reason: text("no"), with_credentials: false }, 403, "DENIED", None),
            (Error::Denied { reason: text("no"), with_credentials: true }, 403, "DENIED", None),
            (Error::NotAllowed, 403, "DENIED", None),
            (Error::Offline, 503, "UNAVAILABLE", None),
            (Error::RateLimited { retry_after: seconds(7) }, 429, "TOOMANYREQUESTS", seconds(7)),
            (Error::RateLimited { retry_after: None }, 429, "TOOMANYREQUESTS", Some(DEFAULT_RETRY_AFTER)),
            (Error::UpstreamUnavailable { status: 503 }, 502, "UNAVAILABLE", None),
            (Error::UpstreamUnreachable { reason: text("refused") }, 502, "UNAVAILABLE", None),
            (Error::UpstreamTimedOut { what: "headers" }, 504, "UNAVAILABLE", None),
            (Error::UpstreamWrong { reason: text("wrong digest") }, 502, "UNAVAILABLE", None),
            (Error::Internal { reason: text("disk") }, 500, "UNKNOWN", None),
        ] {
            let failure = Failure::pulling(&error, &repository);
            assert_eq!((failure.status.as_u16(), failure.code), (status, code), "{failure:?}");
            assert_eq!(failure.retry_after, retry_after, "{failure:?}");
            assert!(failure.message.contains("docker.io") || status >= 500, "{failure:?}");
        }
        let refused = Error::Denied { reason: text("no"), with_credentials: true };
        assert!(Failure::pulling(&refused, &repository).message.contains("configured credentials"));
    }

    #[test]
    fn errors_of_the_request() {
        for (failure, status, code) in [
            (Failure::from(Rejection::NotFound), 404, "UNSUPPORTED"),
            (Failure::from(Rejection::Catalog), 404, "UNSUPPORTED"),
            (Failure::from(Rejection::Method), 405, "UNSUPPORTED"),
            (Failure::from(Rejection::Path), 400, "NAME_INVALID"),
            (Failure::from(Rejection::Name(InvalidName::Repository)), 400, "NAME_INVALID"),
            (Failure::from(Rejection::Tag(InvalidTag)), 400, "TAG_INVALID"),
            (Failure::from(Rejection::Digest(InvalidDigest)), 400, "DIGEST_INVALID"),
            (Failure::from(BadQuery::Namespace), 400, "NAME_INVALID"),
            (Failure::from(BadQuery::RepeatedNamespace), 400, "NAME_INVALID"),
            (Failure::from(BadQuery::Number), 400, "PAGINATION_NUMBER_INVALID"),
            (Failure::from(BadQuery::Last(InvalidTag)), 400, "TAG_INVALID"),
            (Failure::from(NoTarget::Unnamed { known: Vec::new() }), 404, "NAME_UNKNOWN"),
            (Failure::unsatisfiable_range(5), 416, "RANGE_INVALID"),
            (Failure::from(Refusal::Missing), 401, "UNAUTHORIZED"),
            (Failure::from(Refusal::Malformed), 401, "UNAUTHORIZED"),
            (Failure::from(Refusal::Wrong), 401, "UNAUTHORIZED"),
            (Failure::from(Refusal::Busy), 429, "TOOMANYREQUESTS"),
            (Failure::from(Refusal::Nameless), 403, "DENIED"),
            (Failure::from(Refusal::Denied), 403, "DENIED"),
        ] {
            assert_eq!((failure.status.as_u16(), failure.code), (status, code), "{failure:?}");
            assert_eq!(failure.lookup, Lookup::None);
            assert_eq!(failure.challenge, status == 401);
        }
    }

    #[test]
    fn bodies_are_json_whatever_the_reason_holds() {
        let repository = Repository { registry: "a.example".parse().unwrap(), name: "b".parse().unwrap() };
        let reason = format!("\"<\r\n\u{e9}{}", "é".repeat(2 * MAX_REASON_CHARS));
        let failure = Failure::pulling(&Error::UpstreamWrong { reason }, &repository);
        assert!(failure.message.chars().count() < 2 * MAX_REASON_CHARS);
        let body: serde_json::Value = serde_json::from_slice(&failure.body()).unwrap();
        assert_eq!(body["errors"][0]["code"], "UNAVAILABLE");
        assert_eq!(body["errors"][0]["message"], failure.message);
    }
}
