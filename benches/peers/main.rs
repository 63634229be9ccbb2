//! The cold path, side by side with others: what content costs that nobody has asked for before.
//!
//! `cargo bench --bench peers -- [--small] [--runs N] [--verbose] [CASE…]` starts the release binary in front of an
//! upstream that lives in this process and does what the case asks for, and prints one row a measurement: value, target
//! and verdict. A CASE is the beginning of a name of [`CASES`]; without one all run. Times are medians of N runs (3).
//! `--small` takes smaller blobs where they are large (what is fetched twice weighs more then), `--verbose` shows what the upstream was asked. `FOREBAY_BIN`
//! names another binary. The exit code is 1 when a case could not be measured or bytes were wrong, whatever the values.

// Sizes and counts of a benchmark are far below the limits of every type they pass through.
#![allow(clippy::cast_possible_truncation)]
// Where files and the environment may be touched is a rule about the program.
#![allow(clippy::disallowed_methods)]

mod cases;
mod client;
mod content;
mod server;
mod table;
mod upstream;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;

use crate::table::Table;

const CASE_TIMEOUT: Duration = Duration::from_secs(600);
const CASES: [&str; 8] = ["stampede", "ranges", "open-ended", "far-range", "cut", "cold-wall", "memory", "bandwidth"];

/// What the command line says.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    cases: Vec<String>,
    pub(crate) small: bool,
    pub(crate) verbose: bool,
    pub(crate) runs: usize,
}

fn main() -> ExitCode {
    match options(std::env::args().skip(1)).and_then(|options| run(&options)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn options(mut arguments: impl Iterator<Item = String>) -> Result<Options> {
    let mut options = Options { cases: Vec::new(), small: false, verbose: false, runs: 3 };
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            // What cargo adds.
            "--bench" => {}
            "--small" => options.small = true,
            "--verbose" => options.verbose = true,
            "--runs" => options.runs = arguments.next().context("--runs takes a number")?.parse()?,
            case if CASES.iter().any(|known| known.starts_with(case)) => options.cases.push(argument),
            other => bail!("unknown case or option {other:?}; the cases: {}", CASES.join(", ")),
        }
    }
    if options.runs == 0 {
        bail!("--runs takes a number above 0");
    }
    Ok(options)
}

/// Runs the cases; false when one failed.
fn run(options: &Options) -> Result<bool> {
    // One thread for all clients: what they need they take from the measured server.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let program = server::forebay_program();
    println!("binary: {}; medians of {} runs; load {}", program.display(), options.runs, load()?);
    let mut table = Table::start();
    let mut complete = true;
    for name in CASES {
        if !options.cases.is_empty() && !options.cases.iter().any(|case| name.starts_with(case.as_str())) {
            continue;
        }
        let outcome = runtime.block_on(async {
            tokio::time::timeout(CASE_TIMEOUT, case(name, options, &mut table)).await.context("out of time")?
        });
        if let Err(error) = outcome {
            complete = false;
            table.failed(name, &error);
        }
    }
    println!("load at the end {}", load()?);
    Ok(complete)
}

/// Runnable threads of the last minute and processors: times mean little where others compute.
fn load() -> Result<String> {
    let averages = std::fs::read_to_string("/proc/loadavg")?;
    let processors = std::thread::available_parallelism()?;
    Ok(format!("{} on {processors} processors", averages.split(' ').next().unwrap_or_default()))
}

async fn case(name: &str, options: &Options, table: &mut Table) -> Result<()> {
    match name {
        "stampede" => cases::stampede::run(options, table).await,
        "ranges" => cases::ranges::closed(options, table).await,
        "open-ended" => cases::ranges::open_ended(options, table).await,
        "far-range" => cases::ranges::far(options, table).await,
        "cut" => cases::cut::run(options, table).await,
        "cold-wall" => cases::cold_wall::run(options, table).await,
        "memory" => cases::memory::run(options, table).await,
        _ => cases::bandwidth::run(options, table).await,
    }
}
