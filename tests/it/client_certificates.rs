//! Clients that are known by their certificates, over TLS, by HTTP/1.1 and HTTP/2.

use std::path::Path;
use std::sync::Arc;

use rcgen::BasicConstraints;
use rcgen::CertificateParams;
use rcgen::CertifiedIssuer;
use rcgen::DistinguishedName;
use rcgen::DnType;
use rcgen::IsCa;
use rcgen::KeyPair;
use reqwest::Client;
use reqwest::StatusCode;
use reqwest::Version;
use rustls::ClientConfig;
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::PrivateKeyDer;
use tempfile::TempDir;
use toml::Table;
use toml::Value;

use crate::clients::basic;
use crate::clients::rule;
use crate::clients::user;
use crate::support::content::sample;
use crate::support::proxy::Proxy;
use crate::support::registry::ScriptedRegistry;

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// The files of a proxy that asks for certificates of this authority.
fn tls(authority: &Authority, folder: &Path) -> Table {
    let key = KeyPair::generate().unwrap();
    let cert = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, authority).unwrap();
    let mut table = Table::new();
    for (name, text) in [
        ("cert", cert.pem()),
        ("key", key.serialize_pem()),
        ("client_ca", AsRef::<rcgen::Certificate>::as_ref(authority).pem()),
    ] {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        table.insert(name.to_owned(), Value::from(path.to_str().unwrap()));
    }
    table
}

/// An HTTP client with a certificate for this name; it speaks HTTP/2 where the proxy does.
fn client(authority: &Authority, name: &str, proxy: &Proxy, protocols: &[&[u8]]) -> Client {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let key = KeyPair::generate().unwrap();
    let cert = params.signed_by(&key, authority).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(AsRef::<rcgen::Certificate>::as_ref(authority).der().clone()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![cert.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
        .unwrap();
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    // A connection for each request, and so a resumed session.
    let builder = Client::builder().tls_backend_preconfigured(config).no_proxy().pool_max_idle_per_host(0);
    builder.resolve("localhost", proxy.address).build().unwrap()
}

async fn get(
    client: &Client,
    proxy: &Proxy,
    path: &str,
    authorization: Option<&str>,
) -> (StatusCode, Version, Vec<u8>) {
    let url = format!("https://localhost:{}{path}", proxy.address.port());
    let request = client.get(url);
    let request = authorization.iter().fold(request, |request, value| request.header("Authorization", *value));
    let response = request.send().await.unwrap();
    let (status, version) = (response.status(), response.version());
    (status, version, response.bytes().await.unwrap().to_vec())
}

#[tokio::test]
async fn a_certificate_says_who_asks() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(1, 100_000);
    let mine = format!("/v2/team/a/blobs/{}", upstream.blob("team/a", bytes.clone()));
    let other = format!("/v2/team/b/blobs/{}", upstream.blob("team/b", sample(2, 100)));
    let folder = TempDir::new().unwrap();
    let htpasswd = folder.path().join("htpasswd");
    std::fs::write(&htpasswd, user("ann", "p")).unwrap();
    let authority = authority();
    let proxy = Proxy::of(&upstream)
        .set("server", "tls", tls(&authority, folder.path()))
        .set("clients", "htpasswd", htpasswd.to_str().unwrap())
        .set("clients", "rule", vec![rule(&["node-*"], &[], &["team/a"]), rule(&["ann"], &[], &["team/b"])])
        .start()
        .await;
    for (protocols, version) in [(&[&b"h2"[..]][..], Version::HTTP_2), (&[b"http/1.1"], Version::HTTP_11)] {
        let node = client(&authority, "node-1", &proxy, protocols);
        // A resumed session has the certificate as well.
        for _ in 0..2 {
            let (status, spoken, body) = get(&node, &proxy, &mine, None).await;
            assert_eq!((status.as_u16(), spoken), (200, version));
            assert!(body == bytes);
        }
        assert_eq!(get(&node, &proxy, "/v2/", None).await.0, 200);
        assert_eq!(get(&node, &proxy, &other, None).await.0, 403);
        // What is shown in the request counts more than the connection.
        assert_eq!(get(&node, &proxy, &other, Some(&basic("ann", "p"))).await.0, 200);
        assert_eq!(get(&node, &proxy, &mine, Some(&basic("ann", "p"))).await.0, 403);
        assert_eq!(get(&node, &proxy, &mine, Some(&basic("ann", "q"))).await.0, 401);
        let nameless = client(&authority, "", &proxy, protocols);
        assert_eq!(get(&nameless, &proxy, &mine, None).await.0, 401);
        assert_eq!(get(&nameless, &proxy, &other, Some(&basic("ann", "p"))).await.0, 200);
    }
    proxy.log.wait_for(|event| event["message"] == "request" && event["client"] == "node-1").await;
}

#[tokio::test]
async fn certificates_alone_are_enough() {
    let upstream = ScriptedRegistry::start().await;
    let mine = format!("/v2/team/a/blobs/{}", upstream.blob("team/a", sample(3, 100)));
    let folder = TempDir::new().unwrap();
    let authority = authority();
    let setup = Proxy::of(&upstream).set("server", "tls", tls(&authority, folder.path()));
    let proxy = setup.set("clients", "anonymous", false).start().await;
    assert_eq!(get(&client(&authority, "anybody", &proxy, &[b"h2"]), &proxy, &mine, None).await.0, 200);
    let (status, _, body) = get(&client(&authority, "", &proxy, &[b"h2"]), &proxy, &mine, None).await;
    assert_eq!(status, 403);
    assert!(String::from_utf8_lossy(&body).contains("DENIED"));
}
