//! What Forebay reads of a manifest: enough to refuse type confusion and to list what it names. Never rewritten.

use serde::Deserialize;

use super::digest::Digest;
use super::media_type::MediaType;

/// Largest manifest that is fetched or kept: the ceiling that every client accepts.
pub const MAX_MANIFEST_BYTES: usize = 4 * 1024 * 1024;
/// Most descriptors that are listed of one manifest.
const MAX_CHILDREN: usize = 10_000;

/// The document is not what its media type says (the class of CVE-2021-41190), or cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidManifest {
    /// Over [`MAX_MANIFEST_BYTES`].
    #[error("the manifest is larger than 4 MiB")]
    TooLarge,
    /// Docker schema 1: its digest is not over its bytes, so it cannot be verified.
    #[error("the registry answered with a Docker schema 1 manifest, which cannot be verified by its digest")]
    Schema1,
    /// Said to be a manifest, but not the JSON of one.
    #[error("the manifest cannot be read as JSON: {0}")]
    Json(String),
    /// `mediaType` inside and `Content-Type` outside disagree.
    #[error("the manifest calls itself `{inside}`, but was sent as `{outside}`")]
    TypeMismatch {
        /// In the document.
        inside: String,
        /// In the header.
        outside: String,
    },
    /// It names manifests and blobs at once.
    #[error("the document can be read both as an index and as an image manifest")]
    Ambiguous,
}

/// What a manifest names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Children {
    /// Of an index: its manifests.
    pub manifests: Vec<Digest>,
    /// Of an image: its config and layers, with their sizes as claimed.
    pub blobs: Vec<(Digest, u64)>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    media_type: Option<String>,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    /// Of the withdrawn OCI artifact manifest.
    blobs: Option<Vec<Descriptor>>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: String,
    #[serde(default)]
    size: u64,
}

/// Checks that the bytes are what `media_type` says and lists what they name.
///
/// A media type that is no known manifest type is opaque: nothing is read, nothing is listed. Digests that Forebay cannot
/// verify, and everything past `MAX_CHILDREN`, are left out of the list: it is never a proof of anything.
pub fn inspect(media_type: &MediaType, bytes: &[u8]) -> Result<Children, InvalidManifest> {
    if bytes.len() > MAX_MANIFEST_BYTES {
        return Err(InvalidManifest::TooLarge);
    }
    if media_type.is_schema1() {
        return Err(InvalidManifest::Schema1);
    }
    if !media_type.is_index() && !media_type.is_image() {
        return Ok(Children::default());
    }
    let document: Document = serde_json::from_slice(bytes).map_err(|error| InvalidManifest::Json(error.to_string()))?;
    document.check(media_type)?;
    Ok(document.children())
}

impl Document {
    fn check(&self, outside: &MediaType) -> Result<(), InvalidManifest> {
        let names_blobs = self.layers.is_some() || self.config.is_some() || self.blobs.is_some();
        if self.manifests.is_some() && names_blobs {
            return Err(InvalidManifest::Ambiguous);
        }
        let mismatch =
            |inside: &str| InvalidManifest::TypeMismatch { inside: inside.to_owned(), outside: outside.to_string() };
        if let Some(inside) = &self.media_type
            && !inside.eq_ignore_ascii_case(outside.as_str())
        {
            return Err(mismatch(inside));
        }
        match (outside.is_index(), names_blobs, self.manifests.is_some()) {
            (true, true, _) => Err(mismatch("an image manifest")),
            (false, _, true) => Err(mismatch("an index")),
            _ => Ok(()),
        }
    }

    fn children(self) -> Children {
        let blobs =
            self.config.into_iter().chain(self.layers.into_iter().flatten()).chain(self.blobs.into_iter().flatten());
        Children {
            manifests: self
                .manifests
                .into_iter()
                .flatten()
                .filter_map(|d| d.digest.parse().ok())
                .take(MAX_CHILDREN)
                .collect(),
            blobs: blobs.filter_map(|d| Some((d.digest.parse().ok()?, d.size))).take(MAX_CHILDREN).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn inspect_text(media_type: &MediaType, text: &str) -> Result<Children, InvalidManifest> {
        inspect(media_type, text.as_bytes())
    }

    #[test]
    fn lists_what_it_names() {
        let image = format!(
            r#"{{"schemaVersion":2,"config":{{"digest":"{DIGEST}","size":2}},"layers":[{{"digest":"{DIGEST}","size":7}},{{"digest":"md5:x","size":1}}]}}"#
        );
        let children = inspect_text(&MediaType::oci_manifest(), &image).unwrap();
        assert_eq!(children.blobs.iter().map(|blob| blob.1).collect::<Vec<_>>(), [2, 7]);
        let index = format!(r#"{{"manifests":[{{"digest":"{DIGEST}"}}]}}"#);
        assert_eq!(inspect_text(&MediaType::oci_index(), &index).unwrap().manifests.len(), 1);
    }

    #[test]
    fn refuses_confusion() {
        let index = MediaType::oci_index();
        let image = MediaType::oci_manifest();
        assert_eq!(inspect_text(&index, r#"{"manifests":[],"layers":[]}"#), Err(InvalidManifest::Ambiguous));
        let inside = format!(r#"{{"mediaType":"{image}"}}"#);
        assert!(matches!(inspect_text(&index, &inside), Err(InvalidManifest::TypeMismatch { .. })));
        assert!(matches!(inspect_text(&index, r#"{"layers":[]}"#), Err(InvalidManifest::TypeMismatch { .. })));
        assert!(matches!(inspect_text(&image, r#"{"manifests":[]}"#), Err(InvalidManifest::TypeMismatch { .. })));
        assert!(matches!(inspect_text(&image, "not json"), Err(InvalidManifest::Json(_))));
        let schema1 = "application/vnd.docker.distribution.manifest.v1+prettyjws".parse().unwrap();
        assert_eq!(inspect_text(&schema1, "{}"), Err(InvalidManifest::Schema1));
        assert_eq!(inspect(&image, &vec![b' '; MAX_MANIFEST_BYTES + 1]), Err(InvalidManifest::TooLarge));
    }

    #[test]
    fn unknown_types_are_opaque() {
        assert_eq!(inspect_text(&MediaType::octet_stream(), "anything"), Ok(Children::default()));
    }
}
