//! Why a pull fails, sorted by whose fault it is.

use std::time::Duration;

use crate::oci::InvalidManifest;
use crate::oci::Mismatch;
use crate::upstream;

use super::outcome::StaleReason;

/// Why a pull fails.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    // === The client asked for what is not there ===
    /// The registry is not configured.
    #[error("the registry is not configured")]
    UnknownRegistry,
    /// The upstream has no such manifest.
    #[error("the upstream has no such manifest")]
    ManifestUnknown {
        /// It said so a short while ago and was not asked again.
        is_remembered: bool,
    },
    /// The upstream has no such blob in this repository.
    #[error("the upstream has no such blob in this repository")]
    BlobUnknown,
    /// The upstream has no such repository.
    #[error("the upstream has no such repository")]
    NameUnknown,
    /// The upstream does not have the referrers API.
    #[error("the upstream does not support the referrers API")]
    ReferrersUnsupported,

    /// The operator does not let this repository be pulled.
    #[error("the repository may not be pulled here")]
    NotAllowed,
    /// The operator lets nobody be asked, and it is not here.
    #[error("the registry is switched offline, and it is not here")]
    Offline,

    // === The upstream ===
    /// It refuses.
    #[error("the upstream refuses: {reason}")]
    Denied {
        /// In its words, without secrets.
        reason: String,
        /// Configured credentials were refused, rather than none accepted.
        with_credentials: bool,
    },
    /// It wants to be left alone.
    #[error("the upstream limits the rate of requests")]
    RateLimited {
        /// For that long, where it said so.
        retry_after: Option<Duration>,
    },
    /// It answered with a server error.
    #[error("the upstream answered {status}")]
    UpstreamUnavailable {
        /// The status.
        status: u16,
    },
    /// It cannot be reached.
    #[error("the upstream cannot be reached: {reason}")]
    UpstreamUnreachable {
        /// Why.
        reason: String,
    },
    /// It does not answer in time.
    #[error("the upstream did not answer in time: {what}")]
    UpstreamTimedOut {
        /// What was waited for.
        what: &'static str,
    },
    /// Its answer is wrong.
    #[error("the upstream's answer is wrong: {reason}")]
    UpstreamWrong {
        /// What is wrong.
        reason: String,
    },

    // === Us ===
    /// We failed.
    #[error("{reason}")]
    Internal {
        /// How.
        reason: String,
    },
}

impl Error {
    /// An upstream's error; `absent` is what a 404 means here.
    pub(super) fn from_upstream(error: upstream::Error, absent: Self) -> Self {
        use upstream::Error as Upstream;
        match error {
            Upstream::UnknownRegistry => Self::UnknownRegistry,
            Upstream::Offline => Self::Offline,
            Upstream::NotFound => absent,
            Upstream::Denied { reason, with_credentials } => Self::Denied { reason, with_credentials },
            Upstream::RateLimited { retry_after } => Self::RateLimited { retry_after },
            Upstream::Unavailable { status } => Self::UpstreamUnavailable { status },
            Upstream::Unreachable { reason } => Self::UpstreamUnreachable { reason },
            Upstream::Helper { reason } => Self::UpstreamUnreachable { reason },
            Upstream::TimedOut { what } => Self::UpstreamTimedOut { what },
            Upstream::Cut { after_bytes, reason } => {
                Self::UpstreamUnreachable { reason: format!("the answer broke after {after_bytes} bytes: {reason}") }
            }
            Upstream::Protocol { reason } => Self::UpstreamWrong { reason },
        }
    }

    /// In one word, for `Cache-Status` and logs.
    pub fn detail(&self) -> &'static str {
        match self {
            Self::UnknownRegistry => "unknown-registry",
            Self::ManifestUnknown { .. } | Self::BlobUnknown | Self::NameUnknown => "not-found",
            Self::ReferrersUnsupported => "unsupported",
            Self::NotAllowed => "not-allowed",
            Self::Offline => "offline",
            Self::Denied { .. } => "denied",
            Self::RateLimited { .. } => StaleReason::RateLimited.as_str(),
            Self::UpstreamUnavailable { .. } => StaleReason::UpstreamError.as_str(),
            Self::UpstreamUnreachable { .. } => StaleReason::Unreachable.as_str(),
            Self::UpstreamTimedOut { .. } => StaleReason::TimedOut.as_str(),
            Self::UpstreamWrong { .. } => "wrong-answer",
            Self::Internal { .. } => "internal",
        }
    }

    /// A flight ended without a word.
    pub(super) fn abandoned() -> Self {
        Self::Internal { reason: "the request was given up; try again".to_owned() }
    }

    /// The upstream could not answer at all: a reason to leave it alone about what is known.
    pub(super) fn is_trouble(&self) -> bool {
        self.stale_reason().is_some() && !matches!(self, Self::UpstreamWrong { .. })
    }

    /// Whether a known digest may be served in spite of it, and as what (the table "Freshness of a tag").
    pub(super) fn stale_reason(&self) -> Option<StaleReason> {
        match self {
            Self::RateLimited { .. } => Some(StaleReason::RateLimited),
            Self::UpstreamUnavailable { .. } => Some(StaleReason::UpstreamError),
            Self::UpstreamUnreachable { .. } => Some(StaleReason::Unreachable),
            Self::UpstreamTimedOut { .. } => Some(StaleReason::TimedOut),
            Self::UpstreamWrong { .. } => Some(StaleReason::UpstreamError),
            Self::UnknownRegistry
            | Self::NotAllowed
            | Self::Offline
            | Self::ManifestUnknown { .. }
            | Self::BlobUnknown
            | Self::NameUnknown
            | Self::ReferrersUnsupported
            | Self::Denied { .. }
            | Self::Internal { .. } => None,
        }
    }
}

impl From<Mismatch> for Error {
    fn from(mismatch: Mismatch) -> Self {
        Self::UpstreamWrong { reason: format!("the content does not match its digest: {mismatch}") }
    }
}

impl From<InvalidManifest> for Error {
    fn from(invalid: InvalidManifest) -> Self {
        Self::UpstreamWrong { reason: invalid.to_string() }
    }
}
