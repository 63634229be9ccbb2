//! What is wrong with a configuration, in one line.

use std::fmt;
use std::path::PathBuf;

/// Where a setting was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The configuration file.
    File(PathBuf),
    /// An environment variable, by its name.
    Environment(String),
    /// A command-line flag.
    Flag(&'static str),
    /// Nowhere: a default.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Environment(name) => f.write_str(name),
            Self::Flag(flag) => f.write_str(flag),
            Self::Default => f.write_str("default configuration"),
        }
    }
}

/// The configuration cannot be used. Displays as one line that names the place, the key, the value and what would be
/// right, and never shows a secret.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The configuration file could not be read.
    #[error("{}: cannot read the configuration: {reason}", .file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// Why.
        reason: String,
    },
    /// The configuration file is not TOML.
    #[error("{}: line {line}, column {column}: {reason}", .file.display())]
    Syntax {
        /// The file.
        file: PathBuf,
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
        /// What the parser says.
        reason: String,
    },
    /// A key that does not exist.
    #[error("{origin}: unknown key {key}; known here: {known}")]
    UnknownKey {
        /// Where it was written.
        origin: Origin,
        /// The whole path of the key.
        key: String,
        /// The keys that exist at this place.
        known: String,
    },
    /// A value that does not fit.
    #[error("{origin}: {key} = {value}: {expected}")]
    Value {
        /// Where it was written.
        origin: Origin,
        /// The whole path of the key.
        key: String,
        /// The value as written, shortened, or a placeholder when it may hold a secret.
        value: String,
        /// What would be right.
        expected: String,
    },
    /// What a layer makes of its settings does not work.
    #[error("{key}: {problem}")]
    Refused {
        /// The whole path of the key.
        key: String,
        /// What is wrong and what would be right, without secrets.
        problem: String,
    },
    /// Settings that do not fit together, or one that is missing.
    #[error("{origin}: {key}: {problem}")]
    Conflict {
        /// Where it was written.
        origin: Origin,
        /// The whole path of the key.
        key: String,
        /// What is wrong and what would be right.
        problem: String,
    },
}
