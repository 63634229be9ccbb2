//! Registries that cannot answer: what is known of them goes out stale at once, and somebody asks again in the background.

use std::collections::HashMap;
use std::hash::BuildHasher as _;
use std::hash::Hash;
use std::hash::RandomState;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::time::Instant;

use crate::oci::Registry;

use super::outcome::StaleReason;

/// How long a registry in trouble is left alone about what is known.
const PAUSE: Duration = Duration::from_secs(10);

/// By registry; only configured ones get here, so it is bounded.
#[derive(Debug, Default)]
pub(super) struct Troubles {
    hasher: RandomState,
    troubles: Mutex<HashMap<Registry, Trouble>>,
}

#[derive(Clone, Copy, Debug)]
struct Trouble {
    reason: StaleReason,
    ask_at: Instant,
    /// What was asked about last.
    last: Option<u64>,
}

/// What a registry's trouble means for a request that has something known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Advice {
    /// Why the registry could not be asked.
    pub(super) reason: StaleReason,
    /// It is this caller's turn to ask, without waiting for it.
    pub(super) is_turn: bool,
}

impl Troubles {
    /// `None` while the registry answers. What was asked about last waits for twice as long: it may be what fails, and not
    /// the registry.
    pub(super) fn advice(&self, registry: &Registry, about: &impl Hash) -> Option<Advice> {
        let about = self.hasher.hash_one(about);
        let mut troubles = self.lock();
        let trouble = troubles.get_mut(registry)?;
        let pause = if trouble.last == Some(about) { PAUSE } else { Duration::ZERO };
        let is_turn = Instant::now() >= trouble.ask_at + pause;
        if is_turn {
            (trouble.ask_at, trouble.last) = (Instant::now() + PAUSE, Some(about));
        }
        Some(Advice { reason: trouble.reason, is_turn })
    }

    /// The same, taking no turn.
    pub(super) fn reason(&self, registry: &Registry) -> Option<StaleReason> {
        self.lock().get(registry).map(|trouble| trouble.reason)
    }

    /// It could not answer.
    pub(super) fn note(&self, registry: &Registry, reason: StaleReason) {
        let mut troubles = self.lock();
        let last = troubles.get(registry).and_then(|trouble| trouble.last);
        troubles.insert(registry.clone(), Trouble { reason, ask_at: Instant::now() + PAUSE, last });
    }

    /// It answered.
    pub(super) fn clear(&self, registry: &Registry) {
        self.lock().remove(registry);
    }

    /// Held for moments, never across an await.
    fn lock(&self) -> MutexGuard<'_, HashMap<Registry, Trouble>> {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_asks_again_after_each_pause_until_an_answer_comes() {
        let (troubles, registry): (_, Registry) = (Troubles::default(), "a.io".parse().unwrap());
        let turn = |is_turn| Some(Advice { reason: StaleReason::TimedOut, is_turn });
        assert_eq!(troubles.advice(&registry, &1), None);
        troubles.note(&registry, StaleReason::TimedOut);
        assert_eq!(troubles.advice(&"b.io".parse().unwrap(), &1), None, "each registry for itself");
        assert_eq!(troubles.advice(&registry, &1), turn(false));
        tokio::time::advance(PAUSE).await;
        assert_eq!(troubles.advice(&registry, &1), turn(true));
        assert_eq!(troubles.advice(&registry, &1), turn(false), "one is enough");
        tokio::time::advance(PAUSE).await;
        assert_eq!(troubles.advice(&registry, &1), turn(false), "others first");
        assert_eq!(troubles.advice(&registry, &2), turn(true));
        troubles.note(&registry, StaleReason::TimedOut);
        tokio::time::advance(PAUSE).await;
        assert_eq!(troubles.advice(&registry, &2), turn(false));
        tokio::time::advance(PAUSE * 100).await;
        assert_eq!(troubles.advice(&registry, &1), turn(true), "it does not heal by itself");
        troubles.clear(&registry);
        assert_eq!(troubles.advice(&registry, &1), None);
    }
}
