//! The commands about a running proxy: what they print, and their exit codes.

use std::process::Output;

use serde_json::Value;
use serde_json::json;

use crate::api::pull;
use crate::support::PATIENCE;
use crate::support::REGISTRY;
use crate::support::REPOSITORY;
use crate::support::blob_path;
use crate::support::content::Image;
use crate::support::content::KIB;
use crate::support::content::OCI_INDEX;
use crate::support::content::OCI_MANIFEST;
use crate::support::content::sample;
use crate::support::manifest_path;
use crate::support::proxy;
use crate::support::proxy::Proxy;
use crate::support::registry::ScriptedRegistry;
use crate::support::reserve;
use crate::support::within;

/// Runs a command about this proxy.
pub(crate) async fn command(proxy: &Proxy, arguments: &[&str]) -> Output {
    let admin = format!("http://{}", proxy.admin);
    proxy::run(&[arguments, &["--admin", &admin]].concat()).await
}

/// What it printed, after it did what it was told.
pub(crate) async fn printed(proxy: &Proxy, arguments: &[&str]) -> String {
    let output = command(proxy, arguments).await;
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn ls_and_stats_show_what_is_there() {
    let upstream = ScriptedRegistry::start().await;
    let image = upstream.image(REPOSITORY, "latest", &[sample(1, 100 * KIB)]);
    let proxy = Proxy::of(&upstream).start().await;
    assert_eq!(printed(&proxy, &["ls"]).await, "no images\n");
    pull(&proxy, "latest").await;
    let listed = printed(&proxy, &["ls"]).await;
    let mut lines = listed.lines();
    assert!(lines.next().unwrap().starts_with("IMAGE "), "{listed}");
    let line = lines.next().unwrap();
    let short = &image.digest["sha256:".len()..][..12];
    for part in [&format!("{REGISTRY}/{REPOSITORY}:latest"), short, "linux/amd64", "100.", "KiB", "complete"] {
        assert!(line.contains(part), "no {part} in {line}");
    }
    assert_eq!(printed(&proxy, &["ls", "no-such-image"]).await, "no images\n");
    let json: Value = serde_json::from_str(&printed(&proxy, &["ls", "latest", "--json"]).await).unwrap();
    assert_eq!(json["images"][0]["digest"], image.digest.as_str());
    assert!(printed(&proxy, &["ls", "--blobs", "--sort", "size"]).await.contains(&image.layers[0].0));
    assert_eq!(printed(&proxy, &["ready"]).await, "");
    let stats = printed(&proxy, &["stats"]).await;
    for part in ["ready", "Requests", "Saved", "3 blobs and manifests", "none in progress"] {
        assert!(stats.contains(part), "no {part} in {stats}");
    }
    let json: Value = serde_json::from_str(&printed(&proxy, &["stats", "--json"]).await).unwrap();
    assert_eq!(json["storage"]["blobs"], 3);
}

#[tokio::test]
async fn commands_send_the_token() {
    let upstream = ScriptedRegistry::start().await;
    let proxy = Proxy::of(&upstream).set("admin", "token", "s3cret").start().await;
    let refused = command(&proxy, &["stats"]).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--token-file"), "{refused:?}");
    let file = proxy.data().join("../token");
    std::fs::write(&file, "s3cret\n").unwrap();
    printed(&proxy, &["stats", "--token-file", file.to_str().unwrap()]).await;
    let admin = format!("http://{}", proxy.admin);
    let mut program = proxy::program();
    program.args(["stats", "--admin", &admin]).env("FOREBAY_ADMIN_TOKEN", "s3cret");
    assert_eq!(within(PATIENCE, program.output()).await.unwrap().status.code(), Some(0));
}

#[tokio::test]
async fn exit_codes_tell_usage_from_trouble() {
    let (_port, nobody) = reserve("127.0.0.1:0".parse().unwrap());
    let nobody = format!("http://{nobody}");
    let trouble = proxy::run(&["ls", "--admin", &nobody]).await;
    assert_eq!(trouble.status.code(), Some(1));
    let said = String::from_utf8(trouble.stderr).unwrap();
    assert!(said.contains(&nobody) && said.lines().count() == 1, "{said}");
    for wrong in [["ls", "--admin", "nonsense"], ["ls", "--admin", "ftp://x"], ["ls", "--sort", "colour"]] {
        assert_eq!(proxy::run(&wrong).await.status.code(), Some(2), "{wrong:?}");
    }
    assert_eq!(proxy::run(&["ready", "--admin", &nobody]).await.status.code(), Some(1));
    assert_eq!(proxy::run(&["stats", "--token-file", "/nonexistent"]).await.status.code(), Some(2));
}

#[tokio::test]
async fn warm_fetches_whole_images_and_says_what_failed() {
    let upstream = ScriptedRegistry::start().await;
    let first = upstream.image(REPOSITORY, "first", &[sample(2, 100 * KIB), sample(3, 10 * KIB)]);
    let second = upstream.image(REPOSITORY, "second", &[sample(4, 50 * KIB)]);
    upstream.index(REPOSITORY, "both", &[&first, &second]);
    let signature = upstream.image(REPOSITORY, "signature", &[sample(5, 100)]);
    let descriptor = json!({ "mediaType": OCI_MANIFEST, "digest": signature.digest, "size": signature.manifest.len() });
    upstream.referrers(&second.digest, vec![descriptor]);
    let proxy = Proxy::of(&upstream).start().await;
    let name = |tag: &str| format!("{REGISTRY}/{REPOSITORY}:{tag}");

    let said = printed(&proxy, &["warm", &name("both")]).await;
    assert!(said.starts_with("1 of 1 images are here"), "{said}");
    for layer in first.layers.iter().chain(&second.layers).chain(&signature.layers) {
        let reply = proxy.get(&blob_path(&layer.0)).await;
        reply.assert_body(200, &layer.1);
        assert_eq!(reply.outcome(), "hit");
    }
    let asked = upstream.total();
    let list = proxy.data().join("../list");
    std::fs::write(&list, format!("# images\n\n{}  # a comment\n{}\n", name("second"), name("nope"))).unwrap();
    let arguments = ["warm", "--file", list.to_str().unwrap(), "--json", "--no-referrers"];
    let output = command(&proxy, &arguments).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let jobs: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&jobs[0]["state"], &jobs[1]["state"]), (&"done".into(), &"failed".into()), "{jobs:#}");
    assert_eq!((&jobs[0]["fetched_bytes"], &jobs[0]["digest"]), (&0.into(), &second.digest.clone().into()));
    assert!(jobs[1]["error"].as_str().unwrap().contains("no such manifest"), "{jobs:#}");
    assert!(upstream.total() > asked);
    assert_eq!(upstream.count("GET", &blob_path(&second.layers[0].0)), 1, "what is here is not fetched again");
}

#[tokio::test]
async fn warm_takes_the_platforms_that_are_wanted() {
    let upstream = ScriptedRegistry::start().await;
    let (intel, arm) =
        (upstream.image(REPOSITORY, "a", &[sample(6, 900)]), upstream.image(REPOSITORY, "b", &[sample(7, 900)]));
    let member = |image: &Image, architecture: &str| {
        let platform = json!({ "os": "linux", "architecture": architecture });
        json!({ "mediaType": OCI_MANIFEST, "digest": image.digest, "size": image.manifest.len(), "platform": platform })
    };
    let index = json!({ "schemaVersion": 2, "manifests": [member(&intel, "amd64"), member(&arm, "arm64")] });
    upstream.manifest(REPOSITORY, "multi", OCI_INDEX, index.to_string());
    let proxy = Proxy::of(&upstream).start().await;
    let name = format!("{REGISTRY}/{REPOSITORY}:multi");
    printed(&proxy, &["warm", &name, "--platform", "linux/arm64"]).await;
    assert_eq!(upstream.count("GET", &blob_path(&arm.layers[0].0)), 1);
    assert_eq!(upstream.count("GET", &blob_path(&intel.layers[0].0)), 0);
    let images = proxy.admin("/api/v1/images").await.json();
    assert_eq!(
        (&images["total"], &images["images"][0]["platforms"]),
        (&1.into(), &json!(["linux/arm64"])),
        "{images:#}"
    );
    let refused = command(&proxy, &["warm", &name, "--platform", "linux/riscv64"]).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("only for linux/amd64, linux/arm64"), "{refused:?}");
    for wrong in [vec!["warm"], vec!["warm", "x", "--jobs", "0"], vec!["warm", "--file", "/nonexistent"]] {
        assert_eq!(proxy::run(&wrong).await.status.code(), Some(2), "{wrong:?}");
    }
    assert_eq!(command(&proxy, &["warm", "UPPER"]).await.status.code(), Some(1));
}

#[tokio::test]
async fn an_image_is_explained_pinned_and_purged() {
    let upstream = ScriptedRegistry::start().await;
    let first = upstream.image(REPOSITORY, "latest", &[sample(8, 20 * KIB)]);
    let proxy = Proxy::of(&upstream).each("tag_ttl", "0s").start().await;
    let name = format!("{REGISTRY}/{REPOSITORY}:latest");
    let name = name.as_str();
    assert!(printed(&proxy, &["why", name]).await.contains(": fetch: it is fetched from the registry"));
    assert_eq!(command(&proxy, &["history", name]).await.status.code(), Some(1));

    printed(&proxy, &["warm", name]).await;
    let pinned = printed(&proxy, &["pin", name]).await;
    assert!(pinned.starts_with(&format!("{name} is pinned: ")) && pinned.ends_with("all of it is here\n"), "{pinned}");
    assert!(printed(&proxy, &["pins"]).await.contains(name));
    let image: Value = serde_json::from_str(&printed(&proxy, &["ls", "--json"]).await).unwrap();
    assert_eq!(image["images"][0]["pinned"], true);
    let purged = printed(&proxy, &["purge", name]).await;
    assert!(purged.starts_with("0 blobs and manifests went") && purged.contains(&format!("pin {name}")), "{purged}");
    assert!(printed(&proxy, &["unpin", name]).await.contains("is not pinned any more"));
    assert_eq!(command(&proxy, &["unpin", name]).await.status.code(), Some(1));
    assert_eq!(printed(&proxy, &["pins"]).await, "nothing is pinned\n");

    // The purge forgot the tag, with its history.
    printed(&proxy, &["warm", name]).await;
    let second = upstream.image(REPOSITORY, "latest", &[sample(9, 20 * KIB)]);
    printed(&proxy, &["warm", name]).await;
    let history: Value = serde_json::from_str(&printed(&proxy, &["history", name, "--json"]).await).unwrap();
    let digests = [&history["digests"][0]["digest"], &history["digests"][1]["digest"]];
    assert_eq!(digests, [second.digest.as_str(), first.digest.as_str()], "{history:#}");
    let purged = printed(&proxy, &["purge", "--repository", &format!("{REGISTRY}/{REPOSITORY}")]).await;
    assert!(purged.starts_with("6 blobs and manifests went"), "{purged}");
    assert_eq!(printed(&proxy, &["ls"]).await, "no images\n");
    for wrong in [vec!["purge"], vec!["purge", "x", "--registry", "y"], vec!["why"], vec!["offline", "maybe"]] {
        assert_eq!(command(&proxy, &wrong).await.status.code(), Some(2), "{wrong:?}");
    }
    assert_eq!(command(&proxy, &["why", "nowhere.example/a"]).await.status.code(), Some(1));
}

#[tokio::test]
async fn registries_are_switched_offline_and_shown() {
    let upstream = ScriptedRegistry::start().await;
    let image = upstream.image(REPOSITORY, "latest", &[sample(10, 1000)]);
    let proxy = Proxy::of(&upstream).each("tag_ttl", "0s").start().await;
    proxy.get(&manifest_path("latest")).await.assert_digest(&image.digest);
    let shown = printed(&proxy, &["offline", "on", "--registry", REGISTRY]).await;
    let line = shown.lines().find(|line| line.starts_with(REGISTRY)).unwrap();
    assert!(line.contains(" offline ") && !shown.contains("all registries"), "{shown}");
    let asked = upstream.total();
    proxy.get(&manifest_path("latest")).await.assert_digest(&image.digest);
    assert_eq!(upstream.total(), asked);
    assert!(printed(&proxy, &["offline", "on"]).await.ends_with("all registries are switched offline\n"));
    printed(&proxy, &["offline", "off"]).await;
    printed(&proxy, &["offline", "off", "--registry", REGISTRY]).await;
    let upstreams: Value = serde_json::from_str(&printed(&proxy, &["upstreams", "--json"]).await).unwrap();
    assert_eq!(upstreams["offline"], false);
    let own = upstreams["registries"].as_array().unwrap().iter().find(|known| known["registry"] == REGISTRY).unwrap();
    assert_eq!((&own["offline"], &own["endpoints"][0]["breaker"]), (&false.into(), &"closed".into()), "{own:#}");
    assert_eq!(command(&proxy, &["offline", "on", "--registry", "nowhere.example"]).await.status.code(), Some(1));
}

#[tokio::test]
async fn client_config_writes_shows_and_explains() {
    let root = tempfile::tempdir().unwrap();
    let place = root.path().to_str().unwrap();
    let run = async |arguments: &[&str]| {
        let output = proxy::run(&[&["client-config", "--root", place], arguments].concat()).await;
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(run(&["docker"]).await.contains("\"registry-mirrors\": [\"http://127.0.0.1:5000\"]"));
    for engine in ["docker", "containerd", "podman", "crio", "k3s", "buildkit"] {
        let shown = run(&[engine, "--dry-run", "--proxy", "http://10.0.0.5:5000"]).await;
        assert!(shown.contains("+++ ") || engine == "crio", "{engine}: {shown}");
        assert!(run(&[engine, "--write", "--proxy", "http://10.0.0.5:5000"]).await.contains(place), "{engine}");
        assert_eq!(run(&[engine, "--dry-run", "--proxy", "http://10.0.0.5:5000"]).await, "nothing would change\n");
    }
    let hosts = std::fs::read_to_string(root.path().join("etc/containerd/certs.d/quay.io/hosts.toml")).unwrap();
    assert!(hosts.contains("[host.\"http://10.0.0.5:5000\"]"), "{hosts}");
    for wrong in
        [vec!["nope"], vec!["docker", "--proxy", "http://a/b"], vec!["podman", "--registry", "nowhere.example"]]
    {
        let output = proxy::run(&[&["client-config"], wrong.as_slice()].concat()).await;
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
    }
}
