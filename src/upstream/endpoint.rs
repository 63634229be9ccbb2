//! The ordered endpoints of a registry, and what is remembered of each.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use url::Url;

use super::breaker::Breaker;
use crate::oci::RepositoryName;

/// How long an endpoint that failed stands behind the others.
const PASS_OVER: Duration = Duration::from_secs(30);
/// How long an endpoint whose bytes were wrong stands behind the others, whatever else works there.
const DISTRUST: Duration = Duration::from_secs(10 * 60);

/// One base URL. Health and rate limit live in memory only.
#[derive(Debug)]
pub(super) struct Endpoint {
    base: Url,
    breaker: Breaker,
    passed_over: Deadline,
    distrusted: Deadline,
    quiet: Deadline,
}

impl Endpoint {
    pub(super) fn new(base: Url) -> Self {
        Self {
            base,
            breaker: Breaker::default(),
            passed_over: Deadline::default(),
            distrusted: Deadline::default(),
            quiet: Deadline::default(),
        }
    }

    pub(super) fn base(&self) -> &Url {
        &self.base
    }

    pub(super) fn breaker(&self) -> &Breaker {
        &self.breaker
    }

    /// How long it is left alone, passed over and distrusted.
    pub(super) fn deadlines(&self) -> [Option<Duration>; 3] {
        [&self.quiet, &self.passed_over, &self.distrusted].map(Deadline::remaining)
    }

    /// `<base>/v2/<repository>/<path>?<query>`. Names, tags and digests are safe in a path as they are.
    pub(super) fn url(&self, repository: &RepositoryName, path: &str, query: Option<&str>) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("{}/v2/{repository}/{path}", self.base.path().trim_end_matches('/')));
        url.set_query(query);
        url
    }

    pub(super) fn failed(&self) {
        self.passed_over.set(PASS_OVER);
    }

    pub(super) fn works(&self) {
        self.passed_over.clear();
    }

    /// It sent wrong bytes: that it answers well is no reason to forget it.
    pub(super) fn distrust(&self) {
        self.distrusted.set(DISTRUST);
    }

    /// The endpoint, or its token service, limits the rate.
    pub(super) fn leave_alone(&self, wait: Duration) {
        self.quiet.set(wait);
    }

    /// How long that still runs.
    pub(super) fn quiet_for(&self) -> Option<Duration> {
        self.quiet.remaining()
    }
}

/// Never empty.
#[derive(Debug)]
pub(super) struct Endpoints(Vec<Arc<Endpoint>>);

impl Endpoints {
    pub(super) fn new(bases: Vec<Url>) -> Self {
        Self(bases.into_iter().map(|base| Arc::new(Endpoint::new(base))).collect())
    }

    /// In configured order.
    pub(super) fn all(&self) -> &[Arc<Endpoint>] {
        &self.0
    }

    /// Those that are not asked.
    pub(super) fn open_breakers(&self) -> u64 {
        self.0.iter().filter(|endpoint| !endpoint.breaker.is_closed()).count() as u64
    }

    /// In configured order, the recently failed ones behind, the distrusted after them, those that do not answer last:
    /// when nothing else is left they are still asked.
    pub(super) fn in_order(&self) -> Vec<Arc<Endpoint>> {
        let mut order = self.0.clone();
        order.sort_by_key(|endpoint| {
            let is_open = !endpoint.breaker.is_closed();
            (is_open, endpoint.distrusted.remaining().is_some(), endpoint.passed_over.remaining().is_some())
        });
        order
    }
}

/// A moment that may lie ahead.
#[derive(Debug, Default)]
struct Deadline(Mutex<Option<Instant>>);

impl Deadline {
    fn set(&self, wait: Duration) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now().checked_add(wait);
    }

    fn clear(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn remaining(&self) -> Option<Duration> {
        let at = (*self.0.lock().unwrap_or_else(PoisonError::into_inner))?;
        at.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_endpoints_stand_last() {
        let bases = ["https://a.example/", "https://b.example/x/"].map(|text| text.parse().unwrap());
        let endpoints = Endpoints::new(bases.to_vec());
        let hosts = || endpoints.in_order().iter().map(|e| e.base().host_str().unwrap().to_owned()).collect::<Vec<_>>();
        assert_eq!(hosts(), ["a.example", "b.example"]);
        endpoints.0[0].failed();
        assert_eq!(hosts(), ["b.example", "a.example"]);
        endpoints.0[0].works();
        assert_eq!(hosts(), ["a.example", "b.example"]);
        endpoints.0[0].distrust();
        endpoints.0[0].works();
        endpoints.0[1].failed();
        assert_eq!(hosts(), ["b.example", "a.example"], "wrong bytes weigh more, and longer");
    }

    #[test]
    fn urls_keep_the_base_path() {
        let endpoint = Endpoint::new("https://b.example/x/".parse().unwrap());
        let name = "library/alpine".parse().unwrap();
        let url = endpoint.url(&name, "tags/list", Some("n=2"));
        assert_eq!(url.as_str(), "https://b.example/x/v2/library/alpine/tags/list?n=2");
    }
}
