//! The thread that writes index and journal behind the catalog. Nothing on the way of a hit waits for it.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use crate::oci::Digest;

use super::Timestamp;
use super::blocking;
use super::change::Change;
use super::error::OpenError;
use super::index::Index;
use super::journal::Journal;

/// Most changes that wait; then whoever makes content or tags waits, and uses are dropped.
const QUEUE_LENGTH: usize = 16 * 1024;
/// A stop waits that long for what is still to be written.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);
const SEND_TIMEOUT: Duration = Duration::from_secs(1);

/// The queue to the writer thread.
pub(super) struct IndexWriter {
    queue: Mutex<Option<mpsc::Sender<Change>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl IndexWriter {
    pub(super) fn start(index: Index, journal: Journal) -> Result<Self, OpenError> {
        let (sender, receiver) = mpsc::channel(QUEUE_LENGTH);
        let thread = std::thread::Builder::new()
            .name("index".into())
            .spawn(move || run(&index, journal, receiver))
            .map_err(OpenError::Thread)?;
        Ok(Self { queue: Mutex::new(Some(sender)), thread: Mutex::new(Some(thread)) })
    }

    /// Never waits: a use may be lost.
    pub(super) fn used(&self, digest: &Digest, at: Timestamp) {
        if let Some(queue) = self.queue() {
            let _ = queue.try_send(Change::Used(*digest, at));
        }
    }

    /// From a blocking thread: waits while the queue is full.
    pub(super) fn tell(&self, change: Change) {
        if let Some(queue) = self.queue()
            && queue.blocking_send(change).is_err()
        {
            ended();
        }
    }

    /// Waits `SEND_TIMEOUT` at most: what is known counts, with or without the disk.
    pub(super) async fn send(&self, change: Change) {
        let Some(queue) = self.queue() else { return };
        // First without an await: whoever asked may be gone by the next one.
        let Err(TrySendError::Full(change)) = queue.try_send(change) else { return };
        match tokio::time::timeout(SEND_TIMEOUT, queue.send(change)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => ended(),
            Err(_) => tracing::error!("the index writer does not keep up; a grant or a tag is lost at the next start"),
        }
    }

    /// Ends the thread when it has written all; `false` when it did not end well, or not in time.
    pub(super) async fn close(&self) -> bool {
        drop(self.queue.lock().unwrap_or_else(PoisonError::into_inner).take());
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(thread) = thread else { return false };
        let joined = tokio::time::timeout(CLOSE_TIMEOUT, blocking(move || thread.join())).await;
        let is_clean = matches!(joined, Ok(Ok(())));
        if !is_clean {
            tracing::error!("the index did not close; the next start takes what is missing from the journal");
        }
        is_clean
    }

    fn queue(&self) -> Option<mpsc::Sender<Change>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn ended() {
    tracing::error!("the index writer has ended; what is learned now is lost at the next start");
}

/// The journal comes before the index: what the index says, a replay can say too.
fn run(index: &Index, mut journal: Journal, mut queue: mpsc::Receiver<Change>) {
    let mut is_journal_dirty = false;
    loop {
        let change = match queue.try_recv() {
            Ok(change) => change,
            Err(mpsc::error::TryRecvError::Empty) => {
                if std::mem::take(&mut is_journal_dirty) {
                    report("sync the journal", journal.sync());
                }
                match queue.blocking_recv() {
                    Some(change) => change,
                    None => break,
                }
            }
            Err(mpsc::error::TryRecvError::Disconnected) => break,
        };
        is_journal_dirty |= report("write the journal", journal.write(&change)).unwrap_or(false);
        report("write the index", index.apply(&change));
    }
    report("sync the journal", journal.sync());
    report("close the index", index.flush());
}

fn report<T, E: std::fmt::Display>(what: &str, result: Result<T, E>) -> Option<T> {
    result.inspect_err(|error| tracing::error!(%error, "cannot {what}; what is learned now may be lost")).ok()
}
