//! `Accept` and encodings: clients get what is stored, upstreams are asked for everything.

use crate::support::REPOSITORY;
use crate::support::blob_path;
use crate::support::content::DOCKER_LIST;
use crate::support::content::DOCKER_MANIFEST;
use crate::support::content::OCI_INDEX;
use crate::support::content::OCI_MANIFEST;
use crate::support::content::sample;
use crate::support::manifest_path;
use crate::support::proxy::Proxy;
use crate::support::registry::ScriptedRegistry;
use crate::support::script::on;

#[tokio::test]
async fn what_a_client_accepts_changes_nothing() {
    let upstream = ScriptedRegistry::start().await;
    let image = upstream.image(REPOSITORY, "amd64", &[sample(1, 100)]);
    let (digest, index) = upstream.index(REPOSITORY, "latest", &[&image]);
    let proxy = Proxy::of(&upstream).start().await;
    let docker_only = format!("{DOCKER_MANIFEST}, {DOCKER_LIST}");
    let all = format!("{DOCKER_MANIFEST}, {DOCKER_LIST}, {OCI_MANIFEST}, {OCI_INDEX}, */*");
    let table = [
        None,
        Some("*/*"),
        Some("application/json"),
        Some(docker_only.as_str()),
        Some(OCI_INDEX),
        Some(all.as_str()),
        Some("nonsense;;"),
    ];
    for accept in table {
        let headers: Vec<(&str, &str)> = accept.iter().map(|value| ("Accept", *value)).collect();
        let reply = proxy.get_with(&manifest_path("latest"), &headers).await;
        reply.assert_body(200, &index);
        reply.assert_digest(&digest);
        assert_eq!(reply.header("Content-Type"), Some(OCI_INDEX), "{accept:?}");
    }
}

#[tokio::test]
async fn the_upstream_is_asked_for_all_types_whatever_the_client_says() {
    let upstream = ScriptedRegistry::start().await;
    let image = upstream.image(REPOSITORY, "latest", &[sample(2, 100)]);
    let proxy = Proxy::of(&upstream).start().await;
    proxy.get_with(&manifest_path("latest"), &[("Accept", DOCKER_MANIFEST)]).await.assert_digest(&image.digest);
    let seen = upstream.seen("*", &manifest_path("*"));
    assert!(!seen.is_empty());
    for request in seen {
        let accept = request.headers.all("Accept").join(",");
        for media_type in [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST] {
            assert!(accept.contains(media_type), "{} {accept:?}", request.method);
        }
        assert!(!accept.contains("docker.distribution.manifest.v1"), "schema1 is never asked for: {accept:?}");
    }
}

#[tokio::test]
async fn nothing_is_encoded_on_the_way() {
    let upstream = ScriptedRegistry::start().await;
    let image = upstream.image(REPOSITORY, "latest", &[sample(3, 100_000)]);
    let layer = &image.layers[0];
    let proxy = Proxy::of(&upstream).start().await;
    let headers = [("Accept-Encoding", "zstd, gzip, br")];
    for (path, bytes) in [(manifest_path("latest"), &image.manifest), (blob_path(&layer.0), &layer.1)] {
        for _ in 0..2 {
            let reply = proxy.get_with(&path, &headers).await;
            reply.assert_body(200, bytes);
            assert_eq!(reply.header("Content-Encoding"), None);
        }
    }
    for request in upstream.log() {
        let asked = request.headers.get("Accept-Encoding").unwrap_or("identity");
        assert_eq!(asked, "identity", "{} {}", request.method, request.path);
    }
}

#[tokio::test]
async fn parameters_of_the_media_type_are_dropped() {
    let upstream = ScriptedRegistry::start().await;
    let image = upstream.image(REPOSITORY, "latest", &[sample(4, 100)]);
    for media_type in [format!("{OCI_MANIFEST}; charset=utf-8"), format!("{OCI_MANIFEST};charset=UTF-8")] {
        upstream.clear_rules();
        upstream.rule(on("*", &manifest_path("*")).header("Content-Type", &media_type));
        let proxy = Proxy::of(&upstream).start().await;
        for _ in 0..2 {
            let reply = proxy.get(&manifest_path("latest")).await;
            reply.assert_digest(&image.digest);
            assert_eq!(reply.header("Content-Type"), Some(OCI_MANIFEST));
        }
    }
}

#[tokio::test]
async fn a_docker_image_keeps_its_docker_types() {
    let upstream = ScriptedRegistry::start().await;
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{DOCKER_MANIFEST}","config":{{"mediaType":"application/vnd.docker.container.image.v1+json","size":2,"digest":"sha256:{}"}},"layers":[]}}"#,
        "1".repeat(64)
    );
    let digest = upstream.manifest(REPOSITORY, "docker", DOCKER_MANIFEST, manifest);
    let proxy = Proxy::of(&upstream).start().await;
    let reply = proxy.get_with(&manifest_path("docker"), &[("Accept", OCI_MANIFEST)]).await;
    reply.assert_digest(&digest);
    assert_eq!(reply.header("Content-Type"), Some(DOCKER_MANIFEST));
}
