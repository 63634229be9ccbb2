//! What one client pays for being the first, in time and in the server's work.

use std::io::Write;
use std::net::SocketAddr;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;

use super::GIB;
use super::MB_PER_SECOND;
use crate::Options;
use crate::client;
use crate::content::Blob;
use crate::server::Kind;
use crate::server::Server;
use crate::table::Table;
use crate::table::median;
use crate::table::spread;
use crate::upstream::Manners;
use crate::upstream::Upstream;

const MAX_CPU_SECONDS_PER_GIB: f64 = 1.6;

struct Case {
    speed: &'static str,
    bytes_per_second: Option<u64>,
    max_times: f64,
}

const CASES: [Case; 2] = [
    Case { speed: "200 MB/s", bytes_per_second: Some(200 * MB_PER_SECOND), max_times: 1.05 },
    Case { speed: "unlimited", bytes_per_second: None, max_times: 2.5 },
];

/// One number a run.
#[derive(Default)]
struct Series {
    direct_seconds: Vec<f64>,
    over_direct: Vec<f64>,
    cpu_seconds_per_gib: Vec<f64>,
    over_other: Vec<f64>,
    other_cpu_seconds_per_gib: Vec<f64>,
}

pub(crate) async fn run(options: &Options, table: &mut Table) -> Result<()> {
    let blob = Blob::new(if options.small { GIB / 4 } else { GIB }, 6);
    for case in CASES {
        let manners = Manners { bytes_per_second: case.bytes_per_second, ..Manners::default() };
        let mut series = Series::default();
        for _ in 0..options.runs {
            round(&blob, manners, &mut series).await?;
        }
        report(&case, &series, table);
    }
    Ok(())
}

/// Direct, through Forebay, through the other one.
async fn round(blob: &Blob, manners: Manners, series: &mut Series) -> Result<()> {
    let upstream = Upstream::start(std::slice::from_ref(blob), manners)?;
    let direct = download(upstream.address, blob).await?;
    let (ours, cpu) = through(Kind::Forebay, &upstream, blob).await?.context("forebay is always there")?;
    series.direct_seconds.push(direct);
    series.over_direct.push(ours / direct);
    series.cpu_seconds_per_gib.push(cpu);
    if let Some((other, cpu)) = through(Kind::DockerRegistry, &upstream, blob).await? {
        series.over_other.push(ours / other);
        series.other_cpu_seconds_per_gib.push(cpu);
    }
    Ok(())
}

/// Wall seconds of a cold download and the server's CPU seconds per GiB, from its start to the end of the download.
async fn through(kind: Kind, upstream: &Upstream, blob: &Blob) -> Result<Option<(f64, f64)>> {
    let Some(server) = Server::start(kind, upstream)? else { return Ok(None) };
    touch_memory(blob.size_bytes)?;
    let before = server.cpu_seconds()?;
    let wall = download(server.address, blob).await.with_context(|| server.log())?;
    // What it fetches behind the client's back is part of the price.
    upstream.settle().await;
    let cpu = server.cpu_seconds()? - before;
    Ok(Some((wall, cpu * GIB as f64 / blob.size_bytes as f64)))
}

/// Has the machine back as much memory as the page cache will want: a virtual machine's host takes unused memory away,
/// and giving it back costs several times what writing to it does. That price is nobody's here.
fn touch_memory(size_bytes: u64) -> Result<()> {
    let mut file = tempfile::tempfile()?;
    let piece = vec![1; 1 << 20];
    for _ in 0..size_bytes >> 20 {
        file.write_all(&piece)?;
    }
    Ok(())
}

async fn download(address: SocketAddr, blob: &Blob) -> Result<f64> {
    let start = Instant::now();
    let got = client::get(address, &blob.path(), None).await?.swallow().await?;
    ensure!(got == blob.size_bytes, "{got} bytes instead of {}", blob.size_bytes);
    Ok(start.elapsed().as_secs_f64())
}

fn report(case: &Case, series: &Series, table: &mut Table) {
    let Case { speed, max_times, .. } = case;
    let over_direct = median(&series.over_direct);
    let direct = median(&series.direct_seconds);
    let value = format!("{over_direct:.3}x{}, direct {direct:.2} s", spread(&series.over_direct));
    let target = format!("<= {max_times:.2}x");
    table.row(&format!("cold wall over direct, {speed}"), &value, &target, over_direct <= *max_times);
    let cpu = median(&series.cpu_seconds_per_gib);
    let value = format!("{cpu:.2} s{}", spread(&series.cpu_seconds_per_gib));
    let name = format!("cold CPU per GiB, {speed}");
    table.row(&name, &value, "<= 1.6 s", cpu <= MAX_CPU_SECONDS_PER_GIB);
    let name = format!("cold, {speed}, our wall over docker-registry's");
    if series.over_other.is_empty() {
        table.note(&name, "not installed");
        return;
    }
    let its_cpu = median(&series.other_cpu_seconds_per_gib);
    let over_other = median(&series.over_other);
    let value = format!("{over_other:.2}x{}; its CPU {its_cpu:.2} s", spread(&series.over_other));
    table.note(&name, &value);
}
