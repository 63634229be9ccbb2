//! What clients are called, and which of them a rule means.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::oci::fits;

/// Longest name, and longest pattern.
const MAX_NAME_CHARS: usize = 255;
/// Who sends no credentials; nobody else has this name.
pub(super) const ANONYMOUS: &str = "anonymous";

/// The text is no client's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a client's name is 1 to {MAX_NAME_CHARS} visible ASCII characters, and not `{ANONYMOUS}`")]
pub struct InvalidClientName;

/// The text means no clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "write a client's name, in which `*` stands for any run of characters and `?` for any one of them, \
     or `{ANONYMOUS}`"
)]
pub struct InvalidClientPattern;

/// The name of a client that has shown who it is: visible ASCII with spaces inside at most, so it is safe in a log line.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct ClientName(Arc<str>);

impl ClientName {
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// The text, shared.
    pub(super) fn shared(&self) -> Arc<str> {
        self.0.clone()
    }
}

impl FromStr for ClientName {
    type Err = InvalidClientName;

    fn from_str(text: &str) -> Result<Self, InvalidClientName> {
        if is_name(text) && text != ANONYMOUS { Ok(Self(text.into())) } else { Err(InvalidClientName) }
    }
}

fn is_name(text: &str) -> bool {
    let is_inside = |byte: u8| (b' '..=b'~').contains(&byte);
    (1..=MAX_NAME_CHARS).contains(&text.len()) && text.bytes().all(is_inside) && text.trim() == text
}

/// Which clients are meant. Those without credentials are meant only where `anonymous` is written out: `*` is everybody
/// that has shown who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientPattern(Box<str>);

impl ClientPattern {
    /// Whether this client is meant; `None` is one without credentials.
    pub(super) fn matches(&self, name: Option<&ClientName>) -> bool {
        match name {
            Some(name) => fits(&self.0, name.as_str()),
            None => &*self.0 == ANONYMOUS,
        }
    }
}

impl FromStr for ClientPattern {
    type Err = InvalidClientPattern;

    fn from_str(text: &str) -> Result<Self, InvalidClientPattern> {
        if is_name(text) { Ok(Self(text.into())) } else { Err(InvalidClientPattern) }
    }
}

impl fmt::Display for ClientPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let longest = "a".repeat(MAX_NAME_CHARS);
        for name in ["ci", "Ann Lee", "spiffe://cluster/ns/a", "system:node:n1", "a*b", "x@y.example", &longest] {
            assert!(name.parse::<ClientName>().is_ok(), "{name}");
        }
        let too_long = "a".repeat(MAX_NAME_CHARS + 1);
        for name in ["", " ci", "ci ", "é", "a\tb", "a\nb", "a\u{7f}", ANONYMOUS, &too_long] {
            assert_eq!(name.parse::<ClientName>(), Err(InvalidClientName), "{name}");
        }
    }

    #[test]
    fn patterns_mean_the_anonymous_only_where_they_say_so() {
        let meant = |pattern: &str, name: Option<&str>| {
            let name: Option<ClientName> = name.map(|name| name.parse().unwrap());
            pattern.parse::<ClientPattern>().unwrap().matches(name.as_ref())
        };
        for (pattern, fit, other) in [("ci", "ci", "ci2"), ("team-*", "team-a", "a-team"), ("*", "x", "")] {
            assert!(meant(pattern, Some(fit)), "{pattern} {fit}");
            assert!(other.is_empty() || !meant(pattern, Some(other)), "{pattern} {other}");
            assert!(!meant(pattern, None), "{pattern}");
        }
        assert!(meant(ANONYMOUS, None) && !meant(ANONYMOUS, Some("ci")) && !meant("anonymou?", None));
        assert!("".parse::<ClientPattern>().is_err() && "é".parse::<ClientPattern>().is_err());
    }
}
