//! Media types of manifests (OCI image-spec "Media types"; Docker image manifest v2 schema 2).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_ARTIFACT: &str = "application/vnd.oci.artifact.manifest.v1+json";
const SCHEMA1: [&str; 2] = [
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
];

/// What Forebay asks registries for, whatever its client accepts: one variant a tag, never schema 1.
pub const MANIFEST_ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json, \
     application/vnd.oci.artifact.manifest.v1+json, */*;q=0.1";

const MAX_MEDIA_TYPE_CHARS: usize = 255;

/// The text is not a media type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a media type is `type/subtype` of at most 255 characters")]
pub struct InvalidMediaType;

/// A media type without parameters (RFC 9110 section 8.3.1), in lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MediaType(Arc<str>);

impl MediaType {
    /// `application/octet-stream`.
    pub fn octet_stream() -> Self {
        Self("application/octet-stream".into())
    }

    /// The OCI image index.
    pub fn oci_index() -> Self {
        Self(OCI_INDEX.into())
    }

    /// The OCI image manifest.
    pub fn oci_manifest() -> Self {
        Self(OCI_MANIFEST.into())
    }

    /// A type that says nothing gives way to the one that the document shows: some registries send manifests as `text/plain`.
    pub fn or_sniffed(self, document: &[u8]) -> Self {
        match &*self.0 {
            "text/plain" | "application/json" | "application/octet-stream" => {
                Self::sniff(document).filter(|shown| shown.is_index() || shown.is_image()).unwrap_or(self)
            }
            _ => self,
        }
    }

    /// The type that a manifest shows by itself: its `mediaType`, or else what it names (OCI image-spec, "Guidance").
    fn sniff(document: &[u8]) -> Option<Self> {
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Document {
            media_type: Option<String>,
            manifests: Option<serde::de::IgnoredAny>,
            layers: Option<serde::de::IgnoredAny>,
        }
        let document: Document = serde_json::from_slice(document).ok()?;
        match document {
            Document { media_type: Some(media_type), .. } => media_type.parse().ok(),
            Document { manifests: Some(_), layers: None, .. } => Some(Self::oci_index()),
            Document { manifests: None, layers: Some(_), .. } => Some(Self::oci_manifest()),
            _ => None,
        }
    }

    /// The type as sent in `Content-Type`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// An index or manifest list: it names manifests.
    pub fn is_index(&self) -> bool {
        matches!(&*self.0, OCI_INDEX | DOCKER_LIST)
    }

    /// An image or artifact manifest: it names blobs.
    pub fn is_image(&self) -> bool {
        matches!(&*self.0, OCI_MANIFEST | DOCKER_MANIFEST | OCI_ARTIFACT)
    }

    /// Docker's schema 1, signed or not, whose digest is not over the bytes that are sent.
    pub fn is_schema1(&self) -> bool {
        SCHEMA1.contains(&&*self.0)
    }
}

impl FromStr for MediaType {
    type Err = InvalidMediaType;

    /// Parameters are dropped: manifests are compared by type alone.
    fn from_str(text: &str) -> Result<Self, InvalidMediaType> {
        let essence = text.split(';').next().unwrap_or_default().trim();
        let (kind, subtype) = essence.split_once('/').ok_or(InvalidMediaType)?;
        if essence.len() <= MAX_MEDIA_TYPE_CHARS && is_token(kind) && is_token(subtype) {
            Ok(Self(essence.to_ascii_lowercase().into()))
        } else {
            Err(InvalidMediaType)
        }
    }
}

/// RFC 9110 section 5.6.2.
fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

impl fmt::Display for MediaType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_and_case_are_dropped() {
        let parsed: MediaType = "Application/Vnd.OCI.image.index.v1+json; charset=utf-8".parse().unwrap();
        assert_eq!(parsed, MediaType::oci_index());
        assert!(parsed.is_index());
    }

    #[test]
    fn a_type_that_says_nothing_gives_way() {
        let sniffed = |sent: &str, document: &str| {
            let sent: MediaType = sent.parse().unwrap();
            sent.or_sniffed(document.as_bytes()).to_string()
        };
        let index = r#"{"manifests":[]}"#;
        assert_eq!(sniffed("text/plain; charset=utf-8", index), OCI_INDEX);
        assert_eq!(sniffed("application/json", r#"{"layers":[]}"#), OCI_MANIFEST);
        assert_eq!(sniffed("application/octet-stream", &format!(r#"{{"mediaType":"{DOCKER_LIST}"}}"#)), DOCKER_LIST);
        assert_eq!(sniffed("application/x-mine", index), "application/x-mine");
        assert_eq!(sniffed("application/json", r#"{"mediaType":"application/x-mine"}"#), "application/json");
        assert_eq!(sniffed("text/plain", "no json"), "text/plain");
    }

    #[test]
    fn refuses_what_is_no_media_type() {
        for text in ["", "json", "a/", "/b", "a b/c", "a/b\r\nX: y", &format!("a/{}", "b".repeat(255))] {
            assert!(text.parse::<MediaType>().is_err(), "{text}");
        }
    }
}
