//! Numbers, times and tables for people.

use comfy_table::CellAlignment;
use comfy_table::ContentArrangement;
use comfy_table::Row;
use comfy_table::Table;
use comfy_table::presets::NOTHING;

/// Narrowest table that is still laid out.
const MIN_WIDTH: u16 = 60;
/// Hexadecimal digits of a short digest.
const SHORT_DIGEST_CHARS: usize = 12;

/// A column: its head, and whether it holds numbers.
pub(super) type Column = (&'static str, bool);

/// Rows under heads, a line each, as wide as the terminal; as wide as need be where there is none.
pub(super) fn table(columns: &[Column], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    if let Some((width, _)) = terminal_size::terminal_size() {
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width.0.max(MIN_WIDTH));
    }
    table.set_header(columns.iter().map(|(head, _)| *head));
    for row in rows {
        let mut row = Row::from(row);
        row.max_height(1);
        table.add_row(row);
    }
    for (index, (_, is_number)) in columns.iter().enumerate() {
        if let Some(column) = table.column_mut(index) {
            column.set_padding((0, 2));
            if *is_number {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    let lines = table.to_string();
    lines.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// `1.5 GiB`.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// `12,345`.
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `12.3 %` of the whole.
pub(super) fn percent(part: u64, whole: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let share = if whole == 0 { 0.0 } else { part as f64 * 100.0 / whole as f64 };
    format!("{share:.1} %")
}

/// `3 d`, `2 h`, `5 min` or `12 s`: the largest unit that fits.
pub(super) fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// How long ago that was; the text itself where it is no time.
pub(super) fn ago(at: &str) -> String {
    match at.parse::<jiff::Timestamp>() {
        Ok(at) => {
            let seconds = jiff::Timestamp::now().duration_since(at).as_secs();
            format!("{} ago", span(u64::try_from(seconds).unwrap_or(0)))
        }
        Err(_) => at.to_owned(),
    }
}

/// How long until then, or since then.
pub(super) fn until(at: &str) -> String {
    let Ok(then) = at.parse::<jiff::Timestamp>() else { return at.to_owned() };
    match u64::try_from(then.duration_since(jiff::Timestamp::now()).as_secs()) {
        Ok(seconds) => format!("in {}", span(seconds)),
        Err(_) => ago(at),
    }
}

/// The first digits of a digest.
pub(super) fn short(digest: &str) -> &str {
    let hex = digest.split_once(':').map_or(digest, |(_, hex)| hex);
    hex.get(..SHORT_DIGEST_CHARS).unwrap_or(hex)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        let sizes =
            [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (50 << 30, "50.0 GiB"), (u64::MAX, "16384.0 PiB")];
        for (bytes, text) in sizes {
            assert_eq!(size(bytes), text);
        }
        assert_eq!([count(7), count(1234), count(12_345_678)], ["7", "1,234", "12,345,678"]);
        assert_eq!([percent(1, 3), percent(0, 0)], ["33.3 %", "0.0 %"]);
        assert_eq!([span(59), span(60), span(7199), span(200_000)], ["59 s", "1 min", "1 h", "2 d"]);
        assert_eq!(short("sha256:0123456789abcdef"), "0123456789ab");
        assert_eq!(ago("never"), "never");
    }

    #[test]
    fn a_table_is_aligned_and_has_no_trailing_blanks() {
        let rows = [vec!["a".to_owned(), "10".to_owned()], vec!["long".to_owned(), "7".to_owned()]];
        let text = table(&[("NAME", false), ("SIZE", true)], rows);
        assert_eq!(text, "NAME  SIZE\na       10\nlong     7\n");
    }
}
