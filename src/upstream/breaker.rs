//! Whether an endpoint is asked at all. One that does not answer several questions in a row is left alone for a while;
//! then one question tries it, the others wait for how that ends, and its fate is theirs.

use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio::time::sleep_until;
use tokio::time::timeout_at;

use super::error::Error;

/// Questions in a row without an answer that open it; each question is several tries.
const FAILURES_TO_OPEN: u32 = 5;
/// How long the first time; twice as long each time after that.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How long a question that continues something waits for an endpoint to be asked again.
const PATIENCE: Duration = Duration::from_secs(5);

/// How an endpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// It is asked.
    Closed,
    /// It did not answer, and is not asked.
    Open,
    /// It did not answer, and one question tries whether it does now.
    Probing,
}

#[derive(Debug)]
enum State {
    Closed { failures: u32 },
    Open { until: Instant, pause: Duration, error: Error },
    Probing { pause: Duration, error: Error },
}

#[derive(Debug)]
pub(super) struct Breaker {
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

/// What a breaker shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct View {
    pub(super) health: Health,
    /// Questions in a row without an answer, while it is closed.
    pub(super) failures: u32,
    /// Until it is tried again.
    pub(super) tried_in: Option<Duration>,
    /// Why it is open.
    pub(super) error: Option<String>,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { state: Mutex::new(State::Closed { failures: 0 }), changed: watch::Sender::new(()) }
    }
}

impl Breaker {
    /// Leave to ask. Refused with the last failure while it is open; `is_patient` waits some seconds for a better time.
    pub(super) async fn pass(&self, is_patient: bool) -> Result<Pass<'_>, Error> {
        let patient_until = Instant::now() + PATIENCE;
        let mut changed = self.changed.subscribe();
        loop {
            changed.borrow_and_update();
            let (wait_until, error) = {
                let mut state = self.state();
                match &*state {
                    State::Closed { .. } => return Ok(Pass { breaker: self, is_probe: false }),
                    State::Open { until, pause, error } if *until <= Instant::now() => {
                        *state = State::Probing { pause: *pause, error: error.clone() };
                        return Ok(Pass { breaker: self, is_probe: true });
                    }
                    State::Open { until, error, .. } => (Some(*until), error.clone()),
                    State::Probing { error, .. } => (None, error.clone()),
                }
            };
            match wait_until {
                Some(until) if is_patient && until < patient_until => sleep_until(until).await,
                Some(_) => return Err(error),
                // The probe has time limits of its own.
                None if is_patient => {
                    if timeout_at(patient_until, changed.changed()).await.is_err() {
                        return Err(error);
                    }
                }
                None => drop(changed.changed().await),
            }
        }
    }

    pub(super) fn view(&self) -> View {
        let now = Instant::now();
        match &*self.state() {
            State::Closed { failures } => {
                View { health: Health::Closed, failures: *failures, tried_in: None, error: None }
            }
            State::Open { until, error, .. } => View {
                health: Health::Open,
                failures: FAILURES_TO_OPEN,
                tried_in: Some(until.saturating_duration_since(now)),
                error: Some(error.to_string()),
            },
            State::Probing { error, .. } => View {
                health: Health::Probing,
                failures: FAILURES_TO_OPEN,
                tried_in: None,
                error: Some(error.to_string()),
            },
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        matches!(&*self.state(), State::Closed { .. })
    }

    fn set(&self, state: State) {
        *self.state() = state;
        self.changed.send_replace(());
    }

    /// Held for moments, never across an await.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Leave for one question. Dropped without a word it leaves a probe to the next.
#[derive(Debug)]
pub(super) struct Pass<'a> {
    breaker: &'a Breaker,
    is_probe: bool,
}

impl Pass<'_> {
    /// The endpoint answered, whether that was liked or not; `true` when it did not before.
    pub(super) fn answered(mut self) -> bool {
        let was_probe = std::mem::take(&mut self.is_probe);
        let mut state = self.breaker.state();
        // One that began before it opened says nothing about now, but an answer is an answer.
        let is_news = was_probe || matches!(&*state, State::Open { .. });
        match &*state {
            State::Probing { .. } if !was_probe => return false,
            _ => *state = State::Closed { failures: 0 },
        }
        drop(state);
        self.breaker.changed.send_replace(());
        is_news
    }

    /// It did not; how long it is left alone, when that begins now.
    pub(super) fn failed(mut self, error: &Error) -> Option<Duration> {
        let was_probe = std::mem::take(&mut self.is_probe);
        let pause = match &mut *self.breaker.state() {
            State::Probing { pause, .. } if was_probe => (*pause * 2).min(LONGEST_PAUSE),
            State::Closed { failures } => {
                *failures += 1;
                if *failures < FAILURES_TO_OPEN {
                    return None;
                }
                FIRST_PAUSE
            }
            State::Open { .. } | State::Probing { .. } => return None,
        };
        self.breaker.set(State::Open { until: Instant::now() + pause, pause, error: error.clone() });
        Some(pause)
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if !self.is_probe {
            return;
        }
        let left = match &*self.breaker.state() {
            State::Probing { pause, error } => Some((*pause, error.clone())),
            _ => None,
        };
        if let Some((pause, error)) = left {
            self.breaker.set(State::Open { until: Instant::now(), pause, error });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused() -> Error {
        Error::Unreachable { reason: "refused".to_owned() }
    }

    async fn fail(breaker: &Breaker) -> Option<Duration> {
        breaker.pass(false).await.unwrap().failed(&refused())
    }

    async fn open() -> Breaker {
        let breaker = Breaker::default();
        for _ in 1..FAILURES_TO_OPEN {
            assert_eq!(fail(&breaker).await, None);
        }
        assert_eq!(fail(&breaker).await, Some(FIRST_PAUSE));
        breaker
    }

    #[tokio::test(start_paused = true)]
    async fn opens_after_failures_in_a_row_only() {
        let breaker = Breaker::default();
        for _ in 0..3 {
            for _ in 1..FAILURES_TO_OPEN {
                assert_eq!(fail(&breaker).await, None);
            }
            assert!(!breaker.pass(false).await.unwrap().answered());
        }
        assert_eq!(breaker.view().health, Health::Closed);
    }

    #[tokio::test(start_paused = true)]
    async fn is_closed_by_a_probe_or_opens_for_longer() {
        let breaker = open().await;
        assert_eq!(breaker.pass(false).await.unwrap_err(), refused());
        assert_eq!(breaker.view().health, Health::Open);
        let mut pause = FIRST_PAUSE;
        for _ in 0..10 {
            tokio::time::advance(pause).await;
            let probe = breaker.pass(false).await.unwrap();
            assert_eq!(breaker.view().health, Health::Probing);
            pause = (pause * 2).min(LONGEST_PAUSE);
            assert_eq!(probe.failed(&refused()), Some(pause));
        }
        tokio::time::advance(pause).await;
        assert!(breaker.pass(false).await.unwrap().answered());
        assert_eq!(breaker.view(), View { health: Health::Closed, failures: 0, tried_in: None, error: None });
    }

    #[tokio::test(start_paused = true)]
    async fn one_probes_and_the_others_share_its_fate() {
        for works in [true, false] {
            let breaker = open().await;
            tokio::time::advance(FIRST_PAUSE).await;
            let probe = breaker.pass(false).await.unwrap();
            let ending = async {
                tokio::time::sleep(Duration::from_millis(10)).await;
                if works { assert!(probe.answered()) } else { assert!(probe.failed(&refused()).is_some()) }
            };
            let (one, other, ()) = tokio::join!(breaker.pass(false), breaker.pass(false), ending);
            assert_eq!((one.is_ok(), other.is_ok()), (works, works));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_is_given_up_leaves_it_to_the_next() {
        let breaker = open().await;
        tokio::time::advance(FIRST_PAUSE).await;
        drop(breaker.pass(false).await.unwrap());
        assert_eq!(breaker.view().health, Health::Open);
        assert!(breaker.pass(false).await.unwrap().answered());
    }

    #[tokio::test(start_paused = true)]
    async fn what_continues_something_waits_a_little_and_not_for_long() {
        let breaker = open().await;
        let asked = Instant::now();
        let probe = breaker.pass(true).await.unwrap();
        assert_eq!(asked.elapsed(), FIRST_PAUSE);
        let pause = probe.failed(&refused()).unwrap();
        tokio::time::advance(pause).await;
        let pause = breaker.pass(true).await.unwrap().failed(&refused()).unwrap();
        tokio::time::advance(pause).await;
        let pause = breaker.pass(true).await.unwrap().failed(&refused()).unwrap();
        assert!(pause > PATIENCE);
        let asked = Instant::now();
        assert!(breaker.pass(true).await.is_err());
        assert_eq!(asked.elapsed(), Duration::ZERO, "it would be in vain");
        tokio::time::advance(pause).await;
        let _probe = breaker.pass(true).await.unwrap();
        assert!(breaker.pass(true).await.is_err(), "a probe that says nothing");
        assert_eq!(asked.elapsed(), pause + PATIENCE);
    }
}
