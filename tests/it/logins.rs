//! Where logins come from: docker's config.json, helper programs, tokens, certificates; and the way through a proxy.

use std::process::Command;
use std::sync::Arc;

use rcgen::CertifiedKey;
use rustls::RootCertStore;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use tempfile::TempDir;
use tokio_rustls::TlsAcceptor;

use crate::support::REGISTRY;
use crate::support::REPOSITORY;
use crate::support::content::Image;
use crate::support::content::sample;
use crate::support::manifest_path;
use crate::support::proxy::Registry;
use crate::support::proxy::Setup;
use crate::support::registry::ScriptedRegistry;
use crate::support::registry_auth::Auth;
use crate::support::registry_auth::TokenServer;
use crate::support::registry_auth::basic;

const USER: &str = "ann";
const PASSWORD: &str = "correct-horse-battery";
const REFRESH: &str = "refresh-token-of-the-script";

async fn upstream_with(auth: Auth) -> (ScriptedRegistry, Image) {
    let upstream = ScriptedRegistry::start().await;
    let image = upstream.image(REPOSITORY, "latest", &[sample(1, 1000)]);
    upstream.require(auth);
    (upstream, image)
}

fn bearer(server: TokenServer) -> Auth {
    Auth::Bearer(server)
}

fn file(folder: &TempDir, name: &str, text: &str) -> String {
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// A program that counts how often it runs. Another process makes it: what this one has open for writing, a child that
/// another test starts at that moment has open too, and then nobody can run it.
fn helper(folder: &TempDir, body: &str) -> String {
    let text = file(folder, "text", &format!("#!/bin/sh\n{body}\n"));
    let program = folder.path().join("docker-credential-scripted").to_str().unwrap().to_owned();
    let made = Command::new("install").args(["-m", "755", &text, &program]).status().unwrap();
    assert!(made.success());
    program
}

fn with(upstream: &ScriptedRegistry, key: &str, value: &str) -> Setup {
    let setup = Setup::new(&[Registry::new(REGISTRY, &upstream.url()).set(key, value)]);
    setup.environment("PATH", "/usr/bin:/bin").set("log", "level", "trace")
}

#[tokio::test]
async fn what_docker_login_wrote_is_used() {
    let folder = TempDir::new().unwrap();
    let coded = basic(USER, PASSWORD).replace("Basic ", "");
    let config = file(&folder, "config.json", &format!(r#"{{"auths": {{"{REGISTRY}": {{"auth": "{coded}"}}}}}}"#));
    let server = TokenServer { credentials: Some((USER, PASSWORD)), ..TokenServer::default() };
    for auth in [Auth::Basic(USER, PASSWORD), bearer(server)] {
        let (upstream, image) = upstream_with(auth).await;
        let mut proxy = with(&upstream, "docker_config", &config).start().await;
        proxy.get(&manifest_path("latest")).await.assert_digest(&image.digest);
        let log = proxy.end_log().await;
        assert!(!log.contains(PASSWORD) && !log.contains(&coded));
    }
}

#[tokio::test]
async fn an_identity_token_goes_to_the_token_service_by_post() {
    let folder = TempDir::new().unwrap();
    let entry = format!(r#"{{"auths": {{"{REGISTRY}": {{"identitytoken": "{REFRESH}"}}}}}}"#);
    let config = file(&folder, "config.json", &entry);
    let server = TokenServer { refresh_token: Some(REFRESH), ..TokenServer::default() };
    let (upstream, image) = upstream_with(bearer(server)).await;
    let mut proxy = with(&upstream, "docker_config", &config).start().await;
    proxy.get(&manifest_path("latest")).await.assert_digest(&image.digest);
    assert_eq!(upstream.count("POST", "/token"), 1);
    for seen in upstream.log() {
        let is_token_service = seen.path == "/token";
        let text = format!("{:?} {}", seen.headers, seen.query);
        assert!(!text.contains(REFRESH) && (is_token_service || seen.body.is_empty()), "{seen:?}");
    }
    assert!(!proxy.end_log().await.contains(REFRESH));
}

#[tokio::test]
async fn a_helper_is_asked_once_for_many() {
    let folder = TempDir::new().unwrap();
    let count = folder.path().join("count");
    let body = format!(
        "read server; echo \"$server\" >> {0}; echo '{{\"Username\":\"{USER}\",\"Secret\":\"{PASSWORD}\"}}'",
        count.display()
    );
    let program = helper(&folder, &body);
    let (upstream, image) = upstream_with(Auth::Basic(USER, PASSWORD)).await;
    let other = upstream.image("team/app", "latest", &[sample(2, 10)]);
    let mut proxy = with(&upstream, "credential_helper", &program).start().await;
    let path = manifest_path("latest");
    let (first, second) = tokio::join!(proxy.get(&path), proxy.get("/v2/team/app/manifests/latest"));
    first.assert_digest(&image.digest);
    second.assert_digest(&other.digest);
    proxy.get(&format!("/v2/{REPOSITORY}/blobs/{}", image.layers[0].0)).await.assert_digest(&image.layers[0].0);
    assert_eq!(std::fs::read_to_string(&count).unwrap(), format!("{REGISTRY}\n"));
    assert!(!proxy.end_log().await.contains(PASSWORD));
}

#[tokio::test]
async fn helpers_that_fail_are_named_and_nothing_is_guessed() {
    let (upstream, _) = upstream_with(Auth::Basic(USER, PASSWORD)).await;
    let folder = TempDir::new().unwrap();
    let none = helper(&folder, "read server; echo 'credentials not found in native keychain'; exit 1");
    let proxy = with(&upstream, "credential_helper", &none).start().await;
    proxy.get(&manifest_path("latest")).await.assert_error(403, "DENIED");
    let folder = TempDir::new().unwrap();
    let broken = helper(&folder, &format!("echo {PASSWORD}; exit 7"));
    let mut proxy = with(&upstream, "credential_helper", &broken).start().await;
    let reply = proxy.get(&manifest_path("latest")).await;
    reply.assert_error(502, "UNAVAILABLE");
    assert!(reply.text().contains("docker-credential-scripted ended with code 7"), "{}", reply.text());
    assert!(!reply.text().contains(PASSWORD) && !proxy.end_log().await.contains(PASSWORD));
}

#[tokio::test]
async fn a_certificate_opens_what_asks_for_one() {
    let server = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let CertifiedKey { cert, signing_key } = rcgen::generate_simple_self_signed(vec!["client".to_owned()]).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(cert.der().clone()).unwrap();
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().unwrap();
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            vec![server.cert.der().clone()],
            PrivateKeyDer::try_from(server.signing_key.serialize_der()).unwrap(),
        )
        .unwrap();
    let upstream = ScriptedRegistry::start_on("127.0.0.1:0", Some(TlsAcceptor::from(Arc::new(config)))).await;
    let image = upstream.image(REPOSITORY, "latest", &[sample(3, 10)]);
    let folder = TempDir::new().unwrap();
    let ca = file(&folder, "ca.pem", &server.cert.pem());
    let nobody = Registry::new(REGISTRY, &upstream.url()).set("ca_file", ca);
    let somebody = nobody
        .clone()
        .set("client_cert", file(&folder, "client.pem", &cert.pem()))
        .set("client_key", file(&folder, "key.pem", &signing_key.serialize_pem()));
    Setup::new(&[nobody]).start().await.get(&manifest_path("latest")).await.assert_error(502, "UNAVAILABLE");
    Setup::new(&[somebody]).start().await.get(&manifest_path("latest")).await.assert_digest(&image.digest);
}

#[tokio::test]
async fn a_registry_is_reached_through_its_own_proxy() {
    let way = ScriptedRegistry::start().await;
    let direct = ScriptedRegistry::start().await;
    let image = direct.image(REPOSITORY, "latest", &[sample(4, 10)]);
    let registries = [
        Registry::new(REGISTRY, "http://nowhere.test:5000").set("proxy", way.url()),
        Registry::new("direct.test", &direct.url()).set("proxy", "none"),
    ];
    // What the environment says holds for neither.
    let proxy = Setup::new(&registries).environment("HTTP_PROXY", "http://127.0.0.1:1").start().await;
    proxy.get(&manifest_path("latest")).await.assert_error(404, "MANIFEST_UNKNOWN");
    let seen = way.log();
    assert!(
        seen.iter().all(|seen| seen.path.starts_with("http://nowhere.test:5000/v2/")) && !seen.is_empty(),
        "{seen:?}"
    );
    proxy.get(&format!("{}?ns=direct.test", manifest_path("latest"))).await.assert_digest(&image.digest);
}

#[tokio::test]
async fn secrets_in_files_are_not_shown() {
    let folder = TempDir::new().unwrap();
    let coded = basic(USER, PASSWORD).replace("Basic ", "");
    let docker = file(&folder, "config.json", &format!(r#"{{"auths": {{"{REGISTRY}": {{"auth": "{coded}"}}}}}}"#));
    let config = file(
        &folder,
        "forebay.toml",
        &format!(
            "[[registry]]\nhost = \"{REGISTRY}\"\nendpoints = [\"http://127.0.0.1:1\"]\ndocker_config = \"{docker}\"\n"
        ),
    );
    let shown = crate::support::proxy::run(&["config", "show", "--config", &config]).await;
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("docker_config") && !shown.contains(PASSWORD) && !shown.contains(&coded), "{shown}");
}
