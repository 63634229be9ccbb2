//! TLS towards registries: the platform's roots and the operator's.

use std::sync::Arc;

use rustls::ClientConfig;
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use rustls_platform_verifier::Verifier;

use super::error::SetupError;
use super::options::ClientCertificate;
use crate::oci::Registry;

/// A verifier with its roots loaded. Cheap to clone.
#[derive(Clone)]
pub(super) struct Tls(Arc<ClientConfig>);

impl Tls {
    /// Trusts the platform's roots and those of `ca_pem`, which may be empty; shows a certificate where there is one.
    pub(super) fn new(
        registry: &Registry,
        ca_pem: &[u8],
        certificate: Option<&ClientCertificate>,
    ) -> Result<Self, SetupError> {
        let bad = |reason: String| SetupError::BadCa { registry: registry.clone(), reason };
        let extra: Vec<CertificateDer<'static>> =
            CertificateDer::pem_slice_iter(ca_pem).collect::<Result<_, _>>().map_err(|error| bad(error.to_string()))?;
        if extra.is_empty() && !ca_pem.is_empty() {
            return Err(bad("no PEM certificate in it".to_owned()));
        }
        let mut extra_roots = RootCertStore::empty();
        for certificate in extra.clone() {
            extra_roots.add(certificate).map_err(|error| bad(error.to_string()))?;
        }
        let provider: Arc<CryptoProvider> = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .expect("the provider has cipher suites for TLS 1.2 and 1.3");
        let builder = match Verifier::new_with_extra_roots(extra, provider) {
            Ok(verifier) => builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier)),
            Err(error) => {
                // An image without CA files can still use http endpoints.
                tracing::warn!(%registry, %error, "no root certificates found: https endpoints will not be trusted");
                builder.with_root_certificates(extra_roots)
            }
        };
        let config = match certificate {
            None => builder.with_no_client_auth(),
            Some(certificate) => {
                let bad = |reason: String| SetupError::BadClientCertificate { registry: registry.clone(), reason };
                let (chain, key) = read(certificate).map_err(bad)?;
                builder.with_client_auth_cert(chain, key).map_err(|error| bad(error.to_string()))?
            }
        };
        Ok(Self(Arc::new(config)))
    }

    /// A configuration that offers these protocols: the HTTP client does not set ALPN by itself.
    pub(super) fn config(&self, protocols: &[&str]) -> ClientConfig {
        let mut config = ClientConfig::clone(&self.0);
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        config
    }
}

fn read(certificate: &ClientCertificate) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&certificate.cert_pem).collect();
    let chain = chain.map_err(|error| error.to_string())?;
    if chain.is_empty() {
        return Err("no PEM certificate in it".to_owned());
    }
    // The error says what was wrong, never what was read.
    let key = PrivateKeyDer::from_pem_slice(certificate.key_pem.expose().as_bytes());
    Ok((chain, key.map_err(|error| format!("its key: {error}"))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extra_roots() {
        let registry: Registry = "r.example".parse().unwrap();
        let key = rcgen::generate_simple_self_signed(["r.example".to_owned()]).unwrap();
        let tls = Tls::new(&registry, key.cert.pem().as_bytes(), None).unwrap();
        assert_eq!(tls.config(&["h2"]).alpn_protocols, [b"h2".to_vec()]);
        assert!(Tls::new(&registry, b"", None).is_ok());
        for pem in ["nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            assert!(matches!(Tls::new(&registry, pem.as_bytes(), None), Err(SetupError::BadCa { .. })), "{pem}");
        }
    }
    #[test]
    fn client_certificates() {
        let registry: Registry = "r.example".parse().unwrap();
        let made = rcgen::generate_simple_self_signed(["me".to_owned()]).unwrap();
        let (cert, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let other = rcgen::generate_simple_self_signed(["me".to_owned()]).unwrap().signing_key.serialize_pem();
        let build = |cert_pem: &str, key_pem: &str| {
            let certificate =
                ClientCertificate { cert_pem: cert_pem.as_bytes().to_vec(), key_pem: key_pem.to_owned().into() };
            Tls::new(&registry, b"", Some(&certificate)).map(|_| ())
        };
        assert_eq!(build(&cert, &key), Ok(()));
        for (cert, key) in [("", &key), (cert.as_str(), &other), (cert.as_str(), &cert)] {
            let error = build(cert, key).unwrap_err();
            assert!(matches!(error, SetupError::BadClientCertificate { .. }), "{error}");
        }
    }
}
