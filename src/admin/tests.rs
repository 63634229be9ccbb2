//! The admin port as a client sees it.

use super::*;
use crate::metrics::Metrics;
use crate::upstream::Upstream;
use crate::{pull, store, upstream};
use std::io::{Read, Write};
use std::net::TcpStream as Client;
use std::time::Instant;

/// Of a proxy that knows nothing and holds nothing. Its folder outlives nobody: it is removed while it is open.
fn control(readiness: Readiness) -> Control {
    let data = tempfile::tempdir().unwrap();
    let (metrics, amount) = (Metrics::disabled(), store::Amount::Bytes(1 << 20));
    let options = store::Options {
        path: data.path().to_owned(),
        max_size: amount,
        min_free: store::Amount::Bytes(0),
        memory_cache_bytes: 1 << 20,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let store = runtime.block_on(async { Store::open(&options, metrics.clone()).unwrap() });
    let upstream = Upstream::new(upstream::Options::default(), metrics.clone()).unwrap();
    let puller = runtime.block_on(async { Puller::new(pull::Options::default(), store.clone(), upstream, metrics) });
    let metrics_text: MetricsText = Arc::new(|| "forebay_x 1\n".to_owned());
    let runtime = runtime.handle().clone();
    Control {
        readiness,
        metrics_text,
        store,
        puller,
        log_level: LogLevel::fixed("info"),
        runtime,
        reload: mpsc::channel(1).0,
    }
}

fn start() -> (SocketAddr, Readiness, CancellationToken, JoinHandle<()>) {
    let admin = Admin::bind(Options { listen: "127.0.0.1:0".parse().unwrap(), token: None }).unwrap();
    let (address, readiness, shutdown) = (admin.address(), Readiness::new(), CancellationToken::new());
    let thread = admin.spawn(control(readiness.clone()), shutdown.clone()).unwrap();
    (address, readiness, shutdown, thread)
}

fn ask(address: SocketAddr, method: &str, path: &str) -> (String, String) {
    let mut client = Client::connect(address).unwrap();
    write!(client, "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_ascii_lowercase(), body.to_owned())
}

#[test]
fn answers() {
    let (address, readiness, shutdown, thread) = start();
    let rows = [
        ("GET", "/healthz", "200", "ok"),
        ("GET", "/healthz?probe=1", "200", "ok"),
        ("HEAD", "/healthz", "200", ""),
        ("GET", "/readyz", "503", "starting"),
        ("GET", "/metrics", "200", "forebay_x 1\n"),
        ("POST", "/metrics", "405", "only GET and HEAD are allowed here\n"),
        ("GET", "/nowhere", "404", "not found; here are /, /healthz, /readyz, /metrics and /api/v1/\n"),
    ];
    for (method, path, status, expected) in rows {
        let (head, body) = ask(address, method, path);
        assert!(head.starts_with(&format!("http/1.1 {status} ")), "{method} {path}: {head}");
        assert_eq!(body, expected, "{method} {path}");
    }
    assert!(ask(address, "GET", "/metrics").0.contains("content-type: text/plain; version=0.0.4"));
    assert!(ask(address, "POST", "/healthz").0.contains("allow: get, head"));
    assert!(ask(address, "HEAD", "/healthz").0.contains("content-length: 2"));

    readiness.set_ready();
    assert_eq!(ask(address, "GET", "/readyz").1, "ready");
    readiness.set_degraded(Some("the disk is full".to_owned()));
    let (head, body) = ask(address, "GET", "/readyz");
    assert!(head.starts_with("http/1.1 200 ") && body == "ready, degraded: the disk is full", "{head} {body}");
    readiness.set_degraded(None);
    readiness.set_not_ready("stopping");
    let (head, body) = ask(address, "GET", "/readyz");
    assert!(head.starts_with("http/1.1 503 ") && body == "stopping", "{head} {body}");

    shutdown.cancel();
    thread.join().unwrap();
    assert!(Client::connect(address).is_err());
}

#[test]
fn an_idle_client_does_not_keep_the_thread() {
    let (address, _, shutdown, thread) = start();
    let _idle = Client::connect(address).unwrap();
    assert_eq!(ask(address, "GET", "/healthz").1, "ok");
    let begun = Instant::now();
    shutdown.cancel();
    thread.join().unwrap();
    // Nothing else would end it before that.
    assert!(begun.elapsed() < HEADER_TIMEOUT, "{:?}", begun.elapsed());
}

#[test]
fn a_taken_port_is_a_clear_error() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap();
    let error = anyhow::Error::new(Admin::bind(Options { listen, token: None }).unwrap_err());
    assert_eq!(
        format!("{error:#}"),
        format!("cannot listen on {listen} (admin): Address already in use (os error 98)")
    );
}
