//! Eviction: the least recently used content goes when room is short.

use std::sync::Weak;

use super::Inner;
use super::blocking;
use super::content;

/// Most blobs that are chosen at once; the next ones are chosen when they are gone.
const MAX_VICTIMS: usize = 16 * 1024;

/// Waits for pressure and evicts, until the store is gone.
pub(super) async fn run(store: Weak<Inner>) {
    let Some(space) = store.upgrade().map(|inner| inner.space.clone()) else { return };
    loop {
        space.pressed().await;
        let Some(inner) = store.upgrade() else { return };
        let excess_bytes = space.excess_bytes();
        if excess_bytes == 0 {
            continue;
        }
        let evictor = inner.clone();
        let (evicted_bytes, evicted_blobs) = blocking(move || evict(&evictor, excess_bytes)).await;
        if evicted_blobs > 0 {
            inner.metrics.evicted(evicted_bytes);
            inner.metrics.stored(space.stored_bytes(), inner.catalog.blobs());
            tracing::info!(evicted_bytes, evicted_blobs, "evicted the least recently used content");
            // There may be more to evict than is chosen at once.
            space.press();
        } else {
            tracing::warn!(excess_bytes, "room is short and there is nothing to evict");
        }
    }
}

/// Makes room: how many bytes, of how many blobs. Blocks.
fn evict(inner: &Inner, wanted_bytes: u64) -> (u64, u64) {
    let victims = inner.catalog.least_recently_used(wanted_bytes, MAX_VICTIMS, &inner.pins.digests());
    let evicted = content::evict(inner, &victims);
    // What the disk still counts as taken would be evicted for once more.
    inner.memory.let_go();
    evicted
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.space.press();
    }
}
