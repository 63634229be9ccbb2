//! The byte stream under one HTTP connection: a TCP socket that gives up on clients that take nothing, recognises TLS,
//! and outlives the HTTP connection so that it can be closed with care.

use std::future::Future;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep, sleep};
use tracing::debug;

/// Longest time in which a client may take nothing of an answer. Clients that unpack while they download do pause.
const WRITE_STALL: Duration = Duration::from_secs(300);
/// The first byte of a TLS handshake record; no HTTP method begins with it.
const TLS_HANDSHAKE: u8 = 0x16;

/// A socket whose HTTP connection is over.
pub(super) struct Closing {
    pub(super) stream: TcpStream,
    /// The client closed its sending side, so it sends nothing more.
    pub(super) ended_by_client: bool,
    /// It ends with RST when dropped: a FIN would look like the clean end of an answer that is none.
    pub(super) is_reset: bool,
}

/// A TCP stream that goes to the [`Closing`] receiver when dropped.
pub(super) struct Socket {
    /// `None` only while dropping.
    stream: Option<TcpStream>,
    returns: Option<oneshot::Sender<Closing>>,
    peer: SocketAddr,
    has_read: bool,
    is_tls: bool,
    ended_by_client: bool,
    ends_by_closing: Arc<AtomicBool>,
    /// Runs while a write waits; `None` until the first wait.
    stall: Option<Pin<Box<Sleep>>>,
    is_stalled: bool,
}

impl Socket {
    /// The receiver gets the stream back when the socket is dropped.
    pub(super) fn new(stream: TcpStream, peer: SocketAddr) -> (Self, oneshot::Receiver<Closing>) {
        let (returns, returned) = oneshot::channel();
        let socket = Self {
            stream: Some(stream),
            returns: Some(returns),
            peer,
            has_read: false,
            is_tls: false,
            ended_by_client: false,
            ends_by_closing: Arc::default(),
            stall: None,
            is_stalled: false,
        };
        (socket, returned)
    }

    /// To be set when an answer begins whose end only the end of the connection shows: HTTP/1.0, length unknown.
    pub(super) fn ends_by_closing(&self) -> Arc<AtomicBool> {
        self.ends_by_closing.clone()
    }

    fn stream(&mut self) -> Pin<&mut TcpStream> {
        Pin::new(self.stream.as_mut().expect("the stream leaves only in drop"))
    }

    /// Bounds how long `written` may stay pending without any progress.
    fn watch<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.is_stalled = false;
            return written;
        }
        let stall = self.stall.get_or_insert_with(|| Box::pin(sleep(WRITE_STALL)));
        if !self.is_stalled {
            self.is_stalled = true;
            stall.as_mut().reset(Instant::now() + WRITE_STALL);
        }
        match stall.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing"))),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.is_tls {
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let read = self.stream().poll_read(cx, buf);
        let Poll::Ready(Ok(())) = &read else {
            return read;
        };
        let new = &buf.filled()[before..];
        if !self.has_read && new.first() == Some(&TLS_HANDSHAKE) {
            // Clients probe for TLS; an end without a word sends them on to plain HTTP.
            debug!(peer = %self.peer, "TLS handshake on a plain port; closing");
            buf.set_filled(before);
            self.is_tls = true;
            return read;
        }
        self.has_read = true;
        self.ended_by_client |= new.is_empty() && buf.remaining() > 0;
        read
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = self.stream().poll_write(cx, buf);
        self.watch(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = self.stream().poll_write_vectored(cx, bufs);
        self.watch(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Only a clean end gets here.
        self.ends_by_closing.store(false, Ordering::Relaxed);
        self.stream().poll_shutdown(cx)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let (Some(stream), Some(returns)) = (self.stream.take(), self.returns.take()) {
            let is_reset = self.ends_by_closing.load(Ordering::Relaxed) && stream.set_zero_linger().is_ok();
            // Nobody takes it when the connection was cut: then it closes at once.
            let _ = returns.send(Closing { stream, ended_by_client: self.ended_by_client, is_reset });
        }
    }
}
