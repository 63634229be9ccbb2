//! Credentials and tokens: fetched when asked for, reused, renewed, and shown to nobody else.

use crate::support::REGISTRY;
use crate::support::REPOSITORY;
use crate::support::blob_path;
use crate::support::client::Reply;
use crate::support::content::Image;
use crate::support::content::sample;
use crate::support::manifest_path;
use crate::support::proxy::Proxy;
use crate::support::proxy::Registry;
use crate::support::proxy::Setup;
use crate::support::registry::ScriptedRegistry;
use crate::support::registry_auth::Auth;
use crate::support::registry_auth::TokenField;
use crate::support::registry_auth::TokenServer;
use crate::support::registry_auth::basic;
use crate::support::script::on;
use std::time::Instant;

const USER: &str = "ann";
const PASSWORD: &str = "correct-horse-battery";

async fn upstream_with(auth: Auth) -> (ScriptedRegistry, Image) {
    let upstream = ScriptedRegistry::start().await;
    let image = upstream.image(REPOSITORY, "latest", &[sample(1, 100_000)]);
    upstream.require(auth);
    (upstream, image)
}

fn with_credentials(upstream: &ScriptedRegistry) -> Setup {
    Setup::new(&[Registry::new(REGISTRY, &upstream.url()).set("username", USER).set("password", PASSWORD)])
}

async fn pull_all(proxy: &Proxy, image: &Image) {
    proxy.get(&manifest_path("latest")).await.assert_digest(&image.digest);
    proxy.get(&blob_path(&image.config_digest)).await.assert_digest(&image.config_digest);
    proxy.get(&blob_path(&image.layers[0].0)).await.assert_digest(&image.layers[0].0);
}

/// Asserts that a client was refused without being asked for credentials.
#[track_caller]
fn assert_refused(reply: &Reply) {
    assert!(matches!(reply.status, 403 | 404 | 502), "{}", reply.status);
    reply.error_code();
    assert_eq!(reply.header("WWW-Authenticate"), None);
}

#[tokio::test]
async fn anonymous_tokens_are_fetched_once_a_scope() {
    for field in [TokenField::Token, TokenField::AccessToken, TokenField::Both] {
        for expires_in in [Some(300), None] {
            let server = TokenServer { field, expires_in, ..TokenServer::default() };
            let (upstream, image) = upstream_with(Auth::Bearer(server)).await;
            let proxy = Proxy::of(&upstream).start().await;
            pull_all(&proxy, &image).await;
            let tokens = upstream.seen("GET", "/token");
            assert_eq!(tokens.len(), 1, "{field:?} {expires_in:?}");
            assert!(tokens[0].query.contains("service=scripted"), "{}", tokens[0].query);
            assert_eq!(tokens[0].headers.get("Authorization"), None);
        }
    }
}

#[tokio::test]
async fn each_repository_has_its_own_token() {
    let (upstream, image) = upstream_with(Auth::Bearer(TokenServer::default())).await;
    let other = upstream.image("library/other", "latest", &[sample(2, 10)]);
    let proxy = Proxy::of(&upstream).start().await;
    pull_all(&proxy, &image).await;
    proxy.get("/v2/library/other/manifests/latest").await.assert_digest(&other.digest);
    assert_eq!(upstream.count("GET", "/token"), 2);
}

#[tokio::test]
async fn a_short_lived_token_is_usable() {
    const LIFE_SECONDS: u64 = 5;
    let server = TokenServer { expires_in: Some(LIFE_SECONDS), ..TokenServer::default() };
    let (upstream, image) = upstream_with(Auth::Bearer(server)).await;
    let proxy = Proxy::of(&upstream).start().await;
    let began = Instant::now();
    pull_all(&proxy, &image).await;
    // It may be renewed somewhat early, but not before most of its life is over.
    let lives = began.elapsed().as_secs() / (LIFE_SECONDS - 1);
    assert!(upstream.count("GET", "/token") as u64 <= 1 + lives);
}

#[tokio::test]
async fn a_crowd_fetches_one_token() {
    let (upstream, image) = upstream_with(Auth::Bearer(TokenServer::default())).await;
    let proxy = Proxy::of(&upstream).start().await;
    let paths = [manifest_path("latest"), blob_path(&image.config_digest), blob_path(&image.layers[0].0)];
    let pulls = paths.iter().cycle().take(15).map(|path| proxy.get(path));
    for reply in futures_util::future::join_all(pulls).await {
        assert_eq!((reply.status, reply.is_complete()), (200, true));
    }
    assert_eq!(upstream.count("GET", "/token"), 1);
}

#[tokio::test]
async fn credentials_go_to_the_token_server_and_tokens_to_the_registry() {
    let server = TokenServer { credentials: Some((USER, PASSWORD)), ..TokenServer::default() };
    let (upstream, image) = upstream_with(Auth::Bearer(server)).await;
    let proxy = with_credentials(&upstream).start().await;
    pull_all(&proxy, &image).await;
    for request in upstream.log() {
        let given = request.headers.get("Authorization").unwrap_or_default();
        if request.path == "/token" {
            assert_eq!(given, basic(USER, PASSWORD));
        } else {
            assert!(given.is_empty() || given.starts_with("Bearer "), "{} got {given:?}", request.path);
        }
    }
}

#[tokio::test]
async fn basic_is_spoken_where_basic_is_asked_for() {
    let (upstream, image) = upstream_with(Auth::Basic(USER, PASSWORD)).await;
    let proxy = with_credentials(&upstream).start().await;
    pull_all(&proxy, &image).await;
}

#[tokio::test]
async fn a_password_can_come_from_a_file() {
    let (upstream, image) = upstream_with(Auth::Basic(USER, PASSWORD)).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("{PASSWORD}\n")).unwrap();
    let registry = Registry::new(REGISTRY, &upstream.url())
        .set("username", USER)
        .set("password_file", file.path().to_str().unwrap());
    let proxy = Setup::new(&[registry]).start().await;
    pull_all(&proxy, &image).await;
}

#[tokio::test]
async fn wrong_credentials_are_named_as_the_cause() {
    let basic = Auth::Basic(USER, "another password");
    let bearer = TokenServer { credentials: Some((USER, "another password")), ..TokenServer::default() };
    for auth in [basic, Auth::Bearer(bearer)] {
        let (upstream, _) = upstream_with(auth).await;
        let proxy = with_credentials(&upstream).start().await;
        let reply = proxy.get(&manifest_path("latest")).await;
        reply.assert_error(403, "DENIED");
        assert!(reply.text().to_lowercase().contains("credential"), "{}", reply.text());
        assert!(!reply.text().contains(PASSWORD));
    }
}

#[tokio::test]
async fn a_token_that_opens_nothing_is_a_refusal() {
    let (upstream, _) = upstream_with(Auth::Bearer(TokenServer::default())).await;
    upstream.deny(REPOSITORY);
    let proxy = Proxy::of(&upstream).start().await;
    let reply = proxy.get(&manifest_path("latest")).await;
    reply.assert_error(403, "DENIED");
    assert!(upstream.count("GET", "/token") <= 3, "asks for tokens without end");
}

#[tokio::test]
async fn a_revoked_token_is_renewed_once() {
    let (upstream, image) = upstream_with(Auth::Bearer(TokenServer::default())).await;
    let proxy = Proxy::of(&upstream).start().await;
    proxy.get(&manifest_path("latest")).await.assert_digest(&image.digest);
    upstream.revoke_tokens();
    proxy.get(&blob_path(&image.layers[0].0)).await.assert_digest(&image.layers[0].0);
    assert_eq!(upstream.count("GET", "/token"), 2);
}

#[tokio::test]
async fn a_challenge_to_a_bad_token_is_not_followed() {
    let upstream = ScriptedRegistry::start().await;
    let image = upstream.image(REPOSITORY, "latest", &[sample(3, 1000)]);
    // As some registries do: a stale token is answered with the realm of another, closed token server.
    let closed = format!("{}/closed-token", upstream.url());
    upstream.require(Auth::Bearer(TokenServer { realm_for_bad_token: Some(closed), ..TokenServer::default() }));
    upstream.rule(on("GET", "/closed-token").status(401));
    let proxy = Proxy::of(&upstream).start().await;
    proxy.get(&manifest_path("latest")).await.assert_digest(&image.digest);
    upstream.revoke_tokens();
    proxy.get(&blob_path(&image.layers[0].0)).await.assert_digest(&image.layers[0].0);
}

#[tokio::test]
async fn challenges_are_read_in_every_spelling() {
    let table: [Vec<&'static str>; 9] = [
        vec![r#"bearer realm="{realm}",service="scripted",scope="{scope}""#],
        vec![r#"Bearer   realm="{realm}" ,  service="scripted" , scope="{scope}""#],
        vec![r#"Bearer realm="{realm}",service=scripted,scope="{scope}""#],
        vec![r#"Bearer Realm="{realm}",SERVICE="scripted",Scope="{scope}""#],
        vec![r#"Bearer scope="{scope}",service="a \"quoted\" name, with comma",realm="{realm}""#],
        vec![r#"Bearer realm="{realm}",scope="{scope}""#],
        vec![r#"Bearer realm="{realm}",service="scripted",scope="{scope}",error="invalid_token""#],
        vec!["Negotiate", r#"Basic realm="x""#, r#"Bearer realm="{realm}",service="scripted",scope="{scope}""#],
        vec![r#"Bearer realm="{realm}",service="scripted",scope="{scope}""#, r#"Basic realm="x""#],
    ];
    for challenges in table {
        let shown = format!("{challenges:?}");
        let (upstream, image) = upstream_with(Auth::Bearer(TokenServer { challenges, ..TokenServer::default() })).await;
        let proxy = Proxy::of(&upstream).start().await;
        let reply = proxy.get(&manifest_path("latest")).await;
        assert_eq!(reply.status, 200, "{shown}: {}", reply.text());
        reply.assert_digest(&image.digest);
    }
}

#[tokio::test]
async fn a_foreign_realm_never_sees_credentials() {
    // Another host name and another address, both of this machine, so that only the rule keeps the proxy away.
    for foreign in ["localhost:0", "127.0.0.2:0"] {
        let stranger = ScriptedRegistry::start_on(foreign, None).await;
        stranger.require(Auth::Bearer(TokenServer { credentials: Some((USER, PASSWORD)), ..TokenServer::default() }));
        let host = foreign.split(':').next().unwrap();
        let realm = format!("http://{host}:{}/token", stranger.address().port());
        let server = TokenServer { realm: Some(realm), credentials: Some((USER, PASSWORD)), ..TokenServer::default() };
        let (upstream, _) = upstream_with(Auth::Bearer(server)).await;
        let proxy = with_credentials(&upstream).start().await;
        assert_refused(&proxy.get(&manifest_path("latest")).await);
        for request in stranger.log() {
            assert_eq!(request.headers.get("Authorization"), None, "{foreign} got credentials");
        }
    }
}

#[tokio::test]
async fn a_realm_that_redirects_leads_no_credentials_away() {
    let stranger = ScriptedRegistry::start().await;
    let server = TokenServer { credentials: Some((USER, PASSWORD)), ..TokenServer::default() };
    let (upstream, _) = upstream_with(Auth::Bearer(server)).await;
    upstream.rule(on("GET", "/token").status(302).header("Location", &format!("{}/token", stranger.url())));
    let proxy = with_credentials(&upstream).start().await;
    assert_refused(&proxy.get(&manifest_path("latest")).await);
    for request in stranger.log() {
        assert_eq!(request.headers.get("Authorization"), None);
    }
}

#[tokio::test]
async fn a_broken_token_server_is_not_a_missing_image() {
    let table = [(500, "{}"), (200, "not json"), (200, "{}"), (200, "[]")];
    for (status, body) in table {
        let (upstream, _) = upstream_with(Auth::Bearer(TokenServer::default())).await;
        upstream.rule(on("GET", "/token").status(status).body(body));
        let proxy = Proxy::of(&upstream).start().await;
        let reply = proxy.get(&manifest_path("latest")).await;
        assert!(matches!(reply.status, 403 | 502), "{status} {body}: {}", reply.status);
        assert_eq!(reply.header("WWW-Authenticate"), None);
    }
}

#[tokio::test]
async fn what_a_client_sends_as_credentials_goes_nowhere() {
    let (upstream, image) = upstream_with(Auth::None).await;
    let mut proxy = Proxy::of(&upstream).set("log", "level", "info,forebay=debug").start().await;
    let secret = basic("client", "client-secret");
    let headers =
        [("Authorization", secret.as_str()), ("Cookie", "session=client-cookie"), ("X-Registry-Auth", "client-auth")];
    for path in [manifest_path("latest"), blob_path(&image.layers[0].0)] {
        for _ in 0..2 {
            assert_eq!(proxy.get_with(&path, &headers).await.status, 200);
        }
    }
    for request in upstream.log() {
        for name in ["Authorization", "Cookie", "X-Registry-Auth", "X-Forwarded-For"] {
            assert_eq!(request.headers.get(name), None, "{name} was forwarded");
        }
    }
    let log = proxy.end_log().await;
    for word in [&secret[6..], "client-secret", "client-cookie", "client-auth"] {
        assert!(!log.contains(word), "{word} is in the log");
    }
}

#[tokio::test]
async fn secrets_are_in_no_log() {
    let server = TokenServer { credentials: Some((USER, PASSWORD)), ..TokenServer::default() };
    let (upstream, image) = upstream_with(Auth::Bearer(server)).await;
    upstream.redirect_blobs().await;
    let mut proxy = with_credentials(&upstream).set("log", "level", "info,forebay=trace").start().await;
    pull_all(&proxy, &image).await;
    upstream.rule(on("GET", "/token").status(401));
    upstream.revoke_tokens();
    proxy.get(&manifest_path("other")).await;
    let log = proxy.end_log().await;
    let encoded = basic(USER, PASSWORD);
    for word in [PASSWORD, &encoded[6..], "-of-the-script", "X-Signature=signature"] {
        assert!(!log.contains(word), "{word} is in the log");
    }
}
