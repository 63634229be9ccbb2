//! The page at `/`: one document with its style and script inside, which may load nothing but the admin API.
//!
//! The policy names the script and the style by their hashes, so that nothing else ever runs, whatever a name or an
//! error message holds.

use std::sync::LazyLock;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::HeaderValue;
use http::Response;
use http::header;
use http_body_util::Full;
use sha2::Digest as _;
use sha2::Sha256;

const PAGE: &str = include_str!("page.html");

static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let policy = format!(
        "default-src 'none'; script-src {}; style-src {}; connect-src 'self'; img-src data:; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
        hash(inside("script")),
        hash(inside("style"))
    );
    HeaderValue::try_from(policy).expect("hashes in base64 are header text")
});

pub(super) fn answer() -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(Bytes::from_static(PAGE.as_bytes())));
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(header::CONTENT_SECURITY_POLICY, POLICY.clone());
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    answer
}

/// What stands between the tags of the one element of this name.
fn inside(element: &str) -> &'static str {
    let (open, close) = (format!("<{element}>"), format!("</{element}>"));
    let (_, rest) = PAGE.split_once(&open).expect("the page has a script and a style");
    rest.split_once(&close).expect("they end").0
}

fn hash(text: &str) -> String {
    format!("'sha256-{}'", BASE64_STANDARD.encode(Sha256::digest(text.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_loads_nothing_from_elsewhere() {
        for element in ["<script", "</script>", "<style", "</style>"] {
            assert_eq!(PAGE.matches(element).count(), 1, "{element}");
        }
        for outside in [
            " src=",
            "@import",
            "url(",
            "<link rel=\"stylesheet\"",
            "<iframe",
            "https://",
            "//cdn",
            "style=\"",
            "onclick=\"",
        ] {
            assert!(!PAGE.contains(outside), "{outside}");
        }
        // The name of a vocabulary, which nobody loads.
        assert_eq!(PAGE.matches("http://").count(), PAGE.matches("http://www.w3.org/2000/svg").count());
        assert!(!PAGE.contains("innerHTML") && !PAGE.contains("eval("));
    }

    #[test]
    fn the_policy_allows_what_the_page_has_and_nothing_else() {
        let policy = POLICY.to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'; script-src 'sha256-"), "{policy}");
        assert!(!policy.contains("unsafe") && !policy.contains('*'), "{policy}");
        assert_eq!(hash(""), "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='");
    }
}
