//! A download that breaks goes on where it broke, within the same answer, or it is cut: never mixed up.

use bytes::Bytes;
use futures_util::future::join_all;

use crate::support::NEVER;
use crate::support::PATIENCE;
use crate::support::REGISTRY;
use crate::support::REPOSITORY;
use crate::support::SILENCE;
use crate::support::blob_path;
use crate::support::content::KIB;
use crate::support::content::MIB;
use crate::support::content::sample;
use crate::support::proxy::Proxy;
use crate::support::proxy::Registry;
use crate::support::proxy::Setup;
use crate::support::registry::ScriptedRegistry;
use crate::support::registry_auth::Auth;
use crate::support::registry_auth::TokenServer;
use crate::support::script::Gate;
use crate::support::script::Rule;
use crate::support::script::on;
use crate::support::within;

const SIZE: usize = 8 * MIB;

async fn registry(seed: u64) -> (ScriptedRegistry, Bytes, String) {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(seed, SIZE);
    let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
    (upstream, bytes, path)
}

/// A fault that breaks an answer at a byte.
type Break = fn(Rule, usize) -> Rule;

#[tokio::test]
async fn a_broken_answer_is_mended_while_the_client_waits() {
    let breaks: [(&str, Break, &str); 3] = [
        ("cut", |rule, at| rule.cut_at(at), NEVER),
        ("reset", |rule, at| rule.reset_at(at), NEVER),
        ("stall", |rule, at| rule.stall_at(at), SILENCE),
    ];
    for (name, fault, read_timeout) in breaks {
        join_all([1, 50, 99].map(|percent| async move {
            let (upstream, bytes, path) = registry(percent as u64).await;
            upstream.rule(fault(on("GET", &path).first(1), SIZE * percent / 100));
            let proxy = Proxy::of(&upstream).each("read_timeout", read_timeout).start().await;
            proxy.get(&path).await.assert_body(200, &bytes);
            let sent = upstream.body_bytes_sent(&path);
            assert!(sent < SIZE + MIB, "{name} at {percent} %: {sent} bytes for a blob of {SIZE}");
            assert_eq!(upstream.count("GET", &path), 2, "{name} at {percent} %");
            proxy.get_until_hit(&path).await.assert_body(200, &bytes);
        }))
        .await;
    }
}

#[tokio::test]
async fn every_answer_breaks_and_all_of_it_comes() {
    let (upstream, bytes, path) = registry(10).await;
    upstream.rule(on("GET", &path).reset_at(600_000));
    let proxy = Proxy::of(&upstream).start().await;
    proxy.get(&path).await.assert_body(200, &bytes);
    let sent = upstream.body_bytes_sent(&path);
    assert!(sent < SIZE + MIB, "{sent} bytes for a blob of {SIZE}");
}

#[tokio::test]
async fn a_url_that_expired_meanwhile_is_asked_for_anew() {
    let (upstream, bytes, path) = registry(11).await;
    upstream.redirect_blobs().await;
    let gate = Gate::new();
    upstream.rule(on("GET", "/signed/*").first(1).hold_at(SIZE / 2 - 1, &gate).cut_at(SIZE / 2));
    let proxy = Proxy::of(&upstream).start().await;
    let incoming = proxy.open(&path).await;
    gate.reached().await;
    upstream.expire_signatures();
    gate.release();
    incoming.reply().await.assert_body(200, &bytes);
    assert!(upstream.count("GET", &path) >= 2, "the registry was not asked again");
    let sent = upstream.body_bytes_sent("/signed/*");
    assert!(sent < SIZE + MIB, "{sent} bytes for a blob of {SIZE}");
}

#[tokio::test]
async fn a_token_that_was_revoked_meanwhile_is_renewed() {
    let (upstream, bytes, path) = registry(12).await;
    upstream.require(Auth::Bearer(TokenServer::default()));
    let gate = Gate::new();
    // The challenge comes first.
    upstream.rule(on("GET", &path).after(1).first(1).hold_at(SIZE / 2 - 1, &gate).cut_at(SIZE / 2));
    let proxy = Proxy::of(&upstream).start().await;
    let incoming = proxy.open(&path).await;
    within(PATIENCE, gate.reached()).await;
    upstream.revoke_tokens();
    gate.release();
    incoming.reply().await.assert_body(200, &bytes);
}

#[tokio::test]
async fn a_rest_that_is_another_part_is_not_used() {
    let half = SIZE / 2;
    let claims = [
        format!("bytes {}-{}/{SIZE}", half + 100, SIZE - 1),
        format!("bytes {}-{}/{SIZE}", half - 100, SIZE - 1),
        format!("bytes 0-{}/{SIZE}", SIZE - 1),
        format!("bytes {half}-{}/{}", SIZE - 1, SIZE + 5),
        format!("bytes {half}-{}/{SIZE}", SIZE - 2),
        format!("bytes */{SIZE}"),
        "nonsense".to_owned(),
        String::new(),
    ];
    join_all(claims.map(|claim| async move {
        let (upstream, bytes, path) = registry(13).await;
        upstream.rule(on("GET", &path).unranged().first(1).cut_at(half));
        upstream.rule(on("GET", &path).ranged().header("Content-Range", &claim));
        let proxy = Proxy::of(&upstream).start().await;
        let reply = proxy.get(&path).await;
        assert!(!reply.is_poison(&bytes), "{claim:?}");
        assert!(bytes.starts_with(&reply.body), "{claim:?}: wrong bytes");
        upstream.clear_rules();
        proxy.pull(&path, &bytes).await;
        proxy.get_until_hit(&path).await.assert_body(200, &bytes);
    }))
    .await;
}

#[tokio::test]
async fn a_rest_that_lies_about_its_bytes_is_seen() {
    let (upstream, bytes, path) = registry(14).await;
    upstream.rule(on("GET", &path).first(1).cut_at(SIZE / 2));
    upstream.rule(on("GET", &path).ranged().first(1).corrupt(5));
    let proxy = Proxy::of(&upstream).start().await;
    let reply = proxy.get(&path).await;
    assert!(!reply.is_complete(), "a wrong rest made a complete answer");
    proxy.pull(&path, &bytes).await;
    proxy.get_until_hit(&path).await.assert_body(200, &bytes);
}

#[tokio::test]
async fn all_of_it_in_place_of_the_rest_is_read_up_to_there() {
    let (upstream, bytes, path) = registry(15).await;
    upstream.rule(on("GET", &path).first(1).ignore_range().cut_at(SIZE / 2));
    upstream.rule(on("GET", &path).ignore_range());
    let proxy = Proxy::of(&upstream).start().await;
    let reply = proxy.get(&path).await;
    assert!(!reply.is_poison(&bytes) && bytes.starts_with(&reply.body));
    proxy.pull(&path, &bytes).await;
    proxy.get_until_hit(&path).await.assert_body(200, &bytes);
    assert!(upstream.body_bytes_sent(&path) <= 3 * SIZE, "{} bytes", upstream.body_bytes_sent(&path));
}

#[tokio::test]
async fn content_that_changed_meanwhile_is_not_mixed() {
    join_all([SIZE + 1000, SIZE - 1000, SIZE].map(|length| async move {
        let upstream = ScriptedRegistry::start().await;
        let bytes = sample(16, SIZE);
        let digest = upstream.blob(REPOSITORY, bytes.clone());
        let path = blob_path(&digest);
        let gate = Gate::new();
        upstream.rule(on("GET", &path).first(1).hold_at(SIZE / 2 - 1, &gate).cut_at(SIZE / 2));
        let changed = on("GET", &path).header("ETag", "\"changed\"");
        upstream.rule(changed.header("Docker-Content-Digest", "sha256:changed"));
        let proxy = Proxy::of(&upstream).start().await;
        let incoming = proxy.open(&path).await;
        gate.reached().await;
        upstream.blob_as(REPOSITORY, &digest, sample(17, length));
        gate.release();
        let reply = incoming.reply().await;
        assert!(!reply.is_complete(), "{length}: complete with the content changed midway");
        assert!(upstream.count("GET", &path) <= 20, "{} requests", upstream.count("GET", &path));
        upstream.clear_rules();
        upstream.blob_as(REPOSITORY, &digest, bytes.clone());
        proxy.pull(&path, &bytes).await;
        proxy.get_until_hit(&path).await.assert_body(200, &bytes);
    }))
    .await;
}

#[tokio::test]
async fn without_a_length_a_cut_is_still_a_cut() {
    join_all([(100, false), (SIZE / 2, false), (SIZE - 1, false), (SIZE / 2, true)].map(|(cut, ignores)| async move {
        let (upstream, bytes, path) = registry(18).await;
        upstream.rule(on("GET", &path).first(1).chunked().cut_at(cut));
        if ignores {
            upstream.rule(on("GET", &path).chunked().ignore_range());
        }
        let proxy = Proxy::of(&upstream).start().await;
        let reply = proxy.get(&path).await;
        assert!(!reply.is_poison(&bytes), "cut at {cut}: complete with {} of {SIZE} bytes", reply.body.len());
        assert!(bytes.starts_with(&reply.body), "cut at {cut}: wrong bytes");
        proxy.pull(&path, &bytes).await;
        proxy.get_until_hit(&path).await.assert_body(200, &bytes);
    }))
    .await;
}

#[tokio::test]
async fn an_answer_that_never_gets_further_is_given_up() {
    let faults: [fn(Rule) -> Rule; 4] = [
        |rule| rule.cut_at(0),
        |rule| rule.status(503),
        |rule| rule.status(416),
        |rule| rule.ignore_range().cut_at(SIZE / 2),
    ];
    join_all(faults.into_iter().enumerate().map(|(place, fault)| async move {
        let (upstream, bytes, path) = registry(19).await;
        upstream.rule(on("GET", &path).unranged().cut_at(SIZE / 2));
        upstream.rule(fault(on("GET", &path).ranged()));
        let proxy = Proxy::of(&upstream).start().await;
        let reply = proxy.get(&path).await;
        assert!(!reply.is_complete(), "case {place}");
        let count = upstream.count("GET", &path);
        assert!(count <= 40, "case {place}: {count} requests");
        upstream.clear_rules();
        proxy.pull(&path, &bytes).await;
        proxy.get_until_hit(&path).await.assert_body(200, &bytes);
    }))
    .await;
}

#[tokio::test]
async fn a_missing_rest_cuts_the_client() {
    join_all([404, 403, 429].map(|status| async move {
        let (upstream, bytes, path) = registry(20).await;
        upstream.rule(on("GET", &path).unranged().first(1).cut_at(SIZE / 2));
        upstream.rule(on("GET", &path).first(3).status(status));
        let registry = Registry::new(REGISTRY, &upstream.url()).set("not_found_ttl", "1ms");
        let proxy = Setup::new(&[registry]).start().await;
        let reply = proxy.get(&path).await;
        assert!(!reply.is_poison(&bytes), "{status}");
        proxy.pull(&path, &bytes).await;
        proxy.get_until_hit(&path).await.assert_body(200, &bytes);
    }))
    .await;
}

#[tokio::test]
async fn followers_of_a_broken_download_notice_nothing() {
    let (upstream, bytes, path) = registry(21).await;
    let gate = Gate::new();
    upstream.rule(on("GET", &path).first(1).hold_at(100 * KIB, &gate).reset_at(SIZE / 3));
    upstream.rule(on("GET", &path).first(1).cut_at(SIZE / 3));
    let proxy = Proxy::of(&upstream).start().await;
    let mut open = Vec::new();
    for _ in 0..5 {
        open.push(proxy.open(&path).await);
    }
    gate.release();
    for incoming in open {
        incoming.reply().await.assert_body(200, &bytes);
    }
    assert!(upstream.body_bytes_sent(&path) < SIZE + MIB);
}
