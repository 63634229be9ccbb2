//! Byte ranges (RFC 9110 section 14): the `Range` header against a size, and `Content-Range` both ways.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

/// Most ranges that are read of one header; a header with more is answered with the whole content.
const MAX_RANGES: usize = 64;

/// A non-empty part `[start, end)` of some content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRange {
    start: u64,
    end: u64,
}

impl ByteRange {
    /// `None` when empty.
    pub fn new(range: Range<u64>) -> Option<Self> {
        (range.start < range.end).then_some(Self { start: range.start, end: range.end })
    }

    /// The first byte.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// One past the last byte.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// How many bytes; never zero.
    pub fn size_bytes(&self) -> u64 {
        self.end - self.start
    }
}

/// A parsed `Range: bytes=…` header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeHeader(Vec<Spec>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spec {
    From(u64),
    Between(u64, u64),
    Last(u64),
}

/// What a `Range` header selects of content of a known size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// One part.
    Single(ByteRange),
    /// Several parts, in the order asked for.
    Multiple(Vec<ByteRange>),
    /// No part of the content: 416.
    Unsatisfiable,
}

impl RangeHeader {
    /// `None` for what RFC 9110 section 14.2 says to ignore: another unit, a broken or inverted set, too many ranges.
    ///
    /// An inverted range (`500-0`) is kept as unsatisfiable, as the conformance suite wants it.
    pub fn parse(text: &str) -> Option<Self> {
        let (unit, set) = text.split_once('=')?;
        if !unit.trim().eq_ignore_ascii_case("bytes") {
            return None;
        }
        let mut specs = Vec::new();
        for item in set.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            if specs.len() == MAX_RANGES {
                return None;
            }
            specs.push(parse_spec(item)?);
        }
        (!specs.is_empty()).then_some(Self(specs))
    }

    /// Whether it asks for exactly one range, so that the answer can be a single part.
    pub fn is_single(&self) -> bool {
        self.0.len() == 1
    }

    /// Resolves it against the size of the content.
    pub fn select(&self, size_bytes: u64) -> Selection {
        let mut parts: Vec<ByteRange> = self.0.iter().filter_map(|spec| spec.resolve(size_bytes)).collect();
        match parts.len() {
            0 => Selection::Unsatisfiable,
            1 => Selection::Single(parts.remove(0)),
            _ => Selection::Multiple(parts),
        }
    }
}

fn parse_spec(item: &str) -> Option<Spec> {
    match item.split_once('-')? {
        ("", last) => number(last).map(Spec::Last),
        (first, "") => number(first).map(Spec::From),
        (first, last) => Some(Spec::Between(number(first)?, number(last)?)),
    }
}

fn number(digits: &str) -> Option<u64> {
    (!digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().unwrap_or(u64::MAX))
}

impl Spec {
    fn resolve(self, size_bytes: u64) -> Option<ByteRange> {
        match self {
            Self::From(first) => ByteRange::new(first..size_bytes),
            Self::Between(first, last) => ByteRange::new(first..last.saturating_add(1).min(size_bytes)),
            Self::Last(count) => ByteRange::new(size_bytes.saturating_sub(count)..size_bytes),
        }
    }
}

// === Content-Range ===

/// A `Content-Range` of one part; the total is `None` where the sender wrote `*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentRange {
    /// The part that the body holds.
    pub range: ByteRange,
    /// The size of the whole.
    pub total_bytes: Option<u64>,
}

impl FromStr for ContentRange {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let spec = text.trim().strip_prefix("bytes ").ok_or(())?;
        let (range, total) = spec.split_once('/').ok_or(())?;
        let (first, last) = range.split_once('-').ok_or(())?;
        let (first, last) = (number(first).ok_or(())?, number(last).ok_or(())?);
        let range = ByteRange::new(first..last.checked_add(1).ok_or(())?).ok_or(())?;
        let total_bytes = match total {
            "*" => None,
            digits => Some(number(digits).filter(|&total| total >= range.end).ok_or(())?),
        };
        Ok(Self { range, total_bytes })
    }
}

impl fmt::Display for ContentRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bytes {}-{}/", self.range.start, self.range.end - 1)?;
        match self.total_bytes {
            Some(total) => write!(f, "{total}"),
            None => f.write_str("*"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn select(header: &str, size_bytes: u64) -> Option<Selection> {
        RangeHeader::parse(header).map(|ranges| ranges.select(size_bytes))
    }

    fn single(start: u64, end: u64) -> Option<Selection> {
        ByteRange::new(start..end).map(Selection::Single)
    }

    #[test]
    fn selects_as_the_rfc_says() {
        for (header, expected) in [
            ("bytes=0-0", single(0, 1)),
            ("bytes=500-1499", single(500, 1500)),
            ("bytes=500-", single(500, 2048)),
            ("bytes=-500", single(1548, 2048)),
            ("bytes=-5000", single(0, 2048)),
            ("bytes=2000-5000", single(2000, 2048)),
            ("BYTES=2000-99999999999999999999999", single(2000, 2048)),
            ("bytes=2048-", Some(Selection::Unsatisfiable)),
            ("bytes=500-0", Some(Selection::Unsatisfiable)),
            ("bytes=-0", Some(Selection::Unsatisfiable)),
            ("bytes=5000-10000", Some(Selection::Unsatisfiable)),
            ("bytes=0-1,5000-", single(0, 2)),
            ("bytes=abc", None),
            ("bytes=", None),
            ("bytes=1-2-3", None),
            ("bytes=+1-2", None),
            ("lines=1-2", None),
        ] {
            assert_eq!(select(header, 2048), expected, "{header}");
        }
        assert!(matches!(select("bytes=0-9,100-109", 2048), Some(Selection::Multiple(parts)) if parts.len() == 2));
        assert_eq!(select(&format!("bytes={}", "0-1,".repeat(MAX_RANGES + 1)), 2048), None);
    }

    #[test]
    fn empty_content_satisfies_no_range() {
        assert_eq!(select("bytes=0-", 0), Some(Selection::Unsatisfiable));
    }

    #[test]
    fn content_range_refuses_lies() {
        for text in ["bytes 0-9/5", "bytes 9-0/20", "bytes */20", "items 0-1/2", "bytes 0-1", "bytes -1/2"] {
            assert!(text.parse::<ContentRange>().is_err(), "{text}");
        }
        let parsed: ContentRange = "bytes 0-9/*".parse().unwrap();
        assert_eq!(parsed.total_bytes, None);
    }

    proptest! {
        #[test]
        fn selection_stays_inside(header in "bytes=[0-9]{0,6}-[0-9]{0,6}(,[0-9]{0,6}-[0-9]{0,6}){0,3}", size in 0u64..100_000) {
            match select(&header, size) {
                Some(Selection::Single(part)) => prop_assert!(part.end() <= size && part.size_bytes() > 0),
                Some(Selection::Multiple(parts)) => prop_assert!(parts.iter().all(|part| part.end() <= size)),
                Some(Selection::Unsatisfiable) | None => {}
            }
        }

        #[test]
        fn content_range_round_trips(start in 0u64..1 << 40, size in 1u64..1 << 40, rest in 0u64..1 << 40) {
            let range = ByteRange::new(start..start + size).unwrap();
            let value = ContentRange { range, total_bytes: Some(start + size + rest) };
            prop_assert_eq!(value.to_string().parse::<ContentRange>(), Ok(value));
        }
    }
}
