//! How the pieces of a body go out: bytes as they are; a range of a file either by `sendfile`, behind the back of the
//! HTTP library, or read in pieces where it has to be encrypted.
//!
//! The HTTP library queues buffers and hands the socket slices of them. A range of a file is queued as a buffer that
//! counts the bytes and shows a stand-in: a slice of a fixed address, whose bytes nobody reads. The range itself goes
//! to the [`Outbox`] of the connection, in the same order. The socket knows the stand-in by its address, takes the next
//! range from the outbox, and sends that many bytes of the file in its place. So partial writes, heads, chunk sizes and
//! the order of answers stay the HTTP library's.
//!
//! It holds because a connection that gets ranges is always asked for slices (`is_write_vectored`) and never to copy:
//! [`Outgoing::chunk`], which copying would use, panics for a range.

use std::collections::VecDeque;
use std::error::Error;
use std::io;
use std::io::IoSlice;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::task::Context;
use std::task::Poll;
use std::task::ready;

use bytes::Buf;
use bytes::Bytes;
use http_body::Body;
use http_body::Frame;
use http_body::SizeHint;
use tokio::task::JoinHandle;

use crate::piece::FileRange;
use crate::piece::Piece;

pub(super) type BoxError = Box<dyn Error + Send + Sync>;

/// Most bytes of a file that are shown at once. Its pages are never touched, so it takes no memory.
const STAND_IN_BYTES: usize = 1024 * 1024;
static STAND_IN: [u8; STAND_IN_BYTES] = [0; STAND_IN_BYTES];

/// Whether a slice stands for bytes of a file.
pub(super) fn is_stand_in(slice: &[u8]) -> bool {
    !slice.is_empty() && STAND_IN.as_ptr_range().contains(&slice.as_ptr())
}

/// A buffer on its way to the socket.
#[derive(Debug)]
pub(super) enum Outgoing {
    Bytes(Bytes),
    /// So many bytes of the range that is in the outbox at this place.
    File(usize),
}

impl Buf for Outgoing {
    fn remaining(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::File(size_bytes) => *size_bytes,
        }
    }

    fn chunk(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::File(size_bytes) => {
                assert!(*size_bytes == 0, "a range of a file goes to a socket that knows it, and is never copied");
                &[]
            }
        }
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let shown = match self {
            Self::Bytes(bytes) => &bytes[..],
            Self::File(size_bytes) => &STAND_IN[..STAND_IN_BYTES.min(*size_bytes)],
        };
        match slices.first_mut() {
            Some(slice) if !shown.is_empty() => {
                *slice = IoSlice::new(shown);
                1
            }
            _ => 0,
        }
    }

    fn advance(&mut self, sent_bytes: usize) {
        match self {
            Self::Bytes(bytes) => bytes.advance(sent_bytes),
            Self::File(size_bytes) => *size_bytes = size_bytes.saturating_sub(sent_bytes),
        }
    }
}

/// The ranges of files that a connection has still to send, in order. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Outbox(Arc<Mutex<VecDeque<FileRange>>>);

impl Outbox {
    fn push(&self, range: FileRange) {
        self.lock().push_back(range);
    }

    /// Lets `send` send from the first range. It says how many bytes it sent.
    pub(super) fn send(&self, send: impl FnOnce(&FileRange) -> io::Result<usize>) -> io::Result<usize> {
        let mut ranges = self.lock();
        let first = ranges.front_mut().ok_or_else(|| io::Error::other("a file to send is missing"))?;
        let sent_bytes = send(first)?;
        first.advance(sent_bytes as u64);
        if first.is_empty() {
            ranges.pop_front();
        }
        Ok(sent_bytes)
    }

    /// Only the body and the socket of one connection take it, and they run in one task.
    fn lock(&self) -> MutexGuard<'_, VecDeque<FileRange>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What becomes of ranges of files.
#[derive(Clone, Debug)]
pub(super) enum Way {
    /// The socket sends them.
    Send(Outbox),
    /// They are read, without holding up the thread.
    Read,
}

/// A body whose ranges of files go their way.
pub(super) struct OutgoingBody<B> {
    body: B,
    way: Way,
    reading: Option<Reading>,
    _counted: Option<Arc<()>>,
}

impl<B> OutgoingBody<B> {
    pub(super) fn new(body: B, way: Way) -> Self {
        Self { body, way, reading: None, _counted: None }
    }

    /// One that holds on to a count of the open bodies of its connection.
    pub(super) fn counted(body: B, way: Way, count: Arc<()>) -> Self {
        Self { body, way, reading: None, _counted: Some(count) }
    }
}

impl<B> Body for OutgoingBody<B>
where
    B: Body + Unpin,
    B::Data: Into<Piece>,
    B::Error: Into<BoxError>,
{
    type Data = Outgoing;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Outgoing>, BoxError>>> {
        let this = &mut *self;
        loop {
            if let Some(reading) = &mut this.reading {
                let bytes = ready!(reading.poll_next(cx));
                if bytes.is_err() || reading.range.is_empty() {
                    this.reading = None;
                }
                return Poll::Ready(Some(bytes.map(|bytes| Frame::data(Outgoing::Bytes(bytes))).map_err(Into::into)));
            }
            let Some(frame) = ready!(Pin::new(&mut this.body).poll_frame(cx)) else { return Poll::Ready(None) };
            let data = match frame.map_err(Into::into)?.into_data() {
                Ok(data) => data.into(),
                Err(other) => match other.into_trailers() {
                    Ok(trailers) => return Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
                    Err(_) => continue,
                },
            };
            match (data, &this.way) {
                (Piece::Bytes(bytes), _) => return Poll::Ready(Some(Ok(Frame::data(Outgoing::Bytes(bytes))))),
                (Piece::File(range), _) if range.is_empty() => {}
                (Piece::File(range), Way::Send(outbox)) => {
                    let size_bytes = usize::try_from(range.size_bytes())?;
                    outbox.push(range);
                    return Poll::Ready(Some(Ok(Frame::data(Outgoing::File(size_bytes)))));
                }
                (Piece::File(range), Way::Read) => this.reading = Some(Reading { range, job: None }),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.reading.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let pending_bytes = self.reading.as_ref().map_or(0, |reading| reading.range.size_bytes());
        let mut hint = self.body.size_hint();
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + pending_bytes);
        }
        hint.set_lower(hint.lower() + pending_bytes);
        hint
    }
}

/// A range that is being read.
struct Reading {
    range: FileRange,
    /// A read that has to wait for the disk.
    job: Option<JoinHandle<io::Result<Bytes>>>,
}

impl Reading {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        let read = match &mut self.job {
            Some(job) => {
                let read = ready!(Pin::new(job).poll(cx));
                self.job = None;
                read.map_err(io::Error::other).and_then(|read| read)
            }
            None => match self.range.read_cached() {
                Some(read) => read,
                None => {
                    let range = self.range.clone();
                    self.job = Some(tokio::task::spawn_blocking(move || range.read()));
                    return self.poll_next(cx);
                }
            },
        };
        if let Ok(bytes) = &read {
            self.range.advance(bytes.len() as u64);
        }
        Poll::Ready(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_shows_only_its_stand_in() {
        let mut file = Outgoing::File(STAND_IN_BYTES + 5);
        let mut slices = [IoSlice::new(&[]); 4];
        assert_eq!(file.chunks_vectored(&mut slices), 1);
        assert!(is_stand_in(&slices[0]) && slices[0].len() == STAND_IN_BYTES);
        file.advance(STAND_IN_BYTES);
        assert_eq!(file.remaining(), 5);
        assert!(!is_stand_in(&vec![0; STAND_IN_BYTES]) && !is_stand_in(&STAND_IN[..0]));
    }

    #[test]
    #[should_panic(expected = "never copied")]
    fn copying_a_range_panics() {
        let _ = Outgoing::File(1).chunk();
    }

    #[test]
    fn what_is_not_in_the_outbox_is_not_sent() {
        assert!(Outbox::default().send(|_| Ok(1)).is_err());
    }
}
