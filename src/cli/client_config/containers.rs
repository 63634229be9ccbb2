//! Engines whose configuration is a list of mirrors: podman and CRI-O (`containers-registries.conf`), k3s, BuildKit.

use std::fmt::Write as _;

use anyhow::bail;
use toml_edit::Array;
use toml_edit::value;

use super::Document;
use super::Login;
use super::MARK;
use super::Plan;
use super::Setup;
use super::toml_text::parse;
use super::toml_text::quoted;
use super::toml_text::table;

const CONTAINERS: &str = "/etc/containers/registries.conf.d/50-forebay.conf";
const K3S: &str = "/etc/rancher/k3s/registries.yaml";
const BUILDKIT: &str = "/etc/buildkit/buildkitd.toml";

pub(super) fn podman(setup: &Setup) -> Plan {
    let mut plan = registries_conf(setup);
    plan.notes.push("the next pull uses it; skopeo and buildah read the same file".to_owned());
    plan
}

pub(super) fn crio(setup: &Setup) -> Plan {
    let mut plan = registries_conf(setup);
    plan.notes.push("then: systemctl reload crio".to_owned());
    plan
}

/// A drop-in of its own. The name of the registry is a part of the mirror's path: nothing else tells it.
fn registries_conf(setup: &Setup) -> Plan {
    let mut text = format!("{MARK}\n");
    for known in &setup.registries {
        let registry = known.registry.as_str();
        let _ = write!(
            text,
            "\n[[registry]]\nprefix = {0}\nlocation = {0}\n[[registry.mirror]]\nlocation = {1}\n",
            quoted(registry),
            quoted(&format!("{}/{registry}", setup.authority))
        );
        if setup.is_plain_http() {
            text.push_str("insecure = true\n");
        }
    }
    let ca = setup.ca.as_ref();
    let ca = ca.map(|ca| format!("copy {} to /etc/containers/certs.d/{}/ca.crt", ca.display(), setup.authority));
    // This file has no place for credentials.
    let login = setup.login.as_ref().map(|login| {
        let flag = if setup.is_plain_http() { "--tls-verify=false " } else { "" };
        format!(
            "podman login {flag}--username {} {} writes the auth.json that is read",
            login.username, setup.authority
        )
    });
    let notes = ca.into_iter().chain(login).collect();
    Plan { documents: vec![Document { path: CONTAINERS.into(), text, is_secret: false }], notes }
}

pub(super) fn k3s(setup: &Setup, read: impl Fn(&str) -> anyhow::Result<String>) -> anyhow::Result<Plan> {
    let old = read(K3S)?;
    if !old.trim().is_empty() && !old.starts_with(MARK) && !setup.force {
        bail!(
            "{K3S} is there and was not written by this command: add what is printed without --write, or use --force"
        );
    }
    let mut text = format!("{MARK}\nmirrors:\n");
    for known in &setup.registries {
        let _ = write!(text, "  {:?}:\n    endpoint:\n      - {:?}\n", known.registry.as_str(), setup.base());
    }
    if setup.ca.is_some() || setup.login.is_some() {
        let _ = write!(text, "configs:\n  {:?}:\n", setup.authority);
    }
    if let Some(Login { username, password }) = &setup.login {
        // What JSON writes is YAML as well.
        let (username, password) = (serde_json::to_string(username)?, serde_json::to_string(password)?);
        let _ = write!(text, "    auth:\n      username: {username}\n      password: {password}\n");
    }
    if let Some(ca) = &setup.ca {
        let _ = write!(text, "    tls:\n      ca_file: {:?}\n", ca.display().to_string());
    }
    let is_secret = setup.login.is_some();
    let notes =
        vec!["on each node, then: systemctl restart k3s (k3s-agent on agents; rke2 has the same file)".to_owned()];
    Ok(Plan { documents: vec![Document { path: K3S.into(), text, is_secret }], notes })
}

pub(super) fn buildkit(setup: &Setup, read: impl Fn(&str) -> anyhow::Result<String>) -> anyhow::Result<Plan> {
    let mut document = parse(BUILDKIT, &read(BUILDKIT)?)?;
    for known in &setup.registries {
        let registry = table(&mut document, &["registry", known.registry.as_str()])?;
        let mirrors = registry.entry("mirrors").or_insert(value(Array::new()));
        let Some(mirrors) = mirrors.as_array_mut() else {
            bail!("{BUILDKIT}: mirrors of {} is no list", known.registry)
        };
        if !mirrors.iter().any(|mirror| mirror.as_str() == Some(&setup.authority)) {
            mirrors.insert(0, setup.authority.as_str());
        }
    }
    let proxy = table(&mut document, &["registry", &setup.authority])?;
    if setup.is_plain_http() {
        proxy.insert("http", value(true));
    } else {
        proxy.remove("http");
    }
    if let Some(ca) = &setup.ca {
        proxy.insert("ca", value(Array::from_iter([ca.display().to_string()])));
    }
    let mut notes =
        vec!["then: systemctl restart buildkit; docker buildx create takes it with --buildkitd-config".to_owned()];
    if let Some(login) = &setup.login {
        let authority = &setup.authority;
        notes.push(format!("docker login --username {} {authority}: builds take it from there", login.username));
    }
    let text = document.to_string();
    Ok(Plan { documents: vec![Document { path: BUILDKIT.into(), text, is_secret: false }], notes })
}
