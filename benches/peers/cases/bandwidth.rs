//! How precisely a bandwidth limit holds, and how evenly downloads share it.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Result;
use anyhow::bail;
use anyhow::ensure;
use futures_util::future::try_join_all;
use tokio::time::Instant;
use tokio::time::sleep;

use super::GIB;
use super::MB_PER_SECOND;
use crate::Options;
use crate::client;
use crate::content::Blob;
use crate::server::Server;
use crate::table::Table;
use crate::upstream::Manners;
use crate::upstream::Upstream;

const LIMIT: u64 = 20 * MB_PER_SECOND;
const DOWNLOADS: u64 = 4;
/// Buffers between the upstream and the limit fill first.
const RUN_UP: Duration = Duration::from_secs(2);
const WINDOW: Duration = Duration::from_secs(10);
const MAX_OFF_PERCENT: f64 = 5.0;

pub(crate) async fn run(_: &Options, table: &mut Table) -> Result<()> {
    let blobs: Vec<Blob> = (0..DOWNLOADS).map(|index| Blob::new(GIB, 30 + index)).collect();
    let upstream = Upstream::start(&blobs, Manners::default())?;
    let server = Server::forebay_with(&upstream, &[("FOREBAY_UPSTREAM__BANDWIDTH_LIMIT", "20MB/s")])?;
    let counts: Vec<Rc<Cell<u64>>> = blobs.iter().map(|_| Rc::default()).collect();
    let downloads = blobs.iter().zip(&counts).map(|(blob, count)| {
        let (path, count) = (blob.path(), count.clone());
        let address = server.address;
        async move {
            let answer = client::get(address, &path, None).await?;
            answer
                .read(u64::MAX, |_, bytes| {
                    count.set(count.get() + bytes.len() as u64);
                    Ok(())
                })
                .await
        }
    });
    let window = async {
        sleep(RUN_UP).await;
        let (before, start): (Vec<u64>, _) = (counts.iter().map(|count| count.get()).collect(), Instant::now());
        sleep(WINDOW).await;
        let got: Vec<u64> = counts.iter().zip(before).map(|(count, before)| count.get() - before).collect();
        (got, start.elapsed().as_secs_f64())
    };
    let (got, seconds) = tokio::select! {
        measured = window => measured,
        ended = try_join_all(downloads) => {
            ended?;
            bail!("a limited download ended too early");
        }
    };
    ensure!(got.iter().all(|&bytes| bytes > 0), "a download got nothing: {}", server.log());
    let fair = LIMIT as f64 * seconds;
    let off_percent = |bytes: u64, expected: f64| (bytes as f64 / expected - 1.0) * 100.0;
    let total = off_percent(got.iter().sum(), fair);
    let value = format!("{total:+.1} %");
    table.row("20 MB/s over 10 s, 4 downloads: off by", &value, "<= 5 %", total.abs() <= MAX_OFF_PERCENT);
    let worst = got.iter().map(|&bytes| off_percent(bytes, fair / DOWNLOADS as f64).abs()).fold(0.0, f64::max);
    table.note("the download that is furthest from its share: off by", &format!("{worst:.1} %"));
    Ok(())
}
