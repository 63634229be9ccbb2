//! The service manager that started the process, where there is one: systemd, or who speaks its protocol.
//!
//! It may hand over sockets that listen already, so that a low port needs no rights of ours and a restart refuses nobody;
//! and it is told when the proxy is ready, reloads and stops. Without one nothing of this happens.
//!
//! Must never know what is done with the sockets.

use std::io;
use std::net::TcpListener;

use listenfd::ListenFd;
use sd_notify::NotifyState;

/// Of sockets for the registry port.
const REGISTRY: &str = "registry";
/// Of the one for the admin port.
const ADMIN: &str = "admin";

/// Sockets that were handed over, each under the name that its unit gives it.
#[derive(Debug, Default)]
pub struct Sockets {
    /// In place of the configured addresses of the registry port, unless there are none.
    pub registry: Vec<TcpListener>,
    /// In place of the configured address of the admin port.
    pub admin: Option<TcpListener>,
}

/// What was handed over is of no use.
#[derive(Debug, thiserror::Error)]
pub enum SocketsError {
    /// The protocol is not kept.
    #[error("the service manager's word on its sockets makes no sense: {0}")]
    Protocol(io::Error),
    /// No TCP socket that listens.
    #[error("the socket {name:?} of the service manager is none for TCP: {source}")]
    Kind {
        /// Its name.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// Nobody knows what it is for.
    #[error(
        "the service manager hands over a socket named {0:?}: write FileDescriptorName=registry or admin, admin once"
    )]
    Name(String),
}

impl Sockets {
    /// Takes what was handed over; the second time, nothing. To be called before there is another thread: it changes the
    /// environment, so that no child takes the sockets for its own.
    pub fn take() -> Result<Self, SocketsError> {
        let names = sd_notify::listen_fds_with_names().map_err(SocketsError::Protocol)?;
        let names: Vec<String> = names.map(|(_, name)| name).collect();
        let mut sockets = Self::default();
        if names.is_empty() {
            return Ok(sockets);
        }
        let mut handed_over = ListenFd::from_env();
        for (index, name) in names.into_iter().enumerate() {
            let taken = handed_over.take_tcp_listener(index);
            let socket = taken.map_err(|source| SocketsError::Kind { name: name.clone(), source })?;
            match (name.as_str(), socket) {
                (REGISTRY, Some(socket)) => sockets.registry.push(socket),
                (ADMIN, Some(socket)) if sockets.admin.is_none() => sockets.admin = Some(socket),
                _ => return Err(SocketsError::Name(name)),
            }
        }
        Ok(sockets)
    }
}

/// Tells that requests are welcome.
pub fn tell_ready() {
    tell(&[NotifyState::Ready]);
}

/// Tells that the configuration is being read again; [`tell_ready`] has to follow.
pub fn tell_reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(_) => tell(&[NotifyState::Reloading]),
    }
}

/// Tells that answers in flight are being finished.
pub fn tell_stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager cannot be told how the proxy stands");
    }
}
