//! The upstream layer: the only HTTP client of the program.
//!
//! What it is for: asking registries. A question goes down through
//! `request` (endpoints in order, few tries, then the next endpoint) → `auth` (what worked before, or the answer to
//! a 401) → `redirect` (where an answer may send us, without secrets) → `wire` (one exchange, time limits, counted
//! bytes) → `dial` and `tls` (which addresses, which roots); `manifest`, `blob` and `listing` know what is asked.
//!
//! What it promises: only configured registries are asked. Credentials stay with their origin and their token service;
//! they, tokens and signed URLs are in no error and no log line. Every body, wait, redirect and retry has a limit. An
//! answer says as whom it was got. Nothing is verified here and nothing is stored.
//!
//! What it must never know: files, storage, configuration, decisions about freshness or grants, Forebay's own clients.

mod auth;
mod blob;
mod breaker;
mod budget;
mod dial;
mod endpoint;
mod error;
mod listing;
mod manifest;
mod options;
mod redirect;
mod request;
mod retry;
mod secret;
mod status;
mod throttle;
mod tls;
mod wire;

#[cfg(test)]
mod failover_tests;
#[cfg(test)]
mod silence_tests;
#[cfg(test)]
pub(crate) mod tests;

use std::cell::LazyCell;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use arc_swap::ArcSwap;
use tokio::sync::Semaphore;
use url::Url;

use self::auth::Auth;
use self::budget::Budget;
use self::endpoint::Endpoints;
use self::request::MAX_QUESTIONS;
use self::request::RegistryClient;
use self::throttle::Throttle;
use self::throttle::WallClock;
use self::tls::Tls;
use self::wire::Wire;
use crate::metrics::Metrics;
use crate::oci::Digest;
use crate::oci::Reference;
use crate::oci::Registry;
use crate::oci::Repository;

pub use self::blob::BlobBody;
pub use self::blob::BlobHead;
pub use self::blob::Part;
pub use self::blob::Source;
pub use self::breaker::Health;
pub use self::error::Error;
pub use self::error::SetupError;
pub use self::listing::ReferrersPage;
pub use self::listing::TagPage;
pub use self::manifest::FetchedManifest;
pub use self::manifest::ManifestHead;
pub use self::options::Bandwidth;
pub use self::options::ClientCertificate;
pub use self::options::Credentials;
pub use self::options::Options;
pub use self::options::Proxy;
pub use self::options::RegistryOptions;
pub use self::options::Window;
pub use self::secret::Secret;
pub use self::status::EndpointStatus;
pub use self::status::RateLimit;
pub use self::status::RegistryStatus;
pub use self::status::TokenStatus;
pub use self::throttle::Share;

/// As whom content was got.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Identity {
    /// No credentials were sent anywhere for it.
    Anonymous,
    /// With the configured credentials: `user@registry`, stable, no secret.
    Account(Arc<str>),
}

/// The configured registries. Cheap to clone; all clones are reconfigured at once.
#[derive(Clone)]
pub struct Upstream(Arc<Shared>);

struct Shared {
    clients: ArcSwap<Clients>,
    is_offline: AtomicBool,
    metrics: Metrics,
}

/// The clients of one configuration.
struct Clients {
    by_name: HashMap<Registry, Arc<RegistryClient>>,
    bandwidth: Bandwidth,
    total: Throttle,
}

impl Upstream {
    /// Sets up the clients; asks nobody. A proxy resolves names itself, so it is the one to refuse
    /// private addresses that a registry points to.
    pub fn new(options: Options, metrics: Metrics) -> Result<Self, SetupError> {
        let is_offline = AtomicBool::new(options.offline);
        let clients = Clients::new(options, &metrics, None)?;
        Ok(Self(Arc::new(Shared { clients: ArcSwap::from_pointee(clients), is_offline, metrics })))
    }

    /// Goes on with other registries, endpoints, credentials and limits from the next question on; what is on its way
    /// goes on as it began. A registry whose options did not change keeps its health, tokens and budget, and all keep
    /// whether they are switched offline, as far as that option did not change.
    ///
    /// # Errors
    /// As for [`Upstream::new`]; then nothing has changed.
    pub fn reconfigure(&self, options: Options) -> Result<(), SetupError> {
        let clients = Clients::new(options, &self.0.metrics, Some(&self.0.clients.load()))?;
        self.0.clients.store(Arc::new(clients));
        Ok(())
    }

    /// Whether it is configured.
    pub fn knows(&self, registry: &Registry) -> bool {
        self.0.clients.load().by_name.contains_key(registry)
    }

    /// From now on nobody asks this registry, or any at all, or they are asked again. What is on its way goes on.
    pub fn set_offline(&self, registry: Option<&Registry>, is_offline: bool) -> Result<(), Error> {
        match registry {
            None => self.0.is_offline.store(is_offline, Ordering::Relaxed),
            Some(registry) => self.of(registry)?.is_offline.store(is_offline, Ordering::Relaxed),
        }
        Ok(())
    }

    /// Whether nobody may be asked.
    pub fn is_all_offline(&self) -> bool {
        self.0.is_offline.load(Ordering::Relaxed)
    }

    /// Whether this registry may not be asked.
    pub fn is_offline(&self, registry: &Registry) -> bool {
        self.is_all_offline() || self.of(registry).is_ok_and(|client| client.is_offline.load(Ordering::Relaxed))
    }

    /// Other credentials for a registry, from the next question on. Tokens that were got with the former are dropped.
    #[expect(clippy::needless_pass_by_value, reason = "secrets are handed over, not lent")]
    pub fn set_credentials(&self, registry: &Registry, credentials: Option<Credentials>) -> Result<(), SetupError> {
        let client = self.of(registry);
        let client = client.map_err(|_| SetupError::UnknownRegistry { registry: registry.clone() })?;
        client.auth.set_credentials(credentials.as_ref())
    }

    /// How the registries are, by name.
    pub fn status(&self) -> Vec<RegistryStatus> {
        let of = |(registry, client): (&Registry, &Arc<RegistryClient>)| {
            status::of(registry, client, self.is_offline(registry))
        };
        let clients = self.0.clients.load();
        let mut all: Vec<_> = clients.by_name.iter().map(of).collect();
        all.sort_by(|a, b| a.registry.cmp(&b.registry));
        all
    }

    /// HEAD of a manifest, with the full `Accept`. Of a registry without HEAD nothing is known: see
    /// [`ManifestHead::is_supported`].
    pub async fn head_manifest(&self, repository: &Repository, reference: &Reference) -> Result<ManifestHead, Error> {
        self.client(repository)?.head_manifest(&repository.name, reference).await
    }

    /// A whole manifest, at most [`crate::oci::MAX_MANIFEST_BYTES`], not verified.
    pub async fn get_manifest(&self, repository: &Repository, reference: &Reference) -> Result<FetchedManifest, Error> {
        self.client(repository)?.get_manifest(&repository.name, reference).await
    }

    /// HEAD of a blob; where it leads to a place that knows GET only, the first byte is asked for instead. Of a
    /// registry without HEAD nothing is known: see [`BlobHead::is_supported`].
    pub async fn head_blob(&self, repository: &Repository, digest: &Digest) -> Result<BlobHead, Error> {
        self.client(repository)?.head_blob(&repository.name, digest).await
    }

    /// GET of a part of a blob. The answer may be the whole when the registry ignores ranges: see [`BlobBody::start`].
    pub async fn get_blob(&self, repository: &Repository, digest: &Digest, part: Part) -> Result<BlobBody, Error> {
        self.client(repository)?.get_blob(&repository.name, digest, part).await
    }

    /// One page of tags: at most `n` behind `last`; at most 4 MiB of JSON.
    pub async fn list_tags(
        &self,
        repository: &Repository,
        n: Option<u32>,
        last: Option<&str>,
    ) -> Result<TagPage, Error> {
        self.client(repository)?.list_tags(&repository.name, n, last).await
    }

    /// All referrers of a digest, its pages merged; at most 4 MiB of JSON. `NotFound` where there is no referrers API.
    pub async fn referrers(
        &self,
        repository: &Repository,
        digest: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<ReferrersPage, Error> {
        self.client(repository)?.referrers(&repository.name, digest, artifact_type).await
    }

    /// The way to every question.
    fn client(&self, repository: &Repository) -> Result<Arc<RegistryClient>, Error> {
        let client = self.of(&repository.registry)?;
        if self.is_offline(&repository.registry) { Err(Error::Offline) } else { Ok(client) }
    }

    fn of(&self, registry: &Registry) -> Result<Arc<RegistryClient>, Error> {
        self.0.clients.load().by_name.get(registry).cloned().ok_or(Error::UnknownRegistry)
    }
}

impl Clients {
    /// Takes over from `before` the clients whose options are the same.
    fn new(options: Options, metrics: &Metrics, before: Option<&Self>) -> Result<Self, SetupError> {
        let mut by_name = HashMap::new();
        // Loading the platform's roots is slow: registries that trust the same and show nothing share them.
        let mut roots: HashMap<Vec<u8>, Tls> = HashMap::new();
        let clock = LazyCell::new(WallClock::of_the_machine);
        let before = before.filter(|before| before.bandwidth == options.bandwidth);
        let total =
            before.map_or_else(|| Throttle::new(&options.bandwidth, || clock.clone()), |before| before.total.clone());
        for registry in options.registries {
            check_endpoints(&registry)?;
            let name = registry.registry.clone();
            let known = before.and_then(|before| before.by_name.get(&name));
            let client = match known.filter(|known| known.options == registry) {
                Some(same) => same.clone(),
                None => {
                    let tls = match (roots.get(&registry.ca_pem), &registry.client_certificate) {
                        (Some(tls), None) => tls.clone(),
                        (_, certificate) => {
                            let tls = Tls::new(&registry.registry, &registry.ca_pem, certificate.as_ref())?;
                            if certificate.is_none() {
                                roots.insert(registry.ca_pem.clone(), tls.clone());
                            }
                            tls
                        }
                    };
                    let switched = known.filter(|known| known.options.offline == registry.offline);
                    let is_offline = switched.map(|known| known.is_offline.load(Ordering::Relaxed));
                    Arc::new(RegistryClient {
                        wire: Wire::new(&registry, &options.user_agent, &tls, metrics.clone())?,
                        throttle: Throttle::new(&registry.bandwidth, || clock.clone()).and(&total),
                        auth: Auth::new(&registry)?,
                        endpoints: Endpoints::new(registry.endpoints.clone()),
                        turns: Semaphore::new(MAX_QUESTIONS),
                        budget: Budget::new(registry.max_requests_per_minute),
                        is_offline: AtomicBool::new(is_offline.unwrap_or(registry.offline)),
                        said_limit: Mutex::default(),
                        options: registry,
                    })
                }
            };
            if by_name.insert(name.clone(), client).is_some() {
                return Err(SetupError::Duplicate { registry: name });
            }
        }
        Ok(Self { by_name, bandwidth: options.bandwidth, total })
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.clients.load().by_name.keys()).finish()
    }
}

fn check_endpoints(options: &RegistryOptions) -> Result<(), SetupError> {
    if options.endpoints.is_empty() {
        return Err(SetupError::NoEndpoint { registry: options.registry.clone() });
    }
    let is_plain = |url: &Url| {
        matches!(url.scheme(), "http" | "https")
            && url.has_host()
            && url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
            && url.fragment().is_none()
    };
    if options.endpoints.iter().all(is_plain) {
        Ok(())
    } else {
        Err(SetupError::BadEndpoint { registry: options.registry.clone() })
    }
}
