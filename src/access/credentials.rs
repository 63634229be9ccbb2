//! What a client shows of itself in `Authorization` (RFC 9110 section 11.6.2, RFC 7617, RFC 6750).

use base64::Engine as _;
use base64::engine::DecodePaddingMode;
use base64::engine::GeneralPurpose;
use base64::engine::GeneralPurposeConfig;

/// Longest value of the header that is read, in bytes.
const MAX_VALUE_BYTES: usize = 8 * 1024;

/// Credentials as they were sent; not judged, and never to be printed.
#[derive(PartialEq, Eq)]
pub(super) enum Credentials {
    /// A name and a password. Their bytes count as they are: nothing in them is decoded once more.
    Basic { name: String, password: Vec<u8> },
    /// A token.
    Bearer(Vec<u8>),
}

/// The header holds nothing that could be credentials here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

impl Credentials {
    /// Reads the value of the header. `None` where it says nothing: podman and its kin send an empty name with an empty
    /// password when they know none.
    pub(super) fn parse(value: &[u8]) -> Result<Option<Self>, Malformed> {
        if value.len() > MAX_VALUE_BYTES {
            return Err(Malformed);
        }
        let text = std::str::from_utf8(value).map_err(|_| Malformed)?;
        let (scheme, rest) = text.trim().split_once(' ').ok_or(Malformed)?;
        let rest = rest.trim_start_matches(' ');
        if scheme.eq_ignore_ascii_case("basic") {
            return basic(rest);
        }
        if scheme.eq_ignore_ascii_case("bearer") && !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_graphic())
        {
            return Ok(Some(Self::Bearer(rest.as_bytes().to_vec())));
        }
        Err(Malformed)
    }
}

fn basic(encoded: &str) -> Result<Option<Credentials>, Malformed> {
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let engine = GeneralPurpose::new(&base64::alphabet::STANDARD, config);
    let plain = engine.decode(encoded).map_err(|_| Malformed)?;
    let colon = plain.iter().position(|&byte| byte == b':').ok_or(Malformed)?;
    let (name, password) = (&plain[..colon], &plain[colon + 1..]);
    if name.is_empty() && password.is_empty() {
        return Ok(None);
    }
    if plain.iter().any(u8::is_ascii_control) {
        return Err(Malformed);
    }
    let name = String::from_utf8(name.to_vec()).map_err(|_| Malformed)?;
    Ok(Some(Credentials::Basic { name, password: password.to_vec() }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::prelude::BASE64_STANDARD;
    use base64::prelude::BASE64_STANDARD_NO_PAD;
    use proptest::prelude::*;

    /// `name:password` or the token.
    fn read(value: &str) -> Option<Vec<u8>> {
        match Credentials::parse(value.as_bytes()) {
            Ok(Some(Credentials::Basic { name, password })) => Some([name.as_bytes(), b":", &password].concat()),
            Ok(Some(Credentials::Bearer(token))) => Some(token),
            Ok(None) => Some(b"nothing".to_vec()),
            Err(Malformed) => None,
        }
    }

    fn encoded(plain: &[u8]) -> String {
        format!("Basic {}", BASE64_STANDARD.encode(plain))
    }

    #[test]
    fn what_is_read() {
        for (value, expected) in [
            ("Basic Y2k6cGFzcw==", "ci:pass"),
            ("basic  Y2k6cGFzcw", "ci:pass"),
            ("BASIC Y2k6cGFzcw==", "ci:pass"),
            ("Basic Og==", "nothing"),
            ("Bearer abc.def-_~+/=", "abc.def-_~+/="),
            ("bearer  x", "x"),
            (&encoded("ci:pä:ss %C3%A4".as_bytes()), "ci:pä:ss %C3%A4"),
            (&encoded(b":token"), ":token"),
            (&encoded(b"ci:"), "ci:"),
        ] {
            assert_eq!(read(value).as_deref(), Some(expected.as_bytes()), "{value}");
        }
        assert_eq!(read(&encoded(b"ci:\xe9")), Some(b"ci:\xe9".to_vec()), "a password may be in any encoding");
    }

    #[test]
    fn what_is_not() {
        let too_long = format!("Bearer {}", "a".repeat(MAX_VALUE_BYTES));
        for value in [
            "",
            "Basic",
            "Basic ",
            "Bearer ",
            "Basic ci:pass",
            "Basic Y2k=",
            "Basic Y2k6cGFzcw== x",
            "Bearer a b",
            "Bearer é",
            "Negotiate abc",
            "Digest username=\"ci\"",
            "Y2k6cGFzcw==",
            &encoded(b"ci:a\0b"),
            &encoded(b"ci:a\nb"),
            &encoded(b"\xe9:pass"),
            &too_long,
        ] {
            assert_eq!(read(value), None, "{value}");
        }
    }

    proptest! {
        #[test]
        fn whatever_can_be_written_is_read(name in "[ -9;-~é]{1,20}", password in "[ -~é:%]{0,80}", padded: bool) {
            let plain = format!("{name}:{password}");
            let text = if padded { BASE64_STANDARD.encode(&plain) } else { BASE64_STANDARD_NO_PAD.encode(&plain) };
            prop_assert_eq!(read(&format!("Basic {text}")), Some(plain.into_bytes()));
        }

        #[test]
        fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..80), plain in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = Credentials::parse(&bytes);
            let _ = read(&encoded(&plain));
        }
    }
}
