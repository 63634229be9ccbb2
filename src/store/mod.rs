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
//!   no byte is there that nobody counts, and the spool can be resumed. Without hard links, a mark in the spool directory
//!   (fsync of the directory) goes before a rename, and does the same for the start. What is published while the store
//!   closes keeps both names, too.
//! - *Content is replaced* that the disk failed to give: the new spool as above, in the place of the old file. The journal
//!   says already that it is here; a crash in between leaves a name without a file, which is noticed when it is opened.
//! - *Content goes*: catalog: nobody finds it any more → its line in the journal (fsync) → the file goes → its room is free. A start
//!   finishes what the journal says to be gone. The line is queued before anybody else can change this content: coming
//!   and going of one digest are told in the order in which they happened.
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
//! **A pin** (`pins`) lists digests, here or not; it is a file of its own, synced before anybody is told that it holds. What
//! is pinned is never chosen to give way, not even when the pin comes while eviction is at work, and does not count as room
//! that can be made; a pin that would not fit beside the
//! others is refused before anything is written.
//!
//! **A purge** (`purge`) takes back the rights of who is purged, to the manifests and to all that they name, and then removes
//! what no other repository, tag, manifest or pin holds. It works on blocking threads from one look at the whole catalog.
//!
//! **Damage.** A published file is sealed (`engine/seal`): a fraction of a second in its modification time that any write
//! breaks. Who opens a file, or finds it open, looks at its length, its links and its seal; a broken seal is answered by a
//! hash before the first byte goes out. What goes to memory is hashed when it is read. What is wrong goes to `quarantine/`
//! (`rot`), bounded in number, age and bytes, and is absent from then on: the next pull fetches it. Bytes that change under
//! an intact seal, as on a rotting disk, are found by the scrub in the background (`scrub`) and by `verify`, which also works
//! on files that another process has open; `verifying` runs it inside of an open store, one at a time.
//!
//! **What cannot be read** is no proof of rot: the disk may recover. Content that a read failed on, wherever its bytes were
//! on their way, is suspected from then on (`rot`): it is hashed before it is served again. When that works it is trusted as
//! before; while it does not, whoever asks fetches it, and the new copy takes the place of the old one. Offline it is an error.
//!
//! **A disk in trouble** (`health`) is noticed by the work that fails: new content is then passed through by whoever asked,
//! what is here is served, and every two seconds a small file is written until that works again. What can neither be read
//! nor removed is an error to the caller, who fetches it for itself.
//!
//! What it must never know: HTTP, registries' endpoints, policies, status codes, configuration.

mod catalog;
mod change;
mod clock;
mod confirmed;
mod content;
mod engine;
mod error;
mod evict;
mod health;
mod index;
mod indexer;
mod inventory;
mod journal;
mod memory;
mod options;
mod parking;
mod pins;
mod place;
mod purge;
mod read;
mod recover;
mod rights;
mod rot;
mod scrub;
mod snapshot;
mod space;
mod spool;
mod table;
mod tag;
mod tags;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_of_keeping;
#[cfg(test)]
mod tests_of_order;
mod verify;
mod verifying;
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
use self::pins::Pins;
use self::rights::Fact;
use self::rot::Quarantine;
use self::rot::Suspects;
use self::space::Space;
use self::verifying::LastVerification;
use self::writer::Writer;

pub use self::clock::Timestamp;
pub use self::content::{Content, Document};
pub use self::error::{BeginError, Error, OpenError};
pub use self::health::Trouble;
pub use self::inventory::{Inventory, Known, Room};
pub use self::options::{Amount, Options};
pub use self::pins::{Pin, PinError, PinMember, PinTarget};
pub use self::place::directory_id;
pub use self::purge::{Holder, Kept, PurgeTarget, Purged};
pub use self::read::{ReadError, Reader};
pub use self::rights::{Grant, Proof, Standing};
pub use self::scrub::Scrub;
pub use self::spool::{Complete, FinishError, Growing, Lane, Spool, Want, WriteError};
pub use self::tags::{Moved, Past, TagRecord};
pub use self::verify::{Problem, Rotten, Verification, VerifyError, VerifyOptions, VerifyStep, verify};
pub use self::verifying::{VerifyEnd, VerifyProgress, VerifyStartError, Verifying};

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
    pins: Pins,
    quarantine: Quarantine,
    suspects: Suspects,
    space: Arc<Space>,
    verification: LastVerification,
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
    /// Bytes of published content that is pinned.
    pub pinned_bytes: u64,
}

impl Store {
    /// Opens or creates the store at `options.path` and takes its lock. Blocks; call it before serving.
    ///
    /// Must be called within a tokio runtime: eviction runs as a task of it.
    pub fn open(options: &Options, metrics: Metrics) -> Result<Self, OpenError> {
        let engine = Engine::open(&options.path)?;
        let recovered = recover::open(&engine)?;
        let space = Arc::new(Space::new(options, &engine, metrics.clone())?);
        space.adopt(recovered.catalog.stored_bytes());
        let spools = |source| OpenError::Directory { path: options.path.clone(), source };
        let parking = Parking::open(&engine, &space, &recovered.catalog).map_err(spools)?;
        let pins = engine.pin_records().and_then(|records| Pins::open(records, &recovered.catalog)).map_err(spools)?;
        space.hold(pins.held_bytes());
        let inner = Arc::new(Inner {
            changing: std::array::from_fn(|_| Mutex::new(())),
            parking,
            pins,
            quarantine: Quarantine::open(&engine, &space),
            suspects: Suspects::default(),
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
            verification: LastVerification::default(),
            metrics,
        });
        let store = Self { inner };
        store.report();
        tokio::spawn(evict::run(Arc::downgrade(&store.inner)));
        tokio::spawn(health::watch(Arc::downgrade(&store.inner)));
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
        content::begin(&self.inner, digest, size_bytes, owner).await
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
        content::publish(&self.inner, complete, Fact::of_proof(repository, proof, Timestamp::now())).await?;
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
        let facts = Fact::of_proof(repository, proof, Timestamp::now());
        content::put_document(&self.inner, verified, document.bytes, document.media_type, repository, facts).await?;
        self.report();
        Ok(())
    }

    /// Whether it is here, and came as a manifest.
    pub fn is_document(&self, digest: &Digest) -> bool {
        self.inner.catalog.media_type(digest).is_some()
    }

    /// The disk failed to give this content to a reader: it is hashed before it is served again, and a new copy that is
    /// published takes its place.
    pub fn distrust(&self, digest: &Digest) {
        self.inner.distrust(digest);
    }

    /// Takes out content, whatever holds it; `false` when the disk does not let go of it.
    pub async fn forget(&self, digest: &Digest) -> bool {
        let (inner, digest) = (self.inner.clone(), *digest);
        let is_out = blocking(move || {
            content::forget(&inner, &[digest]);
            inner.catalog.size_bytes(&digest).is_none()
        });
        let is_out = is_out.await;
        self.report();
        is_out
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

    /// The right of this repository to this content, where it has one.
    pub fn grant_of(&self, repository: &Repository, digest: &Digest) -> Option<Grant> {
        self.inner.catalog.grant(repository, digest)
    }

    /// Takes back the right of this repository to content that is not public.
    pub async fn revoke(&self, repository: &Repository, digest: &Digest) {
        if self.inner.catalog.revoke(repository, digest) {
            self.inner.writer.record(vec![Change::Revoke(*digest, repository.clone())]).await;
        }
    }

    /// Takes back all rights of this repository to content that is not public: how many. Looks at all content.
    pub async fn revoke_all(&self, repository: &Repository) -> usize {
        let (inner, of) = (self.inner.clone(), repository.clone());
        let revoked = blocking(move || inner.catalog.revoke_all(&of)).await;
        let changes: Vec<Change> = revoked.iter().map(|digest| Change::Revoke(*digest, repository.clone())).collect();
        if !changes.is_empty() {
            self.inner.writer.record(changes).await;
        }
        revoked.len()
    }

    /// Records that this repository may serve this content. Without the content it means nothing and is not kept.
    pub async fn grant(&self, repository: &Repository, digest: &Digest, proof: &Proof) {
        content::learn(&self.inner, digest, Fact::of_proof(repository, proof, Timestamp::now())).await;
    }

    // === Tags ===

    /// What is known of a tag that the upstream has, as far as it last said.
    pub fn tag(&self, repository: &Repository, tag: &Tag) -> Option<Arc<TagRecord>> {
        self.tag_record(repository, tag).filter(|record| record.gone_at.is_none())
    }

    /// What is known of a tag, also of one that is gone.
    pub fn tag_record(&self, repository: &Repository, tag: &Tag) -> Option<Arc<TagRecord>> {
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

    /// The upstream said, now, that the tag points to `digest`, and that is not followed; `true` when it said so for the
    /// first time.
    pub async fn refuse_move(&self, repository: &Repository, tag: &Tag, digest: &Digest) -> bool {
        let mut is_news = true;
        let changed = self.inner.catalog.change_tag(repository, tag, |record| {
            is_news = record.refused.as_ref().is_none_or(|past| past.digest != *digest);
            record.refusing(digest, Timestamp::now())
        });
        let Some(record) = changed else { return false };
        let (repository, tag) = (repository.clone(), tag.clone());
        let change = Change::Tag(repository, tag, Some(record));
        match is_news {
            true => drop(self.inner.writer.record(vec![change]).await),
            false => self.inner.writer.mention(change).await,
        }
        is_news
    }

    /// The upstream said that the tag is gone. Its history stays.
    pub async fn forget_tag(&self, repository: &Repository, tag: &Tag) {
        if self.tag(repository, tag).is_none() {
            return;
        }
        let changed = self.inner.catalog.change_tag(repository, tag, |record| record.gone(Timestamp::now()));
        if let Some(record) = changed {
            self.inner.writer.record(vec![Change::Tag(repository.clone(), tag.clone(), Some(record))]).await;
        }
    }

    // === What the operator wants ===

    /// Adds a pin, or replaces the one of this target: its members never give way to other content, from now on and over
    /// restarts. Nothing is fetched. When all pins together would not fit, nothing changes.
    pub async fn pin(&self, pin: Pin) -> Result<(), PinError> {
        let inner = self.inner.clone();
        blocking(move || inner.pins.pin(pin, &inner.catalog, &inner.space)).await
    }

    /// Replaces a pin that is still this one: the new one, or `None` when it was changed or taken out meanwhile.
    pub async fn replace_pin(&self, old: &Arc<Pin>, new: Pin) -> Result<Option<Arc<Pin>>, PinError> {
        let (inner, old) = (self.inner.clone(), old.clone());
        blocking(move || inner.pins.replace(&old, new, &inner.catalog, &inner.space)).await
    }

    /// Takes a pin out: what it was, or `None` when there was none. Its content stays until something else needs the room.
    pub async fn unpin(&self, target: &PinTarget) -> Result<Option<Arc<Pin>>, Error> {
        let (inner, target) = (self.inner.clone(), target.clone());
        let unpinned = blocking(move || inner.pins.unpin(&target, &inner.space)).await;
        unpinned.map_err(|error| Error::new("take out a pin", error))
    }

    /// All pins, the oldest first.
    pub fn pins(&self) -> Vec<Arc<Pin>> {
        self.inner.pins.list()
    }

    /// The pin of this target.
    pub fn pin_of(&self, target: &PinTarget) -> Option<Arc<Pin>> {
        self.inner.pins.get(target)
    }

    /// Repositories that may serve this content. Takes time in proportion to all that is here.
    pub async fn sources(&self, digest: &Digest) -> Vec<Repository> {
        let (inner, digest) = (self.inner.clone(), *digest);
        blocking(move || purge::sources(&inner, &digest)).await
    }

    /// Takes the target out, as far as nothing else holds it: see [`Purged`]. Open readers stay undisturbed; downloads in
    /// progress go on. Takes time in proportion to all that is here.
    pub async fn purge(&self, target: &PurgeTarget) -> Purged {
        let (inner, target) = (self.inner.clone(), target.clone());
        let purged = blocking(move || purge::purge(&inner, &target)).await;
        self.report();
        purged
    }

    // === The whole ===

    /// How much it holds.
    pub fn stats(&self) -> Stats {
        let (blobs, stored_bytes) = (self.inner.catalog.blobs(), self.inner.space.stored_bytes());
        let (reserved_bytes, max_bytes) = (self.inner.space.reserved_bytes(), self.inner.space.max_bytes());
        Stats { stored_bytes, blobs, reserved_bytes, max_bytes, pinned_bytes: self.inner.pins.held_bytes() }
    }

    /// Writes what is still to be written, and ends. Later changes are lost.
    pub async fn close(&self) {
        self.inner.verification.stop();
        self.inner.writer.close().await;
    }

    /// What is wrong with the disk, and when that changes. Content is passed through, not kept, until it recovers, which
    /// is tried every few seconds.
    pub fn health(&self) -> tokio::sync::watch::Receiver<Trouble> {
        self.inner.space.health().subscribe()
    }

    /// Begins to hash all that is stored, in the background, until the store is gone. Once is enough.
    pub fn scrub_in_background(&self, plan: Scrub) {
        tokio::spawn(scrub::run(Arc::downgrade(&self.inner), plan));
    }

    fn report(&self) {
        self.inner.report();
    }
}

impl Inner {
    fn report(&self) {
        self.metrics.stored(self.space.stored_bytes(), self.catalog.blobs());
    }

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
