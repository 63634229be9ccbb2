//! What happens at the same time, in the order that does harm; and content that the disk fails to give.
#![expect(clippy::disallowed_methods, reason = "tests damage files behind the store's back")]

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread::JoinHandle;

use crate::metrics::FoundBy;
use crate::oci::Digest;
use crate::piece::Piece;

use super::Inner;
use super::Pin;
use super::PinMember;
use super::PinTarget;
use super::Proof;
use super::Store;
use super::Timestamp;
use super::content;
use super::rot;
use super::tests::content;
use super::tests::open;
use super::tests::put;
use super::tests::reopened;
use super::tests::repository;

const BLOB_BYTES: usize = 100_000;

fn blob_path(directory: &Path, digest: &Digest) -> PathBuf {
    directory.join("blobs/sha256").join(&digest.hex()[..2]).join(digest.hex())
}

async fn is_here(store: &Store, digest: &Digest) -> bool {
    store.content(digest).await.unwrap().is_some()
}

/// Keeps everybody from changing this content, until the sender is dropped.
fn hold_up(store: &Store, digest: &Digest) -> (mpsc::Sender<()>, JoinHandle<()>) {
    let (inner, digest) = (store.inner.clone(), *digest);
    let ((end, ended), (begin, begun)) = (mpsc::channel::<()>(), mpsc::channel());
    let holding = std::thread::spawn(move || {
        let _changing = inner.changing(&digest);
        begin.send(()).unwrap();
        let _ = ended.recv();
    });
    begun.recv().unwrap();
    (end, holding)
}

/// Takes content out on a thread of its own, one after another; the second is held up.
async fn interrupted(
    store: &Store,
    digests: [Digest; 3],
    take_out: fn(&Inner, &[Digest]) -> (u64, u64),
    meanwhile: impl AsyncFnOnce(),
) {
    let (end, holding) = hold_up(store, &digests[1]);
    let inner = store.inner.clone();
    let taking = std::thread::spawn(move || take_out(&inner, &digests));
    while store.size_bytes(&digests[0]).is_some() {
        tokio::task::yield_now().await;
    }
    meanwhile().await;
    drop(end);
    holding.join().unwrap();
    taking.join().unwrap();
}

/// Three whose changes do not wait for each other.
async fn three(store: &Store) -> ([u8; 3], [Digest; 3]) {
    let seeds = [1, 2, 3];
    let mut digests = Vec::new();
    for seed in seeds {
        digests.push(put(store, seed, BLOB_BYTES).await);
    }
    let stripes = digests.iter().map(|digest| usize::from(digest.as_bytes()[0]) % super::CHANGE_STRIPES);
    assert_eq!(stripes.collect::<std::collections::HashSet<_>>().len(), 3);
    (seeds, digests.try_into().unwrap())
}

#[tokio::test]
async fn what_comes_again_while_it_goes_is_kept_over_a_crash() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), 1 << 30);
    let (seeds, digests) = three(&store).await;
    interrupted(&store, digests, content::forget, async || {
        put(&store, seeds[0], BLOB_BYTES).await;
    })
    .await;
    assert!(is_here(&store, &digests[0]).await);
    drop(store);
    let store = reopened(directory.path()).await;
    assert!(is_here(&store, &digests[0]).await, "it was published after it was removed");
    assert_eq!(store.stats().blobs, 1);
}

#[tokio::test]
async fn what_is_pinned_while_eviction_is_at_work_stays() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), 1 << 30);
    let (_, digests) = three(&store).await;
    let pin = Pin {
        target: PinTarget::Content(digests[2]),
        platforms: Vec::new(),
        referrers: false,
        pinned_at: Timestamp::now(),
        root: digests[2],
        sources: vec![repository()],
        members: vec![PinMember { digest: digests[2], size_bytes: BLOB_BYTES as u64, is_manifest: false }],
        leaving: Vec::new(),
    };
    for take_out in [content::evict, content::forget_loose] {
        interrupted(&store, digests, take_out, async || store.pin(pin.clone()).await.unwrap()).await;
        assert!(is_here(&store, &digests[2]).await);
        store.unpin(&pin.target).await.unwrap();
        three(&store).await;
    }
}

/// Neither journal nor snapshot says that it is here: then no byte of it may stay.
#[tokio::test]
async fn what_is_published_after_the_end_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), 1 << 30);
    store.close().await;
    let digest = put(&store, 1, BLOB_BYTES).await;
    assert!(is_here(&store, &digest).await);
    drop(store);
    let store = reopened(directory.path()).await;
    assert!(!is_here(&store, &digest).await && !blob_path(directory.path(), &digest).exists());
}

#[tokio::test]
async fn a_file_that_was_replaced_is_no_rot() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), 1 << 30);
    let digest = put(&store, 1, BLOB_BYTES).await;
    let path = blob_path(directory.path(), &digest);
    let old = std::fs::File::open(&path).unwrap();
    let copy = directory.path().join("copy");
    std::fs::copy(&path, &copy).unwrap();
    std::fs::rename(&copy, &path).unwrap();
    rot::quarantine(&store.inner, &digest, &old, FoundBy::Read).unwrap();
    assert!(is_here(&store, &digest).await);
}

#[tokio::test]
async fn a_damaged_journal_is_made_good_from_what_is_on_disk() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), 1 << 30);
    let [kept, lost] = [put(&store, 1, BLOB_BYTES).await, put(&store, 2, BLOB_BYTES).await];
    store.close().await;
    drop(store);
    std::fs::remove_file(blob_path(directory.path(), &lost)).unwrap();
    std::fs::write(directory.path().join("journal"), "noise\n").unwrap();
    let store = reopened(directory.path()).await;
    assert_eq!((store.stats().blobs, store.stats().stored_bytes), (1, BLOB_BYTES as u64));
    assert!(is_here(&store, &kept).await && store.size_bytes(&lost).is_none());
}

/// Where a file system keeps no seals, only the length tells.
#[tokio::test]
async fn a_shorter_file_is_noticed_under_an_intact_seal() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), 1 << 30);
    let digest = put(&store, 1, BLOB_BYTES).await;
    assert!(is_here(&store, &digest).await, "its file is open now");
    let file = std::fs::File::options().write(true).open(blob_path(directory.path(), &digest)).unwrap();
    let sealed = file.metadata().unwrap().modified().unwrap();
    file.set_len(70_000).unwrap();
    file.set_modified(sealed).unwrap();
    assert!(!is_here(&store, &digest).await);
}

// === Content that the disk fails to give ===

/// Other bytes under an intact seal: only a hash tells.
fn rot_silently(path: &Path) {
    let file = std::fs::File::options().write(true).open(path).unwrap();
    let sealed = file.metadata().unwrap().modified().unwrap();
    file.write_all_at(b"rot", 1000).unwrap();
    file.set_modified(sealed).unwrap();
}

#[tokio::test]
async fn what_failed_once_is_hashed_before_it_is_served_again() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), 1 << 30);
    let [right, rotten] = [put(&store, 1, BLOB_BYTES).await, put(&store, 2, BLOB_BYTES).await];
    rot_silently(&blob_path(directory.path(), &rotten));
    assert!(is_here(&store, &rotten).await, "nothing tells");
    for digest in [&right, &rotten] {
        store.distrust(digest);
        assert!(store.inner.suspects.has(digest));
    }
    assert!(is_here(&store, &right).await && !store.inner.suspects.has(&right), "trusted as before");
    assert!(!is_here(&store, &rotten).await && !store.inner.suspects.has(&rotten));
    assert_eq!(std::fs::read_dir(directory.path().join("quarantine")).unwrap().count(), 1);
}

#[tokio::test]
async fn what_goes_to_memory_is_hashed_whatever_its_seal_says() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), 1 << 30);
    let digest = put(&store, 1, 5000).await;
    rot_silently(&blob_path(directory.path(), &digest));
    assert!(!is_here(&store, &digest).await);
}

/// Where a range goes the store never sees.
#[tokio::test]
async fn a_failure_far_away_is_heard_of() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), 1 << 30);
    let digest = put(&store, 1, BLOB_BYTES).await;
    let found = store.content(&digest).await.unwrap().unwrap();
    rot_silently(&blob_path(directory.path(), &digest));
    let piece = found.read(None).next().await.unwrap().unwrap();
    let Piece::File(range) = piece else { panic!("it is in the page cache") };
    assert!(is_here(&store, &digest).await, "nothing tells");
    range.failed();
    assert!(!is_here(&store, &digest).await, "it was hashed");
}

#[tokio::test]
async fn what_cannot_be_read_stays_until_a_new_copy_takes_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), 1 << 30);
    let digests = [put(&store, 1, BLOB_BYTES).await, put(&store, 2, 1000).await];
    let before = store.stats();
    for digest in &digests {
        store.inner.memory.forget(digest);
        let path = blob_path(directory.path(), digest);
        // Too many links: the disk gives it to nobody.
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&path, &path).unwrap();
        for _ in 0..2 {
            assert!(store.content(digest).await.is_err());
        }
    }
    assert_eq!(store.stats(), before, "nothing is given up");
    for (seed, size) in [(1, BLOB_BYTES), (2, 1000)] {
        put(&store, seed, size).await;
    }
    for digest in &digests {
        assert!(is_here(&store, digest).await && !store.inner.suspects.has(digest));
    }
    assert_eq!(store.stats(), before, "counted once");
    store.close().await;
    drop(store);
    let store = reopened(directory.path()).await;
    let (_, bytes) = content(1, BLOB_BYTES);
    let again = store.content(&digests[0]).await.unwrap().unwrap();
    assert_eq!(again.size_bytes(), bytes.len() as u64);
    store.grant(&repository(), &digests[0], &Proof::Confirmed).await;
    assert_eq!(store.stats(), before);
}
