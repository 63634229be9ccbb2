//! What broke other caches: each of these is something that real registries and real clients do.

use std::time::Duration;
use std::time::Instant;

use futures_util::future::join_all;
use serde_json::json;

use crate::support::PATIENCE;
use crate::support::REGISTRY;
use crate::support::REPOSITORY;
use crate::support::blob_path;
use crate::support::client;
use crate::support::content::DOCKER_MANIFEST;
use crate::support::content::KIB;
use crate::support::content::MIB;
use crate::support::content::OCI_INDEX;
use crate::support::content::OCI_MANIFEST;
use crate::support::content::sample;
use crate::support::content::sha256;
use crate::support::manifest_path;
use crate::support::proxy::Proxy;
use crate::support::proxy::Registry;
use crate::support::proxy::Setup;
use crate::support::registry::ScriptedRegistry;
use crate::support::reserve;
use crate::support::script::Gate;
use crate::support::script::on;
use crate::support::within;

#[tokio::test]
async fn an_upstream_that_sends_more_than_it_promised() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(1, 300 * KIB);
    let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
    upstream.rule(on("GET", &path).first(1).surplus("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad"));
    let other = sample(2, 300 * KIB);
    let other_path = blob_path(&upstream.blob(REPOSITORY, other.clone()));
    let proxy = Proxy::of(&upstream).start().await;
    proxy.get(&path).await.assert_body(200, &bytes);
    // The answer nobody asked for belongs to nobody.
    proxy.pull(&other_path, &other).await.assert_body(200, &other);
    proxy.get_until_hit(&path).await.assert_body(200, &bytes);
}

#[tokio::test]
async fn a_chunked_body_with_something_behind_it() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(3, 300 * KIB);
    let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
    upstream.rule(on("GET", &path).first(1).chunked().surplus("garbage"));
    let proxy = Proxy::of(&upstream).start().await;
    proxy.pull(&path, &bytes).await.assert_body(200, &bytes);
    proxy.get_until_hit(&path).await.assert_body(200, &bytes);
}

#[tokio::test]
async fn a_head_before_the_get() {
    let upstream = ScriptedRegistry::start().await;
    let image = upstream.image(REPOSITORY, "latest", &[sample(4, 300 * KIB)]);
    let (digest, bytes) = &image.layers[0];
    let proxy = Proxy::of(&upstream).start().await;
    assert_eq!(proxy.head(&manifest_path("latest")).await.header("Docker-Content-Digest"), Some(image.digest.as_str()));
    proxy.get(&manifest_path("latest")).await.assert_digest(&image.digest);
    let head = proxy.head(&blob_path(digest)).await;
    assert_eq!((head.status, head.header("Content-Length")), (200, Some("307200")));
    proxy.get(&blob_path(digest)).await.assert_body(200, bytes);
    assert_eq!(upstream.count("GET", &blob_path(digest)), 1);
}

#[tokio::test]
async fn a_head_that_lies_about_the_length() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(5, 300 * KIB);
    let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
    upstream.rule(on("HEAD", &path).header("Content-Length", "5"));
    let proxy = Proxy::of(&upstream).start().await;
    proxy.head(&path).await;
    proxy.get(&path).await.assert_body(200, &bytes);
    proxy.get_until_hit(&path).await;
    assert_eq!(proxy.head(&path).await.header("Content-Length"), Some("307200"));
}

#[tokio::test]
async fn a_tag_that_moves_between_index_and_child() {
    let upstream = ScriptedRegistry::start().await;
    let old = upstream.image(REPOSITORY, "old", &[sample(6, 10 * KIB)]);
    let new = upstream.image(REPOSITORY, "new", &[sample(7, 10 * KIB)]);
    let (old_index, _) = upstream.index(REPOSITORY, "latest", &[&old]);
    let proxy = Proxy::of(&upstream).each("tag_ttl", "1ms").start().await;
    proxy.get(&manifest_path("latest")).await.assert_digest(&old_index);
    let (new_index, _) = upstream.index(REPOSITORY, "latest", &[&new]);
    proxy.get(&manifest_path(&old.digest)).await.assert_digest(&old.digest);
    proxy.get(&blob_path(&old.layers[0].0)).await.assert_body(200, &old.layers[0].1);
    proxy.get_checked(&manifest_path("latest")).await.assert_digest(&new_index);
    proxy.get(&manifest_path(&old_index)).await.assert_digest(&old_index);
}

#[tokio::test]
async fn a_tag_that_moves_between_head_and_get() {
    let upstream = ScriptedRegistry::start().await;
    let old = upstream.image(REPOSITORY, "latest", &[sample(8, 10 * KIB)]);
    let proxy = Proxy::of(&upstream).each("tag_ttl", "1ms").start().await;
    proxy.get(&manifest_path("latest")).await.assert_digest(&old.digest);
    let gate = Gate::new();
    upstream.image(REPOSITORY, "latest", &[sample(9, 10 * KIB)]);
    upstream.rule(on("GET", "/v2/library/t/manifests/*").first(1).hang_until(&gate));
    let address = proxy.address;
    let waiting = tokio::spawn(async move { client::request(address, "GET", &manifest_path("latest"), &[]).await });
    gate.reached().await;
    let newest = upstream.image(REPOSITORY, "latest", &[sample(10, 10 * KIB)]);
    gate.release();
    let reply = waiting.await.unwrap();
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("Docker-Content-Digest"), Some(sha256(&reply.body).as_str()));
    within(PATIENCE, async {
        while proxy.get(&manifest_path("latest")).await.header("Docker-Content-Digest") != Some(&newest.digest) {
            tokio::time::sleep(crate::support::GLANCE).await;
        }
    })
    .await;
}

#[tokio::test]
async fn an_index_with_a_child_that_is_missing() {
    let upstream = ScriptedRegistry::start().await;
    let here = upstream.image(REPOSITORY, "here", &[sample(11, 10 * KIB)]);
    let missing = crate::support::content::image("missing", &[sample(12, 10 * KIB)]);
    let (index, bytes) = upstream.index(REPOSITORY, "latest", &[&here, &missing]);
    let proxy = Proxy::of(&upstream).start().await;
    let reply = proxy.get(&manifest_path("latest")).await;
    reply.assert_digest(&index);
    assert_eq!(reply.body, bytes);
    proxy.get(&manifest_path(&missing.digest)).await.assert_error(404, "MANIFEST_UNKNOWN");
    proxy.get(&manifest_path(&here.digest)).await.assert_digest(&here.digest);
    // When it does appear, it is there.
    upstream.manifest_as(REPOSITORY, &missing.digest, OCI_MANIFEST, missing.manifest.clone());
    within(PATIENCE, async {
        while proxy.get(&manifest_path(&missing.digest)).await.status != 200 {
            tokio::time::sleep(crate::support::GLANCE * 10).await;
        }
    })
    .await;
}

#[tokio::test]
async fn hundreds_of_tags_checked_at_once() {
    const TAGS: usize = 300;
    let upstream = ScriptedRegistry::start().await;
    let images: Vec<_> =
        (0..TAGS).map(|tag| upstream.image(REPOSITORY, &format!("v{tag}"), &[sample(1000 + tag as u64, 10)])).collect();
    let proxy = Proxy::of(&upstream).each("tag_ttl", "1ms").start().await;
    for outcome in ["fwd=miss", "hit; detail=revalidated"] {
        let paths: Vec<String> = (0..TAGS).map(|tag| manifest_path(&format!("v{tag}"))).collect();
        let asked = Instant::now();
        let replies = join_all(paths.iter().map(|path| proxy.get(path))).await;
        // A known tag waits no longer than this for its check: a slow machine may not get through with all of them.
        let may_be_stale = asked.elapsed() >= Duration::from_secs(2);
        for (reply, image) in replies.iter().zip(&images) {
            reply.assert_digest(&image.digest);
            let is_stale = may_be_stale && reply.outcome().starts_with("fwd=stale");
            assert!(reply.outcome().starts_with(outcome) || is_stale, "{}", reply.outcome());
        }
    }
    assert_eq!(upstream.count("GET", "/v2/library/t/manifests/*"), TAGS);
}

#[tokio::test]
async fn too_many_requests_without_a_word_when_to_come_back() {
    let upstream = ScriptedRegistry::start().await;
    let image = upstream.image(REPOSITORY, "latest", &[sample(13, 10 * KIB)]);
    let proxy = Proxy::of(&upstream).each("tag_ttl", "1ms").start().await;
    proxy.get(&manifest_path("latest")).await.assert_digest(&image.digest);
    upstream.rule(on("*", "/v2/library/t/manifests/*").status(429));
    // For what is known it is no reason not to answer, for the rest the upstream is left alone for a while.
    for _ in 0..3 {
        proxy.get(&manifest_path("latest")).await.assert_digest(&image.digest);
    }
    let asked = upstream.count("*", "/v2/library/t/manifests/*");
    for _ in 0..3 {
        let unknown = proxy.get(&manifest_path("other")).await;
        unknown.assert_error(429, "TOOMANYREQUESTS");
        assert!(unknown.header("Retry-After").is_some());
    }
    assert_eq!(upstream.count("*", "/v2/library/t/manifests/*"), asked);
    let (digest, bytes) = &image.layers[0];
    proxy.pull(&blob_path(digest), bytes).await;
}

#[tokio::test]
async fn a_blob_that_is_limited_midway() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(14, MIB);
    let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
    upstream.rule(on("GET", &path).first(1).cut_at(MIB / 2));
    upstream.rule(on("GET", &path).first(1).status(429).header("Retry-After", "1"));
    let proxy = Proxy::of(&upstream).start().await;
    let reply = proxy.get(&path).await;
    assert!(!reply.is_poison(&bytes) && bytes.starts_with(&reply.body));
    proxy.pull(&path, &bytes).await;
}

#[tokio::test]
async fn a_proxy_in_front_of_itself_gives_up() {
    let (_port, address) = reserve("127.0.0.1:0".parse().unwrap());
    let registry = Registry::new(REGISTRY, &format!("http://{address}"));
    let setup = Setup::new(&[registry]).set("server", "listen", vec![address.to_string()]);
    let proxy = setup.each("read_timeout", "2s").start().await;
    let digest = sha256(b"nothing");
    for path in [manifest_path("latest"), manifest_path(&digest), blob_path(&digest)] {
        let reply = proxy.get(&path).await;
        assert!(reply.status >= 400 && reply.status != 404, "{path}: {}", reply.status);
        reply.error_code();
    }
    assert_eq!(proxy.get("/v2/").await.status, 200);
    assert_eq!(proxy.admin("/healthz").await.status, 200);
}

#[tokio::test]
async fn an_image_of_the_first_schema() {
    let upstream = ScriptedRegistry::start().await;
    let media_type = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    let body = json!({ "schemaVersion": 1, "name": "library/t", "tag": "old", "fsLayers": [], "signatures": [] });
    // Its digest leaves the signatures out, so the bytes do not have it.
    let digest = sha256(b"without the signatures");
    upstream.manifest_as(REPOSITORY, &digest, media_type, body.to_string());
    upstream.tag(REPOSITORY, "old", &digest);
    let proxy = Proxy::of(&upstream).start().await;
    for reference in ["old", digest.as_str()] {
        let reply = proxy.get(&manifest_path(reference)).await;
        assert!(matches!(reply.status, 404 | 415 | 502), "{reference}: {}", reply.status);
        reply.error_code();
    }
    assert_eq!(proxy.get("/v2/").await.status, 200);
}

#[tokio::test]
async fn a_blob_beyond_four_gigabytes() {
    const LENGTH: &str = "21474836480";
    let upstream = ScriptedRegistry::start().await;
    let digest = upstream.blob(REPOSITORY, sample(15, 100));
    let path = blob_path(&digest);
    let gate = Gate::new();
    upstream.rule(on("HEAD", &path).header("Content-Length", LENGTH));
    upstream.rule(on("GET", &path).header("Content-Length", LENGTH).hold_at(100, &gate));
    let proxy = Proxy::of(&upstream).start().await;
    assert_eq!(proxy.head(&path).await.header("Content-Length"), Some(LENGTH));
    let mut incoming = proxy.open(&path).await;
    assert_eq!(incoming.headers.get("Content-Length"), Some(LENGTH));
    assert!(within(PATIENCE, incoming.read(99)).await);
    let reply = proxy.range(&path, &format!("bytes={LENGTH}-")).await;
    reply.assert_error(416, "RANGE_INVALID");
    assert_eq!(reply.header("Content-Range"), Some(format!("bytes */{LENGTH}").as_str()));
    let far = proxy.open_range(&path, "bytes=21474836470-").await;
    assert_eq!(far.headers.get("Content-Range"), Some("bytes 21474836470-21474836479/21474836480"));
}

#[tokio::test]
async fn two_clients_with_different_tastes() {
    let upstream = ScriptedRegistry::start().await;
    let image = upstream.image(REPOSITORY, "child", &[sample(16, 10)]);
    let (index, _) = upstream.index(REPOSITORY, "latest", &[&image]);
    let proxy = Proxy::of(&upstream).start().await;
    let path = manifest_path("latest");
    // The index is there for both, or refused to the one who cannot read it; never one's answer for the other.
    for accept in [OCI_INDEX, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST] {
        let reply = proxy.get_with(&path, &[("Accept", accept)]).await;
        match reply.status {
            200 => {
                reply.assert_digest(&index);
                assert_eq!(reply.header("Content-Type"), Some(OCI_INDEX));
            }
            status => assert!(accept != OCI_INDEX && (400..500).contains(&status), "{accept}: {status}"),
        }
    }
}

#[tokio::test]
async fn evicted_while_it_is_downloaded_again() {
    let upstream = ScriptedRegistry::start().await;
    let proxy = Proxy::of(&upstream).set("storage", "max_size", "3MiB").start().await;
    let blobs: Vec<_> = (0..6)
        .map(|seed| {
            let bytes = sample(200 + seed, MIB);
            (blob_path(&upstream.blob(REPOSITORY, bytes.clone())), bytes)
        })
        .collect();
    for _ in 0..4 {
        let pulls = blobs.iter().flat_map(|blob| [blob, blob]).map(|(path, bytes)| {
            let proxy = &proxy;
            async move { proxy.get(path).await.assert_body(200, bytes) }
        });
        join_all(pulls).await;
    }
}
