//! Files of container engines: read, and replaced whole or not at all.
#![expect(clippy::disallowed_methods, reason = "these files are neither the store's nor the configuration's")]

use std::fs;
use std::io::ErrorKind;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::path::PathBuf;

use anyhow::Context as _;
use anyhow::bail;

/// Largest file of an engine that is read.
const MAX_FILE_BYTES: u64 = 1024 * 1024;
/// Permissions of a file with a password in it.
const OWNER_ONLY: u32 = 0o600;
/// What the name of a kept original ends with.
const BACKUP: &str = ".forebay-backup";

/// What became of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Placed {
    Unchanged,
    New,
    Replaced,
}

/// An absolute path, below another root.
pub(super) fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// What stands there; nothing where there is no file.
pub(super) fn read(root: &Path, path: &Path) -> anyhow::Result<String> {
    let path = below(root, path);
    let length = match fs::metadata(&path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(String::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    if length > MAX_FILE_BYTES {
        bail!("{} is larger than {MAX_FILE_BYTES} bytes", path.display());
    }
    fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

/// Puts the text there in one step; a secret one for its owner alone. The first original is kept; later ones were ours.
pub(super) fn put(path: &Path, text: &str, is_secret: bool) -> anyhow::Result<Placed> {
    let old = fs::read_to_string(path).ok();
    if old.as_deref() == Some(text) {
        if is_secret {
            let owner_only = fs::Permissions::from_mode(OWNER_ONLY);
            fs::set_permissions(path, owner_only).with_context(|| format!("cannot protect {}", path.display()))?;
        }
        return Ok(Placed::Unchanged);
    }
    let failed = || format!("cannot write {}", path.display());
    let (folder, name) =
        (path.parent().context("a file is in a folder")?, path.file_name().context("a file has a name")?);
    fs::create_dir_all(folder).with_context(failed)?;
    let beside = |end: &str| folder.join(format!("{}{end}", name.to_string_lossy()));
    let temporary = beside(".forebay-new");
    let mut file = fs::File::create(&temporary).with_context(failed)?;
    if is_secret {
        file.set_permissions(fs::Permissions::from_mode(OWNER_ONLY)).with_context(failed)?;
    } else if let Ok(metadata) = fs::metadata(path) {
        file.set_permissions(metadata.permissions()).with_context(failed)?;
    }
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).with_context(failed)?;
    let backup = beside(BACKUP);
    if old.is_some() && !backup.exists() {
        fs::copy(path, &backup).with_context(failed)?;
    }
    fs::rename(&temporary, path).with_context(failed)?;
    Ok(if old.is_some() { Placed::Replaced } else { Placed::New })
}
