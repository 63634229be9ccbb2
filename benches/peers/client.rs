//! A client that asks for one thing on a connection of its own and does no more with the answer than it has to.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use anyhow::ensure;
use rustix::net::RecvFlags;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::upstream::field;

const MAX_HEAD_BYTES: usize = 64 * 1024;
const READ_BYTES: usize = 256 * 1024;
/// How much one call throws away; the kernel copies nothing, so it may be large.
const DISCARD_BYTES: usize = 4 * 1024 * 1024;

thread_local! {
    // One for all connections of the thread: nothing stays in it from one read to the next.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; DISCARD_BYTES]);
}

/// An answer of which the head and perhaps the first body bytes were read.
#[derive(Debug)]
pub(crate) struct Answer {
    stream: TcpStream,
    first: Vec<u8>,
    length_bytes: u64,
    /// Offset of the body in the blob.
    pub(crate) from: u64,
}

/// Connects and asks.
pub(crate) async fn get(address: SocketAddr, path: &str, range: Option<&str>) -> Result<Answer> {
    ask(TcpStream::connect(address).await.context("cannot connect")?, path, range).await
}

/// Asks on a connection and reads the head of the answer, which has to be 200, or 206 to a range.
pub(crate) async fn ask(mut stream: TcpStream, path: &str, range: Option<&str>) -> Result<Answer> {
    let range_field = range.map(|range| format!("Range: {range}\r\n")).unwrap_or_default();
    let request = format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: bench\r\n{range_field}\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut head = Vec::with_capacity(MAX_HEAD_BYTES);
    let end = loop {
        if let Some(end) = head.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
        ensure!(head.len() < MAX_HEAD_BYTES, "head too large");
        ensure!(stream.read_buf(&mut head).await? > 0, "closed before the answer");
    };
    let first = head.split_off(end);
    let head = String::from_utf8(head).context("the head is no text")?;
    let status = head.split(' ').nth(1).unwrap_or_default();
    ensure!(status == if range.is_some() { "206" } else { "200" }, "unexpected answer: {head}");
    let length_bytes = field(&head, "content-length").context("no Content-Length")?.parse()?;
    let from = match field(&head, "content-range").and_then(|value| value.strip_prefix("bytes ")) {
        Some(interval) => interval.split('-').next().unwrap_or_default().parse()?,
        None => 0,
    };
    Ok(Answer { stream, first, length_bytes, from })
}

impl Answer {
    /// Reads the whole body, or its first `limit_bytes`, and shows each piece with its offset in the blob. The
    /// connection is closed after that. Returns how much there was.
    pub(crate) async fn read(
        mut self,
        limit_bytes: u64,
        mut piece: impl FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<u64> {
        let wanted = self.length_bytes.min(limit_bytes);
        let first = std::mem::take(&mut self.first);
        let first = &first[..first.len().min(usize::try_from(wanted).unwrap_or(usize::MAX))];
        piece(self.from, first)?;
        let mut got = first.len() as u64;
        while got < wanted {
            self.stream.readable().await?;
            got += BUFFER.with_borrow_mut(|buffer| {
                let limit = READ_BYTES.min(usize::try_from(wanted - got).unwrap_or(READ_BYTES));
                match self.stream.try_read(&mut buffer[..limit]) {
                    Ok(0) => bail!("closed after {got} of {} bytes", self.length_bytes),
                    Ok(read) => piece(self.from + got, &buffer[..read]).map(|()| read as u64),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
                    Err(error) => Err(error).with_context(|| format!("broken after {got} bytes")),
                }
            })?;
        }
        Ok(got)
    }

    /// Reads the whole body, bytes and all, and drops it.
    pub(crate) async fn swallow(self) -> Result<u64> {
        self.read(u64::MAX, |_, _| Ok(())).await
    }

    /// Lets the kernel throw the body away, so that the server is the only one who works. Returns its length.
    pub(crate) async fn discard(self) -> Result<u64> {
        let mut got = self.first.len() as u64;
        while got < self.length_bytes {
            let discard = || {
                BUFFER.with_borrow_mut(|buffer| {
                    let limit = DISCARD_BYTES.min(usize::try_from(self.length_bytes - got).unwrap_or(DISCARD_BYTES));
                    let flags = RecvFlags::TRUNC | RecvFlags::DONTWAIT;
                    rustix::net::recv(&self.stream, &mut buffer[..limit], flags).map_err(io::Error::from)
                })
            };
            match self.stream.async_io(Interest::READABLE, discard).await {
                Ok((_, 0)) => bail!("closed after {got} of {} bytes", self.length_bytes),
                Ok((_, read)) => got += read as u64,
                Err(error) => return Err(error).with_context(|| format!("broken after {got} bytes")),
            }
        }
        Ok(got)
    }

    /// Waits for the first byte of the body.
    pub(crate) async fn first_byte(&mut self) -> Result<()> {
        if self.first.is_empty() {
            ensure!(self.stream.read_buf(&mut self.first).await? > 0, "closed before the first byte");
        }
        Ok(())
    }
}
