//! Whose fault it is, said in the registry's own words: wrong requests, and upstreams that fail.

use std::time::Duration;
use std::time::Instant;

use futures_util::future::join_all;

use crate::support::PATIENCE;
use crate::support::REPOSITORY;
use crate::support::blob_path;
use crate::support::client::Connection;
use crate::support::content::sample;
use crate::support::manifest_path;
use crate::support::proxy::Proxy;
use crate::support::registry::ScriptedRegistry;
use crate::support::script::on;
use crate::support::within;

#[tokio::test]
async fn an_upstream_answer_has_one_translation() {
    let table = [
        (500, 502, "UNAVAILABLE"),
        (502, 502, "UNAVAILABLE"),
        (503, 502, "UNAVAILABLE"),
        (401, 403, "DENIED"),
        (403, 403, "DENIED"),
        (429, 429, "TOOMANYREQUESTS"),
    ];
    join_all(table.map(|row| async move {
        let (upstream_status, status, code) = row;
        let upstream = ScriptedRegistry::start().await;
        let image = upstream.image(REPOSITORY, "latest", &[sample(1, 1000)]);
        upstream.rule(on("*", "/v2/*").status(upstream_status).header("Retry-After", "3000"));
        for path in [manifest_path("latest"), manifest_path(&image.digest), blob_path(&image.layers[0].0)] {
            // A proxy of its own: what one answer taught must not decide about the next.
            let proxy = Proxy::of(&upstream).start().await;
            let (reply, head) = tokio::join!(proxy.get(&path), proxy.head(&path));
            assert_eq!(reply.status, status, "{upstream_status} for {path}: {}", reply.text());
            reply.assert_error(status, code);
            if status == 429 {
                assert!(reply.header("Retry-After").is_some());
            }
            assert_eq!((head.status, head.body.len()), (status, 0));
        }
    }))
    .await;
}

#[tokio::test]
async fn not_found_is_not_found_and_gone_is_not_found() {
    for status in [404, 410] {
        let upstream = ScriptedRegistry::start().await;
        upstream.rule(on("*", "/v2/*").status(status).body("<html>nothing here</html>"));
        let proxy = Proxy::of(&upstream).start().await;
        proxy.get(&manifest_path("latest")).await.assert_error(404, "MANIFEST_UNKNOWN");
        let digest = crate::support::content::unknown_digest();
        proxy.get(&blob_path(&digest)).await.assert_error(404, "BLOB_UNKNOWN");
    }
}

#[tokio::test]
async fn an_upstream_that_says_nothing_is_a_time_out() {
    let upstream = ScriptedRegistry::start().await;
    let image = upstream.image(REPOSITORY, "latest", &[sample(2, 1000)]);
    upstream.rule(on("*", "/v2/*").hang());
    let proxy = Proxy::of(&upstream).each("read_timeout", "1s").start().await;
    for path in [manifest_path("latest"), blob_path(&image.layers[0].0)] {
        let asked = Instant::now();
        proxy.get(&path).await.assert_error(504, "UNAVAILABLE");
        assert!(asked.elapsed() >= Duration::from_secs(1), "{:?}", asked.elapsed());
    }
}

#[tokio::test]
async fn an_upstream_that_refuses_fails_fast() {
    let upstream = ScriptedRegistry::start().await;
    upstream.stop().await;
    let proxy = Proxy::of(&upstream).start().await;
    // Far sooner than any of the proxy's own limits, which are hours here.
    proxy.get(&manifest_path("latest")).await.assert_error(502, "UNAVAILABLE");
}

#[tokio::test]
async fn an_upstream_hiccup_is_not_a_clients_problem() {
    for status in [500, 503] {
        let upstream = ScriptedRegistry::start().await;
        let image = upstream.image(REPOSITORY, "latest", &[sample(3, 1000)]);
        upstream.rule(on("GET", "/v2/library/t/blobs/*").first(1).status(status));
        let proxy = Proxy::of(&upstream).start().await;
        let layer = &image.layers[0].0;
        within(PATIENCE, async {
            // Mended by a retry of the proxy or by one of the client, never remembered as missing.
            loop {
                let reply = proxy.get(&blob_path(layer)).await;
                if reply.status == 200 {
                    return reply.assert_digest(layer);
                }
                reply.assert_error(502, "UNAVAILABLE");
                tokio::time::sleep(crate::support::GLANCE).await;
            }
        })
        .await;
    }
}

#[tokio::test]
async fn pushing_is_not_offered() {
    let upstream = ScriptedRegistry::start().await;
    let proxy = Proxy::of(&upstream).start().await;
    let digest = crate::support::content::unknown_digest();
    let table = [
        ("POST", format!("/v2/{REPOSITORY}/blobs/uploads/")),
        ("POST", format!("/v2/{REPOSITORY}/blobs/uploads/?mount={digest}&from=library/x")),
        ("PATCH", format!("/v2/{REPOSITORY}/blobs/uploads/5f2d")),
        ("PUT", format!("/v2/{REPOSITORY}/blobs/uploads/5f2d?digest={digest}")),
        ("PUT", manifest_path("latest")),
        ("DELETE", manifest_path("latest")),
        ("DELETE", blob_path(&digest)),
    ];
    for (method, path) in table {
        // A client that announces a layer and waits: the answer must not wait for the layer.
        let mut connection = Connection::open(proxy.address).await.unwrap();
        connection.send(method, &path, &[("Content-Length", "1073741824")]).await.unwrap();
        let incoming = within(PATIENCE, connection.receive(method)).await.unwrap();
        let reply = incoming.reply().await;
        assert_eq!(reply.status, 405, "{method} {path}");
        assert_eq!(reply.header("Allow"), Some("GET, HEAD"), "{method} {path}");
        reply.assert_error(405, "UNSUPPORTED");
    }
    assert_eq!(upstream.total(), 0);
}

#[tokio::test]
async fn the_catalog_is_not_served() {
    let upstream = ScriptedRegistry::start().await;
    let proxy = Proxy::of(&upstream).start().await;
    assert_eq!(proxy.get("/v2/_catalog").await.status, 404);
    assert_eq!(proxy.get("/v2/_catalog?n=1000000000").await.status, 404);
    assert_eq!(upstream.total(), 0);
}

#[tokio::test]
async fn too_many_headers_are_refused() {
    let upstream = ScriptedRegistry::start().await;
    let proxy = Proxy::of(&upstream).start().await;
    let mut head = format!("GET /v2/ HTTP/1.1\r\nHost: {}\r\n", proxy.address);
    for number in 0..2000 {
        head.push_str(&format!("X-{number}: x\r\n"));
    }
    head.push_str("\r\n");
    let mut connection = Connection::open(proxy.address).await.unwrap();
    connection.write(head.as_bytes()).await.unwrap();
    let reply = within(PATIENCE, connection.receive("GET")).await.unwrap();
    assert_eq!(reply.status, 431);
    assert_eq!(proxy.get("/v2/").await.status, 200);
}

#[tokio::test]
async fn an_endless_header_is_refused() {
    let upstream = ScriptedRegistry::start().await;
    let proxy = Proxy::of(&upstream).start().await;
    let mut connection = Connection::open(proxy.address).await.unwrap();
    let head = format!("GET /v2/ HTTP/1.1\r\nHost: x\r\nX-Long: {}", "x".repeat(1024 * 1024));
    // It may hang up in the middle of this.
    let _ = within(PATIENCE, connection.write(head.as_bytes())).await;
    if let Ok(reply) = within(PATIENCE, connection.receive("GET")).await {
        assert_eq!(reply.status, 431);
    }
    assert_eq!(proxy.get("/v2/").await.status, 200);
}

#[tokio::test]
async fn what_is_not_http_is_hung_up_on() {
    let upstream = ScriptedRegistry::start().await;
    let proxy = Proxy::of(&upstream).start().await;
    // The first is how a client that wants TLS begins.
    let table: [&[u8]; 3] =
        [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"NONSENSE\r\n\r\n", b"GET  HTTP/1.1\r\n\r\n"];
    for bytes in table {
        let mut connection = Connection::open(proxy.address).await.unwrap();
        connection.write(bytes).await.unwrap();
        if let Ok(reply) = within(PATIENCE, connection.receive("GET")).await {
            assert_eq!(reply.status, 400);
        }
    }
    assert_eq!(proxy.get("/v2/").await.status, 200);
}
