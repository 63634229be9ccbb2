//! Pins and purges as an operator uses them: what is pinned comes, stays and follows its tag; what is purged goes.

use bytes::Bytes;
use serde_json::Value;
use serde_json::json;

use crate::api::ask;
use crate::api::pull;
use crate::support::GLANCE;
use crate::support::PATIENCE;
use crate::support::REGISTRY;
use crate::support::REPOSITORY;
use crate::support::blob_path;
use crate::support::content::Image;
use crate::support::content::KIB;
use crate::support::content::OCI_INDEX;
use crate::support::content::OCI_MANIFEST;
use crate::support::content::sample;
use crate::support::manifest_path;
use crate::support::proxy::Proxy;
use crate::support::registry::ScriptedRegistry;
use crate::support::within;

fn named(tag: &str) -> String {
    format!("{REGISTRY}/{REPOSITORY}:{tag}")
}

async fn pin(proxy: &Proxy, body: &Value) -> Value {
    let reply = ask(proxy, "POST", "/api/v1/pins", body).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()
}

async fn pins(proxy: &Proxy) -> Vec<Value> {
    let listed: Value = proxy.admin("/api/v1/pins").await.json();
    listed["pins"].as_array().unwrap().clone()
}

/// Waits until the only pin is of this digest and has all of it.
async fn wait_pinned(proxy: &Proxy, digest: &str) {
    within(PATIENCE, async {
        loop {
            let pins = pins(proxy).await;
            if pins.len() == 1 && pins[0]["digest"] == digest && pins[0]["missing_bytes"] == 0 {
                return;
            }
            tokio::time::sleep(GLANCE).await;
        }
    })
    .await;
}

/// Every part of an image is served from the store.
async fn assert_here(proxy: &Proxy, image: &Image) {
    let blobs = image.layers.iter().map(|(digest, _)| digest).chain([&image.config_digest]);
    for path in blobs.map(|digest| blob_path(digest)).chain([manifest_path(&image.digest)]) {
        let reply = proxy.get(&path).await;
        assert_eq!((reply.status, reply.outcome()), (200, "hit"), "{path}");
    }
}

/// Pulls so much else that everything that may go, goes.
async fn press(proxy: &Proxy, upstream: &ScriptedRegistry) {
    let evicted = async || proxy.metric("forebay_evicted_bytes_total", &[]).await.unwrap_or_default();
    let before = evicted().await;
    within(PATIENCE, async {
        // As much as all of what may go. What comes while there is no room yet is not kept, and pushes nothing out.
        while evicted().await - before < (1000 * KIB) as f64 {
            for seed in 100..112 {
                let bytes = sample(seed, 200 * KIB);
                let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
                proxy.get(&path).await.assert_body(200, &bytes);
            }
        }
    })
    .await;
}

#[tokio::test]
async fn what_is_pinned_comes_and_stays() {
    let upstream = ScriptedRegistry::start().await;
    let image = upstream.image(REPOSITORY, "latest", &[sample(1, 200 * KIB), sample(2, 100 * KIB)]);
    let proxy = Proxy::of(&upstream).set("storage", "max_size", "1MiB").start().await;
    let pinned = pin(&proxy, &json!({ "image": named("latest") })).await;
    assert_eq!(pinned["digest"], *image.digest);
    assert!(pinned["size_bytes"].as_u64().unwrap() > 300 * KIB as u64);
    wait_pinned(&proxy, &image.digest).await;
    assert_here(&proxy, &image).await;
    press(&proxy, &upstream).await;
    assert_here(&proxy, &image).await;
    // It outlives a crash and a lost index.
    let mut proxy = proxy;
    proxy.kill().await;
    let _ = std::fs::remove_dir_all(proxy.data().join("index"));
    let proxy = proxy.restart().await;
    press(&proxy, &upstream).await;
    assert_here(&proxy, &image).await;
    for (digest, _) in &image.layers {
        assert_eq!(upstream.count("GET", &blob_path(digest)), 1, "fetched once");
    }
    let unpinned = ask(&proxy, "POST", "/api/v1/unpin", &json!({ "image": named("latest") })).await;
    assert_eq!((unpinned.status, pins(&proxy).await.len()), (200, 0));
    press(&proxy, &upstream).await;
    within(PATIENCE, async {
        while proxy.blob_file(&image.layers[0].0).exists() {
            tokio::time::sleep(GLANCE).await;
        }
    })
    .await;
}

#[tokio::test]
async fn only_the_platforms_and_signatures_asked_for_are_pinned() {
    let upstream = ScriptedRegistry::start().await;
    let arm = upstream.image(REPOSITORY, "arm", &[sample(3, 1000)]);
    let amd = upstream.image(REPOSITORY, "amd", &[sample(4, 1000)]);
    let signature = upstream.image(REPOSITORY, "signature", &[sample(5, 1000)]);
    let entry = |image: &Image, architecture: &str| {
        json!({
            "mediaType": OCI_MANIFEST, "digest": image.digest, "size": image.manifest.len(),
            "platform": { "os": "linux", "architecture": architecture },
        })
    };
    let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry(&arm, "arm64"), entry(&amd, "amd64")] });
    let index = upstream.manifest(REPOSITORY, "latest", OCI_INDEX, Bytes::from(index.to_string()));
    let descriptor = json!({ "mediaType": OCI_MANIFEST, "digest": signature.digest, "size": signature.manifest.len() });
    upstream.referrers(&index, vec![descriptor]);
    let proxy = Proxy::of(&upstream).start().await;
    let refused = json!({ "image": named("latest"), "platforms": ["linux/riscv64"] });
    let refused = ask(&proxy, "POST", "/api/v1/pins", &refused).await;
    assert!(refused.status >= 400 && refused.text().contains("linux/arm64, linux/amd64"), "{}", refused.text());
    assert!(pins(&proxy).await.is_empty());
    pin(&proxy, &json!({ "image": named("latest"), "platforms": ["linux/arm64"], "referrers": true })).await;
    wait_pinned(&proxy, &index).await;
    assert_here(&proxy, &arm).await;
    assert_here(&proxy, &signature).await;
    for unwanted in [manifest_path(&amd.digest), blob_path(&amd.layers[0].0)] {
        assert_eq!(upstream.count("GET", &unwanted), 0, "{unwanted}");
    }
}

#[tokio::test]
async fn the_pin_of_a_tag_follows_it() {
    let upstream = ScriptedRegistry::start().await;
    let old = upstream.image(REPOSITORY, "latest", &[sample(6, 100 * KIB)]);
    let new = upstream.image(REPOSITORY, "next", &[sample(7, 100 * KIB)]);
    let proxy = Proxy::of(&upstream).each("tag_ttl", "0s").set("storage", "max_size", "1MiB").start().await;
    pin(&proxy, &json!({ "image": named("latest") })).await;
    wait_pinned(&proxy, &old.digest).await;
    upstream.tag(REPOSITORY, "latest", &new.digest);
    proxy.get_checked(&manifest_path("latest")).await.assert_digest(&new.digest);
    wait_pinned(&proxy, &new.digest).await;
    press(&proxy, &upstream).await;
    assert_here(&proxy, &new).await;
}

#[tokio::test]
async fn a_pin_that_does_not_fit_is_refused_before_anything_is_fetched() {
    let upstream = ScriptedRegistry::start().await;
    let image = upstream.image(REPOSITORY, "latest", &[sample(8, 600 * KIB), sample(9, 600 * KIB)]);
    let proxy = Proxy::of(&upstream).set("storage", "max_size", "1MiB").start().await;
    let refused = ask(&proxy, "POST", "/api/v1/pins", &json!({ "image": named("latest") })).await;
    assert_eq!(refused.status, 409);
    let size = image.manifest.len() + image.config.len() + 1200 * KIB;
    let text = refused.text();
    assert!(
        text.contains(&format!("pinning it takes {size} bytes, 0 are pinned already, and there is room for 1048576")),
        "{text}"
    );
    assert!(pins(&proxy).await.is_empty());
    for (digest, _) in &image.layers {
        assert_eq!(upstream.count("*", &blob_path(digest)), 0);
    }
}

#[tokio::test]
async fn what_the_upstream_cannot_give_yet_is_said_and_comes_later() {
    let upstream = ScriptedRegistry::start().await;
    let image = upstream.image(REPOSITORY, "latest", &[sample(10, 1000)]);
    upstream.remove_blob(REPOSITORY, &image.layers[0].0);
    let proxy = Proxy::of(&upstream).start().await;
    pin(&proxy, &json!({ "image": named("latest") })).await;
    within(PATIENCE, async {
        while pins(&proxy).await[0]["problem"].is_null() {
            tokio::time::sleep(GLANCE).await;
        }
    })
    .await;
    upstream.blob(REPOSITORY, sample(10, 1000));
    // A start looks at once; otherwise it takes a minute.
    let proxy = proxy.restart().await;
    wait_pinned(&proxy, &image.digest).await;
    assert_here(&proxy, &image).await;
}

#[tokio::test]
async fn a_purge_frees_what_nothing_else_holds_and_says_what_does() {
    let upstream = ScriptedRegistry::start().await;
    let (base, own) = (sample(11, 100 * KIB), sample(12, 50 * KIB));
    let first = upstream.image(REPOSITORY, "first", &[base.clone(), own]);
    let second = upstream.image(REPOSITORY, "second", std::slice::from_ref(&base));
    let proxy = Proxy::of(&upstream).start().await;
    pull(&proxy, "first").await;
    pull(&proxy, "second").await;
    let documents = [&first.manifest, &first.config, &second.manifest, &second.config];
    let before = (documents.iter().map(|document| document.len()).sum::<usize>() + 150 * KIB) as f64;
    // What a client has may not be counted yet.
    proxy.wait_metric("forebay_store_bytes", &[], |bytes| bytes == before).await;
    let purged = ask(&proxy, "POST", "/api/v1/purge", &json!({ "image": named("first") })).await;
    assert_eq!(purged.status, 200, "{}", purged.text());
    let purged: Value = purged.json();
    assert_eq!(purged["tags"], json!([named("first")]));
    let freed = first.manifest.len() + first.config.len() + 50 * KIB;
    assert_eq!((&purged["removed"], &purged["removed_bytes"]), (&json!(3), &json!(freed)));
    assert_eq!(purged["kept"].as_array().unwrap().len(), 1);
    assert_eq!(purged["kept"][0]["digest"], *first.layers[0].0);
    assert!(purged["kept"][0]["by"][0].as_str().unwrap().contains(&second.digest), "{purged}");
    proxy.wait_metric("forebay_store_bytes", &[], |bytes| bytes == before - freed as f64).await;
    assert!(!proxy.blob_file(&first.layers[1].0).exists());
    assert_here(&proxy, &second).await;
    let repository = format!("{REGISTRY}/{REPOSITORY}");
    let purged = ask(&proxy, "POST", "/api/v1/purge", &json!({ "repository": repository })).await.json();
    assert_eq!(purged["kept"], json!([]), "{purged}");
    proxy.wait_metric("forebay_store_bytes", &[], |bytes| bytes == 0.0).await;
    assert_ne!(proxy.get(&blob_path(&second.layers[0].0)).await.outcome(), "hit");
}
