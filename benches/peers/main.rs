//! Side by side with others: what content costs that nobody has asked for before, and what it costs from then on.
//!
//! `cargo bench --bench peers -- [--small] [--runs N] [--minutes N] [--verbose] [CASE…]` starts the release binary in front of an
//! upstream that lives in this process and does what the case asks for, and prints one row a measurement: value, target
//! and verdict. A CASE is the beginning of a name of [`CASES`]; without one all run. Times are medians of N runs (3).
//! `--small` takes smaller blobs where they are large (what is fetched twice weighs more then), `--verbose` shows what the upstream was asked. `FOREBAY_BIN`
//! names another binary. `soak` runs only when it is named, for N minutes (10). `benches/peers/run` installs what is
//! compared with, where it can, and passes its arguments on. The exit code is 1 when a case could not be measured or bytes were wrong, whatever the values.

// Sizes and counts of a benchmark are far below the limits of every type they pass through.
#![allow(clippy::cast_possible_truncation)]
// Where files and the environment may be touched is a rule about the program.
#![allow(clippy::disallowed_methods)]

mod cases;
mod certificate;
mod client;
mod content;
mod load;
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
const CASES: [&str; 13] = [
    "hit-blobs",
    "hit-tls",
    "hit-small",
    "hit-memory",
    "instructions",
    "stampede",
    "ranges",
    "open-ended",
    "far-range",
    "cut",
    "cold-wall",
    "memory",
    "bandwidth",
];
/// Takes as long as it is told to, so it runs only when it is named.
const SOAK: &str = "soak";

/// What the command line says.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    cases: Vec<String>,
    pub(crate) small: bool,
    pub(crate) verbose: bool,
    pub(crate) runs: usize,
    pub(crate) minutes: f64,
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
    let mut options = Options { cases: Vec::new(), small: false, verbose: false, runs: 3, minutes: 10.0 };
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            // What cargo adds.
            "--bench" => {}
            "--small" => options.small = true,
            "--verbose" => options.verbose = true,
            "--runs" => options.runs = arguments.next().context("--runs takes a number")?.parse()?,
            "--minutes" => options.minutes = arguments.next().context("--minutes takes a number")?.parse()?,
            SOAK => options.cases.push(argument),
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
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    // Nothing else installs one.
    let _ = provider.install_default();
    // One thread for all clients: what they need they take from the measured server.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let program = server::forebay_program();
    println!("binary: {}; medians of {} runs; load {}", program.display(), options.runs, load()?);
    let mut table = Table::start();
    let mut complete = true;
    for name in CASES.into_iter().chain([SOAK]) {
        let is_named = options.cases.iter().any(|case| name.starts_with(case.as_str()));
        if !is_named && (name == SOAK || !options.cases.is_empty()) {
            continue;
        }
        let limit = CASE_TIMEOUT + Duration::from_secs_f64(options.minutes * 60.0);
        let outcome = runtime.block_on(async {
            tokio::time::timeout(limit, case(name, options, &mut table)).await.context("out of time")?
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
        "hit-blobs" => cases::hits::blobs(options, table).await,
        "hit-tls" => cases::hits::encrypted(options, table).await,
        "hit-small" => cases::hits::small(options, table).await,
        "hit-memory" => cases::hit_memory::run(options, table).await,
        "instructions" => cases::instructions::run(table).await,
        SOAK => cases::soak::run(options, table).await,
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
