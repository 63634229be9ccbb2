//! Which lanes a download flies: the main lane in order, and side lanes for readers that wait far ahead of it.
//!
//! The main lane starts at the first absent byte and goes on to the end of the content, or to where another lane has been.
//! A reader ahead waits for the lane that comes its way as long as that is likely within [`PATIENCE`]; else a side lane
//! brings just its gap. A side lane that nobody reads any more is given up; what it brought stays, and the main lane goes
//! round it. A lane that breaks is taken up again where it broke, in the same answers to the same readers. A download
//! that nobody reads any more goes on when it is small or mostly there; else it is parked.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use backon::BackoffBuilder as _;
use backon::ExponentialBackoff;
use backon::ExponentialBuilder;
use tokio::task::AbortHandle;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;

use crate::store::Spool;
use crate::store::Want;
use crate::upstream;
use crate::upstream::BlobBody;
use crate::upstream::Identity;
use crate::upstream::Source;

use super::Broken;
use super::lane::Arrival;
use super::lane::Course;
use super::lane::Landing;
use super::lane::Plan;
use super::lane::fly;
use super::tuning::Tuning;

/// How long a reader ahead waits for a lane that comes its way, by that lane's speed so far.
const PATIENCE: Duration = Duration::from_secs(1);
/// A lane that has brought nothing yet is given that long before its speed counts.
const YOUTH: Duration = Duration::from_millis(100);
/// A reader this near to a lane never gets another.
const NEAR_BYTES: u64 = 1024 * 1024;
/// Most side lanes of one download.
const MAX_SIDE_LANES: usize = 8;
/// A download whose side lanes broke that often gets no more of them.
const MAX_SIDE_FAILURES: usize = 4;
/// How far a side lane goes for a reader that named no end: such readers often leave early.
const OPEN_SIDE_BYTES: u64 = 16 * 1024 * 1024;
/// Present bytes that the main lane reads over rather than asking the upstream anew.
const READ_OVER_BYTES: u64 = 1024 * 1024;
/// A parallel lane gets at least that much.
const MIN_SPLIT_BYTES: u64 = 16 * 1024 * 1024;
/// How often waiting readers and lanes are looked at.
const GLANCE: Duration = Duration::from_millis(10);
/// How long a download without readers goes on before it is judged.
const ABANDON_GRACE: Duration = Duration::from_secs(5);
/// Without readers, a download that lacks no more than this is finished.
const FINISH_BYTES: u64 = 16 * 1024 * 1024;
/// A broken download is taken up again that often in a row without news; any progress starts the count anew.
const MAX_RESUMES: usize = 5;
const FIRST_RESUME_DELAY: Duration = Duration::from_millis(100);
const MAX_RESUME_DELAY: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// In order, to the end.
    Main,
    /// For a reader ahead.
    Side,
    /// For speed: half of what another lane had before it.
    Extra,
}

struct Flying {
    role: Role,
    /// Where it was sent; `None`: to the end of the content.
    goal: Option<u64>,
    course: Arc<Course>,
    task: AbortHandle,
}

impl Flying {
    /// It has brought something: others may leave its way to it.
    fn is_proven(&self) -> bool {
        self.course.position() > self.course.start()
    }
}

/// One download's lanes.
pub(super) struct Conductor<'a> {
    plan: Arc<Plan>,
    spool: &'a Spool,
    stop: CancellationToken,
    /// Lanes that may fly in parallel for speed.
    tuning: Tuning,
    may_park: bool,
    tasks: JoinSet<(u64, Landing)>,
    flying: BTreeMap<u64, Flying>,
    next_number: u64,
    takes_ranges: bool,
    side_failures: usize,
    delays: ExponentialBackoff,
    retry_at: Instant,
    deserted_since: Option<Instant>,
}

/// A download whose bytes are all there, unproven.
pub(super) struct Brought {
    /// The most private identity that any part came by.
    pub(super) identity: Identity,
    /// Who answered last: the one to distrust when the bytes are wrong.
    pub(super) source: Source,
}

impl<'a> Conductor<'a> {
    pub(super) fn new(plan: Plan, spool: &'a Spool, stop: CancellationToken, max_lanes: usize, may_park: bool) -> Self {
        Self {
            plan: Arc::new(plan),
            spool,
            stop,
            tuning: Tuning::new(max_lanes, Instant::now()),
            may_park,
            tasks: JoinSet::new(),
            flying: BTreeMap::new(),
            next_number: 0,
            takes_ranges: true,
            side_failures: 0,
            delays: resume_delays(),
            retry_at: Instant::now(),
            deserted_since: None,
        }
    }

    /// Brings all bytes into the spool, over as many answers of the upstream as it takes.
    pub(super) async fn download(mut self, first: BlobBody) -> Result<Brought, Broken> {
        match self.spool.gap(0) {
            Some((start, _)) if first.start() <= start => self.launch(Role::Main, start, None, Some(first)),
            // What is parked changed since it was looked at: the first answer is of no use.
            _ => drop(first),
        }
        while self.spool.gap(0).is_some() || self.spool.size_bytes().is_none() {
            self.steer();
            let stop = self.stop.clone();
            let wake_at = self.wake_at();
            tokio::select! {
                Some(landed) = self.tasks.join_next() => match landed {
                    Ok((number, landing)) => self.land(number, landing)?,
                    Err(error) if error.is_cancelled() => {}
                    Err(error) => std::panic::resume_unwind(error.into_panic()),
                },
                () = self.spool.demand() => {}
                () = sleep_until(wake_at) => {}
                () = stop.cancelled() => return Err(Broken::Stopped),
            }
            if self.is_deserted() {
                return Err(Broken::Deserted);
            }
        }
        let (identity, source) = self.plan.provenance.get();
        Ok(Brought { identity, source })
    }

    // === Take-off ===

    fn steer(&mut self) {
        let wants = self.spool.wants();
        self.recall_unwanted(&wants);
        for want in wants {
            self.serve_ahead(want);
        }
        if Instant::now() >= self.retry_at && !self.flying.values().any(|lane| lane.role == Role::Main) {
            self.launch_main();
        }
        self.bound();
        self.split();
    }

    fn launch(&mut self, role: Role, start: u64, end: Option<u64>, body: Option<BlobBody>) {
        let course = Arc::new(Course::new(start, end));
        let number = self.next_number;
        self.next_number += 1;
        let must_be_exact = role != Role::Main;
        let flight = fly(self.plan.clone(), self.spool.lane(start), course.clone(), body, must_be_exact);
        let task = self.tasks.spawn(async move { (number, flight.await) });
        tracing::debug!(digest = %self.plan.digest, ?role, start, ?end, "a lane starts");
        self.flying.insert(number, Flying { role, goal: end, course, task });
    }

    /// From the first absent byte that no lane is on its way to.
    fn launch_main(&mut self) {
        let mut position = 0;
        while let Some((start, _)) = self.spool.gap(position) {
            match self.flying.values().find(|lane| lane.course.covers(start)) {
                None => return self.launch(Role::Main, start, None, None),
                Some(lane) => match lane.course.end() {
                    Some(end) => position = end,
                    None => return,
                },
            }
        }
    }

    /// A lane for a reader ahead, unless another comes its way soon.
    fn serve_ahead(&mut self, want: Want) {
        let start = want.position;
        let Some(size_bytes) = self.spool.size_bytes().filter(|_| self.takes_ranges) else { return };
        let Some((absent, gap_end)) = self.spool.gap(start) else { return };
        if absent != start || self.side_failures >= MAX_SIDE_FAILURES {
            return;
        }
        let is_full = self.flying.values().filter(|lane| lane.role == Role::Side).count() >= MAX_SIDE_LANES;
        let mut coming = self.flying.values().filter(|lane| lane.course.covers(start));
        if is_full || coming.any(|lane| arrives_soon(&lane.course, start)) {
            return;
        }
        let behind = self.flying.values().map(|lane| lane.course.position()).filter(|&position| position > start);
        let wanted = want.end.unwrap_or(start.saturating_add(OPEN_SIDE_BYTES));
        let end = behind.chain(gap_end).chain([wanted, size_bytes]).min();
        self.launch(Role::Side, start, end, None);
    }

    /// Side lanes whose readers are gone.
    fn recall_unwanted(&mut self, wants: &[Want]) {
        self.flying.retain(|_, lane| {
            let course = &lane.course;
            let is_wanted = |want: &Want| {
                want.position < course.end().unwrap_or(u64::MAX) && want.end.is_none_or(|end| end > course.position())
            };
            let stays = lane.role != Role::Side || wants.iter().any(is_wanted);
            if !stays {
                lane.task.abort();
            }
            stays
        });
    }

    /// Each lane stops where another has proven itself, and the main lane where so much is there that it goes round it.
    fn bound(&self) {
        for lane in self.flying.values() {
            let position = lane.course.position();
            let others = self.flying.values().filter(|other| other.is_proven()).map(|other| other.course.start());
            let other = others.filter(|&start| start > position).min();
            let present = (lane.role == Role::Main).then(|| self.present_ahead(position)).flatten();
            lane.course.set_end(lane.goal.into_iter().chain(other).chain(present).min());
        }
    }

    /// Where present bytes begin that are too many to be read over.
    fn present_ahead(&self, position: u64) -> Option<u64> {
        let size_bytes = self.spool.size_bytes()?;
        let mut gap = self.spool.gap(position);
        while let Some((_, Some(end))) = gap.filter(|(_, end)| *end != Some(size_bytes)) {
            gap = self.spool.gap(end);
            if gap.map_or(size_bytes, |(start, _)| start) - end >= READ_OVER_BYTES {
                return Some(end);
            }
        }
        None
    }

    /// Another lane for speed: it takes over the second half of the longest way that a lane has before it.
    fn split(&mut self) {
        let (Some(size_bytes), true) = (self.spool.size_bytes(), self.takes_ranges) else { return };
        let flying = self.flying.values().filter(|lane| lane.role != Role::Side).count();
        let brought_bytes = self.plan.brought_bytes.load(Ordering::Relaxed);
        if flying >= self.tuning.lanes(flying, brought_bytes, Instant::now()) {
            return;
        }
        let way = |course: &Course| course.end().unwrap_or(size_bytes).saturating_sub(course.position());
        let longest = self.flying.values().map(|lane| lane.course.clone()).max_by_key(|course| way(course));
        let Some(course) = longest.filter(|course| way(course) >= 2 * MIN_SPLIT_BYTES && course.rate().is_some())
        else {
            return;
        };
        let middle = course.position() + way(&course) / 2;
        let end = course.end().unwrap_or(size_bytes);
        self.launch(Role::Extra, middle, Some(end), None);
    }

    // === Landing ===

    fn land(&mut self, number: u64, landing: Landing) -> Result<(), Broken> {
        // A lane that was recalled has landed already.
        let Some(lane) = self.flying.remove(&number) else { return Ok(()) };
        let has_news = lane.course.position() > lane.course.start();
        if has_news {
            self.delays = resume_delays();
        }
        if let Some(start) = landing.body_start {
            self.takes_ranges &= start == lane.course.start() || lane.role == Role::Main;
        }
        match landing.outcome {
            Ok(Arrival::BodyEnd) if self.spool.size_bytes().is_none() => {
                self.spool.set_size(lane.course.position());
                Ok(())
            }
            Ok(_) => Ok(()),
            Err(broken @ (Broken::Upstream(_) | Broken::Changed(_))) if lane.role != Role::Main => {
                self.side_failures += 1;
                tracing::info!(digest = %self.plan.digest, error = %broken, "a side lane broke");
                Ok(())
            }
            Err(Broken::Upstream(error)) => self.resume(error),
            Err(broken) => Err(broken),
        }
    }

    fn resume(&mut self, error: upstream::Error) -> Result<(), Broken> {
        if self.spool.gap(0).is_none() {
            return Ok(());
        }
        match self.delays.next().filter(|_| error.is_transient()) {
            Some(delay) => {
                tracing::info!(digest = %self.plan.digest, %error, "a download broke; it is taken up where it broke");
                self.retry_at = Instant::now() + delay;
                Ok(())
            }
            None => Err(error.into()),
        }
    }

    // === Time ===

    fn wake_at(&self) -> Instant {
        let now = Instant::now();
        let waits_for_retry = self.retry_at > now;
        let looks_after = !self.tuning.is_settled() || self.deserted_since.is_some() || !self.spool.wants().is_empty();
        let glance = looks_after.then(|| now + GLANCE);
        let retry = waits_for_retry.then_some(self.retry_at);
        glance.into_iter().chain(retry).min().unwrap_or(now + ABANDON_GRACE)
    }

    /// Nobody has read for a while, and too much is lacking to finish it for nobody.
    fn is_deserted(&mut self) -> bool {
        if self.spool.readers() > 0 || !self.may_park {
            self.deserted_since = None;
            return false;
        }
        let since = *self.deserted_since.get_or_insert_with(Instant::now);
        let (Some(size_bytes), Some((start, _))) = (self.spool.size_bytes(), self.spool.gap(0)) else { return false };
        let lacking_bytes = size_bytes - start;
        since.elapsed() >= ABANDON_GRACE && lacking_bytes > FINISH_BYTES && lacking_bytes > size_bytes / 2
    }
}

/// Whether a lane brings this byte within a reader's patience.
fn arrives_soon(course: &Course, position: u64) -> bool {
    let distance = position - course.position().min(position);
    if distance <= NEAR_BYTES {
        return true;
    }
    match course.rate() {
        None => course.since().elapsed() < YOUTH,
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        Some(rate) => distance as f64 <= rate * PATIENCE.as_secs_f64(),
    }
}

fn resume_delays() -> ExponentialBackoff {
    ExponentialBuilder::new()
        .with_min_delay(FIRST_RESUME_DELAY)
        .with_max_delay(MAX_RESUME_DELAY)
        .with_max_times(MAX_RESUMES)
        .with_jitter()
        .build()
}
