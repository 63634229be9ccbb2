//! The store: content on disk, what is known about it, and the room it may take.
//!
//! What it is for: keeping verified content once per digest, serving it again, and remembering tags and grants, within a
//! budget of bytes. The only place with a file system and sled in it.
//!
//! **Disk is the truth, the index is an index of it.** Content is a file `blobs/<algorithm>/<2 hex>/<hex>` with exactly the
//! bytes of its digest. What is known about it (length, last use, rights) and all tags live in memory (`catalog`): hits ask
//! the catalog, the memory tier and files, and wait for nothing else. On disk it is written behind:
//! - `journal`, a line for each change since the last snapshot, in their order (`journal`, `writer`);
//! - `snapshot`, all of it at one moment, which a start reads as fast as the disk gives it (`snapshot`, `recover`);
//! - `index`, sled's, a row for each bucket of content, kept in step by a thread of its own (`index`, `indexer`). It keeps uses
//!   between snapshots, and it is the second source where a snapshot is damaged. Nobody waits for it, and any damage to it
//!   costs a rebuild in the background and a line in the log.
//!
//! **The order of writes.** A step begins when the one before is durable.
//! - *Content comes*: the spool's bytes (fsync) → a second name for the same file, under `blobs/` (fsync of the directory) →
//!   catalog: it is visible → its lines in the journal (one fsync for all that wait) → the spool's own name goes, and whoever
//!   published is told. A crash before the second name leaves a spool, which a start keeps for a resume or removes. A crash
//!   between it and the journal leaves a file with both names: the start takes the one under `blobs/` away again, so that
//!   no byte is there that nobody counts, and the spool can be resumed.
//! - *Content goes*: catalog: nobody finds it any more → its line in the journal (fsync) → the file goes → its room is free. A start
//!   finishes what the journal says to be gone.
//! - *A grant, or a tag that moves*: catalog → journal (fsync) → whoever said it is told. That a tag still points where it did is
//!   written without a sync: a crash may forget it.
//! - *A use*: catalog → the index, within a minute. It is in the snapshot too.
//! - *A snapshot*, when the journal is long and at each stop: the journal is moved aside and a new one begun (fsync of the
//!   directory) → the snapshot beside the old one (fsync) → in its place (rename, fsync of the directory) → everything on
//!   the file system (syncfs), so that no file comes back that the old journal says is gone → the journal that is aside goes.
//!   A start replays both journals over whichever snapshot there is: lines whose effect it has already change nothing once
//!   all later ones are replayed as well.
//!
//! **A start** reads the snapshot and the journals, neither sled nor the directories. A snapshot or a journal that is damaged is
//! made good from what else there is: the files under `blobs/` say what content there is, the index what was known of it.
//!
//! **One way in.** `begin` → [`Spool`] → lanes write, the in-order cursor hashes → [`Complete`] (carries `Verified`) → publish.
//!
//! **A spool is a sparse file with a set of present extents and one in-order hash cursor.** Writers may come in any order
//! and at any place; readers wait for the bytes they need next. A reader of the whole gets its last byte only after the
//! verdict; a reader of a part may be done before it, because its client verifies what it puts together.
//!
//! **Room** is reserved before a download starts and converted when it is published. Above the budget (or below the room that is
//! to stay free) the least recently used content goes, in the background, down to the low watermark, files unlinked off every
//! lock; open files stay readable. While more is stored than the budget allows, new downloads wait a moment for eviction, and
//! then pass through.
//!
//! What it must never know: HTTP, registries' endpoints, policies, status codes, configuration.

mod catalog;
mod change;
mod clock;
mod content;
mod engine;
mod error;
mod evict;
mod index;
mod indexer;
mod journal;
mod memory;
mod options;
mod parking;
mod read;
mod recover;
mod rights;
mod snapshot;
mod space;
mod spool;
mod table;
mod tags;
#[cfg(test)]
mod tests;
mod writer;

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::Weak;
use std::time::Duration;

use crate::metrics::Metrics;
use crate::oci::Digest;
use crate::oci::Registry;
use crate::oci::Repository;
use crate::oci::Tag;
use crate::oci::Verified;

use self::catalog::Catalog;
use self::change::Change;
use self::engine::Engine;
use self::memory::Memory;
use self::parking::Parking;
use self::rights::Fact;
use self::space::Space;
use self::writer::Writer;

pub use self::clock::Timestamp;
pub use self::content::{Content, Document};
pub use self::error::{BeginError, Error, OpenError};
pub use self::options::{Amount, Options};
pub use self::read::{ReadError, Reader};
pub use self::rights::{Proof, Standing};
pub use self::spool::{Complete, FinishError, Growing, Lane, Spool, Want, WriteError};
pub use self::tags::{Moved, Past, TagRecord};

/// Digests that share a lock for their changes.
const CHANGE_STRIPES: usize = 64;
const WATCH_EVERY: Duration = Duration::from_secs(10);

/// The store. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    engine: Engine,
    /// One digest's file and catalog entry change together. Taken on blocking threads only, before any other lock.
    changing: [Mutex<()>; CHANGE_STRIPES],
    catalog: Arc<Catalog>,
    memory: Memory,
    parking: Parking,
    space: Arc<Space>,
    writer: Writer,
    metrics: Metrics,
}

/// How much the store holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Bytes of published content.
    pub stored_bytes: u64,
    /// Published blobs and manifests.
    pub blobs: u64,
    /// Bytes promised to downloads in progress.
    pub reserved_bytes: u64,
    /// The budget.
    pub max_bytes: u64,
}

impl Store {
    /// Opens or creates the store at `options.path` and takes its lock. Blocks; call it before serving.
    ///
    /// Must be called within a tokio runtime: eviction runs as a task of it.
    pub fn open(options: &Options, metrics: Metrics) -> Result<Self, OpenError> {
        let engine = Engine::open(&options.path)?;
        let recovered = recover::open(&engine)?;
        let space = Arc::new(Space::new(options, &engine)?);
        space.adopt(recovered.catalog.stored_bytes());
        let spools = |source| OpenError::Directory { path: options.path.clone(), source };
        let parking = Parking::open(&engine, &space, &recovered.catalog).map_err(spools)?;
        let inner = Arc::new(Inner {
            changing: std::array::from_fn(|_| Mutex::new(())),
            parking,
            memory: Memory::new(options.memory_cache_bytes),
            writer: Writer::start(
                engine.clone(),
                recovered.catalog.clone(),
                recovered.journal,
                recovered.is_snapshot_due,
            )?,
            catalog: recovered.catalog,
            engine,
            space,
            metrics,
        });
        let store = Self { inner };
        store.report();
        tokio::spawn(evict::run(Arc::downgrade(&store.inner)));
        tokio::spawn(watch(Arc::downgrade(&store.inner)));
        Ok(store)
    }

    // === Content ===

    /// Content that is here, whole and open, or `None`. Says nothing about who may read it: see [`Store::standing`].
    ///
    /// A file that is gone or has another length than was published is forgotten, and `None`.
    pub async fn content(&self, digest: &Digest) -> Result<Option<Content>, Error> {
        content::open(&self.inner, digest).await
    }

    /// A manifest that is here, whole and in memory, with its media type.
    pub async fn document(&self, digest: &Digest) -> Result<Option<Document>, Error> {
        content::document(&self.inner, digest).await
    }

    /// The size of content that is here, without opening it.
    pub fn size_bytes(&self, digest: &Digest) -> Option<u64> {
        self.inner.catalog.size_bytes(digest)
    }

    /// Starts to take in content for a repository: reserves its length (when known) and opens a spool for it, which
    /// holds already what is parked.
    pub async fn begin(
        &self,
        digest: &Digest,
        size_bytes: Option<u64>,
        owner: &Repository,
    ) -> Result<Spool, BeginError> {
        let (inner, digest, owner) = (self.inner.clone(), *digest, owner.clone());
        blocking(move || content::begin(&inner, &digest, size_bytes, &owner)).await
    }

    /// How much of a download that this repository gave up is parked.
    pub fn parked_bytes(&self, digest: &Digest, owner: &Repository) -> Option<u64> {
        self.inner.parking.prefix_bytes(digest, owner)
    }

    /// Gives a download up but keeps what came in order, also over a restart. Its readers fail with `error`.
    pub async fn park(&self, spool: Spool, digest: &Digest, owner: &Repository, error: ReadError) {
        let (inner, digest, owner) = (self.inner.clone(), *digest, owner.clone());
        blocking(move || {
            if let Some(rest) = spool.park(error) {
                inner.parking.park(&digest, &owner, rest);
            }
        })
        .await;
    }

    /// Makes verified content visible, granted to the repository that it was fetched from. After this returns it survives
    /// a crash.
    pub async fn publish(&self, complete: Complete, repository: &Repository, proof: &Proof) -> Result<(), Error> {
        content::publish(&self.inner, complete, Fact::of_proof(repository, proof)).await?;
        self.report();
        Ok(())
    }

    /// Takes in a whole manifest at once: see [`Store::publish`].
    pub async fn put_document(
        &self,
        verified: Verified,
        document: Document,
        repository: &Repository,
        proof: &Proof,
    ) -> Result<(), Error> {
        let facts = Fact::of_proof(repository, proof);
        content::put_document(&self.inner, verified, document.bytes, document.media_type, repository, facts).await?;
        self.report();
        Ok(())
    }

    /// Whether it is here, and came as a manifest.
    pub fn is_document(&self, digest: &Digest) -> bool {
        self.inner.catalog.media_type(digest).is_some()
    }

    /// Takes out content that proved unreadable, so that it is fetched again.
    pub async fn forget(&self, digest: &Digest) {
        let (inner, digest) = (self.inner.clone(), *digest);
        blocking(move || content::forget(&inner, &[digest])).await;
        self.report();
    }

    // === Rights ===

    /// How this repository stands to this content.
    pub fn standing(&self, repository: &Repository, digest: &Digest) -> Standing {
        self.inner.catalog.standing(repository, digest)
    }

    /// Whether the upstream's word alone opens this content: it is public, or was fetched from this registry by this account.
    pub fn is_opened_by(&self, digest: &Digest, registry: &Registry, account: Option<&str>) -> bool {
        self.inner.catalog.is_opened_by(digest, registry, account)
    }

    /// Records that this repository may serve this content. Without the content it means nothing and is not kept.
    pub async fn grant(&self, repository: &Repository, digest: &Digest, proof: &Proof) {
        content::learn(&self.inner, digest, Fact::of_proof(repository, proof)).await;
    }

    // === Tags ===

    /// What is known of a tag.
    pub fn tag(&self, repository: &Repository, tag: &Tag) -> Option<Arc<TagRecord>> {
        self.inner.catalog.tag(repository, tag)
    }

    /// The upstream said, now, that the tag points to `digest`. Keeps the history of moves.
    pub async fn point_tag(&self, repository: &Repository, tag: &Tag, digest: &Digest) -> Moved {
        let (record, moved) = self.inner.catalog.point_tag(repository, tag, digest, Timestamp::now());
        let (repository, tag) = (repository.clone(), tag.clone());
        match moved {
            Moved::Unchanged => {
                self.inner.writer.mention(Change::Checked(repository, tag, *digest, record.checked_at)).await;
            }
            Moved::New | Moved::From(_) => {
                self.inner.writer.record(vec![Change::Tag(repository, tag, Some(record))]).await;
            }
        }
        moved
    }

    /// The upstream said that the tag is gone.
    pub async fn forget_tag(&self, repository: &Repository, tag: &Tag) {
        if self.inner.catalog.forget_tag(repository, tag) {
            self.inner.writer.record(vec![Change::Tag(repository.clone(), tag.clone(), None)]).await;
        }
    }

    // === The whole ===

    /// How much it holds.
    pub fn stats(&self) -> Stats {
        let (blobs, stored_bytes) = (self.inner.catalog.blobs(), self.inner.space.stored_bytes());
        let (reserved_bytes, max_bytes) = (self.inner.space.reserved_bytes(), self.inner.space.max_bytes());
        Stats { stored_bytes, blobs, reserved_bytes, max_bytes }
    }

    /// Writes what is still to be written, and ends. Later changes are lost.
    pub async fn close(&self) {
        self.inner.writer.close().await;
    }

    fn report(&self) {
        self.inner.metrics.stored(self.inner.space.stored_bytes(), self.inner.catalog.blobs());
    }
}

impl Inner {
    fn changing(&self, digest: &Digest) -> MutexGuard<'_, ()> {
        let stripe = digest.as_bytes().first().map_or(0, |&byte| usize::from(byte) % CHANGE_STRIPES);
        self.changing[stripe].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks after the index, until the store is gone.
async fn watch(store: Weak<Inner>) {
    loop {
        tokio::time::sleep(WATCH_EVERY).await;
        let Some(inner) = store.upgrade() else { return };
        blocking(move || inner.writer.watch()).await;
    }
}

/// Runs file work off the async threads. A panic there is ours and is passed on.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
