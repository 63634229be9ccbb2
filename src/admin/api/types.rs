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
    /// Blobs known so far.
    pub blobs: u64,
    /// Of those, the ones that are here.
    pub blobs_done: u64,
    /// Bytes of the blobs known so far.
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
