//! Downloads that did not end: left by their clients, by a stop or by a kill. What came is not fetched again, and not
//! believed either.

use bytes::Bytes;
use futures_util::future::join_all;

use crate::support::GLANCE;
use crate::support::PATIENCE;
use crate::support::REPOSITORY;
use crate::support::blob_path;
use crate::support::content::MIB;
use crate::support::content::sample;
use crate::support::proxy::Proxy;
use crate::support::registry::ScriptedRegistry;
use crate::support::script::Gate;
use crate::support::script::on;
use crate::support::within;

const SIZE: usize = 16 * MIB;
/// How far a download gets before it is stopped.
const HELD_AT: usize = SIZE / 4 * 3;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Stop {
    Signal,
    Kill,
}

/// A proxy that ended in the middle of a download, and its registry, which is well again.
async fn stopped_midway(stop: Stop, seed: u64) -> (ScriptedRegistry, Bytes, String, Proxy) {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(seed, SIZE);
    let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
    let gate = Gate::new();
    upstream.rule(on("GET", &path).first(1).hold_at(HELD_AT, &gate));
    let mut proxy = Proxy::of(&upstream).set("server", "shutdown_grace", "1s").start().await;
    let mut incoming = proxy.open(&path).await;
    assert!(within(PATIENCE, incoming.read(HELD_AT - 256 * 1024)).await);
    match stop {
        Stop::Signal => assert_eq!(proxy.terminate().await, Some(0), "{}", proxy.log.text()),
        Stop::Kill => proxy.kill().await,
    }
    assert!(!incoming.reply().await.is_complete());
    upstream.clear_rules();
    (upstream, bytes, path, proxy)
}

#[tokio::test]
async fn after_a_restart_only_the_rest_is_fetched() {
    join_all([Stop::Signal, Stop::Kill].map(|stop| async move {
        let (upstream, bytes, path, proxy) = stopped_midway(stop, 1).await;
        let before = upstream.body_bytes_sent(&path);
        let proxy = proxy.restart().await;
        proxy.get(&path).await.assert_body(200, &bytes);
        proxy.get_until_hit(&path).await.assert_body(200, &bytes);
        let again = upstream.body_bytes_sent(&path) - before;
        assert!(again <= SIZE * 35 / 100, "{stop:?}: {again} bytes again of {SIZE}");
        let proxy = proxy.restart().await;
        proxy.get(&path).await.assert_body(200, &bytes);
        within(PATIENCE, async {
            while !proxy.spools().is_empty() {
                tokio::time::sleep(GLANCE).await;
            }
        })
        .await;
    }))
    .await;
}

#[tokio::test]
async fn what_a_restart_finds_is_not_believed() {
    for stop in [Stop::Signal, Stop::Kill] {
        join_all([0, 5 * MIB].map(|position| async move {
            let (_upstream, bytes, path, proxy) = stopped_midway(stop, 2).await;
            for spool in proxy.spools() {
                let mut content = std::fs::read(&spool).unwrap();
                if let Some(byte) = content.get_mut(position) {
                    *byte = !*byte;
                    std::fs::write(&spool, content).unwrap();
                }
            }
            let proxy = proxy.restart().await;
            let reply = proxy.get(&path).await;
            assert!(!reply.is_poison(&bytes), "{stop:?}: what lay on the disk was served unproven");
            proxy.pull(&path, &bytes).await;
            proxy.get_until_hit(&path).await.assert_body(200, &bytes);
        }))
        .await;
    }
}

#[tokio::test]
async fn what_a_restart_finds_may_have_any_length() {
    let lengths: [fn(u64) -> u64; 4] = [|_| 0, |_| 1, |length| length / 2, |length| length + 40_000_000];
    for stop in [Stop::Signal, Stop::Kill] {
        join_all(lengths.map(|length| async move {
            let (_upstream, bytes, path, proxy) = stopped_midway(stop, 3).await;
            for spool in proxy.spools() {
                let file = std::fs::OpenOptions::new().write(true).open(&spool).unwrap();
                file.set_len(length(file.metadata().unwrap().len())).unwrap();
            }
            let proxy = proxy.restart().await;
            let reply = proxy.get(&path).await;
            assert!(!reply.is_poison(&bytes), "{stop:?}");
            proxy.pull(&path, &bytes).await;
            proxy.get_until_hit(&path).await.assert_body(200, &bytes);
        }))
        .await;
    }
}

#[tokio::test]
async fn strange_files_among_the_spools_harm_nobody() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(4, MIB);
    let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
    let mut proxy = Proxy::of(&upstream).start().await;
    assert_eq!(proxy.terminate().await, Some(0));
    let spools = proxy.data().join("spool");
    std::fs::create_dir_all(spools.join("a directory")).unwrap();
    for name in ["x", "sha256-", "sha256-zz.1", ".hidden", "sha256-0000.parked"] {
        std::fs::write(spools.join(name), "strange").unwrap();
    }
    let proxy = proxy.restart().await;
    proxy.get(&path).await.assert_body(200, &bytes);
    proxy.get_until_hit(&path).await.assert_body(200, &bytes);
}

#[tokio::test]
async fn without_the_upstream_a_part_is_not_the_whole() {
    let (upstream, bytes, path, proxy) = stopped_midway(Stop::Signal, 5).await;
    upstream.stop().await;
    let proxy = proxy.restart().await;
    let reply = proxy.get(&path).await;
    assert!(!(reply.status == 200 && reply.is_complete()), "{} bytes of {SIZE}", reply.body.len());
    upstream.resume().await;
    proxy.pull(&path, &bytes).await;
}

#[tokio::test]
async fn a_parked_part_opens_nothing_to_others() {
    let (upstream, _bytes, path, proxy) = stopped_midway(Stop::Signal, 6).await;
    let proxy = proxy.restart().await;
    let digest = path.rsplit('/').next().unwrap();
    for range in ["bytes=0-99", "bytes=0-"] {
        let reply = proxy.range(&format!("/v2/other/repository/blobs/{digest}"), range).await;
        reply.assert_error(404, "BLOB_UNKNOWN");
    }
    upstream.remove_blob(REPOSITORY, digest);
    // Gone upstream, and no proof was ever made: not served from what is parked.
    let reply = proxy.get(&path).await;
    assert!(!(reply.status == 200 && reply.is_complete()));
}

#[tokio::test]
async fn a_large_download_without_clients_is_left_and_taken_up_again() {
    let size = 48 * MIB;
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(7, size);
    let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
    // It comes as slowly as can be: not at all, until it is given up.
    upstream.rule(on("GET", &path).first(1).hold_at(size / 4, &Gate::new()));
    let proxy = Proxy::of(&upstream).start().await;
    let mut incoming = proxy.open(&path).await;
    assert!(within(PATIENCE, incoming.read(size / 10)).await);
    drop(incoming);
    proxy.wait_metric_above("forebay_fill_failures_total", &["reason=\"parked\""], 0.0).await;
    let reply = proxy.get(&path).await;
    reply.assert_body(200, &bytes);
    proxy.get_until_hit(&path).await.assert_body(200, &bytes);
    // Who comes while it is being left has joined it, and goes on alone.
    let came_early = reply.outcome() == "fwd=miss; collapsed";
    let sent = upstream.body_bytes_sent(&path);
    assert!(sent <= size + size / 10 || came_early, "{sent} bytes for a blob of {size}");
    let rest = upstream.seen("GET", &path).pop().unwrap();
    assert!(rest.body_bytes <= size - size / 5, "{} bytes again", rest.body_bytes);
}

#[tokio::test]
async fn a_download_is_not_left_while_anybody_reads() {
    let size = 24 * MIB;
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(8, size);
    let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
    upstream.rule(on("GET", &path).first(1).bytes_per_second(24 * MIB));
    let proxy = Proxy::of(&upstream).start().await;
    let leader = proxy.open(&path).await;
    let follower = proxy.open(&path).await;
    drop(leader);
    follower.reply().await.assert_body(200, &bytes);
    assert_eq!(upstream.count("GET", &path), 1);
}

#[tokio::test]
async fn clients_that_come_and_go_add_up_to_one_download() {
    let size = 32 * MIB;
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(9, size);
    let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
    upstream.rule(on("GET", &path).bytes_per_second(12 * MIB));
    let proxy = Proxy::of(&upstream).start().await;
    for round in 1..5 {
        let mut incoming = proxy.open(&path).await;
        assert_eq!(incoming.status, 200);
        assert!(within(PATIENCE, incoming.read(round * 2 * MIB)).await, "{}", incoming.received().len());
        assert!(incoming.received() == &bytes[..incoming.received().len()]);
        drop(incoming);
        tokio::time::sleep(GLANCE * 10).await;
    }
    proxy.get(&path).await.assert_body(200, &bytes);
    let sent = upstream.body_bytes_sent(&path);
    assert!(sent <= size + size / 5, "{sent} bytes for a blob of {size}");
}

#[tokio::test]
async fn a_client_that_leaves_anywhere_leaves_no_harm() {
    join_all([0, 1, 50, 99].map(|percent| async move {
        let size = 4 * MIB;
        let upstream = ScriptedRegistry::start().await;
        let bytes = sample(10, size);
        let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
        upstream.rule(on("GET", &path).bytes_per_second(16 * MIB));
        let proxy = Proxy::of(&upstream).start().await;
        let mut leader = proxy.open(&path).await;
        let follower = (percent != 0).then(|| proxy.open(&path));
        assert!(within(PATIENCE, leader.read(size * percent / 100)).await);
        drop(leader);
        if let Some(follower) = follower {
            follower.await.reply().await.assert_body(200, &bytes);
        }
        // A small one is finished for whoever comes next.
        proxy.get_until_hit(&path).await.assert_body(200, &bytes);
        assert_eq!(upstream.count("GET", &path), 1, "left at {percent} %");
    }))
    .await;
}
