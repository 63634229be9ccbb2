//! The table of content by digest: 56 bytes an entry and a little air, whatever their number.
//!
//! Digests are evenly spread, so a shard is a sorted list, and a digest stands near where its own bits say. A shard is chosen
//! by the first bits: going through all shards is going through all digests in order.

use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::sync::RwLockReadGuard;
use std::sync::RwLockWriteGuard;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use super::Timestamp;
use super::rights::Facts;

const SHARD_BITS: u32 = 12;
pub(super) const SHARDS: usize = 1 << SHARD_BITS;
/// A full shard grows by this part of itself.
const GROWTH: usize = 16;

/// What is known of content.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) size_bytes: u64,
    pub(super) last_use: LastUse,
    pub(super) facts: Arc<Facts>,
}

/// When content was last used, and whether the index has been told.
#[derive(Debug)]
pub(super) struct LastUse(AtomicU64);

const UNTOLD: u64 = 1;

impl LastUse {
    pub(super) fn new(at: Timestamp) -> Self {
        Self(AtomicU64::new(at.as_millis() << 1))
    }

    pub(super) fn at(&self) -> Timestamp {
        Timestamp::from_millis(self.0.load(Ordering::Relaxed) >> 1)
    }

    pub(super) fn set(&self, at: Timestamp) {
        self.0.store(at.as_millis() << 1 | UNTOLD, Ordering::Relaxed);
    }

    /// Whether it changed since this was last asked.
    pub(super) fn take_untold(&self) -> bool {
        self.0.load(Ordering::Relaxed) & UNTOLD != 0 && self.0.fetch_and(!UNTOLD, Ordering::Relaxed) & UNTOLD != 0
    }
}

#[derive(Debug)]
struct Slot<const N: usize> {
    digest: [u8; N],
    known: Known,
}

type Shard<const N: usize> = Vec<Slot<N>>;

#[derive(Debug)]
pub(super) struct Table<const N: usize> {
    shards: Box<[RwLock<Shard<N>>]>,
}

impl<const N: usize> Table<N> {
    pub(super) fn new() -> Self {
        Self { shards: (0..SHARDS).map(|_| RwLock::default()).collect() }
    }

    pub(super) fn get<R>(&self, digest: &[u8; N], view: impl FnOnce(&Known) -> R) -> Option<R> {
        let shard = self.read(shard_of(digest));
        let at = find(&shard, digest).ok()?;
        Some(view(&shard[at].known))
    }

    pub(super) fn change<R>(&self, digest: &[u8; N], change: impl FnOnce(&mut Known) -> R) -> Option<R> {
        let mut shard = self.write(shard_of(digest));
        let at = find(&shard, digest).ok()?;
        Some(change(&mut shard[at].known))
    }

    /// `false` when it was there; nothing is changed then.
    pub(super) fn insert(&self, digest: &[u8; N], known: Known) -> bool {
        let mut shard = self.write(shard_of(digest));
        let Err(at) = find(&shard, digest) else { return false };
        if shard.len() == shard.capacity() {
            let more = shard.len() / GROWTH + 1;
            shard.reserve_exact(more);
        }
        shard.insert(at, Slot { digest: *digest, known });
        true
    }

    /// Makes ready for so many that begin as this one does.
    pub(super) fn reserve(&self, digest: &[u8; N], more: usize) {
        self.write(shard_of(digest)).reserve_exact(more + more / GROWTH + 1);
    }

    pub(super) fn remove(&self, digest: &[u8; N]) -> Option<Known> {
        let mut shard = self.write(shard_of(digest));
        let at = find(&shard, digest).ok()?;
        let slot = shard.remove(at);
        if shard.len() * 2 < shard.capacity() {
            let spare = shard.len() / GROWTH + 1;
            let size = shard.len() + spare;
            shard.shrink_to(size);
        }
        Some(slot.known)
    }

    /// Goes through one shard, in the order of digests, under its lock.
    pub(super) fn each_in(&self, shard: usize, mut each: impl FnMut(&[u8; N], &Known)) {
        self.read(shard).iter().for_each(|slot| each(&slot.digest, &slot.known));
    }

    /// Goes through all that begin with these 16 bits, in the order of digests, under the lock of their shard.
    pub(super) fn each_beginning(&self, bits: [u8; 2], mut each: impl FnMut(&[u8; N], &Known)) {
        let shard = self.read(shard_of(&bits));
        let from = shard.partition_point(|slot| slot.digest[..2] < bits[..]);
        let all = shard[from..].iter().take_while(|slot| slot.digest[..2] == bits);
        all.for_each(|slot| each(&slot.digest, &slot.known));
    }

    fn read(&self, shard: usize) -> RwLockReadGuard<'_, Shard<N>> {
        self.shards[shard].read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, shard: usize) -> RwLockWriteGuard<'_, Shard<N>> {
        self.shards[shard].write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The first bits of a digest.
fn shard_of(digest: &[u8]) -> usize {
    usize::from(u16::from_be_bytes([digest[0], digest[1]]) >> (u16::BITS - SHARD_BITS))
}

/// Where a digest is, or would be: looked for around where its bits say, then wherever it can be.
fn find<const N: usize>(shard: &[Slot<N>], digest: &[u8; N]) -> Result<usize, usize> {
    // A snapshot is read in order.
    if shard.last().is_none_or(|last| last.digest < *digest) {
        return Err(shard.len());
    }
    let rest = u32::from_be_bytes([digest[1], digest[2], digest[3], digest[4]]) << (SHARD_BITS - u8::BITS);
    let guess = (shard.len() as u64 * u64::from(rest)) >> u32::BITS;
    let guess = usize::try_from(guess).unwrap_or(0);
    // A guess is off by about half the root of the number of entries.
    let reach = shard.len().isqrt() + 4;
    let (from, to) = (guess.saturating_sub(reach), shard.len().min(guess + reach));
    let is_before = from == 0 || shard[from].digest <= *digest;
    let is_after = to == shard.len() || shard[to].digest > *digest;
    let (from, to) = if is_before && is_after { (from, to) } else { (0, shard.len()) };
    match shard[from..to].binary_search_by(|slot| slot.digest.cmp(digest)) {
        Ok(at) => Ok(from + at),
        Err(at) => Err(from + at),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn known(size_bytes: u64) -> Known {
        Known { size_bytes, last_use: LastUse::new(Timestamp::from_millis(size_bytes)), facts: Arc::default() }
    }

    #[test]
    fn an_entry_is_56_bytes() {
        assert_eq!(size_of::<Slot<32>>(), 56);
    }

    #[test]
    fn a_use_is_told_once() {
        let last_use = LastUse::new(Timestamp::from_millis(1));
        assert!(!last_use.take_untold());
        last_use.set(Timestamp::from_millis(7));
        assert_eq!((last_use.at().as_millis(), last_use.take_untold(), last_use.take_untold()), (7, true, false));
        assert_eq!(last_use.at().as_millis(), 7);
    }

    /// Digests that meet in few shards, near and far from where they are guessed to be.
    fn digests() -> impl Strategy<Value = [u8; 32]> {
        (0u8..2, prop_oneof![any::<u8>(), Just(7)], prop_oneof![any::<u8>(), 0u8..3], 0u8..4).prop_map(
            |(a, b, c, d)| {
                let mut digest = [d; 32];
                digest[..4].copy_from_slice(&[a, b, c, d]);
                digest
            },
        )
    }

    proptest! {
        #[test]
        fn equals_a_map(steps in proptest::collection::vec((digests(), 0u8..4), 0..600)) {
            let (table, mut model) = (Table::<32>::new(), BTreeMap::new());
            for (at, (digest, what)) in (0..).zip(steps) {
                match what {
                    0 => prop_assert_eq!(table.remove(&digest).map(|known| known.size_bytes), model.remove(&digest)),
                    _ => {
                        let is_new = !model.contains_key(&digest);
                        model.entry(digest).or_insert(at);
                        prop_assert_eq!(table.insert(&digest, known(at)), is_new);
                    }
                }
                prop_assert_eq!(table.get(&digest, |known| known.size_bytes), model.get(&digest).copied());
            }
            let mut all = Vec::new();
            (0..SHARDS).for_each(|shard| table.each_in(shard, |digest, known| all.push((*digest, known.size_bytes))));
            prop_assert_eq!(all, model.into_iter().collect::<Vec<_>>());
        }
    }
}
