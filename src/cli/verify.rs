//! `forebay verify`: by the proxy that runs on the data directory, where there is one that can be asked; else by itself.

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use anyhow::Context as _;
use anyhow::bail;
use indicatif::HumanBytes;
use indicatif::ProgressBar;
use indicatif::ProgressStyle;
use reqwest::Method;
use serde::Serialize;
use url::Url;

use super::remote::Client;
use super::remote::Remote;
use super::warm::Report;
use crate::admin::api::RottenBlob;
use crate::admin::api::Status;
use crate::admin::api::Verify;
use crate::admin::api::VerifyBody;
use crate::admin::api::VerifyState;
use crate::config::Config;
use crate::config::Error;
use crate::config::Overrides;
use crate::config::SizeOrPercent;
use crate::store;
use crate::store::Amount;
use crate::store::VerifyError;
use crate::store::VerifyOptions;
use crate::store::VerifyStep;

/// Between two looks at a verification.
const LOOK_EVERY: Duration = Duration::from_millis(200);

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
    /// Admin port of a proxy that is to verify what it holds, wherever that is; without it, the one that runs on the data
    /// directory is asked, if there is one
    #[arg(long, value_name = "URL", conflicts_with_all = ["data", "config"])]
    pub admin: Option<Url>,
    /// File with the token of admin.token; the variable FOREBAY_ADMIN_TOKEN holds the token itself
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

/// What was found, whoever looked.
#[derive(Serialize)]
struct Found {
    blobs: u64,
    bytes: u64,
    rotten_blobs: u64,
    rotten: Vec<RottenBlob>,
}

impl Arguments {
    /// Verifies; what is rotten is a problem.
    ///
    /// # Errors
    /// A wrong configuration, or a directory that is none of Forebay's; of a running proxy, that it cannot.
    pub async fn run(&self) -> anyhow::Result<Report> {
        let found = match &self.admin {
            Some(admin) => self.ask(&self.remote(admin.clone()).client()?).await?,
            None => {
                let overrides = Overrides { data: self.data.clone(), ..Overrides::default() };
                let config = Config::load(self.config.as_deref(), &overrides)?;
                match self.running(&config).await {
                    Some(client) => self.ask(&client).await?,
                    None => self.read(&config)?,
                }
            }
        };
        let text = if self.json { serde_json::to_string(&found)? + "\n" } else { lines(&found) };
        Ok(Report { text, has_problem: found.rotten_blobs > 0 })
    }

    fn remote(&self, admin: Url) -> Remote {
        Remote { admin, token_file: self.token_file.clone() }
    }

    // === By the proxy ===

    /// The proxy that runs on this data directory, where it can be asked. Whoever else answers there is left alone.
    async fn running(&self, config: &Config) -> Option<Client> {
        let here = store::directory_id(&config.storage.path).ok()?;
        let token = config.admin.token.as_ref().map(|token| token.expose().to_owned());
        let client = self.remote(admin_of(config)?).client().ok()?.or_token(token);
        let status: Status = client.get("status", &[]).await.ok()?.read().ok()?;
        (status.storage.directory_id == here).then_some(client)
    }

    /// Has a proxy verify, and waits for it; stops it when the user has enough.
    async fn ask(&self, client: &Client) -> anyhow::Result<Found> {
        let begun = client.send(Method::POST, "verify", &VerifyBody { repair: self.repair }).await?;
        let mut now: Verify = begun.read()?;
        let started_at = now.started_at.clone();
        let bar = progress_bar();
        let mut interrupt = pin!(tokio::signal::ctrl_c());
        while now.state == VerifyState::Running {
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                _ = interrupt.as_mut() => {
                    client.send(Method::DELETE, "verify", &serde_json::json!({})).await?;
                    bail!("it was stopped");
                }
            }
            now = client.get("verify", &[]).await?.read()?;
            bar.set_length(now.total_bytes);
            bar.set_position(now.bytes);
        }
        bar.finish_and_clear();
        if now.started_at != started_at {
            bail!("somebody else has begun another verification; what came of this one is in the proxy's log");
        }
        match now.state {
            VerifyState::Done => {}
            VerifyState::Failed => bail!(now.error.unwrap_or_default()),
            VerifyState::Running | VerifyState::Stopped | VerifyState::Never => bail!("it was stopped"),
        }
        now.rotten.sort_by(|one, other| one.digest.cmp(&other.digest));
        Ok(Found { blobs: now.blobs, bytes: now.bytes, rotten_blobs: now.rotten_blobs, rotten: now.rotten })
    }

    // === By itself ===

    fn read(&self, config: &Config) -> anyhow::Result<Found> {
        let budget = match config.storage.max_size {
            SizeOrPercent::Size(size) => Amount::Bytes(size.bytes()),
            SizeOrPercent::Percent(percent) => Amount::Percent(percent),
        };
        let options = VerifyOptions { path: config.storage.path.clone(), repair: self.repair.then_some(budget) };
        let bar = progress_bar();
        let found = store::verify(&options, &|step| {
            match step {
                VerifyStep::Listed { bytes, .. } => bar.set_length(bytes),
                VerifyStep::Read(bytes) => bar.inc(bytes),
                VerifyStep::Looked(_) => {}
            }
            ControlFlow::Continue(())
        });
        bar.finish_and_clear();
        let found = found.map_err(|error| {
            let VerifyError::Directory { .. } = &error;
            Error::Refused { key: "storage.path".to_owned(), problem: error.to_string() }
        })?;
        let rotten = found.rotten.iter().map(RottenBlob::from).collect();
        Ok(Found { blobs: found.blobs, bytes: found.bytes, rotten_blobs: found.rotten_blobs, rotten })
    }
}

/// Where the admin port of a proxy with this configuration is asked on this machine.
fn admin_of(config: &Config) -> Option<Url> {
    let mut address = config.admin.listen;
    match address.ip() {
        ip if !ip.is_unspecified() => {}
        IpAddr::V4(_) => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(_) => address.set_ip(Ipv6Addr::LOCALHOST.into()),
    }
    Url::parse(&format!("http://{address}")).context("the address of the admin port").ok()
}

/// On standard error, and only where that is a terminal.
fn progress_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {bytes_per_sec}, {eta} left");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn lines(found: &Found) -> String {
    let mut text = String::new();
    for RottenBlob { digest, problem, quarantined, error, .. } in &found.rotten {
        let what = match error {
            None if *quarantined => "; moved to quarantine".to_owned(),
            None => String::new(),
            Some(reason) => format!("; not moved: {reason}"),
        };
        text.push_str(&format!("{digest} is rotten: {problem}{what}\n"));
    }
    let unlisted = found.rotten_blobs.saturating_sub(found.rotten.len() as u64);
    if unlisted > 0 {
        text.push_str(&format!("… and {unlisted} more\n"));
    }
    let (blobs, bytes, rotten) = (found.blobs, HumanBytes(found.bytes), found.rotten_blobs);
    text.push_str(&format!("{blobs} blobs, {bytes} hashed: {rotten} rotten\n"));
    text
}
