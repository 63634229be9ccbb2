//! Which registry and repository a request is about. The world is closed: every name is looked up in the table of
//! configured registries; nothing of a request is ever an address to dial.

use std::collections::HashMap;

use super::query::Namespace;
use super::route::{Route, can_name_registry};
use crate::oci::{Registry, Repository, RepositoryName};

/// How requests find their registries.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Every registry that may be asked for.
    pub registries: Vec<Routing>,
    /// Where requests go that name none.
    pub default_registry: Option<Registry>,
}

/// The names of one registry.
#[derive(Clone, Debug)]
pub struct Routing {
    /// The registry as it stands in image references.
    pub registry: Registry,
    /// Further names for `ns`, base paths and first path components: hosts, or one component of a repository name.
    pub aliases: Vec<String>,
    /// `Host` headers, with or without port, that select it.
    pub virtual_hosts: Vec<String>,
}

/// The names of the configured registries contradict each other or cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidOptions {
    /// Two registries claim a name.
    #[error("`{name}` names both {first} and {second}")]
    Clash {
        /// The alias, virtual host or registry.
        name: String,
        /// Who had it first.
        first: Registry,
        /// Who claims it too.
        second: Registry,
    },
    /// An alias that no path or `ns` could hold.
    #[error("alias `{alias}` of {registry} is neither a host nor one component of a repository name")]
    Alias {
        /// The alias.
        alias: String,
        /// Whose it is.
        registry: Registry,
    },
    /// A virtual host that no `Host` header could hold.
    #[error("virtual host `{host}` of {registry} is not a lower-case host with or without a port")]
    VirtualHost {
        /// The host.
        host: String,
        /// Whose it is.
        registry: Registry,
    },
    /// The default is not among the registries.
    #[error("the default registry {0} is not configured")]
    Default(Registry),
}

/// No registry for this request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoTarget {
    /// The client named a registry that is not configured.
    #[error(
        "{named} is not a registry of this cache; add a `[[registry]]` with this host, or ask for one of: {}",
        known.join(", ")
    )]
    Unknown {
        /// What the client wrote, printable and short.
        named: String,
        /// The configured registries.
        known: Vec<String>,
    },
    /// The client named none and there is no default.
    #[error(
        "the request names no registry and `default_registry` is not set; use `/v2/<registry>/<repository>` or `?ns=`, \
         with one of: {}",
        known.join(", ")
    )]
    Unnamed {
        /// The configured registries.
        known: Vec<String>,
    },
}

/// What a request is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// The registry.
    pub(super) registry: Registry,
    /// The repository by the name that the registry knows; `None` for a ping.
    pub(super) repository: Option<Repository>,
}

/// The configured registries by every name they have.
#[derive(Debug)]
pub struct RoutingTable {
    by_name: HashMap<String, Registry>,
    by_host: HashMap<String, Registry>,
    default_registry: Option<Registry>,
    /// For messages, in the order of the configuration.
    known: Vec<String>,
}

impl RoutingTable {
    /// Refuses names that clash or could never be asked for.
    pub fn new(options: Options) -> Result<Self, InvalidOptions> {
        let mut table = Self {
            by_name: HashMap::new(),
            by_host: HashMap::new(),
            default_registry: None,
            known: options.registries.iter().map(|routing| routing.registry.to_string()).collect(),
        };
        for Routing { registry, aliases, virtual_hosts } in options.registries {
            claim(&mut table.by_name, registry.to_string(), &registry)?;
            for alias in aliases {
                if !can_name_registry(&alias) {
                    return Err(InvalidOptions::Alias { alias, registry });
                }
                claim(&mut table.by_name, alias, &registry)?;
            }
            for host in virtual_hosts {
                if host.parse::<Registry>().is_err() {
                    return Err(InvalidOptions::VirtualHost { host, registry });
                }
                claim(&mut table.by_host, host, &registry)?;
            }
        }
        if let Some(registry) = options.default_registry {
            if !table.by_name.contains_key(registry.as_str()) {
                return Err(InvalidOptions::Default(registry));
            }
            table.default_registry = Some(registry);
        }
        Ok(table)
    }

    /// In this order: `ns`, base path, first path component, virtual host, default. A ping may have no target.
    pub(super) fn resolve(
        &self,
        route: &Route,
        namespace: Option<&Namespace>,
        host: Option<&str>,
    ) -> Result<Option<Target>, NoTarget> {
        let name = route.name();
        if let Some(namespace) = namespace {
            let registry = self.named(namespace.as_str())?;
            // A base URL that already ends in the registry's host, from a client that sends `ns` as well. An alias there
            // may be the name of an organisation.
            let name = name.map(|name| match name.split_first() {
                Some((first, rest)) if first == registry.as_str() => rest,
                _ => name.clone(),
            });
            return Ok(Some(target(registry, name)));
        }
        if let Some(base) = &route.base {
            return Ok(Some(target(self.named(base)?, name.cloned())));
        }
        let virtual_host = host.and_then(|host| self.virtual_host(host));
        let Some(name) = name else {
            return Ok(virtual_host.map(|registry| target(registry, None)));
        };
        let first = name.split_first();
        if let Some((first, rest)) = &first
            && let Some(registry) = self.by_name.get(*first)
        {
            return Ok(Some(target(registry, Some(rest.clone()))));
        }
        if let Some(registry) = virtual_host {
            return Ok(Some(target(registry, Some(name.clone()))));
        }
        // A dot makes the first component of a reference a host; asking the default registry for it would hide the mistake.
        if let Some((first, _)) = first
            && first.contains('.')
        {
            return Err(self.unknown(first));
        }
        let registry = self.default_registry.as_ref();
        let registry = registry.ok_or_else(|| NoTarget::Unnamed { known: self.known.clone() })?;
        Ok(Some(target(registry, Some(name.clone()))))
    }

    fn named(&self, name: &str) -> Result<&Registry, NoTarget> {
        self.by_name.get(name).ok_or_else(|| self.unknown(name))
    }

    fn unknown(&self, name: &str) -> NoTarget {
        NoTarget::Unknown { named: name.to_owned(), known: self.known.clone() }
    }

    fn virtual_host(&self, host: &str) -> Option<&Registry> {
        let host = host.to_ascii_lowercase();
        let without_port = || host.rsplit_once(':').and_then(|(host, _)| self.by_host.get(host));
        self.by_host.get(&host).or_else(without_port)
    }
}

fn claim(names: &mut HashMap<String, Registry>, name: String, registry: &Registry) -> Result<(), InvalidOptions> {
    match names.get(&name) {
        Some(first) if first != registry => {
            Err(InvalidOptions::Clash { name, first: first.clone(), second: registry.clone() })
        }
        _ => {
            names.insert(name, registry.clone());
            Ok(())
        }
    }
}

fn target(registry: &Registry, name: Option<RepositoryName>) -> Target {
    let repository = name.map(|name| Repository { registry: registry.clone(), name: name.normalized_for(registry) });
    Target { registry: registry.clone(), repository }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;

    fn routing(registry: &str, aliases: &[&str], virtual_hosts: &[&str]) -> Routing {
        Routing {
            registry: registry.parse().unwrap(),
            aliases: aliases.iter().map(|text| (*text).to_owned()).collect(),
            virtual_hosts: virtual_hosts.iter().map(|text| (*text).to_owned()).collect(),
        }
    }

    fn options(default_registry: Option<&str>) -> Options {
        Options {
            registries: vec![
                routing("docker.io", &["hub", "index.docker.io"], &[]),
                routing("quay.io", &[], &["quay.mirror.example"]),
                routing("reg.example:5000", &["private"], &["private.example:8080"]),
            ],
            default_registry: default_registry.map(|text| text.parse().unwrap()),
        }
    }

    fn resolve(default: Option<&str>, path: &str, ns: Option<&str>, host: &str) -> Result<String, NoTarget> {
        let table = RoutingTable::new(options(default)).unwrap();
        let route = Route::parse(&Method::GET, path).unwrap();
        let namespace = ns.map(|ns| Namespace::parse(ns).unwrap());
        Ok(match table.resolve(&route, namespace.as_ref(), Some(host))? {
            Some(Target { repository: Some(repository), .. }) => repository.to_string(),
            Some(Target { registry, repository: None }) => registry.to_string(),
            None => "-".to_owned(),
        })
    }

    #[test]
    fn the_order_of_the_routing_styles() {
        let hub = Some("docker.io");
        for (path, ns, host, expected) in [
            ("/v2/alpine/tags/list", None, "localhost", "docker.io/library/alpine"),
            ("/v2/library/alpine/tags/list", None, "localhost", "docker.io/library/alpine"),
            ("/v2/a/b/tags/list", Some("quay.io"), "localhost", "quay.io/a/b"),
            ("/v2/b/tags/list", Some("Quay.IO"), "localhost", "quay.io/b"),
            ("/v2/b/tags/list", Some("hub"), "localhost", "docker.io/library/b"),
            ("/v2/b/tags/list", Some("reg.example:5000"), "localhost", "reg.example:5000/b"),
            ("/docker.io/v2/a/b/tags/list", Some("quay.io"), "localhost", "quay.io/a/b"),
            ("/v2/docker.io/alpine/tags/list", Some("docker.io"), "localhost", "docker.io/library/alpine"),
            ("/v2/docker.io/a/tags/list", Some("quay.io"), "localhost", "quay.io/docker.io/a"),
            ("/v2/hub/nginx/tags/list", Some("docker.io"), "localhost", "docker.io/hub/nginx"),
            ("/v2/hub/nginx/tags/list", Some("hub"), "localhost", "docker.io/hub/nginx"),
            ("/hub/v2/alpine/tags/list", None, "localhost", "docker.io/library/alpine"),
            ("/reg.example:5000/v2/a/tags/list", None, "localhost", "reg.example:5000/a"),
            ("/hub/v2/quay.io/a/tags/list", None, "quay.mirror.example", "docker.io/quay.io/a"),
            ("/v2/quay.io/a/b/tags/list", None, "localhost", "quay.io/a/b"),
            ("/v2/docker.io/alpine/tags/list", None, "quay.mirror.example", "docker.io/library/alpine"),
            ("/v2/private/a/tags/list", None, "localhost", "reg.example:5000/a"),
            ("/v2/a/b/tags/list", None, "quay.mirror.example", "quay.io/a/b"),
            ("/v2/a/b/tags/list", None, "QUAY.mirror.example:5000", "quay.io/a/b"),
            ("/v2/google.com/b/tags/list", None, "quay.mirror.example", "quay.io/google.com/b"),
            ("/v2/b/tags/list", None, "private.example:8080", "reg.example:5000/b"),
            ("/v2/b/tags/list", None, "private.example", "docker.io/library/b"),
            ("/v2/hub/tags/list", None, "localhost", "docker.io/library/hub"),
            ("/v2/", None, "localhost", "-"),
            ("/v2/", Some("quay.io"), "localhost", "quay.io"),
            ("/quay.io/v2/", None, "localhost", "quay.io"),
            ("/v2/", None, "quay.mirror.example", "quay.io"),
        ] {
            assert_eq!(resolve(hub, path, ns, host).as_deref(), Ok(expected), "{path} ns={ns:?} {host}");
        }
    }

    #[test]
    fn an_unknown_registry_is_never_asked() {
        for (path, ns) in [
            ("/v2/a/tags/list", Some("evil.example")),
            ("/v2/a/tags/list", Some("127.0.0.1:22")),
            ("/evil.example/v2/a/tags/list", None),
            ("/evil.example/v2/", None),
            ("/v2/evil.example/a/tags/list", None),
            ("/v2/", Some("evil.example")),
        ] {
            let refused = resolve(Some("docker.io"), path, ns, "localhost");
            assert!(matches!(refused, Err(NoTarget::Unknown { .. })), "{path} {ns:?} {refused:?}");
        }
        let unnamed = resolve(None, "/v2/a/tags/list", None, "localhost");
        assert!(matches!(&unnamed, Err(NoTarget::Unnamed { known }) if known.len() == 3), "{unnamed:?}");
        assert!(unnamed.unwrap_err().to_string().contains("quay.io"));
    }

    #[test]
    fn contradicting_names_are_refused() {
        let build = |registries| RoutingTable::new(Options { registries, default_registry: None }).map(|_| ());
        let clash = build(vec![routing("a.example", &["x"], &[]), routing("b.example", &["x"], &[])]);
        assert!(matches!(clash, Err(InvalidOptions::Clash { name, .. }) if name == "x"));
        let shadow = build(vec![routing("a.example", &["b.example"], &[]), routing("b.example", &[], &[])]);
        assert!(matches!(shadow, Err(InvalidOptions::Clash { .. })));
        let hosts = build(vec![routing("a.example", &[], &["m"]), routing("b.example", &[], &["m"])]);
        assert!(matches!(hosts, Err(InvalidOptions::Clash { .. })));
        for alias in ["", "a/b", "A", "v2", "a b"] {
            let refused = build(vec![routing("a.example", &[alias], &[])]);
            assert!(matches!(refused, Err(InvalidOptions::Alias { .. })), "{alias}");
        }
        let host = build(vec![routing("a.example", &[], &["http://x"])]);
        assert!(matches!(host, Err(InvalidOptions::VirtualHost { .. })));
        assert!(build(vec![routing("a.example", &["a.example", "under_score"], &["a.example"])]).is_ok());
        let default = RoutingTable::new(Options { default_registry: "z.example".parse().ok(), ..options(None) });
        assert!(matches!(default, Err(InvalidOptions::Default(_))));
    }
}
