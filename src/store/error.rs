//! What can go wrong in the store. All of it is ours, never the client's or the upstream's.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// The store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("the data directory {} is in use by another forebay; stop it, or choose another with --data", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// The directory cannot be made or written.
    #[error("cannot use the data directory {}: {source}", path.display())]
    Directory {
        /// What could not be used.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A thread could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
}

/// Content cannot be taken in.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BeginError {
    /// It can never fit: pass it through.
    #[error("{wanted_bytes} bytes do not fit: {available_bytes} can be made free")]
    NoRoom {
        /// Its length.
        wanted_bytes: u64,
        /// What the budget or the disk leaves at most.
        available_bytes: u64,
    },
    /// The disk refused.
    #[error("cannot write to the store: {0}")]
    Io(Arc<io::Error>),
}

impl From<io::Error> for BeginError {
    fn from(error: io::Error) -> Self {
        Self::Io(Arc::new(error))
    }
}

/// The disk refused.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the store failed to {what}: {source}")]
pub struct Error {
    /// What was tried.
    pub what: &'static str,
    /// Why it failed.
    pub source: Arc<io::Error>,
}

impl Error {
    pub(super) fn new(what: &'static str, source: io::Error) -> Self {
        Self { what, source: Arc::new(source) }
    }
}
