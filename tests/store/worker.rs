//! A process that works on a store at random until it is killed, and says what it is about to do and what is done.

use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::ChildStdin;
use std::process::Command;
use std::process::Stdio;
use std::sync::mpsc;
use std::time::Duration;

use forebay::oci::Repository;
use forebay::store::Proof;
use forebay::store::ReadError;
use forebay::store::Standing;
use forebay::store::Store;

use crate::Random;
use crate::model::REPOSITORIES;
use crate::model::bytes_of;
use crate::model::digest_of;
use crate::model::open;
use crate::model::pin_of;
use crate::model::read;
use crate::model::repository;
use crate::model::tag;

const PATH: &str = "FOREBAY_TEST_STORE";
const SEED: &str = "FOREBAY_TEST_SEED";
const MAX_BYTES: &str = "FOREBAY_TEST_MAX_BYTES";
/// Tasks at work beside each other, each on blobs and tags of its own.
const TASKS: u64 = 4;
const BLOBS: u64 = 20;
const TAGS: u64 = 5;
/// Marks lines that are meant for whoever started the process.
const SAYS: &str = "says: ";
const PATIENCE: Duration = Duration::from_secs(60);

/// This test binary, about to run one ignored test of it only.
pub(crate) fn only(test: &str) -> Vec<String> {
    let program = std::env::current_exe().unwrap().into_os_string().into_string().unwrap();
    [&program, "--ignored", "--exact", test, "--nocapture", "--test-threads=1"].map(str::to_owned).into()
}

// === The one who started it ===

/// A process at work. Dropping it kills it.
pub(crate) struct Worker {
    child: Child,
    stdin: ChildStdin,
    lines: mpsc::Receiver<String>,
    marks: u64,
}

impl Worker {
    pub(crate) fn start(path: &Path, seed: u64, max_bytes: u64) -> Self {
        let command = only("worker::work");
        let mut child = Command::new(&command[0])
            .args(&command[1..])
            .envs([(PATH, path.display().to_string()), (SEED, seed.to_string()), (MAX_BYTES, max_bytes.to_string())])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = mpsc::channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if let Some(said) = line.split_once(SAYS) {
                    let _ = sender.send(said.1.to_owned());
                }
            }
        });
        Self { stdin: child.stdin.take().unwrap(), child, lines, marks: 0 }
    }

    /// What it has said by now, and what it says until it hears of this.
    pub(crate) fn said(&mut self) -> Vec<String> {
        self.marks += 1;
        let mark = format!("mark {}", self.marks);
        writeln!(self.stdin, "{mark}").unwrap();
        let mut said = Vec::new();
        loop {
            match self.lines.recv_timeout(PATIENCE).expect("the worker answers") {
                line if line == mark => return said,
                line => said.push(line),
            }
        }
    }

    /// SIGKILL: all that it ever said.
    pub(crate) fn kill(mut self) -> Vec<String> {
        self.child.kill().unwrap();
        let status = self.child.wait().unwrap();
        assert_eq!(status.code(), None, "the worker failed by itself");
        self.lines.iter().collect()
    }
}

// === The process ===

/// One line, whole, after all before it.
fn say(line: &str) {
    // Nobody is left to work for.
    if writeln!(std::io::stdout().lock(), "{SAYS}{line}").is_err() {
        std::process::exit(1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a process that other tests start"]
async fn work() {
    let Ok(path) = std::env::var(PATH) else { return };
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(u64::MAX);
    std::thread::spawn(|| std::io::stdin().lines().map_while(Result::ok).for_each(|mark| say(&mark)));
    let store = open(&PathBuf::from(path), number(MAX_BYTES)).await;
    let mut working = tokio::task::JoinSet::new();
    for task in 0..TASKS {
        let (store, random) = (store.clone(), Random(number(SEED).wrapping_add(task << 32)));
        working.spawn(Task { store, random, task }.run());
    }
    working.join_next().await.unwrap().unwrap();
}

struct Task {
    store: Store,
    random: Random,
    task: u64,
}

impl Task {
    async fn run(mut self) {
        loop {
            let id = self.task * 1000 + self.random.below(BLOBS);
            let to = self.random.below(REPOSITORIES);
            match self.random.below(15) {
                0..=4 => self.put(id, to).await,
                5 | 6 => self.grant(id, to).await,
                7 => self.forget(id).await,
                8 | 9 => self.point(id).await,
                10 => self.give_up(id, &repository(to)).await,
                11 => self.revoke(id, to).await,
                12 | 13 => self.pin(id).await,
                _ => self.get(id).await,
            }
        }
    }

    async fn put(&mut self, id: u64, to: u64) {
        if self.store.size_bytes(&digest_of(id)).is_some() {
            return self.get(id).await;
        }
        say(&format!("put? {id}"));
        let (digest, bytes, owner) = (digest_of(id), bytes_of(id), repository(to));
        let Ok(spool) = self.store.begin(&digest, Some(bytes.len() as u64), &owner).await else { return };
        while let Some((from, _)) = spool.gap(0) {
            let until = (from as usize + 100_000).min(bytes.len());
            spool.lane(from).write(vec![bytes.slice(from as usize..until)]).await.unwrap();
        }
        let proof = Proof::Content { account: (to < 3).then(|| "me".into()) };
        self.store.publish(spool.finish().await.unwrap(), &owner, &proof).await.unwrap();
        say(&format!("put {id} {to}"));
    }

    async fn grant(&mut self, id: u64, to: u64) {
        let (digest, owner) = (digest_of(id), repository(to));
        say(&format!("grant? {id} {to}"));
        self.store.grant(&owner, &digest, &Proof::Confirmed).await;
        if self.store.standing(&owner, &digest) == Standing::Granted {
            say(&format!("grant {id} {to}"));
        }
    }

    async fn revoke(&mut self, id: u64, from: u64) {
        let (digest, owner) = (digest_of(id), repository(from));
        say(&format!("revoke? {id} {from}"));
        self.store.revoke(&owner, &digest).await;
        if self.store.standing(&owner, &digest) == Standing::Ungranted {
            say(&format!("revoke {id} {from}"));
        }
    }

    async fn pin(&mut self, id: u64) {
        say(&format!("pin? {id}"));
        if self.random.below(3) == 0 {
            self.store.unpin(&pin_of(id).target).await.unwrap();
            say(&format!("unpin {id}"));
        } else if self.store.pin(pin_of(id)).await.is_ok() {
            say(&format!("pin {id}"));
        }
    }

    async fn forget(&mut self, id: u64) {
        say(&format!("forget? {id}"));
        self.store.forget(&digest_of(id)).await;
        say(&format!("forget {id}"));
    }

    async fn point(&mut self, id: u64) {
        let number = self.task * 1000 + self.random.below(TAGS);
        say(&format!("tag? {number}"));
        if self.random.below(5) == 0 {
            self.store.forget_tag(&repository(0), &tag(number)).await;
            say(&format!("untag {number}"));
        } else {
            self.store.point_tag(&repository(0), &tag(number), &digest_of(id)).await;
            say(&format!("tag {number} {id}"));
        }
    }

    /// A download that does not end.
    async fn give_up(&mut self, id: u64, owner: &Repository) {
        let digest = digest_of(id + 500);
        let bytes = bytes_of(id + 500);
        let Ok(spool) = self.store.begin(&digest, Some(bytes.len() as u64), owner).await else { return };
        if let Some((from, _)) = spool.gap(0) {
            let until = from + (bytes.len() as u64 - from) / 2;
            spool.lane(from).write(vec![bytes.slice(from as usize..until as usize)]).await.unwrap();
        }
        if self.random.below(2) == 0 {
            self.store.park(spool, &digest, owner, ReadError::Abandoned).await;
        }
    }

    async fn get(&mut self, id: u64) {
        if let Some(content) = self.store.content(&digest_of(id)).await.unwrap() {
            assert_eq!(read(&content).await, bytes_of(id), "wrong bytes of {id}");
        }
    }
}
