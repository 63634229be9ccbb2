//! The result: one row a measurement.

/// Prints rows as they come.
#[derive(Debug)]
pub(crate) struct Table(());

impl Table {
    pub(crate) fn start() -> Self {
        let table = Self(());
        table.print("measurement", "value", "target", "");
        table
    }

    /// A value that has a target, and whether it is met.
    pub(crate) fn row(&mut self, name: &str, value: &str, target: &str, is_met: bool) {
        self.print(name, value, target, if is_met { "ok" } else { "OVER" });
    }

    /// A value that has none.
    pub(crate) fn note(&mut self, name: &str, value: &str) {
        self.print(name, value, "-", "-");
    }

    pub(crate) fn failed(&mut self, name: &str, error: &anyhow::Error) {
        self.print(name, &format!("{error:#}"), "-", "FAILED");
    }

    fn print(&self, name: &str, value: &str, target: &str, verdict: &str) {
        println!("{name:<44} {value:<46} {target:<12} {verdict}");
    }
}

/// The middle one; of an even number the upper of the two.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// `part / whole`, with so many digits that 1.00x means what it says.
pub(crate) fn times(part: u64, whole: u64) -> String {
    let ratio = part as f64 / whole as f64;
    let is_plain = part.is_multiple_of(whole) || (ratio - 1.0).abs() >= 0.005;
    if is_plain { format!("{ratio:.2}x") } else { format!("{ratio:.6}x") }
}

/// The spread of the values, where there is more than one.
pub(crate) fn spread(values: &[f64]) -> String {
    if values.len() < 2 {
        return String::new();
    }
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    format!(" ({low:.2}..{high:.2})")
}
