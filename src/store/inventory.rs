//! What is here, for people: read without being used, so that looking keeps nothing from being evicted.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::oci::Digest;
use crate::oci::MediaType;
use crate::oci::Repository;
use crate::oci::Tag;

use super::Store;
use super::TagRecord;
use super::Timestamp;
use super::blocking;
use super::change::Change;
use super::read::read_exact_at;
use super::rights::Fact;

/// Room on the disk, and when something goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Room {
    /// The budget: above it, content goes.
    pub max_bytes: u64,
    /// Down to this.
    pub low_watermark_bytes: u64,
    /// What stays free on the file system.
    pub min_free_bytes: u64,
    /// What is free now.
    pub free_bytes: u64,
    /// The size of the file system.
    pub disk_bytes: u64,
    /// Whose room it is: see [`super::directory_id`]. Empty when the disk does not tell.
    pub directory_id: String,
}

/// What is known of content that is here.
#[derive(Clone, Debug)]
pub struct Known {
    /// Its length.
    pub size_bytes: u64,
    /// When it was last used, to the minute after a crash.
    pub used_at: Timestamp,
    /// Of a manifest: its type.
    pub media_type: Option<MediaType>,
    /// Who may serve it.
    pub repositories: Vec<Repository>,
}

/// All content and all tags at one moment; changes while it was taken may be in it or not.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    /// The content.
    pub contents: HashMap<Digest, Known>,
    /// The tags, also those whose content is gone.
    pub tags: Vec<(Repository, Tag, Arc<TagRecord>)>,
}

impl Store {
    /// What is here. Takes memory in proportion to it.
    pub async fn inventory(&self) -> Inventory {
        let inner = self.inner.clone();
        blocking(move || {
            let mut inventory = Inventory::default();
            inner.catalog.each_change(|change| inventory.add(change));
            inventory
        })
        .await
    }

    /// The bytes of content that is here and no longer than this. Nothing is remembered of it; what cannot be read is
    /// not here.
    pub async fn peek(&self, digest: &Digest, max_bytes: u64) -> Option<Bytes> {
        let (inner, digest) = (self.inner.clone(), *digest);
        let size_bytes = inner.catalog.size_bytes(&digest).filter(|&size_bytes| size_bytes <= max_bytes)?;
        blocking(move || {
            let (file, found_bytes) = inner.engine.open_blob(&digest).ok()??;
            if found_bytes == size_bytes { read_exact_at(&file, 0, size_bytes).ok() } else { None }
        })
        .await
    }

    /// How much room there is.
    pub async fn room(&self) -> Room {
        let inner = self.inner.clone();
        blocking(move || inner.space.room()).await
    }
}

impl Inventory {
    fn add(&mut self, change: Change) {
        match change {
            Change::Content(digest, size_bytes, used_at) => {
                let known = Known { size_bytes, used_at, media_type: None, repositories: Vec::new() };
                self.contents.insert(digest, known);
            }
            Change::Fact(digest, Fact::MediaType(media_type)) => {
                self.known(&digest, |known| known.media_type = Some(media_type));
            }
            Change::Fact(digest, Fact::Grant(repository)) => {
                self.known(&digest, |known| known.repositories.push(repository));
            }
            Change::Tag(repository, tag, Some(record)) => self.tags.push((repository, tag, record)),
            _ => {}
        }
    }

    fn known(&mut self, digest: &Digest, learn: impl FnOnce(&mut Known)) {
        if let Some(known) = self.contents.get_mut(digest) {
            learn(known);
        }
    }
}
