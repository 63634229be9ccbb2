//! Nobody reads what is not theirs: one secret, and every way to it that somebody else may try.
//!
//! The proxy holds credentials for `private.test`, has pulled a secret image from it, and talks to `evil.test`, which does
//! whatever helps. Whoever may ask for `private.test/team/secret` may read it; nothing else may.

use crate::support::content::OCI_LAYER;
use crate::support::content::OCI_MANIFEST;
use crate::support::content::sample;
use crate::support::content::unknown_digest;
use crate::support::proxy::Proxy;
use crate::support::proxy::Registry;
use crate::support::proxy::Setup;
use crate::support::registry::ScriptedRegistry;
use crate::support::registry_auth::Auth;
use crate::support::registry_auth::TokenServer;
use crate::support::registry_auth::basic;
use crate::support::script::on;

const USER: &str = "ann";
const PASSWORD: &str = "correct-horse-battery";
const SIZE: usize = 100_000;

struct World {
    private: ScriptedRegistry,
    evil: ScriptedRegistry,
    proxy: Proxy,
    secret: Vec<u8>,
    digest: String,
    manifest: String,
}

impl World {
    async fn start() -> Self {
        let (private, evil) = (ScriptedRegistry::start().await, ScriptedRegistry::start().await);
        let secret = sample(1, SIZE);
        let image = private.image("team/secret", "latest", std::slice::from_ref(&secret));
        // Somebody else's content, which the account can read as well.
        private.image("team/other", "latest", &[sample(2, 10)]);
        private.require(Auth::Basic(USER, PASSWORD));
        let registries = [
            Registry::new("evil.test", &evil.url()).set("aliases", vec!["alias"]),
            Registry::new("private.test", &private.url()).set("username", USER).set("password", PASSWORD),
        ];
        let proxy = Setup::new(&registries).set("log", "level", "debug").start().await;
        let digest = image.layers[0].0.clone();
        let path = format!("/v2/private.test/team/secret/blobs/{digest}");
        proxy.get_until_hit(&path).await.assert_body(200, &secret);
        proxy.get("/v2/private.test/team/secret/manifests/latest").await.assert_digest(&image.digest);
        Self { private, evil, proxy, secret: secret.to_vec(), digest, manifest: image.digest }
    }

    /// Asks in every way that could show it.
    async fn assert_closed(&self, name: &str, path: &str) {
        let head = self.proxy.head(path).await;
        // Of a claim a HEAD says that there is a claim, in the words of who claims it.
        assert!(head.status >= 400 || name.contains("lying HEAD"), "{name}: HEAD {path} is {}", head.status);
        for reply in [self.proxy.get(path).await, self.proxy.range(path, "bytes=0-99").await] {
            assert!(reply.status >= 400, "{name}: {path} is {}", reply.status);
            let shown = reply.body.windows(32).any(|window| self.secret.starts_with(window));
            assert!(!shown, "{name}: {path} shows the secret");
        }
    }

    /// Neither the other registry nor the log has seen what is not theirs.
    async fn assert_discreet(&mut self, name: &str) {
        let credentials = basic(USER, PASSWORD);
        for seen in self.evil.log() {
            assert_eq!(seen.headers.get("Authorization"), None, "{name}: {seen:?}");
        }
        let log = self.proxy.end_log().await;
        assert!(!log.contains(PASSWORD) && !log.contains(&credentials["Basic ".len()..]), "{name}");
    }
}

#[tokio::test]
async fn every_way_to_content_of_others_is_closed() {
    let mut world = World::start().await;
    let (digest, manifest) = (&world.digest.clone(), &world.manifest.clone());
    let claim = |path: &str| {
        let rule = on("HEAD", path).status(200).header("Docker-Content-Digest", digest);
        rule.header("Content-Length", &SIZE.to_string())
    };
    world.evil.rule(claim("/v2/lying/blobs/*"));
    world.evil.rule(on("HEAD", "/v2/lying/manifests/*").status(200).header("Docker-Content-Digest", manifest));
    let crafted = |urls: Option<&str>| {
        let mut layer = serde_json::json!({ "mediaType": OCI_LAYER, "digest": digest, "size": SIZE });
        if let Some(url) = urls {
            layer["urls"] = serde_json::json!([url]);
        }
        let config = serde_json::json!({ "mediaType": "application/vnd.oci.empty.v1+json", "digest": unknown_digest(), "size": 2 });
        let manifest =
            serde_json::json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [layer] });
        manifest.to_string()
    };
    world.evil.manifest("crafted", "latest", OCI_MANIFEST, crafted(None));
    let foreign = format!("{}/v2/team/secret/blobs/{digest}", world.private.url());
    world.evil.manifest("foreign", "latest", OCI_MANIFEST, crafted(Some(&foreign)));
    for name in ["crafted", "foreign"] {
        let reply = world.proxy.get(&format!("/v2/evil.test/{name}/manifests/latest")).await;
        assert_eq!(reply.status, 200, "the manifest itself is evil's own");
    }
    let private_host = world.private.address();
    for (name, path) in [
        ("a digest guessed in the same registry", format!("/v2/private.test/team/other/blobs/{digest}")),
        ("a manifest guessed in the same registry", format!("/v2/private.test/team/other/manifests/{manifest}")),
        ("a manifest's digest as a blob", format!("/v2/private.test/team/other/blobs/{manifest}")),
        ("a digest guessed in another registry", format!("/v2/evil.test/team/secret/blobs/{digest}")),
        ("a manifest guessed in another registry", format!("/v2/evil.test/team/secret/manifests/{manifest}")),
        ("a lying HEAD", format!("/v2/evil.test/lying/blobs/{digest}")),
        ("a lying HEAD of a manifest", format!("/v2/evil.test/lying/manifests/{manifest}")),
        ("a lying manifest", format!("/v2/evil.test/crafted/blobs/{digest}")),
        ("a layer with URLs of its own", format!("/v2/evil.test/foreign/blobs/{digest}")),
        ("another registry by ns", format!("/v2/team/secret/blobs/{digest}?ns=evil.test")),
        ("ns as an address", format!("/v2/team/secret/blobs/{digest}?ns={private_host}")),
        ("ns as a URL", format!("/v2/team/secret/blobs/{digest}?ns=http://{private_host}")),
        ("ns twice", format!("/v2/team/secret/blobs/{digest}?ns=evil.test&ns=private.test")),
        ("ns in other letters", format!("/v2/team/other/blobs/{digest}?ns=PRIVATE.test")),
        ("an alias of another", format!("/v2/alias/team/secret/blobs/{digest}")),
        ("an alias before a host", format!("/v2/alias/private.test/team/secret/blobs/{digest}")),
        ("a path upwards", format!("/v2/evil.test/../private.test/team/other/blobs/{digest}")),
        ("a coded path upwards", format!("/v2/evil.test/%2e%2e/private.test/team/other/blobs/{digest}")),
        ("a coded slash", format!("/v2/private.test%2fteam/other/blobs/{digest}")),
        ("a repository inside", format!("/v2/private.test/team/secret/x/blobs/{digest}")),
        ("other letters", format!("/v2/private.test/team/SECRET/blobs/{digest}")),
        ("a digest in other letters", format!("/v2/private.test/team/secret/blobs/{}", digest.to_uppercase())),
    ] {
        world.assert_closed(name, &path).await;
    }
    // And again after what was tried: nothing was learnt from it.
    let proxy = &world.proxy;
    proxy.get(&format!("/v2/private.test/team/other/blobs/{digest}")).await.assert_error(404, "BLOB_UNKNOWN");
    let own = format!("/v2/private.test/team/secret/blobs/{digest}");
    proxy.get(&own).await.assert_body(200, &world.secret);
    world.assert_discreet("all of them").await;
}

#[tokio::test]
async fn no_realm_and_no_redirect_gets_the_credentials() {
    let thief = ScriptedRegistry::start().await;
    let thief_port = thief.address().port();
    let elsewhere = format!("http://localhost:{thief_port}");
    for (name, rule) in [
        (
            "a realm",
            on("*", "/v2/*").status(401).header("WWW-Authenticate", &format!("Bearer realm=\"{elsewhere}/token\"")),
        ),
        (
            "a redirect",
            on("*", "/v2/*").status(307).header("Location", &format!("{elsewhere}/v2/team/secret/manifests/latest")),
        ),
        (
            "a realm with a user",
            on("*", "/v2/*")
                .status(401)
                .header("WWW-Authenticate", &format!("Bearer realm=\"http://u:p@localhost:{thief_port}/token\"")),
        ),
        (
            "a realm of the cloud",
            on("*", "/v2/*").status(401).header("WWW-Authenticate", "Bearer realm=\"http://169.254.169.254/token\""),
        ),
    ] {
        let private = ScriptedRegistry::start().await;
        private.image("team/secret", "latest", &[sample(3, 10)]);
        private.rule(rule);
        let registry = Registry::new("private.test", &private.url()).set("username", USER).set("password", PASSWORD);
        let proxy = Setup::new(&[registry]).start().await;
        let reply = proxy.get("/v2/team/secret/manifests/latest").await;
        assert!(reply.status >= 400, "{name}: {}", reply.status);
        assert_eq!(reply.header("WWW-Authenticate"), None, "{name}");
        for seen in thief.log() {
            assert_eq!(seen.headers.get("Authorization"), None, "{name}: {seen:?}");
            assert!(!seen.query.contains(USER), "{name}: {seen:?}");
        }
    }
}

/// What was got with one account is not opened by a token that another has.
#[tokio::test]
async fn another_account_has_to_fetch_for_itself() {
    let private = ScriptedRegistry::start().await;
    let secret = sample(4, SIZE);
    let digest = private.blob("team/a", secret.clone());
    private.blob("team/b", secret.clone());
    let server = |user: &'static str| {
        Auth::Bearer(TokenServer { credentials: Some((user, PASSWORD)), ..TokenServer::default() })
    };
    private.require(server("ann"));
    let registry =
        |user: &str| Registry::new("private.test", &private.url()).set("username", user).set("password", PASSWORD);
    let proxy = Setup::new(&[registry("ann")]).start().await;
    proxy.get_until_hit(&format!("/v2/team/a/blobs/{digest}")).await.assert_body(200, &secret);
    private.require(server("bob"));
    let proxy = proxy.restart_with(|setup| setup.each("username", "bob")).await;
    let path = format!("/v2/team/b/blobs/{digest}");
    proxy.get(&path).await.assert_body(200, &secret);
    assert_eq!(private.body_bytes_sent(&path) / SIZE, 1, "a HEAD of bob's opens nothing that ann fetched");
}
