//! Start-up: what is known comes from the snapshot and from what the journal says since.
//!
//! Neither sled nor the number of files is on this way. Where the snapshot or the journal is damaged or missing, the disk
//! says what content there is, and the index, if it can be read, what was known about it.

use std::collections::HashSet;
use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::oci::Algorithm;
use crate::oci::Digest;

use super::catalog::Catalog;
use super::change::Change;
use super::engine::Engine;
use super::engine::Listed;
use super::error::OpenError;
use super::indexer;
use super::journal;
use super::journal::Journal;
use super::snapshot;
use super::snapshot::Loaded;

pub(super) struct Recovered {
    pub(super) catalog: Arc<Catalog>,
    pub(super) journal: Journal,
    /// The files do not say what is known now.
    pub(super) is_snapshot_due: bool,
}

pub(super) fn open(engine: &Engine) -> Result<Recovered, OpenError> {
    let catalog = Arc::new(Catalog::new());
    snapshot::sweep(&engine.snapshot_path());
    let loaded = snapshot::load(&engine.snapshot_path(), &catalog).unwrap_or_else(|error| {
        tracing::error!(%error, "the snapshot cannot be read");
        Loaded::Damaged
    });
    if loaded != Loaded::Whole {
        adopt(engine, &catalog)?;
        if engine.index_path().exists() {
            indexer::consult(engine, &catalog);
        }
    }
    let (journal, aside) = (engine.journal_path(), engine.old_journal_path());
    let mut replay = Replay { engine, catalog: &catalog, is_rebuilding: loaded != Loaded::Whole, gone: HashSet::new() };
    let damaged_lines = replay.of(&aside)? + replay.of(&journal)?;
    let gone = replay.gone;
    if damaged_lines > 0 {
        adopt(engine, &catalog)?;
    } else {
        gone.iter()
            .filter(|digest| catalog.size_bytes(digest).is_none())
            .for_each(|digest| finish_removal(engine, digest));
    }
    let blobs = catalog.blobs();
    if damaged_lines > 0 || loaded == Loaded::Damaged || (loaded == Loaded::Absent && blobs > 0) {
        tracing::warn!(blobs, damaged_lines, snapshot = ?loaded, "what is known was put together from what is on disk");
    }
    let journal = Journal::open(&journal).map_err(refused(&engine.journal_path()))?;
    Ok(Recovered { catalog, journal, is_snapshot_due: damaged_lines > 0 || loaded != Loaded::Whole || aside.exists() })
}

fn refused(path: &Path) -> impl FnOnce(io::Error) -> OpenError + use<> {
    let path = path.to_owned();
    move |source| OpenError::Directory { path, source }
}

/// Tells the catalog what content there is on disk, and what there is not.
fn adopt(engine: &Engine, catalog: &Catalog) -> Result<(), OpenError> {
    let list = |algorithm, first, listed: Vec<Listed>| adopt_directory(catalog, algorithm, first, &listed);
    engine.list(list).map_err(refused(&engine.index_path()))
}

fn adopt_directory(catalog: &Catalog, algorithm: Algorithm, first: u8, listed: &[Listed]) {
    let on_disk: HashSet<Digest> = listed.iter().map(|listed| listed.digest).collect();
    let mut gone = Vec::new();
    for second in 0..=u8::MAX {
        catalog.each_beginning(algorithm, [first, second], |digest, _| {
            if !on_disk.contains(&digest) {
                gone.push(digest);
            }
        });
    }
    for digest in &gone {
        catalog.remove(digest);
    }
    for listed in listed {
        if catalog.size_bytes(&listed.digest).is_none()
            && let Some((size_bytes, modified_at)) = listed.stat()
        {
            catalog.insert(&listed.digest, size_bytes, modified_at, &[]);
        }
    }
}

/// Tells the catalog what a journal says.
struct Replay<'a> {
    engine: &'a Engine,
    catalog: &'a Catalog,
    /// The catalog knows already what is on disk, and nothing else is.
    is_rebuilding: bool,
    /// What was to be removed when that was written. The process may have ended before it was.
    gone: HashSet<Digest>,
}

impl Replay<'_> {
    /// How many lines were damaged.
    fn of(&mut self, path: &Path) -> Result<u64, OpenError> {
        let damaged = journal::replay(path, |change| self.tell(&change));
        damaged.map_err(refused(path))
    }

    fn tell(&mut self, change: &Change) {
        match change {
            Change::Content(digest, size_bytes, _) if self.is_rebuilding && !self.is_on_disk(digest, *size_bytes) => {}
            Change::Forget(digest) => {
                self.gone.insert(*digest);
                self.catalog.apply(change);
            }
            _ => drop(self.catalog.apply(change)),
        }
    }

    fn is_on_disk(&self, digest: &Digest, size_bytes: u64) -> bool {
        let on_disk =
            || matches!(self.engine.open_blob(digest), Ok(Some((_, found_bytes))) if found_bytes == size_bytes);
        self.catalog.size_bytes(digest).is_some() || on_disk()
    }
}

fn finish_removal(engine: &Engine, digest: &Digest) {
    if let Err(error) = engine.remove(digest) {
        tracing::warn!(%digest, %error, "content that was to be removed is still there");
    }
}
