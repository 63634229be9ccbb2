//! When registries last confirmed rights to content that is not public. Most content is, and has no entry here.

use std::collections::HashMap;
use std::sync::PoisonError;
use std::sync::RwLock;

use crate::oci::Digest;
use crate::oci::Repository;

use super::Timestamp;

/// Most confirmations kept of one blob; the oldest gives way, and that right is confirmed anew.
const MAX_CONFIRMED: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct Confirmed(RwLock<HashMap<Digest, Vec<(Repository, Timestamp)>>>);

impl Confirmed {
    pub(super) fn at(&self, digest: &Digest, repository: &Repository) -> Option<Timestamp> {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        all.get(digest)?.iter().find(|(known, _)| known == repository).map(|(_, at)| *at)
    }

    /// `false` when as much was known.
    pub(super) fn set(&self, digest: &Digest, repository: &Repository, at: Timestamp) -> bool {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let of_blob = all.entry(*digest).or_default();
        match of_blob.iter_mut().find(|(known, _)| known == repository) {
            Some((_, known)) if *known >= at => false,
            Some((_, known)) => {
                *known = at;
                true
            }
            None => {
                if of_blob.len() == MAX_CONFIRMED {
                    of_blob.remove(0);
                }
                of_blob.push((repository.clone(), at));
                true
            }
        }
    }

    pub(super) fn remove(&self, digest: &Digest, repository: &Repository) {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_blob) = all.get_mut(digest) {
            of_blob.retain(|(known, _)| known != repository);
            if of_blob.is_empty() {
                all.remove(digest);
            }
        }
    }

    /// The content is gone, or public.
    pub(super) fn forget(&self, digest: &Digest) {
        if self.0.read().unwrap_or_else(PoisonError::into_inner).contains_key(digest) {
            self.0.write().unwrap_or_else(PoisonError::into_inner).remove(digest);
        }
    }

    pub(super) fn each(&self, mut each: impl FnMut(&Digest, &Repository, Timestamp)) {
        for (digest, of_blob) in &*self.0.read().unwrap_or_else(PoisonError::into_inner) {
            of_blob.iter().for_each(|(repository, at)| each(digest, repository, *at));
        }
    }
}
