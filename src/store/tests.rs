//! The store as its users see it: what goes in comes out, survives a restart, and gives way when room is short.
#![expect(clippy::disallowed_methods, reason = "tests damage files behind the store's back")]

use std::collections::HashSet;
use std::path::Path;

use bytes::Bytes;

use crate::metrics::Metrics;
use crate::oci::Algorithm;
use crate::oci::ByteRange;
use crate::oci::Digest;
use crate::oci::Repository;
use crate::oci::Verified;

use super::Amount;
use super::BeginError;
use super::Document;
use super::Options;
use super::Proof;
use super::ReadError;
use super::Reader;
use super::Spool;
use super::Standing;
use super::Store;

pub(super) fn open(path: &Path, max_bytes: u64) -> Store {
    let options = Options {
        path: path.to_owned(),
        max_size: Amount::Bytes(max_bytes),
        min_free: Amount::Bytes(0),
        memory_cache_bytes: 1 << 20,
    };
    Store::open(&options, Metrics::disabled()).unwrap()
}

pub(super) fn content(seed: u8, size_bytes: usize) -> (Digest, Bytes) {
    let bytes: Vec<u8> = (0..=250).cycle().take(size_bytes).map(|byte: u8| byte ^ seed).collect();
    (Digest::of(Algorithm::Sha256, &bytes), bytes.into())
}

pub(super) fn repository() -> Repository {
    Repository { registry: "a.io".parse().unwrap(), name: "x/y".parse().unwrap() }
}

fn other_repository() -> Repository {
    Repository { registry: "b.io".parse().unwrap(), name: "other".parse().unwrap() }
}

pub(super) async fn put(store: &Store, seed: u8, size_bytes: usize) -> Digest {
    let (digest, bytes) = content(seed, size_bytes);
    let spool = begin(store, &digest, bytes.len() as u64, &repository()).await;
    spool.lane(0).write(vec![bytes]).await.unwrap();
    let (nobody, proof) = (other_repository(), Proof::Confirmed);
    store.publish(spool.finish().await.unwrap(), &nobody, &proof).await.unwrap();
    digest
}

/// Begins, where there is room sooner or later: eviction may be slow here.
pub(super) async fn begin(store: &Store, digest: &Digest, size_bytes: u64, owner: &Repository) -> Spool {
    let mut tries = 60;
    loop {
        match store.begin(digest, Some(size_bytes), owner).await {
            Err(BeginError::NoRoom { available_bytes: 0, .. }) if tries > 0 => tries -= 1,
            begun => return begun.unwrap(),
        }
    }
}

async fn read_all(mut reader: Reader) -> Result<Vec<u8>, ReadError> {
    let mut all = Vec::new();
    while let Some(bytes) = reader.next_bytes().await {
        all.extend_from_slice(&bytes?);
    }
    Ok(all)
}

/// Spools are unlinked in the background.
async fn no_litter(path: &Path) {
    while std::fs::read_dir(path.join("spool")).unwrap().count() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn what_goes_in_comes_out_also_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), 1 << 30);
    let sizes = [0, 1, 100, 64 * 1024, 64 * 1024 + 1, 600_000];
    let mut digests = Vec::new();
    for (seed, size) in (0..).zip(sizes) {
        digests.push(put(&store, seed, size).await);
    }
    store.grant(&repository(), &digests[2], &Proof::Content { account: None }).await;
    store.point_tag(&repository(), &"t".parse().unwrap(), &digests[2]).await;
    let before = store.stats();
    let mut first = Some(store);
    for _ in 0..2 {
        let store = match first.take() {
            Some(store) => store,
            None => reopened(directory.path()).await,
        };
        for ((seed, size), digest) in (0..).zip(sizes).zip(&digests) {
            let found = store.content(digest).await.unwrap().unwrap();
            assert_eq!(read_all(found.read(None)).await.unwrap(), content(seed, size).1);
            if let Some(range) = ByteRange::new(1..size as u64) {
                assert_eq!(read_all(found.read(Some(range))).await.unwrap(), content(seed, size).1[1..]);
            }
        }
        assert_eq!(store.standing(&repository(), &digests[2]), Standing::Granted);
        assert_eq!(store.standing(&repository(), &digests[3]), Standing::Ungranted);
        assert_eq!(store.tag(&repository(), &"t".parse().unwrap()).unwrap().digest, digests[2]);
        assert_eq!(store.stats(), before);
        store.close().await;
        drop(store);
    }
    no_litter(directory.path()).await;
}

/// The lock of the directory goes with the last handle: tests wait for it.
pub(super) async fn reopened(path: &Path) -> Store {
    let path = path.to_owned();
    loop {
        let options = Options {
            path: path.clone(),
            max_size: Amount::Bytes(1 << 30),
            min_free: Amount::Bytes(0),
            memory_cache_bytes: 1 << 20,
        };
        match Store::open(&options, Metrics::disabled()) {
            Ok(store) => return store,
            Err(super::OpenError::Locked { .. }) => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test]
async fn a_second_process_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let _store = open(directory.path(), 1 << 30);
    let options = Options {
        path: directory.path().to_owned(),
        max_size: Amount::Percent(50),
        min_free: Amount::Percent(1),
        memory_cache_bytes: 0,
    };
    assert!(matches!(Store::open(&options, Metrics::disabled()), Err(super::OpenError::Locked { .. })));
}

#[tokio::test]
async fn a_lost_index_is_rebuilt_with_rights_tags_and_types() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), 1 << 30);
    let blob = put(&store, 1, 100_000).await;
    let bytes = Bytes::from_static(br#"{"opaque":true}"#);
    let document = Digest::of(Algorithm::Sha512, &bytes);
    let verified = Verified::check(&document, &bytes).unwrap();
    let whole = Document { bytes: bytes.clone(), media_type: "application/x-opaque".parse().unwrap() };
    store.put_document(verified, whole, &other_repository(), &Proof::Confirmed).await.unwrap();
    let gone = put(&store, 2, 10).await;
    for digest in [&blob, &document, &gone] {
        store.grant(&repository(), digest, &Proof::Content { account: Some("me".into()) }).await;
    }
    store.point_tag(&repository(), &"t".parse().unwrap(), &document).await;
    store.forget(&gone).await;
    let again = put(&store, 2, 10).await;
    store.close().await;
    drop(store);
    std::fs::remove_dir_all(directory.path().join("index")).unwrap();
    let store = reopened(directory.path()).await;
    assert_eq!(store.standing(&repository(), &blob), Standing::Granted);
    assert!(store.is_opened_by(&blob, &repository().registry, Some("me")));
    assert!(!store.is_opened_by(&blob, &repository().registry, None));
    assert_eq!(store.standing(&repository(), &again), Standing::Ungranted, "a grant goes with its content");
    assert_eq!(store.tag(&repository(), &"t".parse().unwrap()).unwrap().digest, document);
    let found = store.document(&document).await.unwrap().unwrap();
    assert_eq!((found.bytes, found.media_type.as_str()), (bytes, "application/x-opaque"));
}

#[tokio::test]
async fn a_damaged_index_is_set_aside() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), 1 << 30);
    let blob = put(&store, 1, 100_000).await;
    store.close().await;
    drop(store);
    let index = directory.path().join("index");
    for entry in std::fs::read_dir(&index).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::fs::write(path, "noise ".repeat(10_000)).unwrap();
        }
    }
    let store = reopened(directory.path()).await;
    assert!(store.content(&blob).await.unwrap().is_some());
    let is_aside = |entry: std::io::Result<std::fs::DirEntry>| {
        entry.unwrap().file_name().to_string_lossy().starts_with("index.bad-")
    };
    while !std::fs::read_dir(directory.path()).unwrap().any(is_aside) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn wrong_content_reaches_nobody_and_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), 1 << 30);
    let (digest, _) = content(1, 1000);
    let (_, wrong) = content(2, 1000);
    let spool = store.begin(&digest, Some(1000), &repository()).await.unwrap();
    let mut reader = spool.follow().read(None);
    spool.lane(0).write(vec![wrong]).await.unwrap();
    let first = reader.next_bytes().await.unwrap().unwrap();
    assert_eq!(first.len(), 999, "the last byte waits for the verdict");
    assert!(spool.finish().await.is_err());
    assert_eq!(reader.next_bytes().await.unwrap(), Err(ReadError::WrongContent));
    assert!(store.content(&digest).await.unwrap().is_none());
    no_litter(directory.path()).await;
    while store.stats().reserved_bytes > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn lanes_may_come_in_any_order() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), 1 << 30);
    let (digest, bytes) = content(3, 3_000_000);
    let spool = store.begin(&digest, Some(3_000_000), &repository()).await.unwrap();
    let whole = tokio::spawn(read_all(spool.follow().read(None)));
    let part = tokio::spawn(read_all(spool.follow().read(ByteRange::new(2_500_000..3_000_000))));
    for range in [2_000_000..3_000_000, 1_000_000..2_000_000, 0..1_000_000] {
        assert!(spool.gap(0).is_some());
        spool.lane(range.start as u64).write(vec![bytes.slice(range)]).await.unwrap();
        if spool.gap(0).is_some() {
            assert!(!whole.is_finished());
        }
    }
    assert_eq!(part.await.unwrap().unwrap(), bytes[2_500_000..], "a part needs no verdict");
    store.publish(spool.finish().await.unwrap(), &repository(), &Proof::Confirmed).await.unwrap();
    assert_eq!(whole.await.unwrap().unwrap(), bytes);
}

#[tokio::test]
async fn a_parked_download_is_taken_up_by_its_repository_also_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), 1 << 30);
    let (digest, bytes) = content(5, 3_000_000);
    let spool = store.begin(&digest, Some(3_000_000), &repository()).await.unwrap();
    spool.lane(0).write(vec![bytes.slice(..1_000_000)]).await.unwrap();
    spool.lane(2_000_000).write(vec![bytes.slice(2_000_000..)]).await.unwrap();
    let mut reader = spool.follow().read(None);
    store.park(spool, &digest, &repository(), ReadError::Abandoned).await;
    assert_eq!(reader.next_bytes().await, Some(Err(ReadError::Abandoned)));
    assert_eq!(store.stats().reserved_bytes, 1_000_000);
    store.close().await;
    drop(store);
    let store = reopened(directory.path()).await;
    assert_eq!(store.parked_bytes(&digest, &repository()), Some(1_000_000));
    assert_eq!(store.parked_bytes(&digest, &other_repository()), None, "what it fetched is not another's");
    let spool = store.begin(&digest, Some(3_000_000), &repository()).await.unwrap();
    assert_eq!(spool.gap(0), Some((1_000_000, Some(3_000_000))));
    let whole = tokio::spawn(read_all(spool.follow().read(None)));
    spool.lane(1_000_000).write(vec![bytes.slice(1_000_000..)]).await.unwrap();
    store.publish(spool.finish().await.unwrap(), &repository(), &Proof::Confirmed).await.unwrap();
    assert_eq!(whole.await.unwrap().unwrap(), bytes);
    assert_eq!(store.stats().reserved_bytes, 0);
    no_litter(directory.path()).await;
}

#[tokio::test]
async fn a_byte_is_written_once() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), 1 << 30);
    let (digest, bytes) = content(6, 200_000);
    let (_, lies) = content(7, 200_000);
    let spool = store.begin(&digest, Some(200_000), &repository()).await.unwrap();
    spool.lane(100_000).write(vec![lies.slice(100_000..150_000)]).await.unwrap();
    spool.lane(0).write(vec![bytes]).await.unwrap();
    assert!(spool.finish().await.is_err(), "the file holds what one lane said, and that is what is hashed");
}

#[tokio::test]
async fn an_abandoned_download_fails_its_readers() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), 1 << 30);
    let (digest, _) = content(1, 10);
    let spool = store.begin(&digest, None, &repository()).await.unwrap();
    let mut reader = spool.follow().read(None);
    drop(spool);
    assert_eq!(reader.next_bytes().await, Some(Err(ReadError::Abandoned)));
    no_litter(directory.path()).await;
}

#[tokio::test]
async fn the_least_recently_used_goes_and_open_readers_stay() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), 1_000_000);
    let old = put(&store, 1, 400_000).await;
    let used = put(&store, 2, 400_000).await;
    tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    let reading = store.content(&old).await.unwrap().unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    store.content(&used).await.unwrap();
    let new = put(&store, 3, 400_000).await;
    while store.stats().stored_bytes > 1_000_000 {
        tokio::task::yield_now().await;
    }
    assert!(store.content(&old).await.unwrap().is_none());
    assert!(store.content(&used).await.unwrap().is_some());
    assert!(store.content(&new).await.unwrap().is_some());
    assert_eq!(read_all(reading.read(None)).await.unwrap(), content(1, 400_000).1);
}

#[tokio::test]
async fn a_file_that_is_gone_or_shorter_is_absent() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), 1 << 30);
    let blobs = [put(&store, 1, 100_000).await, put(&store, 2, 100_000).await];
    let path = |digest: &Digest| directory.path().join("blobs/sha256").join(&digest.hex()[..2]).join(digest.hex());
    store.close().await;
    drop(store);
    std::fs::remove_file(path(&blobs[0])).unwrap();
    std::fs::File::options().write(true).open(path(&blobs[1])).unwrap().set_len(7).unwrap();
    let store = reopened(directory.path()).await;
    for digest in &blobs {
        assert!(store.content(digest).await.unwrap().is_none());
    }
    assert_eq!(store.stats().stored_bytes, 0);
    assert_eq!(put(&store, 1, 100_000).await, blobs[0], "and can come again");
}

/// Eight at once, into a store that is always full.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_stored_exceeds_the_budget_by_what_is_in_flight_at_most() {
    const MAX_BYTES: u64 = 2_000_000;
    const SIZE_BYTES: u64 = 100_000;
    const TASKS: u64 = 8;
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), MAX_BYTES);
    let mut putting = tokio::task::JoinSet::new();
    for task in 0..TASKS {
        let store = store.clone();
        putting.spawn(async move {
            for index in 0..25u64 {
                let mut bytes = vec![0; usize::try_from(SIZE_BYTES).unwrap()];
                bytes[..16].copy_from_slice(&(u128::from(task) << 64 | u128::from(index)).to_le_bytes());
                let digest = Digest::of(Algorithm::Sha256, &bytes);
                let spool = match store.begin(&digest, Some(SIZE_BYTES), &repository()).await {
                    Ok(spool) => spool,
                    // Eviction is slow here: then it passes through.
                    Err(super::BeginError::NoRoom { .. }) => continue,
                    Err(error) => panic!("{error}"),
                };
                spool.lane(0).write(vec![bytes.into()]).await.unwrap();
                store.publish(spool.finish().await.unwrap(), &repository(), &Proof::Confirmed).await.unwrap();
                let stored_bytes = store.stats().stored_bytes;
                assert!(stored_bytes <= MAX_BYTES + TASKS * SIZE_BYTES, "{stored_bytes}");
            }
        });
    }
    putting.join_all().await;
    let stats = store.stats();
    assert!(stats.blobs >= 10, "{stats:?}");
}

#[tokio::test]
async fn a_use_is_remembered_over_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), 1 << 30);
    let old = put(&store, 1, 1000).await;
    tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    let new = put(&store, 2, 1000).await;
    tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    store.content(&old).await.unwrap();
    store.close().await;
    drop(store);
    let store = reopened(directory.path()).await;
    assert_eq!(store.inner.catalog.least_recently_used(1, 10, &HashSet::new()), [new]);
}

/// A kill takes the snapshot that a stop makes: then uses are in the index.
#[tokio::test]
async fn a_use_is_in_the_index() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), 1 << 30);
    let old = put(&store, 1, 1000).await;
    tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    let new = put(&store, 2, 1000).await;
    let journal = std::fs::read(directory.path().join("journal")).unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    store.content(&old).await.unwrap();
    store.close().await;
    drop(store);
    std::fs::remove_file(directory.path().join("snapshot")).unwrap();
    std::fs::write(directory.path().join("journal"), journal).unwrap();
    let store = reopened(directory.path()).await;
    while store.inner.catalog.least_recently_used(1, 10, &HashSet::new()) != [new] {
        tokio::task::yield_now().await;
    }
}
