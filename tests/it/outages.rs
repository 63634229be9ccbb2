//! Calm in outages: nobody waits twice for a registry that does not answer, and it is asked again all the same.

use std::time::Duration;
use std::time::Instant;

use crate::support::GLANCE;
use crate::support::NEVER;
use crate::support::PATIENCE;
use crate::support::REGISTRY;
use crate::support::REPOSITORY;
use crate::support::blob_path;
use crate::support::content::OCI_INDEX;
use crate::support::content::index;
use crate::support::content::sample;
use crate::support::content::unknown_digest;
use crate::support::manifest_path;
use crate::support::proxy::Proxy;
use crate::support::registry::ScriptedRegistry;
use crate::support::script::Gate;
use crate::support::script::on;
use crate::support::within;

const SHORT: &str = "1ms";
/// After so many seconds a registry that did not answer is asked again.
const PAUSE_SECONDS: u64 = 10;

async fn pass() {
    tokio::time::sleep(Duration::from_millis(5)).await;
}

#[tokio::test]
async fn after_one_wait_nobody_waits_for_what_is_known() {
    let upstream = ScriptedRegistry::start().await;
    let one = upstream.image(REPOSITORY, "one", &[sample(1, 10)]);
    let other = upstream.image("team/app", "other", &[sample(2, 10)]);
    let proxy = Proxy::of(&upstream).each("tag_ttl", SHORT).start().await;
    proxy.get(&manifest_path("one")).await.assert_digest(&one.digest);
    proxy.get("/v2/team/app/manifests/other").await.assert_digest(&other.digest);
    pass().await;
    let gate = Gate::new();
    upstream.rule(on("*", "/v2/*").hang_until(&gate));
    let (asked, began) = (upstream.total(), Instant::now());
    let first = proxy.get(&manifest_path("one")).await;
    assert_eq!(first.outcome(), "fwd=stale; detail=slow");
    // The check is still on its way; nobody else begins another, of this tag or another one.
    for _ in 0..5 {
        for (path, digest) in
            [(manifest_path("one"), &one.digest), ("/v2/team/app/manifests/other".to_owned(), &other.digest)]
        {
            let reply = proxy.get(&path).await;
            reply.assert_digest(digest);
            assert_eq!(reply.outcome(), "fwd=stale; detail=slow");
        }
    }
    // Another is made after some seconds only.
    let made = upstream.total() - asked;
    assert!(made as u64 <= 1 + began.elapsed().as_secs() / PAUSE_SECONDS, "{made} checks in {:?}", began.elapsed());
    // The check that was on its way ends the trouble for all.
    gate.release();
    upstream.clear_rules();
    within(PATIENCE, async {
        while proxy.get("/v2/team/app/manifests/other").await.outcome() != "hit; detail=revalidated" {
            tokio::time::sleep(GLANCE).await;
        }
    })
    .await;
}

#[tokio::test]
async fn an_endpoint_that_does_not_answer_is_left_alone_and_tried_again() {
    let upstream = ScriptedRegistry::start().await;
    let digest = upstream.blob(REPOSITORY, sample(3, 1000));
    let proxy = Proxy::of(&upstream).start().await;
    upstream.stop().await;
    let labels = [REGISTRY];
    within(PATIENCE, async {
        while proxy.metric("forebay_upstream_breaker_open", &labels).await != Some(1.0) {
            proxy.get(&manifest_path("latest")).await.assert_error(502, "UNAVAILABLE");
        }
    })
    .await;
    proxy.log.wait_for(|event| event["message"] == "the endpoint is left alone").await;
    upstream.resume().await;
    let path = blob_path(&digest);
    within(PATIENCE, async {
        while proxy.get(&path).await.status != 200 {
            tokio::time::sleep(GLANCE).await;
        }
    })
    .await;
    proxy.log.wait_for(|event| event["message"] == "the endpoint answers again").await;
    proxy.wait_metric("forebay_upstream_breaker_open", &labels, |open| open == 0.0).await;
}

#[tokio::test]
async fn a_short_pause_is_waited_for() {
    let upstream = ScriptedRegistry::start().await;
    let image = upstream.image(REPOSITORY, "latest", &[sample(4, 10)]);
    upstream.rule(on("*", "/v2/*").first(1).status(429).header("Retry-After", "0"));
    let proxy = Proxy::of(&upstream).start().await;
    proxy.get(&manifest_path("latest")).await.assert_digest(&image.digest);
    let limited = upstream.log().iter().filter(|seen| seen.status == 429).count();
    assert_eq!(limited, 1, "it was met");
}

#[tokio::test]
async fn what_a_registry_says_of_its_limits_is_shown() {
    let upstream = ScriptedRegistry::start().await;
    upstream.image(REPOSITORY, "latest", &[sample(5, 10)]);
    let limits = on("*", "/v2/*").header("RateLimit-Limit", "100;w=21600").header("RateLimit-Remaining", "7;w=21600");
    upstream.rule(limits.first(2));
    upstream.rule(on("*", "/v2/*").status(429).header("Retry-After", "3000"));
    let proxy = Proxy::of(&upstream).start().await;
    assert_eq!(proxy.get(&manifest_path("latest")).await.status, 200);
    assert_eq!(proxy.metric("forebay_upstream_ratelimit_limit", &[REGISTRY]).await, Some(100.0));
    assert_eq!(proxy.metric("forebay_upstream_ratelimit_remaining", &[REGISTRY]).await, Some(7.0));
    proxy.get(&manifest_path("more")).await.assert_error(429, "TOOMANYREQUESTS");
    let quiet_until = proxy.metric("forebay_upstream_quiet_until_seconds", &[REGISTRY]).await;
    assert!(quiet_until.is_some_and(|seconds| seconds > 1e9), "{quiet_until:?}");
}

/// Signatures and lists of referrers are found, or known not to be there, while the upstream is away.
#[tokio::test]
async fn signatures_and_referrers_work_offline() {
    let upstream = ScriptedRegistry::start().await;
    let image = upstream.image(REPOSITORY, "latest", &[sample(6, 10)]);
    let bare = upstream.image(REPOSITORY, "bare", &[sample(7, 10)]);
    let tag_of = |digest: &str| digest.replace(':', "-");
    let signature = upstream.image(REPOSITORY, &format!("{}.sig", tag_of(&image.digest)), &[sample(8, 10)]);
    let fallback =
        upstream.manifest(REPOSITORY, &tag_of(&image.digest), OCI_INDEX, index(&[(signature.digest.clone(), 9)]));
    let descriptor = serde_json::json!({ "digest": signature.digest, "size": 9, "artifactType": "application/x.sig" });
    upstream.referrers(&image.digest, vec![descriptor.clone()]);
    let proxy = Proxy::of(&upstream).each("tag_ttl", SHORT).each("not_found_ttl", SHORT).start().await;
    let referrers = format!("/v2/{REPOSITORY}/referrers/{}", image.digest);
    let check = async |proxy: &Proxy| {
        proxy.get(&manifest_path("latest")).await.assert_digest(&image.digest);
        proxy.get(&manifest_path(&format!("{}.sig", tag_of(&image.digest)))).await.assert_digest(&signature.digest);
        proxy.get(&manifest_path(&tag_of(&image.digest))).await.assert_digest(&fallback);
        for ending in [".sig", ".att", ".sbom", ""] {
            let path = manifest_path(&format!("{}{ending}", tag_of(&bare.digest)));
            proxy.get(&path).await.assert_error(404, "MANIFEST_UNKNOWN");
        }
        let all = proxy.get(&referrers).await;
        assert_eq!((all.status, &all.json()["manifests"][0]), (200, &descriptor));
        let none = proxy.get(&format!("{referrers}?artifactType=application%2Fother")).await;
        assert_eq!(
            (none.json()["manifests"].as_array().map(Vec::len), none.header("OCI-Filters-Applied")),
            (Some(0), Some("artifactType"))
        );
        pass().await;
    };
    check(&proxy).await;
    upstream.stop().await;
    check(&proxy).await;
    // Another tag was never said to be missing: nothing is invented.
    proxy.get(&manifest_path("other")).await.assert_error(502, "UNAVAILABLE");
    let never = format!("{}.sig", unknown_digest().replace(':', "-"));
    proxy.get(&manifest_path(&never)).await.assert_error(502, "UNAVAILABLE");
    let proxy = proxy.restart().await;
    let all = proxy.get(&referrers).await;
    assert_eq!((all.status, &all.json()["manifests"][0]), (200, &descriptor), "kept over a restart");
}

#[tokio::test]
async fn a_registry_without_referrers_is_asked_once_in_a_while() {
    let upstream = ScriptedRegistry::start().await;
    let image = upstream.image(REPOSITORY, "latest", &[sample(9, 10)]);
    let proxy = Proxy::of(&upstream).each("tag_ttl", NEVER).each("not_found_ttl", NEVER).start().await;
    let path = format!("/v2/{REPOSITORY}/referrers/{}", image.digest);
    for _ in 0..3 {
        assert_eq!(proxy.get(&path).await.status, 404);
    }
    assert_eq!(upstream.count("GET", &path), 1);
    upstream.referrers(&image.digest, vec![]);
    let proxy = proxy.restart().await;
    assert_eq!(proxy.get(&path).await.status, 200);
    for _ in 0..3 {
        assert_eq!(proxy.get(&path).await.outcome(), "hit");
    }
    assert_eq!(upstream.count("GET", &path), 2);
}

/// A base layer that came by another repository is there for this one too when the upstream is not.
#[tokio::test]
async fn shared_layers_of_a_cached_image_are_served_in_an_outage() {
    let upstream = ScriptedRegistry::start().await;
    let base = sample(10, 50_000);
    let first = upstream.image("team/first", "latest", std::slice::from_ref(&base));
    let second = upstream.image("team/second", "latest", &[base.clone(), sample(11, 10)]);
    let proxy = Proxy::of(&upstream).start().await;
    let layer = &first.layers[0].0;
    proxy.get_until_hit(&format!("/v2/team/first/blobs/{layer}")).await;
    // A client that has the base layer asks for the manifest and the other layer only.
    proxy.get("/v2/team/second/manifests/latest").await.assert_digest(&second.digest);
    upstream.wait_answered("HEAD", &format!("/v2/team/second/blobs/{layer}"), 1).await;
    upstream.stop().await;
    within(PATIENCE, async {
        while proxy.get(&format!("/v2/team/second/blobs/{layer}")).await.status != 200 {
            tokio::time::sleep(GLANCE).await;
        }
    })
    .await;
    // What nobody confirmed stays closed.
    proxy.get(&format!("/v2/team/third/blobs/{layer}")).await.assert_error(502, "UNAVAILABLE");
}
