//! The first pull of a blob: one download, shared, streamed while it lasts, independent of any client.

use futures_util::future::join_all;

use crate::support::PATIENCE;
use crate::support::REPOSITORY;
use crate::support::blob_path;
use crate::support::client::Connection;
use crate::support::content::KIB;
use crate::support::content::MIB;
use crate::support::content::sample;
use crate::support::proxy::Proxy;
use crate::support::registry::ScriptedRegistry;
use crate::support::script::Gate;
use crate::support::script::on;
use crate::support::within;

const CLIENTS: usize = 20;

#[tokio::test]
async fn many_clients_share_one_download() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(1, 2 * MIB);
    let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
    let gate = Gate::new();
    upstream.rule(on("GET", &path).hold_at(64 * KIB, &gate));
    let proxy = Proxy::of(&upstream).start().await;
    // All of them have their headers while the upstream still holds most of the bytes back.
    let open = join_all((0..CLIENTS).map(|_| proxy.open(&path))).await;
    gate.release();
    let replies = join_all(open.into_iter().map(|incoming| incoming.reply())).await;
    for reply in &replies {
        reply.assert_body(200, &bytes);
    }
    let leaders = replies.iter().filter(|reply| reply.outcome() == "fwd=miss; stored").count();
    let followers = replies.iter().filter(|reply| reply.outcome() == "fwd=miss; collapsed").count();
    assert_eq!((leaders, followers), (1, CLIENTS - 1));
    assert_eq!(upstream.count("GET", &path), 1);
    assert_eq!(upstream.body_bytes_sent(&path), bytes.len());
}

#[tokio::test]
async fn first_bytes_leave_before_the_last_arrive() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(2, 2 * MIB);
    let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
    let gate = Gate::new();
    upstream.rule(on("GET", &path).hold_at(MIB, &gate));
    let proxy = Proxy::of(&upstream).start().await;
    let mut incoming = proxy.open(&path).await;
    assert_eq!(incoming.headers.get("Content-Length"), Some("2097152"));
    assert!(within(PATIENCE, incoming.read(512 * KIB)).await, "the body waits for its end");
    gate.release();
    incoming.reply().await.assert_body(200, &bytes);
}

#[tokio::test]
async fn one_who_comes_late_gets_it_from_the_start() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(3, MIB);
    let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
    let gate = Gate::new();
    upstream.rule(on("GET", &path).hold_at(768 * KIB, &gate));
    let proxy = Proxy::of(&upstream).start().await;
    let early = proxy.open(&path).await;
    gate.reached().await;
    let mut late = proxy.open(&path).await;
    assert!(within(PATIENCE, late.read(256 * KIB)).await, "what is here already is not held back");
    gate.release();
    late.reply().await.assert_body(200, &bytes);
    early.reply().await.assert_body(200, &bytes);
    assert_eq!(upstream.count("GET", &path), 1);
}

#[tokio::test]
async fn a_download_outlives_its_client() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(4, MIB);
    let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
    let gate = Gate::new();
    upstream.rule(on("GET", &path).hold_at(300 * KIB, &gate));
    let proxy = Proxy::of(&upstream).start().await;
    let mut incoming = proxy.open(&path).await;
    assert!(within(PATIENCE, incoming.read(1000)).await);
    drop(incoming);
    gate.release();
    upstream.wait_answered("GET", &path, 1).await;
    assert_eq!(upstream.body_bytes_sent(&path), bytes.len());
    proxy.get_until_hit(&path).await.assert_body(200, &bytes);
    assert_eq!(upstream.count("GET", &path), 1);
}

#[tokio::test]
async fn a_slow_client_slows_nobody() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(5, 16 * MIB);
    let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
    let proxy = Proxy::of(&upstream).start().await;
    let mut slow = Connection::open_narrow(proxy.address).await.unwrap();
    slow.send("GET", &path, &[]).await.unwrap();
    let slow = within(PATIENCE, slow.receive("GET")).await.unwrap();
    // It leads the download and reads nothing of it; all others, and the download, go on.
    join_all((0..3).map(|_| proxy.get(&path))).await.iter().for_each(|reply| reply.assert_body(200, &bytes));
    upstream.wait_answered("GET", &path, 1).await;
    slow.reply().await.assert_body(200, &bytes);
    assert_eq!(upstream.count("GET", &path), 1);
}

#[tokio::test]
async fn different_blobs_do_not_wait_for_each_other() {
    let upstream = ScriptedRegistry::start().await;
    let held = blob_path(&upstream.blob(REPOSITORY, sample(6, MIB)));
    let gate = Gate::new();
    upstream.rule(on("GET", &held).hold_at(0, &gate));
    let bytes = sample(7, MIB);
    let free = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
    let proxy = Proxy::of(&upstream).start().await;
    let waiting = tokio::spawn({
        let (address, held) = (proxy.address, held.clone());
        async move { crate::support::client::request(address, "GET", &held, &[]).await }
    });
    gate.reached().await;
    proxy.get(&free).await.assert_body(200, &bytes);
    gate.release();
    waiting.await.unwrap().assert_body(200, &sample(6, MIB));
}

#[tokio::test]
async fn an_empty_blob_is_a_blob() {
    let upstream = ScriptedRegistry::start().await;
    let digest = upstream.blob(REPOSITORY, "");
    let path = blob_path(&digest);
    let proxy = Proxy::of(&upstream).start().await;
    for _ in 0..2 {
        let reply = proxy.get(&path).await;
        reply.assert_digest(&digest);
        assert_eq!(reply.header("Content-Length"), Some("0"));
        assert_eq!(proxy.head(&path).await.header("Content-Length"), Some("0"));
        let ranged = proxy.range(&path, "bytes=0-").await;
        assert!(matches!(ranged.status, 200 | 416), "{}", ranged.status);
    }
}

#[tokio::test]
async fn clients_of_a_kept_blob_share_nothing_but_the_bytes() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(8, MIB);
    let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
    let proxy = Proxy::of(&upstream).start().await;
    proxy.get_until_hit(&path).await.assert_body(200, &bytes);
    let asked = upstream.total();
    let replies = join_all((0..CLIENTS).map(|_| proxy.get(&path))).await;
    replies.iter().for_each(|reply| reply.assert_body(200, &bytes));
    assert_eq!(upstream.total(), asked);
}

#[tokio::test]
async fn between_the_download_and_the_first_hit_nobody_asks_the_upstream() {
    let upstream = ScriptedRegistry::start().await;
    let proxy = Proxy::of(&upstream).start().await;
    for seed in 0..5 {
        let bytes = sample(100 + seed, MIB);
        let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
        // The moment a client has the last byte, the download may still be on its way into the store.
        proxy.get(&path).await.assert_body(200, &bytes);
        let replies = join_all((0..CLIENTS).map(|_| proxy.get(&path))).await;
        replies.iter().for_each(|reply| reply.assert_body(200, &bytes));
        let asked: Vec<String> = upstream.seen("*", &path).into_iter().map(|seen| seen.method).collect();
        assert_eq!(asked, ["GET"]);
    }
}
