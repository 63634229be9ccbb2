//! Content that cannot be kept, because it is too large or because the disk says no: clients get it all the same.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;

use crate::support::PATIENCE;
use crate::support::REPOSITORY;
use crate::support::blob_path;
use crate::support::client;
use crate::support::client::End;
use crate::support::content::MIB;
use crate::support::content::sample;
use crate::support::proxy::Proxy;
use crate::support::proxy::Setup;
use crate::support::registry::ScriptedRegistry;
use crate::support::script::Gate;
use crate::support::script::on;

const SIZE: usize = 6 * MIB;

async fn large(seed: u64) -> (ScriptedRegistry, Bytes, String) {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(seed, SIZE);
    let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
    (upstream, bytes, path)
}

fn small_store(upstream: &ScriptedRegistry) -> Setup {
    Proxy::of(upstream).set("storage", "max_size", "2MiB")
}

#[tokio::test]
async fn too_large_comes_through_for_each_client() {
    let (upstream, bytes, path) = large(1).await;
    let proxy = small_store(&upstream).start().await;
    let replies = join_all((0..4).map(|_| proxy.get(&path))).await;
    replies.iter().for_each(|reply| reply.assert_body(200, &bytes));
    // Who reads too slowly to share a stream goes on in one of its own, which names a range.
    let whole = upstream.seen("GET", &path).iter().filter(|seen| seen.headers.get("Range").is_none()).count();
    assert!(whole <= 4, "{whole} streams for four clients");
    assert!(upstream.count("GET", &path) <= 8);
    let reply = proxy.head(&path).await;
    assert_eq!((reply.status, reply.header("Content-Length")), (200, Some(SIZE.to_string().as_str())));
    assert!(proxy.spools().is_empty());
}

#[tokio::test]
async fn too_large_and_wrong_is_cut() {
    for position in [0, SIZE / 2, SIZE - 1] {
        let (upstream, bytes, path) = large(2).await;
        // Wrong in every answer: who reads too slowly for one goes on in another.
        let mut wrong = bytes.to_vec();
        wrong[position] = !wrong[position];
        let digest = path.rsplit('/').next().unwrap();
        upstream.blob_as(REPOSITORY, digest, wrong);
        let proxy = small_store(&upstream).start().await;
        let reply = proxy.get(&path).await;
        assert_eq!((reply.status, reply.end), (200, End::Cut), "{} bytes", reply.body.len());
        upstream.blob_as(REPOSITORY, digest, bytes.clone());
        proxy.pull(&path, &bytes).await;
        let ranged = on("GET", &path).first(1).corrupt(position);
        upstream.clear_rules();
        upstream.rule(ranged);
        let all = proxy.range(&path, "bytes=0-").await;
        assert!(!(all.is_complete() && all.body != bytes), "a range over all of it is all of it");
    }
}

#[tokio::test]
async fn too_large_and_broken_off_is_mended_or_cut() {
    join_all([1, SIZE / 2, SIZE - 1].map(|cut| async move {
        let (upstream, bytes, path) = large(3).await;
        upstream.rule(on("GET", &path).first(1).cut_at(cut));
        let proxy = small_store(&upstream).start().await;
        let reply = proxy.get(&path).await;
        assert!(!reply.is_poison(&bytes) && bytes.starts_with(&reply.body), "cut at {cut}");
        proxy.pull(&path, &bytes).await;
    }))
    .await;
}

#[tokio::test]
async fn too_large_found_out_midway() {
    let (upstream, bytes, path) = large(4).await;
    upstream.rule(on("GET", &path).chunked().bytes_per_second(16 * MIB));
    let proxy = small_store(&upstream).start().await;
    let replies = join_all((0..3).map(|_| proxy.get(&path))).await;
    for reply in &replies {
        assert!(!reply.is_poison(&bytes));
        assert!(bytes.starts_with(&reply.body), "wrong bytes");
    }
    assert!(replies.iter().any(|reply| reply.status == 200));
    proxy.pull(&path, &bytes).await.assert_body(200, &bytes);
    proxy.pull(&path, &bytes).await.assert_body(200, &bytes);
}

#[tokio::test]
async fn too_large_found_out_midway_is_no_clients_problem() {
    let (upstream, bytes, path) = large(5).await;
    upstream.rule(on("GET", &path).chunked().bytes_per_second(16 * MIB));
    let proxy = small_store(&upstream).start().await;
    let replies = join_all((0..3).map(|_| proxy.get(&path))).await;
    replies.iter().for_each(|reply| reply.assert_body(200, &bytes));
}

#[tokio::test]
async fn what_one_repository_passes_through_another_does_not_get() {
    let (upstream, bytes, path) = large(6).await;
    let gate = Gate::new();
    upstream.rule(on("GET", &path).first(1).hang_until(&gate));
    let proxy = small_store(&upstream).start().await;
    let digest = path.rsplit('/').next().unwrap().to_owned();
    let address = proxy.address;
    let first = tokio::spawn(async move { client::request(address, "GET", &path, &[]).await });
    gate.reached().await;
    let other = format!("/v2/other/repository/blobs/{digest}");
    let second = tokio::spawn(async move { client::request(address, "GET", &other, &[]).await });
    // It waits for the first to be answered, which nobody can see from here; if it comes later, it is refused as well.
    tokio::time::sleep(Duration::from_millis(300)).await;
    gate.release();
    second.await.unwrap().assert_error(404, "BLOB_UNKNOWN");
    first.await.unwrap().assert_body(200, &bytes);
}

#[tokio::test]
async fn a_disk_that_is_full_from_the_first_byte() {
    let (upstream, bytes, path) = large(7).await;
    let proxy = Proxy::of(&upstream).survives_file_limit().start().await;
    proxy.limit_files(Some(0));
    let reply = proxy.get(&path).await;
    assert!(!reply.is_poison(&bytes) && bytes.starts_with(&reply.body));
    proxy.pull(&path, &bytes).await.assert_body(200, &bytes);
    assert_eq!(proxy.admin("/healthz").await.status, 200);
}

#[tokio::test]
async fn a_disk_that_fills_up_midway_is_no_clients_problem() {
    join_all([1000, SIZE / 2, SIZE - 1].map(|limit| async move {
        let (upstream, bytes, path) = large(8).await;
        upstream.rule(on("GET", &path).bytes_per_second(16 * MIB));
        let proxy = Proxy::of(&upstream).survives_file_limit().start().await;
        proxy.limit_files(Some(limit as u64));
        let replies = join_all((0..3).map(|_| proxy.get(&path))).await;
        replies.iter().for_each(|reply| reply.assert_body(200, &bytes));
        proxy.get(&path).await.assert_body(200, &bytes);
        assert_eq!(proxy.admin("/healthz").await.status, 200);
    }))
    .await;
}

#[tokio::test]
async fn a_disk_that_fills_up_midway_never_makes_wrong_bytes() {
    for limit in [1000, SIZE / 2, SIZE - 1] {
        let (upstream, bytes, path) = large(9).await;
        let proxy = Proxy::of(&upstream).survives_file_limit().start().await;
        proxy.limit_files(Some(limit as u64));
        let replies = join_all((0..5).map(|_| proxy.get(&path))).await;
        for reply in &replies {
            assert!(!reply.is_poison(&bytes) && bytes.starts_with(&reply.body), "limit {limit}");
        }
        let part = proxy.range(&path, "bytes=4000000-4000999").await;
        assert!(part.status != 206 || !part.is_complete() || part.body == bytes[4_000_000..4_001_000]);
        proxy.pull(&path, &bytes).await;
        proxy.limit_files(None);
        let other = sample(10, SIZE);
        let path = blob_path(&upstream.blob(REPOSITORY, other.clone()));
        proxy.get_until_hit(&path).await.assert_body(200, &other);
    }
}

#[tokio::test]
async fn a_store_full_of_what_is_in_flight_serves_everybody() {
    let upstream = ScriptedRegistry::start().await;
    let proxy = Proxy::of(&upstream).set("storage", "max_size", "4MiB").start().await;
    let blobs: Vec<(String, Bytes)> = (0..12)
        .map(|seed| {
            let bytes = sample(20 + seed, 1500 * 1024);
            (blob_path(&upstream.blob(REPOSITORY, bytes.clone())), bytes)
        })
        .collect();
    upstream.rule(on("GET", "*").bytes_per_second(8 * MIB));
    let replies = crate::support::within(PATIENCE, join_all(blobs.iter().map(|(path, _)| proxy.get(path)))).await;
    for (reply, (_, bytes)) in replies.iter().zip(&blobs) {
        reply.assert_body(200, bytes);
    }
}
