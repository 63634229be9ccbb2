//! Reading while it grows: each reader waits for the bytes that it needs next.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use tokio::sync::watch;

use super::Progress;
use super::Shared;
use super::Verdict;
use super::wants::Ticket;
use super::wants::Want;
use crate::oci::ByteRange;
use crate::oci::Hasher;
use crate::store::blocking;
use crate::store::read::ReadError;
use crate::store::read::Reader;
use crate::store::read::read_exact_at;

/// What a reader of the whole does not get before the verdict. One byte is enough: without it no body is complete.
const HOLD_BACK_BYTES: u64 = 1;
const HASH_PIECE_BYTES: u64 = 1024 * 1024;

/// The reader's side of a spool. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Growing {
    shared: Arc<Shared>,
}

impl Growing {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The length, when it is known.
    pub fn size_bytes(&self) -> Option<u64> {
        self.shared.progress.borrow().size_bytes
    }

    /// How much of it is there.
    pub fn present_bytes(&self) -> u64 {
        self.shared.progress.borrow().extents.total_bytes()
    }

    /// How many readers there are.
    pub fn readers(&self) -> usize {
        self.shared.wants.readers()
    }

    /// A reader of one part, or of the whole.
    pub fn read(&self, range: Option<ByteRange>) -> Reader {
        let size_bytes = self.size_bytes();
        Reader::following(Follower {
            file: self.shared.file.clone(),
            progress: self.shared.progress.subscribe(),
            ticket: self.shared.wants.ticket(),
            place: Place {
                position: range.map_or(0, |range| range.start()),
                end: range.map(|range| range.end()),
                is_whole: range.is_none_or(|range| range.start() == 0 && Some(range.end()) == size_bytes),
            },
        })
    }

    /// The hash of the first bytes, for a reader that goes on elsewhere. They have to be there.
    pub async fn hash_prefix(&self, size_bytes: u64) -> io::Result<Hasher> {
        let (file, algorithm) = (self.shared.file.clone(), self.shared.digest.algorithm());
        blocking(move || {
            let mut hasher = Hasher::new(algorithm);
            while hasher.size_bytes() < size_bytes {
                let piece_bytes = (size_bytes - hasher.size_bytes()).min(HASH_PIECE_BYTES);
                hasher.update(&read_exact_at(&file, hasher.size_bytes(), piece_bytes)?);
            }
            Ok(hasher)
        })
        .await
    }
}

/// One reader's place in a spool.
#[derive(Debug)]
pub(in crate::store) struct Follower {
    file: Arc<File>,
    progress: watch::Receiver<Progress>,
    ticket: Ticket,
    place: Place,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    position: u64,
    /// `None`: the end of the content.
    end: Option<u64>,
    is_whole: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Step {
    Read(Range<u64>),
    /// For bytes that come next in order, or not.
    Wait {
        ahead: bool,
    },
    Done,
    Fail(ReadError),
}

impl Follower {
    /// Waits until the next bytes are there: their place in the file. `None` at the end.
    pub(in crate::store) async fn next(&mut self) -> Option<Result<(Arc<File>, Range<u64>), ReadError>> {
        loop {
            let step = self.place.step(&self.progress.borrow_and_update());
            if let Step::Wait { ahead } = step {
                let want = Want { position: self.place.position, end: self.place.end };
                self.ticket.set(ahead.then_some(want));
            }
            match step {
                Step::Read(range) => return Some(Ok((self.file.clone(), range))),
                Step::Done => return None,
                Step::Fail(error) => return Some(Err(error)),
                Step::Wait { .. } => {
                    if self.progress.changed().await.is_err() {
                        return Some(Err(ReadError::Abandoned));
                    }
                }
            }
        }
    }

    /// So many bytes were read.
    pub(in crate::store) fn advance(&mut self, bytes: u64) {
        self.place.position += bytes;
    }
}

impl Place {
    fn step(&self, progress: &Progress) -> Step {
        if let Verdict::Failed(error) = &progress.verdict {
            return Step::Fail(error.clone());
        }
        let waits_for_verdict = self.is_whole && matches!(progress.verdict, Verdict::Pending);
        let end = self.end.or(progress.size_bytes);
        let mut limit = progress.extents.end_of_run(self.position).min(end.unwrap_or(u64::MAX));
        if waits_for_verdict {
            let last = progress.size_bytes.unwrap_or(limit);
            limit = limit.min(last.saturating_sub(HOLD_BACK_BYTES));
        }
        match end {
            _ if limit > self.position => Step::Read(self.position..limit),
            Some(end) if self.position >= end && !waits_for_verdict => Step::Done,
            _ => Step::Wait { ahead: self.position > progress.extents.end_of_run(0) },
        }
    }
}
