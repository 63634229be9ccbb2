//! Who may be asked for a token, and who may see the credentials.

use url::Host;
use url::Url;

use crate::upstream::dial;

/// Registry host and the foreign host of its token service.
const BUILT_IN: [(&str, &str); 1] = [("nvcr.io", "authn.nvidia.com")];

/// How far a token realm is trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// The registry's own site, or named by the operator: it may see the credentials.
    Own,
    /// Somebody else: it may be asked for an anonymous token at most.
    Foreign,
}

/// Judges a realm that `asked` named. `Err` says why it is not asked at all.
pub(super) fn judge(asked: &Url, realm: &Url, extra: &[String]) -> Result<Trust, &'static str> {
    if !realm.username().is_empty() || realm.password().is_some() {
        return Err("it holds a user or password");
    }
    let (Some(asked_host), Some(realm_host)) = (asked.host(), realm.host()) else {
        return Err("it has no host");
    };
    match realm.scheme() {
        "https" => {}
        "http" if asked.scheme() == "http" => {}
        _ => return Err("only https is asked for tokens"),
    }
    if asked_host == realm_host || is_named(realm, extra) || is_built_in(asked, realm) {
        return Ok(Trust::Own);
    }
    match (asked_host, realm_host) {
        (Host::Domain(asked), Host::Domain(realm)) if share_domain(asked, realm) => return Ok(Trust::Own),
        _ => {}
    }
    if dial::is_private_literal(realm) {
        return Err("it is a private address");
    }
    if realm.scheme() != "https" { Err("only https is asked for tokens elsewhere") } else { Ok(Trust::Foreign) }
}

/// `host`, or `host:port`.
fn is_named(realm: &Url, extra: &[String]) -> bool {
    let host = realm.host_str().unwrap_or_default();
    let with_port = realm.port_or_known_default().map(|port| format!("{host}:{port}")).unwrap_or_default();
    extra.iter().any(|entry| entry.eq_ignore_ascii_case(host) || entry.eq_ignore_ascii_case(&with_port))
}

fn is_built_in(asked: &Url, realm: &Url) -> bool {
    let hosts = (asked.host_str().unwrap_or_default(), realm.host_str().unwrap_or_default());
    realm.port().is_none() && BUILT_IN.contains(&hosts)
}

/// The same registrable domain by the public suffix list. Single labels have none.
fn share_domain(a: &str, b: &str) -> bool {
    matches!((psl::domain_str(a), psl::domain_str(b)), (Some(a), Some(b)) if a == b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policy_table() {
        let extra = ["sso.other.example".to_owned(), "10.0.0.9:8443".to_owned()];
        for (asked, realm, expected) in [
            ("https://registry-1.docker.io", "https://auth.docker.io/token", Ok(Trust::Own)),
            ("https://ghcr.io", "https://ghcr.io/token", Ok(Trust::Own)),
            ("https://ghcr.io", "https://ghcr.io:8443/token", Ok(Trust::Own)),
            ("https://nvcr.io", "https://authn.nvidia.com/token", Ok(Trust::Own)),
            ("https://nvcr.io", "https://authn.nvidia.com:8443/token", Ok(Trust::Foreign)),
            ("https://evil.example", "https://authn.nvidia.com/token", Ok(Trust::Foreign)),
            ("https://r.example", "https://sso.other.example:1/t", Ok(Trust::Own)),
            ("https://r.example", "https://10.0.0.9:8443/t", Ok(Trust::Own)),
            ("https://r.example", "https://10.0.0.9/t", Err(())),
            ("https://r.example", "https://evil.test/t", Ok(Trust::Foreign)),
            ("https://a.github.io", "https://b.github.io/t", Ok(Trust::Foreign)),
            ("https://a.co.uk", "https://b.co.uk/t", Ok(Trust::Foreign)),
            ("https://registry", "https://auth/t", Ok(Trust::Foreign)),
            ("https://r.example", "http://r.example/t", Err(())),
            ("https://r.example", "http://auth.r.example/t", Err(())),
            ("https://r.example", "https://me@r.example/t", Err(())),
            ("https://r.example", "https://169.254.169.254/t", Err(())),
            ("https://r.example", "https://[::1]/t", Err(())),
            ("https://8.8.8.8", "https://8.8.4.4/t", Ok(Trust::Foreign)),
            ("http://127.0.0.1:5000", "http://127.0.0.1:5001/t", Ok(Trust::Own)),
            ("http://127.0.0.1:5000", "http://127.0.0.2:5001/t", Err(())),
            ("http://127.0.0.1:5000", "http://localhost:5001/t", Err(())),
            ("http://r.example", "http://auth.r.example/t", Ok(Trust::Own)),
            ("http://r.example", "http://evil.test/t", Err(())),
            ("https://r.example", "data:text/plain,x", Err(())),
        ] {
            let judged = judge(&asked.parse().unwrap(), &realm.parse().unwrap(), &extra);
            assert_eq!(judged.map_err(|_| ()), expected, "{asked} {realm}");
        }
    }
}
