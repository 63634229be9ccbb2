//! The downloads in progress, for people.

use std::time::Duration;

use crate::oci::Digest;
use crate::oci::Repository;

use super::Puller;
use super::fill::Opened;

/// A download in progress.
#[derive(Clone, Debug)]
pub struct FillProgress {
    /// What is downloaded.
    pub digest: Digest,
    /// For whom; `None` before the upstream has answered.
    pub repository: Option<Repository>,
    /// Its length, where it is known.
    pub size_bytes: Option<u64>,
    /// How much of it is there, in whatever order.
    pub present_bytes: u64,
    /// How many clients read along.
    pub readers: usize,
    /// How long it has been going on.
    pub running: Duration,
    /// How far it is.
    pub stage: FillStage,
}

/// How far a download is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FillStage {
    /// It waits for its turn, or for the upstream's answer.
    Opening,
    /// Bytes come, and are kept.
    Filling,
    /// Bytes come, but cannot be kept.
    PassingThrough,
    /// It is over: all is there, or nothing will be.
    Ending,
}

impl Puller {
    /// The downloads in progress, the oldest first.
    pub fn fills(&self) -> Vec<FillProgress> {
        let mut fills: Vec<_> = self
            .inner
            .fills
            .all()
            .into_iter()
            .map(|(key, wait)| {
                let mut progress = FillProgress {
                    digest: *key.digest(),
                    repository: None,
                    size_bytes: None,
                    present_bytes: 0,
                    readers: 0,
                    running: wait.since().elapsed(),
                    stage: FillStage::Opening,
                };
                match wait.value_now() {
                    None => {}
                    Some(Opened::Growing { leader, growing, .. }) => {
                        progress.repository = Some(leader);
                        progress.size_bytes = growing.size_bytes();
                        progress.present_bytes = growing.present_bytes();
                        progress.readers = growing.readers();
                        let is_whole = progress.size_bytes == Some(progress.present_bytes);
                        progress.stage = if is_whole { FillStage::Ending } else { FillStage::Filling };
                    }
                    Some(Opened::Relayed { leader, size_bytes, .. }) => {
                        progress.repository = Some(leader);
                        progress.size_bytes = size_bytes;
                        progress.stage = FillStage::PassingThrough;
                    }
                    Some(Opened::Failed { leader, .. }) => {
                        progress.repository = Some(leader);
                        progress.stage = FillStage::Ending;
                    }
                }
                progress
            })
            .collect();
        fills.sort_by_key(|fill| std::cmp::Reverse(fill.running));
        fills
    }
}
