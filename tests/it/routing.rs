//! Every way to say which registry is meant, on one port, and the closed world behind it.

use crate::support::client;
use crate::support::client::Reply;
use crate::support::content::OCI_MANIFEST;
use crate::support::content::sample;
use crate::support::proxy::Proxy;
use crate::support::proxy::Registry;
use crate::support::proxy::Setup;
use crate::support::registry::ScriptedRegistry;

/// Four registries with an image of the same name each, and a proxy that knows them all.
struct World {
    main: ScriptedRegistry,
    other: ScriptedRegistry,
    hub: ScriptedRegistry,
    ported: ScriptedRegistry,
    proxy: Proxy,
}

impl World {
    async fn start() -> Self {
        let main = ScriptedRegistry::start().await;
        let other = ScriptedRegistry::start().await;
        let hub = ScriptedRegistry::start().await;
        let ported = ScriptedRegistry::start().await;
        let registries = [
            Registry::new("main.test", &main.url()),
            Registry::new("other.test", &other.url())
                .set("aliases", vec!["side", "second"])
                .set("virtual_hosts", vec!["mirror.example"]),
            Registry::new("docker.io", &hub.url()).set("aliases", vec!["hub"]),
            Registry::new("ported.test:5000", &ported.url()).set("aliases", vec!["ported"]),
        ];
        let proxy = Setup::new(&registries).start().await;
        let world = Self { main, other, hub, ported, proxy };
        for (name, upstream) in world.upstreams() {
            upstream.image("team/app", "v1", &[sample(1, 50), name.as_bytes().to_vec().into()]);
        }
        world
    }

    fn upstreams(&self) -> [(&'static str, &ScriptedRegistry); 4] {
        [("main", &self.main), ("other", &self.other), ("hub", &self.hub), ("ported", &self.ported)]
    }

    /// Requests that reached any upstream so far.
    fn asked(&self) -> usize {
        self.upstreams().iter().map(|(_, upstream)| upstream.total()).sum()
    }

    async fn get(&self, target: &str, host: Option<&str>) -> Reply {
        let headers: Vec<(&str, &str)> = host.iter().map(|host| ("Host", *host)).collect();
        client::request(self.proxy.address, "GET", target, &headers).await
    }
}

/// Digest of the image that [`World::start`] put behind this name.
fn digest_of(name: &str) -> String {
    let layers = [sample(1, 50), name.as_bytes().to_vec().into()];
    crate::support::content::image("team/app:v1", &layers).digest
}

#[tokio::test]
async fn every_style_leads_to_its_registry() {
    let world = World::start().await;
    let table: [(&str, Option<&str>, &str); 17] = [
        ("/v2/team/app/manifests/v1", None, "main"),
        ("/v2/team/app/manifests/v1?unknown=x", None, "main"),
        ("/v2/team/app/manifests/v1?ns=other.test", None, "other"),
        ("/v2/team/app/manifests/v1?ns=side", None, "other"),
        ("/v2/team/app/manifests/v1?ns=docker.io", None, "hub"),
        ("/v2/team/app/manifests/v1?ns=ported.test%3A5000", None, "ported"),
        ("/v2/team/app/manifests/v1?ns=ported.test:5000", None, "ported"),
        ("/other.test/v2/team/app/manifests/v1", None, "other"),
        ("/second/v2/team/app/manifests/v1", None, "other"),
        ("/ported/v2/team/app/manifests/v1", None, "ported"),
        ("/v2/main.test/team/app/manifests/v1", None, "main"),
        ("/v2/other.test/team/app/manifests/v1", None, "other"),
        ("/v2/hub/team/app/manifests/v1", None, "hub"),
        ("/v2/ported/team/app/manifests/v1", None, "ported"),
        ("/v2/team/app/manifests/v1", Some("mirror.example"), "other"),
        ("/v2/team/app/manifests/v1", Some("mirror.example:5000"), "other"),
        ("/v2/team/app/manifests/v1?ns=docker.io", Some("mirror.example"), "hub"),
    ];
    for (target, host, name) in table {
        let reply = world.get(target, host).await;
        assert_eq!(reply.status, 200, "{target} {host:?} {}", reply.text());
        assert_eq!(reply.header("Docker-Content-Digest"), Some(digest_of(name).as_str()), "{target} {host:?}");
        reply.assert_digest(&digest_of(name));
    }
}

#[tokio::test]
async fn ns_is_answered_by_its_own_name() {
    let world = World::start().await;
    for ns in ["other.test", "docker.io", "main.test"] {
        let reply = world.get(&format!("/v2/team/app/manifests/v1?ns={ns}"), None).await;
        assert_eq!(reply.header("OCI-Namespace"), Some(ns));
    }
}

#[tokio::test]
async fn with_ns_the_path_is_all_repository() {
    let world = World::start().await;
    let image = world.main.image("other.test/team/app", "v2", &[sample(2, 50)]);
    let reply = world.get("/v2/other.test/team/app/manifests/v2?ns=main.test", None).await;
    reply.assert_digest(&image.digest);
    assert_eq!(world.other.total(), 0);
}

#[tokio::test]
async fn same_name_in_two_registries_is_two_images() {
    let world = World::start().await;
    for _ in 0..2 {
        for (ns, name) in [("docker.io", "hub"), ("other.test", "other"), ("main.test", "main")] {
            let reply = world.get(&format!("/v2/team/app/manifests/v1?ns={ns}"), None).await;
            reply.assert_digest(&digest_of(name));
        }
    }
}

#[tokio::test]
async fn a_one_part_name_of_the_hub_is_in_library() {
    let world = World::start().await;
    let image = world.hub.image("library/alpine", "3", &[sample(3, 50)]);
    let layer = &image.layers[0].0;
    for start in ["/v2/hub/", "/v2/docker.io/", "/docker.io/v2/"] {
        world.get(&format!("{start}alpine/manifests/3"), None).await.assert_digest(&image.digest);
        world.get(&format!("{start}library/alpine/manifests/3"), None).await.assert_digest(&image.digest);
    }
    world.get("/v2/alpine/manifests/3?ns=docker.io", None).await.assert_digest(&image.digest);
    world.get(&format!("/v2/alpine/blobs/{layer}?ns=docker.io"), None).await.assert_digest(layer);
    assert_eq!(world.hub.count("*", "/v2/alpine/*"), 0);
    // Nobody else's names are changed.
    let plain = world.other.image("alpine", "3", &[sample(4, 50)]);
    world.get("/v2/other.test/alpine/manifests/3", None).await.assert_digest(&plain.digest);
}

#[tokio::test]
async fn a_bare_proxy_is_the_mirror_of_the_hub() {
    let hub = ScriptedRegistry::start().await;
    let image = hub.image("library/alpine", "3", &[sample(5, 50)]);
    // The endpoint comes from the command line, everything else is what the program knows.
    let upstream = format!("docker.io={}", hub.url());
    let proxy = Setup::new(&[]).argument("--upstream").argument(&upstream).start().await;
    for path in ["/v2/library/alpine/manifests/3", "/v2/alpine/manifests/3", "/v2/docker.io/library/alpine/manifests/3"]
    {
        proxy.get(path).await.assert_digest(&image.digest);
    }
}

#[tokio::test]
async fn paths_are_read_from_the_right() {
    let world = World::start().await;
    for repository in ["a/manifests/b", "a/blobs/b", "manifests", "tags/list", "a/referrers/b/tags", "v2/blobs/uploads"]
    {
        let image = world.main.image(repository, "latest", &[sample(6, 50)]);
        let layer = &image.layers[0].0;
        world.get(&format!("/v2/{repository}/manifests/latest"), None).await.assert_digest(&image.digest);
        world.get(&format!("/v2/{repository}/blobs/{layer}"), None).await.assert_digest(layer);
        let tags = world.get(&format!("/v2/{repository}/tags/list"), None).await;
        assert_eq!(tags.json()["tags"][0], "latest", "{repository}");
    }
}

#[tokio::test]
async fn percent_encoding_is_undone_once() {
    let world = World::start().await;
    let digest = digest_of("main").replace(':', "%3A");
    for target in
        ["/v2/team/app/manifests/%76%31", "/v2/te%61m/app/manifests/v1", &format!("/v2/team/app/manifests/{digest}")]
    {
        world.get(target, None).await.assert_digest(&digest_of("main"));
    }
    let asked = world.asked();
    let table = [
        "/v2/../etc/passwd",
        "/v2/team/../app/manifests/v1",
        "/v2/%2e%2e/x/blobs/v1",
        "/v2/team/%2e%2e/app/manifests/v1",
        "/v2/team%2fapp/manifests/v1",
        "/v2/team%2Fapp/manifests/v1",
        "/v2/team%5capp/manifests/v1",
        "/v2/team/app%00/manifests/v1",
        "/v2/team//app/manifests/v1",
        "/v2//team/app/manifests/v1",
        "/v2/team/app/manifests/%2576%2531",
        "/v2/team/app/manifests/v1%2f",
        "/v2/team/app/manifests/%ff%fe",
        "/v2/team/app/manifests/%c0%af",
        "/v2/team/app/manifests/%zz",
        "/v2/team/app/manifests/",
        "/v2/team/app/manifests",
        "/v2/manifests/v1",
        "/v2/team/app/manifests/v1/",
        "/v2/team/app/unknown/v1",
        "/v1/team/app/manifests/v1",
        "/v3/",
        "/",
    ];
    for target in table {
        let reply = world.get(target, None).await;
        assert!(matches!(reply.status, 400 | 404), "{target}: {}", reply.status);
        reply.error_code();
    }
    assert_eq!(world.asked(), asked, "an upstream was asked about nonsense");
}

#[tokio::test]
async fn an_unknown_registry_is_refused() {
    let world = World::start().await;
    let path = "/v2/team/app/manifests/v1";
    let unknown = [
        format!("{path}?ns=evil.example"),
        format!("{path}?ns=other.test:443"),
        format!("{path}?ns=other.tes"),
        "/evil.example/v2/team/app/manifests/v1".to_owned(),
    ];
    for target in unknown {
        world.get(&target, None).await.assert_error(404, "NAME_UNKNOWN");
    }
    let malformed = [
        "127.0.0.1:22",
        "[::1]:80",
        "http://main.test",
        "main.test/team",
        "user@main.test",
        "main.test%0d%0aX:%20y",
        "main.test%20",
        "main.test.",
        "docker.io%00",
        "",
    ];
    for ns in malformed {
        let reply = world.get(&format!("{path}?ns={ns}"), None).await;
        assert!(matches!(reply.status, 400 | 403 | 404), "{ns}: {}", reply.status);
        reply.error_code();
    }
    for repeated in ["ns=docker.io&ns=main.test", "ns=main.test&ns=main.test", "ns=main.test&x=y&ns=evil.example"] {
        world.get(&format!("{path}?{repeated}"), None).await.assert_error(400, "NAME_INVALID");
    }
    // A first path component that is not a registry is a part of the repository, and the default does not have it.
    let reply = world.get("/v2/evil.example/team/app/manifests/v1", None).await;
    assert_eq!(reply.status, 404);
    assert_eq!(world.other.total() + world.hub.total() + world.ported.total(), 0);
}

#[tokio::test]
async fn an_absolute_target_does_not_choose_an_upstream() {
    let world = World::start().await;
    let stranger = ScriptedRegistry::start().await;
    stranger.manifest("team/app", "v1", OCI_MANIFEST, "{}");
    let target = format!("{}/v2/team/app/manifests/v1", stranger.url());
    let reply = world.get(&target, None).await;
    if reply.status == 200 {
        reply.assert_digest(&digest_of("main"));
    }
    assert_eq!(stranger.total(), 0);
}
