//! Listeners and connections of the registry port: plain HTTP/1.1, or TLS with HTTP/2 and HTTP/1.1.
//!
//! What it is for: binding, accepting, limiting, and letting go of connections; a handler is given each request.
//!
//! A connection is accepted, gets one of a limited number of places (or is told 503), with TLS shakes hands and settles
//! on a protocol, and then serves requests until it is idle for too long, takes nothing for too long, or ends. The pieces
//! of a body go out as `outgoing` says: ranges of files by `sendfile` from the plain socket, or read in pooled buffers
//! and encrypted.
//!
//! What it promises: `accept` survives running out of descriptors; a connection that sends nothing, or takes nothing,
//! is closed; an answer that fails half-way ends with FIN, so that the client can resume (with RST where HTTP/1.0
//! would take the FIN for a clean end); shutting down finishes
//! answers in flight and ends within the grace.
//!
//! What it must never know: registries, content, the store, configuration files. Requests and responses are opaque.

mod connection;
mod outgoing;
mod socket;
#[cfg(test)]
mod tests;
mod tls;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::connection::Connections;
use self::outgoing::BoxError;
use crate::piece::Piece;

pub use self::tls::{Pem, Tls, TlsError};

/// Where to listen, and the limits.
#[derive(Clone, Debug)]
pub struct Options {
    /// Addresses to bind; port 0 takes a free one.
    pub listen: Vec<SocketAddr>,
    /// Most connections at a time, over all addresses; further ones are answered 503 and closed.
    pub max_connections: usize,
    /// Longest wait for the head of a request, also between two requests of a connection.
    pub header_timeout: Duration,
    /// Longest time for answers in flight after the shutdown began.
    pub shutdown_grace: Duration,
    /// The certificates, when all addresses speak TLS.
    pub tls: Option<Tls>,
}

/// An address could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {reason}")]
pub struct BindError {
    /// The address as configured.
    pub address: SocketAddr,
    reason: String,
    /// What the system said.
    pub source: io::Error,
}

impl BindError {
    fn new(address: SocketAddr, source: io::Error) -> Self {
        let reason = match source.kind() {
            io::ErrorKind::AddrInUse => "the address is in use by another program".to_owned(),
            io::ErrorKind::PermissionDenied => {
                "permission denied (ports below 1024 need a privileged user or CAP_NET_BIND_SERVICE)".to_owned()
            }
            io::ErrorKind::AddrNotAvailable => "this machine has no such address".to_owned(),
            _ => source.to_string(),
        };
        Self { address, reason, source }
    }
}

fn prepared(listener: TcpListener) -> io::Result<(TcpListener, SocketAddr)> {
    // What it accepts inherits that.
    rustix::net::sockopt::set_tcp_nodelay(&listener, true)?;
    let bound = listener.local_addr()?;
    Ok((listener, bound))
}

/// Bound sockets that accept connections once they are run.
#[derive(Debug)]
pub struct Listeners {
    listeners: Vec<(TcpListener, SocketAddr)>,
    options: Options,
}

impl Listeners {
    /// Binds every address, or none.
    pub async fn bind(options: &Options) -> Result<Self, BindError> {
        let mut listeners = Vec::with_capacity(options.listen.len());
        for &address in &options.listen {
            let listener = TcpListener::bind(address).await.and_then(prepared);
            listeners.push(listener.map_err(|error| BindError::new(address, error))?);
        }
        Ok(Self { listeners, options: options.clone() })
    }

    /// Takes sockets that listen already, in place of binding.
    pub fn adopt(sockets: Vec<std::net::TcpListener>, options: &Options) -> io::Result<Self> {
        let adopt = |socket: std::net::TcpListener| {
            socket.set_nonblocking(true)?;
            prepared(TcpListener::from_std(socket)?)
        };
        let listeners = sockets.into_iter().map(adopt).collect::<io::Result<_>>()?;
        Ok(Self { listeners, options: options.clone() })
    }

    /// The bound addresses, with the real ports.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().map(|&(_, address)| address).collect()
    }

    /// Serves until `shutdown`, then stops listening and returns when all answers are out or the grace is over.
    pub async fn run<H, F, B>(self, handler: H, shutdown: CancellationToken)
    where
        H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body + Unpin + Send + 'static,
        B::Data: Into<Piece>,
        B::Error: Into<BoxError>,
    {
        let connections = Connections::new(&self.options, shutdown.clone());
        let mut accepting = JoinSet::new();
        for (listener, _) in self.listeners {
            accepting.spawn(connections.clone().accept_from(listener, handler.clone()));
        }
        shutdown.cancelled().await;
        // The listeners close with their tasks, so no client waits in a queue that nobody empties.
        while accepting.join_next().await.is_some() {}
        let open = connections.open();
        info!(open, grace_seconds = self.options.shutdown_grace.as_secs(), "draining connections");
        if timeout(self.options.shutdown_grace, connections.drained()).await.is_err() {
            warn!(open = connections.open(), "the shutdown grace is over: cutting connections");
            connections.cut().await;
        }
    }
}
