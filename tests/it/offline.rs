//! Images that keep working when the upstream does not, also after the proxy went away and came back.

use crate::support::REPOSITORY;
use crate::support::blob_path;
use crate::support::client::Reply;
use crate::support::content::Image;
use crate::support::content::KIB;
use crate::support::content::MIB;
use crate::support::content::sample;
use crate::support::content::unknown_digest;
use crate::support::manifest_path;
use crate::support::proxy::Proxy;
use crate::support::registry::ScriptedRegistry;
use crate::support::script::Gate;
use crate::support::script::on;

async fn pull(proxy: &Proxy, image: &Image) -> Vec<Reply> {
    let mut replies = vec![proxy.get(&manifest_path("latest")).await];
    replies[0].assert_digest(&image.digest);
    for (digest, bytes) in image.layers.iter().chain([&(image.config_digest.clone(), image.config.clone())]) {
        let reply = proxy.get_until_hit(&blob_path(digest)).await;
        reply.assert_body(200, bytes);
        replies.push(reply);
    }
    replies
}

#[tokio::test]
async fn a_pulled_image_needs_no_upstream_any_more() {
    let upstream = ScriptedRegistry::start().await;
    let image = upstream.image(REPOSITORY, "latest", &[sample(1, 500 * KIB), sample(2, 100)]);
    let proxy = Proxy::of(&upstream).start().await;
    pull(&proxy, &image).await;
    upstream.stop().await;
    pull(&proxy, &image).await;
    let proxy = proxy.restart().await;
    let asked = upstream.total();
    pull(&proxy, &image).await;
    assert_eq!(upstream.total(), asked);
}

#[tokio::test]
async fn an_expired_tag_works_offline_after_a_restart() {
    let upstream = ScriptedRegistry::start().await;
    let image = upstream.image(REPOSITORY, "latest", &[sample(3, 100 * KIB)]);
    let proxy = Proxy::of(&upstream).each("tag_ttl", "1ms").start().await;
    pull(&proxy, &image).await;
    upstream.stop().await;
    let proxy = proxy.restart().await;
    let replies = pull(&proxy, &image).await;
    assert!(replies[0].outcome().starts_with("fwd=stale"), "{}", replies[0].outcome());
}

#[tokio::test]
async fn a_killed_proxy_comes_back_with_right_bytes() {
    let upstream = ScriptedRegistry::start().await;
    let image = upstream.image(REPOSITORY, "latest", &[sample(14, 500 * KIB)]);
    let mut proxy = Proxy::of(&upstream).start().await;
    pull(&proxy, &image).await;
    proxy.kill().await;
    let proxy = proxy.restart().await;
    pull(&proxy, &image).await;
}

#[tokio::test]
async fn a_killed_proxy_still_has_what_it_had() {
    let upstream = ScriptedRegistry::start().await;
    let image = upstream.image(REPOSITORY, "latest", &[sample(4, 500 * KIB)]);
    let mut proxy = Proxy::of(&upstream).start().await;
    pull(&proxy, &image).await;
    proxy.kill().await;
    let proxy = proxy.restart().await;
    pull(&proxy, &image).await;
    // The file was complete before the client had it, so the bytes need not come again.
    assert_eq!(upstream.body_bytes_sent(&blob_path(&image.layers[0].0)), 500 * KIB);
}

#[tokio::test]
async fn a_download_broken_by_a_kill_goes_on_after_it() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(5, 4 * MIB);
    let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
    let gate = Gate::new();
    upstream.rule(on("GET", &path).first(1).hold_at(3 * MIB, &gate));
    let mut proxy = Proxy::of(&upstream).start().await;
    let mut incoming = proxy.open(&path).await;
    assert!(crate::support::within(crate::support::PATIENCE, incoming.read(2 * MIB)).await);
    proxy.kill().await;
    let reply = incoming.reply().await;
    assert!(!reply.is_complete());
    let proxy = proxy.restart().await;
    // Whether the prefix could be used again or not: never wrong bytes.
    proxy.get(&path).await.assert_body(200, &bytes);
    proxy.get_until_hit(&path).await.assert_body(200, &bytes);
}

#[tokio::test]
async fn what_was_never_pulled_is_unavailable_and_not_missing() {
    let upstream = ScriptedRegistry::start().await;
    let proxy = Proxy::of(&upstream).start().await;
    upstream.stop().await;
    for path in [manifest_path("latest"), manifest_path(&unknown_digest()), blob_path(&unknown_digest())] {
        proxy.get(&path).await.assert_error(502, "UNAVAILABLE");
    }
}

#[tokio::test]
async fn a_damaged_file_is_not_served_as_it_is() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(6, 500 * KIB);
    let digest = upstream.blob(REPOSITORY, bytes.clone());
    let path = blob_path(&digest);
    let mut proxy = Proxy::of(&upstream).start().await;
    proxy.get_until_hit(&path).await;
    assert_eq!(proxy.terminate().await, Some(0));
    // A file system that lost the end of a file after a power cut.
    let hex = digest.strip_prefix("sha256:").unwrap();
    let file = proxy.data().join("blobs").join("sha256").join(&hex[..2]).join(hex);
    assert_eq!(std::fs::read(&file).unwrap(), bytes);
    std::fs::write(&file, &bytes[..300 * KIB]).unwrap();
    let proxy = proxy.restart().await;
    let reply = proxy.get(&path).await;
    assert!(!reply.is_poison(&bytes), "a short file was served as a complete blob");
}
