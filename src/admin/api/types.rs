//! What the API says, as its clients read it. Sizes are bytes, times RFC 3339 in UTC. Fields are added, never changed.

use serde::Deserialize;
use serde::Serialize;

/// An answer that is none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ErrorBody {
    /// What went wrong.
    pub error: ErrorDetail,
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ErrorDetail {
    /// For programs: `unauthorized`, `forbidden`, `not_found`, `method_not_allowed`, `bad_request`, `too_large`,
    /// `conflict`, `unavailable` or `internal`.
    pub code: String,
    /// For people: what to do.
    pub message: String,
}

/// `GET /api/v1/status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Status {
    /// Of the program.
    pub version: String,
    /// When it started.
    pub started_at: String,
    /// How long it has been running.
    pub uptime_seconds: u64,
    /// It takes requests.
    pub ready: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Room and content.
    pub storage: Storage,
    /// What was served since the start.
    pub traffic: Traffic,
    /// Files that the process may have open at once, connections among them; `null` without a limit.
    pub open_files_limit: Option<u64>,
    /// Downloads in progress.
    pub fills_in_flight: usize,
    /// Directives in force.
    pub log_level: String,
}

/// Room and content.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Storage {
    /// Published content.
    pub stored_bytes: u64,
    /// Published blobs and manifests.
    pub blobs: u64,
    /// Promised to downloads in progress.
    pub reserved_bytes: u64,
    /// Above it, the least recently used content goes.
    pub max_bytes: u64,
    /// Down to this.
    pub low_watermark_bytes: u64,
    /// What stays free on the disk.
    pub min_free_bytes: u64,
    /// What is free on the disk.
    pub free_bytes: u64,
    /// The size of the file system.
    pub disk_bytes: u64,
    /// Tells on this machine, until it starts anew, whether a directory is the one that content is kept in. Empty when that
    /// cannot be told.
    #[serde(default)]
    pub directory_id: String,
}

/// Totals since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Traffic {
    /// Manifests and blobs asked for.
    pub requests: u64,
    /// Of those, the ones that needed no body of the upstream: hits, revalidated, stale, and joined downloads.
    pub hits: u64,
    /// Hits over requests, 0 to 1; `null` before the first request.
    pub hit_ratio: Option<f64>,
    /// Body bytes sent to clients.
    pub sent_bytes: u64,
    /// Body bytes received from registries.
    pub upstream_bytes: u64,
    /// What did not have to be downloaded.
    pub saved_bytes: u64,
    /// Content removed to make room.
    pub evicted_bytes: u64,
}

/// `GET /api/v1/traffic`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TrafficHistory {
    /// Totals since the start, each at its time, oldest first.
    pub samples: Vec<TrafficSample>,
}

/// Totals at one time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TrafficSample {
    /// When.
    pub at: String,
    /// Totals since the start.
    #[serde(flatten)]
    pub traffic: Traffic,
}

/// `GET /api/v1/images`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Images {
    /// This page of them.
    pub images: Vec<Image>,
    /// How many there are, on all pages.
    pub total: usize,
}

/// An image, by a tag or by its digest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Image {
    /// Where it is from.
    pub registry: String,
    /// Its repository.
    pub repository: String,
    /// Its tag; `null` where it was pulled by digest only.
    pub tag: Option<String>,
    /// The digest of its index or manifest.
    pub digest: String,
    /// Its media type; `null` where it is gone.
    pub media_type: Option<String>,
    /// The platforms that are here, in order.
    pub platforms: Vec<String>,
    /// What is here of it.
    pub size_bytes: u64,
    /// Of that, what other images use too.
    pub shared_bytes: u64,
    /// When a part of it was last used; `null` where all of it is gone.
    pub last_used: Option<String>,
    /// When the registry last said that the tag is this; `null` without a tag.
    pub checked_at: Option<String>,
    /// It never gives way to other content.
    pub pinned: bool,
    /// How much of it is here.
    pub state: ImageState,
}

/// How much of an image is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ImageState {
    /// At least one platform can be pulled without asking the registry for content.
    Complete,
    /// Some of its content is missing.
    Partial,
    /// Its manifest is gone.
    Evicted,
}

/// `GET /api/v1/blobs`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Blobs {
    /// This page of them.
    pub blobs: Vec<Blob>,
    /// How many there are, on all pages.
    pub total: usize,
}

/// A blob or manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Blob {
    /// Its digest.
    pub digest: String,
    /// Its length.
    pub size_bytes: u64,
    /// Of a manifest: its type.
    pub media_type: Option<String>,
    /// When it was last used.
    pub last_used: String,
    /// Who may serve it: `registry/repository`.
    pub repositories: Vec<String>,
}

/// `GET /api/v1/fills`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Fills {
    /// The oldest first.
    pub fills: Vec<Fill>,
}

/// A download in progress.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Fill {
    /// What is downloaded.
    pub digest: String,
    /// For whom: `registry/repository`; `null` before the registry has answered.
    pub repository: Option<String>,
    /// Its length, where it is known.
    pub size_bytes: Option<u64>,
    /// How much is there.
    pub present_bytes: u64,
    /// How many clients read along.
    pub readers: usize,
    /// How long it has been going on.
    pub running_seconds: f64,
    /// `opening`, `filling`, `passing_through` or `ending`.
    pub stage: String,
}

/// `GET` and `PUT /api/v1/log-level`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct LogLevelBody {
    /// Directives such as `info` or `info,forebay::upstream=debug`.
    pub level: String,
}

/// `POST /api/v1/warm`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct WarmBody {
    /// `[registry/]repository[:tag]` or `[registry/]repository@digest`.
    pub image: String,
    /// Of an index, these, as `os/architecture[/variant]`; all of them where empty.
    #[serde(default)]
    pub platforms: Vec<String>,
    /// Also what refers to it, such as signatures.
    #[serde(default = "yes")]
    pub referrers: bool,
}

fn yes() -> bool {
    true
}

/// `GET /api/v1/warm`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Warms {
    /// The newest first.
    pub warms: Vec<Warm>,
}

/// An image that is fetched before anybody asks for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Warm {
    /// The number of the job.
    pub id: u64,
    /// Its full name.
    pub image: String,
    /// Its digest, once it is known.
    pub digest: Option<String>,
    /// When it was asked for.
    pub started_at: String,
    /// How it stands.
    pub state: WarmState,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Manifests that are here.
    pub manifests: u64,
    /// All blobs; zero until the manifests are read.
    pub blobs: u64,
    /// Of those, the ones that are here.
    pub blobs_done: u64,
    /// Bytes of the blobs.
    pub total_bytes: u64,
    /// Of those, the ones that are here.
    pub done_bytes: u64,
    /// What came from the registry for it.
    pub fetched_bytes: u64,
}

/// How a fetch stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum WarmState {
    /// It goes on.
    Running,
    /// All of it is here.
    Done,
    /// It ended early.
    Failed,
}

/// `GET /api/v1/why?image=`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Why {
    /// The full name that was meant.
    pub image: String,
    /// `hit`, `check`, `stale`, `offline`, `confirm`, `fetch`, `absent`, `unavailable` or `not-allowed`.
    pub verdict: String,
    /// What that means, in a sentence.
    pub meaning: String,
    /// Where the bytes would come from: `store`, `upstream` or `none`.
    pub source: String,
    /// The digest meant, where it is known.
    pub digest: Option<String>,
    /// Its length, where it is here.
    pub size_bytes: Option<u64>,
    /// When the registry last said where the tag points.
    pub checked_at: Option<String>,
    /// Up to when the tag is served without asking.
    pub fresh_until: Option<String>,
    /// Up to when the tag is served though the registry cannot be asked.
    pub stale_until: Option<String>,
    /// The pattern of the rule that decided; `null`: the registry's own keys.
    pub rule: Option<String>,
    /// The tag stays where it points.
    pub immutable: bool,
    /// Where the registry says that an immutable tag points now.
    pub refused_digest: Option<String>,
    /// The repository's right to it: `not-here`, `none`, `public` or `private`.
    pub right: String,
    /// Of a private right: when it has to be confirmed again.
    pub right_expires_at: Option<String>,
    /// The registry's trouble, while it cannot be asked.
    pub trouble: Option<String>,
}

/// `GET /api/v1/history?image=`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct History {
    /// The full name that was meant.
    pub image: String,
    /// Where the tag pointed and points, the newest first.
    pub digests: Vec<PastDigest>,
    /// When the registry said that the tag is gone.
    pub gone_at: Option<String>,
    /// Where the registry says that an immutable tag points, which is not followed.
    pub refused: Option<PastDigest>,
}

/// A digest that a tag points or pointed to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PastDigest {
    /// The digest.
    pub digest: String,
    /// When the registry first said so.
    pub first_seen: String,
    /// When it last said so.
    pub last_seen: String,
}

/// `GET /api/v1/upstreams` and `PUT /api/v1/offline`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Upstreams {
    /// All registries are switched offline.
    pub offline: bool,
    /// By name.
    pub registries: Vec<Upstream>,
}

/// How a registry is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Upstream {
    /// Its name in references.
    pub registry: String,
    /// Nobody asks it.
    pub offline: bool,
    /// Who we are there: `user@registry`; `null` is anonymous.
    pub account: Option<String>,
    /// In configured order.
    pub endpoints: Vec<Endpoint>,
    /// What it last said of its rate limit.
    pub rate_limit: Option<RateLimit>,
    /// `max_requests_per_minute`.
    pub max_requests_per_minute: Option<u32>,
    /// Requests of the last minute, where there is such a limit.
    pub requests_last_minute: Option<u32>,
    /// Questions on their way, downloads of blobs apart.
    pub questions_in_flight: usize,
    /// Tokens that are kept.
    pub tokens: usize,
    /// How long ago the oldest of them was got.
    pub token_age_seconds: Option<u64>,
    /// Until the first of them is renewed.
    pub token_renewed_in_seconds: Option<u64>,
}

/// How one endpoint is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Endpoint {
    /// Its base URL.
    pub url: String,
    /// `closed`: it is asked; `open`: it did not answer, and is not asked; `probing`: one question tries it.
    pub breaker: String,
    /// Questions in a row that it did not answer.
    pub failures: u32,
    /// Why it is not asked.
    pub error: Option<String>,
    /// Until it is tried again.
    pub tried_in_seconds: Option<u64>,
    /// It asked to be left alone, still so long.
    pub quiet_seconds: Option<u64>,
    /// Its bytes were wrong: others are asked before it, still so long.
    pub distrusted_seconds: Option<u64>,
}

/// What a registry said of its rate limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RateLimit {
    /// Requests in a window.
    pub limit: Option<u64>,
    /// What is left of them.
    pub remaining: u64,
    /// The window.
    pub window_seconds: Option<u64>,
    /// How long ago it said so.
    pub age_seconds: u64,
}

/// `PUT /api/v1/offline`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct OfflineBody {
    /// Which one; all of them without it.
    #[serde(default)]
    pub registry: Option<String>,
    /// Nobody asks it from now on; or it is asked again.
    pub offline: bool,
}

/// `POST /api/v1/pins`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct PinBody {
    /// `[registry/]repository[:tag]`, `[registry/]repository@digest`, or a digest alone.
    pub image: String,
    /// Of an index, these, as `os/architecture[/variant]`; all of them where empty.
    #[serde(default)]
    pub platforms: Vec<String>,
    /// Also what refers to it, such as signatures.
    #[serde(default = "yes")]
    pub referrers: bool,
}

/// `POST /api/v1/unpin`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct UnpinBody {
    /// As it was pinned.
    pub image: String,
}

/// `GET /api/v1/pins`, `POST /api/v1/unpin`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Pins {
    /// The oldest first.
    pub pins: Vec<Pin>,
}

/// What never gives way to other content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Pin {
    /// The full name, or a digest alone.
    pub image: String,
    /// What that is now.
    pub digest: String,
    /// Of an index, these; all of them where empty.
    pub platforms: Vec<String>,
    /// With what refers to it.
    pub referrers: bool,
    /// Since when.
    pub pinned_at: String,
    /// All of it.
    pub size_bytes: u64,
    /// What is still to be fetched.
    pub missing_bytes: u64,
    /// Why the last try to fetch or to follow did not get there.
    pub problem: Option<String>,
}

/// `POST /api/v1/purge`: exactly one of the fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct PurgeBody {
    /// `[registry/]repository[:tag]`, `[registry/]repository@digest`, or a digest alone: for all repositories.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// `registry/repository`: all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// All of a registry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry: Option<String>,
}

/// What a purge did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Purged {
    /// Tags that are forgotten.
    pub tags: Vec<String>,
    /// Blobs and manifests that went.
    pub removed: usize,
    /// The room that is free now.
    pub removed_bytes: u64,
    /// What stays, because something else holds it.
    pub kept: Vec<Kept>,
}

/// Content that a purge left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Kept {
    /// Its digest.
    pub digest: String,
    /// Its length.
    pub size_bytes: u64,
    /// What holds it, in words.
    pub by: Vec<String>,
}

/// `POST /api/v1/reload`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Reload {
    /// Keys and sections that differ and are read at start only; all others are in force.
    pub needs_restart: Vec<String>,
}
