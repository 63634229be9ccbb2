//! A verification inside of an open store: in the background, one at a time, and stopped when the store closes.
//!
//! It finds what `verify` finds. A repair tells the store, which forgets the content, counts it, and fetches it again when
//! it is next asked for.

use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::Weak;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use super::Inner;
use super::Store;
use super::Timestamp;
use super::engine::Audit;
use super::engine::quarantine_limit_bytes;
use super::rot;
use super::verify;
use super::verify::MAX_LISTED;
use super::verify::Repair;
use super::verify::Rotten;
use super::verify::VerifyStep;
use crate::metrics::FoundBy;
use crate::oci::Digest;

/// A verification that goes on, or is over. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Verifying {
    state: Arc<State>,
}

/// How far a verification is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyProgress {
    /// All files; zero until they are listed.
    pub total_blobs: u64,
    /// All bytes.
    pub total_bytes: u64,
    /// Files that were hashed.
    pub blobs: u64,
    /// Bytes that were hashed.
    pub bytes: u64,
    /// How many files are not what their name says.
    pub rotten_blobs: u64,
    /// The first 10,000 of them, as they were found.
    pub rotten: Vec<Rotten>,
    /// When it ended, and how.
    pub end: Option<(Timestamp, VerifyEnd)>,
}

/// How a verification ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VerifyEnd {
    /// All files were hashed.
    Done,
    /// It was told to stop.
    Stopped,
    /// It could not go on, and why.
    Failed(String),
}

/// No verification begins.
#[derive(Debug, thiserror::Error)]
pub enum VerifyStartError {
    /// Another goes on.
    #[error("a verification goes on already")]
    Running,
    /// The system gives no thread.
    #[error("there is no thread for it: {0}")]
    Thread(io::Error),
}

#[derive(Debug)]
struct State {
    repairs: bool,
    started_at: Timestamp,
    is_stopped: AtomicBool,
    progress: Mutex<VerifyProgress>,
}

/// The verification that goes on, or was the last.
#[derive(Debug, Default)]
pub(super) struct LastVerification(Mutex<Option<Verifying>>);

impl Store {
    /// Begins to hash every file, on threads of its own; with `repairs`, what is rotten goes to quarantine.
    pub fn verify(&self, repairs: bool) -> Result<Verifying, VerifyStartError> {
        let mut last = self.inner.verification.lock();
        if last.as_ref().is_some_and(Verifying::is_running) {
            return Err(VerifyStartError::Running);
        }
        let verifying = Verifying::new(repairs);
        let (audit, store, here) = (self.inner.engine.audit(), Arc::downgrade(&self.inner), verifying.clone());
        let thread = std::thread::Builder::new().name("forebay-verify".to_owned());
        thread.spawn(move || here.run(&audit, &store)).map_err(VerifyStartError::Thread)?;
        *last = Some(verifying.clone());
        Ok(verifying)
    }

    /// The verification that goes on, or was the last of this process.
    pub fn verification(&self) -> Option<Verifying> {
        self.inner.verification.lock().clone()
    }
}

impl LastVerification {
    /// Ends what goes on.
    pub(super) fn stop(&self) {
        if let Some(verifying) = &*self.lock() {
            verifying.stop();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Verifying>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Verifying {
    fn new(repairs: bool) -> Self {
        let (started_at, is_stopped) = (Timestamp::now(), AtomicBool::new(false));
        Self { state: Arc::new(State { repairs, started_at, is_stopped, progress: Mutex::default() }) }
    }

    /// Whether what is rotten goes to quarantine.
    pub fn repairs(&self) -> bool {
        self.state.repairs
    }

    /// When it began.
    pub fn started_at(&self) -> Timestamp {
        self.state.started_at
    }

    /// How far it is, or was when it ended.
    pub fn progress(&self) -> VerifyProgress {
        self.lock().clone()
    }

    /// Ends it after the piece that is being hashed; what was found stays.
    pub fn stop(&self) {
        self.state.is_stopped.store(true, Ordering::Relaxed);
    }

    fn is_running(&self) -> bool {
        self.lock().end.is_none()
    }

    fn is_stopped(&self) -> bool {
        self.state.is_stopped.load(Ordering::Relaxed)
    }

    /// Hashes everything. Blocks.
    fn run(self, audit: &Audit, store: &Weak<Inner>) {
        // Says so, too, when a panic ends it: the next one must not be refused for ever.
        let ending = Ending(&self);
        tracing::info!(repairs = self.repairs(), "a verification of all that is stored begins");
        let repair = |digest: &Digest, file: &File| quarantine(audit, store, digest, file);
        let repair: Repair<'_> = &repair;
        let end = match verify::run(audit, self.repairs().then_some(repair), &|step| self.note(step)) {
            Err(error) => VerifyEnd::Failed(error.to_string()),
            Ok(_) if self.is_stopped() => VerifyEnd::Stopped,
            Ok(_) => VerifyEnd::Done,
        };
        self.lock().end = Some((Timestamp::now(), end));
        drop(ending);
        let VerifyProgress { blobs, bytes, rotten_blobs, .. } = self.progress();
        tracing::info!(blobs, bytes, rotten_blobs, is_stopped = self.is_stopped(), "the verification is over");
    }

    fn note(&self, step: VerifyStep<'_>) -> ControlFlow<()> {
        let mut progress = self.lock();
        match step {
            VerifyStep::Listed { blobs, bytes } => (progress.total_blobs, progress.total_bytes) = (blobs, bytes),
            VerifyStep::Read(bytes) => progress.bytes += bytes,
            VerifyStep::Looked(rotten) => {
                progress.blobs += 1;
                if let Some(rotten) = rotten {
                    tracing::error!(digest = %rotten.digest, problem = %rotten.problem, "stored content is rotten");
                    progress.rotten_blobs += 1;
                    if progress.rotten.len() < MAX_LISTED {
                        progress.rotten.push(rotten.clone());
                    }
                }
            }
        }
        if self.is_stopped() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn lock(&self) -> MutexGuard<'_, VerifyProgress> {
        self.state.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives a verification an end that has none.
struct Ending<'a>(&'a Verifying);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        let end = || (Timestamp::now(), VerifyEnd::Failed("it broke off; the log says why".to_owned()));
        self.0.lock().end.get_or_insert_with(end);
    }
}

/// Takes rotten content out of the store; a file that the store does not know of, out of the way.
fn quarantine(audit: &Audit, store: &Weak<Inner>, digest: &Digest, file: &File) -> Result<(), String> {
    let inner = store.upgrade().ok_or_else(|| "the store is closed".to_owned())?;
    if inner.catalog.size_bytes(digest).is_some() {
        return rot::quarantine(&inner, digest, file, FoundBy::Verify).map_err(|error| error.to_string());
    }
    verify::quarantine(audit, digest, file, quarantine_limit_bytes(inner.space.max_bytes()))?;
    inner.quarantine.bound(&inner.engine, &inner.space);
    Ok(())
}
