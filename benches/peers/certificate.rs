//! A certificate for this machine, and a client that believes it.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use rcgen::CertifiedKey;
use rustls::ClientConfig;
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs;
use tokio_rustls::TlsConnector;

use crate::server::TlsFiles;

/// Makes the files in a directory. The client offers HTTP/1.1 only.
pub(crate) fn make(directory: &Path) -> Result<(TlsFiles, TlsConnector)> {
    let CertifiedKey { cert, signing_key } = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])?;
    let files = TlsFiles { cert: directory.join("server.pem"), key: directory.join("server.key") };
    std::fs::write(&files.cert, cert.pem())?;
    std::fs::write(&files.key, signing_key.serialize_pem())?;
    let mut roots = RootCertStore::empty();
    roots.add(cert.der().clone())?;
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok((files, TlsConnector::from(Arc::new(config))))
}
