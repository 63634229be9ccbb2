//! Which addresses may be dialled: a public registry cannot send Forebay into the private network.
//!
//! Redirects and token realms are named by registries. The check stands where names are resolved, so that a name
//! cannot answer differently between check and use; IP literals never get there and are judged by their URL.
//!
//! Through an HTTP proxy the proxy resolves names and this check sees none of them: it must be the one to keep
//! Forebay out of the private network.

use std::collections::HashMap;
use std::collections::HashSet;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use reqwest::dns::Addrs;
use reqwest::dns::Name;
use reqwest::dns::Resolve;
use reqwest::dns::Resolving;
use url::Host;
use url::Url;

use super::options::Proxy;

const PROXY_VARIABLES: [&str; 6] = ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];

/// The resolver of one registry's clients.
#[derive(Debug)]
pub(super) struct Guard {
    /// Hosts of the endpoints, and whether all addresses of the latest answer are private; `None` before the first.
    own: Mutex<HashMap<String, Option<bool>>>,
    /// Hosts the operator named for something else: token realms, proxies.
    named: HashSet<String>,
}

impl Guard {
    pub(super) fn new(endpoints: &[Url], token_realms: &[String], proxy: &Proxy) -> Self {
        let proxies = match proxy {
            Proxy::Environment => environment_proxies(),
            Proxy::None => Vec::new(),
            Proxy::Url(url) => url.host_str().map(str::to_ascii_lowercase).into_iter().collect(),
        };
        let realms = token_realms.iter().map(|realm| realm.split(':').next().unwrap_or_default().to_ascii_lowercase());
        let own = endpoints.iter().filter_map(|url| {
            let is_name = matches!(url.host(), Some(Host::Domain(_)));
            Some((url.host_str()?.to_owned(), (!is_name).then(|| is_private_literal(url))))
        });
        Self { own: Mutex::new(own.collect()), named: proxies.into_iter().chain(realms).collect() }
    }

    /// Every endpoint whose address is known lives at private ones only, so what they point to may as well.
    pub(super) fn private_addresses(&self) -> bool {
        let own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        let mut known = own.values().flatten().peekable();
        known.peek().is_some() && known.all(|is_private| *is_private)
    }

    /// Takes note of the addresses of an endpoint; whether the host is one.
    fn is_own(&self, host: &str, found: &[SocketAddr]) -> bool {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(is_private) = own.get_mut(host) else { return false };
        *is_private = Some(!found.is_empty() && found.iter().all(|address| !is_public(address.ip())));
        true
    }
}

fn environment_proxies() -> Vec<String> {
    #[expect(clippy::disallowed_methods, reason = "the variables that the HTTP client reads")]
    let texts = PROXY_VARIABLES.iter().filter_map(|name| std::env::var(name).ok());
    let host = |text: String| {
        let url = Url::parse(&text).ok().filter(Url::has_host).or_else(|| Url::parse(&format!("http://{text}")).ok());
        url?.host_str().map(str::to_owned)
    };
    texts.filter_map(host).collect()
}

/// [`Guard`] as reqwest takes it.
#[derive(Debug)]
pub(super) struct Resolver(pub(super) Arc<Guard>);

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let host = name.as_str().to_ascii_lowercase();
        let guard = self.0.clone();
        Box::pin(async move {
            let mut found: Vec<SocketAddr> = tokio::net::lookup_host((host.as_str(), 0)).await?.collect();
            let is_free = guard.is_own(&host, &found) || guard.named.contains(&host);
            if !is_free && !guard.private_addresses() {
                found.retain(|address| is_public(address.ip()));
                if found.is_empty() {
                    return Err("a public registry points to a name with a private address".into());
                }
            }
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

/// Whether the host is an IP literal outside the public network.
pub(super) fn is_private_literal(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => !is_public(address.into()),
        Some(Host::Ipv6(address)) => !is_public(address.into()),
        Some(Host::Domain(_)) | None => false,
    }
}

fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

fn is_public_v4(v4: Ipv4Addr) -> bool {
    let [a, b, ..] = v4.octets();
    let shared = a == 100 && (64..128).contains(&b);
    let benchmark = a == 198 && (b == 18 || b == 19);
    let special = v4.is_loopback() || v4.is_private() || v4.is_link_local() || v4.is_multicast();
    // From 240 on: reserved, and broadcast.
    a != 0 && a < 240 && !shared && !benchmark && !special
}

fn is_public_v6(v6: Ipv6Addr) -> bool {
    let segments = v6.segments();
    let embedded = || {
        let [.., high, low] = segments;
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Ipv4Addr::new(a, b, c, d)
    };
    match segments {
        // IPv4-mapped, IPv4-compatible (with `::` and `::1`) and NAT64 carry an IPv4 address at their end.
        [0, 0, 0, 0, 0, 0 | 0xffff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => is_public_v4(embedded()),
        // Local NAT64, 6to4, and site-local, which is deprecated and still routed inside sites.
        [0x64, 0xff9b, 1, ..] | [0x2002, ..] | [0xfec0..=0xfeff, ..] => false,
        _ => !v6.is_unicast_link_local() && !v6.is_unique_local() && !v6.is_multicast(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_table() {
        for text in ["8.8.8.8", "172.15.0.1", "100.128.0.1", "2606:4700::1", "::ffff:8.8.8.8", "64:ff9b::808:808"] {
            assert!(is_public(text.parse().unwrap()), "{text}");
        }
        for text in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.0.1",
            "169.254.169.254",
            "100.100.100.200",
            "0.0.0.0",
            "0.1.2.3",
            "224.0.0.1",
            "::1",
            "::",
            "fe80::1",
            "fd00:ec2::254",
            "ff02::1",
            "::ffff:127.0.0.1",
            "64:ff9b::7f00:1",
            "198.18.0.1",
            "198.19.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "64:ff9b:1::808:808",
            "2002:7f00:1::",
            "fec0::1",
            "::ffff:198.18.0.1",
        ] {
            assert!(!is_public(text.parse().unwrap()), "{text}");
        }
    }

    #[tokio::test]
    async fn names_of_a_public_registry_stay_public() {
        let resolve = |guard: Guard| async { Resolver(Arc::new(guard)).resolve("localhost".parse().unwrap()).await };
        let url = |text: &str| [text.parse::<Url>().unwrap()];
        assert!(resolve(Guard::new(&url("https://r.example"), &[], &Proxy::None)).await.is_err());
        assert!(resolve(Guard::new(&url("https://r.example"), &["localhost:1".into()], &Proxy::None)).await.is_ok());
        assert!(resolve(Guard::new(&url("http://127.0.0.1:5000"), &[], &Proxy::None)).await.is_ok());
        assert!(resolve(Guard::new(&url("http://localhost:5000"), &[], &Proxy::None)).await.is_ok());
    }

    #[test]
    fn one_private_address_makes_no_private_registry() {
        let urls = |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect::<Vec<Url>>();
        let found = |list: &[&str]| list.iter().map(|ip| SocketAddr::new(ip.parse().unwrap(), 0)).collect::<Vec<_>>();
        assert!(!Guard::new(&urls(&["https://8.8.8.8", "https://10.0.0.1"]), &[], &Proxy::None).private_addresses());
        let guard = Guard::new(&urls(&["https://a.example", "https://b.example"]), &[], &Proxy::None);
        assert!(!guard.private_addresses(), "nothing is known yet");
        for (addresses, is_private) in
            [(["10.0.0.1", "10.0.0.2"], true), (["10.0.0.1", "8.8.8.8"], false), (["10.0.0.1", "fd00::1"], true)]
        {
            assert!(guard.is_own("a.example", &found(&addresses)));
            assert_eq!(guard.private_addresses(), is_private, "{addresses:?}");
        }
        assert!(guard.is_own("b.example", &found(&["8.8.8.8"])));
        assert!(!guard.private_addresses() && !guard.is_own("c.example", &found(&["8.8.8.8"])));
    }
}
