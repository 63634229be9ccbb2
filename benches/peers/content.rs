//! Blobs of any size that take no memory: a fixed pseudo-random piece, repeated from a start of the blob's own.

use std::fmt::Write as _;
use std::sync::OnceLock;

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

/// The digest in its written form.
pub(crate) fn digest_text(hash: Sha256) -> String {
    hash.finalize().iter().fold("sha256:".to_owned(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
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
