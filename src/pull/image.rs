//! All that an image is made of: its manifests, read through the cache as a pull would, and what they name.

use std::collections::HashSet;
use std::collections::VecDeque;
use std::sync::Arc;

use crate::oci::Digest;
use crate::oci::Member;
use crate::oci::Outline;
use crate::oci::Platform;
use crate::oci::Reference;
use crate::oci::Repository;
use crate::oci::outline;
use crate::store::PinMember;

use super::Inner;
use super::error::Error;
use super::listing;
use super::manifest;
use super::manifest::Manifest;
use super::tag;

/// Deepest nesting of an index in an index.
const MAX_DEPTH: usize = 4;
/// Most parts of one image, with all its platforms and referrers.
const MAX_PARTS: usize = 50_000;

/// What of an image is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// Of an index only these platforms; all where there are none.
    pub platforms: Vec<Platform>,
    /// With what refers to its manifests, such as signatures.
    pub referrers: bool,
}

/// All parts of an image, each once, manifests before what they name.
#[derive(Clone, Debug)]
pub(super) struct Image {
    pub(super) root: Digest,
    pub(super) parts: Vec<PinMember>,
}

/// The parts of an image cannot be told.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ImageError {
    /// A manifest of it cannot be had.
    #[error(transparent)]
    Pull(#[from] Error),
    /// It is for none of these platforms.
    #[error("it is for none of the platforms asked for, only for {}", there.join(", "))]
    NoSuchPlatform {
        /// Those that there are.
        there: Vec<String>,
    },
    /// It names more than is kept track of.
    #[error("it has more than {MAX_PARTS} parts, or is nested deeper than {MAX_DEPTH}")]
    TooManyParts,
}

struct Walk<'a> {
    inner: &'a Arc<Inner>,
    repository: &'a Repository,
    platforms: &'a [Platform],
    seen: HashSet<Digest>,
    parts: Vec<PinMember>,
    /// Manifests still to be read, with their depth.
    next: VecDeque<(Digest, usize)>,
}

/// Reads the image's manifests, from the store where they are, and lists its parts. Fetches no blob.
pub(super) async fn walk(
    inner: &Arc<Inner>,
    repository: &Repository,
    reference: &Reference,
    choice: &Choice,
) -> Result<Image, ImageError> {
    let root = match reference {
        Reference::Digest(digest) => manifest::by_digest(inner, repository, digest).await?,
        Reference::Tag(tag) => tag::manifest(inner, repository, tag).await?,
    };
    let (seen, parts, next) = (HashSet::new(), Vec::new(), VecDeque::new());
    let mut walk = Walk { inner, repository, platforms: &choice.platforms, seen, parts, next };
    walk.add_manifest(&root, 0)?;
    walk.go_on().await?;
    if choice.referrers {
        let manifests = walk.parts.iter().filter(|part| part.is_manifest).map(|part| part.digest);
        for subject in manifests.collect::<Vec<_>>() {
            for referrer in referrers(inner, repository, &subject).await? {
                walk.visit(referrer, 0)?;
            }
        }
        walk.platforms = &[];
        walk.go_on().await?;
    }
    Ok(Image { root: root.digest, parts: walk.parts })
}

impl Walk<'_> {
    async fn go_on(&mut self) -> Result<(), ImageError> {
        while let Some((digest, depth)) = self.next.pop_front() {
            match manifest::by_digest(self.inner, self.repository, &digest).await {
                Ok(manifest) => self.add_manifest(&manifest, depth)?,
                // An index may name manifests that its registry does not have.
                Err(Error::ManifestUnknown { .. }) if self.platforms.is_empty() => {
                    tracing::warn!(repository = %self.repository, %digest, "a manifest that an index names is nowhere");
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn add_manifest(&mut self, manifest: &Manifest, depth: usize) -> Result<(), ImageError> {
        self.seen.insert(manifest.digest);
        self.add(PinMember { digest: manifest.digest, size_bytes: manifest.bytes.len() as u64, is_manifest: true })?;
        let is_manifest = manifest.media_type.is_index() || manifest.media_type.is_image();
        let outline = if is_manifest { outline(&manifest.bytes) } else { Outline::default() };
        for wanted in self.chosen(outline.members)? {
            self.visit(wanted, depth + 1)?;
        }
        for (digest, size_bytes) in outline.config.into_iter().chain(outline.layers) {
            if self.seen.insert(digest) {
                self.add(PinMember { digest, size_bytes, is_manifest: false })?;
            }
        }
        Ok(())
    }

    /// Those for the platforms asked for. A manifest that names no platform, such as an attestation, is for none.
    fn chosen(&self, members: Vec<Member>) -> Result<Vec<Digest>, ImageError> {
        if members.is_empty() || self.platforms.is_empty() {
            return Ok(members.into_iter().map(|member| member.digest).collect());
        }
        let is_chosen = |there: &Platform| self.platforms.iter().any(|wanted| wanted.admits(there));
        let chosen = members.iter().filter(|member| member.platform.as_ref().is_some_and(is_chosen));
        let chosen: Vec<Digest> = chosen.map(|member| member.digest).collect();
        if chosen.is_empty() {
            let there = members.iter().filter_map(|member| member.platform.as_ref()).map(Platform::to_string);
            return Err(ImageError::NoSuchPlatform { there: there.collect() });
        }
        Ok(chosen)
    }

    fn visit(&mut self, digest: Digest, depth: usize) -> Result<(), ImageError> {
        if depth > MAX_DEPTH || self.next.len() >= MAX_PARTS {
            return Err(ImageError::TooManyParts);
        }
        if self.seen.insert(digest) {
            self.next.push_back((digest, depth));
        }
        Ok(())
    }

    fn add(&mut self, part: PinMember) -> Result<(), ImageError> {
        if self.parts.len() >= MAX_PARTS {
            return Err(ImageError::TooManyParts);
        }
        self.parts.push(part);
        Ok(())
    }
}

/// What refers to a manifest: by the referrers API, or else by the tag that stands in for it.
async fn referrers(inner: &Arc<Inner>, repository: &Repository, subject: &Digest) -> Result<Vec<Digest>, Error> {
    let index = match listing::referrers(inner, repository, subject, None).await {
        Ok(listed) => listed.index,
        Err(Error::ReferrersUnsupported) => {
            let tag = format!("{}-{}", subject.algorithm().as_str(), subject.hex()).parse();
            let Ok(tag) = tag else { return Ok(Vec::new()) };
            match tag::manifest(inner, repository, &tag).await {
                Ok(manifest) => manifest.bytes,
                Err(Error::ManifestUnknown { .. }) => return Ok(Vec::new()),
                Err(error) => return Err(error),
            }
        }
        Err(error) => return Err(error),
    };
    Ok(outline(&index).members.into_iter().map(|member| member.digest).collect())
}
