//! The index on disk: the only file that names sled.
//!
//! It is a rebuildable copy of the catalog. One thread writes it, one start reads it, nothing else waits for it.
//! Rows: `content` digest → length and last use; `facts` digest + fact → nothing, or its time; `tags` registry, repository, tag → record.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::oci::Digest;
use crate::oci::Repository;
use crate::oci::Tag;

use super::Timestamp;
use super::catalog::Catalog;
use super::catalog::Fact;
use super::catalog::TagRecord;
use super::change::Change;

/// sled takes several times its setting; see `Mode::LowSpace`.
const CACHE_BYTES: u64 = 32 * 1024 * 1024;
const FLUSH_EVERY_MS: u64 = 1000;
/// Raised when rows change their meaning; an index of another format is rebuilt.
const FORMAT: &[u8] = b"1";
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
}

/// An open index.
#[derive(Debug)]
pub(super) struct Index {
    db: sled::Db,
    content: sled::Tree,
    facts: sled::Tree,
    tags: sled::Tree,
}

impl Index {
    /// Opens or creates it. Blocks; on damaged files it may panic or never return: call it on a thread of its own.
    pub(super) fn open(path: &Path) -> Result<Self, IndexError> {
        let config = sled::Config::new()
            .path(path)
            .cache_capacity(CACHE_BYTES)
            .flush_every_ms(Some(FLUSH_EVERY_MS))
            .mode(sled::Mode::LowSpace);
        let db = open_unlocked(&config)?;
        match db.get("format")? {
            None => drop(db.insert("format", FORMAT)?),
            Some(format) if format == FORMAT => {}
            Some(_) => return Err(IndexError::Format),
        }
        let (content, facts, tags) = (db.open_tree("content")?, db.open_tree("facts")?, db.open_tree("tags")?);
        Ok(Self { db, content, facts, tags })
    }

    /// Reads all of it.
    pub(super) fn load(&self) -> Result<Catalog, IndexError> {
        let catalog = Catalog::new();
        for row in &self.content {
            let (key, value) = row?;
            let (digest, _) = split_digest(&key).ok_or(IndexError::Row("content"))?;
            let (size_bytes, used_at) = split_content(&value).ok_or(IndexError::Row("content"))?;
            catalog.insert(&digest, size_bytes, used_at, &[]);
        }
        let mut confirmed = Vec::new();
        for row in &self.facts {
            let (key, value) = row?;
            let (digest, fact) = split_digest(&key).ok_or(IndexError::Row("facts"))?;
            let fact = parse_fact(fact, &value).ok_or(IndexError::Row("facts"))?;
            match fact {
                // Means nothing before the grant that it is of.
                Fact::Confirmed(..) => confirmed.push((digest, fact)),
                _ => drop(catalog.learn(&digest, &fact)),
            }
        }
        for (digest, fact) in confirmed {
            catalog.learn(&digest, &fact);
        }
        for row in &self.tags {
            let (key, value) = row?;
            let (repository, tag) = split_tag(&key).ok_or(IndexError::Row("tags"))?;
            let record = serde_json::from_slice(&value).map_err(|_| IndexError::Row("tags"))?;
            catalog.restore_tag(&repository, &tag, Arc::new(record));
        }
        Ok(catalog)
    }

    /// Writes one change.
    pub(super) fn apply(&self, change: &Change) -> Result<(), IndexError> {
        match change {
            Change::Content(digest, size_bytes, used_at) => self.put_content(digest, *size_bytes, *used_at),
            Change::Used(digest, used_at) => self.put_use(digest, *used_at),
            Change::Forget(digest) => self.remove_content(digest),
            Change::Fact(digest, fact) => self.put_fact(digest, fact),
            Change::Revoke(digest, repository) => self.remove_grant(digest, repository),
            Change::Tag(repository, tag, record) => self.put_tag(repository, tag, record.as_ref()),
            Change::Checked(repository, tag, record) => self.put_tag(repository, tag, Some(record)),
        }
    }

    fn put_content(&self, digest: &Digest, size_bytes: u64, used_at: Timestamp) -> Result<(), IndexError> {
        let mut value = [0; 16];
        value[..8].copy_from_slice(&size_bytes.to_be_bytes());
        value[8..].copy_from_slice(&used_at.as_millis().to_be_bytes());
        self.content.insert(digest_key(digest), &value)?;
        Ok(())
    }

    /// Sets the last use of content that is there.
    fn put_use(&self, digest: &Digest, used_at: Timestamp) -> Result<(), IndexError> {
        let key = digest_key(digest);
        if let Some(value) = self.content.get(&key)? {
            let (size_bytes, _) = split_content(&value).ok_or(IndexError::Row("content"))?;
            self.put_content(digest, size_bytes, used_at)?;
        }
        Ok(())
    }

    /// Takes content out with its facts.
    fn remove_content(&self, digest: &Digest) -> Result<(), IndexError> {
        let key = digest_key(digest);
        self.content.remove(&key)?;
        for row in self.facts.scan_prefix(&key) {
            self.facts.remove(row?.0)?;
        }
        Ok(())
    }

    fn put_fact(&self, digest: &Digest, fact: &Fact) -> Result<(), IndexError> {
        let mut key = digest_key(digest);
        if matches!(fact, Fact::MediaType(_)) {
            let types = [&key[..], b"m\0"].concat();
            for row in self.facts.scan_prefix(types) {
                self.facts.remove(row?.0)?;
            }
        }
        key.extend(print_fact(fact));
        match fact {
            Fact::Confirmed(_, at) => self.facts.insert(key, &at.as_millis().to_be_bytes())?,
            _ => self.facts.insert(key, &[])?,
        };
        Ok(())
    }

    fn remove_grant(&self, digest: &Digest, repository: &Repository) -> Result<(), IndexError> {
        let any_time = Timestamp::from_millis(0);
        for fact in [Fact::Grant(repository.clone()), Fact::Confirmed(repository.clone(), any_time)] {
            let mut key = digest_key(digest);
            key.extend(print_fact(&fact));
            self.facts.remove(key)?;
        }
        Ok(())
    }

    fn put_tag(&self, repository: &Repository, tag: &Tag, record: Option<&Arc<TagRecord>>) -> Result<(), IndexError> {
        let key = join(&[repository.registry.as_str(), repository.name.as_str(), tag.as_str()]);
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

fn digest_key(digest: &Digest) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + digest.as_bytes().len());
    key.push(match digest {
        Digest::Sha256(_) => 1,
        Digest::Sha512(_) => 2,
    });
    key.extend_from_slice(digest.as_bytes());
    key
}

fn split_digest(key: &[u8]) -> Option<(Digest, &[u8])> {
    let (kind, rest) = key.split_first()?;
    match kind {
        1 => rest.split_first_chunk().map(|(bytes, rest)| (Digest::Sha256(*bytes), rest)),
        2 => rest.split_first_chunk().map(|(bytes, rest)| (Digest::Sha512(*bytes), rest)),
        _ => None,
    }
}

fn split_content(value: &[u8]) -> Option<(u64, Timestamp)> {
    let (size_bytes, rest) = value.split_first_chunk()?;
    let used_at = rest.try_into().ok()?;
    Some((u64::from_be_bytes(*size_bytes), Timestamp::from_millis(u64::from_be_bytes(used_at))))
}

fn join(parts: &[&str]) -> Vec<u8> {
    parts.join("\0").into_bytes()
}

fn split_tag(key: &[u8]) -> Option<(Repository, Tag)> {
    let mut parts = std::str::from_utf8(key).ok()?.split(char::from(SEPARATOR));
    let registry = parts.next()?.parse().ok()?;
    let name = parts.next()?.parse().ok()?;
    Some((Repository { registry, name }, parts.next()?.parse().ok()?))
}

fn print_fact(fact: &Fact) -> Vec<u8> {
    match fact {
        Fact::MediaType(media_type) => join(&["m", media_type.as_str()]),
        Fact::Public => join(&["p"]),
        Fact::Account(registry, name) => join(&["a", registry.as_str(), name]),
        Fact::Grant(repository) => join(&["g", repository.registry.as_str(), repository.name.as_str()]),
        Fact::Confirmed(repository, _) => join(&["c", repository.registry.as_str(), repository.name.as_str()]),
    }
}

fn parse_fact(bytes: &[u8], value: &[u8]) -> Option<Fact> {
    let repository =
        |registry: &str, name: &str| Some(Repository { registry: registry.parse().ok()?, name: name.parse().ok()? });
    let parts: Vec<&str> = std::str::from_utf8(bytes).ok()?.splitn(3, char::from(SEPARATOR)).collect();
    match parts[..] {
        ["m", media_type] => Some(Fact::MediaType(media_type.parse().ok()?)),
        ["p"] => Some(Fact::Public),
        ["a", registry, name] => Some(Fact::Account(registry.parse().ok()?, name.into())),
        ["g", registry, name] => Some(Fact::Grant(repository(registry, name)?)),
        ["c", registry, name] => {
            let at = Timestamp::from_millis(u64::from_be_bytes(value.try_into().ok()?));
            Some(Fact::Confirmed(repository(registry, name)?, at))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;
    use crate::oci::MediaType;

    #[test]
    fn reads_back_what_it_wrote() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("index");
        let (kept, gone) = (Digest::of(Algorithm::Sha512, b"kept"), Digest::of(Algorithm::Sha256, b"gone"));
        let repository = Repository { registry: "a.io:5000".parse().unwrap(), name: "x/y".parse().unwrap() };
        let tag: Tag = "latest".parse().unwrap();
        let facts = [
            Fact::MediaType(MediaType::oci_index()),
            Fact::Account(repository.registry.clone(), "me\0too".into()),
            Fact::Grant(repository.clone()),
            Fact::Confirmed(repository.clone(), Timestamp::from_millis(5)),
        ];
        let record = Arc::new(TagRecord {
            digest: kept,
            first_seen: Timestamp::from_millis(1),
            checked_at: Timestamp::from_millis(2),
            history: Vec::new(),
            gone_at: None,
            refused: None,
        });
        {
            let index = Index::open(&path).unwrap();
            for digest in [&kept, &gone] {
                index.put_content(digest, 7, Timestamp::from_millis(3)).unwrap();
                facts.iter().for_each(|fact| index.put_fact(digest, fact).unwrap());
            }
            index.put_use(&kept, Timestamp::from_millis(9)).unwrap();
            index.remove_content(&gone).unwrap();
            index.put_use(&gone, Timestamp::from_millis(9)).unwrap();
            index.put_tag(&repository, &tag, Some(&record)).unwrap();
            index.flush().unwrap();
        }
        let catalog = Index::open(&path).unwrap().load().unwrap();
        let mut found = Vec::new();
        catalog.each_change(|change| match change {
            Change::Content(digest, size, used) => assert_eq!((digest, size, used.as_millis()), (kept, 7, 9)),
            Change::Fact(digest, fact) => found.push((digest, fact)),
            _ => {}
        });
        assert_eq!(found, facts.map(|fact| (kept, fact)));
        assert_eq!(catalog.blobs(), 1);
        assert_eq!(catalog.tag(&repository, &tag), Some(record));
    }
}
