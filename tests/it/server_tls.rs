//! The registry port behind TLS: what clients get is what they get without, and certificates change while it runs.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use rcgen::CertifiedKey;
use rustls::ClientConfig;
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::support::PATIENCE;
use crate::support::REPOSITORY;
use crate::support::blob_path;
use crate::support::content::sample;
use crate::support::proxy::Proxy;
use crate::support::registry::ScriptedRegistry;
use crate::support::within;

/// Writes a new certificate and its key; the key last, as an operator does who copies two files.
fn write_certificate(directory: &Path) -> CertificateDer<'static> {
    let CertifiedKey { cert, signing_key } = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    std::fs::write(directory.join("server.pem"), cert.pem()).unwrap();
    std::fs::write(directory.join("server.key"), signing_key.serialize_pem()).unwrap();
    cert.der().clone()
}

/// One answer, head and body, by HTTP/1.1.
async fn get(address: SocketAddr, root: &CertificateDer<'static>, path: &str) -> std::io::Result<Vec<u8>> {
    within(PATIENCE, exchange(address, root, path)).await
}

async fn exchange(address: SocketAddr, root: &CertificateDer<'static>, path: &str) -> std::io::Result<Vec<u8>> {
    let mut roots = RootCertStore::empty();
    roots.add(root.clone()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(address).await?;
    let mut stream = TlsConnector::from(Arc::new(config)).connect("localhost".try_into().unwrap(), stream).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(answer)
}

#[tokio::test]
async fn blobs_arrive_encrypted_and_certificates_change() {
    let upstream = ScriptedRegistry::start().await;
    let content = sample(1, 3_000_000);
    let digest = upstream.blob(REPOSITORY, content.clone());
    let files = TempDir::new().unwrap();
    let old = write_certificate(files.path());
    let at = |name: &str| toml::Value::from(files.path().join(name).to_str().unwrap());
    let tls = toml::Table::from_iter([("cert".to_owned(), at("server.pem")), ("key".to_owned(), at("server.key"))]);
    let proxy = Proxy::of(&upstream).set("server", "tls", tls).start().await;
    // From the download, until it is from the store.
    let mut outcomes = Vec::new();
    while outcomes.last().is_none_or(|outcome: &String| !outcome.starts_with("hit")) {
        assert!(outcomes.len() < 10_000, "never a hit");
        let answer = get(proxy.address, &old, &blob_path(&digest)).await.unwrap();
        let start = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        let head = std::str::from_utf8(&answer[..start]).unwrap();
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        assert!(answer[start..] == content[..]);
        outcomes.push(head.split("cache-status: forebay; ").nth(1).expect("an outcome").to_owned());
    }
    assert!(outcomes[0].starts_with("fwd=miss; stored"), "{outcomes:?}");
    let new = write_certificate(files.path());
    proxy.log.wait_for(|event| event["message"] == "new certificates are in use").await;
    assert!(get(proxy.address, &old, "/v2/").await.is_err());
    assert!(get(proxy.address, &new, "/v2/").await.unwrap().starts_with(b"HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_bad_certificate_is_named_before_anything_is_bound() {
    let files = TempDir::new().unwrap();
    write_certificate(files.path());
    std::fs::write(files.path().join("server.key"), "nonsense").unwrap();
    let at = |name: &str| toml::Value::from(files.path().join(name).to_str().unwrap());
    let tls = toml::Table::from_iter([("cert".to_owned(), at("server.pem")), ("key".to_owned(), at("server.key"))]);
    let output = crate::support::proxy::Setup::new(&[]).set("server", "tls", tls).run().await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("server.tls: no usable private key") && !said.contains("listening"), "{said}");
}
