//! Rules for some tags, switches for registries, lists of repositories: what an operator decides.

use std::time::Duration;

use toml::Table;
use toml::Value;

use crate::support::REGISTRY;
use crate::support::REPOSITORY;
use crate::support::blob_path;
use crate::support::content::sample;
use crate::support::content::unknown_digest;
use crate::support::manifest_path;
use crate::support::proxy::Proxy;
use crate::support::proxy::Registry;
use crate::support::proxy::Setup;
use crate::support::registry::ScriptedRegistry;
use crate::support::script::on;

/// A tag lifetime that is over before the next request.
const SHORT: &str = "1ms";

/// Passes that lifetime.
async fn pass() {
    tokio::time::sleep(Duration::from_millis(5)).await;
}

fn rule(pattern: &str, keys: &[(&str, Value)]) -> Value {
    let mut table = Table::new();
    table.insert("pattern".to_owned(), pattern.into());
    table.extend(keys.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
    table.into()
}

fn ruled(upstream: &ScriptedRegistry, rules: &[Value]) -> Setup {
    Proxy::of(upstream).each("tag_ttl", SHORT).each("tag_rule", rules.to_vec())
}

#[tokio::test]
async fn the_first_rule_that_fits_decides_how_long_a_tag_is_fresh() {
    let upstream = ScriptedRegistry::start().await;
    for (repository, tag) in [(REPOSITORY, "v1"), (REPOSITORY, "latest"), ("team/app", "v1"), ("team/app", "latest")] {
        upstream.image(repository, tag, &[sample(1, 10)]);
    }
    let day = || ("tag_ttl", Value::from("1d"));
    let rules = [rule("team/*:latest", &[day()]), rule("latest", &[]), rule("v*", &[day()])];
    let proxy = ruled(&upstream, &rules).start().await;
    for (repository, tag, is_kept) in [
        (REPOSITORY, "v1", true),
        (REPOSITORY, "latest", false),
        ("team/app", "v1", true),
        ("team/app", "latest", true),
    ] {
        let path = format!("/v2/{repository}/manifests/{tag}");
        assert_eq!(proxy.get(&path).await.status, 200);
        pass().await;
        let expected = if is_kept { "hit" } else { "hit; detail=revalidated" };
        assert_eq!(proxy.get_checked(&path).await.outcome(), expected, "{repository}:{tag}");
    }
}

#[tokio::test]
async fn an_immutable_tag_stays_where_it_is_loudly() {
    let upstream = ScriptedRegistry::start().await;
    let first = upstream.image(REPOSITORY, "v1", &[sample(2, 10)]);
    let proxy = ruled(&upstream, &[rule("v*", &[("immutable", true.into())])]).start().await;
    proxy.get(&manifest_path("v1")).await.assert_digest(&first.digest);
    let second = upstream.image(REPOSITORY, "v1", &[sample(3, 10)]);
    for _ in 0..3 {
        pass().await;
        let reply = proxy.get_checked(&manifest_path("v1")).await;
        reply.assert_digest(&first.digest);
        assert_eq!(reply.outcome(), "hit; detail=move-refused");
        assert!(reply.header("Warning").is_some_and(|warning| warning.starts_with("299 - \"")), "{:?}", reply.headers);
    }
    let event = proxy.log.wait_for(|event| event["level"] == "ERROR" && event["tag"] == "v1").await;
    assert_eq!((event["from"].as_str(), event["to"].as_str()), (Some(&*first.digest), Some(&*second.digest)));
    proxy.wait_metric("forebay_tag_moves_total", &["verdict=\"refused\""], |moves| moves == 1.0).await;
    // By its digest the other image is what it is.
    proxy.get(&manifest_path(&second.digest)).await.assert_digest(&second.digest);
    // It is held over a restart, and when it went and came back as something else.
    let proxy = proxy.restart().await;
    pass().await;
    assert_eq!(proxy.get_checked(&manifest_path("v1")).await.outcome(), "hit; detail=move-refused");
    upstream.remove_tag(REPOSITORY, "v1");
    pass().await;
    proxy.get_checked(&manifest_path("v1")).await.assert_error(404, "MANIFEST_UNKNOWN");
    let proxy = proxy.restart().await;
    upstream.tag(REPOSITORY, "v1", &second.digest);
    proxy.get_checked(&manifest_path("v1")).await.assert_digest(&first.digest);
    upstream.tag(REPOSITORY, "v1", &first.digest);
    pass().await;
    let reply = proxy.get_checked(&manifest_path("v1")).await;
    reply.assert_digest(&first.digest);
    assert_eq!(reply.outcome(), "hit; detail=revalidated", "moved back");
}

#[tokio::test]
async fn an_immutable_tag_of_an_upstream_without_digests_is_held_too() {
    let upstream = ScriptedRegistry::start().await;
    let first = upstream.image(REPOSITORY, "v1", &[sample(4, 10)]);
    upstream.rule(on("HEAD", &manifest_path("*")).status(405));
    let proxy = ruled(&upstream, &[rule("v*", &[("immutable", true.into())])]).start().await;
    proxy.get(&manifest_path("v1")).await.assert_digest(&first.digest);
    upstream.image(REPOSITORY, "v1", &[sample(5, 10)]);
    pass().await;
    proxy.get_checked(&manifest_path("v1")).await.assert_digest(&first.digest);
}

#[tokio::test]
async fn a_move_that_is_followed_is_counted_and_logged() {
    let upstream = ScriptedRegistry::start().await;
    let first = upstream.image(REPOSITORY, "latest", &[sample(6, 10)]);
    let proxy = ruled(&upstream, &[rule("v*", &[("immutable", true.into())])]).start().await;
    proxy.get(&manifest_path("latest")).await.assert_digest(&first.digest);
    let second = upstream.image(REPOSITORY, "latest", &[sample(7, 10)]);
    pass().await;
    proxy.get_checked(&manifest_path("latest")).await.assert_digest(&second.digest);
    proxy.log.wait_for(|event| event["message"] == "a tag moved" && event["to"] == *second.digest).await;
    proxy.wait_metric_above("forebay_tag_moves_total", &["verdict=\"followed\"", REGISTRY], 0.5).await;
}

#[tokio::test]
async fn a_registry_that_is_switched_offline_is_not_asked() {
    let upstream = ScriptedRegistry::start().await;
    let image = upstream.image(REPOSITORY, "latest", &[sample(8, 100_000)]);
    let proxy = Proxy::of(&upstream).each("tag_ttl", SHORT).each("stale_if_error", SHORT).start().await;
    proxy.get(&manifest_path("latest")).await.assert_digest(&image.digest);
    proxy.get_until_hit(&blob_path(&image.layers[0].0)).await;
    let switches: [fn(Setup) -> Setup; 2] =
        [|setup| setup.each("offline", true), |setup| setup.each("offline", false).set("upstream", "offline", true)];
    let mut proxy = proxy;
    for switch in switches {
        proxy = proxy.restart_with(switch).await;
        let asked = upstream.total();
        let reply = proxy.get(&manifest_path("latest")).await;
        reply.assert_digest(&image.digest);
        assert_eq!(reply.outcome(), "hit; detail=offline", "however long ago it was checked");
        proxy.get(&blob_path(&image.layers[0].0)).await.assert_digest(&image.layers[0].0);
        assert_eq!(proxy.get(&manifest_path(&image.digest)).await.outcome(), "hit");
        for path in [manifest_path("other"), manifest_path(&unknown_digest()), blob_path(&unknown_digest())] {
            proxy.get(&path).await.assert_error(503, "UNAVAILABLE");
        }
        assert_eq!(proxy.get(&format!("/v2/{REPOSITORY}/tags/list")).await.status, 503);
        assert_eq!(upstream.total(), asked);
    }
}

#[tokio::test]
async fn a_rule_keeps_single_tags_from_being_asked_for() {
    let upstream = ScriptedRegistry::start().await;
    let image = upstream.image(REPOSITORY, "frozen", &[sample(9, 10)]);
    upstream.image(REPOSITORY, "live", &[sample(10, 10)]);
    let proxy = Proxy::of(&upstream).each("tag_ttl", SHORT).start().await;
    proxy.get(&manifest_path("frozen")).await.assert_digest(&image.digest);
    let rules = vec![rule("frozen*", &[("offline", true.into())])];
    let proxy = proxy.restart_with(|setup| setup.each("tag_rule", rules)).await;
    upstream.image(REPOSITORY, "frozen", &[sample(11, 10)]);
    upstream.image(REPOSITORY, "frozen-2", &[sample(12, 10)]);
    let asked = upstream.total();
    let reply = proxy.get(&manifest_path("frozen")).await;
    reply.assert_digest(&image.digest);
    assert_eq!(reply.outcome(), "hit; detail=offline");
    proxy.get(&manifest_path("frozen-2")).await.assert_error(503, "UNAVAILABLE");
    assert_eq!(upstream.total(), asked);
    assert_eq!(proxy.get(&manifest_path("live")).await.status, 200);
}

#[tokio::test]
async fn repositories_can_be_allowed_and_denied() {
    let upstream = ScriptedRegistry::start().await;
    let open = ScriptedRegistry::start().await;
    for name in ["team/app", "team/secret", "other/app"] {
        upstream.image(name, "latest", &[sample(13, 10)]);
        open.image(name, "latest", &[sample(13, 10)]);
    }
    let registries = [
        Registry::new(REGISTRY, &upstream.url()).set("allow", vec!["team/*"]).set("deny", vec!["*/secret"]),
        Registry::new("open.test", &open.url()),
    ];
    let proxy = Setup::new(&registries).start().await;
    assert_eq!(proxy.get("/v2/team/app/manifests/latest").await.status, 200);
    let asked = upstream.total();
    for name in ["team/secret", "other/app"] {
        for rest in ["manifests/latest".to_owned(), format!("blobs/{}", unknown_digest()), "tags/list".to_owned()] {
            proxy.get(&format!("/v2/{name}/{rest}")).await.assert_error(403, "DENIED");
        }
        assert_eq!(
            proxy.get(&format!("/v2/{name}/manifests/latest?ns=open.test")).await.status,
            200,
            "each for itself"
        );
    }
    assert_eq!(upstream.total(), asked);
}
