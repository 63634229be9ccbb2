//! Pins, from what the operator says to content that is here: fetched as a pull would, with grants, and kept so.
//!
//! A keeper looks after all pins: it fetches what is missing, also what went by damage, and lets the pin of a tag follow
//! where the tag goes. It learns of a move as every pull does and never asks the upstream about a tag by itself.

use std::sync::Arc;
use std::sync::Weak;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;

use crate::oci::Digest;
use crate::oci::Reference;
use crate::oci::Repository;
use crate::store;
use crate::store::Pin;
use crate::store::PinMember;
use crate::store::PinTarget;
use crate::store::Standing;
use crate::store::Timestamp;

use super::Inner;
use super::Puller;
use super::blob;
use super::error::Error;
use super::fill::FillKey;
use super::image;
use super::image::Choice;
use super::image::ImageError;
use super::manifest;
use super::outcome::Outcome;

/// How often the keeper looks, when nothing wakes it.
const KEEP_EVERY: Duration = Duration::from_secs(60);
/// Missing parts of one pin that are fetched at once.
const FETCHES: usize = 4;
/// Most repositories that a pin by digest remembers to fetch from.
const MAX_SOURCES: usize = 8;

/// A pin, and how far it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinState {
    /// What is pinned.
    pub pin: Arc<Pin>,
    /// All of it.
    pub size_bytes: u64,
    /// What is still to be fetched.
    pub missing_bytes: u64,
    /// How many parts that is.
    pub missing: usize,
    /// Why the last try to fetch or to follow did not get there.
    pub problem: Option<String>,
}

/// Something cannot be pinned. Nothing was changed, but that manifests were read into the cache.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PinFailure {
    /// Its parts cannot be told.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// It is not here, and nobody said where to fetch it from.
    #[error("it is not here; name a repository, as in registry/repository@digest, to fetch it")]
    NotHere,
    /// It does not fit, or cannot be written down.
    #[error(transparent)]
    Refused(#[from] store::PinError),
}

impl From<Error> for PinFailure {
    fn from(error: Error) -> Self {
        Self::Image(error.into())
    }
}

impl Puller {
    /// Pins an image or some content: written down when this returns, so that it holds over restarts. What is not here
    /// yet is fetched in the background; [`Puller::pins`] says how far that is.
    pub async fn pin(&self, target: &PinTarget, choice: &Choice) -> Result<PinState, PinFailure> {
        let pin = resolve(&self.inner, target, choice).await?;
        self.inner.store.pin(pin.clone()).await?;
        tracing::info!(target = %target, parts = pin.members.len(), "pinned");
        self.inner.pin_problems.remove(target);
        self.inner.pins_changed.notify_one();
        Ok(state(&self.inner, &Arc::new(pin)))
    }

    /// Takes a pin out; `false` when there was none. Its content stays until something else needs the room.
    pub async fn unpin(&self, target: &PinTarget) -> Result<bool, store::Error> {
        let unpinned = self.inner.store.unpin(target).await?.is_some();
        self.inner.pin_problems.remove(target);
        Ok(unpinned)
    }

    /// Begins to look after the pins, in the background, until [`Puller::stop`]. Once is enough.
    pub fn keep_pins(&self) {
        self.inner.spawn(keep(Arc::downgrade(&self.inner)));
    }

    /// All pins, the oldest first, and how far they are.
    pub fn pins(&self) -> Vec<PinState> {
        self.inner.store.pins().iter().map(|pin| state(&self.inner, pin)).collect()
    }
}

/// What a target is made of now.
async fn resolve(inner: &Arc<Inner>, target: &PinTarget, choice: &Choice) -> Result<Pin, PinFailure> {
    let (root, sources, members) = match target {
        PinTarget::Image(repository, reference) => {
            inner.policy(repository)?;
            let image = image::walk(inner, repository, reference, choice).await?;
            (image.root, vec![repository.clone()], image.parts)
        }
        PinTarget::Content(digest) => {
            let size_bytes = inner.store.size_bytes(digest).ok_or(PinFailure::NotHere)?;
            let mut sources = inner.store.sources(digest).await;
            sources.truncate(MAX_SOURCES);
            let is_manifest = inner.store.is_document(digest);
            (*digest, sources, vec![PinMember { digest: *digest, size_bytes, is_manifest }])
        }
    };
    Ok(Pin {
        target: target.clone(),
        platforms: choice.platforms.clone(),
        referrers: choice.referrers,
        pinned_at: Timestamp::now(),
        root,
        sources,
        members,
        leaving: Vec::new(),
    })
}

fn state(inner: &Inner, pin: &Arc<Pin>) -> PinState {
    let missing = missing(inner, pin);
    PinState {
        size_bytes: pin.members.iter().map(|member| member.size_bytes).sum(),
        missing_bytes: missing.iter().map(|member| member.size_bytes).sum(),
        missing: missing.len(),
        problem: inner.pin_problems.get(&pin.target),
        pin: pin.clone(),
    }
}

/// What cannot be served yet: of an image, to its repository.
fn missing(inner: &Inner, pin: &Pin) -> Vec<PinMember> {
    let is_missing = |member: &&PinMember| match &pin.target {
        PinTarget::Image(repository, _) => inner.store.standing(repository, &member.digest) != Standing::Granted,
        PinTarget::Content(_) => inner.store.size_bytes(&member.digest).is_none(),
    };
    pin.members.iter().filter(is_missing).copied().collect()
}

// === The keeper ===

/// Looks after the pins until the engine is gone, or stops.
pub(super) async fn keep(engine: Weak<Inner>) {
    loop {
        let Some(inner) = engine.upgrade() else { return };
        for pin in inner.store.pins() {
            let problem = Box::pin(tend(&inner, &pin)).await.err();
            if let Some(problem) = &problem {
                tracing::warn!(target = %pin.target, problem, "a pin does not have all of its content yet");
            }
            inner.pin_problems.set(&pin.target, problem);
        }
        let changed = inner.pins_changed.clone();
        drop(inner);
        // Nobody wakes it in vain: a sleep that ends early is as good as one that ends late.
        let _ = tokio::time::timeout(KEEP_EVERY, changed.notified()).await;
    }
}

/// Follows the tag and fetches what is missing.
async fn tend(inner: &Arc<Inner>, pin: &Arc<Pin>) -> Result<(), String> {
    let followed = follow(inner, pin).await?;
    let pin = followed.as_ref().unwrap_or(pin);
    let fetches = missing(inner, pin).into_iter().map(|member| fetch_from_any(inner, pin, member));
    let mut fetches = stream::iter(fetches).buffer_unordered(FETCHES);
    while let Some(fetched) = fetches.next().await {
        fetched?;
    }
    drop(fetches);
    let left = missing(inner, pin).len();
    if left > 0 {
        return Err(format!("{left} parts could not be kept"));
    }
    if !pin.leaving.is_empty() {
        let settled = Pin { leaving: Vec::new(), ..Pin::clone(pin) };
        inner.store.replace_pin(pin, settled).await.map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// Takes up what the tag of a pin points to now; what it pointed to stays until the new content is here, where there is
/// room for both.
async fn follow(inner: &Arc<Inner>, pin: &Arc<Pin>) -> Result<Option<Arc<Pin>>, String> {
    let PinTarget::Image(repository, Reference::Tag(tag)) = &pin.target else { return Ok(None) };
    let Some(record) = inner.store.tag(repository, tag).filter(|record| record.digest != pin.root) else {
        return Ok(None);
    };
    let choice = Choice { platforms: pin.platforms.clone(), referrers: pin.referrers };
    let image = image::walk(inner, repository, &Reference::Digest(record.digest), &choice).await;
    let image = image.map_err(|error| format!("it cannot follow its tag: {error}"))?;
    let is_leaving = |member: &&PinMember| !image.parts.iter().any(|part| part.digest == member.digest);
    let leaving = pin.members.iter().chain(&pin.leaving).filter(is_leaving).copied().collect();
    let moved = Pin { root: image.root, members: image.parts.clone(), leaving, ..Pin::clone(pin) };
    let alone = Pin { leaving: Vec::new(), ..moved.clone() };
    let replaced = match inner.store.replace_pin(pin, moved).await {
        Err(store::PinError::TooLarge { .. }) => inner.store.replace_pin(pin, alone).await,
        replaced => replaced,
    };
    tracing::info!(target = %pin.target, from = %pin.root, to = %image.root, "a pin follows its tag");
    replaced.map_err(|error| format!("it cannot follow its tag: {error}"))
}

async fn fetch_from_any(inner: &Arc<Inner>, pin: &Pin, member: PinMember) -> Result<(), String> {
    let mut problem = "nobody is known to have it".to_owned();
    for source in &pin.sources {
        match Box::pin(fetch(inner, source, &member)).await {
            Ok(()) => return Ok(()),
            Err(error) => problem = format!("{}: {error}", member.digest),
        }
    }
    Err(problem)
}

/// Pulls one part to its end.
async fn fetch(inner: &Arc<Inner>, repository: &Repository, member: &PinMember) -> Result<(), Error> {
    let digest = &member.digest;
    if member.is_manifest {
        return manifest::by_digest(inner, repository, digest).await.map(|_| ());
    }
    let blob = blob::get(inner, repository, digest).await?;
    if matches!(blob.outcome(), Outcome::Hit | Outcome::Revalidated) {
        return Ok(());
    }
    let mut reader = blob.read(None);
    while let Some(bytes) = reader.next().await {
        bytes.map_err(|error| Error::Internal { reason: error.to_string() })?;
    }
    drop(reader);
    landed(inner, repository, digest).await;
    Ok(())
}

/// Waits until a download that has delivered all is over: it publishes after its last byte.
pub(super) async fn landed(inner: &Inner, repository: &Repository, digest: &Digest) {
    for key in [FillKey::shared(digest), FillKey::own(digest, repository)] {
        if let Some(flight) = inner.fills.find(&key) {
            flight.over().await;
        }
    }
}

/// Why pins are not where they should be.
#[derive(Default)]
pub(super) struct Problems(std::sync::Mutex<std::collections::HashMap<PinTarget, String>>);

impl Problems {
    fn get(&self, target: &PinTarget) -> Option<String> {
        self.lock().get(target).cloned()
    }

    fn set(&self, target: &PinTarget, problem: Option<String>) {
        match problem {
            Some(problem) => self.lock().insert(target.clone(), problem),
            None => self.lock().remove(target),
        };
    }

    fn remove(&self, target: &PinTarget) {
        self.set(target, None);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, std::collections::HashMap<PinTarget, String>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
