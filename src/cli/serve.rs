//! `forebay serve`.

use crate::config::{Config, Error, Overrides};
use std::path::PathBuf;

/// The flags of `serve`. They win over the environment, which wins over the file.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where container engines connect, such as 127.0.0.1:5000; may be given several times
    #[arg(long, value_name = "ADDR")]
    pub listen: Vec<String>,
    /// Where content is kept
    #[arg(long, value_name = "DIR")]
    pub data: Option<String>,
    /// Endpoint to use for a registry, in place of its own; may be given several times
    #[arg(long, value_name = "HOST=URL")]
    pub upstream: Vec<String>,
    /// Where health and metrics are served
    #[arg(long, value_name = "ADDR")]
    pub admin_listen: Option<String>,
}

impl Arguments {
    /// The configuration that these flags ask for.
    pub fn load(&self) -> Result<Config, Error> {
        Config::load(self.config.as_deref(), &self.overrides())
    }

    /// The flags that stand for configuration keys.
    pub fn overrides(&self) -> Overrides {
        Overrides {
            listen: self.listen.clone(),
            admin_listen: self.admin_listen.clone(),
            data: self.data.clone(),
            upstream: self.upstream.clone(),
        }
    }
}
