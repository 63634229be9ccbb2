//! The memory tier: manifests and small blobs whole, and open handles of hot files.

use std::time::Duration;

use bytes::Bytes;
use moka::sync::Cache;

use crate::oci::Digest;
use crate::oci::MediaType;
use crate::piece::HeldFile;

/// Larger blobs are served from their files; manifests of any size are kept.
pub(super) const SMALL_BLOB_BYTES: u64 = 64 * 1024;
/// What an entry costs beside its bytes.
const ENTRY_OVERHEAD_BYTES: usize = 256;
/// Open files kept beside those being read.
const OPEN_FILES: u64 = 512;
/// A file nobody asked for that long is closed.
const OPEN_FILE_IDLE: Duration = Duration::from_secs(60);

/// Whole content in memory.
#[derive(Clone, Debug)]
pub(super) struct Small {
    pub(super) bytes: Bytes,
    pub(super) media_type: Option<MediaType>,
}

pub(super) struct Memory {
    small: Cache<Digest, Small>,
    files: Cache<Digest, HeldFile>,
}

impl Memory {
    pub(super) fn new(max_bytes: u64) -> Self {
        let weigh =
            |_: &Digest, small: &Small| u32::try_from(small.bytes.len() + ENTRY_OVERHEAD_BYTES).unwrap_or(u32::MAX);
        Self {
            small: Cache::builder().max_capacity(max_bytes).weigher(weigh).build(),
            files: Cache::builder().max_capacity(OPEN_FILES).time_to_idle(OPEN_FILE_IDLE).build(),
        }
    }

    pub(super) fn small(&self, digest: &Digest) -> Option<Small> {
        self.small.get(digest)
    }

    pub(super) fn keep_small(&self, digest: &Digest, small: Small) {
        self.small.insert(*digest, small);
    }

    pub(super) fn file(&self, digest: &Digest) -> Option<HeldFile> {
        self.files.get(digest)
    }

    pub(super) fn keep_file(&self, digest: &Digest, file: HeldFile) {
        self.files.insert(*digest, file);
    }

    /// Closes what was forgotten now, not some time later: an open file keeps its room on the disk.
    pub(super) fn let_go(&self) {
        self.small.run_pending_tasks();
        self.files.run_pending_tasks();
    }

    pub(super) fn forget(&self, digest: &Digest) {
        self.small.invalidate(digest);
        self.files.invalidate(digest);
    }
}
