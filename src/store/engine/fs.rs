//! A directory as storage engine.
#![expect(clippy::disallowed_methods, reason = "this file is the store's door to the file system")]

use std::fs;
use std::fs::File;
use std::io;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use rustix::fs::StatVfsMountFlags;

use crate::oci::Digest;
use crate::oci::Repository;
use crate::oci::Verified;
use crate::store::OpenError;
use crate::store::Timestamp;

use super::layout::ALGORITHMS;
use super::layout::Layout;
use super::quarantine;
use super::quarantine::Removal;
use super::records::Records;
use super::seal;

/// More than a page, so that a full disk shows.
const PROBE_BYTES: usize = 64 * 1024;

/// The store's directory, locked. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct FsEngine {
    layout: Layout,
    serial: Arc<AtomicU64>,
    /// Whether the file system keeps seals.
    has_seals: bool,
    /// Held for its lock: one process a directory.
    _lock: Arc<File>,
}

/// A new spool, open for reading and writing.
#[derive(Debug)]
pub(crate) struct SpoolFile {
    pub(crate) file: Arc<File>,
    pub(super) path: PathBuf,
    /// Whether the file still stands in the spool directory, of use to nobody.
    pub(super) is_litter: bool,
}

/// A published blob, as a listing of the directory shows it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Listed {
    pub(crate) digest: Digest,
    pub(crate) size_bytes: u64,
    pub(crate) modified_at: Timestamp,
}

impl FsEngine {
    /// Makes the directories and takes the lock.
    pub(crate) fn open(root: &Path) -> Result<Self, OpenError> {
        let layout = Layout::new(root);
        let refused = |path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Directory { path, source }
        };
        fs::create_dir_all(root).map_err(refused(root))?;
        let lock = take_lock(&layout)?;
        for directory in [layout.spools(), layout.algorithm(ALGORITHMS[0]), layout.algorithm(ALGORITHMS[1])] {
            fs::create_dir_all(&directory).map_err(refused(&directory))?;
        }
        let has_seals = seal::works_on(&lock);
        if !has_seals {
            tracing::warn!(
                "the file system keeps no fractions of a second: a file changed in place is not noticed at once"
            );
        }
        Ok(Self { layout, serial: Arc::default(), has_seals, _lock: Arc::new(lock) })
    }

    /// A new spool for content that will have this digest, fetched from this repository.
    pub(crate) fn create_spool(&self, digest: &Digest, owner: &Repository) -> io::Result<SpoolFile> {
        let path = self.spool_path(digest, owner);
        let file = File::options().read(true).write(true).create_new(true).open(&path)?;
        Ok(SpoolFile { file: Arc::new(file), path, is_litter: true })
    }

    /// Where a new spool goes: a name that no other has.
    pub(super) fn spool_path(&self, digest: &Digest, owner: &Repository) -> PathBuf {
        self.layout.spool(digest, owner, self.serial.fetch_add(1, Ordering::Relaxed))
    }

    pub(super) fn has_seals(&self) -> bool {
        self.has_seals
    }

    pub(super) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The one way to a visible blob: sync, rename, sync of the directory. The proof names it.
    pub(crate) fn publish(&self, mut spool: SpoolFile, proof: &Verified) -> io::Result<()> {
        let directory = self.layout.fan_out(proof.digest());
        let is_new = !directory.is_dir();
        if is_new {
            fs::create_dir_all(&directory)?;
        }
        if self.has_seals {
            seal::seal(&spool.file)?;
        }
        spool.file.sync_all()?;
        fs::rename(&spool.path, self.layout.blob(proof.digest()))?;
        spool.is_litter = false;
        let mut synced = sync_directory(&directory);
        if is_new {
            synced = synced.and_then(|()| sync_directory(&self.layout.algorithm(proof.digest().algorithm())));
        }
        // What nobody was told of must not stay: it would take room that nobody counts.
        synced.inspect_err(|_| drop(self.remove(proof.digest())))
    }

    /// Opens a published blob, with its length on disk; `None` when there is none.
    pub(crate) fn open_blob(&self, digest: &Digest) -> io::Result<Option<(File, u64)>> {
        match File::open(self.layout.blob(digest)) {
            Ok(file) => {
                let size_bytes = file.metadata()?.len();
                Ok(Some((file, size_bytes)))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes a published blob; nothing to do when there is none.
    pub(crate) fn remove(&self, digest: &Digest) -> io::Result<()> {
        ignore_absent(fs::remove_file(self.layout.blob(digest)))
    }

    /// Moves a rotten blob out of the way, if the file of that name still is this one.
    pub(crate) fn quarantine(&self, digest: &Digest, rotten: &File) -> io::Result<Removal> {
        quarantine::put(&self.layout, digest, rotten)
    }

    /// Bounds the quarantine: how many bytes are in it.
    pub(crate) fn sweep_quarantine(&self, limit_bytes: u64) -> io::Result<u64> {
        quarantine::sweep(&self.layout, limit_bytes)
    }

    /// Whether the disk takes what is written: writes, syncs and removes a small file.
    pub(crate) fn probe(&self) -> io::Result<()> {
        let path = self.layout.probe();
        let written = File::create(&path).and_then(|mut file| {
            file.write_all(&[0; PROBE_BYTES])?;
            file.sync_all()
        });
        let removed = ignore_absent(fs::remove_file(&path));
        written.and(removed)
    }

    /// Whether the file system is mounted read-only.
    pub(crate) fn is_read_only(&self) -> bool {
        rustix::fs::statvfs(self.layout.root()).is_ok_and(|stat| stat.f_flag.contains(StatVfsMountFlags::RDONLY))
    }

    /// Calls `each` for every published blob. Files that are none are left alone.
    pub(crate) fn list(&self, mut each: impl FnMut(Listed)) -> io::Result<()> {
        for algorithm in ALGORITHMS {
            for fan_out in fs::read_dir(self.layout.algorithm(algorithm))? {
                let fan_out = fan_out?;
                if !fan_out.file_type()?.is_dir() {
                    continue;
                }
                for entry in fs::read_dir(fan_out.path())? {
                    let entry = entry?;
                    let name = entry.file_name();
                    let text = format!("{}:{}", algorithm.as_str(), name.to_string_lossy());
                    let (Ok(digest), Ok(metadata)) = (text.parse(), entry.metadata()) else { continue };
                    let modified_at = Timestamp::from_system(metadata.modified()?);
                    each(Listed { digest, size_bytes: metadata.len(), modified_at });
                }
            }
        }
        Ok(())
    }

    /// Size of the file system and what is free on it, in bytes.
    pub(crate) fn disk(&self) -> io::Result<(u64, u64)> {
        let stat = rustix::fs::statvfs(self.layout.root())?;
        Ok((stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize))
    }

    /// The pins.
    pub(crate) fn pin_records(&self) -> io::Result<Records> {
        Records::open(self.layout.pins())
    }

    /// What background work remembers.
    pub(crate) fn state_records(&self) -> io::Result<Records> {
        Records::open(self.layout.state())
    }

    /// The index's directory.
    pub(crate) fn index_path(&self) -> PathBuf {
        self.layout.index()
    }

    /// The journal's file.
    pub(crate) fn journal_path(&self) -> PathBuf {
        self.layout.journal()
    }

    /// A file that stands while the store is open: when it is found at start, the last stop was not clean.
    pub(crate) fn running_marker_path(&self) -> PathBuf {
        self.layout.running_marker()
    }

    /// A file that stands while the index is being opened: when it is found at start, the last open never ended.
    pub(crate) fn index_marker_path(&self) -> PathBuf {
        self.layout.index_marker()
    }
}

impl Drop for SpoolFile {
    fn drop(&mut self) {
        if self.is_litter
            && let Err(error) = ignore_absent(fs::remove_file(&self.path))
        {
            tracing::warn!(path = %self.path.display(), %error, "a spool could not be removed; the next start sweeps it");
        }
    }
}

fn take_lock(layout: &Layout) -> Result<File, OpenError> {
    let path = layout.lock();
    let directory = |source| OpenError::Directory { path: layout.root().to_owned(), source };
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(directory)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(OpenError::Locked { path: layout.root().to_owned() }),
        Err(fs::TryLockError::Error(error)) => Err(directory(error)),
    }
}

pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

pub(super) fn ignore_absent(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
