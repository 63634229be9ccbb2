//! What real registries do that the specification does not say, one registry a test. Each is the scripted registry with
//! the habit of one of them.

use crate::support::REGISTRY;
use crate::support::REPOSITORY;
use crate::support::blob_path;
use crate::support::content::OCI_MANIFEST;
use crate::support::content::sample;
use crate::support::manifest_path;
use crate::support::proxy::Proxy;
use crate::support::proxy::Registry;
use crate::support::proxy::Setup;
use crate::support::registry::ScriptedRegistry;
use crate::support::registry_auth::Auth;
use crate::support::registry_auth::TokenField;
use crate::support::registry_auth::TokenServer;
use crate::support::script::on;

fn bearer(server: TokenServer) -> Auth {
    Auth::Bearer(server)
}

/// Docker Hub: a token for everything, then 401 for what is not there; GETs of manifests are counted; blobs elsewhere.
#[tokio::test]
async fn docker_hub() {
    let upstream = ScriptedRegistry::start().await;
    let image = upstream.image("library/alpine", "latest", &[sample(1, 50_000)]);
    upstream.require(bearer(TokenServer::default()));
    upstream.deny("library/nothing");
    upstream.redirect_blobs().await;
    let hub = Registry::new("docker.io", &upstream.url()).set("tag_ttl", "1ms");
    let proxy = Setup::new(&[hub]).start().await;
    for _ in 0..3 {
        proxy.get_checked("/v2/alpine/manifests/latest").await.assert_digest(&image.digest);
        proxy.get(&format!("/v2/alpine/blobs/{}", image.layers[0].0)).await.assert_digest(&image.layers[0].0);
        proxy.get("/v2/nothing/manifests/latest").await.assert_error(403, "DENIED");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let gets = upstream.seen("GET", "/v2/library/alpine/manifests/*");
    assert_eq!(gets.iter().filter(|seen| seen.status == 200).count(), 1, "each would count against the limit");
}

/// ghcr.io: the token service itself refuses what is not there; URLs of blobs are signed for GET alone.
#[tokio::test]
async fn ghcr() {
    let upstream = ScriptedRegistry::start().await;
    upstream.require(bearer(TokenServer { credentials: Some(("nobody", "here")), ..TokenServer::default() }));
    let proxy = Proxy::of(&upstream).start().await;
    proxy.get(&manifest_path("latest")).await.assert_error(403, "DENIED");
    upstream.require(bearer(TokenServer::default()));
    let bytes = sample(2, 50_000);
    let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
    upstream.redirect_blobs().await;
    let head = proxy.head(&path).await;
    assert_eq!((head.status, head.header("Content-Length")), (200, Some("50000")));
    proxy.get(&path).await.assert_body(200, &bytes);
}

/// quay.io: old formats for who does not say what is understood.
#[tokio::test]
async fn quay() {
    let upstream = ScriptedRegistry::start().await;
    let image = upstream.image(REPOSITORY, "latest", &[sample(3, 10)]);
    let proxy = Proxy::of(&upstream).start().await;
    proxy.get_with(&manifest_path("latest"), &[("Accept", "text/html")]).await.assert_digest(&image.digest);
    for seen in upstream.seen("*", &manifest_path("*")) {
        let accept = seen.headers.all("Accept").join(",");
        for wanted in [OCI_MANIFEST, "application/vnd.docker.distribution.manifest.list.v2+json"] {
            assert!(accept.contains(wanted), "{accept}");
        }
        assert!(!accept.contains("docker.distribution.manifest.v1"), "{accept}");
    }
}

/// Google: no token without a scope; the realm has a query of its own.
#[tokio::test]
async fn google() {
    let upstream = ScriptedRegistry::start().await;
    let image = upstream.image(REPOSITORY, "latest", &[sample(4, 10)]);
    let server = TokenServer {
        challenges: vec![r#"Bearer realm="{realm}?of=google",service="gcr.io""#],
        ..TokenServer::default()
    };
    upstream.require(bearer(server));
    let proxy = Proxy::of(&upstream).start().await;
    proxy.get(&manifest_path("latest")).await.assert_digest(&image.digest);
    let tokens = upstream.seen("GET", "/token");
    assert!(
        tokens[0].query.starts_with("of=google&") && tokens[0].query.contains("scope=repository"),
        "{}",
        tokens[0].query
    );
}

/// ECR: Basic for everything, lists as text, no more than a thousand at once, other filters than asked for.
#[tokio::test]
async fn ecr() {
    let upstream = ScriptedRegistry::start().await;
    let image = upstream.image(REPOSITORY, "latest", &[sample(5, 10)]);
    upstream.require(Auth::Basic("AWS", "token-of-twelve-hours"));
    upstream.rule(on("GET", "/v2/*/tags/list").header("Content-Type", "text/plain; charset=utf-8"));
    let registry =
        Registry::new(REGISTRY, &upstream.url()).set("username", "AWS").set("password", "token-of-twelve-hours");
    let proxy = Setup::new(&[registry]).start().await;
    proxy.get(&manifest_path("latest")).await.assert_digest(&image.digest);
    let list = proxy.get(&format!("/v2/{REPOSITORY}/tags/list?n=5000")).await;
    assert_eq!((list.status, &list.json()["tags"][0]), (200, &"latest".into()));
    let asked = upstream.seen("GET", "/v2/*/tags/list");
    assert!(asked.iter().all(|seen| seen.query.contains("n=1000")), "{asked:?}");
}

/// ACR: `access_token` alone, without an end, for a refresh token.
#[tokio::test]
async fn acr() {
    let upstream = ScriptedRegistry::start().await;
    let image = upstream.image(REPOSITORY, "latest", &[sample(6, 10)]);
    let server = TokenServer { field: TokenField::AccessToken, expires_in: None, ..TokenServer::default() };
    upstream.require(bearer(TokenServer { refresh_token: Some("refresh-of-acr"), ..server }));
    let folder = tempfile::TempDir::new().unwrap();
    let config = folder.path().join("config.json");
    let zero = "MDAwMDAwMDAtMDAwMC0wMDAwLTAwMDAtMDAwMDAwMDAwMDAwOg==";
    let text = format!(r#"{{"auths": {{"{REGISTRY}": {{"auth": "{zero}", "identitytoken": "refresh-of-acr"}}}}}}"#);
    std::fs::write(&config, text).unwrap();
    let registry = Registry::new(REGISTRY, &upstream.url()).set("docker_config", config.to_str().unwrap());
    let proxy = Setup::new(&[registry]).start().await;
    proxy.get(&manifest_path("latest")).await.assert_digest(&image.digest);
    assert_eq!(upstream.count("POST", "/token"), 1);
}

/// registry.k8s.io: manifests and blobs are another registry's, which wants a token of its own.
#[tokio::test]
async fn kubernetes() {
    let (upstream, region) = (ScriptedRegistry::start().await, ScriptedRegistry::start().await);
    let image = region.image(REPOSITORY, "v1", &[sample(7, 50_000)]);
    region.require(bearer(TokenServer::default()));
    for (path, kind) in [
        (manifest_path("v1"), "manifest"),
        (manifest_path(&image.digest), "manifest"),
        (blob_path(&image.layers[0].0), "blob"),
    ] {
        upstream.rule(
            on("*", &path).status(307).header("Location", &format!("{}{path}", region.url())).header("X-Kind", kind),
        );
    }
    let registry = Registry::new(REGISTRY, &upstream.url()).set("username", "me").set("password", "hunter2");
    let proxy = Setup::new(&[registry]).start().await;
    proxy.get(&manifest_path("v1")).await.assert_digest(&image.digest);
    proxy.get(&blob_path(&image.layers[0].0)).await.assert_digest(&image.layers[0].0);
    let tokens = region.seen("GET", "/token");
    assert!(!tokens.is_empty() && tokens.iter().all(|seen| seen.headers.get("Authorization").is_none()), "{tokens:?}");
}

/// nvcr.io: no service in the challenge, and another realm for a token that has expired, which helps nobody.
#[tokio::test]
async fn nvidia() {
    let upstream = ScriptedRegistry::start().await;
    let image = upstream.image(REPOSITORY, "latest", &[sample(8, 10)]);
    let server = TokenServer {
        challenges: vec![r#"Bearer realm="{realm}",scope="{scope}""#],
        realm_for_bad_token: Some("https://authn.elsewhere.test/token".to_owned()),
        ..TokenServer::default()
    };
    upstream.require(bearer(server));
    upstream.rule(on("GET", "/token").header("Content-Type", "text/plain"));
    let proxy = Proxy::of(&upstream).each("tag_ttl", "1ms").start().await;
    for _ in 0..2 {
        proxy.get_checked(&manifest_path("latest")).await.assert_digest(&image.digest);
        upstream.revoke_tokens();
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let tokens = upstream.seen("GET", "/token");
    assert!(tokens.len() == 2 && tokens.iter().all(|seen| !seen.query.contains("service=")), "{tokens:?}");
}

/// Red Hat: manifests of no type.
#[tokio::test]
async fn red_hat() {
    let upstream = ScriptedRegistry::start().await;
    let image = upstream.image(REPOSITORY, "latest", &[sample(9, 10)]);
    upstream.rule(on("*", &manifest_path("*")).header("Content-Type", "text/plain"));
    let proxy = Proxy::of(&upstream).start().await;
    let reply = proxy.get(&manifest_path("latest")).await;
    reply.assert_digest(&image.digest);
    assert_eq!(reply.header("Content-Type"), Some(OCI_MANIFEST));
}

/// Harbor: Basic is asked of who comes with a token that has expired.
#[tokio::test]
async fn harbor() {
    let upstream = ScriptedRegistry::start().await;
    let image = upstream.image(REPOSITORY, "latest", &[sample(10, 10)]);
    let server = TokenServer {
        credentials: Some(("robot$ann", "secret")),
        challenges: vec![
            r#"Basic realm="harbor""#,
            r#"Bearer realm="{realm}",service="harbor-registry",scope="{scope}""#,
        ],
        ..TokenServer::default()
    };
    upstream.require(bearer(server));
    let registry = Registry::new(REGISTRY, &upstream.url()).set("username", "robot$ann").set("password", "secret");
    let proxy = Setup::new(&[registry]).each("tag_ttl", "1ms").start().await;
    for _ in 0..2 {
        proxy.get_checked(&manifest_path("latest")).await.assert_digest(&image.digest);
        upstream.revoke_tokens();
        upstream.rule(
            on("*", &manifest_path("latest")).first(1).status(401).header("WWW-Authenticate", "Basic realm=\"x\""),
        );
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let to_registry = upstream.seen("*", "/v2/*");
    let is_basic = |header: Option<&str>| header.is_some_and(|value| value.starts_with("Basic "));
    assert!(!to_registry.iter().any(|seen| is_basic(seen.headers.get("Authorization"))), "a token was on offer");
}

/// Artifactory: HEAD names a digest that is not there, or none.
#[tokio::test]
async fn artifactory() {
    let wrong = format!("sha256:{}", "0".repeat(64));
    for header in [wrong.as_str(), "", "nonsense"] {
        let upstream = ScriptedRegistry::start().await;
        let image = upstream.image(REPOSITORY, "latest", &[sample(11, 10)]);
        upstream.rule(on("HEAD", &manifest_path("latest")).header("Docker-Content-Digest", header));
        let proxy = Proxy::of(&upstream).each("tag_ttl", "1ms").start().await;
        for _ in 0..2 {
            proxy.get_checked(&manifest_path("latest")).await.assert_digest(&image.digest);
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }
}
