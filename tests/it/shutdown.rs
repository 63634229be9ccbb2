//! Going away: answers in flight are finished, new ones are not begun, and it never takes longer than it may.

use rustix::process::Signal;

use crate::support::PATIENCE;
use crate::support::REPOSITORY;
use crate::support::blob_path;
use crate::support::client::Connection;
use crate::support::content::KIB;
use crate::support::content::MIB;
use crate::support::content::sample;
use crate::support::proxy::Proxy;
use crate::support::registry::ScriptedRegistry;
use crate::support::script::Gate;
use crate::support::script::on;
use crate::support::within;

#[tokio::test]
async fn a_download_in_flight_is_finished() {
    for signal in [Signal::TERM, Signal::INT] {
        let upstream = ScriptedRegistry::start().await;
        let bytes = sample(1, MIB);
        let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
        let gate = Gate::new();
        upstream.rule(on("GET", &path).hold_at(512 * KIB, &gate));
        let mut proxy = Proxy::of(&upstream).start().await;
        let incoming = proxy.open(&path).await;
        gate.reached().await;
        proxy.signal(signal);
        proxy.wait_refusing().await;
        gate.release();
        incoming.reply().await.assert_body(200, &bytes);
        assert_eq!(proxy.wait_exit(PATIENCE).await, Some(0), "{}", proxy.log.text());
    }
}

#[tokio::test]
async fn a_slow_reader_of_a_kept_blob_gets_the_rest() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(2, 16 * MIB);
    let path = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
    let mut proxy = Proxy::of(&upstream).start().await;
    proxy.get_until_hit(&path).await;
    let mut reader = Connection::open_narrow(proxy.address).await.unwrap();
    reader.send("GET", &path, &[]).await.unwrap();
    let reader = within(PATIENCE, reader.receive("GET")).await.unwrap();
    proxy.signal(Signal::TERM);
    proxy.wait_refusing().await;
    reader.reply().await.assert_body(200, &bytes);
    assert_eq!(proxy.wait_exit(PATIENCE).await, Some(0));
}

#[tokio::test]
async fn an_answer_without_end_is_not_waited_for_without_end() {
    let upstream = ScriptedRegistry::start().await;
    let path = blob_path(&upstream.blob(REPOSITORY, sample(3, MIB)));
    upstream.rule(on("GET", &path).stall_at(100_000));
    let mut proxy = Proxy::of(&upstream).set("server", "shutdown_grace", "1s").start().await;
    let incoming = proxy.open(&path).await;
    assert_eq!(proxy.terminate().await, Some(0), "{}", proxy.log.text());
    assert!(!incoming.reply().await.is_complete());
}

#[tokio::test]
async fn an_idle_connection_keeps_nobody() {
    let upstream = ScriptedRegistry::start().await;
    let mut proxy = Proxy::of(&upstream).start().await;
    let mut connection = Connection::open(proxy.address).await.unwrap();
    connection.send("GET", "/v2/", &[]).await.unwrap();
    let incoming = within(PATIENCE, connection.receive("GET")).await.unwrap();
    let (reply, mut connection) = within(PATIENCE, incoming.finish()).await;
    reply.assert_body(200, b"{}");
    // An answer in flight would get an hour.
    assert_eq!(proxy.terminate().await, Some(0));
    assert!(within(PATIENCE, connection.is_closed()).await);
}

#[tokio::test]
async fn a_download_nobody_waits_for_does_not_hold_up_the_end() {
    let upstream = ScriptedRegistry::start().await;
    let path = blob_path(&upstream.blob(REPOSITORY, sample(4, MIB)));
    let gate = Gate::new();
    upstream.rule(on("GET", &path).hold_at(100_000, &gate));
    let mut proxy = Proxy::of(&upstream).set("server", "shutdown_grace", "1s").start().await;
    drop(proxy.open(&path).await);
    gate.reached().await;
    assert_eq!(proxy.terminate().await, Some(0));
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    let upstream = ScriptedRegistry::start().await;
    let path = blob_path(&upstream.blob(REPOSITORY, sample(5, MIB)));
    upstream.rule(on("GET", &path).stall_at(100_000));
    let mut proxy = Proxy::of(&upstream).start().await;
    let incoming = proxy.open(&path).await;
    proxy.signal(Signal::TERM);
    proxy.wait_refusing().await;
    // The first one alone would wait for an hour.
    proxy.signal(Signal::INT);
    assert_eq!(proxy.wait_exit(PATIENCE).await, Some(1));
    assert!(!incoming.reply().await.is_complete());
}
