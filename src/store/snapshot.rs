//! The snapshot: all that is known at one moment, in a file that a start reads as fast as the disk gives it.
//!
//! A line of magic, then frames: kind, length and CRC-32 of the rest, each a little-endian number. Rows of content come in
//! the order of digests and name their set of facts by a number that a frame before them gives it; anything else is lines as
//! the journal has them. The last frame tells how many rows there are. A frame that is damaged fails alone.
#![expect(clippy::disallowed_methods, reason = "the snapshot is a file of the store")]

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::io::BufReader;
use std::io::BufWriter;
use std::io::Read;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use crate::oci::Digest;

use super::Timestamp;
use super::catalog;
use super::catalog::Catalog;
use super::journal;
use super::rights::Facts;
use super::table::Known;
use super::table::LastUse;

const MAGIC: &[u8] = b"forebay snapshot 1\n";
/// A frame is written when it is that long.
const FRAME_BYTES: usize = 64 * 1024;

const SETS: u8 = 1;
const ROWS_SHA256: u8 = 2;
const ROWS_SHA512: u8 = 3;
const LINES: u8 = 4;
const END: u8 = 5;

/// What a snapshot was good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loaded {
    /// All that it told is known.
    Whole,
    /// It is not there.
    Absent,
    /// It is damaged; what could be read of it is known.
    Damaged,
}

// === Writing ===

/// Writes all that the catalog knows to a new file beside `path`, makes it durable, and puts it in its place.
///
/// The catalog may change meanwhile: what changes after the call began may be in it, or not.
pub(super) fn write(path: &Path, catalog: &Catalog) -> io::Result<()> {
    let new = path.with_extension("new");
    let written = write_file(&new, catalog).and_then(|()| std::fs::rename(&new, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&new);
    }
    written?;
    journal::sync_parent(path)
}

fn write_file(path: &Path, catalog: &Catalog) -> io::Result<()> {
    let mut file = BufWriter::with_capacity(FRAME_BYTES, File::create(path)?);
    file.write_all(MAGIC)?;
    let (mut numbers, mut rows, mut sets) = (HashMap::new(), Vec::new(), Vec::new());
    let mut count = 0u64;
    for part in 0..catalog::PARTS {
        let kind = if part < catalog::PARTS / 2 { ROWS_SHA256 } else { ROWS_SHA512 };
        catalog.each_in(part, |digest, known| {
            let next = u32::try_from(numbers.len()).unwrap_or(u32::MAX);
            let number = *numbers.entry(known.facts.key()).or_insert_with(|| {
                let text = catalog.sets().text(&known.facts);
                sets.extend_from_slice(&next.to_le_bytes());
                sets.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
                sets.extend_from_slice(&text);
                next
            });
            rows.extend_from_slice(digest.as_bytes());
            rows.extend_from_slice(&known.size_bytes.to_le_bytes());
            rows.extend_from_slice(&known.last_use.at().as_millis().to_le_bytes());
            rows.extend_from_slice(&number.to_le_bytes());
            count += 1;
        });
        let is_last_of_kind = part % (catalog::PARTS / 2) == catalog::PARTS / 2 - 1;
        if rows.len() >= FRAME_BYTES || is_last_of_kind {
            write_frame(&mut file, SETS, &mut sets)?;
            write_frame(&mut file, kind, &mut rows)?;
        }
    }
    write_lines(&mut file, catalog)?;
    write_frame(&mut file, END, &mut count.to_le_bytes().to_vec())?;
    file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}

fn write_lines(file: &mut impl Write, catalog: &Catalog) -> io::Result<()> {
    let (mut lines, mut outcome) = (Vec::new(), Ok(()));
    catalog.each_note(|change| {
        if outcome.is_ok() {
            outcome = journal::print(&change, &mut lines);
        }
        if outcome.is_ok() && lines.len() >= FRAME_BYTES {
            outcome = write_frame(file, LINES, &mut lines);
        }
    });
    outcome?;
    write_frame(file, LINES, &mut lines)
}

/// Writes and empties what is collected; an empty frame is none.
fn write_frame(file: &mut impl Write, kind: u8, payload: &mut Vec<u8>) -> io::Result<()> {
    if payload.is_empty() {
        return Ok(());
    }
    let size_bytes = u32::try_from(payload.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
    file.write_all(&[kind])?;
    file.write_all(&size_bytes.to_le_bytes())?;
    file.write_all(&checksum(kind, payload).to_le_bytes())?;
    file.write_all(payload)?;
    payload.clear();
    Ok(())
}

fn checksum(kind: u8, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&[kind]);
    hasher.update(payload);
    hasher.finalize()
}

// === Reading ===

/// Removes what is left of a snapshot that was not finished.
pub(super) fn sweep(path: &Path) {
    let _ = std::fs::remove_file(path.with_extension("new"));
}

/// Tells the catalog what a snapshot says.
pub(super) fn load(path: &Path, catalog: &Catalog) -> io::Result<Loaded> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Loaded::Absent),
        Err(error) => return Err(error),
    };
    let file_bytes = file.metadata()?.len();
    let mut file = BufReader::with_capacity(FRAME_BYTES, file);
    let mut magic = [0; MAGIC.len()];
    if !read_whole(&mut file, &mut magic)? || magic != MAGIC {
        return Ok(Loaded::Damaged);
    }
    let (mut reading, mut payload) = (Reading { catalog, sets: HashMap::new(), rows: 0 }, Vec::new());
    let mut is_whole = true;
    loop {
        let mut head = [0; 9];
        if !read_whole(&mut file, &mut head)? {
            return Ok(Loaded::Damaged);
        }
        let number = |at: usize| head[at..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
        let size_bytes = usize::try_from(number(1)).unwrap_or(usize::MAX);
        if size_bytes as u64 > file_bytes {
            return Ok(Loaded::Damaged);
        }
        payload.resize(size_bytes, 0);
        if !read_whole(&mut file, &mut payload)? {
            return Ok(Loaded::Damaged);
        }
        let is_sound = checksum(head[0], &payload) == number(5);
        if is_sound && head[0] == END {
            let is_complete = payload == reading.rows.to_le_bytes();
            return Ok(if is_whole && is_complete { Loaded::Whole } else { Loaded::Damaged });
        }
        is_whole &= is_sound && reading.frame(head[0], &payload);
    }
}

/// `false` at the end of the file.
fn read_whole(file: &mut impl Read, bytes: &mut [u8]) -> io::Result<bool> {
    match file.read_exact(bytes) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

struct Reading<'a> {
    catalog: &'a Catalog,
    sets: HashMap<u32, Arc<Facts>>,
    rows: u64,
}

impl Reading<'_> {
    /// `false` when some of it cannot be understood.
    fn frame(&mut self, kind: u8, payload: &[u8]) -> bool {
        match kind {
            SETS => self.sets(payload).is_some(),
            ROWS_SHA256 => self.rows::<32>(payload, Digest::Sha256),
            ROWS_SHA512 => self.rows::<64>(payload, Digest::Sha512),
            LINES => {
                let mut is_whole = true;
                for line in payload.split_inclusive(|&byte| byte == b'\n') {
                    is_whole &= journal::parse(line).map(|change| self.catalog.apply(&change)).is_some();
                }
                is_whole
            }
            _ => false,
        }
    }

    fn sets(&mut self, mut payload: &[u8]) -> Option<()> {
        while !payload.is_empty() {
            let (number, rest) = split_u32(payload)?;
            let (size_bytes, rest) = split_u32(rest)?;
            let (text, rest) = rest.split_at_checked(usize::try_from(size_bytes).ok()?)?;
            self.sets.insert(number, self.catalog.sets().parse(text)?);
            payload = rest;
        }
        Some(())
    }

    fn rows<const N: usize>(&mut self, payload: &[u8], digest: fn([u8; N]) -> Digest) -> bool {
        if !payload.len().is_multiple_of(N + 20) {
            return false;
        }
        let (rows, mut is_whole): (Vec<&[u8]>, _) = (payload.chunks_exact(N + 20).collect(), true);
        for alike in rows.chunk_by(|row, next| row[0] == next[0] && row[1] >> 4 == next[1] >> 4) {
            if let Some(first) = alike[0].first_chunk() {
                self.catalog.reserve(&digest(*first), alike.len());
            }
            for row in alike {
                is_whole &= self.row(row, digest).is_some();
            }
        }
        is_whole
    }

    /// Content without its facts is told of nevertheless: a rebuild looks for them elsewhere.
    fn row<const N: usize>(&mut self, row: &[u8], digest: fn([u8; N]) -> Digest) -> Option<()> {
        let (bytes, row) = row.split_first_chunk()?;
        let (size_bytes, row) = row.split_first_chunk()?;
        let (used_at, row) = row.split_first_chunk()?;
        let (number, _) = split_u32(row)?;
        let facts = self.sets.get(&number);
        let known = Known {
            size_bytes: u64::from_le_bytes(*size_bytes),
            last_use: LastUse::new(Timestamp::from_millis(u64::from_le_bytes(*used_at))),
            facts: facts.cloned().unwrap_or_else(|| self.catalog.sets().none()),
        };
        self.catalog.put(&digest(*bytes), known);
        self.rows += 1;
        facts.map(|_| ())
    }
}

fn split_u32(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (number, rest) = bytes.split_first_chunk()?;
    Some((u32::from_le_bytes(*number), rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;
    use crate::oci::MediaType;
    use crate::oci::Repository;
    use crate::store::rights::Fact;
    use crate::store::rights::Standing;

    fn repository() -> Repository {
        Repository { registry: "a.io:5000".parse().unwrap(), name: "x/y".parse().unwrap() }
    }

    fn digest(index: u32) -> Digest {
        let algorithm = if index.is_multiple_of(3) { Algorithm::Sha512 } else { Algorithm::Sha256 };
        Digest::of(algorithm, &index.to_le_bytes())
    }

    fn filled() -> Catalog {
        let catalog = Catalog::new();
        for index in 0..3000 {
            let account = Fact::Account(repository().registry, format!("me {}", index % 7).into());
            let facts = [account, Fact::Grant(repository()), Fact::MediaType(MediaType::oci_index()), Fact::Public];
            let at = Timestamp::from_millis(u64::from(index));
            catalog.insert(&digest(index), u64::from(index), at, &facts[..index as usize % 5]);
        }
        for index in 0..50 {
            let tag = format!("v{index}").parse().unwrap();
            catalog.point_tag(&repository(), &tag, &digest(index), Timestamp::from_millis(7));
        }
        catalog
    }

    /// Everything that is known, as text.
    fn told(catalog: &Catalog) -> Vec<String> {
        let mut told = Vec::new();
        for part in 0..catalog::PARTS {
            catalog.each_in(part, |digest, known| {
                let facts = catalog.sets().facts(&known.facts);
                told.push(format!("{digest} {} {:?} {facts:?}", known.size_bytes, known.last_use.at()));
            });
        }
        catalog.each_note(|change| told.push(format!("{change:?}")));
        told.sort();
        told
    }

    #[test]
    fn tells_all_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("snapshot");
        assert_eq!(load(&path, &Catalog::new()).unwrap(), Loaded::Absent);
        write(&path, &Catalog::new()).unwrap();
        assert_eq!(load(&path, &Catalog::new()).unwrap(), Loaded::Whole);
        let (catalog, again) = (filled(), Catalog::new());
        write(&path, &catalog).unwrap();
        assert_eq!(load(&path, &again).unwrap(), Loaded::Whole);
        assert_eq!(told(&again), told(&catalog));
        assert_eq!((again.blobs(), again.stored_bytes()), (catalog.blobs(), catalog.stored_bytes()));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn damage_is_noticed_and_invents_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("snapshot");
        let catalog = filled();
        write(&path, &catalog).unwrap();
        let (bytes, whole) = (std::fs::read(&path).unwrap(), told(&catalog));
        for at in (0..bytes.len()).step_by(9973) {
            let mut flipped = bytes.clone();
            flipped[at] ^= 0x10;
            for damaged in [&flipped[..], &bytes[..at]] {
                std::fs::write(&path, damaged).unwrap();
                let found = Catalog::new();
                assert_eq!(load(&path, &found).unwrap(), Loaded::Damaged, "at {at}");
                assert!(found.blobs() <= catalog.blobs());
                for index in 0..3000 {
                    let is_granted = found.standing(&repository(), &digest(index)) == Standing::Granted;
                    assert!(!is_granted || catalog.standing(&repository(), &digest(index)) == Standing::Granted);
                }
                found.each_note(|change| assert!(whole.contains(&format!("{change:?}")), "{change:?}"));
            }
        }
    }
}
