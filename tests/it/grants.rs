//! Bytes are shared, rights are not: what one repository may serve says nothing about another.

use crate::support::blob_path;
use crate::support::content::OCI_LAYER;
use crate::support::content::OCI_MANIFEST;
use crate::support::content::sample;
use crate::support::content::unknown_digest;
use crate::support::proxy::Proxy;
use crate::support::proxy::Registry;
use crate::support::proxy::Setup;
use crate::support::registry::ScriptedRegistry;
use crate::support::registry_auth::Auth;
use crate::support::script::on;

const SIZE: usize = 200_000;

fn path_in(registry: &str, repository: &str, digest: &str) -> String {
    format!("/v2/{registry}/{repository}/blobs/{digest}")
}

/// A private registry (Basic), a second one that is open, and a proxy with credentials for the first.
struct World {
    private: ScriptedRegistry,
    open: ScriptedRegistry,
    proxy: Proxy,
}

impl World {
    async fn start() -> Self {
        let private = ScriptedRegistry::start().await;
        private.require(Auth::Basic("ann", "secret"));
        let open = ScriptedRegistry::start().await;
        let registries = [
            Registry::new("open.test", &open.url()),
            Registry::new("private.test", &private.url()).set("username", "ann").set("password", "secret"),
        ];
        let proxy = Setup::new(&registries).start().await;
        Self { private, open, proxy }
    }
}

#[tokio::test]
async fn a_repository_that_does_not_have_it_does_not_serve_it() {
    let upstream = ScriptedRegistry::start().await;
    let digest = upstream.blob("team/a", sample(1, SIZE));
    let image = upstream.image("team/a", "latest", &[sample(2, 10)]);
    let proxy = Proxy::of(&upstream).start().await;
    proxy.get_until_hit(&format!("/v2/team/a/blobs/{digest}")).await.assert_digest(&digest);
    proxy.get(&format!("/v2/team/a/manifests/{}", image.digest)).await.assert_digest(&image.digest);
    for _ in 0..2 {
        proxy.get(&format!("/v2/team/b/blobs/{digest}")).await.assert_error(404, "BLOB_UNKNOWN");
        proxy.get(&format!("/v2/team/b/manifests/{}", image.digest)).await.assert_error(404, "MANIFEST_UNKNOWN");
        assert_eq!(proxy.head(&format!("/v2/team/b/blobs/{digest}")).await.status, 404);
        assert_eq!(proxy.range(&format!("/v2/team/b/blobs/{digest}"), "bytes=0-9").await.status, 404);
    }
}

#[tokio::test]
async fn another_registry_that_does_not_have_it_does_not_serve_it() {
    let world = World::start().await;
    let digest = world.open.blob("team/a", sample(3, SIZE));
    world.proxy.get_until_hit(&path_in("open.test", "team/a", &digest)).await.assert_digest(&digest);
    let reply = world.proxy.get(&format!("/v2/team/a/blobs/{digest}?ns=private.test")).await;
    reply.assert_error(404, "BLOB_UNKNOWN");
    assert!(world.private.total() > 0, "decided without asking the registry in question");
}

#[tokio::test]
async fn public_content_is_not_downloaded_for_a_second_repository() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(4, SIZE);
    let digest = upstream.blob("team/a", bytes.clone());
    upstream.blob("team/b", bytes.clone());
    let proxy = Proxy::of(&upstream).start().await;
    proxy.get_until_hit(&format!("/v2/team/a/blobs/{digest}")).await.assert_body(200, &bytes);
    let second = format!("/v2/team/b/blobs/{digest}");
    proxy.get(&second).await.assert_body(200, &bytes);
    assert_eq!(upstream.count("GET", &second), 0);
    assert_eq!(upstream.count("HEAD", &second), 1);
    // From now on nobody needs to be asked.
    proxy.get(&second).await.assert_body(200, &bytes);
    assert_eq!(upstream.count("HEAD", &second), 1);
}

#[tokio::test]
async fn public_content_is_not_downloaded_for_a_second_registry() {
    let world = World::start().await;
    let other = ScriptedRegistry::start().await;
    let bytes = sample(5, SIZE);
    let digest = world.open.blob("team/a", bytes.clone());
    other.blob("mirror/a", bytes.clone());
    let registries = [Registry::new("open.test", &world.open.url()), Registry::new("other.test", &other.url())];
    let proxy = Setup::new(&registries).start().await;
    proxy.get_until_hit(&path_in("open.test", "team/a", &digest)).await.assert_body(200, &bytes);
    proxy.get(&path_in("other.test", "mirror/a", &digest)).await.assert_body(200, &bytes);
    assert_eq!(other.count("GET", "/v2/mirror/a/*"), 0);
}

#[tokio::test]
async fn the_same_credentials_open_a_second_repository_without_a_download() {
    let world = World::start().await;
    let bytes = sample(6, SIZE);
    let digest = world.private.blob("team/a", bytes.clone());
    world.private.blob("team/b", bytes.clone());
    world.proxy.get_until_hit(&path_in("private.test", "team/a", &digest)).await.assert_body(200, &bytes);
    world.proxy.get(&path_in("private.test", "team/b", &digest)).await.assert_body(200, &bytes);
    let second = format!("/v2/team/b/blobs/{digest}");
    // The unauthenticated first try is a request too, and it carries nothing.
    assert_eq!(world.private.body_bytes_sent(&second) / SIZE, 0);
}

#[tokio::test]
async fn a_registry_that_only_claims_to_have_it_opens_nothing() {
    let world = World::start().await;
    let bytes = sample(7, SIZE);
    let digest = world.private.blob("team/a", bytes.clone());
    world.proxy.get_until_hit(&path_in("private.test", "team/a", &digest)).await.assert_body(200, &bytes);
    let claim = on("HEAD", "/v2/evil/app/blobs/*")
        .status(200)
        .header("Content-Length", &SIZE.to_string())
        .header("Docker-Content-Digest", &digest);
    world.open.rule(claim);
    for _ in 0..2 {
        let reply = world.proxy.get(&path_in("open.test", "evil/app", &digest)).await;
        assert_ne!(reply.status, 200, "private content opened by a lie");
        let ranged = world.proxy.range(&path_in("open.test", "evil/app", &digest), "bytes=0-9").await;
        assert!(ranged.status >= 400, "{}", ranged.status);
    }
    // What it really has, it may serve: fetched from there, stored once.
    world.open.blob("evil/app", bytes.clone());
    world.proxy.get_until_hit(&path_in("open.test", "evil/app", &digest)).await.assert_body(200, &bytes);
    assert_eq!(world.open.body_bytes_sent(&format!("/v2/evil/app/blobs/{digest}")) / SIZE, 1);
}

#[tokio::test]
async fn being_named_in_a_manifest_opens_nothing() {
    let world = World::start().await;
    let bytes = sample(8, SIZE);
    let digest = world.private.blob("team/a", bytes.clone());
    world.proxy.get_until_hit(&path_in("private.test", "team/a", &digest)).await.assert_body(200, &bytes);
    let crafted = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": { "mediaType": "application/vnd.oci.empty.v1+json", "digest": unknown_digest(), "size": 2 },
        "layers": [{ "mediaType": OCI_LAYER, "digest": digest, "size": SIZE }],
    });
    let crafted = world.open.manifest("evil/app", "latest", OCI_MANIFEST, crafted.to_string());
    let manifest = world.proxy.get("/v2/open.test/evil/app/manifests/latest").await;
    manifest.assert_digest(&crafted);
    world.proxy.get(&path_in("open.test", "evil/app", &digest)).await.assert_error(404, "BLOB_UNKNOWN");
}

#[tokio::test]
async fn grants_outlive_a_restart_and_so_do_refusals() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(9, SIZE);
    let digest = upstream.blob(crate::support::REPOSITORY, bytes.clone());
    let proxy = Proxy::of(&upstream).start().await;
    proxy.get_until_hit(&blob_path(&digest)).await;
    let proxy = proxy.restart().await;
    let asked = upstream.total();
    let reply = proxy.get(&blob_path(&digest)).await;
    reply.assert_body(200, &bytes);
    assert_eq!(reply.outcome(), "hit");
    assert_eq!(upstream.total(), asked);
    proxy.get(&format!("/v2/team/b/blobs/{digest}")).await.assert_error(404, "BLOB_UNKNOWN");
}

/// A private registry, a proxy with credentials for it, and a blob and an image that it has pulled.
struct Private {
    upstream: ScriptedRegistry,
    proxy: Proxy,
    bytes: bytes::Bytes,
    path: String,
}

impl Private {
    async fn start(change: impl FnOnce(Setup) -> Setup) -> Self {
        let upstream = ScriptedRegistry::start().await;
        upstream.require(Auth::Basic("ann", "secret"));
        upstream.image("team/a", "latest", &[sample(20, 10)]);
        let bytes = sample(21, SIZE);
        let path = format!("/v2/team/a/blobs/{}", upstream.blob("team/a", bytes.clone()));
        let registry = Registry::new("private.test", &upstream.url()).set("username", "ann").set("password", "secret");
        let proxy = change(Setup::new(&[registry])).start().await;
        proxy.get_until_stored(&path).await.assert_body(200, &bytes);
        assert_eq!(proxy.get("/v2/team/a/manifests/latest").await.status, 200);
        Self { upstream, proxy, bytes, path }
    }
}

/// A time of grants that is over before the next request.
fn short(setup: Setup) -> Setup {
    setup.each("grant_ttl", "1ms").each("tag_ttl", "1ms")
}

fn long(setup: Setup) -> Setup {
    setup.each("grant_ttl", "1d").each("tag_ttl", "1ms")
}

async fn pass() {
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
}

#[tokio::test]
async fn grants_for_private_content_are_asked_for_again_and_others_are_not() {
    let world = Private::start(short).await;
    for turn in 0..3 {
        pass().await;
        let asked = world.upstream.count("HEAD", &world.path);
        let reply = world.proxy.get_checked(&world.path).await;
        reply.assert_body(200, &world.bytes);
        assert_eq!(reply.outcome(), "hit; detail=revalidated", "{turn}");
        assert!(world.upstream.count("HEAD", &world.path) > asked);
    }
    assert_eq!(world.upstream.body_bytes_sent(&world.path) / SIZE, 1);
    let proxy = world.proxy.restart_with(long).await;
    let asked = world.upstream.total();
    assert_eq!(proxy.get(&world.path).await.outcome(), "hit");
    assert_eq!(world.upstream.total(), asked, "within its time it asks nobody");
    // Public content, by comparison.
    let open = ScriptedRegistry::start().await;
    let digest = open.blob("team/a", sample(22, SIZE));
    let proxy = short(Setup::new(&[Registry::new("open.test", &open.url())])).start().await;
    let path = format!("/v2/team/a/blobs/{digest}");
    proxy.get_until_hit(&path).await;
    pass().await;
    assert_eq!(proxy.get(&path).await.outcome(), "hit");
    assert_eq!(open.count("HEAD", &path), 0);
}

#[tokio::test]
async fn a_refusal_takes_the_grants_of_a_repository_back() {
    for status in [401, 403] {
        let world = Private::start(long).await;
        assert_eq!(world.proxy.get(&world.path).await.outcome(), "hit");
        world.upstream.rule(on("*", "/v2/team/a/*").status(status));
        pass().await;
        // It is heard about a tag, and holds for everything.
        world.proxy.get_checked("/v2/team/a/manifests/latest").await.assert_error(403, "DENIED");
        world.proxy.get_checked(&world.path).await.assert_error(403, "DENIED");
        let proxy = world.proxy.restart().await;
        proxy.get_checked(&world.path).await.assert_error(403, "DENIED");
        world.upstream.clear_rules();
        let reply = proxy.get_checked(&world.path).await;
        reply.assert_body(200, &world.bytes);
        assert_eq!(reply.outcome(), "hit; detail=revalidated", "opened by the same account again");
        assert_eq!(world.upstream.body_bytes_sent(&world.path) / SIZE, 1);
    }
}

#[tokio::test]
async fn what_the_registry_no_longer_has_loses_its_grant() {
    let world = Private::start(short).await;
    let digest = world.path.rsplit('/').next().unwrap();
    world.upstream.remove_blob("team/a", digest);
    pass().await;
    world.proxy.get_checked(&world.path).await.assert_error(404, "BLOB_UNKNOWN");
    let proxy = world.proxy.restart_with(long).await;
    proxy.get(&world.path).await.assert_error(404, "BLOB_UNKNOWN");
    world.upstream.blob("team/a", world.bytes.clone());
    proxy.get(&world.path).await.assert_body(200, &world.bytes);
}

#[tokio::test]
async fn an_outage_closes_private_content_only_in_the_end() {
    let world = Private::start(short).await;
    world.upstream.stop().await;
    pass().await;
    let reply = world.proxy.get(&world.path).await;
    reply.assert_body(200, &world.bytes);
    assert!(reply.outcome().starts_with("fwd=stale; detail="), "{}", reply.outcome());
    let proxy = world.proxy.restart_with(|setup| short(setup).each("offline", true)).await;
    assert_eq!(proxy.get(&world.path).await.outcome(), "hit; detail=offline");
    let proxy = proxy.restart_with(|setup| short(setup).each("offline", false).each("stale_if_error", "1ms")).await;
    proxy.get(&world.path).await.assert_error(502, "UNAVAILABLE");
    proxy.get("/v2/team/a/manifests/latest").await.assert_error(502, "UNAVAILABLE");
}
