//! Tokens, known by their SHA-256 only.

use std::collections::HashMap;
use std::hash::BuildHasher as _;
use std::hash::RandomState;

use sha2::Digest as _;
use sha2::Sha256;
use subtle::ConstantTimeEq as _;

use super::line::BadLine;
use super::line::lines;
use super::name::ClientName;

const SHA256_BYTES: usize = 32;

/// The tokens of a file. A name may have several, so that one can be changed for another while both work.
pub(super) struct Tokens {
    hasher: RandomState,
    /// By a hash with a key that nobody knows, so that the time of a look-up tells nothing about the digests in it.
    by_hash: HashMap<u64, Vec<Token>>,
}

struct Token {
    name: ClientName,
    sha256: [u8; SHA256_BYTES],
}

impl Tokens {
    /// Reads lines of `name:hex of the token's SHA-256`.
    pub(super) fn parse(text: &[u8]) -> Result<Self, BadLine> {
        let mut tokens = Self { hasher: RandomState::new(), by_hash: HashMap::new() };
        for line in lines(text)? {
            let sha256 = parse_hex(line.proof)
                .ok_or_else(|| line.refuse("write the SHA-256 of the token: 64 hexadecimal digits, never the token"))?;
            let slot = tokens.by_hash.entry(tokens.hasher.hash_one(sha256)).or_default();
            if slot.iter().any(|known| known.sha256 == sha256) {
                return Err(line.refuse("this token is in the file already"));
            }
            slot.push(Token { name: line.name, sha256 });
        }
        Ok(tokens)
    }

    /// Whose token this is.
    pub(super) fn find(&self, token: &[u8]) -> Option<&ClientName> {
        let sha256: [u8; SHA256_BYTES] = Sha256::digest(token).into();
        let slot = self.by_hash.get(&self.hasher.hash_one(sha256))?;
        slot.iter().find(|known| bool::from(known.sha256.ct_eq(&sha256))).map(|known| &known.name)
    }
}

fn parse_hex(text: &str) -> Option<[u8; SHA256_BYTES]> {
    let digits: Vec<u8> = text.chars().map(|c| c.to_digit(16)?.try_into().ok()).collect::<Option<_>>()?;
    let bytes: Vec<u8> = digits.chunks(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect();
    if digits.len() == 2 * SHA256_BYTES { bytes.try_into().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn tokens_are_found_by_their_digest() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let text = format!("# robots\nci:{}\nci:{empty}\n", ABC.to_uppercase());
        let tokens = Tokens::parse(text.as_bytes()).unwrap();
        let found = |token: &[u8]| tokens.find(token).map(ClientName::as_str);
        assert_eq!((found(b"abc"), found(b"")), (Some("ci"), Some("ci")));
        assert_eq!((found(b"abd"), found(ABC.as_bytes())), (None, None));
    }

    #[test]
    fn bad_lines_are_named_and_not_shown() {
        for (text, line) in [
            ("ci:abc".to_owned(), 1),
            (format!("ci:{ABC}\nother:{ABC}"), 2),
            (format!("ci:{ABC}0"), 1),
            (format!("ci:{}", ABC.replace('a', "g")), 1),
            (format!("\nci:{}é", &ABC[2..]), 2),
        ] {
            let error = Tokens::parse(text.as_bytes()).err().unwrap();
            assert_eq!(error.line, line, "{error}");
            assert!(!error.to_string().contains("abc") && !error.to_string().contains("ba78"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn every_written_token_is_found(tokens in proptest::collection::hash_set("[!-~]{1,40}", 1..8)) {
            let line = |token: &String| {
                let hex: String = Sha256::digest(token.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
                format!("robot {}:{hex}\n", token.len())
            };
            let read = Tokens::parse(tokens.iter().map(line).collect::<String>().as_bytes()).unwrap();
            for token in &tokens {
                let name = format!("robot {}", token.len());
                prop_assert_eq!(read.find(token.as_bytes()).map(ClientName::as_str), Some(name.as_str()));
            }
        }

        #[test]
        fn nothing_panics(text in "(a:[0-9a-fé]{0,70}\n?){0,3}") {
            let _ = Tokens::parse(text.as_bytes());
        }
    }
}
