//! How an answer came about: what `Cache-Status`, logs and metrics tell.

use crate::metrics::Source;

/// How an answer came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// From the store; the upstream was not asked.
    Hit,
    /// From the store; the upstream was asked and agrees.
    Revalidated,
    /// From the upstream.
    Miss {
        /// It is kept.
        stored: bool,
    },
    /// From a download that another request began.
    Join,
    /// The upstream said a short while ago that there is none.
    Negative,
    /// From the store, though the upstream could not be asked.
    Stale {
        /// Why not.
        reason: StaleReason,
    },
    /// From the store, past its time: the upstream is not to be asked.
    Offline,
    /// From the store: the upstream says that the tag moved, and a rule says that it stays.
    MoveRefused,
}

/// Why the upstream could not be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StaleReason {
    /// It answers too slowly; the check goes on.
    Slow,
    /// It did not answer in time.
    TimedOut,
    /// It cannot be reached.
    Unreachable,
    /// It answered with an error, or wrongly.
    UpstreamError,
    /// It wants to be left alone.
    RateLimited,
}

impl StaleReason {
    /// The `detail` of `Cache-Status`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Slow => "slow",
            Self::TimedOut => "timeout",
            Self::Unreachable => "unreachable",
            Self::UpstreamError => "upstream-error",
            Self::RateLimited => "rate-limited",
        }
    }
}

impl Outcome {
    /// The label of logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Revalidated => "revalidated",
            Self::Miss { .. } => "miss",
            Self::Join => "join",
            Self::Negative => "negative",
            Self::Stale { .. } => "stale",
            Self::Offline => "offline",
            Self::MoveRefused => "move-refused",
        }
    }

    /// Where the bytes come from.
    pub fn source(self) -> Source {
        match self {
            Self::Hit | Self::Revalidated | Self::Stale { .. } | Self::Offline | Self::MoveRefused => Source::Store,
            Self::Negative => Source::Local,
            Self::Join | Self::Miss { stored: true } => Source::Fill,
            Self::Miss { stored: false } => Source::Upstream,
        }
    }
}
