//! Blobs that do not come as they should: no client ever gets a complete body of wrong bytes, nothing wrong is kept,
//! and what can be mended is mended while the client waits.

use std::time::Duration;
use std::time::Instant;

use futures_util::future::join_all;

use crate::support::GLANCE;
use crate::support::PATIENCE;
use crate::support::REPOSITORY;
use crate::support::SILENCE;
use crate::support::blob_path;
use crate::support::client::End;
use crate::support::client::Reply;
use crate::support::content::KIB;
use crate::support::content::MIB;
use crate::support::content::sample;
use crate::support::content::sha512;
use crate::support::proxy::Proxy;
use crate::support::registry::ScriptedRegistry;
use crate::support::script::Gate;
use crate::support::script::Rule;
use crate::support::script::on;
use crate::support::within;

/// Pulls as an engine does, again after a failure, and never takes wrong bytes for right ones. The next pull can come
/// while the failed download is still being cleared away, or while the upstream is left in peace.
async fn pull(proxy: &Proxy, path: &str, bytes: &[u8]) -> Reply {
    within(PATIENCE, async {
        loop {
            let reply = proxy.get(path).await;
            assert!(!reply.is_poison(bytes), "a complete body of wrong bytes");
            if reply.status == 200 && reply.is_complete() {
                return reply;
            }
            tokio::time::sleep(GLANCE).await;
        }
    })
    .await
}

#[tokio::test]
async fn wrong_bytes_never_reach_a_client_whole() {
    // (size, damaged byte)
    let table = [(1, 0), (100, 50), (64 * KIB, 0), (64 * KIB, 64 * KIB - 1), (MIB, 1000), (MIB + 1, MIB)];
    for (seed, (size, position)) in table.into_iter().enumerate() {
        let upstream = ScriptedRegistry::start().await;
        let bytes = sample(seed as u64, size);
        let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
        upstream.rule(on("GET", &path).first(1).corrupt(position));
        let proxy = Proxy::of(&upstream).start().await;
        let reply = proxy.get(&path).await;
        match reply.status {
            // Cut off in good order: FIN, which clients take for "try again from here".
            200 => assert_eq!(reply.end, End::Cut, "{size} bytes, {} received", reply.body.len()),
            _ => reply.assert_error(502, "UNAVAILABLE"),
        }
        pull(&proxy, &path, &bytes).await;
        proxy.get_until_hit(&path).await.assert_body(200, &bytes);
        assert_eq!(upstream.count("GET", &path), 2, "{size} bytes");
    }
}

#[tokio::test]
async fn wrong_bytes_reach_no_follower_either() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(10, MIB);
    let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
    let gate = Gate::new();
    upstream.rule(on("GET", &path).first(1).corrupt(1000).hold_at(512 * KIB, &gate));
    let proxy = Proxy::of(&upstream).start().await;
    let open = join_all((0..5).map(|_| proxy.open(&path))).await;
    gate.release();
    for reply in join_all(open.into_iter().map(|incoming| incoming.reply())).await {
        assert_eq!((reply.status, reply.end), (200, End::Cut));
        assert!(reply.body.len() < bytes.len());
    }
    proxy.wait_metric_above("forebay_fill_failures_total", &[], 0.0).await;
    pull(&proxy, &path, &bytes).await.assert_body(200, &bytes);
}

#[tokio::test]
async fn wrong_bytes_are_not_kept_over_a_restart() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(11, 200 * KIB);
    let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
    upstream.rule(on("GET", &path).first(1).corrupt(7));
    let proxy = Proxy::of(&upstream).start().await;
    assert!(!proxy.get(&path).await.is_complete());
    let proxy = proxy.restart().await;
    pull(&proxy, &path, &bytes).await.assert_body(200, &bytes);
}

#[tokio::test]
async fn a_cut_download_goes_on_where_it_broke() {
    for cut in [1, 100_000, MIB - 1] {
        let upstream = ScriptedRegistry::start().await;
        let bytes = sample(20 + cut as u64, MIB);
        let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
        upstream.rule(on("GET", &path).first(1).cut_at(cut));
        let proxy = Proxy::of(&upstream).start().await;
        proxy.get(&path).await.assert_body(200, &bytes);
        proxy.get_until_hit(&path).await.assert_body(200, &bytes);
        let seen = upstream.seen("GET", &path);
        assert_eq!(seen.len(), 2, "cut at {cut}");
        let range = seen[1].headers.get("Range").expect("the second request asks for the rest");
        let start: usize = range.strip_prefix("bytes=").unwrap().split('-').next().unwrap().parse().unwrap();
        assert!(start > 0 && start <= cut, "{range} after {cut} bytes");
    }
}

#[tokio::test]
async fn a_download_cut_again_and_again_gets_there() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(30, MIB);
    let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
    upstream.rule(on("GET", &path).first(3).cut_at(200_000));
    let proxy = Proxy::of(&upstream).start().await;
    pull(&proxy, &path, &bytes).await.assert_body(200, &bytes);
    assert!(upstream.body_bytes_sent(&path) <= bytes.len() + 200_000, "started over instead of going on");
}

#[tokio::test]
async fn silence_counts_as_a_cut() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(31, MIB);
    let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
    upstream.rule(on("GET", &path).first(1).stall_at(300_000));
    let proxy = Proxy::of(&upstream).each("read_timeout", SILENCE).start().await;
    proxy.get(&path).await.assert_body(200, &bytes);
    assert_eq!(upstream.count("GET", &path), 2);
}

#[tokio::test]
async fn slowness_is_not_silence() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(32, 192 * KIB);
    let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
    // Twelve pieces: together longer than the time-out, each pause far below it.
    upstream.rule(on("GET", &path).bytes_per_second(32 * KIB));
    let proxy = Proxy::of(&upstream).each("read_timeout", SILENCE).start().await;
    let asked = Instant::now();
    proxy.get(&path).await.assert_body(200, &bytes);
    assert!(asked.elapsed() > Duration::from_secs(5), "{:?}", asked.elapsed());
    assert_eq!(upstream.count("GET", &path), 1);
}

#[tokio::test]
async fn a_cut_upstream_without_ranges_is_never_mixed_up() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(33, MIB);
    let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
    upstream.rule(on("GET", &path).first(1).cut_at(300_000).ignore_range());
    upstream.rule(on("GET", &path).ignore_range());
    let proxy = Proxy::of(&upstream).start().await;
    pull(&proxy, &path, &bytes).await.assert_body(200, &bytes);
    proxy.get_until_hit(&path).await.assert_body(200, &bytes);
}

#[tokio::test]
async fn an_upstream_that_never_gets_anywhere_is_given_up() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(34, MIB);
    let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
    upstream.rule(on("GET", &path).cut_at(0));
    let proxy = Proxy::of(&upstream).start().await;
    let reply = proxy.get(&path).await;
    assert!(!(reply.status == 200 && reply.is_complete()));
    assert!(upstream.count("GET", &path) < 20, "{} requests", upstream.count("GET", &path));
    upstream.clear_rules();
    pull(&proxy, &path, &bytes).await.assert_body(200, &bytes);
}

#[tokio::test]
async fn strange_framing_is_survived() {
    let bytes = sample(35, 300 * KIB);
    let table: [fn(Rule) -> Rule; 8] = [
        |rule| rule.wrong_length(10),
        |rule| rule.wrong_length(-10),
        |rule| rule.chunked(),
        |rule| rule.chunked().cut_at(100_000),
        |rule| rule.header("Content-Encoding", "gzip"),
        |rule| rule.header("Content-Type", "text/html"),
        |rule| rule.header("Docker-Content-Digest", "sha256:nonsense"),
        |rule| rule.status(206).header("Content-Range", "bytes 0-9/307200").body("0123456789"),
    ];
    for (place, fault) in table.into_iter().enumerate() {
        let upstream = ScriptedRegistry::start().await;
        let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
        upstream.rule(fault(on("GET", &path).first(1)));
        let proxy = Proxy::of(&upstream).start().await;
        let reply = proxy.get(&path).await;
        assert!(!reply.is_poison(&bytes), "case {place}");
        assert_eq!(reply.header("Content-Encoding"), None, "case {place}");
        assert!(matches!(reply.status, 200 | 502), "case {place}: {}", reply.status);
        pull(&proxy, &path, &bytes).await;
        proxy.get_until_hit(&path).await.assert_body(200, &bytes);
    }
}

#[tokio::test]
async fn no_length_is_no_obstacle() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(36, 300 * KIB);
    let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
    upstream.rule(on("GET", &path).chunked());
    let proxy = Proxy::of(&upstream).start().await;
    proxy.get(&path).await.assert_body(200, &bytes);
    let hit = proxy.get_until_hit(&path).await;
    hit.assert_body(200, &bytes);
    assert_eq!(hit.header("Content-Length"), Some("307200"));
    assert_eq!(upstream.count("GET", &path), 1);
}

#[tokio::test]
async fn sha512_damage_is_seen_by_sha512() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(37, 300 * KIB);
    let digest = sha512(&bytes);
    upstream.blob_as(REPOSITORY, &digest, bytes.clone());
    let path = blob_path(&digest);
    upstream.rule(on("GET", &path).first(1).corrupt(1));
    let proxy = Proxy::of(&upstream).start().await;
    assert!(!proxy.get(&path).await.is_complete());
    pull(&proxy, &path, &bytes).await.assert_digest(&digest);
}

#[tokio::test]
async fn stray_upstream_headers_stay_there() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(38, 1000);
    let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
    let rule = on("*", "/v2/*").header("Set-Cookie", "session=upstream").header("Location", "http://evil.example/");
    upstream.rule(rule.header("X-Internal", "10.0.0.1").header("Server", "scripted").header("Via", "1.1 upstream"));
    let proxy = Proxy::of(&upstream).start().await;
    for _ in 0..2 {
        let reply = proxy.get(&path).await;
        reply.assert_body(200, &bytes);
        for name in ["Set-Cookie", "Location", "X-Internal", "Server", "Via"] {
            assert_eq!(reply.header(name), None, "{name}");
        }
    }
}
