//! `forebay verify` and the scrub: what is rotten is found, put aside, and fetched again.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Output;

use serde_json::Value;

use crate::support::REPOSITORY;
use crate::support::blob_path;
use crate::support::content::KIB;
use crate::support::content::MIB;
use crate::support::content::sample;
use crate::support::proxy;
use crate::support::proxy::Proxy;
use crate::support::registry::ScriptedRegistry;

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
