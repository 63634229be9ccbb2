//! How the registries are, and switching them offline.

use super::Api;
use super::Endpoint;
use super::OfflineBody;
use super::Question;
use super::RateLimit;
use super::Upstream;
use super::Upstreams;
use super::failure::Failure;
use super::references::word;
use crate::oci::Registry;
use crate::pull::EndpointStatus;
use crate::pull::RegistryStatus;

impl Api {
    pub(super) fn upstreams(&self) -> Upstreams {
        let registries = self.control.puller.upstreams();
        Upstreams {
            offline: self.control.puller.is_offline(),
            registries: registries.into_iter().map(upstream).collect(),
        }
    }

    pub(super) fn set_offline(&self, question: &Question) -> Result<Upstreams, Failure> {
        let wanted: OfflineBody = question.json()?;
        let registry = wanted.registry.as_deref().map(str::parse::<Registry>).transpose();
        let registry = registry.map_err(|error| Failure::bad_request(format!("registry: {error}")))?;
        match self.control.puller.set_offline(registry.as_ref(), wanted.offline) {
            Ok(()) => Ok(self.upstreams()),
            Err(_) => Err(Failure::not_found("this registry is not configured")),
        }
    }
}

fn upstream(status: RegistryStatus) -> Upstream {
    Upstream {
        registry: status.registry,
        offline: status.offline,
        account: status.account,
        endpoints: status.endpoints.into_iter().map(endpoint).collect(),
        rate_limit: status.rate_limit.map(|limit| RateLimit {
            limit: limit.limit,
            remaining: limit.remaining,
            window_seconds: limit.window_seconds,
            age_seconds: seconds(limit.age_ms),
        }),
        max_requests_per_minute: status.max_requests_per_minute,
        requests_last_minute: status.requests_last_minute,
        questions_in_flight: status.questions_in_flight,
        tokens: status.tokens.count,
        token_age_seconds: status.tokens.oldest_age_ms.map(seconds),
        token_renewed_in_seconds: status.tokens.renewed_in_ms.map(seconds),
    }
}

fn endpoint(status: EndpointStatus) -> Endpoint {
    Endpoint {
        url: status.url,
        breaker: word(status.health),
        failures: status.failures,
        error: status.error,
        tried_in_seconds: status.tried_in_ms.map(seconds),
        quiet_seconds: status.quiet_ms.map(seconds),
        distrusted_seconds: status.distrusted_ms.map(seconds),
    }
}

/// Rounded up, so that what is still going on is never 0.
fn seconds(millis: u64) -> u64 {
    millis.div_ceil(1000)
}
