//! `forebay verify`.

use super::warm::Report;
use crate::config::{Config, Error, Overrides, SizeOrPercent};
use crate::store::{self, Amount, Rotten, Verification, VerifyError, VerifyOptions, VerifyStep};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use serde::Serialize;
use std::path::PathBuf;

/// The flags of `verify`.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where content is kept, in place of what the configuration says
    #[arg(long, value_name = "DIR")]
    pub data: Option<String>,
    /// Moves what is rotten out of the way, so that the next pull fetches it again
    #[arg(long)]
    pub repair: bool,
    /// Prints one JSON object instead of lines
    #[arg(long)]
    pub json: bool,
}

impl Arguments {
    /// Verifies; what is rotten is a problem.
    ///
    /// # Errors
    /// A wrong configuration, or a directory that is none of Forebay's.
    pub fn run(&self) -> anyhow::Result<Report> {
        let overrides = Overrides { data: self.data.clone(), ..Overrides::default() };
        let config = Config::load(self.config.as_deref(), &overrides)?;
        let budget = match config.storage.max_size {
            SizeOrPercent::Size(size) => Amount::Bytes(size.bytes()),
            SizeOrPercent::Percent(percent) => Amount::Percent(percent),
        };
        let options = VerifyOptions { path: config.storage.path, repair: self.repair.then_some(budget) };
        let bar = progress_bar();
        let found = store::verify(&options, &|step| match step {
            VerifyStep::Listed { bytes, .. } => bar.set_length(bytes),
            VerifyStep::Read(bytes) => bar.inc(bytes),
        });
        bar.finish_and_clear();
        let found = found.map_err(|error| {
            let VerifyError::Directory { .. } = &error;
            Error::Refused { key: "storage.path".to_owned(), problem: error.to_string() }
        })?;
        let text = if self.json { json(&found)? } else { lines(&found) };
        Ok(Report { text, has_problem: !found.rotten.is_empty() })
    }
}

/// On standard error, and only where that is a terminal.
fn progress_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {bytes_per_sec}, {eta} left");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn lines(found: &Verification) -> String {
    let mut text = String::new();
    for Rotten { digest, problem, quarantined, .. } in &found.rotten {
        let what = match quarantined {
            None => String::new(),
            Some(Ok(())) => "; moved to quarantine".to_owned(),
            Some(Err(reason)) => format!("; not moved: {reason}"),
        };
        text.push_str(&format!("{digest} is rotten: {problem}{what}\n"));
    }
    let (blobs, bytes, rotten) = (found.blobs, HumanBytes(found.bytes), found.rotten.len());
    text.push_str(&format!("{blobs} blobs, {bytes} hashed: {rotten} rotten\n"));
    text
}

#[derive(Serialize)]
struct Found<'a> {
    blobs: u64,
    bytes: u64,
    rotten: Vec<RottenReport<'a>>,
}

#[derive(Serialize)]
struct RottenReport<'a> {
    digest: String,
    size_bytes: u64,
    problem: String,
    quarantined: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

fn json(found: &Verification) -> anyhow::Result<String> {
    let rotten = found.rotten.iter().map(|rotten| RottenReport {
        digest: rotten.digest.to_string(),
        size_bytes: rotten.size_bytes,
        problem: rotten.problem.to_string(),
        quarantined: matches!(rotten.quarantined, Some(Ok(()))),
        error: match &rotten.quarantined {
            Some(Err(reason)) => Some(reason),
            _ => None,
        },
    });
    let report = Found { blobs: found.blobs, bytes: found.bytes, rotten: rotten.collect() };
    Ok(serde_json::to_string(&report)? + "\n")
}
