//! The configured registries: the well-known ones, what the file says of them, and further ones.

use super::Overrides;
use super::bandwidth::Bandwidth;
use super::credentials;
use super::credentials::{CredentialKeys, Credentials};
use super::error::{Error, Origin};
use super::parse;
use super::quantity::parse_duration;
use super::rules;
use super::rules::TagRule;
use super::secret::Secret;
use super::settings::{Section, value_error};
use crate::oci::{Pattern, Registry};
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;
use toml::Value;
use url::Url;

/// Registries that need no configuration, with the host of their one endpoint.
const WELL_KNOWN: [(&str, &str); 9] = [
    ("docker.io", "registry-1.docker.io"),
    ("ghcr.io", "ghcr.io"),
    ("quay.io", "quay.io"),
    ("registry.k8s.io", "registry.k8s.io"),
    ("gcr.io", "gcr.io"),
    ("mcr.microsoft.com", "mcr.microsoft.com"),
    ("public.ecr.aws", "public.ecr.aws"),
    ("nvcr.io", "nvcr.io"),
    ("registry.gitlab.com", "registry.gitlab.com"),
];

/// Largest file with certificates.
const MAX_CA_FILE_BYTES: u64 = 1024 * 1024;
/// Endpoints of one registry.
const MAX_ENDPOINTS: usize = 16;

/// One registry, with its defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryConfig {
    /// The name in image references.
    pub registry: Registry,
    /// Base URLs in the order to try; at least one; http or https, without user, query or fragment.
    pub endpoints: Vec<Url>,
    /// Further names for path and `ns` routing; unique among all registries.
    pub aliases: Vec<String>,
    /// `Host` headers that mean this registry; unique among all registries.
    pub virtual_hosts: Vec<String>,
    /// Who to be at the registry.
    pub credentials: Option<Credentials>,
    /// Where they come from, when not from the file itself.
    pub credential_keys: CredentialKeys,
    /// There were credentials, and `--upstream` leads to an origin that they were not configured for.
    pub drops_credentials: bool,
    /// File with further roots.
    pub ca_file: Option<PathBuf>,
    /// What that file holds: PEM, not yet judged; empty without a file.
    pub ca_pem: Vec<u8>,
    /// Who to be in TLS.
    pub client_certificate: Option<ClientCertificate>,
    /// How it is reached.
    pub proxy: Proxy,
    /// Further hosts, with a port where they have one, that may receive the credentials.
    pub token_realms: Vec<String>,
    /// How long a tag is served without asking; zero asks each time.
    pub tag_ttl: Duration,
    /// How long past that a tag may be served while the registry fails.
    pub stale_if_error: Duration,
    /// How long a "not found" is remembered.
    pub not_found_ttl: Duration,
    /// How long a right to content that was fetched with credentials stands without asking.
    pub grant_ttl: Duration,
    /// Nobody is asked, until that is switched off.
    pub offline: bool,
    /// What differs for some tags; the first that fits decides.
    pub tag_rules: Vec<TagRule>,
    /// The only repositories that may be pulled; all when empty.
    pub allow: Vec<Pattern>,
    /// Repositories that may not be pulled.
    pub deny: Vec<Pattern>,
    /// Most requests in a minute; `None` is no limit.
    pub max_requests_per_minute: Option<NonZeroU32>,
    /// Longest wait for a connection.
    pub connect_timeout: Duration,
    /// Longest silence of the registry, not a total.
    pub read_timeout: Duration,
    /// How fast blobs may be received.
    pub bandwidth: Bandwidth,
    /// Most downloads at once; at least one.
    pub max_fills: usize,
    /// Most connections of one large download; at least one.
    pub lanes_per_blob: usize,
    /// What becomes of a large download that nobody reads any more.
    pub abandon_policy: AbandonPolicy,
}

/// What becomes of a large download that nobody reads any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AbandonPolicy {
    /// It stops before its half, and goes on when it is asked for again.
    Park,
    /// It goes on to its end.
    Finish,
}

impl AbandonPolicy {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Park => "park",
            Self::Finish => "finish",
        }
    }
}

/// A certificate with its key, from two files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// `client_cert`.
    pub cert_file: PathBuf,
    /// What it holds: PEM, not yet judged.
    pub cert_pem: Vec<u8>,
    /// `client_key`.
    pub key_file: PathBuf,
    /// What it holds: PEM, not yet judged.
    pub key_pem: Secret,
}

/// How a registry is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proxy {
    /// As `HTTP_PROXY` and its kin say.
    Environment,
    /// Directly.
    None,
    /// Through this one.
    Url(Url),
}

impl RegistryConfig {
    /// A registry with defaults, reached at `https://<endpoint_host>`.
    fn with_defaults(registry: Registry, endpoint_host: &str) -> Result<Self, url::ParseError> {
        Ok(Self {
            registry,
            endpoints: vec![Url::parse(&format!("https://{endpoint_host}"))?],
            aliases: Vec::new(),
            virtual_hosts: Vec::new(),
            credentials: None,
            credential_keys: CredentialKeys::default(),
            drops_credentials: false,
            ca_file: None,
            ca_pem: Vec::new(),
            client_certificate: None,
            proxy: Proxy::Environment,
            token_realms: Vec::new(),
            tag_ttl: Duration::from_secs(5 * 60),
            stale_if_error: Duration::from_secs(30 * 24 * 60 * 60),
            not_found_ttl: Duration::from_secs(10),
            grant_ttl: Duration::from_secs(60 * 60),
            offline: false,
            tag_rules: Vec::new(),
            allow: Vec::new(),
            deny: Vec::new(),
            max_requests_per_minute: None,
            connect_timeout: Duration::from_secs(5),
            read_timeout: Duration::from_secs(30),
            bandwidth: Bandwidth::default(),
            max_fills: 64,
            lanes_per_blob: 1,
            abandon_policy: AbandonPolicy::Park,
        })
    }

    fn read(&mut self, section: &mut Section) -> Result<(), Error> {
        section.list("endpoints", &mut self.endpoints, parse::endpoint)?;
        if self.endpoints.is_empty() || self.endpoints.len() > MAX_ENDPOINTS {
            return Err(section.conflict("endpoints", format!("list from one to {MAX_ENDPOINTS} URLs")));
        }
        section.list("aliases", &mut self.aliases, parse::host)?;
        section.list("virtual_hosts", &mut self.virtual_hosts, parse::host)?;
        (self.credentials, self.credential_keys) = credentials::read(section, &self.registry)?;
        self.read_ca(section)?;
        self.read_client_certificate(section)?;
        section.text("proxy", &mut self.proxy, |text| match text {
            "" => Ok(Proxy::Environment),
            "none" => Ok(Proxy::None),
            _ => parse::proxy(text).map(Proxy::Url),
        })?;
        section.list("token_realms", &mut self.token_realms, parse::host)?;
        self.read_tags(section)?;
        section.text("connect_timeout", &mut self.connect_timeout, parse::timeout)?;
        section.text("read_timeout", &mut self.read_timeout, parse::timeout)?;
        self.read_limits(section)
    }

    fn read_tags(&mut self, section: &mut Section) -> Result<(), Error> {
        section.text("tag_ttl", &mut self.tag_ttl, |text| parse_duration(text).map_err(|e| e.to_string()))?;
        section
            .text("stale_if_error", &mut self.stale_if_error, |text| parse_duration(text).map_err(|e| e.to_string()))?;
        section
            .text("not_found_ttl", &mut self.not_found_ttl, |text| parse_duration(text).map_err(|e| e.to_string()))?;
        section.text("grant_ttl", &mut self.grant_ttl, |text| parse_duration(text).map_err(|e| e.to_string()))?;
        section.flag("offline", &mut self.offline)?;
        rules::read_tag_rules(section, &mut self.tag_rules)?;
        section.list("allow", &mut self.allow, parse::pattern)?;
        section.list("deny", &mut self.deny, parse::pattern)
    }

    fn read_limits(&mut self, section: &mut Section) -> Result<(), Error> {
        self.bandwidth.read(section)?;
        section.number("max_requests_per_minute", &mut self.max_requests_per_minute, parse::requests)?;
        section.number("max_fills", &mut self.max_fills, parse::fills)?;
        section.number("lanes_per_blob", &mut self.lanes_per_blob, parse::lanes)?;
        section.text("abandon_policy", &mut self.abandon_policy, |text| match text {
            "park" => Ok(AbandonPolicy::Park),
            "finish" => Ok(AbandonPolicy::Finish),
            _ => Err("write \"park\" or \"finish\"".to_owned()),
        })
    }

    fn read_client_certificate(&mut self, section: &mut Section) -> Result<(), Error> {
        let pem = |text: &str| {
            let path = parse::path(text)?;
            let pem = parse::file(&path, MAX_CA_FILE_BYTES)?;
            if pem.is_empty() { Err("the file is empty".to_owned()) } else { Ok(Some((path, pem))) }
        };
        let (mut cert, mut key) = (None, None);
        section.text("client_cert", &mut cert, pem)?;
        section.text("client_key", &mut key, |text| {
            let (path, pem) = pem(text)?.ok_or_else(String::new)?;
            let text = String::from_utf8(pem).map_err(|_| "the file is not PEM".to_owned())?;
            Ok(Some((path, Secret::from(text))))
        })?;
        self.client_certificate = match (cert, key) {
            (None, None) => None,
            (Some((cert_file, cert_pem)), Some((key_file, key_pem))) => {
                Some(ClientCertificate { cert_file, cert_pem, key_file, key_pem })
            }
            _ => return Err(section.conflict("client_cert", "give both client_cert and client_key, or neither")),
        };
        Ok(())
    }

    fn read_ca(&mut self, section: &mut Section) -> Result<(), Error> {
        let mut file = None;
        section.text("ca_file", &mut file, |text| {
            let path = parse::path(text)?;
            let pem = parse::file(&path, MAX_CA_FILE_BYTES)?;
            if pem.is_empty() { Err("the file is empty".to_owned()) } else { Ok(Some((path, pem))) }
        })?;
        if let Some((path, pem)) = file {
            self.ca_file = Some(path);
            self.ca_pem = pem;
        }
        Ok(())
    }
}

/// The registries that need no configuration.
pub(super) fn well_known() -> Vec<RegistryConfig> {
    let built = WELL_KNOWN.iter().map(|(host, endpoint)| {
        let registry = host.parse().expect("the names of well-known registries are valid");
        RegistryConfig::with_defaults(registry, endpoint).expect("the endpoints of well-known registries are valid")
    });
    built.collect()
}

/// The well-known registries, changed and joined by the sections of the file and by `--upstream`.
pub(super) fn read(sections: Vec<Section>, overrides: &Overrides) -> Result<Vec<RegistryConfig>, Error> {
    let mut registries = well_known();
    let mut names = Names::default();
    for mut section in sections {
        let mut host = None;
        section.text("host", &mut host, |text| parse::registry(text).map(Some))?;
        let host = host.ok_or_else(|| section.conflict("host", "each [[registry]] needs a host"))?;
        section.rename(format!("registry[{host}]"));
        if !names.hosts.insert(host.clone()) {
            return Err(section.conflict("host", "this registry is configured twice; keep one [[registry]] for it"));
        }
        let index = position(&mut registries, &host).map_err(|e| section.conflict("host", e))?;
        registries[index].read(&mut section)?;
        names.claim(&registries[index], &section)?;
        section.finish()?;
    }
    apply_upstreams(&mut registries, overrides)?;
    names.check_hosts(&registries)?;
    Ok(registries)
}

/// Where the registry stands in the list; a new one is added at the end.
fn position(registries: &mut Vec<RegistryConfig>, host: &Registry) -> Result<usize, String> {
    if let Some(index) = registries.iter().position(|known| known.registry == *host) {
        return Ok(index);
    }
    let added = RegistryConfig::with_defaults(host.clone(), host.as_str())
        .map_err(|error| format!("https://{host} is not a URL ({error}); list its endpoints"))?;
    registries.push(added);
    Ok(registries.len() - 1)
}

/// `--upstream HOST=URL`: the first for a host replaces its endpoints, further ones add to them. Credentials stay with
/// the origins that they were configured with: neither another server nor clear text gets them by a flag.
fn apply_upstreams(registries: &mut Vec<RegistryConfig>, overrides: &Overrides) -> Result<(), Error> {
    let mut replaced: BTreeMap<usize, Vec<Url>> = BTreeMap::new();
    for text in &overrides.upstream {
        let refuse = |expected: String| {
            value_error(&Origin::Flag("--upstream"), "registry.endpoints", &Value::String(text.clone()), expected)
        };
        let (host, url) = text
            .split_once('=')
            .ok_or_else(|| refuse("write HOST=URL, such as docker.io=http://mirror:5000".into()))?;
        let host = parse::registry(host).map_err(refuse)?;
        let url = parse::endpoint(url).map_err(refuse)?;
        let index = position(registries, &host).map_err(refuse)?;
        let registry = &mut registries[index];
        let configured = replaced.entry(index).or_insert_with(|| std::mem::take(&mut registry.endpoints));
        if registry.endpoints.contains(&url) || registry.endpoints.len() >= MAX_ENDPOINTS {
            return Err(refuse("the endpoint is given twice, or there are too many of them".into()));
        }
        if configured.iter().all(|known| known.origin() != url.origin()) {
            registry.drops_credentials |= registry.credentials.take().is_some();
            registry.drops_credentials |= registry.client_certificate.take().is_some();
        }
        registry.endpoints.push(url);
    }
    Ok(())
}

/// Names that must mean one registry only, with the section that claimed each.
#[derive(Default)]
struct Names {
    hosts: BTreeSet<Registry>,
    aliases: BTreeMap<String, (Registry, Error)>,
    virtual_hosts: BTreeMap<String, Registry>,
}

impl Names {
    fn claim(&mut self, registry: &RegistryConfig, section: &Section) -> Result<(), Error> {
        for alias in &registry.aliases {
            if let Some((other, _)) = self.aliases.get(alias) {
                return Err(section.conflict("aliases", format!("`{alias}` is an alias of {other} already")));
            }
            // Hosts may be named later in the file, so the error is made now and used when the hosts are known.
            let clash = section.conflict("aliases", format!("`{alias}` is the host of a registry"));
            self.aliases.insert(alias.clone(), (registry.registry.clone(), clash));
        }
        for host in &registry.virtual_hosts {
            if let Some(other) = self.virtual_hosts.insert(host.clone(), registry.registry.clone()) {
                return Err(section.conflict("virtual_hosts", format!("`{host}` is a virtual host of {other} already")));
            }
        }
        Ok(())
    }

    fn check_hosts(mut self, registries: &[RegistryConfig]) -> Result<(), Error> {
        let clash = registries.iter().find_map(|known| self.aliases.remove(known.registry.as_str()));
        clash.map_or(Ok(()), |(_, error)| Err(error))
    }
}
