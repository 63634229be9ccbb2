//! The admin port: health, readiness and metrics, on a thread and runtime of its own, so that it answers while the data
//! path is saturated.
//!
//! - `GET /healthz`: 200 `ok` while the process runs.
//! - `GET /readyz`: 200 `ready`, or 503 with the reason. 200 `ready, degraded: …` while the disk takes no new content: what
//!   is stored is served and the rest passed through, so that clients are still better off here than elsewhere.
//! - `GET /metrics`: Prometheus text.
//!
//! Promises to change nothing. Must never know the registry API or its routes.

mod answer;
mod readiness;
#[cfg(test)]
mod tests;

pub use self::readiness::Readiness;

use self::answer::Answers;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Connections at once; further ones wait in the backlog.
const MAX_CONNECTIONS: usize = 64;
/// Longest wait for a request head, also between two requests.
const HEADER_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest life of a connection, so that a client that never reads gives its place back.
const CONNECTION_LIFE: Duration = Duration::from_secs(120);
/// Longest wait for answers in flight when a connection's life or the process ends.
const GRACE: Duration = Duration::from_secs(2);
/// Pause after a failed accept: out of descriptors, mostly, which does not get better at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How the admin port is set up.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Where to listen; the port may be 0.
    pub listen: SocketAddr,
}

impl Default for Options {
    /// `127.0.0.1:5001`.
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 5001)) }
    }
}

/// The admin address cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} (admin)")]
pub struct BindError {
    /// The address asked for.
    pub address: SocketAddr,
    /// What the system says.
    #[source]
    pub source: io::Error,
}

/// Makes the text of `/metrics`.
pub type MetricsText = Arc<dyn Fn() -> String + Send + Sync>;

/// A bound admin port that does not answer yet.
#[derive(Debug)]
pub struct Admin {
    listener: std::net::TcpListener,
    address: SocketAddr,
}

impl Admin {
    /// Binds the address; needs no runtime.
    pub fn bind(options: Options) -> Result<Self, BindError> {
        let refuse = |source| BindError { address: options.listen, source };
        let listener = std::net::TcpListener::bind(options.listen).map_err(refuse)?;
        listener.set_nonblocking(true).map_err(refuse)?;
        let address = listener.local_addr().map_err(refuse)?;
        Ok(Self { listener, address })
    }

    /// The bound address, with the port that the system chose.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `shutdown`, on a new thread, and logs that it listens. The thread ends within `GRACE` of `shutdown`.
    ///
    /// # Errors
    /// When the system gives no thread or no runtime.
    pub fn spawn(
        self,
        readiness: Readiness,
        metrics_text: MetricsText,
        shutdown: CancellationToken,
    ) -> io::Result<JoinHandle<()>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = {
            let _inside = runtime.enter();
            TcpListener::from_std(self.listener)?
        };
        let answers = Arc::new(Answers { readiness, metrics_text });
        std::thread::Builder::new().name("forebay-admin".to_owned()).spawn(move || {
            tracing::info!(listener = "admin", address = %self.address, "listening");
            runtime.block_on(accept(listener, answers, shutdown));
        })
    }
}

async fn accept(listener: TcpListener, answers: Arc<Answers>, shutdown: CancellationToken) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let next = async || {
        // The place comes first: a connection that cannot be served is left in the backlog.
        let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
        (place, listener.accept().await)
    };
    loop {
        let (place, accepted) = tokio::select! {
            () = shutdown.cancelled() => break,
            next = next() => next,
        };
        match accepted {
            Ok((stream, _)) => {
                tokio::spawn(serve(stream, place, answers.clone(), shutdown.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection on the admin port");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    let all = u32::try_from(MAX_CONNECTIONS).unwrap_or(u32::MAX);
    // Late ones are dropped with the runtime.
    let _ = timeout(GRACE, places.acquire_many(all)).await;
}

async fn serve(stream: TcpStream, place: OwnedSemaphorePermit, answers: Arc<Answers>, shutdown: CancellationToken) {
    let service = service_fn(move |request| {
        let answer = answers.answer(&request);
        async move { Ok::<_, std::convert::Infallible>(answer) }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service)
    );
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        () = shutdown.cancelled() => None,
        () = tokio::time::sleep(CONNECTION_LIFE) => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            timeout(GRACE, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "an admin connection ended");
    }
    drop(place);
}
