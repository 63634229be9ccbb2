//! Rotten content: found by a hash that is wrong, moved out of the way, and fetched again when it is next asked for.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use super::Inner;
use super::content;
use super::engine::Engine;
use super::engine::Removal;
use super::engine::check;
use super::engine::quarantine_limit_bytes;
use super::health::is_of_disk;
use super::space::Reservation;
use super::space::Space;
use crate::metrics::FoundBy;
use crate::oci::Digest;

/// Most content that is suspected at once; what does not fit is suspected when it fails again.
const MAX_SUSPECTS: usize = 4096;

/// Content that the disk once failed to give. It stays: a disk may recover. But it is hashed before it is served again, and
/// a new copy takes its place.
#[derive(Debug, Default)]
pub(super) struct Suspects {
    /// Mostly none: nobody who opens content should have to take the lock.
    count: AtomicUsize,
    digests: Mutex<HashSet<Digest>>,
}

impl Suspects {
    pub(super) fn has(&self, digest: &Digest) -> bool {
        self.count.load(Ordering::Acquire) > 0 && self.digests().contains(digest)
    }

    fn add(&self, digest: &Digest) {
        let mut digests = self.digests();
        if digests.len() < MAX_SUSPECTS {
            digests.insert(*digest);
        }
        self.count.store(digests.len(), Ordering::Release);
    }

    /// It is right after all, or gone, or there is a new copy.
    pub(super) fn clear(&self, digest: &Digest) {
        if self.count.load(Ordering::Acquire) > 0 {
            let mut digests = self.digests();
            digests.remove(digest);
            self.count.store(digests.len(), Ordering::Release);
        }
    }

    fn digests(&self) -> MutexGuard<'_, HashSet<Digest>> {
        self.digests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// The disk failed to give this content to somebody.
    pub(super) fn distrust(&self, digest: &Digest) {
        self.suspects.add(digest);
        self.memory.forget(digest);
        self.metrics.disk_error("read");
    }

    /// Opening, hashing or reading this content failed.
    pub(super) fn read_failed(&self, digest: &Digest, error: &io::Error) {
        if is_of_disk(error) {
            self.distrust(digest);
        }
    }
}

/// What is in quarantine takes its room.
#[derive(Debug)]
pub(super) struct Quarantine(Mutex<Option<Reservation>>);

impl Quarantine {
    /// Takes stock of what an earlier run, or a repair, left.
    pub(super) fn open(engine: &Engine, space: &Arc<Space>) -> Self {
        let quarantine = Self(Mutex::new(None));
        quarantine.bound(engine, space);
        quarantine
    }

    /// Keeps it within its bounds, and counts it. Blocks.
    pub(super) fn bound(&self, engine: &Engine, space: &Arc<Space>) {
        let mut room = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let swept = engine.sweep_quarantine(quarantine_limit_bytes(space.max_bytes()));
        let kept_bytes = swept.unwrap_or_else(|error| {
            tracing::warn!(%error, "the quarantine cannot be swept");
            0
        });
        *room = None;
        *room = match space.reserve(kept_bytes) {
            Ok(mut reservation) => {
                reservation.wrote(kept_bytes);
                Some(reservation)
            }
            // What is served comes before what is only kept for a look.
            Err(_) => {
                let _ = engine.sweep_quarantine(0);
                None
            }
        };
    }
}

/// Hashes a file whose seal is broken: `true` when it is right, and sealed again. Blocks.
pub(super) fn is_right(inner: &Inner, digest: &Digest, file: &File) -> io::Result<bool> {
    // An open of its own would be another file, if the name has moved on.
    let is_right = check(digest, file)?.is_ok();
    if is_right {
        inner.engine.seal_again(file);
        inner.suspects.clear(digest);
    }
    Ok(is_right)
}

/// Takes out content whose file proved wrong, and keeps the file for a look; nothing to do when another file has taken its
/// place meanwhile. Fails when the disk does not let go of it: then it is still here, and nobody may have it. Blocks.
pub(super) fn quarantine(inner: &Inner, digest: &Digest, rotten: &File, found_by: FoundBy) -> io::Result<()> {
    let mut is_current = Ok(false);
    let admit = |remove: content::Remove<'_>| {
        is_current = inner.engine.is_current(digest, rotten);
        if matches!(is_current, Ok(true)) { remove() } else { None }
    };
    let taken = content::take_out(inner, digest, admit, |engine| match engine.quarantine(digest, rotten) {
        Ok(Removal::Done) => Ok(()),
        // The name is free, or another file has it: what was known of it is of no use either way.
        Ok(Removal::Replaced) => engine.remove(digest),
        Err(error) => {
            tracing::warn!(%digest, %error, "rotten content cannot be put into quarantine; it is removed");
            engine.remove(digest)
        }
    });
    if !is_current? {
        return Ok(());
    }
    tracing::error!(%digest, found_by = found_by.as_str(), "stored content is rotten; it is fetched again when asked for");
    inner.metrics.rotten(found_by);
    inner.report();
    if taken.is_none() && inner.catalog.size_bytes(digest).is_some() {
        return Err(io::Error::other("it is rotten, and cannot be removed"));
    }
    inner.quarantine.bound(&inner.engine, &inner.space);
    Ok(())
}
