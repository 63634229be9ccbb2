//! How many requests a registry gets in a minute. Who comes when they are used up waits, in order.

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio::time::sleep_until;
use tokio::time::timeout;

use super::error::Error;

const MINUTE: Duration = Duration::from_secs(60);
/// Longest wait; after it the request fails as if the registry had limited the rate.
const PATIENCE: Duration = Duration::from_secs(60);

/// Exact: in no span of a minute are there more.
#[derive(Debug)]
pub(super) struct Budget {
    /// `None`: no limit.
    limit: Option<NonZeroU32>,
    /// The last `limit` requests. The lock is the queue: it is fair, and held while its holder waits.
    sent: Mutex<VecDeque<Instant>>,
}

impl Budget {
    pub(super) fn new(limit: Option<NonZeroU32>) -> Self {
        Self { limit, sent: Mutex::default() }
    }

    pub(super) fn limit(&self) -> Option<NonZeroU32> {
        self.limit
    }

    /// Requests of the last minute; `None` without a limit, and while somebody waits: then all are used.
    pub(super) fn used(&self) -> Option<u32> {
        let limit = self.limit?;
        let Ok(sent) = self.sent.try_lock() else { return Some(limit.get()) };
        let young = sent.iter().filter(|at| at.elapsed() < MINUTE).count();
        Some(u32::try_from(young).unwrap_or(u32::MAX))
    }

    /// Waits for leave to send one request.
    pub(super) async fn take(&self) -> Result<(), Error> {
        let Some(limit) = self.limit else { return Ok(()) };
        let taking = async {
            let mut sent = self.sent.lock().await;
            let limit = usize::try_from(limit.get()).unwrap_or(usize::MAX);
            while sent.len() >= limit {
                // The front stays until its minute is over, so that who gives up here has used nothing.
                let free_at = sent.front().map_or_else(Instant::now, |oldest| *oldest + MINUTE);
                if free_at > Instant::now() {
                    sleep_until(free_at).await;
                }
                sent.pop_front();
            }
            sent.push_back(Instant::now());
        };
        timeout(PATIENCE, taking).await.map_err(|_| Error::RateLimited { retry_after: Some(MINUTE) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn no_minute_has_more_and_nobody_fails_who_can_wait() {
        let budget = Budget::new(NonZeroU32::new(3));
        let started = Instant::now();
        let mut at = Vec::new();
        for _ in 0..7 {
            budget.take().await.unwrap();
            at.push(started.elapsed().as_secs());
        }
        assert_eq!(at, [0, 0, 0, 60, 60, 60, 120]);
        assert_eq!(budget.used(), Some(1));
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_too_long_is_told_so_and_has_used_nothing() {
        let budget = Budget::new(NonZeroU32::new(1));
        budget.take().await.unwrap();
        tokio::time::advance(Duration::from_secs(1)).await;
        let (first, second) = tokio::join!(budget.take(), budget.take());
        assert_eq!(first, Ok(()));
        assert_eq!(second, Err(Error::RateLimited { retry_after: Some(MINUTE) }));
        tokio::time::advance(MINUTE).await;
        let asked = Instant::now();
        budget.take().await.unwrap();
        assert_eq!(asked.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_nobody_waits() {
        let budget = Budget::new(None);
        for _ in 0..1000 {
            budget.take().await.unwrap();
        }
        assert_eq!(budget.used(), None);
    }
}
