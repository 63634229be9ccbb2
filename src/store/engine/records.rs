//! Small files that are replaced whole, each in one piece: a reader finds the old one or the new one.
//!
//! A record is one line, `<crc32 of the rest> <text>`. One that is damaged is set aside and costs only itself, and so does
//! one that cannot be read.
#![expect(clippy::disallowed_methods, reason = "records are files of the store")]

use std::fs;
use std::fs::File;
use std::io;
use std::io::Read;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;

use super::fs::ignore_absent;
use super::fs::sync_directory;

/// Larger files are no records.
const MAX_RECORD_BYTES: u64 = 64 * 1024 * 1024;
const ENDING: &str = "json";
const UNFINISHED: &str = "new";
const DAMAGED: &str = "bad";

/// A directory of records.
#[derive(Debug)]
pub(in crate::store) struct Records {
    directory: PathBuf,
}

impl Records {
    /// Makes the directory.
    pub(super) fn open(directory: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&directory)?;
        Ok(Self { directory })
    }

    /// All of them. What a crash left unfinished is removed, what is damaged is set aside.
    pub(in crate::store) fn load(&self) -> io::Result<Vec<String>> {
        let mut texts = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let path = entry?.path();
            match path.extension().and_then(|ending| ending.to_str()) {
                Some(UNFINISHED) => ignore_absent(fs::remove_file(&path))?,
                Some(ENDING) => match read(&path) {
                    Ok(Some(text)) => texts.push(text),
                    Ok(None) => set_aside(&path)?,
                    // The next start may be able to.
                    Err(error) => {
                        tracing::error!(path = %path.display(), %error, "a record cannot be read; what it says does not hold");
                    }
                },
                _ => {}
            }
        }
        Ok(texts)
    }

    /// Writes a record; after this returns it survives a crash.
    pub(in crate::store) fn write(&self, name: &str, text: &str) -> io::Result<()> {
        let (path, unfinished) = (self.path(name, ENDING), self.path(name, UNFINISHED));
        let written = write(&unfinished, text).and_then(|()| fs::rename(&unfinished, &path));
        if written.is_err() {
            let _ = fs::remove_file(&unfinished);
        }
        written.and_then(|()| sync_directory(&self.directory))
    }

    /// Removes a record; nothing to do when there is none.
    pub(in crate::store) fn remove(&self, name: &str) -> io::Result<()> {
        ignore_absent(fs::remove_file(self.path(name, ENDING)))?;
        sync_directory(&self.directory)
    }

    fn path(&self, name: &str, ending: &str) -> PathBuf {
        self.directory.join(format!("{name}.{ending}"))
    }
}

fn set_aside(path: &Path) -> io::Result<()> {
    let aside = path.with_extension(DAMAGED);
    tracing::error!(path = %aside.display(), "a record is damaged; it is set aside and what it said is lost");
    fs::rename(path, aside)
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut file = File::create(path)?;
    writeln!(file, "{:08x} {text}", crc32fast::hash(text.as_bytes()))?;
    file.sync_all()
}

/// `None` when it is damaged.
fn read(path: &Path) -> io::Result<Option<String>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_RECORD_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8(bytes).ok();
    let checked = text.as_deref().and_then(|text| {
        let (checksum, rest) = text.strip_suffix('\n')?.split_once(' ')?;
        (u32::from_str_radix(checksum, 16) == Ok(crc32fast::hash(rest.as_bytes()))).then(|| rest.to_owned())
    });
    Ok(checked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_record_costs_only_itself() {
        let directory = tempfile::tempdir().unwrap();
        let records = Records::open(directory.path().join("x")).unwrap();
        for (name, text) in [("a", "one"), ("b", "two"), ("a", "three"), ("c", "four")] {
            records.write(name, text).unwrap();
        }
        records.remove("c").unwrap();
        records.remove("c").unwrap();
        fs::write(records.path("d", UNFINISHED), "torn").unwrap();
        let mut bytes = fs::read(records.path("b", ENDING)).unwrap();
        bytes[10] ^= 1;
        fs::write(records.path("b", ENDING), bytes).unwrap();
        fs::create_dir(records.path("e", ENDING)).unwrap();
        assert_eq!(records.load().unwrap(), ["three"]);
        assert!(records.path("b", DAMAGED).exists() && !records.path("d", UNFINISHED).exists());
        assert_eq!(records.load().unwrap(), ["three"]);
    }
}
