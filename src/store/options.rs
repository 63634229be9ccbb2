//! What the store is told at start.

use std::path::PathBuf;

/// An amount of disk space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// So many bytes.
    Bytes(u64),
    /// So much of the file system that the store is on, 0 to 100.
    Percent(u8),
}

impl Amount {
    /// In bytes, for a file system of `total_bytes`.
    pub(super) fn of(self, total_bytes: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => {
                u64::try_from(u128::from(total_bytes) * u128::from(percent) / 100).unwrap_or(u64::MAX)
            }
        }
    }
}

/// What the store is told at start.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its directory; created when absent.
    pub path: PathBuf,
    /// Most bytes of content that it keeps.
    pub max_size: Amount,
    /// Room that it leaves free on its file system.
    pub min_free: Amount,
    /// Most bytes of manifests and small blobs that it keeps in memory.
    pub memory_cache_bytes: u64,
}
