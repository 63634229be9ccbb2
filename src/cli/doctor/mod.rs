//! `forebay doctor`: what is wrong between container engines, the proxy and the registries, in plain words.
//!
//! The running proxy is asked how it is; `sequences` acts out what each engine sends for an image that is here already,
//! so that nothing is downloaded; the engines' files on this host are compared with what `client-config` would write; the
//! registries are asked for `/v2/`, which also tells the time.

mod engines;
mod registries;
mod sequences;

use std::path::PathBuf;

use serde::Serialize;
use url::Url;

use super::remote;
use super::remote::Client;
use super::text;
use super::warm::Report;
use crate::admin::api::Images;
use crate::admin::api::Status;
use crate::config::Config;
use crate::config::Overrides;
use crate::oci::ImageName;

/// Descriptors for files and blobs beside those for connections.
const SPARE_FILES: u64 = 512;

/// `forebay doctor`.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// Configuration file of the proxy (TOML)
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// How engines reach the proxy; by default the address that it listens on
    #[arg(long, value_name = "URL")]
    pub proxy: Option<Url>,
    /// Image to act the engines' requests out with; by default one that is here
    #[arg(long, value_name = "IMAGE")]
    pub image: Option<ImageName>,
    /// Ask no registry
    #[arg(long)]
    pub no_registries: bool,
    /// Take this folder for the root of the file system
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub root: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// The proxy.
    #[command(flatten)]
    pub remote: remote::Remote,
}

/// What was found at one place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    area: String,
    level: Level,
    text: String,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Level {
    Ok,
    /// It could not be looked at, or need not be.
    Skipped,
    Warning,
    Problem,
}

impl Finding {
    fn new(area: &str, level: Level, text: impl Into<String>) -> Self {
        Self { area: area.to_owned(), level, text: text.into() }
    }
}

impl Arguments {
    /// Looks at everything; a problem in one place does not hide another.
    pub async fn run(&self) -> anyhow::Result<Report> {
        let config = Config::load(self.config.as_deref(), &Overrides::default())?;
        let client = self.remote.client()?;
        let mut found = Vec::new();
        let status = match client.get("status", &[]).await.and_then(|answer| answer.read::<Status>()) {
            Ok(status) => {
                found.extend(own(&status, &config));
                Some(status)
            }
            Err(error) => {
                found.push(Finding::new("proxy", Level::Problem, format!("{error:#}")));
                None
            }
        };
        let setup = super::client_config::setup(self.config.as_deref(), self.proxy.as_ref());
        match &setup {
            Ok(setup) => {
                if status.is_some() {
                    match self.image(&client).await {
                        Some(image) => found.extend(sequences::act(setup, &image).await),
                        None => found.push(Finding::new(
                            "engines",
                            Level::Skipped,
                            "no whole image is here to try with; name one with --image, or warm one",
                        )),
                    }
                }
                found.extend(engines::look(setup, &self.root));
            }
            Err(error) => found.push(Finding::new("engines", Level::Skipped, format!("{error:#}"))),
        }
        if !self.no_registries {
            found.extend(registries::ask(&config, &client).await);
        }
        let has_problem = found.iter().any(|finding| finding.level == Level::Problem);
        let text = if self.json { format!("{:#}\n", serde_json::to_value(&found)?) } else { show(&found) };
        Ok(Report { text, has_problem })
    }

    async fn image(&self, client: &Client) -> Option<ImageName> {
        if let Some(image) = &self.image {
            return Some(image.clone());
        }
        let query = [("sort", "used".to_owned()), ("limit", "200".to_owned())];
        let images: Images = client.get("images", &query).await.ok()?.read().ok()?;
        let complete = |image: &&crate::admin::api::Image| image.state == crate::admin::api::ImageState::Complete;
        let image = images.images.iter().filter(complete).find(|image| image.tag.is_some())?;
        format!("{}/{}:{}", image.registry, image.repository, image.tag.as_deref()?).parse().ok()
    }
}

/// The proxy itself: readiness, version, room, descriptors.
fn own(status: &Status, config: &Config) -> Vec<Finding> {
    let mut found = Vec::new();
    found.push(match &status.reason {
        None => Finding::new("proxy", Level::Ok, format!("version {} takes requests", status.version)),
        Some(reason) => Finding::new("proxy", Level::Problem, format!("it takes no requests: {reason}")),
    });
    if status.version != env!("CARGO_PKG_VERSION") {
        let text = format!("it is version {}, this command is {}", status.version, env!("CARGO_PKG_VERSION"));
        found.push(Finding::new("proxy", Level::Warning, text));
    }
    let storage = &status.storage;
    found.push(if storage.free_bytes < storage.min_free_bytes {
        let (free, wanted) = (text::size(storage.free_bytes), text::size(storage.min_free_bytes));
        Finding::new("disk", Level::Problem, format!("{free} are free, storage.min_free wants {wanted}: content is evicted to make room; something else fills the disk, or max_size is too large for it"))
    } else if storage.max_bytes > storage.disk_bytes {
        let (most, disk) = (text::size(storage.max_bytes), text::size(storage.disk_bytes));
        Finding::new("disk", Level::Warning, format!("storage.max_size is {most}, the file system only {disk}: min_free is what bounds the cache"))
    } else {
        let (free, disk) = (text::size(storage.free_bytes), text::size(storage.disk_bytes));
        Finding::new("disk", Level::Ok, format!("{free} of {disk} free; {} stored", text::size(storage.stored_bytes)))
    });
    let wanted = config.server.max_connections as u64 + SPARE_FILES;
    found.push(match status.open_files_limit {
        Some(limit) if limit < wanted => Finding::new("open files", Level::Warning, format!("the proxy may open {limit} files; server.max_connections and open blobs want {wanted}: raise LimitNOFILE, or ulimit -n")),
        Some(limit) => Finding::new("open files", Level::Ok, format!("the proxy may open {limit}")),
        None => Finding::new("open files", Level::Ok, "no limit"),
    });
    found
}

fn show(found: &[Finding]) -> String {
    let mark = |level: Level| match level {
        Level::Ok => "ok",
        Level::Skipped => "-",
        Level::Warning => "warning",
        Level::Problem => "PROBLEM",
    };
    let mut out = String::new();
    for finding in found {
        out.push_str(&format!("{:<8} {:<12} {}\n", mark(finding.level), finding.area, finding.text));
    }
    let problems = found.iter().filter(|finding| finding.level == Level::Problem).count();
    out + &match problems {
        0 => "\nnothing is wrong\n".to_owned(),
        1 => "\none problem\n".to_owned(),
        more => format!("\n{more} problems\n"),
    }
}
