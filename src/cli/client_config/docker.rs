//! dockerd: `daemon.json`. Its mirrors stand for Docker Hub only, and are asked without naming it.

use anyhow::Context as _;
use anyhow::bail;
use indexmap::IndexMap;
use serde_json::value::RawValue;

use super::Document;
use super::Plan;
use super::Setup;

const FILE: &str = "/etc/docker/daemon.json";

pub(super) fn plan(setup: &Setup, read: impl Fn(&str) -> anyhow::Result<String>) -> anyhow::Result<Plan> {
    if !setup.default_registry.as_ref().is_some_and(|registry| registry.is_docker_hub()) {
        bail!("dockerd asks its mirrors for Docker Hub without naming it: set server.default_registry = \"docker.io\"");
    }
    let old = read(FILE)?;
    let old = if old.trim().is_empty() { "{}" } else { old.as_str() };
    let mut keys: IndexMap<String, Box<RawValue>> =
        serde_json::from_str(old).with_context(|| format!("{FILE} is not a JSON object"))?;
    add(&mut keys, "registry-mirrors", setup.base())?;
    if setup.is_plain_http() && !setup.is_loopback() {
        // For pulls by the proxy's own name; mirrors say by their scheme what they are.
        add(&mut keys, "insecure-registries", &setup.authority)?;
    }
    let mut documents = vec![Document { path: FILE.into(), text: written(&keys)?, is_secret: false }];
    let mut notes = vec![
        "dockerd has mirrors for Docker Hub only; other registries by name: docker pull ".to_owned()
            + &format!("{}/quay.io/prometheus/busybox", setup.authority),
        "then: systemctl restart docker (reload is enough: systemctl reload docker)".to_owned(),
    ];
    if let Some(ca) = &setup.ca {
        notes.insert(0, format!("copy {} to /etc/docker/certs.d/{}/ca.crt", ca.display(), setup.authority));
    }
    if setup.wants_login || setup.login.is_some() {
        let authority = &setup.authority;
        notes.push(format!("dockerd shows its mirrors no credentials, and goes past one that asks for them: let the proxy take \
             anonymous clients, or give dockerd a certificate as /etc/docker/certs.d/{authority}/client.cert and client.key"));
        notes.push(format!("for pulls by the proxy's own name: docker login {authority}"));
    }
    documents.retain(|document| !document.text.is_empty());
    Ok(Plan { documents, notes })
}

/// Puts a value first in a list of strings.
fn add(keys: &mut IndexMap<String, Box<RawValue>>, key: &str, value: &str) -> anyhow::Result<()> {
    let mut list: Vec<String> = match keys.get(key) {
        Some(raw) => {
            serde_json::from_str(raw.get()).with_context(|| format!("{FILE}: {key} is not a list of strings"))?
        }
        None => Vec::new(),
    };
    // dockerd takes a mirror with a slash at its end for the same one.
    if list.iter().any(|known| known.trim_end_matches('/') == value) {
        return Ok(());
    }
    list.insert(0, value.to_owned());
    let items: Vec<String> = list.iter().map(serde_json::to_string).collect::<Result<_, _>>()?;
    keys.insert(key.to_owned(), RawValue::from_string(format!("[{}]", items.join(", ")))?);
    Ok(())
}

/// The object with a key a line, and its values as they were.
fn written(keys: &IndexMap<String, Box<RawValue>>) -> anyhow::Result<String> {
    let lines = keys.iter().map(|(key, value)| Ok(format!("  {}: {}", serde_json::to_string(key)?, value.get())));
    Ok(format!("{{\n{}\n}}\n", lines.collect::<anyhow::Result<Vec<_>>>()?.join(",\n")))
}
