//! Content for a registry: bytes that do not repeat, digests, images made of real manifests.

use bytes::Bytes;
use serde_json::json;
use sha2::Digest;
use sha2::Sha256;
use sha2::Sha512;

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

pub(crate) const KIB: usize = 1024;
pub(crate) const MIB: usize = 1024 * KIB;

/// `length` bytes in which no two aligned words are alike, so that a shifted or swapped piece cannot go unnoticed.
pub(crate) fn sample(seed: u64, length: usize) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes.into()
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

pub(crate) fn sha512(bytes: &[u8]) -> String {
    format!("sha512:{}", hex(&Sha512::digest(bytes)))
}

/// Digest of `bytes` by the algorithm that `like` names.
pub(crate) fn digest_like(like: &str, bytes: &[u8]) -> String {
    if like.starts_with("sha512:") { sha512(bytes) } else { sha256(bytes) }
}

/// A well-formed digest nothing has.
pub(crate) fn unknown_digest() -> String {
    format!("sha256:{}", "0".repeat(64))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An image that was put into a registry: its manifest, its config and its layers.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) manifest: Bytes,
    pub(crate) digest: String,
    pub(crate) config: Bytes,
    pub(crate) config_digest: String,
    pub(crate) layers: Vec<(String, Bytes)>,
}

/// Builds the documents of an image with these layers. `note` goes into the config, so two images with the same layers differ.
pub(crate) fn image(note: &str, layers: &[Bytes]) -> Image {
    let layers: Vec<(String, Bytes)> = layers.iter().map(|layer| (sha256(layer), layer.clone())).collect();
    let diff_ids: Vec<&String> = layers.iter().map(|(digest, _)| digest).collect();
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": { "Labels": { "note": note } },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = Bytes::from(config.to_string());
    let config_digest = sha256(&config);
    let descriptors: Vec<serde_json::Value> = layers
        .iter()
        .map(|(digest, bytes)| json!({ "mediaType": OCI_LAYER, "digest": digest, "size": bytes.len() }))
        .collect();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": { "mediaType": OCI_CONFIG, "digest": config_digest, "size": config.len() },
        "layers": descriptors,
    });
    // Pretty-printed with a trailing newline: a proxy that re-serialises JSON changes these bytes.
    let manifest = Bytes::from(format!("{manifest:#}\n"));
    Image { digest: sha256(&manifest), manifest, config, config_digest, layers }
}

/// An index naming these manifests (digest, size).
pub(crate) fn index(manifests: &[(String, usize)]) -> Bytes {
    let manifests: Vec<serde_json::Value> = manifests
        .iter()
        .map(|(digest, size)| {
            json!({
                "mediaType": OCI_MANIFEST, "digest": digest, "size": size,
                "platform": { "architecture": "amd64", "os": "linux" },
            })
        })
        .collect();
    let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests });
    Bytes::from(format!("{index:#}"))
}

/// An image manifest of exactly `size_bytes`, padded in an annotation.
pub(crate) fn manifest_of_size(size_bytes: usize) -> Bytes {
    let document = |padding: &str| {
        json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": { "mediaType": OCI_CONFIG, "digest": unknown_digest(), "size": 2 },
            "layers": [],
            "annotations": { "padding": padding },
        })
        .to_string()
    };
    let padding = size_bytes.checked_sub(document("").len()).expect("a size with room for the document");
    document(&"x".repeat(padding)).into()
}
