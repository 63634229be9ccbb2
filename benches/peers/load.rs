//! The load: connections that ask for the same things over and over and do as little as possible with the answers, so
//! that what is measured is the server.
//!
//! Bodies are thrown away by the kernel. Of an encrypted body only the head is decrypted; the rest is thrown away as it
//! came, but for its last bytes, whose number nobody knows without decrypting.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use anyhow::ensure;
use rustix::net::RecvFlags;
use rustls::pki_types::ServerName;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use crate::upstream::field;

/// Without it, some registries refuse what they have.
const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, */*";
const HEAD_BYTES: usize = 32 * 1024;
const DISCARD_BYTES: usize = 4 * 1024 * 1024;
/// Of an encrypted body, what is left unread: more than a head's records and the last ones may hold.
const UNREAD_BYTES: u64 = 64 * 1024;

thread_local! {
    // As large as what one call may throw away. Nothing is ever written to it, so it takes no memory.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; DISCARD_BYTES]);
}

/// Who asks for what, how often.
#[derive(Clone)]
pub(crate) struct Plan {
    pub(crate) address: SocketAddr,
    /// Each connection begins at another one and goes round.
    pub(crate) paths: Vec<String>,
    pub(crate) clients: usize,
    /// A connection for each request, as engines do; else one for all of a client's.
    pub(crate) reconnects: bool,
    pub(crate) until: Until,
    pub(crate) tls: Option<TlsConnector>,
}

/// When the load ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Until {
    Requests(u64),
    Elapsed(Duration),
}

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) requests: u64,
    pub(crate) body_bytes: u64,
    pub(crate) wall_seconds: f64,
    latencies_micros: Vec<u64>,
}

impl Outcome {
    /// The latency that this part of the requests did not exceed, in milliseconds.
    pub(crate) fn quantile_millis(&mut self, part: f64) -> f64 {
        self.latencies_micros.sort_unstable();
        let place = (self.latencies_micros.len() as f64 * part) as usize;
        self.latencies_micros.get(place).or(self.latencies_micros.last()).map_or(f64::NAN, |&m| m as f64 / 1000.0)
    }
}

/// Runs the plan to its end.
pub(crate) async fn run(plan: &Plan) -> Result<Outcome> {
    let begun = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    let mut clients = JoinSet::new();
    for number in 0..plan.clients {
        clients.spawn(client(plan.clone(), number, begun.clone(), start));
    }
    let mut total = Outcome::default();
    while let Some(outcome) = clients.join_next().await {
        let outcome = outcome??;
        total.requests += outcome.requests;
        total.body_bytes += outcome.body_bytes;
        total.latencies_micros.extend(outcome.latencies_micros);
    }
    total.wall_seconds = start.elapsed().as_secs_f64();
    Ok(total)
}

async fn client(plan: Plan, number: usize, begun: Arc<AtomicU64>, start: Instant) -> Result<Outcome> {
    let close = if plan.reconnects { "Connection: close\r\n" } else { "" };
    let request = |path: &String| format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: {ACCEPT}\r\n{close}\r\n");
    let requests: Vec<String> = plan.paths.iter().map(request).collect();
    let (mut outcome, mut connection) = (Outcome::default(), None);
    let mut buffer = vec![0; HEAD_BYTES];
    for request in requests.iter().cycle().skip(number % requests.len()) {
        let is_over = match plan.until {
            Until::Requests(limit) => begun.fetch_add(1, Ordering::Relaxed) >= limit,
            Until::Elapsed(limit) => start.elapsed() >= limit,
        };
        if is_over {
            break;
        }
        let asked = Instant::now();
        let body_bytes = match &plan.tls {
            Some(tls) => encrypted(plan.address, tls, request).await?,
            None => {
                let stream = match connection.take() {
                    Some(stream) => stream,
                    None => {
                        let stream = TcpStream::connect(plan.address).await.context("cannot connect")?;
                        stream.set_nodelay(true)?;
                        stream
                    }
                };
                let body_bytes = exchange(&stream, request.as_bytes(), &mut buffer).await?;
                connection = (!plan.reconnects).then_some(stream);
                body_bytes
            }
        };
        outcome.requests += 1;
        outcome.body_bytes += body_bytes;
        outcome.latencies_micros.push(asked.elapsed().as_micros() as u64);
    }
    Ok(outcome)
}

/// One request and its answer. Returns the length of the body.
async fn exchange(stream: &TcpStream, request: &[u8], buffer: &mut [u8]) -> Result<u64> {
    let written = stream.async_io(Interest::WRITABLE, || stream.try_write(request)).await?;
    ensure!(written == request.len(), "a request in pieces");
    let mut filled = 0;
    let (head_bytes, length_bytes) = loop {
        filled += match stream.async_io(Interest::READABLE, || stream.try_read(&mut buffer[filled..])).await? {
            0 => bail!("closed before the answer"),
            read => read,
        };
        if let Some(found) = body(&buffer[..filled])? {
            break found;
        }
        ensure!(filled < buffer.len(), "head too large");
    };
    let rest = length_bytes.saturating_sub((filled - head_bytes) as u64);
    discard(stream, rest).await?;
    Ok(length_bytes)
}

/// Where the body begins and how long it is, once the whole head is there.
fn body(answer: &[u8]) -> Result<Option<(usize, u64)>> {
    let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&answer[..end]).context("the head is no text")?;
    ensure!(head.starts_with("HTTP/1.1 200"), "unexpected answer: {head}");
    let length = field(head, "content-length").context("no Content-Length")?.parse()?;
    Ok(Some((end + 4, length)))
}

async fn discard(stream: &TcpStream, mut rest: u64) -> Result<()> {
    while rest > 0 {
        let limit = DISCARD_BYTES.min(usize::try_from(rest).unwrap_or(DISCARD_BYTES));
        let take = || {
            BUFFER.with_borrow_mut(|buffer| {
                let flags = RecvFlags::TRUNC | RecvFlags::DONTWAIT;
                let (_, taken) = rustix::net::recv(stream, &mut buffer[..limit], flags).map_err(io::Error::from)?;
                Ok(taken)
            })
        };
        match stream.async_io(Interest::READABLE, take).await? {
            0 => bail!("closed {rest} bytes before the end"),
            taken => rest = rest.saturating_sub(taken as u64),
        }
    }
    Ok(())
}

async fn encrypted(address: SocketAddr, tls: &TlsConnector, request: &str) -> Result<u64> {
    let stream = TcpStream::connect(address).await.context("cannot connect")?;
    stream.set_nodelay(true)?;
    let mut stream = tls.connect(ServerName::try_from("localhost")?, stream).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut head = Vec::with_capacity(HEAD_BYTES);
    let (head_bytes, length_bytes) = loop {
        ensure!(stream.read_buf(&mut head).await? > 0, "closed before the answer");
        if let Some(found) = body(&head)? {
            break found;
        }
    };
    if length_bytes > 2 * UNREAD_BYTES {
        let rest = length_bytes - UNREAD_BYTES - (head.len() - head_bytes) as u64;
        discard(stream.get_ref().0, rest).await?;
    } else {
        while ((head.len() - head_bytes) as u64) < length_bytes {
            ensure!(stream.read_buf(&mut head).await? > 0, "closed before the end");
        }
    }
    Ok(length_bytes)
}
