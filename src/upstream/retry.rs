//! Which failures are tried again where, and what a registry says about waiting.

use std::time::Duration;

use backon::ExponentialBuilder;
use http::HeaderMap;
use http::header::RETRY_AFTER;
use jiff::Timestamp;

use super::error::Error;

/// Tries at one endpoint after the first.
const MAX_RETRIES: usize = 2;
const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(1);
/// Longest `Retry-After` that is believed; after it the registry is asked once more.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);
/// How long a registry is left alone that limits the rate without saying for how long.
pub(super) const DEFAULT_QUIET: Duration = Duration::from_secs(30);

pub(super) fn backoff() -> ExponentialBuilder {
    ExponentialBuilder::default()
        .with_min_delay(FIRST_DELAY)
        .with_max_delay(LONGEST_DELAY)
        .with_factor(3.0)
        .with_jitter()
        .with_max_times(MAX_RETRIES)
}

/// The same endpoint may do better in a moment. A time-out has already cost its whole limit and is not repeated here.
pub(super) fn again_here(error: &Error) -> bool {
    match error {
        Error::Unavailable { status } => matches!(status, 500 | 502 | 503 | 504),
        Error::Unreachable { .. } | Error::Cut { .. } => true,
        _ => false,
    }
}

/// Another endpoint may do better.
pub(super) fn elsewhere(error: &Error) -> bool {
    error.is_transient() || matches!(error, Error::RateLimited { .. } | Error::Protocol { .. })
}

/// The endpoint had an answer, whether it was liked or not.
pub(super) fn is_answer(error: &Error) -> bool {
    matches!(error, Error::NotFound | Error::Denied { .. })
}

/// `Retry-After` (RFC 9110 section 10.2.3): seconds or a date.
fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let date = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
            Duration::try_from(date.duration_since(now)).unwrap_or_default()
        }
    };
    Some(wait.min(MAX_RETRY_AFTER))
}

/// What a 429 means: the wait that it asks for, or a default.
pub(super) fn rate_limited(headers: &HeaderMap) -> Error {
    let retry_after = retry_after(headers, Timestamp::now());
    Error::RateLimited { retry_after: Some(retry_after.unwrap_or(DEFAULT_QUIET)) }
}

/// The window in the same headers, as in `20;w=21600`.
pub(super) fn window_seconds(headers: &HeaderMap, name: &str) -> Option<u64> {
    let mut params = headers.get(name)?.to_str().ok()?.split([';', ',']).skip(1);
    params.find_map(|param| param.trim().strip_prefix("w=")?.parse().ok())
}

/// The endpoint did not answer, as opposed to answering what helps nobody.
pub(super) fn is_silence(error: &Error) -> bool {
    matches!(error, Error::Unavailable { .. } | Error::Unreachable { .. } | Error::TimedOut { .. })
}

/// The count in `RateLimit-Remaining` or `RateLimit-Limit`, as in `20;w=21600`.
pub(super) fn ratelimit(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.split([';', ',']).next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(name: &'static str, value: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, http::HeaderValue::from_static(value));
        headers
    }

    #[test]
    fn retry_table() {
        let cut = Error::Cut { after_bytes: 1, reason: String::new() };
        let denied = Error::Denied { reason: String::new(), with_credentials: false };
        for (error, here, other) in [
            (Error::Unavailable { status: 502 }, true, true),
            (Error::Unavailable { status: 501 }, false, true),
            (Error::Unreachable { reason: String::new() }, true, true),
            (Error::TimedOut { what: "x" }, false, true),
            (cut, true, true),
            (Error::RateLimited { retry_after: None }, false, true),
            (denied, false, false),
            (Error::NotFound, false, false),
            (Error::protocol("x"), false, true),
        ] {
            assert_eq!((again_here(&error), elsewhere(&error)), (here, other), "{error:?}");
        }
    }

    #[test]
    fn retry_after_forms() {
        let now: Timestamp = "2015-10-21T07:27:00Z".parse().unwrap();
        let read = |value| retry_after(&header("retry-after", value), now);
        assert_eq!(read("60"), Some(Duration::from_secs(60)));
        assert_eq!(read("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::from_secs(60)));
        assert_eq!(read("Wed, 21 Oct 2015 07:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(read("999999999999"), Some(MAX_RETRY_AFTER));
        assert_eq!(read("soon"), None);
    }

    #[test]
    fn ratelimit_forms() {
        assert_eq!(ratelimit(&header("ratelimit-remaining", "20;w=21600"), "ratelimit-remaining"), Some(20));
        assert_eq!(ratelimit(&header("ratelimit-remaining", "7"), "ratelimit-remaining"), Some(7));
        assert_eq!(ratelimit(&header("ratelimit-remaining", "many"), "ratelimit-remaining"), None);
        let window = |value| window_seconds(&header("ratelimit-limit", value), "ratelimit-limit");
        assert_eq!((window("100;w=21600"), window("100"), window("100; w=60")), (Some(21600), None, Some(60)));
    }
}
