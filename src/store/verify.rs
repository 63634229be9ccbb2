//! Verify: hashes every file of a data directory, without its lock and without its index, also beside a running proxy.
//!
//! It reads; with a repair, rotten files go to quarantine. A running proxy notices by itself: it finds the name free when it
//! opens the file next, or the seal broken when it has it open, and fetches the content again.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use super::engine::Audit;
use super::engine::Check;
use super::engine::Removal;
use super::engine::quarantine_limit_bytes;
use super::options::Amount;
use crate::oci::Digest;

/// Most files that are hashed at once.
const MAX_WORKERS: usize = 4;

/// What to verify.
#[derive(Clone, Debug)]
pub struct VerifyOptions {
    /// The data directory.
    pub path: PathBuf,
    /// Rotten files go to quarantine, which is bounded by this budget; `None`: nothing is changed.
    pub repair: Option<Amount>,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerifyStep {
    /// It has listed all files.
    Listed {
        /// How many there are.
        blobs: u64,
        /// How many bytes they have.
        bytes: u64,
    },
    /// It has read so many more bytes.
    Read(u64),
}

/// What it found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verification {
    /// Files that were hashed.
    pub blobs: u64,
    /// Bytes that were hashed.
    pub bytes: u64,
    /// Files that are not what their name says, in order of their digests.
    pub rotten: Vec<Rotten>,
}

/// A file that is not what its name says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotten {
    /// What it should be.
    pub digest: Digest,
    /// How long it is.
    pub size_bytes: u64,
    /// What is wrong.
    pub problem: Problem,
    /// It is in quarantine; else why it is not, where that was asked for.
    pub quarantined: Option<Result<(), String>>,
}

/// What is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// It is other content.
    #[error("its bytes are those of {0}")]
    Wrong(Digest),
    /// The disk does not give it.
    #[error("it cannot be read: {0}")]
    Unreadable(String),
}

/// There is nothing to verify.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The directory cannot be listed.
    #[error("{} is not a data directory that can be read: {source}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Hashes everything. Blocks; tells `each` how far it is, from several threads.
pub fn verify(options: &VerifyOptions, each: &(dyn Fn(VerifyStep) + Sync)) -> Result<Verification, VerifyError> {
    let refused = |source| VerifyError::Directory { path: options.path.clone(), source };
    let audit = Audit::of(&options.path);
    let mut files = audit.list().map_err(refused)?;
    let limit_bytes = match options.repair {
        Some(budget) => Some(quarantine_limit_bytes(budget.of(audit.disk_bytes().map_err(refused)?))),
        None => None,
    };
    files.sort_unstable();
    let bytes = files.iter().map(|(_, size_bytes)| size_bytes).sum();
    each(VerifyStep::Listed { blobs: files.len() as u64, bytes });
    let work = Work { audit, limit_bytes, files, next: AtomicUsize::new(0), found: Mutex::default(), each };
    let workers = std::thread::available_parallelism().map_or(1, NonZeroUsize::get).min(MAX_WORKERS);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| work.run());
        }
    });
    let mut found = work.found.into_inner().unwrap_or_else(PoisonError::into_inner);
    found.rotten.sort_by_key(|rotten| rotten.digest);
    Ok(found)
}

struct Work<'a> {
    audit: Audit,
    /// With a repair only.
    limit_bytes: Option<u64>,
    files: Vec<(Digest, u64)>,
    next: AtomicUsize,
    found: Mutex<Verification>,
    each: &'a (dyn Fn(VerifyStep) + Sync),
}

impl Work<'_> {
    fn run(&self) {
        while let Some((digest, size_bytes)) = self.files.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            let (read_bytes, rotten) = self.look_at(digest, *size_bytes);
            let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
            found.blobs += 1;
            found.bytes += read_bytes;
            found.rotten.extend(rotten);
        }
    }

    /// How much of a file was read, and what is wrong with it. A file that went meanwhile is not wrong.
    fn look_at(&self, digest: &Digest, size_bytes: u64) -> (u64, Option<Rotten>) {
        let rotten = |problem, quarantined| Rotten { digest: *digest, size_bytes, problem, quarantined };
        let file = match self.audit.open(digest) {
            Ok(Some(file)) => file,
            Ok(None) => return (0, None),
            // It may be sound: whoever verifies may not be allowed to read it.
            Err(error) => {
                let left = self.limit_bytes.map(|_| Err("it was not even opened".to_owned()));
                return (0, Some(rotten(Problem::Unreadable(error.to_string()), left)));
            }
        };
        let mut check = Check::new(digest, &file);
        let mut read_bytes = 0;
        let problem = loop {
            match check.step(&file) {
                Ok(0) => match check.finish() {
                    Ok(_) => return (read_bytes, None),
                    Err(mismatch) => break Problem::Wrong(mismatch.found),
                },
                Ok(size_bytes) => {
                    read_bytes += size_bytes as u64;
                    (self.each)(VerifyStep::Read(size_bytes as u64));
                }
                Err(error) => break Problem::Unreadable(error.to_string()),
            }
        };
        if !self.audit.is_still(digest, &file).unwrap_or(true) {
            return (read_bytes, None);
        }
        let quarantined = self.limit_bytes.map(|limit_bytes| self.repair(digest, &file, limit_bytes));
        (read_bytes, Some(rotten(problem, quarantined)))
    }

    fn repair(&self, digest: &Digest, file: &File, limit_bytes: u64) -> Result<(), String> {
        match self.audit.quarantine(digest, file, limit_bytes) {
            Ok(Removal::Done | Removal::Replaced) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }
}
