//! How fast bodies are handed on: paced limits, and the hours in which other limits apply.

use std::fmt;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::Time;
use jiff::tz::TimeZone;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio::time::sleep_until;

use super::options::Bandwidth;
use super::options::Window;

/// Most bytes of one turn: what makes downloads with chunks of different sizes share evenly.
pub(super) const TURN_BYTES: usize = 16 * 1024;
/// Unused time that may be made up for: above what timers and a busy machine oversleep, 1 % of ten seconds.
const BURST: Duration = Duration::from_millis(100);

/// The local time of day.
#[derive(Clone)]
pub(super) struct WallClock(Arc<dyn Fn() -> Time + Send + Sync>);

impl WallClock {
    /// The clock of the machine, in its time zone as it is now; in UTC where that cannot be read, which is logged.
    pub(super) fn of_the_machine() -> Self {
        let zone = TimeZone::try_system().unwrap_or_else(|error| {
            tracing::warn!(%error, "the time zone cannot be read: bandwidth schedules are in UTC");
            TimeZone::UTC
        });
        Self::new(move || Timestamp::now().to_zoned(zone.clone()).time())
    }

    fn new(now: impl Fn() -> Time + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }
}

/// The limit in force at a time of day: that of the window around it, else the one for all day.
fn limit_at(bandwidth: &Bandwidth, time: Time) -> Option<NonZeroU64> {
    let holds = |window: &&Window| {
        if window.from <= window.to {
            window.from <= time && time < window.to
        } else {
            window.from <= time || time < window.to
        }
    };
    bandwidth.schedule.iter().find(holds).map(|window| window.limit).or(bandwidth.limit)
}

/// One limit. All who take from it stand in one queue, a turn each.
struct Pace {
    bandwidth: Bandwidth,
    /// For a schedule.
    clock: Option<WallClock>,
    /// When the next turn begins. The lock is the queue: it is fair, and held while its holder waits.
    next_free: Mutex<Instant>,
}

impl Pace {
    /// Waits for a turn of so many bytes.
    async fn take(&self, bytes: usize) {
        if self.limit().is_none() {
            return;
        }
        let mut next_free = self.next_free.lock().await;
        // Asked again: another window may have begun while others had their turns.
        let Some(limit) = self.limit() else { return };
        let now = Instant::now();
        #[expect(clippy::cast_precision_loss, reason = "exact below 2^53 bytes a second")]
        let turn = Duration::from_secs_f64(bytes as f64 / limit.get() as f64);
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let free = (*next_free).max(earliest) + turn;
        if free > now {
            sleep_until(free).await;
        }
        // Last, so that who gives up in between has used nothing.
        *next_free = free;
    }

    fn limit(&self) -> Option<NonZeroU64> {
        match &self.clock {
            Some(WallClock(now)) => limit_at(&self.bandwidth, now()),
            None => self.bandwidth.limit,
        }
    }
}

/// The place of one download in the queues of its limits. Bodies in one share take turns among themselves first, so that
/// a download gets no more of a limit for having more connections. Cheap to clone; the clones are one place.
#[derive(Clone, Debug, Default)]
pub struct Share(Arc<Mutex<()>>);

/// All limits that a body is under, its own registry's first. Cheap to clone; the clones share.
#[derive(Clone, Default)]
pub(super) struct Throttle(Vec<Arc<Pace>>);

impl Throttle {
    /// No limit, or a limit to be shared by everybody who gets a clone. The clock is asked for by a schedule only.
    pub(super) fn new(bandwidth: &Bandwidth, clock: impl FnOnce() -> WallClock) -> Self {
        if bandwidth.is_unlimited() {
            return Self::default();
        }
        let clock = (!bandwidth.schedule.is_empty()).then(clock);
        Self(vec![Arc::new(Pace { bandwidth: bandwidth.clone(), clock, next_free: Mutex::new(Instant::now()) })])
    }

    /// This limit, and then the other too.
    pub(super) fn and(&self, other: &Self) -> Self {
        Self(self.0.iter().chain(&other.0).cloned().collect())
    }

    pub(super) fn is_unlimited(&self) -> bool {
        self.0.is_empty()
    }

    /// Waits until so many bytes may be handed on. At most [`TURN_BYTES`] at once, or others wait too long.
    pub(super) async fn take(&self, share: &Share, bytes: usize) {
        debug_assert!(bytes <= TURN_BYTES);
        let _place = share.0.lock().await;
        for pace in &self.0 {
            pace.take(bytes).await;
        }
    }
}

impl fmt::Debug for Throttle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|pace| &pace.bandwidth)).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;
    use std::sync::atomic::Ordering;

    use jiff::civil::time;
    use tokio::time::advance;
    use tokio::time::sleep;
    use tokio::time::timeout;

    use super::super::Part;
    use super::super::silence_tests::SILENCE;
    use super::super::silence_tests::assert_undisturbed;
    use super::super::tests::Server;
    use super::super::tests::options;
    use super::super::tests::reply;
    use super::super::tests::repository;
    use super::super::tests::upstream;
    use super::*;
    use crate::oci::Algorithm;
    use crate::oci::Digest;

    const MB: u64 = 1_000_000;

    fn limit(bytes: u64) -> Option<NonZeroU64> {
        NonZeroU64::new(bytes)
    }

    fn window(from: (i8, i8), to: (i8, i8), bytes: u64) -> Window {
        Window { from: time(from.0, from.1, 0, 0), to: time(to.0, to.1, 0, 0), limit: limit(bytes).unwrap() }
    }

    fn throttle(bytes: u64) -> Throttle {
        let bandwidth = Bandwidth { limit: limit(bytes), schedule: Vec::new() };
        Throttle::new(&bandwidth, || unreachable!("there is no schedule"))
    }

    /// Takes for ever, in pieces of one size, and counts.
    fn taker(throttle: &Throttle, piece: usize) -> Arc<AtomicU64> {
        taker_in(&Share::default(), throttle, piece)
    }

    fn taker_in(share: &Share, throttle: &Throttle, piece: usize) -> Arc<AtomicU64> {
        let (taken, count) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (share, throttle) = (share.clone(), throttle.clone());
        let counted = taken.clone();
        tokio::spawn(async move {
            loop {
                throttle.take(&share, piece).await;
                counted.fetch_add(piece as u64, Ordering::Relaxed);
                // A throttle that lets everything through must not hang the test.
                assert!(count.fetch_add(1, Ordering::Relaxed) < 1_000_000);
            }
        });
        taken
    }

    fn taken(taker: &Arc<AtomicU64>) -> u64 {
        taker.load(Ordering::Relaxed)
    }

    #[track_caller]
    fn assert_near(actual: u64, expected: u64, percent: u64) {
        let off = actual.abs_diff(expected);
        assert!(off * 100 <= expected * percent, "{actual} is not within {percent} % of {expected}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_rate_is_precise_over_ten_seconds() {
        let turn = TURN_BYTES;
        for (rate, piece) in [(50_000, 1_000), (50_000, turn), (MB, 1_000), (20 * MB, turn), (500 * MB, turn)] {
            let one = taker(&throttle(rate), piece);
            sleep(Duration::from_secs(10)).await;
            assert_near(taken(&one), rate * 10, 2);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn takers_share_evenly() {
        for takers in [2, 5] {
            let shared = throttle(4 * MB);
            let all: Vec<_> = (0..takers).map(|_| taker(&shared, TURN_BYTES)).collect();
            sleep(Duration::from_secs(10)).await;
            for one in &all {
                assert_near(taken(one), 40 * MB / takers, 3);
            }
            assert_near(all.iter().map(taken).sum(), 40 * MB, 2);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_download_gets_no_more_for_having_more_connections() {
        let (shared, share) = (throttle(4 * MB), Share::default());
        let greedy: Vec<_> = (0..3).map(|_| taker_in(&share, &shared, TURN_BYTES)).collect();
        let modest = taker(&shared, TURN_BYTES);
        sleep(Duration::from_secs(10)).await;
        assert_near(greedy.iter().map(taken).sum(), 20 * MB, 3);
        assert_near(taken(&modest), 20 * MB, 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_registry_and_the_total_hold_together() {
        let total = throttle(3 * MB);
        let slow = taker(&throttle(MB).and(&total), TURN_BYTES);
        let free = taker(&Throttle::default().and(&total), TURN_BYTES);
        sleep(Duration::from_secs(10)).await;
        assert_near(taken(&slow), 10 * MB, 5);
        assert_near(taken(&free), 20 * MB, 5);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_nothing_waits() {
        let started = Instant::now();
        let open_outside = Bandwidth { limit: None, schedule: vec![window((8, 0), (9, 0), 1_000)] };
        let noon = || WallClock::new(|| time(12, 0, 0, 0));
        let none = Throttle::new(&Bandwidth::default(), noon);
        assert!(none.is_unlimited() && none.and(&none).is_unlimited());
        for throttle in [none, Throttle::new(&open_outside, noon)] {
            for _ in 0..1_000 {
                throttle.take(&Share::default(), TURN_BYTES).await;
            }
        }
        assert_eq!(started.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn idle_time_is_not_saved_up() {
        let throttle = throttle(MB);
        advance(Duration::from_secs(3600)).await;
        let one = taker(&throttle, TURN_BYTES);
        sleep(Duration::from_secs(10)).await;
        assert_near(taken(&one), 10 * MB, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn who_gives_up_uses_nothing_and_blocks_nobody() {
        let throttle = throttle(MB);
        for _ in 0..100 {
            let _ = timeout(Duration::from_micros(10), throttle.take(&Share::default(), TURN_BYTES)).await;
        }
        let one = taker(&throttle, TURN_BYTES);
        sleep(Duration::from_secs(10)).await;
        assert_near(taken(&one), 10 * MB, 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_window_begins_and_ends_while_bytes_flow() {
        let started = Instant::now();
        let clock = WallClock::new(move || {
            let minute = i8::try_from(started.elapsed().as_secs() / 10).unwrap();
            time(12, minute.min(59), 0, 0)
        });
        let schedule = vec![window((12, 1), (12, 2), 100_000)];
        let one = taker(&Throttle::new(&Bandwidth { limit: limit(MB), schedule }, || clock), TURN_BYTES);
        let mut before = 0;
        for expected in [10 * MB, MB, 10 * MB] {
            sleep(Duration::from_secs(10)).await;
            assert_near(taken(&one) - before, expected, 5);
            before = taken(&one);
        }
    }

    #[test]
    fn limits_of_the_day() {
        let day =
            Bandwidth { limit: limit(20), schedule: vec![window((8, 0), (18, 0), 5), window((22, 30), (6, 0), 50)] };
        let only_at_work = Bandwidth { limit: None, schedule: vec![window((8, 0), (18, 0), 5)] };
        let until_midnight = Bandwidth { limit: limit(20), schedule: vec![window((18, 0), (0, 0), 5)] };
        for (bandwidth, (hour, minute, second), expected) in [
            (&day, (7, 59, 59), Some(20)),
            (&day, (8, 0, 0), Some(5)),
            (&day, (17, 59, 59), Some(5)),
            (&day, (18, 0, 0), Some(20)),
            (&day, (22, 29, 59), Some(20)),
            (&day, (22, 30, 0), Some(50)),
            (&day, (23, 59, 59), Some(50)),
            (&day, (0, 0, 0), Some(50)),
            (&day, (5, 59, 59), Some(50)),
            (&day, (6, 0, 0), Some(20)),
            (&only_at_work, (7, 0, 0), None),
            (&only_at_work, (12, 0, 0), Some(5)),
            (&until_midnight, (23, 59, 59), Some(5)),
            (&until_midnight, (0, 0, 0), Some(20)),
            (&Bandwidth::default(), (12, 0, 0), None),
        ] {
            let found = limit_at(bandwidth, time(hour, minute, second, 0)).map(NonZeroU64::get);
            assert_eq!(found, expected, "{bandwidth:?} at {hour}:{minute}:{second}");
        }
    }

    #[tokio::test]
    async fn waiting_for_a_turn_is_no_silence_and_giving_up_loses_nothing() {
        let body: String = ('a'..='z').cycle().take(20_000).collect();
        let sent = body.clone();
        let server = Server::start(move |_| reply(200, "", &sent)).await;
        let mut options = options(&[&server.address]);
        // A turn takes longer than the silence that is tolerated.
        options.read_timeout = SILENCE;
        options.bandwidth.limit = limit(6_000);
        let digest = Digest::of(Algorithm::Sha256, body.as_bytes());
        let receive = async || {
            let mut blob = upstream(options.clone()).get_blob(&repository(), &digest, Part::whole()).await?;
            let mut received = Vec::new();
            if let Ok(chunk) = timeout(Duration::from_millis(100), blob.chunk()).await {
                // This machine stood still for longer than a turn takes.
                received.extend_from_slice(&chunk?.unwrap_or_default());
            }
            while let Some(chunk) = blob.chunk().await? {
                received.extend_from_slice(&chunk);
            }
            Ok::<_, crate::upstream::Error>(received)
        };
        assert_undisturbed(async || {
            let started = Instant::now();
            receive().await.is_ok_and(|received| received == body.as_bytes()) && started.elapsed() > SILENCE
        })
        .await;
    }

    #[test]
    fn the_clock_of_the_machine_tells_a_time() {
        let WallClock(now) = WallClock::of_the_machine();
        assert!(now() <= Time::MAX);
    }
}
