//! Purge: content goes when the operator says so, as far as nothing else holds it.
//!
//! A repository's right to what is purged always goes; the bytes go when no other repository has a right to them, no other
//! manifest or tag of the same repository needs them, and no pin holds them. What stays is reported with what holds it.

use std::collections::HashMap;

use crate::oci::Digest;
use crate::oci::MAX_MANIFEST_BYTES;
use crate::oci::Outline;
use crate::oci::Reference;
use crate::oci::Registry;
use crate::oci::Repository;
use crate::oci::Tag;
use crate::oci::outline;

use super::Inner;
use super::change::Change;
use super::content;
use super::pins::PinTarget;
use super::read::read_exact_at;
use super::rights::Fact;

/// What to purge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PurgeTarget {
    /// An image of a repository, with all that it names. By digest: with all tags that point to it.
    Image(Repository, Reference),
    /// All of a repository.
    Repository(Repository),
    /// All of a registry.
    Registry(Registry),
    /// Just this content, for all repositories.
    Content(Digest),
}

/// What a purge did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Purged {
    /// Tags that are forgotten.
    pub tags: Vec<(Repository, Tag)>,
    /// Content that went, with its length: this room is free now.
    pub removed: Vec<(Digest, u64)>,
    /// Content that something else holds.
    pub kept: Vec<Kept>,
}

/// Content that a purge left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Its digest.
    pub digest: Digest,
    /// Its length.
    pub size_bytes: u64,
    /// What holds it.
    pub by: Vec<Holder>,
}

/// What holds content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// This repository may serve it, too.
    Repository(Repository),
    /// This other tag points to it.
    Tag(Repository, Tag),
    /// This other manifest of the repository names it.
    Manifest(Repository, Digest),
    /// A pin.
    Pin(PinTarget),
    /// The disk does not let go of it.
    Disk,
}

impl Purged {
    /// How much room is free now.
    pub fn removed_bytes(&self) -> u64 {
        self.removed.iter().map(|(_, size_bytes)| size_bytes).sum()
    }
}

/// Blocks.
pub(super) fn purge(inner: &Inner, target: &PurgeTarget) -> Purged {
    let (mut survey, pins) = (Survey::of(inner), inner.pins.holders());
    let mut purged = Purged::default();
    let mut holders: HashMap<Digest, Vec<Holder>> = HashMap::new();
    let claims: Vec<(Digest, Repository)> = match target {
        PurgeTarget::Image(repository, reference) => {
            let Some((root, tags)) = survey.root(repository, reference) else { return purged };
            purged.tags = tags;
            let closure = closure(inner, root);
            holders = survey.holders_within(inner, repository, &closure, &purged.tags);
            closure
                .into_keys()
                .filter(|digest| !holders.contains_key(digest))
                .map(|d| (d, repository.clone()))
                .collect()
        }
        PurgeTarget::Repository(repository) => {
            purged.tags = survey.tags_where(|candidate| candidate == repository);
            survey.claims_where(|_, candidate| candidate == repository)
        }
        PurgeTarget::Registry(registry) => {
            purged.tags = survey.tags_where(|candidate| candidate.registry == *registry);
            survey.claims_where(|_, candidate| candidate.registry == *registry)
        }
        PurgeTarget::Content(digest) => survey.claims_where(|candidate, _| candidate == digest),
    };
    let mut changes = Vec::new();
    for (repository, tag) in &purged.tags {
        if inner.catalog.forget_tag(repository, tag) {
            changes.push(Change::Tag(repository.clone(), tag.clone(), None));
        }
    }
    let mut touched: Vec<Digest> = holders.keys().copied().collect();
    if let PurgeTarget::Content(digest) = target {
        touched.push(*digest);
    }
    for (digest, repository) in claims {
        touched.push(digest);
        if inner.catalog.purge_grant(&digest, &repository) {
            changes.push(Change::Revoke(digest, repository.clone()));
        }
        if let Some(known) = survey.contents.get_mut(&digest) {
            known.repositories.retain(|candidate| *candidate != repository);
        }
        inner.parking.discard(&digest, &repository);
    }
    inner.writer.tell(changes, None).wait();
    touched.sort_unstable();
    touched.dedup();
    let mut going = Vec::new();
    for digest in touched {
        let Some(known) = survey.contents.get(&digest) else { continue };
        let mut by = holders.remove(&digest).unwrap_or_default();
        by.extend(known.repositories.iter().filter(|other| !is_of(target, other)).cloned().map(Holder::Repository));
        by.extend(pins.get(&digest).into_iter().flatten().cloned().map(Holder::Pin));
        match by.is_empty() {
            true => going.push((digest, known.size_bytes)),
            false => purged.kept.push(Kept { digest, size_bytes: known.size_bytes, by }),
        }
    }
    let digests: Vec<Digest> = going.iter().map(|(digest, _)| *digest).collect();
    content::forget_loose(inner, &digests);
    for (digest, size_bytes) in going {
        if inner.catalog.size_bytes(&digest).is_none() {
            purged.removed.push((digest, size_bytes));
            continue;
        }
        // Pinned since the first look, or the disk keeps it.
        let pinned = inner.pins.holders().remove(&digest).unwrap_or_default();
        let by = if pinned.is_empty() { vec![Holder::Disk] } else { pinned.into_iter().map(Holder::Pin).collect() };
        purged.kept.push(Kept { digest, size_bytes, by });
    }
    inner.memory.let_go();
    purged
}

/// Whether a repository is what the purge is of: it does not hold what it loses.
fn is_of(target: &PurgeTarget, repository: &Repository) -> bool {
    match target {
        PurgeTarget::Image(purged, _) | PurgeTarget::Repository(purged) => purged == repository,
        PurgeTarget::Registry(registry) => repository.registry == *registry,
        PurgeTarget::Content(_) => true,
    }
}

/// What is here at one moment, and who may have it.
#[derive(Default)]
struct Survey {
    contents: HashMap<Digest, Surveyed>,
    tags: Vec<(Repository, Tag, Digest)>,
}

#[derive(Default)]
struct Surveyed {
    size_bytes: u64,
    is_document: bool,
    repositories: Vec<Repository>,
}

impl Survey {
    fn of(inner: &Inner) -> Self {
        let mut survey = Self::default();
        inner.catalog.each_change(|change| match change {
            Change::Content(digest, size_bytes, _) => {
                survey.contents.insert(digest, Surveyed { size_bytes, ..Surveyed::default() });
            }
            Change::Fact(digest, Fact::Grant(repository)) => {
                survey.contents.entry(digest).or_default().repositories.push(repository);
            }
            Change::Fact(digest, Fact::MediaType(_)) => survey.contents.entry(digest).or_default().is_document = true,
            Change::Tag(repository, tag, Some(record)) if record.gone_at.is_none() => {
                survey.tags.push((repository, tag, record.digest))
            }
            _ => {}
        });
        survey
    }

    /// The manifest that is purged, and the tags that go with it; `None` when nothing is known of it.
    fn root(&self, repository: &Repository, reference: &Reference) -> Option<(Digest, Vec<(Repository, Tag)>)> {
        let named = |wanted: &Tag| {
            self.tags
                .iter()
                .find(|(candidate, tag, _)| candidate == repository && tag == wanted)
                .map(|(_, _, root)| *root)
        };
        match reference {
            Reference::Tag(tag) => Some((named(tag)?, vec![(repository.clone(), tag.clone())])),
            Reference::Digest(root) => {
                let tags = self.tags.iter().filter(|(candidate, _, digest)| candidate == repository && digest == root);
                Some((*root, tags.map(|(repository, tag, _)| (repository.clone(), tag.clone())).collect()))
            }
        }
    }

    fn tags_where(&self, is_wanted: impl Fn(&Repository) -> bool) -> Vec<(Repository, Tag)> {
        let wanted = self.tags.iter().filter(|(repository, _, _)| is_wanted(repository));
        wanted.map(|(repository, tag, _)| (repository.clone(), tag.clone())).collect()
    }

    fn claims_where(&self, is_wanted: impl Fn(&Digest, &Repository) -> bool) -> Vec<(Digest, Repository)> {
        let all = self.contents.iter().flat_map(|(digest, known)| known.repositories.iter().map(move |r| (digest, r)));
        all.filter(|(digest, repository)| is_wanted(digest, repository)).map(|(d, r)| (*d, r.clone())).collect()
    }

    /// What of an image its own repository needs for something else, and for what.
    fn holders_within(
        &self,
        inner: &Inner,
        repository: &Repository,
        closure: &HashMap<Digest, Outline>,
        purged_tags: &[(Repository, Tag)],
    ) -> HashMap<Digest, Vec<Holder>> {
        let mut holders: HashMap<Digest, Vec<Holder>> = HashMap::new();
        let mut holds = |digest: Digest, holder: Holder| {
            let known = holders.entry(digest).or_default();
            let is_first = known.is_empty();
            known.push(holder);
            is_first
        };
        let mut staying: Vec<Digest> = Vec::new();
        for (candidate, tag, digest) in &self.tags {
            let is_purged = purged_tags.iter().any(|(r, t)| r == candidate && t == tag);
            if candidate == repository && closure.contains_key(digest) && !is_purged {
                let holder = Holder::Tag(candidate.clone(), tag.clone());
                if holds(*digest, holder) {
                    staying.push(*digest);
                }
            }
        }
        let is_other = |(digest, known): &(&Digest, &Surveyed)| {
            known.is_document && known.repositories.contains(repository) && !closure.contains_key(*digest)
        };
        for (other, _) in self.contents.iter().filter(is_other) {
            for named in names(&read_outline(inner, other)) {
                if closure.contains_key(&named) && holds(named, Holder::Manifest(repository.clone(), *other)) {
                    staying.push(named);
                }
            }
        }
        // What a manifest that stays names, stays.
        while let Some(manifest) = staying.pop() {
            for named in closure.get(&manifest).map(names).unwrap_or_default() {
                if closure.contains_key(&named) && holds(named, Holder::Manifest(repository.clone(), manifest)) {
                    staying.push(named);
                }
            }
        }
        holders
    }
}

/// A manifest and all that it names, as far as the manifests are here.
fn closure(inner: &Inner, root: Digest) -> HashMap<Digest, Outline> {
    let (mut closure, mut next) = (HashMap::new(), vec![root]);
    while let Some(digest) = next.pop() {
        if closure.contains_key(&digest) {
            continue;
        }
        let outline = read_outline(inner, &digest);
        next.extend(names(&outline));
        closure.insert(digest, outline);
    }
    closure
}

fn names(outline: &Outline) -> Vec<Digest> {
    let blobs = outline.config.iter().chain(&outline.layers).map(|(digest, _)| *digest);
    outline.members.iter().map(|member| member.digest).chain(blobs).collect()
}

/// What a manifest that is here names. Looking is no use: it keeps nothing from being evicted.
fn read_outline(inner: &Inner, digest: &Digest) -> Outline {
    let Some(size_bytes) = inner.catalog.size_bytes(digest).filter(|&size| size <= MAX_MANIFEST_BYTES as u64) else {
        return Outline::default();
    };
    if inner.catalog.media_type(digest).is_none() {
        return Outline::default();
    }
    let opened = inner.engine.open_blob(digest).ok().flatten();
    let bytes = opened.and_then(|(file, _)| read_exact_at(&file, 0, size_bytes).ok());
    bytes.map(|bytes| outline(&bytes)).unwrap_or_default()
}

/// Repositories that may serve this content. Blocks.
pub(super) fn sources(inner: &Inner, wanted: &Digest) -> Vec<Repository> {
    let mut found = Vec::new();
    inner.catalog.each_change(|change| match change {
        Change::Fact(digest, Fact::Grant(repository)) if digest == *wanted => found.push(repository),
        _ => {}
    });
    found
}
