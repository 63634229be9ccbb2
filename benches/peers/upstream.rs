//! The registry in front of which the measured servers stand: one thread that serves blobs over plain sockets, as slowly
//! and as badly as a case asks for, and counts what it was asked and what it sent.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::content::Blob;
use crate::content::Document;
use crate::content::Image;
use crate::content::MANIFEST_TYPE;

const MAX_HEAD_BYTES: usize = 64 * 1024;
const PACED_WRITE_BYTES: usize = 64 * 1024;
const WRITE_BYTES: usize = 512 * 1024;
/// How far a paced connection may catch up: timers are a few milliseconds late, a stalled reader is longer.
const MAX_LATENESS: Duration = Duration::from_millis(20);

/// A connection that ends too early.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Cut {
    /// At this offset of the blob, the first time only.
    OnceAt(u64),
    /// Every body after this many bytes.
    EachAfter(u64),
}

/// How the upstream behaves.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Manners {
    /// Body bytes a second of each connection; unlimited when absent.
    pub(crate) bytes_per_second: Option<u64>,
    /// Silence before each answer: one round trip.
    pub(crate) delay: Duration,
    pub(crate) cut: Option<Cut>,
}

/// What it did so far.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Requests of every kind.
    requests: AtomicU64,
    /// Body bytes of blobs handed to the kernel.
    body_bytes: AtomicU64,
    /// Bodies on their way.
    open: AtomicU64,
    /// Method and range of every request.
    seen: Mutex<Vec<String>>,
}

#[derive(Debug)]
struct Shared {
    blobs: Vec<Blob>,
    image: Option<Image>,
    manners: Manners,
    was_cut: AtomicBool,
    counters: Counters,
}

/// A running upstream. Dropping it closes every connection.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Upstream {
    pub(crate) fn start(blobs: &[Blob], manners: Manners) -> Result<Self> {
        Self::start_all(blobs.to_vec(), None, manners)
    }

    /// One that has an image besides.
    pub(crate) fn with_image(blobs: &[Blob], image: &Image) -> Result<Self> {
        Self::start_all([blobs, &image.blobs].concat(), Some(image.clone()), Manners::default())
    }

    fn start_all(blobs: Vec<Blob>, image: Option<Image>, manners: Manners) -> Result<Self> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").context("the upstream cannot listen")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let shared =
            Arc::new(Shared { blobs, image, manners, was_cut: AtomicBool::new(false), counters: Counters::default() });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let of_thread = shared.clone();
        let thread = std::thread::Builder::new().name("upstream".to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = stopped => {}
                    _ = accept(listener, of_thread) => {}
                }
            });
        })?;
        Ok(Self { address, shared, stop: Some(stop), thread: Some(thread) })
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn requests(&self) -> u64 {
        self.shared.counters.requests.load(Ordering::Relaxed)
    }

    pub(crate) fn body_bytes(&self) -> u64 {
        self.shared.counters.body_bytes.load(Ordering::Relaxed)
    }

    /// Every request so far, one line each.
    pub(crate) fn seen(&self) -> String {
        self.shared.counters.seen.lock().unwrap_or_else(PoisonError::into_inner).join("\n")
    }

    /// Waits until no body was on its way for a moment: the counts are final then.
    pub(crate) async fn settle(&self) {
        const STEP: Duration = Duration::from_millis(20);
        let mut quiet_steps = 0;
        while quiet_steps < 15 {
            let open = self.shared.counters.open.load(Ordering::Relaxed) > 0;
            quiet_steps = if open { 0 } else { quiet_steps + 1 };
            tokio::time::sleep(STEP).await;
        }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(listener: std::net::TcpListener, shared: Arc<Shared>) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let shared = shared.clone();
        tokio::spawn(async move {
            // A peer that leaves is an everyday thing here; what was sent to it has been counted.
            let _ = shared.serve(stream).await;
        });
    }
}

impl Shared {
    async fn serve(&self, mut stream: TcpStream) -> io::Result<()> {
        let mut read_ahead = Vec::new();
        while let Some(head) = read_head(&mut stream, &mut read_ahead).await? {
            let mut words = head.split(' ');
            let method = words.next().unwrap_or_default();
            let path = words.next().unwrap_or_default();
            let range = field(&head, "range");
            self.count(method, path, range);
            if !self.manners.delay.is_zero() {
                tokio::time::sleep(self.manners.delay).await;
            }
            let digest = path.rsplit('/').next().unwrap_or_default();
            if let Some(manifest) = self.manifest(path) {
                let Document { text, digest } = manifest;
                let length = text.len();
                let head = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: {MANIFEST_TYPE}\r\nDocker-Content-Digest: {digest}\r\n\
                     Content-Length: {length}\r\n\r\n"
                );
                stream.write_all(format!("{head}{}", if method == "HEAD" { "" } else { text }).as_bytes()).await?;
                continue;
            }
            let Some(blob) = self.blobs.iter().find(|blob| blob.digest == digest) else {
                let status = if path.trim_end_matches('/') == "/v2" { "200 OK" } else { "404 Not Found" };
                let answer =
                    format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n");
                stream.write_all(format!("{answer}{}", if method == "HEAD" { "" } else { "{}" }).as_bytes()).await?;
                continue;
            };
            if !self.answer(&mut stream, blob, method, range).await? {
                return stream.shutdown().await;
            }
        }
        Ok(())
    }

    fn manifest(&self, path: &str) -> Option<&Document> {
        let image = self.image.as_ref()?;
        let is_it = path == image.path_by_tag() || path == image.path_by_digest();
        is_it.then_some(&image.manifest)
    }

    fn count(&self, method: &str, path: &str, range: Option<&str>) {
        self.counters.requests.fetch_add(1, Ordering::Relaxed);
        let line = format!("{method} {path} {}", range.unwrap_or("-"));
        self.counters.seen.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }

    /// One answer with a blob or a part of it; false when it was cut.
    async fn answer(&self, stream: &mut TcpStream, blob: &Blob, method: &str, range: Option<&str>) -> io::Result<bool> {
        let size = blob.size_bytes;
        let (mut head, from, to) = match range.map(|range| closed(range, size)) {
            None => ("HTTP/1.1 200 OK\r\n".to_owned(), 0, size),
            Some(Some((from, to))) => {
                let last = to - 1;
                (format!("HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {from}-{last}/{size}\r\n"), from, to)
            }
            Some(None) => {
                (format!("HTTP/1.1 416 Range Not Satisfiable\r\nContent-Range: bytes */{size}\r\n"), size, size)
            }
        };
        head.push_str(&format!(
            "Content-Length: {}\r\nContent-Type: application/octet-stream\r\nAccept-Ranges: bytes\r\n\
             ETag: \"{1}\"\r\nDocker-Content-Digest: {1}\r\n\r\n",
            to - from,
            blob.digest
        ));
        stream.write_all(head.as_bytes()).await?;
        if method == "HEAD" { Ok(true) } else { self.send(stream, blob, from, to).await }
    }

    async fn send(&self, stream: &mut TcpStream, blob: &Blob, from: u64, to: u64) -> io::Result<bool> {
        let _open = Open::new(&self.counters.open);
        let mut pace = self.manners.bytes_per_second.map(Pace::new);
        let end = self.end_of(from, to);
        let mut at = from;
        while at < end {
            let limit = if pace.is_some() { PACED_WRITE_BYTES } else { WRITE_BYTES };
            let limit = limit.min(usize::try_from(end - at).unwrap_or(limit));
            let piece = blob.piece(at, limit);
            if let Some(pace) = &mut pace {
                pace.wait(piece.len()).await;
            }
            let mut sent = 0;
            while sent < piece.len() {
                let written = stream.write(&piece[sent..]).await?;
                self.counters.body_bytes.fetch_add(written as u64, Ordering::Relaxed);
                sent += written;
            }
            at += piece.len() as u64;
        }
        Ok(end == to)
    }

    /// Where the body of `from..to` really ends.
    fn end_of(&self, from: u64, to: u64) -> u64 {
        match self.manners.cut {
            Some(Cut::OnceAt(at)) if from < at && at < to && !self.was_cut.swap(true, Ordering::Relaxed) => at,
            Some(Cut::EachAfter(bytes)) => to.min(from + bytes),
            _ => to,
        }
    }
}

/// Counts a body as long as it lives.
struct Open<'a>(&'a AtomicU64);

impl<'a> Open<'a> {
    fn new(open: &'a AtomicU64) -> Self {
        open.fetch_add(1, Ordering::Relaxed);
        Self(open)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Holds a connection to its rate, by the clock and not by the length of sleeps.
struct Pace {
    bytes_per_second: u64,
    next: Instant,
}

impl Pace {
    fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second, next: Instant::now() }
    }

    /// Returns when these bytes may be sent.
    async fn wait(&mut self, bytes: usize) {
        let now = Instant::now();
        self.next = self.next.max(now.checked_sub(MAX_LATENESS).unwrap_or(now));
        if self.next > now {
            tokio::time::sleep_until(self.next).await;
        }
        self.next += Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
    }
}

async fn read_head(stream: &mut TcpStream, read_ahead: &mut Vec<u8>) -> io::Result<Option<String>> {
    loop {
        if let Some(end) = read_ahead.windows(4).position(|four| four == b"\r\n\r\n") {
            let rest = read_ahead.split_off(end + 4);
            let head = std::mem::replace(read_ahead, rest);
            return String::from_utf8(head).map(Some).map_err(io::Error::other);
        }
        if read_ahead.len() > MAX_HEAD_BYTES {
            return Err(io::Error::other("head too large"));
        }
        if stream.read_buf(read_ahead).await? == 0 {
            return Ok(None);
        }
    }
}

/// A header field of a head.
pub(crate) fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let fields = head.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
    fields.into_iter().find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

/// `bytes=a-b`, `bytes=a-` or `bytes=-n` as a half-open interval; `None` when there is nothing in it.
fn closed(range: &str, size: u64) -> Option<(u64, u64)> {
    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    let (from, to) = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) => (first, size.min(last.saturating_add(1))),
        (Ok(first), Err(_)) => (first, size),
        (Err(_), Ok(last)) => (size.saturating_sub(last), size),
        (Err(_), Err(_)) => return None,
    };
    (from < to).then_some((from, to))
}
