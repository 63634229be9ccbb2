//! What the layer is built from: plain data.

use std::num::NonZeroU32;
use std::num::NonZeroU64;
use std::time::Duration;

use jiff::civil::Time;
use url::Url;

use super::secret::Secret;
use crate::oci::Registry;

const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const DEFAULT_READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Everything the layer needs to know.
#[derive(Clone, Debug)]
pub struct Options {
    /// Sent as `User-Agent`; `forebay/<version>` by default.
    pub user_agent: String,
    /// The registries that may be asked; no other is ever dialled.
    pub registries: Vec<RegistryOptions>,
    /// What blobs of all registries together may take; no limit by default.
    pub bandwidth: Bandwidth,
    /// Nobody is asked at all, until that is switched off.
    pub offline: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            user_agent: concat!("forebay/", env!("CARGO_PKG_VERSION")).to_owned(),
            registries: Vec::new(),
            bandwidth: Bandwidth::default(),
            offline: false,
        }
    }
}

/// How one registry is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryOptions {
    /// The registry as named in references.
    pub registry: Registry,
    /// Base URLs in order of preference; at least one, `http` or `https`, with a base path where there is one.
    pub endpoints: Vec<Url>,
    /// Sent when an endpoint asks for them; none by default.
    pub credentials: Option<Credentials>,
    /// Roots trusted besides the platform's, PEM; empty by default.
    pub ca_pem: Vec<u8>,
    /// Shown to endpoints and token services in TLS; none by default.
    pub client_certificate: Option<ClientCertificate>,
    /// As the environment says by default.
    pub proxy: Proxy,
    /// Further `host` or `host:port` whose token service may receive the credentials; without a port, any port.
    pub token_realms: Vec<String>,
    /// For one TCP and TLS handshake; 5 s by default.
    pub connect_timeout: Duration,
    /// Longest silence, also before the response head; 30 s by default.
    pub read_timeout: Duration,
    /// What blobs of this registry may take; no limit by default.
    pub bandwidth: Bandwidth,
    /// Most requests in a minute; further ones wait in order. No limit by default.
    pub max_requests_per_minute: Option<NonZeroU32>,
    /// It is not asked, until that is switched off.
    pub offline: bool,
}

impl RegistryOptions {
    /// A registry with these endpoints and defaults for the rest.
    pub fn new(registry: Registry, endpoints: Vec<Url>) -> Self {
        Self {
            registry,
            endpoints,
            credentials: None,
            ca_pem: Vec::new(),
            client_certificate: None,
            proxy: Proxy::Environment,
            token_realms: Vec::new(),
            connect_timeout: DEFAULT_CONNECT_TIMEOUT,
            read_timeout: DEFAULT_READ_TIMEOUT,
            bandwidth: Bandwidth::default(),
            max_requests_per_minute: None,
            offline: false,
        }
    }
}

/// How fast blobs may be received.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bandwidth {
    /// Bytes per second outside the windows; `None` is no limit.
    pub limit: Option<NonZeroU64>,
    /// Hours with limits of their own; they do not overlap.
    pub schedule: Vec<Window>,
}

impl Bandwidth {
    /// Whether there is no limit at any time.
    pub fn is_unlimited(&self) -> bool {
        self.limit.is_none() && self.schedule.is_empty()
    }
}

/// Hours of each day, in local time: from one moment up to another, over midnight where that comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// The first moment.
    pub from: Time,
    /// The first moment after it.
    pub to: Time,
    /// Bytes per second.
    pub limit: NonZeroU64,
}

/// Who to be at one registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credentials {
    /// A user with a password.
    Password {
        /// The user name; not a secret, part of the stable identity.
        username: String,
        /// The password or access token.
        password: Secret,
    },
    /// A refresh token for the registry's token service (OAuth2, as in the distribution token specification).
    IdentityToken {
        /// The user name, where it is known.
        username: String,
        /// The token.
        token: Secret,
    },
    /// A `docker-credential-*` program, asked when the registry asks.
    Helper {
        /// Its name, looked for in `PATH`, or its path.
        program: String,
        /// What it is asked for.
        server: String,
    },
}

/// A certificate for TLS with its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The certificate and those between it and its root, PEM.
    pub cert_pem: Vec<u8>,
    /// PKCS#8, PKCS#1 or SEC1, PEM.
    pub key_pem: Secret,
}

/// How one registry is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proxy {
    /// As `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` say.
    Environment,
    /// Directly, whatever they say.
    None,
    /// Through this one: `http`, `https`, `socks5` or `socks5h`.
    Url(Url),
}
