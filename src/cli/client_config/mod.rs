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

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;
use std::path::PathBuf;

use similar::TextDiff;
use url::Host;
use url::Url;

use self::place::Placed;
use super::remote::wrong;
use crate::config::Config;
use crate::config::Overrides;
use crate::oci::Registry;

/// First line of files that are all ours.
const MARK: &str = "# Written by `forebay client-config`; it is replaced when that runs again.";

/// `forebay client-config`.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// The container engine
    pub engine: Engine,
    /// How engines reach the proxy, such as https://cache.example:5000; by default the address that it listens on
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
struct Setup {
    proxy: Url,
    /// `host:port`.
    authority: String,
    registries: Vec<Known>,
    default_registry: Option<Registry>,
    ca: Option<PathBuf>,
    force: bool,
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
}

/// The files of an engine, and what else there is to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Plan {
    documents: Vec<Document>,
    notes: Vec<String>,
}

impl Arguments {
    /// What to print on standard output, and what to say beside it.
    pub fn run(&self) -> anyhow::Result<(String, Vec<String>)> {
        let setup = self.setup()?;
        let read = |path: &str| place::read(&self.root, Path::new(path));
        let plan = match self.engine {
            Engine::Docker => docker::plan(&setup, read)?,
            Engine::Containerd => containerd::plan(&setup, read)?,
            Engine::Podman => containers::podman(&setup),
            Engine::Crio => containers::crio(&setup),
            Engine::K3s => containers::k3s(&setup, read)?,
            Engine::Buildkit => containers::buildkit(&setup, read)?,
        };
        let mut out = String::new();
        for document in &plan.documents {
            let path = place::below(&self.root, &document.path);
            if self.dry_run {
                out.push_str(&difference(&path, &place::read(&self.root, &document.path)?, &document.text));
            } else if self.write {
                let done = match place::put(&path, &document.text)? {
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

    fn setup(&self) -> anyhow::Result<Setup> {
        let config = Config::load(self.config.as_deref(), &Overrides::default())?;
        let proxy = self.proxy.clone().map_or_else(|| own_address(&config), Ok)?;
        let is_plain = matches!(proxy.scheme(), "http" | "https")
            && proxy.path() == "/"
            && proxy.query().is_none()
            && proxy.username().is_empty();
        let host = proxy.host_str().filter(|_| is_plain);
        let host = host.ok_or_else(|| wrong("proxy", "write a URL without a path, such as http://10.0.0.5:5000"))?;
        let authority = proxy.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        let mut registries = Vec::new();
        for known in
            config.registries.iter().filter(|known| self.registry.is_empty() || self.registry.contains(&known.registry))
        {
            let endpoint = known.endpoints.first().cloned();
            registries.extend(endpoint.map(|endpoint| Known { registry: known.registry.clone(), endpoint }));
        }
        for wanted in &self.registry {
            if !registries.iter().any(|known| known.registry == *wanted) {
                return Err(
                    wrong("registry", &format!("the proxy does not know {wanted}; add a [[registry]] for it")).into()
                );
            }
        }
        if self.ca.is_some() && proxy.scheme() == "http" {
            return Err(wrong("ca", "the proxy is asked over plain HTTP; there is no certificate").into());
        }
        let default_registry = config.server.default_registry;
        Ok(Setup { proxy, authority, registries, default_registry, ca: self.ca.clone(), force: self.force })
    }
}

/// The first address that the proxy listens on, where engines on this machine can use it.
fn own_address(config: &Config) -> anyhow::Result<Url> {
    let address = config.server.listen.first().copied();
    let address = address.filter(|address| !address.ip().is_unspecified() && address.port() != 0);
    let address = address
        .ok_or_else(|| wrong("proxy", "the proxy listens on every address; say by which one engines reach it"))?;
    Ok(Url::parse(&format!("http://{address}"))?)
}

impl Setup {
    fn is_plain_http(&self) -> bool {
        self.proxy.scheme() == "http"
    }

    /// `http://host:port`, without the slash that a URL ends with.
    fn base(&self) -> &str {
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
