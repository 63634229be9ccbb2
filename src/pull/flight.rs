//! One flight a key: the first who asks leads, the others wait for what the leader announces.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use tokio::sync::watch;
use tokio::time::Instant;

/// The table of flights. Cheap to clone.
pub(super) struct Flights<K, V> {
    table: Arc<Table<K, V>>,
}

struct Table<K, V> {
    flights: Mutex<HashMap<K, Wait<V>>>,
}

/// A place in a flight.
pub(super) enum Seat<K: Eq + Hash, V> {
    /// Ours to fly.
    Lead(Permit<K, V>),
    /// Somebody flies.
    Follow(Wait<V>),
}

/// The lead of a flight. While it lives the key is taken; dropped before it announced, its followers may lead anew.
pub(super) struct Permit<K: Eq + Hash, V> {
    table: Arc<Table<K, V>>,
    key: K,
    sender: watch::Sender<Option<V>>,
    wait: Wait<V>,
}

/// A wait for what the leader announces.
pub(super) struct Wait<V> {
    receiver: watch::Receiver<Option<V>>,
    since: Instant,
}

impl<K: Eq + Hash + Clone, V: Clone> Flights<K, V> {
    pub(super) fn new() -> Self {
        Self { table: Arc::new(Table { flights: Mutex::default() }) }
    }

    /// The lead when nobody has it, else a wait.
    pub(super) fn board(&self, key: &K) -> Seat<K, V> {
        match self.table.lock().entry(key.clone()) {
            Entry::Occupied(flight) => Seat::Follow(flight.get().clone()),
            Entry::Vacant(vacant) => {
                let (sender, receiver) = watch::channel(None);
                let wait = Wait { receiver, since: Instant::now() };
                vacant.insert(wait.clone());
                Seat::Lead(Permit { table: self.table.clone(), key: key.clone(), sender, wait })
            }
        }
    }

    /// A wait, when somebody flies.
    pub(super) fn find(&self, key: &K) -> Option<Wait<V>> {
        self.table.lock().get(key).cloned()
    }
}

impl<K: Eq + Hash + Clone, V: Clone> Flights<K, V> {
    /// Who flies, and where one waits for it.
    pub(super) fn all(&self) -> Vec<(K, Wait<V>)> {
        self.table.lock().iter().map(|(key, wait)| (key.clone(), wait.clone())).collect()
    }
}

impl<K, V> Table<K, V> {
    /// Held for moments, never across an await.
    fn lock(&self) -> MutexGuard<'_, HashMap<K, Wait<V>>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Eq + Hash, V: Clone> Permit<K, V> {
    /// The leader's own wait.
    pub(super) fn wait(&self) -> Wait<V> {
        self.wait.clone()
    }

    /// Gives the key back, and then tells all who wait: who hears it and asks again leads anew.
    pub(super) fn land(self, value: V) {
        self.table.lock().remove(&self.key);
        self.sender.send_replace(Some(value));
    }

    /// Tells all who wait. The key stays taken until the permit is dropped.
    pub(super) fn announce(&self, value: V) {
        self.sender.send_replace(Some(value));
    }
}

impl<K: Eq + Hash, V> Drop for Permit<K, V> {
    fn drop(&mut self) {
        let mut flights = self.table.lock();
        // Landed, the key may be another's by now.
        if flights.get(&self.key).is_some_and(|wait| wait.receiver.same_channel(&self.wait.receiver)) {
            flights.remove(&self.key);
        }
    }
}

impl<V: Clone> Wait<V> {
    /// When the flight began.
    pub(super) fn since(&self) -> Instant {
        self.since
    }

    /// What the leader announced; `None` when it left without a word.
    pub(super) async fn value(mut self) -> Option<V> {
        self.receiver.wait_for(Option::is_some).await.ok()?.clone()
    }

    /// Waits until the leader has left.
    pub(super) async fn over(mut self) {
        // The condition never holds: only the end of the flight ends the wait.
        let _ = self.receiver.wait_for(|_| false).await;
    }

    /// What the leader has announced so far.
    pub(super) fn value_now(&self) -> Option<V> {
        self.receiver.borrow().clone()
    }
}

impl<V> Clone for Wait<V> {
    fn clone(&self) -> Self {
        Self { receiver: self.receiver.clone(), since: self.since }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_leads_and_the_others_hear() {
        let flights = Flights::<u8, u8>::new();
        let Seat::Lead(permit) = flights.board(&1) else { panic!("first") };
        let Seat::Follow(wait) = flights.board(&1) else { panic!("second") };
        assert!(matches!(flights.board(&2), Seat::Lead(_)), "another key");
        permit.announce(7);
        assert!(matches!(flights.board(&1), Seat::Follow(_)), "announced, but still in the air");
        drop(permit);
        assert_eq!(wait.value().await, Some(7));
        assert!(flights.find(&1).is_none());
    }

    #[tokio::test]
    async fn a_flight_that_landed_leaves_its_key_to_the_next() {
        let flights = Flights::<u8, u8>::new();
        let Seat::Lead(permit) = flights.board(&1) else { panic!("first") };
        let wait = permit.wait();
        permit.land(7);
        assert_eq!(wait.value().await, Some(7));
        let Seat::Lead(first) = flights.board(&1) else { panic!("the key is free") };
        assert!(matches!(flights.board(&1), Seat::Follow(_)));
        drop(first);
        assert!(matches!(flights.board(&1), Seat::Lead(_)));
    }

    #[tokio::test]
    async fn a_leader_that_leaves_wakes_its_followers() {
        let flights = Flights::<u8, u8>::new();
        let Seat::Lead(permit) = flights.board(&1) else { panic!("first") };
        let Seat::Follow(wait) = flights.board(&1) else { panic!("second") };
        drop(permit);
        assert_eq!(wait.value().await, None);
        assert!(matches!(flights.board(&1), Seat::Lead(_)));
    }
}
