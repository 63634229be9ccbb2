//! What an administrator leaves to the proxy: bandwidth, and downloads at once.

use std::time::Duration;
use std::time::Instant;

use crate::support::PATIENCE;
use crate::support::REPOSITORY;
use crate::support::blob_path;
use crate::support::client::Incoming;
use crate::support::content::KIB;
use crate::support::content::MIB;
use crate::support::content::sample;
use crate::support::proxy::Proxy;
use crate::support::registry::ScriptedRegistry;
use crate::support::script::Gate;
use crate::support::script::on;
use crate::support::within;

/// The least time for `bytes` at 2 MB/s, less a fifth for what may be made up for at the start.
fn least_time(bytes: usize) -> Duration {
    Duration::from_secs_f64(bytes as f64 / 2e6 * 0.8)
}

#[tokio::test]
async fn a_cold_blob_takes_its_time_and_a_warm_one_does_not() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(1, 3 * MIB);
    let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
    let proxy = Proxy::of(&upstream).each("bandwidth_limit", "2MB/s").start().await;
    let started = Instant::now();
    proxy.get(&path).await.assert_body(200, &bytes);
    let cold = started.elapsed();
    assert!(cold >= least_time(bytes.len()), "{cold:?}");
    proxy.get_until_hit(&path).await;
    // What is here is not limited: on a busy machine it can take long, but not each time, and limited it never could be quick.
    within(PATIENCE, async {
        loop {
            let started = Instant::now();
            proxy.get(&path).await.assert_body(200, &bytes);
            if started.elapsed() < least_time(bytes.len()) {
                break;
            }
        }
    })
    .await;
    assert_eq!(upstream.count("GET", &path), 1);
}

#[tokio::test]
async fn two_blobs_share_the_total() {
    let upstream = ScriptedRegistry::start().await;
    let contents = [sample(2, 3 * MIB), sample(3, 3 * MIB)];
    let paths = contents.each_ref().map(|bytes| blob_path(&upstream.blob(REPOSITORY, bytes.clone())));
    let gates = [Gate::new(), Gate::new()];
    for (path, gate) in paths.iter().zip(&gates) {
        upstream.rule(on("GET", path).hold_at(KIB, gate));
    }
    let proxy = Proxy::of(&upstream).set("upstream", "bandwidth_limit", "2MB/s").start().await;
    let open = [proxy.open(&paths[0]).await, proxy.open(&paths[1]).await];
    // Both begin at the same moment.
    for gate in &gates {
        gate.reached().await;
    }
    let started = Instant::now();
    gates.iter().for_each(Gate::release);
    let get = async |incoming: Incoming, bytes: &[u8]| {
        incoming.reply().await.assert_body(200, bytes);
        started.elapsed()
    };
    let [one, other] = open;
    let (one, other) = tokio::join!(get(one, &contents[0]), get(other, &contents[1]));
    assert!(one.max(other) >= least_time(6 * MIB), "{one:?} {other:?}");
    // Neither had to wait for the other to end: both took longer than one alone would have.
    assert!(one.min(other) >= least_time(5 * MIB), "{one:?} {other:?}");
}

#[tokio::test]
async fn a_window_around_the_clock_limits_too() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(4, 3 * MIB);
    let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
    let window = |from: &str, to: &str| {
        let row = [("from", from), ("to", to), ("limit", "2MB/s")];
        toml::Value::Table(row.map(|(key, value)| (key.to_owned(), value.into())).into_iter().collect())
    };
    let day = vec![window("06:00", "18:00"), window("18:00", "06:00")];
    let proxy = Proxy::of(&upstream).each("bandwidth_schedule", day).environment("TZ", "Not/AZone").start().await;
    proxy.log.wait_for(|event| event["message"].as_str().is_some_and(|text| text.contains("are in UTC"))).await;
    let started = Instant::now();
    proxy.get(&path).await.assert_body(200, &bytes);
    assert!(started.elapsed() >= least_time(bytes.len()), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_download_waits_for_a_place() {
    let upstream = ScriptedRegistry::start().await;
    let contents = [sample(5, MIB), sample(6, MIB)];
    let paths = contents.each_ref().map(|bytes| blob_path(&upstream.blob(REPOSITORY, bytes.clone())));
    let gate = Gate::new();
    upstream.rule(on("GET", &paths[0]).hold_at(64 * KIB, &gate));
    let proxy = Proxy::of(&upstream).each("max_fills", 1).start().await;
    let first = proxy.open(&paths[0]).await;
    gate.reached().await;
    let second = proxy.get(&paths[1]);
    let release = async {
        proxy.wait_metric_above("forebay_fills_in_flight", &[], 1.0).await;
        assert_eq!(upstream.count("GET", &paths[1]), 0, "the only place is taken");
        gate.release();
        first.reply().await.assert_body(200, &contents[0]);
    };
    let (second, ()) = tokio::join!(second, release);
    second.assert_body(200, &contents[1]);
}
