//! The endpoints, one by one: what a client gets for content that exists, that does not, and that cannot be named.

use serde_json::json;

use crate::support::REPOSITORY;
use crate::support::blob_path;
use crate::support::content::KIB;
use crate::support::content::OCI_INDEX;
use crate::support::content::OCI_MANIFEST;
use crate::support::content::sample;
use crate::support::content::sha512;
use crate::support::content::unknown_digest;
use crate::support::manifest_path;
use crate::support::proxy::Proxy;
use crate::support::registry::ScriptedRegistry;

#[tokio::test]
async fn ping_answers_everybody() {
    let upstream = ScriptedRegistry::start().await;
    let proxy = Proxy::of(&upstream).start().await;
    for path in ["/v2/", "/v2"] {
        let reply = proxy.get(path).await;
        reply.assert_body(200, b"{}");
        assert_eq!(reply.header("Content-Type"), Some("application/json"));
        assert_eq!(reply.header("Content-Length"), Some("2"));
        assert_eq!(reply.header("Docker-Distribution-Api-Version"), Some("registry/2.0"));
        assert_eq!(reply.header("X-Registry-Supports-Signatures"), None);
        assert_eq!(reply.outcome(), "fwd=bypass");
    }
    assert_eq!(upstream.total(), 0, "a ping is nobody else's business");
}

#[tokio::test]
async fn head_of_a_manifest_says_what_get_says() {
    let upstream = ScriptedRegistry::start().await;
    let image = upstream.image(REPOSITORY, "amd64", &[sample(1, 1000)]);
    let (index_digest, index) = upstream.index(REPOSITORY, "latest", &[&image]);
    let table = [
        ("latest", OCI_INDEX, &index_digest, &index),
        (&index_digest, OCI_INDEX, &index_digest, &index),
        ("amd64", OCI_MANIFEST, &image.digest, &image.manifest),
        (&image.digest, OCI_MANIFEST, &image.digest, &image.manifest),
    ];
    let proxy = Proxy::of(&upstream).start().await;
    for (reference, media_type, digest, bytes) in table {
        let path = manifest_path(reference);
        // Cold, then known: the headers must not depend on it.
        for _ in 0..2 {
            let head = proxy.head(&path).await;
            head.assert_body(200, b"");
            let get = proxy.get(&path).await;
            get.assert_body(200, bytes);
            get.assert_digest(digest);
            for reply in [&head, &get] {
                assert_eq!(reply.header("Content-Type"), Some(media_type));
                assert_eq!(reply.header("Content-Length"), Some(bytes.len().to_string().as_str()));
                assert_eq!(reply.header("Docker-Content-Digest"), Some(digest.as_str()));
                assert_eq!(reply.header("ETag"), Some(format!("\"{digest}\"").as_str()));
                assert_eq!(reply.header("X-Content-Type-Options"), Some("nosniff"));
                assert_eq!(reply.header("Transfer-Encoding"), None);
                assert_eq!(reply.header("Content-Encoding"), None);
            }
        }
    }
}

#[tokio::test]
async fn a_cached_manifest_costs_the_upstream_nothing() {
    let upstream = ScriptedRegistry::start().await;
    let image = upstream.image(REPOSITORY, "latest", &[sample(2, 1000)]);
    let proxy = Proxy::of(&upstream).start().await;
    let first = proxy.get(&manifest_path("latest")).await;
    assert_eq!(first.outcome(), "fwd=miss; stored");
    let asked = upstream.total();
    for reference in ["latest", &image.digest] {
        let reply = proxy.get(&manifest_path(reference)).await;
        reply.assert_digest(&image.digest);
        assert_eq!(reply.outcome(), "hit");
    }
    assert_eq!(upstream.total(), asked);
}

#[tokio::test]
async fn blobs_are_served_whole_and_kept() {
    let upstream = ScriptedRegistry::start().await;
    let proxy = Proxy::of(&upstream).start().await;
    let sizes = [0, 1, 1000, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1, 1000 * KIB];
    for (seed, size) in sizes.into_iter().enumerate() {
        let bytes = sample(seed as u64 + 10, size);
        let digest = upstream.blob(REPOSITORY, bytes.clone());
        let path = blob_path(&digest);
        let cold = proxy.get(&path).await;
        cold.assert_body(200, &bytes);
        assert_eq!(cold.outcome(), "fwd=miss; stored", "{size} bytes");
        let hit = proxy.get_until_hit(&path).await;
        hit.assert_body(200, &bytes);
        let head = proxy.head(&path).await;
        head.assert_body(200, b"");
        for reply in [&cold, &hit, &head] {
            assert_eq!(reply.header("Content-Type"), Some("application/octet-stream"));
            assert_eq!(reply.header("Content-Length"), Some(size.to_string().as_str()));
            assert_eq!(reply.header("Accept-Ranges"), Some("bytes"));
            assert_eq!(reply.header("Docker-Content-Digest"), Some(digest.as_str()));
            assert_eq!(reply.header("ETag"), Some(format!("\"{digest}\"").as_str()));
        }
        assert_eq!(upstream.count("GET", &path), 1, "{size} bytes");
    }
}

#[tokio::test]
async fn head_of_a_cold_blob_knows_its_length() {
    let upstream = ScriptedRegistry::start().await;
    let digest = upstream.blob(REPOSITORY, sample(3, 5000));
    let proxy = Proxy::of(&upstream).start().await;
    let head = proxy.head(&blob_path(&digest)).await;
    head.assert_body(200, b"");
    assert_eq!(head.header("Content-Length"), Some("5000"));
    assert_eq!(head.header("Accept-Ranges"), Some("bytes"));
    assert_eq!(head.header("Docker-Content-Digest"), Some(digest.as_str()));
}

#[tokio::test]
async fn what_the_upstream_does_not_have_is_404() {
    let upstream = ScriptedRegistry::start().await;
    upstream.image(REPOSITORY, "latest", &[sample(4, 1000)]);
    let proxy = Proxy::of(&upstream).start().await;
    let unknown = unknown_digest();
    let cosign = format!("{}.sig", unknown.replace(':', "-"));
    let table = [
        (manifest_path("nope"), "MANIFEST_UNKNOWN"),
        (manifest_path(&unknown), "MANIFEST_UNKNOWN"),
        (manifest_path(&cosign), "MANIFEST_UNKNOWN"),
        (blob_path(&unknown), "BLOB_UNKNOWN"),
    ];
    for (path, code) in table {
        proxy.get(&path).await.assert_error(404, code);
        let head = proxy.head(&path).await;
        head.assert_body(404, b"");
    }
}

#[tokio::test]
async fn what_cannot_be_named_never_reaches_the_upstream() {
    let upstream = ScriptedRegistry::start().await;
    let proxy = Proxy::of(&upstream).start().await;
    let long_name = "a".repeat(256);
    let long_tag = "t".repeat(129);
    let hex = "0".repeat(64);
    let table = [
        ("/v2/UPPER/manifests/latest".to_owned(), "NAME_INVALID"),
        ("/v2/-lead/manifests/latest".to_owned(), "NAME_INVALID"),
        ("/v2/trail-/manifests/latest".to_owned(), "NAME_INVALID"),
        ("/v2/a..b/manifests/latest".to_owned(), "NAME_INVALID"),
        ("/v2/a___b/manifests/latest".to_owned(), "NAME_INVALID"),
        (format!("/v2/{long_name}/manifests/latest"), "NAME_INVALID"),
        (manifest_path(&long_tag), "TAG_INVALID"),
        (manifest_path(".dot"), "TAG_INVALID"),
        (manifest_path("sha256:baddigeststring"), "DIGEST_INVALID"),
        (manifest_path(&format!("sha256:{}", "A".repeat(64))), "DIGEST_INVALID"),
        (manifest_path(&format!("md5:{hex}")), "DIGEST_INVALID"),
        (blob_path("sha256:baddigeststring"), "DIGEST_INVALID"),
        (blob_path(&hex), "DIGEST_INVALID"),
        (blob_path(&format!("sha512:{hex}")), "DIGEST_INVALID"),
    ];
    for (path, code) in table {
        let reply = proxy.get(&path).await;
        assert_eq!(reply.status, 400, "{path}");
        reply.assert_error(400, code);
    }
    assert_eq!(upstream.total(), 0);
}

#[tokio::test]
async fn longest_legal_names_are_served() {
    let upstream = ScriptedRegistry::start().await;
    let repository = format!("library/{}", "a".repeat(255 - "library/".len()));
    let tag = format!("_{}", "T".repeat(127));
    let image = upstream.image(&repository, &tag, &[sample(5, 10)]);
    let proxy = Proxy::of(&upstream).start().await;
    proxy.get(&format!("/v2/{repository}/manifests/{tag}")).await.assert_digest(&image.digest);
}

#[tokio::test]
async fn sha512_content_is_served_under_its_own_digest() {
    let upstream = ScriptedRegistry::start().await;
    let blob = sample(6, 100 * KIB);
    let blob_digest = sha512(&blob);
    upstream.blob_as(REPOSITORY, &blob_digest, blob.clone());
    let manifest = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": [],
        "config": { "mediaType": "application/vnd.oci.empty.v1+json", "digest": blob_digest, "size": blob.len() },
    })
    .to_string();
    let manifest_digest = sha512(manifest.as_bytes());
    upstream.manifest_as(REPOSITORY, &manifest_digest, OCI_MANIFEST, manifest.clone());
    let proxy = Proxy::of(&upstream).start().await;
    for _ in 0..2 {
        proxy.get(&blob_path(&blob_digest)).await.assert_digest(&blob_digest);
        proxy.get(&manifest_path(&manifest_digest)).await.assert_digest(&manifest_digest);
    }
    // Other bytes under a sha512 name must be noticed by sha512.
    let lie = sha512(b"what the digest says");
    upstream.blob_as(REPOSITORY, &lie, blob);
    let reply = proxy.get(&blob_path(&lie)).await;
    assert!(!(reply.status == 200 && reply.is_complete()), "unverified bytes went out");
}

#[tokio::test]
async fn a_connection_serves_many_requests() {
    let upstream = ScriptedRegistry::start().await;
    let image = upstream.image(REPOSITORY, "latest", &[sample(7, 300 * KIB)]);
    let proxy = Proxy::of(&upstream).start().await;
    let mut connection = crate::support::client::Connection::open(proxy.address).await.unwrap();
    let layer = blob_path(&image.layers[0].0);
    let missing = manifest_path("nope");
    let manifest = manifest_path("latest");
    let requests = [
        ("HEAD", &manifest),
        ("GET", &manifest),
        ("GET", &missing),
        ("GET", &layer),
        ("HEAD", &layer),
        ("GET", &layer),
    ];
    for (method, path) in requests {
        connection.send(method, path, &[]).await.unwrap();
        let incoming = crate::support::within(crate::support::PATIENCE, connection.receive(method)).await.unwrap();
        let (reply, back) = crate::support::within(crate::support::PATIENCE, incoming.finish()).await;
        assert!(reply.is_complete(), "{method} {path}");
        assert_eq!(reply.status, if path == &missing { 404 } else { 200 });
        if method == "GET" && path == &layer {
            assert_eq!(reply.body, image.layers[0].1);
        }
        connection = back;
    }
}
