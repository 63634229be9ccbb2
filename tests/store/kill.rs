//! `kill -9` at any moment, under random load: nothing wrong or partial is visible afterwards, nothing acknowledged is lost,
//! and nothing lies around.

use std::time::Duration;

use tempfile::TempDir;

use crate::Random;
use crate::model::Model;
use crate::model::assert_tidy;
use crate::model::open;
use crate::rounds;
use crate::worker::Worker;

const ROUNDS: &str = "FOREBAY_KILL_ROUNDS";
/// A process lives so long at most.
const MAX_LIFE_MS: u64 = 400;

#[tokio::test]
async fn nothing_is_lost_and_nothing_lies_around() {
    let (directory, mut model, mut random) = (TempDir::new().unwrap(), Model::default(), Random(1));
    for round in 0..rounds(ROUNDS, 6) {
        let worker = Worker::start(directory.path(), round, u64::MAX);
        std::thread::sleep(Duration::from_millis(random.below(MAX_LIFE_MS)));
        worker.kill().iter().for_each(|line| model.hear(line));
        let store = open(directory.path(), u64::MAX).await;
        assert_tidy(directory.path(), &store);
        model.assert_known(&store).await;
        // Every other time the next process finds what a kill left, and nothing else.
        if round % 2 == 0 {
            store.close().await;
        }
    }
}

#[tokio::test]
async fn nothing_lies_around_when_room_is_short() {
    const MAX_BYTES: u64 = 1_500_000;
    let (directory, mut random) = (TempDir::new().unwrap(), Random(2));
    for round in 0..rounds(ROUNDS, 4) {
        let worker = Worker::start(directory.path(), 1_000_000 + round, MAX_BYTES);
        std::thread::sleep(Duration::from_millis(random.below(MAX_LIFE_MS)));
        worker.kill();
        let store = open(directory.path(), u64::MAX).await;
        assert_tidy(directory.path(), &store);
        store.close().await;
    }
}
