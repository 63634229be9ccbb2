//! Writing: each lane from its own position, each byte once.

use std::fs::File;
use std::io;
use std::io::IoSlice;
use std::sync::Arc;

use bytes::Bytes;

use super::Shared;
use crate::store::BeginError;
use crate::store::blocking;

/// What the cursor hashes at most behind one write, when it meets bytes that came earlier by another lane.
const CATCH_UP_BYTES: u64 = 4 * 1024 * 1024;

/// One writer of a spool, from some position on.
#[derive(Debug)]
pub struct Lane {
    shared: Arc<Shared>,
    position: u64,
}

/// A lane cannot write on.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WriteError {
    /// The upstream sends more than the length it announced.
    #[error("more than the announced {size_bytes} bytes came")]
    TooLong {
        /// The announced length.
        size_bytes: u64,
    },
    /// The room or the disk is gone.
    #[error(transparent)]
    Store(#[from] BeginError),
}

impl Lane {
    pub(super) fn new(shared: Arc<Shared>, position: u64) -> Self {
        Self { shared, position }
    }

    /// Where the next byte goes.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Writes the next bytes, tells the readers, and lets the cursor hash on. Off the async threads.
    pub async fn write(&mut self, batch: Vec<Bytes>) -> Result<(), WriteError> {
        let (shared, start) = (self.shared.clone(), self.position);
        self.position = blocking(move || shared.write(start, batch)).await?;
        Ok(())
    }
}

impl Shared {
    fn write(&self, start: u64, mut batch: Vec<Bytes>) -> Result<u64, WriteError> {
        let end = start + batch.iter().map(|bytes| bytes.len() as u64).sum::<u64>();
        if let Some(size_bytes) = self.progress.borrow().size_bytes
            && end > size_bytes
        {
            return Err(WriteError::TooLong { size_bytes });
        }
        self.reserve_up_to(end)?;
        let news = self.claimed().claim(start..end);
        let all_is_news = news.len() == 1 && news[0] == (start..end);
        for range in news {
            let part = cut(&mut batch, range.start - start, range.end - start);
            write_all_at(&self.file, &part, range.start).map_err(|error| self.refused(error))?;
            if let Some(reservation) = self.reservation().as_mut() {
                reservation.wrote(range.end - range.start);
            }
            self.progress.send_modify(|progress| progress.extents.insert(range));
        }
        let mut cursor = self.cursor();
        if all_is_news && cursor.size_bytes() == start {
            batch.iter().for_each(|bytes| cursor.update(bytes));
        }
        self.hash_present(&mut cursor, CATCH_UP_BYTES).map_err(BeginError::from)?;
        Ok(end)
    }

    fn refused(&self, error: io::Error) -> BeginError {
        if let Some(reservation) = self.reservation().as_ref() {
            reservation.space().health().write_failed(&error);
        }
        error.into()
    }

    /// Content of unknown length reserves as it comes.
    fn reserve_up_to(&self, end: u64) -> Result<(), BeginError> {
        match self.reservation().as_mut() {
            Some(reservation) if reservation.bytes() < end => reservation.grow(end - reservation.bytes()),
            _ => Ok(()),
        }
    }
}

/// The bytes `[start, end)` of a batch, shared with it.
fn cut(batch: &mut [Bytes], start: u64, end: u64) -> Vec<Bytes> {
    let mut at = 0;
    let mut part = Vec::with_capacity(batch.len());
    for bytes in batch {
        let (from, until) = (at, at + bytes.len() as u64);
        at = until;
        let inside = |position: u64| usize::try_from(position.clamp(from, until) - from).unwrap_or(bytes.len());
        let piece = bytes.slice(inside(start)..inside(end));
        if !piece.is_empty() {
            part.push(piece);
        }
    }
    part
}

fn write_all_at(file: &File, batch: &[Bytes], mut position: u64) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> = batch.iter().map(|bytes| IoSlice::new(bytes)).collect();
    let mut rest = &mut slices[..];
    IoSlice::advance_slices(&mut rest, 0);
    while !rest.is_empty() {
        match rustix::io::pwritev(file, rest, position) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                position += written as u64;
                IoSlice::advance_slices(&mut rest, written);
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_cut_is_the_bytes_between(sizes in proptest::collection::vec(0usize..9, 0..9), start in 0usize..80, size in 0usize..80) {
            let all: Vec<u8> = (0..=255).take(sizes.iter().sum()).collect();
            let mut batch = Vec::new();
            let mut at = 0;
            for size in sizes {
                batch.push(Bytes::copy_from_slice(&all[at..at + size]));
                at += size;
            }
            let (start, end) = (start.min(all.len()), (start + size).min(all.len()));
            let part = cut(&mut batch, start as u64, end as u64).concat();
            prop_assert_eq!(&part[..], &all[start..end]);
        }
    }
}
