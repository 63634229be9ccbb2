//! Content that is here: opening, publishing, forgetting.

use std::fs::File;
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
use super::catalog::Fact;
use super::change::Change;
use super::engine::Condition;
use super::engine::Engine;
use super::error::BeginError;
use super::error::Error;
use super::memory::SMALL_BLOB_BYTES;
use super::memory::Small;
use super::read::Reader;
use super::read::read_exact_at;
use super::rot;
use super::spool::Complete;
use super::spool::Spool;

/// Whole, open content: eviction cannot take it from its readers.
#[derive(Clone, Debug)]
pub struct Content {
    size_bytes: u64,
    place: Place,
}

#[derive(Clone, Debug)]
enum Place {
    Memory(Bytes),
    File(Arc<File>),
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

/// Reserves and makes a spool, or takes up a parked one. Blocks.
pub(super) fn begin(
    inner: &Inner,
    digest: &Digest,
    size_bytes: Option<u64>,
    owner: &Repository,
) -> Result<Spool, BeginError> {
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
async fn open_file(inner: &Arc<Inner>, digest: &Digest, size_bytes: u64) -> Result<Option<Arc<File>>, Error> {
    if let Some(file) = inner.memory.file(digest) {
        if matches!(inner.engine.condition(&file, size_bytes), Ok(Condition::Sound)) {
            return Ok(Some(file));
        }
        // The name may stand for another file by now.
        inner.memory.forget(digest);
    }
    let (opener, wanted) = (inner.clone(), *digest);
    let opened = blocking(move || open_sound(&opener, &wanted, size_bytes)).await;
    let file = opened.map_err(|error| {
        inner.space.health().read_failed(&error);
        Error::new("open content", error)
    })?;
    if let Some(file) = &file
        && size_bytes > SMALL_BLOB_BYTES
    {
        inner.memory.keep_file(digest, file.clone());
    }
    Ok(file)
}

/// Opens a file, and hashes it when its seal is broken. Blocks.
fn open_sound(inner: &Inner, digest: &Digest, size_bytes: u64) -> io::Result<Option<Arc<File>>> {
    let Some((file, found_bytes)) = inner.engine.open_blob(digest)? else {
        tracing::warn!(%digest, "stored content is gone; it is fetched again");
        forget_lost(inner, digest);
        return Ok(None);
    };
    let is_sound = match inner.engine.condition(&file, size_bytes)? {
        Condition::Sound => true,
        Condition::Suspect => rot::is_right(inner, digest, &file)?,
        Condition::Wrong => {
            tracing::warn!(%digest, size_bytes, found_bytes, "stored content has changed its length");
            false
        }
    };
    if !is_sound {
        rot::quarantine(inner, digest, &file, FoundBy::Read)?;
        return Ok(None);
    }
    Ok(Some(Arc::new(file)))
}

/// Whole content that is going to be kept in memory; `None` when it proved rotten.
async fn read_verified(
    inner: &Arc<Inner>,
    digest: &Digest,
    file: Arc<File>,
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
        inner.space.health().read_failed(&error);
        Error::new("read content", error)
    })
}

pub(super) async fn publish(inner: &Arc<Inner>, complete: Complete, facts: Vec<Fact>) -> Result<(), Error> {
    let publisher = inner.clone();
    let published = blocking(move || publish_now(&publisher, complete, &facts).map(|news| (news, facts))).await;
    let (is_news, facts) = published.map_err(|error| {
        inner.space.health().write_failed(&error);
        Error::new("publish content", error)
    })?;
    if !is_news.0 {
        learn(inner, &is_news.1, facts).await;
    }
    Ok(())
}

/// File and catalog in one piece of work that nobody can cancel half-way: whether it is news, and of what digest.
fn publish_now(inner: &Inner, complete: Complete, facts: &[Fact]) -> io::Result<(bool, Digest)> {
    let Complete { file, proof, reservation } = complete;
    let (digest, size_bytes) = (*proof.digest(), proof.size_bytes());
    let _changing = inner.changing(&digest);
    if inner.catalog.size_bytes(&digest).is_some() {
        return Ok((false, digest));
    }
    let open_file = file.file.clone();
    inner.engine.publish(file, &proof)?;
    let now = Timestamp::now();
    inner.catalog.insert(&digest, size_bytes, now, facts);
    reservation.convert(size_bytes);
    inner.pins.stored(&digest, size_bytes, &inner.space);
    if size_bytes > SMALL_BLOB_BYTES {
        inner.memory.keep_file(&digest, open_file);
    }
    inner.writer.tell(Change::Content(digest, size_bytes, now));
    for fact in facts {
        inner.writer.tell(Change::Fact(digest, fact.clone()));
    }
    Ok((true, digest))
}

/// Adds facts about content that is here.
pub(super) async fn learn(inner: &Arc<Inner>, digest: &Digest, facts: Vec<Fact>) {
    for fact in facts {
        if inner.catalog.learn(digest, &fact) {
            inner.writer.send(Change::Fact(*digest, fact)).await;
        }
    }
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
    let (beginner, owner) = (inner.clone(), owner.clone());
    let other = |error: String| Error::new(what, io::Error::other(error));
    let begun = blocking(move || begin(&beginner, &digest, Some(size_bytes), &owner)).await;
    let spool = begun.map_err(|error| other(error.to_string()))?;
    spool.lane(0).write(vec![bytes.clone()]).await.map_err(|error| other(error.to_string()))?;
    let complete = spool.finish().await.map_err(|error| other(error.to_string()))?;
    publish(inner, complete, facts).await?;
    inner.memory.keep_small(&digest, Small { bytes, media_type: Some(media_type) });
    Ok(())
}

/// Takes content out to make room, unless it is pinned by now, or the disk lets go of nothing. Blocks.
pub(super) fn evict(inner: &Inner, digest: &Digest) -> Option<u64> {
    if inner.pins.holds(digest) || inner.space.health().is_stuck() { None } else { forget(inner, digest) }
}

/// Takes content out and removes its file. Blocks.
pub(super) fn forget(inner: &Inner, digest: &Digest) -> Option<u64> {
    take_out(inner, digest, |engine| engine.remove(digest))
}

/// Takes content out whose file is gone, if it still is. Blocks.
pub(super) fn forget_lost(inner: &Inner, digest: &Digest) -> Option<u64> {
    take_out(inner, digest, |engine| match engine.open_blob(digest) {
        Ok(None) => Ok(()),
        Ok(Some(_)) => Err(io::ErrorKind::AlreadyExists.into()),
        Err(error) => Err(error),
    })
}

/// Takes content out: from the catalog first, so that no new reader finds it, then from the disk. Blocks.
///
/// Content that the disk does not let go of stays: it still takes its room.
pub(super) fn take_out(
    inner: &Inner,
    digest: &Digest,
    from_disk: impl FnOnce(&Engine) -> io::Result<()>,
) -> Option<u64> {
    let _changing = inner.changing(digest);
    let (size_bytes, entry) = inner.catalog.remove(digest)?;
    inner.memory.forget(digest);
    if let Err(error) = from_disk(&inner.engine) {
        tracing::error!(%digest, %error, "content could not be removed from the disk");
        inner.space.health().remove_failed(&error);
        inner.catalog.put_back(digest, entry);
        return None;
    }
    inner.space.release(size_bytes);
    inner.pins.gone(digest, &inner.space);
    inner.writer.tell(Change::Forget(*digest));
    Some(size_bytes)
}

/// Remembers the use; tells the index only when that is a while after the last time it was told.
fn touch(inner: &Arc<Inner>, digest: &Digest) {
    let now = Timestamp::now();
    if inner.catalog.touch(digest, now) {
        inner.writer.used(digest, now);
    }
}
