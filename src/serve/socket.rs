//! The byte stream under one HTTP connection: a TCP socket that sends ranges of files, gives up on clients that take
//! nothing, recognises TLS, and outlives the HTTP connection so that it can be closed with care.
//!
//! Files go out by `sendfile`, without a copy through this process. Measured against `writev` from a mapping that is kept
//! while hot: that is cheaper still on a loopback interface, where both sides copy anyway, but it has the pages of whole
//! blobs in our page tables, and a file that somebody truncates is a signal away from ending the process.
//! A connection that never has to wait gives its thread up after [`TURN_BYTES`], so that it starves nobody.

use std::future::Future;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep, sleep};
use tracing::{debug, warn};

use super::outgoing::{Outbox, is_stand_in};
use crate::piece::FileRange;

/// What one connection may send of files before others on its thread get their turn.
const TURN_BYTES: usize = 4 * 1024 * 1024;
/// Shortest time after which a client that takes nothing of an answer is given up; the longest is twice that. Clients that
/// unpack while they download do pause.
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

/// What a listening port speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speech {
    Plain,
    Tls,
}

/// A TCP stream that goes to the [`Closing`] receiver when dropped.
pub(super) struct Socket {
    /// `None` only while dropping.
    stream: Option<TcpStream>,
    returns: Option<oneshot::Sender<Closing>>,
    peer: SocketAddr,
    /// Nothing was read yet, and it may be TLS, which this port does not speak.
    may_be_tls: bool,
    is_tls: bool,
    ended_by_client: bool,
    ends_by_closing: Arc<AtomicBool>,
    outbox: Outbox,
    /// Sent of files since the connection last waited.
    turn_bytes: usize,
    /// Runs from the first wait of a write on; `None` until then.
    stall: Option<Pin<Box<Sleep>>>,
    /// Something was written since `stall` began.
    has_progress: bool,
}

impl Socket {
    /// The receiver gets the stream back when the socket is dropped.
    pub(super) fn new(stream: TcpStream, peer: SocketAddr, speech: Speech) -> (Self, oneshot::Receiver<Closing>) {
        let (returns, returned) = oneshot::channel();
        let socket = Self {
            stream: Some(stream),
            returns: Some(returns),
            peer,
            may_be_tls: speech == Speech::Plain,
            is_tls: false,
            ended_by_client: false,
            ends_by_closing: Arc::default(),
            outbox: Outbox::default(),
            turn_bytes: 0,
            stall: None,
            has_progress: false,
        };
        (socket, returned)
    }

    /// To be set when an answer begins whose end only the end of the connection shows: HTTP/1.0, length unknown.
    pub(super) fn ends_by_closing(&self) -> Arc<AtomicBool> {
        self.ends_by_closing.clone()
    }

    /// Where ranges of files go that this socket is to send.
    pub(super) fn outbox(&self) -> Outbox {
        self.outbox.clone()
    }

    fn stream(&mut self) -> Pin<&mut TcpStream> {
        Pin::new(self.stream.as_mut().expect("the stream leaves only in drop"))
    }

    /// Sends bytes after which more follow at once.
    fn poll_send_more(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.poll_sending(cx, |stream, _| {
            let flags = SendFlags::MORE | SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            Ok(rustix::net::sendmsg(stream, bufs, &mut SendAncillaryBuffer::default(), flags)?)
        })
    }

    /// Sends from the first range of the outbox, `limit_bytes` at most.
    fn poll_send_file(&mut self, cx: &mut Context<'_>, limit_bytes: usize) -> Poll<io::Result<usize>> {
        let peer = self.peer;
        let sent = ready!(
            self.poll_sending(cx, |stream, outbox| { outbox.send(|range| send_range(stream, range, limit_bytes)) })
        );
        match &sent {
            Ok(sent_bytes) => self.turn_bytes += sent_bytes,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                warn!(%peer, %error, "an answer is cut");
            }
            Err(_) => {}
        }
        Poll::Ready(sent)
    }

    fn poll_sending(
        &mut self,
        cx: &mut Context<'_>,
        mut send: impl FnMut(&TcpStream, &Outbox) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        let stream = self.stream.as_ref().expect("the stream leaves only in drop");
        loop {
            ready!(stream.poll_write_ready(cx))?;
            match stream.try_io(Interest::WRITABLE, || send(stream, &self.outbox)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => return Poll::Ready(sent),
            }
        }
    }

    /// Bounds how long `written` may stay pending without any progress.
    fn watch<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.has_progress = true;
            return written;
        }
        self.turn_bytes = 0;
        let stall = self.stall.get_or_insert_with(|| Box::pin(sleep(WRITE_STALL)));
        // Set once a while, not at each wait: a timer costs a lock that all connections share.
        while stall.as_mut().poll(cx).is_ready() {
            if !std::mem::take(&mut self.has_progress) {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing")));
            }
            stall.as_mut().reset(Instant::now() + WRITE_STALL);
        }
        Poll::Pending
    }
}

/// Sends from the start of a range, `limit_bytes` at most, as far as there is room. What is handed over is in the page
/// cache, as far as could be told.
fn send_range(stream: &TcpStream, range: &FileRange, limit_bytes: usize) -> io::Result<usize> {
    let limit_bytes = usize::try_from(range.size_bytes()).unwrap_or(usize::MAX).min(limit_bytes);
    loop {
        let mut position = range.start();
        match rustix::fs::sendfile(stream, range.file(), Some(&mut position), limit_bytes) {
            Ok(0) => {
                range.failed();
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file is shorter than its content"));
            }
            Ok(sent_bytes) => return Ok(sent_bytes),
            Err(Errno::INTR) => {}
            // The disk's error, never a socket's.
            Err(error @ Errno::IO) => {
                range.failed();
                return Err(error.into());
            }
            // A file system without it.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                let bytes = range.read()?;
                let bytes = &bytes[..bytes.len().min(limit_bytes)];
                return Ok(rustix::net::send(stream, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?);
            }
            Err(error) => return Err(error.into()),
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
        if self.may_be_tls && new.first() == Some(&TLS_HANDSHAKE) {
            // Clients probe for TLS; an end without a word sends them on to plain HTTP.
            debug!(peer = %self.peer, "TLS handshake on a plain port; closing");
            buf.set_filled(before);
            self.is_tls = true;
            return read;
        }
        self.may_be_tls = false;
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
        let written = match bufs.iter().position(|buf| is_stand_in(buf)) {
            None => self.stream().poll_write_vectored(cx, bufs),
            Some(0) if self.turn_bytes >= TURN_BYTES => {
                self.turn_bytes = 0;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Some(0) => self.poll_send_file(cx, bufs[0].len()),
            Some(place) => self.poll_send_more(cx, &bufs[..place]),
        };
        self.watch(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_flush(cx)
    }

    /// Ends nothing yet: who gets the stream back closes it with care.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Only a clean end gets here.
        self.ends_by_closing.store(false, Ordering::Relaxed);
        Poll::Ready(Ok(()))
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
