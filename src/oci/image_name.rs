//! An image as people write it: `[registry/]repository[:tag][@digest]`.

use std::fmt;
use std::str::FromStr;

use super::digest::Digest;
use super::name::Registry;
use super::name::Repository;
use super::name::RepositoryName;
use super::reference::Reference;
use super::reference::Tag;

/// The registry of names that give none.
const DEFAULT_REGISTRY: &str = "docker.io";
/// The tag of names that give neither tag nor digest.
const DEFAULT_TAG: &str = "latest";

/// The text names no image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write an image as [registry/]repository[:tag] or [registry/]repository@sha256:…, such as quay.io/a/b:v1")]
pub struct InvalidImageName;

/// A manifest of a repository. Where a name gives a tag and a digest, the digest counts, as for engines.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ImageName {
    /// Where it is.
    pub repository: Repository,
    /// Which one.
    pub reference: Reference,
}

impl FromStr for ImageName {
    type Err = InvalidImageName;

    /// As container engines read it: the first part is a registry if it has a dot or a port, or is `localhost`.
    fn from_str(text: &str) -> Result<Self, InvalidImageName> {
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest.parse::<Digest>().map_err(|_| InvalidImageName)?)),
            None => (text, None),
        };
        let (name, tag) = match name.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')) {
            Some((name, tag)) => (name, Some(tag.parse::<Tag>().map_err(|_| InvalidImageName)?)),
            None => (name, None),
        };
        let is_registry = |part: &str| part.contains(['.', ':']) || part == "localhost";
        let (registry, name) = match name.split_once('/').filter(|(first, _)| is_registry(first)) {
            Some((registry, name)) => (registry, name),
            None => (DEFAULT_REGISTRY, name),
        };
        let registry: Registry = registry.parse().map_err(|_| InvalidImageName)?;
        let name: RepositoryName = name.parse().map_err(|_| InvalidImageName)?;
        let reference = match (digest, tag) {
            (Some(digest), _) => Reference::Digest(digest),
            (None, Some(tag)) => Reference::Tag(tag),
            (None, None) => Reference::Tag(DEFAULT_TAG.parse().map_err(|_| InvalidImageName)?),
        };
        let name = name.normalized_for(&registry);
        Ok(Self { repository: Repository { registry, name }, reference })
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reference {
            Reference::Tag(tag) => write!(f, "{}:{tag}", self.repository),
            Reference::Digest(digest) => write!(f, "{}@{digest}", self.repository),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_engines_read_them() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let rows = [
            ("alpine", "docker.io/library/alpine:latest"),
            ("alpine:3.20", "docker.io/library/alpine:3.20"),
            ("user/app", "docker.io/user/app:latest"),
            ("quay.io/a/b:v1", "quay.io/a/b:v1"),
            ("localhost/a", "localhost/a:latest"),
            ("reg.example:5000/a/b", "reg.example:5000/a/b:latest"),
            ("docker.io/alpine", "docker.io/library/alpine:latest"),
        ];
        for (text, full) in rows {
            assert_eq!(text.parse::<ImageName>().unwrap().to_string(), full, "{text}");
        }
        let both = format!("quay.io/a/b:v1@{digest}");
        assert_eq!(both.parse::<ImageName>().unwrap().to_string(), format!("quay.io/a/b@{digest}"));
        for wrong in ["", ":", "a:", "UPPER", "a@sha256:x", "a/", "https://quay.io/a", "a b"] {
            assert!(wrong.parse::<ImageName>().is_err(), "{wrong}");
        }
    }
}
