//! The spool of one download: a sparse file that lanes write, one cursor hashes in order, and readers follow.
//!
//! Every byte is written once: a lane that brings what is there already changes nothing, so that what the cursor hashed is
//! what the file holds, whatever two answers of an upstream say.

mod extents;
mod follow;
mod lane;
#[cfg(test)]
mod tests;
mod wants;

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use tokio::sync::watch;

use crate::oci::Digest;
use crate::oci::Hasher;
use crate::oci::Mismatch;
use crate::oci::Verified;

use super::blocking;
use super::engine::SpoolFile;
use super::read::ReadError;
use super::read::read_exact_at;
use super::space::Reservation;

use self::extents::Extents;
use self::wants::Wants;

pub(super) use self::follow::Follower;
pub use self::follow::Growing;
pub use self::lane::{Lane, WriteError};
pub use self::wants::Want;

const HASH_PIECE_BYTES: u64 = 1024 * 1024;

/// A download's spool, owned by the download. Dropped before [`Spool::finish`], it takes its file and its readers with it.
#[derive(Debug)]
pub struct Spool {
    shared: Arc<Shared>,
    /// Taken by `finish` and `park`, so that the drop of what is left of the spool fails nobody.
    file: Option<SpoolFile>,
}

/// A spool whose content is proven, ready to be published.
#[derive(Debug)]
pub struct Complete {
    pub(super) file: SpoolFile,
    pub(super) proof: Verified,
    pub(super) reservation: Reservation,
}

/// What is left of a download that was given up: its contiguous prefix.
#[derive(Debug)]
pub(super) struct Rest {
    pub(super) file: SpoolFile,
    pub(super) prefix_bytes: u64,
    pub(super) reservation: Reservation,
}

/// A download proved nothing.
#[derive(Debug, thiserror::Error)]
pub enum FinishError {
    /// It is other content.
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
    /// Our disk does not give it back.
    #[error("what came cannot be read back: {0}")]
    Disk(io::Error),
}

/// All that lanes, cursor and readers share.
#[derive(Debug)]
struct Shared {
    digest: Digest,
    file: Arc<File>,
    /// Its lock is held for moments only; taken after `cursor` where both are.
    progress: watch::Sender<Progress>,
    cursor: Mutex<Hasher>,
    /// What some lane writes or has written: each byte is written once.
    claimed: Mutex<Extents>,
    wants: Wants,
    reservation: Mutex<Option<Reservation>>,
}

#[derive(Debug)]
struct Progress {
    size_bytes: Option<u64>,
    extents: Extents,
    verdict: Verdict,
}

#[derive(Debug)]
enum Verdict {
    Pending,
    Verified,
    Failed(ReadError),
}

impl Spool {
    pub(super) fn new(file: SpoolFile, digest: Digest, size_bytes: Option<u64>, reservation: Reservation) -> Self {
        let progress = Progress { size_bytes, extents: Extents::default(), verdict: Verdict::Pending };
        let shared = Shared {
            digest,
            file: file.file.clone(),
            progress: watch::Sender::new(progress),
            cursor: Mutex::new(Hasher::new(digest.algorithm())),
            claimed: Mutex::default(),
            wants: Wants::default(),
            reservation: Mutex::new(Some(reservation)),
        };
        Self { shared: Arc::new(shared), file: Some(file) }
    }

    /// A spool whose file holds the first bytes of an earlier try. They are hashed again, and trusted for nothing else.
    pub(super) fn resumed(self, prefix_bytes: u64) -> Self {
        self.shared.claimed().insert(0..prefix_bytes);
        self.shared.progress.send_modify(|progress| progress.extents.insert(0..prefix_bytes));
        self
    }

    /// The reader's side.
    pub fn follow(&self) -> Growing {
        Growing::new(self.shared.clone())
    }

    /// A writer that starts at `position`.
    pub fn lane(&self, position: u64) -> Lane {
        Lane::new(self.shared.clone(), position)
    }

    /// The first absent bytes at or after `position`: their start, and their end where it is known. `None` when there
    /// are none.
    pub fn gap(&self, position: u64) -> Option<(u64, Option<u64>)> {
        let progress = self.shared.progress.borrow();
        let (start, end) = progress.extents.gap(position);
        match progress.size_bytes {
            Some(size_bytes) if start >= size_bytes => None,
            size_bytes => Some((start, end.or(size_bytes))),
        }
    }

    /// The length, when it is known.
    pub fn size_bytes(&self) -> Option<u64> {
        self.shared.progress.borrow().size_bytes
    }

    /// The body ended cleanly where no length was announced: this is its length.
    pub fn set_size(&self, size_bytes: u64) {
        self.shared.progress.send_modify(|progress| progress.size_bytes = Some(size_bytes));
    }

    /// Readers ahead of the first absent byte.
    pub fn wants(&self) -> Vec<Want> {
        self.shared.wants.ahead()
    }

    /// How many readers there are.
    pub fn readers(&self) -> usize {
        self.shared.wants.readers()
    }

    /// Waits until a reader comes, goes, or wants something ahead.
    pub async fn demand(&self) {
        self.shared.wants.changed().await;
    }

    /// Compares all that came with the digest. On a match readers get their last bytes; else all of them fail.
    pub async fn finish(mut self) -> Result<Complete, FinishError> {
        let shared = self.shared.clone();
        let hasher = match blocking(move || shared.hash_all()).await {
            Ok(hasher) => hasher,
            Err(error) => {
                self.fail(ReadError::Disk(error.to_string().into()));
                return Err(FinishError::Disk(error));
            }
        };
        let proof = match hasher.verify(&self.shared.digest) {
            Ok(proof) => proof,
            Err(mismatch) => {
                self.fail(ReadError::WrongContent);
                return Err(FinishError::Mismatch(mismatch));
            }
        };
        self.shared.progress.send_modify(|progress| progress.verdict = Verdict::Verified);
        let file = self.file.take().expect("only `finish` and `park` take the file, and they consume the spool");
        let reservation = self.shared.reservation().take().expect("it goes with the file");
        Ok(Complete { file, proof, reservation })
    }

    /// Gives the download up, but keeps what came in order. Every reader fails with `error`.
    pub(super) fn park(mut self, error: ReadError) -> Option<Rest> {
        self.shared.fail(error);
        let prefix_bytes = self.shared.progress.borrow().extents.end_of_run(0);
        let (file, reservation) = (self.file.take()?, self.shared.reservation().take()?);
        Some(Rest { file, prefix_bytes, reservation })
    }

    /// Ends the download without content: every reader fails with `error`.
    pub fn fail(self, error: ReadError) {
        self.shared.fail(error);
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        if let Some(file) = self.file.take() {
            self.shared.fail(ReadError::Abandoned);
            let reservation = self.shared.reservation().take();
            let discard = move || drop((file, reservation));
            // Unlinking a large file takes a while.
            match tokio::runtime::Handle::try_current() {
                Ok(runtime) => drop(runtime.spawn_blocking(discard)),
                Err(_) => discard(),
            }
        }
    }
}

impl Shared {
    /// Hashes from the file what is present behind the cursor, `limit_bytes` at most.
    fn hash_present(&self, cursor: &mut Hasher, limit_bytes: u64) -> io::Result<()> {
        let start = cursor.size_bytes();
        let end = self.progress.borrow().extents.end_of_run(start).min(start.saturating_add(limit_bytes));
        while cursor.size_bytes() < end {
            let size_bytes = (end - cursor.size_bytes()).min(HASH_PIECE_BYTES);
            cursor.update(&read_exact_at(&self.file, cursor.size_bytes(), size_bytes)?);
        }
        Ok(())
    }

    fn hash_all(&self) -> io::Result<Hasher> {
        let mut cursor = self.cursor();
        self.hash_present(&mut cursor, u64::MAX)?;
        Ok(cursor.clone())
    }

    fn fail(&self, error: ReadError) {
        self.progress.send_modify(|progress| {
            if matches!(progress.verdict, Verdict::Pending) {
                progress.verdict = Verdict::Failed(error);
            }
        });
    }

    fn cursor(&self) -> MutexGuard<'_, Hasher> {
        self.cursor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn claimed(&self) -> MutexGuard<'_, Extents> {
        self.claimed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reservation(&self) -> MutexGuard<'_, Option<Reservation>> {
        self.reservation.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
