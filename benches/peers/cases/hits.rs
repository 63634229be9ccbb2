//! What is in the cache already, side by side with nginx serving the same bytes as files, and with docker-registry.

use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use tempfile::TempDir;
use tokio_rustls::TlsConnector;

use super::GIB;
use super::MIB;
use crate::Options;
use crate::certificate;
use crate::content::Blob;
use crate::content::Content;
use crate::content::Image;
use crate::load;
use crate::load::Plan;
use crate::load::Until;
use crate::server::Server;
use crate::table::Table;
use crate::table::median;
use crate::table::spread;
use crate::upstream::Upstream;

const BLOB_BYTES: u64 = 256 * MIB;
/// A configuration and six layers.
const SMALL_IMAGE: [u64; 7] = [2_000, 1_500_000, 400_000, 90_000, 12_000, 1_200, 300];
const TURN: Duration = Duration::from_secs(2);

/// The servers of a comparison; those that are not installed are absent.
struct Peers {
    upstream: Upstream,
    forebay: Server,
    nginx: Option<Server>,
    docker_registry: Option<Server>,
}

/// One number a run of one server.
#[derive(Default)]
struct Series {
    rates: Vec<f64>,
    cpu_seconds: Vec<f64>,
    p50_millis: Vec<f64>,
    p99_millis: Vec<f64>,
}

/// One row.
struct Case<'a> {
    name: &'a str,
    paths: Vec<String>,
    clients: usize,
    reconnects: bool,
    tls: Option<TlsConnector>,
    until: Until,
    unit: Unit,
    /// At least this part of nginx's rate.
    min_rate: f64,
    /// At most this multiple of nginx's CPU time.
    max_cpu: f64,
}

#[derive(Clone, Copy, PartialEq)]
enum Unit {
    Gib,
    Request,
}

/// Large blobs, plain.
pub(crate) async fn blobs(options: &Options, table: &mut Table) -> Result<()> {
    let (blob, peers) = blob_peers(None).await?;
    for (clients, max_cpu) in [(1, f64::INFINITY), (16, 1.0)] {
        let name = format!("hit 256 MiB, {clients} clients");
        compare(&blob_case(&name, &blob, clients, None, max_cpu, options), &peers, options, table).await?;
    }
    Ok(())
}

/// Large blobs, encrypted.
pub(crate) async fn encrypted(options: &Options, table: &mut Table) -> Result<()> {
    let home = TempDir::new()?;
    let (files, connector) = certificate::make(home.path())?;
    let (blob, peers) = blob_peers(Some((&files, &connector))).await?;
    for clients in [1, 16] {
        let name = format!("hit 256 MiB over TLS, {clients} clients");
        let case = blob_case(&name, &blob, clients, Some(connector.clone()), f64::INFINITY, options);
        compare(&case, &peers, options, table).await?;
    }
    Ok(())
}

async fn blob_peers(tls: Option<(&crate::server::TlsFiles, &TlsConnector)>) -> Result<(Blob, Peers)> {
    let blob = Blob::new(BLOB_BYTES, 20);
    let upstream = Upstream::start(std::slice::from_ref(&blob), Default::default())?;
    let files = [(blob.path(), Content::Blob(blob.clone()))];
    let certificates = tls.map(|(files, _)| files);
    let peers = Peers {
        forebay: Server::forebay_tls(&upstream, certificates)?,
        nginx: Server::nginx(&files, certificates)?,
        docker_registry: match tls {
            None => Server::start(crate::server::Kind::DockerRegistry, &upstream)?,
            Some(_) => None,
        },
        upstream,
    };
    peers.warm(&[blob.path()], tls.map(|(_, connector)| connector)).await?;
    Ok((blob, peers))
}

fn blob_case<'a>(
    name: &'a str,
    blob: &Blob,
    clients: usize,
    tls: Option<TlsConnector>,
    max_cpu: f64,
    options: &Options,
) -> Case<'a> {
    let requests = if options.small { 4 } else { 16 };
    let until = Until::Requests(requests.max(clients as u64));
    let (paths, unit) = (vec![blob.path()], Unit::Gib);
    Case { name, paths, clients, reconnects: true, tls, until, unit, min_rate: 1.0, max_cpu }
}

/// Manifests and whole small images.
pub(crate) async fn small(options: &Options, table: &mut Table) -> Result<()> {
    let image = Image::new(&SMALL_IMAGE);
    let upstream = Upstream::with_image(&[], &image)?;
    let all: Vec<String> = image.files().into_iter().map(|(path, _)| path).collect();
    let peers = Peers {
        forebay: Server::forebay(&upstream)?,
        nginx: Server::nginx(&image.files(), None)?,
        docker_registry: Server::start(crate::server::Kind::DockerRegistry, &upstream)?,
        upstream,
    };
    peers.warm(&all, None).await?;
    let until = Until::Elapsed(if options.small { TURN / 4 } else { TURN });
    let case = |name, paths: &[String], clients, reconnects, min_rate| Case {
        name,
        paths: paths.to_vec(),
        clients,
        reconnects,
        tls: None,
        until,
        unit: Unit::Request,
        min_rate,
        max_cpu: f64::INFINITY,
    };
    let (by_digest, by_tag) = ([image.path_by_digest()], [image.path_by_tag()]);
    let one_by_one = all.iter().filter(|path| **path != image.path_by_digest()).cloned().collect::<Vec<_>>();
    for case in [
        case("manifest by digest, 64 connections", &by_digest, 64, false, 0.9),
        case("manifest by tag, 64 connections", &by_tag, 64, false, 0.9),
        case("small image, new connections, 1 client", &one_by_one, 1, true, f64::NEG_INFINITY),
        case("small image, new connections, 32 clients", &one_by_one, 32, true, 1.0),
    ] {
        compare(&case, &peers, options, table).await?;
    }
    Ok(())
}

impl Peers {
    fn all(&self) -> impl Iterator<Item = (usize, &Server)> {
        let all = [Some(&self.forebay), self.nginx.as_ref(), self.docker_registry.as_ref()];
        all.into_iter().enumerate().filter_map(|(place, server)| Some((place, server?)))
    }

    /// Everything once, so that all have it.
    async fn warm(&self, paths: &[String], tls: Option<&TlsConnector>) -> Result<()> {
        for (_, server) in self.all() {
            let plan = Plan {
                address: server.address,
                paths: paths.to_vec(),
                clients: 1,
                reconnects: true,
                until: Until::Requests(2 * paths.len() as u64),
                tls: tls.cloned(),
            };
            load::run(&plan).await.with_context(|| format!("its log ends with:\n{}", server.log()))?;
            self.upstream.settle().await;
        }
        Ok(())
    }
}

/// Turn by turn, so that what else the machine does hits all alike.
async fn compare(case: &Case<'_>, peers: &Peers, options: &Options, table: &mut Table) -> Result<()> {
    let mut series: [Series; 3] = Default::default();
    for _ in 0..options.runs {
        for (place, server) in peers.all() {
            let plan = Plan {
                address: server.address,
                paths: case.paths.clone(),
                clients: case.clients,
                reconnects: case.reconnects,
                until: case.until,
                tls: case.tls.clone(),
            };
            let before = server.cpu_seconds()?;
            let mut outcome =
                load::run(&plan).await.with_context(|| format!("its log ends with:\n{}", server.log()))?;
            let cpu = server.cpu_seconds()? - before;
            ensure!(outcome.requests > 0, "nothing was done");
            let done = match case.unit {
                Unit::Gib => outcome.body_bytes as f64 / GIB as f64,
                Unit::Request => outcome.requests as f64,
            };
            series[place].rates.push(done / outcome.wall_seconds);
            series[place].cpu_seconds.push(cpu / done);
            series[place].p50_millis.push(outcome.quantile_millis(0.5));
            series[place].p99_millis.push(outcome.quantile_millis(0.99));
        }
    }
    report(case, &series, table);
    Ok(())
}

fn report(case: &Case<'_>, series: &[Series; 3], table: &mut Table) {
    let [ours, nginx, other] = series;
    let absolute = |series: &Series| {
        let (rate, cpu) = (median(&series.rates), median(&series.cpu_seconds));
        match case.unit {
            Unit::Gib => format!("{rate:.2} GiB/s, {cpu:.2} CPU s/GiB"),
            Unit::Request => format!(
                "{rate:.0} /s, {:.1} CPU us, p50 {:.2} p99 {:.2} ms",
                cpu * 1e6,
                median(&series.p50_millis),
                median(&series.p99_millis)
            ),
        }
    };
    table.note(case.name, &absolute(ours));
    for (name, theirs) in [("nginx", nginx), ("docker-registry", other)] {
        if theirs.rates.is_empty() {
            continue;
        }
        let ratios = |ours: &[f64], theirs: &[f64]| ours.iter().zip(theirs).map(|(a, b)| a / b).collect::<Vec<_>>();
        let rates = ratios(&ours.rates, &theirs.rates);
        let cpu = ratios(&ours.cpu_seconds, &theirs.cpu_seconds);
        table.note(&format!("  {name}"), &absolute(theirs));
        let rate = format!("{:.2}x{}", median(&rates), spread(&rates));
        let cpu_text = format!("{:.2}x{}", median(&cpu), spread(&cpu));
        if name == "nginx" {
            let is_met = median(&rates) >= case.min_rate;
            table.row("  rate over nginx's", &rate, &format!(">= {:.1}x", case.min_rate), is_met);
            let is_met = median(&cpu) <= case.max_cpu;
            table.row("  CPU over nginx's", &cpu_text, &format!("<= {:.1}x", case.max_cpu), is_met);
        } else {
            table.note("  rate over docker-registry's", &rate);
        }
    }
}
