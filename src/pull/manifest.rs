//! Manifests by digest: whole, verified before the first byte goes out, exactly as the upstream sent them.

use std::sync::Arc;

use bytes::Bytes;

use crate::oci::Algorithm;
use crate::oci::Digest;
use crate::oci::MediaType;
use crate::oci::Reference;
use crate::oci::Repository;
use crate::oci::Verified;
use crate::oci::inspect;
use crate::store::Document;
use crate::upstream::FetchedManifest;

use super::Inner;
use super::access;
use super::access::Admission;
use super::access::Kind;
use super::error::Error;
use super::flight::Seat;
use super::lookahead;
use super::outcome::Outcome;

/// A whole, verified manifest.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// Its digest.
    pub digest: Digest,
    /// As the upstream sent it.
    pub media_type: MediaType,
    /// Exactly the bytes of its digest.
    pub bytes: Bytes,
    /// How it came about.
    pub outcome: Outcome,
}

pub(super) async fn by_digest(inner: &Arc<Inner>, repository: &Repository, digest: &Digest) -> Result<Manifest, Error> {
    let admission = access::admit(inner, repository, digest, Kind::Manifest).await?;
    let manifest = admitted(inner, repository, digest, admission).await?;
    lookahead::begin(inner, repository, &manifest);
    Ok(manifest)
}

/// From the store where that is allowed and possible, else from the upstream.
pub(super) async fn admitted(
    inner: &Arc<Inner>,
    repository: &Repository,
    digest: &Digest,
    admission: Admission,
) -> Result<Manifest, Error> {
    let outcome = match admission {
        Admission::Granted => Outcome::Hit,
        Admission::Confirmed => Outcome::Revalidated,
        Admission::Stale(reason) => Outcome::Stale { reason },
        Admission::Offline => Outcome::Offline,
        Admission::Absent | Admission::Refetch => return fetch(inner, repository, digest).await,
    };
    match stored(inner, digest, outcome).await {
        Some(manifest) => Ok(manifest),
        None => fetch(inner, repository, digest).await,
    }
}

/// From the store, if this repository may have it while nobody can be asked, and it is there.
pub(super) async fn granted(inner: &Inner, repository: &Repository, digest: &Digest) -> Option<Manifest> {
    if access::is_open_stale(inner, repository, digest) { stored(inner, digest, Outcome::Hit).await } else { None }
}

async fn stored(inner: &Inner, digest: &Digest, outcome: Outcome) -> Option<Manifest> {
    match inner.store.document(digest).await {
        Ok(document) => {
            let document = document?;
            Some(Manifest { digest: *digest, media_type: document.media_type, bytes: document.bytes, outcome })
        }
        Err(error) => {
            tracing::error!(%digest, %error, "a stored manifest cannot be read; it is fetched again");
            None
        }
    }
}

/// One GET upstream for all who wait for this manifest of this repository.
async fn fetch(inner: &Arc<Inner>, repository: &Repository, digest: &Digest) -> Result<Manifest, Error> {
    let wait = match inner.documents.board(&(repository.clone(), *digest)) {
        Seat::Follow(wait) => {
            let joined = wait.value().await.ok_or_else(Error::abandoned)?;
            return joined.map(|manifest| Manifest { outcome: Outcome::Join, ..manifest });
        }
        Seat::Lead(permit) => {
            // The flight that fetched it may have ended between our look at the store and our lead.
            if let Some(manifest) = granted(inner, repository, digest).await {
                return Ok(manifest);
            }
            let wait = permit.wait();
            let (inner, repository, digest) = (inner.clone(), repository.clone(), *digest);
            inner.clone().spawn(async move {
                permit.announce(fetch_now(&inner, &repository, &digest).await);
            });
            wait
        }
    };
    wait.value().await.ok_or_else(Error::abandoned)?
}

async fn fetch_now(inner: &Inner, repository: &Repository, digest: &Digest) -> Result<Manifest, Error> {
    let reference = Reference::Digest(*digest);
    let fetched = inner.upstream.get_manifest(repository, &reference).await;
    let fetched = fetched.map_err(|error| Error::from_upstream(error, Kind::Manifest.absent()));
    access::heard(inner, repository, Some(digest), fetched.as_ref().err()).await;
    keep(inner, repository, digest, fetched?).await
}

/// Verifies what the upstream sent, keeps it and grants it. A store that cannot keep it does not fail the pull.
async fn keep(
    inner: &Inner,
    repository: &Repository,
    digest: &Digest,
    fetched: FetchedManifest,
) -> Result<Manifest, Error> {
    let FetchedManifest { bytes, media_type, identity, .. } = fetched;
    let verified = Verified::check(digest, &bytes)?;
    let media_type = media_type.or_sniffed(&bytes);
    inspect(&media_type, &bytes)?;
    let document = Document { bytes: bytes.clone(), media_type: media_type.clone() };
    let kept = inner.store.put_document(verified, document, repository, &access::proof(&identity)).await;
    if let Err(error) = &kept {
        tracing::error!(%digest, %error, "a manifest could not be kept");
    }
    let outcome = Outcome::Miss { stored: kept.is_ok() };
    Ok(Manifest { digest: *digest, media_type, bytes, outcome })
}

/// A manifest fetched by tag from an upstream that names no digest on HEAD: its bytes name it.
pub(super) async fn fetch_unnamed(
    inner: &Inner,
    repository: &Repository,
    reference: &Reference,
) -> Result<Manifest, Error> {
    let fetched = inner.upstream.get_manifest(repository, reference).await;
    let fetched = fetched.map_err(|error| Error::from_upstream(error, Kind::Manifest.absent()))?;
    let digest = fetched.digest_header.unwrap_or_else(|| Digest::of(Algorithm::Sha256, &fetched.bytes));
    keep(inner, repository, &digest, fetched).await
}
