//! One image: why a request gets what it gets, where its tag has pointed, pins, and purging.

use super::Api;
use super::History;
use super::Kept;
use super::PastDigest;
use super::Pin;
use super::PinBody;
use super::Pins;
use super::PurgeBody;
use super::Purged;
use super::Question;
use super::UnpinBody;
use super::Why;
use super::failure::Failure;
use super::rfc3339;
use super::warm::choice;
use crate::oci::Digest;
use crate::oci::ImageName;
use crate::oci::Reference;
use crate::oci::Repository;
use crate::pull;
use crate::pull::Past;
use crate::pull::PinFailure;
use crate::pull::PinState;
use crate::pull::Right;
use crate::pull::Verdict;
use crate::store::Holder;
use crate::store::PinTarget;
use crate::store::PurgeTarget;

impl Api {
    /// `?image=`.
    pub(super) fn why(&self, question: &Question) -> Result<Why, Failure> {
        let image = question.image()?;
        let why = self.control.puller.why(&image.repository, &image.reference).map_err(|error| pulling(&error))?;
        let (right, right_expires_at) = match why.right {
            Right::NotHere => ("not-here", None),
            Right::None => ("none", None),
            Right::Public => ("public", None),
            Right::Private { expires_at, .. } => ("private", Some(rfc3339(expires_at))),
        };
        Ok(Why {
            image: image.to_string(),
            verdict: word(why.verdict),
            meaning: meaning(why.verdict).to_owned(),
            source: word(why.source),
            digest: why.digest.map(|digest| digest.to_string()),
            size_bytes: why.size_bytes,
            checked_at: why.checked_at.map(rfc3339),
            fresh_until: why.fresh_until.map(rfc3339),
            stale_until: why.stale_until.map(rfc3339),
            rule: why.rule,
            immutable: why.immutable,
            refused_digest: why.refused_digest.map(|digest| digest.to_string()),
            right: right.to_owned(),
            right_expires_at,
            trouble: why.trouble.map(str::to_owned),
        })
    }

    /// `?image=`, by tag.
    pub(super) fn history(&self, question: &Question) -> Result<History, Failure> {
        let image = question.image()?;
        let Reference::Tag(tag) = &image.reference else {
            return Err(Failure::bad_request("a digest never moves: ask for a tag"));
        };
        let record = self.control.puller.history(&image.repository, tag).map_err(|error| pulling(&error))?;
        let record = record.ok_or_else(|| Failure::not_found(format!("{image} has never been seen here")))?;
        let now = Past { digest: record.digest, first_seen: record.first_seen, last_seen: record.checked_at };
        let digests = [past(&now)].into_iter().chain(record.history.iter().rev().map(past)).collect();
        let (gone_at, refused) = (record.gone_at.map(rfc3339), record.refused.as_ref().map(past));
        Ok(History { image: image.to_string(), digests, gone_at, refused })
    }

    pub(super) fn pins(&self) -> Pins {
        Pins { pins: self.control.puller.pins().iter().map(pin).collect() }
    }

    /// Written down when this answers; what is missing is fetched on the data path's runtime.
    pub(super) async fn pin(&self, question: &Question) -> Result<Pin, Failure> {
        let wanted: PinBody = question.json()?;
        let (target, choice) = (pin_target(&wanted.image)?, choice(&wanted.platforms, wanted.referrers)?);
        let puller = self.control.puller.clone();
        let pinning = self.control.runtime.spawn(async move { puller.pin(&target, &choice).await });
        match pinning.await {
            Ok(Ok(state)) => Ok(pin(&state)),
            Ok(Err(error @ PinFailure::Refused(_))) => Err(Failure::conflict(error.to_string())),
            Ok(Err(PinFailure::NotHere)) => Err(Failure::not_found(PinFailure::NotHere.to_string())),
            Ok(Err(error @ PinFailure::Image(_))) => Err(Failure::unavailable(error.to_string())),
            Err(error) => Err(Failure::internal(error.to_string())),
        }
    }

    pub(super) async fn unpin(&self, question: &Question) -> Result<Pins, Failure> {
        let wanted: UnpinBody = question.json()?;
        let target = pin_target(&wanted.image)?;
        match self.control.puller.unpin(&target).await {
            Ok(true) => Ok(self.pins()),
            Ok(false) => Err(Failure::not_found(format!("{target} is not pinned"))),
            Err(error) => Err(Failure::internal(error.to_string())),
        }
    }

    pub(super) async fn purge(&self, question: &Question) -> Result<Purged, Failure> {
        let target = purge_target(&question.json()?)?;
        let purged = self.control.store.purge(&target).await;
        tracing::info!(?target, removed_bytes = purged.removed_bytes(), "purged by the operator");
        Ok(Purged {
            tags: purged.tags.iter().map(|(repository, tag)| format!("{repository}:{tag}")).collect(),
            removed: purged.removed.len(),
            removed_bytes: purged.removed_bytes(),
            kept: purged
                .kept
                .iter()
                .map(|kept| Kept {
                    digest: kept.digest.to_string(),
                    size_bytes: kept.size_bytes,
                    by: kept.by.iter().map(holder).collect(),
                })
                .collect(),
        })
    }
}

impl Question {
    fn image(&self) -> Result<ImageName, Failure> {
        let text = self.parameter("image").ok_or_else(|| Failure::bad_request("say which: ?image=…"))?;
        image_of(text)
    }
}

fn image_of(text: &str) -> Result<ImageName, Failure> {
    text.parse().map_err(|error| Failure::bad_request(format!("image: {error}")))
}

/// An image, or a digest alone.
fn pin_target(text: &str) -> Result<PinTarget, Failure> {
    if let Ok(digest) = text.parse::<Digest>() {
        return Ok(PinTarget::Content(digest));
    }
    let image = image_of(text)?;
    Ok(PinTarget::Image(image.repository, image.reference))
}

fn purge_target(body: &PurgeBody) -> Result<PurgeTarget, Failure> {
    match (&body.image, &body.repository, &body.registry) {
        (Some(image), None, None) => Ok(match pin_target(image)? {
            PinTarget::Content(digest) => PurgeTarget::Content(digest),
            PinTarget::Image(repository, reference) => PurgeTarget::Image(repository, reference),
        }),
        (None, Some(repository), None) => Ok(PurgeTarget::Repository(repository_of(repository)?)),
        (None, None, Some(registry)) => {
            let registry = registry.parse().map_err(|error| Failure::bad_request(format!("registry: {error}")))?;
            Ok(PurgeTarget::Registry(registry))
        }
        _ => Err(Failure::bad_request("give one of image, repository and registry")),
    }
}

/// A repository is written as an image without tag and digest.
fn repository_of(text: &str) -> Result<Repository, Failure> {
    let image = image_of(text)?;
    if image.to_string().ends_with(text) || text.contains('@') {
        return Err(Failure::bad_request("repository: write it without a tag and without a digest"));
    }
    Ok(image.repository)
}

/// A right or a fault of the data path, for this API.
fn pulling(error: &pull::Error) -> Failure {
    match error {
        pull::Error::UnknownRegistry => Failure::not_found("this registry is not configured"),
        other => Failure::unavailable(other.to_string()),
    }
}

fn past(past: &Past) -> PastDigest {
    let (first_seen, last_seen) = (rfc3339(past.first_seen), rfc3339(past.last_seen));
    PastDigest { digest: past.digest.to_string(), first_seen, last_seen }
}

fn pin(state: &PinState) -> Pin {
    Pin {
        image: state.pin.target.to_string(),
        digest: state.pin.root.to_string(),
        platforms: state.pin.platforms.iter().map(ToString::to_string).collect(),
        referrers: state.pin.referrers,
        pinned_at: rfc3339(state.pin.pinned_at),
        size_bytes: state.size_bytes,
        missing_bytes: state.missing_bytes,
        problem: state.problem.clone(),
    }
}

fn holder(holder: &Holder) -> String {
    match holder {
        Holder::Repository(repository) => format!("repository {repository}"),
        Holder::Tag(repository, tag) => format!("tag {repository}:{tag}"),
        Holder::Manifest(repository, digest) => format!("manifest {repository}@{digest}"),
        Holder::Pin(target) => format!("pin {target}"),
        Holder::Disk => "the disk, which does not let go of it".to_owned(),
    }
}

/// A value of an enum, as it is written in JSON.
pub(super) fn word(value: impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

fn meaning(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Hit => "it is served from the store, and nobody is asked",
        Verdict::Check => "the registry is asked first; what is here is served when it agrees, or takes too long",
        Verdict::Stale => "what is here is served: the registry cannot answer now",
        Verdict::Offline => "what is here is served: the registry is switched offline",
        Verdict::Confirm => "what is here is served once the registry confirms that this repository has it",
        Verdict::Fetch => "it is fetched from the registry",
        Verdict::Absent => "it is not found: the registry said so a short while ago",
        Verdict::Unavailable => "it is refused: it is not here, and the registry is switched offline",
        Verdict::NotAllowed => "it is refused: the configuration does not allow this repository",
    }
}
