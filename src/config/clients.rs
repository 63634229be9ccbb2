//! `[clients]`: who may ask on the registry port, and what each may read.
//!
//! The names of files are the configuration; what is in them is read when it is put into force, and again when they change.

use super::error::Error;
use super::parse;
use super::settings::{Section, Setting, value_error};
use crate::access::Rule;
use crate::oci::Registry;
use std::fmt;
use std::path::{Path, PathBuf};
use toml::Value;

const RULE: &str = "rule";
/// Most rules.
const MAX_RULES: usize = 1024;
/// Largest file of passwords or tokens.
const MAX_CLIENTS_FILE_BYTES: u64 = 1024 * 1024;

/// `[clients]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clients {
    /// Lines of `name:bcrypt`.
    pub htpasswd: Option<PathBuf>,
    /// Lines of `name:hex of the token's SHA-256`.
    pub tokens: Option<PathBuf>,
    /// Clients without credentials may ask.
    pub anonymous: bool,
    /// What clients may read: everything, where there is none.
    pub rules: Vec<Rule>,
}

/// What the files hold, not yet judged.
#[derive(Clone, PartialEq, Eq)]
pub struct ClientTexts {
    /// Of `htpasswd`.
    pub htpasswd: Option<Vec<u8>>,
    /// Of `tokens`.
    pub tokens: Option<Vec<u8>>,
}

/// Shows nothing: what proves clients is in it.
impl fmt::Debug for ClientTexts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientTexts")
    }
}

impl Clients {
    /// Whether a name with a password or token opens anything.
    pub fn has_logins(&self) -> bool {
        self.htpasswd.is_some() || self.tokens.is_some()
    }

    /// What the files hold now. Blocks.
    pub fn read(&self) -> Result<ClientTexts, Error> {
        let read = |key: &str, path: &Option<PathBuf>| {
            let Some(path) = path else { return Ok(None) };
            parse::file(path, MAX_CLIENTS_FILE_BYTES).map(Some).map_err(|problem| refused(key, path, &problem))
        };
        Ok(ClientTexts { htpasswd: read("htpasswd", &self.htpasswd)?, tokens: read("tokens", &self.tokens)? })
    }

    /// The file of passwords cannot be used.
    pub fn htpasswd_refused(&self, problem: &str) -> Error {
        refused("htpasswd", self.htpasswd.as_deref().unwrap_or(Path::new("")), problem)
    }

    /// The file of tokens cannot be used.
    pub fn tokens_refused(&self, problem: &str) -> Error {
        refused("tokens", self.tokens.as_deref().unwrap_or(Path::new("")), problem)
    }
}

fn refused(key: &str, path: &Path, problem: &str) -> Error {
    Error::Refused { key: format!("clients.{key} = {path:?}"), problem: problem.to_owned() }
}

/// Reads `[clients]`, where it is written. Nobody could ever get in without any way to show who it is: that is a mistake.
pub(super) fn read(
    mut section: Section,
    has_certificates: bool,
    knows: impl Fn(&Registry) -> bool,
) -> Result<Option<Clients>, Error> {
    if !section.is_given() {
        return Ok(None);
    }
    let mut clients = Clients { htpasswd: None, tokens: None, anonymous: false, rules: Vec::new() };
    let path = |text: &str| parse::path(text).map(Some);
    section.text("htpasswd", &mut clients.htpasswd, path)?;
    section.text("tokens", &mut clients.tokens, path)?;
    section.flag("anonymous", &mut clients.anonymous)?;
    read_rules(&mut section, &mut clients.rules, knows)?;
    let problem = "nobody could get in: give htpasswd or tokens, or anonymous = true, or client_ca in server.tls";
    let nobody = section.conflict("htpasswd", problem);
    section.finish()?;
    if !clients.has_logins() && !clients.anonymous && !has_certificates {
        return Err(nobody);
    }
    Ok(Some(clients))
}

fn read_rules(section: &mut Section, rules: &mut Vec<Rule>, knows: impl Fn(&Registry) -> bool) -> Result<(), Error> {
    let Some(Setting { value, origin }) = section.take(RULE) else { return Ok(()) };
    let key = section.path(RULE);
    let Value::Array(items) = value else {
        return Err(value_error(&origin, &key, &value, "write each rule as [[clients.rule]]".to_owned()));
    };
    if items.len() > MAX_RULES {
        return Err(section.conflict_at(origin, RULE, format!("give at most {MAX_RULES} rules")));
    }
    for (index, item) in items.into_iter().enumerate() {
        let name = format!("{key}[{}]", index + 1);
        let Value::Table(table) = item else {
            return Err(value_error(&origin, &name, &item, "write each rule as [[clients.rule]]".to_owned()));
        };
        rules.push(read_rule(Section::of(&name, table, &origin), &knows)?);
    }
    Ok(())
}

fn read_rule(mut section: Section, knows: impl Fn(&Registry) -> bool) -> Result<Rule, Error> {
    let mut rule = Rule { clients: Vec::new(), registries: Vec::new(), repositories: Vec::new() };
    section.list("clients", &mut rule.clients, |text| {
        text.parse().map_err(|error: crate::access::InvalidClientPattern| error.to_string())
    })?;
    section.list("registries", &mut rule.registries, |text| match parse::registry(text)? {
        registry if knows(&registry) => Ok(registry),
        _ => Err("it is not a configured registry; add a [[registry]] for it".to_owned()),
    })?;
    section.list("repositories", &mut rule.repositories, parse::pattern)?;
    if rule.clients.is_empty() {
        return Err(section.conflict("clients", "each rule says whom it lets in, such as [\"ci\", \"team-*\"]"));
    }
    section.finish()?;
    Ok(rule)
}

#[cfg(test)]
mod tests {
    use super::super::{Config, Overrides};
    use super::*;

    fn from(file: &str, environment: &[(&str, &str)]) -> Result<Config, String> {
        let environment: Vec<_> = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Config::from_sources(Some((Path::new("f.toml"), file)), &environment, &Overrides::default())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn everybody_may_ask_where_it_is_not_written() {
        assert_eq!(from("", &[]).unwrap().clients, None);
        assert!(!Config::default().to_toml().contains("[clients]"));
    }

    #[test]
    fn all_of_it_prints_back() {
        let text = r#"
            [clients]
            htpasswd = "/etc/forebay/htpasswd"
            tokens = 'to\kens'
            anonymous = true
            [[clients.rule]]
            clients = ["ci", "team-*", "spiffe://cluster/ns/*", "Ann Lee"]
            registries = ["ghcr.io", "quay.io"]
            repositories = ["acme/*"]
            [[clients.rule]]
            clients = ["anonymous"]
            "#;
        let config = from(text, &[]).unwrap();
        let clients = config.clients.clone().unwrap();
        assert_eq!(clients.htpasswd, Some(PathBuf::from("/etc/forebay/htpasswd")));
        assert!(clients.anonymous && clients.rules.len() == 2);
        assert_eq!(clients.rules[0].clients[2].to_string(), "spiffe://cluster/ns/*");
        assert!(clients.rules[1].registries.is_empty() && clients.rules[1].repositories.is_empty());
        assert_eq!(from(&config.to_toml(), &[]).unwrap(), config);
        let variables = [("FOREBAY_CLIENTS__TOKENS", "t"), ("FOREBAY_CLIENTS__ANONYMOUS", "false")];
        let set = from("", &variables).unwrap().clients.unwrap();
        assert_eq!((set.tokens, set.anonymous), (Some(PathBuf::from("t")), false));
        let certificates = "[server]\ntls = { cert = \"a\", key = \"b\", client_ca = \"c\" }\n[clients]\n";
        assert!(from(certificates, &[]).unwrap().clients.is_some());
    }

    #[test]
    fn what_is_wrong_is_named() {
        let nobody = "f.toml: clients.htpasswd: nobody could get in: give htpasswd or tokens, or anonymous = true, or \
            client_ca in server.tls";
        let open = "[clients]\nanonymous = true\n";
        for (text, expected) in [
            ("[clients]".to_owned(), nobody),
            ("[clients]\nanonymous = false".to_owned(), nobody),
            (
                "[clients]\npasswords = \"x\"".to_owned(),
                "f.toml: unknown key clients.passwords; known here: htpasswd, tokens, anonymous, rule",
            ),
            (format!("{open}rule = 1"), "f.toml: clients.rule = 1: write each rule as [[clients.rule]]"),
            (
                format!("{open}[[clients.rule]]\nregistries = [\"ghcr.io\"]"),
                "f.toml: clients.rule[1].clients: each rule says whom it lets in, such as [\"ci\", \"team-*\"]",
            ),
            (
                format!("{open}[[clients.rule]]\nclients = [\"a\"]\nregistries = [\"ghrc.io\"]"),
                "f.toml: clients.rule[1].registries = \"ghrc.io\": it is not a configured registry; add a [[registry]] for it",
            ),
            (
                format!("{open}[[clients.rule]]\nclients = [\"a\"]\nrepositories = [\"a b\"]"),
                "f.toml: clients.rule[1].repositories = \"a b\": a pattern is a name in which `*` stands for any run of \
                 characters and `?` for any one of them, such as \"library/*\"",
            ),
            (
                format!("{open}[[clients.rule]]\nclients = [\"é\"]"),
                "f.toml: clients.rule[1].clients = \"é\": write a client's name, in which `*` stands for any run of \
                 characters and `?` for any one of them, or `anonymous`",
            ),
            (
                format!("{open}[[clients.rule]]\nclients = [\"a\"]\nregistry = \"ghcr.io\""),
                "f.toml: unknown key clients.rule[1].registry; known here: clients, registries, repositories",
            ),
        ] {
            assert_eq!(from(&text, &[]).unwrap_err(), expected, "{text}");
        }
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "the test writes a file")]
    fn files_are_read_when_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("htpasswd");
        let clients = Clients { htpasswd: Some(path.clone()), tokens: None, anonymous: false, rules: Vec::new() };
        let error = clients.read().unwrap_err().to_string();
        assert!(error.starts_with(&format!("clients.htpasswd = {path:?}: cannot read the file")), "{error}");
        std::fs::write(&path, "ann:x").unwrap();
        let texts = clients.read().unwrap();
        assert_eq!((texts.htpasswd.as_deref(), texts.tokens.as_deref()), (Some(&b"ann:x"[..]), None));
        assert_eq!(format!("{texts:?}"), "ClientTexts");
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "the test reads the annotated file")]
    fn the_commented_block_of_the_annotated_file_is_valid() {
        let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("config/default.toml")).unwrap();
        let block = text.split("# [clients]\n").nth(1).unwrap().split("\n\n").next().unwrap();
        let lines: Vec<_> = block.lines().map(|line| line.trim_start_matches("# ")).collect();
        let clients = from(&format!("[clients]\n{}", lines.join("\n")), &[]).unwrap().clients.unwrap();
        assert!(clients.htpasswd.is_some() && clients.tokens.is_some() && !clients.rules[0].repositories.is_empty());
    }
}
