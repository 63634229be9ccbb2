//! Pins: what never gives way to other content, as the operator asked for.
//!
//! A pin is a record of its own on disk, apart from index and journal, written and synced before anybody is told that it
//! holds. It lists its members, also those that are not here yet, so that a start knows what stays without reading a manifest.

use std::collections::HashMap;
use std::collections::HashSet;
use std::collections::hash_map::Entry;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use serde::Deserialize;
use serde::Serialize;

use crate::oci::Algorithm;
use crate::oci::Digest;
use crate::oci::Platform;
use crate::oci::Reference;
use crate::oci::Repository;

use super::Timestamp;
use super::catalog::Catalog;
use super::engine::Records;
use super::space::Space;

/// Most pins.
const MAX_PINS: usize = 10_000;
/// Enough of a target's hash that two of them never meet.
const NAME_DIGITS: usize = 32;

/// What a pin is of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PinTarget {
    /// An image or any other manifest of a repository, with all that it names. By tag: wherever the tag points.
    Image(Repository, Reference),
    /// Just this content, whoever has it.
    Content(Digest),
}

/// A pin: what was asked for, and what that is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    /// What was asked for.
    pub target: PinTarget,
    /// Of an index only these platforms; all where there are none.
    pub platforms: Vec<Platform>,
    /// With what refers to it, such as signatures.
    pub referrers: bool,
    /// Since when.
    pub pinned_at: Timestamp,
    /// The manifest, or the content, that the members are of.
    pub root: Digest,
    /// Where missing members are fetched from.
    pub sources: Vec<Repository>,
    /// What stays, each once.
    pub members: Vec<PinMember>,
    /// What an earlier root was made of, and stays until all members are here.
    pub leaving: Vec<PinMember>,
}

/// One part of what is pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinMember {
    /// Its digest.
    pub digest: Digest,
    /// Its length, as its manifest claims.
    pub size_bytes: u64,
    /// It is a manifest.
    pub is_manifest: bool,
}

/// Something cannot be pinned, and nothing was changed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PinError {
    /// All pins together would not fit.
    #[error(
        "pinning it takes {added_bytes} bytes, {pinned_bytes} are pinned already, and there is room for {capacity_bytes}"
    )]
    TooLarge {
        /// What it takes beside what other pins hold.
        added_bytes: u64,
        /// What other pins hold.
        pinned_bytes: u64,
        /// What the budget, or the disk, can hold.
        capacity_bytes: u64,
    },
    /// There are too many.
    #[error("there are {MAX_PINS} pins, and no more are kept; unpin some")]
    TooMany,
    /// The disk refused.
    #[error("the pin cannot be written down: {0}")]
    Io(Arc<io::Error>),
}

impl From<io::Error> for PinError {
    fn from(error: io::Error) -> Self {
        Self::Io(Arc::new(error))
    }
}

impl fmt::Display for PinTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image(repository, Reference::Tag(tag)) => write!(f, "{repository}:{tag}"),
            Self::Image(repository, Reference::Digest(digest)) => write!(f, "{repository}@{digest}"),
            Self::Content(digest) => digest.fmt(f),
        }
    }
}

/// All pins.
pub(super) struct Pins {
    records: Records,
    /// One change at a time; taken before `state`, held over the disk's work.
    changing: Mutex<()>,
    /// Held for moments, never over disk work; taken before any lock of catalog and space.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    pins: HashMap<PinTarget, Arc<Pin>>,
    held: HashMap<Digest, Held>,
    held_bytes: u64,
}

struct Held {
    pins: usize,
    claimed_bytes: u64,
    /// Its length, while it is here.
    stored_bytes: Option<u64>,
}

impl Pins {
    /// Reads the pins. One that cannot be read is set aside; the others hold.
    pub(super) fn open(records: Records, catalog: &Catalog) -> io::Result<Self> {
        let mut state = State::default();
        for text in records.load()? {
            match serde_json::from_str::<Written>(&text).ok().and_then(Written::read) {
                Some(pin) => state.add(Arc::new(pin), catalog),
                None => tracing::error!("a pin of another version is not understood; it does not hold"),
            }
        }
        Ok(Self { records, changing: Mutex::default(), state: Mutex::new(state) })
    }

    /// Adds a pin, or replaces the one of this target. When it does not fit nothing changes. Blocks.
    pub(super) fn pin(&self, pin: Pin, catalog: &Catalog, space: &Space) -> Result<(), PinError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.write_down(pin, catalog, space).map(|_| ())
    }

    /// Replaces a pin that is still as it was: the new one, or `None` when somebody else has changed it.
    pub(super) fn replace(
        &self,
        old: &Arc<Pin>,
        new: Pin,
        catalog: &Catalog,
        space: &Space,
    ) -> Result<Option<Arc<Pin>>, PinError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        match self.get(&old.target) {
            Some(current) if Arc::ptr_eq(&current, old) => self.write_down(new, catalog, space).map(Some),
            _ => Ok(None),
        }
    }

    fn write_down(&self, pin: Pin, catalog: &Catalog, space: &Space) -> Result<Arc<Pin>, PinError> {
        let capacity_bytes = space.capacity_bytes();
        self.state().check(&pin, catalog, capacity_bytes)?;
        self.records
            .write(&record_name(&pin.target), &serde_json::to_string(&Written::of(&pin)).map_err(io::Error::from)?)?;
        let pin = Arc::new(pin);
        let mut state = self.state();
        state.drop_pin(&pin.target);
        state.add(pin.clone(), catalog);
        space.hold(state.held_bytes);
        Ok(pin)
    }

    /// Takes a pin out: what it was. Blocks.
    pub(super) fn unpin(&self, target: &PinTarget, space: &Space) -> io::Result<Option<Arc<Pin>>> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.state().pins.contains_key(target) {
            return Ok(None);
        }
        self.records.remove(&record_name(target))?;
        let mut state = self.state();
        let pin = state.drop_pin(target);
        space.hold(state.held_bytes);
        Ok(pin)
    }

    /// All of them, the oldest first.
    pub(super) fn list(&self) -> Vec<Arc<Pin>> {
        let mut pins: Vec<_> = self.state().pins.values().cloned().collect();
        pins.sort_by_key(|pin| (pin.pinned_at, pin.target.to_string()));
        pins
    }

    pub(super) fn get(&self, target: &PinTarget) -> Option<Arc<Pin>> {
        self.state().pins.get(target).cloned()
    }

    /// Does this to content that no pin holds; a pin that comes meanwhile waits, and finds it done.
    pub(super) fn unless_held<R>(&self, digest: &Digest, action: impl FnOnce() -> Option<R>) -> Option<R> {
        let state = self.state();
        if state.held.contains_key(digest) { None } else { action() }
    }

    /// All that some pin holds.
    pub(super) fn digests(&self) -> HashSet<Digest> {
        self.state().held.keys().copied().collect()
    }

    /// Which pins hold what.
    pub(super) fn holders(&self) -> HashMap<Digest, Vec<PinTarget>> {
        let mut holders: HashMap<Digest, Vec<PinTarget>> = HashMap::new();
        for pin in self.list() {
            for member in pin.all_members() {
                let known = holders.entry(member.digest).or_default();
                if known.last() != Some(&pin.target) {
                    known.push(pin.target.clone());
                }
            }
        }
        holders
    }

    /// How much of what is here is pinned.
    pub(super) fn held_bytes(&self) -> u64 {
        self.state().held_bytes
    }

    /// Content is here now.
    pub(super) fn stored(&self, digest: &Digest, size_bytes: u64, space: &Space) {
        self.state().note(digest, Some(size_bytes), space);
    }

    /// Content is gone.
    pub(super) fn gone(&self, digest: &Digest, space: &Space) {
        self.state().note(digest, None, space);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn add(&mut self, pin: Arc<Pin>, catalog: &Catalog) {
        for member in pin.all_members() {
            let held = self.held.entry(member.digest).or_insert_with(|| {
                let stored_bytes = catalog.size_bytes(&member.digest);
                self.held_bytes += stored_bytes.unwrap_or(0);
                Held { pins: 0, claimed_bytes: member.size_bytes, stored_bytes }
            });
            held.pins += 1;
        }
        self.pins.insert(pin.target.clone(), pin);
    }

    fn drop_pin(&mut self, target: &PinTarget) -> Option<Arc<Pin>> {
        let pin = self.pins.remove(target)?;
        for member in pin.all_members() {
            let Entry::Occupied(mut held) = self.held.entry(member.digest) else { continue };
            held.get_mut().pins -= 1;
            if held.get().pins == 0 {
                self.held_bytes -= held.remove().stored_bytes.unwrap_or(0);
            }
        }
        Some(pin)
    }

    fn note(&mut self, digest: &Digest, stored_bytes: Option<u64>, space: &Space) {
        let Some(held) = self.held.get_mut(digest) else { return };
        self.held_bytes -= held.stored_bytes.unwrap_or(0);
        self.held_bytes += stored_bytes.unwrap_or(0);
        held.stored_bytes = stored_bytes;
        space.hold(self.held_bytes);
    }

    /// Whether it fits beside what the pins of other targets hold.
    fn check(&self, pin: &Pin, catalog: &Catalog, capacity_bytes: u64) -> Result<(), PinError> {
        let replaced = self.pins.get(&pin.target);
        if replaced.is_none() && self.pins.len() >= MAX_PINS {
            return Err(PinError::TooMany);
        }
        let mut own: HashMap<Digest, usize> = HashMap::new();
        for member in replaced.iter().flat_map(|pin| pin.all_members()) {
            *own.entry(member.digest).or_default() += 1;
        }
        let others: HashMap<&Digest, u64> = self
            .held
            .iter()
            .filter(|(digest, held)| held.pins > own.get(digest).copied().unwrap_or(0))
            .map(|(digest, held)| (digest, held.stored_bytes.unwrap_or(held.claimed_bytes)))
            .collect();
        let pinned_bytes = others.values().fold(0, |sum: u64, bytes| sum.saturating_add(*bytes));
        let mut seen = HashSet::new();
        let news =
            pin.all_members().filter(|member| !others.contains_key(&member.digest) && seen.insert(member.digest));
        let added_bytes = news.fold(0, |sum: u64, member| {
            sum.saturating_add(catalog.size_bytes(&member.digest).unwrap_or(member.size_bytes))
        });
        if pinned_bytes.saturating_add(added_bytes) > capacity_bytes {
            return Err(PinError::TooLarge { added_bytes, pinned_bytes, capacity_bytes });
        }
        Ok(())
    }
}

impl Pin {
    /// Of both roots.
    fn all_members(&self) -> impl Iterator<Item = &PinMember> {
        self.members.iter().chain(&self.leaving)
    }
}

fn record_name(target: &PinTarget) -> String {
    let mut name = Digest::of(Algorithm::Sha256, target.to_string().as_bytes()).hex();
    name.truncate(NAME_DIGITS);
    name
}

// === On disk ===

/// A pin as it is written. Names are texts, so that a record of another version fails alone.
#[derive(Serialize, Deserialize)]
struct Written {
    target: WrittenTarget,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    platforms: Vec<String>,
    #[serde(default)]
    referrers: bool,
    pinned_at: Timestamp,
    root: Digest,
    sources: Vec<(String, String)>,
    members: Vec<PinMember>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    leaving: Vec<PinMember>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum WrittenTarget {
    Tag(String, String, String),
    Manifest(String, String, Digest),
    Content(Digest),
}

impl Written {
    fn of(pin: &Pin) -> Self {
        let names = |repository: &Repository| (repository.registry.to_string(), repository.name.to_string());
        let target = match &pin.target {
            PinTarget::Image(repository, reference) => {
                let (registry, name) = names(repository);
                match reference {
                    Reference::Tag(tag) => WrittenTarget::Tag(registry, name, tag.to_string()),
                    Reference::Digest(digest) => WrittenTarget::Manifest(registry, name, *digest),
                }
            }
            PinTarget::Content(digest) => WrittenTarget::Content(*digest),
        };
        Self {
            target,
            platforms: pin.platforms.iter().map(Platform::to_string).collect(),
            referrers: pin.referrers,
            pinned_at: pin.pinned_at,
            root: pin.root,
            sources: pin.sources.iter().map(names).collect(),
            members: pin.members.clone(),
            leaving: pin.leaving.clone(),
        }
    }

    fn read(self) -> Option<Pin> {
        let repository = |registry: &str, name: &str| {
            Some(Repository { registry: registry.parse().ok()?, name: name.parse().ok()? })
        };
        let target = match &self.target {
            WrittenTarget::Tag(registry, name, tag) => {
                PinTarget::Image(repository(registry, name)?, Reference::Tag(tag.parse().ok()?))
            }
            WrittenTarget::Manifest(registry, name, digest) => {
                PinTarget::Image(repository(registry, name)?, Reference::Digest(*digest))
            }
            WrittenTarget::Content(digest) => PinTarget::Content(*digest),
        };
        Some(Pin {
            target,
            platforms: self.platforms.iter().map(|text| text.parse().ok()).collect::<Option<_>>()?,
            referrers: self.referrers,
            pinned_at: self.pinned_at,
            root: self.root,
            sources: self.sources.iter().map(|(r, n)| repository(r, n)).collect::<Option<_>>()?,
            members: self.members,
            leaving: self.leaving,
        })
    }
}
