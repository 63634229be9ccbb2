//! Room: what is stored, what is promised to downloads, and when something has to go.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::sync::Notify;

use super::engine::Engine;
use super::error::BeginError;
use super::error::OpenError;
use super::health::Health;
use super::inventory::Room;
use super::options::Options;
use super::place::directory_id;
use crate::metrics::Metrics;

/// Eviction goes on down to this share of the budget, so that it does not run for every blob.
const LOW_WATERMARK_PERCENT: u64 = 95;
/// Longest wait for eviction to catch up.
const ROOM_TIMEOUT: Duration = Duration::from_secs(1);

/// The budget of bytes, and what counts against it.
#[derive(Debug)]
pub(super) struct Space {
    engine: Engine,
    max_bytes: u64,
    min_free_bytes: u64,
    used: Mutex<Used>,
    pressure: Notify,
    health: Arc<Health>,
    released: Notify,
}

#[derive(Debug, Default)]
struct Used {
    stored_bytes: u64,
    reserved_bytes: u64,
    /// How much of what is reserved is on disk already, so that the disk's free space shows it.
    written_bytes: u64,
    /// How much of what is stored is pinned: it never gives way.
    held_bytes: u64,
}

impl Used {
    /// What downloads will still take of the disk.
    fn pending_bytes(&self) -> u64 {
        self.reserved_bytes.saturating_sub(self.written_bytes)
    }
}

/// Room promised to one download; given back on drop.
#[derive(Debug)]
pub(super) struct Reservation {
    space: Arc<Space>,
    bytes: u64,
    /// Never more than `bytes`.
    written_bytes: u64,
}

impl Space {
    pub(super) fn new(options: &Options, engine: &Engine, metrics: Metrics) -> Result<Self, OpenError> {
        let directory = |source| OpenError::Directory { path: options.path.clone(), source };
        let (total_bytes, _) = engine.disk().map_err(directory)?;
        Ok(Self {
            engine: engine.clone(),
            max_bytes: options.max_size.of(total_bytes),
            min_free_bytes: options.min_free.of(total_bytes),
            used: Mutex::default(),
            pressure: Notify::new(),
            health: Arc::new(Health::new(metrics)),
            released: Notify::new(),
        })
    }

    /// How the disk does.
    pub(super) fn health(&self) -> &Arc<Health> {
        &self.health
    }

    /// How many bytes are missing, and how many are free, when the disk would be too full with nothing stored on it.
    pub(super) fn shortage(&self) -> Option<(u64, u64)> {
        let free_bytes = self.free_bytes();
        let evictable_bytes = {
            let used = self.used();
            used.stored_bytes.saturating_sub(used.held_bytes)
        };
        let short_bytes = self.min_free_bytes.saturating_sub(free_bytes.saturating_add(evictable_bytes));
        (short_bytes > 0).then_some((short_bytes, free_bytes))
    }

    pub(super) fn max_bytes(&self) -> u64 {
        self.max_bytes
    }

    pub(super) fn stored_bytes(&self) -> u64 {
        self.used().stored_bytes
    }

    pub(super) fn reserved_bytes(&self) -> u64 {
        self.used().reserved_bytes
    }

    /// What there is, and when something goes. A disk that does not answer has nothing free.
    pub(super) fn room(&self) -> Room {
        let (disk_bytes, free_bytes) = self.engine.disk().unwrap_or_default();
        Room {
            max_bytes: self.max_bytes,
            low_watermark_bytes: self.max_bytes / 100 * LOW_WATERMARK_PERCENT,
            min_free_bytes: self.min_free_bytes,
            free_bytes,
            disk_bytes,
            directory_id: directory_id(self.engine.audit().root()).unwrap_or_default(),
        }
    }

    /// Counts what an earlier run stored.
    pub(super) fn adopt(&self, bytes: u64) {
        self.used().stored_bytes += bytes;
        self.pressure.notify_one();
    }

    /// Counts content out that was removed.
    pub(super) fn release(&self, bytes: u64) {
        let mut used = self.used();
        used.stored_bytes = used.stored_bytes.saturating_sub(bytes);
        drop(used);
        self.released.notify_waiters();
    }

    /// Waits until no more is stored than the budget allows; not when that would take long. Holds no thread: eviction
    /// needs one.
    ///
    /// Whoever downloads asks this first: so what is stored exceeds the budget by what was in flight at most.
    pub(super) async fn wait_until_within(&self) -> Result<(), BeginError> {
        // Whether it comes in time or not, what counts is what is stored by then.
        let _ = tokio::time::timeout(ROOM_TIMEOUT, self.within()).await;
        match self.surplus_bytes() {
            0 => Ok(()),
            wanted_bytes => Err(BeginError::NoRoom { wanted_bytes, available_bytes: 0 }),
        }
    }

    async fn within(&self) {
        loop {
            let mut released = std::pin::pin!(self.released.notified());
            // What is released from here on wakes it.
            released.as_mut().enable();
            if self.surplus_bytes() == 0 {
                return;
            }
            released.await;
        }
    }

    /// How much more is stored than the budget allows.
    fn surplus_bytes(&self) -> u64 {
        self.used().stored_bytes.saturating_sub(self.max_bytes)
    }

    /// Sets how much of what is stored is pinned.
    pub(super) fn hold(&self, bytes: u64) {
        self.used().held_bytes = bytes;
    }

    /// The most that can be stored: the budget, or what the disk leaves of it.
    pub(super) fn capacity_bytes(&self) -> u64 {
        let on_disk = self.free_bytes() + self.stored_bytes();
        self.max_bytes.min(on_disk.saturating_sub(self.min_free_bytes))
    }

    /// Promises room, which eviction then makes. Fails when evicting everything would not be enough.
    pub(super) fn reserve(self: &Arc<Self>, bytes: u64) -> Result<Reservation, BeginError> {
        let mut reservation = Reservation { space: self.clone(), bytes: 0, written_bytes: 0 };
        reservation.grow(bytes)?;
        Ok(reservation)
    }

    /// How many bytes should go now.
    pub(super) fn excess_bytes(&self) -> u64 {
        let used = self.used();
        let (stored_bytes, total_bytes) = (used.stored_bytes, used.stored_bytes + used.reserved_bytes);
        let wanted_free_bytes = self.min_free_bytes + used.pending_bytes();
        drop(used);
        let low_bytes = |bytes: u64| bytes / 100 * LOW_WATERMARK_PERCENT;
        let over_budget = if total_bytes > self.max_bytes { total_bytes - low_bytes(self.max_bytes) } else { 0 };
        let over_disk = match wanted_free_bytes.saturating_sub(self.free_bytes()) {
            0 => 0,
            short_bytes => short_bytes + (stored_bytes - low_bytes(stored_bytes)),
        };
        over_budget.max(over_disk)
    }

    /// Waits until something may have to go.
    pub(super) async fn pressed(&self) {
        self.pressure.notified().await;
    }

    /// Wakes whoever waits in [`Space::pressed`].
    pub(super) fn press(&self) {
        self.pressure.notify_one();
    }

    /// An unreadable file system counts as full: content is then passed through.
    fn free_bytes(&self) -> u64 {
        self.engine.disk().map_or(0, |(_, free_bytes)| free_bytes)
    }

    fn used(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reservation {
    /// Where it holds room.
    pub(super) fn space(&self) -> &Space {
        &self.space
    }

    /// How much it holds.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Promises more.
    pub(super) fn grow(&mut self, more_bytes: u64) -> Result<(), BeginError> {
        let space = &self.space;
        let free_bytes = space.free_bytes();
        let mut used = space.used();
        let evictable_bytes = used.stored_bytes.saturating_sub(used.held_bytes);
        let by_budget = space.max_bytes.saturating_sub(used.reserved_bytes + used.held_bytes);
        let by_disk = (free_bytes + evictable_bytes).saturating_sub(space.min_free_bytes + used.pending_bytes());
        let available_bytes = by_budget.min(by_disk);
        if more_bytes > available_bytes {
            if by_disk < by_budget {
                space.health.doubt();
            }
            return Err(BeginError::NoRoom { wanted_bytes: more_bytes, available_bytes });
        }
        used.reserved_bytes += more_bytes;
        self.bytes += more_bytes;
        drop(used);
        space.press();
        Ok(())
    }

    /// So many more bytes are on disk.
    pub(super) fn wrote(&mut self, bytes: u64) {
        let news = bytes.min(self.bytes - self.written_bytes);
        self.written_bytes += news;
        self.space.used().written_bytes += news;
    }

    /// Its file was cut to this length.
    pub(super) fn shrink(&mut self, bytes: u64) {
        let (less, less_written) = (self.bytes.saturating_sub(bytes), self.written_bytes.saturating_sub(bytes));
        let mut used = self.space.used();
        used.reserved_bytes -= less;
        used.written_bytes -= less_written;
        self.bytes -= less;
        self.written_bytes -= less_written;
    }

    /// The download became stored content of this size.
    pub(super) fn convert(self, stored_bytes: u64) {
        let space = self.space.clone();
        space.used().stored_bytes += stored_bytes;
        drop(self);
        space.press();
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut used = self.space.used();
        used.reserved_bytes -= self.bytes;
        used.written_bytes -= self.written_bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Amount;
    use futures_util::FutureExt as _;

    fn space(max_bytes: u64) -> (tempfile::TempDir, Arc<Space>) {
        let directory = tempfile::tempdir().unwrap();
        let engine = Engine::open(directory.path()).unwrap();
        let options = Options {
            path: directory.path().to_owned(),
            max_size: Amount::Bytes(max_bytes),
            min_free: Amount::Bytes(0),
            memory_cache_bytes: 0,
        };
        let space = Arc::new(Space::new(&options, &engine, Metrics::disabled()).unwrap());
        (directory, space)
    }

    #[test]
    fn reservations_come_back() {
        let (_directory, space) = space(100);
        let reservation = space.reserve(60).unwrap();
        assert!(matches!(space.reserve(50), Err(BeginError::NoRoom { available_bytes: 40, .. })));
        drop(reservation);
        space.reserve(100).unwrap().convert(100);
        assert_eq!((space.stored_bytes(), space.reserved_bytes(), space.excess_bytes()), (100, 0, 0));
    }

    #[tokio::test]
    async fn who_waits_for_room_holds_no_thread() {
        let (_directory, space) = space(100);
        space.adopt(130);
        let mut waiting = std::pin::pin!(space.wait_until_within());
        assert!(waiting.as_mut().now_or_never().is_none());
        space.release(20);
        assert!(waiting.as_mut().now_or_never().is_none(), "still too much");
        space.release(10);
        assert!(waiting.as_mut().now_or_never().unwrap().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_come_in_time_passes_through() {
        let (_directory, space) = space(100);
        space.adopt(130);
        assert!(matches!(space.wait_until_within().await, Err(BeginError::NoRoom { wanted_bytes: 30, .. })));
    }

    #[test]
    fn stored_content_gives_way_to_a_reservation() {
        let (_directory, space) = space(1000);
        space.adopt(900);
        let _reservation = space.reserve(200).unwrap();
        assert_eq!(space.excess_bytes(), 150, "down to the low watermark");
        assert!(space.reserve(1001).is_err(), "never more than the budget");
        space.hold(700);
        assert!(
            matches!(space.reserve(101), Err(BeginError::NoRoom { available_bytes: 100, .. })),
            "pins do not give way"
        );
    }
}
