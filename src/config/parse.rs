//! Text to values. An error is what would be right.

use super::quantity::parse_duration;
use super::secret::Secret;
use crate::oci::{Pattern, Registry, TagPattern};
use crate::telemetry;
use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;
use url::Url;

/// Most connections that may be asked for: above any limit of open files.
const MAX_CONNECTIONS: usize = 1_000_000;
/// Most downloads at once that may be asked for: each is a file and a connection.
const MAX_FILLS: usize = 100_000;
/// Most connections of one download.
const MAX_LANES_PER_BLOB: usize = 16;
/// Most requests in a minute that may be asked for.
const MAX_REQUESTS: u32 = 100_000;
/// Longest service name.
const MAX_SERVICE_NAME_CHARS: usize = 128;

pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        "write an IP address and a port, such as 127.0.0.1:5000, or [::]:5000 for all interfaces".to_owned()
    })
}

pub(super) fn registry(text: &str) -> Result<Registry, String> {
    text.parse().map_err(|error: crate::oci::InvalidName| error.to_string())
}

/// A host name with a port where it has one, in the form in which it will be compared.
pub(super) fn host(text: &str) -> Result<String, String> {
    let valid: Result<Registry, _> = text.parse();
    match valid {
        Ok(host) => Ok(host.as_str().to_owned()),
        Err(_) => {
            Err("write a lower-case name, with a port if it needs one, such as hub or mirror.example:5000".into())
        }
    }
}

/// A base URL without secrets.
pub(super) fn endpoint(text: &str) -> Result<Url, String> {
    let form = "write a URL such as https://registry.example or http://registry.example:5000/base";
    let url = Url::parse(text).map_err(|error| format!("{form} ({error})"))?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(form.to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("a URL here holds no user and no password; use username and password or password_file".to_owned());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("a URL here has no query and no fragment".to_owned());
    }
    Ok(url)
}

/// A URL, or nothing where the text is empty.
pub(super) fn collector(text: &str) -> Result<Option<Url>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let form = "write a URL such as http://127.0.0.1:4318, without user, query or fragment, or leave it empty";
    endpoint(text).map(Some).map_err(|_| form.to_owned())
}

/// A wait that has to end, but not at once.
pub(super) fn timeout(text: &str) -> Result<Duration, String> {
    match parse_duration(text) {
        Ok(Duration::ZERO) => Err("it must be longer than zero".to_owned()),
        other => other.map_err(|error| error.to_string()),
    }
}

pub(super) fn connections(text: &str) -> Result<usize, String> {
    count(text, MAX_CONNECTIONS)
}

/// Downloads at once.
pub(super) fn fills(text: &str) -> Result<usize, String> {
    count(text, MAX_FILLS)
}

/// Connections of one download.
pub(super) fn lanes(text: &str) -> Result<usize, String> {
    count(text, MAX_LANES_PER_BLOB)
}

/// Requests in a minute; zero is no limit.
pub(super) fn requests(text: &str) -> Result<Option<NonZeroU32>, String> {
    match text.parse() {
        Ok(count) if count <= MAX_REQUESTS => Ok(NonZeroU32::new(count)),
        _ => Err(format!("write a number from 1 to {MAX_REQUESTS}, or 0 for no limit")),
    }
}

/// Repositories.
pub(super) fn pattern(text: &str) -> Result<Pattern, String> {
    text.parse().map_err(|error| format!("{error}, such as \"library/*\""))
}

/// Tags.
pub(super) fn tag_pattern(text: &str) -> Result<TagPattern, String> {
    text.parse().map_err(|error| format!("{error}, such as \"v*\" or \"library/*:latest\""))
}

/// A proxy's URL without secrets.
pub(super) fn proxy(text: &str) -> Result<Url, String> {
    let form =
        "write a URL such as http://proxy.example:3128 or socks5://proxy.example:1080, or none, or leave it empty";
    let url = Url::parse(text).map_err(|error| format!("{form} ({error})"))?;
    let is_plain = url.username().is_empty() && url.password().is_none() && url.query().is_none();
    let is_known = matches!(url.scheme(), "http" | "https" | "socks5" | "socks5h");
    if is_known && is_plain && url.has_host() { Ok(url) } else { Err(form.to_owned()) }
}

fn count(text: &str, max: usize) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if (1..=max).contains(&count) => Ok(count),
        _ => Err(format!("write a number from 1 to {max}")),
    }
}

pub(super) fn path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() || text.contains('\0') { Err("write a path".to_owned()) } else { Ok(PathBuf::from(text)) }
}

pub(super) fn service_name(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > MAX_SERVICE_NAME_CHARS || text.chars().any(char::is_control) {
        return Err(format!("write a name of 1 to {MAX_SERVICE_NAME_CHARS} characters"));
    }
    Ok(text.to_owned())
}

/// A filter of log events.
pub(super) fn log_level(text: &str) -> Result<String, String> {
    telemetry::parse_level(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

/// The whole of a small file.
#[expect(clippy::disallowed_methods, reason = "passwords and certificates are files of the configuration")]
pub(super) fn file(path: &Path, max_bytes: u64) -> Result<Vec<u8>, String> {
    let file = File::open(path).map_err(|error| format!("cannot read the file: {error}"))?;
    let mut bytes = Vec::new();
    file.take(max_bytes + 1).read_to_end(&mut bytes).map_err(|error| format!("cannot read the file: {error}"))?;
    if bytes.len() as u64 > max_bytes {
        return Err(format!("the file is larger than {max_bytes} bytes"));
    }
    Ok(bytes)
}

/// A secret in a file of its own, without the end of its line.
pub(super) fn secret_file(path: &Path, max_bytes: u64) -> Result<Secret, String> {
    let text = String::from_utf8(file(path, max_bytes)?).map_err(|_| "the file is not UTF-8 text".to_owned())?;
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err("the file is empty".to_owned()),
        secret => Ok(Secret::from(secret.to_owned())),
    }
}
