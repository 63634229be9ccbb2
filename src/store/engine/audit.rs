//! A look at a data directory without its lock: beside a running proxy, which may add and remove files meanwhile.
#![expect(clippy::disallowed_methods, reason = "verifying reads the files of the store")]

use std::fs;
use std::fs::File;
use std::io;
use std::path::Path;

use super::layout::ALGORITHMS;
use super::layout::Layout;
use super::quarantine;
use super::quarantine::Removal;
use crate::oci::Digest;

/// A data directory that somebody else may have open.
#[derive(Debug)]
pub(in crate::store) struct Audit {
    layout: Layout,
}

impl Audit {
    pub(in crate::store) fn of(root: &Path) -> Self {
        Self { layout: Layout::new(root) }
    }

    pub(in crate::store) fn root(&self) -> &Path {
        self.layout.root()
    }

    /// Every blob, with its length.
    pub(in crate::store) fn list(&self) -> io::Result<Vec<(Digest, u64)>> {
        let mut found = Vec::new();
        for algorithm in ALGORITHMS {
            for fan_out in fs::read_dir(self.layout.algorithm(algorithm))? {
                let fan_out = fan_out?;
                if !fan_out.file_type()?.is_dir() {
                    continue;
                }
                for entry in fs::read_dir(fan_out.path())? {
                    let entry = entry?;
                    let text = format!("{}:{}", algorithm.as_str(), entry.file_name().to_string_lossy());
                    // What has no such name is no blob, and what has no metadata any more went meanwhile.
                    if let (Ok(digest), Ok(metadata)) = (text.parse(), entry.metadata()) {
                        found.push((digest, metadata.len()));
                    }
                }
            }
        }
        Ok(found)
    }

    /// `None` when it has gone meanwhile.
    pub(in crate::store) fn open(&self, digest: &Digest) -> io::Result<Option<File>> {
        match File::open(self.layout.blob(digest)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            opened => opened.map(Some),
        }
    }

    /// Whether the blob still is this file.
    pub(in crate::store) fn is_still(&self, digest: &Digest, file: &File) -> io::Result<bool> {
        quarantine::is_same(&self.layout.blob(digest), file)
    }

    /// Moves a rotten blob out of the way. A running proxy that has it open finds its seal broken.
    pub(in crate::store) fn quarantine(&self, digest: &Digest, rotten: &File, limit_bytes: u64) -> io::Result<Removal> {
        let removal = quarantine::put(&self.layout, digest, rotten)?;
        quarantine::sweep(&self.layout, limit_bytes)?;
        Ok(removal)
    }

    /// The size of its file system, in bytes.
    pub(in crate::store) fn disk_bytes(&self) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(self.layout.root())?;
        Ok(stat.f_blocks * stat.f_frsize)
    }
}
