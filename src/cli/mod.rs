//! The command line: what was typed, as plain data, and how to print. One file per family of commands.
//!
//! Promises that wrong usage ends with exit code 2 before anything happens. Commands about a running proxy ask its admin
//! API. Must never build or start a layer: `serve` hands its arguments to the composition root, and `verify`, where no
//! proxy runs, only reads files, by the store's own function for that.

pub mod client_config;
pub mod config;
pub mod content;
pub mod doctor;
pub mod generate;
pub mod references;
pub mod remote;
pub mod serve;
mod text;
pub mod verify;
pub mod warm;

use clap::{Parser, Subcommand};
use std::io::{ErrorKind, Write};

/// A pull-through cache for container registries.
#[derive(Debug, Parser)]
#[command(name = "forebay", version, about, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The families of commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs the proxy
    Serve(serve::Arguments),
    /// Checks or shows the configuration
    #[command(subcommand)]
    Config(config::Command),
    /// Hashes everything that is stored, also beside a running proxy
    Verify(verify::Arguments),
    /// Lists the images that a running proxy holds
    Ls(content::List),
    /// Shows what a running proxy holds, saves and does
    Stats(content::Stats),
    /// Fetches images through a running proxy before anybody asks for them
    Warm(warm::Arguments),
    /// Tells what a request for an image would get now, and why
    Why(references::One),
    /// Tells where a tag has pointed
    History(references::One),
    /// Keeps an image from ever giving way to other content, and fetches what is missing of it
    Pin(references::PinArguments),
    /// Takes a pin out
    Unpin(references::One),
    /// Lists what is pinned
    Pins(references::Common),
    /// Takes an image, a repository or a registry out of the store
    Purge(references::PurgeArguments),
    /// Shows how the registries are
    Upstreams(references::Common),
    /// Asks no registry, or one less, from now on; what is here is served
    Offline(references::OfflineArguments),
    /// Has a running proxy read its configuration again
    Reload(content::ReloadArguments),
    /// Tells what is wrong between container engines, a running proxy and the registries
    Doctor(doctor::Arguments),
    /// Exits with 0 when a running proxy takes requests: for health checks without other tools
    Ready(remote::Remote),
    /// Prints what completes commands in a shell
    Completions(generate::Completions),
    /// Prints the manual page, or writes one for each command
    Man(generate::Manual),
    /// Points a container engine at the proxy
    ClientConfig(client_config::Arguments),
}

/// Prints a whole text on standard output. A reader that has gone away is no error.
pub fn print(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Prints a line on standard error. Nobody can be told if that fails.
pub fn note(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// Prints an error as one line on standard error. Nobody can be told if that fails.
pub fn complain(error: &anyhow::Error) {
    let chain = format!("{error:#}").replace(['\n', '\r'], " ");
    let _ = writeln!(std::io::stderr().lock(), "forebay: {chain}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use clap::error::ErrorKind as Usage;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn serve_takes_its_flags() {
        let cli = Cli::try_parse_from([
            "forebay",
            "serve",
            "--config",
            "f.toml",
            "--listen",
            "127.0.0.1:0",
            "--listen",
            "[::1]:0",
            "--data",
            "/d",
            "--upstream",
            "docker.io=http://a",
            "--upstream",
            "x.io=http://b",
            "--admin-listen",
            "127.0.0.1:9",
        ]);
        let Ok(Cli { command: Command::Serve(arguments) }) = cli else { panic!("{cli:?}") };
        let overrides = arguments.overrides();
        assert_eq!(arguments.config.as_deref(), Some(std::path::Path::new("f.toml")));
        assert_eq!(overrides.listen, ["127.0.0.1:0", "[::1]:0"]);
        assert_eq!(overrides.data.as_deref(), Some("/d"));
        assert_eq!(overrides.upstream, ["docker.io=http://a", "x.io=http://b"]);
        assert_eq!(overrides.admin_listen.as_deref(), Some("127.0.0.1:9"));
    }

    #[test]
    fn wrong_usage_exits_with_2() {
        let rows: [&[&str]; 7] = [
            &["forebay"],
            &["forebay", "bogus"],
            &["forebay", "serve", "--bogus"],
            &["forebay", "serve", "extra"],
            &["forebay", "config"],
            &["forebay", "config", "check", "--config"],
            &["forebay", "verify", "--bogus"],
        ];
        for row in rows {
            let error = Cli::try_parse_from(row).expect_err("must be refused");
            assert_eq!(error.exit_code(), 2, "{row:?}");
        }
    }

    #[test]
    fn version_and_help_exit_with_0() {
        for (row, kind) in [("--version", Usage::DisplayVersion), ("--help", Usage::DisplayHelp)] {
            let error = Cli::try_parse_from(["forebay", row]).expect_err("these end the parsing");
            assert_eq!((error.kind(), error.exit_code()), (kind, 0));
        }
    }
}
