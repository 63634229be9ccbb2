//! What is known of all content and tags, in memory: every question of a hit is answered here.
//!
//! Facts live and die with their content: evicting a blob forgets who was granted it.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use crate::oci::Algorithm;
use crate::oci::Digest;
use crate::oci::MediaType;
use crate::oci::Registry;
use crate::oci::Repository;
use crate::oci::Tag;

use super::Timestamp;
use super::change::Change;
use super::confirmed::Confirmed;
use super::rights::Fact;
use super::rights::FactSets;
use super::rights::Facts;
use super::rights::Grant;
use super::rights::Standing;
use super::table;
use super::table::Known;
use super::table::LastUse;
use super::table::Table;
use super::tags::Moved;
use super::tags::TagRecord;
use super::tags::Tags;

/// Parts of the catalog that are gone through one by one, each under a lock of its own.
pub(super) const PARTS: usize = 2 * table::SHARDS;
/// Ages that a search for the least recently used tells apart in one pass.
const AGES: usize = 1024;

#[derive(Debug)]
pub(super) struct Catalog {
    /// By SHA-256, and by SHA-512.
    content: (Table<32>, Table<64>),
    sets: FactSets,
    confirmed: Confirmed,
    tags: Tags,
    stored_bytes: AtomicU64,
    blobs: AtomicU64,
}

/// Calls a method of the table that a digest belongs to.
macro_rules! table {
    ($self:ident, $digest:ident, $method:ident $(, $argument:expr)*) => {
        match $digest {
            Digest::Sha256(bytes) => $self.content.0.$method(bytes $(, $argument)*),
            Digest::Sha512(bytes) => $self.content.1.$method(bytes $(, $argument)*),
        }
    };
}

impl Catalog {
    pub(super) fn new() -> Self {
        Self {
            content: (Table::new(), Table::new()),
            sets: FactSets::new(),
            confirmed: Confirmed::default(),
            tags: Tags::default(),
            stored_bytes: AtomicU64::new(0),
            blobs: AtomicU64::new(0),
        }
    }

    // === Content ===

    pub(super) fn size_bytes(&self, digest: &Digest) -> Option<u64> {
        self.get(digest, |known| known.size_bytes)
    }

    pub(super) fn media_type(&self, digest: &Digest) -> Option<MediaType> {
        self.get(digest, |known| known.facts.media_type().cloned())?
    }

    pub(super) fn blobs(&self) -> u64 {
        self.blobs.load(Ordering::Relaxed)
    }

    pub(super) fn stored_bytes(&self) -> u64 {
        self.stored_bytes.load(Ordering::Relaxed)
    }

    /// Adds content with what is known of it, so that nobody finds one without the other; `false` when it was there.
    pub(super) fn insert(&self, digest: &Digest, size_bytes: u64, used_at: Timestamp, facts: &[Fact]) -> bool {
        let known = Known { size_bytes, last_use: LastUse::new(used_at), facts: self.sets.of(facts) };
        let is_new = self.put(digest, known);
        if is_new {
            self.confirm_all(digest, facts);
        }
        is_new
    }

    /// Adds content as it was known before; `false` when it was there.
    pub(super) fn put(&self, digest: &Digest, known: Known) -> bool {
        let size_bytes = known.size_bytes;
        let is_new = table!(self, digest, insert, known);
        if is_new {
            self.blobs.fetch_add(1, Ordering::Relaxed);
            self.stored_bytes.fetch_add(size_bytes, Ordering::Relaxed);
        }
        is_new
    }

    /// Makes ready for so many digests that begin as this one does.
    pub(super) fn reserve(&self, digest: &Digest, more: usize) {
        table!(self, digest, reserve, more);
    }

    /// Takes content out, with all that was known of it.
    pub(super) fn remove(&self, digest: &Digest) -> Option<Known> {
        let known = table!(self, digest, remove)?;
        self.confirmed.forget(digest);
        self.blobs.fetch_sub(1, Ordering::Relaxed);
        self.stored_bytes.fetch_sub(known.size_bytes, Ordering::Relaxed);
        Some(known)
    }

    /// Looks at what is known of content, under a lock.
    pub(super) fn get<R>(&self, digest: &Digest, view: impl FnOnce(&Known) -> R) -> Option<R> {
        table!(self, digest, get, view)
    }

    /// Remembers a use.
    pub(super) fn touch(&self, digest: &Digest, now: Timestamp) {
        self.get(digest, |known| known.last_use.set(now));
    }

    /// Goes through one of the `PARTS`, under its lock. All parts in turn are all digests in order.
    pub(super) fn each_in(&self, part: usize, mut each: impl FnMut(Digest, &Known)) {
        match part.checked_sub(table::SHARDS) {
            None => self.content.0.each_in(part, |bytes, known| each(Digest::Sha256(*bytes), known)),
            Some(shard) => self.content.1.each_in(shard, |bytes, known| each(Digest::Sha512(*bytes), known)),
        }
    }

    /// Goes through all content of an algorithm whose digests begin with these 16 bits, in order, under a lock.
    pub(super) fn each_beginning(&self, algorithm: Algorithm, bits: [u8; 2], mut each: impl FnMut(Digest, &Known)) {
        match algorithm {
            Algorithm::Sha256 => {
                self.content.0.each_beginning(bits, |bytes, known| each(Digest::Sha256(*bytes), known));
            }
            Algorithm::Sha512 => {
                self.content.1.each_beginning(bits, |bytes, known| each(Digest::Sha512(*bytes), known));
            }
        }
    }

    /// The digests that are wanted, in order.
    pub(super) fn digests(&self, is_wanted: impl Fn(&Digest) -> bool) -> Vec<Digest> {
        let mut found = Vec::new();
        for part in 0..PARTS {
            self.each_in(part, |digest, _| {
                if is_wanted(&digest) {
                    found.push(digest);
                }
            });
        }
        found
    }

    /// Content to evict, least recently used first, none of it `kept`: at least `wanted_bytes` in all where there is so
    /// much, but `limit` blobs at most.
    pub(super) fn least_recently_used(&self, wanted_bytes: u64, limit: usize, kept: &HashSet<Digest>) -> Vec<Digest> {
        let until = self.age_limit(wanted_bytes, limit, kept);
        let mut old: Vec<(Timestamp, u64, Digest)> = Vec::new();
        // Many may have been used at one and the same moment.
        let mut last = 0;
        for part in 0..PARTS {
            self.each_in(part, |digest, known| {
                let at = known.last_use.at();
                if (at < until || (at == until && last < limit)) && !kept.contains(&digest) {
                    old.push((at, known.size_bytes, digest));
                    last += usize::from(at == until);
                }
            });
        }
        old.sort_unstable();
        let mut found_bytes = 0;
        let enough = old.iter().take(limit).take_while(|(_, size_bytes, _)| {
            let is_short = found_bytes < wanted_bytes;
            found_bytes += size_bytes;
            is_short
        });
        enough.map(|(_, _, digest)| *digest).collect()
    }

    /// A moment so that what was last used until then is about as much as is wanted: not less, unless that were more than
    /// `limit` blobs, and more by few blobs only, unless they were used in one and the same millisecond.
    fn age_limit(&self, wanted_bytes: u64, limit: usize, kept: &HashSet<Digest>) -> Timestamp {
        let (mut from, mut to) = (0, u64::MAX >> 1);
        let (mut older_bytes, mut older_blobs) = (0, 0);
        loop {
            let step = (to - from) / AGES as u64 + 1;
            let mut ages = [(0u64, 0usize); AGES];
            let age_of = |at: u64| usize::try_from((at - from) / step).unwrap_or(0);
            for part in 0..PARTS {
                self.each_in(part, |digest, known| {
                    let at = known.last_use.at().as_millis();
                    if (from..=to).contains(&at) && !kept.contains(&digest) {
                        let age = &mut ages[age_of(at)];
                        *age = (age.0 + known.size_bytes, age.1 + 1);
                    }
                });
            }
            let turning = ages.iter().position(|(bytes, blobs)| {
                let is_enough = older_bytes + bytes >= wanted_bytes || older_blobs + blobs >= limit;
                if !is_enough {
                    (older_bytes, older_blobs) = (older_bytes + bytes, older_blobs + blobs);
                }
                is_enough
            });
            let Some(turning) = turning else { return Timestamp::from_millis(to) };
            from += step * turning as u64;
            to = to.min(from + (step - 1));
            if step == 1 || ages[turning].1 <= limit / 16 {
                return Timestamp::from_millis(to);
            }
        }
    }

    // === Rights ===

    pub(super) fn standing(&self, repository: &Repository, digest: &Digest) -> Standing {
        let id = self.sets.repository_id(repository);
        match self.get(digest, |known| id.is_some_and(|id| known.facts.is_granted_to(id))) {
            None => Standing::Absent,
            Some(true) => Standing::Granted,
            Some(false) => Standing::Ungranted,
        }
    }

    pub(super) fn is_opened_by(&self, digest: &Digest, registry: &Registry, account: Option<&str>) -> bool {
        self.get(digest, |known| known.facts.is_opened_by(registry, account)).unwrap_or(false)
    }

    pub(super) fn grant(&self, repository: &Repository, digest: &Digest) -> Option<Grant> {
        let id = self.sets.repository_id(repository)?;
        let is_public =
            self.get(digest, |known| known.facts.is_granted_to(id).then_some(known.facts.is_public()))??;
        let confirmed_at = if is_public { None } else { self.confirmed.at(digest, repository) };
        Some(Grant { is_public, confirmed_at })
    }

    /// Takes a right back that does not stand on public content; `false` when there was none.
    pub(super) fn revoke(&self, repository: &Repository, digest: &Digest) -> bool {
        self.grant(repository, digest).is_some_and(|grant| !grant.is_public) && self.purge_grant(digest, repository)
    }

    /// Takes back all such rights of a repository: what they were for.
    pub(super) fn revoke_all(&self, repository: &Repository) -> Vec<Digest> {
        let Some(id) = self.sets.repository_id(repository) else { return Vec::new() };
        let mut granted = Vec::new();
        for part in 0..PARTS {
            self.each_in(part, |digest, known| {
                if known.facts.is_granted_to(id) && !known.facts.is_public() {
                    granted.push(digest);
                }
            });
        }
        granted.retain(|digest| self.revoke(repository, digest));
        granted
    }

    /// Takes a right back, also one that stands on public content; `false` when there was none.
    pub(super) fn purge_grant(&self, digest: &Digest, repository: &Repository) -> bool {
        let Some(id) = self.sets.repository_id(repository) else { return false };
        let revoke = |known: &mut Known| match self.sets.without(&known.facts, id) {
            Some(smaller) => {
                known.facts = smaller;
                true
            }
            None => false,
        };
        let is_revoked = table!(self, digest, change, revoke).unwrap_or(false);
        if is_revoked {
            self.confirmed.remove(digest, repository);
        }
        is_revoked
    }

    /// Keeps what confirms rights to content that is not public; `false` when none of that is news.
    fn confirm_all(&self, digest: &Digest, facts: &[Fact]) -> bool {
        let mut is_news = false;
        for fact in facts {
            match fact {
                Fact::Public => self.confirmed.forget(digest),
                Fact::Confirmed(repository, at) => {
                    let is_private = self.grant(repository, digest).is_some_and(|grant| !grant.is_public);
                    is_news |= is_private && self.confirmed.set(digest, repository, *at);
                }
                _ => {}
            }
        }
        is_news
    }

    /// Adds facts; `false` when they were known, or their content is not here.
    pub(super) fn learn(&self, digest: &Digest, facts: &[Fact]) -> bool {
        let is_news = self.learn_set(digest, facts);
        self.confirm_all(digest, facts) || is_news
    }

    fn learn_set(&self, digest: &Digest, facts: &[Fact]) -> bool {
        let learn = |known: &mut Known| match self.sets.with(&known.facts, facts) {
            Some(larger) => {
                known.facts = larger;
                true
            }
            None => false,
        };
        table!(self, digest, change, learn).unwrap_or(false)
    }

    /// Tells of content that is here what an older record of it says: a later use, and facts where none are known.
    pub(super) fn supplement(&self, digest: &Digest, used_at: Timestamp, facts: Option<&Arc<Facts>>) {
        let supplement = |known: &mut Known| {
            if known.last_use.at() < used_at {
                known.last_use = LastUse::new(used_at);
            }
            if let Some(facts) = facts.filter(|_| known.facts.is_empty()) {
                known.facts = facts.clone();
            }
        };
        table!(self, digest, change, supplement);
    }

    /// The sets of facts that content shares.
    pub(super) fn sets(&self) -> &FactSets {
        &self.sets
    }

    // === Tags ===

    pub(super) fn tags(&self) -> &Tags {
        &self.tags
    }

    pub(super) fn tag(&self, repository: &Repository, tag: &Tag) -> Option<Arc<TagRecord>> {
        self.tags.get(repository, tag)
    }

    pub(super) fn point_tag(
        &self,
        repository: &Repository,
        tag: &Tag,
        digest: &Digest,
        now: Timestamp,
    ) -> (Arc<TagRecord>, Moved) {
        self.tags.point(repository, tag, digest, now)
    }

    /// Changes what is known of a tag; `None` when nothing is.
    pub(super) fn change_tag(
        &self,
        repository: &Repository,
        tag: &Tag,
        change: impl FnOnce(&TagRecord) -> TagRecord,
    ) -> Option<Arc<TagRecord>> {
        self.tags.change(repository, tag, change)
    }

    /// `false` when it was unknown.
    pub(super) fn forget_tag(&self, repository: &Repository, tag: &Tag) -> bool {
        self.tags.forget(repository, tag)
    }

    // === All of it ===

    /// Calls `each` with the changes that tell an empty catalog what is known of anything but content.
    pub(super) fn each_note(&self, mut each: impl FnMut(Change)) {
        self.confirmed.each(|digest, repository, at| {
            each(Change::Fact(*digest, Fact::Confirmed(repository.clone(), at)));
        });
        self.tags.each(|repository, tag, record| {
            each(Change::Tag(repository.clone(), tag.clone(), Some(record.clone())));
        });
    }

    /// Calls `each` with the changes that make an empty catalog equal to this one.
    pub(super) fn each_change(&self, mut each: impl FnMut(Change)) {
        for part in 0..PARTS {
            self.each_in(part, |digest, known| {
                each(Change::Content(digest, known.size_bytes, known.last_use.at()));
                self.sets.facts(&known.facts).into_iter().for_each(|fact| each(Change::Fact(digest, fact)));
            });
        }
        self.each_note(each);
    }

    /// Does what a change says; `false` when that was known.
    pub(super) fn apply(&self, change: &Change) -> bool {
        match change {
            Change::Content(digest, size_bytes, at) => self.insert(digest, *size_bytes, *at, &[]),
            Change::Fact(digest, fact) => self.learn(digest, std::slice::from_ref(fact)),
            Change::Revoke(digest, repository) => self.purge_grant(digest, repository),
            Change::Forget(digest) => self.remove(digest).is_some(),
            Change::Tag(repository, tag, None) => self.tags.forget(repository, tag),
            Change::Tag(repository, tag, Some(record)) => self.tags.set(repository, tag, record),
            Change::Checked(repository, tag, digest, at) => self.tags.checked(repository, tag, digest, *at),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::rights::Proof;

    fn repository(text: &str) -> Repository {
        let (registry, name) = text.split_once('/').unwrap();
        Repository { registry: registry.parse().unwrap(), name: name.parse().unwrap() }
    }

    fn digest(text: &str) -> Digest {
        Digest::of(Algorithm::Sha256, text.as_bytes())
    }

    fn learn_all(catalog: &Catalog, digest: &Digest, repository: &Repository, proof: &Proof) {
        catalog.learn(digest, &Fact::of_proof(repository, proof, Timestamp::from_millis(7)));
    }

    #[test]
    fn a_grant_is_for_one_repository() {
        let (catalog, blob) = (Catalog::new(), digest("x"));
        let (mine, other) = (repository("a.io/x"), repository("a.io/y"));
        assert_eq!(catalog.standing(&mine, &blob), Standing::Absent);
        catalog.insert(&blob, 1, Timestamp::now(), &[]);
        learn_all(&catalog, &blob, &mine, &Proof::Content { account: Some("me".into()) });
        assert_eq!(catalog.standing(&mine, &blob), Standing::Granted);
        assert_eq!(catalog.standing(&other, &blob), Standing::Ungranted);
        assert!(catalog.is_opened_by(&blob, &mine.registry, Some("me")));
        assert!(!catalog.is_opened_by(&blob, &mine.registry, Some("you")));
        assert!(!catalog.is_opened_by(&blob, &mine.registry, None));
        assert!(!catalog.is_opened_by(&blob, &repository("b.io/x").registry, Some("me")));
        learn_all(&catalog, &blob, &other, &Proof::Content { account: None });
        assert!(catalog.is_opened_by(&blob, &repository("b.io/x").registry, None), "public now");
        assert!(catalog.purge_grant(&blob, &mine) && !catalog.purge_grant(&blob, &mine));
        assert_eq!(catalog.standing(&mine, &blob), Standing::Ungranted);
        assert_eq!(catalog.standing(&other, &blob), Standing::Granted, "the others keep theirs");
    }

    #[test]
    fn a_right_to_private_content_can_be_taken_back() {
        let (catalog, mine, other) = (Catalog::new(), repository("a.io/x"), repository("a.io/y"));
        let (secret, public) = (digest("secret"), digest("public"));
        for blob in [&secret, &public] {
            catalog.insert(blob, 1, Timestamp::now(), &[]);
        }
        let account = Proof::Content { account: Some("me".into()) };
        learn_all(&catalog, &secret, &mine, &account);
        learn_all(&catalog, &secret, &other, &account);
        learn_all(&catalog, &public, &mine, &Proof::Content { account: None });
        let confirmed_at = Some(Timestamp::from_millis(7));
        assert_eq!(catalog.grant(&mine, &secret), Some(Grant { is_public: false, confirmed_at }));
        assert_eq!(catalog.grant(&mine, &public), Some(Grant { is_public: true, confirmed_at: None }));
        let confirm = |at: u64| catalog.learn(&secret, &[Fact::Confirmed(mine.clone(), Timestamp::from_millis(at))]);
        assert!(confirm(9) && !confirm(8), "older");
        assert_eq!(catalog.grant(&mine, &secret).unwrap().confirmed_at, Some(Timestamp::from_millis(9)));
        assert_eq!(catalog.revoke_all(&mine), [secret], "public content stays open");
        assert!(!catalog.revoke(&mine, &secret) && !catalog.revoke(&mine, &public));
        assert_eq!(catalog.grant(&mine, &secret), None);
        assert!(!confirm(99), "a right is not made by it");
        assert_eq!(catalog.standing(&other, &secret), Standing::Granted, "its own right");
        assert!(catalog.revoke(&other, &secret) && catalog.grant(&other, &secret).is_none());
        catalog.insert(&secret, 1, Timestamp::now(), &[]);
        learn_all(&catalog, &secret, &mine, &account);
        catalog.remove(&secret);
        let mut notes = 0;
        catalog.each_note(|_| notes += 1);
        assert_eq!(notes, 0, "it goes with the content");
    }

    #[test]
    fn tags_follow_the_order_of_their_changes_whatever_the_clock_says() {
        let (catalog, mine, tag) = (Catalog::new(), repository("a.io/x"), "t".parse().unwrap());
        let record = |name: &str, at: u64| TagRecord::new(&digest(name), Timestamp::from_millis(at));
        for (name, at) in [("1", 7), ("2", 7), ("3", 5)] {
            let change = Change::Tag(mine.clone(), Tag::clone(&tag), Some(Arc::new(record(name, at))));
            assert!(catalog.apply(&change) && !catalog.apply(&change), "{name}");
            assert_eq!(catalog.tag(&mine, &tag).unwrap().digest, digest(name));
        }
    }

    #[test]
    fn rights_go_with_the_content() {
        let (catalog, blob, mine) = (Catalog::new(), digest("x"), repository("a.io/x"));
        catalog.insert(&blob, 1, Timestamp::now(), &[]);
        learn_all(&catalog, &blob, &mine, &Proof::Content { account: None });
        assert_eq!(catalog.remove(&blob).map(|known| known.size_bytes), Some(1));
        catalog.insert(&blob, 1, Timestamp::now(), &[]);
        assert_eq!(catalog.standing(&mine, &blob), Standing::Ungranted);
        assert!(!catalog.is_opened_by(&blob, &mine.registry, None));
    }

    #[test]
    fn the_oldest_use_goes_first() {
        let catalog = Catalog::new();
        for (name, at) in [("new", 30), ("old", 10), ("middle", 20)] {
            catalog.insert(&digest(name), 100, Timestamp::from_millis(at), &[]);
        }
        assert_eq!(catalog.least_recently_used(150, 10, &HashSet::new()), [digest("old"), digest("middle")]);
        assert_eq!(catalog.least_recently_used(150, 1, &HashSet::new()), [digest("old")]);
        catalog.touch(&digest("old"), Timestamp::from_millis(40));
        assert_eq!(catalog.least_recently_used(1, 10, &HashSet::new()), [digest("middle")]);
        assert_eq!(catalog.least_recently_used(u64::MAX, 10, &HashSet::new()).len(), 3);
        let kept = HashSet::from([digest("middle")]);
        assert_eq!(catalog.least_recently_used(150, 10, &kept), [digest("new"), digest("old")]);
        assert_eq!((catalog.blobs(), catalog.stored_bytes()), (3, 300));
    }

    #[test]
    fn the_oldest_are_found_among_many() {
        let catalog = Catalog::new();
        let names: Vec<Digest> = (0..5000).map(|index| digest(&index.to_string())).collect();
        for (at, name) in (0..).zip(&names) {
            // Half of them at one moment, the others from long ago to far ahead.
            let at = if at % 2 == 0 { 1_700_000_000_000 } else { at * at * 100_000 };
            catalog.insert(name, 10, Timestamp::from_millis(at), &[]);
        }
        let mut in_order = names.clone();
        in_order.sort_by_key(|name| catalog.get(name, |known| known.last_use.at()));
        for wanted in [1, 7, 500, 2000, 3000, 4999] {
            let found = catalog.least_recently_used(wanted * 10, 10_000, &HashSet::new());
            let uses = |names: &[Digest]| -> Vec<_> {
                names.iter().map(|name| catalog.get(name, |known| known.last_use.at())).collect()
            };
            assert_eq!(uses(&found), uses(&in_order[..usize::try_from(wanted).unwrap()]), "{wanted}");
        }
        assert_eq!(catalog.least_recently_used(50_000, 100, &HashSet::new()), in_order[..100]);
    }
}
