//! Content that cannot be kept, for several clients at once: one stream from the upstream, shared as far as a bounded
//! window of memory allows.
//!
//! The stream waits for its slowest reader while the window is full, but not for long: a reader that holds the others up
//! falls off and goes on by itself, with the hash of what it had, so that its body is verified all the same. Who comes
//! when the beginning has left the window gets a stream of its own.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::oci::Digest;
use crate::oci::Hasher;
use crate::upstream::Part;

use super::ReadError;
use super::passthrough::PassThrough;

/// What one relay keeps in memory.
const WINDOW_BYTES: u64 = 4 * 1024 * 1024;
/// How long a full window waits for its slowest reader.
const LAG_PATIENCE: Duration = Duration::from_millis(500);
/// How long a relay waits for its first reader.
const FIRST_READER_PATIENCE: Duration = Duration::from_secs(10);

/// A shared stream. Cheap to clone.
#[derive(Clone)]
pub(super) struct Relay {
    shared: Arc<Shared>,
}

struct Shared {
    window: Mutex<Window>,
    /// Counts changes that readers wait for.
    news: watch::Sender<u64>,
    /// A reader came, went on, or left.
    demand: Notify,
}

struct Window {
    chunks: VecDeque<Bytes>,
    /// Where the first chunk starts, and the last one ends.
    start: u64,
    end: u64,
    /// Of all before `start`.
    before: Hasher,
    next_reader: u64,
    /// Where each reader is: always at a chunk's start, or at the end.
    readers: BTreeMap<u64, u64>,
    /// Who fell off: the hash of what it had.
    fallen: HashMap<u64, Hasher>,
    ending: Option<Result<(), ReadError>>,
}

impl Relay {
    pub(super) fn new(digest: &Digest) -> Self {
        let window = Window {
            chunks: VecDeque::new(),
            start: 0,
            end: 0,
            before: Hasher::new(digest.algorithm()),
            next_reader: 0,
            readers: BTreeMap::new(),
            fallen: HashMap::new(),
            ending: None,
        };
        let shared = Shared { window: Mutex::new(window), news: watch::Sender::new(0), demand: Notify::new() };
        Self { shared: Arc::new(shared) }
    }

    /// A place in the stream from its beginning; `None` when that has gone by.
    pub(super) fn reader(&self, alone: Box<PassThrough>) -> Result<RelayReader, Box<PassThrough>> {
        let mut window = self.shared.window();
        if window.start > 0 || window.ending.is_some() {
            return Err(alone);
        }
        let number = window.next_reader;
        window.next_reader += 1;
        window.readers.insert(number, 0);
        drop(window);
        self.shared.demand.notify_one();
        let news = self.shared.news.subscribe();
        Ok(RelayReader { shared: self.shared.clone(), news, number, position: 0, alone: Some(alone), is_alone: false })
    }

    /// Passes the stream on until it ends, or nobody reads it any more. Its last bytes come only after the verdict.
    pub(super) async fn run(&self, mut stream: PassThrough) {
        let first = timeout(FIRST_READER_PATIENCE, self.shared.demand.notified()).await;
        if first.is_err() {
            return self.shared.end(Err(ReadError::Abandoned));
        }
        while let Some(chunk) = stream.next().await {
            let Ok(chunk) = chunk.map_err(|error| self.shared.end(Err(error))) else { return };
            if !self.make_room().await {
                return self.shared.end(Err(ReadError::Abandoned));
            }
            self.shared.push(chunk);
        }
        self.shared.end(Ok(()));
        while self.make_room_for_all().await {}
    }

    /// Waits until the window has room; `false` when nobody reads any more.
    async fn make_room(&self) -> bool {
        loop {
            {
                let mut window = self.shared.window();
                window.let_go();
                if window.readers.is_empty() && window.fallen.is_empty() {
                    return false;
                }
                if window.end - window.start < WINDOW_BYTES {
                    return true;
                }
            }
            if timeout(LAG_PATIENCE, self.shared.demand.notified()).await.is_err() {
                self.shared.window().drop_slowest();
                self.shared.tell();
            }
        }
    }

    /// Stays for who is still reading; `false` when nobody is.
    async fn make_room_for_all(&self) -> bool {
        if self.shared.window().readers.is_empty() {
            return false;
        }
        self.shared.demand.notified().await;
        true
    }
}

impl Window {
    /// Makes room by what all readers have passed; as long as there is room it stays, for who comes later.
    fn let_go(&mut self) {
        let slowest = self.readers.values().copied().min().unwrap_or(self.end);
        while self.start < slowest && self.end - self.start >= WINDOW_BYTES {
            let Some(chunk) = self.chunks.pop_front() else { break };
            self.before.update(&chunk);
            self.start += chunk.len() as u64;
        }
    }

    /// The readers at the window's start go on by themselves.
    fn drop_slowest(&mut self) {
        let start = self.start;
        let slow: Vec<u64> = self.readers.iter().filter(|(_, at)| **at == start).map(|(number, _)| *number).collect();
        for number in slow {
            self.readers.remove(&number);
            self.fallen.insert(number, self.before.clone());
        }
    }

    fn chunk_at(&self, position: u64) -> Option<Bytes> {
        let mut at = self.start;
        self.chunks
            .iter()
            .find(|chunk| {
                let is_it = at == position;
                at += chunk.len() as u64;
                is_it
            })
            .cloned()
    }
}

impl Shared {
    /// Held for moments, never across an await.
    fn window(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, chunk: Bytes) {
        let mut window = self.window();
        window.end += chunk.len() as u64;
        window.chunks.push_back(chunk);
        drop(window);
        self.tell();
    }

    fn end(&self, ending: Result<(), ReadError>) {
        self.window().ending = Some(ending);
        self.tell();
    }

    fn tell(&self) {
        self.news.send_modify(|count| *count += 1);
    }
}

/// One client's place in a relay. Leaves it on drop.
pub(super) struct RelayReader {
    shared: Arc<Shared>,
    news: watch::Receiver<u64>,
    number: u64,
    position: u64,
    alone: Option<Box<PassThrough>>,
    is_alone: bool,
}

impl RelayReader {
    pub(super) async fn next(&mut self) -> Option<Result<Bytes, ReadError>> {
        loop {
            if self.is_alone {
                return self.alone.as_mut()?.next().await;
            }
            self.news.borrow_and_update();
            {
                let mut window = self.shared.window();
                if let Some(before) = window.fallen.remove(&self.number) {
                    self.is_alone = true;
                    if let Some(alone) = &mut self.alone {
                        alone.go_on(Part { start: self.position, end: None }, Some(before));
                    }
                    continue;
                }
                if let Some(chunk) = window.chunk_at(self.position) {
                    self.position += chunk.len() as u64;
                    window.readers.insert(self.number, self.position);
                    drop(window);
                    self.shared.demand.notify_one();
                    return Some(Ok(chunk));
                }
                match &window.ending {
                    Some(Ok(())) => return None,
                    Some(Err(error)) => return Some(Err(error.clone())),
                    None => {}
                }
            }
            if self.news.changed().await.is_err() {
                return Some(Err(ReadError::Abandoned));
            }
        }
    }
}

impl Drop for RelayReader {
    fn drop(&mut self) {
        let mut window = self.shared.window();
        window.readers.remove(&self.number);
        window.fallen.remove(&self.number);
        drop(window);
        self.shared.demand.notify_one();
    }
}
