//! Mixed clients at full load for a while: memory, descriptors and threads must not grow.

use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::MIB;
use crate::Options;
use crate::client;
use crate::content::Blob;
use crate::content::Image;
use crate::load;
use crate::load::Plan;
use crate::load::Until;
use crate::server::Server;
use crate::table::Table;
use crate::upstream::Upstream;

const HOT_BYTES: u64 = 64 * MIB;
/// Fetched for the first time during the run, one after the other.
const COLD_BLOBS: u64 = 256;
const COLD_BYTES: u64 = 2 * MIB;
const SAMPLES: u32 = 24;
/// What comes in the first quarter is the warming up.
const WARM_SAMPLES: usize = SAMPLES as usize / 4;
const MAX_GROWTH_BYTES: u64 = 8 * MIB;
const MAX_GROWTH_COUNT: u64 = 16;

#[derive(Clone, Copy, Debug)]
struct Sample {
    rss_anon_bytes: u64,
    threads: u64,
    descriptors: u64,
}

pub(crate) async fn run(options: &Options, table: &mut Table) -> Result<()> {
    let image = Image::new(&[2_000, 300_000, 20_000]);
    let hot = Blob::new(HOT_BYTES, 40);
    let cold: Vec<Blob> = (0..COLD_BLOBS).map(|seed| Blob::new(COLD_BYTES, 1000 + seed)).collect();
    let upstream = Upstream::with_image(&[std::slice::from_ref(&hot), &cold].concat(), &image)?;
    let server = Server::forebay(&upstream)?;
    let length = Duration::from_secs_f64(options.minutes * 60.0);
    let end = Instant::now() + length;
    let mut others = JoinSet::new();
    for number in 0..4 {
        others.spawn(misses(server.address, cold.clone(), number, end));
        others.spawn(ranges(server.address, hot.clone(), number as u64, end));
        others.spawn(aborts(server.address, hot.clone(), end));
    }
    for _ in 0..64 {
        others.spawn(slow(server.address, hot.clone(), end));
    }
    let hits = |paths: Vec<String>, clients, reconnects| Plan {
        address: server.address,
        paths,
        clients,
        reconnects,
        until: Until::Elapsed(length),
        tls: None,
    };
    let paths: Vec<String> = image.files().into_iter().map(|(path, _)| path).collect();
    let (kept, anew, large) = (hits(paths.clone(), 16, false), hits(paths, 8, true), hits(vec![hot.path()], 4, true));
    let loads = async { tokio::try_join!(load::run(&kept), load::run(&anew), load::run(&large)) };
    let (loaded, samples) = tokio::join!(loads, sample(&server, length));
    let (mut kept, anew, large) = loaded.with_context(|| server.log())?;
    let mut broken = 0;
    while let Some(outcome) = others.join_next().await {
        broken += u64::from(outcome?.inspect_err(|error| eprintln!("soak: {error:#}")).is_err());
    }
    ensure!(broken == 0, "{broken} clients got wrong answers; the log ends with:\n{}", server.log());
    let minutes = options.minutes;
    let (p50, p99) = (kept.quantile_millis(0.5), kept.quantile_millis(0.99));
    let requests = kept.requests + anew.requests + large.requests;
    table.note(
        &format!("soak, {minutes} minutes"),
        &format!("{requests} hits; small ones p50 {p50:.1} p99 {p99:.1} ms"),
    );
    report(&samples?, table)
}

fn report(samples: &[Sample], table: &mut Table) -> Result<()> {
    let warm = samples.get(WARM_SAMPLES..).filter(|warm| warm.len() > 1).context("too few samples")?;
    let (early, late) = warm.split_at(warm.len() / 2);
    let mut row = |name: &str, of: fn(&Sample) -> u64, unit: u64, limit: u64| {
        let highest = |samples: &[Sample]| samples.iter().map(of).max().unwrap_or_default();
        let (before, after) = (highest(early), highest(late));
        let value = format!("{} then {}", before / unit, after / unit);
        table.row(&format!("  {name}, first and second half"), &value, "no growth", after <= before + limit);
    };
    row("RssAnon MiB", |sample| sample.rss_anon_bytes, MIB, MAX_GROWTH_BYTES);
    row("threads", |sample| sample.threads, 1, MAX_GROWTH_COUNT);
    row("descriptors", |sample| sample.descriptors, 1, MAX_GROWTH_COUNT);
    Ok(())
}

async fn sample(server: &Server, length: Duration) -> Result<Vec<Sample>> {
    let mut samples = Vec::new();
    for _ in 0..SAMPLES {
        tokio::time::sleep(length / (SAMPLES + 1)).await;
        let (threads, descriptors) = server.threads_and_descriptors()?;
        samples.push(Sample { rss_anon_bytes: server.rss_anon_bytes()?, threads, descriptors });
    }
    Ok(samples)
}

async fn misses(address: std::net::SocketAddr, blobs: Vec<Blob>, number: usize, end: Instant) -> Result<()> {
    for blob in blobs.iter().skip(number).step_by(4).cycle() {
        if Instant::now() > end {
            break;
        }
        let answer = client::get(address, &blob.path(), None).await?;
        let got = answer.read(u64::MAX, |at, bytes| check(blob, at, bytes)).await?;
        ensure!(got == blob.size_bytes, "{got} bytes");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

async fn ranges(address: std::net::SocketAddr, blob: Blob, number: u64, end: Instant) -> Result<()> {
    let mut from = number * 1_000_003;
    while Instant::now() < end {
        from = (from * 31 + 7) % (blob.size_bytes - MIB);
        let answer = client::get(address, &blob.path(), Some(&format!("bytes={from}-{}", from + MIB - 1))).await?;
        ensure!(answer.read(u64::MAX, |at, bytes| check(&blob, at, bytes)).await? == MIB, "a short range");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Leaves in the middle.
async fn aborts(address: std::net::SocketAddr, blob: Blob, end: Instant) -> Result<()> {
    while Instant::now() < end {
        let answer = client::get(address, &blob.path(), None).await?;
        answer.read(3 * MIB, |at, bytes| check(&blob, at, bytes)).await?;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Takes nothing for most of the time, then goes.
async fn slow(address: std::net::SocketAddr, blob: Blob, end: Instant) -> Result<()> {
    while Instant::now() < end {
        let stream = TcpStream::connect(address).await?;
        let answer = client::ask(stream, &blob.path(), None).await?;
        tokio::time::sleep(Duration::from_secs(5)).await;
        answer.read(MIB, |at, bytes| check(&blob, at, bytes)).await?;
    }
    Ok(())
}

fn check(blob: &Blob, at: u64, bytes: &[u8]) -> Result<()> {
    ensure!(blob.holds(at, bytes), "wrong bytes at {at}");
    Ok(())
}
