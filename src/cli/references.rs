//! `forebay why|history|pin|unpin|pins|purge|upstreams|offline`: one image, or one registry, of a running proxy.

use std::fmt::Write as _;

use reqwest::Method;

use super::remote;
use super::text;
use crate::admin::api::Endpoint;
use crate::admin::api::History;
use crate::admin::api::OfflineBody;
use crate::admin::api::PastDigest;
use crate::admin::api::Pin;
use crate::admin::api::PinBody;
use crate::admin::api::Pins;
use crate::admin::api::PurgeBody;
use crate::admin::api::Purged;
use crate::admin::api::UnpinBody;
use crate::admin::api::Upstream;
use crate::admin::api::Upstreams;
use crate::admin::api::Why;

/// What every command here takes.
#[derive(Clone, Debug, clap::Args)]
pub struct Common {
    /// Print JSON as the admin API sends it
    #[arg(long)]
    pub json: bool,
    /// The proxy.
    #[command(flatten)]
    pub remote: remote::Remote,
}

/// `forebay why IMAGE`, `forebay history IMAGE`, `forebay unpin IMAGE`.
#[derive(Clone, Debug, clap::Args)]
pub struct One {
    /// An image, such as alpine:3.20 or quay.io/prometheus/busybox@sha256:…
    pub image: String,
    /// Of all commands.
    #[command(flatten)]
    pub common: Common,
}

/// `forebay pin IMAGE`.
#[derive(Clone, Debug, clap::Args)]
pub struct PinArguments {
    /// An image, or a digest alone
    pub image: String,
    /// Only for this platform, such as linux/arm64; may be given several times; all without it
    #[arg(long, value_name = "OS/ARCH")]
    pub platform: Vec<String>,
    /// Leave out what refers to the image: signatures, attestations
    #[arg(long)]
    pub no_referrers: bool,
    /// Of all commands.
    #[command(flatten)]
    pub common: Common,
}

/// `forebay purge …`.
#[derive(Clone, Debug, clap::Args)]
pub struct PurgeArguments {
    /// An image, or a digest alone: then for all repositories
    #[arg(required_unless_present_any = ["repository", "registry"], conflicts_with_all = ["repository", "registry"])]
    pub image: Option<String>,
    /// All of a repository, such as quay.io/prometheus/busybox
    #[arg(long, value_name = "REPOSITORY", conflicts_with = "registry")]
    pub repository: Option<String>,
    /// All of a registry
    #[arg(long, value_name = "HOST")]
    pub registry: Option<String>,
    /// Of all commands.
    #[command(flatten)]
    pub common: Common,
}

/// `forebay offline on|off`.
#[derive(Clone, Debug, clap::Args)]
pub struct OfflineArguments {
    /// Ask nobody from now on, or ask again
    pub state: Switch,
    /// Only this registry; all without it
    #[arg(long, value_name = "HOST")]
    pub registry: Option<String>,
    /// Of all commands.
    #[command(flatten)]
    pub common: Common,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Switch {
    /// Nobody is asked
    On,
    /// They are asked again
    Off,
}

impl One {
    /// `why`.
    pub async fn why(&self) -> anyhow::Result<String> {
        let answer = self.common.remote.client()?.get("why", &[("image", self.image.clone())]).await?;
        if self.common.json { answer.json() } else { Ok(why(&answer.read()?)) }
    }

    /// `history`.
    pub async fn history(&self) -> anyhow::Result<String> {
        let answer = self.common.remote.client()?.get("history", &[("image", self.image.clone())]).await?;
        if self.common.json { answer.json() } else { Ok(history(&answer.read()?)) }
    }

    /// `unpin`.
    pub async fn unpin(&self) -> anyhow::Result<String> {
        let body = UnpinBody { image: self.image.clone() };
        let answer = self.common.remote.client()?.send(Method::POST, "unpin", &body).await?;
        if self.common.json {
            return answer.json();
        }
        Ok(format!("{} is not pinned any more; it stays until the room is needed\n", self.image))
    }
}

impl PinArguments {
    /// What to print.
    pub async fn run(&self) -> anyhow::Result<String> {
        let (image, platforms) = (self.image.clone(), self.platform.clone());
        let body = PinBody { image, platforms, referrers: !self.no_referrers };
        let answer = self.common.remote.client()?.send(Method::POST, "pins", &body).await?;
        if self.common.json {
            return answer.json();
        }
        let pin: Pin = answer.read()?;
        let missing = match pin.missing_bytes {
            0 => "all of it is here".to_owned(),
            bytes => format!("{} of it are being fetched", text::size(bytes)),
        };
        Ok(format!("{} is pinned: {}, {missing}\n", pin.image, text::size(pin.size_bytes)))
    }
}

impl Common {
    /// `pins`.
    pub async fn pins(&self) -> anyhow::Result<String> {
        let answer = self.remote.client()?.get("pins", &[]).await?;
        if self.json { answer.json() } else { Ok(pins(&answer.read()?)) }
    }

    /// `upstreams`.
    pub async fn upstreams(&self) -> anyhow::Result<String> {
        let answer = self.remote.client()?.get("upstreams", &[]).await?;
        if self.json { answer.json() } else { Ok(upstreams(&answer.read()?)) }
    }
}

impl PurgeArguments {
    /// What to print.
    pub async fn run(&self) -> anyhow::Result<String> {
        let (image, repository, registry) = (self.image.clone(), self.repository.clone(), self.registry.clone());
        let body = PurgeBody { image, repository, registry };
        let answer = self.common.remote.client()?.send(Method::POST, "purge", &body).await?;
        if self.common.json { answer.json() } else { Ok(purged(&answer.read()?)) }
    }
}

impl OfflineArguments {
    /// What to print.
    pub async fn run(&self) -> anyhow::Result<String> {
        let body = OfflineBody { registry: self.registry.clone(), offline: self.state == Switch::On };
        let answer = self.common.remote.client()?.send(Method::PUT, "offline", &body).await?;
        if self.common.json { answer.json() } else { Ok(upstreams(&answer.read()?)) }
    }
}

fn why(why: &Why) -> String {
    let mut out = format!("{}: {}: {}\n\n", why.image, why.verdict, why.meaning);
    let mut line = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            let _ = writeln!(out, "{name:<14}{value}");
        }
    };
    let until = |at: &Option<String>| at.as_deref().map(|at| format!("until {at}, {}", text::until(at)));
    line("Digest", why.digest.clone());
    line("Size", why.size_bytes.map(text::size));
    line(
        "Right",
        Some(match (why.right.as_str(), &why.right_expires_at) {
            ("not-here", _) => "the content is not here".to_owned(),
            ("none", _) => "this repository has not shown that it has it".to_owned(),
            ("public", _) => "public content, and this repository has it".to_owned(),
            (_, Some(at)) => format!("private, confirmed; again {}", text::until(at)),
            (other, None) => other.to_owned(),
        }),
    );
    line("Checked", why.checked_at.as_deref().map(text::ago));
    line("Fresh", until(&why.fresh_until));
    line("Stale", until(&why.stale_until));
    line("Rule", why.rule.clone());
    line("Immutable", why.immutable.then(|| "it stays where it points".to_owned()));
    line("Refused", why.refused_digest.clone());
    line("Trouble", why.trouble.clone());
    out
}

fn history(history: &History) -> String {
    let row = |past: &PastDigest| vec![past.digest.clone(), text::ago(&past.first_seen), text::ago(&past.last_seen)];
    let columns = [("DIGEST", false), ("FIRST SEEN", false), ("LAST SEEN", false)];
    let mut out = text::table(&columns, history.digests.iter().map(row));
    if let Some(at) = &history.gone_at {
        let _ = writeln!(out, "the registry said {} that the tag is gone", text::ago(at));
    }
    if let Some(refused) = &history.refused {
        let _ = writeln!(out, "not followed, the tag is immutable: {}", refused.digest);
    }
    out
}

fn pins(pins: &Pins) -> String {
    if pins.pins.is_empty() {
        return "nothing is pinned\n".to_owned();
    }
    let row = |pin: &Pin| {
        let state = match (&pin.problem, pin.missing_bytes) {
            (Some(problem), _) => problem.clone(),
            (None, 0) => "here".to_owned(),
            (None, bytes) => format!("{} to fetch", text::size(bytes)),
        };
        let platforms = if pin.platforms.is_empty() { "all".to_owned() } else { pin.platforms.join(" ") };
        vec![
            pin.image.clone(),
            text::short(&pin.digest).to_owned(),
            platforms,
            text::size(pin.size_bytes),
            text::ago(&pin.pinned_at),
            state,
        ]
    };
    let columns = [
        ("IMAGE", false),
        ("DIGEST", false),
        ("PLATFORMS", false),
        ("SIZE", true),
        ("PINNED", false),
        ("STATE", false),
    ];
    text::table(&columns, pins.pins.iter().map(row))
}

fn purged(purged: &Purged) -> String {
    let count = |number: usize, what: &str| format!("{} {what}", text::count(number as u64));
    let mut out = format!(
        "{} went, {} are free now; {}\n",
        count(purged.removed, "blobs and manifests"),
        text::size(purged.removed_bytes),
        count(purged.tags.len(), "tags are forgotten")
    );
    if !purged.kept.is_empty() {
        let row = |kept: &crate::admin::api::Kept| {
            vec![text::short(&kept.digest).to_owned(), text::size(kept.size_bytes), kept.by.join(", ")]
        };
        out.push('\n');
        out += &text::table(&[("KEPT", false), ("SIZE", true), ("HELD BY", false)], purged.kept.iter().map(row));
    }
    out
}

fn upstreams(upstreams: &Upstreams) -> String {
    let row = |upstream: &Upstream| {
        let limit = upstream.rate_limit.as_ref().map_or_else(
            || "-".to_owned(),
            |limit| {
                limit.limit.map_or_else(|| limit.remaining.to_string(), |most| format!("{} of {most}", limit.remaining))
            },
        );
        vec![
            upstream.registry.clone(),
            state(upstream),
            upstream.account.clone().unwrap_or_else(|| "anonymous".to_owned()),
            limit,
            upstream.endpoints.iter().map(|endpoint| endpoint.url.clone()).collect::<Vec<_>>().join(" "),
        ]
    };
    let columns = [("REGISTRY", false), ("STATE", false), ("ACCOUNT", false), ("LEFT", true), ("ENDPOINTS", false)];
    let all = if upstreams.offline { "all registries are switched offline\n" } else { "" };
    text::table(&columns, upstreams.registries.iter().map(row)) + all
}

fn state(upstream: &Upstream) -> String {
    if upstream.offline {
        return "offline".to_owned();
    }
    let is_down = |endpoint: &&Endpoint| endpoint.breaker != "closed" || endpoint.quiet_seconds.is_some();
    let down = upstream.endpoints.iter().filter(is_down).count();
    let said = upstream.endpoints.iter().find_map(|endpoint| endpoint.error.as_deref());
    match (down, said) {
        (0, _) => "ok".to_owned(),
        (down, said) if down == upstream.endpoints.len() => {
            // The last link of the chain says what happened; all of it is in the JSON.
            let cause = said.and_then(|said| said.rsplit(": ").next());
            cause.map_or("down".to_owned(), |cause| format!("down: {cause}"))
        }
        (down, _) => format!("{down} of {} endpoints down", upstream.endpoints.len()),
    }
}
