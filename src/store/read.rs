//! Readers of content: where the next bytes are, in memory or in which part of which file.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;

use crate::piece::FileRange;
use crate::piece::HeldFile;
use crate::piece::Piece;
use crate::piece::Residency;

use super::blocking;
use super::spool::Follower;

/// Most bytes of a file that are handed on at once. They are looked for in the page cache just before, so more would
/// have more time to leave it.
const PIECE_BYTES: u64 = 1024 * 1024;
/// Less than that is read and sent with the head of its answer: one system call instead of two.
const SMALL_PIECE_BYTES: u64 = 64 * 1024;
/// How far ahead of a reader a cold file is asked for.
const PREFETCH_BYTES: u64 = 4 * 1024 * 1024;

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
    File { file: HeldFile, rest: Range<u64> },
    Spool(Follower),
}

impl Reader {
    pub(super) fn of_memory(bytes: Bytes) -> Self {
        Self { source: Source::Memory(bytes) }
    }

    pub(super) fn of_file(file: HeldFile, range: Range<u64>) -> Self {
        Self { source: Source::File { file, rest: range } }
    }

    pub(super) fn following(follower: Follower) -> Self {
        Self { source: Source::Spool(follower) }
    }

    /// The next bytes; `None` at the end. After an error nothing more comes. A piece of a file is in the page cache, as
    /// far as can be told.
    pub async fn next(&mut self) -> Option<Result<Piece, ReadError>> {
        match &mut self.source {
            Source::Memory(bytes) if bytes.is_empty() => None,
            Source::Memory(bytes) => Some(Ok(std::mem::take(bytes).into())),
            Source::File { rest, .. } if rest.is_empty() => None,
            Source::File { file, rest } => {
                let piece = next_piece(file, rest.clone()).await;
                if let Ok(piece) = &piece {
                    rest.start += piece.size_bytes();
                }
                Some(piece)
            }
            Source::Spool(follower) => {
                let (file, range) = match follower.next().await? {
                    Ok(place) => place,
                    Err(error) => return Some(Err(error)),
                };
                let piece = next_piece(&file.into(), range).await;
                if let Ok(piece) = &piece {
                    follower.advance(piece.size_bytes());
                }
                Some(piece)
            }
        }
    }
}

#[cfg(test)]
impl Reader {
    /// The next piece, read where it is in a file.
    pub(super) async fn next_bytes(&mut self) -> Option<Result<Bytes, ReadError>> {
        let next = self.next().await?;
        Some(next.and_then(|piece| piece.into_bytes().map_err(|error| ReadError::of_disk(&error))))
    }
}

/// At least one byte from the start of a non-empty range: as a part of the file when that can be sent without waiting for
/// the disk, else read off-thread.
async fn next_piece(file: &HeldFile, range: Range<u64>) -> Result<Piece, ReadError> {
    let end = range.end.min(range.start.saturating_add(PIECE_BYTES));
    let next = FileRange::new(file.clone(), range.start..end);
    if next.size_bytes() < SMALL_PIECE_BYTES {
        if let Some(read) = next.read_cached() {
            return read.map(Piece::Bytes).map_err(|error| ReadError::of_disk(&error));
        }
    } else {
        match next.residency() {
            Residency::Cached => return Ok(Piece::File(next)),
            Residency::Short => return Err(ReadError::of_disk(&io::ErrorKind::UnexpectedEof.into())),
            Residency::Uncertain => {}
        }
    }
    let ahead = range.start..range.end.min(range.start.saturating_add(PREFETCH_BYTES));
    let ahead = FileRange::new(file.clone(), ahead);
    let read = blocking(move || {
        ahead.prefetch();
        next.read()
    });
    read.await.map(Piece::Bytes).map_err(|error| ReadError::of_disk(&error))
}

impl ReadError {
    fn of_disk(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Disk("the file is shorter than its content".into()),
            _ => Self::Disk(error.to_string().into()),
        }
    }
}

/// Exactly so many bytes. Blocks.
pub(super) fn read_exact_at(file: &File, position: u64, size_bytes: u64) -> io::Result<Bytes> {
    let size_bytes = usize::try_from(size_bytes).map_err(|_| io::ErrorKind::OutOfMemory)?;
    let mut bytes = vec![0; size_bytes];
    file.read_exact_at(&mut bytes, position)?;
    Ok(bytes.into())
}
