//! Upstreams behind TLS: believed with the right authority, and only then.

use std::sync::Arc;

use rcgen::CertifiedKey;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::PrivateKeyDer;
use tempfile::NamedTempFile;
use tokio_rustls::TlsAcceptor;

use crate::support::REGISTRY;
use crate::support::REPOSITORY;
use crate::support::content::sample;
use crate::support::manifest_path;
use crate::support::proxy::Proxy;
use crate::support::proxy::Registry;
use crate::support::proxy::Setup;
use crate::support::registry::ScriptedRegistry;

/// A registry with a certificate of its own making for `name`, and that certificate as a file.
async fn https_registry(name: &str) -> (ScriptedRegistry, NamedTempFile) {
    let CertifiedKey { cert, signing_key } = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    let upstream = ScriptedRegistry::start_on("127.0.0.1:0", Some(TlsAcceptor::from(Arc::new(config)))).await;
    let file = NamedTempFile::new().unwrap();
    std::fs::write(file.path(), cert.pem()).unwrap();
    (upstream, file)
}

fn authority(file: &NamedTempFile) -> &str {
    file.path().to_str().unwrap()
}

#[tokio::test]
async fn a_private_authority_is_believed_where_it_is_named() {
    let (upstream, file) = https_registry("127.0.0.1").await;
    let image = upstream.image(REPOSITORY, "latest", &[sample(1, 1000)]);
    let registry = Registry::new(REGISTRY, &upstream.url()).set("ca_file", authority(&file));
    let proxy = Setup::new(&[registry]).start().await;
    proxy.get(&manifest_path("latest")).await.assert_digest(&image.digest);
}

#[tokio::test]
async fn an_unknown_authority_is_not_believed() {
    let (upstream, _file) = https_registry("127.0.0.1").await;
    upstream.image(REPOSITORY, "latest", &[sample(2, 1000)]);
    let proxy = Proxy::of(&upstream).start().await;
    proxy.get(&manifest_path("latest")).await.assert_error(502, "UNAVAILABLE");
    assert_eq!(upstream.total(), 0, "a request went out before the certificate was checked");
}

#[tokio::test]
async fn a_certificate_for_another_name_is_not_believed() {
    let (upstream, file) = https_registry("somebody.else.example").await;
    upstream.image(REPOSITORY, "latest", &[sample(3, 1000)]);
    let registry = Registry::new(REGISTRY, &upstream.url()).set("ca_file", authority(&file));
    let proxy = Setup::new(&[registry]).start().await;
    proxy.get(&manifest_path("latest")).await.assert_error(502, "UNAVAILABLE");
    assert_eq!(upstream.total(), 0);
}

#[tokio::test]
async fn https_is_never_left_for_http() {
    let plain = ScriptedRegistry::start().await;
    let (upstream, file) = https_registry("127.0.0.1").await;
    let digest = upstream.blob(REPOSITORY, sample(4, 1000));
    plain.blob(REPOSITORY, sample(4, 1000));
    let path = crate::support::blob_path(&digest);
    let location = format!("{}{path}", plain.url());
    upstream.rule(crate::support::script::on("GET", &path).status(307).header("Location", &location));
    let registry = Registry::new(REGISTRY, &upstream.url()).set("ca_file", authority(&file));
    let proxy = Setup::new(&[registry]).start().await;
    proxy.get(&path).await.assert_error(502, "UNAVAILABLE");
    assert_eq!(plain.total(), 0);
}
