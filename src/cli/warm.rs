//! `forebay warm`: fetches images through a running proxy before anybody asks for them.

use std::io::IsTerminal as _;
use std::io::Read as _;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::StreamExt as _;
use indicatif::MultiProgress;
use indicatif::ProgressBar;
use indicatif::ProgressStyle;
use reqwest::Method;

use super::remote;
use super::remote::Client;
use super::remote::wrong;
use super::text;
use crate::admin::api::Warm;
use crate::admin::api::WarmBody;
use crate::admin::api::WarmState;

/// Between two looks at a fetch.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Largest list of images.
const MAX_LIST_BYTES: u64 = 16 * 1024 * 1024;
/// The name of standard input.
const STDIN: &str = "-";

/// `forebay warm`.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// Images, such as alpine:3.20 or quay.io/prometheus/busybox
    #[arg(value_name = "IMAGE", required_unless_present = "file")]
    pub images: Vec<String>,
    /// File with an image a line, # before comments; - is standard input
    #[arg(long, value_name = "LIST")]
    pub file: Option<PathBuf>,
    /// Only for this platform, such as linux/arm64; may be given several times; all without it
    #[arg(long, value_name = "OS/ARCH")]
    pub platform: Vec<String>,
    /// Leave out what refers to the images: signatures, attestations
    #[arg(long)]
    pub no_referrers: bool,
    /// Images at once
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub jobs: u8,
    /// Print JSON: an array of the jobs as the admin API has them
    #[arg(long)]
    pub json: bool,
    /// The proxy.
    #[command(flatten)]
    pub remote: remote::Remote,
}

/// What a command has to say, and whether it found a problem.
pub struct Report {
    /// For standard output.
    pub text: String,
    /// Exit code 1.
    pub has_problem: bool,
}

impl Arguments {
    /// Fetches all of them; one that fails does not stop the others.
    pub async fn run(&self) -> anyhow::Result<Report> {
        let mut images = self.images.clone();
        if let Some(list) = &self.file {
            images.extend(read_list(list)?);
        }
        let client = self.remote.client()?;
        let bars = Bars::new();
        let each = images.iter().map(|image| self.one(&client, image, &bars));
        let jobs: Vec<_> = futures_util::stream::iter(each).buffered(usize::from(self.jobs)).collect().await;
        let jobs = jobs.into_iter().collect::<anyhow::Result<Vec<Warm>>>()?;
        let has_problem = jobs.iter().any(|job| job.state != WarmState::Done);
        let text = if self.json { format!("{:#}\n", serde_json::to_value(&jobs)?) } else { summary(&jobs) };
        Ok(Report { text, has_problem })
    }

    async fn one(&self, client: &Client, image: &str, bars: &Bars) -> anyhow::Result<Warm> {
        let body =
            WarmBody { image: image.to_owned(), platforms: self.platform.clone(), referrers: !self.no_referrers };
        let mut job: Warm = client.send(Method::POST, "warm", &body).await.context(image.to_owned())?.read()?;
        let bar = bars.add(&job.image);
        while job.state == WarmState::Running {
            tokio::time::sleep(LOOK_EVERY).await;
            job = client.get(&format!("warm/{}", job.id), &[]).await?.read()?;
            bar.set_length(job.total_bytes);
            bar.set_position(job.done_bytes);
        }
        bar.finish_and_clear();
        bars.say(&line(&job));
        Ok(job)
    }
}

/// Progress on standard error, where it is a terminal; else a line for each image that is done.
struct Bars {
    bars: MultiProgress,
    is_terminal: bool,
}

impl Bars {
    fn new() -> Self {
        Self { bars: MultiProgress::new(), is_terminal: std::io::stderr().is_terminal() }
    }

    fn add(&self, image: &str) -> ProgressBar {
        let style = ProgressStyle::with_template(
            "{prefix:40!} {wide_bar} {bytes:>10} / {total_bytes:<10} {binary_bytes_per_sec:>12}",
        );
        let bar = ProgressBar::new(0).with_prefix(image.to_owned());
        let bar = self.bars.add(bar);
        if let Ok(style) = style {
            bar.set_style(style);
        }
        bar
    }

    fn say(&self, line: &str) {
        if self.is_terminal {
            let _ = self.bars.println(line);
        } else {
            super::note(line);
        }
    }
}

fn line(job: &Warm) -> String {
    match &job.error {
        Some(error) => format!("failed: {}: {error}", job.image),
        None => format!(
            "{}: {} in {} manifests and {} blobs, {} of it fetched",
            job.image,
            text::size(job.total_bytes),
            job.manifests,
            job.blobs,
            text::size(job.fetched_bytes)
        ),
    }
}

fn summary(jobs: &[Warm]) -> String {
    let done = jobs.iter().filter(|job| job.state == WarmState::Done).count();
    let fetched_bytes = jobs.iter().map(|job| job.fetched_bytes).sum();
    format!("{done} of {} images are here; {} fetched\n", jobs.len(), text::size(fetched_bytes))
}

/// The images of a list: one a line, without blank lines and comments.
fn read_list(path: &Path) -> anyhow::Result<Vec<String>> {
    let refuse = |error: std::io::Error| wrong("file", &format!("cannot read {}: {error}", path.display()));
    let mut text = String::new();
    if path == Path::new(STDIN) {
        std::io::stdin().take(MAX_LIST_BYTES).read_to_string(&mut text).map_err(refuse)?;
    } else {
        #[expect(clippy::disallowed_methods, reason = "a list of the user's")]
        let file = std::fs::File::open(path).map_err(refuse)?;
        file.take(MAX_LIST_BYTES).read_to_string(&mut text).map_err(refuse)?;
    }
    let images = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    Ok(images.filter(|line| !line.is_empty()).map(str::to_owned).collect())
}
