//! `forebay doctor`: what it finds right, and what it finds wrong.

use serde_json::Value;

use crate::commands::command;
use crate::commands::printed;
use crate::support::REGISTRY;
use crate::support::REPOSITORY;
use crate::support::content::KIB;
use crate::support::content::sample;
use crate::support::proxy;
use crate::support::proxy::Proxy;
use crate::support::registry::ScriptedRegistry;
use crate::support::reserve;

/// The findings about an area.
fn about<'a>(found: &'a Value, area: &str) -> Vec<&'a Value> {
    found.as_array().unwrap().iter().filter(|finding| finding["area"] == area).collect()
}

#[tokio::test]
async fn engines_that_are_served_and_files_that_bypass() {
    let upstream = ScriptedRegistry::start().await;
    upstream.image(REPOSITORY, "latest", &[sample(1, 10 * KIB)]);
    let proxy = Proxy::of(&upstream).start().await;
    let root = tempfile::tempdir().unwrap();
    let (root, file) = (root.path().to_str().unwrap(), proxy.data().join("../forebay.toml"));
    let (file, address) = (file.to_str().unwrap(), format!("http://{}", proxy.address));
    let asked = |root: &str| {
        ["doctor", "--config", file, "--proxy", &address, "--root", root, "--no-registries", "--json"]
            .map(str::to_owned)
    };
    let run = async |root: &str| {
        let arguments = asked(root);
        let output = command(&proxy, &arguments.iter().map(String::as_str).collect::<Vec<_>>()).await;
        (output.status.code(), serde_json::from_slice::<Value>(&output.stdout).unwrap())
    };
    let (_, found) = run(root).await;
    assert_eq!(about(&found, "proxy")[0]["level"], "ok", "{found:#}");
    assert!(about(&found, "engines")[0]["text"].as_str().unwrap().contains("no whole image"), "{found:#}");

    printed(&proxy, &["warm", &format!("{REGISTRY}/{REPOSITORY}:latest")]).await;
    std::fs::create_dir_all(format!("{root}/etc/containers")).unwrap();
    let (code, found) = run(root).await;
    for engine in ["containerd", "podman"] {
        assert_eq!(about(&found, engine)[0]["level"], "ok", "{found:#}");
    }
    assert_eq!(about(&found, "dockerd")[0]["level"], "skipped", "{found:#}");
    let bypass = about(&found, "podman")[1];
    assert_eq!((code, &bypass["level"]), (Some(0), &"warning".into()), "{found:#}");
    assert!(bypass["text"].as_str().unwrap().contains("will bypass the proxy"), "{found:#}");

    let write = ["client-config", "podman", "--config", file, "--proxy", &address, "--root", root, "--write"];
    assert_eq!(proxy::run(&write).await.status.code(), Some(0));
    let (_, found) = run(root).await;
    assert_eq!(about(&found, "podman")[1]["level"], "ok", "{found:#}");
}

#[tokio::test]
async fn a_proxy_that_is_not_there_is_a_problem() {
    let (_port, nobody) = reserve("127.0.0.1:0".parse().unwrap());
    let nobody = format!("http://{nobody}");
    let output = proxy::run(&["doctor", "--admin", &nobody, "--no-registries", "--root", "/nonexistent"]).await;
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("PROBLEM  proxy") && said.contains("one problem"), "{said}");
}
