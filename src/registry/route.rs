//! Method and path to a [`Route`] (OCI distribution-spec, endpoint table). Pure: no routing table, no headers, no query.

use std::borrow::Cow;
use std::fmt;

use http::Method;
use percent_encoding::percent_decode_str;

use crate::metrics::Kind;
use crate::oci::{Digest, InvalidDigest, InvalidName, InvalidTag, Reference, Registry, RepositoryName};

/// Longest path that is read, in bytes as sent.
const MAX_PATH_BYTES: usize = 4096;

/// One request of the pull side of the distribution API.
///
/// Printing it gives the path that parses to it again, so a link made of it stays on the path that the client used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Route {
    /// The component before `/v2/`, unresolved: a registry, an alias, or something unknown.
    pub(super) base: Option<String>,
    /// What is asked for.
    pub(super) endpoint: Endpoint,
}

/// An endpoint with its parameters; `name` is as in the path, so it may begin with a registry or alias.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    /// `GET /v2/`.
    Ping,
    /// `GET /v2/<name>/manifests/<reference>`.
    Manifest {
        /// The repository as written.
        name: RepositoryName,
        /// The tag or digest.
        reference: Reference,
    },
    /// `GET /v2/<name>/blobs/<digest>`.
    Blob {
        /// The repository as written.
        name: RepositoryName,
        /// The content asked for.
        digest: Digest,
    },
    /// `GET /v2/<name>/tags/list`.
    Tags {
        /// The repository as written.
        name: RepositoryName,
    },
    /// `GET /v2/<name>/referrers/<digest>`.
    Referrers {
        /// The repository as written.
        name: RepositoryName,
        /// The manifest referred to.
        digest: Digest,
    },
}

/// Why a method and path are no [`Route`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Rejection {
    /// The path is none of the distribution API's pull side.
    #[error("no such endpoint: this is a registry's pull API under `/v2/`")]
    NotFound,
    /// `_catalog`, which would list what others pulled.
    #[error("the catalog is not served; ask the registry itself")]
    Catalog,
    /// A push, or another method than `GET` and `HEAD`.
    #[error("this is a read-only cache: push to the registry itself, and list this one for `pull` and `resolve` only")]
    Method,
    /// The path cannot be decoded to a plain one.
    #[error("the path holds an empty or dotted segment, a bad percent-encoding, or is too long")]
    Path,
    /// The repository is outside the grammar.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// The reference has no colon and is no tag.
    #[error(transparent)]
    Tag(#[from] InvalidTag),
    /// What stands in a digest's place is none.
    #[error(transparent)]
    Digest(#[from] InvalidDigest),
}

impl Route {
    /// Reads the path as it came, still percent-encoded, without its query.
    ///
    /// Pushes to any path of the API are [`Rejection::Method`], whatever else is wrong with them.
    pub(super) fn parse(method: &Method, raw_path: &str) -> Result<Self, Rejection> {
        let path = decode(raw_path)?;
        let segments: Vec<&str> = path.strip_prefix('/').ok_or(Rejection::NotFound)?.split('/').collect();
        let (base, segments) = match *segments.as_slice() {
            ["v2", ref rest @ ..] => (None, rest),
            [base, "v2", ref rest @ ..] if can_name_registry(base) => (Some(base.to_owned()), rest),
            _ => return Err(Rejection::NotFound),
        };
        if !matches!(*method, Method::GET | Method::HEAD) {
            return Err(Rejection::Method);
        }
        Ok(Self { base, endpoint: Endpoint::parse(segments)? })
    }

    /// The repository as written in the path.
    pub(super) fn name(&self) -> Option<&RepositoryName> {
        match &self.endpoint {
            Endpoint::Ping => None,
            Endpoint::Manifest { name, .. }
            | Endpoint::Blob { name, .. }
            | Endpoint::Tags { name }
            | Endpoint::Referrers { name, .. } => Some(name),
        }
    }

    /// What it counts as in the metrics.
    pub(super) fn kind(&self) -> Kind {
        match &self.endpoint {
            Endpoint::Ping => Kind::Ping,
            Endpoint::Manifest { .. } => Kind::Manifest,
            Endpoint::Blob { .. } => Kind::Blob,
            Endpoint::Tags { .. } => Kind::Tags,
            Endpoint::Referrers { .. } => Kind::Referrers,
        }
    }
}

impl Endpoint {
    /// From the right, because a repository may have components such as `manifests` or `blobs`.
    fn parse(segments: &[&str]) -> Result<Self, Rejection> {
        let (name, resource) = match *segments {
            [] | [""] => return Ok(Self::Ping),
            ["_catalog"] => return Err(Rejection::Catalog),
            [ref name @ .., kind, last] => (name, (kind, last)),
            [_] => return Err(Rejection::NotFound),
        };
        let name = || name.join("/").parse::<RepositoryName>();
        match resource {
            // Trailing slashes and upload sessions, which a GET cannot have here.
            (_, "") | ("blobs", "uploads") => Err(Rejection::NotFound),
            ("manifests", reference) => Ok(Self::Manifest { name: name()?, reference: parse_reference(reference)? }),
            ("blobs", digest) => Ok(Self::Blob { name: name()?, digest: digest.parse()? }),
            ("tags", "list") => Ok(Self::Tags { name: name()? }),
            ("referrers", digest) => Ok(Self::Referrers { name: name()?, digest: digest.parse()? }),
            _ => Err(Rejection::NotFound),
        }
    }
}

fn parse_reference(text: &str) -> Result<Reference, Rejection> {
    if text.contains(':') { Ok(Reference::Digest(text.parse()?)) } else { Ok(Reference::Tag(text.parse()?)) }
}

/// Whether this can name a registry: its host, or an alias, which is one component of a repository name.
pub(super) fn can_name_registry(text: &str) -> bool {
    text != "v2" && !text.contains('/') && (text.parse::<Registry>().is_ok() || text.parse::<RepositoryName>().is_ok())
}

/// Decodes once; nothing that this makes can turn into another path by being decoded or joined again.
fn decode(raw_path: &str) -> Result<Cow<'_, str>, Rejection> {
    if raw_path.len() > MAX_PATH_BYTES {
        return Err(Rejection::Path);
    }
    if is_plain(raw_path.as_bytes()) {
        return Ok(Cow::Borrowed(raw_path));
    }
    if has_broken_escape(raw_path) {
        return Err(Rejection::Path);
    }
    let separators = raw_path.matches('/').count();
    let path = percent_decode_str(raw_path).decode_utf8().map_err(|_| Rejection::Path)?;
    let smuggles = path.matches('/').count() != separators
        || path.contains("//")
        || path.contains(['\\', '%'])
        || path.chars().any(char::is_control)
        || path.split('/').any(|segment| matches!(segment, "." | ".."));
    if smuggles { Err(Rejection::Path) } else { Ok(path) }
}

/// Whether a path has nothing to decode and nothing to refuse, which is so for all that engines send: one look at each
/// byte instead of one for each thing that can be wrong.
fn is_plain(path: &[u8]) -> bool {
    let mut before = 0;
    path.iter().all(|&byte| {
        let is_plain = match byte {
            b'/' | b'.' => before != b'/',
            _ => byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b':'),
        };
        before = byte;
        is_plain
    })
}

fn has_broken_escape(raw_path: &str) -> bool {
    raw_path.split('%').skip(1).any(|rest| {
        let digits = rest.as_bytes().get(..2);
        digits.is_none_or(|digits| !digits.iter().all(u8::is_ascii_hexdigit))
    })
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(base) = &self.base {
            write!(f, "/{base}")?;
        }
        match &self.endpoint {
            Endpoint::Ping => f.write_str("/v2/"),
            Endpoint::Manifest { name, reference } => write!(f, "/v2/{name}/manifests/{reference}"),
            Endpoint::Blob { name, digest } => write!(f, "/v2/{name}/blobs/{digest}"),
            Endpoint::Tags { name } => write!(f, "/v2/{name}/tags/list"),
            Endpoint::Referrers { name, digest } => write!(f, "/v2/{name}/referrers/{digest}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn get(path: &str) -> Result<Route, Rejection> {
        Route::parse(&Method::GET, path)
    }

    #[test]
    fn reads_every_endpoint_from_the_right() {
        let encoded = D.replace(':', "%3A");
        for (path, base, kind, name) in [
            ("/v2", None, Kind::Ping, None),
            ("/v2/", None, Kind::Ping, None),
            ("/quay.io/v2/", Some("quay.io"), Kind::Ping, None),
            ("/v2/library/alpine/manifests/latest", None, Kind::Manifest, Some("library/alpine")),
            ("/v2/a/manifests/b/manifests/latest", None, Kind::Manifest, Some("a/manifests/b")),
            ("/v2/a/blobs/uploads/manifests/latest", None, Kind::Manifest, Some("a/blobs/uploads")),
            ("/v2/v2/a/manifests/latest", None, Kind::Manifest, Some("v2/a")),
            ("/reg.example:5000/v2/a/tags/list", Some("reg.example:5000"), Kind::Tags, Some("a")),
            ("/hub/v2/v2/manifests/v2", Some("hub"), Kind::Manifest, Some("v2")),
            (&format!("/v2/a/manifests/{D}"), None, Kind::Manifest, Some("a")),
            (&format!("/v2/a/blobs/{D}"), None, Kind::Blob, Some("a")),
            (&format!("/v2/a/blobs/{encoded}"), None, Kind::Blob, Some("a")),
            (&format!("/v2/a/referrers/{D}"), None, Kind::Referrers, Some("a")),
            ("/v2/a/tags/tags/list", None, Kind::Tags, Some("a/tags")),
            ("/v2/%61/tags/list", None, Kind::Tags, Some("a")),
        ] {
            let route = get(path).unwrap_or_else(|error| panic!("{path}: {error}"));
            assert_eq!(route.base.as_deref(), base, "{path}");
            assert_eq!(route.kind(), kind, "{path}");
            assert_eq!(route.name().map(RepositoryName::as_str), name, "{path}");
            assert_eq!(get(&route.to_string()), Ok(route), "{path}");
        }
    }

    #[test]
    fn refuses_with_the_precise_error() {
        let long_name = format!("/v2/{}/manifests/latest", "a".repeat(256));
        let long_tag = format!("/v2/a/manifests/{}", "a".repeat(129));
        for (path, expected) in [
            ("", Rejection::NotFound),
            ("*", Rejection::NotFound),
            ("/", Rejection::NotFound),
            ("/favicon.ico", Rejection::NotFound),
            ("/v1/search", Rejection::NotFound),
            ("/extensions/v2/a/signatures/x", Rejection::NotFound),
            ("/v2/_catalog", Rejection::Catalog),
            ("/hub/v2/_catalog", Rejection::Catalog),
            ("/v2/a", Rejection::NotFound),
            ("/v2/a/tags/other", Rejection::NotFound),
            ("/v2/a/tags/list/", Rejection::NotFound),
            ("/v2/a/manifests/latest/", Rejection::NotFound),
            ("/v2/a/blobs/uploads", Rejection::NotFound),
            ("/v2/a/blobs/uploads/", Rejection::NotFound),
            ("/v2/a/blobs/uploads/some-session", Rejection::NotFound),
            ("/v2/UPPER/manifests/latest", Rejection::Name(InvalidName::Repository)),
            ("/v2/manifests/latest", Rejection::Name(InvalidName::Repository)),
            (&long_name, Rejection::Name(InvalidName::Repository)),
            (&long_tag, Rejection::Tag(InvalidTag)),
            ("/v2/a/manifests/-x", Rejection::Tag(InvalidTag)),
            ("/v2/a/manifests/sha256:baddigeststring", Rejection::Digest(InvalidDigest)),
            ("/v2/a/blobs/latest", Rejection::Digest(InvalidDigest)),
            ("/v2/a/referrers/notadigest", Rejection::Digest(InvalidDigest)),
            ("/v2/../etc/passwd", Rejection::Path),
            ("/v2/%2e%2e/x/tags/list", Rejection::Path),
            ("/v2/%252e%252e/x/tags/list", Rejection::Path),
            ("/v2/a%2fb/manifests/x", Rejection::Path),
            ("/v2/a%2Fb/manifests/x", Rejection::Path),
            ("/v2/a%5cb/manifests/x", Rejection::Path),
            ("/v2/a\\b/manifests/x", Rejection::Path),
            ("/v2/a%00/manifests/x", Rejection::Path),
            ("/v2/a%0d%0a/manifests/x", Rejection::Path),
            ("/v2/a%ff/manifests/x", Rejection::Path),
            ("/v2/a%c0%ae/manifests/x", Rejection::Path),
            ("/v2/a%2/manifests/x", Rejection::Path),
            ("/v2/a/manifests/x%", Rejection::Path),
            ("/v2//a/manifests/x", Rejection::Path),
            ("//v2/a/manifests/x", Rejection::Path),
            (&format!("/v2/{}", "a/".repeat(MAX_PATH_BYTES)), Rejection::Path),
        ] {
            assert_eq!(get(path), Err(expected), "{path}");
        }
    }

    #[test]
    fn pushes_are_refused_on_every_path_of_the_api() {
        for (method, path) in [
            (Method::POST, "/v2/a/blobs/uploads/"),
            (Method::PATCH, "/v2/a/blobs/uploads/session"),
            (Method::PUT, "/v2/a/manifests/latest"),
            (Method::DELETE, "/v2/a/manifests/latest"),
            (Method::PUT, "/hub/v2/a/manifests/latest"),
            (Method::POST, "/v2/"),
            (Method::PUT, "/v2/UPPER/manifests/latest"),
            (Method::OPTIONS, "/v2/a/tags/list"),
        ] {
            assert_eq!(Route::parse(&method, path), Err(Rejection::Method), "{method} {path}");
        }
        assert_eq!(Route::parse(&Method::POST, "/token"), Err(Rejection::NotFound));
        assert!(Route::parse(&Method::HEAD, "/v2/a/manifests/latest").is_ok());
    }

    proptest! {
        #[test]
        fn whatever_is_read_prints_to_itself(path in "(/[a-z0-9.:%-]{0,8}){0,2}/v2(/[a-zA-Z0-9._:%2fF-]{0,8}|/manifests|/blobs|/tags/list){0,5}/?") {
            if let Ok(route) = get(&path) {
                prop_assert_eq!(get(&route.to_string()), Ok(route));
            }
        }

        #[test]
        fn plain_paths_are_what_decoding_makes_of_them(path in "/[/a-zA-Z0-9._:%-]{0,12}") {
            if is_plain(path.as_bytes()) {
                prop_assert!(!has_broken_escape(&path) && !path.contains("//") && !path.contains('%'));
                prop_assert!(path.split('/').all(|segment| !matches!(segment, "." | "..")));
            }
        }

        #[test]
        fn no_text_panics(path in "\\PC{0,60}") {
            let _ = get(&path);
            let _ = get(&format!("/v2/{path}/manifests/{path}"));
        }
    }
}
