//! What an operator sees: health, metrics, one log line a request, and headers that say what happened.

use crate::support::REGISTRY;
use crate::support::REPOSITORY;
use crate::support::blob_path;
use crate::support::content::KIB;
use crate::support::content::sample;
use crate::support::content::unknown_digest;
use crate::support::manifest_path;
use crate::support::proxy::Proxy;
use crate::support::proxy::Registry;
use crate::support::proxy::Setup;
use crate::support::registry::ScriptedRegistry;
use crate::support::reserve;
use crate::support::script::on;

#[tokio::test]
async fn health_is_answered() {
    let upstream = ScriptedRegistry::start().await;
    let proxy = Proxy::of(&upstream).start().await;
    let health = proxy.admin("/healthz").await;
    assert_eq!((health.status, health.text().trim()), (200, "ok"));
    assert_eq!(proxy.admin("/readyz").await.status, 200);
    assert_eq!(proxy.admin("/nonsense").await.status, 404);
    // The two ports do not mix.
    assert_eq!(proxy.admin("/v2/").await.status, 404);
    assert_eq!(proxy.get("/metrics").await.status, 404);
}

#[tokio::test]
async fn every_metric_is_there_after_traffic() {
    let upstream = ScriptedRegistry::start().await;
    let rated = on("*", &manifest_path("*")).header("RateLimit-Limit", "100;w=21600");
    upstream.rule(rated.header("RateLimit-Remaining", "76;w=21600"));
    let image = upstream.image(REPOSITORY, "latest", &[sample(1, 100 * KIB)]);
    let broken = blob_path(&upstream.blob(REPOSITORY, sample(2, 1000)));
    upstream.rule(on("GET", &broken).corrupt(0));
    // Small enough for an eviction.
    let proxy = Proxy::of(&upstream).set("storage", "max_size", "1MiB").start().await;
    proxy.get(&manifest_path("latest")).await.assert_digest(&image.digest);
    let layer = blob_path(&image.layers[0].0);
    proxy.get_until_hit(&layer).await;
    proxy.get(&broken).await;
    for seed in 10..20 {
        let bytes = sample(seed, 200 * KIB);
        proxy.get(&blob_path(&upstream.blob(REPOSITORY, bytes.clone()))).await.assert_body(200, &bytes);
    }
    let registry = format!("registry=\"{REGISTRY}\"");
    let registry = registry.as_str();
    proxy.wait_metric_above("forebay_evicted_bytes_total", &[], 0.0).await;
    let table: [(&str, &[&str], f64); 14] = [
        ("forebay_requests_total", &[registry, "kind=\"manifest\"", "outcome=\"miss\""], 1.0),
        ("forebay_requests_total", &[registry, "kind=\"blob\"", "outcome=\"miss\""], 1.0),
        ("forebay_requests_total", &[registry, "kind=\"blob\"", "outcome=\"hit\""], 1.0),
        ("forebay_bytes_sent_total", &[registry, "source="], 1000.0),
        ("forebay_upstream_bytes_total", &[registry], (2000 * KIB) as f64),
        ("forebay_upstream_requests_total", &[registry, "status="], 1.0),
        ("forebay_fills_in_flight", &[], 0.0),
        ("forebay_fill_failures_total", &["reason="], 1.0),
        ("forebay_store_bytes", &[], 1000.0),
        ("forebay_store_blobs", &[], 1.0),
        ("forebay_evicted_bytes_total", &[], 1.0),
        ("forebay_first_byte_seconds_count", &[], 1.0),
        ("forebay_first_byte_seconds_bucket", &["le="], 0.0),
        ("forebay_upstream_ratelimit_remaining", &[registry], 76.0),
    ];
    let shown = proxy.admin("/metrics").await;
    assert!(shown.header("Content-Type").is_some_and(|value| value.starts_with("text/plain")));
    for (name, labels, least) in table {
        proxy.wait_metric(name, labels, |value| value >= least).await;
    }
}

#[tokio::test]
async fn no_fill_is_in_flight_when_all_are_done() {
    let upstream = ScriptedRegistry::start().await;
    let path = blob_path(&upstream.blob(REPOSITORY, sample(3, 100 * KIB)));
    let proxy = Proxy::of(&upstream).start().await;
    proxy.get_until_hit(&path).await;
    proxy.wait_metric("forebay_fills_in_flight", &[], |fills| fills == 0.0).await;
}

#[tokio::test]
async fn every_answer_says_where_it_came_from() {
    let upstream = ScriptedRegistry::start().await;
    upstream.image(REPOSITORY, "latest", &[sample(4, 1000)]);
    let proxy = Proxy::of(&upstream).start().await;
    let targets = [
        "/".to_owned(),
        "/v2/".to_owned(),
        "/v2/_catalog".to_owned(),
        "/v2/UPPER/manifests/latest".to_owned(),
        "/v2/library/t/manifests/latest?ns=evil.example".to_owned(),
        manifest_path("latest"),
        manifest_path("nope"),
        blob_path(&unknown_digest()),
        format!("/v2/{REPOSITORY}/tags/list"),
        format!("/v2/{REPOSITORY}/referrers/{}", unknown_digest()),
    ];
    for target in &targets {
        for method in ["GET", "HEAD", "DELETE"] {
            let reply = crate::support::client::request(proxy.address, method, target, &[]).await;
            assert!(
                reply.header("Cache-Status").is_some_and(|value| value.starts_with("forebay; ")),
                "{method} {target}"
            );
            assert!(reply.header("X-Request-Id").is_some_and(|id| !id.is_empty()), "{method} {target}");
            assert_eq!(reply.header("Docker-Distribution-Api-Version"), Some("registry/2.0"), "{method} {target}");
        }
    }
}

#[tokio::test]
async fn a_request_keeps_the_id_its_client_gave_it() {
    let upstream = ScriptedRegistry::start().await;
    let proxy = Proxy::of(&upstream).start().await;
    let reply = proxy.get_with("/v2/", &[("X-Request-Id", "build-42.a_b")]).await;
    assert_eq!(reply.header("X-Request-Id"), Some("build-42.a_b"));
    for id in ["x".repeat(129), "two words".to_owned(), "<script>".to_owned(), String::new()] {
        let reply = proxy.get_with("/v2/", &[("X-Request-Id", &id)]).await;
        let given = reply.header("X-Request-Id").unwrap();
        assert!(given != id && !given.is_empty(), "{id:?} was taken as it was");
    }
    let first = proxy.get("/v2/").await;
    let second = proxy.get("/v2/").await;
    assert_ne!(first.header("X-Request-Id"), second.header("X-Request-Id"));
}

/// Each outcome tells its reason, to the client and in the log.
#[tokio::test]
async fn every_answer_says_why() {
    let upstream = ScriptedRegistry::start().await;
    upstream.image(REPOSITORY, "latest", &[sample(30, 10)]);
    let registry = Registry::new(REGISTRY, &upstream.url()).set("tag_ttl", "1ms").set("deny", vec!["closed/*"]);
    let proxy = Setup::new(&[registry]).start().await;
    assert_eq!(proxy.get(&manifest_path("latest")).await.status, 200);
    upstream.rule(on("*", &manifest_path("denied")).status(403));
    upstream.rule(on("*", &manifest_path("broken")).status(500));
    upstream.rule(on("*", &manifest_path("limited")).status(429).header("Retry-After", "60"));
    let rows = [
        (manifest_path("none"), "fwd=miss; detail=not-found", "not-found"),
        (manifest_path("denied"), "fwd=miss; detail=denied", "denied"),
        ("/v2/closed/app/manifests/latest".to_owned(), "fwd=bypass; detail=not-allowed", "not-allowed"),
        (manifest_path("broken"), "fwd=miss; detail=upstream-error", "upstream-error"),
        (manifest_path("latest"), "fwd=stale; detail=upstream-error", "upstream-error"),
        (manifest_path("limited"), "fwd=miss; detail=rate-limited", "rate-limited"),
    ];
    for (place, (target, outcome, detail)) in rows.into_iter().enumerate() {
        let id = format!("why-{place}");
        let reply = proxy.get_with(&target, &[("X-Request-Id", &id)]).await;
        assert_eq!(reply.outcome(), outcome, "{target}");
        let line = proxy.log.wait_for(|event| event["message"] == "request" && event["request_id"] == *id).await;
        assert_eq!(line["detail"], detail, "{line}");
    }
}

#[tokio::test]
async fn a_request_is_one_line_in_the_log() {
    let upstream = ScriptedRegistry::start().await;
    let image = upstream.image(REPOSITORY, "latest", &[sample(5, 1000)]);
    let layer = &image.layers[0].0;
    let proxy = Proxy::of(&upstream).start().await;
    let table = [
        ("/v2/".to_owned(), "ping", 200),
        (manifest_path("latest"), "manifest", 200),
        (blob_path(layer), "blob", 200),
        (format!("/v2/{REPOSITORY}/tags/list"), "tags", 200),
        (format!("/v2/{REPOSITORY}/referrers/{}", image.digest), "referrers", 404),
        ("/v2/_catalog".to_owned(), "other", 404),
    ];
    for (place, (target, kind, status)) in table.into_iter().enumerate() {
        let id = format!("line-{place}");
        let reply = proxy.get_with(&target, &[("X-Request-Id", &id)]).await;
        assert_eq!(reply.status, status, "{target}");
        let line =
            proxy.log.wait_for(|event| event["message"] == "request" && event["request_id"] == id.as_str()).await;
        assert_eq!(line["method"], "GET");
        assert_eq!(line["path"], target.as_str());
        assert_eq!(line["kind"], kind);
        assert_eq!(line["status"], status);
        assert_eq!(line["bytes"], reply.body.len(), "{target}");
        assert!(line["duration_ms"].is_number(), "{line}");
        if kind == "manifest" || kind == "blob" {
            assert_eq!((&line["registry"], &line["repository"]), (&REGISTRY.into(), &REPOSITORY.into()));
            assert_eq!(line["outcome"], "miss");
        }
    }
    let lines = proxy.log.events().into_iter().filter(|event| event["message"] == "request").count();
    assert_eq!(lines, 6);
}

#[tokio::test]
async fn a_trace_goes_through_to_the_registry_where_spans_are_exported() {
    let upstream = ScriptedRegistry::start().await;
    let image = upstream.image(REPOSITORY, "latest", &[sample(6, 1000)]);
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let parent = format!("00-{trace}-00f067aa0ba902b7-01");
    let seen = |path: &str| upstream.seen("GET", path)[0].headers.get("traceparent").map(str::to_owned);
    // Nobody collects: that must not matter.
    let (_port, nobody) = reserve("127.0.0.1:0".parse().unwrap());
    let collector = format!("http://{nobody}");
    let proxy = Proxy::of(&upstream).set("telemetry", "otlp_endpoint", collector.as_str()).start().await;
    let path = blob_path(&image.layers[0].0);
    proxy.get_with(&path, &[("traceparent", &parent)]).await.assert_body(200, &image.layers[0].1);
    let passed_on = seen(&path).unwrap();
    assert!(passed_on.contains(trace) && passed_on != parent, "{passed_on}");
    let quiet = Proxy::of(&upstream).start().await;
    let path = blob_path(&image.config_digest);
    quiet.get_with(&path, &[("traceparent", &parent)]).await.assert_body(200, &image.config);
    assert_eq!(seen(&path), None);
}
