//! A damaged index, and damaged files of what is known: the store starts, serves all that was there without a download, with
//! tags and grants, and an operator finds the damaged index set aside.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use forebay::store::Proof;
use tempfile::TempDir;

use crate::Random;
use crate::model::Model;
use crate::model::assert_tidy;
use crate::model::bytes_of;
use crate::model::digest_of;
use crate::model::open;
use crate::model::repository;
use crate::model::tag;
use crate::rounds;
use crate::worker::only;

const ROUNDS: &str = "FOREBAY_DAMAGE_ROUNDS";
const DIRECTORY: &str = "FOREBAY_TEST_DAMAGED";
/// Any start ends in that time, however slow the machine.
const PATIENCE: Duration = Duration::from_secs(90);
const BLOBS: u64 = 40;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Damage {
    Deleted,
    Truncated,
    Flipped,
    ZeroedPages,
    Noise,
    OlderCopy,
    UnfinishedSnapshot,
    NoDirectory,
}

const KINDS: [Damage; 8] = [
    Damage::Noise,
    Damage::Flipped,
    Damage::ZeroedPages,
    Damage::Truncated,
    Damage::OlderCopy,
    Damage::UnfinishedSnapshot,
    Damage::Deleted,
    Damage::NoDirectory,
];

/// What the store must know, all the same in each round.
fn model() -> Model {
    let mut model = Model::default();
    for id in 0..BLOBS {
        model.hear(&format!("put {id} {}", id % 3));
        model.hear(&format!("grant {id} 4"));
        model.hear(&format!("tag {id} {id}"));
    }
    model
}

async fn fill(path: &Path, ids: std::ops::Range<u64>) {
    let store = open(path, u64::MAX).await;
    for id in ids {
        let (digest, bytes, owner) = (digest_of(id), bytes_of(id), repository(id % 3));
        let spool = store.begin(&digest, Some(bytes.len() as u64), &owner).await.unwrap();
        spool.lane(0).write(vec![bytes]).await.unwrap();
        store.publish(spool.finish().await.unwrap(), &owner, &Proof::Content { account: None }).await.unwrap();
        store.grant(&repository(4), &digest, &Proof::Confirmed).await;
        store.point_tag(&repository(0), &tag(id), &digest).await;
    }
    store.close().await;
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(status.success());
}

fn files(path: &Path) -> Vec<PathBuf> {
    let (mut files, mut directories) = (Vec::new(), vec![path.to_owned()]);
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { directories.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    files
}

/// Writes over some places of a file.
fn scribble(path: &Path, random: &mut Random, piece: &[u8], times: u64) {
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let size_bytes = file.metadata().unwrap().len();
    for _ in 0..times {
        let at = random.below(size_bytes.max(1)) / piece.len() as u64 * piece.len() as u64;
        let length = piece.len().min((size_bytes - at.min(size_bytes)) as usize);
        file.write_all_at(&piece[..length], at).unwrap();
    }
}

fn flip(path: &Path, random: &mut Random) {
    let mut bytes = std::fs::read(path).unwrap();
    if !bytes.is_empty() {
        let at = random.below(bytes.len() as u64) as usize;
        bytes[at] ^= 1 << random.below(8);
        std::fs::write(path, bytes).unwrap();
    }
}

fn damage(data: &Path, older: &Path, kind: Damage, random: &mut Random) {
    let index = data.join("index");
    let files = files(&index);
    let any = |random: &mut Random| files[random.below(files.len() as u64) as usize].clone();
    match kind {
        Damage::Deleted => std::fs::remove_dir_all(&index).unwrap(),
        Damage::Truncated => {
            let file = std::fs::File::options().write(true).open(any(random)).unwrap();
            file.set_len(random.below(file.metadata().unwrap().len().max(1))).unwrap();
        }
        Damage::Flipped => (0..=random.below(3)).for_each(|_| flip(&any(random), random)),
        Damage::ZeroedPages => scribble(&any(random), random, &[0; 4096], 1 + random.clone().below(3)),
        Damage::Noise => files.iter().for_each(|file| {
            let noise: Vec<u8> = (0..20_000).flat_map(|_| random.next().to_le_bytes()).collect();
            std::fs::write(file, noise).unwrap();
        }),
        Damage::OlderCopy => {
            std::fs::remove_dir_all(&index).unwrap();
            copy(&older.join("index"), &index);
        }
        Damage::UnfinishedSnapshot => {
            let name = format!("snap.{:016X}.generating", random.next());
            std::fs::write(index.join(name), vec![7; 3000]).unwrap();
        }
        Damage::NoDirectory => {
            std::fs::remove_dir_all(&index).unwrap();
            std::fs::write(&index, "noise").unwrap();
        }
    }
}

/// Starts a process on damaged data: it finds everything, or this fails.
fn assert_starts(data: &Path, what: &str) {
    let command = only("damage::look");
    let mut child =
        Command::new(&command[0]).args(&command[1..]).env(DIRECTORY, data).stdout(Stdio::null()).spawn().unwrap();
    let began = Instant::now();
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if began.elapsed() > PATIENCE => {
                child.kill().unwrap();
                panic!("{what}: it does not start");
            }
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    assert!(status.success(), "{what}: {status}");
}

#[tokio::test]
#[ignore = "a process that other tests start"]
async fn look() {
    let Ok(directory) = std::env::var(DIRECTORY) else { return };
    let path = Path::new(&directory);
    let store = open(path, u64::MAX).await;
    assert_tidy(path, &store);
    model().assert_known(&store).await;
    // A thread that a damaged index keeps busy is not waited for.
    std::process::exit(0);
}

/// A filled store, and what its index was half-way.
async fn template() -> (TempDir, PathBuf, PathBuf) {
    let home = TempDir::new().unwrap();
    let (data, older) = (home.path().join("data"), home.path().join("older"));
    fill(&data, 0..BLOBS / 2).await;
    copy(&data, &older);
    fill(&data, BLOBS / 2..BLOBS).await;
    (home, data, older)
}

#[tokio::test]
async fn a_damaged_index_harms_nobody() {
    let (home, data, older) = template().await;
    let mut random = Random(4);
    for round in 0..rounds(ROUNDS, 8) {
        let (kind, damaged) = (KINDS[round as usize % KINDS.len()], home.path().join(round.to_string()));
        copy(&data, &damaged);
        damage(&damaged, &older, kind, &mut random);
        assert_starts(&damaged, &format!("round {round}, {kind:?}"));
        std::fs::remove_dir_all(&damaged).unwrap();
    }
}

#[tokio::test]
async fn a_damaged_snapshot_harms_nobody_while_there_is_an_index() {
    let (home, data, _) = template().await;
    let mut random = Random(5);
    for round in 0..rounds(ROUNDS, 3) {
        let damaged = home.path().join(round.to_string());
        copy(&data, &damaged);
        let snapshot = damaged.join("snapshot");
        match round % 3 {
            0 => flip(&snapshot, &mut random),
            1 => scribble(&snapshot, &mut random, &[0; 512], 2),
            _ => std::fs::remove_file(&snapshot).unwrap(),
        }
        assert_starts(&damaged, &format!("round {round}"));
        std::fs::remove_dir_all(&damaged).unwrap();
    }
}

#[tokio::test]
async fn a_damaged_index_is_set_aside_and_written_anew() {
    let (_home, data, older) = template().await;
    damage(&data, &older, Damage::Noise, &mut Random(6));
    let store = open(&data, u64::MAX).await;
    let is_aside = |name: String| name.starts_with("index.bad-");
    let names = || std::fs::read_dir(&data).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let began = Instant::now();
    while !names().any(is_aside) {
        assert!(began.elapsed() < PATIENCE, "{:?}", names().collect::<Vec<_>>());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    store.close().await;
    drop(store);
    // Without the snapshot, the new index alone has to know.
    std::fs::remove_file(data.join("snapshot")).unwrap();
    let store = open(&data, u64::MAX).await;
    assert_tidy(&data, &store);
    model().assert_known(&store).await;
}
