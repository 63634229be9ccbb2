//! The index on disk: the only file that names sled.
//!
//! It is a rebuildable copy of the catalog. One thread writes it; a start reads it only when it has nothing better. sled is
//! slow and large with many small rows, so a row is a bucket: all content whose digests begin with the same 16 bits.
//!
//! Rows: `content` algorithm, 16 bits → CRC-32, then entries of digest, length, last use and key of the set of facts;
//! `sets` key → the facts as JSON; `tags` registry, repository, tag → record as JSON.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;

use crate::oci::Algorithm;
use crate::oci::Digest;
use crate::oci::Repository;
use crate::oci::Tag;

use super::Timestamp;
use super::tags::TagRecord;

/// sled takes several times its setting, also in `Mode::LowSpace`.
const CACHE_BYTES: u64 = 1024 * 1024;
/// Raised when rows change their meaning; an index of another format is rebuilt.
const FORMAT: &[u8] = b"2";
const SEPARATOR: u8 = 0;
const LOCK_TRIES: usize = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// The index cannot be used; it is set aside and rebuilt.
#[derive(Debug, thiserror::Error)]
pub(super) enum IndexError {
    #[error("{0}")]
    Sled(#[from] sled::Error),
    #[error("it has another format")]
    Format,
    #[error("a row of `{0}` cannot be read")]
    Row(&'static str),
    #[error("it cannot be moved: {0}")]
    Move(std::io::Error),
}

impl IndexError {
    /// Whether it is the disk that refuses, and nothing is wrong with the index.
    pub(super) fn is_of_disk(&self) -> bool {
        let error = match self {
            Self::Sled(sled::Error::Io(error)) | Self::Move(error) => error,
            _ => return false,
        };
        let errno = error.raw_os_error().map(Errno::from_raw_os_error);
        matches!(
            errno,
            Some(Errno::NOSPC | Errno::ROFS | Errno::DQUOT | Errno::IO | Errno::FBIG | Errno::MFILE | Errno::NFILE)
        )
    }
}

/// Which row of `content` a digest belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Bucket {
    pub(super) algorithm: Algorithm,
    pub(super) bits: [u8; 2],
}

impl Bucket {
    pub(super) fn of(digest: &Digest) -> Self {
        let bytes = digest.as_bytes();
        Self { algorithm: digest.algorithm(), bits: [bytes[0], bytes[1]] }
    }

    fn key(self) -> [u8; 3] {
        let kind = match self.algorithm {
            Algorithm::Sha256 => 1,
            Algorithm::Sha512 => 2,
        };
        [kind, self.bits[0], self.bits[1]]
    }

    fn parse(key: &[u8]) -> Option<Self> {
        let (algorithm, bits) = match key {
            [1, bits @ ..] => (Algorithm::Sha256, bits),
            [2, bits @ ..] => (Algorithm::Sha512, bits),
            _ => return None,
        };
        Some(Self { algorithm, bits: bits.try_into().ok()? })
    }
}

/// One row of `content`, as it is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Row(Vec<u8>);

/// An entry of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) digest: Digest,
    pub(super) size_bytes: u64,
    pub(super) used_at: Timestamp,
    /// The key of its set of facts.
    pub(super) facts: u64,
}

impl Row {
    const CHECKSUM_BYTES: usize = 4;

    /// Appends an entry; they come in the order of digests.
    pub(super) fn push(&mut self, entry: &Entry) {
        self.0.resize(self.0.len().max(Self::CHECKSUM_BYTES), 0);
        self.0.extend_from_slice(entry.digest.as_bytes());
        for number in [entry.size_bytes, entry.used_at.as_millis(), entry.facts] {
            self.0.extend_from_slice(&number.to_le_bytes());
        }
    }

    /// Its bytes with their checksum.
    fn sealed(mut self) -> Vec<u8> {
        let checksum = crc32fast::hash(&self.0[Self::CHECKSUM_BYTES..]);
        self.0[..Self::CHECKSUM_BYTES].copy_from_slice(&checksum.to_le_bytes());
        self.0
    }

    /// The entries of a row, each where it belongs.
    fn parse(bucket: Bucket, value: &[u8]) -> Option<Vec<Entry>> {
        let (checksum, entries) = value.split_first_chunk()?;
        if crc32fast::hash(entries) != u32::from_le_bytes(*checksum) {
            return None;
        }
        let digest_bytes = match bucket.algorithm {
            Algorithm::Sha256 => 32,
            Algorithm::Sha512 => 64,
        };
        let entries = entries.chunks(digest_bytes + 24);
        entries.map(|entry| Self::entry(digest_bytes, entry).filter(|e| Bucket::of(&e.digest) == bucket)).collect()
    }

    fn entry(digest_bytes: usize, entry: &[u8]) -> Option<Entry> {
        let (digest, rest) = entry.split_at_checked(digest_bytes)?;
        let digest = match digest_bytes {
            32 => Digest::Sha256(digest.try_into().ok()?),
            _ => Digest::Sha512(digest.try_into().ok()?),
        };
        let [size_bytes, used_at, facts]: [u64; 3] = {
            let mut numbers = rest.chunks_exact(8).filter_map(|bytes| Some(u64::from_le_bytes(bytes.try_into().ok()?)));
            [numbers.next()?, numbers.next()?, numbers.next()?]
        };
        Some(Entry { digest, size_bytes, used_at: Timestamp::from_millis(used_at), facts })
    }
}

/// An open index.
#[derive(Debug)]
pub(super) struct Index {
    db: sled::Db,
    content: sled::Tree,
    sets: sled::Tree,
    tags: sled::Tree,
}

impl Index {
    /// Opens or creates it. Blocks; on damaged files it may panic or never return: call it where that harms nobody.
    pub(super) fn open(path: &Path) -> Result<Self, IndexError> {
        let config =
            sled::Config::new().path(path).cache_capacity(CACHE_BYTES).flush_every_ms(None).mode(sled::Mode::LowSpace);
        let db = open_unlocked(&config)?;
        match db.get("format")? {
            None => drop(db.insert("format", FORMAT)?),
            Some(format) if format == FORMAT => {}
            Some(_) => return Err(IndexError::Format),
        }
        let (content, sets, tags) = (db.open_tree("content")?, db.open_tree("sets")?, db.open_tree("tags")?);
        Ok(Self { db, content, sets, tags })
    }

    /// Calls `each` with every row of content.
    pub(super) fn each_row(&self, mut each: impl FnMut(Bucket, Vec<Entry>)) -> Result<(), IndexError> {
        for row in &self.content {
            let (key, value) = row?;
            let bucket = Bucket::parse(&key).ok_or(IndexError::Row("content"))?;
            each(bucket, Row::parse(bucket, &value).ok_or(IndexError::Row("content"))?);
        }
        Ok(())
    }

    /// Calls `each` with every set of facts: its key and its text.
    pub(super) fn each_set(&self, mut each: impl FnMut(u64, &[u8])) -> Result<(), IndexError> {
        for row in &self.sets {
            let (key, value) = row?;
            each(u64::from_be_bytes((*key).try_into().map_err(|_| IndexError::Row("sets"))?), &value);
        }
        Ok(())
    }

    /// Calls `each` with every tag.
    pub(super) fn each_tag(&self, mut each: impl FnMut(Repository, Tag, TagRecord)) -> Result<(), IndexError> {
        for row in &self.tags {
            let (key, value) = row?;
            let (repository, tag) = split_tag(&key).ok_or(IndexError::Row("tags"))?;
            each(repository, tag, serde_json::from_slice(&value).map_err(|_| IndexError::Row("tags"))?);
        }
        Ok(())
    }

    /// Sets a row of content; a row without an entry is none.
    pub(super) fn put_row(&self, bucket: Bucket, row: Row) -> Result<(), IndexError> {
        if row.0.is_empty() {
            self.content.remove(bucket.key())?;
        } else {
            self.content.insert(bucket.key(), row.sealed())?;
        }
        Ok(())
    }

    pub(super) fn put_set(&self, key: u64, text: &[u8]) -> Result<(), IndexError> {
        self.sets.insert(key.to_be_bytes(), text)?;
        Ok(())
    }

    pub(super) fn put_tag(
        &self,
        repository: &Repository,
        tag: &Tag,
        record: Option<&Arc<TagRecord>>,
    ) -> Result<(), IndexError> {
        let key = [repository.registry.as_str(), repository.name.as_str(), tag.as_str()].join("\0").into_bytes();
        match record {
            Some(record) => {
                let value = serde_json::to_vec(&**record).map_err(|_| IndexError::Row("tags"))?;
                self.tags.insert(key, value)?;
            }
            None => drop(self.tags.remove(key)?),
        }
        Ok(())
    }

    /// Makes all writes so far durable.
    pub(super) fn flush(&self) -> Result<(), IndexError> {
        self.db.flush()?;
        Ok(())
    }

    /// How much its files take.
    pub(super) fn size_bytes(&self) -> Result<u64, IndexError> {
        Ok(self.db.size_on_disk()?)
    }
}

/// sled's own threads let go of its lock a moment after the last handle; ours on the directory says that nobody else has it.
fn open_unlocked(config: &sled::Config) -> Result<sled::Db, sled::Error> {
    for _ in 0..LOCK_TRIES {
        match config.open() {
            Err(sled::Error::Io(error)) if error.to_string().contains("could not acquire lock") => {
                std::thread::sleep(LOCK_PAUSE);
            }
            opened => return opened,
        }
    }
    config.open()
}

fn split_tag(key: &[u8]) -> Option<(Repository, Tag)> {
    let mut parts = std::str::from_utf8(key).ok()?.split(char::from(SEPARATOR));
    let registry = parts.next()?.parse().ok()?;
    let name = parts.next()?.parse().ok()?;
    Some((Repository { registry, name }, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_what_it_wrote() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("index");
        let repository = Repository { registry: "a.io:5000".parse().unwrap(), name: "x/y".parse().unwrap() };
        let (tag, gone): (Tag, Tag) = ("latest".parse().unwrap(), "gone".parse().unwrap());
        let entry = |text: &str, algorithm| Entry {
            digest: Digest::of(algorithm, text.as_bytes()),
            size_bytes: 7,
            used_at: Timestamp::from_millis(9),
            facts: 0x1234_5678_9abc_def0,
        };
        let entries = [entry("a", Algorithm::Sha256), entry("b", Algorithm::Sha512), entry("c", Algorithm::Sha256)];
        let record = Arc::new(
            TagRecord::new(&entries[0].digest, Timestamp::from_millis(1)).confirmed(Timestamp::from_millis(2)),
        );
        {
            let index = Index::open(&path).unwrap();
            for entry in &entries {
                let mut row = Row::default();
                row.push(entry);
                index.put_row(Bucket::of(&entry.digest), row).unwrap();
            }
            index.put_row(Bucket::of(&entries[2].digest), Row::default()).unwrap();
            index.put_set(7, b"[]").unwrap();
            index.put_tag(&repository, &tag, Some(&record)).unwrap();
            index.put_tag(&repository, &gone, Some(&record)).unwrap();
            index.put_tag(&repository, &gone, None).unwrap();
            index.flush().unwrap();
        }
        let index = Index::open(&path).unwrap();
        let (mut rows, mut sets, mut tags) = (Vec::new(), Vec::new(), Vec::new());
        index.each_row(|_, row| rows.extend(row)).unwrap();
        index.each_set(|key, text| sets.push((key, text.to_vec()))).unwrap();
        index.each_tag(|repository, tag, record| tags.push((repository, tag, record))).unwrap();
        assert_eq!(rows, entries[..2]);
        assert_eq!(sets, [(7, b"[]".to_vec())]);
        assert_eq!(tags, [(repository, tag, TagRecord::clone(&record))]);
    }

    #[test]
    fn a_damaged_row_is_noticed() {
        let digest = Digest::of(Algorithm::Sha256, b"x");
        let mut row = Row::default();
        row.push(&Entry { digest, size_bytes: 1, used_at: Timestamp::from_millis(2), facts: 3 });
        let (bucket, sealed) = (Bucket::of(&digest), row.sealed());
        assert!(Row::parse(bucket, &sealed).is_some());
        for at in 0..sealed.len() {
            let mut flipped = sealed.clone();
            flipped[at] ^= 4;
            assert!(Row::parse(bucket, &flipped).is_none(), "{at}");
            assert!(Row::parse(bucket, &sealed[..at]).is_none(), "{at}");
        }
        let elsewhere = Bucket { bits: [0, 0], ..bucket };
        assert!(Row::parse(elsewhere, &sealed).is_none(), "in a wrong place");
    }
}
