//! What is known of all content and tags, in memory: every question of a hit is answered here.
//!
//! Facts live and die with their content: evicting a blob forgets who was granted it.

use std::collections::HashMap;
use std::collections::HashSet;
use std::hash::BuildHasher;
use std::hash::RandomState;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::sync::RwLockReadGuard;
use std::sync::RwLockWriteGuard;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::Deserialize;
use serde::Serialize;

use crate::oci::Digest;
use crate::oci::MediaType;
use crate::oci::Registry;
use crate::oci::Repository;
use crate::oci::Tag;

use super::Timestamp;
use super::change::Change;

const SHARDS: usize = 16;
/// A use is written to the index when the last written one is that old: what a crash can lose.
const USE_PRECISION: Duration = Duration::from_secs(60);
/// Most repositories that one blob is granted to; the oldest grant gives way and is asked for again.
const MAX_GRANTS: usize = 4096;
/// Most accounts that one blob is known to have been fetched with.
const MAX_ACCOUNTS: usize = 64;

/// Something known about content beside its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fact {
    /// As a registry sent it.
    MediaType(MediaType),
    /// It was once fetched without credentials.
    Public,
    /// It was once fetched from this registry with this account.
    Account(Registry, Arc<str>),
    /// This repository may serve it.
    Grant(Repository),
    /// The registry said so of this repository, then. Of public content nobody needs to know.
    Confirmed(Repository, Timestamp),
}

/// Why a repository may serve some content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// All of it was fetched from there, with this account if with any.
    Content {
        /// The account that was used; `None` without credentials.
        account: Option<Arc<str>>,
    },
    /// The registry said so, and its word was enough (see [`super::Store::is_opened_by`]).
    Confirmed,
}

/// A right of a repository to serve some content, and what it stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The content was once fetched without credentials: the right has no end.
    pub is_public: bool,
    /// When the registry last showed that the repository has it; not kept of public content.
    pub confirmed_at: Option<Timestamp>,
}

/// How a repository stands to some content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The content is not here.
    Absent,
    /// It is here, and the repository may serve it.
    Granted,
    /// It is here, but this repository has not shown that it has it.
    Ungranted,
}

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

pub(super) struct Catalog {
    hasher: RandomState,
    shards: [RwLock<HashMap<Digest, Entry>>; SHARDS],
    tags: RwLock<HashMap<Repository, HashMap<Tag, Arc<TagRecord>>>>,
    repositories: RwLock<HashMap<Repository, RepositoryId>>,
    stored_bytes: AtomicU64,
    blobs: AtomicU64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct RepositoryId(u32);

pub(super) struct Entry {
    size_bytes: u64,
    last_use_ms: AtomicU64,
    written_use_ms: AtomicU64,
    media_type: Option<MediaType>,
    is_public: bool,
    accounts: Vec<(Registry, Arc<str>)>,
    grants: Vec<RepositoryId>,
    confirmed: Vec<(RepositoryId, Timestamp)>,
}

impl Catalog {
    pub(super) fn new() -> Self {
        Self {
            hasher: RandomState::new(),
            shards: Default::default(),
            tags: RwLock::default(),
            repositories: RwLock::default(),
            stored_bytes: AtomicU64::new(0),
            blobs: AtomicU64::new(0),
        }
    }

    // === Content ===

    pub(super) fn size_bytes(&self, digest: &Digest) -> Option<u64> {
        self.read(digest).get(digest).map(|entry| entry.size_bytes)
    }

    pub(super) fn media_type(&self, digest: &Digest) -> Option<MediaType> {
        self.read(digest).get(digest)?.media_type.clone()
    }

    pub(super) fn blobs(&self) -> u64 {
        self.blobs.load(Ordering::Relaxed)
    }

    pub(super) fn stored_bytes(&self) -> u64 {
        self.stored_bytes.load(Ordering::Relaxed)
    }

    /// Adds content with what is known of it, so that nobody finds one without the other; `false` when it was there.
    pub(super) fn insert(&self, digest: &Digest, size_bytes: u64, used_at: Timestamp, facts: &[Fact]) -> bool {
        let grants: Vec<_> = facts.iter().map(|fact| self.grant_of(fact)).collect();
        let mut shard = self.write(digest);
        if shard.contains_key(digest) {
            return false;
        }
        let mut entry = Entry {
            size_bytes,
            last_use_ms: AtomicU64::new(used_at.as_millis()),
            written_use_ms: AtomicU64::new(used_at.as_millis()),
            media_type: None,
            is_public: false,
            accounts: Vec::new(),
            grants: Vec::new(),
            confirmed: Vec::new(),
        };
        for (fact, grant) in facts.iter().zip(grants) {
            entry.learn(fact, grant);
        }
        shard.insert(*digest, entry);
        self.blobs.fetch_add(1, Ordering::Relaxed);
        self.stored_bytes.fetch_add(size_bytes, Ordering::Relaxed);
        true
    }

    /// Takes content out: its length, and all that was known of it.
    pub(super) fn remove(&self, digest: &Digest) -> Option<(u64, Entry)> {
        let entry = self.write(digest).remove(digest)?;
        self.blobs.fetch_sub(1, Ordering::Relaxed);
        self.stored_bytes.fetch_sub(entry.size_bytes, Ordering::Relaxed);
        Some((entry.size_bytes, entry))
    }

    /// Undoes a removal.
    pub(super) fn put_back(&self, digest: &Digest, entry: Entry) {
        self.blobs.fetch_add(1, Ordering::Relaxed);
        self.stored_bytes.fetch_add(entry.size_bytes, Ordering::Relaxed);
        self.write(digest).insert(*digest, entry);
    }

    /// Remembers a use; `true` when the index should be told.
    pub(super) fn touch(&self, digest: &Digest, now: Timestamp) -> bool {
        let shard = self.read(digest);
        let Some(entry) = shard.get(digest) else { return false };
        entry.last_use_ms.store(now.as_millis(), Ordering::Relaxed);
        let written = Timestamp::from_millis(entry.written_use_ms.load(Ordering::Relaxed));
        let is_due = now.since(written) >= USE_PRECISION;
        if is_due {
            entry.written_use_ms.store(now.as_millis(), Ordering::Relaxed);
        }
        is_due
    }

    /// Content to evict, least recently used first, of at least `wanted_bytes` in all where there is so much; none of `kept`.
    pub(super) fn least_recently_used(&self, wanted_bytes: u64, kept: &HashSet<Digest>) -> Vec<Digest> {
        let mut all: Vec<(u64, u64, Digest)> = Vec::new();
        for shard in &self.shards {
            let shard = shard.read().unwrap_or_else(PoisonError::into_inner);
            let candidates = shard.iter().filter(|(digest, _)| !kept.contains(digest));
            all.extend(candidates.map(|(d, e)| (e.last_use_ms.load(Ordering::Relaxed), e.size_bytes, *d)));
        }
        all.sort_unstable();
        let mut found_bytes = 0;
        let enough = all.iter().take_while(|(_, size_bytes, _)| {
            let is_short = found_bytes < wanted_bytes;
            found_bytes += size_bytes;
            is_short
        });
        enough.map(|(_, _, digest)| *digest).collect()
    }

    /// The digests that are wanted, in no order.
    pub(super) fn digests(&self, is_wanted: impl Fn(&Digest) -> bool) -> Vec<Digest> {
        let mut found = Vec::new();
        for shard in &self.shards {
            let shard = shard.read().unwrap_or_else(PoisonError::into_inner);
            found.extend(shard.keys().filter(|digest| is_wanted(digest)));
        }
        found
    }

    // === Rights ===

    pub(super) fn standing(&self, repository: &Repository, digest: &Digest) -> Standing {
        let id = self.repository_id(repository);
        match self.read(digest).get(digest) {
            None => Standing::Absent,
            Some(entry) if id.is_some_and(|id| entry.grants.contains(&id)) => Standing::Granted,
            Some(_) => Standing::Ungranted,
        }
    }

    pub(super) fn grant(&self, repository: &Repository, digest: &Digest) -> Option<Grant> {
        let id = self.repository_id(repository)?;
        let shard = self.read(digest);
        let entry = shard.get(digest).filter(|entry| entry.grants.contains(&id))?;
        let confirmed = entry.confirmed.iter().find(|(known, _)| *known == id);
        Some(Grant { is_public: entry.is_public, confirmed_at: confirmed.map(|(_, at)| *at) })
    }

    /// Takes a right back that does not stand on public content; `false` when there was none.
    pub(super) fn revoke(&self, repository: &Repository, digest: &Digest) -> bool {
        let Some(id) = self.repository_id(repository) else { return false };
        self.write(digest).get_mut(digest).is_some_and(|entry| entry.revoke(id))
    }

    /// Takes back all such rights of a repository: what they were for.
    pub(super) fn revoke_all(&self, repository: &Repository) -> Vec<Digest> {
        let Some(id) = self.repository_id(repository) else { return Vec::new() };
        let mut revoked = Vec::new();
        for shard in &self.shards {
            let mut shard = shard.write().unwrap_or_else(PoisonError::into_inner);
            revoked.extend(shard.iter_mut().filter_map(|(digest, entry)| entry.revoke(id).then_some(*digest)));
        }
        revoked
    }

    pub(super) fn is_opened_by(&self, digest: &Digest, registry: &Registry, account: Option<&str>) -> bool {
        self.read(digest).get(digest).is_some_and(|entry| {
            let same = |known: &(Registry, Arc<str>)| known.0 == *registry && Some(&*known.1) == account;
            entry.is_public || entry.accounts.iter().any(same)
        })
    }

    /// The facts that a proof amounts to.
    pub(super) fn facts(repository: &Repository, proof: &Proof, now: Timestamp) -> Vec<Fact> {
        let (grant, confirmed) = (Fact::Grant(repository.clone()), Fact::Confirmed(repository.clone(), now));
        match proof {
            Proof::Confirmed => vec![grant, confirmed],
            Proof::Content { account: None } => vec![Fact::Public, grant],
            Proof::Content { account: Some(account) } => {
                vec![Fact::Account(repository.registry.clone(), account.clone()), grant, confirmed]
            }
        }
    }

    /// Adds a fact; `false` when it was known, or its content is not here.
    pub(super) fn learn(&self, digest: &Digest, fact: &Fact) -> bool {
        let grant = self.grant_of(fact);
        self.write(digest).get_mut(digest).is_some_and(|entry| entry.learn(fact, grant))
    }

    /// Takes a right back, also one that stands on public content; `false` when there was none.
    pub(super) fn purge_grant(&self, digest: &Digest, repository: &Repository) -> bool {
        let Some(id) = self.repository_id(repository) else { return false };
        self.write(digest).get_mut(digest).is_some_and(|entry| {
            let before = entry.grants.len();
            entry.grants.retain(|granted| *granted != id);
            entry.confirmed.retain(|(granted, _)| *granted != id);
            entry.grants.len() < before
        })
    }

    // === Tags ===

    pub(super) fn tag(&self, repository: &Repository, tag: &Tag) -> Option<Arc<TagRecord>> {
        let tags = self.tags.read().unwrap_or_else(PoisonError::into_inner);
        tags.get(repository)?.get(tag).cloned()
    }

    pub(super) fn point_tag(
        &self,
        repository: &Repository,
        tag: &Tag,
        digest: &Digest,
        now: Timestamp,
    ) -> (Arc<TagRecord>, Moved) {
        let mut tags = self.tags.write().unwrap_or_else(PoisonError::into_inner);
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

    /// Changes what is known of a tag; `None` when nothing is.
    pub(super) fn change_tag(
        &self,
        repository: &Repository,
        tag: &Tag,
        change: impl FnOnce(&TagRecord) -> TagRecord,
    ) -> Option<Arc<TagRecord>> {
        let mut tags = self.tags.write().unwrap_or_else(PoisonError::into_inner);
        let known = tags.get_mut(repository)?.get_mut(tag)?;
        *known = Arc::new(change(known));
        Some(known.clone())
    }

    /// Sets a record as it was written.
    pub(super) fn restore_tag(&self, repository: &Repository, tag: &Tag, record: Arc<TagRecord>) {
        let mut tags = self.tags.write().unwrap_or_else(PoisonError::into_inner);
        tags.entry(repository.clone()).or_default().insert(tag.clone(), record);
    }

    /// `false` when it was unknown.
    pub(super) fn forget_tag(&self, repository: &Repository, tag: &Tag) -> bool {
        let mut tags = self.tags.write().unwrap_or_else(PoisonError::into_inner);
        tags.get_mut(repository).is_some_and(|known| known.remove(tag).is_some())
    }

    // === All of it ===

    /// Calls `each` with the changes that make a catalog equal to this one.
    pub(super) fn each_change(&self, mut each: impl FnMut(Change)) {
        let names: HashMap<u32, Repository> = {
            let repositories = self.repositories.read().unwrap_or_else(PoisonError::into_inner);
            repositories.iter().map(|(repository, id)| (id.0, repository.clone())).collect()
        };
        for shard in &self.shards {
            for (digest, entry) in &*shard.read().unwrap_or_else(PoisonError::into_inner) {
                let used_at = Timestamp::from_millis(entry.last_use_ms.load(Ordering::Relaxed));
                each(Change::Content(*digest, entry.size_bytes, used_at));
                entry.facts(&names).for_each(|fact| each(Change::Fact(*digest, fact)));
            }
        }
        for (repository, known) in &*self.tags.read().unwrap_or_else(PoisonError::into_inner) {
            for (tag, record) in known {
                each(Change::Tag(repository.clone(), tag.clone(), Some(record.clone())));
            }
        }
    }

    // === Parts ===

    fn shard(&self, digest: &Digest) -> &RwLock<HashMap<Digest, Entry>> {
        let hash = usize::try_from(self.hasher.hash_one(digest) % SHARDS as u64).unwrap_or(0);
        &self.shards[hash]
    }

    fn read(&self, digest: &Digest) -> RwLockReadGuard<'_, HashMap<Digest, Entry>> {
        self.shard(digest).read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, digest: &Digest) -> RwLockWriteGuard<'_, HashMap<Digest, Entry>> {
        self.shard(digest).write().unwrap_or_else(PoisonError::into_inner)
    }

    fn repository_id(&self, repository: &Repository) -> Option<RepositoryId> {
        self.repositories.read().unwrap_or_else(PoisonError::into_inner).get(repository).copied()
    }

    /// The number of the repository that a grant is for. Taken before a shard's lock.
    fn grant_of(&self, fact: &Fact) -> Option<RepositoryId> {
        match fact {
            Fact::Grant(repository) | Fact::Confirmed(repository, _) => Some(self.intern(repository)),
            _ => None,
        }
    }

    fn intern(&self, repository: &Repository) -> RepositoryId {
        if let Some(id) = self.repository_id(repository) {
            return id;
        }
        let mut repositories = self.repositories.write().unwrap_or_else(PoisonError::into_inner);
        let next = RepositoryId(u32::try_from(repositories.len()).unwrap_or(u32::MAX));
        *repositories.entry(repository.clone()).or_insert(next)
    }
}

impl Entry {
    fn facts<'a>(&'a self, names: &'a HashMap<u32, Repository>) -> impl Iterator<Item = Fact> + 'a {
        let accounts = self.accounts.iter().map(|(registry, name)| Fact::Account(registry.clone(), name.clone()));
        let grants = self.grants.iter().filter_map(|id| names.get(&id.0).cloned().map(Fact::Grant));
        let named = |(id, at): &(RepositoryId, Timestamp)| Some(Fact::Confirmed(names.get(&id.0)?.clone(), *at));
        let confirmed = self.confirmed.iter().filter_map(named);
        let media_type = self.media_type.clone().map(Fact::MediaType);
        let public = self.is_public.then_some(Fact::Public);
        media_type.into_iter().chain(public).chain(accounts).chain(grants).chain(confirmed)
    }

    /// A manifest type stays: another registry that sends the same bytes as something else changes nothing.
    fn learn_type(&mut self, media_type: &MediaType) -> bool {
        let is_news = match &self.media_type {
            Some(known) => known != media_type && !known.is_index() && !known.is_image(),
            None => true,
        };
        if is_news {
            self.media_type = Some(media_type.clone());
        }
        is_news
    }

    /// `false` when it was known.
    fn learn(&mut self, fact: &Fact, grant: Option<RepositoryId>) -> bool {
        match fact {
            Fact::MediaType(media_type) => self.learn_type(media_type),
            Fact::Public => !std::mem::replace(&mut self.is_public, true),
            Fact::Account(registry, name) => {
                add_bounded(&mut self.accounts, (registry.clone(), name.clone()), MAX_ACCOUNTS)
            }
            Fact::Grant(_) => grant.is_some_and(|id| add_bounded(&mut self.grants, id, MAX_GRANTS)),
            Fact::Confirmed(_, at) => grant.is_some_and(|id| self.confirm(id, *at)),
        }
    }

    /// `false` when it is no news, or nobody needs to know.
    fn confirm(&mut self, id: RepositoryId, at: Timestamp) -> bool {
        if self.is_public || !self.grants.contains(&id) {
            return false;
        }
        match self.confirmed.iter_mut().find(|(known, _)| *known == id) {
            Some((_, known)) if *known >= at => false,
            Some((_, known)) => {
                *known = at;
                true
            }
            None => add_bounded(&mut self.confirmed, (id, at), MAX_GRANTS),
        }
    }

    fn revoke(&mut self, id: RepositoryId) -> bool {
        if self.is_public || !self.grants.contains(&id) {
            return false;
        }
        self.grants.retain(|known| *known != id);
        self.confirmed.retain(|(known, _)| *known != id);
        true
    }
}

/// `false` when it was there.
fn add_bounded<T: PartialEq>(list: &mut Vec<T>, item: T, limit: usize) -> bool {
    if list.contains(&item) {
        return false;
    }
    if list.len() == limit {
        list.remove(0);
    }
    list.push(item);
    true
}
