//! Starting, or saying in one line why not: exit 2 for a wrong configuration, exit 1 for a machine that says no.

use std::process::Output;

use tempfile::TempDir;
use tokio::net::TcpListener;

use crate::support::proxy;
use crate::support::proxy::Proxy;
use crate::support::proxy::Registry;
use crate::support::proxy::Setup;
use crate::support::registry::ScriptedRegistry;

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Asserts an exit code and that stderr speaks of `word`, without a panic.
#[track_caller]
fn assert_gives_up(output: &Output, code: i32, word: &str) {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(text.to_lowercase().contains(&word.to_lowercase()), "{word:?} is not in {text:?}");
    assert!(!text.contains("panicked"), "{text}");
}

/// Asserts exit 2 and one line that speaks of `word`.
#[track_caller]
fn assert_bad_configuration(output: &Output, word: &str) {
    assert_gives_up(output, 2, word);
    let text = stderr(output);
    assert_eq!(text.trim_end().lines().count(), 1, "{text}");
}

#[tokio::test]
async fn a_wrong_configuration_is_one_line_that_names_it() {
    let good = || Setup::new(&[Registry::new("reg.test", "http://127.0.0.1:1")]);
    let table = [
        (good().set("server", "lisen", vec!["127.0.0.1:0"]), "lisen"),
        (good().set("sever", "listen", vec!["127.0.0.1:0"]), "sever"),
        (good().set("server", "listen", vec!["nonsense"]), "nonsense"),
        (good().set("server", "shutdown_grace", "soon"), "shutdown_grace"),
        (good().set("server", "default_registry", "nobody.example"), "nobody.example"),
        (good().set("storage", "max_size", "lots"), "max_size"),
        (good().set("storage", "min_free", "5 pounds"), "min_free"),
        (good().set("log", "format", "xml"), "format"),
        (good().each("tag_ttl", "5 parsecs"), "tag_ttl"),
        (good().each("endpoint", "http://127.0.0.1:1"), "endpoint"),
        (good().each("endpoints", vec!["not a url"]), "not a url"),
        (good().each("endpoints", vec!["ftp://127.0.0.1/"]), "ftp://127.0.0.1/"),
        (good().each("host", "Not A Host"), "Not A Host"),
        (good().each("password_file", "/nonexistent/password").each("username", "ann"), "/nonexistent/password"),
        (good().environment("FOREBAY_STORAGE__MAX_SIZE", "lots"), "max_size"),
        (good().environment("FOREBAY_SERVER__LISEN", "x"), "lisen"),
    ];
    for (setup, word) in table {
        assert_bad_configuration(&setup.run().await, word);
    }
}

#[tokio::test]
async fn a_file_that_is_missing_or_no_toml_is_named() {
    let home = TempDir::new().unwrap();
    let missing = home.path().join("missing.toml");
    let output = proxy::run(&["serve", "--config", missing.to_str().unwrap()]).await;
    assert_bad_configuration(&output, "missing.toml");
    let broken = home.path().join("broken.toml");
    std::fs::write(&broken, "[server\nlisten = 5").unwrap();
    for command in [["serve", "--config"], ["check", "--config"]] {
        let mut arguments = command.to_vec();
        arguments.push(broken.to_str().unwrap());
        if command[0] == "check" {
            arguments.insert(0, "config");
        }
        assert_gives_up(&proxy::run(&arguments).await, 2, "broken.toml");
    }
}

#[tokio::test]
async fn wrong_usage_is_2() {
    for arguments in [vec!["serve", "--nonsense"], vec!["nonsense"], vec!["serve", "--upstream", "no-equals-sign"]] {
        let output = proxy::run(&arguments).await;
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", stderr(&output));
    }
}

#[tokio::test]
async fn a_configuration_can_be_checked_and_shown() {
    let home = TempDir::new().unwrap();
    let file = home.path().join("forebay.toml");
    let registry =
        Registry::new("reg.test", "http://127.0.0.1:1").set("username", "ann").set("password", "very-secret");
    std::fs::write(&file, Setup::new(&[registry]).text()).unwrap();
    let file = file.to_str().unwrap();
    assert_eq!(proxy::run(&["config", "check", "--config", file]).await.status.code(), Some(0));
    let shown = proxy::run(&["config", "show", "--config", file]).await;
    assert_eq!(shown.status.code(), Some(0));
    let text = String::from_utf8(shown.stdout).unwrap();
    assert!(!text.contains("very-secret"), "{text}");
    assert!(text.contains("***"), "{text}");
    let table: toml::Table = text.parse().unwrap();
    assert_eq!(table["server"]["default_registry"].as_str(), Some("reg.test"));
    assert!(table["storage"].get("max_size").is_some(), "what was left out is shown too");
    // A check finds what a start would find.
    std::fs::write(file, "[server]\nlisen = []\n").unwrap();
    assert_bad_configuration(&proxy::run(&["config", "check", "--config", file]).await, "lisen");
}

#[tokio::test]
async fn what_the_layers_refuse_is_found_before_anything_is_bound() {
    let home = TempDir::new().unwrap();
    let made = rcgen::generate_simple_self_signed(["a.test".to_owned()]).unwrap();
    let certificates = home.path().join("roots.pem");
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    std::fs::write(&certificates, format!("{}{broken}", made.cert.pem())).unwrap();
    let no_certificate = home.path().join("no.pem");
    std::fs::write(&no_certificate, "nonsense").unwrap();
    let registry = || Registry::new("reg.test", "http://127.0.0.1:1");
    let file = home.path().join("forebay.toml");
    let file = file.to_str().unwrap();
    // An address that cannot be bound: who tries says something else.
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    for (registry, word) in [
        (registry().set("aliases", vec!["v2"]), "aliases"),
        (registry().set("username", "a\tb").set("password", "very-secret"), "username"),
        (registry().set("username", "me:very-secret").set("password", "x"), "username"),
        (registry().set("ca_file", certificates.to_str().unwrap()), "roots.pem"),
        (registry().set("ca_file", no_certificate.to_str().unwrap()), "no.pem"),
    ] {
        let setup = Setup::new(&[registry]).set("server", "listen", vec![taken.as_str()]);
        std::fs::write(file, setup.text()).unwrap();
        for command in [vec!["config", "check", "--config", file], vec!["serve", "--config", file]] {
            let output = proxy::run(&command).await;
            assert_gives_up(&output, 2, word);
            assert!(stderr(&output).contains("forebay.toml") && !stderr(&output).contains("very-secret"), "{output:?}");
        }
    }
}

#[tokio::test]
async fn the_environment_overrides_the_file() {
    let upstream = ScriptedRegistry::start().await;
    let setup = Proxy::of(&upstream).set("log", "format", "text").environment("FOREBAY_LOG__FORMAT", "json");
    // Starting at all means that the log could be read as JSON.
    let proxy = setup.start().await;
    assert_eq!(proxy.get("/v2/").await.status, 200);
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let registry = Registry::new("reg.test", "http://127.0.0.1:1");
    let listen = Setup::new(std::slice::from_ref(&registry)).set("server", "listen", vec![address.as_str()]);
    let admin = Setup::new(&[registry]).set("admin", "listen", address.as_str());
    for setup in [listen, admin] {
        assert_gives_up(&setup.run().await, 1, &address);
    }
}

#[tokio::test]
async fn a_data_directory_that_cannot_be_is_named() {
    let home = TempDir::new().unwrap();
    let file = home.path().join("a-file");
    std::fs::write(&file, "not a directory").unwrap();
    let path = file.join("data");
    let setup = Setup::new(&[]).set("storage", "path", path.to_str().unwrap());
    assert_gives_up(&setup.run().await, 1, "a-file");
}

#[tokio::test]
async fn a_data_directory_has_one_owner() {
    let upstream = ScriptedRegistry::start().await;
    let proxy = Proxy::of(&upstream).start().await;
    let data = proxy.data();
    let data = data.to_str().unwrap();
    let second = Setup::new(&[]).set("storage", "path", data);
    assert_gives_up(&second.run().await, 1, data);
    assert_eq!(proxy.get("/v2/").await.status, 200);
}
