//! Start-up: the index as it was left, or one rebuilt from the blobs and the journal.
//!
//! sled may refuse damaged files, panic on them, or never return, so it is opened and read on a thread of its own under a
//! deadline. An index that fails is set aside, not deleted. One that hangs cannot be stopped: this start ends, and the
//! marker that it leaves behind makes the next one rebuild.
#![expect(clippy::disallowed_methods, reason = "start-up moves the index's directory")]

use std::io;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use crate::oci::Digest;

use super::Timestamp;
use super::catalog::Catalog;
use super::change::Change;
use super::engine::Engine;
use super::error::OpenError;
use super::index::Index;
use super::index::IndexError;
use super::journal::Journal;

/// Opening and reading take about a second for a million rows.
const OPEN_TIMEOUT: Duration = Duration::from_secs(60);

pub(super) struct Recovered {
    pub(super) catalog: Catalog,
    pub(super) index: Index,
    pub(super) journal: Journal,
}

pub(super) fn open(engine: &Engine) -> Result<Recovered, OpenError> {
    let (path, opening, running) = (engine.index_path(), engine.index_marker_path(), engine.running_marker_path());
    let mut journal = Journal::open(&engine.journal_path()).map_err(refused(&engine.journal_path()))?;
    if opening.exists() {
        set_aside(&path, "the last start did not get past opening it").map_err(refused(&path))?;
    }
    let was_clean = !running.exists();
    for marker in [&opening, &running] {
        std::fs::write(marker, "").map_err(refused(marker))?;
    }
    let (catalog, index) = match path.exists().then(|| load_guarded(&path)).transpose()? {
        Some(Ok((catalog, index))) => {
            if !was_clean {
                catch_up(engine, &journal, &catalog, &index)?;
            }
            (catalog, index)
        }
        Some(Err(reason)) => {
            set_aside(&path, &reason).map_err(refused(&path))?;
            rebuild(engine, &journal)?
        }
        None => rebuild(engine, &journal)?,
    };
    std::fs::remove_file(&opening).map_err(refused(&opening))?;
    if let Err(error) = journal.compact(&catalog) {
        tracing::warn!(%error, "the journal could not be written anew; it stays as long as it is");
    }
    Ok(Recovered { catalog, index, journal })
}

/// The index and the journal say the same: the next start need not compare them.
pub(super) fn mark_clean(engine: &Engine) {
    if let Err(error) = std::fs::remove_file(engine.running_marker_path()) {
        tracing::warn!(%error, "the clean stop could not be noted; the next start reads the journal");
    }
}

fn refused(path: &Path) -> impl FnOnce(io::Error) -> OpenError + use<> {
    let path = path.to_owned();
    move |source| OpenError::Directory { path, source }
}

type Loaded = Result<(Catalog, Index), String>;

fn load_guarded(path: &Path) -> Result<Loaded, OpenError> {
    remove_unfinished_snapshots(path);
    let (sender, receiver) = mpsc::channel();
    let path = path.to_owned();
    let load = move || {
        let loaded = catch_unwind(AssertUnwindSafe(|| {
            let index = Index::open(&path)?;
            Ok((index.load()?, index))
        }));
        let loaded = match loaded {
            Ok(loaded) => loaded.map_err(|error: IndexError| error.to_string()),
            Err(_) => Err("reading it panicked".to_owned()),
        };
        // The receiver is gone only after the deadline, when nobody wants it any more.
        let _ = sender.send(loaded);
    };
    std::thread::Builder::new().name("index-open".into()).spawn(load).map_err(OpenError::Thread)?;
    receiver.recv_timeout(OPEN_TIMEOUT).map_err(|_| OpenError::IndexStuck)
}

/// sled never opens again when one of these was left behind; the snapshot before it is still there.
fn remove_unfinished_snapshots(path: &Path) {
    let Ok(entries) = std::fs::read_dir(path) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            tracing::warn!(file = %name, "removing an unfinished snapshot of the index");
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Tells the index what only the journal says: the last moments before a crash.
fn catch_up(engine: &Engine, journal: &Journal, catalog: &Catalog, index: &Index) -> Result<(), OpenError> {
    let (mut changes, mut outcome) = (0, Ok(()));
    let damaged_lines = replay(engine, journal, catalog, |change| {
        changes += 1;
        if outcome.is_ok() {
            outcome = index.apply(change);
        }
    })?;
    outcome.map_err(|error| refused(&engine.index_path())(io::Error::other(error)))?;
    tracing::info!(changes, damaged_lines, "the last stop was not clean; the index was caught up from the journal");
    Ok(())
}

/// Opens an empty index and tells it what the directory and the journal say.
fn rebuild(engine: &Engine, journal: &Journal) -> Result<(Catalog, Index), OpenError> {
    let path = engine.index_path();
    let catalog = Catalog::new();
    engine
        .list(|listed| {
            catalog.insert(&listed.digest, listed.size_bytes, listed.modified_at, &[]);
        })
        .map_err(refused(&path))?;
    let damaged_lines = replay(engine, journal, &catalog, |_| {})?;
    let index = Index::open(&path).map_err(|error| refused(&path)(io::Error::other(error)))?;
    let mut outcome = Ok(());
    catalog.each_change(|change| {
        if outcome.is_ok() {
            outcome = index.apply(&change);
        }
    });
    outcome.map_err(|error| refused(&path)(io::Error::other(error)))?;
    if catalog.blobs() > 0 {
        tracing::warn!(blobs = catalog.blobs(), damaged_lines, "the index was rebuilt from what is on disk");
    }
    Ok((catalog, index))
}

/// Tells the catalog all that the journal says of content that is on disk, and `news` what was not known.
///
/// Old lines pass over newer knowledge, but in their order: after the last one each digest and tag stands as it was left.
fn replay(
    engine: &Engine,
    journal: &Journal,
    catalog: &Catalog,
    mut news: impl FnMut(&Change),
) -> Result<u64, OpenError> {
    let is_on_disk = |digest: &Digest, size_bytes: u64| matches!(engine.open_blob(digest), Ok(Some((_, found_bytes))) if found_bytes == size_bytes);
    let tell = |change: Change| {
        let is_news = match &change {
            Change::Content(digest, size_bytes, at) => {
                catalog.size_bytes(digest).is_none()
                    && is_on_disk(digest, *size_bytes)
                    && catalog.insert(digest, *size_bytes, *at, &[])
            }
            Change::Fact(digest, fact) => catalog.learn(digest, fact),
            Change::Forget(digest) => catalog.remove(digest).is_some(),
            Change::Revoke(digest, repository) => catalog.purge_grant(digest, repository),
            Change::Tag(repository, tag, record) => {
                let known = catalog.tag(repository, tag);
                match record {
                    None => catalog.forget_tag(repository, tag),
                    // The index may know of later checks: those are not in the journal.
                    Some(record) if known.is_some_and(|known| known.heard_at() >= record.heard_at()) => false,
                    Some(record) => {
                        catalog.restore_tag(repository, tag, record.clone());
                        true
                    }
                }
            }
            Change::Used(..) | Change::Checked(..) => false,
        };
        if is_news {
            news(&change);
        }
    };
    journal.replay(tell).map_err(refused(&engine.journal_path()))
}

fn set_aside(path: &Path, reason: &str) -> io::Result<()> {
    if !path.exists() {
        return Ok(());
    }
    let aside = path.with_extension(format!("bad-{}", Timestamp::now().as_millis()));
    tracing::error!(aside = %aside.display(), reason, "the index is damaged; it is set aside and rebuilt");
    std::fs::rename(path, aside)
}
