//! Ranges of a blob that is not here yet, far ahead of the download: fetched for themselves, and never twice.

use bytes::Bytes;
use futures_util::future::join_all;

use crate::support::PATIENCE;
use crate::support::REPOSITORY;
use crate::support::blob_path;
use crate::support::content::KIB;
use crate::support::content::MIB;
use crate::support::content::sample;
use crate::support::proxy::Proxy;
use crate::support::registry::ScriptedRegistry;
use crate::support::registry::Seen;
use crate::support::script::Gate;
use crate::support::script::on;
use crate::support::within;

const SIZE: usize = 16 * MIB;
/// Slow enough that what the registry has sent has also arrived, within some hundred KiB.
const PACE: usize = 32 * MIB;

async fn cold(seed: u64) -> (ScriptedRegistry, Bytes, String) {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(seed, SIZE);
    let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
    (upstream, bytes, path)
}

/// Asserts that the proxy took in no more than one copy and some surplus. What the registry has written says less: on a machine that
/// is behind, the system holds some of it when a lane ends.
async fn assert_one_copy(proxy: &Proxy, surplus: usize, upstream: &ScriptedRegistry, path: &str) {
    let taken = proxy.metric("forebay_upstream_bytes_total", &[]).await.unwrap();
    assert!(taken >= SIZE as f64, "{taken} bytes of a blob of {SIZE} were counted");
    assert!(taken <= (SIZE + surplus) as f64, "{taken} bytes for a blob of {SIZE}: {:?}", asked(upstream, path));
}

/// What was asked for, for the message of a failure.
fn asked(upstream: &ScriptedRegistry, path: &str) -> Vec<(String, usize)> {
    let part = |seen: &Seen| seen.headers.get("Range").unwrap_or("all").to_owned();
    upstream.seen("GET", path).iter().map(|seen| (part(seen), seen.body_bytes)).collect()
}

/// Lets the bytes flow once every eighth of the blob has been asked for: lanes that knew of each other too late would run
/// into each other, as far as this machine is behind.
async fn release_all(upstream: &ScriptedRegistry, path: &str, gate: &Gate) {
    upstream.wait_for("GET", path, 8).await;
    gate.release();
}

/// Waits until `count` requests for a part were answered to the end, or given up by the proxy.
async fn parts_ended(upstream: &ScriptedRegistry, count: usize) {
    let is_part = |seen: &&Seen| seen.finished && seen.headers.get("Range").is_some();
    upstream.wait_until(|log| log.iter().filter(is_part).count() >= count).await;
}

#[tokio::test]
async fn a_range_over_all_of_it_streams_at_once() {
    let (upstream, bytes, path) = cold(1).await;
    let gate = Gate::new();
    upstream.rule(on("GET", &path).first(1).hold_at(MIB, &gate));
    let proxy = Proxy::of(&upstream).start().await;
    let mut incoming = proxy.open_range(&path, "bytes=0-").await;
    assert_eq!(incoming.status, 206);
    assert!(within(PATIENCE, incoming.read(512 * KIB)).await, "the bytes that are here are held back");
    assert_eq!(incoming.received()[..512 * KIB], bytes[..512 * KIB]);
    gate.release();
    incoming.reply().await.assert_body(206, &bytes);
    proxy.get_until_hit(&path).await.assert_body(200, &bytes);
    assert_eq!(upstream.count("GET", &path), 1);
}

#[tokio::test]
async fn a_far_range_does_not_wait_for_what_lies_before_it() {
    for range in ["bytes=14000000-14065535", "bytes=-65536"] {
        let (upstream, bytes, path) = cold(2).await;
        let gate = Gate::new();
        upstream.rule(on("GET", &path).unranged().hold_at(MIB, &gate));
        let proxy = Proxy::of(&upstream).start().await;
        let whole = proxy.open(&path).await;
        gate.reached().await;
        let start = if range.starts_with("bytes=-") { SIZE - 64 * KIB } else { 14_000_000 };
        let reply = proxy.range(&path, range).await;
        reply.assert_body(206, &bytes[start..start + 64 * KIB]);
        let seen = upstream.seen("GET", &path);
        assert_eq!(seen.len(), 2, "{range}: {:?}", asked(&upstream, &path));
        let part = seen[1].headers.get("Range").expect("the second request asks for a part");
        let first: usize = part.strip_prefix("bytes=").unwrap().split('-').next().unwrap().parse().unwrap();
        assert!(first > 2 * MIB && first <= start, "{part} for {range}");
        gate.release();
        whole.reply().await.assert_body(200, &bytes);
        proxy.get_until_hit(&path).await.assert_body(200, &bytes);
        assert_one_copy(&proxy, SIZE / 20, &upstream, &path).await;
    }
}

#[tokio::test]
async fn one_far_range_wanted_by_many_is_fetched_once() {
    let (upstream, bytes, path) = cold(3).await;
    let gate = Gate::new();
    upstream.rule(on("GET", &path).unranged().hold_at(MIB, &gate));
    upstream.rule(on("GET", &path).ranged().bytes_per_second(4 * MIB));
    let proxy = Proxy::of(&upstream).start().await;
    let whole = proxy.open(&path).await;
    gate.reached().await;
    let replies = join_all((0..10).map(|_| proxy.range(&path, "bytes=12000000-12999999"))).await;
    replies.iter().for_each(|reply| reply.assert_body(206, &bytes[12_000_000..13_000_000]));
    gate.release();
    whole.reply().await.assert_body(200, &bytes);
    proxy.get_until_hit(&path).await.assert_body(200, &bytes);
    // A part as small as this is read over by the rest, rather than asked round.
    let ranged = upstream.seen("GET", &path).iter().filter(|seen| seen.headers.get("Range").is_some()).count();
    assert_eq!(ranged, 1, "{:?}", asked(&upstream, &path));
    assert!(upstream.body_bytes_sent(&path) <= SIZE + 1_000_000, "{:?}", asked(&upstream, &path));
}

#[tokio::test]
async fn a_first_range_far_into_a_cold_blob() {
    let (upstream, bytes, path) = cold(4).await;
    upstream.rule(on("GET", &path).bytes_per_second(PACE));
    let proxy = Proxy::of(&upstream).start().await;
    proxy.range(&path, "bytes=15000000-15099999").await.assert_body(206, &bytes[15_000_000..15_100_000]);
    proxy.get_until_hit(&path).await.assert_body(200, &bytes);
    assert_one_copy(&proxy, SIZE / 20, &upstream, &path).await;
}

#[tokio::test]
async fn parallel_ranges_and_the_whole_share_one_copy() {
    let (upstream, bytes, path) = cold(5).await;
    let gate = Gate::new();
    upstream.rule(on("GET", &path).hold_at(KIB, &gate).bytes_per_second(PACE));
    let proxy = Proxy::of(&upstream).start().await;
    let parts = join_all((0..8).map(|part| {
        let (proxy, path, bytes) = (&proxy, &path, &bytes);
        async move {
            let (start, end) = (part * SIZE / 8, (part + 1) * SIZE / 8);
            let reply = proxy.range(path, &format!("bytes={start}-{}", end - 1)).await;
            reply.assert_body(206, &bytes[start..end]);
        }
    }));
    let (_, whole, ()) = tokio::join!(parts, proxy.get(&path), release_all(&upstream, &path, &gate));
    whole.assert_body(200, &bytes);
    proxy.get_until_hit(&path).await.assert_body(200, &bytes);
    assert_one_copy(&proxy, SIZE / 20, &upstream, &path).await;
}

#[tokio::test]
async fn open_ended_ranges_that_are_left_early() {
    let (upstream, bytes, path) = cold(6).await;
    let gate = Gate::new();
    upstream.rule(on("GET", &path).hold_at(KIB, &gate).bytes_per_second(PACE));
    let proxy = Proxy::of(&upstream).start().await;
    let parts = join_all((0..8).map(|part| {
        let (proxy, path, bytes) = (&proxy, &path, &bytes);
        async move {
            let start = part * SIZE / 8;
            let mut incoming = proxy.open_range(path, &format!("bytes={start}-")).await;
            assert_eq!(incoming.status, 206);
            let expected = format!("bytes {start}-{}/{SIZE}", SIZE - 1);
            assert_eq!(incoming.headers.get("Content-Range"), Some(expected.as_str()));
            assert!(within(PATIENCE, incoming.read(SIZE / 8)).await);
            assert!(incoming.received()[..SIZE / 8] == bytes[start..start + SIZE / 8], "wrong bytes from {start} on");
        }
    }));
    tokio::join!(parts, release_all(&upstream, &path, &gate));
    proxy.get_until_hit(&path).await.assert_body(200, &bytes);
    let asked = asked(&upstream, &path);
    assert!(asked.len() <= 16, "{asked:?}");
    // Those who left early did not say where they would: a lane may have run on into its neighbour's part.
    assert_one_copy(&proxy, SIZE / 4, &upstream, &path).await;
}

#[tokio::test]
async fn an_upstream_that_ignores_ranges_is_not_downloaded_twice() {
    let (upstream, bytes, path) = cold(7).await;
    let gate = Gate::new();
    upstream.rule(on("GET", &path).unranged().hold_at(MIB, &gate));
    upstream.rule(on("GET", &path).ranged().ignore_range().bytes_per_second(4 * MIB));
    let proxy = Proxy::of(&upstream).start().await;
    let whole = proxy.open(&path).await;
    gate.reached().await;
    let far = proxy.open_range(&path, "bytes=14000000-14065535").await;
    // A second request, answered with all of it, is made and given up.
    parts_ended(&upstream, 1).await;
    gate.release();
    far.reply().await.assert_body(206, &bytes[14_000_000..14_065_536]);
    whole.reply().await.assert_body(200, &bytes);
    let sent = upstream.body_bytes_sent(&path);
    assert!(sent <= SIZE + SIZE / 4, "{sent} bytes for a blob of {SIZE}: {:?}", asked(&upstream, &path));
    assert!(upstream.count("GET", &path) <= 4, "{:?}", asked(&upstream, &path));
}

#[tokio::test]
async fn a_far_range_that_cannot_be_fetched_alone_comes_with_the_rest() {
    for fault in [on("GET", "*").status(503), on("GET", "*").status(416), on("GET", "*").cut_at(100)] {
        let (upstream, bytes, path) = cold(8).await;
        let gate = Gate::new();
        upstream.rule(on("GET", &path).unranged().hold_at(MIB, &gate));
        upstream.rule(fault.clone().ranged());
        let proxy = Proxy::of(&upstream).start().await;
        let whole = proxy.open(&path).await;
        gate.reached().await;
        let far = proxy.open_range(&path, "bytes=14000000-14065535").await;
        parts_ended(&upstream, 1).await;
        gate.release();
        far.reply().await.assert_body(206, &bytes[14_000_000..14_065_536]);
        whole.reply().await.assert_body(200, &bytes);
        assert!(upstream.count("GET", &path) <= 20, "{fault:?}: {:?}", asked(&upstream, &path));
    }
}

#[tokio::test]
async fn wrong_bytes_in_a_far_range_make_nothing_complete() {
    let (upstream, bytes, path) = cold(9).await;
    let gate = Gate::new();
    upstream.rule(on("GET", &path).unranged().first(1).hold_at(MIB, &gate));
    upstream.rule(on("GET", &path).ranged().first(1).corrupt(1000));
    let proxy = Proxy::of(&upstream).start().await;
    let whole = proxy.open(&path).await;
    gate.reached().await;
    let far = proxy.open_range(&path, "bytes=14000000-14065535").await;
    parts_ended(&upstream, 1).await;
    gate.release();
    assert!(!whole.reply().await.is_poison(&bytes));
    far.reply().await;
    proxy.pull(&path, &bytes).await;
    proxy.get_until_hit(&path).await.assert_body(200, &bytes);
}
