//! Many clients want the same cold blob at the same moment.

use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use sha2::Digest as _;
use sha2::Sha256;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::MB_PER_SECOND;
use super::MIB;
use super::all;
use super::show_requests;
use crate::Options;
use crate::client;
use crate::content::Blob;
use crate::content::digest_text;
use crate::server::Kind;
use crate::server::Server;
use crate::table::Table;
use crate::table::median;
use crate::table::spread;
use crate::table::times;
use crate::upstream::Manners;
use crate::upstream::Upstream;

const CLIENTS: [usize; 4] = [1, 10, 200, 1000];
const BLOB_BYTES: u64 = 64 * MIB;
/// Up to so many clients hash what they get; more of them would measure the hashing.
const MAX_HASHING_CLIENTS: usize = 10;
/// How many clients come to both servers.
const COMPARED_CLIENTS: usize = 10;
/// Slow enough that the last client comes long before the end of the download.
const MANNERS: Manners =
    Manners { bytes_per_second: Some(100 * MB_PER_SECOND), delay: std::time::Duration::ZERO, cut: None };

struct Outcome {
    upstream_bytes: u64,
    upstream_requests: u64,
    wall_seconds: f64,
}

pub(crate) async fn run(options: &Options, table: &mut Table) -> Result<()> {
    let blob = Blob::new(BLOB_BYTES, 1);
    for clients in CLIENTS {
        let outcome = stampede(Kind::Forebay, &blob, clients, options).await?.context("forebay is always there")?;
        let Outcome { upstream_bytes, upstream_requests, wall_seconds } = outcome;
        let bytes = times(upstream_bytes, BLOB_BYTES);
        let value = format!("{bytes}, {upstream_requests} requests, {wall_seconds:.2} s");
        let name = format!("stampede, {clients} clients: upstream bytes");
        table.row(&name, &value, "= 1.00x", upstream_bytes == BLOB_BYTES);
    }
    compare(&blob, options, table).await
}

async fn compare(blob: &Blob, options: &Options, table: &mut Table) -> Result<()> {
    let name = format!("stampede, {COMPARED_CLIENTS} clients, docker-registry");
    let (mut ratios, mut bytes, mut requests) = (Vec::new(), 0, 0);
    for _ in 0..options.runs {
        let Some(other) = stampede(Kind::DockerRegistry, blob, COMPARED_CLIENTS, options).await? else {
            table.note(&name, "not installed");
            return Ok(());
        };
        let ours = stampede(Kind::Forebay, blob, COMPARED_CLIENTS, options).await?.context("forebay is there")?;
        ratios.push(ours.wall_seconds / other.wall_seconds);
        bytes = bytes.max(other.upstream_bytes);
        requests = requests.max(other.upstream_requests);
    }
    table.note(&format!("{name}: upstream bytes"), &format!("{}, {requests} requests", times(bytes, BLOB_BYTES)));
    let value = format!("{:.2}x{}", median(&ratios), spread(&ratios));
    table.note(&format!("{name}: our wall over its"), &value);
    Ok(())
}

async fn stampede(kind: Kind, blob: &Blob, clients: usize, options: &Options) -> Result<Option<Outcome>> {
    let upstream = Upstream::start(std::slice::from_ref(blob), MANNERS)?;
    let Some(server) = Server::start(kind, &upstream)? else { return Ok(None) };
    let mut connections = Vec::new();
    for _ in 0..clients {
        connections.push(TcpStream::connect(server.address).await.context("cannot connect")?);
    }
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for connection in connections {
        tasks.spawn(take(connection, blob.clone(), clients <= MAX_HASHING_CLIENTS));
    }
    all(tasks, &server).await?;
    let wall_seconds = start.elapsed().as_secs_f64();
    upstream.settle().await;
    show_requests(options, &upstream);
    Ok(Some(Outcome { upstream_bytes: upstream.body_bytes(), upstream_requests: upstream.requests(), wall_seconds }))
}

async fn take(connection: TcpStream, blob: Blob, hashes: bool) -> Result<()> {
    let answer = client::ask(connection, &blob.path(), None).await?;
    if !hashes {
        let got = answer.discard().await?;
        ensure!(got == blob.size_bytes, "{got} bytes instead of {}", blob.size_bytes);
        return Ok(());
    }
    let mut hash = Sha256::new();
    answer
        .read(u64::MAX, |_, bytes| {
            hash.update(bytes);
            Ok(())
        })
        .await?;
    let digest = digest_text(hash);
    ensure!(digest == blob.digest, "got {digest} for {}", blob.digest);
    Ok(())
}
