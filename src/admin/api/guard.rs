//! Who may ask.
//!
//! With a token, whoever sends it. Without one, whoever reaches the loopback address: then the name asked for must be
//! an address of this machine, so that no web page can point its own name here (DNS rebinding). Never another site's
//! page: its requests carry an `Origin` or `Sec-Fetch-Site` that gives them away, and what changes something has to be
//! sent as JSON, which a page of another site may not do unasked.

use std::net::IpAddr;

use http::HeaderMap;
use http::HeaderName;
use http::Method;
use http::header;
use http::uri::Authority;
use subtle::ConstantTimeEq as _;

use super::failure::Failure;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// The rule of one admin port.
#[derive(Clone)]
pub(in crate::admin) enum Guard {
    /// Only with this token.
    Token(String),
    /// Everybody on this machine.
    Loopback,
    /// Nobody: other machines reach the port, and no token tells them apart.
    Closed,
}

impl Guard {
    pub(in crate::admin) fn new(token: Option<String>, is_loopback: bool) -> Self {
        match token {
            Some(token) => Self::Token(token),
            None if is_loopback => Self::Loopback,
            None => Self::Closed,
        }
    }

    /// Lets a request for the API pass, or says why not.
    pub(in crate::admin) fn admit(&self, method: &Method, headers: &HeaderMap) -> Result<(), Failure> {
        let host = text_of(headers, &header::HOST).unwrap_or_default();
        match self {
            Self::Token(token) => check_token(token, headers)?,
            Self::Loopback if is_own_name(host) => {}
            Self::Loopback => {
                return Err(Failure::forbidden(
                    "ask for this port as localhost or by its address; other names need admin.token",
                ));
            }
            Self::Closed => {
                return Err(Failure::forbidden(
                    "this port can be reached from other machines: set admin.token or admin.token_file to use it",
                ));
            }
        }
        check_site(host, headers)?;
        if matches!(*method, Method::GET | Method::HEAD) || is_json(headers) {
            return Ok(());
        }
        Err(Failure::not_json())
    }
}

fn check_token(token: &str, headers: &HeaderMap) -> Result<(), Failure> {
    let ask = "send the token of admin.token: Authorization: Bearer TOKEN (--token-file, or FOREBAY_ADMIN_TOKEN)";
    let given = text_of(headers, &header::AUTHORIZATION).ok_or_else(|| Failure::unauthorized(ask))?;
    let (scheme, given) = given.split_once(' ').unwrap_or_default();
    if scheme.eq_ignore_ascii_case("bearer") && bool::from(given.trim().as_bytes().ct_eq(token.as_bytes())) {
        return Ok(());
    }
    Err(Failure::unauthorized("this is not the token of admin.token"))
}

/// Refuses what a page of another site sends.
fn check_site(host: &str, headers: &HeaderMap) -> Result<(), Failure> {
    let site = text_of(headers, &SEC_FETCH_SITE);
    let is_own_site = site.is_none_or(|site| matches!(site, "same-origin" | "none"));
    let origin = headers.get(header::ORIGIN).map(|origin| origin.to_str().unwrap_or_default());
    let is_own_origin = origin.is_none_or(|origin| {
        let authority = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        authority.is_some_and(|authority| authority.eq_ignore_ascii_case(host))
    });
    if is_own_site && is_own_origin {
        return Ok(());
    }
    Err(Failure::forbidden("pages of other sites may not use this API"))
}

/// An address, or a name that always means this machine.
fn is_own_name(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let name = authority.host();
    let address = name.trim_start_matches('[').trim_end_matches(']');
    let name = name.to_ascii_lowercase();
    address.parse::<IpAddr>().is_ok() || name == "localhost" || name.ends_with(".localhost")
}

fn is_json(headers: &HeaderMap) -> bool {
    let content_type = text_of(headers, &header::CONTENT_TYPE).unwrap_or_default();
    content_type.split(';').next().is_some_and(|essence| essence.trim().eq_ignore_ascii_case("application/json"))
}

fn text_of<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const JSON: (&str, &str) = ("content-type", "application/json");

    fn ask(guard: &Guard, method: &Method, headers: &[(&str, &str)]) -> u16 {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        guard.admit(method, &map).err().map_or(200, |failure| failure.status.as_u16())
    }

    #[test]
    fn without_a_token_this_machine_may_ask() {
        let open = Guard::new(None, true);
        for host in ["localhost:5001", "127.0.0.1:5001", "[::1]:5001", "127.0.0.1", "a.localhost:1", "LOCALHOST"] {
            assert_eq!(ask(&open, &Method::GET, &[("host", host)]), 200, "{host}");
        }
        for host in ["evil.example", "localhost.evil.example:5001", "", "127.0.0.1.evil.example", "a b"] {
            assert_eq!(ask(&open, &Method::GET, &[("host", host)]), 403, "{host}");
        }
        assert_eq!(ask(&Guard::new(None, false), &Method::GET, &[("host", "127.0.0.1")]), 403);
    }

    #[test]
    fn a_token_is_asked_for_everywhere() {
        for is_loopback in [true, false] {
            let guard = Guard::new(Some("s3cret".to_owned()), is_loopback);
            let asked = |value| ask(&guard, &Method::GET, &[("host", "cache.example"), ("authorization", value)]);
            assert_eq!(asked("Bearer s3cret"), 200);
            assert_eq!(asked("bearer s3cret"), 200);
            for wrong in ["Bearer s3cre", "Bearer s3crett", "Bearer ", "Basic s3cret", "s3cret", ""] {
                assert_eq!(asked(wrong), 401, "{wrong}");
            }
            assert_eq!(ask(&guard, &Method::GET, &[("host", "127.0.0.1")]), 401);
        }
    }

    #[test]
    fn other_sites_may_not() {
        let open = Guard::new(None, true);
        let host = ("host", "localhost:5001");
        let post = |extra: &[(&str, &str)]| ask(&open, &Method::POST, &[&[host], extra].concat());
        assert_eq!(post(&[JSON]), 200);
        assert_eq!(post(&[("content-type", "application/json; charset=utf-8")]), 200);
        assert_eq!(post(&[]), 415);
        assert_eq!(post(&[("content-type", "text/plain")]), 415);
        assert_eq!(post(&[JSON, ("origin", "http://localhost:5001")]), 200);
        for origin in ["http://evil.example", "null", "http://localhost:5002", "http://localhost:5001.evil.example"] {
            assert_eq!(post(&[JSON, ("origin", origin)]), 403, "{origin}");
            assert_eq!(ask(&open, &Method::GET, &[host, ("origin", origin)]), 403, "{origin}");
        }
        for site in ["cross-site", "same-site"] {
            assert_eq!(ask(&open, &Method::GET, &[host, ("sec-fetch-site", site)]), 403, "{site}");
        }
        assert_eq!(ask(&open, &Method::GET, &[host, ("sec-fetch-site", "same-origin")]), 200);
        let guarded = Guard::new(Some("t".to_owned()), true);
        let token = ("authorization", "Bearer t");
        assert_eq!(ask(&guarded, &Method::POST, &[host, token, JSON, ("origin", "http://evil.example")]), 403);
    }
}
