//! Ranges: on content that is here, on content that is on its way, and on content nobody asked for yet.

use crate::support::PATIENCE;
use crate::support::REPOSITORY;
use crate::support::blob_path;
use crate::support::client::Reply;
use crate::support::content::KIB;
use crate::support::content::MIB;
use crate::support::content::sample;
use crate::support::manifest_path;
use crate::support::proxy::Proxy;
use crate::support::registry::ScriptedRegistry;
use crate::support::script::Gate;
use crate::support::script::on;
use crate::support::within;

/// Asserts a single-part 206 for bytes `start..end` of `bytes`.
#[track_caller]
fn assert_part(reply: &Reply, bytes: &[u8], start: usize, end: usize) {
    reply.assert_body(206, &bytes[start..end]);
    let expected = format!("bytes {start}-{}/{}", end - 1, bytes.len());
    assert_eq!(reply.headers.all("Content-Range"), [expected.as_str()]);
    assert_eq!(reply.header("Content-Length"), Some((end - start).to_string().as_str()));
    assert_eq!(reply.header("Content-Type"), Some("application/octet-stream"));
    assert_eq!(reply.header("Accept-Ranges"), Some("bytes"));
}

/// Range field, and the part it names in a blob of 2000 bytes.
const PARTS: [(&str, usize, usize); 8] = [
    ("bytes=0-0", 0, 1),
    ("bytes=0-", 0, 2000),
    ("bytes=500-1499", 500, 1500),
    ("bytes=500-", 500, 2000),
    ("bytes=-500", 1500, 2000),
    ("bytes=1900-5000", 1900, 2000),
    ("bytes=1999-1999", 1999, 2000),
    ("bytes=-5000", 0, 2000),
];

#[tokio::test]
async fn single_ranges_of_a_kept_blob() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(1, 2000);
    let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
    let proxy = Proxy::of(&upstream).start().await;
    proxy.get(&path).await.assert_body(200, &bytes);
    proxy.get_until_hit(&path).await;
    for (range, start, end) in PARTS {
        assert_part(&proxy.range(&path, range).await, &bytes, start, end);
    }
    assert_eq!(upstream.count("GET", &path), 1);
}

#[tokio::test]
async fn single_ranges_of_a_cold_blob() {
    let upstream = ScriptedRegistry::start().await;
    let proxy = Proxy::of(&upstream).start().await;
    for (seed, (range, start, end)) in PARTS.into_iter().enumerate() {
        let bytes = sample(seed as u64 + 10, 2000);
        let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
        assert_part(&proxy.range(&path, range).await, &bytes, start, end);
        // The rest came too, whatever the client wanted.
        proxy.get_until_hit(&path).await.assert_body(200, &bytes);
        assert_eq!(upstream.body_bytes_sent(&path), bytes.len(), "{range}");
    }
}

#[tokio::test]
async fn a_range_in_the_middle_of_a_large_cold_blob() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(2, 4 * MIB);
    let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
    let proxy = Proxy::of(&upstream).start().await;
    let reply = proxy.range(&path, "bytes=3000000-3099999").await;
    assert_part(&reply, &bytes, 3_000_000, 3_100_000);
    proxy.get_until_hit(&path).await.assert_body(200, &bytes);
    assert!(upstream.body_bytes_sent(&path) <= bytes.len() + bytes.len() / 10, "downloaded more than once");
}

#[tokio::test]
async fn aborted_open_ended_ranges_share_one_download() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(3, 8 * MIB);
    let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
    let proxy = Proxy::of(&upstream).start().await;
    for part in 0..8 {
        let range = format!("bytes={}-", part * MIB);
        let headers = [("Range", range.as_str())];
        let mut incoming = crate::support::client::open(proxy.address, "GET", &path, &headers).await;
        assert_eq!(incoming.status, 206);
        assert!(within(PATIENCE, incoming.read(MIB / 2)).await);
    }
    proxy.get_until_hit(&path).await.assert_body(200, &bytes);
    assert!(upstream.body_bytes_sent(&path) <= bytes.len() + bytes.len() / 10, "downloaded more than once");
}

#[tokio::test]
async fn a_range_that_has_arrived_does_not_wait_for_the_rest() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(4, MIB);
    let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
    let gate = Gate::new();
    upstream.rule(on("GET", &path).first(1).hold_at(512 * KIB, &gate));
    let proxy = Proxy::of(&upstream).start().await;
    let reply = proxy.range(&path, "bytes=1000-99999").await;
    assert_part(&reply, &bytes, 1000, 100_000);
    gate.release();
    proxy.get_until_hit(&path).await.assert_body(200, &bytes);
}

#[tokio::test]
async fn ranges_that_cannot_be_satisfied() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(5, 2000);
    let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
    let proxy = Proxy::of(&upstream).start().await;
    for cold in [true, false] {
        for range in ["bytes=2000-", "bytes=5000-10000", "bytes=500-0"] {
            let reply = proxy.range(&path, range).await;
            reply.assert_error(416, "RANGE_INVALID");
            assert_eq!(reply.header("Content-Range"), Some("bytes */2000"), "{range}, cold: {cold}");
        }
        proxy.get(&path).await.assert_body(200, &bytes);
        proxy.get_until_hit(&path).await;
    }
}

#[tokio::test]
async fn nonsense_ranges_never_break_anything() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(6, 2000);
    let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
    let proxy = Proxy::of(&upstream).start().await;
    let table = [
        "bytes=abc",
        "bytes=",
        "bytes=-",
        "bytes",
        "items=0-1",
        "bytes=1-2-3",
        "bytes=99999999999999999999-",
        "bytes=0x1-5",
    ];
    for range in table {
        let reply = proxy.range(&path, range).await;
        if reply.status == 416 {
            reply.assert_error(416, "RANGE_INVALID");
        } else {
            assert_eq!(reply.status, 200, "{range}");
            reply.assert_body(200, &bytes);
        }
    }
}

#[tokio::test]
async fn several_ranges_are_never_answered_by_one_part() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(7, 2000);
    let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
    let proxy = Proxy::of(&upstream).start().await;
    let many: Vec<String> = (0..1000).map(|place| format!("{place}-{place}")).collect();
    let many = format!("bytes={}", many.join(","));
    for range in ["bytes=0-9,100-109", "bytes=0-9,-10", many.as_str()] {
        let reply = proxy.range(&path, range).await;
        match reply.status {
            200 => reply.assert_body(200, &bytes),
            400 => {
                reply.error_code();
            }
            206 => {
                let media_type = reply.header("Content-Type").unwrap();
                let boundary = media_type.strip_prefix("multipart/byteranges; boundary=").unwrap();
                assert!(boundary.chars().all(|letter| letter.is_ascii_alphanumeric()), "{boundary}");
                assert_eq!(reply.header("Content-Range"), None);
                let parts = reply.text().matches("Content-Range: bytes ").count();
                assert_eq!(parts, range.split(',').count());
            }
            other => panic!("{other} to {} ranges", range.split(',').count()),
        }
    }
}

#[tokio::test]
async fn an_if_range_that_does_not_match_gets_everything() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(8, 2000);
    let digest = upstream.blob(REPOSITORY, bytes.clone());
    let path = blob_path(&digest);
    let proxy = Proxy::of(&upstream).start().await;
    let tag = format!("\"{digest}\"");
    let same = proxy.get_with(&path, &[("Range", "bytes=0-9"), ("If-Range", &tag)]).await;
    assert_part(&same, &bytes, 0, 10);
    let other = proxy.get_with(&path, &[("Range", "bytes=0-9"), ("If-Range", "\"other\"")]).await;
    other.assert_body(200, &bytes);
}

#[tokio::test]
async fn once_206_always_206() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(9, 200 * KIB);
    let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
    let proxy = Proxy::of(&upstream).start().await;
    assert_part(&proxy.range(&path, "bytes=100-199").await, &bytes, 100, 200);
    proxy.get_until_hit(&path).await;
    assert_part(&proxy.range(&path, "bytes=100-199").await, &bytes, 100, 200);
    let proxy = proxy.restart().await;
    assert_part(&proxy.range(&path, "bytes=100-199").await, &bytes, 100, 200);
    assert_eq!(upstream.count("GET", &path), 1);
}

#[tokio::test]
async fn an_upstream_without_ranges_does_not_show() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(10, 300 * KIB);
    let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
    upstream.rule(on("GET", &path).ignore_range());
    let proxy = Proxy::of(&upstream).start().await;
    assert_part(&proxy.range(&path, "bytes=200000-200999").await, &bytes, 200_000, 201_000);
    proxy.get_until_hit(&path).await.assert_body(200, &bytes);
}

#[tokio::test]
async fn a_range_on_a_manifest_is_harmless() {
    let upstream = ScriptedRegistry::start().await;
    let image = upstream.image(REPOSITORY, "latest", &[sample(11, 100)]);
    let proxy = Proxy::of(&upstream).start().await;
    for reference in ["latest", &image.digest] {
        let reply = proxy.range(&manifest_path(reference), "bytes=0-").await;
        assert!(matches!(reply.status, 200 | 206), "{}", reply.status);
        reply.assert_body(reply.status, &image.manifest);
    }
}
