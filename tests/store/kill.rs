//! `kill -9` at any moment, under random load: nothing wrong or partial is visible afterwards, nothing acknowledged is lost,
//! and nothing lies around.

use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::Random;
use crate::model::Model;
use crate::model::assert_tidy;
use crate::model::open;
use crate::model::report;
use crate::rounds;
use crate::worker::Worker;

const ROUNDS: &str = "FOREBAY_KILL_ROUNDS";
/// A process lives so long at most.
const MAX_LIFE_MS: u64 = 400;

#[tokio::test]
async fn nothing_is_lost_and_nothing_lies_around() {
    let directory = TempDir::new().unwrap();
    kill_in(directory.path(), rounds(ROUNDS, 6)).await;
    report(rounds(ROUNDS, 6), "kills");
}

async fn kill_in(path: &Path, times: u64) {
    let (mut model, mut random) = (Model::default(), Random(1));
    for round in 0..times {
        let worker = Worker::start(path, round, u64::MAX);
        std::thread::sleep(Duration::from_millis(random.below(MAX_LIFE_MS)));
        worker.kill().iter().for_each(|line| model.hear(line));
        let store = open(path, u64::MAX).await;
        assert_tidy(path, &store);
        model.assert_known(&store).await;
        // Every other time the next process finds what a kill left, and nothing else.
        if round % 2 == 0 {
            store.close().await;
        }
    }
}

/// An exFAT, in a mount that goes when the test ends: no hard links, and no seals.
struct ExFat {
    place: PathBuf,
    device: String,
}

impl ExFat {
    /// `None` where something is missing for it.
    fn mount(directory: &Path) -> Option<Self> {
        let (image, place) = (directory.join("image"), directory.join("disk"));
        std::fs::File::create(&image).unwrap().set_len(400 << 20).unwrap();
        std::fs::create_dir(&place).unwrap();
        run("mkfs.exfat", &[&image])?;
        let device = run("losetup", &[Path::new("--find"), Path::new("--show"), &image])?.trim().to_owned();
        let disk = Self { place, device };
        run("mount.exfat-fuse", &[Path::new(&disk.device), &disk.place])?;
        Some(disk)
    }
}

impl Drop for ExFat {
    fn drop(&mut self) {
        run("umount", &[Path::new("--lazy"), &self.place]);
        run("losetup", &[Path::new("--detach"), Path::new(&self.device)]);
    }
}

fn run(program: &str, arguments: &[&Path]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[tokio::test]
async fn nothing_lies_around_where_there_are_no_hard_links() {
    let directory = TempDir::new().unwrap();
    let Some(disk) = ExFat::mount(directory.path()) else {
        return println!("SKIPPED: that takes root, loop devices, exfatprogs and exfat-fuse");
    };
    let data = disk.place.join("data");
    kill_in(&data, rounds(ROUNDS, 4)).await;
    report(rounds(ROUNDS, 4), "kills without hard links");
}

#[tokio::test]
async fn nothing_lies_around_when_room_is_short() {
    const MAX_BYTES: u64 = 1_500_000;
    let (directory, mut random) = (TempDir::new().unwrap(), Random(2));
    for round in 0..rounds(ROUNDS, 4) {
        let worker = Worker::start(directory.path(), 1_000_000 + round, MAX_BYTES);
        std::thread::sleep(Duration::from_millis(random.below(MAX_LIFE_MS)));
        worker.kill();
        let store = open(directory.path(), u64::MAX).await;
        assert_tidy(directory.path(), &store);
        store.close().await;
    }
    report(rounds(ROUNDS, 4), "kills while room is short");
}
