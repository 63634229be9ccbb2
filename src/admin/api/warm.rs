//! Images that are fetched before anybody asks for them: each a job that can be looked at until it is forgotten.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use super::Api;
use super::Question;
use super::Warm;
use super::WarmBody;
use super::WarmState;
use super::Warms;
use super::failure::Failure;
use super::rfc3339;
use crate::oci::ImageName;
use crate::oci::Platform;
use crate::pull::Choice;
use crate::pull::Warming;
use crate::store::Timestamp;

/// Most images that are fetched at once.
const MAX_RUNNING: usize = 16;
/// Jobs that are remembered; the oldest that has ended is forgotten.
const MAX_JOBS: usize = 1000;

/// The jobs of this process.
#[derive(Default)]
pub(super) struct Jobs(Mutex<Table>);

#[derive(Default)]
struct Table {
    next_id: u64,
    jobs: BTreeMap<u64, Job>,
}

struct Job {
    image: ImageName,
    started_at: Timestamp,
    warming: Warming,
}

impl Api {
    pub(super) fn warm(&self, question: &Question) -> Result<Warm, Failure> {
        let wanted: WarmBody = question.json()?;
        let image: ImageName = wanted.image.parse().map_err(|error| Failure::bad_request(format!("image: {error}")))?;
        let choice = choice(&wanted.platforms, wanted.referrers)?;
        let mut table = self.jobs.table();
        if table.jobs.values().filter(|job| job.warming.end().is_none()).count() >= MAX_RUNNING {
            return Err(Failure::unavailable(format!("{MAX_RUNNING} images are being fetched; try again in a while")));
        }
        let warming = self.control.puller.warm(image.clone(), choice, &self.control.runtime);
        let job = Job { image, started_at: Timestamp::now(), warming };
        let id = table.next_id;
        table.next_id += 1;
        let described = job.describe(id);
        table.jobs.insert(id, job);
        table.forget();
        Ok(described)
    }

    pub(super) fn warms(&self) -> Warms {
        Warms { warms: self.jobs.table().jobs.iter().rev().map(|(id, job)| job.describe(*id)).collect() }
    }

    pub(super) fn warm_by_id(&self, question: &Question) -> Result<Warm, Failure> {
        let id = question.id()?;
        let table = self.jobs.table();
        let job = table.jobs.get(&id).ok_or_else(|| Failure::not_found(format!("there is no job {id}")))?;
        Ok(job.describe(id))
    }

    pub(super) fn stop_warm(&self, question: &Question) -> Result<Warm, Failure> {
        let id = question.id()?;
        let table = self.jobs.table();
        let job = table.jobs.get(&id).ok_or_else(|| Failure::not_found(format!("there is no job {id}")))?;
        job.warming.stop();
        Ok(job.describe(id))
    }
}

/// What of an image is wanted.
pub(super) fn choice(platforms: &[String], referrers: bool) -> Result<Choice, Failure> {
    let platforms = platforms.iter().map(|text| text.parse::<Platform>()).collect::<Result<_, _>>();
    let platforms = platforms.map_err(|error| Failure::bad_request(format!("platforms: {error}")))?;
    Ok(Choice { platforms, referrers })
}

impl Jobs {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn forget(&mut self) {
        if self.jobs.len() > MAX_JOBS {
            let ended = self.jobs.iter().find(|(_, job)| job.warming.end().is_some()).map(|(id, _)| *id);
            ended.and_then(|id| self.jobs.remove(&id));
        }
    }
}

impl Job {
    fn describe(&self, id: u64) -> Warm {
        let progress = self.warming.progress();
        let (state, error) = match self.warming.end() {
            None => (WarmState::Running, None),
            Some(Ok(())) => (WarmState::Done, None),
            Some(Err(error)) => (WarmState::Failed, Some(error.to_string())),
        };
        Warm {
            id,
            image: self.image.to_string(),
            digest: self.warming.digest().map(|digest| digest.to_string()),
            started_at: rfc3339(self.started_at),
            state,
            error,
            manifests: progress.manifests,
            blobs: progress.blobs,
            blobs_done: progress.blobs_done,
            total_bytes: progress.bytes,
            done_bytes: progress.bytes_done,
            fetched_bytes: progress.bytes_fetched,
        }
    }
}
