//! As much HTTP/1.1 as both ends of the harness need, written out so that a test decides about each byte on the wire.

use std::io;

use bytes::Buf;
use bytes::BytesMut;
use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWrite;
use tokio::io::AsyncWriteExt;

/// A head larger than this is a broken peer.
const HEAD_LIMIT_BYTES: usize = 1024 * 1024;

/// Header fields in the order in which they came.
#[derive(Clone, Debug, Default)]
pub(crate) struct Headers(Vec<(String, String)>);

impl Headers {
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        self.0.iter().filter(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str()).collect()
    }

    pub(crate) fn push(&mut self, name: &str, value: impl Into<String>) {
        self.0.push((name.to_owned(), value.into()));
    }

    /// Puts `value` in the place of every field of that name.
    pub(crate) fn set(&mut self, name: &str, value: impl Into<String>) {
        self.0.retain(|(field, _)| !field.eq_ignore_ascii_case(name));
        self.push(name, value);
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

/// One connection with what was read ahead on it.
#[derive(Debug)]
pub(crate) struct Wire<S> {
    stream: S,
    pub(crate) read_ahead: BytesMut,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, read_ahead: BytesMut::with_capacity(16 * 1024) }
    }

    /// Reads once; 0 is the end of the stream.
    pub(crate) async fn fill(&mut self) -> io::Result<usize> {
        self.stream.read_buf(&mut self.read_ahead).await
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }

    /// Says "no more from here" (FIN); what the peer still sends can be read.
    pub(crate) async fn finish_writing(&mut self) -> io::Result<()> {
        self.stream.shutdown().await
    }

    /// One line without its CRLF.
    pub(crate) async fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.read_ahead.windows(2).position(|pair| pair == b"\r\n") {
                let line = self.read_ahead.split_to(end);
                self.read_ahead.advance(2);
                return String::from_utf8(line.to_vec()).map_err(io::Error::other);
            }
            if self.read_ahead.len() > HEAD_LIMIT_BYTES {
                return Err(io::Error::other("line too long"));
            }
            if self.fill().await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// So many bytes.
    pub(crate) async fn bytes(&mut self, count: usize) -> io::Result<Vec<u8>> {
        while self.read_ahead.len() < count {
            if self.fill().await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(self.read_ahead.split_to(count).to_vec())
    }

    /// First line and header fields of the next message; `None` when the peer closed before it.
    pub(crate) async fn head(&mut self) -> io::Result<Option<(String, Headers)>> {
        if self.read_ahead.is_empty() && self.fill().await? == 0 {
            return Ok(None);
        }
        let first = self.line().await?;
        let mut headers = Headers::default();
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                return Ok(Some((first, headers)));
            }
            let (name, value) =
                line.split_once(':').ok_or_else(|| io::Error::other(format!("no colon in {line:?}")))?;
            headers.push(name, value.trim());
        }
    }
}
