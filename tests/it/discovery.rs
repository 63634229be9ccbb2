//! Tags and referrers: passed on, with links that lead back to the proxy.

use serde_json::json;

use crate::support::REPOSITORY;
use crate::support::content::OCI_INDEX;
use crate::support::content::OCI_MANIFEST;
use crate::support::content::index;
use crate::support::content::sample;
use crate::support::content::unknown_digest;
use crate::support::manifest_path;
use crate::support::proxy::Proxy;
use crate::support::proxy::Registry;
use crate::support::proxy::Setup;
use crate::support::registry::ScriptedRegistry;

fn referrers_path(digest: &str) -> String {
    format!("/v2/{REPOSITORY}/referrers/{digest}")
}

/// Tags of a list answer.
fn tags(body: &serde_json::Value) -> Vec<String> {
    let tags = body["tags"].as_array().unwrap_or_else(|| panic!("no tags in {body}"));
    tags.iter().map(|tag| tag.as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn an_image_without_referrers_has_an_empty_list() {
    let upstream = ScriptedRegistry::start().await;
    let image = upstream.image(REPOSITORY, "latest", &[sample(1, 10)]);
    upstream.referrers(&image.digest, vec![]);
    let proxy = Proxy::of(&upstream).start().await;
    let reply = proxy.get(&referrers_path(&image.digest)).await;
    assert_eq!((reply.status, reply.header("Content-Type")), (200, Some(OCI_INDEX)));
    assert_eq!(reply.json(), json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [] }));
}

#[tokio::test]
async fn referrers_are_passed_on_with_their_filter() {
    let upstream = ScriptedRegistry::start().await;
    let image = upstream.image(REPOSITORY, "latest", &[sample(2, 10)]);
    let descriptor = |kind: &str, fill: &str| {
        json!({
            "mediaType": OCI_MANIFEST, "digest": format!("sha256:{}", fill.repeat(64)), "size": 100,
            "artifactType": kind, "annotations": { "note": kind },
        })
    };
    let both = vec![descriptor("application/x.sbom", "1"), descriptor("application/x.signature", "2")];
    upstream.referrers(&image.digest, both.clone());
    let proxy = Proxy::of(&upstream).start().await;
    for _ in 0..2 {
        let all = proxy.get(&referrers_path(&image.digest)).await;
        assert_eq!(all.header("Content-Type"), Some(OCI_INDEX));
        assert_eq!(all.json()["manifests"], json!(both));
        assert_eq!(all.header("OCI-Filters-Applied"), None);
        let target = format!("{}?artifactType=application%2Fx.sbom", referrers_path(&image.digest));
        let some = proxy.get(&target).await;
        assert_eq!(some.json()["manifests"], json!(both[..1]));
        assert_eq!(some.header("OCI-Filters-Applied"), Some("artifactType"));
    }
}

#[tokio::test]
async fn an_upstream_without_referrers_leaves_the_client_its_fallback() {
    let upstream = ScriptedRegistry::start().await;
    let image = upstream.image(REPOSITORY, "latest", &[sample(3, 10)]);
    let fallback = image.digest.replace(':', "-");
    let list = upstream.manifest(REPOSITORY, &fallback, OCI_INDEX, index(&[(image.digest.clone(), 100)]));
    let proxy = Proxy::of(&upstream).start().await;
    let reply = proxy.get(&referrers_path(&image.digest)).await;
    assert_eq!(reply.status, 404);
    assert_ne!(reply.error_code(), "NAME_UNKNOWN", "clients read that as a missing repository");
    proxy.get(&manifest_path(&fallback)).await.assert_digest(&list);
    proxy.get(&manifest_path(&format!("{fallback}.sig"))).await.assert_error(404, "MANIFEST_UNKNOWN");
}

#[tokio::test]
async fn referrers_of_nonsense_are_400() {
    let upstream = ScriptedRegistry::start().await;
    let proxy = Proxy::of(&upstream).start().await;
    for digest in ["notadigest", "sha256:short", "latest"] {
        proxy.get(&referrers_path(digest)).await.assert_error(400, "DIGEST_INVALID");
    }
    assert_eq!(upstream.total(), 0);
}

#[tokio::test]
async fn tags_are_listed() {
    let upstream = ScriptedRegistry::start().await;
    let image = upstream.image(REPOSITORY, "b", &[sample(4, 10)]);
    for tag in ["a", "c", "d", "e"] {
        upstream.tag(REPOSITORY, tag, &image.digest);
    }
    let proxy = Proxy::of(&upstream).start().await;
    let path = format!("/v2/{REPOSITORY}/tags/list");
    let all = proxy.get(&path).await;
    assert_eq!((all.status, all.header("Content-Type")), (200, Some("application/json")));
    assert_eq!(all.json(), json!({ "name": REPOSITORY, "tags": ["a", "b", "c", "d", "e"] }));
    assert_eq!(all.header("Link"), None);
    let rest = proxy.get(&format!("{path}?last=c")).await;
    assert_eq!(tags(&rest.json()), ["d", "e"]);
    let none = proxy.get(&format!("{path}?n=0")).await;
    assert_eq!((none.status, none.header("Link")), (200, None));
    assert!(tags(&none.json()).is_empty());
    for wrong in ["-1", "abc", "1.5", "", "99999999999999999999999"] {
        let reply = proxy.get(&format!("{path}?n={wrong}")).await;
        if wrong.starts_with("999") && reply.status == 200 {
            continue;
        }
        reply.assert_error(400, "PAGINATION_NUMBER_INVALID");
    }
    let missing = proxy.get("/v2/library/missing/tags/list").await;
    missing.assert_error(404, "NAME_UNKNOWN");
}

#[tokio::test]
async fn pages_of_tags_lead_back_to_the_proxy() {
    let main = ScriptedRegistry::start().await;
    let upstream = ScriptedRegistry::start().await;
    let image = upstream.image(REPOSITORY, "a", &[sample(5, 10)]);
    for tag in ["b", "c", "d", "e"] {
        upstream.tag(REPOSITORY, tag, &image.digest);
    }
    let registries = [Registry::new("main.test", &main.url()), Registry::new("other.test", &upstream.url())];
    let proxy = Setup::new(&registries).start().await;
    let starts = [
        format!("/v2/{REPOSITORY}/tags/list?n=2&ns=other.test"),
        format!("/v2/other.test/{REPOSITORY}/tags/list?n=2"),
        format!("/other.test/v2/{REPOSITORY}/tags/list?n=2"),
    ];
    for start in starts {
        let path = start.split('?').next().unwrap().to_owned();
        let mut target = start.clone();
        let mut found = Vec::new();
        loop {
            let reply = proxy.get(&target).await;
            assert_eq!(reply.status, 200, "{target}: {}", reply.text());
            let page = tags(&reply.json());
            assert!(page.len() <= 2, "{page:?}");
            found.extend(page);
            let Some(link) = reply.header("Link") else { break };
            let next = link.strip_prefix('<').and_then(|rest| rest.strip_suffix(">; rel=\"next\""));
            let next = next.unwrap_or_else(|| panic!("strange link {link:?}"));
            assert!(next.starts_with(&format!("{path}?")), "{next} leads away from {path}");
            assert_eq!(next.contains("ns=other.test"), start.contains("ns=other.test"), "{next}");
            target = next.to_owned();
            assert!(found.len() < 10, "pages without end");
        }
        assert_eq!(found, ["a", "b", "c", "d", "e"], "{start}");
    }
    assert_eq!(main.total(), 0);
}

#[tokio::test]
async fn nothing_is_invented_when_the_upstream_is_away() {
    let upstream = ScriptedRegistry::start().await;
    upstream.image(REPOSITORY, "latest", &[sample(6, 10)]);
    let proxy = Proxy::of(&upstream).start().await;
    assert_eq!(proxy.get(&manifest_path("latest")).await.status, 200);
    upstream.stop().await;
    // A list made of what happens to be here would look complete and not be.
    for path in [format!("/v2/{REPOSITORY}/tags/list"), referrers_path(&unknown_digest())] {
        proxy.get(&path).await.assert_error(502, "UNAVAILABLE");
    }
}
