//! The certificates of the registry port: which files they are in, and what is in these now.

use super::error::Error;
use super::parse;
use super::settings::{Section, Setting, value_error};
use std::path::{Path, PathBuf};
use toml::Value;

/// Largest file of certificates or keys.
const MAX_PEM_FILE_BYTES: u64 = 1024 * 1024;
const FORM: &str = "write { cert = \"server.pem\", key = \"server.key\" }, with client_ca = \"clients.pem\" if need be";

/// `tls` of `[server]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate, followed by those that lead to its root; PEM.
    pub cert: PathBuf,
    /// Its private key; PEM.
    pub key: PathBuf,
    /// The roots of clients' certificates, PEM; with them, clients without one are refused.
    pub client_ca: Option<PathBuf>,
}

/// What certificate files hold, not yet judged.
#[derive(Clone, PartialEq, Eq)]
pub struct TlsPem {
    /// Of `cert`.
    pub cert: Vec<u8>,
    /// Of `key`: never to be shown.
    pub key: Vec<u8>,
    /// Of `client_ca`.
    pub client_ca: Option<Vec<u8>>,
}

impl TlsFiles {
    /// What the files hold now. Blocks. An error names the file.
    pub fn read(&self) -> Result<TlsPem, String> {
        let read = |path: &Path| {
            parse::file(path, MAX_PEM_FILE_BYTES).map_err(|problem| format!("{}: {problem}", path.display()))
        };
        Ok(TlsPem {
            cert: read(&self.cert)?,
            key: read(&self.key)?,
            client_ca: self.client_ca.as_deref().map(read).transpose()?,
        })
    }

    /// As it is written in the file.
    pub(super) fn to_toml(&self) -> String {
        let quoted = |path: &Path| Value::String(path.display().to_string()).to_string();
        let client_ca =
            self.client_ca.as_deref().map(|path| format!(", client_ca = {}", quoted(path))).unwrap_or_default();
        format!("{{ cert = {}, key = {}{client_ca} }}", quoted(&self.cert), quoted(&self.key))
    }
}

/// Reads the key `tls`: a table, or its text in the environment, where empty is none.
pub(super) fn read(section: &mut Section) -> Result<Option<TlsFiles>, Error> {
    let Some(Setting { value, origin }) = section.take("tls") else { return Ok(None) };
    let name = section.path("tls");
    let table = match &value {
        Value::Table(table) => Some(table.clone()),
        Value::String(text) if text.is_empty() => return Ok(None),
        Value::String(text) => toml::from_str::<toml::Table>(&format!("tls = {text}"))
            .ok()
            .filter(|table| table.len() == 1)
            .and_then(|table| table.get("tls").and_then(Value::as_table).cloned()),
        _ => None,
    };
    let table = table.ok_or_else(|| value_error(&origin, &name, &value, FORM.to_owned()))?;
    let mut section = Section::of(&name, table, &origin);
    let (mut cert, mut key, mut client_ca) = (None, None, None);
    let path = |text: &str| parse::path(text).map(Some);
    section.text("cert", &mut cert, path)?;
    section.text("key", &mut key, path)?;
    section.text("client_ca", &mut client_ca, path)?;
    let missing = |key| section.conflict(key, "tls needs cert and key");
    let files =
        TlsFiles { cert: cert.ok_or_else(|| missing("cert"))?, key: key.ok_or_else(|| missing("key"))?, client_ca };
    section.finish()?;
    Ok(Some(files))
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
    fn files_are_named_and_print_back() {
        let config = from("[server]\ntls = { cert = \"a.pem\", key = 'b\\c', client_ca = \"c.pem\" }", &[]).unwrap();
        let files = config.server.tls.clone().unwrap();
        assert_eq!((files.cert, files.key), (PathBuf::from("a.pem"), PathBuf::from("b\\c")));
        assert_eq!(files.client_ca, Some(PathBuf::from("c.pem")));
        assert_eq!(from(&config.to_toml(), &[]).unwrap(), config);
        let table = from("[server.tls]\ncert = \"a.pem\"\nkey = \"b.pem\"", &[]).unwrap().server.tls;
        let variable = [("FOREBAY_SERVER__TLS", "{ cert = \"a.pem\", key = \"b.pem\" }")];
        assert_eq!(from("", &variable).unwrap().server.tls, table);
        assert_eq!(from("[server.tls]\ncert = \"a\"", &[("FOREBAY_SERVER__TLS", "")]).unwrap().server.tls, None);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (file, expected) in [
            ("tls = true", format!("f.toml: server.tls = true: {FORM}")),
            ("tls = { cert = \"a\" }", "f.toml: server.tls.key: tls needs cert and key".to_owned()),
            ("tls = { key = \"a\" }", "f.toml: server.tls.cert: tls needs cert and key".to_owned()),
            ("tls = { cert = \"\", key = \"a\" }", "f.toml: server.tls.cert = \"\": write a path".to_owned()),
        ] {
            assert_eq!(from(&format!("[server]\n{file}"), &[]).unwrap_err(), expected);
        }
        let unknown = from("[server]\ntls = { cert = \"a\", key = \"b\", ca = \"c\" }", &[]).unwrap_err();
        assert!(unknown.contains("unknown key server.tls.ca"), "{unknown}");
        let absent = TlsFiles { cert: "/nowhere/a".into(), key: "b".into(), client_ca: None }.read();
        assert!(absent.is_err_and(|problem| problem.starts_with("/nowhere/a: cannot read the file")));
    }
}
