//! What a request's headers ask of content whose entity tag is its digest (RFC 9110 sections 13 and 14).

use http::HeaderMap;
use http::header::{HeaderName, IF_NONE_MATCH, IF_RANGE, RANGE};

use crate::oci::{ByteRange, Digest, RangeHeader, Selection};

/// Most parts of one answer; a request for more gets the whole. Each part costs a head of about 120 bytes.
const MAX_PARTS: usize = 16;

/// Which part of a blob to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// All of it, with 200.
    Whole,
    /// One part, with 206.
    Range(ByteRange),
    /// Several ranges were asked for: those inside the content (perhaps none), in the order asked for. Who cannot read
    /// them in that order sends all of it.
    Several(Vec<ByteRange>),
    /// Nothing, with 416.
    Unsatisfiable,
}

/// Whether the client has this content already. Clients send the tag quoted, bare or weak, alone or in a list.
pub(super) fn is_held(headers: &HeaderMap, digest: &Digest) -> bool {
    if !headers.contains_key(IF_NONE_MATCH) {
        return false;
    }
    let values = headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let digest = digest.to_string();
    values.flat_map(|value| value.split(',')).map(str::trim).any(|tag| {
        let tag = tag.strip_prefix("W/").unwrap_or(tag);
        let bare = tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"')).unwrap_or(tag);
        tag == "*" || bare == digest
    })
}

/// The part to answer a `GET` with.
pub(super) fn part(headers: &HeaderMap, digest: &Digest, size_bytes: Option<u64>) -> Part {
    let (Some(size_bytes), Some(range)) = (size_bytes, single(headers, RANGE)) else {
        return Part::Whole;
    };
    // Only a strong tag counts here; a date never does, because content has none.
    let other_content = headers.contains_key(IF_RANGE) && single(headers, IF_RANGE) != Some(&format!("\"{digest}\""));
    let Some(range) = RangeHeader::parse(range).filter(|_| !other_content) else {
        return Part::Whole;
    };
    match (range.select(size_bytes), range.is_single()) {
        (Selection::Single(range), true) => Part::Range(range),
        (Selection::Unsatisfiable, true) => Part::Unsatisfiable,
        (Selection::Single(range), false) => several(vec![range], size_bytes),
        (Selection::Multiple(ranges), _) => several(ranges, size_bytes),
        (Selection::Unsatisfiable, false) => Part::Several(Vec::new()),
    }
}

/// Ranges are answered as they are, also where they overlap: clients count the parts. What bounds them is their number
/// and their sum, so a set never costs more than the whole and its heads (RFC 9110 section 14.2).
fn several(ranges: Vec<ByteRange>, size_bytes: u64) -> Part {
    let sum_bytes = ranges.iter().fold(0, |sum: u64, range| sum.saturating_add(range.size_bytes()));
    if ranges.len() > MAX_PARTS || sum_bytes >= size_bytes { Part::Whole } else { Part::Several(ranges) }
}

/// The value of a header that is there exactly once.
fn single(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    if values.next().is_some() { None } else { value.to_str().ok() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;
    use http::HeaderValue;

    fn headers(lines: &[(HeaderName, &str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap())).collect()
    }

    #[test]
    fn entity_tags() {
        let digest = Digest::of(Algorithm::Sha256, b"");
        let other = Digest::of(Algorithm::Sha256, b"x");
        for (value, expected) in [
            (format!("\"{digest}\""), true),
            (digest.to_string(), true),
            (format!("W/\"{digest}\""), true),
            (format!("\"{other}\", \"{digest}\""), true),
            ("*".to_owned(), true),
            (format!("\"{other}\""), false),
            ("\"*\"".to_owned(), false),
            (String::new(), false),
            (digest.hex(), false),
        ] {
            assert_eq!(is_held(&headers(&[(IF_NONE_MATCH, &value)]), &digest), expected, "{value}");
        }
        assert!(!is_held(&HeaderMap::new(), &digest));
        let second = digest.to_string();
        assert!(is_held(&headers(&[(IF_NONE_MATCH, "\"a\""), (IF_NONE_MATCH, &second)]), &digest));
    }

    #[test]
    fn ranges() {
        let digest = Digest::of(Algorithm::Sha256, b"");
        let range = |from, to| Part::Range(ByteRange::new(from..to).unwrap());
        let several = |ranges: &[(u64, u64)]| {
            Part::Several(ranges.iter().map(|&(from, to)| ByteRange::new(from..to).unwrap()).collect())
        };
        let up_to = |count| format!("bytes={}", vec!["0-0"; count].join(","));
        let many = format!("bytes={}", "0-1,".repeat(1000));
        for (value, size, expected) in [
            ("bytes=0-0", Some(2048), range(0, 1)),
            ("bytes=500-1499", Some(2048), range(500, 1500)),
            ("bytes=500-", Some(2048), range(500, 2048)),
            ("bytes=-500", Some(2048), range(1548, 2048)),
            ("bytes=2000-5000", Some(2048), range(2000, 2048)),
            ("bytes=2048-", Some(2048), Part::Unsatisfiable),
            ("bytes=500-0", Some(2048), Part::Unsatisfiable),
            ("bytes=0-", Some(0), Part::Unsatisfiable),
            ("bytes=abc", Some(2048), Part::Whole),
            ("items=0-1", Some(2048), Part::Whole),
            ("bytes=100-109,0-9", Some(2048), several(&[(100, 110), (0, 10)])),
            ("bytes=0-9,5-14", Some(2048), several(&[(0, 10), (5, 15)])),
            ("bytes=0-9,5000-,-10", Some(2048), several(&[(0, 10), (2038, 2048)])),
            ("bytes=0-9,5000-", Some(2048), several(&[(0, 10)])),
            ("bytes=5000-,9-0", Some(2048), several(&[])),
            ("bytes=0-,5000-", Some(2048), Part::Whole),
            ("bytes=0-1023,1024-", Some(2048), Part::Whole),
            ("bytes=0-1023,1025-", Some(2048), several(&[(0, 1024), (1025, 2048)])),
            ("bytes=0-9,100-109", None, Part::Whole),
            (&up_to(MAX_PARTS), Some(2048), several(&[(0, 1); MAX_PARTS])),
            (&format!("{},9-0,5000-", up_to(MAX_PARTS)), Some(2048), several(&[(0, 1); MAX_PARTS])),
            (&up_to(MAX_PARTS + 1), Some(2048), Part::Whole),
            (&many, Some(2048), Part::Whole),
            ("bytes=0-0", None, Part::Whole),
        ] {
            assert_eq!(part(&headers(&[(RANGE, value)]), &digest, size), expected, "{value}");
        }
        let twice = headers(&[(RANGE, "bytes=0-1"), (RANGE, "bytes=5-6")]);
        assert_eq!(part(&twice, &digest, Some(9)), Part::Whole);
    }

    #[test]
    fn if_range_needs_the_strong_tag() {
        let digest = Digest::of(Algorithm::Sha256, b"");
        let strong = format!("\"{digest}\"");
        let weak = format!("W/{strong}");
        for (value, ranged) in [(&*strong, true), (&weak, false), ("Sat, 21 Nov 2026 05:00:00 GMT", false)] {
            let mut headers = headers(&[(RANGE, "bytes=1-"), (IF_RANGE, value)]);
            assert_eq!(matches!(part(&headers, &digest, Some(9)), Part::Range(_)), ranged, "{value}");
            headers.insert(RANGE, HeaderValue::from_static("bytes=1-2,4-5"));
            assert_eq!(matches!(part(&headers, &digest, Some(9)), Part::Several(_)), ranged, "{value}");
        }
    }
}
