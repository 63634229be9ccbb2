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
    type Data = Bytes;
    type Error = ReadError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ReadError>>> {
        let bytes = match &mut self.content {
            Content::Empty => None,
            Content::Full(bytes) if bytes.is_empty() => None,
            Content::Full(bytes) => Some(Ok(std::mem::take(bytes))),
            Content::Blob(stream) => ready!(stream.poll_next(cx)),
            Content::Parts(stream) => ready!(stream.poll_next(cx)),
        };
        match &bytes {
            Some(Ok(bytes)) => self.exchange.sent(bytes.len() as u64),
            Some(Err(_)) => {}
            None => self.exchange.ended(),
        }
        Poll::Ready(bytes.map(|bytes| bytes.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.content.size_bytes() == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.content.size_bytes().map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

// === Streamed ===

/// Something read chunk by chunk.
pub(super) trait Chunks: Send + 'static {
    /// Why reading stopped early.
    type Error: Send + 'static;

    /// The next chunk; `None` after the last.
    fn next_chunk(&mut self) -> impl Future<Output = Option<Result<Bytes, Self::Error>>> + Send;
}

impl Chunks for BlobReader {
    type Error = ReadError;

    async fn next_chunk(&mut self) -> Option<Result<Bytes, ReadError>> {
        self.next().await
    }
}

/// Polls a reader without allocating per chunk. Never yields more than the promised number of bytes.
pub(super) struct Streamed<R: Chunks> {
    /// The read in progress, which holds the reader.
    reading: ReusableBoxFuture<'static, ReadStep<R>>,
    /// Bytes still promised; `None` when the size is unknown.
    remaining: Option<u64>,
    failure: Option<R::Error>,
    finished: bool,
}

type ReadStep<R> = (R, Option<Result<Bytes, <R as Chunks>::Error>>);

async fn step<R: Chunks>(mut reader: R) -> ReadStep<R> {
    let chunk = reader.next_chunk().await;
    (reader, chunk)
}

impl<R: Chunks> Streamed<R> {
    /// A body of `size_bytes`, or of as much as there is.
    pub(super) fn new(reader: R, size_bytes: Option<u64>) -> Self {
        Self { reading: ReusableBoxFuture::new(step(reader)), remaining: size_bytes, failure: None, finished: false }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, R::Error>>> {
        if let Some(failure) = self.failure.take() {
            self.finished = true;
            return Poll::Ready(Some(Err(failure)));
        }
        if self.finished {
            return Poll::Ready(None);
        }
        let (reader, chunk) = ready!(self.reading.poll(cx));
        match chunk {
            Some(Ok(mut chunk)) => {
                self.reading.set(step(reader));
                if let Some(remaining) = &mut self.remaining {
                    chunk.truncate(usize::try_from(*remaining).unwrap_or(usize::MAX));
                    *remaining -= chunk.len() as u64;
                }
                Poll::Ready(Some(Ok(chunk)))
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

impl<R: Chunks> fmt::Debug for Streamed<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Streamed").field("remaining", &self.remaining).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    /// Chunks, then perhaps an error; the first read of each waits once.
    struct Script(Vec<Result<&'static [u8], &'static str>>);

    impl Chunks for Script {
        type Error = &'static str;

        async fn next_chunk(&mut self) -> Option<Result<Bytes, &'static str>> {
            tokio::task::yield_now().await;
            (!self.0.is_empty()).then(|| self.0.remove(0).map(Bytes::from_static))
        }
    }

    async fn drain(mut stream: Streamed<Script>) -> (Vec<u8>, Option<&'static str>, Option<u64>) {
        let mut bytes = Vec::new();
        loop {
            match poll_fn(|cx| stream.poll_next(cx)).await {
                Some(Ok(chunk)) => bytes.extend_from_slice(&chunk),
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
        assert_eq!(first, Some(Ok(Bytes::from_static(b"abc"))));
        let mut turns = 0;
        let error = poll_fn(|cx| {
            turns += 1;
            stream.poll_next(cx)
        });
        assert_eq!(error.await, Some(Err("cut")));
        assert_eq!(turns, 3, "one for the reader, one for the server to flush");
        assert_eq!(stream.remaining, Some(6), "the promise stays broken");
    }
}
