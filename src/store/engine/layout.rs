//! Names of files. Paths are made of digests only, never of text that a client or a registry sent.

use std::fmt;
use std::path::Path;
use std::path::PathBuf;

use crate::oci::Algorithm;
use crate::oci::Digest;
use crate::oci::Repository;

pub(super) const ALGORITHMS: [Algorithm; 2] = [Algorithm::Sha256, Algorithm::Sha512];

/// The ending of a spool that nobody writes.
pub(super) const PARKED: &str = "parked";
/// The ending of what stands for a spool that was renamed to a blob.
pub(super) const MOVED: &str = "moved";
/// Enough of a repository's hash that two of them never meet.
const OWNER_DIGITS: usize = 32;

/// What a spool is of: the content, and the repository that it is fetched from. Another repository has no right to it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(in crate::store) struct SpoolStem {
    digest: Digest,
    owner: String,
}

impl SpoolStem {
    pub(in crate::store) fn new(digest: &Digest, owner: &Repository) -> Self {
        let mut owner = Digest::of(Algorithm::Sha256, owner.to_string().as_bytes()).hex();
        owner.truncate(OWNER_DIGITS);
        Self { digest: *digest, owner }
    }

    pub(super) fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Of a file name, with what follows the stem.
    pub(super) fn parse(name: &str) -> Option<(Self, &str)> {
        let mut parts = name.splitn(3, '.');
        let digest = parts.next()?.replacen('-', ":", 1).parse().ok()?;
        let owner = parts.next().filter(|owner| owner.len() == OWNER_DIGITS)?.to_owned();
        Some((Self { digest, owner }, parts.next()?))
    }
}

impl fmt::Display for SpoolStem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}.{}", self.digest.algorithm().as_str(), self.digest.hex(), self.owner)
    }
}

#[derive(Clone, Debug)]
pub(super) struct Layout {
    root: PathBuf,
}

impl Layout {
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    pub(super) fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    pub(super) fn algorithm(&self, algorithm: Algorithm) -> PathBuf {
        self.blobs().join(algorithm.as_str())
    }

    /// `blobs/<algorithm>/<2 hex>`
    pub(super) fn fan_out(&self, digest: &Digest) -> PathBuf {
        self.algorithm(digest.algorithm()).join(&digest.hex()[..2])
    }

    /// `blobs/<algorithm>/<2 hex>/<hex>`
    pub(super) fn blob(&self, digest: &Digest) -> PathBuf {
        self.fan_out(digest).join(digest.hex())
    }

    pub(super) fn spools(&self) -> PathBuf {
        self.root.join("spool")
    }

    /// `spool/<algorithm>-<hex>.<owner>.<serial>`
    pub(super) fn spool(&self, digest: &Digest, owner: &Repository, serial: u64) -> PathBuf {
        self.spools().join(format!("{}.{serial}", SpoolStem::new(digest, owner)))
    }

    /// `spool/<algorithm>-<hex>.<owner>.parked`
    pub(super) fn parked(&self, stem: &SpoolStem) -> PathBuf {
        self.spools().join(format!("{stem}.{PARKED}"))
    }

    /// `spool/<algorithm>-<hex>.<owner>.<serial>.moved`
    pub(super) fn moved(spool: &Path) -> PathBuf {
        let mut name = spool.as_os_str().to_owned();
        name.push(".");
        name.push(MOVED);
        name.into()
    }

    pub(super) fn pins(&self) -> PathBuf {
        self.root.join("pins")
    }

    pub(super) fn quarantine(&self) -> PathBuf {
        self.root.join("quarantine")
    }

    /// Where something written tells whether the disk takes it.
    pub(super) fn probe(&self) -> PathBuf {
        self.spools().join("probe")
    }

    /// What background work remembers over a restart.
    pub(super) fn state(&self) -> PathBuf {
        self.root.join("state")
    }

    pub(super) fn index(&self) -> PathBuf {
        self.root.join("index")
    }

    pub(super) fn journal(&self) -> PathBuf {
        self.root.join("journal")
    }

    /// The journal before the current one, while a snapshot is made of what it says.
    pub(super) fn old_journal(&self) -> PathBuf {
        self.root.join("journal.old")
    }

    pub(super) fn snapshot(&self) -> PathBuf {
        self.root.join("snapshot")
    }
}
