//! What a manifest names may be here by way of another repository, without a right for this one. While the upstream
//! answers anyway, it is asked in the background, so that a later outage does not find half an image.
//!
//! A HEAD 200 is the proof that it always is; being named in the manifest grants nothing.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::oci::Digest;
use crate::oci::Repository;
use crate::oci::inspect;
use crate::store::Standing;

use super::Inner;
use super::access;
use super::access::Kind;
use super::manifest::Manifest;
use super::outcome::Outcome;

/// Most questions about one manifest.
const MAX_QUESTIONS: usize = 128;
/// How long a manifest is not looked at again.
const PAUSE: Duration = Duration::from_secs(60);

/// Begins a look at what the upstream has just sent or confirmed.
pub(super) fn begin(inner: &Arc<Inner>, repository: &Repository, manifest: &Manifest) {
    if !matches!(manifest.outcome, Outcome::Miss { .. } | Outcome::Revalidated) {
        return;
    }
    let key = (repository.clone(), manifest.digest);
    if inner.looked_at.get(&key).is_some_and(|at| at.elapsed() < PAUSE) {
        return;
    }
    let wanted = without_right(inner, repository, manifest);
    inner.looked_at.insert(key, Instant::now());
    if wanted.is_empty() {
        return;
    }
    let (inner, repository) = (inner.clone(), repository.clone());
    inner.clone().spawn(async move {
        let Ok(_looker) = inner.lookers.acquire().await else { return };
        for (digest, kind) in wanted {
            // One after another: clients' own questions come first.
            let asked = access::admit(&inner, &repository, &digest, kind).await;
            if asked.is_err_and(|error| error.stale_reason().is_some()) {
                return;
            }
        }
    });
}

/// What is named, is here, and may not be served by this repository yet.
fn without_right(inner: &Inner, repository: &Repository, manifest: &Manifest) -> Vec<(Digest, Kind)> {
    let Ok(children) = inspect(&manifest.media_type, &manifest.bytes) else { return Vec::new() };
    let manifests = children.manifests.into_iter().map(|digest| (digest, Kind::Manifest));
    let blobs = children.blobs.into_iter().map(|(digest, _)| (digest, Kind::Blob));
    let is_closed = |(digest, kind): &(Digest, Kind)| {
        inner.store.standing(repository, digest) == Standing::Ungranted
            && inner.store.is_document(digest) == (*kind == Kind::Manifest)
    };
    manifests.chain(blobs).filter(is_closed).take(MAX_QUESTIONS).collect()
}
