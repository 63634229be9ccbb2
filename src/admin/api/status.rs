//! The state of the process: status, traffic, downloads, log level.

use std::time::Duration;

use rustix::process::Resource;
use rustix::process::getrlimit;
use tokio::sync::oneshot;

use super::Api;
use super::Fill;
use super::Fills;
use super::LogLevelBody;
use super::Question;
use super::Reload;
use super::Status;
use super::Storage;
use super::Traffic;
use super::TrafficHistory;
use super::TrafficSample;
use super::failure::Failure;
use super::rfc3339;
use crate::admin::ReloadRequest;
use crate::admin::traffic::totals;
use crate::pull::FillProgress;
use crate::pull::FillStage;
use crate::store::Timestamp;

/// How far back the history of traffic goes when the request does not say.
const DEFAULT_HISTORY_MINUTES: usize = 60;
/// How far back it goes.
const MAX_HISTORY_MINUTES: usize = 24 * 60;
/// Samples of one answer.
const MAX_POINTS: usize = 720;

impl Api {
    pub(super) async fn status(&self) -> Status {
        let (stats, room) = (self.control.store.stats(), self.control.store.room().await);
        let reason = self.control.readiness.reason();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: rfc3339(self.started_at),
            uptime_seconds: Timestamp::now().since(self.started_at).as_secs(),
            ready: reason.is_none(),
            reason,
            storage: Storage {
                stored_bytes: stats.stored_bytes,
                blobs: stats.blobs,
                reserved_bytes: stats.reserved_bytes,
                max_bytes: room.max_bytes,
                low_watermark_bytes: room.low_watermark_bytes,
                min_free_bytes: room.min_free_bytes,
                free_bytes: room.free_bytes,
                disk_bytes: room.disk_bytes,
                directory_id: room.directory_id,
            },
            traffic: self.traffic(),
            open_files_limit: getrlimit(Resource::Nofile).current,
            fills_in_flight: self.control.puller.fills().len(),
            log_level: self.control.log_level.get(),
        }
    }

    /// Totals since the start.
    pub(super) fn traffic(&self) -> Traffic {
        totals(&(self.control.metrics_text)())
    }

    pub(super) fn traffic_history(&self, question: &Question) -> Result<TrafficHistory, Failure> {
        let minutes = question.number("minutes", DEFAULT_HISTORY_MINUTES, MAX_HISTORY_MINUTES)?;
        let points = question.number("points", MAX_POINTS, MAX_POINTS)?;
        let now = Timestamp::now();
        let span = Duration::from_secs(minutes as u64 * 60);
        let from = Timestamp::from_millis(now.as_millis().saturating_sub(u64::try_from(span.as_millis()).unwrap_or(0)));
        let samples = self.ring.since(from, points).into_iter().chain([(now, self.traffic())]);
        let samples = samples.map(|(at, traffic)| TrafficSample { at: rfc3339(at), traffic });
        Ok(TrafficHistory { samples: samples.collect() })
    }

    pub(super) fn fills(&self) -> Fills {
        Fills { fills: self.control.puller.fills().iter().map(fill).collect() }
    }

    /// Reads the configuration again. What is wrong with it changes nothing.
    pub(super) async fn reload(&self) -> Result<Reload, Failure> {
        let (answer, reloaded) = oneshot::channel();
        let stopping = || Failure::unavailable("the proxy is stopping");
        self.control.reload.send(ReloadRequest { answer }).await.map_err(|_| stopping())?;
        match reloaded.await {
            Ok(Ok(reloaded)) => Ok(Reload { needs_restart: reloaded.needs_restart }),
            Ok(Err(problem)) => Err(Failure::conflict(format!("nothing was changed: {problem}"))),
            Err(_) => Err(stopping()),
        }
    }

    pub(super) fn log_level(&self) -> LogLevelBody {
        LogLevelBody { level: self.control.log_level.get() }
    }

    pub(super) fn set_log_level(&self, question: &Question) -> Result<LogLevelBody, Failure> {
        let wanted: LogLevelBody = question.json()?;
        self.control.log_level.set(&wanted.level).map_err(|error| Failure::bad_request(error.to_string()))?;
        let level = self.control.log_level.get();
        tracing::info!(level, "the log level was changed");
        Ok(LogLevelBody { level })
    }
}

fn fill(progress: &FillProgress) -> Fill {
    let stage = match progress.stage {
        FillStage::Opening => "opening",
        FillStage::Filling => "filling",
        FillStage::PassingThrough => "passing_through",
        FillStage::Ending => "ending",
    };
    Fill {
        digest: progress.digest.to_string(),
        repository: progress.repository.as_ref().map(ToString::to_string),
        size_bytes: progress.size_bytes,
        present_bytes: progress.present_bytes,
        readers: progress.readers,
        running_seconds: progress.running.as_secs_f64(),
        stage: stage.to_owned(),
    }
}
