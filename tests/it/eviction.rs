//! A bounded store: what was used least goes first, and nobody gets an error because of our disk.

use std::time::Duration;

use bytes::Bytes;

use crate::support::REPOSITORY;
use crate::support::blob_path;
use crate::support::content::KIB;
use crate::support::content::MIB;
use crate::support::content::sample;
use crate::support::proxy::Proxy;
use crate::support::registry::ScriptedRegistry;

const BLOB_BYTES: usize = 256 * KIB;

fn blobs(upstream: &ScriptedRegistry, count: usize) -> Vec<(String, Bytes)> {
    (0..count)
        .map(|seed| {
            let bytes = sample(seed as u64, BLOB_BYTES);
            (blob_path(&upstream.blob(REPOSITORY, bytes.clone())), bytes)
        })
        .collect()
}

#[tokio::test]
async fn a_full_store_makes_room_and_fetches_again() {
    let upstream = ScriptedRegistry::start().await;
    let blobs = blobs(&upstream, 20);
    let proxy = Proxy::of(&upstream).set("storage", "max_size", "2MiB").start().await;
    for (path, bytes) in &blobs {
        proxy.get(path).await.assert_body(200, bytes);
    }
    proxy.wait_metric_above("forebay_evicted_bytes_total", &[], 0.0).await;
    crate::support::within(crate::support::PATIENCE, async {
        while proxy.metric("forebay_store_bytes", &[]).await.is_none_or(|bytes| bytes > (2 * MIB) as f64) {
            tokio::time::sleep(crate::support::GLANCE).await;
        }
    })
    .await;
    for (path, bytes) in &blobs {
        proxy.get(path).await.assert_body(200, bytes);
    }
    let (first, _) = &blobs[0];
    assert!(upstream.count("GET", first) >= 2, "the first of twenty cannot still be here");
}

#[tokio::test]
async fn the_least_recently_used_goes_first() {
    let upstream = ScriptedRegistry::start().await;
    let blobs = blobs(&upstream, 24);
    let proxy = Proxy::of(&upstream).set("storage", "max_size", "4MiB").start().await;
    let (early, late) = blobs.split_at(12);
    for (path, bytes) in early {
        proxy.get_until_hit(path).await.assert_body(200, bytes);
    }
    // Uses within one tick of the clock are not told apart.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let (favourite, bytes) = &early[0];
    proxy.get(favourite).await.assert_body(200, bytes);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut evicted = 0.0;
    for (path, bytes) in late {
        proxy.get_until_hit(path).await.assert_body(200, bytes);
        evicted = proxy.metric("forebay_evicted_bytes_total", &[]).await.unwrap_or_default();
        if evicted > 0.0 {
            break;
        }
    }
    if evicted == 0.0 {
        proxy.wait_metric_above("forebay_evicted_bytes_total", &[], 0.0).await;
    }
    proxy.get(favourite).await.assert_body(200, bytes);
    assert_eq!(upstream.count("GET", favourite), 1, "used a moment ago and evicted all the same");
    let (forgotten, bytes) = &early[1];
    proxy.get(forgotten).await.assert_body(200, bytes);
    assert!(upstream.count("GET", forgotten) >= 2, "used least recently and still here");
}

#[tokio::test]
async fn a_blob_larger_than_the_store_is_passed_through() {
    let upstream = ScriptedRegistry::start().await;
    let small = sample(100, 10 * KIB);
    let small_path = blob_path(&upstream.blob(REPOSITORY, small.clone()));
    let large = sample(101, 6 * MIB);
    let large_path = blob_path(&upstream.blob(REPOSITORY, large.clone()));
    let proxy = Proxy::of(&upstream).set("storage", "max_size", "2MiB").start().await;
    proxy.get_until_hit(&small_path).await;
    for _ in 0..2 {
        let reply = proxy.get(&large_path).await;
        reply.assert_body(200, &large);
        assert_eq!(reply.outcome(), "fwd=miss");
    }
    // Who reads too slowly to share a stream goes on in one of its own, which names a range.
    let whole = upstream.seen("GET", &large_path).iter().filter(|seen| seen.headers.get("Range").is_none()).count();
    assert_eq!(whole, 2);
    proxy.range(&large_path, "bytes=5000000-5000999").await.assert_body(206, &large[5_000_000..5_001_000]);
    // It pushed nothing out.
    proxy.get(&small_path).await.assert_body(200, &small);
    assert_eq!(upstream.count("GET", &small_path), 1);
}

#[tokio::test]
async fn a_blob_being_read_survives_its_eviction() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(102, 1800 * KIB);
    let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
    let others = blobs(&upstream, 10);
    let proxy = Proxy::of(&upstream).set("storage", "max_size", "2MiB").start().await;
    proxy.get_until_hit(&path).await;
    let mut reader = crate::support::client::Connection::open_narrow(proxy.address).await.unwrap();
    reader.send("GET", &path, &[]).await.unwrap();
    let reader = crate::support::within(crate::support::PATIENCE, reader.receive("GET")).await.unwrap();
    for (path, bytes) in &others {
        proxy.get(path).await.assert_body(200, bytes);
    }
    proxy.wait_metric_above("forebay_evicted_bytes_total", &[], 0.0).await;
    reader.reply().await.assert_body(200, &bytes);
}
