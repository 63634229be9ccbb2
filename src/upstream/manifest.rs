//! Manifests: HEAD and GET (distribution-spec, "Pulling manifests").

use bytes::Bytes;
use http::HeaderMap;
use http::Method;
use http::header::CONTENT_TYPE;

use super::Identity;
use super::error::Error;
use super::request::Kind;
use super::request::Question;
use super::request::RegistryClient;
use super::wire::content_length;
use crate::oci::Digest;
use crate::oci::MANIFEST_ACCEPT;
use crate::oci::MAX_MANIFEST_BYTES;
use crate::oci::MediaType;
use crate::oci::Reference;
use crate::oci::RepositoryName;

const DIGEST_HEADER: &str = "docker-content-digest";

/// What a HEAD says about a manifest. Nothing in it is verified.
#[derive(Clone, Debug)]
pub struct ManifestHead {
    /// The registry answers HEAD. Otherwise (405, 501) nothing is known, not even that there is such a manifest.
    pub is_supported: bool,
    /// `Docker-Content-Digest`; `None` when missing or unreadable.
    pub digest: Option<Digest>,
    /// `Content-Type` without parameters.
    pub media_type: Option<MediaType>,
    /// `Content-Length`.
    pub size_bytes: Option<u64>,
    /// Who asked.
    pub identity: Identity,
}

/// A whole manifest, at most [`MAX_MANIFEST_BYTES`]. Its digest is not verified.
#[derive(Clone, Debug)]
pub struct FetchedManifest {
    /// The exact bytes.
    pub bytes: Bytes,
    /// `Content-Type` without parameters; `application/octet-stream` when missing.
    pub media_type: MediaType,
    /// `Docker-Content-Digest`.
    pub digest_header: Option<Digest>,
    /// Who asked.
    pub identity: Identity,
}

impl RegistryClient {
    pub(super) async fn head_manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<ManifestHead, Error> {
        let answer = self.open(&question(Method::HEAD, repository, reference)).await?;
        let identity = answer.identity;
        if !answer.response.status().is_success() {
            return Ok(ManifestHead {
                is_supported: false,
                digest: None,
                media_type: None,
                size_bytes: None,
                identity,
            });
        }
        let headers = answer.response.headers();
        Ok(ManifestHead {
            is_supported: true,
            digest: digest(headers),
            media_type: media_type(headers).ok().flatten(),
            size_bytes: content_length(headers),
            identity,
        })
    }

    pub(super) async fn get_manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<FetchedManifest, Error> {
        let asking = question(Method::GET, repository, reference);
        let (headers, bytes, identity) = self.whole(&asking, MAX_MANIFEST_BYTES).await?;
        let media_type = media_type(&headers)?.unwrap_or_else(MediaType::octet_stream);
        Ok(FetchedManifest { bytes, media_type, digest_header: digest(&headers), identity })
    }
}

fn question<'a>(method: Method, repository: &'a RepositoryName, reference: &Reference) -> Question<'a> {
    Question {
        kind: Kind::Manifest,
        method,
        repository,
        path: format!("manifests/{reference}"),
        query: None,
        accept: Some(MANIFEST_ACCEPT),
        range: None,
    }
}

fn digest(headers: &HeaderMap) -> Option<Digest> {
    headers.get(DIGEST_HEADER)?.to_str().ok()?.trim().parse().ok()
}

fn media_type(headers: &HeaderMap) -> Result<Option<MediaType>, Error> {
    let Some(value) = headers.get(CONTENT_TYPE) else {
        return Ok(None);
    };
    let parsed = value.to_str().ok().and_then(|text| text.parse().ok());
    parsed.map(Some).ok_or_else(|| Error::protocol("the registry sent a manifest with an unreadable Content-Type"))
}
