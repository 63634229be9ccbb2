//! The background scrub: hashes everything that is stored, slowly, again and again.
//!
//! A round goes through the digests in order and remembers over a restart how far it is. It opens files by itself, touches
//! no last use, and leaves the page cache as it found it.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::Weak;
use std::time::Duration;

use serde::Deserialize;
use serde::Serialize;

use super::Inner;
use super::Timestamp;
use super::blocking;
use super::content;
use super::engine::Check;
use super::engine::Records;
use super::rot;
use crate::metrics::FoundBy;
use crate::oci::Digest;

/// The digests of one part at a time are in memory; a round is remembered after each.
const PARTS: u8 = 32;
/// So many files in a row that cannot be read are the disk's trouble, and no reason to throw content away.
const MAX_UNREADABLE: usize = 3;
/// A clock that is set, or a laptop that slept, is noticed within this time.
const CLOCK_PAUSE: Duration = Duration::from_secs(600);
const RECORD: &str = "scrub";

/// How the background scrub works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scrub {
    /// From the start of one round to the start of the next; the first starts that long after the first start ever.
    pub interval: Duration,
    /// Most bytes that are read a second; not zero.
    pub rate_bytes_per_second: u64,
}

/// How far it is.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Progress {
    /// When the last round began.
    began_at: Timestamp,
    /// Parts of it that are done.
    done: u8,
}

/// What became of one file.
enum Verdict {
    Sound,
    Rotten,
    /// It went while it was looked at, or before.
    Gone,
    Unreadable,
}

/// Scrubs until the store is gone.
pub(super) async fn run(store: Weak<Inner>, plan: Scrub) {
    let Some(records) = store.upgrade().and_then(|inner| inner.engine.state_records().ok()).map(Arc::new) else {
        return tracing::warn!("the progress of the scrub cannot be kept; there is no scrub");
    };
    let mut progress = recall(&records).await;
    loop {
        if progress.done >= PARTS {
            let waited = Timestamp::now().since(progress.began_at);
            if waited < plan.interval {
                tokio::time::sleep((plan.interval - waited).min(CLOCK_PAUSE)).await;
                if store.strong_count() == 0 {
                    return;
                }
                continue;
            }
            progress = Progress { began_at: Timestamp::now(), done: 0 };
            tracing::info!("a round of the scrub begins");
        }
        match round_part(&store, progress.done, plan.rate_bytes_per_second).await {
            None => return,
            Some(Err(unreadable)) => {
                tracing::error!(%unreadable, "the disk cannot be read; the scrub pauses");
                tokio::time::sleep(CLOCK_PAUSE).await;
                continue;
            }
            Some(Ok(())) => {}
        }
        progress.done += 1;
        if progress.done == PARTS {
            tracing::info!("a round of the scrub is done");
        }
        remember(&records, progress).await;
    }
}

async fn recall(records: &Arc<Records>) -> Progress {
    let reader = records.clone();
    let known = blocking(move || reader.load().unwrap_or_default()).await;
    match known.iter().find_map(|text| serde_json::from_str(text).ok()) {
        Some(progress) => progress,
        None => {
            let progress = Progress { began_at: Timestamp::now(), done: PARTS };
            remember(records, progress).await;
            progress
        }
    }
}

async fn remember(records: &Arc<Records>, progress: Progress) {
    let records = records.clone();
    blocking(move || {
        let Ok(text) = serde_json::to_string(&progress) else { return };
        if let Err(error) = records.write(RECORD, &text) {
            tracing::warn!(%error, "how far the scrub is cannot be written down");
        }
    })
    .await;
}

/// One part of a round; `None` when the store is gone, an error when the disk gives nothing back.
async fn round_part(store: &Weak<Inner>, part: u8, rate: u64) -> Option<Result<(), Digest>> {
    let inner = store.upgrade()?;
    let mut digests = blocking(move || inner.catalog.digests(|digest| part_of(digest) == part)).await;
    digests.sort_unstable();
    let mut unreadable = 0;
    for digest in digests {
        let verdict = scrub(store, &digest, rate).await?;
        unreadable = if matches!(verdict, Verdict::Unreadable) { unreadable + 1 } else { 0 };
        if unreadable >= MAX_UNREADABLE {
            return Some(Err(digest));
        }
    }
    Some(Ok(()))
}

fn part_of(digest: &Digest) -> u8 {
    digest.as_bytes().first().map_or(0, |byte| byte / (u8::MAX / PARTS + 1))
}

/// Hashes one file, and acts on what that tells. `None` when the store is gone.
async fn scrub(store: &Weak<Inner>, digest: &Digest, rate: u64) -> Option<Verdict> {
    let (inner, wanted) = (store.upgrade()?, *digest);
    let Some(size_bytes) = inner.catalog.size_bytes(digest) else { return Some(Verdict::Gone) };
    let opener = inner.clone();
    let opened = blocking(move || opener.engine.open_blob(&wanted)).await;
    let (file, found_bytes) = match opened {
        Ok(Some(opened)) => opened,
        Ok(None) => {
            blocking(move || content::forget_lost(&inner, &wanted)).await;
            return Some(Verdict::Gone);
        }
        Err(error) => {
            inner.read_failed(digest, &error);
            return Some(Verdict::Unreadable);
        }
    };
    drop(inner);
    let file = Arc::new(file);
    let verdict = if found_bytes == size_bytes {
        match hash(store, digest, &file, rate).await? {
            Ok(true) => Verdict::Sound,
            Ok(false) => Verdict::Rotten,
            Err(error) => {
                tracing::warn!(%digest, %error, "stored content cannot be read");
                store.upgrade()?.read_failed(digest, &error);
                Verdict::Unreadable
            }
        }
    } else {
        Verdict::Rotten
    };
    if matches!(verdict, Verdict::Rotten) {
        let (inner, digest) = (store.upgrade()?, *digest);
        blocking(move || {
            // What the disk does not let go of is found again in the next round, or by who asks for it.
            let _ = rot::quarantine(&inner, &digest, &file, FoundBy::Scrub);
        })
        .await;
    }
    Some(verdict)
}

/// Whether a file has the digest of its name, read no faster than allowed.
async fn hash(store: &Weak<Inner>, digest: &Digest, file: &Arc<File>, rate: u64) -> Option<io::Result<bool>> {
    let mut check = Check::new(digest, file);
    loop {
        let reader = file.clone();
        let (stepped, read) = blocking(move || {
            let read = check.step(&reader);
            (check, read)
        })
        .await;
        check = stepped;
        match read {
            Ok(0) => return Some(Ok(check.finish().is_ok())),
            Ok(size_bytes) => {
                store.upgrade()?.metrics.scrubbed(size_bytes as u64);
                tokio::time::sleep(time_for(size_bytes as u64, rate)).await;
            }
            Err(error) => return Some(Err(error)),
        }
    }
}

fn time_for(size_bytes: u64, rate: u64) -> Duration {
    Duration::from_nanos(size_bytes.saturating_mul(1_000_000_000) / rate.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    #[test]
    fn every_digest_is_of_one_part_in_order() {
        let parts: Vec<u8> = (0..=255).map(|first| part_of(&Digest::Sha256([first; 32]))).collect();
        assert!(parts.is_sorted() && parts[0] == 0 && parts[255] == PARTS - 1);
        assert!(part_of(&Digest::of(Algorithm::Sha512, b"x")) < PARTS);
        assert_eq!(time_for(1024, 1024), Duration::from_secs(1));
        assert_eq!(time_for(u64::MAX, 0).as_secs(), u64::MAX / 1_000_000_000);
    }
}
