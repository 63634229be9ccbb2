//! What the guides show: every command exists with these flags, and every configuration is one.

use std::path::PathBuf;

use crate::support::proxy;

/// The guides: their names and texts.
fn guides() -> Vec<(PathBuf, String)> {
    let folder = std::fs::read_dir("deploy").unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> = folder.filter(|path| path.extension().is_some_and(|end| end == "md")).collect();
    paths.push("README.md".into());
    assert!(paths.len() >= 8, "{paths:?}");
    paths.into_iter().map(|path| (path.clone(), std::fs::read_to_string(path).unwrap())).collect()
}

/// Commands of blocks, and of text between backticks.
fn commands(text: &str) -> Vec<String> {
    let lines = text.lines().map(|line| line.trim()).filter(|line| line.starts_with("forebay ")).map(str::to_owned);
    let inline = text.split('`').skip(1).step_by(2).filter(|code| code.starts_with("forebay ")).map(str::to_owned);
    lines.chain(inline).collect()
}

#[tokio::test]
async fn every_command_of_the_guides_exists() {
    let mut count = 0;
    for (path, text) in guides() {
        for command in commands(&text) {
            let command = command.split('#').next().unwrap().trim().split(['`', ';']).next().unwrap();
            let command = command.replace("ENGINE", "docker");
            // `forebay stats`, `ls`, …: the first of a list.
            let mut words: Vec<&str> = command.split_whitespace().skip(1).collect();
            words.push("--help");
            let output = proxy::run(&words).await;
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(0), "{}: {command}: {said}", path.display());
            count += 1;
        }
    }
    assert!(count > 30, "{count} commands");
}

#[tokio::test]
async fn every_configuration_of_the_guides_is_right() {
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    std::fs::write(&secret, "s3cret\n").unwrap();
    let (certificate, key) = (folder.path().join("server.pem"), folder.path().join("server.key"));
    let made = rcgen::generate_simple_self_signed(["cache.example".to_owned()]).unwrap();
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let (htpasswd, tokens) = (folder.path().join("htpasswd"), folder.path().join("tokens"));
    std::fs::write(&htpasswd, crate::clients::user("ann", "password")).unwrap();
    std::fs::write(&tokens, "").unwrap();
    let here = [
        ("/run/secrets/registry.example", &secret),
        ("/etc/forebay/server.pem", &certificate),
        ("/etc/forebay/server.key", &key),
        ("/etc/forebay/htpasswd", &htpasswd),
        ("/etc/forebay/tokens", &tokens),
    ];
    let mut count = 0;
    for (path, text) in guides() {
        for block in text.split("```toml\n").skip(1) {
            let block = block.split("```").next().unwrap().lines().map(str::trim_start);
            let config = block.collect::<Vec<_>>().join("\n");
            let config = here.iter().fold(config, |text, (path, file)| text.replace(path, file.to_str().unwrap()));
            let file = folder.path().join("forebay.toml");
            std::fs::write(&file, &config).unwrap();
            let output = proxy::run(&["config", "check", "--config", file.to_str().unwrap()]).await;
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(0), "{}: {said}\n{config}", path.display());
            count += 1;
        }
    }
    assert!(count >= 3, "{count} configurations");
    for file in ["deploy/kubernetes/base/forebay.toml", "deploy/kubernetes/node/forebay.toml"] {
        let output = proxy::run(&["config", "check", "--config", file]).await;
        assert_eq!(output.status.code(), Some(0), "{file}: {output:?}");
    }
}
