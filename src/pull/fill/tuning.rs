//! How many lanes a download flies for speed: one more as long as the last one brought something.

use std::time::Duration;

use tokio::time::Instant;

/// How long a number of lanes is measured.
const ROUND: Duration = Duration::from_millis(500);
/// A lane more has to bring that much more than there was.
const WORTH: f64 = 1.1;

/// Tries one lane more each round, and goes back for good when that brought nothing.
#[derive(Debug)]
pub(super) struct Tuning {
    max_lanes: usize,
    lanes: usize,
    is_settled: bool,
    since: Instant,
    bytes_then: u64,
    /// Bytes per second of the round before.
    rate_before: f64,
}

impl Tuning {
    pub(super) fn new(max_lanes: usize, now: Instant) -> Self {
        let is_settled = max_lanes <= 1;
        Self { max_lanes, lanes: 1, is_settled, since: now, bytes_then: 0, rate_before: 0.0 }
    }

    /// Whether it still has to be looked at.
    pub(super) fn is_settled(&self) -> bool {
        self.is_settled
    }

    /// How many lanes may fly, when so many bytes have come in all.
    pub(super) fn lanes(&mut self, flying: usize, bytes: u64, now: Instant) -> usize {
        let elapsed = now - self.since;
        if self.is_settled || elapsed < ROUND {
            return self.lanes;
        }
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let rate = (bytes - self.bytes_then) as f64 / elapsed.as_secs_f64();
        (self.since, self.bytes_then) = (now, bytes);
        if flying < self.lanes {
            // Not all of them flew: the round says nothing.
            return self.lanes;
        }
        if rate < self.rate_before * WORTH {
            self.lanes -= 1;
            self.is_settled = true;
        } else if self.lanes == self.max_lanes {
            self.is_settled = true;
        } else {
            self.lanes += 1;
        }
        self.rate_before = rate;
        self.lanes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number of lanes after some rounds on a link where `rate(lanes)` bytes come in a round.
    fn settle(max_lanes: usize, rate: impl Fn(usize) -> u64) -> usize {
        let mut now = Instant::now();
        let mut tuning = Tuning::new(max_lanes, now);
        let (mut lanes, mut bytes) = (1, 0);
        for _ in 0..40 {
            now += ROUND;
            bytes += rate(lanes);
            lanes = tuning.lanes(lanes, bytes, now);
        }
        lanes
    }

    #[test]
    fn goes_up_while_it_helps_and_back_when_it_does_not() {
        assert_eq!(settle(1, |lanes| 100 * lanes as u64), 1);
        assert_eq!(settle(8, |lanes| 100 * lanes as u64), 8, "each lane brings its own");
        assert_eq!(settle(8, |_| 100), 1, "one fills the pipe");
        assert_eq!(settle(8, |lanes| 100 * lanes.min(3) as u64), 3, "three fill the pipe");
    }
}
