//! The thread that writes the journal behind the catalog. Nothing on the way of a hit waits for it.
//!
//! Whoever must know that a change survives a crash gets a [`Receipt`]: many changes that wait share one sync of the disk.
//! A journal that has grown long is moved aside and a snapshot made, on a thread of its own.

use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::oneshot;

use super::blocking;
use super::catalog::Catalog;
use super::change::Change;
use super::engine::Engine;
use super::engine::SpoolFile;
use super::error::OpenError;
use super::indexer::Indexer;
use super::indexer::Note;
use super::journal::Journal;
use super::snapshot;

/// Most messages that wait; then whoever changes something waits.
const QUEUE_LENGTH: usize = 16 * 1024;
/// Most messages that share a sync.
const MAX_BATCH: usize = 1024;
/// A snapshot is made when the journal is that long: so much a start has to replay at most, or little more. Tests see many.
const SNAPSHOT_AFTER_BYTES: u64 = if cfg!(debug_assertions) { 32 * 1024 } else { 16 * 1024 * 1024 };
/// A stop waits that long for what is still to be written.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(20);
/// Nobody waits longer for a disk that does not answer: what is known counts, with or without it.
const RECEIPT_TIMEOUT: Duration = Duration::from_secs(5);
/// A snapshot that failed is tried again after this.
const RETRY_PAUSE: Duration = Duration::from_secs(30);

/// The queue to the writer thread.
pub(super) struct Writer {
    queue: Mutex<Option<mpsc::Sender<Message>>>,
    thread: Mutex<Option<JoinHandle<bool>>>,
    indexer: Arc<Indexer>,
}

struct Message {
    changes: Vec<Change>,
    /// Its name in the spool directory goes when the changes are durable.
    spool: Option<SpoolFile>,
    /// Gets `true` when the changes are durable. Nobody waits for changes without it.
    done: Option<oneshot::Sender<bool>>,
    is_last: bool,
}

impl Message {
    /// Nobody writes it down: a file that was just published keeps its name as a spool, by which the next start finds it.
    fn leave(self) {
        if let Some(spool) = self.spool {
            spool.leave();
        }
    }
}

/// Tells when changes have become durable.
#[derive(Debug)]
pub(super) struct Receipt(Option<oneshot::Receiver<bool>>);

impl Receipt {
    /// Waits, a while at most; `false` when the changes may not survive a crash.
    pub(super) async fn durable(self) -> bool {
        let Some(done) = self.0 else { return false };
        matches!(tokio::time::timeout(RECEIPT_TIMEOUT, done).await, Ok(Ok(true)))
    }

    /// Waits on a blocking thread; `false` when the changes may not survive a crash.
    pub(super) fn wait(self) -> bool {
        self.0.is_some_and(|done| done.blocking_recv() == Ok(true))
    }
}

impl Writer {
    pub(super) fn start(
        engine: Engine,
        catalog: Arc<Catalog>,
        journal: Journal,
        is_snapshot_due: bool,
    ) -> Result<Self, OpenError> {
        let (sender, queue) = mpsc::channel(QUEUE_LENGTH);
        let indexer = Arc::new(Indexer::start(engine.clone(), catalog.clone()).map_err(OpenError::Thread)?);
        let (is_lossy, retry_at) = (is_snapshot_due, Instant::now());
        let thread = Thread { engine, catalog, journal, indexer: indexer.clone(), snapshot: None, is_lossy, retry_at };
        let thread = std::thread::Builder::new().name("journal".into()).spawn(move || thread.run(queue));
        let thread = Mutex::new(Some(thread.map_err(OpenError::Thread)?));
        Ok(Self { queue: Mutex::new(Some(sender)), thread, indexer })
    }

    /// From a blocking thread: waits while the queue is full.
    pub(super) fn tell(&self, changes: Vec<Change>, spool: Option<SpoolFile>) -> Receipt {
        let (done, receipt) = oneshot::channel();
        let message = Message { changes, spool, done: Some(done), is_last: false };
        match self.queue() {
            Some(queue) => match queue.blocking_send(message) {
                Ok(()) => Receipt(Some(receipt)),
                Err(unsent) => {
                    unsent.0.leave();
                    ended()
                }
            },
            None => {
                message.leave();
                Receipt(None)
            }
        }
    }

    /// Writes changes; `false` when they may not survive a crash.
    pub(super) async fn record(&self, changes: Vec<Change>) -> bool {
        let (done, receipt) = oneshot::channel();
        self.send(Message { changes, spool: None, done: Some(done), is_last: false }).await;
        Receipt(Some(receipt)).durable().await
    }

    /// Writes a change that a crash may undo.
    pub(super) async fn mention(&self, change: Change) {
        self.send(Message { changes: vec![change], spool: None, done: None, is_last: false }).await;
    }

    async fn send(&self, message: Message) {
        let Some(queue) = self.queue() else { return };
        // First without an await: whoever asked may be gone by the next one.
        let Err(TrySendError::Full(message)) = queue.try_send(message) else { return };
        match tokio::time::timeout(RECEIPT_TIMEOUT, queue.send(message)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => drop(ended()),
            Err(_) => tracing::error!("the journal does not keep up; a grant or a tag may be lost at the next start"),
        }
    }

    /// Sees to it that the index is written. Blocks.
    pub(super) fn watch(&self) {
        self.indexer.watch();
    }

    /// Writes all, with a snapshot, and ends. What is told later is lost.
    pub(super) async fn close(&self) {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(queue) = queue {
            let last = Message { changes: Vec::new(), spool: None, done: None, is_last: true };
            let _ = tokio::time::timeout(CLOSE_TIMEOUT, queue.send(last)).await;
        }
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(thread) = thread else { return };
        match tokio::time::timeout(CLOSE_TIMEOUT, blocking(move || thread.join())).await {
            Ok(Ok(true)) => {}
            _ => tracing::error!("the journal or the index did not close well; the next start makes up for it"),
        }
    }

    fn queue(&self) -> Option<mpsc::Sender<Message>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn ended() -> Receipt {
    tracing::error!("the journal's thread has ended; what is learned now is lost at the next start");
    Receipt(None)
}

// === The thread ===

struct Thread {
    engine: Engine,
    catalog: Arc<Catalog>,
    journal: Journal,
    indexer: Arc<Indexer>,
    snapshot: Option<JoinHandle<bool>>,
    /// The files do not say all that is known: only a snapshot can mend that.
    is_lossy: bool,
    retry_at: Instant,
}

impl Thread {
    /// Writes what comes until nothing more can come; `true` when it was told to end and all is written.
    fn run(mut self, mut queue: mpsc::Receiver<Message>) -> bool {
        let (mut batch, mut is_synced) = (Vec::new(), true);
        if self.is_lossy {
            self.begin_snapshot();
        }
        while let Some(first) = self.next(&mut queue, &mut is_synced) {
            batch.push(first);
            while let Some(more) = (batch.len() < MAX_BATCH).then(|| queue.try_recv().ok()).flatten() {
                batch.push(more);
            }
            let is_last = batch.iter().any(|message| message.is_last);
            is_synced = self.write(&mut batch);
            if is_last {
                let is_kept = self.finish();
                queue.close();
                while let Ok(late) = queue.try_recv() {
                    late.leave();
                }
                return is_kept;
            }
            if self.journal.size_bytes() > SNAPSHOT_AFTER_BYTES || self.is_lossy {
                self.begin_snapshot();
            }
        }
        report("sync the journal", self.journal.sync());
        self.join_snapshot();
        false
    }

    /// What a sync that failed was about may be lost, whatever later ones say: a snapshot makes up for it.
    fn sync(&mut self) -> bool {
        let is_synced = report("sync the journal", self.journal.sync()).is_some();
        self.is_lossy |= !is_synced;
        is_synced
    }

    /// Nothing stays unsynced while there is nothing else to do.
    fn next(&mut self, queue: &mut mpsc::Receiver<Message>, is_synced: &mut bool) -> Option<Message> {
        if let Ok(message) = queue.try_recv() {
            return Some(message);
        }
        if !std::mem::replace(is_synced, true) {
            self.sync();
        }
        queue.blocking_recv()
    }

    /// Writes, syncs where somebody waits for it, and tells who waits: whether all is durable.
    fn write(&mut self, batch: &mut Vec<Message>) -> bool {
        let changes = batch.iter().flat_map(|message| &message.changes);
        let is_written = report("write the journal", self.journal.write(changes)).is_some();
        let is_awaited = batch.iter().any(|message| message.done.is_some());
        let is_durable = is_written && is_awaited && self.sync();
        self.is_lossy |= !is_written;
        for Message { changes, spool, done, .. } in batch.drain(..) {
            drop(spool);
            changes.into_iter().for_each(|change| self.note(change));
            // Who waited may be gone.
            let _ = done.map(|done| done.send(is_durable));
        }
        is_durable
    }

    fn note(&self, change: Change) {
        self.indexer.note(match change {
            Change::Content(digest, ..)
            | Change::Forget(digest)
            | Change::Fact(digest, _)
            | Change::Revoke(digest, _) => Note::Content(digest),
            Change::Tag(repository, tag, _) | Change::Checked(repository, tag, ..) => Note::Tag(repository, tag),
        });
    }

    fn begin_snapshot(&mut self) {
        if self.snapshot.as_ref().is_some_and(|thread| !thread.is_finished()) {
            return;
        }
        self.is_lossy |= !self.join_snapshot();
        if self.is_lossy && self.retry_at > Instant::now() {
            return;
        }
        self.retry_at = Instant::now() + RETRY_PAUSE;
        if report("begin a new journal", self.journal.rotate(&self.engine.old_journal_path())).is_none() {
            return;
        }
        self.is_lossy = false;
        let (engine, catalog) = (self.engine.clone(), self.catalog.clone());
        let make = move || report("make a snapshot", make_snapshot(&engine, &catalog)).is_some();
        self.snapshot = report("start a thread", std::thread::Builder::new().name("snapshot".into()).spawn(make));
    }

    /// `true` unless the last snapshot failed.
    fn join_snapshot(&mut self) -> bool {
        self.snapshot.take().is_none_or(|thread| thread.join().unwrap_or(false))
    }

    /// A last snapshot, which also keeps all uses, and the end of the index.
    fn finish(mut self) -> bool {
        self.join_snapshot();
        let rotated = self.journal.rotate(&self.engine.old_journal_path());
        let made = rotated.and_then(|()| make_snapshot(&self.engine, &self.catalog));
        let is_kept =
            report("make a snapshot", made).is_some() || report("sync the journal", self.journal.sync()).is_some();
        self.indexer.stop() && is_kept
    }
}

/// After this, what the journal that is aside says is in the snapshot.
fn make_snapshot(engine: &Engine, catalog: &Catalog) -> io::Result<()> {
    snapshot::write(&engine.snapshot_path(), catalog)?;
    engine.forget_old_journal()
}

fn report<T>(what: &str, result: io::Result<T>) -> Option<T> {
    result.inspect_err(|error| tracing::error!(%error, "cannot {what}; what is learned now may be lost")).ok()
}
