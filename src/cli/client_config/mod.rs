//! `forebay client-config ENGINE`: what points a container engine at the proxy.
//!
//! The configuration of the proxy and its address make a `Setup`; an engine makes `Document`s of it, each a path and the
//! text that should stand there, given what stands there now; they are printed, shown as a difference, or put in place.
//! Files that are the engine's own are changed only where they have to be.

mod containerd;
mod containers;
mod docker;
mod place;
#[cfg(test)]
mod tests;
mod toml_text;

use std::fmt;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;
use std::path::PathBuf;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use similar::TextDiff;
use url::Host;
use url::Url;

use self::place::Placed;
use super::remote::wrong;
use crate::config::Config;
use crate::config::Overrides;
use crate::config::read_secret;
use crate::oci::Registry;

/// First line of files that are all ours.
const MARK: &str = "# Written by `forebay client-config`; it is replaced when that runs again.";

/// `forebay client-config`.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// The container engine
    pub engine: Engine,
    /// How engines reach the proxy, such as `https://cache.example:5000`; by default the address that it listens on
    #[arg(long, value_name = "URL")]
    pub proxy: Option<Url>,
    /// Configuration file of the proxy (TOML)
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Only for this registry; may be given several times; all that are configured without it
    #[arg(long, value_name = "HOST")]
    pub registry: Vec<Registry>,
    /// Certificate of the proxy's own authority, where engines do not know it (PEM, a path on the engine's machine)
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Who engines are for a proxy that asks its clients for a login
    #[arg(long, value_name = "NAME", requires = "password_file")]
    pub username: Option<String>,
    /// File with the password or token of --username; it goes into the engine's file where that can hold it
    #[arg(long, value_name = "FILE", requires = "username")]
    pub password_file: Option<PathBuf>,
    /// Put it in place; what was there is kept beside it as NAME.forebay-backup
    #[arg(long)]
    pub write: bool,
    /// Show what --write would change
    #[arg(long, conflicts_with = "write")]
    pub dry_run: bool,
    /// Replace files that another hand wrote, where they cannot be joined
    #[arg(long)]
    pub force: bool,
    /// Take this folder for the root of the file system, as when an image is built
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub root: PathBuf,
}

/// The engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Engine {
    /// dockerd: Docker Hub, that is all its mirrors can do
    Docker,
    /// containerd: Kubernetes, nerdctl, ctr --hosts-dir
    Containerd,
    /// podman, buildah, skopeo
    Podman,
    /// CRI-O
    Crio,
    /// k3s and RKE2
    K3s,
    /// buildkitd
    Buildkit,
}

/// What engines have to know.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    proxy: Url,
    /// `host:port`.
    authority: String,
    registries: Vec<Known>,
    default_registry: Option<Registry>,
    ca: Option<PathBuf>,
    login: Option<Login>,
    /// The proxy lets nobody in who shows nothing.
    wants_login: bool,
    force: bool,
}

/// What the proxy is shown.
#[derive(Clone)]
struct Login {
    username: String,
    password: String,
}

/// Without the password.
impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("username", &self.username).finish_non_exhaustive()
    }
}

impl Login {
    /// As a header's value.
    fn basic(&self) -> String {
        format!("Basic {}", BASE64_STANDARD.encode(format!("{}:{}", self.username, self.password)))
    }
}

#[derive(Clone, Debug)]
struct Known {
    registry: Registry,
    endpoint: Url,
}

/// A file as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Document {
    /// Below the root.
    path: PathBuf,
    text: String,
    /// Only its owner may read it.
    is_secret: bool,
}

/// The files of an engine, and what else there is to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Plan {
    documents: Vec<Document>,
    notes: Vec<String>,
}

/// How a host's files stand to what they should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// They point at the proxy.
    Points,
    /// These do not.
    Differs(Vec<String>),
}

impl Arguments {
    /// What to print on standard output, and what to say beside it.
    pub fn run(&self) -> anyhow::Result<(String, Vec<String>)> {
        let mut setup = setup(self.config.as_deref(), self.proxy.as_ref())?;
        setup.choose(&self.registry)?;
        if self.ca.is_some() && setup.is_plain_http() {
            return Err(wrong("ca", "the proxy is asked over plain HTTP; there is no certificate").into());
        }
        (setup.ca, setup.force) = (self.ca.clone(), self.force);
        setup.login = self.login()?;
        let mut plan = plan(self.engine, &setup, &self.root)?;
        if setup.wants_login && setup.login.is_none() && self.engine != Engine::Docker {
            plan.notes.push("the proxy asks its clients for a login: --username and --password-file".to_owned());
        }
        let mut out = String::new();
        for document in &plan.documents {
            let path = place::below(&self.root, &document.path);
            if self.dry_run {
                out.push_str(&difference(&path, &place::read(&self.root, &document.path)?, &document.text));
            } else if self.write {
                let done = match place::put(&path, &document.text, document.is_secret)? {
                    Placed::Unchanged => "unchanged",
                    Placed::New => "written",
                    Placed::Replaced => "written, the old one is kept beside it",
                };
                let _ = writeln!(out, "{}: {done}", path.display());
            } else {
                let _ = writeln!(out, "# {}\n{}", path.display(), document.text);
            }
        }
        if self.dry_run && out.is_empty() {
            out.push_str("nothing would change\n");
        }
        Ok((out, plan.notes))
    }

    fn login(&self) -> anyhow::Result<Option<Login>> {
        let (Some(username), Some(path)) = (&self.username, &self.password_file) else { return Ok(None) };
        if username.contains(':') {
            return Err(wrong("username", "a name has no colon in it").into());
        }
        let password = read_secret(path).map_err(|problem| wrong("password-file", &problem))?;
        Ok(Some(Login { username: username.clone(), password }))
    }
}

fn plan(engine: Engine, setup: &Setup, root: &Path) -> anyhow::Result<Plan> {
    let read = |path: &str| place::read(root, Path::new(path));
    match engine {
        Engine::Docker => docker::plan(setup, read),
        Engine::Containerd => containerd::plan(setup, read),
        Engine::Podman => Ok(containers::podman(setup)),
        Engine::Crio => Ok(containers::crio(setup)),
        Engine::K3s => containers::k3s(setup, read),
        Engine::Buildkit => containers::buildkit(setup, read),
    }
}

/// Compares the files below this root with what they should be. Where a hand has written them, an equal meaning in other
/// words counts as different.
pub(super) fn standing(engine: Engine, setup: &Setup, root: &Path) -> anyhow::Result<Standing> {
    let mut differing = Vec::new();
    for document in plan(engine, setup, root)?.documents {
        if place::read(root, &document.path)?.trim() != document.text.trim() {
            differing.push(document.path.display().to_string());
        }
    }
    Ok(if differing.is_empty() { Standing::Points } else { Standing::Differs(differing) })
}

/// What engines have to know of the proxy with this configuration.
pub(super) fn setup(config: Option<&Path>, proxy: Option<&Url>) -> anyhow::Result<Setup> {
    let config = Config::load(config, &Overrides::default())?;
    let proxy = proxy.cloned().map_or_else(|| own_address(&config), Ok)?;
    let is_plain = matches!(proxy.scheme(), "http" | "https")
        && proxy.path() == "/"
        && proxy.query().is_none()
        && proxy.username().is_empty();
    let host = proxy.host_str().filter(|_| is_plain);
    let host = host.ok_or_else(|| wrong("proxy", "write a URL without a path, such as http://10.0.0.5:5000"))?;
    let authority = proxy.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    let known = |known: &crate::config::RegistryConfig| {
        Some(Known { registry: known.registry.clone(), endpoint: known.endpoints.first()?.clone() })
    };
    let registries = config.registries.iter().filter_map(known).collect();
    let wants_login = config.clients.as_ref().is_some_and(|clients| !clients.anonymous && clients.has_logins());
    let default_registry = config.server.default_registry;
    let (ca, login, force) = (None, None, false);
    Ok(Setup { proxy, authority, registries, default_registry, ca, login, wants_login, force })
}

/// The first address that the proxy listens on, where engines on this machine can use it.
fn own_address(config: &Config) -> anyhow::Result<Url> {
    let address = config.server.listen.first().copied();
    let address = address.filter(|address| !address.ip().is_unspecified() && address.port() != 0);
    let address = address
        .ok_or_else(|| wrong("proxy", "the proxy listens on every address; say by which one engines reach it"))?;
    let scheme = if config.server.tls.is_some() { "https" } else { "http" };
    Ok(Url::parse(&format!("{scheme}://{address}"))?)
}

impl Setup {
    /// Leaves only these registries; all, where none is named.
    fn choose(&mut self, wanted: &[Registry]) -> anyhow::Result<()> {
        for registry in wanted {
            if !self.registries.iter().any(|known| known.registry == *registry) {
                let problem = format!("the proxy does not know {registry}; add a [[registry]] for it");
                return Err(wrong("registry", &problem).into());
            }
        }
        self.registries.retain(|known| wanted.is_empty() || wanted.contains(&known.registry));
        Ok(())
    }

    /// Whether requests that name no registry mean this one.
    pub(super) fn is_default(&self, registry: &Registry) -> bool {
        self.default_registry.as_ref() == Some(registry)
    }

    fn is_plain_http(&self) -> bool {
        self.proxy.scheme() == "http"
    }

    /// `http://host:port`, without the slash that a URL ends with.
    pub(super) fn base(&self) -> &str {
        self.proxy.as_str().trim_end_matches('/')
    }

    fn is_loopback(&self) -> bool {
        match self.proxy.host() {
            Some(Host::Ipv4(ip)) => IpAddr::V4(ip).is_loopback(),
            Some(Host::Ipv6(ip)) => IpAddr::V6(ip).is_loopback(),
            Some(Host::Domain(name)) => name == "localhost",
            None => false,
        }
    }
}

fn difference(path: &Path, old: &str, new: &str) -> String {
    if old == new {
        return String::new();
    }
    let name = path.display().to_string();
    TextDiff::from_lines(old, new).unified_diff().header(&name, &name).to_string()
}
