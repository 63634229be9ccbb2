//! The admin API: what it says of images, blobs and downloads, who may ask, and that asking changes nothing.

use serde_json::Value;
use serde_json::json;

use crate::support::GLANCE;
use crate::support::PATIENCE;
use crate::support::REGISTRY;
use crate::support::REPOSITORY;
use crate::support::blob_path;
use crate::support::client;
use crate::support::client::Connection;
use crate::support::client::Reply;
use crate::support::content::KIB;
use crate::support::content::MIB;
use crate::support::content::OCI_INDEX;
use crate::support::content::sample;
use crate::support::manifest_path;
use crate::support::proxy::Proxy;
use crate::support::registry::ScriptedRegistry;
use crate::support::script::Gate;
use crate::support::script::on;
use crate::support::within;

/// A request with a body, as JSON.
pub(crate) async fn ask(proxy: &Proxy, method: &str, path: &str, body: &Value) -> Reply {
    ask_as(proxy, method, path, &[("Content-Type", "application/json")], &body.to_string()).await
}

async fn ask_as(proxy: &Proxy, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Reply {
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n{body}",
        proxy.admin,
        body.len()
    );
    within(PATIENCE, async {
        let mut connection = Connection::open(proxy.admin).await.unwrap();
        connection.write(request.as_bytes()).await.unwrap();
        connection.receive(method).await.unwrap().reply().await
    })
    .await
}

/// Pulls a whole image as an engine does.
pub(crate) async fn pull(proxy: &Proxy, reference: &str) {
    let document = proxy.get(&manifest_path(reference)).await;
    assert_eq!(document.status, 200, "{reference}");
    let document: Value = document.json();
    let digests = |key: &str| {
        let list = document[key].as_array().cloned().unwrap_or_default();
        list.iter().map(|entry| entry["digest"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    for digest in digests("manifests") {
        Box::pin(pull(proxy, &digest)).await;
    }
    for digest in digests("layers").iter().map(String::as_str).chain(document["config"]["digest"].as_str()) {
        proxy.get_until_hit(&blob_path(digest)).await;
    }
}

fn image<'a>(images: &'a Value, tag: &str) -> &'a Value {
    let images = images["images"].as_array().unwrap();
    images.iter().find(|image| image["tag"] == tag).unwrap_or_else(|| panic!("no {tag} in {images:#?}"))
}

#[tokio::test]
async fn images_are_listed_with_what_they_take_and_share() {
    let upstream = ScriptedRegistry::start().await;
    let (base, own) = (sample(1, 100 * KIB), sample(2, 30 * KIB));
    let first = upstream.image(REPOSITORY, "first", &[base.clone(), own.clone()]);
    let second = upstream.image(REPOSITORY, "second", std::slice::from_ref(&base));
    let missing = upstream.image(REPOSITORY, "missing", &[sample(3, 1000)]);
    let (index, document) = upstream.index(REPOSITORY, "both", &[&first, &missing]);
    upstream.manifest(REPOSITORY, "both", OCI_INDEX, document.clone());
    let proxy = Proxy::of(&upstream).start().await;
    pull(&proxy, "first").await;
    pull(&proxy, "second").await;
    proxy.get(&manifest_path("missing")).await;
    proxy.get(&manifest_path(&index)).await;

    let images = proxy.admin("/api/v1/images").await.json();
    assert_eq!(images["total"], 4, "{images:#}");
    let listed = image(&images, "first");
    assert_eq!((&listed["registry"], &listed["repository"]), (&REGISTRY.into(), &REPOSITORY.into()));
    assert_eq!((&listed["digest"], &listed["state"]), (&first.digest.clone().into(), &"complete".into()));
    assert_eq!(listed["platforms"], json!(["linux/amd64"]));
    let size = first.manifest.len() + first.config.len() + base.len() + own.len();
    assert_eq!(listed["size_bytes"], size, "{listed:#}");
    // The base layer, and all that the index has of it too.
    assert_eq!(listed["shared_bytes"], size);
    let listed = image(&images, "second");
    assert_eq!(listed["size_bytes"], second.manifest.len() + second.config.len() + base.len());
    assert_eq!(listed["shared_bytes"], base.len());
    assert_eq!(image(&images, "missing")["state"], "partial");
    let untagged = images["images"].as_array().unwrap().iter().find(|image| image["tag"].is_null()).unwrap();
    assert_eq!((&untagged["digest"], &untagged["media_type"]), (&index.into(), &OCI_INDEX.into()));
    assert_eq!((&untagged["state"], &untagged["platforms"]), (&"complete".into(), &json!(["linux/amd64"])));

    let found = proxy.admin("/api/v1/images?search=SECOND&sort=size").await.json();
    assert_eq!((&found["total"], &found["images"][0]["tag"]), (&1.into(), &"second".into()));
    let page = proxy.admin("/api/v1/images?sort=used&limit=1&offset=1").await.json();
    assert_eq!((page["images"].as_array().unwrap().len(), &page["total"]), (1, &4.into()));
    assert_eq!(proxy.admin("/api/v1/images?registry=elsewhere.example").await.json()["total"], 0);
    for wrong in ["sort=colour", "limit=x", "limit=10001", "offset=-1"] {
        assert_eq!(proxy.admin(&format!("/api/v1/images?{wrong}")).await.status, 400, "{wrong}");
    }

    let blobs = proxy.admin("/api/v1/blobs?limit=1").await.json();
    assert_eq!(blobs["total"], 4 + 2 + 2, "{blobs:#}");
    let largest = &blobs["blobs"][0];
    assert_eq!((&largest["size_bytes"], &largest["media_type"]), (&base.len().into(), &Value::Null));
    assert_eq!(largest["repositories"], json!([format!("{REGISTRY}/{REPOSITORY}")]));
}

#[tokio::test]
async fn a_download_shows_how_far_it_is() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(4, 2 * MIB);
    let digest = upstream.blob(REPOSITORY, bytes.clone());
    let gate = Gate::new();
    upstream.rule(on("GET", &blob_path(&digest)).hold_at(MIB, &gate));
    let proxy = Proxy::of(&upstream).start().await;
    assert_eq!(proxy.admin("/api/v1/fills").await.json(), json!({ "fills": [] }));
    let incoming = proxy.open(&blob_path(&digest)).await;
    let fill = within(PATIENCE, async {
        loop {
            let fills = proxy.admin("/api/v1/fills").await.json();
            if fills["fills"][0]["present_bytes"] == MIB {
                return fills["fills"][0].clone();
            }
            tokio::time::sleep(GLANCE).await;
        }
    })
    .await;
    assert_eq!((&fill["digest"], &fill["size_bytes"]), (&digest.into(), &bytes.len().into()));
    assert_eq!(fill["repository"], format!("{REGISTRY}/{REPOSITORY}"));
    assert_eq!((&fill["stage"], &fill["readers"]), (&"filling".into(), &1.into()));
    assert_eq!(proxy.admin("/api/v1/status").await.json()["fills_in_flight"], 1);
    gate.release();
    incoming.reply().await.assert_body(200, &bytes);
}

#[tokio::test]
async fn status_tells_what_was_saved() {
    let upstream = ScriptedRegistry::start().await;
    upstream.image(REPOSITORY, "latest", &[sample(5, 100 * KIB)]);
    let proxy = Proxy::of(&upstream).start().await;
    for _ in 0..3 {
        pull(&proxy, "latest").await;
    }
    // The last answers are counted a moment after they have arrived.
    let mut status = proxy.admin("/api/v1/status").await.json();
    within(PATIENCE, async {
        let saved = |status: &Value| status["traffic"]["saved_bytes"].as_u64() >= Some(200 * KIB as u64);
        let mut before = Value::Null;
        while !saved(&status) || status["traffic"] != before {
            tokio::time::sleep(GLANCE * 10).await;
            before = status["traffic"].take();
            status = proxy.admin("/api/v1/status").await.json();
        }
    })
    .await;
    assert_eq!((&status["ready"], &status["version"]), (&true.into(), &env!("CARGO_PKG_VERSION").into()));
    let (traffic, storage) = (&status["traffic"], &status["storage"]);
    assert!(traffic["hit_ratio"].as_f64().is_some_and(|ratio| ratio > 0.5 && ratio < 1.0), "{status:#}");
    assert_eq!(storage["blobs"], 3);
    assert!(storage["stored_bytes"].as_u64() < storage["max_bytes"].as_u64(), "{status:#}");
    assert!(storage["free_bytes"].as_u64() <= storage["disk_bytes"].as_u64() && storage["disk_bytes"] != 0);
    let history = proxy.admin("/api/v1/traffic?minutes=5").await.json();
    let samples = history["samples"].as_array().unwrap();
    assert!(samples.len() >= 2, "{history:#}");
    assert_eq!(samples[0]["requests"], 0);
    assert_eq!(samples.last().unwrap()["requests"], traffic["requests"]);
}

#[tokio::test]
async fn the_log_level_changes_while_it_runs() {
    let upstream = ScriptedRegistry::start().await;
    let proxy = Proxy::of(&upstream).start().await;
    let path = "/api/v1/log-level";
    assert_eq!(proxy.admin(path).await.json(), json!({ "level": "info" }));
    let answer = ask(&proxy, "PUT", path, &json!({ "level": "error" })).await;
    assert_eq!((answer.status, answer.json()), (200, json!({ "level": "error" })));
    proxy.get_with("/v2/", &[("X-Request-Id", "silent")]).await;
    ask(&proxy, "PUT", path, &json!({ "level": "info,forebay=debug" })).await;
    proxy.get_with("/v2/", &[("X-Request-Id", "loud")]).await;
    proxy.log.wait_for(|event| event["request_id"] == "loud").await;
    assert!(!proxy.log.events().iter().any(|event| event["request_id"] == "silent"));
    for wrong in [json!({ "level": "inof" }), json!({}), json!({ "level": "info", "more": 1 }), json!(7)] {
        let answer = ask(&proxy, "PUT", path, &wrong).await;
        assert_eq!((answer.status, &answer.json()["error"]["code"]), (400, &"bad_request".into()), "{wrong}");
    }
    assert_eq!(proxy.admin(path).await.json(), json!({ "level": "info,forebay=debug" }));
}

#[tokio::test]
async fn a_token_is_asked_for_where_one_is_set() {
    let upstream = ScriptedRegistry::start().await;
    let mut proxy = Proxy::of(&upstream).set("admin", "token", "s3cret").start().await;
    for path in ["/api/v1/status", "/api/v1/nothing"] {
        let refused = proxy.admin(path).await;
        assert_eq!(refused.status, 401, "{path}");
        assert!(refused.header("WWW-Authenticate").is_some_and(|value| value.starts_with("Bearer")));
        assert!(refused.json()["error"]["message"].as_str().unwrap().contains("admin.token"));
    }
    let allowed = client::request(proxy.admin, "GET", "/api/v1/status", &[("Authorization", "Bearer s3cret")]).await;
    assert_eq!(allowed.status, 200);
    // Probes and scrapers have no token.
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(proxy.admin(path).await.status, 200, "{path}");
    }
    assert!(!proxy.end_log().await.contains("s3cret"));
}

#[tokio::test]
async fn other_sites_and_careless_clients_change_nothing() {
    let upstream = ScriptedRegistry::start().await;
    let proxy = Proxy::of(&upstream).start().await;
    let json = ("Content-Type", "application/json");
    let body = r#"{"level":"trace"}"#;
    type Headers<'a> = &'a [(&'a str, &'a str)];
    let rows: [(&str, Headers<'_>, u16); 6] = [
        ("PUT", &[], 415),
        ("PUT", &[("Content-Type", "text/plain")], 415),
        ("PUT", &[json, ("Origin", "https://evil.example")], 403),
        ("PUT", &[json, ("Sec-Fetch-Site", "cross-site")], 403),
        ("POST", &[json], 405),
        ("OPTIONS", &[("Origin", "https://evil.example"), ("Access-Control-Request-Method", "PUT")], 403),
    ];
    for (method, headers, status) in rows {
        let answer = ask_as(&proxy, method, "/api/v1/log-level", headers, body).await;
        assert_eq!(answer.status, status, "{method} {headers:?}");
        assert!(answer.header("Access-Control-Allow-Origin").is_none());
        assert!(answer.json()["error"]["message"].as_str().is_some_and(|message| !message.is_empty()));
    }
    // A page whose own name was made to lead here says that name.
    for (path, status) in [("/api/v1/status", 403), ("/api/v1/openapi.json", 403), ("/healthz", 200), ("/metrics", 200)]
    {
        let request = format!("GET {path} HTTP/1.1\r\nHost: evil.example:5001\r\nConnection: close\r\n\r\n");
        let mut connection = Connection::open(proxy.admin).await.unwrap();
        connection.write(request.as_bytes()).await.unwrap();
        let answer = within(PATIENCE, async { connection.receive("GET").await.unwrap().reply().await }).await;
        assert_eq!(answer.status, status, "{path}");
    }
    let large = format!("{{\"level\":\"{}\"}}", "x".repeat(70 * KIB));
    assert_eq!(ask_as(&proxy, "PUT", "/api/v1/log-level", &[json], &large).await.status, 413);
    assert_eq!(proxy.admin("/api/v1/log-level").await.json()["level"], "info");
}

#[tokio::test]
async fn the_page_is_one_document_under_a_strict_policy() {
    let upstream = ScriptedRegistry::start().await;
    let proxy = Proxy::of(&upstream).set("admin", "token", "s3cret").start().await;
    let page = proxy.admin("/").await;
    assert_eq!(page.status, 200);
    assert!(page.header("Content-Type").is_some_and(|value| value.starts_with("text/html")));
    let policy = page.header("Content-Security-Policy").unwrap();
    for part in ["default-src 'none'", "script-src 'sha256-", "connect-src 'self'", "frame-ancestors 'none'"] {
        assert!(policy.contains(part), "no {part} in {policy}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");
    assert!(!page.text().contains("s3cret"));
    assert_eq!(client::request(proxy.admin, "POST", "/", &[]).await.status, 405);
}
