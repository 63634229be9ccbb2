//! Verify: hashes every file of a data directory, without its lock and without its index, also beside a running proxy.
//!
//! It reads; with a repair, rotten files go to quarantine. A running proxy notices by itself: it finds the name free when it
//! opens the file next, or the seal broken when it has it open, and fetches the content again. Inside of an open store,
//! `verifying` does the same with a repair that the store knows of.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
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
/// Most rotten files that are listed; all are counted.
pub(super) const MAX_LISTED: usize = 10_000;

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
pub enum VerifyStep<'a> {
    /// It has listed all files.
    Listed {
        /// How many there are.
        blobs: u64,
        /// How many bytes they have.
        bytes: u64,
    },
    /// It has read so many more bytes.
    Read(u64),
    /// It is done with one more file, which is sound, went meanwhile, or is rotten.
    Looked(Option<&'a Rotten>),
}

/// What it found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verification {
    /// Files that were hashed.
    pub blobs: u64,
    /// Bytes that were hashed.
    pub bytes: u64,
    /// How many files are not what their name says.
    pub rotten_blobs: u64,
    /// The first `MAX_LISTED` of them that were found, in order of their digests.
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

/// Told how far it is, from several threads; a break ends it.
pub(super) type Each<'a> = &'a (dyn Fn(VerifyStep<'_>) -> ControlFlow<()> + Sync);
/// Takes a rotten file out of the way, or says why not.
pub(super) type Repair<'a> = &'a (dyn Fn(&Digest, &File) -> Result<(), String> + Sync);

/// Hashes everything. Blocks; tells `each` how far it is, from several threads, until it breaks.
pub fn verify(
    options: &VerifyOptions,
    each: &(dyn Fn(VerifyStep<'_>) -> ControlFlow<()> + Sync),
) -> Result<Verification, VerifyError> {
    let audit = Audit::of(&options.path);
    let limit_bytes = match options.repair {
        Some(budget) => Some(quarantine_limit_bytes(budget.of(audit.disk_bytes().map_err(refusal(&audit))?))),
        None => None,
    };
    let repair = |digest: &Digest, file: &File| quarantine(&audit, digest, file, limit_bytes.unwrap_or(0));
    let repair: Repair<'_> = &repair;
    run(&audit, limit_bytes.is_some().then_some(repair), each)
}

/// The same, with a repair of the caller's.
pub(super) fn run(audit: &Audit, repair: Option<Repair<'_>>, each: Each<'_>) -> Result<Verification, VerifyError> {
    let mut files = audit.list().map_err(refusal(audit))?;
    files.sort_unstable();
    let bytes = files.iter().map(|(_, size_bytes)| size_bytes).sum();
    if each(VerifyStep::Listed { blobs: files.len() as u64, bytes }).is_break() {
        return Ok(Verification::default());
    }
    let work = Work { audit, repair, files, next: AtomicUsize::new(0), found: Mutex::default(), each };
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

/// Moves a rotten file out of the way that no store in this process knows of.
pub(super) fn quarantine(audit: &Audit, digest: &Digest, file: &File, limit_bytes: u64) -> Result<(), String> {
    match audit.quarantine(digest, file, limit_bytes) {
        Ok(Removal::Done | Removal::Replaced) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

fn refusal(audit: &Audit) -> impl FnOnce(io::Error) -> VerifyError {
    let path = audit.root().to_owned();
    move |source| VerifyError::Directory { path, source }
}

struct Work<'a> {
    audit: &'a Audit,
    repair: Option<Repair<'a>>,
    files: Vec<(Digest, u64)>,
    next: AtomicUsize,
    found: Mutex<Verification>,
    each: Each<'a>,
}

/// One file: how much of it was read, and what is wrong with it.
struct Look {
    read_bytes: u64,
    rotten: Option<Rotten>,
}

impl Work<'_> {
    fn run(&self) {
        while let Some((digest, size_bytes)) = self.files.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            let ControlFlow::Continue(look) = self.look_at(digest, *size_bytes) else { return };
            let told = (self.each)(VerifyStep::Looked(look.rotten.as_ref()));
            self.note(look);
            if told.is_break() {
                return;
            }
        }
    }

    fn note(&self, look: Look) {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.blobs += 1;
        found.bytes += look.read_bytes;
        found.rotten_blobs += u64::from(look.rotten.is_some());
        if found.rotten.len() < MAX_LISTED {
            found.rotten.extend(look.rotten);
        }
    }

    /// A file that went meanwhile is not wrong.
    fn look_at(&self, digest: &Digest, size_bytes: u64) -> ControlFlow<(), Look> {
        let rotten = |problem, quarantined| Some(Rotten { digest: *digest, size_bytes, problem, quarantined });
        let file = match self.audit.open(digest) {
            Ok(Some(file)) => file,
            Ok(None) => return ControlFlow::Continue(Look { read_bytes: 0, rotten: None }),
            // It may be sound: whoever verifies may not be allowed to read it.
            Err(error) => {
                let left = self.repair.map(|_| Err("it was not even opened".to_owned()));
                let rotten = rotten(Problem::Unreadable(error.to_string()), left);
                return ControlFlow::Continue(Look { read_bytes: 0, rotten });
            }
        };
        let mut check = Check::new(digest, &file);
        let mut read_bytes = 0;
        let problem = loop {
            match check.step(&file) {
                Ok(0) => match check.finish() {
                    Ok(_) => return ControlFlow::Continue(Look { read_bytes, rotten: None }),
                    Err(mismatch) => break Problem::Wrong(mismatch.found),
                },
                Ok(size_bytes) => {
                    read_bytes += size_bytes as u64;
                    (self.each)(VerifyStep::Read(size_bytes as u64))?;
                }
                Err(error) => break Problem::Unreadable(error.to_string()),
            }
        };
        if !self.audit.is_still(digest, &file).unwrap_or(true) {
            return ControlFlow::Continue(Look { read_bytes, rotten: None });
        }
        let quarantined = self.repair.map(|repair| repair(digest, &file));
        ControlFlow::Continue(Look { read_bytes, rotten: rotten(problem, quarantined) })
    }
}
