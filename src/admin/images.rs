//! The images that are here: tags and manifests of the store, joined with what they name.
//!
//! Content never changes under its digest, so what a document names is read once and remembered. Looking at an image
//! uses nothing of it: eviction goes on as if nobody had looked.
//!
//! What is shared and what is only a part of an index cannot be told of one image alone, so each look goes through all of
//! them: `gather` collects, waiting for the disk, and [`Gathered::images`] computes, on a thread where nobody waits for it.

use std::collections::HashMap;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use crate::oci::Digest;
use crate::oci::MAX_MANIFEST_BYTES;
use crate::oci::Outline;
use crate::oci::Platform;
use crate::oci::Reference;
use crate::oci::Repository;
use crate::oci::outline;
use crate::oci::platform_of;
use crate::pull::is_listing;
use crate::store::Inventory;
use crate::store::Known;
use crate::store::PinTarget;
use crate::store::Store;

use super::api::Image;
use super::api::ImageState;
use super::api::rfc3339;

/// Most digests that remembered outlines may name together, some 100 MB; documents beyond are read again at each look.
const MAX_PARTS: usize = 1_000_000;
/// Longest configuration of an image that is read.
const MAX_CONFIG_BYTES: u64 = 1024 * 1024;

/// What documents name.
#[derive(Default)]
pub(super) struct Outlines {
    remembered: Mutex<Remembered>,
    /// One look reads at a time: who waited finds most of it remembered.
    reading: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Remembered {
    documents: HashMap<Digest, Arc<Read>>,
    /// What they name, with themselves.
    parts: usize,
}

/// What a list of images is made of, at one moment.
pub(super) struct Gathered {
    inventory: Inventory,
    read: HashMap<Digest, Arc<Read>>,
    pins: HashSet<PinTarget>,
}

/// A document that was read.
struct Read {
    outline: Outline,
    /// Of an image: as its configuration says, where that is here.
    platform: Option<Platform>,
}

/// One image before it is compared with the others.
struct Found<'a> {
    image: Image,
    contents: Box<[&'a Digest]>,
}

/// Collects what is here, and reads what is not remembered.
pub(super) async fn gather(store: &Store, outlines: &Outlines) -> Gathered {
    let pins = store.pins().iter().map(|pin| pin.target.clone()).collect();
    let inventory = store.inventory().await;
    let read = outlines.read(store, &inventory).await;
    Gathered { inventory, read, pins }
}

impl Gathered {
    /// All images, in order of registry, repository and tag. Takes time in proportion to them.
    pub(super) fn images(&self) -> Vec<Image> {
        let members: HashSet<Digest> =
            self.read.values().flat_map(|read| read.outline.members.iter().map(|member| member.digest)).collect();
        let mut found = Vec::new();
        let mut tagged = HashSet::new();
        // A tag that is gone names nothing any more; what it named is listed by its digest.
        for (repository, tag, record) in self.inventory.tags.iter().filter(|(_, _, record)| record.gone_at.is_none()) {
            tagged.insert((repository.clone(), record.digest));
            // A list of referrers is no image.
            if is_listing(tag) {
                continue;
            }
            let mut image = assemble(&self.inventory, &self.read, repository, &record.digest);
            image.image.tag = Some(tag.to_string());
            image.image.checked_at = Some(rfc3339(record.checked_at));
            image.image.pinned = self.is_pinned(repository, Reference::Tag(tag.clone()), &record.digest);
            found.push(image);
        }
        for (digest, known) in self.inventory.contents.iter().filter(|(digest, _)| self.read.contains_key(*digest)) {
            for repository in &known.repositories {
                if !members.contains(digest) && !tagged.contains(&(repository.clone(), *digest)) {
                    let mut image = assemble(&self.inventory, &self.read, repository, digest);
                    image.image.pinned = self.is_pinned(repository, Reference::Digest(*digest), digest);
                    found.push(image);
                }
            }
        }
        share(&self.inventory, &mut found);
        let mut images: Vec<Image> = found.into_iter().map(|found| found.image).collect();
        images.sort_by(|a, b| key(a).cmp(&key(b)));
        images
    }

    fn is_pinned(&self, repository: &Repository, reference: Reference, digest: &Digest) -> bool {
        self.pins.contains(&PinTarget::Content(*digest))
            || self.pins.contains(&PinTarget::Image(repository.clone(), Reference::Digest(*digest)))
            || self.pins.contains(&PinTarget::Image(repository.clone(), reference))
    }
}

fn key(image: &Image) -> (&str, &str, Option<&str>, &str) {
    (&image.registry, &image.repository, image.tag.as_deref(), &image.digest)
}

fn assemble<'a>(
    inventory: &'a Inventory,
    read: &'a HashMap<Digest, Arc<Read>>,
    repository: &Repository,
    digest: &Digest,
) -> Found<'a> {
    let known = inventory.contents.get(digest);
    let mut parts = Parts { inventory, read, contents: HashSet::new(), platforms: Vec::new() };
    let is_complete = parts.add(digest, None);
    let state = match known {
        None => ImageState::Evicted,
        Some(_) if is_complete => ImageState::Complete,
        Some(_) => ImageState::Partial,
    };
    let here = || parts.contents.iter().filter_map(|digest| inventory.contents.get(*digest));
    let mut platforms: Vec<String> = parts.platforms.iter().map(Platform::to_string).collect();
    platforms.sort();
    platforms.dedup();
    let image = Image {
        registry: repository.registry.to_string(),
        repository: repository.name.to_string(),
        tag: None,
        digest: digest.to_string(),
        media_type: known.and_then(|known| known.media_type.as_ref()).map(|media_type| media_type.as_str().to_owned()),
        platforms,
        size_bytes: here().map(|known| known.size_bytes).sum(),
        shared_bytes: 0,
        last_used: here().map(|known| known.used_at).max().map(rfc3339),
        checked_at: None,
        pinned: false,
        state,
    };
    Found { image, contents: parts.contents.into_iter().collect() }
}

/// What is here of an image, followed from its root.
struct Parts<'a> {
    inventory: &'a Inventory,
    read: &'a HashMap<Digest, Arc<Read>>,
    contents: HashSet<&'a Digest>,
    platforms: Vec<Platform>,
}

impl<'a> Parts<'a> {
    /// Whether this document can be pulled: an image with all its blobs, or an index with such an image in it.
    fn add(&mut self, digest: &Digest, platform: Option<&Platform>) -> bool {
        let Some(digest) = self.here(digest).filter(|digest| self.contents.insert(digest)) else { return false };
        let Some(read) = self.read.get(digest) else { return false };
        let mut has_member = false;
        for member in &read.outline.members {
            has_member |= self.add(&member.digest, member.platform.as_ref());
        }
        let blobs = read.outline.config.iter().chain(&read.outline.layers);
        let mut is_whole = true;
        for (blob, _) in blobs {
            let blob = self.here(blob);
            is_whole &= blob.is_some();
            self.contents.extend(blob);
        }
        let is_image = read.outline.members.is_empty();
        if is_image && is_whole {
            self.platforms.extend(platform.or(read.platform.as_ref()).cloned());
        }
        if is_image { is_whole } else { has_member }
    }

    /// The same digest, as long as the inventory lives, where its content is here.
    fn here(&self, digest: &Digest) -> Option<&'a Digest> {
        self.inventory.contents.get_key_value(digest).map(|(digest, _)| digest)
    }
}

/// Counts in each image what others use too. Two tags of one digest are the same image twice, and share all of it.
fn share(inventory: &Inventory, found: &mut [Found<'_>]) {
    let mut users: HashMap<&Digest, u32> = HashMap::new();
    for digest in found.iter().flat_map(|found| &found.contents) {
        *users.entry(digest).or_default() += 1;
    }
    for found in found {
        let shared = found.contents.iter().filter(|digest| users.get(*digest).is_some_and(|&users| users > 1));
        let sizes = shared.filter_map(|digest| inventory.contents.get(*digest)).map(|known| known.size_bytes);
        found.image.shared_bytes = sizes.sum();
    }
}

impl Outlines {
    /// What every document that is here names.
    async fn read(&self, store: &Store, inventory: &Inventory) -> HashMap<Digest, Arc<Read>> {
        let _alone = self.reading.lock().await;
        self.lock().forget_absent(inventory);
        let mut all = HashMap::new();
        for digest in inventory.contents.iter().filter(|(_, known)| is_document(known)).map(|(digest, _)| digest) {
            let remembered = self.lock().documents.get(digest).cloned();
            let read = match remembered {
                Some(read) => Some(read),
                None => self.read_one(store, digest).await,
            };
            all.extend(read.map(|read| (*digest, read)));
        }
        all
    }

    async fn read_one(&self, store: &Store, digest: &Digest) -> Option<Arc<Read>> {
        let document = store.peek(digest, MAX_MANIFEST_BYTES as u64).await?;
        let outline = outline(&document);
        let config = match &outline.config {
            Some((config, _)) => store.peek(config, MAX_CONFIG_BYTES).await,
            None => None,
        };
        // A configuration that is yet to come is read when it is here.
        let is_final = outline.config.is_none() || config.is_some();
        let platform = config.and_then(|config| platform_of(&config));
        let read = Arc::new(Read { outline, platform });
        if is_final {
            self.lock().add(*digest, read.clone(), MAX_PARTS);
        }
        Some(read)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Remembered> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Remembered {
    /// Keeps it, unless that would be more than `max_parts`: what is remembered stays, or a list longer than the limit would
    /// find nothing of the last look.
    fn add(&mut self, digest: Digest, read: Arc<Read>, max_parts: usize) {
        let parts = read.parts();
        if self.parts + parts <= max_parts && self.documents.insert(digest, read).is_none() {
            self.parts += parts;
        }
    }

    fn forget_absent(&mut self, inventory: &Inventory) {
        self.documents.retain(|digest, _| inventory.contents.contains_key(digest));
        self.parts = self.documents.values().map(|read| read.parts()).sum();
    }
}

impl Read {
    fn parts(&self) -> usize {
        let Outline { members, config, layers } = &self.outline;
        1 + members.len() + usize::from(config.is_some()) + layers.len()
    }
}

fn is_document(known: &Known) -> bool {
    known.media_type.as_ref().is_some_and(|media_type| media_type.is_index() || media_type.is_image())
}

/// When content was used, for sorting: what was never used comes first.
pub(super) fn used_at(image: &Image) -> &str {
    image.last_used.as_deref().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;
    use crate::store::Timestamp;

    fn digest(text: &str) -> Digest {
        Digest::of(Algorithm::Sha256, text.as_bytes())
    }

    fn read(layers: usize) -> Arc<Read> {
        let layers = (0..layers).map(|layer| (digest(&layer.to_string()), 1)).collect();
        Arc::new(Read { outline: Outline { layers, ..Outline::default() }, platform: None })
    }

    #[test]
    fn what_is_remembered_is_bounded_and_stays() {
        let mut remembered = Remembered::default();
        for name in ["a", "b", "c", "a"] {
            remembered.add(digest(name), read(3), 8);
        }
        assert_eq!((remembered.documents.len(), remembered.parts), (2, 8), "the third does not fit");
        assert!(remembered.documents.contains_key(&digest("a")), "and drives out none");
        let mut inventory = Inventory::default();
        let known = Known { size_bytes: 1, used_at: Timestamp::now(), media_type: None, repositories: Vec::new() };
        inventory.contents.insert(digest("b"), known);
        remembered.forget_absent(&inventory);
        assert_eq!((remembered.documents.len(), remembered.parts), (1, 4));
        remembered.add(digest("c"), read(3), 8);
        assert_eq!(remembered.parts, 8);
    }
}
