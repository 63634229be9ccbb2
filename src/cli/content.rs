//! `forebay ls|stats`: what a running proxy holds and does.

use std::fmt::Write as _;

use reqwest::Method;

use super::remote;
use super::text;
use crate::admin::api::Blobs;
use crate::admin::api::Fill;
use crate::admin::api::Fills;
use crate::admin::api::Image;
use crate::admin::api::ImageState;
use crate::admin::api::Images;
use crate::admin::api::Reload;
use crate::admin::api::Status;

/// Width of the bar that shows how full the store is.
const BAR_CHARS: u64 = 24;

/// `forebay ls`.
#[derive(Clone, Debug, clap::Args)]
pub struct List {
    /// Only images with this text in registry, repository, tag or digest
    pub search: Option<String>,
    /// Only images of this registry
    #[arg(long, value_name = "HOST")]
    pub registry: Option<String>,
    /// Order of the images
    #[arg(long, value_name = "ORDER", default_value = "name")]
    pub sort: Sort,
    /// Most entries to show
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub limit: u32,
    /// Entries to leave out before those
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub offset: u32,
    /// Show blobs and manifests by their digests instead
    #[arg(long, conflicts_with_all = ["search", "registry"])]
    pub blobs: bool,
    /// Print JSON as the admin API sends it
    #[arg(long)]
    pub json: bool,
    /// The proxy.
    #[command(flatten)]
    pub remote: remote::Remote,
}

/// Orders of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Sort {
    /// By name
    Name,
    /// Largest first
    Size,
    /// Most recently used first
    Used,
}

/// `forebay stats`.
#[derive(Clone, Debug, clap::Args)]
pub struct Stats {
    /// Print JSON as the admin API sends it
    #[arg(long)]
    pub json: bool,
    /// The proxy.
    #[command(flatten)]
    pub remote: remote::Remote,
}

impl List {
    /// What to print.
    pub async fn run(&self) -> anyhow::Result<String> {
        let sort = match (self.sort, self.blobs) {
            (Sort::Name, true) => "digest",
            (Sort::Name, false) => "name",
            (Sort::Size, _) => "size",
            (Sort::Used, _) => "used",
        };
        let mut query =
            vec![("sort", sort.to_owned()), ("limit", self.limit.to_string()), ("offset", self.offset.to_string())];
        query.extend(self.search.iter().map(|text| ("search", text.clone())));
        query.extend(self.registry.iter().map(|host| ("registry", host.clone())));
        let answer = self.remote.client()?.get(if self.blobs { "blobs" } else { "images" }, &query).await?;
        if self.json {
            return answer.json();
        }
        if self.blobs { Ok(blobs(&answer.read()?, self.offset)) } else { Ok(images(&answer.read()?, self.offset)) }
    }
}

/// `forebay reload`.
#[derive(Clone, Debug, clap::Args)]
pub struct ReloadArguments {
    /// Print JSON as the admin API sends it
    #[arg(long)]
    pub json: bool,
    /// The proxy.
    #[command(flatten)]
    pub remote: remote::Remote,
}

impl ReloadArguments {
    /// What to print.
    pub async fn run(&self) -> anyhow::Result<String> {
        let answer = self.remote.client()?.send(Method::POST, "reload", &serde_json::json!({})).await?;
        if self.json {
            return answer.json();
        }
        let reloaded: Reload = answer.read()?;
        Ok(match reloaded.needs_restart.as_slice() {
            [] => "the configuration is in force\n".to_owned(),
            keys => format!("the configuration is in force, but for what needs a restart: {}\n", keys.join(", ")),
        })
    }
}

impl Stats {
    /// What to print.
    pub async fn run(&self) -> anyhow::Result<String> {
        let client = self.remote.client()?;
        let status = client.get("status", &[]).await?;
        if self.json {
            return status.json();
        }
        let fills: Fills = client.get("fills", &[]).await?.read()?;
        Ok(stats(&status.read()?, &fills.fills))
    }
}

fn images(page: &Images, offset: u32) -> String {
    let row = |image: &Image| {
        let tag =
            image.tag.as_ref().map_or_else(|| format!("@{}", text::short(&image.digest)), |tag| format!(":{tag}"));
        let state = match image.state {
            ImageState::Complete => "complete",
            ImageState::Partial => "partial",
            ImageState::Evicted => "evicted",
        };
        vec![
            format!("{}/{}{tag}", image.registry, image.repository),
            text::short(&image.digest).to_owned(),
            image.platforms.join(" "),
            text::size(image.size_bytes),
            text::size(image.shared_bytes),
            image.last_used.as_deref().map_or_else(|| "-".to_owned(), text::ago),
            if image.pinned { format!("{state}, pinned") } else { state.to_owned() },
        ]
    };
    let columns = [
        ("IMAGE", false),
        ("DIGEST", false),
        ("PLATFORMS", false),
        ("SIZE", true),
        ("SHARED", true),
        ("USED", false),
        ("STATE", false),
    ];
    if page.images.is_empty() {
        return "no images\n".to_owned();
    }
    text::table(&columns, page.images.iter().map(row)) + &rest(page.total, offset, page.images.len())
}

fn blobs(page: &Blobs, offset: u32) -> String {
    let columns = [("DIGEST", false), ("SIZE", true), ("USED", false), ("TYPE", false), ("REPOSITORIES", false)];
    let row = |blob: &crate::admin::api::Blob| {
        vec![
            blob.digest.clone(),
            text::size(blob.size_bytes),
            text::ago(&blob.last_used),
            blob.media_type.clone().unwrap_or_else(|| "blob".to_owned()),
            blob.repositories.join(" "),
        ]
    };
    if page.blobs.is_empty() {
        return "no blobs\n".to_owned();
    }
    text::table(&columns, page.blobs.iter().map(row)) + &rest(page.total, offset, page.blobs.len())
}

fn rest(total: usize, offset: u32, shown: usize) -> String {
    let next = usize::try_from(offset).unwrap_or(usize::MAX).saturating_add(shown);
    if total > next { format!("… and {} more; --offset {next} shows them\n", total - next) } else { String::new() }
}

fn stats(status: &Status, fills: &[Fill]) -> String {
    let (traffic, storage) = (&status.traffic, &status.storage);
    let state = status.reason.as_deref().unwrap_or("ready");
    let mut out = format!("forebay {}, {state}, running for {}\n\n", status.version, text::span(status.uptime_seconds));
    let mut line = |name: &str, value: String| {
        let _ = writeln!(out, "{name:<12}{value}");
    };
    line("Requests", text::count(traffic.requests));
    line("Hits", format!("{} ({})", text::count(traffic.hits), text::percent(traffic.hits, traffic.requests)));
    line("Sent", text::size(traffic.sent_bytes));
    line("Downloaded", text::size(traffic.upstream_bytes));
    line("Saved", text::size(traffic.saved_bytes));
    line("Evicted", text::size(traffic.evicted_bytes));
    let share = text::percent(storage.stored_bytes, storage.max_bytes);
    let (stored, budget) = (text::size(storage.stored_bytes), text::size(storage.max_bytes));
    line("Stored", format!("{} {stored} of {budget} ({share})", bar(storage.stored_bytes, storage.max_bytes)));
    line("", format!("{} blobs and manifests", text::count(storage.blobs)));
    line("Disk", format!("{} of {} free", text::size(storage.free_bytes), text::size(storage.disk_bytes)));
    line("Log level", status.log_level.clone());
    if fills.is_empty() {
        line("Downloads", "none in progress".to_owned());
        return out;
    }
    line("Downloads", format!("{} in progress", fills.len()));
    let columns =
        [("DIGEST", false), ("REPOSITORY", false), ("DONE", true), ("SIZE", true), ("READERS", true), ("FOR", true)];
    let row = |fill: &Fill| {
        vec![
            text::short(&fill.digest).to_owned(),
            fill.repository.clone().unwrap_or_else(|| "-".to_owned()),
            fill.size_bytes.map_or_else(|| fill.stage.clone(), |size| text::percent(fill.present_bytes, size)),
            fill.size_bytes.map_or_else(|| "?".to_owned(), text::size),
            fill.readers.to_string(),
            text::span(std::time::Duration::try_from_secs_f64(fill.running_seconds).unwrap_or_default().as_secs()),
        ]
    };
    out + "\n" + &text::table(&columns, fills.iter().map(row))
}

fn bar(part: u64, whole: u64) -> String {
    let full = (part.saturating_mul(BAR_CHARS)).checked_div(whole).unwrap_or(0).min(BAR_CHARS);
    let full = usize::try_from(full).unwrap_or(0);
    let width = usize::try_from(BAR_CHARS).unwrap_or(0);
    format!("[{}{}]", "#".repeat(full), "-".repeat(width - full))
}
