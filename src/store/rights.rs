//! What is known about content beside its bytes, and who may read it because of that.
//!
//! Most blobs of a repository have the same facts, so a set of facts is kept once, however many blobs share it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::RwLock;

use serde::Deserialize;
use serde::Serialize;

use crate::oci::Algorithm;
use crate::oci::Digest;
use crate::oci::MediaType;
use crate::oci::Registry;
use crate::oci::Repository;

use super::Timestamp;

/// Most repositories that one blob is granted to; the oldest grant gives way and is asked for again.
const MAX_GRANTS: usize = 4096;
/// Most accounts that one blob is known to have been fetched with.
const MAX_ACCOUNTS: usize = 64;
/// Sets that nobody uses any more are looked for when there are so many more than after the last look.
const SWEEP_AFTER: usize = 1024;

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
    /// The registry said so of this repository, then. Of public content nobody needs to know. It is kept apart from the sets.
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

impl Fact {
    /// The facts that a proof amounts to.
    pub(super) fn of_proof(repository: &Repository, proof: &Proof, now: Timestamp) -> Vec<Self> {
        let (grant, confirmed) = (Self::Grant(repository.clone()), Self::Confirmed(repository.clone(), now));
        match proof {
            Proof::Confirmed => vec![grant, confirmed],
            Proof::Content { account: None } => vec![Self::Public, grant],
            Proof::Content { account: Some(account) } => {
                vec![Self::Account(repository.registry.clone(), account.clone()), grant, confirmed]
            }
        }
    }
}

/// A fact as files keep it. Names are texts here, so that one of another version fails alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum FactText {
    MediaType(String),
    Public,
    Account(String, String),
    Grant(String, String),
}

impl FactText {
    /// `None` for what is in no set.
    pub(super) fn of(fact: &Fact) -> Option<Self> {
        Some(match fact {
            Fact::MediaType(media_type) => Self::MediaType(media_type.to_string()),
            Fact::Public => Self::Public,
            Fact::Account(registry, name) => Self::Account(registry.to_string(), name.to_string()),
            Fact::Grant(repository) => Self::Grant(repository.registry.to_string(), repository.name.to_string()),
            Fact::Confirmed(..) => return None,
        })
    }

    /// `None` when it is not what this version understands.
    pub(super) fn read(&self) -> Option<Fact> {
        Some(match self {
            Self::MediaType(text) => Fact::MediaType(text.parse().ok()?),
            Self::Public => Fact::Public,
            Self::Account(registry, name) => Fact::Account(registry.parse().ok()?, name.as_str().into()),
            Self::Grant(registry, name) => {
                Fact::Grant(Repository { registry: registry.parse().ok()?, name: name.parse().ok()? })
            }
        })
    }
}

// === A set of facts ===

/// The number of a repository that something is granted to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RepositoryId(u32);

/// The facts of some content. Shared: a new fact makes another set.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    /// Names the set in files: equal sets have equal keys.
    key: u64,
    media_type: Option<MediaType>,
    is_public: bool,
    accounts: Vec<(Registry, Arc<str>)>,
    grants: Vec<RepositoryId>,
}

impl Facts {
    pub(super) fn key(&self) -> u64 {
        self.key
    }

    pub(super) fn media_type(&self) -> Option<&MediaType> {
        self.media_type.as_ref()
    }

    pub(super) fn is_public(&self) -> bool {
        self.is_public
    }

    pub(super) fn is_granted_to(&self, repository: RepositoryId) -> bool {
        self.grants.contains(&repository)
    }

    pub(super) fn is_opened_by(&self, registry: &Registry, account: Option<&str>) -> bool {
        let same = |known: &(Registry, Arc<str>)| known.0 == *registry && Some(&*known.1) == account;
        self.is_public || self.accounts.iter().any(same)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.media_type.is_none() && !self.is_public && self.accounts.is_empty() && self.grants.is_empty()
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
    fn learn(&mut self, fact: &Fact, names: &Names) -> bool {
        match fact {
            Fact::MediaType(media_type) => self.learn_type(media_type),
            Fact::Public => !std::mem::replace(&mut self.is_public, true),
            Fact::Account(registry, name) => {
                add_bounded(&mut self.accounts, (registry.clone(), name.clone()), MAX_ACCOUNTS)
            }
            Fact::Grant(repository) => add_bounded(&mut self.grants, names.intern(repository), MAX_GRANTS),
            Fact::Confirmed(..) => false,
        }
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

// === All sets ===

/// Every set of facts that some content has.
#[derive(Debug)]
pub(super) struct FactSets {
    names: Names,
    none: Arc<Facts>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    sets: HashMap<u64, Arc<Facts>>,
    /// How many there were after the last sweep.
    swept: usize,
}

#[derive(Debug, Default)]
struct Names(RwLock<NameTable>);

#[derive(Debug, Default)]
struct NameTable {
    ids: HashMap<Repository, RepositoryId>,
    names: Vec<Repository>,
}

impl FactSets {
    pub(super) fn new() -> Self {
        Self { names: Names::default(), none: Arc::default(), known: Mutex::default() }
    }

    /// The set without any fact.
    pub(super) fn none(&self) -> Arc<Facts> {
        self.none.clone()
    }

    /// The set of these facts.
    pub(super) fn of(&self, facts: &[Fact]) -> Arc<Facts> {
        self.with(&self.none, facts).unwrap_or_else(|| self.none())
    }

    /// A set and some more facts; `None` when it had them all.
    pub(super) fn with(&self, set: &Facts, more: &[Fact]) -> Option<Arc<Facts>> {
        let mut larger = set.clone();
        let news = more.iter().filter(|fact| larger.learn(fact, &self.names)).count();
        (news > 0).then(|| self.share(larger))
    }

    /// A set without the grant of a repository; `None` when it has none.
    pub(super) fn without(&self, set: &Facts, repository: RepositoryId) -> Option<Arc<Facts>> {
        let mut smaller = set.clone();
        smaller.grants.retain(|granted| *granted != repository);
        (smaller.grants.len() < set.grants.len()).then(|| self.share(smaller))
    }

    /// The facts of a set.
    pub(super) fn facts(&self, set: &Facts) -> Vec<Fact> {
        let names = self.names.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut facts: Vec<Fact> = set.media_type.iter().cloned().map(Fact::MediaType).collect();
        facts.extend(set.is_public.then_some(Fact::Public));
        facts.extend(set.accounts.iter().map(|(registry, name)| Fact::Account(registry.clone(), name.clone())));
        facts.extend(set.grants.iter().filter_map(|id| names.names.get(id.0 as usize).cloned().map(Fact::Grant)));
        facts
    }

    /// The facts of a set, as files keep them.
    pub(super) fn text(&self, set: &Facts) -> Vec<u8> {
        let texts: Vec<FactText> = self.facts(set).iter().filter_map(FactText::of).collect();
        serde_json::to_vec(&texts).unwrap_or_default()
    }

    /// A set as files keep it; what cannot be read in it is left out.
    pub(super) fn parse(&self, text: &[u8]) -> Option<Arc<Facts>> {
        let texts: Vec<FactText> = serde_json::from_slice(text).ok()?;
        let facts: Vec<Fact> = texts.iter().filter_map(FactText::read).collect();
        Some(self.of(&facts))
    }

    /// The number of a repository that anything was ever granted to.
    pub(super) fn repository_id(&self, repository: &Repository) -> Option<RepositoryId> {
        self.names.get(repository)
    }

    fn share(&self, mut set: Facts) -> Arc<Facts> {
        set.key = key_of(&self.text(&set));
        let mut known = self.known();
        if let Some(shared) = known.sets.get(&set.key) {
            return shared.clone();
        }
        if known.sets.len() >= known.swept + SWEEP_AFTER.max(known.swept) {
            known.sets.retain(|_, set| Arc::strong_count(set) > 1);
            known.swept = known.sets.len();
        }
        let set = Arc::new(set);
        known.sets.insert(set.key, set.clone());
        set
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The key of a set of facts that has this text.
pub(super) fn key_of(text: &[u8]) -> u64 {
    let digest = Digest::of(Algorithm::Sha256, text);
    digest.as_bytes().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

impl Names {
    fn get(&self, repository: &Repository) -> Option<RepositoryId> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).ids.get(repository).copied()
    }

    fn intern(&self, repository: &Repository) -> RepositoryId {
        if let Some(id) = self.get(repository) {
            return id;
        }
        let mut table = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let next = RepositoryId(u32::try_from(table.names.len()).unwrap_or(u32::MAX));
        let id = *table.ids.entry(repository.clone()).or_insert(next);
        if id == next {
            table.names.push(repository.clone());
        }
        id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(index: usize) -> Fact {
        Fact::Grant(Repository { registry: "a.io".parse().unwrap(), name: format!("x/{index}").parse().unwrap() })
    }

    #[test]
    fn equal_sets_are_one_and_unused_ones_go() {
        let sets = FactSets::new();
        let set = sets.of(&[Fact::Public, grant(0)]);
        assert!(Arc::ptr_eq(&set, &sets.of(&[Fact::Public, grant(0)])));
        assert!(sets.with(&set, &[grant(0)]).is_none(), "it was known");
        let text = sets.text(&set);
        assert!(Arc::ptr_eq(&set, &sets.parse(&text).unwrap()));
        for index in 0..3 * SWEEP_AFTER {
            sets.of(&[grant(index)]);
        }
        assert!(sets.known().sets.len() <= 2 * SWEEP_AFTER, "{}", sets.known().sets.len());
        assert!(Arc::ptr_eq(&set, &sets.of(&[Fact::Public, grant(0)])), "what is used stays");
    }

    #[test]
    fn the_oldest_grant_gives_way() {
        let sets = FactSets::new();
        let grants: Vec<Fact> = (0..=MAX_GRANTS).map(grant).collect();
        assert_eq!(sets.facts(&sets.of(&grants)), grants[1..]);
    }
}
