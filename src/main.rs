//! The `forebay` program: arguments, exit codes, allocator and runtime. Everything else is the library's.

use anyhow::Context;
use clap::Parser;
use forebay::cli::warm::Report;
use forebay::cli::{Cli, Command};
use forebay::manager::Sockets;
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
        Ok(code) => code,
        Err(error) => {
            cli::complain(&error);
            ExitCode::from(if error.is::<config::Error>() { EXIT_USAGE } else { EXIT_PROBLEM })
        }
    }
}

fn run(command: &Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Serve(arguments) => match serve(arguments) {
            Ok(()) => Ok(ExitCode::SUCCESS),
            Err(error) => match &arguments.config {
                Some(path) if error.is::<config::Error>() => Err(error.context(path.display().to_string())),
                _ => Err(error),
            },
        },
        Command::Config(command) => print(&command.run(app::check)?),
        Command::Ls(command) => print(&ask(command.run())?),
        Command::Stats(command) => print(&ask(command.run())?),
        Command::Why(command) => print(&ask(command.why())?),
        Command::History(command) => print(&ask(command.history())?),
        Command::Pin(command) => print(&ask(command.run())?),
        Command::Unpin(command) => print(&ask(command.unpin())?),
        Command::Pins(command) => print(&ask(command.pins())?),
        Command::Purge(command) => print(&ask(command.run())?),
        Command::Upstreams(command) => print(&ask(command.upstreams())?),
        Command::Offline(command) => print(&ask(command.run())?),
        Command::Reload(command) => print(&ask(command.run())?),
        Command::Doctor(command) => report(&ask(command.run())?),
        Command::Ready(command) => ask(command.ready()).map(|()| ExitCode::SUCCESS),
        Command::Completions(command) => print(&command.run()),
        Command::Man(command) => print(&command.run()?),
        Command::ClientConfig(command) => {
            let (text, notes) = command.run()?;
            let code = print(&text)?;
            notes.iter().for_each(|note| cli::note(note));
            Ok(code)
        }
        Command::Warm(command) => report(&ask(command.run())?),
        Command::Verify(command) => report(&ask(command.run())?),
    }
}

fn print(text: &str) -> anyhow::Result<ExitCode> {
    cli::print(text).context("cannot write to standard output")?;
    Ok(ExitCode::SUCCESS)
}

/// Prints what was found, and exits with 1 where that is a problem.
fn report(report: &Report) -> anyhow::Result<ExitCode> {
    print(&report.text)?;
    Ok(if report.has_problem { ExitCode::from(EXIT_PROBLEM) } else { ExitCode::SUCCESS })
}

/// Runs a command that asks a running proxy.
fn ask<T>(command: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    install_tls()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("cannot start the runtime")?.block_on(command)
}

/// Before the first TLS client: the HTTP client takes whatever provider is installed.
fn install_tls() -> anyhow::Result<()> {
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        anyhow::bail!("another TLS provider is installed already");
    }
    Ok(())
}

fn serve(arguments: &cli::serve::Arguments) -> anyhow::Result<()> {
    let config = arguments.load()?;
    let again = arguments.clone();
    // Before any thread, as what follows.
    let sockets = Sockets::take().map_err(|error| {
        let problem = error.to_string();
        config::Error::Refused { key: "LISTEN_FDNAMES".to_owned(), problem }
    })?;
    install_tls()?;
    // Before any thread. Huge pages make the allocator's sparse arenas dense: measured, an idle process takes 43 MiB with
    // them and 3 MiB without. Where they cannot be refused it works as well.
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
        let outcome =
            Box::pin(app::run(config, Box::new(move || again.load()), sockets, &telemetry, end_at_once)).await;
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
