//! The journal: every change but uses, in a form that outlives a lost index and a crash.
//!
//! A text file of one record a line, `<crc32 of the rest> <json>`, only ever appended to while running. A line that is torn
//! or damaged is skipped, for every line stands alone, and what comes after a torn one begins on a line of its own. At start it is written anew when it has grown far past what it says.
#![expect(clippy::disallowed_methods, reason = "the journal is a file of the store")]

use std::fs::File;
use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;
use serde::Serialize;

use crate::oci::Digest;
use crate::oci::Repository;

use super::Timestamp;
use super::catalog::Catalog;
use super::catalog::Fact;
use super::catalog::TagRecord;
use super::change::Change;

/// Below this a journal is never written anew.
const COMPACT_FROM_BYTES: u64 = 4 * 1024 * 1024;
/// A journal is written anew when it is this many times as long as what it says.
const COMPACT_RATIO: u64 = 4;
/// Longer lines are damage.
const MAX_LINE_BYTES: u64 = 64 * 1024;

/// A line. Names are texts here, so that a line of another version fails alone.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Record {
    Content(Digest, u64, Timestamp),
    Forget(Digest),
    MediaType(Digest, String),
    Public(Digest),
    Account(Digest, String, String),
    Grant(Digest, String, String),
    Confirmed(Digest, String, String, Timestamp),
    Revoke(Digest, String, String),
    Tag(String, String, String, Option<TagRecord>),
}

/// The open journal.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    /// The last write may have ended within a line.
    is_torn: bool,
}

impl Journal {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = File::options().create(true).read(true).append(true).open(path)?;
        let mut last = [b'\n'];
        if let Some(at) = file.metadata()?.len().checked_sub(1) {
            file.read_exact_at(&mut last, at)?;
        }
        Ok(Self { path: path.to_owned(), file, is_torn: last != [b'\n'] })
    }

    /// Appends a change; `false` when it is of no kind that is kept.
    pub(super) fn write(&mut self, change: &Change) -> io::Result<bool> {
        let Some(record) = print(change) else { return Ok(false) };
        let mut line = line(&record)?;
        if self.is_torn {
            line.insert(0, b'\n');
        }
        self.is_torn = true;
        self.file.write_all(&line)?;
        self.is_torn = false;
        Ok(true)
    }

    /// Makes all changes so far durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Calls `each` for every change, oldest first: how many lines were damaged.
    pub(super) fn replay(&self, mut each: impl FnMut(Change)) -> io::Result<u64> {
        let mut reader = BufReader::new(File::open(&self.path)?);
        let (mut line, mut damaged) = (Vec::new(), 0);
        loop {
            line.clear();
            if reader.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line)? == 0 {
                return Ok(damaged);
            }
            match parse(&line) {
                Some(change) => each(change),
                None => damaged += 1,
            }
        }
    }

    /// Writes it anew from the catalog when it has grown far past what it says.
    pub(super) fn compact(&mut self, catalog: &Catalog) -> io::Result<()> {
        let size_bytes = self.file.metadata()?.len();
        if size_bytes < COMPACT_FROM_BYTES {
            return Ok(());
        }
        let mut needed_bytes = 0;
        catalog.each_change(|change| needed_bytes += print(&change).and_then(|r| line(&r).ok()).map_or(0, |l| l.len()));
        if size_bytes < COMPACT_RATIO.saturating_mul(needed_bytes as u64) {
            return Ok(());
        }
        let path = self.path.with_extension("new");
        let written = write_anew(&path, catalog).and_then(|()| std::fs::rename(&path, &self.path));
        if written.is_err() {
            let _ = std::fs::remove_file(&path);
        }
        written?;
        if let Some(directory) = self.path.parent() {
            File::open(directory)?.sync_all()?;
        }
        *self = Self::open(&self.path)?;
        Ok(())
    }
}

fn write_anew(path: &Path, catalog: &Catalog) -> io::Result<()> {
    let (mut anew, mut outcome) = (io::BufWriter::new(File::create(path)?), Ok(()));
    catalog.each_change(|change| {
        if let (Ok(()), Some(record)) = (&outcome, print(&change)) {
            outcome = line(&record).and_then(|line| anew.write_all(&line));
        }
    });
    outcome?;
    anew.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}

fn line(record: &Record) -> io::Result<Vec<u8>> {
    let json = serde_json::to_string(record)?;
    Ok(format!("{:08x} {json}\n", crc32fast::hash(json.as_bytes())).into_bytes())
}

fn print(change: &Change) -> Option<Record> {
    match change {
        Change::Content(digest, size_bytes, at) => Some(Record::Content(*digest, *size_bytes, *at)),
        Change::Used(..) | Change::Checked(..) => None,
        Change::Forget(digest) => Some(Record::Forget(*digest)),
        Change::Fact(digest, fact) => Some(print_fact(*digest, fact)),
        Change::Revoke(digest, repository) => {
            Some(Record::Revoke(*digest, repository.registry.to_string(), repository.name.to_string()))
        }
        Change::Tag(repository, tag, record) => {
            let (registry, name) = (repository.registry.to_string(), repository.name.to_string());
            Some(Record::Tag(registry, name, tag.to_string(), record.as_deref().cloned()))
        }
    }
}

fn print_fact(digest: Digest, fact: &Fact) -> Record {
    match fact {
        Fact::MediaType(media_type) => Record::MediaType(digest, media_type.to_string()),
        Fact::Public => Record::Public(digest),
        Fact::Account(registry, name) => Record::Account(digest, registry.to_string(), name.to_string()),
        Fact::Grant(repository) => Record::Grant(digest, repository.registry.to_string(), repository.name.to_string()),
        Fact::Confirmed(repository, at) => {
            Record::Confirmed(digest, repository.registry.to_string(), repository.name.to_string(), *at)
        }
    }
}

fn parse(line: &[u8]) -> Option<Change> {
    let line = std::str::from_utf8(line).ok()?.strip_suffix('\n')?;
    let (checksum, json) = line.split_once(' ')?;
    if u32::from_str_radix(checksum, 16) != Ok(crc32fast::hash(json.as_bytes())) {
        return None;
    }
    let repository =
        |registry: &str, name: &str| Some(Repository { registry: registry.parse().ok()?, name: name.parse().ok()? });
    Some(match serde_json::from_str(json).ok()? {
        Record::Content(digest, size_bytes, at) => Change::Content(digest, size_bytes, at),
        Record::Forget(digest) => Change::Forget(digest),
        Record::MediaType(digest, text) => Change::Fact(digest, Fact::MediaType(text.parse().ok()?)),
        Record::Public(digest) => Change::Fact(digest, Fact::Public),
        Record::Account(digest, registry, name) => {
            Change::Fact(digest, Fact::Account(registry.parse().ok()?, name.into()))
        }
        Record::Grant(digest, registry, name) => Change::Fact(digest, Fact::Grant(repository(&registry, &name)?)),
        Record::Confirmed(digest, registry, name, at) => {
            Change::Fact(digest, Fact::Confirmed(repository(&registry, &name)?, at))
        }
        Record::Revoke(digest, registry, name) => Change::Revoke(digest, repository(&registry, &name)?),
        Record::Tag(registry, name, tag, record) => {
            Change::Tag(repository(&registry, &name)?, tag.parse().ok()?, record.map(Arc::new))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    #[test]
    fn skips_damaged_lines_and_keeps_the_rest() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal");
        let digest = Digest::of(Algorithm::Sha256, b"x");
        let mut journal = Journal::open(&path).unwrap();
        for size_bytes in 0..3 {
            let at = Timestamp::from_millis(9);
            assert!(journal.write(&Change::Content(digest, size_bytes, at)).unwrap());
            assert!(!journal.write(&Change::Used(digest, at)).unwrap());
        }
        let mut bytes = std::fs::read(&path).unwrap();
        let second_line = bytes.iter().position(|&b| b == b'\n').unwrap() + 1;
        bytes[second_line + 30] ^= 1;
        bytes.extend_from_slice(b"torn");
        std::fs::write(&path, bytes).unwrap();
        let mut sizes = Vec::new();
        let damaged = journal.replay(|change| match change {
            Change::Content(_, size_bytes, _) => sizes.push(size_bytes),
            other => panic!("{other:?}"),
        });
        assert_eq!((sizes, damaged.unwrap()), (vec![0, 2], 2));
        let mut journal = Journal::open(&path).unwrap();
        journal.write(&Change::Forget(digest)).unwrap();
        let mut last = None;
        assert_eq!(journal.replay(|change| last = Some(change)).unwrap(), 2);
        assert!(matches!(last, Some(Change::Forget(_))), "a torn line does not eat the next one");
    }
}
