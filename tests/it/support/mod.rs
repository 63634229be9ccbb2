//! The harness: a registry that follows a script ([`registry`]), the proxy as a user runs it ([`proxy`]) and a client
//! that counts bytes ([`client`]). It promises that every wait is bounded and that everything listens on port 0 of the
//! loopback; it must never know a type of the program under test.

// A harness offers the whole vocabulary; one test uses a part of it.
#![allow(dead_code)]

pub(crate) mod client;
pub(crate) mod content;
pub(crate) mod http1;
pub(crate) mod proxy;
pub(crate) mod registry;
pub(crate) mod registry_api;
pub(crate) mod registry_auth;
pub(crate) mod registry_serve;
pub(crate) mod script;
mod selfcheck;

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpSocket;

/// The registry name most tests use; it is the default registry of [`proxy::Proxy::of`].
pub(crate) const REGISTRY: &str = "reg.test";
/// The repository most tests use.
pub(crate) const REPOSITORY: &str = "library/t";
/// Seconds any single wait may take before the test fails. Only a failing test ever waits that long, so it is far more
/// than the slowest machine needs.
pub(crate) const PATIENCE: u64 = 180;
/// A time limit of the proxy's own that no test reaches: where the passing of such a limit is not the subject, a machine
/// that stands still for a while must not decide the outcome.
pub(crate) const NEVER: &str = "99h";
/// How long an upstream is silent in the tests of silence. Also innocent answers have no more time than this, so it is
/// longer than a busy machine stands still.
pub(crate) const SILENCE: &str = "5s";
/// Time between two looks at something that offers no event to wait for.
pub(crate) const GLANCE: Duration = Duration::from_millis(15);

/// Waits for `future` at most `seconds`, then fails the test.
#[track_caller]
pub(crate) fn within<F: Future>(seconds: u64, future: F) -> impl Future<Output = F::Output> {
    let caller = std::panic::Location::caller();
    // Test futures hold whole exchanges; on the heap they cannot blow the stack of a debug build.
    let future = Box::pin(future);
    async move {
        match tokio::time::timeout(Duration::from_secs(seconds), future).await {
            Ok(output) => output,
            Err(_) => panic!("nothing happened within {seconds} s, waited for at {caller}"),
        }
    }
}

/// Takes an address without listening there: until the socket is dropped nobody else gets it by chance, who connects is
/// refused, and who is told the address can listen there.
pub(crate) fn reserve(address: SocketAddr) -> (TcpSocket, SocketAddr) {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(address).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

/// Path of a blob in the default registry.
pub(crate) fn blob_path(digest: &str) -> String {
    format!("/v2/{REPOSITORY}/blobs/{digest}")
}

/// Path of a manifest in the default registry.
pub(crate) fn manifest_path(reference: &str) -> String {
    format!("/v2/{REPOSITORY}/manifests/{reference}")
}
