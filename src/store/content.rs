//! Content that is here: opening, publishing, forgetting.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use crate::metrics::FoundBy;
use crate::oci::ByteRange;
use crate::oci::Digest;
use crate::oci::MAX_MANIFEST_BYTES;
use crate::oci::MediaType;
use crate::oci::Repository;
use crate::oci::Verified;

use super::Inner;
use super::Timestamp;
use super::blocking;
use super::change::Change;
use super::engine::Condition;
use super::engine::Engine;
use super::engine::SpoolFile;
use super::error::BeginError;
use super::error::Error;
use super::memory::SMALL_BLOB_BYTES;
use super::memory::Small;
use super::read::Reader;
use super::read::read_exact_at;
use super::rights::Fact;
use super::rot;
use super::spool::Complete;
use super::spool::Spool;
use super::table::Known;
use super::writer::Receipt;
use crate::piece::HeldFile;

/// Whole, open content: eviction cannot take it from its readers.
#[derive(Clone, Debug)]
pub struct Content {
    size_bytes: u64,
    place: Place,
}

#[derive(Clone, Debug)]
enum Place {
    Memory(Bytes),
    File(HeldFile),
}

/// A whole manifest.
#[derive(Clone, Debug)]
pub struct Document {
    /// Exactly the bytes of its digest.
    pub bytes: Bytes,
    /// As the upstream sent it.
    pub media_type: MediaType,
}

impl Content {
    /// Its length.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// A reader of one part, or of the whole.
    pub fn read(&self, range: Option<ByteRange>) -> Reader {
        let range = range.map_or(0..self.size_bytes, |range| range.start()..range.end().min(self.size_bytes));
        match &self.place {
            Place::File(file) => Reader::of_file(file.clone(), range),
            Place::Memory(bytes) => {
                let index = |position: u64| usize::try_from(position).map_or(bytes.len(), |at| at.min(bytes.len()));
                Reader::of_memory(bytes.slice(index(range.start)..index(range.end)))
            }
        }
    }
}

/// Reserves and makes a spool, or takes up a parked one.
pub(super) async fn begin(
    inner: &Arc<Inner>,
    digest: &Digest,
    size_bytes: Option<u64>,
    owner: &Repository,
) -> Result<Spool, BeginError> {
    inner.space.wait_until_within().await?;
    let (inner, digest, owner) = (inner.clone(), *digest, owner.clone());
    blocking(move || begin_now(&inner, &digest, size_bytes, &owner)).await
}

fn begin_now(inner: &Inner, digest: &Digest, size_bytes: Option<u64>, owner: &Repository) -> Result<Spool, BeginError> {
    if let Some((file, prefix_bytes, mut reservation)) = inner.parking.take(digest, owner)
        && size_bytes.is_none_or(|size_bytes| prefix_bytes <= size_bytes)
        && reservation.grow(size_bytes.unwrap_or(0).saturating_sub(prefix_bytes)).is_ok()
    {
        return Ok(Spool::new(file, *digest, size_bytes, reservation).resumed(prefix_bytes));
    }
    let reserve = || inner.space.reserve(size_bytes.unwrap_or(0));
    let reservation = match reserve() {
        Err(_) if inner.parking.clear() => reserve()?,
        reserved => reserved?,
    };
    let file =
        inner.engine.create_spool(digest, owner).inspect_err(|error| inner.space.health().write_failed(error))?;
    Ok(Spool::new(file, *digest, size_bytes, reservation))
}

pub(super) async fn open(inner: &Arc<Inner>, digest: &Digest) -> Result<Option<Content>, Error> {
    let Some(size_bytes) = inner.catalog.size_bytes(digest) else { return Ok(None) };
    touch(inner, digest);
    if let Some(small) = inner.memory.small(digest) {
        return Ok(Some(Content { size_bytes, place: Place::Memory(small.bytes) }));
    }
    let Some(file) = open_file(inner, digest, size_bytes).await? else { return Ok(None) };
    if size_bytes > SMALL_BLOB_BYTES {
        return Ok(Some(Content { size_bytes, place: Place::File(file) }));
    }
    let Some(bytes) = read_verified(inner, digest, file, size_bytes).await? else { return Ok(None) };
    let media_type = inner.catalog.media_type(digest);
    inner.memory.keep_small(digest, Small { bytes: bytes.clone(), media_type });
    Ok(Some(Content { size_bytes, place: Place::Memory(bytes) }))
}

pub(super) async fn document(inner: &Arc<Inner>, digest: &Digest) -> Result<Option<Document>, Error> {
    if let Some(Small { bytes, media_type: Some(media_type) }) = inner.memory.small(digest) {
        touch(inner, digest);
        return Ok(Some(Document { bytes, media_type }));
    }
    match (inner.catalog.size_bytes(digest), inner.catalog.media_type(digest)) {
        (Some(size_bytes), Some(media_type)) if size_bytes <= MAX_MANIFEST_BYTES as u64 => {
            touch(inner, digest);
            let Some(file) = open_file(inner, digest, size_bytes).await? else { return Ok(None) };
            let Some(bytes) = read_verified(inner, digest, file, size_bytes).await? else { return Ok(None) };
            inner.memory.keep_small(digest, Small { bytes: bytes.clone(), media_type: Some(media_type.clone()) });
            Ok(Some(Document { bytes, media_type }))
        }
        _ => Ok(None),
    }
}

/// The open file of published content, as it was published; forgets content whose file is gone or was changed.
async fn open_file(inner: &Arc<Inner>, digest: &Digest, size_bytes: u64) -> Result<Option<HeldFile>, Error> {
    if let Some(file) = inner.memory.file(digest) {
        if file.has_failed() {
            inner.distrust(digest);
        } else if !inner.suspects.has(digest)
            && matches!(inner.engine.condition(&file, size_bytes), Ok(Condition::Sound))
        {
            return Ok(Some(file));
        }
        // The name may stand for another file by now.
        inner.memory.forget(digest);
    }
    let (opener, wanted) = (inner.clone(), *digest);
    let opened = blocking(move || open_sound(&opener, &wanted, size_bytes)).await;
    let file = opened.map_err(|error| {
        inner.read_failed(digest, &error);
        Error::new("open content", error)
    })?;
    if let Some(file) = &file
        && size_bytes > SMALL_BLOB_BYTES
    {
        inner.memory.keep_file(digest, file.clone());
    }
    Ok(file)
}

/// Opens a file, and hashes it when its seal is broken or the disk failed to give it before. Blocks.
fn open_sound(inner: &Inner, digest: &Digest, size_bytes: u64) -> io::Result<Option<HeldFile>> {
    let Some((file, found_bytes)) = inner.engine.open_blob(digest)? else {
        if forget_lost(inner, digest).is_some() {
            tracing::warn!(%digest, "stored content is gone; it is fetched again");
        }
        return Ok(None);
    };
    let is_sound = match inner.engine.condition(&file, size_bytes)? {
        Condition::Sound if !inner.suspects.has(digest) => true,
        Condition::Sound | Condition::Suspect => rot::is_right(inner, digest, &file)?,
        // Evicted, or replaced, since it was opened a moment ago.
        Condition::Unlinked => return Ok(None),
        Condition::Wrong => {
            tracing::warn!(%digest, size_bytes, found_bytes, "stored content has changed its length");
            false
        }
    };
    if !is_sound {
        rot::quarantine(inner, digest, &file, FoundBy::Read)?;
        return Ok(None);
    }
    Ok(Some(Arc::new(file).into()))
}

/// Whole content that is going to be kept in memory; `None` when it proved rotten.
async fn read_verified(
    inner: &Arc<Inner>,
    digest: &Digest,
    file: HeldFile,
    size_bytes: u64,
) -> Result<Option<Bytes>, Error> {
    let (reader, digest) = (inner.clone(), *digest);
    let read = blocking(move || {
        let bytes = read_exact_at(&file, 0, size_bytes)?;
        if Verified::check(&digest, &bytes).is_ok() {
            return Ok(Some(bytes));
        }
        rot::quarantine(&reader, &digest, &file, FoundBy::Read)?;
        Ok(None)
    });
    read.await.map_err(|error| {
        inner.read_failed(&digest, &error);
        Error::new("read content", error)
    })
}

pub(super) async fn publish(inner: &Arc<Inner>, complete: Complete, facts: Vec<Fact>) -> Result<(), Error> {
    let publisher = inner.clone();
    match blocking(move || publish_now(&publisher, complete, facts)).await {
        Ok(Published::New(receipt)) => drop(receipt.durable().await),
        Ok(Published::Known(digest, facts)) => {
            if !learn(inner, &digest, facts).await {
                // Whoever published it may still wait for the journal: what it told comes before this.
                inner.writer.record(Vec::new()).await;
            }
        }
        Err(error) => {
            inner.space.health().write_failed(&error);
            return Err(Error::new("publish content", error));
        }
    }
    Ok(())
}

enum Published {
    /// It is here now.
    New(Receipt),
    /// It was here; the facts about it may be news.
    Known(Digest, Vec<Fact>),
}

/// File and catalog in one piece of work that nobody can cancel half-way.
fn publish_now(inner: &Inner, complete: Complete, facts: Vec<Fact>) -> io::Result<Published> {
    let Complete { mut file, proof, reservation } = complete;
    let (digest, size_bytes) = (*proof.digest(), proof.size_bytes());
    let _changing = inner.changing(&digest);
    if let Some(known_bytes) = inner.catalog.size_bytes(&digest) {
        if known_bytes == size_bytes && inner.suspects.has(&digest) {
            replace(inner, file, &proof);
        }
        return Ok(Published::Known(digest, facts));
    }
    inner.engine.publish(&mut file, &proof)?;
    let now = Timestamp::now();
    inner.catalog.insert(&digest, size_bytes, now, &facts);
    reservation.convert(size_bytes);
    inner.pins.stored(&digest, size_bytes, &inner.space);
    if size_bytes > SMALL_BLOB_BYTES {
        inner.memory.keep_file(&digest, file.file.clone().into());
    }
    let mut changes = vec![Change::Content(digest, size_bytes, now)];
    changes.extend(facts.into_iter().map(|fact| Change::Fact(digest, fact)));
    Ok(Published::New(inner.writer.tell(changes, Some(file))))
}

/// Puts a new file in the place of one that the disk failed to give. What counts the old one counts the new one.
fn replace(inner: &Inner, mut file: SpoolFile, proof: &Verified) {
    let digest = proof.digest();
    inner.memory.forget(digest);
    match inner.engine.publish(&mut file, proof) {
        Ok(()) => {
            inner.suspects.clear(digest);
            tracing::info!(%digest, "content that could not be read is replaced by a new copy");
        }
        Err(error) => {
            tracing::warn!(%digest, %error, "content that cannot be read cannot be replaced either");
            inner.space.health().write_failed(&error);
        }
    }
}

/// Adds facts about content that is here; `false` when they were known.
pub(super) async fn learn(inner: &Arc<Inner>, digest: &Digest, facts: Vec<Fact>) -> bool {
    let is_news = inner.catalog.learn(digest, &facts);
    if is_news {
        inner.writer.record(facts.into_iter().map(|fact| Change::Fact(*digest, fact)).collect()).await;
    }
    is_news
}

pub(super) async fn put_document(
    inner: &Arc<Inner>,
    verified: Verified,
    bytes: Bytes,
    media_type: MediaType,
    owner: &Repository,
    mut facts: Vec<Fact>,
) -> Result<(), Error> {
    facts.push(Fact::MediaType(media_type.clone()));
    let digest = *verified.digest();
    let (what, size_bytes) = ("take in a manifest", verified.size_bytes());
    let other = |error: String| Error::new(what, io::Error::other(error));
    let spool = begin(inner, &digest, Some(size_bytes), owner).await.map_err(|error| other(error.to_string()))?;
    spool.lane(0).write(vec![bytes.clone()]).await.map_err(|error| other(error.to_string()))?;
    let complete = spool.finish().await.map_err(|error| other(error.to_string()))?;
    publish(inner, complete, facts).await?;
    inner.memory.keep_small(&digest, Small { bytes, media_type: Some(media_type) });
    Ok(())
}

/// Contents that go together: they share a sync of the journal.
const FORGET_BATCH: usize = 256;

/// Takes content out to make room, but none that is pinned by now, and nothing while the disk lets go of nothing: how many
/// bytes, of how many blobs. Blocks.
pub(super) fn evict(inner: &Inner, digests: &[Digest]) -> (u64, u64) {
    if inner.space.health().is_stuck() {
        return (0, 0);
    }
    forget_loose(inner, digests)
}

/// Takes content out: from the catalog first, so that no new reader finds it, then from the disk: how many bytes, of how
/// many blobs. Blocks.
///
/// Content that the disk does not let go of stays: it still takes its room.
pub(super) fn forget(inner: &Inner, digests: &[Digest]) -> (u64, u64) {
    forget_where(inner, digests, |_, remove| remove())
}

/// As [`forget`], but none that is pinned by now. Blocks.
pub(super) fn forget_loose(inner: &Inner, digests: &[Digest]) -> (u64, u64) {
    forget_where(inner, digests, |digest, remove| inner.pins.unless_held(digest, remove))
}

/// Takes content out of the catalog: called, or not, by whoever decides.
pub(super) type Remove<'a> = &'a dyn Fn() -> Option<Known>;

fn forget_where(inner: &Inner, digests: &[Digest], admit: impl Fn(&Digest, Remove<'_>) -> Option<Known>) -> (u64, u64) {
    let gone = digests.chunks(FORGET_BATCH).map(|batch| forget_batch(inner, batch, &admit));
    gone.fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1))
}

/// The journal comes before the disk: what it says to be gone, a start after a crash removes.
fn forget_batch(inner: &Inner, digests: &[Digest], admit: impl Fn(&Digest, Remove<'_>) -> Option<Known>) -> (u64, u64) {
    let hidden = digests.iter().filter_map(|digest| hide(inner, digest, |remove| admit(digest, remove)));
    let (going, receipts): (Vec<(Digest, Known)>, Vec<Receipt>) = hidden.unzip();
    // What cannot be written down goes all the same: it has to make room.
    for receipt in receipts {
        receipt.wait();
    }
    let gone =
        going.into_iter().filter_map(|(digest, known)| remove(inner, digest, known, |engine| engine.remove(&digest)));
    gone.fold((0, 0), |(bytes, blobs), size_bytes| (bytes + size_bytes, blobs + 1))
}

/// Takes content out whose file is gone, if it still is. Blocks.
pub(super) fn forget_lost(inner: &Inner, digest: &Digest) -> Option<u64> {
    let is_lost = |remove: Remove<'_>| if matches!(inner.engine.open_blob(digest), Ok(None)) { remove() } else { None };
    take_out(inner, digest, is_lost, |engine| engine.remove(digest))
}

/// Takes content out if it is admitted, its file in this way. Blocks.
pub(super) fn take_out(
    inner: &Inner,
    digest: &Digest,
    admit: impl FnOnce(Remove<'_>) -> Option<Known>,
    from_disk: impl FnOnce(&Engine) -> io::Result<()>,
) -> Option<u64> {
    let ((digest, known), receipt) = hide(inner, digest, admit)?;
    receipt.wait();
    remove(inner, digest, known, from_disk)
}

/// From the catalog, if whoever decides calls what it is given. It is told under the lock: a publication that comes
/// next is told after it.
fn hide(
    inner: &Inner,
    digest: &Digest,
    admit: impl FnOnce(Remove<'_>) -> Option<Known>,
) -> Option<((Digest, Known), Receipt)> {
    let _changing = inner.changing(digest);
    let known = admit(&|| inner.catalog.remove(digest))?;
    inner.memory.forget(digest);
    inner.suspects.clear(digest);
    Some(((*digest, known), inner.writer.tell(vec![Change::Forget(*digest)], None)))
}

/// Removes hidden content from the disk: its length.
fn remove(
    inner: &Inner,
    digest: Digest,
    known: Known,
    from_disk: impl FnOnce(&Engine) -> io::Result<()>,
) -> Option<u64> {
    let _changing = inner.changing(&digest);
    let size_bytes = known.size_bytes;
    // It may have come again in the meantime: then its new file has taken the place of the old one.
    if inner.catalog.size_bytes(&digest).is_none() {
        if let Err(error) = from_disk(&inner.engine) {
            tracing::error!(%digest, %error, "content could not be removed from the disk");
            inner.space.health().remove_failed(&error);
            let mut changes = vec![Change::Content(digest, size_bytes, known.last_use.at())];
            changes.extend(inner.catalog.sets().facts(&known.facts).into_iter().map(|fact| Change::Fact(digest, fact)));
            inner.catalog.put(&digest, known);
            inner.writer.tell(changes, None);
            return None;
        }
        inner.pins.gone(&digest, &inner.space);
    }
    inner.space.release(size_bytes);
    Some(size_bytes)
}

/// Remembers the use. The index hears of it a while later.
fn touch(inner: &Inner, digest: &Digest) {
    inner.catalog.touch(digest, Timestamp::now());
}
