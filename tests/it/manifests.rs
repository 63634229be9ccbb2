//! Manifests: exact bytes, checked before the first of them goes out, refused when they are not what they claim.

use futures_util::future::join_all;
use serde_json::json;

use crate::support::REPOSITORY;
use crate::support::blob_path;
use crate::support::content::DOCKER_MANIFEST;
use crate::support::content::MIB;
use crate::support::content::OCI_CONFIG;
use crate::support::content::OCI_INDEX;
use crate::support::content::OCI_MANIFEST;
use crate::support::content::manifest_of_size;
use crate::support::content::sample;
use crate::support::content::sha256;
use crate::support::content::unknown_digest;
use crate::support::manifest_path;
use crate::support::proxy::Proxy;
use crate::support::registry::ScriptedRegistry;
use crate::support::script::on;

const MANIFEST_LIMIT_BYTES: usize = 4 * MIB;

#[tokio::test]
async fn a_whole_image_is_pulled_by_tag_and_by_digest() {
    let upstream = ScriptedRegistry::start().await;
    let image = upstream.image(REPOSITORY, "amd64", &[sample(1, 100_000), sample(2, 10)]);
    let (index_digest, index) = upstream.index(REPOSITORY, "latest", &[&image]);
    let proxy = Proxy::of(&upstream).start().await;
    let reply = proxy.get(&manifest_path("latest")).await;
    reply.assert_body(200, &index);
    reply.assert_digest(&index_digest);
    proxy.get(&manifest_path(&image.digest)).await.assert_body(200, &image.manifest);
    proxy.get(&blob_path(&image.config_digest)).await.assert_body(200, &image.config);
    for (digest, bytes) in &image.layers {
        proxy.get(&blob_path(digest)).await.assert_body(200, bytes);
    }
}

#[tokio::test]
async fn a_new_tag_of_known_content_costs_no_download() {
    let upstream = ScriptedRegistry::start().await;
    let image = upstream.image(REPOSITORY, "latest", &[sample(3, 100)]);
    upstream.tag(REPOSITORY, "v1", &image.digest);
    let proxy = Proxy::of(&upstream).start().await;
    proxy.get(&manifest_path("latest")).await.assert_digest(&image.digest);
    let downloads = upstream.count("GET", &manifest_path("*"));
    proxy.get(&manifest_path("v1")).await.assert_digest(&image.digest);
    assert_eq!(upstream.count("GET", &manifest_path("*")), downloads);
}

#[tokio::test]
async fn a_cold_tag_is_downloaded_once() {
    let upstream = ScriptedRegistry::start().await;
    let image = upstream.image(REPOSITORY, "latest", &[sample(4, 100)]);
    let proxy = Proxy::of(&upstream).start().await;
    let path = manifest_path("latest");
    for reply in join_all((0..20).map(|_| proxy.get(&path))).await {
        reply.assert_digest(&image.digest);
    }
    assert_eq!(upstream.count("GET", &manifest_path("*")), 1);
}

#[tokio::test]
async fn a_manifest_of_exactly_the_limit_is_served_and_one_byte_more_is_not() {
    let upstream = ScriptedRegistry::start().await;
    let fits = upstream.manifest(REPOSITORY, "fits", OCI_MANIFEST, manifest_of_size(MANIFEST_LIMIT_BYTES));
    let large = upstream.manifest(REPOSITORY, "large", OCI_MANIFEST, manifest_of_size(MANIFEST_LIMIT_BYTES + 1));
    let proxy = Proxy::of(&upstream).start().await;
    proxy.get(&manifest_path("fits")).await.assert_digest(&fits);
    for reference in ["large", &large] {
        let reply = proxy.get(&manifest_path(reference)).await;
        assert_eq!(reply.status, 502, "{}", reply.text());
        reply.error_code();
        let text = reply.text();
        assert!(text.contains("4194304") || text.contains("4 MiB"), "the limit is not named: {text}");
    }
}

#[tokio::test]
async fn a_manifest_without_a_length_has_a_limit_too() {
    let upstream = ScriptedRegistry::start().await;
    let digest = upstream.manifest(REPOSITORY, "large", OCI_MANIFEST, manifest_of_size(2 * MANIFEST_LIMIT_BYTES));
    upstream.rule(on("GET", "/v2/*").chunked());
    let proxy = Proxy::of(&upstream).start().await;
    assert_eq!(proxy.get(&manifest_path(&digest)).await.status, 502);
}

#[tokio::test]
async fn wrong_manifest_bytes_are_refused_whole() {
    let upstream = ScriptedRegistry::start().await;
    let image = upstream.image(REPOSITORY, "latest", &[sample(5, 100)]);
    upstream.rule(on("GET", &manifest_path("*")).corrupt(3));
    let proxy = Proxy::of(&upstream).start().await;
    for reference in ["latest", &image.digest] {
        let reply = proxy.get(&manifest_path(reference)).await;
        reply.assert_error(502, "UNAVAILABLE");
    }
    upstream.clear_rules();
    // Whatever was remembered about the failure, it is not the bytes.
    proxy.get(&manifest_path(&image.digest)).await.assert_digest(&image.digest);
    proxy.get(&manifest_path("latest")).await.assert_digest(&image.digest);
}

#[tokio::test]
async fn other_content_under_a_digest_is_refused() {
    let upstream = ScriptedRegistry::start().await;
    let honest = upstream.image(REPOSITORY, "honest", &[sample(6, 100)]);
    let wanted = sha256(b"something else");
    upstream.manifest_as(REPOSITORY, &wanted, OCI_MANIFEST, honest.manifest);
    let proxy = Proxy::of(&upstream).start().await;
    proxy.get(&manifest_path(&wanted)).await.assert_error(502, "UNAVAILABLE");
}

#[tokio::test]
async fn documents_that_contradict_themselves_are_refused() {
    let empty = json!({ "mediaType": OCI_CONFIG, "digest": unknown_digest(), "size": 2 });
    let manifest = json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": empty, "layers": [] });
    let both = json!({ "schemaVersion": 2, "config": empty, "layers": [], "manifests": [] });
    let table = [
        ("index-by-header", OCI_INDEX, manifest.to_string()),
        ("docker-by-header", DOCKER_MANIFEST, manifest.to_string()),
        ("both", OCI_MANIFEST, both.to_string()),
        ("both-index", OCI_INDEX, both.to_string()),
        ("not-json", OCI_MANIFEST, "<html>sign in</html>".to_owned()),
    ];
    let upstream = ScriptedRegistry::start().await;
    let proxy = Proxy::of(&upstream).start().await;
    for (tag, media_type, document) in table {
        let digest = upstream.manifest(REPOSITORY, tag, media_type, document);
        for reference in [tag, &digest] {
            let reply = proxy.get(&manifest_path(reference)).await;
            assert_eq!(reply.status, 502, "{tag}");
            reply.error_code();
        }
    }
    // The tag is repaired upstream; nothing of the bad document was kept.
    let good = upstream.image(REPOSITORY, "both", &[sample(7, 10)]);
    proxy.get(&manifest_path("both")).await.assert_digest(&good.digest);
}

#[tokio::test]
async fn urls_in_a_manifest_are_left_alone() {
    let elsewhere = ScriptedRegistry::start().await;
    let upstream = ScriptedRegistry::start().await;
    let layer = sha256(b"a layer that lives elsewhere");
    let url = format!("{}/v2/library/t/blobs/{layer}", elsewhere.url());
    let document = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": { "mediaType": OCI_CONFIG, "digest": unknown_digest(), "size": 2 },
        "layers": [{
            "mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            "digest": layer, "size": 27, "urls": [url],
        }],
    });
    let bytes = format!("{document:#}\n\n");
    let digest = upstream.manifest(REPOSITORY, "latest", OCI_MANIFEST, bytes.clone());
    let proxy = Proxy::of(&upstream).start().await;
    let reply = proxy.get(&manifest_path("latest")).await;
    reply.assert_body(200, bytes.as_bytes());
    reply.assert_digest(&digest);
    proxy.get(&blob_path(&layer)).await.assert_error(404, "BLOB_UNKNOWN");
    assert_eq!(elsewhere.total(), 0);
}

#[tokio::test]
async fn a_head_without_a_digest_is_no_obstacle() {
    let upstream = ScriptedRegistry::start().await;
    let image = upstream.image(REPOSITORY, "latest", &[sample(8, 100)]);
    upstream.rule(on("HEAD", &manifest_path("*")).status(405));
    let proxy = Proxy::of(&upstream).start().await;
    proxy.get(&manifest_path("latest")).await.assert_digest(&image.digest);
    assert_eq!(proxy.head(&manifest_path("latest")).await.status, 200);
}

#[tokio::test]
async fn stray_upstream_headers_do_not_come_with_a_manifest() {
    let upstream = ScriptedRegistry::start().await;
    let image = upstream.image(REPOSITORY, "latest", &[sample(9, 100)]);
    let rule = on("*", "/v2/*").header("Set-Cookie", "a=b").header("Warning", "299 - \"from upstream\"");
    upstream.rule(rule.header("X-Internal", "10.0.0.1"));
    let proxy = Proxy::of(&upstream).start().await;
    for _ in 0..2 {
        let reply = proxy.get(&manifest_path("latest")).await;
        reply.assert_digest(&image.digest);
        for name in ["Set-Cookie", "X-Internal", "Warning"] {
            assert_eq!(reply.header(name), None, "{name}");
        }
    }
}
