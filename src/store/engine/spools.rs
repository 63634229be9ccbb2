//! Spools that outlive their download: parked on purpose, or left by a process that was killed.
//!
//! A parked spool is a file of just the contiguous prefix of its content. What a killed process leaves is sparse: its
//! prefix ends somewhere before the first hole. Nothing in it is trusted: whoever resumes it hashes it again, and the
//! verdict is over all of it.
#![expect(clippy::disallowed_methods, reason = "spools are files of the store")]

use std::fs;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::SeekFrom;

use super::fs::FsEngine;
use super::fs::SpoolFile;
use super::fs::ignore_absent;
use super::layout::MOVED;
use super::layout::PARKED;
use super::layout::SpoolStem;
use crate::oci::Digest;
use crate::oci::Repository;
use crate::store::Timestamp;

/// An older spool is of no use: the upstream has likely moved on.
const MAX_AGE: Duration = Duration::from_secs(24 * 3600);
/// A shorter prefix is not worth a file.
const MIN_PREFIX_BYTES: u64 = 256 * 1024;
/// The unit in which file systems keep holes: the last one before a hole may be written in part.
const PAGE_BYTES: u64 = 4096;

/// A parked spool, as found at start.
#[derive(Clone, Debug)]
pub(crate) struct Parked {
    pub(crate) stem: SpoolStem,
    pub(crate) prefix_bytes: u64,
    pub(crate) modified_at: Timestamp,
}

impl FsEngine {
    /// Takes stock of the spools of an earlier run: keeps what can be resumed, removes the rest. A spool that is a blob as
    /// well, or was moved there, was just being published: when that was not noted, it is as if it had not begun.
    pub(crate) fn take_stock(&self, is_known: impl Fn(&Digest) -> bool) -> io::Result<Vec<Parked>> {
        let mut kept: Vec<Parked> = Vec::new();
        for entry in fs::read_dir(self.layout().spools())? {
            let entry = entry?;
            let path = entry.path();
            // What is no file is none of ours.
            if !entry.file_type()?.is_file() {
                continue;
            }
            match self.adopt(&path, &is_known) {
                Ok(Some(parked)) if kept.iter().any(|other| other.stem == parked.stem) => continue,
                Ok(Some(parked)) => {
                    kept.push(parked);
                    continue;
                }
                Ok(None) => {}
                Err(error) => tracing::warn!(path = %path.display(), %error, "a spool cannot be read"),
            }
            if let Err(error) = ignore_absent(fs::remove_file(&path)) {
                tracing::warn!(path = %path.display(), %error, "a spool cannot be removed");
            }
        }
        Ok(kept)
    }

    /// Makes a spool file of an earlier run a parked one, if it is worth it.
    fn adopt(&self, path: &Path, is_known: impl Fn(&Digest) -> bool) -> io::Result<Option<Parked>> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some((stem, ending)) = SpoolStem::parse(&name) else { return Ok(None) };
        let parked_path = self.layout().parked(&stem);
        if ending.ends_with(MOVED) {
            if !is_known(stem.digest()) {
                self.remove(stem.digest())?;
            }
            return Ok(None);
        }
        let file = File::options().read(true).write(true).open(path)?;
        if file.metadata()?.nlink() > 1 {
            if is_known(stem.digest()) {
                return Ok(None);
            }
            self.remove(stem.digest())?;
        }
        let modified_at = Timestamp::from_system(file.metadata()?.modified()?);
        let prefix_bytes = if ending == PARKED { file.metadata()?.len() } else { certain_prefix(&file)? };
        let is_stale = Timestamp::now().since(modified_at) > MAX_AGE;
        let is_taken = path != parked_path && parked_path.exists();
        if is_stale || is_taken || prefix_bytes < MIN_PREFIX_BYTES {
            return Ok(None);
        }
        file.set_len(prefix_bytes)?;
        fs::rename(path, &parked_path)?;
        Ok(Some(Parked { stem, prefix_bytes, modified_at }))
    }

    /// Keeps the first bytes of a spool for later; `None` when they are not worth it.
    pub(crate) fn park(&self, mut spool: SpoolFile, stem: &SpoolStem, prefix_bytes: u64) -> io::Result<Option<Parked>> {
        if prefix_bytes < MIN_PREFIX_BYTES {
            return Ok(None);
        }
        spool.file.set_len(prefix_bytes)?;
        fs::rename(&spool.path, self.layout().parked(stem))?;
        spool.is_litter = false;
        Ok(Some(Parked { stem: stem.clone(), prefix_bytes, modified_at: Timestamp::now() }))
    }

    /// Takes a parked spool up again; `None` when it is gone or has changed.
    pub(crate) fn unpark(
        &self,
        digest: &Digest,
        owner: &Repository,
        prefix_bytes: u64,
    ) -> io::Result<Option<SpoolFile>> {
        let path = self.spool_path(digest, owner);
        match fs::rename(self.layout().parked(&SpoolStem::new(digest, owner)), &path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            renamed => renamed?,
        }
        let file = Arc::new(File::options().read(true).write(true).open(&path)?);
        let is_whole = file.metadata()?.len() == prefix_bytes;
        let spool = SpoolFile { file, path, is_litter: true };
        Ok(is_whole.then_some(spool))
    }

    /// Removes a parked spool.
    pub(crate) fn discard(&self, stem: &SpoolStem) {
        let path = self.layout().parked(stem);
        if let Err(error) = ignore_absent(fs::remove_file(&path)) {
            tracing::warn!(path = %path.display(), %error, "a parked download could not be removed");
        }
    }
}

/// How much of a sparse file's beginning was certainly written.
fn certain_prefix(file: &File) -> io::Result<u64> {
    let hole = match rustix::fs::seek(file, SeekFrom::Hole(0)) {
        Ok(hole) => hole,
        // An empty file has no offset to look from.
        Err(rustix::io::Errno::NXIO) => 0,
        Err(error) => return Err(error.into()),
    };
    Ok((hole / PAGE_BYTES * PAGE_BYTES).saturating_sub(PAGE_BYTES))
}

#[cfg(test)]
mod tests {
    use super::super::fs::move_to;
    use super::*;
    use crate::oci::Algorithm;
    use std::os::unix::fs::FileExt;

    /// As on a file system without hard links, killed before or after the publication was noted.
    #[test]
    fn what_was_moved_and_not_noted_is_taken_away() {
        let directory = tempfile::tempdir().unwrap();
        let engine = FsEngine::open(directory.path()).unwrap();
        let owner = Repository { registry: "a.io".parse().unwrap(), name: "x".parse().unwrap() };
        for is_noted in [false, true] {
            let digest = Digest::of(Algorithm::Sha256, b"x");
            let mut spool = engine.create_spool(&digest, &owner).unwrap();
            spool.file.write_all_at(b"x", 0).unwrap();
            fs::create_dir_all(engine.layout().fan_out(&digest)).unwrap();
            move_to(&mut spool, &engine.layout().blob(&digest)).unwrap();
            assert!(engine.open_blob(&digest).unwrap().is_some());
            spool.leave();
            assert!(engine.take_stock(|_| is_noted).unwrap().is_empty());
            assert_eq!(engine.open_blob(&digest).unwrap().is_some(), is_noted);
            assert_eq!(fs::read_dir(engine.layout().spools()).unwrap().count(), 0, "noted: {is_noted}");
        }
    }

    #[test]
    fn a_prefix_ends_before_the_first_hole() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(certain_prefix(&file).unwrap(), 0);
        file.write_all_at(&[7; 10_000], 0).unwrap();
        file.write_all_at(&[7; 10], 1_000_000).unwrap();
        let prefix_bytes = certain_prefix(&file).unwrap();
        assert!(prefix_bytes <= 10_000, "{prefix_bytes}");
    }
}
