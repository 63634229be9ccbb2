//! The `forebay` program: arguments, exit codes, allocator and runtime. Everything else is the library's.

use anyhow::Context;
use clap::Parser;
use forebay::cli::{Cli, Command};
use forebay::config::Config;
use forebay::telemetry::Telemetry;
use forebay::{app, cli, config};
use std::process::ExitCode;
use std::time::Duration;

#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// It ran and found a problem.
const EXIT_PROBLEM: u8 = 1;
/// Wrong usage or configuration; the same code that wrong arguments exit with.
const EXIT_USAGE: u8 = 2;
/// Longest wait for blocking work that is left when everything has been told to stop.
const RUNTIME_GRACE: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    match run(&Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            cli::complain(&error);
            ExitCode::from(if error.is::<config::Error>() { EXIT_USAGE } else { EXIT_PROBLEM })
        }
    }
}

fn run(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Serve(arguments) => serve(arguments.load()?).map_err(|error| match &arguments.config {
            Some(path) if error.is::<config::Error>() => error.context(path.display().to_string()),
            _ => error,
        }),
        Command::Config(command) => cli::print(&command.run(app::check)?).context("cannot write to standard output"),
    }
}

fn serve(config: Config) -> anyhow::Result<()> {
    // Before the first TLS client: the HTTP client takes whatever provider is installed.
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        anyhow::bail!("another TLS provider is installed already");
    }
    // Before any thread. Huge pages make the allocator's sparse arenas dense: measured, an idle process takes 43 MiB with
    // them and 3 MiB without, and is no slower. Where they cannot be refused it works as well.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    // As many workers as processors. Measured: one runtime is as fast as one a processor with a listener each, and
    // downloads and answers share what one of them leaves idle.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .thread_name("forebay")
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let outcome = runtime.block_on(async {
        let telemetry = Telemetry::start(&config.telemetry_options(), tokio::runtime::Handle::current())?;
        let outcome = Box::pin(app::run(config, &telemetry, end_at_once)).await;
        telemetry.shutdown().await;
        outcome
    });
    runtime.shutdown_timeout(RUNTIME_GRACE);
    outcome
}

/// For an operator who will not wait: nothing is finished.
#[expect(clippy::disallowed_methods, reason = "nobody waits for main")]
fn end_at_once() -> ! {
    std::process::exit(i32::from(EXIT_PROBLEM))
}
