//! What many clients of several cold blobs cost in memory.

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
use crate::table::times;
use crate::upstream::Manners;
use crate::upstream::Upstream;

const CLIENTS: usize = 256;
const BLOBS: u64 = 8;
const BYTES_PER_SECOND: u64 = 200 * MB_PER_SECOND;
const MAX_RSS_ANON_BYTES: u64 = 64 * MIB;
const SAMPLE_EVERY: Duration = Duration::from_millis(20);

pub(crate) async fn run(options: &Options, table: &mut Table) -> Result<()> {
    let size = if options.small { 128 * MIB } else { GIB };
    let blobs: Vec<Blob> = (0..BLOBS).map(|index| Blob::new(size, 10 + index)).collect();
    let manners = Manners { bytes_per_second: Some(BYTES_PER_SECOND / BLOBS), ..Manners::default() };
    let upstream = Upstream::start(&blobs, manners)?;
    let server = Server::forebay(&upstream)?;
    let idle = server.rss_anon_bytes()?;
    let start = Instant::now();
    let mut clients = JoinSet::new();
    for blob in blobs.iter().cycle().take(CLIENTS).cloned() {
        let address = server.address;
        clients.spawn(async move {
            let got = client::get(address, &blob.path(), None).await?.discard().await?;
            ensure!(got == blob.size_bytes, "{got} bytes instead of {}", blob.size_bytes);
            Ok(())
        });
    }
    let mut peak = idle;
    let sample = async {
        loop {
            // A server that is gone shows in what the clients get.
            peak = peak.max(server.rss_anon_bytes().unwrap_or_default());
            tokio::time::sleep(SAMPLE_EVERY).await;
        }
    };
    tokio::select! {
        outcomes = all(clients, &server) => outcomes.context("a client did not get its blob")?,
        () = sample => Vec::new(),
    };
    let wall_seconds = start.elapsed().as_secs_f64();
    upstream.settle().await;
    show_requests(options, &upstream);
    let mebibytes = |bytes: u64| bytes as f64 / MIB as f64;
    let (high, low) = (mebibytes(peak), mebibytes(idle));
    let value = format!("{high:.1} MiB, {low:.1} idle, {wall_seconds:.1} s");
    let name = format!("memory, {CLIENTS} clients on {BLOBS} x {} MiB: RssAnon", size / MIB);
    table.row(&name, &value, "< 64 MiB", peak < MAX_RSS_ANON_BYTES);
    table.note("memory: upstream bytes", &times(upstream.body_bytes(), size * BLOBS));
    Ok(())
}
