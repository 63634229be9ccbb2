//! What many clients of cached blobs cost in memory.

use std::time::Duration;

use anyhow::Context;
use anyhow::Result;

use super::GIB;
use super::MIB;
use crate::Options;
use crate::content::Blob;
use crate::load;
use crate::load::Plan;
use crate::load::Until;
use crate::server::Server;
use crate::table::Table;
use crate::upstream::Upstream;

const CLIENTS: usize = 256;
const MAX_RSS_ANON_BYTES: u64 = 64 * MIB;
const SAMPLE_EVERY: Duration = Duration::from_millis(20);

pub(crate) async fn run(options: &Options, table: &mut Table) -> Result<()> {
    let blob = Blob::new(if options.small { 128 * MIB } else { GIB }, 30);
    let upstream = Upstream::start(std::slice::from_ref(&blob), Default::default())?;
    let server = Server::forebay(&upstream)?;
    let idle = server.rss_anon_bytes()?;
    let plan = |clients, requests| Plan {
        address: server.address,
        paths: vec![blob.path()],
        clients,
        reconnects: true,
        until: Until::Requests(requests),
        tls: None,
    };
    load::run(&plan(1, 1)).await.with_context(|| server.log())?;
    upstream.settle().await;
    let filled = server.rss_anon_bytes()?;
    let mut peak = filled;
    let sample = async {
        loop {
            // A server that is gone shows in what the clients get.
            peak = peak.max(server.rss_anon_bytes().unwrap_or_default());
            tokio::time::sleep(SAMPLE_EVERY).await;
        }
    };
    let plan = plan(CLIENTS, CLIENTS as u64);
    let loaded = tokio::select! {
        outcome = load::run(&plan) => outcome,
        () = sample => unreachable!("it never ends"),
    };
    loaded.with_context(|| server.log())?;
    let mebibytes = |bytes: u64| bytes as f64 / MIB as f64;
    let (idle, filled) = (mebibytes(idle), mebibytes(filled));
    let value = format!("{:.1} MiB, {idle:.1} idle, {filled:.1} after the fill", mebibytes(peak));
    let name = format!("hit, {CLIENTS} clients on {} MiB: RssAnon", blob.size_bytes / MIB);
    table.row(&name, &value, "< 64 MiB", peak < MAX_RSS_ANON_BYTES);
    Ok(())
}
