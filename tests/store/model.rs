//! What a store must know after a crash, from what its process said before it, and the comparison.

use std::collections::BTreeSet;
use std::collections::HashMap;
use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use forebay::metrics::Metrics;
use forebay::oci::Algorithm;
use forebay::oci::Digest;
use forebay::oci::Repository;
use forebay::oci::Tag;
use forebay::store::Amount;
use forebay::store::Content;
use forebay::store::OpenError;
use forebay::store::Options;
use forebay::store::Pin;
use forebay::store::PinMember;
use forebay::store::PinTarget;
use forebay::store::Standing;
use forebay::store::Store;
use forebay::store::Timestamp;

use crate::Random;

const SIZES: [usize; 8] = [0, 1, 300, 5000, 64 * 1024, 64 * 1024 + 1, 150_000, 300_000];
/// For the report of a test; nothing depends on it.
static LONGEST_START_MS: AtomicU64 = AtomicU64::new(0);
/// What stands in a data directory.
const OURS: [&str; 12] = [
    "blobs",
    "spool",
    "lock",
    "index",
    "index.new",
    "journal",
    "journal.old",
    "snapshot",
    "snapshot.new",
    "pins",
    "state",
    "quarantine",
];
/// A repository's blobs that nobody else touches are known by their number.
pub(crate) const REPOSITORIES: u64 = 5;

pub(crate) fn bytes_of(id: u64) -> Bytes {
    let size_bytes = SIZES[id as usize % SIZES.len()];
    let mut random = Random(id);
    let mut bytes = Vec::with_capacity(size_bytes + 8);
    // Empty content is one content only.
    while bytes.len() < size_bytes.max(8) {
        bytes.extend_from_slice(&random.next().to_le_bytes());
    }
    bytes.truncate(size_bytes.max(8));
    bytes.into()
}

/// Every third is of the other algorithm.
pub(crate) fn digest_of(id: u64) -> Digest {
    let algorithm = if id.is_multiple_of(3) { Algorithm::Sha512 } else { Algorithm::Sha256 };
    Digest::of(algorithm, &bytes_of(id))
}

pub(crate) fn repository(number: u64) -> Repository {
    Repository { registry: "reg.test".parse().unwrap(), name: format!("library/r{number}").parse().unwrap() }
}

pub(crate) fn tag(number: u64) -> Tag {
    format!("t{number}").parse().unwrap()
}

/// What rounds that went well amount to.
pub(crate) fn report(rounds: u64, of: &str) {
    let longest_ms = LONGEST_START_MS.load(Ordering::Relaxed);
    println!("{rounds} {of}: no wrong body, nothing acknowledged is lost, no litter; longest start {longest_ms} ms");
}

pub(crate) fn pin_of(id: u64) -> Pin {
    let (digest, size_bytes) = (digest_of(id), bytes_of(id).len() as u64);
    Pin {
        target: PinTarget::Content(digest),
        platforms: Vec::new(),
        referrers: false,
        pinned_at: Timestamp::now(),
        root: digest,
        sources: vec![repository(0)],
        members: vec![PinMember { digest, size_bytes, is_manifest: false }],
        leaving: Vec::new(),
    }
}

/// Opens a store; waits while the process before, or its threads, still have it.
pub(crate) async fn open(path: &Path, max_bytes: u64) -> Store {
    let options = Options {
        path: path.to_owned(),
        max_size: Amount::Bytes(max_bytes),
        min_free: Amount::Bytes(0),
        memory_cache_bytes: 1 << 20,
    };
    loop {
        let began = Instant::now();
        match Store::open(&options, Metrics::disabled()) {
            Ok(store) => {
                let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap();
                LONGEST_START_MS.fetch_max(took_ms, Ordering::Relaxed);
                return store;
            }
            Err(OpenError::Locked { .. }) => tokio::time::sleep(Duration::from_millis(5)).await,
            Err(error) => panic!("{error}"),
        }
    }
}

pub(crate) async fn read(content: &Content) -> Vec<u8> {
    let (mut reader, mut bytes) = (content.read(None), Vec::new());
    while let Some(piece) = reader.next().await {
        bytes.extend_from_slice(&piece.unwrap().into_bytes().unwrap());
    }
    bytes
}

/// What the process said of one blob last.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Blob {
    /// Granted to these, at least.
    Here(BTreeSet<u64>),
    Gone,
    /// Something was being done to it.
    Unsure,
}

/// What a store must know.
#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    blobs: HashMap<u64, Blob>,
    /// Repositories that may not serve a blob any more.
    revoked: HashSet<(u64, u64)>,
    /// Where a tag points; unsure ones are not here.
    tags: HashMap<u64, Option<u64>>,
    /// Whether a blob is pinned; unsure ones are not here.
    pins: HashMap<u64, bool>,
}

impl Model {
    /// Takes in a line of the process: what is acknowledged, or (with a `?`) what it is about to do.
    pub(crate) fn hear(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| words[at].parse::<u64>().unwrap();
        match words[0] {
            "put?" | "forget?" => self.unsure(number(1)),
            "put" => drop(self.blobs.insert(number(1), Blob::Here([number(2)].into()))),
            "forget" => drop(self.blobs.insert(number(1), Blob::Gone)),
            "grant?" => drop(self.revoked.remove(&(number(1), number(2)))),
            "grant" => {
                if let Some(Blob::Here(repositories)) = self.blobs.get_mut(&number(1)) {
                    repositories.insert(number(2));
                }
            }
            "revoke?" => {
                if let Some(Blob::Here(repositories)) = self.blobs.get_mut(&number(1)) {
                    repositories.remove(&number(2));
                }
            }
            "revoke" => drop(self.revoked.insert((number(1), number(2)))),
            "pin?" => drop(self.pins.remove(&number(1))),
            "pin" => drop(self.pins.insert(number(1), true)),
            "unpin" => drop(self.pins.insert(number(1), false)),
            "tag?" => drop(self.tags.remove(&number(1))),
            "tag" => drop(self.tags.insert(number(1), Some(number(2)))),
            "untag" => drop(self.tags.insert(number(1), None)),
            other => panic!("{other}"),
        }
    }

    /// Takes in a line that may have been said before or after: nothing that it speaks of is sure any more.
    pub(crate) fn doubt(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        let number = || words[1].parse::<u64>().unwrap();
        match words[0].trim_end_matches('?') {
            "put" | "forget" => self.unsure(number()),
            "tag" | "untag" => drop(self.tags.remove(&number())),
            "pin" | "unpin" => drop(self.pins.remove(&number())),
            "grant" | "revoke" => {
                self.hear(&line.replacen(words[0], "grant?", 1));
                self.hear(&line.replacen(words[0], "revoke?", 1));
            }
            _ => {}
        }
    }

    fn unsure(&mut self, id: u64) {
        self.blobs.insert(id, Blob::Unsure);
        self.revoked.retain(|(of, _)| *of != id);
    }

    /// Asserts that the store knows all that was acknowledged.
    pub(crate) async fn assert_known(&self, store: &Store) {
        for (&id, blob) in &self.blobs {
            let digest = digest_of(id);
            let content = store.content(&digest).await.unwrap();
            if let Some(content) = &content {
                assert_eq!(read(content).await, bytes_of(id), "wrong bytes of {id}");
            }
            match blob {
                Blob::Unsure => {}
                Blob::Gone => assert!(content.is_none(), "{id} was removed, and is here"),
                Blob::Here(repositories) => {
                    assert!(content.is_some(), "{id} was stored, and is lost");
                    for &number in repositories {
                        let standing = store.standing(&repository(number), &digest);
                        assert_eq!(standing, Standing::Granted, "the grant of {id} to {number} is lost");
                    }
                }
            }
        }
        for &(id, number) in &self.revoked {
            let standing = store.standing(&repository(number), &digest_of(id));
            assert_ne!(standing, Standing::Granted, "the grant of {id} to {number} is back");
        }
        for (&id, &is_pinned) in &self.pins {
            assert_eq!(store.pin_of(&pin_of(id).target).is_some(), is_pinned, "the pin of {id}");
        }
        for (&number, &id) in &self.tags {
            let found = store.tag(&repository(0), &tag(number)).map(|record| record.digest);
            assert_eq!(found, id.map(digest_of), "tag {number}");
        }
    }
}

/// Asserts that what is on disk is what it is called, that the store knows all of it and nothing else, and that nothing lies
/// around.
pub(crate) fn assert_tidy(path: &Path, store: &Store) {
    let (mut blobs, mut bytes) = (0, 0);
    for algorithm in ["sha256", "sha512"] {
        for directory in std::fs::read_dir(path.join("blobs").join(algorithm)).unwrap() {
            for file in std::fs::read_dir(directory.unwrap().path()).unwrap() {
                let file = file.unwrap().path();
                let content = std::fs::read(&file).unwrap();
                let digest: Digest = format!("{algorithm}:{}", file.file_name().unwrap().display()).parse().unwrap();
                assert_eq!(Digest::of(digest.algorithm(), &content), digest, "{} is wrong", file.display());
                assert_eq!(store.size_bytes(&digest), Some(content.len() as u64), "{} is litter", file.display());
                (blobs, bytes) = (blobs + 1, bytes + content.len() as u64);
            }
        }
    }
    let stats = store.stats();
    assert_eq!((stats.blobs, stats.stored_bytes), (blobs, bytes), "known, and on disk");
    let mut parked_bytes = 0;
    for spool in std::fs::read_dir(path.join("spool")).unwrap() {
        let spool = spool.unwrap();
        assert!(spool.file_name().to_string_lossy().ends_with(".parked"), "{:?} is litter", spool.path());
        parked_bytes += spool.metadata().unwrap().len();
    }
    assert_eq!(stats.reserved_bytes, parked_bytes);
    for entry in std::fs::read_dir(path).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(OURS.contains(&name.as_str()) || name.starts_with("index.bad-"), "{name} is litter");
    }
}
