//! The store against its size: start, lookups, inserts, eviction, memory and files at 10,000, 100,000 and 1,000,000 blobs.
//!
//! `cargo bench --bench store [-- SIZE…]`. Blobs are empty files with a length; each start is measured in a process of its own.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use forebay::metrics::Metrics;
use forebay::oci::Algorithm;
use forebay::oci::Digest;
use forebay::oci::Repository;
use forebay::store::Amount;
use forebay::store::OpenError;
use forebay::store::Options;
use forebay::store::Proof;
use forebay::store::Standing;
use forebay::store::Store;

// As the program has it: what is measured is the program's memory.
#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const BLOB_BYTES: u64 = 1024 * 1024;
const REPOSITORIES: u64 = 1000;
const LOOKUPS: u64 = 200_000;
const EVICTED: u64 = 10_000;
const HOT: u64 = 256;
/// The index is compared with the catalog in the background after a start.
const SETTLE: Duration = Duration::from_secs(8);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    if let [step, path, blobs] = &arguments[..]
        && let Ok(blobs) = blobs.parse()
    {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime starts");
        return runtime.block_on(run_step(step, Path::new(path), blobs));
    }
    let sizes: Vec<u64> = arguments.iter().filter_map(|argument| argument.parse().ok()).collect();
    let sizes = if sizes.is_empty() { vec![10_000, 100_000, 1_000_000] } else { sizes };
    for blobs in sizes {
        let directory = tempfile::tempdir().expect("there is room for a directory");
        println!("\n== {blobs} blobs");
        make_files(directory.path(), blobs);
        for step in ["rebuild", "start", "kill", "start", "work", "start", "churn", "start", "evict"] {
            let program = std::env::current_exe().expect("the program has a name");
            let status = Command::new(program).arg(step).arg(directory.path()).arg(blobs.to_string()).status();
            assert!(status.is_ok_and(|status| status.success() || step == "kill"), "{step}");
        }
    }
}

async fn run_step(step: &str, path: &Path, blobs: u64) {
    match step {
        "rebuild" => rebuild(path, blobs).await,
        "start" => start(path, blobs).await,
        "kill" => kill(path, blobs).await,
        "work" => work(path, blobs).await,
        "churn" => churn(path, blobs).await,
        "evict" => evict(path, blobs).await,
        other => panic!("no step {other}"),
    }
}

/// Any bits will do: nobody reads these files.
fn digest(index: u64) -> Digest {
    Digest::of(Algorithm::Sha256, &index.to_le_bytes())
}

fn repository(index: u64) -> Repository {
    let name = format!("library/image-{}", index % REPOSITORIES);
    Repository { registry: "docker.io".parse().expect("a registry"), name: name.parse().expect("a name") }
}

fn make_files(path: &Path, blobs: u64) {
    for index in 0..blobs {
        let hex = digest(index).hex();
        let directory = path.join("blobs/sha256").join(&hex[..2]);
        if index < 20_000 {
            make_directory(&directory);
        }
        make_file(&directory.join(hex));
    }
}

#[expect(clippy::disallowed_methods, reason = "the bench makes the store's files behind its back")]
fn make_directory(path: &Path) {
    std::fs::create_dir_all(path).expect("a directory can be made");
}

#[expect(clippy::disallowed_methods, reason = "the bench makes the store's files behind its back")]
fn make_file(path: &Path) {
    std::fs::File::create(path).and_then(|file| file.set_len(BLOB_BYTES)).expect("a file can be made");
}

fn open(path: &Path, max_bytes: u64) -> (Store, Duration) {
    let options = Options {
        path: path.to_owned(),
        max_size: Amount::Bytes(max_bytes),
        min_free: Amount::Bytes(0),
        memory_cache_bytes: 64 << 20,
    };
    loop {
        let began = Instant::now();
        match Store::open(&options, Metrics::disabled()) {
            Ok(store) => return (store, began.elapsed()),
            // Its threads let go a moment after the last handle.
            Err(OpenError::Locked { .. }) => std::thread::sleep(Duration::from_millis(10)),
            Err(error) => panic!("{error}"),
        }
    }
}

fn status(key: &str) -> u64 {
    let status = read("/proc/self/status");
    let line = status.lines().find(|line| line.starts_with(key)).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) / 1024
}

/// What the process has used of the CPUs, in hundredths of a second: others may be at work on the machine.
fn cpu_time() -> Duration {
    let stat = read("/proc/self/stat");
    let fields = stat.rsplit(") ").next().unwrap_or_default().split(' ').skip(11).take(2);
    Duration::from_millis(fields.filter_map(|ticks| ticks.parse::<u64>().ok()).sum::<u64>() * 10)
}

#[expect(clippy::disallowed_methods, reason = "the bench reads its own memory")]
fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// What is known, in files: everything but blobs and spools.
fn index_mib(path: &Path) -> u64 {
    let mut bytes = 0;
    let mut directories = vec![path.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in directory.read_dir().into_iter().flatten().flatten() {
            let metadata = entry.metadata().ok();
            if metadata.as_ref().is_some_and(std::fs::Metadata::is_dir) {
                if entry.file_name() != "blobs" && entry.file_name() != "spool" {
                    directories.push(entry.path());
                }
            } else {
                bytes += metadata.map_or(0, |metadata| metadata.len());
            }
        }
    }
    bytes >> 20
}

fn memory() -> String {
    format!("resident {} MiB (peak {})", status("VmRSS"), status("VmHWM"))
}

async fn rebuild(path: &Path, blobs: u64) {
    let (store, took) = open(path, u64::MAX);
    assert_eq!(store.stats().blobs, blobs);
    println!("rebuild from the files: {took:.2?}, {}", memory());
    let began = Instant::now();
    let mut granting = tokio::task::JoinSet::new();
    for worker in 0..512 {
        let store = store.clone();
        granting.spawn(async move {
            for index in (worker..blobs).step_by(512) {
                store.grant(&repository(index), &digest(index), &Proof::Content { account: None }).await;
            }
        });
    }
    granting.join_all().await;
    println!("  {} durable grants/s", per_second(blobs, began.elapsed()));
    let began = Instant::now();
    store.close().await;
    println!("  stop: {:.2?}, index files {} MiB, {}", began.elapsed(), index_mib(path), memory());
}

async fn start(path: &Path, _: u64) {
    let before = cpu_time();
    let (store, took) = open(path, u64::MAX);
    let cpu_time = cpu_time() - before;
    println!("start: {took:.3?} (at work {cpu_time:.2?}), {} blobs, {}", store.stats().blobs, memory());
    tokio::time::sleep(SETTLE).await;
    println!("  settled: {}, index files {} MiB", memory(), index_mib(path));
    store.close().await;
}

/// Uses content and takes some in, then ends without a word.
async fn kill(path: &Path, blobs: u64) {
    let (store, _) = open(path, u64::MAX);
    for index in 0..blobs / 10 {
        store.grant(&repository(index + 1), &digest(index), &Proof::Content { account: None }).await;
        if index > 20_000 {
            break;
        }
    }
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).expect("it ends");
}

async fn work(path: &Path, blobs: u64) {
    let (store, _) = open(path, u64::MAX);
    tokio::time::sleep(SETTLE / 4).await;
    let indexes = (0..LOOKUPS).map(|lookup| lookup.wrapping_mul(0x9e37_79b9_7f4a_7c15) % blobs);
    let asked: Vec<(Repository, Digest)> = indexes.map(|index| (repository(index), digest(index))).collect();
    let mut took: Vec<Duration> = Vec::new();
    for (repository, digest) in &asked {
        let began = Instant::now();
        assert_eq!(store.standing(repository, digest), Standing::Granted);
        took.push(began.elapsed());
    }
    took.sort_unstable();
    println!("lookup: p50 {:.0?}, p99 {:.0?}", took[took.len() / 2], took[took.len() / 100 * 99]);
    let began = Instant::now();
    let mut inserting = tokio::task::JoinSet::new();
    for worker in 0..16u64 {
        let store = store.clone();
        inserting.spawn(async move {
            for index in 0..128u64 {
                put(&store, blobs + worker * 128 + index).await;
            }
        });
    }
    inserting.join_all().await;
    println!("insert: {} durable blobs/s", per_second(16 * 128, began.elapsed()));
    store.close().await;
}

/// Small ones, which are kept in memory, and larger ones, which are kept open.
fn content_of(index: u64) -> (Digest, Bytes) {
    let times = if index.is_multiple_of(2) { 20 } else { 4000 };
    let bytes = Bytes::from(format!("content {index:20} ").repeat(times));
    (Digest::of(Algorithm::Sha256, &bytes), bytes)
}

async fn put(store: &Store, index: u64) {
    let ((digest, bytes), repository) = (content_of(index), repository(index));
    let spool = store.begin(&digest, Some(bytes.len() as u64), &repository).await.expect("there is room");
    spool.lane(0).write(vec![bytes]).await.expect("it is written");
    let complete = spool.finish().await.expect("it is its digest");
    store.publish(complete, &repository, &Proof::Content { account: None }).await.expect("it is kept");
}

/// As many updates as there are blobs, then half of them go.
async fn churn(path: &Path, blobs: u64) {
    let (store, _) = open(path, u64::MAX);
    let began = Instant::now();
    let mut updating = tokio::task::JoinSet::new();
    for worker in 0..512 {
        let store = store.clone();
        updating.spawn(async move {
            for update in (worker..blobs).step_by(512) {
                let index = update.wrapping_mul(0x9e37_79b9_7f4a_7c15) % blobs;
                store.grant(&repository(index + 1 + update % 3), &digest(index), &Proof::Confirmed).await;
            }
        });
    }
    updating.join_all().await;
    println!("churn: {} updates/s, {}", per_second(blobs, began.elapsed()), memory());
    let began = Instant::now();
    store.close().await;
    drop(store);
    let (store, _) = open(path, blobs / 2 * BLOB_BYTES);
    while store.stats().stored_bytes > blobs / 2 * BLOB_BYTES {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let gone = blobs - store.stats().blobs;
    println!("  {} evictions/s, {}", per_second(gone, began.elapsed()), memory());
    tokio::time::sleep(SETTLE).await;
    println!("  settled: {}, index files {} MiB", memory(), index_mib(path));
    store.close().await;
}

/// Hits on what stays, while what is old goes.
async fn evict(path: &Path, _: u64) {
    let (store, _) = open(path, u64::MAX);
    let stored_bytes = store.stats().stored_bytes;
    store.close().await;
    drop(store);
    let (store, _) = open(path, stored_bytes + HOT * 1024 * 1024);
    for index in 0..HOT {
        put(&store, u64::MAX - index).await;
    }
    let before = store.stats();
    let wanted_bytes = before.stored_bytes.min(EVICTED * BLOB_BYTES) / 10 * 9;
    let quiet = latencies(&store, || false).await;
    let stop = Arc::new(AtomicBool::new(false));
    let hits = tokio::spawn({
        let (store, stop) = (store.clone(), stop.clone());
        async move { latencies(&store, || stop.load(Ordering::Relaxed)).await }
    });
    let began = Instant::now();
    let nobody = digest(u64::MAX);
    let _spool = store.begin(&nobody, Some(wanted_bytes), &repository(0)).await.expect("room is made for it");
    while store.stats().stored_bytes + wanted_bytes > before.max_bytes {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let took = began.elapsed();
    stop.store(true, Ordering::Relaxed);
    let busy = hits.await.expect("the hits end");
    let gone = before.blobs - store.stats().blobs;
    println!("evict {gone} blobs: {}/s", per_second(gone, took));
    for (name, of) in [("quiet", &quiet), ("meanwhile", &busy)] {
        let at = |percent| of[(of.len() - 1) * percent / 100];
        println!("  {} hits {name}: p50 {:.1?}, p99 {:.1?}, worst {:.1?}", of.len(), at(50), at(99), at(100));
    }
    store.close().await;
}

/// How long hits take, in order.
async fn latencies(store: &Store, is_over: impl Fn() -> bool) -> Vec<Duration> {
    let mut took = Vec::new();
    while !is_over() && took.len() < 400_000 {
        for index in 0..HOT {
            let digest = content_of(u64::MAX - index).0;
            let began = Instant::now();
            let content = store.content(&digest).await.expect("the disk is well").expect("it is here");
            let first = content.read(None).next().await.expect("it is not empty");
            took.push(began.elapsed());
            std::hint::black_box(first.expect("the disk is well"));
        }
    }
    took.sort_unstable();
    took
}

fn per_second(count: u64, time: Duration) -> u64 {
    u64::try_from(u128::from(count) * 1_000_000 / time.as_micros().max(1)).unwrap_or(0)
}
