//! The admin port: health, readiness, metrics and the admin API, on a thread and runtime of its own, so that it answers
//! while the data path is saturated.
//!
//! - `GET /healthz`: 200 `ok` while the process runs.
//! - `GET /readyz`: 200 `ready`, or 503 with the reason. 200 `ready, degraded: …` while the disk takes no new content: what
//!   is stored is served and the rest passed through, so that clients are still better off here than elsewhere.
//! - `GET /metrics`: Prometheus text.
//! - `/api/v1/…`: see [`api`].
//! - `GET /`: the page, for people, over that API.
//!
//! Promises that `GET` changes nothing, and that nobody who may not changes anything: see `api/guard.rs`. What takes
//! long runs on the data path's runtime. Must never know the registry API or its routes.

mod answer;
pub mod api;
mod images;
mod page;
mod readiness;
#[cfg(test)]
mod tests;
mod traffic;

pub use self::readiness::Readiness;

use self::answer::Answers;
use self::api::Api;
use self::api::Guard;
use crate::pull::Puller;
use crate::store::Store;
use crate::telemetry::LogLevel;
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
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
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
#[derive(Clone, Debug)]
pub struct Options {
    /// Where to listen; the port may be 0.
    pub listen: SocketAddr,
    /// What the API asks for; without one it answers on loopback only. Default none.
    pub token: Option<String>,
}

impl Default for Options {
    /// `127.0.0.1:5001`.
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 5001)), token: None }
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

/// Asks for the configuration to be read again.
#[derive(Debug)]
pub struct ReloadRequest {
    /// Takes what came of it, or why nothing has changed.
    pub answer: oneshot::Sender<Result<Reloaded, String>>,
}

/// The configuration was read again and is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reloaded {
    /// Keys and sections that differ and are read at start only.
    pub needs_restart: Vec<String>,
}

/// Makes the text of `/metrics`.
pub type MetricsText = Arc<dyn Fn() -> String + Send + Sync>;

/// A bound admin port that does not answer yet.
#[derive(Debug)]
pub struct Admin {
    listener: std::net::TcpListener,
    address: SocketAddr,
    token: Option<String>,
}

/// What the admin port tells of, and acts on.
#[derive(Clone)]
pub struct Control {
    /// Whether requests are welcome.
    pub readiness: Readiness,
    /// Makes the text of `/metrics`.
    pub metrics_text: MetricsText,
    /// What is kept.
    pub store: Store,
    /// What goes on.
    pub puller: Puller,
    /// What is logged.
    pub log_level: LogLevel,
    /// Where the data path runs, and what outlasts a request.
    pub runtime: Handle,
    /// Where a reload of the configuration is asked for.
    pub reload: mpsc::Sender<ReloadRequest>,
}

impl Admin {
    /// Binds the address; needs no runtime.
    pub fn bind(options: Options) -> Result<Self, BindError> {
        let refuse = |source| BindError { address: options.listen, source };
        let listener = std::net::TcpListener::bind(options.listen).map_err(refuse)?;
        Self::of(listener, options.token).map_err(refuse)
    }

    /// Takes a socket that listens already, in place of binding.
    pub fn adopt(socket: std::net::TcpListener, options: Options) -> io::Result<Self> {
        Self::of(socket, options.token)
    }

    fn of(listener: std::net::TcpListener, token: Option<String>) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address, token })
    }

    /// The bound address, with the port that the system chose.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `shutdown`, on a new thread, and logs that it listens. The thread ends within `GRACE` of `shutdown`.
    ///
    /// # Errors
    /// When the system gives no thread or no runtime.
    pub fn spawn(self, control: Control, shutdown: CancellationToken) -> io::Result<JoinHandle<()>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = {
            let _inside = runtime.enter();
            TcpListener::from_std(self.listener)?
        };
        let (readiness, metrics_text) = (control.readiness.clone(), control.metrics_text.clone());
        let guard = Guard::new(self.token, self.address.ip().is_loopback());
        let answers = Arc::new(Answers { readiness, metrics_text, api: Api::new(control, guard) });
        std::thread::Builder::new().name("forebay-admin".to_owned()).spawn(move || {
            tracing::info!(listener = "admin", address = %self.address, "listening");
            runtime.spawn(sample(answers.clone()));
            runtime.block_on(accept(listener, answers, shutdown));
        })
    }
}

/// Notes the traffic as long as the runtime lives.
async fn sample(answers: Arc<Answers>) {
    loop {
        tokio::time::sleep(traffic::SAMPLE_EVERY).await;
        answers.api.sample();
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
        let answers = answers.clone();
        async move { Ok::<_, std::convert::Infallible>(answers.answer(request).await) }
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
