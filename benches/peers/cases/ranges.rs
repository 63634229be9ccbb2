//! Parts of a cold blob.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use tokio::task::JoinSet;

use super::GIB;
use super::MB_PER_SECOND;
use super::MIB;
use super::all;
use super::show_requests;
use crate::Options;
use crate::client;
use crate::content::Blob;
use crate::server::Server;
use crate::table::Table;
use crate::table::median;
use crate::table::spread;
use crate::table::times;
use crate::upstream::Manners;
use crate::upstream::Upstream;

const PARTS: u64 = 8;
const MAX_TIMES: f64 = 1.05;
/// What containerd 2 asks for at a time, and how many at once.
const FETCH_BYTES: u64 = 8 * MIB;
const FETCHES: usize = 3;
const FAR_BYTES: u64 = 1024;
const ROUND_TRIP: Duration = Duration::from_millis(10);
const MAX_ROUND_TRIPS: f64 = 5.0;
/// After this the answer is late enough.
const MAX_FAR_WAIT: Duration = Duration::from_secs(3);

fn speeds() -> [(&'static str, Manners); 2] {
    let limited = Manners { bytes_per_second: Some(200 * MB_PER_SECOND), ..Manners::default() };
    [("200 MB/s a connection", limited), ("unlimited", Manners::default())]
}

fn size_bytes(options: &Options) -> u64 {
    if options.small { GIB / 4 } else { GIB }
}

/// Eight ranges that are the whole together, and the whole itself, all at once.
pub(crate) async fn closed(options: &Options, table: &mut Table) -> Result<()> {
    let blob = Blob::new(size_bytes(options), 2);
    for (speed, manners) in speeds() {
        let upstream = Upstream::start(std::slice::from_ref(&blob), manners)?;
        let server = Server::forebay(&upstream)?;
        let start = Instant::now();
        let mut clients = JoinSet::new();
        let part = blob.size_bytes / PARTS;
        for first in (0..PARTS).map(|index| index * part) {
            let range = format!("bytes={first}-{}", first + part - 1);
            clients.spawn(fetch(server.address, blob.clone(), Some(range), first, part));
        }
        clients.spawn(fetch(server.address, blob.clone(), None, 0, blob.size_bytes));
        all(clients, &server).await?;
        report("ranges, 8 and a whole", speed, &blob, &upstream, start, options, table).await;
    }
    Ok(())
}

/// As containerd 2 does: open-ended ranges, each left after its piece.
pub(crate) async fn open_ended(options: &Options, table: &mut Table) -> Result<()> {
    let blob = Blob::new(size_bytes(options), 3);
    for (speed, manners) in speeds() {
        let upstream = Upstream::start(std::slice::from_ref(&blob), manners)?;
        let server = Server::forebay(&upstream)?;
        let start = Instant::now();
        // The first answer tells it that there are ranges at all; the others are asked for while it is read.
        let first = client::get(server.address, &blob.path(), Some("bytes=0-")).await?;
        let next = Arc::new(AtomicU64::new(FETCH_BYTES));
        let mut clients = JoinSet::new();
        let mut first = Some(first);
        for _ in 0..FETCHES {
            let (blob, address, next, first) = (blob.clone(), server.address, next.clone(), first.take());
            clients.spawn(async move {
                if let Some(first) = first {
                    first.read(FETCH_BYTES, |at, bytes| check(&blob, at, bytes)).await?;
                }
                loop {
                    let at = next.fetch_add(FETCH_BYTES, Ordering::Relaxed);
                    if at >= blob.size_bytes {
                        return Ok(());
                    }
                    fetch(address, blob.clone(), Some(format!("bytes={at}-")), at, FETCH_BYTES).await?;
                }
            });
        }
        all(clients, &server).await?;
        report("open-ended, 3 x 8 MiB", speed, &blob, &upstream, start, options, table).await;
    }
    Ok(())
}

/// The last bytes of a blob of which nothing is there yet, over a slow and distant upstream.
pub(crate) async fn far(options: &Options, table: &mut Table) -> Result<()> {
    let blob = Blob::new(GIB, 4);
    let (at, last) = (blob.size_bytes - FAR_BYTES, blob.size_bytes - 1);
    for (form, range) in [("closed", format!("bytes={at}-{last}")), ("open-ended", format!("bytes={at}-"))] {
        let mut round_trips = Vec::new();
        for _ in 0..options.runs {
            let waited = far_range(&blob, &range, options).await?;
            round_trips.push(waited.as_secs_f64() / ROUND_TRIP.as_secs_f64());
        }
        let middle = median(&round_trips);
        let is_late = middle >= MAX_FAR_WAIT.as_secs_f64() / ROUND_TRIP.as_secs_f64();
        let more = if is_late { "> " } else { "" };
        let value = format!("{more}{middle:.2} round trips of 10 ms{}", spread(&round_trips));
        table.row(&format!("far range, {form}: first byte"), &value, "< 5", middle < MAX_ROUND_TRIPS);
    }
    Ok(())
}

/// How long the first byte took; [`MAX_FAR_WAIT`] when it did not come until then.
async fn far_range(blob: &Blob, range: &str, options: &Options) -> Result<Duration> {
    let at = blob.size_bytes - FAR_BYTES;
    let manners = Manners { bytes_per_second: Some(20 * MB_PER_SECOND), delay: ROUND_TRIP, cut: None };
    let upstream = Upstream::start(std::slice::from_ref(blob), manners)?;
    let server = Server::forebay(&upstream)?;
    let start = Instant::now();
    let first_byte = async {
        let mut answer = client::get(server.address, &blob.path(), Some(range)).await?;
        answer.first_byte().await?;
        anyhow::Ok(answer)
    };
    let first_byte = tokio::time::timeout(MAX_FAR_WAIT, first_byte).await;
    let waited = start.elapsed();
    show_requests(options, &upstream);
    let Ok(answer) = first_byte else { return Ok(MAX_FAR_WAIT) };
    let answer = answer?;
    ensure!(answer.from == at, "a range from {} instead of {at}", answer.from);
    // The last byte may wait for the verdict on the whole; the others may not.
    let wanted = FAR_BYTES - 1;
    let rest = answer.read(wanted, |at, bytes| check(blob, at, bytes));
    let got = tokio::time::timeout(MAX_FAR_WAIT, rest).await.context("the rest does not come")??;
    ensure!(got == wanted, "{got} bytes instead of {wanted}");
    Ok(waited)
}

async fn report(
    name: &str,
    speed: &str,
    blob: &Blob,
    upstream: &Upstream,
    start: Instant,
    options: &Options,
    table: &mut Table,
) {
    let wall_seconds = start.elapsed().as_secs_f64();
    upstream.settle().await;
    show_requests(options, upstream);
    let bytes = upstream.body_bytes();
    let ratio = times(bytes, blob.size_bytes);
    let value = format!("{ratio}, {} requests, {wall_seconds:.2} s", upstream.requests());
    let is_met = bytes as f64 / blob.size_bytes as f64 <= MAX_TIMES;
    table.row(&format!("{name}, {speed}"), &value, "<= 1.05x", is_met);
}

/// Gets a range, or the whole, and checks the bytes from `at` up to `limit_bytes` of them.
async fn fetch(
    address: std::net::SocketAddr,
    blob: Blob,
    range: Option<String>,
    at: u64,
    limit_bytes: u64,
) -> Result<()> {
    let answer = client::get(address, &blob.path(), range.as_deref()).await?;
    ensure!(answer.from == at, "a range from {} instead of {at}", answer.from);
    let got = answer.read(limit_bytes, |at, bytes| check(&blob, at, bytes)).await?;
    let wanted = limit_bytes.min(blob.size_bytes - at);
    ensure!(got == wanted, "{got} bytes instead of {wanted} from {at}");
    Ok(())
}

fn check(blob: &Blob, at: u64, bytes: &[u8]) -> Result<()> {
    ensure!(blob.holds(at, bytes), "wrong bytes between {at} and {}", at + bytes.len() as u64);
    Ok(())
}
