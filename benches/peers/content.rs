//! Blobs of any size that take no memory: a fixed pseudo-random piece, repeated from a start of the blob's own.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::OnceLock;

use anyhow::Context;
use anyhow::Result;
use sha2::Digest as _;
use sha2::Sha256;

/// A prime, so that no shift by whole pages or whole pieces leaves the content as it was.
const PERIOD_BYTES: usize = 1_048_583;

/// One blob, known by its size and digest.
#[derive(Clone, Debug)]
pub(crate) struct Blob {
    pub(crate) size_bytes: u64,
    /// `sha256:` and 64 hexadecimal digits.
    pub(crate) digest: String,
    start: u64,
}

impl Blob {
    /// Blobs of other seeds have other bytes everywhere. Hashes the whole content once.
    pub(crate) fn new(size_bytes: u64, seed: u64) -> Self {
        let mut blob = Self { size_bytes, digest: String::new(), start: seed * 7919 };
        let mut hash = Sha256::new();
        let mut at = 0;
        while at < size_bytes {
            let piece = blob.piece(at, PERIOD_BYTES);
            hash.update(piece);
            at += piece.len() as u64;
        }
        blob.digest = digest_text(hash);
        blob
    }

    /// Where registries serve it.
    pub(crate) fn path(&self) -> String {
        format!("/v2/library/bench/blobs/{}", self.digest)
    }

    /// The bytes from `at`: at most `limit_bytes`, fewer where the piece or the blob ends, none at the end.
    pub(crate) fn piece(&self, at: u64, limit_bytes: usize) -> &'static [u8] {
        let pattern = pattern();
        let from = ((at + self.start) % PERIOD_BYTES as u64) as usize;
        let rest = usize::try_from(self.size_bytes.saturating_sub(at)).unwrap_or(usize::MAX);
        &pattern[from..][..limit_bytes.min(rest).min(PERIOD_BYTES - from)]
    }

    /// Whether these bytes are the ones from `at`.
    pub(crate) fn holds(&self, mut at: u64, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let piece = self.piece(at, bytes.len());
            if piece.is_empty() || piece != &bytes[..piece.len()] {
                return false;
            }
            at += piece.len() as u64;
            bytes = &bytes[piece.len()..];
        }
        true
    }
}

/// What a server has under a path.
#[derive(Clone, Debug)]
pub(crate) enum Content {
    Blob(Blob),
    Document(Document),
}

impl Content {
    /// Writes it to a file of its own.
    pub(crate) fn write_to(&self, path: &Path) -> Result<()> {
        let mut file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
        match self {
            Self::Document(document) => file.write_all(document.text.as_bytes())?,
            Self::Blob(blob) => {
                let mut at = 0;
                while at < blob.size_bytes {
                    let piece = blob.piece(at, PERIOD_BYTES);
                    file.write_all(piece)?;
                    at += piece.len() as u64;
                }
            }
        }
        Ok(())
    }
}

/// A manifest.
#[derive(Clone, Debug)]
pub(crate) struct Document {
    pub(crate) text: String,
    pub(crate) digest: String,
}

/// What a manifest says it is.
pub(crate) const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
/// The tag of the image.
pub(crate) const TAG: &str = "latest";

/// An image with one tag: a manifest, a configuration and layers.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) manifest: Document,
    pub(crate) blobs: Vec<Blob>,
}

impl Image {
    /// The first blob is the configuration.
    pub(crate) fn new(sizes_bytes: &[u64]) -> Self {
        let blobs: Vec<Blob> = (100..).zip(sizes_bytes).map(|(seed, size)| Blob::new(*size, seed)).collect();
        let describe = |(place, blob): (usize, &Blob)| {
            let kind = if place == 0 { "config.v1+json" } else { "layer.v1.tar+gzip" };
            serde_json::json!({
                "mediaType": format!("application/vnd.oci.image.{kind}"), "digest": blob.digest, "size": blob.size_bytes
            })
        };
        let descriptors: Vec<_> = blobs.iter().enumerate().map(describe).collect();
        let text = serde_json::json!({
            "schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": descriptors[0], "layers": descriptors[1..]
        });
        let text = text.to_string();
        let mut hash = Sha256::new();
        hash.update(&text);
        Self { manifest: Document { digest: digest_text(hash), text }, blobs }
    }

    pub(crate) fn path_by_tag(&self) -> String {
        format!("/v2/library/bench/manifests/{TAG}")
    }

    pub(crate) fn path_by_digest(&self) -> String {
        format!("/v2/library/bench/manifests/{}", self.manifest.digest)
    }

    /// Everything under its path.
    pub(crate) fn files(&self) -> Vec<(String, Content)> {
        let document = || Content::Document(self.manifest.clone());
        let blobs = self.blobs.iter().map(|blob| (blob.path(), Content::Blob(blob.clone())));
        blobs.chain([(self.path_by_tag(), document()), (self.path_by_digest(), document())]).collect()
    }
}

/// The digest in its written form.
pub(crate) fn digest_text(hash: Sha256) -> String {
    hash.finalize().iter().fold("sha256:".to_owned(), |mut text, byte| {
        let _ = std::fmt::Write::write_fmt(&mut text, format_args!("{byte:02x}"));
        text
    })
}

fn pattern() -> &'static [u8] {
    static PATTERN: OnceLock<Vec<u8>> = OnceLock::new();
    PATTERN.get_or_init(|| {
        // xorshift64*: fast, and random enough that nothing on the way can shorten it.
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        let next = || {
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            state.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes()[7]
        };
        std::iter::repeat_with(next).take(PERIOD_BYTES).collect()
    })
}
