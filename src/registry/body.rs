//! Response bodies: bytes at hand, or a blob as it is read. Owns the [`Exchange`], so the request is accounted for
//! when the last byte went out or the client left.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio_util::sync::ReusableBoxFuture;

use super::exchange::Exchange;
use super::multipart::Multipart;
use crate::piece::Piece;
use crate::pull::{BlobReader, ReadError};

/// The body of an answer. Its size hint is exact whenever the size is known.
///
/// An error means that the promised length will not be reached: the connection must be cut, never ended cleanly.
#[derive(Debug)]
pub struct Body {
    content: Content,
    exchange: Exchange,
}

/// What a body consists of.
#[derive(Debug)]
pub(super) enum Content {
    /// Nothing.
    Empty,
    /// All of it at hand.
    Full(Bytes),
    /// Read while it is sent.
    Blob(Streamed<BlobReader>),
    /// Several parts, each with a head of its own.
    Parts(Streamed<Multipart<BlobReader>>),
}

impl Content {
    /// The size of the whole, when known.
    pub(super) fn size_bytes(&self) -> Option<u64> {
        match self {
            Self::Empty => Some(0),
            Self::Full(bytes) => Some(bytes.len() as u64),
            Self::Blob(stream) => stream.remaining,
            Self::Parts(stream) => stream.remaining,
        }
    }
}

impl Body {
    pub(super) fn new(content: Content, mut exchange: Exchange) -> Self {
        exchange.promise(content.size_bytes());
        Self { content, exchange }
    }
}

impl http_body::Body for Body {
    type Data = Piece;
    type Error = ReadError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Piece>, ReadError>>> {
        let piece = match &mut self.content {
            Content::Empty => None,
            Content::Full(bytes) if bytes.is_empty() => None,
            Content::Full(bytes) => Some(Ok(std::mem::take(bytes).into())),
            Content::Blob(stream) => ready!(stream.poll_next(cx)),
            Content::Parts(stream) => ready!(stream.poll_next(cx)),
        };
        match &piece {
            Some(Ok(piece)) => self.exchange.sent(piece.size_bytes()),
            Some(Err(_)) => {}
            None => self.exchange.ended(),
        }
        Poll::Ready(piece.map(|piece| piece.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.content.size_bytes() == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.content.size_bytes().map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

// === Streamed ===

/// Something read piece by piece.
pub(super) trait Pieces: Send + 'static {
    /// Why reading stopped early.
    type Error: Send + 'static;

    /// The next piece; `None` after the last.
    fn next_piece(&mut self) -> impl Future<Output = Option<Result<Piece, Self::Error>>> + Send;
}

impl Pieces for BlobReader {
    type Error = ReadError;

    async fn next_piece(&mut self) -> Option<Result<Piece, ReadError>> {
        self.next().await
    }
}

/// Polls a reader without allocating per piece. Never yields more than the promised number of bytes.
pub(super) struct Streamed<R: Pieces> {
    /// The read in progress, which holds the reader.
    reading: ReusableBoxFuture<'static, ReadStep<R>>,
    /// Bytes still promised; `None` when the size is unknown.
    remaining: Option<u64>,
    failure: Option<R::Error>,
    finished: bool,
}

type ReadStep<R> = (R, Option<Result<Piece, <R as Pieces>::Error>>);

async fn step<R: Pieces>(mut reader: R) -> ReadStep<R> {
    let piece = reader.next_piece().await;
    (reader, piece)
}

impl<R: Pieces> Streamed<R> {
    /// A body of `size_bytes`, or of as much as there is.
    pub(super) fn new(reader: R, size_bytes: Option<u64>) -> Self {
        Self { reading: ReusableBoxFuture::new(step(reader)), remaining: size_bytes, failure: None, finished: false }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Piece, R::Error>>> {
        if let Some(failure) = self.failure.take() {
            self.finished = true;
            return Poll::Ready(Some(Err(failure)));
        }
        if self.finished {
            return Poll::Ready(None);
        }
        let (reader, piece) = ready!(self.reading.poll(cx));
        match piece {
            Some(Ok(mut piece)) => {
                self.reading.set(step(reader));
                if let Some(remaining) = &mut self.remaining {
                    piece.truncate(*remaining);
                    *remaining -= piece.size_bytes();
                }
                Poll::Ready(Some(Ok(piece)))
            }
            Some(Err(failure)) => {
                // The server drops what it has buffered when a body fails. One more turn lets it send that first, at
                // least the response head, so that the client sees a short body and can resume.
                self.failure = Some(failure);
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            None => {
                self.finished = true;
                Poll::Ready(None)
            }
        }
    }
}

impl<R: Pieces> fmt::Debug for Streamed<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Streamed").field("remaining", &self.remaining).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    /// Pieces, then perhaps an error; the first read of each waits once.
    struct Script(Vec<Result<&'static [u8], &'static str>>);

    impl Pieces for Script {
        type Error = &'static str;

        async fn next_piece(&mut self) -> Option<Result<Piece, &'static str>> {
            tokio::task::yield_now().await;
            (!self.0.is_empty()).then(|| self.0.remove(0).map(|bytes| Bytes::from_static(bytes).into()))
        }
    }

    async fn drain(mut stream: Streamed<Script>) -> (Vec<u8>, Option<&'static str>, Option<u64>) {
        let mut bytes = Vec::new();
        loop {
            match poll_fn(|cx| stream.poll_next(cx)).await {
                Some(Ok(piece)) => bytes.extend_from_slice(&piece.into_bytes().unwrap()),
                Some(Err(error)) => return (bytes, Some(error), stream.remaining),
                None => return (bytes, None, stream.remaining),
            }
        }
    }

    #[tokio::test]
    async fn yields_what_it_reads_and_counts_down() {
        let stream = Streamed::new(Script(vec![Ok(b"abc"), Ok(b"de")]), Some(5));
        assert_eq!(drain(stream).await, (b"abcde".to_vec(), None, Some(0)));
        let stream = Streamed::new(Script(vec![Ok(b"abc")]), None);
        assert_eq!(drain(stream).await, (b"abc".to_vec(), None, None));
    }

    #[tokio::test]
    async fn never_more_than_promised() {
        let stream = Streamed::new(Script(vec![Ok(b"abc"), Ok(b"de")]), Some(4));
        assert_eq!(drain(stream).await, (b"abcd".to_vec(), None, Some(0)));
    }

    #[tokio::test]
    async fn an_error_comes_one_turn_after_the_bytes_before_it() {
        let mut stream = Streamed::new(Script(vec![Ok(b"abc"), Err("cut")]), Some(9));
        let first = poll_fn(|cx| stream.poll_next(cx)).await;
        assert_eq!(first.unwrap().unwrap().into_bytes().unwrap(), "abc");
        let mut turns = 0;
        let error = poll_fn(|cx| {
            turns += 1;
            stream.poll_next(cx)
        });
        assert_eq!(error.await.unwrap().unwrap_err(), "cut");
        assert_eq!(turns, 3, "one for the reader, one for the server to flush");
        assert_eq!(stream.remaining, Some(6), "the promise stays broken");
    }
}
