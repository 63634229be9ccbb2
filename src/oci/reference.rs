//! Tags and references (OCI distribution-spec, "Pulling manifests": the `<reference>` grammar).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::digest::Digest;

/// Longest tag of the specification.
const MAX_TAG_CHARS: usize = 128;

/// The text is not a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a tag is a letter, digit or `_`, then at most 127 letters, digits, `.`, `_` or `-`")]
pub struct InvalidTag;

/// A tag: a name that a repository moves from manifest to manifest.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(Arc<str>);

impl Tag {
    /// The tag as written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tag {
    type Err = InvalidTag;

    fn from_str(text: &str) -> Result<Self, InvalidTag> {
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let bytes = text.as_bytes();
        let valid = !bytes.is_empty()
            && bytes.len() <= MAX_TAG_CHARS
            && word(bytes[0])
            && bytes.iter().all(|&b| word(b) || b == b'.' || b == b'-');
        if valid { Ok(Self(text.into())) } else { Err(InvalidTag) }
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a manifest is asked for by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reference {
    /// By a name that may move.
    Tag(Tag),
    /// By its content.
    Digest(Digest),
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(f),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tag_grammar() {
        let longest = "a".repeat(MAX_TAG_CHARS);
        for tag in ["latest", "V1.2-rc_3", "_x", "0", "sha256-abc.sig", &longest] {
            assert!(tag.parse::<Tag>().is_ok(), "{tag}");
        }
        let too_long = "a".repeat(MAX_TAG_CHARS + 1);
        for tag in ["", ".a", "-a", "a:b", "a/b", "é", "a b", "a\n", &too_long] {
            assert!(tag.parse::<Tag>().is_err(), "{tag}");
        }
    }
}
