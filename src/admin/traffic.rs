//! What was served, over time: totals read from the metrics every few seconds, as far back as the ring goes.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use crate::store::Timestamp;

use super::api::Traffic;

/// Between two samples.
pub(super) const SAMPLE_EVERY: Duration = Duration::from_secs(10);
/// Samples that are kept: a day.
const MAX_SAMPLES: usize = 8640;
/// Outcomes that took no body from the upstream of their own.
const HITS: [&str; 4] = ["hit", "revalidated", "stale", "join"];
/// Kinds of requests that ask for content.
const CONTENT: [&str; 2] = ["manifest", "blob"];

/// Totals over time.
#[derive(Debug, Default)]
pub(super) struct Ring(Mutex<VecDeque<(Timestamp, Traffic)>>);

impl Ring {
    pub(super) fn add(&self, at: Timestamp, traffic: Traffic) {
        let mut samples = self.samples();
        if samples.len() == MAX_SAMPLES {
            samples.pop_front();
        }
        samples.push_back((at, traffic));
    }

    /// At most so many samples of the time since `from`, evenly, the newest among them, oldest first.
    pub(super) fn since(&self, from: Timestamp, most: usize) -> Vec<(Timestamp, Traffic)> {
        let samples = self.samples();
        let recent: Vec<_> = samples.iter().filter(|(at, _)| *at >= from).copied().collect();
        let step = recent.len().div_ceil(most.max(1)).max(1);
        let mut thinned: Vec<_> = recent.into_iter().rev().step_by(step).collect();
        thinned.reverse();
        thinned
    }

    fn samples(&self) -> MutexGuard<'_, VecDeque<(Timestamp, Traffic)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The totals that the Prometheus text holds.
pub(super) fn totals(text: &str) -> Traffic {
    let mut traffic = Traffic::default();
    for (name, labels, value) in text.lines().filter_map(sample) {
        let label = |name: &str| label(labels, name).unwrap_or_default();
        match name {
            "forebay_requests_total" if CONTENT.contains(&label("kind")) => {
                traffic.requests += value;
                traffic.hits += if HITS.contains(&label("outcome")) { value } else { 0 };
            }
            "forebay_bytes_sent_total" if label("source") != "local" => traffic.sent_bytes += value,
            "forebay_upstream_bytes_total" => traffic.upstream_bytes += value,
            "forebay_evicted_bytes_total" => traffic.evicted_bytes += value,
            _ => {}
        }
    }
    traffic.saved_bytes = traffic.sent_bytes.saturating_sub(traffic.upstream_bytes);
    #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
    let ratio = |hits: u64, requests: u64| hits as f64 / requests as f64;
    traffic.hit_ratio = (traffic.requests > 0).then(|| ratio(traffic.hits, traffic.requests));
    traffic
}

/// Name, labels and value of a line, unless it is a comment. The exporter writes counters as whole numbers.
fn sample(line: &str) -> Option<(&str, &str, u64)> {
    let (series, value) = line.rsplit_once(' ')?;
    let value = value.parse::<f64>().ok().filter(|value| value.is_finite() && *value >= 0.0)?;
    let (name, labels) = series.split_once('{').unwrap_or((series, ""));
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a counter below 2^53")]
    Some((name, labels.trim_end_matches('}'), value as u64))
}

/// The value of a label. Values of ours hold neither quotes nor commas.
fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    let pair = |pair: &'a str| pair.strip_prefix(name)?.strip_prefix("=\"")?.strip_suffix('"');
    labels.split(',').find_map(pair)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_are_read_from_the_text() {
        let text = "# HELP forebay_requests_total Requests\n\
            forebay_requests_total{kind=\"blob\",outcome=\"hit\",registry=\"a.io\"} 6\n\
            forebay_requests_total{kind=\"manifest\",outcome=\"miss\",registry=\"a.io\"} 2\n\
            forebay_requests_total{kind=\"ping\",outcome=\"hit\",registry=\"-\"} 50\n\
            forebay_bytes_sent_total{registry=\"a.io\",source=\"store\"} 700\n\
            forebay_bytes_sent_total{registry=\"a.io\",source=\"local\"} 9\n\
            forebay_upstream_bytes_total{registry=\"a.io\"} 100\n\
            forebay_evicted_bytes_total 5\nnonsense\n";
        let traffic = totals(text);
        assert_eq!((traffic.requests, traffic.hits, traffic.hit_ratio), (8, 6, Some(0.75)));
        assert_eq!((traffic.sent_bytes, traffic.upstream_bytes, traffic.saved_bytes), (700, 100, 600));
        assert_eq!(traffic.evicted_bytes, 5);
        assert_eq!(totals("").hit_ratio, None);
    }

    #[test]
    fn a_long_time_is_thinned_and_ends_now() {
        let ring = Ring::default();
        for second in 0..100 {
            ring.add(Timestamp::from_millis(second), Traffic { requests: second, ..Traffic::default() });
        }
        let thinned = ring.since(Timestamp::from_millis(50), 10);
        assert_eq!(thinned.len(), 10);
        assert_eq!(thinned.last().unwrap().1.requests, 99);
        assert!(thinned.windows(2).all(|pair| pair[0].0 < pair[1].0) && thinned[0].0.as_millis() >= 50);
        for second in 100..=MAX_SAMPLES as u64 {
            ring.add(Timestamp::from_millis(second), Traffic::default());
        }
        assert_eq!(ring.since(Timestamp::from_millis(0), MAX_SAMPLES).len(), MAX_SAMPLES);
    }
}
