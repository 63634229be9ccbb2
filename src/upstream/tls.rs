//! TLS towards registries: the platform's roots and the operator's.

use std::sync::Arc;

use rustls::ClientConfig;
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls_platform_verifier::Verifier;

use super::error::SetupError;
use crate::oci::Registry;

/// A verifier with its roots loaded. Cheap to clone.
#[derive(Clone)]
pub(super) struct Tls(Arc<ClientConfig>);

impl Tls {
    /// Trusts the platform's roots and those of `ca_pem`, which may be empty.
    pub(super) fn new(registry: &Registry, ca_pem: &[u8]) -> Result<Self, SetupError> {
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
        let config = match Verifier::new_with_extra_roots(extra, provider) {
            Ok(verifier) => {
                builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth()
            }
            Err(error) => {
                // An image without CA files can still use http endpoints.
                tracing::warn!(%registry, %error, "no root certificates found: https endpoints will not be trusted");
                builder.with_root_certificates(extra_roots).with_no_client_auth()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extra_roots() {
        let registry: Registry = "r.example".parse().unwrap();
        let key = rcgen::generate_simple_self_signed(["r.example".to_owned()]).unwrap();
        let tls = Tls::new(&registry, key.cert.pem().as_bytes()).unwrap();
        assert_eq!(tls.config(&["h2"]).alpn_protocols, [b"h2".to_vec()]);
        assert!(Tls::new(&registry, b"").is_ok());
        for pem in ["nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            assert!(matches!(Tls::new(&registry, pem.as_bytes()), Err(SetupError::BadCa { .. })), "{pem}");
        }
    }
}
