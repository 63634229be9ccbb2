//! The harness tested without a proxy: a script that does not do what it says would make every other test a lie.

use super::REPOSITORY;
use super::blob_path;
use super::client;
use super::client::End;
use super::content::KIB;
use super::content::sample;
use super::manifest_path;
use super::registry::ScriptedRegistry;
use super::registry_auth::Auth;
use super::registry_auth::TokenServer;
use super::registry_auth::basic;
use super::script::Gate;
use super::script::Rule;
use super::script::on;

#[tokio::test]
async fn a_fault_changes_exactly_what_it_says() {
    let bytes = sample(1, 100 * KIB);
    let table: Vec<(Rule, End, usize)> = vec![
        (on("GET", "*"), End::Complete, bytes.len()),
        (on("GET", "*").chunked(), End::Complete, bytes.len()),
        (on("GET", "*").cut_at(0), End::Cut, 0),
        (on("GET", "*").cut_at(70_001), End::Cut, 70_001),
        (on("GET", "*").chunked().cut_at(70_001), End::Cut, 70_001),
        (on("GET", "*").reset_at(70_001), End::Reset, 70_001),
        (on("GET", "*").wrong_length(10), End::Cut, bytes.len()),
        (on("GET", "*").wrong_length(-10), End::Complete, bytes.len() - 10),
        (on("GET", "*").bytes_per_second(1_000_000), End::Complete, bytes.len()),
    ];
    for (rule, end, length) in table {
        let upstream = ScriptedRegistry::start().await;
        let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
        upstream.rule(rule.clone());
        let reply = client::request(upstream.address(), "GET", &path, &[]).await;
        assert_eq!((reply.status, reply.end, reply.body.len()), (200, end, length), "{rule:?}");
        assert_eq!(reply.body, bytes[..length]);
        upstream.wait_answered("GET", &path, 1).await;
        assert_eq!(upstream.body_bytes_sent(&path), length);
    }
}

#[tokio::test]
async fn a_corrupt_byte_is_one_byte() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(2, 1000);
    let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
    upstream.rule(on("GET", &path).corrupt(999).first(1));
    let reply = client::request(upstream.address(), "GET", &path, &[]).await;
    assert_eq!((reply.body[..999].to_vec(), reply.body[999]), (bytes[..999].to_vec(), !bytes[999]));
    client::request(upstream.address(), "GET", &path, &[]).await.assert_body(200, &bytes);
}

#[tokio::test]
async fn a_gate_holds_an_answer_at_its_byte() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(3, 50 * KIB);
    let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
    let gate = Gate::new();
    upstream.rule(on("GET", &path).hold_at(20_000, &gate));
    let mut incoming = client::open(upstream.address(), "GET", &path, &[]).await;
    gate.reached().await;
    assert!(incoming.read(20_000).await);
    assert_eq!(upstream.body_bytes_sent(&path), 20_000);
    gate.release();
    incoming.reply().await.assert_body(200, &bytes);
}

#[tokio::test]
async fn ranges_are_answered_exactly() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(4, 2000);
    let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
    let table =
        [("bytes=0-0", 0..1), ("bytes=500-", 500..2000), ("bytes=-5", 1995..2000), ("bytes=1990-9999", 1990..2000)];
    for (range, expected) in table {
        let reply = client::request(upstream.address(), "GET", &path, &[("Range", range)]).await;
        reply.assert_body(206, &bytes[expected.clone()]);
        let content_range = format!("bytes {}-{}/2000", expected.start, expected.end - 1);
        assert_eq!(reply.header("Content-Range"), Some(content_range.as_str()));
    }
    let reply = client::request(upstream.address(), "GET", &path, &[("Range", "bytes=2000-")]).await;
    assert_eq!((reply.status, reply.header("Content-Range")), (416, Some("bytes */2000")));
}

#[tokio::test]
async fn a_token_opens_the_repository_it_was_given_for() {
    let upstream = ScriptedRegistry::start().await;
    let image = upstream.image(REPOSITORY, "latest", &[sample(5, 100)]);
    upstream.require(Auth::Bearer(TokenServer { credentials: Some(("ann", "secret")), ..TokenServer::default() }));
    let path = manifest_path("latest");
    let refused = client::request(upstream.address(), "GET", &path, &[]).await;
    assert_eq!(refused.status, 401);
    assert!(refused.header("WWW-Authenticate").unwrap().contains("scope=\"repository:library/t:pull\""));
    let scope = "/token?service=scripted&scope=repository%3Alibrary%2Ft%3Apull";
    assert_eq!(client::request(upstream.address(), "GET", scope, &[]).await.status, 401);
    let credentials = basic("ann", "secret");
    let granted = client::request(upstream.address(), "GET", scope, &[("Authorization", &credentials)]).await;
    let token = format!("Bearer {}", granted.json()["token"].as_str().unwrap());
    let reply = client::request(upstream.address(), "GET", &path, &[("Authorization", &token)]).await;
    reply.assert_digest(&image.digest);
    upstream.revoke_tokens();
    assert_eq!(client::request(upstream.address(), "GET", &path, &[("Authorization", &token)]).await.status, 401);
}

#[tokio::test]
async fn a_redirect_leads_to_the_signed_copy() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(6, 1000);
    let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
    upstream.redirect_blobs().await;
    let reply = client::request(upstream.address(), "GET", &path, &[]).await;
    assert_eq!(reply.status, 307);
    let location: url::Url = reply.header("Location").unwrap().parse().unwrap();
    let address = format!("127.0.0.1:{}", location.port().unwrap()).parse().unwrap();
    let target = format!("{}?{}", location.path(), location.query().unwrap());
    client::request(address, "GET", &target, &[]).await.assert_body(200, &bytes);
    let leaked = client::request(address, "GET", &target, &[("Authorization", "Basic eA==")]).await;
    assert_eq!(leaked.status, 400);
    assert_eq!(client::request(address, "GET", location.path(), &[]).await.status, 403);
}

#[tokio::test]
async fn a_stopped_registry_refuses_and_a_resumed_one_answers() {
    let upstream = ScriptedRegistry::start().await;
    upstream.stop().await;
    assert!(client::Connection::open(upstream.address()).await.is_err());
    upstream.resume().await;
    assert_eq!(client::request(upstream.address(), "GET", "/v2/", &[]).await.status, 200);
}
