//! `forebay verify` and the scrub: what is rotten is found, put aside, and fetched again.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Output;

use rustix::fs::FileType;
use rustix::fs::Mode;
use serde_json::Value;
use serde_json::json;

use crate::api::ask;
use crate::support::GLANCE;
use crate::support::PATIENCE;
use crate::support::REPOSITORY;
use crate::support::blob_path;
use crate::support::content::KIB;
use crate::support::content::MIB;
use crate::support::content::sample;
use crate::support::proxy;
use crate::support::proxy::Proxy;
use crate::support::registry::ScriptedRegistry;
use crate::support::within;

/// As a disk does it: the bytes change, and no time does.
fn rot(file: &Path) {
    let handle = std::fs::File::options().write(true).open(file).unwrap();
    let written = handle.metadata().unwrap().modified().unwrap();
    handle.write_all_at(b"rot", 1000).unwrap();
    handle.set_modified(written).unwrap();
}

async fn verify(proxy: &Proxy, flags: &[&str]) -> (Option<i32>, String) {
    let data = proxy.data();
    let output = proxy::run(&[&["verify", "--data", data.to_str().unwrap()], flags].concat()).await;
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

fn quarantined(proxy: &Proxy) -> usize {
    std::fs::read_dir(proxy.data().join("quarantine")).map_or(0, Iterator::count)
}

#[tokio::test]
async fn verify_finds_rot_beside_a_running_proxy_and_repairs_it() {
    let upstream = ScriptedRegistry::start().await;
    let (small, large) = (sample(1, 10 * KIB), sample(2, MIB));
    let digests = [upstream.blob(REPOSITORY, small.clone()), upstream.blob(REPOSITORY, large.clone())];
    let other = upstream.blob(REPOSITORY, sample(3, 2 * MIB));
    let proxy = Proxy::of(&upstream).start().await;
    for digest in digests.iter().chain([&other]) {
        proxy.get_until_hit(&blob_path(digest)).await;
    }
    assert_eq!(verify(&proxy, &[]).await, (Some(0), "3 blobs, 3.01 MiB hashed: 0 rotten\n".to_owned()));
    for digest in &digests {
        rot(&proxy.blob_file(digest));
    }
    let (code, text) = verify(&proxy, &[]).await;
    assert_eq!(code, Some(1));
    for digest in &digests {
        assert!(text.contains(&format!("{digest} is rotten: its bytes are those of sha256:")), "{text}");
    }
    assert!(!text.contains(&other) && text.contains("2 rotten"), "{text}");
    assert_eq!(quarantined(&proxy), 0, "nothing is changed without --repair");
    // The proxy has the large one open, and its seal is whole: it cannot know.
    let (code, text) = verify(&proxy, &["--repair", "--json"]).await;
    assert_eq!(code, Some(1));
    let found: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&found["blobs"], found["rotten"].as_array().unwrap().len()), (&3.into(), 2));
    for rotten in found["rotten"].as_array().unwrap() {
        assert!(rotten["quarantined"].as_bool().unwrap() && digests.iter().any(|digest| rotten["digest"] == **digest));
    }
    assert_eq!(quarantined(&proxy), 2);
    for (digest, bytes) in digests.iter().zip([&small, &large]) {
        proxy.get(&blob_path(digest)).await.assert_body(200, bytes);
        proxy.get_until_hit(&blob_path(digest)).await.assert_body(200, bytes);
    }
    assert_eq!(upstream.count("GET", &blob_path(&digests[1])), 2, "what was open was looked at again");
    let proxy = proxy.restart().await;
    for (digest, bytes) in digests.iter().zip([&small, &large]) {
        proxy.get(&blob_path(digest)).await.assert_body(200, bytes);
    }
    assert_eq!(verify(&proxy, &[]).await.0, Some(0));
}

/// Runs `verify` where the configuration names the admin port of this proxy.
async fn verify_beside(proxy: &Proxy, data: &Path, flags: &[&str]) -> (Option<i32>, String) {
    let words = [&["verify", "--json", "--data", data.to_str().unwrap()], flags].concat();
    let command = proxy::program().args(words).env("FOREBAY_ADMIN__LISTEN", proxy.admin.to_string()).output();
    let output = within(PATIENCE, command).await.unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

#[tokio::test]
async fn the_proxy_verifies_what_it_holds_when_it_is_asked() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(5, MIB);
    let (digest, other) = (upstream.blob(REPOSITORY, bytes.clone()), upstream.blob(REPOSITORY, sample(6, 10 * KIB)));
    let path = blob_path(&digest);
    let proxy = Proxy::of(&upstream).start().await;
    proxy.get_until_hit(&path).await;
    proxy.get_until_hit(&blob_path(&other)).await;
    let state = async || proxy.admin("/api/v1/verify").await.json();
    assert_eq!(state().await["state"], "never");
    // A directory that is not the proxy's is none of its business.
    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(elsewhere.path().join("blobs/sha256")).unwrap();
    std::fs::create_dir_all(elsewhere.path().join("blobs/sha512")).unwrap();
    let (code, text) = verify_beside(&proxy, elsewhere.path(), &[]).await;
    assert_eq!((code, text.as_str()), (Some(0), "{\"blobs\":0,\"bytes\":0,\"rotten_blobs\":0,\"rotten\":[]}\n"));
    assert_eq!(state().await["state"], "never");

    rot(&proxy.blob_file(&digest));
    let (code, text) = verify_beside(&proxy, &proxy.data(), &[]).await;
    let found: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &found["blobs"], &found["rotten"][0]["digest"]), (Some(1), &2.into(), &digest.clone().into()));
    assert_eq!(found["bytes"], MIB + 10 * KIB);
    let now = state().await;
    assert_eq!((&now["state"], &now["repair"], &now["rotten_blobs"]), (&"done".into(), &false.into(), &1.into()));
    assert_eq!((&now["total_blobs"], &now["total_bytes"]), (&2.into(), &(MIB + 10 * KIB).into()));
    assert_eq!(quarantined(&proxy), 0, "nothing is changed without --repair");

    // The store knows of this repair: what was rotten is gone at once.
    let admin = format!("http://{}", proxy.admin);
    let output = proxy::run(&["verify", "--admin", &admin, "--repair"]).await;
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("; moved to quarantine\n") && text.ends_with(": 1 rotten\n"), "{text}");
    assert_eq!(quarantined(&proxy), 1);
    proxy.wait_metric_above("forebay_rotten_blobs_total", &["verify"], 0.0).await;
    assert_eq!(proxy.admin("/api/v1/status").await.json()["storage"]["blobs"], 1);
    proxy.get(&path).await.assert_body(200, &bytes);
    proxy.get_until_hit(&path).await.assert_body(200, &bytes);
    assert_eq!(upstream.count("GET", &path), 2);
    assert_eq!(verify_beside(&proxy, &proxy.data(), &[]).await.0, Some(0));
}

#[tokio::test]
async fn one_verification_at_a_time_and_it_can_be_stopped() {
    let upstream = ScriptedRegistry::start().await;
    let digest = upstream.blob(REPOSITORY, sample(7, 10 * KIB));
    let proxy = Proxy::of(&upstream).start().await;
    proxy.get_until_hit(&blob_path(&digest)).await;
    // A file that cannot be opened before somebody writes to it: the verification goes on until then.
    let pipe = proxy.blob_file(&format!("sha256:{}", "ab".repeat(32)));
    std::fs::create_dir_all(pipe.parent().unwrap()).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    let begun = ask(&proxy, "POST", "/api/v1/verify", &json!({})).await;
    assert_eq!((begun.status, &begun.json()["state"]), (200, &"running".into()));
    let refused = ask(&proxy, "POST", "/api/v1/verify", &json!({ "repair": true })).await;
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (409, &"conflict".into()));
    let admin = format!("http://{}", proxy.admin);
    let output = proxy::run(&["verify", "--admin", &admin]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("goes on already"));

    let stopping = ask(&proxy, "DELETE", "/api/v1/verify", &json!({})).await;
    assert_eq!((stopping.status, &stopping.json()["repair"]), (200, &false.into()));
    within(PATIENCE, async {
        while proxy.admin("/api/v1/verify").await.json()["state"] != "stopped" {
            // For both, as an opening to write only would wait for a reader.
            drop(std::fs::File::options().read(true).write(true).open(&pipe).unwrap());
            tokio::time::sleep(GLANCE).await;
        }
    })
    .await;
    std::fs::remove_file(&pipe).unwrap();
    let again = ask(&proxy, "POST", "/api/v1/verify", &json!({})).await;
    assert_eq!(again.status, 200);
    assert_eq!(ask(&proxy, "POST", "/api/v1/verify", &json!({ "repiar": true })).await.status, 400);
}

#[tokio::test]
async fn what_cannot_be_verified_is_a_wrong_use() {
    let code = |output: Output| output.status.code();
    let nowhere = tempfile::tempdir().unwrap();
    let path = nowhere.path().to_str().unwrap();
    let output = proxy::run(&["verify", "--data", path]).await;
    assert!(String::from_utf8_lossy(&output.stderr).contains("is not a data directory that can be read"));
    assert_eq!(code(output), Some(2));
    assert!(nowhere.path().read_dir().unwrap().next().is_none(), "nothing is made there");
    assert_eq!(code(proxy::run(&["verify", "--config", "/nonexistent.toml"]).await), Some(2));
    assert_eq!(code(proxy::run(&["verify", "--data"]).await), Some(2));
}

#[tokio::test]
async fn the_scrub_finds_rot_and_the_next_pull_heals_it() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(4, MIB);
    let digest = upstream.blob(REPOSITORY, bytes.clone());
    let path = blob_path(&digest);
    let setup = Proxy::of(&upstream).set("storage", "scrub_interval", "300ms").set("storage", "scrub_rate", "1GB/s");
    let proxy = setup.start().await;
    proxy.get_until_hit(&path).await;
    rot(&proxy.blob_file(&digest));
    proxy.wait_metric_above("forebay_rotten_blobs_total", &["scrub"], 0.0).await;
    let event = proxy.log.wait_for(|event| event["digest"] == *digest && event["found_by"] == "scrub").await;
    assert_eq!(event["level"], "ERROR");
    proxy.wait_metric("forebay_scrubbed_bytes_total", &[], |read| read >= MIB as f64).await;
    assert_eq!(quarantined(&proxy), 1);
    proxy.get(&path).await.assert_body(200, &bytes);
    proxy.get_until_hit(&path).await.assert_body(200, &bytes);
}
