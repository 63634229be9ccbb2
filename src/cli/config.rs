//! `forebay config check|show`.

use crate::config::{Config, Error, Overrides};
use anyhow::Context;
use std::path::PathBuf;

/// What to do with the configuration.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Command {
    /// Reads the configuration and says whether it is right
    Check(Arguments),
    /// Prints the configuration in force as TOML, secrets hidden
    Show(Arguments),
}

/// Where the configuration is.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

impl Command {
    /// What to print. `check` finds what only the layers can find.
    pub fn run(&self, check: impl FnOnce(&Config) -> Result<(), Error>) -> anyhow::Result<String> {
        match self {
            Self::Check(arguments) => {
                let config = arguments.load()?;
                let place = arguments.config.as_ref().map_or("defaults".to_owned(), |path| path.display().to_string());
                check(&config).with_context(|| place.clone())?;
                Ok(format!("{place}: ok, {} registries\n", config.registries.len()))
            }
            Self::Show(arguments) => Ok(arguments.load()?.to_toml()),
        }
    }
}

impl Arguments {
    fn load(&self) -> Result<Config, Error> {
        Config::load(self.config.as_deref(), &Overrides::default())
    }
}
