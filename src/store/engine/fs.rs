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

use crate::oci::Algorithm;
use crate::oci::Digest;
use crate::oci::Repository;
use crate::oci::Verified;
use crate::store::OpenError;
use crate::store::Timestamp;

use super::audit::Audit;
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
#[derive(Debug)]
pub(crate) struct Listed {
    pub(crate) digest: Digest,
    entry: fs::DirEntry,
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

    /// The same directory, as one sees it who does not hold its lock.
    pub(crate) fn audit(&self) -> Audit {
        Audit::of(self.layout.root())
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

    /// The one way to a visible blob: sync, second name, sync of the directory. The proof names it.
    ///
    /// The spool keeps its name as well, until it is dropped: as long as a file has both, a start can tell that the
    /// publication was not noted yet. On a file system without second names it is renamed, and an empty file stands for it.
    pub(crate) fn publish(&self, spool: &mut SpoolFile, proof: &Verified) -> io::Result<()> {
        let (directory, path) = (self.layout.fan_out(proof.digest()), self.layout.blob(proof.digest()));
        let is_new = !directory.is_dir();
        if is_new {
            fs::create_dir_all(&directory)?;
        }
        if self.has_seals {
            seal::seal(&spool.file)?;
        }
        spool.file.sync_all()?;
        let linked = match fs::hard_link(&spool.path, &path) {
            // Nobody knows of it any more, or it would not be published.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                fs::remove_file(&path).and_then(|()| fs::hard_link(&spool.path, &path))
            }
            linked => linked,
        };
        if linked.is_err() {
            move_to(spool, &path)?;
        }
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

    /// Whether the blob of this digest is this file.
    pub(crate) fn is_current(&self, digest: &Digest, file: &File) -> io::Result<bool> {
        quarantine::is_same(&self.layout.blob(digest), file)
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

    /// Calls `each` for every directory of published blobs: its algorithm, the first byte of its digests, and what is in it.
    /// Files that are no blobs are left alone.
    pub(crate) fn list(&self, mut each: impl FnMut(Algorithm, u8, Vec<Listed>)) -> io::Result<()> {
        for algorithm in ALGORITHMS {
            for first in 0..=u8::MAX {
                let entries = match fs::read_dir(self.layout.algorithm(algorithm).join(format!("{first:02x}"))) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    entries => entries?,
                };
                let mut listed = Vec::new();
                for entry in entries {
                    listed.extend(Listed::of(algorithm, entry?));
                }
                each(algorithm, first, listed);
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

    /// The file of the journal before the current one.
    pub(crate) fn old_journal_path(&self) -> PathBuf {
        self.layout.old_journal()
    }

    /// The snapshot's file.
    pub(crate) fn snapshot_path(&self) -> PathBuf {
        self.layout.snapshot()
    }

    /// Removes the journal before the current one: the snapshot says what it said. What it said to be gone is gone for good
    /// before that.
    pub(crate) fn forget_old_journal(&self) -> io::Result<()> {
        let root = File::open(self.layout.root())?;
        rustix::fs::syncfs(&root)?;
        ignore_absent(fs::remove_file(self.layout.old_journal()))?;
        root.sync_all()
    }
}

impl Listed {
    fn of(algorithm: Algorithm, entry: fs::DirEntry) -> Option<Self> {
        let name = entry.file_name();
        let digest = format!("{}:{}", algorithm.as_str(), name.to_str()?).parse().ok()?;
        Some(Self { digest, entry })
    }

    /// Its length, and when it was published; `None` when it is no file, or gone.
    pub(crate) fn stat(&self) -> Option<(u64, Timestamp)> {
        let metadata = self.entry.metadata().ok().filter(fs::Metadata::is_file)?;
        Some((metadata.len(), Timestamp::from_system(metadata.modified().ok()?)))
    }
}

impl SpoolFile {
    /// Leaves it where it is, for the next start.
    pub(crate) fn leave(mut self) {
        self.is_litter = false;
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

/// Renames a spool to a blob. The name of what stands for it is durable before.
pub(super) fn move_to(spool: &mut SpoolFile, path: &Path) -> io::Result<()> {
    let moved = Layout::moved(&spool.path);
    File::create(&moved)?;
    let renamed = spool.path.parent().map_or(Ok(()), sync_directory).and_then(|()| fs::rename(&spool.path, path));
    if renamed.is_err() {
        let _ = fs::remove_file(&moved);
        return renamed;
    }
    spool.path = moved;
    Ok(())
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
