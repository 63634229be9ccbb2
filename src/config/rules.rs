//! Which repositories may be pulled, and what differs for some tags.

use super::error::Error;
use super::parse;
use super::quantity::{format_duration, parse_duration};
use super::settings::{Section, Setting, value_error};
use crate::oci::TagPattern;
use std::fmt;
use std::time::Duration;
use toml::Value;

const TAG_RULE: &str = "tag_rule";
/// Rules of one registry.
const MAX_TAG_RULES: usize = 256;

/// What differs for some tags; the first rule that fits decides. Displays as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagRule {
    /// Which tags: a pattern of tags, or `repository:tag`.
    pub pattern: TagPattern,
    /// In place of the registry's.
    pub tag_ttl: Option<Duration>,
    /// In place of the registry's.
    pub stale_if_error: Option<Duration>,
    /// Once known, the tag stays where it points.
    pub immutable: bool,
    /// Nobody is asked where the tag points.
    pub offline: bool,
}

impl fmt::Display for TagRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "pattern = \"{}\"", self.pattern)?;
        if let Some(tag_ttl) = self.tag_ttl {
            writeln!(f, "tag_ttl = \"{}\"", format_duration(tag_ttl))?;
        }
        if let Some(stale_if_error) = self.stale_if_error {
            writeln!(f, "stale_if_error = \"{}\"", format_duration(stale_if_error))?;
        }
        writeln!(f, "immutable = {}", self.immutable)?;
        writeln!(f, "offline = {}", self.offline)
    }
}

/// Reads `[[registry.tag_rule]]`, in their order.
pub(super) fn read_tag_rules(section: &mut Section, rules: &mut Vec<TagRule>) -> Result<(), Error> {
    let Some(Setting { value, origin }) = section.take(TAG_RULE) else { return Ok(()) };
    let key = section.path(TAG_RULE);
    let Value::Array(items) = value else {
        return Err(value_error(&origin, &key, &value, "write each rule as [[registry.tag_rule]]".to_owned()));
    };
    if items.len() > MAX_TAG_RULES {
        return Err(section.conflict_at(origin, TAG_RULE, format!("give at most {MAX_TAG_RULES} rules")));
    }
    rules.clear();
    for (index, item) in items.into_iter().enumerate() {
        let name = format!("{key}[{}]", index + 1);
        let Value::Table(table) = item else {
            return Err(value_error(&origin, &name, &item, "write each rule as [[registry.tag_rule]]".to_owned()));
        };
        let rule = read_tag_rule(Section::of(&name, table, &origin))?;
        if rules.iter().any(|known| known.pattern == rule.pattern) {
            let problem = format!("the pattern `{}` has a rule already, and the first one decides", rule.pattern);
            return Err(section.conflict_at(origin, TAG_RULE, problem));
        }
        rules.push(rule);
    }
    Ok(())
}

fn read_tag_rule(mut section: Section) -> Result<TagRule, Error> {
    let mut pattern = None;
    section.text("pattern", &mut pattern, |text| parse::tag_pattern(text).map(Some))?;
    let pattern = pattern.ok_or_else(|| section.conflict("pattern", "each rule needs a pattern of tags"))?;
    let mut rule = TagRule { pattern, tag_ttl: None, stale_if_error: None, immutable: false, offline: false };
    let duration = |text: &str| parse_duration(text).map(Some).map_err(|error| error.to_string());
    section.text("tag_ttl", &mut rule.tag_ttl, duration)?;
    section.text("stale_if_error", &mut rule.stale_if_error, duration)?;
    section.flag("immutable", &mut rule.immutable)?;
    section.flag("offline", &mut rule.offline)?;
    section.finish()?;
    Ok(rule)
}

#[cfg(test)]
mod tests {
    use super::super::{Config, Overrides, Proxy, RegistryConfig};
    use super::*;
    use std::path::Path;

    fn from_file(text: &str) -> Result<Config, Error> {
        Config::from_sources(Some((Path::new("f.toml"), text)), &[], &Overrides::default())
    }

    fn message(text: &str) -> String {
        from_file(text).expect_err(text).to_string()
    }

    fn registry<'a>(config: &'a Config, host: &str) -> &'a RegistryConfig {
        config.registries.iter().find(|known| known.registry.as_str() == host).expect("the registry is configured")
    }

    #[test]
    fn rules_of_a_registry() {
        let text = r#"
            [upstream]
            offline = true
            [[registry]]
            host = "a.io"
            offline = true
            grant_ttl = "10m"
            allow = ["team/*", "library/alpine"]
            deny = ["team/secret"]
            max_requests_per_minute = 100
            proxy = "socks5://proxy.example:1080"
            [[registry.tag_rule]]
            pattern = "team/*:v?"
            immutable = true
            [[registry.tag_rule]]
            pattern = "*"
            tag_ttl = "1d"
            stale_if_error = "0s"
            offline = true
        "#;
        let config = from_file(text).unwrap();
        let read = registry(&config, "a.io");
        assert!(config.upstream.offline && read.offline && read.tag_rules[0].immutable && !read.tag_rules[0].offline);
        assert_eq!(read.tag_rules[0].pattern.to_string(), "team/*:v?");
        assert_eq!(
            (read.tag_rules[0].tag_ttl, read.tag_rules[1].tag_ttl),
            (None, Some(Duration::from_secs(24 * 3600)))
        );
        assert_eq!(read.tag_rules[1].stale_if_error, Some(Duration::ZERO));
        assert_eq!(read.max_requests_per_minute.map(u32::from), Some(100));
        assert_eq!((read.allow.len(), read.deny[0].as_str()), (2, "team/secret"));
        assert!(matches!(&read.proxy, Proxy::Url(url) if url.port() == Some(1080)));
        assert_eq!(from_file(&config.to_toml()), Ok(config));
    }

    #[test]
    fn bad_rules_of_a_registry() {
        let base = "[[registry]]\nhost = \"a.io\"\n";
        for (line, expected) in [
            ("tag_rule = 1", "registry[a.io].tag_rule = 1: write each rule as [[registry.tag_rule]]"),
            (
                "[[registry.tag_rule]]\nimmutable = true",
                "registry[a.io].tag_rule[1].pattern: each rule needs a pattern of tags",
            ),
            (
                "[[registry.tag_rule]]\npattern = \"a b\"",
                "registry[a.io].tag_rule[1].pattern = \"a b\": a pattern is a name in which `*` stands for any run of characters \
                 and `?` for any one of them, such as \"v*\" or \"library/*:latest\"",
            ),
            (
                "[[registry.tag_rule]]\npattern = \"v*\"\nttl = 1",
                "unknown key registry[a.io].tag_rule[1].ttl; known here: pattern, tag_ttl, stale_if_error, immutable, offline",
            ),
            (
                "[[registry.tag_rule]]\npattern = \"v*\"\n[[registry.tag_rule]]\npattern = \"v*\"",
                "registry[a.io].tag_rule: the pattern `v*` has a rule already, and the first one decides",
            ),
            ("offline = \"yes\"", "registry[a.io].offline = \"yes\": write true or false"),
            (
                "max_requests_per_minute = -1",
                "registry[a.io].max_requests_per_minute = -1: write a number from 1 to 100000, or 0 for no limit",
            ),
            (
                "credential_helper = \"../x\"",
                "registry[a.io].credential_helper = \"../x\": write the end of a program's name, such as ecr-login for \
                 docker-credential-ecr-login, or its whole path",
            ),
            (
                "credential_helper = \"x\"\nusername = \"u\"\npassword = \"p\"",
                "registry[a.io].username: give one of username, docker_config and credential_helper",
            ),
            (
                "proxy = \"ftp://x\"",
                "registry[a.io].proxy = \"ftp://x\": write a URL such as http://proxy.example:3128 or \
                 socks5://proxy.example:1080, or none, or leave it empty",
            ),
        ] {
            assert_eq!(message(&format!("{base}{line}")), format!("f.toml: {expected}"));
        }
        assert!(!message(&format!("{base}proxy = \"http://u:hunter2@x\"")).contains("hunter2"));
    }
}
