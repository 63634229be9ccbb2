//! Limits on the bytes received from registries, and the hours in which other limits apply.

use super::error::{Error, Origin};
use super::quantity::Size;
use super::settings::{Section, Setting, value_error};
use jiff::civil::Time;
use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;
use toml::Value;

const LIMIT: &str = "bandwidth_limit";
const SCHEDULE: &str = "bandwidth_schedule";
/// Windows of one schedule: two for each hour.
const MAX_WINDOWS: usize = 48;
/// Lowest limit: below it a single piece of a blob would take minutes.
const MIN_RATE: Size = Size::from_bytes(1_000);

/// How fast blobs may be received; the default is no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bandwidth {
    /// The limit outside the windows; `None` is no limit.
    pub limit: Option<Rate>,
    /// Hours with limits of their own, as written; they do not overlap.
    pub schedule: Vec<Window>,
}

/// A size per second; not below 1 KB/s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate(NonZeroU64);

/// Hours of each day in the local time of the machine: from one minute up to another, over midnight where that comes
/// first. Displays as it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// The first minute.
    pub from: Time,
    /// The first minute after it; another one.
    pub to: Time,
    /// The limit in it.
    pub limit: Rate,
}

impl Bandwidth {
    /// Reads `bandwidth_limit` and `bandwidth_schedule`, as far as they are set.
    pub(super) fn read(&mut self, section: &mut Section) -> Result<(), Error> {
        section.text(LIMIT, &mut self.limit, |text| match text {
            "" => Ok(None),
            _ => text.parse().map(Some),
        })?;
        let Some(Setting { value, origin }) = section.take(SCHEDULE) else { return Ok(()) };
        let key = section.path(SCHEDULE);
        self.schedule = read_schedule(value, &origin, &key)?;
        let mut windows = self.schedule.iter();
        while let Some(window) = windows.next() {
            if let Some(other) = windows.clone().find(|other| window.overlaps(other)) {
                let problem = format!(
                    "{} to {} and {} to {} overlap; let one end where the other begins",
                    Minute(window.from),
                    Minute(window.to),
                    Minute(other.from),
                    Minute(other.to)
                );
                return Err(Error::Conflict { origin, key, problem });
            }
        }
        Ok(())
    }
}

impl Rate {
    /// From millions of bytes per second; at least one.
    pub(super) fn from_megabytes(megabytes: u64) -> Self {
        Self(NonZeroU64::new(megabytes.saturating_mul(1_000_000)).unwrap_or(NonZeroU64::MIN))
    }

    /// Bytes per second.
    pub fn bytes_per_second(self) -> NonZeroU64 {
        self.0
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let size: Option<Size> = text.strip_suffix("/s").unwrap_or(text).parse().ok();
        match size.and_then(|size| NonZeroU64::new(size.bytes())) {
            None if size.is_some() => Err("0 would let nothing through; leave the limit out for none".to_owned()),
            Some(rate) if text.ends_with("/s") && rate.get() >= MIN_RATE.bytes() => Ok(Self(rate)),
            Some(_) if text.ends_with("/s") => Err(format!("the lowest limit is {MIN_RATE}/s")),
            _ => Err("write a size per second, such as \"20MB/s\" (bytes, not bits)".to_owned()),
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", Size::from_bytes(self.0.get()))
    }
}

impl Window {
    fn holds(&self, time: Time) -> bool {
        if self.from < self.to { self.from <= time && time < self.to } else { self.from <= time || time < self.to }
    }

    /// Of two arcs of a circle that meet, one holds the start of the other.
    fn overlaps(&self, other: &Self) -> bool {
        self.holds(other.from) || other.holds(self.from)
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to, limit } = self;
        write!(f, "{{ from = \"{}\", to = \"{}\", limit = \"{limit}\" }}", Minute(*from), Minute(*to))
    }
}

struct Minute(Time);

impl fmt::Display for Minute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}:{:02}", self.0.hour(), self.0.minute())
    }
}

/// Strict: two digits, a colon, two digits.
fn time_of_day(text: &str) -> Result<Time, String> {
    let number = |digits: &str| {
        let is_number = digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_digit());
        digits.parse::<i8>().ok().filter(|_| is_number)
    };
    let parts = text.split_once(':').and_then(|(hour, minute)| Some((number(hour)?, number(minute)?)));
    let time = parts.and_then(|(hour, minute)| Time::new(hour, minute, 0, 0).ok());
    time.ok_or_else(|| "write a time from \"00:00\" to \"23:59\"".to_owned())
}

fn read_schedule(value: Value, origin: &Origin, key: &str) -> Result<Vec<Window>, Error> {
    let form = || "write a list such as [{ from = \"08:00\", to = \"18:00\", limit = \"5MB/s\" }]".to_owned();
    let value = match (&value, origin) {
        (Value::String(text), Origin::Environment(_)) if text.is_empty() => Value::Array(Vec::new()),
        (Value::String(text), Origin::Environment(_)) => {
            let table: Option<toml::Table> = toml::from_str(&format!("value = {text}")).ok();
            let list = table.filter(|table| table.len() == 1).and_then(|mut table| table.remove("value"));
            list.ok_or_else(|| value_error(origin, key, &value, form()))?
        }
        _ => value,
    };
    let Value::Array(items) = value else { return Err(value_error(origin, key, &value, form())) };
    if items.len() > MAX_WINDOWS {
        let problem = format!("list at most {MAX_WINDOWS} windows");
        return Err(Error::Conflict { origin: origin.clone(), key: key.to_owned(), problem });
    }
    let numbered = items.into_iter().enumerate();
    numbered.map(|(index, item)| read_window(item, origin, &format!("{key}[{}]", index + 1))).collect()
}

fn read_window(item: Value, origin: &Origin, name: &str) -> Result<Window, Error> {
    let Value::Table(table) = item else {
        let form = "write each window as { from = \"08:00\", to = \"18:00\", limit = \"5MB/s\" }".to_owned();
        return Err(value_error(origin, name, &item, form));
    };
    let mut section = Section::of(name, table, origin);
    let (mut from, mut to, mut limit) = (None, None, None);
    section.text("from", &mut from, |text| time_of_day(text).map(Some))?;
    section.text("to", &mut to, |text| time_of_day(text).map(Some))?;
    section.text("limit", &mut limit, |text| text.parse().map(Some))?;
    let missing = |key| section.conflict(key, "each window needs from, to and limit");
    let from = from.ok_or_else(|| missing("from"))?;
    let to = to.ok_or_else(|| missing("to"))?;
    let limit = limit.ok_or_else(|| missing("limit"))?;
    if from == to {
        return Err(section.conflict("to", "the window ends where it begins; for the whole day set bandwidth_limit"));
    }
    section.finish()?;
    Ok(Window { from, to, limit })
}

#[cfg(test)]
mod tests {
    use super::super::{Config, Overrides};
    use std::path::Path;

    fn read(text: &str) -> Result<Config, String> {
        Config::from_sources(Some((Path::new("f.toml"), text)), &[], &Overrides::default()).map_err(|e| e.to_string())
    }

    #[test]
    fn limits_read_and_print_back() {
        let work = r#"{ from = "08:00", to = "18:00", limit = "5MB/s" }"#;
        let night = r#"{ from = "22:30", to = "06:05", limit = "1MiB/s" }"#;
        let text = format!(
            "[upstream]\nbandwidth_limit = \"20MB/s\"\nbandwidth_schedule = [{work}, {night}]\nmax_fills = 7\n\
            [[registry]]\nhost = \"a.io\"\nbandwidth_limit = \"1.5GB/s\"\nbandwidth_schedule = [{night}]\n\
            max_fills = 3\nlanes_per_blob = 16\nabandon_policy = \"finish\""
        );
        let config = read(&text).unwrap();
        assert_eq!(config.upstream.bandwidth.limit.unwrap().bytes_per_second().get(), 20_000_000);
        assert_eq!(config.upstream.bandwidth.schedule[1].to_string(), night);
        let registry = config.registries.last().unwrap();
        assert_eq!(registry.bandwidth.limit.unwrap().bytes_per_second().get(), 1_500_000_000);
        assert_eq!((registry.max_fills, registry.lanes_per_blob), (3, 16));
        assert_eq!(read(&config.to_toml()).unwrap(), config);
    }

    #[test]
    fn the_environment_sets_a_schedule() {
        let set = |text: &str| {
            let variables = [("FOREBAY_UPSTREAM__BANDWIDTH_SCHEDULE".to_owned(), text.to_owned())];
            Config::from_sources(None, &variables, &Overrides::default())
                .map(|config| config.upstream.bandwidth.schedule)
        };
        assert_eq!(set(r#"[{ from = "08:00", to = "18:00", limit = "5MB/s" }]"#).unwrap().len(), 1);
        assert_eq!(set(""), Ok(Vec::new()));
        assert!(set("[] \nmore = 1").is_err() && set("08:00").is_err() && set("5").is_err());
    }

    #[test]
    fn bad_limits() {
        let zero = "0 would let nothing through; leave the limit out for none";
        let rate = "write a size per second, such as \"20MB/s\" (bytes, not bits)";
        for (text, problem) in [
            ("0", zero),
            ("0MB/s", zero),
            ("999B/s", "the lowest limit is 1KB/s"),
            ("20MB", rate),
            ("20Mbit/s", rate),
            ("/s", rate),
            ("-1MB/s", rate),
        ] {
            let expected = format!("f.toml: upstream.bandwidth_limit = {text:?}: {problem}");
            assert_eq!(read(&format!("[upstream]\nbandwidth_limit = {text:?}")), Err(expected));
        }
        for (key, problem) in [
            ("max_fills = 0", "write a number from 1 to 100000"),
            ("lanes_per_blob = 17", "write a number from 1 to 16"),
            ("abandon_policy = \"drop\"", "write \"park\" or \"finish\""),
        ] {
            let expected = format!("f.toml: registry[a.io].{key}: {problem}");
            assert_eq!(read(&format!("[[registry]]\nhost = \"a.io\"\n{key}")), Err(expected));
        }
    }

    #[test]
    fn bad_windows() {
        let row = |from: &str, to: &str, limit: &str| format!("{{ from = {from:?}, to = {to:?}, limit = {limit:?} }}");
        let schedule = |windows: &[String]| read(&format!("[upstream]\nbandwidth_schedule = [{}]", windows.join(", ")));
        let time = "write a time from \"00:00\" to \"23:59\"";
        for (window, problem) in [
            (row("8:00", "18:00", "5MB/s"), format!("[1].from = \"8:00\": {time}")),
            (row("08:00", "24:00", "5MB/s"), format!("[1].to = \"24:00\": {time}")),
            (row("08:60", "18:00", "5MB/s"), format!("[1].from = \"08:60\": {time}")),
            (row("+8:00", "18:00", "5MB/s"), format!("[1].from = \"+8:00\": {time}")),
            (
                row("08:00", "08:00", "5MB/s"),
                "[1].to: the window ends where it begins; for the whole day set bandwidth_limit".to_owned(),
            ),
            (
                row("08:00", "18:00", "0"),
                "[1].limit = \"0\": 0 would let nothing through; leave the limit out for none".to_owned(),
            ),
            ("{ from = \"08:00\" }".to_owned(), "[1].to: each window needs from, to and limit".to_owned()),
        ] {
            assert_eq!(schedule(&[window]), Err(format!("f.toml: upstream.bandwidth_schedule{problem}")));
        }
        let unknown = schedule(&["{ from = \"08:00\", to = \"18:00\", limit = \"5MB/s\", day = \"mon\" }".to_owned()]);
        assert!(unknown.unwrap_err().contains("unknown key upstream.bandwidth_schedule[1].day"));
    }

    #[test]
    fn overlaps() {
        for (windows, fit) in [
            ([("08:00", "12:00"), ("12:00", "18:00")], true),
            ([("22:00", "06:00"), ("06:00", "22:00")], true),
            ([("18:00", "00:00"), ("00:00", "06:00")], true),
            ([("08:00", "18:00"), ("17:59", "20:00")], false),
            ([("08:00", "18:00"), ("10:00", "11:00")], false),
            ([("22:00", "06:00"), ("05:00", "08:00")], false),
            ([("22:00", "06:00"), ("23:00", "01:00")], false),
            ([("22:00", "06:00"), ("20:00", "04:00")], false),
            ([("08:00", "18:00"), ("08:00", "18:00")], false),
        ] {
            let rows = windows.map(|(from, to)| format!("{{ from = {from:?}, to = {to:?}, limit = \"5MB/s\" }}"));
            let found = read(&format!("[upstream]\nbandwidth_schedule = [{}]", rows.join(", ")));
            assert_eq!(found.is_ok(), fit, "{windows:?} {found:?}");
            if let Err(message) = found {
                assert!(message.ends_with("overlap; let one end where the other begins"), "{message}");
            }
        }
    }
}
