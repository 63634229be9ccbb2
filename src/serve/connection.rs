//! One connection from accept to close.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use http::header::CONNECTION;
use http::{HeaderValue, Request, Response, Version};
use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::Options;
use super::outgoing::{BoxError, OutgoingBody, Way};
use super::socket::{Socket, Speech};
use super::tls::{Tls, is_h2};
use crate::piece::Piece;

/// Rest after a failed `accept`: descriptors come back when connections end, not by asking again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Longest request head, in bytes.
const MAX_HEADER_BYTES: u32 = 32 * 1024;
/// Most headers of a request.
const MAX_HEADERS: usize = 100;
/// What is read of files ahead of what an encrypted connection takes: one piece that is being sent and one behind it.
const READ_AHEAD_BYTES: usize = 64 * 1024;
/// Requests at once of one HTTP/2 connection; further ones wait at the client.
const MAX_STREAMS: u32 = 128;
/// How often the other end of an HTTP/2 connection is asked whether it is still there, and how long it may take to say so.
const PING: Duration = Duration::from_secs(20);
/// How long a closed connection is kept for what the client is still sending.
pub(super) const LINGER: Duration = Duration::from_secs(2);
/// How much of it is read.
const LINGER_BYTES: u64 = 16 * 1024 * 1024;
/// Most connections that are being told that there are too many; those beyond are closed without a word.
const MAX_REFUSALS: usize = 64;

const TOO_MANY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\n\
    Docker-Distribution-Api-Version: registry/2.0\r\n\
    Content-Type: application/json\r\n\
    Retry-After: 5\r\n\
    Connection: close\r\n\
    Content-Length: 94\r\n\
    \r\n\
    {\"errors\":[{\"code\":\"UNAVAILABLE\",\"message\":\"the proxy has too many connections; try again\"}]}\n";

/// What all connections share.
pub(super) struct Connections {
    http: http1::Builder,
    https: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
    header_timeout: Duration,
    tls: Option<Tls>,
    permits: Arc<Semaphore>,
    refusals: Arc<Semaphore>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    cut: CancellationToken,
}

impl Connections {
    pub(super) fn new(options: &Options, shutdown: CancellationToken) -> Arc<Self> {
        let mut http = http1::Builder::new();
        // A client may close its sending side after the request; that is no reason to drop the answer.
        http.timer(TokioTimer::new())
            .header_read_timeout(options.header_timeout)
            .half_close(true)
            .max_header_size(MAX_HEADER_BYTES as usize)
            .max_headers(MAX_HEADERS);
        let mut https = http.clone();
        https.max_buf_size(READ_AHEAD_BYTES);
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(MAX_HEADER_BYTES)
            .max_send_buf_size(READ_AHEAD_BYTES)
            .keep_alive_interval(PING)
            .keep_alive_timeout(PING);
        Arc::new(Self {
            http,
            https,
            http2,
            header_timeout: options.header_timeout,
            tls: options.tls.clone(),
            permits: Arc::new(Semaphore::new(options.max_connections.min(Semaphore::MAX_PERMITS))),
            refusals: Arc::new(Semaphore::new(MAX_REFUSALS)),
            tasks: TaskTracker::new(),
            shutdown,
            cut: CancellationToken::new(),
        })
    }

    /// How many connections are open.
    pub(super) fn open(&self) -> usize {
        self.tasks.len()
    }

    /// Returns when no connection is left. None may be accepted any more.
    pub(super) async fn drained(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Drops every connection.
    pub(super) async fn cut(&self) {
        self.cut.cancel();
        self.drained().await;
    }

    /// Accepts until the shutdown.
    pub(super) async fn accept_from<H, F, B>(self: Arc<Self>, listener: TcpListener, handler: H)
    where
        H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body + Unpin + Send + 'static,
        B::Data: Into<Piece>,
        B::Error: Into<BoxError>,
    {
        while let Some(accepted) = self.shutdown.run_until_cancelled(listener.accept()).await {
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) if is_of_one_client(&error) => continue,
                Err(error) => {
                    warn!(%error, "cannot accept connections; check the limit of open files");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
                self.refuse(stream, peer);
                continue;
            };
            let (connections, handler) = (self.clone(), handler.clone());
            self.tasks.spawn(async move {
                connections.cut.run_until_cancelled(connections.serve(stream, peer, handler)).await;
                drop(permit);
            });
        }
    }

    async fn serve<H, F, B>(&self, stream: TcpStream, peer: SocketAddr, handler: H)
    where
        H: Fn(Request<Incoming>) -> F,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body + Unpin + Send + 'static,
        B::Data: Into<Piece>,
        B::Error: Into<BoxError>,
    {
        let speech = if self.tls.is_some() { Speech::Tls } else { Speech::Plain };
        let (socket, returned) = Socket::new(stream, peer, speech);
        let ends = Ends { by_closing: socket.ends_by_closing(), client_is_done: AtomicBool::new(false) };
        let served = match &self.tls {
            None => {
                let way = Way::Send(socket.outbox());
                self.serve_h1(&self.http, socket, way, &ends, handler).await
            }
            // On the heap, or each plain connection would carry the room for what encrypted ones need.
            Some(tls) => Box::pin(self.serve_tls(tls, socket, &ends, handler)).await,
        };
        if let Err(error) = &served {
            let cause = error.source().map(ToString::to_string);
            debug!(%peer, %error, cause, "connection ended early");
        }
        if let Ok(closing) = returned.await
            && !closing.is_reset
            && (served.is_err() || !closing.ended_by_client)
        {
            let client_is_done = self.shutdown.is_cancelled() || ends.client_is_done.load(Ordering::Relaxed);
            Box::pin(close(closing.stream, served.is_err() || !client_is_done)).await;
        }
    }

    async fn serve_tls<H, F, B>(&self, tls: &Tls, socket: Socket, ends: &Ends, handler: H) -> Result<(), BoxError>
    where
        H: Fn(Request<Incoming>) -> F,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body + Unpin + Send + 'static,
        B::Data: Into<Piece>,
        B::Error: Into<BoxError>,
    {
        let stream = timeout(self.header_timeout, tls.accept(socket)).await??;
        if is_h2(&stream) {
            self.serve_h2(stream, handler).await
        } else {
            self.serve_h1(&self.https, stream, Way::Read, ends, handler).await
        }
    }

    async fn serve_h1<S, H, F, B>(
        &self,
        http: &http1::Builder,
        stream: S,
        way: Way,
        ends: &Ends,
        handler: H,
    ) -> Result<(), BoxError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
        H: Fn(Request<Incoming>) -> F,
        F: Future<Output = Response<B>>,
        B: Body + Unpin + 'static,
        B::Data: Into<Piece>,
        B::Error: Into<BoxError>,
    {
        let service = service_fn(|request| {
            let is_old = request.version() == Version::HTTP_10;
            ends.client_is_done.store(is_last(&request), Ordering::Relaxed);
            let (ends_by_closing, way) = (&ends.by_closing, way.clone());
            let response = handler(request);
            async move {
                let response = response.await;
                if is_old && response.body().size_hint().exact().is_none() {
                    ends_by_closing.store(true, Ordering::Relaxed);
                }
                Ok::<_, Infallible>(response.map(|body| OutgoingBody::new(body, way)))
            }
        });
        let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
        match self.shutdown.run_until_cancelled(connection.as_mut()).await {
            Some(served) => Ok(served?),
            None => {
                connection.as_mut().graceful_shutdown();
                Ok(connection.await?)
            }
        }
    }

    /// The HTTP library lets an HTTP/2 connection be idle for ever; here it ends as one of HTTP/1.1 does.
    async fn serve_h2<S, H, F, B>(&self, stream: S, handler: H) -> Result<(), BoxError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
        H: Fn(Request<Incoming>) -> F,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body + Unpin + Send + 'static,
        B::Data: Into<Piece>,
        B::Error: Into<BoxError>,
    {
        let open = Arc::new(());
        let requests = AtomicUsize::new(0);
        let service = service_fn(|request| {
            requests.fetch_add(1, Ordering::Relaxed);
            let (response, open) = (handler(request), open.clone());
            async move { Ok::<_, Infallible>(response.await.map(|body| OutgoingBody::counted(body, Way::Read, open))) }
        });
        let mut connection = pin!(self.http2.serve_connection(TokioIo::new(stream), service));
        let mut is_ending = false;
        loop {
            let before = requests.load(Ordering::Relaxed);
            let turn = timeout(self.header_timeout, connection.as_mut());
            match self.shutdown.run_until_cancelled(turn).await {
                Some(Ok(served)) => return Ok(served?),
                Some(Err(_)) if Arc::strong_count(&open) > 1 || requests.load(Ordering::Relaxed) != before => {}
                Some(Err(elapsed)) if is_ending => return Err(elapsed.into()),
                Some(Err(_)) => {
                    is_ending = true;
                    connection.as_mut().graceful_shutdown();
                }
                None => {
                    connection.as_mut().graceful_shutdown();
                    return Ok(connection.await?);
                }
            }
        }
    }

    /// Says that there are too many connections, as far as there is room to say it.
    fn refuse(&self, stream: TcpStream, peer: SocketAddr) {
        let Ok(permit) = Arc::clone(&self.refusals).try_acquire_owned() else {
            return;
        };
        warn!(%peer, "too many connections; answering 503");
        let cut = self.cut.clone();
        self.tasks.spawn(async move {
            // A new connection has room for this much, so it is written at once or not at all.
            if matches!(stream.try_write(TOO_MANY), Ok(written) if written == TOO_MANY.len()) {
                cut.run_until_cancelled(Box::pin(close(stream, true))).await;
            }
            drop(permit);
        });
    }
}

/// How a connection ends.
struct Ends {
    /// The end of the answer in flight is the end of the connection.
    by_closing: Arc<AtomicBool>,
    /// The client said that it sends nothing after the request in flight.
    client_is_done: AtomicBool,
}

/// Whether the client said that nothing comes after this request.
fn is_last(request: &Request<Incoming>) -> bool {
    let says_close = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"close");
    request.body().is_end_stream() && request.headers().get(CONNECTION).is_some_and(says_close)
}

/// Ends a connection with FIN. Closing while the client still sends makes the system answer with RST, which can
/// destroy an answer that the client has not read yet; so what it sends is taken for a while, and dropped. A client that
/// said that it is done spares us that, as engines do that connect for each request.
async fn close(mut stream: TcpStream, wait_for_more: bool) {
    if !wait_for_more && rustix::io::ioctl_fionread(&stream).unwrap_or(0) == 0 {
        // The system sends the FIN.
        return;
    }
    if stream.shutdown().await.is_err() {
        return;
    }
    let rest = async {
        let mut rest = stream.take(LINGER_BYTES);
        let mut scratch = [0; 4096];
        while matches!(rest.read(&mut scratch).await, Ok(read) if read > 0) {}
    };
    // Over the limit of time or bytes, the client gets its RST.
    let _ = timeout(LINGER, rest).await;
}

fn is_of_one_client(error: &io::Error) -> bool {
    use io::ErrorKind as K;
    matches!(error.kind(), K::ConnectionAborted | K::ConnectionReset | K::ConnectionRefused | K::Interrupted)
}
