//! One file a family of cases. A case sets up its upstream and servers, has clients ask, and writes rows into the table;
//! it fails when bytes are wrong, and only then. Targets are named where they are compared.

pub(crate) mod bandwidth;
pub(crate) mod cold_wall;
pub(crate) mod cut;
pub(crate) mod hit_memory;
pub(crate) mod hits;
pub(crate) mod instructions;
pub(crate) mod memory;
pub(crate) mod ranges;
pub(crate) mod soak;
pub(crate) mod stampede;

use anyhow::Result;
use tokio::task::JoinSet;

use crate::Options;
use crate::server::Server;
use crate::upstream::Upstream;

pub(crate) const MIB: u64 = 1024 * 1024;
pub(crate) const GIB: u64 = 1024 * MIB;
/// Units of upstream speeds.
pub(crate) const MB_PER_SECOND: u64 = 1_000_000;

/// Waits for all clients; the first failure ends it, with the server's last words.
async fn all<T: 'static>(mut clients: JoinSet<Result<T>>, server: &Server) -> Result<Vec<T>> {
    let mut outcomes = Vec::new();
    while let Some(outcome) = clients.join_next().await {
        outcomes.push(outcome?.map_err(|error| error.context(format!("its log ends with:\n{}", server.log())))?);
    }
    Ok(outcomes)
}

fn show_requests(options: &Options, upstream: &Upstream) {
    if options.verbose {
        eprintln!("upstream was asked:\n{}", upstream.seen());
    }
}
