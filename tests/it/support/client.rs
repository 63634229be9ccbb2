//! A client that checks bytes: raw HTTP/1.1, so a short body, a cut connection and a clean end can be told apart.

use std::io;
use std::net::SocketAddr;

use tokio::net::TcpSocket;
use tokio::net::TcpStream;

use super::PATIENCE;
use super::content::digest_like;
use super::http1::Headers;
use super::http1::Wire;
use super::within;

/// How a message ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// As long as it promised to be.
    Complete,
    /// The connection ended (FIN) before that.
    Cut,
    /// The connection was reset before that.
    Reset,
}

#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Headers,
    pub(crate) body: Vec<u8>,
    pub(crate) end: End,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.end == End::Complete
    }

    /// The parameters of Cache-Status, without the name of the cache.
    #[track_caller]
    pub(crate) fn outcome(&self) -> &str {
        let value = self.header("Cache-Status").expect("every answer says where it came from");
        value.strip_prefix("forebay; ").unwrap_or_else(|| panic!("strange Cache-Status {value:?}"))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {:?}", self.text()))
    }

    /// Code of the first error of an error body, after checking the shape of the whole answer.
    #[track_caller]
    pub(crate) fn error_code(&self) -> String {
        assert_eq!(self.header("Content-Type"), Some("application/json"), "{self:?}");
        let body = self.json();
        let first = &body["errors"][0];
        assert!(first["message"].as_str().is_some_and(|message| !message.is_empty()), "{body}");
        first["code"].as_str().unwrap_or_else(|| panic!("no code in {body}")).to_owned()
    }

    /// Asserts status and error code, and that nothing asks the client for credentials.
    #[track_caller]
    pub(crate) fn assert_error(&self, status: u16, code: &str) {
        assert_eq!(self.status, status, "{:?} {}", self.headers, self.text());
        assert_eq!(self.error_code(), code);
        assert_eq!(self.header("WWW-Authenticate"), None);
    }

    /// Asserts a complete body of exactly these bytes.
    #[track_caller]
    pub(crate) fn assert_body(&self, status: u16, expected: &[u8]) {
        assert_eq!(self.status, status, "{:?} {}", self.headers, self.text().chars().take(300).collect::<String>());
        assert_eq!(self.end, End::Complete, "got {} of {} bytes", self.body.len(), expected.len());
        assert!(self.body == expected, "the bytes differ ({} instead of {})", self.body.len(), expected.len());
    }

    /// Asserts a complete 200 whose bytes and headers have this digest.
    #[track_caller]
    pub(crate) fn assert_digest(&self, digest: &str) {
        assert_eq!(self.status, 200, "{:?} {}", self.headers, self.text().chars().take(300).collect::<String>());
        assert_eq!(self.end, End::Complete, "got {} bytes", self.body.len());
        assert_eq!(digest_like(digest, &self.body), digest);
        assert_eq!(self.header("Docker-Content-Digest"), Some(digest));
        assert_eq!(self.header("Content-Length"), Some(self.body.len().to_string().as_str()));
    }

    /// Whether this is a complete 200 with other bytes than these: what no client may ever get.
    pub(crate) fn is_poison(&self, expected: &[u8]) -> bool {
        self.status == 200 && self.is_complete() && self.body != expected
    }
}

/// One connection to the proxy.
#[derive(Debug)]
pub(crate) struct Connection {
    wire: Wire<TcpStream>,
    address: SocketAddr,
}

/// An answer whose head was read and whose body was not.
#[derive(Debug)]
pub(crate) struct Incoming {
    connection: Connection,
    pub(crate) status: u16,
    pub(crate) headers: Headers,
    body: Vec<u8>,
    framing: Framing,
}

#[derive(Clone, Copy, Debug)]
enum Framing {
    Length(usize),
    Chunked,
    UntilClose,
}

impl Connection {
    pub(crate) async fn open(address: SocketAddr) -> io::Result<Self> {
        Ok(Self { wire: Wire::new(TcpStream::connect(address).await?), address })
    }

    /// A connection that takes in little before it is read, to play a client on a slow line.
    pub(crate) async fn open_narrow(address: SocketAddr) -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(8 * 1024)?;
        Ok(Self { wire: Wire::new(socket.connect(address).await?), address })
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.wire.write(bytes).await
    }

    /// True when the peer closes without another byte.
    pub(crate) async fn is_closed(&mut self) -> bool {
        self.wire.read_ahead.is_empty() && !matches!(self.wire.fill().await, Ok(1..))
    }

    /// Sends a request head. A `Host` among `headers` takes the place of the real one.
    pub(crate) async fn send(&mut self, method: &str, target: &str, headers: &[(&str, &str)]) -> io::Result<()> {
        let mut head = format!("{method} {target} HTTP/1.1\r\n");
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            head.push_str(&format!("Host: {}\r\n", self.address));
        }
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        self.write(head.as_bytes()).await
    }

    /// Reads the head of the answer to a request with this method.
    pub(crate) async fn receive(mut self, method: &str) -> io::Result<Incoming> {
        let (first, headers) = self.wire.head().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let status: u16 = first
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest.get(..3))
            .and_then(|status| status.parse().ok())
            .ok_or_else(|| io::Error::other(format!("strange first line {first:?}")))?;
        let length = headers.get("Content-Length").map(|value| value.parse::<usize>().map_err(io::Error::other));
        let framing = if method == "HEAD" || status == 204 || status == 304 {
            Framing::Length(0)
        } else if headers.get("Transfer-Encoding").is_some() {
            Framing::Chunked
        } else if let Some(length) = length {
            Framing::Length(length?)
        } else {
            Framing::UntilClose
        };
        Ok(Incoming { connection: self, status, headers, body: Vec::new(), framing })
    }
}

impl Incoming {
    /// Reads until `count` bytes of an unchunked body are here; false when it ended before.
    pub(crate) async fn read(&mut self, count: usize) -> bool {
        let wire = &mut self.connection.wire;
        while wire.read_ahead.len() < count {
            if !matches!(wire.fill().await, Ok(1..)) {
                return false;
            }
        }
        true
    }

    /// What was read ahead of an unchunked body so far.
    pub(crate) fn received(&self) -> &[u8] {
        &self.connection.wire.read_ahead
    }

    /// Reads the rest and hands the connection back.
    pub(crate) async fn finish(mut self) -> (Reply, Connection) {
        let end = match self.rest().await {
            Ok(()) => End::Complete,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => End::Cut,
            Err(_) => End::Reset,
        };
        (Reply { status: self.status, headers: self.headers, body: self.body, end }, self.connection)
    }

    /// Reads the rest, in bounded time.
    pub(crate) async fn reply(self) -> Reply {
        within(PATIENCE, self.finish()).await.0
    }

    async fn rest(&mut self) -> io::Result<()> {
        match self.framing {
            Framing::Length(length) => self.take(length).await,
            Framing::Chunked => loop {
                let size = self.connection.wire.line().await?;
                let size = size.split(';').next().unwrap_or_default();
                let size = usize::from_str_radix(size.trim(), 16).map_err(io::Error::other)?;
                self.take(size).await?;
                if !self.connection.wire.line().await?.is_empty() {
                    return Err(io::Error::other("no end of a chunk"));
                }
                if size == 0 {
                    return Ok(());
                }
            },
            // Without any framing a clean end and a cut one look alike, so it never counts as complete.
            Framing::UntilClose => self.take(usize::MAX).await,
        }
    }

    async fn take(&mut self, mut count: usize) -> io::Result<()> {
        let wire = &mut self.connection.wire;
        while count > 0 {
            if wire.read_ahead.is_empty() && wire.fill().await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let piece = wire.read_ahead.split_to(count.min(wire.read_ahead.len()));
            count -= piece.len();
            self.body.extend_from_slice(&piece);
        }
        Ok(())
    }
}

/// Sends a request on a connection of its own and reads the head of the answer.
pub(crate) async fn open(address: SocketAddr, method: &str, target: &str, headers: &[(&str, &str)]) -> Incoming {
    within(PATIENCE, async {
        let mut connection = Connection::open(address).await.unwrap();
        connection.send(method, target, headers).await.unwrap();
        connection.receive(method).await.unwrap_or_else(|error| panic!("{method} {target}: {error}"))
    })
    .await
}

/// One request, one connection, read to its end: a body longer than promised is a failure too.
pub(crate) async fn request(address: SocketAddr, method: &str, target: &str, headers: &[(&str, &str)]) -> Reply {
    let mut headers = headers.to_vec();
    headers.push(("Connection", "close"));
    let incoming = open(address, method, target, &headers).await;
    within(PATIENCE, async {
        let (reply, mut connection) = incoming.finish().await;
        if reply.is_complete() {
            assert!(connection.is_closed().await, "{method} {target}: bytes after the end of the body");
        }
        reply
    })
    .await
}
