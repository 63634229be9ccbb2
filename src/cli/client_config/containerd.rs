//! containerd: a `hosts.toml` for each registry, and the folder they are in named in `config.toml`. It sends `?ns=`.

use anyhow::bail;
use toml_edit::value;

use super::Document;
use super::Known;
use super::MARK;
use super::Plan;
use super::Setup;
use super::toml_text::parse;
use super::toml_text::quoted;
use super::toml_text::table;

const FILE: &str = "/etc/containerd/config.toml";
const HOSTS: &str = "/etc/containerd/certs.d";
/// The plugin that pulls for Kubernetes, by the version of the file.
const PLUGIN_2: &str = "io.containerd.grpc.v1.cri";
const PLUGIN_3: &str = "io.containerd.cri.v1.images";

pub(super) fn plan(setup: &Setup, read: impl Fn(&str) -> anyhow::Result<String>) -> anyhow::Result<Plan> {
    let (config, folder) = config(&read(FILE)?)?;
    let mut documents: Vec<_> = setup.registries.iter().map(|known| hosts(setup, known, &folder)).collect();
    documents.push(Document { path: FILE.into(), text: config, is_secret: false });
    let notes = vec![
        format!("hosts.toml is read at each pull; after a change of {FILE}: systemctl restart containerd"),
        format!("ctr reads it with --hosts-dir {folder}"),
    ];
    Ok(Plan { documents, notes })
}

/// The file with the folder named in it, and the folder.
fn config(old: &str) -> anyhow::Result<(String, String)> {
    let mut document = parse(FILE, old)?;
    let version = document.get("version").and_then(|version| version.as_integer());
    if document.is_empty() {
        // Every containerd since 1.3 reads version 2.
        document["version"] = value(2);
    }
    let plugin = match version {
        Some(3) => PLUGIN_3,
        Some(2) | None if version.is_some() || old.trim().is_empty() => PLUGIN_2,
        _ => bail!("{FILE} has a version that is not 2 or 3; run `containerd config migrate` first"),
    };
    let registry = table(&mut document, &["plugins", plugin, "registry"])?;
    for old_way in ["mirrors", "configs"] {
        let is_used =
            registry.get(old_way).and_then(|item| item.as_table_like()).is_some_and(|table| !table.is_empty());
        if is_used && old_way == "mirrors" {
            bail!(
                "{FILE} has registry.{old_way}, which containerd refuses beside config_path; move it to {HOSTS} first"
            );
        }
    }
    let known = registry.get("config_path").and_then(|item| item.as_str()).unwrap_or_default();
    // A list, the first folder that has a hosts.toml for a registry counts.
    let folder = known.split(':').next().filter(|folder| !folder.is_empty()).map(str::to_owned);
    match folder {
        Some(folder) => Ok((old.to_owned(), folder)),
        None => {
            registry.insert("config_path", value(HOSTS));
            Ok((document.to_string(), HOSTS.to_owned()))
        }
    }
}

fn hosts(setup: &Setup, known: &Known, folder: &str) -> Document {
    let server = known.endpoint.as_str().trim_end_matches('/');
    let mut text = format!(
        "{MARK}\nserver = {}\n\n[host.{}]\n  capabilities = [\"pull\", \"resolve\"]\n",
        quoted(server),
        quoted(setup.base())
    );
    if let Some(ca) = &setup.ca {
        text.push_str(&format!("  ca = {}\n", quoted(&ca.display().to_string())));
    }
    if let Some(login) = &setup.login {
        let (host, value) = (quoted(setup.base()), quoted(&login.basic()));
        text.push_str(&format!("  [host.{host}.header]\n    authorization = {value}\n"));
    }
    let is_secret = setup.login.is_some();
    // A colon in a folder's name is fine on Linux; containerd looks for `host_port_` too, but for this one first.
    Document { path: format!("{folder}/{}/hosts.toml", known.registry).into(), text, is_secret }
}
