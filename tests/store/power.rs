//! Power cuts: the store works on a file system in a file, which is copied at random moments, in one instant. What a copy
//! holds is what the disk would after a power cut.
//!
//! Needs root and loop devices. The file systems live in a mount namespace of their own, which ends with its process. The
//! files lie on an XFS, which copies them in an instant by sharing their blocks.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::Random;
use crate::model::Model;
use crate::model::assert_tidy;
use crate::model::open;
use crate::model::report;
use crate::rounds;
use crate::worker::Worker;
use crate::worker::only;

const ROUNDS: &str = "FOREBAY_POWER_ROUNDS";
const DIRECTORY: &str = "FOREBAY_TEST_POWER";
const MAX_PAUSE_MS: u64 = 300;

#[test]
fn a_power_cut_loses_nothing_and_leaves_nothing() {
    if let Some(reason) = what_is_missing() {
        println!("SKIPPED: power cuts are not tested here: {reason}");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let status = Command::new("unshare")
        .args(["--mount", "--"])
        .args(only("power::session"))
        .env(DIRECTORY, directory.path())
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
}

fn what_is_missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("that needs root".to_owned());
    }
    if !run("losetup", &["--find"]) {
        return Some("this kernel or container has no loop devices".to_owned());
    }
    let missing: Vec<&str> =
        ["mkfs.ext4", "mkfs.xfs", "unshare"].into_iter().filter(|tool| !run(tool, &["-V"])).collect();
    let is_optional = std::env::var("CI").is_err();
    assert!(missing.is_empty() || is_optional, "{missing:?} must be installed");
    (!missing.is_empty()).then(|| format!("{missing:?} are not installed"))
}

fn run(program: &str, arguments: &[&str]) -> bool {
    Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
}

#[track_caller]
fn must(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn make_file(path: &str, size: &str, kind: &str) {
    must("truncate", &["--size", size, path]);
    must(&format!("mkfs.{kind}"), &["-q", path]);
}

#[tokio::test]
#[ignore = "a process that another test starts"]
async fn session() {
    let Ok(directory) = std::env::var(DIRECTORY) else { return };
    must("mount", &["--make-rprivate", "/"]);
    let disks = format!("{directory}/disks");
    std::fs::create_dir(&disks).unwrap();
    make_file(&format!("{directory}/disks.img"), "4G", "xfs");
    must("mount", &["-o", "loop", &format!("{directory}/disks.img"), &disks]);
    for kind in ["ext4", "xfs"] {
        cut_power_on(&disks, kind).await;
    }
}

async fn cut_power_on(disks: &str, kind: &str) {
    let (image, copy) = (format!("{disks}/{kind}.img"), format!("{disks}/{kind}.copy"));
    let (live, after) = (format!("{disks}/{kind}"), format!("{disks}/{kind}-after"));
    std::fs::create_dir(&live).unwrap();
    std::fs::create_dir(&after).unwrap();
    make_file(&image, "400M", kind);
    must("mount", &["-o", "loop", &image, &live]);
    let mut worker = Worker::start(&Path::new(&live).join("data"), 7, u64::MAX);
    let (mut model, mut random) = (Model::default(), Random(3));
    // Until it is at work.
    while worker.said().is_empty() {}
    for _ in 0..rounds(ROUNDS, 2) {
        std::thread::sleep(Duration::from_millis(random.below(MAX_PAUSE_MS)));
        worker.said().iter().for_each(|line| model.hear(line));
        must("cp", &["--reflink=always", &image, &copy]);
        // The cut was somewhere in between.
        let mut known = model.clone();
        for line in worker.said() {
            known.doubt(&line);
            model.hear(&line);
        }
        let options = if kind == "xfs" { "loop,nouuid" } else { "loop" };
        must("mount", &["-o", options, &copy, &after]);
        let data = Path::new(&after).join("data");
        let store = open(&data, u64::MAX).await;
        assert_tidy(&data, &store);
        known.assert_known(&store).await;
        store.close().await;
        drop(store);
        must("umount", &["--lazy", &after]);
        std::fs::remove_file(&copy).unwrap();
    }
    worker.kill();
    must("umount", &[&live]);
    report(rounds(ROUNDS, 2), &format!("power cuts on {kind}"));
}
