//! Tags: where they point, since when, and where they pointed before.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::RwLock;

use serde::Deserialize;
use serde::Serialize;

use crate::oci::Digest;
use crate::oci::Repository;
use crate::oci::Tag;

use super::Timestamp;

/// What is known of a tag.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagRecord {
    /// Where it points.
    pub digest: Digest,
    /// Since when.
    pub first_seen: Timestamp,
    /// When the upstream last said so.
    pub checked_at: Timestamp,
    /// Where it pointed before, oldest first.
    #[serde(default)]
    pub history: Vec<Past>,
    /// The upstream said, then, that the tag is gone; the rest is what it was before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gone_at: Option<Timestamp>,
    /// Where the upstream says that it points, and is not followed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Past>,
}

/// A digest that a tag has pointed to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Past {
    /// The digest.
    pub digest: Digest,
    /// When the upstream first said so.
    pub first_seen: Timestamp,
    /// When it last said so.
    pub last_seen: Timestamp,
}

/// What an answer of the upstream did to a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    /// It was unknown.
    New,
    /// It points where it pointed.
    Unchanged,
    /// It pointed elsewhere.
    From(Digest),
}

/// All tags.
#[derive(Debug, Default)]
pub(super) struct Tags(RwLock<HashMap<Repository, HashMap<Tag, Arc<TagRecord>>>>);

impl Tags {
    pub(super) fn get(&self, repository: &Repository, tag: &Tag) -> Option<Arc<TagRecord>> {
        let tags = self.0.read().unwrap_or_else(PoisonError::into_inner);
        tags.get(repository)?.get(tag).cloned()
    }

    pub(super) fn point(
        &self,
        repository: &Repository,
        tag: &Tag,
        digest: &Digest,
        now: Timestamp,
    ) -> (Arc<TagRecord>, Moved) {
        let mut tags = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let known = tags.entry(repository.clone()).or_default();
        let (record, moved) = match known.get(tag) {
            None => (TagRecord::new(digest, now), Moved::New),
            Some(old) if old.digest == *digest => {
                (old.confirmed(now), if old.gone_at.is_some() { Moved::New } else { Moved::Unchanged })
            }
            Some(old) => (old.moved_to(digest, now), Moved::From(old.digest)),
        };
        let record = Arc::new(record);
        known.insert(tag.clone(), record.clone());
        (record, moved)
    }

    /// The upstream was known to say so, at that time; `false` when the tag points elsewhere, or later is known.
    pub(super) fn checked(&self, repository: &Repository, tag: &Tag, digest: &Digest, at: Timestamp) -> bool {
        let mut tags = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let Some(record) = tags.get_mut(repository).and_then(|known| known.get_mut(tag)) else { return false };
        let is_news = record.digest == *digest && record.checked_at < at;
        if is_news {
            *record = Arc::new(TagRecord { checked_at: at, ..TagRecord::clone(record) });
        }
        is_news
    }

    /// Sets a record, the next after what is known: moves may share a millisecond, and clocks are set back. `false` when it
    /// was known.
    pub(super) fn set(&self, repository: &Repository, tag: &Tag, record: &Arc<TagRecord>) -> bool {
        let mut tags = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let before = tags.entry(repository.clone()).or_default().insert(tag.clone(), record.clone());
        before.is_none_or(|before| before != *record)
    }

    /// Sets a record that was written at some time, unless a later one is known.
    pub(super) fn restore(&self, repository: &Repository, tag: &Tag, record: Arc<TagRecord>) -> bool {
        let mut tags = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let known = tags.entry(repository.clone()).or_default();
        let is_news = known.get(tag).is_none_or(|known| known.heard_at() < record.heard_at());
        if is_news {
            known.insert(tag.clone(), record);
        }
        is_news
    }

    /// Changes what is known of a tag; `None` when nothing is.
    pub(super) fn change(
        &self,
        repository: &Repository,
        tag: &Tag,
        change: impl FnOnce(&TagRecord) -> TagRecord,
    ) -> Option<Arc<TagRecord>> {
        let mut tags = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let known = tags.get_mut(repository)?.get_mut(tag)?;
        *known = Arc::new(change(known));
        Some(known.clone())
    }

    /// `false` when it was unknown.
    pub(super) fn forget(&self, repository: &Repository, tag: &Tag) -> bool {
        let mut tags = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = tags.get_mut(repository) else { return false };
        let was_known = known.remove(tag).is_some();
        if known.is_empty() {
            tags.remove(repository);
        }
        was_known
    }

    pub(super) fn each(&self, mut each: impl FnMut(&Repository, &Tag, &Arc<TagRecord>)) {
        for (repository, known) in &*self.0.read().unwrap_or_else(PoisonError::into_inner) {
            known.iter().for_each(|(tag, record)| each(repository, tag, record));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    #[test]
    fn tags_keep_their_history() {
        let tags = Tags::default();
        let repository = Repository { registry: "a.io".parse().unwrap(), name: "x".parse().unwrap() };
        let tag = "latest".parse().unwrap();
        let (at, digest) = (Timestamp::from_millis, |text: &str| Digest::of(Algorithm::Sha256, text.as_bytes()));
        assert_eq!(tags.point(&repository, &tag, &digest("1"), at(1)).1, Moved::New);
        assert_eq!(tags.point(&repository, &tag, &digest("1"), at(5)).1, Moved::Unchanged);
        let (record, moved) = tags.point(&repository, &tag, &digest("2"), at(9));
        assert_eq!(moved, Moved::From(digest("1")));
        assert_eq!(record.history, [Past { digest: digest("1"), first_seen: at(1), last_seen: at(5) }]);
        assert!(!tags.checked(&repository, &tag, &digest("1"), at(20)), "it points elsewhere now");
        assert!(tags.checked(&repository, &tag, &digest("2"), at(20)));
        assert!(!tags.restore(&repository, &tag, record), "later is known");
        assert!(tags.forget(&repository, &tag) && tags.get(&repository, &tag).is_none());
    }
}
