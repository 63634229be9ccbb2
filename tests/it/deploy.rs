//! The deployment files, without the tools that they are for: that they parse, that what they name exists, and that what
//! they say to forebay is right. `tests/deploy/run` renders those of Kubernetes, where it can have the tools.

use std::collections::BTreeMap;
use std::path::Path;
use std::path::PathBuf;

use serde_json::Value;

use crate::support::PATIENCE;
use crate::support::proxy;
use crate::support::within;

const PROGRAM: &str = "/usr/local/bin/forebay";
const CONFIG: &str = "/etc/forebay/forebay.toml";
const COMPOSE: &str = "deploy/compose/docker-compose.yml";

type Environment = BTreeMap<String, String>;

fn read(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.as_ref().display()))
}

/// The documents of a file.
fn yaml(path: impl AsRef<Path>) -> Vec<Value> {
    let text = read(&path);
    let parsed = serde_saphyr::from_multiple::<Value>(&text);
    let parsed = parsed.unwrap_or_else(|error| panic!("{}: {error}", path.as_ref().display()));
    parsed.into_iter().filter(|document| !document.is_null()).collect()
}

/// All files below a folder with one of these endings. Templates of the chart are no YAML yet.
fn files(folder: &str, endings: &[&str]) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![PathBuf::from(folder)]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.extend((!path.ends_with("templates")).then_some(path));
            } else if path.extension().is_some_and(|end| endings.iter().any(|ending| end == *ending)) {
                found.push(path);
            }
        }
    }
    found
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().map(|item| item.as_str().unwrap().to_owned()).collect()
}

/// What the image says to the program.
fn image_environment() -> Environment {
    let text = read("deploy/Containerfile").replace("\\\n", " ");
    let line = text.lines().find_map(|line| line.strip_prefix("ENV ")).unwrap();
    let pairs = line.split_whitespace().map(|pair| pair.split_once('=').unwrap());
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// Runs the program with these variables; what it said, when it ended well.
async fn forebay(words: &[&str], environment: &Environment) -> String {
    let output = within(PATIENCE, proxy::program().args(words).envs(environment).output()).await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{words:?} with {environment:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// That this is a command of the program with flags that it knows.
async fn is_command(words: &[String]) {
    assert_eq!(words[0], PROGRAM, "{words:?}");
    let words: Vec<&str> = words[1..].iter().map(String::as_str).chain(["--help"]).collect();
    forebay(&words, &Environment::new()).await;
}

#[test]
fn every_file_parses() {
    let found = files("deploy", &["yml", "yaml"]);
    assert!(found.len() > 20, "{found:?}");
    for path in found {
        assert!(!yaml(&path).is_empty(), "{}", path.display());
    }
    for path in files("deploy", &["json"]) {
        serde_json::from_str::<Value>(&read(&path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

#[test]
fn what_kustomizations_name_is_there() {
    let found = files("deploy/kubernetes", &["yaml"]);
    let kustomizations: Vec<_> = found.iter().filter(|path| path.ends_with("kustomization.yaml")).collect();
    assert_eq!(kustomizations.len(), 4);
    for path in kustomizations {
        let (folder, [document]) = (path.parent().unwrap(), &yaml(path)[..]) else { panic!("{}", path.display()) };
        let mut named = texts(&document["resources"]);
        named.extend(
            document["configMapGenerator"].as_array().into_iter().flatten().flat_map(|map| texts(&map["files"])),
        );
        for name in named {
            assert!(folder.join(&name).exists(), "{}: {name}", path.display());
        }
    }
}

#[tokio::test]
async fn the_try_out_works_with_forebay() {
    let [document] = &yaml(COMPOSE)[..] else { panic!("one document") };
    let folder = Path::new(COMPOSE).parent().unwrap();
    for (name, service) in document["services"].as_object().unwrap() {
        for volume in texts(&service["volumes"]) {
            let (from, _) = volume.split_once(':').unwrap();
            let is_there = if from.starts_with('.') {
                folder.join(from).exists()
            } else {
                document["volumes"].as_object().unwrap().contains_key(from)
            };
            assert!(is_there, "{name}: {volume}");
        }
    }
    let service = &document["services"]["forebay"];
    let build = &service["build"];
    let context = folder.join(build["context"].as_str().unwrap());
    assert!(context.join(build["dockerfile"].as_str().unwrap()).exists(), "{build}");
    let mut environment = image_environment();
    for (name, value) in service["environment"].as_object().unwrap() {
        environment.insert(name.clone(), value.as_str().unwrap().to_owned());
    }
    forebay(&["config", "check"], &environment).await;
    // The ports that are published are those that the image listens on.
    for (port, key) in texts(&service["ports"]).iter().zip(["FOREBAY_SERVER__LISTEN", "FOREBAY_ADMIN__LISTEN"]) {
        let (_, inside) = port.rsplit_once(':').unwrap();
        assert_eq!(environment[key], format!("0.0.0.0:{inside}"));
    }
    let check = texts(&service["healthcheck"]["test"]);
    assert_eq!(check[0], "CMD");
    is_command(&check[1..]).await;
}

#[tokio::test]
async fn the_pods_of_kubernetes_work_with_forebay() {
    let mut commands = 0;
    for path in files("deploy/kubernetes", &["yaml"]) {
        for document in yaml(&path) {
            let pod = &document["spec"]["template"]["spec"];
            let containers = ["initContainers", "containers"].map(|kind| pod[kind].as_array());
            for container in containers.into_iter().flatten().flatten() {
                if container["image"] == "forebay" {
                    works(&path, container).await;
                    commands += 1;
                }
            }
        }
    }
    assert_eq!(commands, 4, "the proxies of base and node, and who writes for containerd in hosts and node");
}

/// A container with the configuration of its tree and the variables of the image.
async fn works(path: &Path, container: &Value) {
    let tree = path.parent().unwrap();
    // `hosts` has that of `base`.
    let config = [tree, Path::new("deploy/kubernetes/base")].map(|tree| tree.join("forebay.toml"));
    let config = config.iter().find(|config| config.exists()).unwrap().to_str().unwrap();
    let mut environment = image_environment();
    for variable in container["env"].as_array().into_iter().flatten() {
        // What the cluster puts in place of the others is not known here.
        if let Some(value) = variable["value"].as_str() {
            environment.insert(variable["name"].as_str().unwrap().to_owned(), value.to_owned());
        }
    }
    forebay(&["config", "check", "--config", config], &environment).await;
    let entry = vec![PROGRAM.to_owned(), "serve".to_owned()];
    let command = if container["command"].is_null() { entry } else { texts(&container["command"]) };
    let words = [command, texts(&container["args"])].concat();
    is_command(&words).await;
    let host = tempfile::tempdir().unwrap();
    if words[1] != "client-config" {
        return;
    }
    let words: Vec<String> = words[1..].iter().map(|word| word.replace("$(NODE_IP)", "10.0.0.5")).collect();
    let words: Vec<&str> = words
        .iter()
        .map(|word| match word.as_str() {
            "/host" => host.path().to_str().unwrap(),
            CONFIG => config,
            word => word,
        })
        .collect();
    forebay(&words, &environment).await;
    let written = read(host.path().join("etc/containerd/certs.d/docker.io/hosts.toml"));
    let proxy = words[words.iter().position(|word| *word == "--proxy").unwrap() + 1];
    assert!(written.contains(proxy), "{}: {written}", path.display());
}

#[tokio::test]
async fn the_units_of_systemd_work_with_forebay() {
    let unit = read("deploy/systemd/forebay.service");
    let mut commands = 0;
    for line in unit.lines() {
        let value = |key: &str| line.strip_prefix(key).map(|rest| rest.trim_start_matches(['-', '+', '!']));
        if let Some(command) = value("ExecStart=").or_else(|| value("ExecStartPre=")) {
            let words: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
            is_command(&words).await;
            commands += 1;
        }
        if let Some((name, value)) = value("Environment=").and_then(|pair| pair.split_once('=')) {
            let environment = Environment::from([(name.to_owned(), value.replace("%S", "/var/lib"))]);
            forebay(&["config", "check", "--config", "config/default.toml"], &environment).await;
        }
    }
    assert_eq!(commands, 2);
    for (file, name) in [("forebay.socket", "registry"), ("forebay-admin.socket", "admin")] {
        let socket = read(Path::new("deploy/systemd").join(file));
        assert!(socket.contains(&format!("\nFileDescriptorName={name}\n")), "{file}");
    }
}
