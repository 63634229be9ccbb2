//! A crowd of careless clients before a registry with bad luck: whatever happens, no wrong byte and nothing left over.
//!
//! The run is drawn from a seed; `FOREBAY_STRESS_SEED` draws other clients and faults.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::support::PATIENCE;
use crate::support::REPOSITORY;
use crate::support::blob_path;
use crate::support::client::Connection;
use crate::support::client::Incoming;
use crate::support::content::KIB;
use crate::support::content::MIB;
use crate::support::content::sample;
use crate::support::proxy::Proxy;
use crate::support::registry::ScriptedRegistry;
use crate::support::script::on;
use crate::support::within;

const CLIENTS: usize = 250;
/// Clients arrive over this time.
const ARRIVALS: Duration = Duration::from_secs(6);
/// Drawn where no other seed is asked for: a failure should be the same again.
const SEED: u64 = 20;
const BLOBS: usize = 6;
const FAULTS: usize = 24;

/// A small generator, so that a seed means the same everywhere.
#[derive(Clone)]
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

struct Target {
    path: String,
    bytes: Bytes,
    /// Its registry sometimes sends wrong bytes, so only a complete whole proves anything.
    is_doubtful: bool,
}

#[derive(Default)]
struct Tally {
    complete: AtomicUsize,
    cut: AtomicUsize,
    refused: AtomicUsize,
    left: AtomicUsize,
    wrong: AtomicUsize,
}

fn seed() -> u64 {
    std::env::var("FOREBAY_STRESS_SEED").map_or(SEED, |text| text.parse().expect("a number"))
}

fn spoil(upstream: &ScriptedRegistry, targets: &[Target], dice: &mut Dice) {
    let doubtful = targets.iter().find(|target| target.is_doubtful).expect("one of them is");
    upstream.rule(on("GET", &doubtful.path).one_in(3, dice.next()).corrupt(dice.below(doubtful.bytes.len())));
    for _ in 0..FAULTS {
        let rule = on("GET", "*").one_in(40, dice.next());
        let at = dice.below(2 * MIB);
        upstream.rule(match dice.below(7) {
            0 | 1 => rule.cut_at(at),
            2 => rule.reset_at(at),
            3 => rule.stall_at(at),
            4 => rule.bytes_per_second(2 * MIB),
            5 => rule.status(503),
            _ => rule.chunked().cut_at(at),
        });
    }
    upstream.rule(on("GET", "*").one_in(20, dice.next()).ignore_range());
    upstream.rule(on("GET", "*").one_in(10, dice.next()).chunked());
    // The others take their time, so that there is something to join.
    upstream.rule(on("GET", "*").bytes_per_second(16 * MIB));
}

/// One client: one or more requests, each with a temper of its own.
async fn client(proxy: Arc<Proxy>, targets: Arc<Vec<Target>>, mut dice: Dice, tally: Arc<Tally>) {
    tokio::time::sleep(ARRIVALS.mul_f64(dice.below(1000) as f64 / 1000.0)).await;
    for _ in 0..=dice.below(3) {
        let target = &targets[dice.below(targets.len())];
        let length = target.bytes.len();
        let first = dice.below(length);
        let last = (first + dice.below(MIB)).min(length - 1);
        let (range, start, end) = match dice.below(5) {
            _ if target.is_doubtful => (None, 0, length),
            0 | 1 => (None, 0, length),
            2 => (Some("bytes=0-".to_owned()), 0, length),
            3 => (Some(format!("bytes={first}-")), first, length),
            _ => (Some(format!("bytes={first}-{last}")), first, last + 1),
        };
        let headers: Vec<(&str, &str)> = range.iter().map(|range| ("Range", range.as_str())).collect();
        let is_narrow = dice.below(10) == 0;
        let connection = if is_narrow {
            Connection::open_narrow(proxy.address).await
        } else {
            Connection::open(proxy.address).await
        };
        let mut connection = connection.expect("the proxy listens");
        connection.send("GET", &target.path, &headers).await.expect("the proxy takes the request");
        let incoming = connection.receive("GET").await.expect("every request has an answer");
        // Of a length that is not known yet no part can be answered: then all of it comes.
        let expected = if incoming.status == 200 { &target.bytes[..] } else { &target.bytes[start..end] };
        read(incoming, expected, target.is_doubtful, &mut dice, &tally).await;
    }
}

/// Reads an answer, some of it, or slowly; and looks at every byte.
async fn read(mut incoming: Incoming, expected: &[u8], is_doubtful: bool, dice: &mut Dice, tally: &Tally) {
    if !matches!(incoming.status, 200 | 206) {
        assert!(matches!(incoming.status, 502..=504), "{}", incoming.status);
        tally.refused.fetch_add(1, Ordering::Relaxed);
        return;
    }
    let is_framed = incoming.headers.get("Content-Length").is_some();
    let is_prefix = |received: &[u8]| is_doubtful || expected.starts_with(received);
    match dice.below(6) {
        0 if is_framed => {
            incoming.read(dice.below(expected.len())).await;
            tally.wrong.fetch_add(usize::from(!is_prefix(incoming.received())), Ordering::Relaxed);
            tally.left.fetch_add(1, Ordering::Relaxed);
            return;
        }
        1 if is_framed => {
            let mut count = 0;
            while count < expected.len() && incoming.read(count).await {
                count += 128 * KIB;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        _ => {}
    }
    let (reply, _) = incoming.finish().await;
    let fits = if reply.is_complete() { reply.body == expected } else { is_prefix(&reply.body) };
    let count = if reply.is_complete() { &tally.complete } else { &tally.cut };
    count.fetch_add(1, Ordering::Relaxed);
    tally.wrong.fetch_add(usize::from(!fits), Ordering::Relaxed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_sees_no_wrong_byte_and_leaves_nothing_behind() {
    let seed = seed();
    println!("FOREBAY_STRESS_SEED={seed}");
    let mut dice = Dice(seed);
    let upstream = ScriptedRegistry::start().await;
    let targets: Vec<Target> = (0..BLOBS)
        .map(|place| {
            let bytes = sample(dice.next(), MIB + dice.below(7 * MIB));
            let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
            Target { path, bytes, is_doubtful: place == 0 }
        })
        .collect();
    let targets = Arc::new(targets);
    spoil(&upstream, &targets, &mut dice);
    // Room for about half of them, so that some come more than once. Silence comes often here, so it is short: what it does
    // to an innocent answer is within the bounds below.
    let setup = Proxy::of(&upstream).set("storage", "max_size", "16MiB").each("read_timeout", "2s");
    let proxy = Arc::new(setup.start().await);
    let tally = Arc::new(Tally::default());
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        clients.spawn(client(proxy.clone(), targets.clone(), Dice(dice.next()), tally.clone()));
    }
    let began = Instant::now();
    within(4 * PATIENCE, async {
        while let Some(joined) = clients.join_next().await {
            joined.unwrap();
        }
    })
    .await;
    let count = |count: &AtomicUsize| count.load(Ordering::Relaxed);
    let (complete, cut) = (count(&tally.complete), count(&tally.cut));
    let (refused, left) = (count(&tally.refused), count(&tally.left));
    println!(
        "{complete} complete, {cut} cut, {refused} refused, {left} left early, in {:?}; {} upstream requests",
        began.elapsed(),
        upstream.total()
    );
    assert_eq!(count(&tally.wrong), 0, "seed {seed}: answers with wrong bytes");
    assert!(complete > (cut + refused) * 2, "seed {seed}: {complete} complete, {cut} cut, {refused} refused");
    upstream.clear_rules();
    for target in targets.iter() {
        proxy.pull(&target.path, &target.bytes).await;
    }
    assert_eq!(proxy.admin("/readyz").await.status, 200);
    assert_clean(&proxy, &targets, seed).await;
}

/// What is left when all is quiet: at most the parked parts of what was asked for, and no download.
async fn assert_clean(proxy: &Proxy, targets: &[Target], seed: u64) {
    proxy.wait_no_fill().await;
    let spools = proxy.spools();
    assert!(spools.len() <= targets.len(), "seed {seed}: {spools:?}");
    for spool in &spools {
        let name = spool.to_string_lossy();
        assert!(name.contains("parked"), "seed {seed}: {name} is left over");
    }
}
