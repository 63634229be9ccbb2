//! The journal: every change but uses since the last snapshot, in the order in which they were made.
//!
//! A text file of one record a line, `<crc32 of the rest> <json>`, only ever appended to. A line that is torn or damaged is
//! skipped, for every line stands alone; a torn end is cut off before more is written. When it has grown long it is moved
//! aside, a new one begun, and a snapshot made that says what both say so far: then the one aside goes. To replay lines over
//! a snapshot that has their effect already changes nothing once all later ones are replayed as well.
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
use super::change::Change;
use super::rights::Fact;
use super::rights::FactText;
use super::tags::TagRecord;

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
    Checked(String, String, String, Digest, Timestamp),
}

/// The open journal.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    size_bytes: u64,
    /// The last write may have ended within a line.
    is_torn: bool,
    /// Its file was moved aside, and there is no new one yet: what is written goes to the end of the old one.
    is_aside: bool,
}

impl Journal {
    /// Opens or makes it, and cuts off what the end of a line is missing of.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = File::options().create(true).read(true).append(true).open(path)?;
        let size_bytes = whole_lines(&file)?;
        if size_bytes < file.metadata()?.len() {
            file.set_len(size_bytes)?;
        }
        Ok(Self { path: path.to_owned(), file, size_bytes, is_torn: false, is_aside: false })
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Appends changes, in one write.
    pub(super) fn write<'a>(&mut self, changes: impl Iterator<Item = &'a Change>) -> io::Result<()> {
        let mut lines = if self.is_torn { vec![b'\n'] } else { Vec::new() };
        for change in changes {
            print(change, &mut lines)?;
        }
        self.is_torn = true;
        self.file.write_all(&lines)?;
        self.size_bytes += lines.len() as u64;
        self.is_torn = false;
        Ok(())
    }

    /// Makes all changes so far durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Moves it aside and begins a new one, unless one is aside already: that one is to be done with first. What fails
    /// half-way is gone on with by the next call; until then nobody may take the one aside for done with.
    pub(super) fn rotate(&mut self, aside: &Path) -> io::Result<()> {
        if !aside.exists() {
            self.move_aside(aside)?;
        }
        if self.is_aside {
            *self = Self { is_aside: true, ..Self::open(&self.path)? };
            sync_parent(&self.path)?;
            self.is_aside = false;
        }
        Ok(())
    }

    fn move_aside(&mut self, aside: &Path) -> io::Result<()> {
        self.sync()?;
        std::fs::rename(&self.path, aside)?;
        self.is_aside = true;
        Ok(())
    }
}

/// Makes the names in a file's directory durable.
pub(super) fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

/// Calls `each` for every change that a journal tells of, oldest first: how many lines were damaged, not counting a torn
/// last one. A journal that is not there tells of none.
pub(super) fn replay(path: &Path, mut each: impl FnMut(Change)) -> io::Result<u64> {
    let mut reader = match File::open(path) {
        Ok(file) => BufReader::new(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let (mut line, mut damaged) = (Vec::new(), 0);
    loop {
        line.clear();
        if reader.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line)? == 0 {
            return Ok(damaged);
        }
        match parse(&line) {
            Some(change) => each(change),
            None if line.last() != Some(&b'\n') && reader.fill_buf()?.is_empty() => {}
            // An empty line is what follows a write that failed half-way.
            None if line == b"\n" => {}
            None => damaged += 1,
        }
    }
}

/// How much of a file ends with the end of a line.
fn whole_lines(file: &File) -> io::Result<u64> {
    let mut end = file.metadata()?.len();
    let mut piece = vec![0; 4096];
    while end > 0 {
        let start = end.saturating_sub(piece.len() as u64);
        let piece = &mut piece[..usize::try_from(end - start).unwrap_or(0)];
        file.read_exact_at(piece, start)?;
        if let Some(at) = piece.iter().rposition(|&byte| byte == b'\n') {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

/// Appends the line of a change.
pub(super) fn print(change: &Change, lines: &mut Vec<u8>) -> io::Result<()> {
    let json = serde_json::to_string(&record(change))?;
    writeln!(lines, "{:08x} {json}", crc32fast::hash(json.as_bytes()))
}

fn record(change: &Change) -> Record {
    let names = |repository: &Repository| (repository.registry.to_string(), repository.name.to_string());
    match change {
        Change::Content(digest, size_bytes, at) => Record::Content(*digest, *size_bytes, *at),
        Change::Forget(digest) => Record::Forget(*digest),
        Change::Fact(digest, Fact::Confirmed(repository, at)) => {
            let (registry, name) = names(repository);
            Record::Confirmed(*digest, registry, name, *at)
        }
        Change::Fact(digest, Fact::MediaType(media_type)) => Record::MediaType(*digest, media_type.to_string()),
        Change::Fact(digest, Fact::Public) => Record::Public(*digest),
        Change::Fact(digest, Fact::Account(registry, name)) => {
            Record::Account(*digest, registry.to_string(), name.to_string())
        }
        Change::Fact(digest, Fact::Grant(repository)) => {
            let (registry, name) = names(repository);
            Record::Grant(*digest, registry, name)
        }
        Change::Revoke(digest, repository) => {
            let (registry, name) = names(repository);
            Record::Revoke(*digest, registry, name)
        }
        Change::Tag(repository, tag, record) => {
            let (registry, name) = names(repository);
            Record::Tag(registry, name, tag.to_string(), record.as_deref().cloned())
        }
        Change::Checked(repository, tag, digest, at) => {
            let (registry, name) = names(repository);
            Record::Checked(registry, name, tag.to_string(), *digest, *at)
        }
    }
}

/// The change that a line, with its end, tells of.
pub(super) fn parse(line: &[u8]) -> Option<Change> {
    let line = std::str::from_utf8(line).ok()?.strip_suffix('\n')?;
    let (checksum, json) = line.split_once(' ')?;
    if u32::from_str_radix(checksum, 16) != Ok(crc32fast::hash(json.as_bytes())) {
        return None;
    }
    let repository =
        |registry: &str, name: &str| Some(Repository { registry: registry.parse().ok()?, name: name.parse().ok()? });
    let fact = |digest, text: FactText| Some(Change::Fact(digest, text.read()?));
    Some(match serde_json::from_str(json).ok()? {
        Record::Content(digest, size_bytes, at) => Change::Content(digest, size_bytes, at),
        Record::Forget(digest) => Change::Forget(digest),
        Record::MediaType(digest, text) => fact(digest, FactText::MediaType(text))?,
        Record::Public(digest) => fact(digest, FactText::Public)?,
        Record::Account(digest, registry, name) => fact(digest, FactText::Account(registry, name))?,
        Record::Grant(digest, registry, name) => fact(digest, FactText::Grant(registry, name))?,
        Record::Confirmed(digest, registry, name, at) => {
            Change::Fact(digest, Fact::Confirmed(repository(&registry, &name)?, at))
        }
        Record::Revoke(digest, registry, name) => Change::Revoke(digest, repository(&registry, &name)?),
        Record::Tag(registry, name, tag, record) => {
            Change::Tag(repository(&registry, &name)?, tag.parse().ok()?, record.map(Arc::new))
        }
        Record::Checked(registry, name, tag, digest, at) => {
            Change::Checked(repository(&registry, &name)?, tag.parse().ok()?, digest, at)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    fn sizes(path: &Path) -> (Vec<u64>, u64) {
        let mut sizes = Vec::new();
        let damaged = replay(path, |change| match change {
            Change::Content(_, size_bytes, _) => sizes.push(size_bytes),
            other => panic!("{other:?}"),
        });
        (sizes, damaged.unwrap())
    }

    #[test]
    fn skips_damaged_lines_and_keeps_the_rest() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal");
        let digest = Digest::of(Algorithm::Sha256, b"x");
        let content = |size_bytes| Change::Content(digest, size_bytes, Timestamp::from_millis(9));
        let mut journal = Journal::open(&path).unwrap();
        journal.write([content(0), content(1), content(2)].iter()).unwrap();
        assert_eq!(sizes(&path), (vec![0, 1, 2], 0));
        let mut bytes = std::fs::read(&path).unwrap();
        let second_line = bytes.iter().position(|&b| b == b'\n').unwrap() + 1;
        bytes[second_line + 30] ^= 1;
        bytes.extend_from_slice(b"torn");
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(sizes(&path), (vec![0, 2], 1), "a torn end is no damage");
        let mut journal = Journal::open(&path).unwrap();
        journal.write([content(3)].iter()).unwrap();
        assert_eq!(sizes(&path), (vec![0, 2, 3], 1), "a torn line does not eat the next one");
        assert_eq!(journal.size_bytes(), std::fs::metadata(&path).unwrap().len());
    }

    #[test]
    fn a_write_that_failed_half_way_does_not_eat_the_next_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal");
        let content =
            |size_bytes| Change::Content(Digest::of(Algorithm::Sha256, b"x"), size_bytes, Timestamp::from_millis(9));
        let mut journal = Journal::open(&path).unwrap();
        journal.write([content(1)].iter()).unwrap();
        journal.file.write_all(b"0123 {").unwrap();
        journal.is_torn = true;
        journal.write([content(2)].iter()).unwrap();
        assert_eq!(sizes(&path), (vec![1, 2], 1));
    }

    #[test]
    fn an_end_of_zeros_is_cut_off() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal");
        let content = Change::Content(Digest::of(Algorithm::Sha256, b"x"), 7, Timestamp::from_millis(9));
        Journal::open(&path).unwrap().write([&content].into_iter()).unwrap();
        let size_bytes = std::fs::metadata(&path).unwrap().len();
        File::options().write(true).open(&path).unwrap().set_len(size_bytes + 100_000).unwrap();
        assert_eq!(Journal::open(&path).unwrap().size_bytes(), size_bytes);
        assert_eq!(sizes(&path), (vec![7], 0));
    }

    #[test]
    fn goes_on_with_a_rotation_that_failed_half_way() {
        let directory = tempfile::tempdir().unwrap();
        let (path, aside) = (directory.path().join("journal"), directory.path().join("journal.old"));
        let content =
            |size_bytes| Change::Content(Digest::of(Algorithm::Sha256, b"x"), size_bytes, Timestamp::from_millis(9));
        let mut journal = Journal::open(&path).unwrap();
        journal.write([content(1)].iter()).unwrap();
        journal.move_aside(&aside).unwrap();
        journal.write([content(2)].iter()).unwrap();
        assert_eq!((sizes(&aside), sizes(&path)), ((vec![1, 2], 0), (vec![], 0)), "in the order of both");
        journal.rotate(&aside).unwrap();
        journal.write([content(3)].iter()).unwrap();
        assert_eq!((sizes(&aside), sizes(&path)), ((vec![1, 2], 0), (vec![3], 0)));
        std::fs::remove_file(&aside).unwrap();
        journal.rotate(&aside).unwrap();
        assert_eq!((sizes(&aside), sizes(&path)), ((vec![3], 0), (vec![], 0)));
    }

    #[test]
    fn is_moved_aside_once() {
        let directory = tempfile::tempdir().unwrap();
        let (path, aside) = (directory.path().join("journal"), directory.path().join("journal.old"));
        let content =
            |size_bytes| Change::Content(Digest::of(Algorithm::Sha256, b"x"), size_bytes, Timestamp::from_millis(9));
        let mut journal = Journal::open(&path).unwrap();
        journal.write([content(1)].iter()).unwrap();
        journal.rotate(&aside).unwrap();
        journal.write([content(2)].iter()).unwrap();
        journal.rotate(&aside).unwrap();
        journal.write([content(3)].iter()).unwrap();
        assert_eq!((sizes(&aside), sizes(&path)), ((vec![1], 0), (vec![2, 3], 0)));
    }
}
