//! Disks that fail for real: full, read-only, unreadable, and files that somebody else deletes, cuts or overwrites.
//! Clients get right bytes, the proxy stays up and says what is wrong, and it recovers when the disk does.

use std::os::unix::fs::FileExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use tempfile::TempDir;

use crate::support::GLANCE;
use crate::support::PATIENCE;
use crate::support::REPOSITORY;
use crate::support::blob_path;
use crate::support::content::KIB;
use crate::support::content::MIB;
use crate::support::content::OCI_MANIFEST;
use crate::support::content::manifest_of_size;
use crate::support::content::sample;
use crate::support::manifest_path;
use crate::support::proxy::Proxy;
use crate::support::registry::ScriptedRegistry;
use crate::support::script::Gate;
use crate::support::script::on;
use crate::support::within;

/// A mount that goes when the test ends. Mounting takes root: without it there is none, and the test says so.
struct Mount {
    place: PathBuf,
    _directory: Option<TempDir>,
}

impl Mount {
    /// A file system of so many bytes, in memory.
    fn of_size(size_bytes: usize) -> Option<Self> {
        let directory = TempDir::new().unwrap();
        let place = directory.path().to_owned();
        let is_mounted = mount(&["-t", "tmpfs", "-o", &format!("size={size_bytes}"), "forebay-test"], &place);
        is_mounted.then(|| Self { place, _directory: Some(directory) })
    }

    /// Covers a directory with itself, read-only: whoever opens something in it from now on finds it so.
    fn read_only(place: &Path) -> Option<Self> {
        let is_mounted = mount(&["--bind", place.to_str().unwrap()], place);
        let mounted = is_mounted.then(|| Self { place: place.to_owned(), _directory: None })?;
        // Refused as long as somebody writes to a file that was opened since.
        let until = Instant::now() + Duration::from_secs(PATIENCE);
        while !run_mount(&["-o", "remount,bind,ro"], place) {
            assert!(Instant::now() < until, "somebody keeps writing");
            std::thread::sleep(GLANCE);
        }
        Some(mounted)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.place).status();
    }
}

fn mount(arguments: &[&str], place: &Path) -> bool {
    let is_mounted = run_mount(arguments, place);
    if !is_mounted {
        eprintln!("skipped: this machine does not let the tests mount");
    }
    is_mounted
}

fn run_mount(arguments: &[&str], place: &Path) -> bool {
    let mounted = Command::new("mount").args(arguments).arg(place).output();
    mounted.is_ok_and(|output| output.status.success())
}

fn large(upstream: &ScriptedRegistry, seed: u64, size: usize) -> (String, String, Bytes) {
    let bytes = sample(seed, size);
    let digest = upstream.blob(REPOSITORY, bytes.clone());
    (blob_path(&digest), digest, bytes)
}

fn allow(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[tokio::test]
async fn a_full_disk_is_told_and_forgotten_when_there_is_room_again() {
    let Some(disk) = Mount::of_size(16 * MIB) else { return };
    let upstream = ScriptedRegistry::start().await;
    let (kept_path, _, kept) = large(&upstream, 1, MIB);
    let (path, _, bytes) = large(&upstream, 2, 3 * MIB);
    let data = disk.place.join("data").to_str().unwrap().to_owned();
    let proxy = Proxy::of(&upstream).set("storage", "path", data).set("storage", "min_free", "2MiB").start().await;
    proxy.get_until_hit(&kept_path).await.assert_body(200, &kept);
    // Somebody else takes all of it.
    let foreign = disk.place.join("foreign");
    let _ = std::fs::write(&foreign, vec![1; 16 * MIB]);
    for _ in 0..2 {
        let reply = proxy.get(&path).await;
        reply.assert_body(200, &bytes);
        assert_ne!(reply.outcome(), "hit");
        proxy.get(&kept_path).await.assert_body(200, &kept);
    }
    proxy.wait_readiness("degraded: the disk is full").await;
    proxy.wait_metric("forebay_store_writable", &[], |writable| writable == 0.0).await;
    std::fs::remove_file(&foreign).unwrap();
    proxy.get_until_hit(&path).await.assert_body(200, &bytes);
    within(PATIENCE, async {
        while proxy.admin("/readyz").await.text() != "ready" {
            tokio::time::sleep(GLANCE).await;
        }
    })
    .await;
    proxy.wait_metric("forebay_store_writable", &[], |writable| writable == 1.0).await;
}

#[tokio::test]
async fn a_disk_that_fills_up_under_a_download_is_no_clients_problem() {
    for left in [0, 100 * KIB] {
        let Some(disk) = Mount::of_size(12 * MIB) else { return };
        let upstream = ScriptedRegistry::start().await;
        let (path, _, bytes) = large(&upstream, 3, 4 * MIB);
        let gate = Gate::new();
        upstream.rule(on("GET", &path).first(1).hold_at(MIB, &gate));
        let data = disk.place.join("data").to_str().unwrap().to_owned();
        let proxy = Proxy::of(&upstream).set("storage", "path", data).set("storage", "min_free", "1KiB").start().await;
        let (first, second) = (proxy.open(&path).await, proxy.open(&path).await);
        gate.reached().await;
        let foreign = disk.place.join("foreign");
        let _ = std::fs::write(&foreign, vec![1; 12 * MIB]);
        let taken = std::fs::metadata(&foreign).unwrap().len();
        std::fs::File::options().write(true).open(&foreign).unwrap().set_len(taken - left as u64).unwrap();
        gate.release();
        first.reply().await.assert_body(200, &bytes);
        second.reply().await.assert_body(200, &bytes);
        proxy.get(&path).await.assert_body(200, &bytes);
        proxy.wait_metric_above("forebay_disk_errors_total", &["write"], 0.0).await;
        assert_eq!(proxy.admin("/healthz").await.status, 200);
    }
}

#[tokio::test]
async fn a_read_only_file_system_serves_what_it_has_and_passes_the_rest_through() {
    let upstream = ScriptedRegistry::start().await;
    let (kept_path, _, kept) = large(&upstream, 4, MIB);
    let (path, _, bytes) = large(&upstream, 5, 2 * MIB);
    let (cut_path, cut_digest, cut) = large(&upstream, 6, MIB);
    upstream.image(REPOSITORY, "latest", &[sample(7, 1000)]);
    let proxy = Proxy::of(&upstream).start().await;
    proxy.get_until_hit(&kept_path).await;
    proxy.get_until_hit(&cut_path).await;
    let cover = Mount::read_only(&proxy.data());
    let Some(cover) = cover else { return };
    for _ in 0..2 {
        proxy.get(&path).await.assert_body(200, &bytes);
        proxy.get(&kept_path).await.assert_body(200, &kept);
        assert_eq!(proxy.get(&manifest_path("latest")).await.status, 200);
    }
    proxy.wait_readiness("ready, degraded: ").await;
    // What is damaged now can be neither mended nor removed; its file is open in the proxy.
    drop(cover);
    std::fs::File::options().write(true).open(proxy.blob_file(&cut_digest)).unwrap().set_len(5).unwrap();
    let cover = Mount::read_only(&proxy.data()).unwrap();
    for _ in 0..2 {
        proxy.get(&cut_path).await.assert_body(200, &cut);
    }
    drop(cover);
    proxy.get_until_hit(&path).await.assert_body(200, &bytes);
    proxy.get_until_hit(&cut_path).await.assert_body(200, &cut);
    within(PATIENCE, async {
        while proxy.admin("/readyz").await.text() != "ready" {
            tokio::time::sleep(GLANCE).await;
        }
    })
    .await;
}

#[tokio::test]
async fn lost_permissions_are_worked_around() {
    let upstream = ScriptedRegistry::start().await;
    let (file_path, file_digest, file) = large(&upstream, 8, MIB);
    let (folder_path, folder_digest, folder) = large(&upstream, 9, MIB);
    let (new_path, _, new) = large(&upstream, 10, MIB);
    let setup = Proxy::of(&upstream).powerless();
    let proxy = setup.start().await;
    proxy.get_until_hit(&file_path).await;
    proxy.get_until_hit(&folder_path).await;
    // A new process has no file open.
    let proxy = proxy.restart().await;
    let folder_of = proxy.blob_file(&folder_digest).parent().unwrap().to_owned();
    let spools = proxy.data().join("spool");
    allow(&proxy.blob_file(&file_digest), 0o000);
    allow(&folder_of, 0o000);
    proxy.get_until_hit(&file_path).await.assert_body(200, &file);
    for _ in 0..2 {
        proxy.get(&folder_path).await.assert_body(200, &folder);
    }
    allow(&spools, 0o500);
    for _ in 0..2 {
        proxy.get(&new_path).await.assert_body(200, &new);
        proxy.get(&folder_path).await.assert_body(200, &folder);
    }
    proxy.wait_readiness("degraded").await;
    allow(&spools, 0o700);
    allow(&folder_of, 0o700);
    proxy.get_until_hit(&new_path).await.assert_body(200, &new);
    proxy.get_until_hit(&folder_path).await.assert_body(200, &folder);
    within(PATIENCE, async {
        while proxy.admin("/readyz").await.text() != "ready" {
            tokio::time::sleep(GLANCE).await;
        }
    })
    .await;
}

#[tokio::test]
async fn what_others_do_to_files_never_reaches_a_client() {
    let harm: [fn(&Path) -> std::io::Result<()>; 4] = [
        |file| std::fs::remove_file(file),
        |file| std::fs::File::options().write(true).open(file)?.set_len(10),
        |file| std::fs::File::options().write(true).open(file)?.set_len(0),
        |file| std::fs::File::options().write(true).open(file)?.write_all_at(b"wrong", 700),
    ];
    let upstream = ScriptedRegistry::start().await;
    let (small_path, small_digest, small) = large(&upstream, 11, 10 * KIB);
    let (large_path, large_digest, large) = large(&upstream, 12, MIB);
    let document = manifest_of_size(2000);
    let manifest = upstream.manifest(REPOSITORY, "latest", OCI_MANIFEST, document.clone());
    let paths = [
        (small_path, small_digest, small),
        (large_path, large_digest, large),
        (manifest_path(&manifest), manifest, document),
    ];
    let mut proxy = Proxy::of(&upstream).start().await;
    for damage in harm {
        for (path, digest, bytes) in &paths {
            proxy.get_until_hit(path).await;
            damage(&proxy.blob_file(digest)).unwrap();
            // Also a part of it, while it may be open.
            let part = proxy.range(path, "bytes=500-999").await;
            assert!(part.status == 200 || part.body == bytes[500..1000], "{path}");
            proxy.get(path).await.assert_body(200, bytes);
        }
        for (path, _, _) in &paths {
            proxy.get_until_hit(path).await;
        }
        // And when nothing of it is open or in memory.
        proxy.terminate().await;
        for (_, digest, _) in &paths {
            // What is in memory was not fetched again: its file may be gone already.
            let _ = damage(&proxy.blob_file(digest));
        }
        proxy = proxy.restart().await;
        for (path, _, bytes) in &paths {
            proxy.get(path).await.assert_body(200, bytes);
            proxy.get_until_hit(path).await.assert_body(200, bytes);
        }
    }
}
