//! What each engine gets.

use super::*;

fn setup(proxy: &str) -> Setup {
    let config = Config::default();
    let proxy = Url::parse(proxy).unwrap();
    let authority = format!("{}:{}", proxy.host_str().unwrap(), proxy.port().unwrap());
    let registries = config.registries.iter().take(2);
    let registries = registries
        .map(|known| Known { registry: known.registry.clone(), endpoint: known.endpoints[0].clone() })
        .collect();
    let default_registry = config.server.default_registry;
    let (ca, login, wants_login, force) = (None, None, false, false);
    Setup { proxy, authority, registries, default_registry, ca, login, wants_login, force }
}

fn nothing(_: &str) -> anyhow::Result<String> {
    Ok(String::new())
}

fn text(plan: &Plan, end: &str) -> String {
    plan.documents.iter().find(|document| document.path.ends_with(end)).unwrap().text.clone()
}

#[test]
fn dockerd_keeps_its_other_keys() {
    let plan = docker::plan(&setup("http://127.0.0.1:5000"), nothing).unwrap();
    assert_eq!(text(&plan, "daemon.json"), "{\n  \"registry-mirrors\": [\"http://127.0.0.1:5000\"]\n}\n");
    let old = "{\"zeta\": {\"a\":  1},\n\"registry-mirrors\":[\"http://other/\"], \"alpha\": true}";
    let far = setup("http://10.0.0.5:5000");
    let new = text(&docker::plan(&far, |_| Ok(old.to_owned())).unwrap(), "daemon.json");
    let expected = "{\n  \"zeta\": {\"a\":  1},\n  \"registry-mirrors\": [\"http://10.0.0.5:5000\", \"http://other/\"],\n  \
        \"alpha\": true,\n  \"insecure-registries\": [\"10.0.0.5:5000\"]\n}\n";
    assert_eq!(new, expected);
    assert_eq!(text(&docker::plan(&far, |_| Ok(new.clone())).unwrap(), "daemon.json"), new, "twice is once");
    assert!(docker::plan(&far, |_| Ok("[]".to_owned())).is_err());
    let other = Setup { default_registry: "quay.io".parse().ok(), ..far };
    assert!(docker::plan(&other, nothing).unwrap_err().to_string().contains("default_registry"));
}

#[test]
fn containerd_gets_its_folder_named_once() {
    let here = setup("http://127.0.0.1:5000");
    let plan = containerd::plan(&here, nothing).unwrap();
    let hosts = text(&plan, "certs.d/docker.io/hosts.toml");
    assert!(hosts.contains("server = \"https://registry-1.docker.io\"\n\n[host.\"http://127.0.0.1:5000\"]"), "{hosts}");
    let config = text(&plan, "config.toml");
    let expected =
        "version = 2\n\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n";
    assert_eq!(config, expected);
    assert_eq!(text(&containerd::plan(&here, |_| Ok(config.clone())).unwrap(), "config.toml"), config);
    let old = "# mine\nversion = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = '/srv/hosts:/x'\n";
    let plan = containerd::plan(&here, |_| Ok(old.to_owned())).unwrap();
    assert_eq!(text(&plan, "config.toml"), old);
    assert!(plan.documents[0].path.starts_with("/srv/hosts/docker.io"));
    let refused =
        "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"docker.io\"]\nendpoint = []\n";
    assert!(containerd::plan(&here, |_| Ok(refused.to_owned())).is_err());
    assert!(containerd::plan(&here, |_| Ok("version = 1\n".to_owned())).is_err());
    let tls = Setup { ca: Some("/etc/ca.pem".into()), ..setup("https://cache.example:5443") };
    let hosts = text(&containerd::plan(&tls, nothing).unwrap(), "docker.io/hosts.toml");
    assert!(hosts.contains("[host.\"https://cache.example:5443\"]") && hosts.ends_with("  ca = \"/etc/ca.pem\"\n"));
}

#[test]
fn podman_finds_the_registry_in_the_path() {
    let conf = text(&containers::podman(&setup("http://127.0.0.1:5000")), "50-forebay.conf");
    let parsed: toml::Table = toml::from_str(&conf).unwrap();
    let first = &parsed["registry"][0];
    assert_eq!(first["location"].as_str(), Some("docker.io"));
    assert_eq!(first["mirror"][0]["location"].as_str(), Some("127.0.0.1:5000/docker.io"));
    assert_eq!(first["mirror"][0]["insecure"].as_bool(), Some(true));
    let tls = text(&containers::crio(&setup("https://cache.example:5443")), "50-forebay.conf");
    assert!(!tls.contains("insecure"));
}

#[test]
fn k3s_is_not_overwritten_unasked() {
    let here = setup("http://127.0.0.1:5000");
    let yaml = text(&containers::k3s(&here, nothing).unwrap(), "registries.yaml");
    assert!(yaml.contains("mirrors:\n  \"docker.io\":\n    endpoint:\n      - \"http://127.0.0.1:5000\"\n"), "{yaml}");
    assert_eq!(text(&containers::k3s(&here, |_| Ok(yaml.clone())).unwrap(), "registries.yaml"), yaml);
    let other = |_: &str| Ok("mirrors: {}\n".to_owned());
    assert!(containers::k3s(&here, other).is_err());
    assert!(containers::k3s(&Setup { force: true, ..here }, other).is_ok());
}

#[test]
fn buildkit_keeps_what_it_has() {
    let here = setup("http://127.0.0.1:5000");
    let old = "# mine\n[worker.oci]\n  max-parallelism = 4\n[registry.\"docker.io\"]\n  mirrors = [\"other\"]\n";
    let new = text(&containers::buildkit(&here, |_| Ok(old.to_owned())).unwrap(), "buildkitd.toml");
    let parsed: toml::Table = toml::from_str(&new).unwrap();
    assert!(new.starts_with("# mine\n[worker.oci]\n  max-parallelism = 4\n"), "{new}");
    let mirrors = parsed["registry"]["docker.io"]["mirrors"].as_array().unwrap();
    assert_eq!(mirrors.iter().map(|mirror| mirror.as_str().unwrap()).collect::<Vec<_>>(), ["127.0.0.1:5000", "other"]);
    assert_eq!(parsed["registry"]["127.0.0.1:5000"]["http"].as_bool(), Some(true));
    assert_eq!(
        text(&containers::buildkit(&here, |_| Ok(new.clone())).unwrap(), "buildkitd.toml"),
        new,
        "twice is once"
    );
}

#[test]
fn files_are_replaced_whole_and_the_first_one_is_kept() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("etc/x/daemon.json");
    assert_eq!(place::put(&path, "one", false).unwrap(), Placed::New);
    assert_eq!(place::put(&path, "one", false).unwrap(), Placed::Unchanged);
    assert_eq!(place::put(&path, "two", false).unwrap(), Placed::Replaced);
    assert_eq!(place::put(&path, "three", false).unwrap(), Placed::Replaced);
    let read = |name: &str| place::read(root.path(), &Path::new("/etc/x").join(name)).unwrap();
    assert_eq!((read("daemon.json").as_str(), read("daemon.json.forebay-backup").as_str()), ("three", "one"));
    assert_eq!(read("daemon.json.forebay-new"), "");
}

#[test]
fn a_login_goes_where_engines_look_for_it() {
    let login = Login { username: "ci".to_owned(), password: "a\"b".to_owned() };
    assert!(!format!("{login:?}").contains("a\\\"b"));
    let setup = Setup { login: Some(login), ..setup("http://10.0.0.5:5000") };
    let plan = containerd::plan(&setup, nothing).unwrap();
    let hosts: toml::Table = toml::from_str(&text(&plan, "docker.io/hosts.toml")).unwrap();
    let header = hosts["host"]["http://10.0.0.5:5000"]["header"]["authorization"].as_str();
    assert_eq!(header, Some("Basic Y2k6YSJi"));
    let secret: Vec<_> = plan.documents.iter().filter(|document| document.is_secret).map(|d| d.path.clone()).collect();
    assert!(secret.len() == 2 && secret.iter().all(|path| path.ends_with("hosts.toml")), "{secret:?}");
    let k3s = containers::k3s(&setup, nothing).unwrap();
    let expected = "configs:\n  \"10.0.0.5:5000\":\n    auth:\n      username: \"ci\"\n      password: \"a\\\"b\"\n";
    assert!(k3s.documents[0].is_secret && k3s.documents[0].text.ends_with(expected), "{}", k3s.documents[0].text);
    for plan in [containers::podman(&setup), containers::buildkit(&setup, nothing).unwrap()] {
        assert!(plan.notes.iter().any(|note| note.contains("login") && note.contains("--username ci")), "{plan:?}");
        assert!(!plan.documents[0].text.contains("a\"b") && !plan.documents[0].is_secret);
    }
    let docker = docker::plan(&setup, nothing).unwrap();
    assert!(docker.notes.iter().any(|note| note.contains("no credentials") && note.contains("client.cert")));
}

#[test]
fn files_with_a_password_are_for_their_owner() {
    use std::os::unix::fs::PermissionsExt as _;
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("hosts.toml");
    let mode = || path.metadata().unwrap().permissions().mode() & 0o777;
    place::put(&path, "open", false).unwrap();
    let _ = place::put(&path, "secret", true).unwrap();
    assert_eq!(mode(), 0o600);
    place::put(&path, "other", false).unwrap();
    assert_eq!(mode(), 0o600, "once closed it stays so");
    assert_eq!(place::put(&root.path().join("new.toml"), "secret", true).unwrap(), Placed::New);
}

#[test]
fn the_address_is_the_proxy_s_own_where_that_is_one() {
    let mut config = Config::default();
    assert_eq!(own_address(&config).unwrap().as_str(), "http://127.0.0.1:5000/");
    config.server.listen = vec!["0.0.0.0:5000".parse().unwrap()];
    assert!(own_address(&config).is_err());
}
