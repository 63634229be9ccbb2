//! The server's side of TLS: certificate and key, client certificates where they are asked for, and their exchange while
//! connections are open.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::RwLock;

use rustls::RootCertStore;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::server::WebPkiClientVerifier;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::access::Certificate;

/// In order of preference: HTTP/1.1 only for clients that do not offer h2.
const PROTOCOLS: [&[u8]; 2] = [H2, b"http/1.1"];
const H2: &[u8] = b"h2";

/// What certificate files hold.
#[derive(Clone, PartialEq, Eq)]
pub struct Pem {
    /// The certificate of the server, followed by those that lead to its root.
    pub cert: Vec<u8>,
    /// Its private key: PKCS#8, PKCS#1 or SEC1.
    pub key: Vec<u8>,
    /// The roots of clients' certificates; with them, clients without one are refused.
    pub client_ca: Option<Vec<u8>>,
}

/// Shows nothing: a key is in it.
impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pem")
    }
}

/// Certificates cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// The certificate chain.
    #[error("no usable certificate: {0}")]
    Cert(String),
    /// The key, or the two together.
    #[error("no usable private key: {0}")]
    Key(String),
    /// The roots of clients.
    #[error("no usable root certificate for clients: {0}")]
    ClientCa(String),
}

/// The certificates in use. Cheap to clone; all clones change together.
#[derive(Clone)]
pub struct Tls(Arc<RwLock<Arc<ServerConfig>>>);

impl Tls {
    /// Begins with these.
    pub fn new(pem: &Pem) -> Result<Self, TlsError> {
        Ok(Self(Arc::new(RwLock::new(server_config(pem)?))))
    }

    /// Takes these for connections to come; what is open stays as it is. On an error nothing changes.
    pub fn replace(&self, pem: &Pem) -> Result<(), TlsError> {
        let config = server_config(pem)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    /// Shakes hands.
    pub(super) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) -> io::Result<TlsStream<S>> {
        let config = self.0.read().unwrap_or_else(PoisonError::into_inner).clone();
        TlsAcceptor::from(config).accept(stream).await
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

/// Whether the client wants HTTP/2.
pub(super) fn is_h2<S>(stream: &TlsStream<S>) -> bool {
    stream.get_ref().1.alpn_protocol() == Some(H2)
}

/// What the client has shown and proved, where it was asked to; a resumed session has it from the one before.
pub(super) fn certificate<S>(stream: &TlsStream<S>) -> Option<Certificate> {
    let chain = stream.get_ref().1.peer_certificates()?;
    chain.first().map(|own| Certificate::read(own))
}

fn server_config(pem: &Pem) -> Result<Arc<ServerConfig>, TlsError> {
    let chain = certificates(&pem.cert).map_err(TlsError::Cert)?;
    let key = PrivateKeyDer::from_pem_slice(&pem.key).map_err(|error| TlsError::Key(error.to_string()))?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("the provider has cipher suites for TLS 1.2 and 1.3");
    let builder = match &pem.client_ca {
        None => builder.with_no_client_auth(),
        Some(client_ca) => {
            let mut roots = RootCertStore::empty();
            for root in certificates(client_ca).map_err(TlsError::ClientCa)? {
                roots.add(root).map_err(|error| TlsError::ClientCa(error.to_string()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| TlsError::ClientCa(error.to_string()))?)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|error| match error {
        rustls::Error::InvalidCertificate(_) => TlsError::Cert(error.to_string()),
        other => TlsError::Key(other.to_string()),
    })?;
    config.alpn_protocols = PROTOCOLS.iter().map(|name| name.to_vec()).collect();
    // Engines connect anew for each request: a ticket spares them, and us, most of the handshake, and needs no memory
    // of ours. Without randomness for its keys there are no tickets, and all works as well.
    if let Ok(ticketer) = aws_lc_rs::Ticketer::new() {
        config.ticketer = ticketer;
    }
    Ok(Arc::new(config))
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Vec<_> =
        CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|error| error.to_string())?;
    if found.is_empty() { Err("no PEM certificate in it".to_owned()) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_used_is_named() {
        let made = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
        let other = rcgen::generate_simple_self_signed(["b.example".to_owned()]).unwrap();
        let (cert, key) = (made.cert.pem().into_bytes(), made.signing_key.serialize_pem().into_bytes());
        let good = Pem { cert, key, client_ca: None };
        let tls = Tls::new(&good).unwrap();
        let other_key = other.signing_key.serialize_pem().into_bytes();
        for (pem, expected) in [
            (Pem { cert: b"nonsense".to_vec(), ..good.clone() }, "no usable certificate: no PEM"),
            (Pem { key: Vec::new(), ..good.clone() }, "no usable private key"),
            (Pem { key: other_key, ..good.clone() }, "no usable private key"),
            (Pem { client_ca: Some(Vec::new()), ..good.clone() }, "no usable root certificate for clients"),
        ] {
            let error = tls.replace(&pem).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
        assert_eq!(tls.replace(&Pem { client_ca: Some(good.cert.clone()), ..good }), Ok(()));
    }
}
