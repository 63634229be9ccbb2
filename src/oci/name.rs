//! Registries and repositories (OCI distribution-spec, "Pulling manifests": the `<name>` grammar).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Longest accepted registry host, with its port.
const MAX_REGISTRY_CHARS: usize = 255;
/// Longest accepted repository name: what every client accepts at most.
const MAX_REPOSITORY_CHARS: usize = 255;

/// The text is not a registry host or repository name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// Not `host` or `host:port`.
    #[error(
        "a registry is a lower-case host name, with a port if it needs one, such as `ghcr.io` or `registry.example:5000`"
    )]
    Registry,
    /// Outside the grammar of `<name>`.
    #[error(
        "a repository name is lower-case letters and digits, separated by one `.`, one or two `_`, or `-`, \
         in components separated by `/`, of at most 255 characters"
    )]
    Repository,
}

/// A registry: the host, with its port where it has one, that stands first in an image reference.
///
/// It is a lookup key among the configured registries, never an address to dial.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Registry(Arc<str>);

impl Registry {
    /// The host as written in references.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is Docker Hub, whose one-part repositories live under `library/`.
    pub fn is_docker_hub(&self) -> bool {
        &*self.0 == "docker.io"
    }
}

impl FromStr for Registry {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        if text.is_empty() || text.len() > MAX_REGISTRY_CHARS {
            return Err(InvalidName::Registry);
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        };
        let host_is_valid = host.split('.').all(is_host_label);
        let port_is_valid = port.is_none_or(|port| {
            !port.starts_with('0') && port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok()
        });
        if host_is_valid && port_is_valid { Ok(Self(text.into())) } else { Err(InvalidName::Registry) }
    }
}

fn is_host_label(label: &str) -> bool {
    let bytes = label.as_bytes();
    let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
    !bytes.is_empty() && bytes.iter().all(inner) && bytes[0] != b'-' && bytes[bytes.len() - 1] != b'-'
}

impl fmt::Display for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a repository within its registry, such as `library/alpine`.
///
/// Never empty, never with an empty or dotted component, so it is safe in a URL path as it is.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RepositoryName(Arc<str>);

impl RepositoryName {
    /// The name with its slashes.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first component and the rest, when there is more than one.
    pub fn split_first(&self) -> Option<(&str, RepositoryName)> {
        let (first, rest) = self.0.split_once('/')?;
        Some((first, RepositoryName(rest.into())))
    }

    /// The name that this registry knows it by: Docker Hub's one-part names live under `library/`.
    pub fn normalized_for(self, registry: &Registry) -> Self {
        if registry.is_docker_hub() && !self.0.contains('/') {
            RepositoryName(format!("library/{}", self.0).into())
        } else {
            self
        }
    }
}

impl FromStr for RepositoryName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        if text.len() <= MAX_REPOSITORY_CHARS && text.split('/').all(is_component) {
            Ok(Self(text.into()))
        } else {
            Err(InvalidName::Repository)
        }
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(component: &str) -> bool {
    let is_alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    is_alphanumeric(first)
        && is_alphanumeric(last)
        && bytes.split(|&b| is_alphanumeric(b)).all(|separator| match separator {
            [] | b"." | b"_" | b"__" => true,
            dashes => dashes.iter().all(|&b| b == b'-'),
        })
}

impl fmt::Display for RepositoryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RepositoryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A repository of a registry: what a grant, a tag or a token is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository {
    /// Where it lives.
    pub registry: Registry,
    /// Its name there.
    pub name: RepositoryName,
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn repository_grammar() {
        let longest = "a".repeat(MAX_REPOSITORY_CHARS);
        for name in ["a", "library/alpine", "a.b/c_d/e__f/g---h", "0/1", "a/manifests/b", &longest] {
            assert!(name.parse::<RepositoryName>().is_ok(), "{name}");
        }
        let too_long = "a".repeat(MAX_REPOSITORY_CHARS + 1);
        for name in [
            "", "/", "a/", "/a", "a//b", "A", "a..b", "a___b", "a._b", "-a", "a-", ".", "..", "a/../b", "a:b", "a%2fb",
            "é", "a b", &too_long,
        ] {
            assert!(name.parse::<RepositoryName>().is_err(), "{name}");
        }
    }

    #[test]
    fn registry_grammar() {
        for host in ["docker.io", "localhost", "registry.example:5000", "127.0.0.1:5000", "a-b.c"] {
            assert!(host.parse::<Registry>().is_ok(), "{host}");
        }
        for host in [
            "",
            "Docker.io",
            "docker.io.",
            ".io",
            "a b",
            "a/b",
            "a:b",
            "a:",
            "a:0",
            "a:65536",
            "a:+80",
            "user@host",
            "http://a",
            "a\r\nb",
            "[::1]",
            "-a.b",
            "a-.b",
        ] {
            assert!(host.parse::<Registry>().is_err(), "{host}");
        }
    }

    #[test]
    fn only_docker_hub_has_a_library() {
        let hub: Registry = "docker.io".parse().unwrap();
        let quay: Registry = "quay.io".parse().unwrap();
        let name = |text: &str| text.parse::<RepositoryName>().unwrap();
        assert_eq!(name("alpine").normalized_for(&hub).as_str(), "library/alpine");
        assert_eq!(name("a/alpine").normalized_for(&hub).as_str(), "a/alpine");
        assert_eq!(name("alpine").normalized_for(&quay).as_str(), "alpine");
    }

    proptest! {
        #[test]
        fn whatever_the_expression_makes_is_accepted(
            name in "[a-z0-9]{1,5}((\\.|_|__|-{1,3})[a-z0-9]{1,4}){0,3}(/[a-z0-9]{1,5}((\\.|_|__|-{1,3})[a-z0-9]{1,4}){0,3}){0,3}"
        ) {
            prop_assert!(name.parse::<RepositoryName>().is_ok());
        }

        #[test]
        fn nothing_accepted_can_leave_its_place(name in "[a-zA-Z0-9./_%:\\\\-]{0,40}") {
            if name.parse::<RepositoryName>().is_ok() {
                prop_assert!(!name.contains("..") && !name.starts_with('/') && !name.contains("//") && !name.contains(['%', ':', '\\']));
            }
        }
    }
}
