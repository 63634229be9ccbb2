//! Several endpoints of one registry: what one breaks off another goes on with, and one that lies is asked last.

use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpSocket;
use tokio::net::TcpStream;

use crate::support::PATIENCE;
use crate::support::REGISTRY;
use crate::support::REPOSITORY;
use crate::support::SILENCE;
use crate::support::blob_path;
use crate::support::content::MIB;
use crate::support::content::sample;
use crate::support::proxy::Proxy;
use crate::support::proxy::Registry;
use crate::support::proxy::Setup;
use crate::support::registry::ScriptedRegistry;
use crate::support::script::Gate;
use crate::support::script::on;
use crate::support::within;

const SIZE: usize = 8 * MIB;

struct World {
    first: ScriptedRegistry,
    second: ScriptedRegistry,
    bytes: Bytes,
    path: String,
}

impl World {
    async fn start(seed: u64) -> Self {
        let first = ScriptedRegistry::start().await;
        let second = ScriptedRegistry::start().await;
        let bytes = sample(seed, SIZE);
        let path = blob_path(&first.blob(REPOSITORY, bytes.clone()));
        second.blob(REPOSITORY, bytes.clone());
        Self { first, second, bytes, path }
    }

    async fn proxy(&self) -> Proxy {
        self.setup().start().await
    }

    fn setup(&self) -> Setup {
        let endpoints = vec![self.first.url(), self.second.url()];
        Setup::new(&[Registry::new(REGISTRY, &self.first.url()).set("endpoints", endpoints)])
    }
}

#[tokio::test]
async fn the_second_endpoint_goes_on_where_the_first_died() {
    let world = World::start(1).await;
    let gate = Gate::new();
    world.first.rule(on("GET", &world.path).hold_at(SIZE / 2, &gate));
    let proxy = world.proxy().await;
    let mut incoming = proxy.open(&world.path).await;
    gate.reached().await;
    assert!(within(PATIENCE, incoming.read(SIZE / 4)).await);
    world.first.stop().await;
    incoming.reply().await.assert_body(200, &world.bytes);
    let rest = world.second.body_bytes_sent(&world.path);
    assert!(rest < SIZE / 2 + MIB, "{rest} bytes from the second endpoint");
    proxy.get_until_hit(&world.path).await.assert_body(200, &world.bytes);
}

#[tokio::test]
async fn the_second_endpoint_goes_on_where_the_first_refuses() {
    for status in [500, 503, 429] {
        let world = World::start(2).await;
        world.first.rule(on("GET", &world.path).first(1).cut_at(SIZE / 2));
        world.first.rule(on("GET", &world.path).status(status));
        let proxy = world.proxy().await;
        proxy.get(&world.path).await.assert_body(200, &world.bytes);
        let rest = world.second.body_bytes_sent(&world.path);
        assert!(rest < SIZE / 2 + MIB, "{status}: {rest} bytes from the second endpoint");
    }
}

#[tokio::test]
async fn the_second_endpoint_goes_on_where_the_first_fell_silent() {
    let world = World::start(3).await;
    world.first.rule(on("GET", &world.path).stall_at(SIZE / 2));
    let proxy = world.setup().each("read_timeout", SILENCE).start().await;
    proxy.get(&world.path).await.assert_body(200, &world.bytes);
    assert!(world.second.body_bytes_sent(&world.path) < SIZE / 2 + MIB);
}

#[tokio::test]
async fn an_endpoint_that_lies_is_asked_last() {
    let world = World::start(4).await;
    world.first.rule(on("GET", &world.path).corrupt(SIZE / 2));
    let proxy = world.proxy().await;
    let reply = proxy.get(&world.path).await;
    assert!(!reply.is_complete(), "a complete body of wrong bytes");
    let reply = proxy.pull(&world.path, &world.bytes).await;
    reply.assert_body(200, &world.bytes);
    assert_eq!(world.first.count("GET", &world.path), 1, "asked again right after its lie");
    assert_eq!(world.second.count("GET", &world.path), 1);
    proxy.get_until_hit(&world.path).await.assert_body(200, &world.bytes);
}

#[tokio::test]
async fn halves_of_different_content_make_nothing() {
    let world = World::start(5).await;
    world.first.rule(on("GET", &world.path).first(1).corrupt(1000).cut_at(SIZE / 2));
    let proxy = world.proxy().await;
    let reply = proxy.get(&world.path).await;
    assert!(!reply.is_complete(), "a lie and a truth made a complete answer");
    proxy.pull(&world.path, &world.bytes).await;
    proxy.get_until_hit(&world.path).await.assert_body(200, &world.bytes);
}

#[tokio::test]
async fn a_second_endpoint_without_it_does_no_harm() {
    let world = World::start(6).await;
    world.second.rule(on("*", &world.path).status(404));
    world.first.rule(on("GET", &world.path).first(1).cut_at(SIZE / 2));
    let proxy = world.proxy().await;
    let reply = proxy.get(&world.path).await;
    assert!(!reply.is_poison(&world.bytes));
    world.second.clear_rules();
    proxy.pull(&world.path, &world.bytes).await;
}

/// An address where connections are neither taken nor refused: nobody accepts, and the queue is full.
async fn black_hole() -> (tokio::net::TcpListener, Vec<TcpStream>) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    let mut unanswered = 0;
    // The system answers for a queue with room, at once. Once is no proof: this machine may have stood still.
    while unanswered < 3 {
        match tokio::time::timeout(Duration::from_millis(200), TcpStream::connect(address)).await {
            Ok(stream) => {
                unanswered = 0;
                waiting.push(stream.unwrap());
            }
            Err(_) => unanswered += 1,
        }
        assert!(waiting.len() < 100, "the queue never fills");
    }
    (listener, waiting)
}

#[tokio::test]
async fn an_endpoint_that_swallows_connections_is_passed_over() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(7, MIB);
    let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
    let (hole, _waiting) = black_hole().await;
    let endpoints = vec![format!("http://{}", hole.local_addr().unwrap()), upstream.url()];
    let registry = Registry::new(REGISTRY, &upstream.url()).set("endpoints", endpoints);
    let proxy = Setup::new(&[registry]).each("connect_timeout", SILENCE).start().await;
    proxy.get(&path).await.assert_body(200, &bytes);
    let fruitless = async || proxy.metric("forebay_upstream_requests_total", &["status=\"timeout\""]).await;
    let first = fruitless().await;
    assert!(first.is_some());
    // Once known, it costs no one else the time-out.
    let other = sample(8, MIB);
    let path = blob_path(&upstream.blob(REPOSITORY, other.clone()));
    proxy.get(&path).await.assert_body(200, &other);
    assert_eq!(fruitless().await, first);
}

#[tokio::test]
async fn a_registry_that_swallows_connections_is_a_time_out() {
    let (hole, _waiting) = black_hole().await;
    let registry = Registry::new(REGISTRY, &format!("http://{}", hole.local_addr().unwrap()));
    let proxy = Setup::new(&[registry]).each("connect_timeout", "1s").start().await;
    let reply = proxy.get("/v2/library/t/manifests/latest").await;
    assert!(matches!(reply.status, 502 | 504), "{}", reply.status);
    assert_eq!(reply.error_code(), "UNAVAILABLE");
}
