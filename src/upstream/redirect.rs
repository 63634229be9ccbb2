//! Where a redirect may lead.

use http::HeaderMap;
use http::StatusCode;
use http::header::LOCATION;
use url::Url;

use super::dial;
use super::error::Error;

/// Most redirects of one request.
pub(super) const MAX_REDIRECTS: usize = 5;

/// What the endpoint that was asked first allows its redirects.
#[derive(Clone, Copy, Debug)]
pub(super) struct Policy {
    /// The endpoint itself lives at a private address.
    pub(super) private_addresses: bool,
}

/// Scheme, host and port: what secrets are bound to.
pub(super) fn same_origin(a: &Url, b: &Url) -> bool {
    a.scheme() == b.scheme() && a.host() == b.host() && a.port_or_known_default() == b.port_or_known_default()
}

/// The part of a URL that may be shown: signatures hide in paths and queries.
pub(super) fn origin_text(url: &Url) -> String {
    url.origin().ascii_serialization()
}

/// The next URL, or `None` when the answer is no redirect.
pub(super) fn next(from: &Url, status: StatusCode, headers: &HeaderMap, policy: Policy) -> Result<Option<Url>, Error> {
    if !matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let location = headers.get(LOCATION).and_then(|value| value.to_str().ok());
    let joined = location.and_then(|text| from.join(text).ok());
    let mut to = joined.ok_or_else(|| Error::protocol("the registry redirects without a usable Location"))?;
    to.set_fragment(None);
    let refuse = |why: &str| Err(Error::protocol(format!("the registry redirects to {}: {why}", origin_text(&to))));
    match to.scheme() {
        "https" => {}
        // Each hop for itself: what was once under TLS does not leave it.
        "http" if from.scheme() == "http" => {}
        _ => return refuse("only https is followed"),
    }
    if !to.username().is_empty() || to.password().is_some() {
        return refuse("user and password in a redirect are not followed");
    }
    if to.host() != from.host() && !policy.private_addresses && dial::is_private_literal(&to) {
        return refuse("private addresses are not followed from a public registry");
    }
    Ok(Some(to))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PUBLIC: Policy = Policy { private_addresses: false };
    const LOCAL: Policy = Policy { private_addresses: true };

    fn follow(from: &str, location: &'static str, policy: Policy) -> Result<Option<Url>, Error> {
        let mut headers = HeaderMap::new();
        headers.insert(LOCATION, http::HeaderValue::from_static(location));
        next(&from.parse().unwrap(), StatusCode::TEMPORARY_REDIRECT, &headers, policy)
    }

    #[test]
    fn policy_table() {
        let from = "https://r.example/v2/a/blobs/x";
        for (location, policy, allowed) in [
            ("https://cdn.example/x?sig=topsecret", PUBLIC, true),
            ("/elsewhere", PUBLIC, true),
            ("//cdn.example/x", PUBLIC, true),
            ("http://cdn.example/x?sig=topsecret", PUBLIC, false),
            ("http://cdn.example/x?topsecret", LOCAL, false),
            ("ftp://cdn.example/x?sig=topsecret", LOCAL, false),
            ("file:///etc/passwd", LOCAL, false),
            ("https://user:topsecret@cdn.example/", PUBLIC, false),
            ("https://169.254.169.254/?topsecret", PUBLIC, false),
            ("https://[::ffff:10.0.0.1]/?topsecret", PUBLIC, false),
            ("https://10.0.0.1/", LOCAL, true),
            ("https://", PUBLIC, false),
        ] {
            let followed = follow(from, location, policy);
            assert_eq!(followed.is_ok(), allowed, "{location}");
            assert!(!format!("{:?}", followed.err()).contains("topsecret"), "{location}");
        }
        assert!(follow("https://10.0.0.1/", "/x", PUBLIC).is_ok(), "the same host is not judged again");
        assert!(follow("http://r.example/", "http://cdn.example/x", PUBLIC).is_ok());
        assert!(follow("http://r.example/", "https://cdn.example/x", PUBLIC).is_ok());
    }

    #[test]
    fn only_redirects_with_a_location() {
        let from: Url = "https://r.example/".parse().unwrap();
        assert!(next(&from, StatusCode::FOUND, &HeaderMap::new(), PUBLIC).is_err());
        assert_eq!(next(&from, StatusCode::NOT_MODIFIED, &HeaderMap::new(), PUBLIC), Ok(None));
        assert_eq!(next(&from, StatusCode::OK, &HeaderMap::new(), PUBLIC), Ok(None));
    }

    #[test]
    fn origins() {
        let same = |a: &str, b: &str| same_origin(&a.parse().unwrap(), &b.parse().unwrap());
        assert!(same("https://a.example/x", "https://a.example:443/y?z"));
        assert!(!same("https://a.example/", "https://a.example:444/"));
        assert!(!same("https://a.example/", "http://a.example/"));
        assert!(!same("https://a.example/", "https://b.example/"));
    }
}
