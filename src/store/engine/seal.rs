//! The seal of a published file: a mark that a write to the file breaks.
//!
//! The mark is the sub-second part of its modification time. Whoever writes into the file, or sets its times, breaks it,
//! and one look at an open file tells. A file with a broken seal is not wrong yet: it has to be hashed before it is served.
//! A file system that keeps no such fractions has no seals; there only the length tells.

use std::fs::File;
use std::io;

use rustix::fs::Timespec;
use rustix::fs::Timestamps;

use super::fs::FsEngine;

/// A multiple of what the coarsest clocks with fractions keep.
const SEAL_NANOS: i64 = 618_033_900;

/// What one look at an open file tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Condition {
    /// As it was published.
    Sound,
    /// Somebody may have written to it: only its hash tells.
    Suspect,
    /// Nothing has this name any more: it was removed, or another file has taken its place.
    Unlinked,
    /// Of another length.
    Wrong,
}

/// Sets the seal, and keeps the time to the second.
pub(super) fn seal(file: &File) -> io::Result<()> {
    set_nanos(file, SEAL_NANOS)
}

/// Breaks the seal.
pub(super) fn unseal(file: &File) -> io::Result<()> {
    set_nanos(file, 0)
}

fn set_nanos(file: &File, tv_nsec: i64) -> io::Result<()> {
    let tv_sec = rustix::fs::fstat(file)?.st_mtime;
    let keep = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
    let times = Timestamps { last_access: keep, last_modification: Timespec { tv_sec, tv_nsec } };
    rustix::fs::futimens(file, &times)?;
    Ok(())
}

fn is_sealed(stat: &rustix::fs::Stat) -> bool {
    i64::try_from(stat.st_mtime_nsec) == Ok(SEAL_NANOS)
}

/// Whether the file system keeps seals.
pub(super) fn works_on(file: &File) -> bool {
    seal(file).is_ok() && rustix::fs::fstat(file).is_ok_and(|stat| is_sealed(&stat))
}

impl FsEngine {
    /// How an open file of published content stands. Asks no disk.
    pub(in crate::store) fn condition(&self, file: &File, size_bytes: u64) -> io::Result<Condition> {
        let stat = rustix::fs::fstat(file)?;
        if stat.st_nlink == 0 {
            return Ok(Condition::Unlinked);
        }
        if u64::try_from(stat.st_size) != Ok(size_bytes) {
            return Ok(Condition::Wrong);
        }
        let is_sound = is_sealed(&stat) || !self.has_seals();
        Ok(if is_sound { Condition::Sound } else { Condition::Suspect })
    }

    /// Marks a file whose hash was right. Where that fails it is hashed again the next time.
    pub(in crate::store) fn seal_again(&self, file: &File) {
        if let Err(error) = seal(file) {
            tracing::debug!(%error, "a file could not be sealed");
        }
    }
}
