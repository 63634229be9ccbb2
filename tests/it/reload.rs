//! A new configuration while everything runs: what changes, what goes on, and what a bad file does.

use rustix::process::Signal;
use serde_json::json;

use crate::api::ask;
use crate::commands::command;
use crate::commands::printed;
use crate::support::REPOSITORY;
use crate::support::blob_path;
use crate::support::content::KIB;
use crate::support::content::MIB;
use crate::support::content::sample;
use crate::support::manifest_path;
use crate::support::proxy::Proxy;
use crate::support::registry::ScriptedRegistry;
use crate::support::script::Gate;
use crate::support::script::on;

/// Writes the proxy's file anew, changed by `edit`.
fn rewrite(proxy: &Proxy, edit: impl FnOnce(String) -> String) {
    let file = proxy.data().join("../forebay.toml");
    let text = edit(std::fs::read_to_string(&file).unwrap());
    std::fs::write(&file, text).unwrap();
}

#[tokio::test]
async fn a_registry_moves_while_a_download_goes_on() {
    let (old, new) = (ScriptedRegistry::start().await, ScriptedRegistry::start().await);
    let bytes = sample(1, 2 * MIB);
    let held = blob_path(&old.blob(REPOSITORY, bytes.clone()));
    let gate = Gate::new();
    old.rule(on("GET", &held).hold_at(64 * KIB, &gate));
    let image = new.image(REPOSITORY, "moved", &[sample(2, 1000)]);
    let proxy = Proxy::of(&old).start().await;
    let incoming = proxy.open(&held).await;
    assert_eq!(proxy.get(&manifest_path("moved")).await.status, 404);

    rewrite(&proxy, |text| text.replace(&old.url(), &new.url()));
    let answer = ask(&proxy, "POST", "/api/v1/reload", &json!({})).await;
    assert_eq!((answer.status, answer.json()), (200, json!({ "needs_restart": [] })));
    proxy.get(&blob_path(&image.layers[0].0)).await.assert_body(200, &image.layers[0].1);
    gate.release();
    incoming.reply().await.assert_body(200, &bytes);
    proxy.get(&held).await.assert_body(200, &bytes);
}

#[tokio::test]
async fn a_signal_brings_registries_policies_and_the_log_level() {
    let upstream = ScriptedRegistry::start().await;
    let image = upstream.image(REPOSITORY, "latest", &[sample(3, 1000)]);
    let proxy = Proxy::of(&upstream).each("tag_ttl", "71m").start().await;
    proxy.get(&manifest_path("latest")).await.assert_digest(&image.digest);
    let second = format!("\n[[registry]]\nhost = \"second.test\"\nendpoints = [\"{}\"]\n", upstream.url());
    rewrite(&proxy, |text| {
        text.replace("\"71m\"", "\"0s\"").replace("level = \"info\"", "level = \"debug\"") + &second
    });
    let path = format!("/v2/second.test/{REPOSITORY}/manifests/latest");
    assert_eq!(proxy.get(&path).await.status, 404);
    proxy.signal(Signal::HUP);
    proxy.log.wait_for(|event| event["message"] == "the configuration was reloaded").await;
    proxy.get(&path).await.assert_digest(&image.digest);
    let asked = upstream.count("HEAD", &manifest_path("latest"));
    proxy.get_checked(&manifest_path("latest")).await.assert_digest(&image.digest);
    assert!(upstream.count("HEAD", &manifest_path("latest")) > asked, "the tag is checked each time now");
    assert_eq!(proxy.admin("/api/v1/log-level").await.json()["level"], "debug");
}

#[tokio::test]
async fn a_bad_file_changes_nothing_and_what_needs_a_restart_is_said() {
    let upstream = ScriptedRegistry::start().await;
    let image = upstream.image(REPOSITORY, "latest", &[sample(4, 1000)]);
    let proxy = Proxy::of(&upstream).start().await;
    rewrite(&proxy, |text| format!("{text}\n[[registry]]\nhost = \"more.test\"\ntag_ttl = \"soon\"\n"));
    let refused = command(&proxy, &["reload"]).await;
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains("nothing was changed") && said.contains("tag_ttl") && said.contains("soon"), "{said}");
    proxy.get(&manifest_path("latest")).await.assert_digest(&image.digest);
    assert_eq!(proxy.get("/v2/more.test/a/manifests/latest").await.status, 404);
    rewrite(&proxy, |text| text.replace("\"soon\"", "\"1m\"").replace("[server]", "[server]\nmax_connections = 7"));
    let said = printed(&proxy, &["reload"]).await;
    assert_eq!(said, "the configuration is in force, but for what needs a restart: server.max_connections\n");
}
