//! Blobs that live elsewhere: redirects are followed, credentials stay behind.

use crate::support::REGISTRY;
use crate::support::REPOSITORY;
use crate::support::blob_path;
use crate::support::content::KIB;
use crate::support::content::sample;
use crate::support::manifest_path;
use crate::support::proxy::Proxy;
use crate::support::proxy::Registry;
use crate::support::proxy::Setup;
use crate::support::registry::ScriptedRegistry;
use crate::support::registry::Site;
use crate::support::registry_auth::Auth;
use crate::support::registry_auth::TokenServer;
use crate::support::script::on;

#[tokio::test]
async fn a_signed_url_gets_no_credentials() {
    let bearer = TokenServer { credentials: Some(("ann", "secret")), ..TokenServer::default() };
    for auth in [Auth::Basic("ann", "secret"), Auth::Bearer(bearer)] {
        let upstream = ScriptedRegistry::start().await;
        let bytes = sample(1, 300 * KIB);
        let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
        upstream.redirect_blobs().await;
        upstream.require(auth);
        let registry = Registry::new(REGISTRY, &upstream.url()).set("username", "ann").set("password", "secret");
        let proxy = Setup::new(&[registry]).start().await;
        proxy.get(&path).await.assert_body(200, &bytes);
        let signed: Vec<_> = upstream.log().into_iter().filter(|seen| seen.site == Site::Cdn).collect();
        assert_eq!(signed.len(), 1);
        assert_eq!(signed[0].headers.get("Authorization"), None);
        proxy.get_until_hit(&path).await.assert_body(200, &bytes);
    }
}

#[tokio::test]
async fn a_redirected_download_is_resumed_too() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(2, 300 * KIB);
    let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
    upstream.redirect_blobs().await;
    upstream.rule(on("GET", "/signed/*").first(1).cut_at(100_000));
    let proxy = Proxy::of(&upstream).start().await;
    proxy.get(&path).await.assert_body(200, &bytes);
    let signed = upstream.seen("GET", "/signed/*");
    assert_eq!(signed.len(), 2);
    assert!(signed[1].headers.get("Range").is_some(), "the range goes along with the redirect");
}

#[tokio::test]
async fn a_range_of_a_redirected_cold_blob() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(3, 300 * KIB);
    let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
    upstream.redirect_blobs().await;
    let proxy = Proxy::of(&upstream).start().await;
    proxy.range(&path, "bytes=1000-1999").await.assert_body(206, &bytes[1000..2000]);
}

#[tokio::test]
async fn an_expired_signature_is_asked_for_anew() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(4, 1000);
    let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
    upstream.redirect_blobs().await;
    upstream.rule(on("GET", "/signed/*").first(1).status(403));
    let proxy = Proxy::of(&upstream).start().await;
    proxy.get(&path).await.assert_body(200, &bytes);
    assert_eq!(upstream.count("GET", &path), 2);
}

#[tokio::test]
async fn wrong_bytes_from_elsewhere_are_wrong_bytes() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(5, 100 * KIB);
    let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
    upstream.redirect_blobs().await;
    upstream.rule(on("GET", "/signed/*").corrupt(5));
    let proxy = Proxy::of(&upstream).start().await;
    let reply = proxy.get(&path).await;
    assert!(!(reply.status == 200 && reply.is_complete()));
}

#[tokio::test]
async fn redirects_without_end_are_given_up() {
    let upstream = ScriptedRegistry::start().await;
    let path = blob_path(&upstream.blob(REPOSITORY, sample(6, 1000)));
    upstream.rule(on("*", &path).status(307).header("Location", &path));
    let proxy = Proxy::of(&upstream).start().await;
    proxy.get(&path).await.assert_error(502, "UNAVAILABLE");
    assert!(upstream.count("GET", &path) <= 50, "{}", upstream.count("GET", &path));
}

#[tokio::test]
async fn redirects_to_nowhere_are_an_upstream_error() {
    for location in ["", "ftp://127.0.0.1/x", "http://", "http://user:password@127.0.0.1:1/x", "file:///etc/passwd"] {
        let upstream = ScriptedRegistry::start().await;
        let path = blob_path(&upstream.blob(REPOSITORY, sample(7, 1000)));
        upstream.rule(on("GET", &path).status(307).header("Location", location));
        let proxy = Proxy::of(&upstream).start().await;
        let reply = proxy.get(&path).await;
        assert_eq!(reply.status, 502, "{location:?}");
        reply.error_code();
    }
}

#[tokio::test]
async fn a_manifest_may_be_redirected_within_the_registry() {
    let upstream = ScriptedRegistry::start().await;
    let image = upstream.image(REPOSITORY, "latest", &[sample(8, 100)]);
    let target = manifest_path(&image.digest);
    upstream.rule(on("*", "/v2/library/alias/manifests/*").status(307).header("Location", &target));
    let proxy = Proxy::of(&upstream).start().await;
    proxy.get("/v2/library/alias/manifests/latest").await.assert_digest(&image.digest);
}
