//! What cannot be kept is still one stream for all, verified, and nobody's private bytes go to somebody else.

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

const CLIENTS: usize = 5;

#[tokio::test]
async fn clients_at_once_share_one_stream() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(1, 3 * MIB);
    let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
    let gate = Gate::new();
    upstream.rule(on("GET", &path).hold_at(64 * KIB, &gate));
    let proxy = Proxy::of(&upstream).set("storage", "max_size", "1MiB").start().await;
    let open = join_all((0..CLIENTS).map(|_| proxy.open(&path))).await;
    gate.release();
    for reply in join_all(open.into_iter().map(|incoming| incoming.reply())).await {
        reply.assert_body(200, &bytes);
        assert_eq!(reply.outcome(), "fwd=miss");
    }
    assert_eq!(upstream.count("GET", &path), 1);
    assert_eq!(upstream.body_bytes_sent(&path), bytes.len());
}

#[tokio::test]
async fn one_who_lags_does_not_hold_up_the_others() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(2, 24 * MIB);
    let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
    let gate = Gate::new();
    upstream.rule(on("GET", &path).hold_at(64 * KIB, &gate));
    let proxy = Proxy::of(&upstream).set("storage", "max_size", "1MiB").start().await;
    let mut lagging = Connection::open_narrow(proxy.address).await.unwrap();
    lagging.send("GET", &path, &[]).await.unwrap();
    let lagging = within(PATIENCE, lagging.receive("GET")).await.unwrap();
    let quick = proxy.open(&path).await;
    gate.release();
    quick.reply().await.assert_body(200, &bytes);
    lagging.reply().await.assert_body(200, &bytes);
    // Who lags goes on alone, once and for all; on a busy machine also the quick one may.
    assert!(upstream.count("GET", &path) <= 3);
    let whole = upstream.seen("GET", &path).iter().filter(|seen| seen.headers.get("Range").is_none()).count();
    assert_eq!(whole, 1, "a stream from the start for each");
}

#[tokio::test]
async fn nobody_gets_a_complete_body_of_wrong_bytes() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(3, 3 * MIB);
    let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
    let gate = Gate::new();
    upstream.rule(on("GET", &path).first(1).hold_at(64 * KIB, &gate).corrupt(2 * MIB));
    let proxy = Proxy::of(&upstream).set("storage", "max_size", "1MiB").start().await;
    let open = join_all((0..CLIENTS).map(|_| proxy.open(&path))).await;
    gate.release();
    for reply in join_all(open.into_iter().map(|incoming| incoming.reply())).await {
        // Who came too late to share the stream had a clean one of its own.
        assert!(!reply.is_poison(&bytes), "{} bytes", reply.body.len());
    }
    proxy.get(&path).await.assert_body(200, &bytes);
}

#[tokio::test]
async fn a_body_of_unknown_length_that_outgrows_the_store_goes_on_at_the_upstream() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(4, 6 * MIB);
    let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
    upstream.rule(on("GET", &path).chunked());
    let proxy = Proxy::of(&upstream).set("storage", "max_size", "1MiB").start().await;
    for _ in 0..2 {
        within(PATIENCE, proxy.get(&path)).await.assert_body(200, &bytes);
    }
}

#[tokio::test]
async fn another_repository_gets_nothing_of_it() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(5, 3 * MIB);
    let digest = upstream.blob(REPOSITORY, bytes.clone());
    let path = blob_path(&digest);
    let other = format!("/v2/library/other/blobs/{digest}");
    let gate = Gate::new();
    upstream.rule(on("GET", &path).hang_until(&gate));
    let proxy = Proxy::of(&upstream).set("storage", "max_size", "1MiB").start().await;
    let (mine, others) = tokio::join!(proxy.get(&path), async {
        upstream.wait_for("GET", &path, 1).await;
        let follower = proxy.get(&other);
        let release = async {
            tokio::task::yield_now().await;
            gate.release();
        };
        tokio::join!(follower, release).0
    });
    mine.assert_body(200, &bytes);
    others.assert_error(404, "BLOB_UNKNOWN");
}
