//! What a scripted registry does wrong, and when: a [`Rule`] names requests and the fault they meet; a [`Gate`] stops
//! an answer at a byte until the test lets it go.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

use super::PATIENCE;
use super::within;

/// A door in the middle of an answer. Clones are the same door.
#[derive(Clone, Debug)]
pub(crate) struct Gate(Arc<watch::Sender<GateState>>);

#[derive(Clone, Copy, Debug, Default)]
struct GateState {
    arrived: usize,
    open: bool,
}

impl Gate {
    pub(crate) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(GateState::default())))
    }

    /// Opens the door for good.
    pub(crate) fn release(&self) {
        self.0.send_modify(|state| state.open = true);
    }

    /// Waits until an answer stands at the door.
    pub(crate) async fn reached(&self) {
        let mut state = self.0.subscribe();
        within(PATIENCE, state.wait_for(|state| state.arrived > 0)).await.unwrap();
    }

    /// The registry's side: stands at the door until it opens, possibly for ever.
    pub(crate) async fn pass(&self) {
        self.0.send_modify(|state| state.arrived += 1);
        let mut state = self.0.subscribe();
        if state.wait_for(|state| state.open).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// How one answer differs from a correct one. Positions count body bytes of that answer, not of the blob.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fault {
    /// Answer this instead of looking anything up.
    pub(crate) status: Option<u16>,
    pub(crate) body: Option<Bytes>,
    pub(crate) set_headers: Vec<(String, String)>,
    pub(crate) before_headers: Option<Gate>,
    pub(crate) cut_at: Option<usize>,
    pub(crate) hold_at: Option<(usize, Gate)>,
    /// Pause after each piece of the body.
    pub(crate) pause: Option<Duration>,
    pub(crate) corrupt: Option<usize>,
    /// Added to the true Content-Length.
    pub(crate) length_error: i64,
    pub(crate) chunked: bool,
    pub(crate) ignore_range: bool,
    /// End by a reset where the body would be cut.
    pub(crate) reset: bool,
    /// Sent after the end of the body, on the same connection.
    pub(crate) surplus: Option<Bytes>,
}

/// Which requests meet which fault. The first rule that matches and is not used up decides.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    method: String,
    pattern: String,
    skip: usize,
    times: usize,
    matched: usize,
    /// Only requests with a Range, or only those without.
    ranged: Option<bool>,
    lot: Option<Lot>,
    fault: Fault,
}

/// Chance that can be repeated: the turn of a request and a seed decide.
#[derive(Clone, Copy, Debug)]
struct Lot {
    one_in: u64,
    seed: u64,
}

/// Requests with this method (`*`: any) and path; one `*` in the path stands for any run of characters.
pub(crate) fn on(method: &str, pattern: &str) -> Rule {
    Rule {
        method: method.to_owned(),
        pattern: pattern.to_owned(),
        skip: 0,
        times: usize::MAX,
        matched: 0,
        ranged: None,
        lot: None,
        fault: Fault::default(),
    }
}

impl Rule {
    /// Only the first `count` matching requests.
    pub(crate) fn first(mut self, count: usize) -> Self {
        self.times = count;
        self
    }

    /// Not the first `count` matching requests.
    pub(crate) fn after(mut self, count: usize) -> Self {
        self.skip = count;
        self
    }

    /// Only requests that ask for a range.
    pub(crate) fn ranged(mut self) -> Self {
        self.ranged = Some(true);
        self
    }

    /// Only requests that ask for all of it.
    pub(crate) fn unranged(mut self) -> Self {
        self.ranged = Some(false);
        self
    }

    /// About one of so many matching requests.
    pub(crate) fn one_in(mut self, one_in: u64, seed: u64) -> Self {
        self.lot = Some(Lot { one_in, seed });
        self
    }

    /// Answers `status` with a registry error body and looks nothing up.
    pub(crate) fn status(mut self, status: u16) -> Self {
        self.fault.status = Some(status);
        self
    }

    /// The body of [`Self::status`].
    pub(crate) fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.fault.body = Some(body.into());
        self
    }

    /// Sets a header, in the place of one of that name.
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.fault.set_headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Takes the request and says nothing.
    pub(crate) fn hang(self) -> Self {
        self.hang_until(&Gate::new())
    }

    /// Takes the request and says nothing until the gate opens.
    pub(crate) fn hang_until(mut self, gate: &Gate) -> Self {
        self.fault.before_headers = Some(gate.clone());
        self
    }

    /// Closes the connection after so many body bytes.
    pub(crate) fn cut_at(mut self, position: usize) -> Self {
        self.fault.cut_at = Some(position);
        self
    }

    /// Resets the connection after so many body bytes.
    pub(crate) fn reset_at(mut self, position: usize) -> Self {
        self.fault.reset = true;
        self.cut_at(position)
    }

    /// Sends more than it promised.
    pub(crate) fn surplus(mut self, bytes: impl Into<Bytes>) -> Self {
        self.fault.surplus = Some(bytes.into());
        self
    }

    /// Stops for ever after so many body bytes, the connection open.
    pub(crate) fn stall_at(self, position: usize) -> Self {
        self.hold_at(position, &Gate::new())
    }

    /// Stops after so many body bytes until the gate opens.
    pub(crate) fn hold_at(mut self, position: usize, gate: &Gate) -> Self {
        self.fault.hold_at = Some((position, gate.clone()));
        self
    }

    /// Sends the body at this speed.
    pub(crate) fn bytes_per_second(mut self, speed: usize) -> Self {
        self.fault.pause = Some(Duration::from_secs_f64(PIECE_BYTES as f64 / speed as f64));
        self
    }

    /// Turns over the bits of one body byte.
    pub(crate) fn corrupt(mut self, position: usize) -> Self {
        self.fault.corrupt = Some(position);
        self
    }

    /// Promises so many bytes more (or less) than there are; the rest is cut off.
    pub(crate) fn wrong_length(mut self, difference: i64) -> Self {
        self.fault.length_error = difference;
        self
    }

    /// Sends no Content-Length.
    pub(crate) fn chunked(mut self) -> Self {
        self.fault.chunked = true;
        self
    }

    /// Answers 200 and the whole body to a ranged request.
    pub(crate) fn ignore_range(mut self) -> Self {
        self.fault.ignore_range = true;
        self
    }

    /// The fault, if this rule applies to the request; counts it.
    pub(crate) fn meet(&mut self, method: &str, path: &str, has_range: bool) -> Option<Fault> {
        if (self.method != "*" && self.method != method) || !matches(&self.pattern, path) {
            return None;
        }
        if self.ranged.is_some_and(|ranged| ranged != has_range) {
            return None;
        }
        self.matched += 1;
        let turn = self.matched;
        let is_drawn = self.lot.is_none_or(|lot| lot.is_drawn(turn as u64));
        (is_drawn && turn > self.skip && turn - self.skip <= self.times).then(|| self.fault.clone())
    }
}

impl Lot {
    fn is_drawn(self, turn: u64) -> bool {
        let mixed = (self.seed ^ turn.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed ^ (mixed >> 31)).is_multiple_of(self.one_in)
    }
}

/// Bytes written between two looks at the script.
pub(crate) const PIECE_BYTES: usize = 16 * 1024;

/// Whether `path` fits a pattern with at most one `*`.
pub(crate) fn matches(pattern: &str, path: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == path,
        Some((start, end)) => path.len() >= start.len() + end.len() && path.starts_with(start) && path.ends_with(end),
    }
}
