//! Who may read what: the rule of grants, in one place.

use crate::oci::Digest;
use crate::oci::Reference;
use crate::oci::Repository;
use crate::store::Proof;
use crate::store::Standing;
use crate::upstream::Identity;

use super::Inner;
use super::error::Error;

/// Which API of the upstream has the content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Manifest,
    Blob,
}

impl Kind {
    /// What a 404 means for it.
    pub(super) fn absent(self) -> Error {
        match self {
            Self::Manifest => Error::ManifestUnknown { is_remembered: false },
            Self::Blob => Error::BlobUnknown,
        }
    }
}

/// What a repository may do with content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// It is not here.
    Absent,
    /// Serve it.
    Granted,
    /// Serve it: the upstream was asked and has it.
    Confirmed,
    /// The upstream has it in this repository, but that is not enough to open what is here: fetch it from there.
    Refetch,
}

/// Decides whether a repository may have content from the store; asks upstream when nothing is known.
pub(super) async fn admit(
    inner: &Inner,
    repository: &Repository,
    digest: &Digest,
    kind: Kind,
) -> Result<Admission, Error> {
    // What came as a manifest is no blob until the upstream's blob API gives it, and the other way round.
    if kind == Kind::Blob && inner.store.is_document(digest) {
        return Ok(Admission::Refetch);
    }
    match inner.store.standing(repository, digest) {
        Standing::Absent => Ok(Admission::Absent),
        Standing::Granted => Ok(Admission::Granted),
        Standing::Ungranted => match confirm(inner, repository, digest, kind).await? {
            Some(identity) => Ok(admit_confirmed(inner, repository, digest, &identity).await),
            None => Ok(Admission::Refetch),
        },
    }
}

/// The same, when the upstream has just said to `identity` that this repository has the content.
pub(super) async fn admit_confirmed(
    inner: &Inner,
    repository: &Repository,
    digest: &Digest,
    identity: &Identity,
) -> Admission {
    match inner.store.standing(repository, digest) {
        Standing::Absent => return Admission::Absent,
        Standing::Granted => return Admission::Confirmed,
        Standing::Ungranted => {}
    }
    if inner.store.is_opened_by(digest, &repository.registry, account(identity).as_deref()) {
        inner.store.grant(repository, digest, &Proof::Confirmed).await;
        Admission::Confirmed
    } else {
        Admission::Refetch
    }
}

/// Asks the upstream whether the repository has the content, and says who asked; `None` when its HEAD says nothing.
pub(super) async fn confirm(
    inner: &Inner,
    repository: &Repository,
    digest: &Digest,
    kind: Kind,
) -> Result<Option<Identity>, Error> {
    let asked = match kind {
        Kind::Blob => {
            let head = inner.upstream.head_blob(repository, digest).await;
            head.map(|head| head.is_supported.then_some(head.identity))
        }
        Kind::Manifest => {
            let head = inner.upstream.head_manifest(repository, &Reference::Digest(*digest)).await;
            head.map(|head| head.is_supported.then_some(head.identity))
        }
    };
    asked.map_err(|error| Error::from_upstream(error, kind.absent()))
}

/// The account that an identity stands for.
pub(super) fn account(identity: &Identity) -> Option<std::sync::Arc<str>> {
    match identity {
        Identity::Anonymous => None,
        Identity::Account(name) => Some(name.clone()),
    }
}

/// The proof that fetching all of the content with this identity makes.
pub(super) fn proof(identity: &Identity) -> Proof {
    Proof::Content { account: account(identity) }
}
