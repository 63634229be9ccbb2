//! The configuration: a TOML file, overlaid by `FOREBAY_SECTION__KEY` variables and then by the command line.
//!
//! Promises plain data of real types, or one line that names the place, the key, the value and what would be right.
//! Unknown keys are refused. Everything that can be wrong without touching the network is found here, before anything
//! is bound. Relative paths are relative to the working directory.
//!
//! Must never hold anything that runs, and never print a secret.

mod bandwidth;
mod certificates;
mod clients;
mod credentials;
mod error;
mod parse;
mod quantity;
mod registry;
mod rules;
mod secret;
mod settings;
mod show;
#[cfg(test)]
mod tests;

pub use self::bandwidth::{Bandwidth, Rate, Window};
pub use self::certificates::{TlsFiles, TlsPem};
pub use self::clients::{ClientTexts, Clients};
pub use self::credentials::{CredentialKeys, Credentials};
pub use self::error::{Error, Origin};
pub use self::quantity::{InvalidQuantity, Size, SizeOrPercent, format_duration, parse_duration};
pub use self::registry::{AbandonPolicy, ClientCertificate, Proxy, RegistryConfig};
pub use self::rules::TagRule;
pub use self::secret::{REDACTED, Secret};

use self::settings::{Section, Settings};
use crate::oci::Registry;
use crate::telemetry;
use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use url::Url;

/// Largest configuration file.
const MAX_FILE_BYTES: u64 = 1024 * 1024;
/// Largest file with the token of the admin port.
const MAX_TOKEN_FILE_BYTES: u64 = 64 * 1024;
/// Most listen addresses.
const MAX_LISTEN: usize = 64;

/// The whole configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The registry port.
    pub server: Server,
    /// The admin port.
    pub admin: Admin,
    /// Who may ask on the registry port; `None` is everybody.
    pub clients: Option<Clients>,
    /// The store.
    pub storage: Storage,
    /// What all registries share.
    pub upstream: Upstream,
    /// The log.
    pub log: Log,
    /// What is sent to a collector.
    pub telemetry: Telemetry,
    /// The known registries; hosts, aliases and virtual hosts are unique.
    pub registries: Vec<RegistryConfig>,
}

/// `[server]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Where to listen; at least one; a port may be 0.
    pub listen: Vec<SocketAddr>,
    /// The registry of requests that name none; always a configured one. `None` when set to the empty string.
    pub default_registry: Option<Registry>,
    /// Longest wait for answers in flight when stopping.
    pub shutdown_grace: Duration,
    /// Most connections at once; at least one.
    pub max_connections: usize,
    /// Longest wait for a request head, also between two requests of a connection; not zero.
    pub header_timeout: Duration,
    /// The certificates, when all of `listen` speaks TLS.
    pub tls: Option<TlsFiles>,
}

/// `[admin]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// Where to listen; the port may be 0.
    pub listen: SocketAddr,
    /// What its API asks for.
    pub token: Option<Secret>,
    /// The file that the token was read from.
    pub token_file: Option<PathBuf>,
}

/// `[storage]`. No size is zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Storage {
    /// The data directory.
    pub path: PathBuf,
    /// Most bytes of content.
    pub max_size: SizeOrPercent,
    /// What must stay free on the file system.
    pub min_free: SizeOrPercent,
    /// Memory for manifests and small blobs.
    pub memory_cache: Size,
    /// From the start of one round of the scrub to the start of the next; not zero. `None`: there is no scrub.
    pub scrub_interval: Option<Duration>,
    /// How fast the scrub reads.
    pub scrub_rate: Rate,
}

/// `[upstream]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// How fast blobs of all registries together may be received.
    pub bandwidth: Bandwidth,
    /// Most downloads at once; at least one.
    pub max_fills: usize,
    /// Nobody is asked at all, until that is switched off.
    pub offline: bool,
}

/// `[log]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// Valid directives of an event filter.
    pub level: String,
    /// How a line looks.
    pub format: telemetry::Format,
}

/// `[telemetry]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Telemetry {
    /// Base URL of an OTLP/HTTP collector; http or https, without secrets.
    pub otlp_endpoint: Option<Url>,
    /// The name under which the process reports.
    pub service_name: String,
}

/// What the command line says, as typed.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `--listen`, each.
    pub listen: Vec<String>,
    /// `--admin-listen`.
    pub admin_listen: Option<String>,
    /// `--data`.
    pub data: Option<String>,
    /// `--upstream HOST=URL`, each.
    pub upstream: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            server: Server {
                listen: vec![SocketAddr::from(([127, 0, 0, 1], 5000))],
                default_registry: "docker.io".parse().ok(),
                shutdown_grace: Duration::from_secs(30),
                max_connections: 4096,
                header_timeout: Duration::from_secs(20),
                tls: None,
            },
            admin: Admin { listen: SocketAddr::from(([127, 0, 0, 1], 5001)), token: None, token_file: None },
            clients: None,
            storage: Storage {
                path: default_data_path(),
                max_size: SizeOrPercent::Size(Size::from_gib(50)),
                min_free: SizeOrPercent::Percent(5),
                memory_cache: Size::from_mib(64),
                scrub_interval: Some(Duration::from_secs(30 * 24 * 3600)),
                scrub_rate: Rate::from_megabytes(20),
            },
            upstream: Upstream { bandwidth: Bandwidth::default(), max_fills: 256, offline: false },
            log: Log { level: "info".to_owned(), format: telemetry::Format::Text },
            telemetry: Telemetry { otlp_endpoint: None, service_name: "forebay".to_owned() },
            registries: registry::well_known(),
        }
    }
}

impl Config {
    /// Reads the file, where there is one, the environment of the process and the command line.
    pub fn load(file: Option<&Path>, overrides: &Overrides) -> Result<Self, Error> {
        let text = file.map(|path| Ok((path, read_file(path)?))).transpose()?;
        let environment = process_environment()?;
        Self::from_sources(text.as_ref().map(|(path, text)| (*path, text.as_str())), &environment, overrides)
    }

    /// The same from given sources: the text of a file with its path, and the environment.
    pub fn from_sources(
        file: Option<(&Path, &str)>,
        environment: &[(String, String)],
        overrides: &Overrides,
    ) -> Result<Self, Error> {
        let mut settings = Settings::gather(file, environment, overrides)?;
        let mut config = Self::default();
        let mut server = settings.section("server");
        let default_registry_origin = server.origin_of("default_registry");
        config.server.read(&mut server)?;
        config.read_admin(settings.section("admin"))?;
        config.storage.read(settings.section("storage"))?;
        config.upstream.read(settings.section("upstream"))?;
        config.log.read(settings.section("log"))?;
        config.telemetry.read(settings.section("telemetry"))?;
        config.registries = registry::read(std::mem::take(&mut settings.registries), overrides)?;

        if let Some(default) = &config.server.default_registry
            && !config.registries.iter().any(|known| known.registry == *default)
        {
            let problem = format!("{default} is not a configured registry; add a [[registry]] for it");
            return Err(server.conflict_at(default_registry_origin, "default_registry", problem));
        }
        server.finish()?;
        let has_certificates = config.server.tls.as_ref().is_some_and(|files| files.client_ca.is_some());
        let knows = |registry: &Registry| config.registries.iter().any(|known| known.registry == *registry);
        config.clients = clients::read(settings.section("clients"), has_certificates, knows)?;
        Ok(config)
    }

    /// What telemetry needs of it.
    pub fn telemetry_options(&self) -> telemetry::Options {
        telemetry::Options {
            log_level: self.log.level.clone(),
            log_format: self.log.format,
            otlp_endpoint: self.telemetry.otlp_endpoint.clone(),
            service_name: self.telemetry.service_name.clone(),
        }
    }

    /// The configuration as TOML that reads back to the same, but for secrets, which show as [`REDACTED`].
    pub fn to_toml(&self) -> String {
        show::to_toml(self)
    }

    fn read_admin(&mut self, mut section: Section) -> Result<(), Error> {
        let origin = section.origin_of("listen");
        section.text("listen", &mut self.admin.listen, parse::address)?;
        // Port 0 is a different port each time.
        if self.admin.listen.port() != 0 && self.server.listen.contains(&self.admin.listen) {
            let problem = format!("{} is in server.listen too; give the admin port another", self.admin.listen);
            return Err(section.conflict_at(origin, "listen", problem));
        }
        self.admin.token = section.secret("token")?;
        let mut from_file = None;
        section.text("token_file", &mut from_file, |text| {
            Ok(Some((parse::path(text)?, parse::secret_file(Path::new(text), MAX_TOKEN_FILE_BYTES)?)))
        })?;
        if let Some((path, token)) = from_file {
            if self.admin.token.is_some() {
                return Err(section.conflict("token", "give either token or token_file, not both"));
            }
            (self.admin.token, self.admin.token_file) = (Some(token), Some(path));
        }
        if self.admin.token.as_ref().is_some_and(|token| token.expose().chars().any(|c| !c.is_ascii_graphic())) {
            return Err(section.conflict("token", "write it in visible ASCII without spaces: it goes into a header"));
        }
        section.finish()
    }
}

impl Server {
    fn read(&mut self, section: &mut Section) -> Result<(), Error> {
        let origin = section.origin_of("listen");
        // Several listeners on port 0 are no repetition, so addresses are compared below.
        let mut listen: Vec<Listen> = self.listen.iter().copied().map(Listen).collect();
        section.list("listen", &mut listen, |text| parse::address(text).map(Listen))?;
        self.listen = listen.into_iter().map(|listen| listen.0).collect();
        if self.listen.is_empty() || self.listen.len() > MAX_LISTEN {
            return Err(section.conflict_at(origin, "listen", format!("list from one to {MAX_LISTEN} addresses")));
        }
        section.text("default_registry", &mut self.default_registry, |text| match text {
            "" => Ok(None),
            _ => parse::registry(text).map(Some),
        })?;
        section
            .text("shutdown_grace", &mut self.shutdown_grace, |text| parse_duration(text).map_err(|e| e.to_string()))?;
        section.number("max_connections", &mut self.max_connections, parse::connections)?;
        section.text("header_timeout", &mut self.header_timeout, parse::timeout)?;
        self.tls = certificates::read(section)?;
        Ok(())
    }
}

/// A listen address that repeats another only if both would take the same port.
struct Listen(SocketAddr);

impl PartialEq for Listen {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0 && self.0.port() != 0
    }
}

impl Storage {
    fn read(&mut self, mut section: Section) -> Result<(), Error> {
        section.text("path", &mut self.path, parse::path)?;
        section.number("max_size", &mut self.max_size, size_or_percent)?;
        section.number("min_free", &mut self.min_free, size_or_percent)?;
        section.number("memory_cache", &mut self.memory_cache, |text| match text.parse::<Size>() {
            Ok(size) if size == Size::from_bytes(0) => Err("it must be larger than zero".to_owned()),
            other => other.map_err(|error| error.to_string()),
        })?;
        section.text("scrub_interval", &mut self.scrub_interval, |text| match text {
            "" => Ok(None),
            _ => parse::timeout(text).map(Some),
        })?;
        section.text("scrub_rate", &mut self.scrub_rate, str::parse)?;
        section.finish()
    }
}

impl Upstream {
    fn read(&mut self, mut section: Section) -> Result<(), Error> {
        self.bandwidth.read(&mut section)?;
        section.number("max_fills", &mut self.max_fills, parse::fills)?;
        section.flag("offline", &mut self.offline)?;
        section.finish()
    }
}

impl Log {
    fn read(&mut self, mut section: Section) -> Result<(), Error> {
        section.text("level", &mut self.level, parse::log_level)?;
        section.text("format", &mut self.format, |text| match text {
            "text" => Ok(telemetry::Format::Text),
            "json" => Ok(telemetry::Format::Json),
            _ => Err("write \"text\" or \"json\"".to_owned()),
        })?;
        section.finish()
    }
}

impl Telemetry {
    fn read(&mut self, mut section: Section) -> Result<(), Error> {
        section.text("otlp_endpoint", &mut self.otlp_endpoint, parse::collector)?;
        section.text("service_name", &mut self.service_name, parse::service_name)?;
        section.finish()
    }
}

fn size_or_percent(text: &str) -> Result<SizeOrPercent, String> {
    match text.parse::<SizeOrPercent>() {
        Ok(size) if size.is_zero() => Err("it must be larger than zero".to_owned()),
        other => other.map_err(|error| error.to_string()),
    }
}

/// A secret in a file of its own: a line.
pub fn read_secret(path: &Path) -> Result<String, String> {
    parse::secret_file(path, MAX_TOKEN_FILE_BYTES).map(|secret| secret.expose().to_owned())
}

/// What `FOREBAY_ADMIN_TOKEN` holds: the token that commands send to a running proxy.
pub fn admin_token_of_environment() -> Option<String> {
    std::env::var_os("FOREBAY_ADMIN_TOKEN")?.into_string().ok().filter(|token| !token.is_empty())
}

/// The variables of ours. Names that are not Unicode cannot be.
fn process_environment() -> Result<Vec<(String, String)>, Error> {
    let named = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
    let ours = named.filter(|(name, _)| name.starts_with(settings::ENVIRONMENT_PREFIX));
    ours.map(|(name, value)| match value.into_string() {
        Ok(value) => Ok((name, value)),
        Err(_) => {
            let problem = "not UTF-8 text".to_owned();
            Err(Error::Conflict { origin: Origin::Environment(name), key: "value".to_owned(), problem })
        }
    })
    .collect()
}

#[expect(clippy::disallowed_methods, reason = "the configuration is a file")]
fn read_file(path: &Path) -> Result<String, Error> {
    let refuse = |reason: String| Error::Unreadable { file: path.to_owned(), reason };
    let file = File::open(path).map_err(|error| refuse(error.to_string()))?;
    let mut text = String::new();
    file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text).map_err(|error| refuse(error.to_string()))?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(refuse(format!("it is larger than {MAX_FILE_BYTES} bytes")));
    }
    Ok(text)
}

/// `/var/lib/forebay` for root, else the user's data directory (XDG base directory specification).
fn default_data_path() -> PathBuf {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    if !rustix::process::geteuid().is_root() {
        if let Some(path) = absolute("XDG_DATA_HOME") {
            return path.join("forebay");
        }
        if let Some(home) = absolute("HOME") {
            return home.join(".local/share/forebay");
        }
    }
    PathBuf::from("/var/lib/forebay")
}
