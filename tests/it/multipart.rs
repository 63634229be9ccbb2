//! Several ranges in one request: each in a part of its own, or all of the blob.

use std::fs::OpenOptions;
use std::ops::Range;
use std::path::Path;
use std::path::PathBuf;

use crate::support::PATIENCE;
use crate::support::REPOSITORY;
use crate::support::blob_path;
use crate::support::client;
use crate::support::client::Connection;
use crate::support::client::End;
use crate::support::client::Reply;
use crate::support::content::KIB;
use crate::support::content::MIB;
use crate::support::content::sample;
use crate::support::proxy::Proxy;
use crate::support::registry::ScriptedRegistry;
use crate::support::script::Gate;
use crate::support::script::on;
use crate::support::within;

type Ranges = [Range<usize>];

/// A `Range` field that asks for these.
fn field(ranges: &Ranges) -> String {
    let items: Vec<String> = ranges.iter().map(|range| format!("{}-{}", range.start, range.end - 1)).collect();
    format!("bytes={}", items.join(","))
}

/// Takes a multipart body apart as strictly as it was written: its parts, each with its lines of head and its bytes.
fn parse<'a>(boundary: &str, mut body: &'a [u8]) -> Vec<(Vec<&'a str>, &'a [u8])> {
    let delimiter = format!("--{boundary}");
    let mut parts = Vec::new();
    body = body.strip_prefix(delimiter.as_bytes()).expect("a boundary at the start");
    while body != b"--\r\n" {
        body = body.strip_prefix(b"\r\n").expect("a line end after the boundary");
        let head_bytes = find(body, b"\r\n\r\n").expect("the end of the head of a part");
        let head = std::str::from_utf8(&body[..head_bytes]).unwrap().split("\r\n").collect();
        body = &body[head_bytes + 4..];
        let end = format!("\r\n{delimiter}");
        let part_bytes = find(body, end.as_bytes()).expect("a boundary after the part");
        parts.push((head, &body[..part_bytes]));
        body = &body[part_bytes + end.len()..];
    }
    parts
}

fn find(body: &[u8], wanted: &[u8]) -> Option<usize> {
    body.windows(wanted.len()).position(|window| window == wanted)
}

/// Asserts a 206 with exactly these ranges of `bytes`, in this order.
#[track_caller]
fn assert_parts(reply: &Reply, bytes: &[u8], ranges: &Ranges) {
    assert_eq!((reply.status, reply.end), (206, End::Complete), "{:?}", reply.headers);
    let media_type = reply.header("Content-Type").unwrap();
    let boundary = media_type.strip_prefix("multipart/byteranges; boundary=").expect(media_type);
    assert!((1..=70).contains(&boundary.len()) && boundary.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    assert_eq!(reply.header("Content-Range"), None);
    assert_eq!(reply.header("Accept-Ranges"), Some("bytes"));
    assert_eq!(reply.header("Transfer-Encoding"), None);
    assert_eq!(reply.header("Content-Length"), Some(reply.body.len().to_string().as_str()));
    let parts = parse(boundary, &reply.body);
    assert_eq!(parts.len(), ranges.len());
    for ((head, part), range) in parts.into_iter().zip(ranges) {
        let content_range = format!("Content-Range: bytes {}-{}/{}", range.start, range.end - 1, bytes.len());
        assert_eq!(head, ["Content-Type: application/octet-stream", &content_range]);
        assert!(part == &bytes[range.clone()], "other bytes in {range:?}");
    }
}

/// A proxy that has this blob, and the path of it.
async fn stored(upstream: &ScriptedRegistry, bytes: &[u8]) -> (Proxy, String) {
    let path = blob_path(&upstream.blob(REPOSITORY, bytes.to_vec()));
    let proxy = Proxy::of(upstream).start().await;
    proxy.get_until_hit(&path).await.assert_body(200, bytes);
    (proxy, path)
}

#[tokio::test]
async fn parts_of_a_small_blob() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(1, 2000);
    let (proxy, path) = stored(&upstream, &bytes).await;
    let sixteen: Vec<Range<usize>> = (0..16).rev().map(|place| place * 100..place * 100 + 50).collect();
    let table: [&Ranges; 6] = [
        &[0..10, 100..110],
        &[1990..2000, 0..1],
        &[0..10, 10..20],
        &[0..100, 50..150, 0..100],
        &[0..999, 1000..2000],
        &sixteen,
    ];
    for ranges in table {
        let reply = proxy.range(&path, &field(ranges)).await;
        assert_parts(&reply, &bytes, ranges);
        assert_eq!(reply.outcome(), "hit");
    }
    let open_ended = proxy.range(&path, "bytes=-10, 1900-1949 ,1980-").await;
    assert_parts(&open_ended, &bytes, &[1990..2000, 1900..1950, 1980..2000]);
    assert_eq!(upstream.count("GET", &path), 1);
}

#[tokio::test]
async fn parts_of_a_large_blob() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(2, 4 * MIB);
    let (proxy, path) = stored(&upstream, &bytes).await;
    let many: Vec<Range<usize>> = (0..16).map(|place| place * 256 * KIB + 7..(place + 1) * 256 * KIB - 7).collect();
    let table: [&Ranges; 3] =
        [&[3 * MIB..4 * MIB, 1..MIB + 1, 2 * MIB..2 * MIB + 1], &[0..1, 4 * MIB - 1..4 * MIB], &many];
    for ranges in table {
        assert_parts(&proxy.range(&path, &field(ranges)).await, &bytes, ranges);
    }
    let proxy = proxy.restart().await;
    assert_parts(&proxy.range(&path, &field(&many)).await, &bytes, &many);
    assert_eq!(upstream.count("GET", &path), 1);
}

#[tokio::test]
async fn the_connection_is_good_for_more() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(3, MIB);
    let (proxy, path) = stored(&upstream, &bytes).await;
    let mut connection = Connection::open(proxy.address).await.unwrap();
    for ranges in [[0..10, 20..30], [5..300 * KIB, 400 * KIB..401 * KIB]] {
        connection.send("GET", &path, &[("Range", &field(&ranges))]).await.unwrap();
        let reply;
        let receiving = async { connection.receive("GET").await.unwrap().finish().await };
        (reply, connection) = within(PATIENCE, receiving).await;
        assert_parts(&reply, &bytes, &ranges);
    }
}

#[tokio::test]
async fn what_cannot_be_satisfied_is_left_out() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(4, 2000);
    let (proxy, path) = stored(&upstream, &bytes).await;
    let reply = proxy.range(&path, "bytes=5000-,10-19,9-0,2000-2001,0-4,-0").await;
    assert_parts(&reply, &bytes, &[10..20, 0..5]);
    let one = proxy.range(&path, "bytes=5000-6000,10-19,2000-").await;
    one.assert_body(206, &bytes[10..20]);
    assert_eq!(one.headers.all("Content-Range"), ["bytes 10-19/2000"]);
    assert_eq!(one.header("Content-Type"), Some("application/octet-stream"));
    assert_eq!(one.header("Accept-Ranges"), Some("bytes"));
    let none = proxy.range(&path, "bytes=5000-6000,2000-,9-0").await;
    none.assert_error(416, "RANGE_INVALID");
    assert_eq!(none.header("Content-Range"), Some("bytes */2000"));
}

#[tokio::test]
async fn too_much_gets_everything() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(5, 2000);
    let (proxy, path) = stored(&upstream, &bytes).await;
    let ranges = |count: usize| field(&(0..count).map(|place| place..place + 1).collect::<Vec<_>>());
    let table = [
        ranges(17),
        ranges(65),
        ranges(1000),
        format!("bytes={}", vec!["0-"; 16].join(",")),
        "bytes=0-999,1000-1999".to_owned(),
        "bytes=0-,0-0".to_owned(),
        "bytes=0-1499,1000-1999".to_owned(),
        "bytes=0-9,abc".to_owned(),
    ];
    for range in table {
        let reply = proxy.range(&path, &range).await;
        reply.assert_body(200, &bytes);
        assert_eq!(reply.header("Content-Range"), None, "{range}");
        assert_eq!(reply.header("Content-Type"), Some("application/octet-stream"));
    }
    let empty = upstream.blob(REPOSITORY, "");
    let (empty, nothing) = (blob_path(&empty), "bytes=0-,-1");
    proxy.get_until_hit(&empty).await;
    proxy.range(&empty, nothing).await.assert_error(416, "RANGE_INVALID");
}

#[tokio::test]
async fn what_is_not_all_here_comes_whole() {
    let upstream = ScriptedRegistry::start().await;
    let proxy = Proxy::of(&upstream).start().await;
    for (seed, size) in [(6, 2000), (7, 4 * MIB)] {
        for (nth, range) in ["bytes=0-9,100-109", "bytes=0-9,99999999-", "bytes=99999999-,9-0"].into_iter().enumerate()
        {
            let bytes = sample(seed + 10 * nth as u64, size);
            let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
            let reply = proxy.range(&path, range).await;
            reply.assert_body(200, &bytes);
            assert_eq!(reply.header("Content-Range"), None);
            proxy.get_until_hit(&path).await.assert_body(200, &bytes);
        }
    }
    let bytes = sample(8, MIB);
    let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
    let gate = Gate::new();
    upstream.rule(on("GET", &path).first(1).hold_at(512 * KIB, &gate));
    let first = proxy.open(&path).await;
    let second = client::open(proxy.address, "GET", &path, &[("Range", "bytes=0-9,100-109")]).await;
    assert_eq!(second.status, 200);
    gate.release();
    first.reply().await.assert_body(200, &bytes);
    second.reply().await.assert_body(200, &bytes);
    proxy.get_until_hit(&path).await;
    assert_parts(&proxy.range(&path, "bytes=0-9,100-109").await, &bytes, &[0..10, 100..110]);
}

#[tokio::test]
async fn conditions_come_first() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(9, 2000);
    let (proxy, path) = stored(&upstream, &bytes).await;
    let tag = format!("\"{}\"", path.rsplit('/').next().unwrap());
    let weak = format!("W/{tag}");
    let ranges = [500..600, 3..4];
    let range = field(&ranges);
    let ask = |name: &'static str, value: String| {
        let (proxy, path, range) = (&proxy, &path, &range);
        async move { proxy.get_with(path, &[("Range", range), (name, &value)]).await }
    };
    assert_parts(&ask("If-Range", tag.clone()).await, &bytes, &ranges);
    for other in [weak, "\"other\"".to_owned(), "Sat, 21 Nov 2026 05:00:00 GMT".to_owned()] {
        ask("If-Range", other).await.assert_body(200, &bytes);
    }
    ask("If-None-Match", tag).await.assert_body(304, b"");
    assert_parts(&ask("If-None-Match", "\"other\"".to_owned()).await, &bytes, &ranges);
    let head = client::request(proxy.address, "HEAD", &path, &[("Range", &range)]).await;
    assert_eq!((head.status, head.header("Content-Length")), (200, Some("2000")));
}

#[tokio::test]
async fn parts_of_a_damaged_file_are_fetched_again() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(10, 4 * MIB);
    let (proxy, path) = stored(&upstream, &bytes).await;
    let file = file_of_size(&proxy.data(), bytes.len() as u64).expect("the blob is a file of its own");
    OpenOptions::new().write(true).open(file).unwrap().set_len(2 * MIB as u64).unwrap();
    // Several ranges of what is no longer here: all of it, as on a cold blob.
    proxy.range(&path, "bytes=0-99,3000000-3999999,200-299").await.assert_body(200, &bytes);
    proxy.get_until_hit(&path).await.assert_body(200, &bytes);
}

fn file_of_size(folder: &Path, size_bytes: u64) -> Option<PathBuf> {
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).find_map(|path| {
        let metadata = path.metadata().unwrap();
        if metadata.is_dir() { file_of_size(&path, size_bytes) } else { (metadata.len() == size_bytes).then_some(path) }
    })
}
