//! The settings as written, with where each was written: the file, overlaid by the environment and the command line.

use super::Overrides;
use super::error::{Error, Origin};
use super::secret::{REDACTED, Secret};
use std::collections::BTreeMap;
use std::path::Path;
use toml::Value;

/// Sections with plain keys. `registry` is a list of its own.
const SECTIONS: [&str; 7] = ["server", "admin", "clients", "storage", "upstream", "log", "telemetry"];
const REGISTRY: &str = "registry";
/// What a variable of ours begins with.
pub(super) const ENVIRONMENT_PREFIX: &str = "FOREBAY_";
/// Between section and key. A name without it is not ours: orchestrators inject `FOREBAY_SERVICE_HOST` and the like.
const ENVIRONMENT_SEPARATOR: &str = "__";
/// Longest part of a value that an error repeats.
const MAX_SHOWN_CHARS: usize = 120;

/// A value and where it was written.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    pub(super) value: Value,
    pub(super) origin: Origin,
}

/// The settings of one table. Reading takes keys out; what is left at [`Section::finish`] is unknown.
#[derive(Debug)]
pub(super) struct Section {
    name: String,
    settings: BTreeMap<String, Setting>,
    known: Vec<&'static str>,
    origin: Origin,
}

/// All settings.
#[derive(Debug)]
pub(super) struct Settings {
    sections: BTreeMap<&'static str, Section>,
    pub(super) registries: Vec<Section>,
}

impl Settings {
    /// Lays the environment and then the command line over the file.
    pub(super) fn gather(
        file: Option<(&Path, &str)>,
        environment: &[(String, String)],
        overrides: &Overrides,
    ) -> Result<Self, Error> {
        let mut settings =
            Self { sections: SECTIONS.map(|name| (name, Section::empty(name))).into(), registries: Vec::new() };
        if let Some((path, text)) = file {
            settings.add_file(path, text)?;
        }
        for (name, text) in environment {
            settings.add_variable(name, text)?;
        }
        settings.add_flags(overrides);
        Ok(settings)
    }

    /// Takes out a section, which is empty when nothing was set.
    pub(super) fn section(&mut self, name: &'static str) -> Section {
        self.sections.remove(name).unwrap_or_else(|| Section::empty(name))
    }

    fn add_file(&mut self, path: &Path, text: &str) -> Result<(), Error> {
        let table: toml::Table = toml::from_str(text).map_err(|error| syntax_error(path, text, &error))?;
        let origin = Origin::File(path.to_owned());
        for (name, value) in table {
            match (self.sections.get_mut(name.as_str()), value) {
                (Some(section), Value::Table(table)) => section.fill(table, &origin),
                (Some(_), value) => {
                    return Err(value_error(&origin, &name, &value, format!("write it as a table, [{name}]")));
                }
                (None, Value::Array(tables)) if name == REGISTRY => self.add_registries(tables, &origin)?,
                (None, value) if name == REGISTRY => {
                    return Err(value_error(&origin, &name, &value, "write each registry as [[registry]]".to_owned()));
                }
                (None, _) => {
                    let known = SECTIONS.map(|name| format!("[{name}]")).join(", ") + ", [[registry]]";
                    return Err(Error::UnknownKey { origin, key: name, known });
                }
            }
        }
        Ok(())
    }

    fn add_registries(&mut self, tables: Vec<Value>, origin: &Origin) -> Result<(), Error> {
        for (index, value) in tables.into_iter().enumerate() {
            let name = format!("registry[{}]", index + 1);
            let Value::Table(table) = value else {
                return Err(value_error(origin, &name, &value, "write each registry as [[registry]]".to_owned()));
            };
            let mut section = Section::empty(&name);
            section.fill(table, origin);
            self.registries.push(section);
        }
        Ok(())
    }

    fn add_variable(&mut self, name: &str, text: &str) -> Result<(), Error> {
        let Some((section, key)) =
            name.strip_prefix(ENVIRONMENT_PREFIX).and_then(|rest| rest.split_once(ENVIRONMENT_SEPARATOR))
        else {
            return Ok(());
        };
        let origin = Origin::Environment(name.to_owned());
        let (section, key) = (section.to_ascii_lowercase(), key.to_ascii_lowercase());
        if section == REGISTRY {
            let problem = "registries are set in the file or with --upstream, not by the environment".to_owned();
            return Err(Error::Conflict { origin, key: section, problem });
        }
        let Some(found) = self.sections.get_mut(section.as_str()) else {
            let known = SECTIONS.map(|name| format!("{ENVIRONMENT_PREFIX}{}", name.to_ascii_uppercase())).join("__*, ");
            return Err(Error::UnknownKey { origin, key: format!("{section}.{key}"), known: known + "__*" });
        };
        found.settings.insert(key, Setting { value: Value::String(text.to_owned()), origin });
        Ok(())
    }

    fn add_flags(&mut self, overrides: &Overrides) {
        let mut set = |section: &'static str, key: &str, flag: &'static str, value: Value| {
            if let Some(section) = self.sections.get_mut(section) {
                section.settings.insert(key.to_owned(), Setting { value, origin: Origin::Flag(flag) });
            }
        };
        if !overrides.listen.is_empty() {
            let addresses = overrides.listen.iter().cloned().map(Value::String).collect();
            set("server", "listen", "--listen", Value::Array(addresses));
        }
        if let Some(address) = &overrides.admin_listen {
            set("admin", "listen", "--admin-listen", Value::String(address.clone()));
        }
        if let Some(path) = &overrides.data {
            set("storage", "path", "--data", Value::String(path.clone()));
        }
    }
}

impl Section {
    fn empty(name: &str) -> Self {
        Self { name: name.to_owned(), settings: BTreeMap::new(), known: Vec::new(), origin: Origin::Default }
    }

    /// A table inside a value.
    pub(super) fn of(name: &str, table: toml::Table, origin: &Origin) -> Self {
        let mut section = Self::empty(name);
        section.fill(table, origin);
        section
    }

    fn fill(&mut self, table: toml::Table, origin: &Origin) {
        self.origin = origin.clone();
        self.settings.extend(table.into_iter().map(|(key, value)| (key, Setting { value, origin: origin.clone() })));
    }

    /// Names a list entry by what it says of itself, for the errors that follow.
    pub(super) fn rename(&mut self, name: String) {
        self.name = name;
    }

    /// Reads a string into `target`, when the key is set.
    pub(super) fn text<T>(
        &mut self,
        key: &'static str,
        target: &mut T,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<(), Error> {
        let Some(Setting { value, origin }) = self.take(key) else { return Ok(()) };
        let parsed = match &value {
            Value::String(text) => parse(text),
            _ => Err("write it as a string".to_owned()),
        };
        *target = parsed.map_err(|expected| value_error(&origin, &self.path(key), &value, expected))?;
        Ok(())
    }

    /// Reads a string or a whole number into `target`, when the key is set.
    pub(super) fn number<T>(
        &mut self,
        key: &'static str,
        target: &mut T,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<(), Error> {
        let Some(Setting { value, origin }) = self.take(key) else { return Ok(()) };
        let parsed = match &value {
            Value::String(text) => parse(text),
            Value::Integer(number) => parse(&number.to_string()),
            _ => Err("write it as a number or a string".to_owned()),
        };
        *target = parsed.map_err(|expected| value_error(&origin, &self.path(key), &value, expected))?;
        Ok(())
    }

    /// Reads `true` or `false` into `target`, when the key is set.
    pub(super) fn flag(&mut self, key: &'static str, target: &mut bool) -> Result<(), Error> {
        let Some(Setting { value, origin }) = self.take(key) else { return Ok(()) };
        *target = match (&value, &origin) {
            (Value::Boolean(flag), _) => *flag,
            (Value::String(text), Origin::Environment(_)) if text == "true" => true,
            (Value::String(text), Origin::Environment(_)) if text == "false" => false,
            _ => return Err(value_error(&origin, &self.path(key), &value, "write true or false".to_owned())),
        };
        Ok(())
    }

    /// Reads a list of strings into `target`, when the key is set; in the environment, a string with commas.
    pub(super) fn list<T: PartialEq>(
        &mut self,
        key: &'static str,
        target: &mut Vec<T>,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<(), Error> {
        let Some(Setting { value, origin }) = self.take(key) else { return Ok(()) };
        let path = self.path(key);
        let items = match value {
            Value::Array(items) => items,
            Value::String(text) if matches!(origin, Origin::Environment(_)) => {
                text.split(',').map(str::trim).filter(|s| !s.is_empty()).map(|s| Value::String(s.to_owned())).collect()
            }
            other => {
                return Err(value_error(&origin, &path, &other, "write it as a list of strings".to_owned()));
            }
        };
        target.clear();
        for item in &items {
            let parsed = match item {
                Value::String(text) => parse(text),
                _ => Err("write each entry as a string".to_owned()),
            };
            let parsed = parsed.map_err(|expected| value_error(&origin, &path, item, expected))?;
            if target.contains(&parsed) {
                return Err(value_error(&origin, &path, item, "it is listed twice".to_owned()));
            }
            target.push(parsed);
        }
        Ok(())
    }

    /// Takes a secret, which no error shows.
    pub(super) fn secret(&mut self, key: &'static str) -> Result<Option<Secret>, Error> {
        let Some(Setting { value, origin }) = self.take(key) else { return Ok(None) };
        match value {
            Value::String(text) if !text.is_empty() => Ok(Some(Secret::from(text))),
            Value::String(_) => Err(self.conflict_at(origin, key, "it is empty")),
            _ => {
                let expected = "write it as a string".to_owned();
                Err(Error::Value { origin, key: self.path(key), value: REDACTED.to_owned(), expected })
            }
        }
    }

    /// Where a key was written, as far as it is set.
    pub(super) fn origin_of(&self, key: &str) -> Origin {
        self.settings.get(key).map_or_else(|| self.origin.clone(), |setting| setting.origin.clone())
    }

    /// Whether it is written anywhere, be it without a key.
    pub(super) fn is_given(&self) -> bool {
        !self.settings.is_empty() || self.origin != Origin::Default
    }

    /// An error about a key and its neighbours.
    pub(super) fn conflict(&self, key: &str, problem: impl Into<String>) -> Error {
        self.conflict_at(self.origin.clone(), key, problem)
    }

    /// The same, for a key that was written elsewhere than its section.
    pub(super) fn conflict_at(&self, origin: Origin, key: &str, problem: impl Into<String>) -> Error {
        Error::Conflict { origin, key: self.path(key), problem: problem.into() }
    }

    /// Refuses what nobody asked for.
    pub(super) fn finish(self) -> Result<(), Error> {
        match self.settings.first_key_value() {
            None => Ok(()),
            Some((key, setting)) => Err(Error::UnknownKey {
                origin: setting.origin.clone(),
                key: self.path(key),
                known: self.known.join(", "),
            }),
        }
    }

    pub(super) fn take(&mut self, key: &'static str) -> Option<Setting> {
        self.known.push(key);
        self.settings.remove(key)
    }

    pub(super) fn path(&self, key: &str) -> String {
        format!("{}.{key}", self.name)
    }
}

/// An error that shows the value.
pub(super) fn value_error(origin: &Origin, key: &str, value: &Value, expected: String) -> Error {
    Error::Value { origin: origin.clone(), key: key.to_owned(), value: shown(value), expected }
}

/// The value on one line, as it would be written. Text with an `@`, a query or a fragment may be an address with a
/// password or token in it.
fn shown(value: &Value) -> String {
    let text = match value {
        Value::String(text) => format!("{text:?}"),
        Value::Table(_) => return "{ … }".to_owned(),
        Value::Array(_) => return "[ … ]".to_owned(),
        other => other.to_string(),
    };
    if text.contains(['@', '?', '#']) {
        return format!("{REDACTED:?}");
    }
    match text.char_indices().nth(MAX_SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn syntax_error(path: &Path, text: &str, error: &toml::de::Error) -> Error {
    let offset = error.span().map_or(0, |span| span.start).min(text.len());
    let before = text.get(..offset).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    Error::Syntax { file: path.to_owned(), line, column, reason: error.message().replace('\n', ", ") }
}
