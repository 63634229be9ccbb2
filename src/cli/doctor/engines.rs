//! The engines' files on this host, held against what `client-config` would write.

use std::path::Path;

use super::Finding;
use super::Level;
use crate::cli::client_config::Engine;
use crate::cli::client_config::Setup;
use crate::cli::client_config::Standing;
use crate::cli::client_config::standing;

/// An engine, its name in findings, and a folder that shows that it is installed.
const ENGINES: [(Engine, &str, &str); 5] = [
    (Engine::Docker, "dockerd", "/etc/docker"),
    (Engine::Containerd, "containerd", "/etc/containerd"),
    (Engine::Podman, "podman", "/etc/containers"),
    (Engine::K3s, "k3s", "/etc/rancher/k3s"),
    (Engine::Buildkit, "buildkit", "/etc/buildkit"),
];

pub(super) fn look(setup: &Setup, root: &Path) -> Vec<Finding> {
    let mut found = Vec::new();
    for (engine, name, folder) in ENGINES {
        if !root.join(folder.trim_start_matches('/')).is_dir() {
            continue;
        }
        let command = name_of(engine);
        let fix = format!("`forebay client-config {command} --write` mends it, --dry-run shows how");
        found.push(match standing(engine, setup, root) {
            Ok(Standing::Points) => {
                Finding::new(name, Level::Ok, format!("its files on this host point at {}", setup.base()))
            }
            Ok(Standing::Differs(files)) => {
                let text = format!(
                    "it will bypass the proxy, at least for some registries, because {} not name it; {fix}",
                    does(&files)
                );
                Finding::new(name, Level::Warning, text)
            }
            Err(error) => Finding::new(name, Level::Problem, format!("it will bypass the proxy: {error:#}")),
        });
    }
    if found.is_empty() {
        found.push(Finding::new("engines", Level::Skipped, "no engine's files are on this host"));
    }
    found
}

fn name_of(engine: Engine) -> &'static str {
    match engine {
        Engine::Docker => "docker",
        Engine::Containerd => "containerd",
        Engine::Podman => "podman",
        Engine::Crio => "crio",
        Engine::K3s => "k3s",
        Engine::Buildkit => "buildkit",
    }
}

fn does(files: &[String]) -> String {
    match files {
        [file] => format!("{file} does"),
        [first, .., last] => format!("{first} … {last} ({} files) do", files.len()),
        [] => "its files do".to_owned(),
    }
}
