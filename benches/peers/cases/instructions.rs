//! What a hit costs in instructions of our own, counted by callgrind: a number that no other load on the machine blurs.
//! What the kernel does is not in it.

use anyhow::Context;
use anyhow::Result;
use tempfile::TempDir;

use super::MIB;
use crate::content::Image;
use crate::load;
use crate::load::Plan;
use crate::load::Until;
use crate::server::Server;
use crate::table::Table;
use crate::upstream::Upstream;

const REQUESTS: u64 = 500;
/// A configuration, a small layer, and one that is sent as a file.
const BLOBS: [u64; 3] = [2_000, 20_000, MIB];

pub(crate) async fn run(table: &mut Table) -> Result<()> {
    let image = Image::new(&BLOBS);
    let cases = [
        ("manifest by tag", image.path_by_tag(), false),
        ("manifest by digest", image.path_by_digest(), false),
        ("blob of 2 KB", image.blobs[0].path(), false),
        ("blob of 1 MiB", image.blobs[2].path(), false),
        ("manifest by tag, new connection", image.path_by_tag(), true),
    ];
    for (name, path, reconnects) in cases {
        let name = format!("instructions: {name}");
        match count(&image, &path, reconnects).await? {
            Some(count) => table.note(&name, &format!("{:.0} a request", count as f64 / REQUESTS as f64)),
            None => table.note(&name, "valgrind is not installed"),
        }
    }
    Ok(())
}

async fn count(image: &Image, path: &str, reconnects: bool) -> Result<Option<u64>> {
    let (home, upstream) = (TempDir::new()?, Upstream::with_image(&[], image)?);
    let counts = home.path().join("counts");
    let Some(server) = Server::forebay_counted(&upstream, &counts)? else { return Ok(None) };
    let plan = |paths: Vec<String>, requests| Plan {
        address: server.address,
        paths,
        clients: 1,
        reconnects,
        until: Until::Requests(requests),
        tls: None,
    };
    let all: Vec<String> = image.files().into_iter().map(|(path, _)| path).collect();
    let twice = 2 * all.len() as u64;
    load::run(&plan(all, twice)).await.with_context(|| server.log())?;
    server.count_instructions(true)?;
    load::run(&plan(vec![path.to_owned()], REQUESTS)).await.with_context(|| server.log())?;
    server.count_instructions(false)?;
    // It writes them when it ends.
    drop(server);
    let text = std::fs::read_to_string(&counts).context("callgrind has written nothing")?;
    let total = text.lines().find_map(|line| line.strip_prefix("totals: ")).context("no totals")?;
    Ok(Some(total.trim().parse()?))
}
