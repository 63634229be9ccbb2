//! Readers of content, and how bytes leave files: pooled `preadv2(RWF_NOWAIT)`, off-thread when the page cache has them not.

use std::fs::File;
use std::io;
use std::io::IoSliceMut;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use rustix::io::Errno;
use rustix::io::ReadWriteFlags;

use super::blocking;
use super::spool::Follower;

/// The flat optimum of read sizes; see the measurements in `benches/`.
const CHUNK_BYTES: usize = 256 * 1024;
/// Chunks kept for reuse; more are given back to the allocator.
const POOLED_CHUNKS: usize = 64;

/// A body must be cut short: what was promised cannot be delivered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The upstream's bytes are not what the digest says.
    #[error("the upstream sent content that does not match its digest")]
    WrongContent,
    /// The download failed.
    #[error("the download failed: {0}")]
    Failed(Arc<str>),
    /// Our disk cannot take it: the reader may go on at the upstream.
    #[error("the download cannot be kept")]
    Unkept,
    /// The download ended without a verdict, as in a shutdown.
    #[error("the download was abandoned")]
    Abandoned,
    /// Our disk failed, or a file is shorter than it was published.
    #[error("stored content cannot be read: {0}")]
    Disk(Arc<str>),
}

/// Reads one part of some content, in order.
#[derive(Debug)]
pub struct Reader {
    source: Source,
}

#[derive(Debug)]
enum Source {
    Memory(Bytes),
    File { file: Arc<File>, rest: Range<u64> },
    Spool(Follower),
}

impl Reader {
    pub(super) fn of_memory(bytes: Bytes) -> Self {
        Self { source: Source::Memory(bytes) }
    }

    pub(super) fn of_file(file: Arc<File>, range: Range<u64>) -> Self {
        Self { source: Source::File { file, rest: range } }
    }

    pub(super) fn following(follower: Follower) -> Self {
        Self { source: Source::Spool(follower) }
    }

    /// The next bytes, at most 256 KiB from a file; `None` at the end. After an error nothing more comes.
    pub async fn next(&mut self) -> Option<Result<Bytes, ReadError>> {
        match &mut self.source {
            Source::Memory(bytes) if bytes.is_empty() => None,
            Source::Memory(bytes) => Some(Ok(std::mem::take(bytes))),
            Source::File { rest, .. } if rest.is_empty() => None,
            Source::File { file, rest } => {
                let read = read_some(file, rest.clone()).await;
                if let Ok(bytes) = &read {
                    rest.start += bytes.len() as u64;
                }
                Some(read)
            }
            Source::Spool(follower) => {
                let (file, range) = match follower.next().await? {
                    Ok(place) => place,
                    Err(error) => return Some(Err(error)),
                };
                let read = read_some(&file, range).await;
                if let Ok(bytes) = &read {
                    follower.advance(bytes.len() as u64);
                }
                Some(read)
            }
        }
    }
}

/// At least one byte from the start of a non-empty range.
async fn read_some(file: &Arc<File>, range: Range<u64>) -> Result<Bytes, ReadError> {
    let size_bytes = usize::try_from(range.end - range.start).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
    let mut chunk = Chunk::take();
    let read = match read_cached(file, &mut chunk.buffer[..size_bytes], range.start) {
        Some(read) => read,
        None => {
            let file = file.clone();
            let read;
            (chunk, read) = blocking(move || {
                let read = file.read_at(&mut chunk.buffer[..size_bytes], range.start);
                (chunk, read)
            })
            .await;
            read
        }
    };
    match read {
        Ok(0) => Err(ReadError::Disk("the file is shorter than its content".into())),
        Ok(size_bytes) => {
            chunk.size_bytes = size_bytes;
            Ok(Bytes::from_owner(chunk))
        }
        Err(error) => Err(ReadError::Disk(error.to_string().into())),
    }
}

/// Some file systems refuse `RWF_NOWAIT`: they are then always read off-thread.
static NOWAIT_WORKS: AtomicBool = AtomicBool::new(true);

/// `None` when the bytes are not in the page cache, or that cannot be known.
fn read_cached(file: &File, buffer: &mut [u8], position: u64) -> Option<io::Result<usize>> {
    if !NOWAIT_WORKS.load(Ordering::Relaxed) {
        return None;
    }
    match rustix::io::preadv2(file, &mut [IoSliceMut::new(buffer)], position, ReadWriteFlags::NOWAIT) {
        Ok(read) => Some(Ok(read)),
        Err(Errno::AGAIN | Errno::INTR) => None,
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
            NOWAIT_WORKS.store(false, Ordering::Relaxed);
            None
        }
        Err(error) => Some(Err(error.into())),
    }
}

/// Exactly so many bytes. Blocks.
pub(super) fn read_exact_at(file: &File, position: u64, size_bytes: u64) -> io::Result<Bytes> {
    let size_bytes = usize::try_from(size_bytes).map_err(|_| io::ErrorKind::OutOfMemory)?;
    let mut bytes = vec![0; size_bytes];
    file.read_exact_at(&mut bytes, position)?;
    Ok(bytes.into())
}

// === Chunk ===

static POOL: Mutex<Vec<Box<[u8]>>> = Mutex::new(Vec::new());

/// A buffer that goes back to the pool when the last `Bytes` of it is dropped.
struct Chunk {
    buffer: Box<[u8]>,
    size_bytes: usize,
}

impl Chunk {
    /// The last one given back: it is likely still in the CPU's cache.
    fn take() -> Self {
        let pooled = POOL.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let buffer = pooled.unwrap_or_else(|| vec![0; CHUNK_BYTES].into_boxed_slice());
        Self { buffer, size_bytes: 0 }
    }
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.size_bytes]
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
        if pool.len() < POOLED_CHUNKS {
            pool.push(std::mem::take(&mut self.buffer));
        }
    }
}
