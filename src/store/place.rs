//! Which directory a store is on.
#![expect(clippy::disallowed_methods, reason = "the kernel tells one start of a machine from another by a file")]

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::oci::Algorithm;
use crate::oci::Digest;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Enough to tell directories apart, and nothing that anybody has to keep.
const ID_CHARS: usize = 16;

/// A word that two processes of one machine find equal for the same directory, under whatever path they see it, until
/// the machine starts anew. Nothing can be read from it.
pub fn directory_id(path: &Path) -> io::Result<String> {
    let metadata = std::fs::metadata(path)?;
    // Machines made from one image have the same numbers, but did not start at the same time.
    let boot_id = std::fs::read_to_string(BOOT_ID).unwrap_or_default();
    let text = format!("{} {} {}", boot_id.trim(), metadata.dev(), metadata.ino());
    Ok(Digest::of(Algorithm::Sha256, text.as_bytes()).hex().chars().take(ID_CHARS).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_itself_by_any_name() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let id = directory_id(one.path()).unwrap();
        assert_eq!(id.len(), ID_CHARS);
        let link = other.path().join("link");
        std::os::unix::fs::symlink(one.path(), &link).unwrap();
        assert_eq!(directory_id(&link).unwrap(), id);
        assert_ne!(directory_id(other.path()).unwrap(), id);
        assert!(directory_id(&other.path().join("none")).is_err());
    }
}
