//! Tags: how long an answer is believed, how it is checked, and what happens when the upstream has trouble.

use std::time::Duration;
use std::time::Instant;

use futures_util::future::join_all;

use crate::support::NEVER;
use crate::support::REPOSITORY;
use crate::support::client::Reply;
use crate::support::content::Image;
use crate::support::content::sample;
use crate::support::manifest_path;
use crate::support::proxy::Proxy;
use crate::support::registry::ScriptedRegistry;
use crate::support::script::Gate;
use crate::support::script::on;

/// A tag lifetime that is over before the next request.
const SHORT: &str = "1ms";

/// An upstream with one image and a proxy that has pulled it once.
async fn pulled(tag_ttl: &str) -> (ScriptedRegistry, Image, Proxy) {
    pulled_with(|setup| setup.each("tag_ttl", tag_ttl)).await
}

async fn pulled_with(
    change: impl FnOnce(crate::support::proxy::Setup) -> crate::support::proxy::Setup,
) -> (ScriptedRegistry, Image, Proxy) {
    let upstream = ScriptedRegistry::start().await;
    let image = upstream.image(REPOSITORY, "latest", &[sample(1, 100)]);
    let proxy = change(Proxy::of(&upstream)).start().await;
    proxy.get(&manifest_path("latest")).await.assert_digest(&image.digest);
    (upstream, image, proxy)
}

#[track_caller]
fn assert_stale(reply: &Reply, image: &Image) {
    reply.assert_digest(&image.digest);
    assert!(reply.outcome().starts_with("fwd=stale; detail="), "{}", reply.outcome());
    let warning = reply.header("Warning").expect("a stale answer warns");
    assert!(warning.starts_with("299 - \"") && warning.ends_with('"'), "{warning}");
}

#[tokio::test]
async fn a_fresh_tag_asks_nobody() {
    let (upstream, image, proxy) = pulled(NEVER).await;
    let asked = upstream.total();
    for _ in 0..5 {
        let reply = proxy.get(&manifest_path("latest")).await;
        reply.assert_digest(&image.digest);
        assert_eq!(reply.outcome(), "hit");
        assert_eq!(proxy.head(&manifest_path("latest")).await.outcome(), "hit");
    }
    assert_eq!(upstream.total(), asked);
}

#[tokio::test]
async fn a_stale_tag_is_checked_by_head_alone() {
    let (upstream, image, proxy) = pulled(SHORT).await;
    let downloads = upstream.count("GET", &manifest_path("*"));
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(5)).await;
        let checks = upstream.count("HEAD", &manifest_path("latest"));
        let reply = proxy.get_checked(&manifest_path("latest")).await;
        reply.assert_digest(&image.digest);
        assert_eq!(reply.outcome(), "hit; detail=revalidated");
        assert!(upstream.count("HEAD", &manifest_path("latest")) > checks);
    }
    assert_eq!(upstream.count("GET", &manifest_path("*")), downloads);
}

#[tokio::test]
async fn a_crowd_at_a_stale_tag_is_one_check() {
    const LIFE_SECONDS: u64 = 2;
    let (upstream, image, proxy) = pulled(&format!("{LIFE_SECONDS}s")).await;
    let downloads = upstream.count("GET", &manifest_path("*"));
    let checks = upstream.count("HEAD", &manifest_path("latest"));
    // The passing of this time is the subject.
    tokio::time::sleep(Duration::from_millis(1000 * LIFE_SECONDS + 100)).await;
    let began = Instant::now();
    let gate = Gate::new();
    upstream.rule(on("HEAD", &manifest_path("latest")).hang_until(&gate));
    let path = manifest_path("latest");
    let crowd = join_all((0..100).map(|_| proxy.head(&path)));
    let release = async {
        gate.reached().await;
        gate.release();
    };
    let (replies, ()) = tokio::join!(crowd, release);
    for reply in replies {
        assert_eq!(reply.status, 200);
        assert_eq!(reply.header("Docker-Content-Digest"), Some(image.digest.as_str()));
    }
    // On a machine so slow that the tag grows stale again meanwhile, it is one check for each of its lives.
    let lives = (began.elapsed().as_secs() / LIFE_SECONDS) as usize;
    let made = upstream.count("HEAD", &manifest_path("latest")) - checks;
    assert!((1..=1 + lives).contains(&made), "{made} checks in {:?}", began.elapsed());
    assert_eq!(upstream.count("GET", &manifest_path("*")), downloads);
}

#[tokio::test]
async fn a_moved_tag_is_followed_and_the_old_digest_stays() {
    let (upstream, old, proxy) = pulled(SHORT).await;
    let new = upstream.image(REPOSITORY, "next", &[sample(2, 100)]);
    upstream.tag(REPOSITORY, "latest", &new.digest);
    tokio::time::sleep(Duration::from_millis(5)).await;
    proxy.get_checked(&manifest_path("latest")).await.assert_digest(&new.digest);
    let asked = upstream.total();
    let reply = proxy.get(&manifest_path(&old.digest)).await;
    reply.assert_digest(&old.digest);
    assert_eq!(reply.outcome(), "hit");
    assert_eq!(upstream.total(), asked);
    // And back again, without a download.
    upstream.tag(REPOSITORY, "latest", &old.digest);
    let downloads = upstream.count("GET", &manifest_path("*"));
    tokio::time::sleep(Duration::from_millis(5)).await;
    proxy.get_checked(&manifest_path("latest")).await.assert_digest(&old.digest);
    assert_eq!(upstream.count("GET", &manifest_path("*")), downloads);
}

#[tokio::test]
async fn a_fresh_tag_does_not_follow() {
    let (upstream, old, proxy) = pulled(NEVER).await;
    let new = upstream.image(REPOSITORY, "next", &[sample(3, 100)]);
    upstream.tag(REPOSITORY, "latest", &new.digest);
    proxy.get(&manifest_path("latest")).await.assert_digest(&old.digest);
}

#[tokio::test]
async fn an_upstream_in_trouble_is_covered_by_what_is_known() {
    join_all([500, 502, 503, 504, 429].map(|status| async move {
        let (upstream, image, proxy) = pulled(SHORT).await;
        upstream.rule(on("*", "/v2/*").status(status));
        tokio::time::sleep(Duration::from_millis(5)).await;
        for _ in 0..2 {
            assert_stale(&proxy.get(&manifest_path("latest")).await, &image);
        }
    }))
    .await;
}

#[tokio::test]
async fn an_upstream_that_refuses_is_covered_by_what_is_known() {
    let (upstream, image, proxy) = pulled(SHORT).await;
    upstream.stop().await;
    for _ in 0..2 {
        assert_stale(&proxy.get(&manifest_path("latest")).await, &image);
    }
    assert_eq!(proxy.head(&manifest_path("latest")).await.status, 200);
}

#[tokio::test]
async fn an_upstream_that_says_nothing_delays_a_known_tag_for_seconds_only() {
    let (upstream, image, proxy) = pulled(SHORT).await;
    upstream.rule(on("*", "/v2/*").hang());
    tokio::time::sleep(Duration::from_millis(5)).await;
    let asked = Instant::now();
    assert_stale(&proxy.get(&manifest_path("latest")).await, &image);
    // Two seconds by design. The upstream never answers, and the proxy's own limit of silence is an hour here: what else
    // could end the wait is far away, and the bound is as generous as that allows.
    assert!(asked.elapsed() < Duration::from_secs(60), "{:?}", asked.elapsed());
}

#[tokio::test]
async fn staleness_has_an_end() {
    let (upstream, _, proxy) = pulled_with(|setup| setup.each("tag_ttl", SHORT).each("stale_if_error", "1ms")).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    upstream.stop().await;
    proxy.get(&manifest_path("latest")).await.assert_error(502, "UNAVAILABLE");
}

#[tokio::test]
async fn an_upstream_that_recovers_is_asked_again() {
    let (upstream, image, proxy) = pulled(SHORT).await;
    upstream.stop().await;
    assert_stale(&proxy.get(&manifest_path("latest")).await, &image);
    upstream.resume().await;
    let new = upstream.image(REPOSITORY, "latest", &[sample(4, 100)]);
    crate::support::within(crate::support::PATIENCE, async {
        // A breaker may keep the upstream out of the way for a while.
        while proxy.get(&manifest_path("latest")).await.header("Docker-Content-Digest") != Some(&new.digest) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_tag_that_is_gone_is_gone() {
    let (upstream, image, proxy) = pulled(SHORT).await;
    upstream.remove_tag(REPOSITORY, "latest");
    tokio::time::sleep(Duration::from_millis(5)).await;
    proxy.get_checked(&manifest_path("latest")).await.assert_error(404, "MANIFEST_UNKNOWN");
    proxy.get(&manifest_path(&image.digest)).await.assert_digest(&image.digest);
}

#[tokio::test]
async fn a_refusal_is_not_covered() {
    for status in [401, 403] {
        let (upstream, _, proxy) = pulled(SHORT).await;
        upstream.rule(on("*", "/v2/*").status(status));
        tokio::time::sleep(Duration::from_millis(5)).await;
        proxy.get_checked(&manifest_path("latest")).await.assert_error(403, "DENIED");
    }
}

#[tokio::test]
async fn what_is_missing_is_remembered() {
    let upstream = ScriptedRegistry::start().await;
    let proxy = Proxy::of(&upstream).each("not_found_ttl", NEVER).start().await;
    proxy.get(&manifest_path("later")).await.assert_error(404, "MANIFEST_UNKNOWN");
    let asked = upstream.total();
    for _ in 0..5 {
        let reply = proxy.get(&manifest_path("later")).await;
        reply.assert_error(404, "MANIFEST_UNKNOWN");
        assert_eq!(reply.outcome(), "hit; detail=negative");
    }
    assert_eq!(upstream.total(), asked);
    // Another name is another question.
    let image = upstream.image(REPOSITORY, "now", &[sample(5, 100)]);
    proxy.get(&manifest_path("now")).await.assert_digest(&image.digest);
}

#[tokio::test]
async fn what_was_missing_appears() {
    let upstream = ScriptedRegistry::start().await;
    let proxy = Proxy::of(&upstream).each("not_found_ttl", "50ms").start().await;
    proxy.get(&manifest_path("later")).await.assert_error(404, "MANIFEST_UNKNOWN");
    let image = upstream.image(REPOSITORY, "later", &[sample(6, 100)]);
    tokio::time::sleep(Duration::from_millis(100)).await;
    proxy.get(&manifest_path("later")).await.assert_digest(&image.digest);
}

#[tokio::test]
async fn an_upstream_that_asks_for_a_pause_gets_it() {
    let upstream = ScriptedRegistry::start().await;
    upstream.image(REPOSITORY, "latest", &[sample(7, 100)]);
    upstream.rule(on("*", "/v2/*").status(429).header("Retry-After", "600"));
    let proxy = Proxy::of(&upstream).start().await;
    let first = proxy.get(&manifest_path("latest")).await;
    first.assert_error(429, "TOOMANYREQUESTS");
    let asked = upstream.total();
    let path = manifest_path("latest");
    for reply in join_all((0..50).map(|_| proxy.get(&path))).await.into_iter().chain([first]) {
        reply.assert_error(429, "TOOMANYREQUESTS");
        let seconds: u64 = reply.header("Retry-After").expect("says when to come back").parse().unwrap();
        assert!((1..=600).contains(&seconds), "{seconds}");
    }
    assert_eq!(upstream.total(), asked);
}
