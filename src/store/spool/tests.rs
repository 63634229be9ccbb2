//! Readers against random schedules of lanes: whatever comes in whatever order, each gets exactly its bytes, or is cut.

use bytes::Bytes;
use proptest::prelude::*;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use crate::metrics::Metrics;
use crate::oci::Algorithm;
use crate::oci::ByteRange;
use crate::oci::Digest;
use crate::oci::Repository;
use crate::store::Amount;
use crate::store::Options;
use crate::store::ReadError;
use crate::store::Reader;
use crate::store::Store;

const MAX_BYTES: usize = 600_000;

/// One thing that happens to a download.
#[derive(Clone, Debug)]
enum Event {
    /// A lane writes from here, so much, in so many chunks. In thousandths of the content.
    Write { start: usize, size: usize, chunks: usize },
    /// A reader comes, for a part or for all.
    Read(Option<(usize, usize)>),
    /// The oldest reader leaves.
    Leave,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// What is still absent is brought, and it is right.
    Right,
    /// One byte is wrong.
    Corrupt,
    /// It is given up.
    Abandoned,
}

fn event() -> impl Strategy<Value = Event> {
    let write = (0usize..1000, 1usize..400, 1usize..5);
    prop_oneof![
        4 => write.prop_map(|(start, size, chunks)| Event::Write { start, size, chunks }),
        2 => proptest::option::of((0usize..1000, 1usize..1000)).prop_map(Event::Read),
        1 => Just(Event::Leave),
    ]
}

fn end() -> impl Strategy<Value = End> {
    prop_oneof![3 => Just(End::Right), 1 => Just(End::Corrupt), 1 => Just(End::Abandoned)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn readers_get_their_bytes_or_are_cut(
        size in 1usize..MAX_BYTES,
        knows_size in any::<bool>(),
        events in proptest::collection::vec(event(), 0..16),
        end in end(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(play(&runtime, size, knows_size, events, end));
    }
}

/// A reader: what it should get, whether that is all, and what it got.
struct Playing {
    wanted: Bytes,
    is_whole: bool,
    task: JoinHandle<(Vec<u8>, Option<ReadError>)>,
}

async fn play(runtime: &Runtime, size: usize, knows_size: bool, events: Vec<Event>, end: End) {
    let directory = tempfile::tempdir().unwrap();
    let options = Options {
        path: directory.path().to_owned(),
        max_size: Amount::Bytes(1 << 30),
        min_free: Amount::Bytes(0),
        memory_cache_bytes: 0,
    };
    let store = Store::open(&options, Metrics::disabled()).unwrap();
    let content: Bytes = (0..=250u8).cycle().take(size).collect::<Vec<_>>().into();
    let digest = Digest::of(Algorithm::Sha256, &content);
    let mut sent = content.to_vec();
    if end == End::Corrupt {
        sent[size / 2] ^= 1;
    }
    let sent = Bytes::from(sent);
    let owner = Repository { registry: "a.io".parse().unwrap(), name: "x".parse().unwrap() };
    let spool = store.begin(&digest, knows_size.then_some(size as u64), &owner).await.unwrap();
    let mut readers = Vec::new();
    let at = |thousandths: usize| thousandths * size / 1000;
    for event in events {
        match event {
            Event::Write { start, size: length, chunks } => {
                let part = sent.slice(at(start)..(at(start) + at(length)).min(size));
                let chunk_bytes = part.len().div_ceil(chunks).max(1);
                let batch = part.chunks(chunk_bytes).map(Bytes::copy_from_slice).collect();
                spool.lane(at(start) as u64).write(batch).await.unwrap();
            }
            Event::Read(part) => {
                let range = part.filter(|_| knows_size).and_then(|(start, length)| {
                    ByteRange::new(at(start) as u64..(at(start) + at(length)).min(size) as u64)
                });
                let bounds = range.map_or(0..size, |range| {
                    usize::try_from(range.start()).unwrap()..usize::try_from(range.end()).unwrap()
                });
                let is_whole = bounds == (0..size);
                let task = runtime.spawn(read(spool.follow().read(range)));
                readers.push(Playing { wanted: sent.slice(bounds), is_whole, task });
            }
            Event::Leave if readers.is_empty() => {}
            Event::Leave => readers.remove(0).task.abort(),
        }
    }
    if end == End::Abandoned {
        drop(spool);
    } else {
        while let Some((start, gap_end)) = spool.gap(0).filter(|(start, _)| *start < size as u64) {
            let gap_end = usize::try_from(gap_end.unwrap_or(size as u64)).unwrap();
            let part = sent.slice(usize::try_from(start).unwrap()..gap_end);
            spool.lane(start).write(vec![part]).await.unwrap();
        }
        spool.set_size(size as u64);
        assert_eq!(spool.finish().await.is_ok(), end == End::Right);
    }
    for reader in readers {
        let (got, error) = reader.task.await.unwrap();
        assert!(reader.wanted.starts_with(&got), "never a byte that no lane brought there");
        match end {
            End::Right => assert!(error.is_none() && got.len() == reader.wanted.len(), "{error:?}"),
            End::Corrupt | End::Abandoned if reader.is_whole => assert!(got.len() < size && error.is_some()),
            // A part may have been complete before the verdict: its client verifies what it puts together.
            End::Corrupt | End::Abandoned => assert!(error.is_some() || got.len() == reader.wanted.len()),
        }
    }
}

async fn read(mut reader: Reader) -> (Vec<u8>, Option<ReadError>) {
    let mut got = Vec::new();
    loop {
        match reader.next_bytes().await {
            Some(Ok(bytes)) => got.extend_from_slice(&bytes),
            Some(Err(error)) => return (got, Some(error)),
            None => return (got, None),
        }
    }
}
