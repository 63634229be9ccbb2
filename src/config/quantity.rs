//! Sizes and durations as people write them. Strict: what is not understood is refused, never guessed.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Longest duration that a configuration may ask for: far above any use, far below where clocks overflow.
const MAX_DURATION: Duration = Duration::from_secs(3650 * 24 * 60 * 60);
/// Digits after the point that a size may have.
const MAX_FRACTION_DIGITS: usize = 6;

/// Units of a size, largest first, so that printing takes the largest that divides.
const SIZE_UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("KB", 1_000),
    ("B", 1),
];

/// Units of a duration in milliseconds, largest first: the order in which they may be composed.
const DURATION_UNITS: [(&str, u64); 5] =
    [("d", 24 * 60 * 60 * 1000), ("h", 60 * 60 * 1000), ("m", 60 * 1000), ("s", 1000), ("ms", 1)];

/// The text is not a size, percentage or duration; the message says what would be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidQuantity {
    /// Not a size.
    #[error("a size is a number of bytes or a number with B, KB, MB, GB, TB, KiB, MiB, GiB or TiB, such as \"50GiB\"")]
    Size,
    /// More bytes than 64 bits count.
    #[error("the size is too large")]
    SizeOverflow,
    /// Neither a size nor a percentage.
    #[error("write a size such as \"50GiB\" or a percentage of the file system from \"1%\" to \"100%\"")]
    SizeOrPercent,
    /// Not a duration.
    #[error("a duration is numbers with ms, s, m, h or d, largest unit first, such as \"30s\" or \"1h30m\"")]
    Duration,
    /// Longer than ten years.
    #[error("the duration is longer than 3650d")]
    DurationOverflow,
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(u64);

impl Size {
    /// So many bytes.
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// So many MiB; saturates.
    pub const fn from_mib(mib: u64) -> Self {
        Self(mib.saturating_mul(1 << 20))
    }

    /// So many GiB; saturates.
    pub const fn from_gib(gib: u64) -> Self {
        Self(gib.saturating_mul(1 << 30))
    }

    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for Size {
    type Err = InvalidQuantity;

    fn from_str(text: &str) -> Result<Self, InvalidQuantity> {
        let number_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(number_end);
        let unit = match unit.strip_prefix(' ') {
            Some("") => return Err(InvalidQuantity::Size),
            Some(unit) => unit,
            None => unit,
        };
        let (whole, fraction) = match number.split_once('.') {
            Some((_, fraction)) if fraction.is_empty() || fraction.len() > MAX_FRACTION_DIGITS => {
                return Err(InvalidQuantity::Size);
            }
            // Half a byte is a slip of the pen.
            Some(_) if unit.is_empty() || unit == "B" => return Err(InvalidQuantity::Size),
            Some(parts) => parts,
            None => (number, ""),
        };
        if whole.is_empty() || !fraction.bytes().all(|b| b.is_ascii_digit()) {
            return Err(InvalidQuantity::Size);
        }
        let unit_bytes = match unit {
            "" => 1,
            _ => SIZE_UNITS
                .iter()
                .find(|(name, _)| name.eq_ignore_ascii_case(unit))
                .map(|(_, bytes)| *bytes)
                .ok_or(InvalidQuantity::Size)?,
        };
        let whole: u64 = whole.parse().map_err(|_| InvalidQuantity::SizeOverflow)?;
        let whole_bytes = whole.checked_mul(unit_bytes).ok_or(InvalidQuantity::SizeOverflow)?;
        whole_bytes.checked_add(fraction_bytes(fraction, unit_bytes)).map(Self).ok_or(InvalidQuantity::SizeOverflow)
    }
}

/// `0.<digits>` of a unit in bytes, rounded down. At most six digits and 2^40 bytes, so 64 bits hold the product.
fn fraction_bytes(digits: &str, unit_bytes: u64) -> u64 {
    let scale = digits.bytes().fold(1u64, |scale, _| scale * 10);
    let value = digits.bytes().fold(0u64, |value, digit| value * 10 + u64::from(digit - b'0'));
    value * unit_bytes / scale
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, bytes) =
            SIZE_UNITS.iter().find(|(_, bytes)| self.0 != 0 && self.0.is_multiple_of(*bytes)).unwrap_or(&("B", 1));
        write!(f, "{}{unit}", self.0 / bytes)
    }
}

/// A size, or a share of the file system that holds the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SizeOrPercent {
    /// So many bytes.
    Size(Size),
    /// From 1 to 100 percent.
    Percent(u8),
}

impl SizeOrPercent {
    /// The bytes it means on a file system of `total_bytes`.
    pub fn bytes_of(self, total_bytes: u64) -> u64 {
        match self {
            Self::Size(size) => size.bytes(),
            // Divided first: a percent of 2^64 must not overflow, and 99 bytes do not matter.
            Self::Percent(percent) => total_bytes / 100 * u64::from(percent),
        }
    }

    /// Whether it means nothing at all.
    pub fn is_zero(self) -> bool {
        matches!(self, Self::Size(Size(0)) | Self::Percent(0))
    }
}

impl FromStr for SizeOrPercent {
    type Err = InvalidQuantity;

    fn from_str(text: &str) -> Result<Self, InvalidQuantity> {
        let Some(number) = text.strip_suffix('%') else {
            return text.parse().map(Self::Size).map_err(|error| match error {
                InvalidQuantity::Size => InvalidQuantity::SizeOrPercent,
                other => other,
            });
        };
        let is_number = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
        match number.parse::<u8>() {
            Ok(percent) if is_number && (1..=100).contains(&percent) => Ok(Self::Percent(percent)),
            _ => Err(InvalidQuantity::SizeOrPercent),
        }
    }
}

impl fmt::Display for SizeOrPercent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Size(size) => size.fmt(f),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// Reads a duration such as `30s` or `1h30m`: each unit at most once, largest first, at most ten years.
pub fn parse_duration(text: &str) -> Result<Duration, InvalidQuantity> {
    let mut rest = text;
    let mut units = DURATION_UNITS.iter();
    let mut total_ms: u64 = 0;
    loop {
        let digits_end = rest.find(|c: char| !c.is_ascii_digit()).ok_or(InvalidQuantity::Duration)?;
        let (digits, tail) = rest.split_at(digits_end);
        let unit_end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        if digits.is_empty() {
            return Err(InvalidQuantity::Duration);
        }
        // The iterator is not rewound: a unit that comes again or out of order is not found.
        let (_, unit_ms) = units.find(|(name, _)| *name == unit).ok_or(InvalidQuantity::Duration)?;
        let count: u64 = digits.parse().map_err(|_| InvalidQuantity::DurationOverflow)?;
        total_ms = count
            .checked_mul(*unit_ms)
            .and_then(|ms| total_ms.checked_add(ms))
            .ok_or(InvalidQuantity::DurationOverflow)?;
        rest = tail;
        if rest.is_empty() {
            break;
        }
    }
    let duration = Duration::from_millis(total_ms);
    if duration > MAX_DURATION { Err(InvalidQuantity::DurationOverflow) } else { Ok(duration) }
}

/// Writes a duration so that [`parse_duration`] reads the same; parts of a millisecond are dropped.
pub fn format_duration(duration: Duration) -> String {
    let mut rest_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if rest_ms == 0 {
        return "0s".to_owned();
    }
    let mut text = String::new();
    for (unit, unit_ms) in DURATION_UNITS {
        let count = rest_ms / unit_ms;
        if count > 0 {
            text.push_str(&format!("{count}{unit}"));
            rest_ms %= unit_ms;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, prop_assert_eq, proptest};

    #[test]
    fn sizes() {
        let rows: [(&str, u64); 12] = [
            ("0", 0),
            ("1", 1),
            ("12B", 12),
            ("3KB", 3_000),
            ("3KiB", 3_072),
            ("5MB", 5_000_000),
            ("5 MiB", 5 << 20),
            ("50GiB", 50 << 30),
            ("50gib", 50 << 30),
            ("1.5GiB", 3 << 29),
            ("0.5KB", 500),
            ("2TB", 2_000_000_000_000),
        ];
        for (text, bytes) in rows {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn not_sizes() {
        let rows = [
            "",
            " ",
            "GiB",
            "-1",
            "-1GiB",
            "+1",
            "1G",
            "1K",
            "1 000",
            "1  GiB",
            " 1",
            "1 ",
            "1.5",
            "1.5B",
            "1.GiB",
            ".5GiB",
            "1.2.3GiB",
            "1e9",
            "0x10",
            "1GiBs",
            "50 gigs",
            "1,5GiB",
            "1.1234567GiB",
            "1%",
            "٣",
        ];
        for text in rows {
            assert_eq!(text.parse::<Size>(), Err(InvalidQuantity::Size), "{text}");
        }
        for text in ["18446744073709551616", "99999999999999999999999", "16777217TiB", "18446744073709551615.9KiB"] {
            assert_eq!(text.parse::<Size>(), Err(InvalidQuantity::SizeOverflow), "{text}");
        }
    }

    #[test]
    fn percentages() {
        assert_eq!("80%".parse(), Ok(SizeOrPercent::Percent(80)));
        assert_eq!("1GiB".parse(), Ok(SizeOrPercent::Size(Size::from_gib(1))));
        for text in ["0%", "101%", "256%", "-5%", "+5%", "5 %", "%", "5.5%", "5%%", "lots"] {
            assert_eq!(text.parse::<SizeOrPercent>(), Err(InvalidQuantity::SizeOrPercent), "{text}");
        }
        assert_eq!(SizeOrPercent::Percent(25).bytes_of(1_000), 250);
        assert_eq!(SizeOrPercent::Percent(100).bytes_of(u64::MAX), u64::MAX / 100 * 100);
    }

    #[test]
    fn durations() {
        let rows = [
            ("0s", 0),
            ("250ms", 250),
            ("30s", 30_000),
            ("5m", 300_000),
            ("1h30m", 5_400_000),
            ("90m", 5_400_000),
            ("30d", 2_592_000_000),
            ("1d2h3m4s5ms", 93_784_005),
            ("3650d", 315_360_000_000),
        ];
        for (text, ms) in rows {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "5", "s", "-5s", "+5s", "5 s", "1.5s", "5sec", "5S", "30m1h", "5s5s", "1h30", "5µs", "1w"] {
            assert_eq!(parse_duration(text), Err(InvalidQuantity::Duration), "{text}");
        }
        for text in ["3651d", "3650d1ms", "99999999999999999999s", "18446744073709551615d"] {
            assert_eq!(parse_duration(text), Err(InvalidQuantity::DurationOverflow), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_printed_size_reads_back(bytes in any::<u64>()) {
            prop_assert_eq!(Size(bytes).to_string().parse(), Ok(Size(bytes)));
        }

        #[test]
        fn a_printed_duration_reads_back(ms in 0u64..315_360_000_000) {
            let duration = Duration::from_millis(ms);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,12}|[0-9.]{0,25}[KMGTiBdhms% ]{0,4}") {
            let _ = text.parse::<SizeOrPercent>();
            let _ = parse_duration(&text);
        }
    }
}
