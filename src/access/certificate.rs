//! Whom a client's certificate names (RFC 5280 sections 4.1.2.6 and 4.2.1.6).

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;

use super::name::ClientName;

/// The certificate that a client has proved to own, of a root that is trusted for clients. Cheap to clone.
///
/// Its name is the subject's common name; where there is none, the first alternative name that is a DNS name, an e-mail
/// address or a URI. A common name that is no client's name, or a second one, leaves it without.
#[derive(Clone, Debug)]
pub struct Certificate {
    name: Option<ClientName>,
}

impl Certificate {
    /// Reads what TLS has verified. What cannot be read names nobody.
    pub fn read(der: &[u8]) -> Self {
        let name = X509Certificate::from_der(der).ok().and_then(|(_, certificate)| name_of(&certificate));
        Self { name }
    }

    pub(super) fn name(&self) -> Option<&ClientName> {
        self.name.as_ref()
    }
}

fn name_of(certificate: &X509Certificate<'_>) -> Option<ClientName> {
    let mut common_names = certificate.subject().iter_common_name();
    match (common_names.next(), common_names.next()) {
        (Some(name), None) if name.as_slice().is_empty() => {}
        (Some(name), None) => return name.as_str().ok()?.parse().ok(),
        (Some(_), Some(_)) => return None,
        (None, _) => {}
    }
    let alternatives = certificate.subject_alternative_name().ok()??;
    let mut names = alternatives.value.general_names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) | GeneralName::RFC822Name(name) | GeneralName::URI(name) => Some(*name),
        _ => None,
    });
    names.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rcgen::CertificateParams;
    use rcgen::DnType;
    use rcgen::KeyPair;
    use rcgen::SanType;

    fn certificate(common_name: Option<&str>, alternatives: &[SanType]) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "an organisation");
        if let Some(name) = common_name {
            params.distinguished_name.push(DnType::CommonName, name);
        }
        params.subject_alt_names = alternatives.to_vec();
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn the_common_name_or_the_first_alternative() {
        let uri = SanType::URI("spiffe://cluster/ns/build".try_into().unwrap());
        let dns = SanType::DnsName("node1.example".try_into().unwrap());
        let address = SanType::IpAddress("10.0.0.1".parse().unwrap());
        for (common_name, alternatives, expected) in [
            (Some("ci"), &[dns.clone()][..], Some("ci")),
            (Some("Ann Lee"), &[], Some("Ann Lee")),
            (None, &[address.clone(), uri.clone(), dns.clone()], Some("spiffe://cluster/ns/build")),
            (None, &[dns.clone(), uri], Some("node1.example")),
            (None, &[address], None),
            (None, &[], None),
            (Some("é"), std::slice::from_ref(&dns), None),
            (Some("anonymous"), std::slice::from_ref(&dns), None),
        ] {
            let read = Certificate::read(&certificate(common_name, alternatives));
            assert_eq!(read.name().map(ClientName::as_str), expected, "{common_name:?} {alternatives:?}");
        }
    }

    #[test]
    fn what_is_no_certificate_names_nobody() {
        assert!(Certificate::read(b"").name().is_none());
        let whole = certificate(Some("ci"), &[]);
        assert!(Certificate::read(&whole[..whole.len() / 2]).name().is_none());
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = Certificate::read(&bytes);
        }
    }
}
