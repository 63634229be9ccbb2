//! The thread that keeps the index in step with the catalog. Nobody waits for it.
//!
//! It is told which content and tags have changed, and writes their rows as the catalog says them by then: many changes
//! of a row are one write. After opening the index it goes through all of it, takes over uses that the catalog has not
//! heard of, and writes every row that says something else than the catalog: an index that is older, that lost its last
//! writes, or that is new and empty is in step after that.
//!
//! sled may refuse damaged files, panic on them, or never return. An index that fails is set aside, not deleted, and a new
//! one is written; a thread that hangs is left behind, for it cannot be ended, and another takes its place.
#![expect(clippy::disallowed_methods, reason = "the index's directory is moved and removed here")]

use std::collections::BTreeSet;
use std::collections::HashMap;
use std::collections::HashSet;
use std::io;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;
use std::time::Instant;

use crate::oci::Digest;
use crate::oci::Repository;
use crate::oci::Tag;

use super::Timestamp;
use super::catalog;
use super::catalog::Catalog;
use super::engine::Engine;
use super::index::Bucket;
use super::index::Entry;
use super::index::Index;
use super::index::IndexError;
use super::index::Row;
use super::rights;

/// Most changes that wait to be taken notice of; when there are more, all rows are written.
const QUEUE_LENGTH: usize = 64 * 1024;
/// Rows are written that long after their first change.
const WRITE_EVERY: Duration = Duration::from_secs(2);
/// Uses are written that often: with `WRITE_EVERY`, what a crash can lose of them.
const USES_EVERY: Duration = Duration::from_secs(30);
/// A single operation that takes longer never ends.
const STUCK_AFTER: Duration = Duration::from_secs(60);
/// A start that needs the index waits so long for it.
const CONSULT_TIMEOUT: Duration = Duration::from_secs(20);
/// A stop waits so long for what is still to be written.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// After that many failures the index is left alone until the next start.
const MAX_FAILURES: u32 = 5;
/// A disk that failed is tried again after this.
const RETRY_PAUSE: Duration = Duration::from_secs(60);
/// Below this the index is never written anew.
const COMPACT_FROM_BYTES: u64 = 32 * 1024 * 1024;
/// The index is written anew when it takes more than this for each blob.
const MAX_BYTES_PER_BLOB: u64 = 160;

#[derive(Debug)]
pub(super) enum Note {
    Content(Digest),
    Tag(Repository, Tag),
}

/// The way to the thread.
#[derive(Debug)]
pub(super) struct Indexer {
    engine: Engine,
    catalog: Arc<Catalog>,
    running: Mutex<Running>,
}

#[derive(Debug)]
struct Running {
    queue: mpsc::SyncSender<Note>,
    state: Arc<State>,
    /// Hears of nothing but the thread's end.
    ended: mpsc::Receiver<()>,
}

/// What the thread and the others tell each other without waiting.
#[derive(Debug)]
struct State {
    since: Instant,
    /// When its last operation began, in milliseconds after `since`; 0 while it does none.
    busy_since_ms: AtomicU64,
    is_behind: AtomicBool,
    is_stopping: AtomicBool,
    is_abandoned: AtomicBool,
}

impl Indexer {
    pub(super) fn start(engine: Engine, catalog: Arc<Catalog>) -> io::Result<Self> {
        let running = Mutex::new(start(&engine, &catalog)?);
        Ok(Self { engine, catalog, running })
    }

    /// Something has changed. Never waits.
    pub(super) fn note(&self, note: Note) {
        let running = self.running();
        if running.queue.try_send(note).is_err() {
            running.state.is_behind.store(true, Ordering::Relaxed);
        }
    }

    /// Leaves a thread that hangs to itself and starts another, on a new index. Blocks.
    pub(super) fn watch(&self) {
        let mut running = self.running();
        if !running.state.is_stuck() {
            return;
        }
        running.state.is_abandoned.store(true, Ordering::Relaxed);
        set_aside(&self.engine, "it hangs; a thread is busy with it until forebay is started again");
        match start(&self.engine, &self.catalog) {
            Ok(another) => *running = another,
            Err(error) => tracing::error!(%error, "the index cannot be written any more"),
        }
    }

    /// Ends the thread when it has written all; `false` when that takes too long. Blocks.
    pub(super) fn stop(&self) -> bool {
        let running = self.running();
        running.state.is_stopping.store(true, Ordering::Relaxed);
        // Wakes it, if it waits.
        let _ = running.queue.try_send(Note::Content(Digest::Sha256([0; 32])));
        running.ended.recv_timeout(STOP_TIMEOUT) == Err(RecvTimeoutError::Disconnected)
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Indexer {
    fn drop(&mut self) {
        self.running().state.is_stopping.store(true, Ordering::Relaxed);
    }
}

impl State {
    fn new() -> Self {
        Self {
            since: Instant::now(),
            busy_since_ms: AtomicU64::new(0),
            is_behind: AtomicBool::new(false),
            is_stopping: AtomicBool::new(false),
            is_abandoned: AtomicBool::new(false),
        }
    }

    fn is_stuck(&self) -> bool {
        let busy_since = Duration::from_millis(self.busy_since_ms.load(Ordering::Relaxed));
        !busy_since.is_zero() && self.since.elapsed().saturating_sub(busy_since) > STUCK_AFTER
    }

    fn is_ending(&self) -> bool {
        self.is_stopping.load(Ordering::Relaxed) || self.is_abandoned.load(Ordering::Relaxed)
    }

    fn beat(&self) {
        let now = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.busy_since_ms.store(now.max(1), Ordering::Relaxed);
    }

    fn rest(&self) {
        self.busy_since_ms.store(0, Ordering::Relaxed);
    }
}

fn start(engine: &Engine, catalog: &Arc<Catalog>) -> io::Result<Running> {
    let (queue, notes) = mpsc::sync_channel(QUEUE_LENGTH);
    let (end, ended) = mpsc::channel();
    let state = Arc::new(State::new());
    let keeper = Keeper { engine: engine.clone(), catalog: catalog.clone(), state: state.clone(), notes };
    let run = move || {
        let _end = end;
        keeper.run();
    };
    std::thread::Builder::new().name("index".into()).spawn(run)?;
    Ok(Running { queue, state, ended })
}

/// Moves an index out of the way, where an operator finds it; the one before it goes.
fn set_aside(engine: &Engine, reason: &str) {
    let path = engine.index_path();
    for entry in path.parent().and_then(|parent| parent.read_dir().ok()).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with("index.bad-") {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    let aside = path.with_extension(format!("bad-{}", Timestamp::now().as_millis()));
    match std::fs::rename(&path, &aside) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Ok(()) => {
            tracing::error!(aside = %aside.display(), reason, "the index is damaged; it is set aside and rebuilt")
        }
        Err(error) => tracing::error!(path = %path.display(), %error, reason, "the index cannot be set aside"),
    }
}

/// sled never opens again when one of these was left behind; the snapshot before it is still there.
fn remove_unfinished_snapshots(engine: &Engine) {
    let Ok(entries) = engine.index_path().read_dir() else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            tracing::warn!(file = %name, "removing an unfinished snapshot of the index");
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

fn open(engine: &Engine) -> Result<Index, IndexError> {
    remove_unfinished_snapshots(engine);
    Index::open(&engine.index_path())
}

// === The thread ===

struct Keeper {
    engine: Engine,
    catalog: Arc<Catalog>,
    state: Arc<State>,
    notes: mpsc::Receiver<Note>,
}

/// What is still to be written.
#[derive(Default)]
struct Dirty {
    buckets: BTreeSet<Bucket>,
    tags: HashSet<(Repository, Tag)>,
}

impl Keeper {
    /// Keeps the index until it is told to stop.
    fn run(&self) {
        for _ in 0..MAX_FAILURES {
            let outcome = catch_unwind(AssertUnwindSafe(|| self.keep()));
            self.state.rest();
            if self.state.is_abandoned.load(Ordering::Relaxed) {
                return;
            }
            match outcome {
                Ok(Ok(())) => return,
                Ok(Err(error)) if error.is_of_disk() => {
                    tracing::warn!(%error, "the index cannot be written now");
                    if self.pause(RETRY_PAUSE) {
                        return;
                    }
                }
                Ok(Err(error)) => set_aside(&self.engine, &error.to_string()),
                Err(_) => set_aside(&self.engine, "reading or writing it panicked"),
            }
        }
        tracing::error!("the index fails again and again; it is left alone until the next start");
        while !self.pause(RETRY_PAUSE) {}
    }

    /// Waits without doing anything; `true` when it is time to end.
    fn pause(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.notes.recv_timeout(left) {
                _ if self.state.is_ending() => return true,
                Err(RecvTimeoutError::Disconnected) => return true,
                Err(RecvTimeoutError::Timeout) => return false,
                Ok(_) => {}
            }
        }
    }

    fn keep(&self) -> Result<(), IndexError> {
        self.state.beat();
        let _ = std::fs::remove_dir_all(self.engine.index_path().with_extension("new"));
        let mut index = open(&self.engine)?;
        let mut sets = HashSet::new();
        let mut dirty = self.compare(&index, &mut sets)?;
        let (mut fresh_bytes, mut uses_at, mut write_at) = (0, Instant::now() + USES_EVERY, Instant::now());
        loop {
            self.state.rest();
            let left = if dirty.is_empty() { uses_at } else { write_at }.saturating_duration_since(Instant::now());
            let note = self.notes.recv_timeout(left);
            self.state.beat();
            let is_over = self.state.is_ending() || matches!(note, Err(RecvTimeoutError::Disconnected));
            if let Ok(note) = note {
                if dirty.is_empty() {
                    write_at = Instant::now() + WRITE_EVERY;
                }
                dirty.add(note);
            }
            if self.state.is_behind.swap(false, Ordering::Relaxed) {
                dirty = self.everything();
            }
            if is_over || Instant::now() >= uses_at {
                self.add_uses(&mut dirty);
                uses_at = Instant::now() + USES_EVERY;
                write_at = Instant::now();
            }
            if is_over || (!dirty.is_empty() && Instant::now() >= write_at) {
                self.write(&index, &mut sets, std::mem::take(&mut dirty))?;
                let bound = COMPACT_FROM_BYTES + MAX_BYTES_PER_BLOB * self.catalog.blobs();
                if !is_over && index.size_bytes()? > bound.max(fresh_bytes / 2 * 3) {
                    index = self.compact(index, &mut sets)?;
                    fresh_bytes = index.size_bytes()?;
                }
            }
            if is_over {
                return Ok(());
            }
        }
    }

    /// Goes through the whole index: what it says otherwise than the catalog.
    fn compare(&self, index: &Index, sets: &mut HashSet<u64>) -> Result<Dirty, IndexError> {
        index.each_set(|key, text| {
            self.state.beat();
            if rights::key_of(text) == key {
                sets.insert(key);
            }
        })?;
        let (mut dirty, mut same) = (self.everything(), Dirty::default());
        index.each_row(|bucket, entries| {
            self.state.beat();
            let mut row = Row::default();
            for entry in &entries {
                row.push(entry);
                self.catalog.supplement(&entry.digest, entry.used_at, None);
            }
            if row == self.row(bucket).0 && entries.iter().all(|entry| entry.facts == 0 || sets.contains(&entry.facts))
            {
                same.buckets.insert(bucket);
            } else {
                dirty.buckets.insert(bucket);
            }
        })?;
        index.each_tag(|repository, tag, record| {
            self.state.beat();
            if self.catalog.tag(&repository, &tag).is_some_and(|known| *known == record) {
                same.tags.insert((repository, tag));
            } else {
                dirty.tags.insert((repository, tag));
            }
        })?;
        dirty.buckets.retain(|bucket| !same.buckets.contains(bucket));
        dirty.tags.retain(|tag| !same.tags.contains(tag));
        Ok(dirty)
    }

    fn everything(&self) -> Dirty {
        let mut all = Dirty::default();
        for part in 0..catalog::PARTS {
            self.catalog.each_in(part, |digest, _| {
                all.buckets.insert(Bucket::of(&digest));
            });
        }
        self.catalog.tags().each(|repository, tag, _| {
            all.tags.insert((repository.clone(), tag.clone()));
        });
        all
    }

    fn add_uses(&self, dirty: &mut Dirty) {
        for part in 0..catalog::PARTS {
            self.catalog.each_in(part, |digest, known| {
                if known.last_use.take_untold() {
                    dirty.buckets.insert(Bucket::of(&digest));
                }
            });
        }
    }

    /// A row as the catalog says it, and the sets of facts that it names.
    fn row(&self, bucket: Bucket) -> (Row, Vec<Arc<rights::Facts>>) {
        let (mut row, mut named) = (Row::default(), Vec::new());
        self.catalog.each_beginning(bucket.algorithm, bucket.bits, |digest, known| {
            let (size_bytes, used_at, facts) = (known.size_bytes, known.last_use.at(), known.facts.key());
            row.push(&Entry { digest, size_bytes, used_at, facts });
            named.push(known.facts.clone());
        });
        (row, named)
    }

    fn write(&self, index: &Index, sets: &mut HashSet<u64>, dirty: Dirty) -> Result<(), IndexError> {
        for bucket in dirty.buckets {
            self.state.beat();
            let (row, named) = self.row(bucket);
            for facts in named {
                if facts.key() != 0 && sets.insert(facts.key()) {
                    index.put_set(facts.key(), &self.catalog.sets().text(&facts))?;
                }
            }
            index.put_row(bucket, row)?;
        }
        for (repository, tag) in &dirty.tags {
            self.state.beat();
            index.put_tag(repository, tag, self.catalog.tag(repository, tag).as_ref())?;
        }
        self.state.beat();
        index.flush()
    }

    /// Writes all of it to a new index, which takes the place of the old one: sled's files only grow.
    fn compact(&self, old: Index, sets: &mut HashSet<u64>) -> Result<Index, IndexError> {
        let (path, new) = (self.engine.index_path(), self.engine.index_path().with_extension("new"));
        let before_bytes = old.size_bytes()?;
        let _ = std::fs::remove_dir_all(&new);
        let index = Index::open(&new)?;
        sets.clear();
        self.write(&index, sets, self.everything())?;
        let after_bytes = index.size_bytes()?;
        drop((old, index));
        std::fs::remove_dir_all(&path).and_then(|()| std::fs::rename(&new, &path)).map_err(IndexError::Move)?;
        tracing::info!(before_bytes, after_bytes, "the index was written anew");
        Index::open(&path)
    }
}

impl Dirty {
    fn is_empty(&self) -> bool {
        self.buckets.is_empty() && self.tags.is_empty()
    }

    fn add(&mut self, note: Note) {
        match note {
            Note::Content(digest) => drop(self.buckets.insert(Bucket::of(&digest))),
            Note::Tag(repository, tag) => drop(self.tags.insert((repository, tag))),
        }
    }
}

// === A start that has nothing better ===

/// Tells the catalog what the index says of content that is on disk, and of tags. Gives up after a while.
pub(super) fn consult(engine: &Engine, catalog: &Arc<Catalog>) {
    let (sender, receiver) = mpsc::channel();
    let (reader, known) = (engine.clone(), catalog.clone());
    let read = move || {
        let read = catch_unwind(AssertUnwindSafe(|| read_all(&reader, &known)));
        // The receiver is gone only after the deadline, when nobody wants it any more.
        let _ = sender.send(match read {
            Ok(read) => read.map_err(|error| error.to_string()),
            Err(_) => Err("reading it panicked".to_owned()),
        });
    };
    if let Err(error) = std::thread::Builder::new().name("index-open".into()).spawn(read) {
        return tracing::error!(%error, "the index cannot be read");
    }
    match receiver.recv_timeout(CONSULT_TIMEOUT) {
        Ok(Ok(())) => {}
        Ok(Err(reason)) => set_aside(engine, &reason),
        Err(_) => set_aside(engine, "it hangs; a thread is busy with it until forebay is started again"),
    }
}

fn read_all(engine: &Engine, catalog: &Catalog) -> Result<(), IndexError> {
    let index = open(engine)?;
    let mut sets = HashMap::new();
    index.each_set(|key, text| {
        if rights::key_of(text) == key {
            sets.extend(catalog.sets().parse(text).map(|facts| (key, facts)));
        }
    })?;
    index.each_row(|_, entries| {
        for entry in entries {
            catalog.supplement(&entry.digest, entry.used_at, sets.get(&entry.facts));
        }
    })?;
    index.each_tag(|repository, tag, record| {
        catalog.tags().restore(&repository, &tag, Arc::new(record));
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    #[test]
    fn a_use_is_a_row_to_write_once() {
        let directory = tempfile::tempdir().unwrap();
        let (engine, catalog) = (Engine::open(directory.path()).unwrap(), Arc::new(Catalog::new()));
        let (_queue, notes) = mpsc::sync_channel(1);
        let keeper = Keeper { engine, catalog: catalog.clone(), state: Arc::new(State::new()), notes };
        let digest = Digest::of(Algorithm::Sha256, b"x");
        catalog.insert(&digest, 1, Timestamp::from_millis(1), &[]);
        let used = || {
            let mut dirty = Dirty::default();
            keeper.add_uses(&mut dirty);
            Vec::from_iter(dirty.buckets)
        };
        assert_eq!(used(), []);
        catalog.touch(&digest, Timestamp::from_millis(2));
        assert_eq!((used(), used()), (vec![Bucket::of(&digest)], vec![]));
    }
}
