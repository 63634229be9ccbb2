//! What an image is made of and where it runs, as its documents say. For people and for choosing; a proof of nothing.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

use super::digest::Digest;

/// Most members or layers that are listed of one document.
const MAX_MEMBERS: usize = 10_000;
/// Longest part of a platform.
const MAX_PART_CHARS: usize = 64;

/// The text is not a platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write a platform as os/architecture or os/architecture/variant, such as linux/arm64 or linux/arm/v7")]
pub struct InvalidPlatform;

/// An operating system and a processor (OCI image-spec, "Platform variants"), in lower case.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

/// What a manifest or an index names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outline {
    /// Of an index: its manifests.
    pub members: Vec<Member>,
    /// Of an image: its configuration.
    pub config: Option<(Digest, u64)>,
    /// Of an image: its layers, with their sizes as claimed.
    pub layers: Vec<(Digest, u64)>,
}

/// A manifest that an index names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its digest.
    pub digest: Digest,
    /// Where it runs; `None` where it does not say, or is no image but an attestation.
    pub platform: Option<Platform>,
}

impl Platform {
    fn new(os: &str, architecture: &str, variant: Option<&str>) -> Result<Self, InvalidPlatform> {
        let part = |text: &str| {
            let is_sane = !text.is_empty()
                && text.len() <= MAX_PART_CHARS
                && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
            if is_sane { Ok(text.to_ascii_lowercase()) } else { Err(InvalidPlatform) }
        };
        let variant = variant.filter(|variant| !variant.is_empty()).map(part).transpose()?;
        Ok(Self { os: part(os)?, architecture: part(architecture)?, variant })
    }

    /// Whether an image for `other` is wanted by who asks for this one; without a variant, every variant is.
    pub fn admits(&self, other: &Self) -> bool {
        self.os == other.os
            && self.architecture == other.architecture
            && self.variant.as_ref().is_none_or(|variant| other.variant.as_ref() == Some(variant))
    }

    /// Buildx writes attestations into an index as manifests for this place.
    fn is_unknown(&self) -> bool {
        self.os == "unknown"
    }
}

impl FromStr for Platform {
    type Err = InvalidPlatform;

    fn from_str(text: &str) -> Result<Self, InvalidPlatform> {
        let mut parts = text.split('/');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(os), Some(architecture), variant, None) => Self::new(os, architecture, variant),
            _ => Err(InvalidPlatform),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

#[derive(Deserialize)]
struct WrittenPlatform {
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: String,
    #[serde(default)]
    size: u64,
    platform: Option<WrittenPlatform>,
}

#[derive(Deserialize)]
struct Document {
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    /// Of the withdrawn OCI artifact manifest.
    blobs: Option<Vec<Descriptor>>,
}

/// What a manifest names; nothing where it cannot be read. Members past `MAX_MEMBERS`, and digests that Forebay does not
/// know, are left out.
pub fn outline(document: &[u8]) -> Outline {
    let Ok(document) = serde_json::from_slice::<Document>(document) else { return Outline::default() };
    let named = |descriptor: &Descriptor| Some((descriptor.digest.parse().ok()?, descriptor.size));
    let member = |descriptor: Descriptor| {
        let digest = descriptor.digest.parse().ok()?;
        let platform = descriptor.platform.and_then(WrittenPlatform::read).filter(|platform| !platform.is_unknown());
        Some(Member { digest, platform })
    };
    let layers = document.layers.into_iter().flatten().chain(document.blobs.into_iter().flatten());
    Outline {
        members: document.manifests.into_iter().flatten().filter_map(member).take(MAX_MEMBERS).collect(),
        config: document.config.as_ref().and_then(named),
        layers: layers.filter_map(|descriptor| named(&descriptor)).take(MAX_MEMBERS).collect(),
    }
}

/// Where an image runs, by its configuration.
pub fn platform_of(config: &[u8]) -> Option<Platform> {
    serde_json::from_slice::<WrittenPlatform>(config).ok()?.read().filter(|platform| !platform.is_unknown())
}

impl WrittenPlatform {
    fn read(self) -> Option<Platform> {
        Platform::new(&self.os?, &self.architecture?, self.variant.as_deref()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn platforms_are_read_and_chosen() {
        let platform = |text: &str| text.parse::<Platform>();
        assert_eq!(platform("Linux/ARM/v7").unwrap().to_string(), "linux/arm/v7");
        for text in ["", "linux", "linux/", "/arm64", "linux/arm/v7/x", "linux/a b"] {
            assert_eq!(platform(text), Err(InvalidPlatform), "{text}");
        }
        let admits = |wanted: &str, there: &str| platform(wanted).unwrap().admits(&platform(there).unwrap());
        assert!(admits("linux/arm64", "linux/arm64/v8") && admits("linux/arm/v7", "linux/arm/v7"));
        assert!(!admits("linux/arm/v7", "linux/arm/v6") && !admits("linux/amd64", "windows/amd64"));
        assert!(!admits("linux/arm/v7", "linux/arm"));
    }

    #[test]
    fn an_index_and_an_image_are_outlined() {
        let index = format!(
            r#"{{"manifests":[{{"digest":"{DIGEST}","platform":{{"os":"linux","architecture":"amd64"}}}},
                {{"digest":"{DIGEST}","platform":{{"os":"unknown","architecture":"unknown"}}}},{{"digest":"md5:x"}}]}}"#
        );
        let members = outline(index.as_bytes()).members;
        let platforms: Vec<_> =
            members.iter().map(|member| member.platform.as_ref().map(Platform::to_string)).collect();
        assert_eq!(platforms, [Some("linux/amd64".to_owned()), None]);
        let image =
            format!(r#"{{"config":{{"digest":"{DIGEST}","size":2}},"layers":[{{"digest":"{DIGEST}","size":7}}]}}"#);
        let image = outline(image.as_bytes());
        assert_eq!((image.config.unwrap().1, image.layers[0].1), (2, 7));
        assert_eq!(outline(b"no json"), Outline::default());
        let config = br#"{"os":"linux","architecture":"arm","variant":"v7","rootfs":{}}"#;
        assert_eq!(platform_of(config).unwrap().to_string(), "linux/arm/v7");
    }
}
