//! Random operations, stops, crashes and losses against a trivial model: the store always answers as the model does.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::path::Path;

use forebay::store::Proof;
use forebay::store::Standing;
use forebay::store::Store;
use proptest::prelude::*;
use proptest::test_runner::Config;

use crate::model::REPOSITORIES;
use crate::model::assert_tidy;
use crate::model::bytes_of;
use crate::model::digest_of;
use crate::model::open;
use crate::model::repository;
use crate::model::tag;

const BLOBS: u64 = 6;
const TAGS: u64 = 3;

#[derive(Clone, Debug)]
enum Step {
    Put(u64, u64),
    Grant(u64, u64),
    Forget(u64),
    Point(u64, u64),
    Untag(u64),
    /// The process ends, in good order or not, and what is lost before the next one starts.
    Restart {
        is_clean: bool,
        lost: Option<&'static str>,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let lost = prop_oneof![Just(None), Just(None), Just(Some("index")), Just(Some("snapshot"))];
    let step = prop_oneof![
        4 => (0..BLOBS, 0..REPOSITORIES).prop_map(|(id, to)| Step::Put(id, to)),
        2 => (0..BLOBS, 0..REPOSITORIES).prop_map(|(id, to)| Step::Grant(id, to)),
        2 => (0..BLOBS).prop_map(Step::Forget),
        2 => (0..TAGS, 0..BLOBS).prop_map(|(number, id)| Step::Point(number, id)),
        1 => (0..TAGS).prop_map(Step::Untag),
        2 => (any::<bool>(), lost).prop_map(|(is_clean, lost)| Step::Restart { is_clean, lost }),
    ];
    proptest::collection::vec(step, 1..40)
}

/// The trivial model.
#[derive(Debug, Default)]
struct Known {
    blobs: BTreeMap<u64, BTreeSet<u64>>,
    tags: BTreeMap<u64, u64>,
}

impl Known {
    async fn step(&mut self, store: &Store, step: &Step) {
        match *step {
            Step::Put(id, to) => {
                let (digest, bytes, owner) = (digest_of(id), bytes_of(id), repository(to));
                let spool = store.begin(&digest, Some(bytes.len() as u64), &owner).await.unwrap();
                spool.lane(0).write(vec![bytes]).await.unwrap();
                let proof = Proof::Content { account: (to > 2).then(|| "me".into()) };
                store.publish(spool.finish().await.unwrap(), &owner, &proof).await.unwrap();
                self.blobs.entry(id).or_default().insert(to);
            }
            Step::Grant(id, to) => {
                store.grant(&repository(to), &digest_of(id), &Proof::Confirmed).await;
                if let Some(granted) = self.blobs.get_mut(&id) {
                    granted.insert(to);
                }
            }
            Step::Forget(id) => {
                store.forget(&digest_of(id)).await;
                self.blobs.remove(&id);
            }
            Step::Point(number, id) => {
                store.point_tag(&repository(0), &tag(number), &digest_of(id)).await;
                self.tags.insert(number, id);
            }
            Step::Untag(number) => {
                store.forget_tag(&repository(0), &tag(number)).await;
                self.tags.remove(&number);
            }
            Step::Restart { .. } => unreachable!("the caller restarts"),
        }
    }

    fn assert_same(&self, store: &Store) {
        for id in 0..BLOBS {
            for to in 0..REPOSITORIES {
                let expected = match self.blobs.get(&id) {
                    None => Standing::Absent,
                    Some(granted) if granted.contains(&to) => Standing::Granted,
                    Some(_) => Standing::Ungranted,
                };
                assert_eq!(store.standing(&repository(to), &digest_of(id)), expected, "{id} for {to}");
            }
        }
        for number in 0..TAGS {
            let found = store.tag(&repository(0), &tag(number)).map(|record| record.digest);
            assert_eq!(found, self.tags.get(&number).map(|&id| digest_of(id)), "tag {number}");
        }
        let bytes: u64 = self.blobs.keys().map(|&id| bytes_of(id).len() as u64).sum();
        assert_eq!((store.stats().blobs, store.stats().stored_bytes), (self.blobs.len() as u64, bytes));
    }
}

async fn run(steps: &[Step], path: &Path) {
    let (mut known, mut store) = (Known::default(), open(path, u64::MAX).await);
    for step in steps {
        match step {
            Step::Restart { is_clean, lost } => {
                if *is_clean {
                    store.close().await;
                }
                drop(store);
                if let Some(lost) = lost {
                    lose(path, lost).await;
                }
                store = open(path, u64::MAX).await;
                assert_tidy(path, &store);
            }
            step => known.step(&store, step).await,
        }
        known.assert_same(&store);
    }
}

/// Removes something while nobody has the store.
async fn lose(path: &Path, name: &str) {
    let lock = std::fs::File::options().write(true).open(path.join("lock")).unwrap();
    while lock.try_lock().is_err() {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    let path = path.join(name);
    let _ = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
}

#[test]
fn the_store_answers_as_a_model_does() {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(8);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    proptest!(Config { cases, ..Config::default() }, |(steps in steps())| {
        let directory = tempfile::tempdir().unwrap();
        runtime.block_on(run(&steps, directory.path()));
    });
}
