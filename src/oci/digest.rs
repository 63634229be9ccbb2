//! Content digests (OCI image-spec, "Digests") and the proof that content matches one.

use std::fmt;
use std::str::FromStr;

use sha2::Digest as _;

/// A registered digest algorithm that Forebay can verify.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256, 32 bytes.
    Sha256,
    /// SHA-512, 64 bytes.
    Sha512,
}

impl Algorithm {
    /// The name as it stands before the colon.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }
}

/// A content digest: `sha256:` and 64, or `sha512:` and 128 lower-case hexadecimal digits.
///
/// Digests of different algorithms are never equal, whatever they name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Digest {
    /// A SHA-256 digest.
    Sha256([u8; 32]),
    /// A SHA-512 digest.
    Sha512([u8; 64]),
}

/// The text is not a digest that Forebay can verify.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a digest is `sha256:` and 64, or `sha512:` and 128 lower-case hexadecimal digits")]
pub struct InvalidDigest;

impl Digest {
    /// The digest of `bytes`.
    pub fn of(algorithm: Algorithm, bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }

    /// Which algorithm made it.
    pub fn algorithm(&self) -> Algorithm {
        match self {
            Self::Sha256(_) => Algorithm::Sha256,
            Self::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// The raw hash: 32 or 64 bytes.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Sha256(bytes) => bytes,
            Self::Sha512(bytes) => bytes,
        }
    }

    /// The part after the colon.
    pub fn hex(&self) -> String {
        let text = Text::of(self);
        text.as_str().split_once(':').map_or_else(String::new, |(_, hex)| hex.to_owned())
    }
}

/// A digest in its written form, without an allocation: it stands in every answer, twice.
struct Text {
    bytes: [u8; MAX_TEXT_BYTES],
    size_bytes: usize,
}

/// `sha512:` and 128 digits.
const MAX_TEXT_BYTES: usize = 7 + 128;
const HEX: &[u8; 16] = b"0123456789abcdef";

impl Text {
    fn of(digest: &Digest) -> Self {
        let mut bytes = [b':'; MAX_TEXT_BYTES];
        let name = digest.algorithm().as_str().as_bytes();
        bytes[..name.len()].copy_from_slice(name);
        let (digits, _) = bytes[name.len() + 1..].as_chunks_mut::<2>();
        for (digits, byte) in digits.iter_mut().zip(digest.as_bytes()) {
            *digits = [HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]];
        }
        Self { bytes, size_bytes: name.len() + 1 + 2 * digest.as_bytes().len() }
    }

    fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.size_bytes]).expect("names and digits are ASCII")
    }
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let (algorithm, hex) = text.split_once(':').ok_or(InvalidDigest)?;
        match algorithm {
            "sha256" => unhex(hex).map(Self::Sha256),
            "sha512" => unhex(hex).map(Self::Sha512),
            _ => Err(InvalidDigest),
        }
    }
}

fn unhex<const N: usize>(hex: &str) -> Result<[u8; N], InvalidDigest> {
    let digits = hex.as_bytes();
    if digits.len() != N * 2 {
        return Err(InvalidDigest);
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Ok(bytes)
}

fn nibble(digit: u8) -> Result<u8, InvalidDigest> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        _ => Err(InvalidDigest),
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Text::of(self).as_str())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// As text.
impl serde::Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

// === Hasher ===

/// An in-order hash over content, with the number of bytes it has seen.
#[derive(Clone, Debug)]
pub struct Hasher {
    state: State,
    size_bytes: u64,
}

#[derive(Clone, Debug)]
enum State {
    Sha256(sha2::Sha256),
    Sha512(sha2::Sha512),
}

impl Hasher {
    /// Starts at the first byte.
    pub fn new(algorithm: Algorithm) -> Self {
        let state = match algorithm {
            Algorithm::Sha256 => State::Sha256(sha2::Sha256::new()),
            Algorithm::Sha512 => State::Sha512(sha2::Sha512::new()),
        };
        Self { state, size_bytes: 0 }
    }

    /// Takes the next bytes of the content.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.state {
            State::Sha256(hash) => hash.update(bytes),
            State::Sha512(hash) => hash.update(bytes),
        }
        self.size_bytes += bytes.len() as u64;
    }

    /// How many bytes it has seen.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The digest of what it has seen.
    pub fn finish(self) -> Digest {
        match self.state {
            State::Sha256(hash) => Digest::Sha256(hash.finalize().into()),
            State::Sha512(hash) => Digest::Sha512(hash.finalize().into()),
        }
    }

    /// Compares what it has seen with the wanted digest: the only way to a [`Verified`].
    pub fn verify(self, wanted: &Digest) -> Result<Verified, Mismatch> {
        let size_bytes = self.size_bytes;
        let found = self.finish();
        if found == *wanted {
            Ok(Verified { digest: found, size_bytes })
        } else {
            Err(Mismatch { wanted: *wanted, found })
        }
    }
}

/// Proof that some content of `size_bytes` bytes has this digest.
///
/// Storage publishes content only against this value.
#[derive(Debug, PartialEq, Eq)]
pub struct Verified {
    digest: Digest,
    size_bytes: u64,
}

impl Verified {
    /// Hashes `bytes` and compares.
    pub fn check(wanted: &Digest, bytes: &[u8]) -> Result<Self, Mismatch> {
        let mut hasher = Hasher::new(wanted.algorithm());
        hasher.update(bytes);
        hasher.verify(wanted)
    }

    /// The proven digest.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The length of the proven content.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
}

/// The content is not what its digest says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("wanted {wanted}, the content is {found}")]
pub struct Mismatch {
    /// What was asked for.
    pub wanted: Digest,
    /// What the content hashes to.
    pub found: Digest,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn known_value_round_trips() {
        let digest: Digest = EMPTY.parse().unwrap();
        assert_eq!(digest, Digest::of(Algorithm::Sha256, b""));
        assert_eq!(digest.to_string(), EMPTY);
    }

    #[test]
    fn refuses_what_the_grammar_refuses() {
        let upper = EMPTY.to_uppercase().replace("SHA256", "sha256");
        for text in [
            "",
            "sha256",
            "sha256:",
            "sha256:baddigeststring",
            "sha1:da39a3ee5e6b4b0d3255bfef95601890afd80709",
            &EMPTY[1..],
            &EMPTY[..70],
            &upper,
            &format!("{EMPTY}0"),
            &EMPTY.replace("sha256", "sha512"),
        ] {
            assert_eq!(text.parse::<Digest>(), Err(InvalidDigest), "{text}");
        }
    }

    #[test]
    fn mismatch_proves_nothing() {
        let wanted: Digest = EMPTY.parse().unwrap();
        assert!(Verified::check(&wanted, b"x").is_err());
        let proof = Verified::check(&wanted, b"").unwrap();
        assert_eq!((proof.digest(), proof.size_bytes()), (&wanted, 0));
    }

    proptest! {
        #[test]
        fn text_and_value_agree(bytes in any::<[u8; 32]>(), more in any::<[u8; 32]>()) {
            let mut long = [0; 64];
            long[..32].copy_from_slice(&bytes);
            long[32..].copy_from_slice(&more);
            for digest in [Digest::Sha256(bytes), Digest::Sha512(long)] {
                prop_assert_eq!(digest.to_string().parse::<Digest>(), Ok(digest));
            }
        }

        #[test]
        fn any_text_is_refused_or_round_trips(text in "\\PC{0,150}") {
            if let Ok(digest) = text.parse::<Digest>() {
                prop_assert_eq!(digest.to_string(), text);
            }
        }

        #[test]
        fn pieces_hash_like_the_whole(content in proptest::collection::vec(any::<u8>(), 0..4096), cut in 0usize..4096) {
            let cut = cut.min(content.len());
            let mut hasher = Hasher::new(Algorithm::Sha512);
            hasher.update(&content[..cut]);
            hasher.update(&content[cut..]);
            prop_assert_eq!(hasher.finish(), Digest::of(Algorithm::Sha512, &content));
        }
    }
}
