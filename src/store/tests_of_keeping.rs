//! Pins, purges, rot and a disk in trouble, at the store's door.
#![expect(clippy::disallowed_methods, reason = "tests damage files behind the store's back")]

use std::os::unix::fs::FileExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;

use crate::metrics::Metrics;
use crate::oci::Algorithm;
use crate::oci::Digest;
use crate::oci::Reference;
use crate::oci::Repository;
use crate::oci::Tag;
use crate::oci::Verified;

use super::Amount;
use super::BeginError;
use super::Document;
use super::Holder;
use super::OpenError;
use super::Options;
use super::Pin;
use super::PinError;
use super::PinMember;
use super::PinTarget;
use super::Proof;
use super::PurgeTarget;
use super::Scrub;
use super::Standing;
use super::Store;
use super::Timestamp;
use super::tests::begin;

const BLOB_BYTES: usize = 100_000;

/// Opens a store; the lock of an earlier one goes with its last handle.
async fn open(path: &Path, max_bytes: u64) -> Store {
    let options = Options {
        path: path.to_owned(),
        max_size: Amount::Bytes(max_bytes),
        min_free: Amount::Bytes(0),
        memory_cache_bytes: 1 << 20,
    };
    loop {
        match Store::open(&options, Metrics::disabled()) {
            Ok(store) => return store,
            Err(OpenError::Locked { .. }) => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    }
}

fn repository(text: &str) -> Repository {
    let (registry, name) = text.split_once('/').unwrap();
    Repository { registry: registry.parse().unwrap(), name: name.parse().unwrap() }
}

fn bytes_of(seed: u8, size_bytes: usize) -> Bytes {
    (0..=250).cycle().take(size_bytes).map(|byte: u8| byte ^ seed).collect::<Vec<u8>>().into()
}

async fn put(store: &Store, seed: u8, owner: &str) -> Digest {
    put_sized(store, seed, BLOB_BYTES, owner).await
}

async fn put_sized(store: &Store, seed: u8, size_bytes: usize, owner: &str) -> Digest {
    let (bytes, owner) = (bytes_of(seed, size_bytes), repository(owner));
    let digest = Digest::of(Algorithm::Sha256, &bytes);
    let spool = begin(store, &digest, bytes.len() as u64, &owner).await;
    spool.lane(0).write(vec![bytes]).await.unwrap();
    store.publish(spool.finish().await.unwrap(), &owner, &Proof::Content { account: None }).await.unwrap();
    digest
}

async fn put_manifest(store: &Store, text: String, media_type: &str, owner: &str) -> Digest {
    let bytes = Bytes::from(text);
    let digest = Digest::of(Algorithm::Sha256, &bytes);
    let document = Document { bytes: bytes.clone(), media_type: media_type.parse().unwrap() };
    let verified = Verified::check(&digest, &bytes).unwrap();
    let proof = Proof::Content { account: None };
    store.put_document(verified, document, &repository(owner), &proof).await.unwrap();
    digest
}

async fn put_image(store: &Store, layers: &[Digest], owner: &str) -> Digest {
    let descriptor = |digest: &Digest| format!(r#"{{"digest":"{digest}","size":{BLOB_BYTES}}}"#);
    let layers: Vec<String> = layers.iter().map(descriptor).collect();
    let text = format!(r#"{{"schemaVersion":2,"layers":[{}]}}"#, layers.join(","));
    put_manifest(store, text, "application/vnd.oci.image.manifest.v1+json", owner).await
}

async fn put_index(store: &Store, manifests: &[Digest], owner: &str) -> Digest {
    let manifests: Vec<String> = manifests.iter().map(|digest| format!(r#"{{"digest":"{digest}"}}"#)).collect();
    let text = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, manifests.join(","));
    put_manifest(store, text, "application/vnd.oci.image.index.v1+json", owner).await
}

fn pin_of(digests: &[Digest]) -> Pin {
    let member = |digest: &Digest| PinMember { digest: *digest, size_bytes: BLOB_BYTES as u64, is_manifest: false };
    Pin {
        target: PinTarget::Content(digests[0]),
        platforms: vec!["linux/arm64".parse().unwrap()],
        referrers: true,
        pinned_at: Timestamp::now(),
        root: digests[0],
        sources: vec![repository("a.io/x")],
        members: digests.iter().map(member).collect(),
        leaving: Vec::new(),
    }
}

fn tag(text: &str) -> Tag {
    text.parse().unwrap()
}

fn blob_path(directory: &Path, digest: &Digest) -> PathBuf {
    directory.join("blobs/sha256").join(&digest.hex()[..2]).join(digest.hex())
}

fn quarantined(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory.join("quarantine")).into_iter().flatten();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

async fn is_here(store: &Store, digest: &Digest) -> bool {
    store.content(digest).await.unwrap().is_some()
}

// === Pins ===

#[tokio::test]
async fn what_is_pinned_stays_and_the_rest_gives_way() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), 10 * BLOB_BYTES as u64).await;
    let pinned = [put(&store, 1, "a.io/x").await, put(&store, 2, "a.io/x").await];
    store.pin(pin_of(&pinned)).await.unwrap();
    assert_eq!(store.stats().pinned_bytes, 2 * BLOB_BYTES as u64);
    for seed in 10..40 {
        put(&store, seed, "a.io/x").await;
    }
    while store.stats().stored_bytes > store.stats().max_bytes {
        tokio::task::yield_now().await;
    }
    for digest in &pinned {
        assert!(is_here(&store, digest).await, "the oldest, but pinned");
    }
    assert!(matches!(
        store.begin(&pinned[0], Some(9 * BLOB_BYTES as u64), &repository("a.io/x")).await,
        Err(BeginError::NoRoom { available_bytes, .. }) if available_bytes == 8 * BLOB_BYTES as u64
    ));
    assert!(store.unpin(&PinTarget::Content(pinned[0])).await.unwrap().is_some());
    assert!(store.unpin(&PinTarget::Content(pinned[0])).await.unwrap().is_none());
    assert_eq!((store.stats().pinned_bytes, store.pins().len()), (0, 0));
    for seed in 40..60 {
        put(&store, seed, "a.io/x").await;
    }
    while store.size_of_any(&pinned) {
        tokio::task::yield_now().await;
    }
}

impl Store {
    fn size_of_any(&self, digests: &[Digest]) -> bool {
        digests.iter().any(|digest| self.size_bytes(digest).is_some())
    }
}

#[tokio::test]
async fn pins_that_do_not_fit_change_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), 5 * BLOB_BYTES as u64).await;
    let here = put(&store, 1, "a.io/x").await;
    let absent: Vec<Digest> = (50..60).map(|seed| Digest::of(Algorithm::Sha256, &[seed])).collect();
    let three = [&[here], &absent[..2]].concat();
    store.pin(pin_of(&three)).await.unwrap();
    let refused = store.pin(pin_of(&absent[1..5])).await.unwrap_err();
    let size = BLOB_BYTES as u64;
    assert!(
        matches!(refused, PinError::TooLarge { added_bytes, pinned_bytes, capacity_bytes }
            if (added_bytes, pinned_bytes, capacity_bytes) == (3 * size, 3 * size, 5 * size)),
        "what is shared counts once: {refused}"
    );
    assert_eq!(store.pins().len(), 1);
    // Its own parts make room for what replaces it.
    store.pin(pin_of(&[&[here], &absent[3..7]].concat())).await.unwrap();
    assert_eq!(store.pins().len(), 1);
    assert!(store.pin(pin_of(&[&[here], &absent[..5]].concat())).await.is_err());
    assert_eq!(store.pins()[0].members.len(), 5, "as it was");
}

#[tokio::test]
async fn pins_outlive_restarts_and_a_lost_index() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), 10 * BLOB_BYTES as u64).await;
    let pinned = put(&store, 1, "a.io/x").await;
    let absent = Digest::of(Algorithm::Sha256, b"later");
    let by_digest = pin_of(&[pinned, absent]);
    let mut by_tag = pin_of(&[pinned]);
    by_tag.target = PinTarget::Image(repository("a.io/x"), Reference::Tag(tag("v1")));
    let mut by_manifest = pin_of(&[pinned]);
    by_manifest.target = PinTarget::Image(repository("a.io/x"), Reference::Digest(absent));
    by_manifest.leaving = by_digest.members.clone();
    for pin in [&by_digest, &by_tag, &by_manifest] {
        store.pin(pin.clone()).await.unwrap();
    }
    let gone = pin_of(&[absent]);
    store.pin(gone.clone()).await.unwrap();
    store.unpin(&gone.target).await.unwrap();
    store.close().await;
    drop(store);
    for lost in ["index", "journal", "snapshot"] {
        lose(&directory.path().join(lost));
        let store = open(directory.path(), 10 * BLOB_BYTES as u64).await;
        for pin in [&by_digest, &by_tag, &by_manifest] {
            assert_eq!(store.pin_of(&pin.target).as_deref(), Some(pin), "without {lost}");
        }
        assert_eq!((store.pins().len(), store.stats().pinned_bytes), (3, BLOB_BYTES as u64));
        store.close().await;
        drop(store);
    }
    let store = open(directory.path(), 10 * BLOB_BYTES as u64).await;
    store.forget(&pinned).await;
    assert_eq!(store.stats().pinned_bytes, 0, "what is gone takes no room");
    put(&store, 1, "a.io/x").await;
    assert_eq!(store.stats().pinned_bytes, BLOB_BYTES as u64);
}

#[tokio::test]
async fn a_pin_is_replaced_only_as_it_was_seen() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), 10 * BLOB_BYTES as u64).await;
    let digest = Digest::of(Algorithm::Sha256, b"x");
    store.pin(pin_of(&[digest])).await.unwrap();
    let seen = store.pins().remove(0);
    let replaced = store.replace_pin(&seen, pin_of(&[digest])).await.unwrap();
    assert!(store.replace_pin(&seen, pin_of(&[digest])).await.unwrap().is_none(), "another by now");
    store.unpin(&seen.target).await.unwrap();
    assert!(store.replace_pin(&replaced.unwrap(), pin_of(&[digest])).await.unwrap().is_none(), "taken out by now");
    assert!(store.pins().is_empty());
}

// === Purge ===

#[tokio::test]
async fn a_purged_image_frees_what_nothing_else_holds() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), 1 << 30).await;
    let (mine, other) = (repository("a.io/x"), repository("b.io/y"));
    let own = put(&store, 1, "a.io/x").await;
    let shared = put(&store, 2, "a.io/x").await;
    let others = put(&store, 3, "a.io/x").await;
    let pinned = put(&store, 4, "a.io/x").await;
    let image = put_image(&store, &[own, shared, others, pinned], "a.io/x").await;
    let index = put_index(&store, &[image], "a.io/x").await;
    let second = put_image(&store, &[shared], "a.io/x").await;
    store.grant(&other, &others, &Proof::Confirmed).await;
    store.pin(pin_of(&[pinned])).await.unwrap();
    store.point_tag(&mine, &tag("v1"), &index).await;
    store.point_tag(&mine, &tag("v2"), &second).await;
    let reading = store.content(&own).await.unwrap().unwrap();

    let purged = store.purge(&PurgeTarget::Image(mine.clone(), Reference::Tag(tag("v1")))).await;
    assert_eq!(purged.tags, [(mine.clone(), tag("v1"))]);
    let mut removed: Vec<Digest> = purged.removed.iter().map(|(digest, _)| *digest).collect();
    let mut expected = [own, image, index];
    removed.sort_unstable();
    expected.sort_unstable();
    assert_eq!(removed, expected);
    let held = |digest: &Digest| purged.kept.iter().find(|kept| kept.digest == *digest).unwrap().by.clone();
    assert_eq!(held(&shared), [Holder::Manifest(mine.clone(), second)]);
    assert_eq!(held(&others), [Holder::Repository(other.clone())]);
    assert_eq!(held(&pinned), [Holder::Pin(PinTarget::Content(pinned))]);
    assert_eq!(purged.kept.len(), 3);
    assert_eq!(store.standing(&mine, &shared), Standing::Granted, "the other image needs it");
    assert_eq!(store.standing(&mine, &others), Standing::Ungranted);
    assert_eq!(store.standing(&other, &others), Standing::Granted);
    assert!(!blob_path(directory.path(), &own).exists());
    let mut reader = reading.read(None);
    let mut read = 0;
    while let Some(bytes) = reader.next().await {
        read += bytes.unwrap().size_bytes();
    }
    assert_eq!(read, BLOB_BYTES as u64, "open readers stay");
    drop((reader, reading));
    let unlinked = |entry: &std::fs::DirEntry| {
        let is_ours = std::fs::read_link(entry.path()).is_ok_and(|path| path.starts_with(directory.path()));
        is_ours && std::fs::metadata(entry.path()).is_ok_and(|metadata| metadata.nlink() == 0)
    };
    let open_files = || std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    // An open file would keep its room. What was read ahead may hold one for a moment.
    while open_files().any(|entry| unlinked(&entry)) {
        tokio::task::yield_now().await;
    }

    store.close().await;
    drop(store);
    for lost in ["index", "snapshot"] {
        lose(&directory.path().join(lost));
        let store = open(directory.path(), 1 << 30).await;
        assert_eq!(store.standing(&mine, &others), Standing::Ungranted, "what was purged stays so, without {lost}");
        assert_eq!(store.standing(&other, &others), Standing::Granted);
        assert!(store.tag(&mine, &tag("v1")).is_none());
        store.close().await;
        drop(store);
    }
}

/// What is not there cannot be lost.
fn lose(path: &Path) {
    let _ = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
}

#[tokio::test]
async fn a_tag_beside_it_holds_an_image_and_its_digest_purges_both() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), 1 << 30).await;
    let mine = repository("a.io/x");
    let layer = put(&store, 1, "a.io/x").await;
    let image = put_image(&store, &[layer], "a.io/x").await;
    for name in ["v1", "latest"] {
        store.point_tag(&mine, &tag(name), &image).await;
    }
    let purged = store.purge(&PurgeTarget::Image(mine.clone(), Reference::Tag(tag("v1")))).await;
    assert_eq!((purged.removed.len(), purged.kept.len()), (0, 2));
    assert_eq!(purged.kept.iter().find(|k| k.digest == image).unwrap().by, [Holder::Tag(mine.clone(), tag("latest"))]);
    assert!(is_here(&store, &layer).await);
    let purged = store.purge(&PurgeTarget::Image(mine.clone(), Reference::Digest(image))).await;
    assert_eq!((purged.tags.len(), purged.removed.len(), purged.kept.len()), (1, 2, 0));
    assert_eq!(store.stats().stored_bytes, 0);
    assert_eq!(store.purge(&PurgeTarget::Image(mine, Reference::Tag(tag("v1")))).await, Default::default());
}

#[tokio::test]
async fn repositories_registries_and_digests_are_purged() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), 1 << 30).await;
    let names = ["a.io/x", "a.io/y", "b.io/z"];
    let mut blobs = Vec::new();
    for (seed, name) in (1..).zip(names) {
        blobs.push(put(&store, seed, name).await);
        store.point_tag(&repository(name), &tag("t"), &blobs[0]).await;
    }
    store.grant(&repository("b.io/z"), &blobs[0], &Proof::Confirmed).await;
    let purged = store.purge(&PurgeTarget::Repository(repository("a.io/x"))).await;
    assert_eq!((purged.tags.len(), purged.removed.len()), (1, 0));
    assert_eq!(purged.kept[0].by, [Holder::Repository(repository("b.io/z"))]);
    let purged = store.purge(&PurgeTarget::Registry("a.io".parse().unwrap())).await;
    assert_eq!((purged.tags.len(), purged.removed_bytes()), (1, BLOB_BYTES as u64));
    let purged = store.purge(&PurgeTarget::Content(blobs[0])).await;
    assert_eq!(purged.removed, [(blobs[0], BLOB_BYTES as u64)]);
    assert!(is_here(&store, &blobs[2]).await);
    assert!(store.tag(&repository("b.io/z"), &tag("t")).is_some());
}

// === Rot ===

#[tokio::test]
async fn content_changed_behind_our_back_is_put_aside_and_can_come_again() {
    let small = 1000;
    for size in [small, BLOB_BYTES] {
        let directory = tempfile::tempdir().unwrap();
        let store = open(directory.path(), 1 << 30).await;
        let digest = put_sized(&store, 1, size, "a.io/x").await;
        if size > small {
            assert!(is_here(&store, &digest).await, "its file is open now");
        }
        let file = std::fs::File::options().write(true).open(blob_path(directory.path(), &digest)).unwrap();
        file.write_all_at(b"wrong", 500).unwrap();
        assert!(!is_here(&store, &digest).await, "{size}");
        assert_eq!(quarantined(directory.path()).len(), 1);
        assert_eq!(store.stats().stored_bytes, 0);
        put_sized(&store, 1, size, "a.io/x").await;
        assert!(is_here(&store, &digest).await);
    }
}

#[tokio::test]
async fn a_broken_seal_alone_is_no_damage() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), 1 << 30).await;
    let digest = put(&store, 1, "a.io/x").await;
    let file = std::fs::File::options().write(true).open(blob_path(directory.path(), &digest)).unwrap();
    file.set_modified(std::time::UNIX_EPOCH).unwrap();
    assert!(is_here(&store, &digest).await && quarantined(directory.path()).is_empty());
    let sealed = file.metadata().unwrap().modified().unwrap();
    assert!(sealed > std::time::UNIX_EPOCH, "sealed again");
    assert!(is_here(&store, &digest).await);
}

#[tokio::test]
async fn a_file_deleted_replaced_or_shortened_while_it_is_open_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), 1 << 30).await;
    let digest = put(&store, 1, "a.io/x").await;
    let path = blob_path(directory.path(), &digest);
    assert!(is_here(&store, &digest).await);
    let copy = directory.path().join("copy");
    std::fs::copy(&path, &copy).unwrap();
    std::fs::rename(&copy, &path).unwrap();
    assert!(is_here(&store, &digest).await, "the same bytes in another file");
    std::fs::remove_file(&path).unwrap();
    assert!(!is_here(&store, &digest).await);
    put(&store, 1, "a.io/x").await;
    std::fs::File::options().write(true).open(&path).unwrap().set_len(7).unwrap();
    assert!(!is_here(&store, &digest).await);
    assert_eq!((store.stats().stored_bytes, quarantined(directory.path()).len()), (0, 1));
}

#[tokio::test]
async fn the_quarantine_is_bounded_and_takes_its_room() {
    let directory = tempfile::tempdir().unwrap();
    // A twentieth of the budget: room for two.
    let store = open(directory.path(), 41 * BLOB_BYTES as u64).await;
    for seed in 1..=4 {
        let digest = put(&store, seed, "a.io/x").await;
        std::fs::write(blob_path(directory.path(), &digest), bytes_of(99, BLOB_BYTES)).unwrap();
        assert!(!is_here(&store, &digest).await);
    }
    assert_eq!(quarantined(directory.path()).len(), 2);
    assert_eq!(store.stats().reserved_bytes, 2 * BLOB_BYTES as u64);
    store.close().await;
    drop(store);
    let store = open(directory.path(), 10 * BLOB_BYTES as u64).await;
    assert!(quarantined(directory.path()).is_empty(), "a smaller budget leaves no room for it");
    assert_eq!(store.stats().reserved_bytes, 0);
}

// === Scrub ===

#[tokio::test]
async fn the_scrub_finds_rot_and_touches_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), 1 << 30).await;
    let (mut digests, mut kept) = (Vec::new(), Vec::new());
    for seed in 1..=20 {
        digests.push(put_sized(&store, seed, 3000 * usize::from(seed), "a.io/x").await);
    }
    for (place, digest) in digests.iter().enumerate() {
        let path = blob_path(directory.path(), digest);
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        let sealed = file.metadata().unwrap().modified().unwrap();
        match place {
            // As a disk does it: the bytes change, and no time does.
            3 | 17 => {
                file.write_all_at(b"rot", 1000).unwrap();
                file.set_modified(sealed).unwrap();
            }
            5 => file.set_len(10).unwrap(),
            7 => std::fs::remove_file(&path).unwrap(),
            _ => kept.push(*digest),
        }
    }
    store.scrub_in_background(Scrub { interval: Duration::from_millis(1), rate_bytes_per_second: 1 << 30 });
    while store.stats().blobs > kept.len() as u64 || quarantined(directory.path()).len() < 3 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(quarantined(directory.path()).len(), 3);
    for digest in &kept {
        assert!(is_here(&store, digest).await);
    }
}

#[tokio::test]
async fn a_scrub_goes_on_where_it_was_and_rests_in_between() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), 1 << 30).await;
    let digest = put(&store, 1, "a.io/x").await;
    let hour = Scrub { interval: Duration::from_secs(3600), rate_bytes_per_second: 1 << 30 };
    store.scrub_in_background(hour);
    let state = directory.path().join("state/scrub.json");
    while !state.exists() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let first = std::fs::read_to_string(&state).unwrap();
    assert!(first.contains(r#""done":32"#), "the first round begins an interval after the first start: {first}");
    store.close().await;
    drop(store);
    let interrupted = r#"{"began_at":1,"done":0}"#;
    std::fs::write(&state, format!("{:08x} {interrupted}\n", crc32fast::hash(interrupted.as_bytes()))).unwrap();
    let path = blob_path(directory.path(), &digest);
    let sealed = std::fs::metadata(&path).unwrap().modified().unwrap();
    std::fs::write(&path, bytes_of(9, BLOB_BYTES)).unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().set_modified(sealed).unwrap();
    let store = open(directory.path(), 1 << 30).await;
    store.scrub_in_background(hour);
    while quarantined(directory.path()).is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(store.size_bytes(&digest).is_none());
}
