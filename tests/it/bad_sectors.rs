//! Sectors that cannot be read, under a blob that is here: the disk's own read errors, from a file system in a file whose
//! end is cut off. Clients get right bytes in the end, and what comes back with the disk was never lost.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use bytes::Bytes;
use rustix::fs::Advice;
use tempfile::TempDir;

use crate::support::GLANCE;
use crate::support::PATIENCE;
use crate::support::REPOSITORY;
use crate::support::blob_path;
use crate::support::client::End;
use crate::support::content::MIB;
use crate::support::content::sample;
use crate::support::proxy::Proxy;
use crate::support::registry::ScriptedRegistry;
use crate::support::within;

const BLOCK_BYTES: u64 = 4096;

/// An ext4 in a file. Unmounted when the test ends.
struct Disk {
    image: PathBuf,
    place: PathBuf,
    /// What was cut off, and where.
    cut: Option<(u64, Vec<u8>)>,
    _directory: TempDir,
}

impl Disk {
    /// Without a journal, and full in its first half: what comes next lies behind that, in one piece. `None` where this
    /// machine does not let a test mount.
    fn new() -> Option<Self> {
        let directory = TempDir::new().unwrap();
        let (image, place) = (directory.path().join("image"), directory.path().join("disk"));
        std::fs::create_dir(&place).unwrap();
        std::fs::File::create(&image).unwrap().set_len(64 * MIB as u64).unwrap();
        let made = run("mkfs.ext4", &["-q", "-b", "4096", "-m", "0", "-O", "^has_journal", image.to_str().unwrap()]);
        let is_mounted =
            made.is_some() && run("mount", &["-o", "loop", image.to_str().unwrap(), place.to_str().unwrap()]).is_some();
        if !is_mounted {
            println!("SKIPPED: this machine does not let a test make and mount a file system");
            return None;
        }
        let disk = Self { image, place, cut: None, _directory: directory };
        std::fs::write(disk.low(), vec![1; 24 * MIB]).unwrap();
        disk.sync();
        Some(disk)
    }

    fn low(&self) -> PathBuf {
        self.place.join("low")
    }

    fn data(&self) -> String {
        self.place.join("data").to_str().unwrap().to_owned()
    }

    fn sync(&self) {
        run("sync", &["--file-system", self.place.to_str().unwrap()]).unwrap();
    }

    /// Makes the second half of a file unreadable. What is written from now on lies before it.
    async fn break_second_half(&mut self, file: &Path) {
        // Until it is full.
        let _ = std::fs::write(self.place.join("rest"), vec![1; 64 * MIB]);
        self.sync();
        std::fs::remove_file(self.low()).unwrap();
        self.sync();
        let bytes = std::fs::read(&self.image).unwrap();
        let size_bytes = std::fs::metadata(file).unwrap().len();
        let cut = block_of(file) * BLOCK_BYTES + size_bytes / 2;
        self.cut = Some((cut, bytes[usize::try_from(cut).unwrap()..].to_vec()));
        std::fs::File::options().write(true).open(&self.image).unwrap().set_len(cut).unwrap();
        let file = std::fs::File::open(file).unwrap();
        within(PATIENCE, async {
            loop {
                // Somebody may still hold some of its pages.
                rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).unwrap();
                if file.read_at(&mut [0; 10], size_bytes / 2).is_err() {
                    return;
                }
                tokio::time::sleep(GLANCE).await;
            }
        })
        .await;
    }

    /// All of it can be read again.
    fn mend(&mut self) {
        let (cut, bytes) = self.cut.take().unwrap();
        std::fs::File::options().write(true).open(&self.image).unwrap().write_all_at(&bytes, cut).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        run("umount", &["--lazy", self.place.to_str().unwrap()]);
    }
}

/// What it says, if it works.
fn run(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Where the first block of a file is on its disk: `   0:        0..    1023:       7210..      8233:   1024: …`
fn block_of(file: &Path) -> u64 {
    let text = run("filefrag", &["-v", file.to_str().unwrap()]).expect("it comes with mkfs.ext4");
    let first = text.lines().find(|line| line.trim_start().starts_with("0:")).expect("it has blocks");
    let start = first.split("..").nth(1).and_then(|part| part.split_whitespace().last());
    start.expect("as above").parse().unwrap()
}

/// A proxy on such a disk, and a blob that is here and cannot be read to its end.
async fn broken() -> Option<(Disk, ScriptedRegistry, Proxy, String, Bytes)> {
    let mut disk = Disk::new()?;
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(1, 4 * MIB);
    let digest = upstream.blob(REPOSITORY, bytes.clone());
    let path = blob_path(&digest);
    let proxy =
        Proxy::of(&upstream).set("storage", "path", disk.data()).set("storage", "min_free", "1MiB").start().await;
    proxy.get_until_hit(&path).await.assert_body(200, &bytes);
    let file = Path::new(&disk.data()).join("blobs/sha256").join(&digest[7..9]).join(&digest[7..]);
    disk.break_second_half(&file).await;
    Some((disk, upstream, proxy, path, bytes))
}

#[tokio::test]
async fn a_body_that_the_disk_cuts_is_fetched_again_from_where_it_broke() {
    let Some((_disk, upstream, proxy, path, bytes)) = broken().await else { return };
    let first = proxy.get(&path).await;
    assert_eq!((first.status, first.end), (200, End::Cut));
    assert!(bytes.starts_with(&first.body));
    let asked = upstream.count("GET", &path);
    let rest = proxy.range(&path, &format!("bytes={}-", first.body.len())).await;
    rest.assert_body(206, &bytes[first.body.len()..]);
    assert!(upstream.count("GET", &path) > asked, "not from the same sectors");
    proxy.get_until_hit(&path).await.assert_body(200, &bytes);
    proxy.wait_metric_above("forebay_disk_errors_total", &["read"], 0.0).await;
}

#[tokio::test]
async fn what_cannot_be_read_offline_is_an_error_and_comes_back_with_the_disk() {
    let Some((mut disk, upstream, proxy, path, bytes)) = broken().await else { return };
    upstream.stop().await;
    assert_eq!(proxy.get(&path).await.end, End::Cut);
    for range in ["bytes=0-", "bytes=3000000-"] {
        let reply = proxy.range(&path, range).await;
        assert!([502, 503].contains(&reply.status), "{}", reply.status);
        assert!(reply.is_complete());
    }
    disk.mend();
    let reply = proxy.get(&path).await;
    reply.assert_body(200, &bytes);
    assert_eq!(reply.outcome(), "hit", "it was never lost");
}
