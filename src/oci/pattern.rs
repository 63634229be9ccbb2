//! Patterns over repository names and tags: what operators write to mean several at once.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::name::RepositoryName;
use super::reference::Tag;

/// Longest pattern.
const MAX_PATTERN_CHARS: usize = 256;

/// The text is not a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a pattern is a name in which `*` stands for any run of characters and `?` for any one of them")]
pub struct InvalidPattern;

/// A name in which `*` stands for any run of characters, `/` included, and `?` for any one of them.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Pattern(Arc<str>);

impl Pattern {
    /// Whether all of the text fits. Takes time of at most pattern times text.
    pub fn matches(&self, text: &str) -> bool {
        fits(&self.0, text)
    }

    /// As written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether all of `text` fits a pattern in which `*` stands for any run of bytes and `?` for any one of them. Takes time of
/// at most pattern times text.
pub fn fits(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut at, mut seen) = (0, 0);
    // Where to go on when the rest does not fit: behind the last `*`, which then takes one more byte.
    let mut retry = None;
    while seen < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                retry = Some((at, seen));
                at += 1;
            }
            Some(&byte) if byte == b'?' || byte == text[seen] => {
                at += 1;
                seen += 1;
            }
            _ => match &mut retry {
                Some((star, taken)) => {
                    *taken += 1;
                    (at, seen) = (*star + 1, *taken);
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|&byte| byte == b'*')
}

impl FromStr for Pattern {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, InvalidPattern> {
        let is_valid = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/*?".contains(&byte);
        if text.is_empty() || text.len() > MAX_PATTERN_CHARS || !text.bytes().all(is_valid) {
            return Err(InvalidPattern);
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which tags are meant: a pattern of tags, or `repository:tag` with a pattern on either side.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TagPattern {
    repository: Option<Pattern>,
    tag: Pattern,
}

impl TagPattern {
    /// Whether this tag of this repository is meant.
    pub fn matches(&self, repository: &RepositoryName, tag: &Tag) -> bool {
        self.repository.as_ref().is_none_or(|pattern| pattern.matches(repository.as_str()))
            && self.tag.matches(tag.as_str())
    }
}

impl FromStr for TagPattern {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, InvalidPattern> {
        let (repository, tag) = match text.split_once(':') {
            Some((repository, tag)) => (Some(repository.parse()?), tag),
            None => (None, text),
        };
        Ok(Self { repository, tag: tag.parse()? })
    }
}

impl fmt::Display for TagPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(repository) = &self.repository {
            write!(f, "{repository}:")?;
        }
        write!(f, "{}", self.tag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn patterns() {
        for (pattern, fits, others) in [
            ("latest", &["latest"][..], &["latest2", "xlatest", ""][..]),
            ("v*", &["v", "v1", "v1.2"], &["1v", "xv1"]),
            ("*", &["", "a", "a/b"], &[]),
            ("*-rc?", &["1-rc1", "-rc9", "a-rc-rcx"], &["1-rc", "1-rc10"]),
            ("library/*", &["library/alpine", "library/a/b"], &["library", "x/library/a"]),
            ("a*b*c", &["abc", "aXbYc", "abbcc"], &["ab", "acb"]),
            ("**", &["", "x"], &[]),
        ] {
            let pattern: Pattern = pattern.parse().unwrap();
            for text in fits {
                assert!(pattern.matches(text), "{pattern} {text}");
            }
            for text in others {
                assert!(!pattern.matches(text), "{pattern} {text}");
            }
        }
        for text in ["", "a b", "a:b", "é", "a\0", "[a]", &"a".repeat(MAX_PATTERN_CHARS + 1)] {
            assert_eq!(text.parse::<Pattern>(), Err(InvalidPattern), "{text}");
        }
    }

    #[test]
    fn tags_of_repositories() {
        let (app, other) = ("team/app".parse().unwrap(), "else/app".parse().unwrap());
        let (v1, latest) = ("v1".parse().unwrap(), "latest".parse().unwrap());
        let anywhere: TagPattern = "v*".parse().unwrap();
        assert!(anywhere.matches(&app, &v1) && anywhere.matches(&other, &v1) && !anywhere.matches(&app, &latest));
        let there: TagPattern = "team/*:v*".parse().unwrap();
        assert!(there.matches(&app, &v1) && !there.matches(&other, &v1) && !there.matches(&app, &latest));
        assert_eq!((anywhere.to_string(), there.to_string()), ("v*".to_owned(), "team/*:v*".to_owned()));
        for text in ["", ":", "a:", ":a", "a:b:c"] {
            assert!(text.parse::<TagPattern>().is_err(), "{text}");
        }
    }

    fn slow(pattern: &[u8], text: &[u8]) -> bool {
        match (pattern.split_first(), text.split_first()) {
            (None, None) => true,
            (Some((b'*', rest)), None) => slow(rest, text),
            (Some((b'*', rest)), Some((_, fewer))) => slow(rest, text) || slow(pattern, fewer),
            (Some((one, rest)), Some((byte, fewer))) => (*one == b'?' || one == byte) && slow(rest, fewer),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn equals_the_definition(pattern in "[ab*?]{1,8}", text in "[ab]{0,10}") {
            let expected = slow(pattern.as_bytes(), text.as_bytes());
            prop_assert_eq!(pattern.parse::<Pattern>().unwrap().matches(&text), expected);
        }
    }
}
