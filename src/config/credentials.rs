//! Who to be at a registry: from the file itself, a file with a password, a `config.json` of docker, or a helper program.
//!
//! Files are read here and nowhere else; what comes out are values. Reading the configuration again reads them again.

use super::error::Error;
use super::parse;
use super::secret::Secret;
use super::settings::Section;
use crate::oci::Registry;
use base64::Engine as _;
use base64::engine::DecodePaddingMode;
use base64::engine::GeneralPurpose;
use base64::engine::GeneralPurposeConfig;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Largest file with a password.
const MAX_PASSWORD_FILE_BYTES: u64 = 64 * 1024;
/// Largest `config.json`.
const MAX_DOCKER_CONFIG_BYTES: u64 = 1024 * 1024;
/// What a helper's program begins with.
const HELPER_PREFIX: &str = "docker-credential-";
/// Docker Hub's name in a `config.json`, and for helpers.
const HUB_KEY: &str = "https://index.docker.io/v1/";
/// Docker's own name for a login that is a token.
const TOKEN_USER: &str = "<token>";

/// Who to be at a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credentials {
    /// A user and a password.
    Password {
        /// The user.
        username: String,
        /// The password or access token.
        password: Secret,
        /// The file it was read from, without its last line end.
        password_file: Option<PathBuf>,
    },
    /// A token for the registry's token service (OAuth2 refresh token).
    IdentityToken {
        /// The user it is of, where that is known.
        username: String,
        /// The token.
        token: Secret,
    },
    /// A program that knows.
    Helper {
        /// Its name or path.
        program: String,
        /// What it is asked for.
        server: String,
    },
}

/// What the keys of one registry say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CredentialKeys {
    /// `docker_config`.
    pub docker_config: Option<PathBuf>,
    /// `credential_helper`: `ecr-login` or a path.
    pub credential_helper: Option<String>,
}

/// Reads `username`, `password`, `password_file`, `docker_config` and `credential_helper`.
pub(super) fn read(section: &mut Section, registry: &Registry) -> Result<(Option<Credentials>, CredentialKeys), Error> {
    let written = read_password(section)?;
    let mut keys = CredentialKeys::default();
    section.text("credential_helper", &mut keys.credential_helper, |text| helper_name(text).map(Some))?;
    let mut from_docker = None;
    section.text("docker_config", &mut from_docker, |text| {
        let path = parse::path(text)?;
        let credentials = of_docker_config(&parse::file(&path, MAX_DOCKER_CONFIG_BYTES)?, registry)?;
        Ok(Some((path, credentials)))
    })?;
    let given = [written.is_some(), keys.credential_helper.is_some(), from_docker.is_some()];
    if given.iter().filter(|is_given| **is_given).count() > 1 {
        let problem = "give one of username, docker_config and credential_helper";
        return Err(section.conflict("username", problem));
    }
    let from_helper = keys.credential_helper.as_deref().map(|name| helper(name, registry));
    let from_docker = from_docker.and_then(|(path, credentials)| {
        keys.docker_config = Some(path);
        credentials
    });
    Ok((written.or(from_helper).or(from_docker), keys))
}

fn read_password(section: &mut Section) -> Result<Option<Credentials>, Error> {
    let mut username = None;
    section.text("username", &mut username, |text| match text {
        "" => Err("it is empty".to_owned()),
        _ => Ok(Some(text.to_owned())),
    })?;
    let password = section.secret("password")?;
    let mut from_file = None;
    section.text("password_file", &mut from_file, |text| {
        let path = parse::path(text)?;
        let text = String::from_utf8(parse::file(&path, MAX_PASSWORD_FILE_BYTES)?)
            .map_err(|_| "the file is not UTF-8 text".to_owned())?;
        match text.trim_end_matches(['\r', '\n']) {
            "" => Err("the file is empty".to_owned()),
            password => Ok(Some((path, Secret::from(password.to_owned())))),
        }
    })?;
    let (username, password, password_file) = match (username, password, from_file) {
        (None, None, None) => return Ok(None),
        (_, Some(_), Some(_)) => {
            return Err(section.conflict("password", "give either password or password_file, not both"));
        }
        (None, _, _) => return Err(section.conflict("password", "a password needs a username beside it")),
        (Some(_), None, None) => {
            return Err(section.conflict("username", "a username needs a password or password_file beside it"));
        }
        (Some(username), Some(password), None) => (username, password, None),
        (Some(username), None, Some((path, password))) => (username, password, Some(path)),
    };
    Ok(Some(Credentials::Password { username, password, password_file }))
}

/// `docker-credential-<name>` for a name; a path is taken as it is.
fn helper(name: &str, registry: &Registry) -> Credentials {
    let program = if Path::new(name).is_absolute() { name.to_owned() } else { format!("{HELPER_PREFIX}{name}") };
    let server = if registry.is_docker_hub() { HUB_KEY } else { registry.as_str() };
    Credentials::Helper { program, server: server.to_owned() }
}

fn helper_name(text: &str) -> Result<String, String> {
    let is_name = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    match is_name || (Path::new(text).is_absolute() && !text.contains('\0')) {
        true => Ok(text.to_owned()),
        false => Err(format!(
            "write the end of a program's name, such as ecr-login for {HELPER_PREFIX}ecr-login, or its whole path"
        )),
    }
}

/// As docker writes it (docker/cli, `config.json`).
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, DockerAuth>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
    #[serde(default)]
    creds_store: String,
}

#[derive(Deserialize)]
struct DockerAuth {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    identitytoken: String,
}

/// What docker would use for this registry: its own helper, the store of all, or what the file holds.
fn of_docker_config(bytes: &[u8], registry: &Registry) -> Result<Option<Credentials>, String> {
    // The parser's own words could quote a secret.
    let config: DockerConfig = serde_json::from_slice(bytes)
        .map_err(|error| format!("it is no docker config.json (line {})", error.line()))?;
    let means = |key: &str| is_key_of(key, registry);
    if let Some((_, name)) = config.cred_helpers.iter().find(|(key, _)| means(key)) {
        return helper_name(name).map(|name| Some(helper(&name, registry)));
    }
    if !config.creds_store.is_empty() {
        return helper_name(&config.creds_store).map(|name| Some(helper(&name, registry)));
    }
    let Some((key, auth)) = config.auths.iter().find(|(key, _)| means(key)) else { return Ok(None) };
    of_docker_auth(auth).map_err(|problem| format!("auths[{key:?}]: {problem}"))
}

fn of_docker_auth(auth: &DockerAuth) -> Result<Option<Credentials>, String> {
    let (mut username, mut password) = (auth.username.clone(), auth.password.clone());
    if !auth.auth.is_empty() {
        let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
        let engine = GeneralPurpose::new(&base64::alphabet::STANDARD, config);
        let plain = engine.decode(auth.auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let plain = plain.ok_or("its auth is not base64 of a text")?;
        let (user, secret) = plain.split_once(':').ok_or("its auth is not user:password")?;
        (username, password) = (user.to_owned(), secret.trim_end_matches('\0').to_owned());
    }
    let token = if username == TOKEN_USER { &password } else { &auth.identitytoken };
    if !token.is_empty() {
        let username = if username == TOKEN_USER { String::new() } else { username };
        return Ok(Some(Credentials::IdentityToken { username, token: Secret::from(token.clone()) }));
    }
    if username.is_empty() || password.is_empty() {
        return Ok(None);
    }
    Ok(Some(Credentials::Password { username, password: Secret::from(password), password_file: None }))
}

/// Keys are hosts, or the URLs of older versions.
fn is_key_of(key: &str, registry: &Registry) -> bool {
    let rest = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let host = rest.split('/').next().unwrap_or_default();
    let is_hub_name = matches!(host, "index.docker.io" | "registry-1.docker.io");
    host == registry.as_str() || (registry.is_docker_hub() && is_hub_name)
}

#[cfg(test)]
mod tests {
    use super::super::{Config, Overrides, RegistryConfig};
    use super::*;

    fn from_file(text: &str) -> Result<Config, Error> {
        Config::from_sources(Some((Path::new("f.toml"), text)), &[], &Overrides::default())
    }

    fn registry<'a>(config: &'a Config, host: &str) -> &'a RegistryConfig {
        config.registries.iter().find(|known| known.registry.as_str() == host).expect("the registry is configured")
    }

    fn password_of(registry: &RegistryConfig) -> Option<&str> {
        match &registry.credentials {
            Some(Credentials::Password { password, .. }) => Some(password.expose()),
            _ => None,
        }
    }

    fn found(text: &str, registry: &str) -> Result<Option<Credentials>, String> {
        of_docker_config(text.as_bytes(), &registry.parse().unwrap())
    }

    fn password(username: &str, password: &str) -> Credentials {
        let password = Secret::from(password.to_owned());
        Credentials::Password { username: username.to_owned(), password, password_file: None }
    }

    fn asks(program: &str, server: &str) -> Credentials {
        Credentials::Helper { program: program.to_owned(), server: server.to_owned() }
    }

    #[test]
    fn a_config_json_as_docker_writes_it() {
        // "ann:se:cret" and "<token>:refresh", with and without padding.
        let text = r#"{
            "auths": {
                "https://index.docker.io/v1/": { "auth": "YW5uOnNlOmNyZXQ=" },
                "ghcr.io": { "auth": "YW5uOnNlOmNyZXQ" },
                "https://old.example/v2/": { "username": "bob", "password": "p" },
                "acr.example": { "auth": "bm9ib2R5Og==", "identitytoken": "refresh" },
                "token.example": { "auth": "PHRva2VuPjpyZWZyZXNo" },
                "empty.example": {}
            },
            "credHelpers": { "123.dkr.ecr.eu-west-1.amazonaws.com": "ecr-login" },
            "HttpHeaders": { "User-Agent": "x" }
        }"#;
        let token = |username: &str| Credentials::IdentityToken {
            username: username.to_owned(),
            token: Secret::from("refresh".to_owned()),
        };
        for (registry, expected) in [
            ("docker.io", Some(password("ann", "se:cret"))),
            ("ghcr.io", Some(password("ann", "se:cret"))),
            ("old.example", Some(password("bob", "p"))),
            ("acr.example", Some(token("nobody"))),
            ("token.example", Some(token(""))),
            ("empty.example", None),
            ("else.example", None),
            (
                "123.dkr.ecr.eu-west-1.amazonaws.com",
                Some(asks("docker-credential-ecr-login", "123.dkr.ecr.eu-west-1.amazonaws.com")),
            ),
        ] {
            assert_eq!(found(text, registry), Ok(expected), "{registry}");
        }
        let store = r#"{ "auths": { "ghcr.io": {} }, "credsStore": "pass", "credHelpers": { "gcr.io": "gcloud" } }"#;
        assert_eq!(found(store, "ghcr.io"), Ok(Some(asks("docker-credential-pass", "ghcr.io"))));
        assert_eq!(found(store, "docker.io"), Ok(Some(asks("docker-credential-pass", HUB_KEY))));
        assert_eq!(found(store, "gcr.io"), Ok(Some(asks("docker-credential-gcloud", "gcr.io"))));
    }

    #[test]
    fn errors_show_no_secret() {
        for text in [
            "nonsense hunter2",
            r#"{"auths": {"a.io": {"auth": "hunter2!"}}}"#,
            r#"{"auths": {"a.io": {"auth": "aHVudGVyMg=="}}}"#,
            r#"{"auths": {"a.io": {"auth": "hunter2" "x"}}}"#,
            r#"{"credsStore": "../hunter"}"#,
        ] {
            let problem = found(text, "a.io").unwrap_err();
            assert!(!problem.contains("hunter2"), "{problem}");
        }
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "the test writes a config.json")]
    fn logins_from_docker_and_helpers() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        std::fs::write(&path, r#"{"auths": {"a.io": {"auth": "dTpodW50ZXIy"}}, "credHelpers": {"b.io": "x"}}"#)
            .unwrap();
        let sections =
            ["a.io", "b.io", "c.io"].map(|host| format!("[[registry]]\nhost = {host:?}\ndocker_config = {path:?}\n"));
        let config = from_file(&sections.concat()).unwrap();
        assert_eq!(password_of(registry(&config, "a.io")), Some("hunter2"));
        let program = |host: &str| match &registry(&config, host).credentials {
            Some(Credentials::Helper { program, server }) => Some((program.clone(), server.clone())),
            _ => None,
        };
        assert_eq!(program("b.io"), Some(("docker-credential-x".to_owned(), "b.io".to_owned())));
        assert_eq!(registry(&config, "c.io").credentials, None);
        let shown = config.to_toml();
        assert!(shown.contains("docker_config") && !shown.contains("hunter2"), "{shown}");
        assert_eq!(from_file(&shown), Ok(config));
        std::fs::write(&path, "hunter2").unwrap();
        let problem = from_file(&sections[0]).unwrap_err().to_string();
        assert!(problem.ends_with("it is no docker config.json (line 1)"));
    }
}
