//! One lane of a download: one answer of the upstream, moved into the spool.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::oci::Digest;
use crate::oci::Repository;
use crate::store::Lane;
use crate::store::WriteError;
use crate::upstream;
use crate::upstream::BlobBody;
use crate::upstream::Identity;
use crate::upstream::Part;
use crate::upstream::Share;
use crate::upstream::Source;
use crate::upstream::Upstream;

use super::Broken;

/// Bytes received while a batch is hashed and written: what bounds a lane's memory.
const WINDOW_BYTES: usize = 4 * 1024 * 1024;
/// Most chunks written at once.
const BATCH_CHUNKS: usize = 64;

/// What all lanes of a download have in common.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) upstream: Upstream,
    pub(super) repository: Repository,
    pub(super) digest: Digest,
    /// The announced length: another answer must not contradict it.
    pub(super) size_bytes: Option<u64>,
    /// By all lanes so far.
    pub(super) brought_bytes: AtomicU64,
    pub(super) provenance: Provenance,
    /// Of bandwidth limits: the download's, not the lane's.
    pub(super) share: Share,
}

/// Where a download's bytes come from. Noted before an answer's first byte is written, so that it never lags behind them.
#[derive(Debug)]
pub(super) struct Provenance {
    identity_and_source: Mutex<(Identity, Source)>,
    etag: Option<Box<[u8]>>,
}

impl Provenance {
    pub(super) fn new(first: &BlobBody) -> Self {
        let identity_and_source = Mutex::new((first.identity().clone(), first.source()));
        Self { identity_and_source, etag: first.etag().map(Into::into) }
    }

    /// The most private identity, and who answered last.
    pub(super) fn get(&self) -> (Identity, Source) {
        self.identity_and_source.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, body: &BlobBody, digest: &Digest) {
        let mut noted = self.identity_and_source.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(body.identity(), Identity::Account(_)) {
            noted.0 = body.identity().clone();
        }
        noted.1 = body.source();
        // Servers of one registry may well mark the same bytes differently: the digest decides, not this.
        if let (Some(was), Some(is)) = (self.etag.as_deref(), body.etag())
            && was != is
        {
            let (was, is) = (was.escape_ascii(), is.escape_ascii());
            tracing::info!(%digest, endpoint = %noted.1.base(), %was, %is, "another answer has another ETag");
        }
    }
}

/// Where a lane is, and where it should stop. The conductor may bring the end nearer while the lane flies.
#[derive(Debug)]
pub(super) struct Course {
    start: u64,
    since: Instant,
    position: AtomicU64,
    /// `u64::MAX`: the end of the content.
    end: AtomicU64,
}

impl Course {
    pub(super) fn new(start: u64, end: Option<u64>) -> Self {
        let end = AtomicU64::new(end.unwrap_or(u64::MAX));
        Self { start, since: Instant::now(), position: AtomicU64::new(start), end }
    }

    pub(super) fn start(&self) -> u64 {
        self.start
    }

    pub(super) fn position(&self) -> u64 {
        self.position.load(Ordering::Relaxed)
    }

    /// `None`: the end of the content.
    pub(super) fn end(&self) -> Option<u64> {
        Some(self.end.load(Ordering::Relaxed)).filter(|&end| end != u64::MAX)
    }

    pub(super) fn set_end(&self, end: Option<u64>) {
        self.end.store(end.unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(super) fn covers(&self, position: u64) -> bool {
        self.position() <= position && position < self.end.load(Ordering::Relaxed)
    }

    pub(super) fn since(&self) -> Instant {
        self.since
    }

    /// Bytes per second so far; `None` before the first ones.
    pub(super) fn rate(&self) -> Option<f64> {
        let bytes = self.position() - self.start;
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        (bytes > 0).then(|| bytes as f64 / self.since.elapsed().as_secs_f64().max(0.001))
    }
}

/// How a lane ended.
pub(super) struct Landing {
    pub(super) outcome: Result<Arrival, Broken>,
    /// Where the answer that it flew on began, where there was one.
    pub(super) body_start: Option<u64>,
}

/// Where a lane that did not break ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// At the end of the upstream's body.
    BodyEnd,
    /// At the end of its course.
    CourseEnd,
}

/// Flies a lane: asks upstream for its part, unless it has an answer already, and moves the body into the spool.
///
/// An answer that starts over can be let go by up to the lane's start, unless the lane has to be exact.
pub(super) async fn fly(
    plan: Arc<Plan>,
    mut lane: Lane,
    course: Arc<Course>,
    body: Option<BlobBody>,
    must_be_exact: bool,
) -> Landing {
    let mut body = match body {
        Some(body) => body,
        None => match open(&plan, &course).await {
            Ok(body) => body,
            Err(broken) => return Landing { outcome: Err(broken), body_start: None },
        },
    };
    plan.provenance.note(&body, &plan.digest);
    let body_start = Some(body.start());
    let outcome = match check(&plan, &course, &body) {
        Ok(known_bytes) if must_be_exact && known_bytes > 0 => {
            Err(Broken::Changed("it does not send parts".to_owned()))
        }
        Ok(known_bytes) => pump(&plan, &mut body, &mut lane, &course, known_bytes).await,
        Err(broken) => Err(broken),
    };
    Landing { outcome, body_start }
}

async fn open(plan: &Plan, course: &Course) -> Result<BlobBody, Broken> {
    let part = Part { start: course.start(), end: course.end() };
    let mut body = plan.upstream.get_blob(&plan.repository, &plan.digest, part).await?;
    body.take_share(&plan.share);
    Ok(body)
}

/// Whether an answer can be what was asked for: how many of its first bytes are there already.
fn check(plan: &Plan, course: &Course, body: &BlobBody) -> Result<u64, Broken> {
    if let (Some(was), Some(is)) = (plan.size_bytes, body.total_bytes())
        && was != is
    {
        return Err(Broken::Changed(format!("the length was {was}, now it is {is}")));
    }
    course.start().checked_sub(body.start()).ok_or_else(|| {
        Broken::Changed(format!("asked for bytes from {}, it sent them from {}", course.start(), body.start()))
    })
}

/// The next batch is received while the last one is written and hashed.
async fn pump(
    plan: &Plan,
    body: &mut BlobBody,
    lane: &mut Lane,
    course: &Course,
    known_bytes: u64,
) -> Result<Arrival, Broken> {
    let (sender, mut receiver) = mpsc::channel::<Bytes>(BATCH_CHUNKS);
    let window = &Semaphore::new(WINDOW_BYTES);
    let receive = async move {
        let mut known_bytes = known_bytes;
        let mut position = course.start();
        while let Some(mut chunk) = body.chunk().await? {
            let known = usize::try_from(known_bytes).unwrap_or(usize::MAX).min(chunk.len());
            known_bytes -= known as u64;
            let mut news = chunk.split_off(known);
            let left = course.end().map_or(u64::MAX, |end| end.saturating_sub(position));
            news.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            position += news.len() as u64;
            if !news.is_empty() {
                // Either fails when the writer is gone: its error is the one that counts.
                let Ok(room) = window.acquire_many(weight(&news)).await else { break };
                room.forget();
                if sender.send(news).await.is_err() {
                    break;
                }
            }
            if course.end().is_some_and(|end| position >= end) {
                return Ok(Arrival::CourseEnd);
            }
        }
        Ok::<_, upstream::Error>(Arrival::BodyEnd)
    };
    // Owns the receiver, so that a failed write ends the receiving side too.
    let write = async move {
        let mut batch = Vec::with_capacity(BATCH_CHUNKS);
        let mut outcome = Ok::<_, WriteError>(());
        while outcome.is_ok() && receiver.recv_many(&mut batch, BATCH_CHUNKS).await > 0 {
            let written: usize = batch.iter().map(|chunk| weight(chunk) as usize).sum();
            outcome = lane.write(std::mem::take(&mut batch)).await;
            course.position.store(lane.position(), Ordering::Relaxed);
            plan.brought_bytes.fetch_add(written as u64, Ordering::Relaxed);
            window.add_permits(written);
        }
        window.close();
        outcome
    };
    let (received, written) = tokio::join!(receive, write);
    written?;
    Ok(received?)
}

/// What a chunk takes of the window.
fn weight(chunk: &Bytes) -> u32 {
    u32::try_from(chunk.len().min(WINDOW_BYTES)).unwrap_or(u32::MAX)
}
