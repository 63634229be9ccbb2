//! Quarantine: rotten files, kept for a look and out of the way, for a while.
//!
//! `quarantine/<algorithm>-<hex>.<milliseconds>`, bounded in number, age and bytes; the oldest go first. Another process may
//! put files there, too: a repair beside a running proxy.
#![expect(clippy::disallowed_methods, reason = "the quarantine is files of the store")]

use std::fs;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::RenameFlags;

use super::fs::ignore_absent;
use super::layout::Layout;
use super::seal::unseal;
use crate::oci::Digest;
use crate::store::Timestamp;

/// Most files.
const MAX_FILES: usize = 100;
/// Older files are removed.
const MAX_AGE: Duration = Duration::from_secs(14 * 24 * 3600);
/// Most bytes, whatever the budget.
const MAX_BYTES: u64 = 1024 * 1024 * 1024;
/// Most bytes as a share of the budget.
const BUDGET_SHARE: u64 = 20;

/// What happened to a file that proved rotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Removal {
    /// It is in quarantine, or gone because that is full.
    Done,
    /// Another file has taken its place, or it is gone: nothing was done.
    Replaced,
}

/// How many bytes a quarantine may hold beside a budget of `max_bytes`.
pub(in crate::store) fn limit_bytes(max_bytes: u64) -> u64 {
    MAX_BYTES.min(max_bytes / BUDGET_SHARE)
}

/// Moves a rotten file there, if it still is the one that was read. Its seal is broken, so that whoever still has it open
/// looks at it again.
pub(super) fn put(layout: &Layout, digest: &Digest, rotten: &File) -> io::Result<Removal> {
    let (from, to) = (layout.blob(digest), place(layout, digest)?);
    if !is_same(&from, rotten)? {
        return Ok(Removal::Replaced);
    }
    match fs::rename(&from, &to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Removal::Replaced),
        renamed => renamed?,
    }
    if is_same(&to, rotten)? {
        let _ = unseal(rotten);
        return Ok(Removal::Done);
    }
    // Between the look and the move a sound file took its place: back, unless there is yet another.
    let back = rustix::fs::renameat_with(rustix::fs::CWD, &to, rustix::fs::CWD, &from, RenameFlags::NOREPLACE);
    if back.is_err() {
        ignore_absent(fs::remove_file(&to))?;
    }
    Ok(Removal::Replaced)
}

fn place(layout: &Layout, digest: &Digest) -> io::Result<PathBuf> {
    let directory = layout.quarantine();
    if !directory.is_dir() {
        fs::create_dir_all(&directory)?;
    }
    let name = format!("{}-{}.{}", digest.algorithm().as_str(), digest.hex(), Timestamp::now().as_millis());
    Ok(directory.join(name))
}

pub(super) fn is_same(path: &Path, file: &File) -> io::Result<bool> {
    let opened = file.metadata()?;
    match fs::metadata(path) {
        Ok(found) => Ok((found.dev(), found.ino()) == (opened.dev(), opened.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes what is too old, too many or too large: how many bytes stay.
pub(super) fn sweep(layout: &Layout, limit_bytes: u64) -> io::Result<u64> {
    let entries = match fs::read_dir(layout.quarantine()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        entries => entries?,
    };
    let mut kept: Vec<(Timestamp, u64, PathBuf)> = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let ending = path.extension().and_then(|ending| ending.to_str()).and_then(|ending| ending.parse().ok());
        // What has no such name is none of ours.
        if let (Some(millis), Ok(metadata)) = (ending, path.metadata()) {
            kept.push((Timestamp::from_millis(millis), metadata.len(), path));
        }
    }
    kept.sort();
    let mut total_bytes: u64 = kept.iter().map(|(_, size_bytes, _)| size_bytes).sum();
    let mut left = kept.len();
    for (since, size_bytes, path) in kept {
        let is_stale = Timestamp::now().since(since) > MAX_AGE;
        if !is_stale && left <= MAX_FILES && total_bytes <= limit_bytes {
            break;
        }
        ignore_absent(fs::remove_file(path))?;
        total_bytes -= size_bytes;
        left -= 1;
    }
    Ok(total_bytes)
}
