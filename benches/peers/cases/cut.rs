//! An upstream that closes the connection in the middle.

use anyhow::Result;
use anyhow::ensure;
use sha2::Digest as _;
use sha2::Sha256;

use super::MIB;
use super::show_requests;
use crate::Options;
use crate::client;
use crate::content::Blob;
use crate::content::digest_text;
use crate::server::Server;
use crate::table::Table;
use crate::upstream::Cut;
use crate::upstream::Manners;
use crate::upstream::Upstream;

const BLOB_BYTES: u64 = 256 * MIB;
const PERCENTS: [u64; 3] = [50, 90, 99];
const MAX_TWICE_BYTES: u64 = MIB;

pub(crate) async fn run(options: &Options, table: &mut Table) -> Result<()> {
    let blob = Blob::new(BLOB_BYTES, 5);
    for percent in PERCENTS {
        let cut = Cut::OnceAt(BLOB_BYTES / 100 * percent);
        measure(&format!("cut once at {percent} %: fetched twice"), &blob, cut, options, table).await;
    }
    let cut = Cut::EachAfter(BLOB_BYTES / 4);
    measure("cut after each quarter: fetched twice", &blob, cut, options, table).await;
    Ok(())
}

/// A client that does not get all is a row of its own: the other cuts are still worth knowing.
async fn measure(name: &str, blob: &Blob, cut: Cut, options: &Options, table: &mut Table) {
    match fetch(blob, cut, options).await {
        Ok((bytes, requests)) => {
            let twice = bytes.saturating_sub(BLOB_BYTES);
            let value = format!("{:.3} MiB, {requests} requests", twice as f64 / MIB as f64);
            table.row(name, &value, "< 1 MiB", twice < MAX_TWICE_BYTES && bytes >= BLOB_BYTES);
        }
        Err(error) => table.row(name, &format!("{error:#}"), "< 1 MiB", false),
    }
}

/// Bytes and requests it took until one client had it all.
async fn fetch(blob: &Blob, cut: Cut, options: &Options) -> Result<(u64, u64)> {
    let manners = Manners { cut: Some(cut), ..Manners::default() };
    let upstream = Upstream::start(std::slice::from_ref(blob), manners)?;
    let server = Server::forebay(&upstream)?;
    let answer = client::get(server.address, &blob.path(), None).await?;
    let mut hash = Sha256::new();
    answer
        .read(u64::MAX, |_, bytes| {
            hash.update(bytes);
            Ok(())
        })
        .await?;
    let digest = digest_text(hash);
    ensure!(digest == blob.digest, "wrong bytes: {digest} for {}", blob.digest);
    upstream.settle().await;
    show_requests(options, &upstream);
    Ok((upstream.body_bytes(), upstream.requests()))
}
