//! How a registry is, for people: no secret, no query, nothing that decides anything.

use std::time::Duration;

use serde::Serialize;

use super::Identity;
use super::breaker::Health;
use super::request::RegistryClient;
use crate::oci::Registry;

/// How a registry is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RegistryStatus {
    /// Its name in references.
    pub registry: String,
    /// Nobody is asked: it, or all, are switched offline.
    pub offline: bool,
    /// Who we are there: `user@registry`; `None` is anonymous.
    pub account: Option<String>,
    /// In configured order.
    pub endpoints: Vec<EndpointStatus>,
    /// What it last said of its rate limit.
    pub rate_limit: Option<RateLimit>,
    /// `max_requests_per_minute`.
    pub max_requests_per_minute: Option<u32>,
    /// Requests of the last minute, where there is such a limit.
    pub requests_last_minute: Option<u32>,
    /// Questions on their way, downloads of blobs apart.
    pub questions_in_flight: usize,
    /// The tokens that are kept.
    pub tokens: TokenStatus,
}

/// How one endpoint is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EndpointStatus {
    /// Its base URL.
    pub url: String,
    /// Whether it is asked.
    pub health: Health,
    /// Questions in a row that it did not answer.
    pub failures: u32,
    /// Until it is tried again.
    pub tried_in_ms: Option<u64>,
    /// Why it is not asked.
    pub error: Option<String>,
    /// It asked to be left alone (`Retry-After`), still so long.
    pub quiet_ms: Option<u64>,
    /// Others are asked before it, still so long: it failed a short while ago.
    pub passed_over_ms: Option<u64>,
    /// Others are asked before it, still so long: its bytes were wrong.
    pub distrusted_ms: Option<u64>,
}

/// What a registry said of its rate limit, in `RateLimit-Limit` and `RateLimit-Remaining`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RateLimit {
    /// Requests in a window.
    pub limit: Option<u64>,
    /// What is left of them.
    pub remaining: u64,
    /// The window.
    pub window_seconds: Option<u64>,
    /// How long ago it said so.
    pub age_ms: u64,
}

/// The tokens that are kept of a registry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TokenStatus {
    /// How many.
    pub count: usize,
    /// How long ago the oldest was got.
    pub oldest_age_ms: Option<u64>,
    /// Until the first of them is renewed.
    pub renewed_in_ms: Option<u64>,
}

pub(super) fn of(registry: &Registry, client: &RegistryClient, is_offline: bool) -> RegistryStatus {
    let endpoints = client.endpoints.all().iter().map(|endpoint| {
        let breaker = endpoint.breaker().view();
        let [quiet, passed_over, distrusted] = endpoint.deadlines();
        EndpointStatus {
            url: endpoint.base().to_string(),
            health: breaker.health,
            failures: breaker.failures,
            tried_in_ms: breaker.tried_in.map(millis),
            error: breaker.error,
            quiet_ms: quiet.map(millis),
            passed_over_ms: passed_over.map(millis),
            distrusted_ms: distrusted.map(millis),
        }
    });
    RegistryStatus {
        registry: registry.to_string(),
        offline: is_offline,
        account: match client.auth.identity() {
            Identity::Anonymous => None,
            Identity::Account(name) => Some(name.to_string()),
        },
        endpoints: endpoints.collect(),
        rate_limit: client.rate_limit(),
        max_requests_per_minute: client.budget.limit().map(u32::from),
        requests_last_minute: client.budget.used(),
        questions_in_flight: client.questions_in_flight(),
        tokens: client.auth.token_status(),
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
