//! The composition root: builds the layers bottom-up, starts them, and stops them in reverse.
//!
//! The only file that names all layers. It decides nothing: it turns configuration into each layer's options.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context as _;
use tokio::signal::unix::Signal;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::admin;
use crate::admin::Admin;
use crate::admin::Readiness;
use crate::admin::ReloadRequest;
use crate::admin::Reloaded;
use crate::config;
use crate::config::AbandonPolicy;
use crate::config::Config;
use crate::config::Log;
use crate::config::RegistryConfig;
use crate::config::Server;
use crate::config::SizeOrPercent;
use crate::config::TlsFiles;
use crate::config::TlsPem;
use crate::manager;
use crate::manager::Sockets;
use crate::metrics::Metrics;
use crate::oci::Registry;
use crate::pull;
use crate::pull::FillPolicy;
use crate::pull::Policy;
use crate::pull::Puller;
use crate::pull::TagRule;
use crate::registry;
use crate::registry::InvalidOptions;
use crate::registry::RoutingTable;
use crate::registry::Service;
use crate::serve;
use crate::serve::Listeners;
use crate::serve::Tls;
use crate::store;
use crate::store::Amount;
use crate::store::Store;
use crate::telemetry::LogLevel;
use crate::telemetry::Telemetry;
use crate::upstream;
use crate::upstream::SetupError;
use crate::upstream::Upstream;

/// Longest wait for the downloads in progress to stop, and for the store to close after that: each keeps what it has
/// when it is cut short.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// How often the files of certificates are looked at.
const CERTIFICATES_EVERY: Duration = Duration::from_secs(5);

/// Finds what the layers would refuse, without binding, opening or asking anything.
pub fn check(config: &Config) -> Result<(), config::Error> {
    certificates(config)?;
    build(config, &Metrics::disabled()).map(|_| ())
}

/// The certificates in use, when there are any, and where they come from.
fn certificates(config: &Config) -> Result<Option<Certificates>, config::Error> {
    config.server.tls.as_ref().map(Certificates::load).transpose()
}

/// What is made of the configuration alone.
fn build(config: &Config, metrics: &Metrics) -> Result<(RoutingTable, Upstream), config::Error> {
    let table = RoutingTable::new(registry_options(config)).map_err(|error| names_refused(&error))?;
    let upstream = Upstream::new(upstream_options(config), metrics.clone());
    Ok((table, upstream.map_err(|error| upstream_refused(config, &error))?))
}

/// Reads the configuration from where it was read at start.
pub type LoadConfig = Box<dyn Fn() -> Result<Config, config::Error> + Send + Sync>;

/// Runs the proxy until it is told to stop by SIGTERM or SIGINT; told again, it calls `end_at_once`. SIGHUP reloads the
/// configuration.
pub async fn run(
    config: Config,
    load: LoadConfig,
    sockets: Sockets,
    telemetry: &Telemetry,
    end_at_once: fn() -> !,
) -> anyhow::Result<()> {
    let started = Instant::now();
    let stop = stop_signal(end_at_once)?;
    let metrics = Metrics::new(&telemetry.meter());
    let readiness = Readiness::new();
    let prometheus = telemetry.prometheus();

    let (table, upstream) = build(&config, &metrics)?;
    for known in config.registries.iter().filter(|known| known.drops_credentials) {
        let registry = &known.registry;
        tracing::warn!(%registry, "--upstream names another origin: the configured credentials are not used");
    }
    if config.upstream.offline {
        tracing::warn!("switched offline by the configuration: no registry is asked");
    }
    // Ports before data: a second forebay should say that its port is in use before it touches anything.
    let certificates = certificates(&config)?;
    let tls = certificates.as_ref().map(|certificates| certificates.tls.clone());
    let (listeners, admin) = listen(&config, tls, sockets).await?;
    let store = store_options(&config);
    let store = tokio::task::block_in_place(|| Store::open(&store, metrics.clone()))?;
    let puller = Puller::new(pull_options(&config), store.clone(), upstream.clone(), metrics.clone());
    puller.keep_pins();
    report_health(&store, &readiness);
    if let Some(scrub) = scrub_plan(&config) {
        store.scrub_in_background(scrub);
    }
    let service = Service::new(table, puller.clone(), metrics);
    let (reload, requests) = mpsc::channel(1);
    let (service_now, level) = (service.clone(), telemetry.level());
    let reloading = Reloading { load, config, upstream, puller: puller.clone(), service: service_now, level };
    tokio::spawn(reloading.run(requests, signal(SignalKind::hangup()).context("cannot listen for SIGHUP")?));

    for address in listeners.addresses() {
        tracing::info!(listener = "registry", %address, "listening");
    }
    let control = admin::Control {
        readiness: readiness.clone(),
        metrics_text: Arc::new(move || prometheus.text()),
        store: store.clone(),
        puller: puller.clone(),
        log_level: telemetry.level(),
        runtime: tokio::runtime::Handle::current(),
        reload,
    };
    let admin_stop = CancellationToken::new();
    let admin_thread = admin.spawn(control, admin_stop.clone()).context("cannot start the admin port")?;
    readiness.set_ready();
    manager::tell_ready();
    tracing::info!(startup_ms = started.elapsed().as_millis(), version = env!("CARGO_PKG_VERSION"), "ready");

    let not_ready = readiness.clone();
    tokio::spawn({
        let stop = stop.clone();
        async move {
            stop.cancelled().await;
            not_ready.set_not_ready("stopping");
            manager::tell_stopping();
            tracing::info!("stopping: answers in flight may finish");
        }
    });
    if let Some(certificates) = certificates {
        tokio::spawn(stop.clone().run_until_cancelled_owned(certificates.watch()));
    }
    let handler = move |request| {
        let service = service.clone();
        async move { service.handle(request).await }
    };
    listeners.run(handler, stop).await;
    if timeout(STOP_TIMEOUT, puller.stop()).await.is_err() {
        tracing::warn!(seconds = STOP_TIMEOUT.as_secs(), "downloads did not stop in time");
    }
    if timeout(STOP_TIMEOUT, store.close()).await.is_err() {
        tracing::warn!(seconds = STOP_TIMEOUT.as_secs(), "the store did not close in time");
    }
    admin_stop.cancel();
    let _ = tokio::task::spawn_blocking(move || admin_thread.join()).await;
    tracing::info!("stopped");
    Ok(())
}

/// The two ports: sockets that were handed over, or the configured addresses.
async fn listen(config: &Config, tls: Option<Tls>, sockets: Sockets) -> anyhow::Result<(Listeners, Admin)> {
    let options = serve_options(config, tls);
    let listeners = match sockets.registry {
        none if none.is_empty() => Listeners::bind(&options).await?,
        registry => Listeners::adopt(registry, &options).context("cannot use the service manager's sockets")?,
    };
    let admin = match sockets.admin {
        None => Admin::bind(admin_options(config))?,
        Some(socket) => {
            Admin::adopt(socket, admin_options(config)).context("cannot use the service manager's admin socket")?
        }
    };
    let address = admin.address();
    if config.admin.token.is_none() && !address.ip().is_loopback() {
        tracing::warn!(%address, "other machines reach the admin port: its API is closed until admin.token is set");
    }
    Ok((listeners, admin))
}

/// Lets `/readyz` say how the disk does.
fn report_health(store: &Store, readiness: &Readiness) {
    let (mut health, readiness) = (store.health(), readiness.clone());
    tokio::spawn(async move {
        loop {
            readiness.set_degraded(health.borrow_and_update().as_deref().map(str::to_owned));
            if health.changed().await.is_err() {
                return;
            }
        }
    });
}

/// A token that the first SIGTERM or SIGINT cancels. The second calls `end_at_once`: what is on disk is whole at
/// any moment.
fn stop_signal(end_at_once: fn() -> !) -> anyhow::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let token = CancellationToken::new();
    let stop = token.clone();
    tokio::spawn(async move {
        let mut next = async || {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        next().await;
        stop.cancel();
        next().await;
        tracing::warn!("a second signal: ending at once");
        end_at_once();
    });
    Ok(token)
}

// === Reload ===

/// What a configuration is put into force with, while everything runs.
struct Reloading {
    load: LoadConfig,
    /// In force, but for what needs a restart.
    config: Config,
    upstream: Upstream,
    puller: Puller,
    service: Service,
    level: LogLevel,
}

impl Reloading {
    /// One reload at a time, as SIGHUP and the admin port ask for them.
    async fn run(mut self, mut requests: mpsc::Receiver<ReloadRequest>, mut hangups: Signal) {
        loop {
            tokio::select! {
                Some(()) = hangups.recv() => {
                    let _ = self.reload();
                }
                Some(request) = requests.recv() => {
                    let _ = request.answer.send(self.reload());
                }
                else => return,
            }
        }
    }

    /// All of it, or nothing and why.
    fn reload(&mut self) -> Result<Reloaded, String> {
        manager::tell_reloading();
        let reloaded = tokio::task::block_in_place(|| self.apply());
        manager::tell_ready();
        match &reloaded {
            Ok(Reloaded { needs_restart }) => {
                tracing::info!(
                    ?needs_restart,
                    registries = self.config.registries.len(),
                    "the configuration was reloaded"
                );
            }
            Err(problem) => {
                tracing::error!(problem, "the configuration was not reloaded; the one before stays in force")
            }
        }
        reloaded
    }

    fn apply(&mut self) -> Result<Reloaded, String> {
        let config = (self.load)().map_err(|error| error.to_string())?;
        let table = RoutingTable::new(registry_options(&config)).map_err(|error| names_refused(&error).to_string())?;
        // The last step that can fail; the next request after it finds all of it.
        let upstream = self.upstream.reconfigure(upstream_options(&config));
        upstream.map_err(|error| upstream_refused(&config, &error).to_string())?;
        self.puller.reconfigure(pull_options(&config));
        self.service.reroute(table);
        // A level that the admin port has set stays until the file says another.
        if config.log.level != self.config.log.level {
            let _ = self.level.set(&config.log.level);
        }
        let needs_restart = needs_restart(&self.config, &config);
        self.config = Config {
            server: Server { default_registry: config.server.default_registry, ..self.config.server.clone() },
            admin: self.config.admin.clone(),
            storage: self.config.storage.clone(),
            log: Log { level: config.log.level, ..self.config.log.clone() },
            telemetry: self.config.telemetry.clone(),
            ..config
        };
        Ok(Reloaded { needs_restart })
    }
}

/// What differs and is read at start only.
fn needs_restart(now: &Config, then: &Config) -> Vec<String> {
    let rows = [
        ("server.listen", now.server.listen != then.server.listen),
        ("server.shutdown_grace", now.server.shutdown_grace != then.server.shutdown_grace),
        ("server.max_connections", now.server.max_connections != then.server.max_connections),
        ("server.tls", now.server.tls != then.server.tls),
        ("server.header_timeout", now.server.header_timeout != then.server.header_timeout),
        ("admin", now.admin != then.admin),
        ("storage", now.storage != then.storage),
        ("log.format", now.log.format != then.log.format),
        ("telemetry", now.telemetry != then.telemetry),
    ];
    rows.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key.to_owned()).collect()
}

// === Certificates ===

/// The certificates of the registry port, and the files that they are in.
struct Certificates {
    files: TlsFiles,
    pem: TlsPem,
    tls: Tls,
}

impl Certificates {
    fn load(files: &TlsFiles) -> Result<Self, config::Error> {
        let refused = |problem: String| config::Error::Refused { key: "server.tls".to_owned(), problem };
        let pem = files.read().map_err(refused)?;
        let tls = Tls::new(&serve_pem(&pem)).map_err(|error| refused(error.to_string()))?;
        Ok(Self { files: files.clone(), pem, tls })
    }

    /// Takes up changes of the files, for ever. Looks into them instead of being told: that also works where they are
    /// links that change, as in a cluster, and for a file that another machine writes.
    async fn watch(mut self) {
        let mut refused = None;
        loop {
            tokio::time::sleep(CERTIFICATES_EVERY).await;
            let files = self.files.clone();
            let Ok(read) = tokio::task::spawn_blocking(move || files.read()).await else { continue };
            if read.as_ref() == Ok(&self.pem) {
                refused = None;
                continue;
            }
            let taken = read.and_then(|pem| match self.tls.replace(&serve_pem(&pem)) {
                Ok(()) => Ok(pem),
                Err(error) => Err(error.to_string()),
            });
            match taken {
                Ok(pem) => {
                    tracing::info!(cert = %self.files.cert.display(), "new certificates are in use");
                    (self.pem, refused) = (pem, None);
                }
                // Certificate and key are written one after the other: half of a change is nothing to shout about.
                Err(problem) if refused.as_ref() == Some(&problem) => {}
                Err(problem) => {
                    tracing::warn!(problem, "the certificates have changed and cannot be used; the old ones stay");
                    refused = Some(problem);
                }
            }
        }
    }
}

fn serve_pem(pem: &TlsPem) -> serve::Pem {
    let TlsPem { cert, key, client_ca } = pem.clone();
    serve::Pem { cert, key, client_ca }
}

// === Refusals ===

fn names_refused(error: &InvalidOptions) -> config::Error {
    let key = match error {
        InvalidOptions::Clash { second, .. } => format!("registry[{second}]"),
        InvalidOptions::Alias { registry, .. } => format!("registry[{registry}].aliases"),
        InvalidOptions::VirtualHost { registry, .. } => format!("registry[{registry}].virtual_hosts"),
        InvalidOptions::Default(_) => "server.default_registry".to_owned(),
    };
    config::Error::Refused { key, problem: error.to_string() }
}

fn upstream_refused(config: &Config, error: &SetupError) -> config::Error {
    let key = match error {
        SetupError::NoEndpoint { registry } | SetupError::BadEndpoint { registry } => {
            format!("registry[{registry}].endpoints")
        }
        SetupError::Duplicate { registry } => format!("registry[{registry}].host"),
        SetupError::BadCredentials { registry } => format!("registry[{registry}].username"),
        SetupError::BadCa { registry, .. } => {
            let file = config.registries.iter().find(|known| known.registry == *registry);
            let file = file.and_then(|known| known.ca_file.as_deref()).unwrap_or(Path::new(""));
            format!("registry[{registry}].ca_file = {file:?}")
        }
        SetupError::BadClientCertificate { registry, .. } => format!("registry[{registry}].client_cert"),
        SetupError::BadProxy { registry, .. } => format!("registry[{registry}].proxy"),
        SetupError::UnknownRegistry { registry } => format!("registry[{registry}].host"),
        SetupError::Client { .. } => "registry".to_owned(),
    };
    config::Error::Refused { key, problem: error.to_string() }
}

// === Options ===

fn serve_options(config: &Config, tls: Option<Tls>) -> serve::Options {
    serve::Options {
        listen: config.server.listen.clone(),
        max_connections: config.server.max_connections,
        header_timeout: config.server.header_timeout,
        shutdown_grace: config.server.shutdown_grace,
        tls,
    }
}

fn admin_options(config: &Config) -> admin::Options {
    let token = config.admin.token.as_ref().map(|token| token.expose().to_owned());
    admin::Options { listen: config.admin.listen, token }
}

fn store_options(config: &Config) -> store::Options {
    let amount = |size: SizeOrPercent| match size {
        SizeOrPercent::Size(size) => Amount::Bytes(size.bytes()),
        SizeOrPercent::Percent(percent) => Amount::Percent(percent),
    };
    store::Options {
        path: config.storage.path.clone(),
        max_size: amount(config.storage.max_size),
        min_free: amount(config.storage.min_free),
        memory_cache_bytes: config.storage.memory_cache.bytes(),
    }
}

fn scrub_plan(config: &Config) -> Option<store::Scrub> {
    let interval = config.storage.scrub_interval?;
    Some(store::Scrub { interval, rate_bytes_per_second: config.storage.scrub_rate.bytes_per_second().get() })
}

fn upstream_options(config: &Config) -> upstream::Options {
    let registries = config.registries.iter().map(|known| upstream::RegistryOptions {
        credentials: known.credentials.as_ref().map(credentials),
        ca_pem: known.ca_pem.clone(),
        client_certificate: known.client_certificate.as_ref().map(|certificate| upstream::ClientCertificate {
            cert_pem: certificate.cert_pem.clone(),
            key_pem: certificate.key_pem.expose().to_owned().into(),
        }),
        proxy: match &known.proxy {
            config::Proxy::Environment => upstream::Proxy::Environment,
            config::Proxy::None => upstream::Proxy::None,
            config::Proxy::Url(url) => upstream::Proxy::Url(url.clone()),
        },
        max_requests_per_minute: known.max_requests_per_minute,
        offline: known.offline,
        token_realms: known.token_realms.clone(),
        connect_timeout: known.connect_timeout,
        read_timeout: known.read_timeout,
        bandwidth: bandwidth(&known.bandwidth),
        ..upstream::RegistryOptions::new(known.registry.clone(), known.endpoints.clone())
    });
    upstream::Options {
        registries: registries.collect(),
        bandwidth: bandwidth(&config.upstream.bandwidth),
        offline: config.upstream.offline,
        ..upstream::Options::default()
    }
}

fn credentials(configured: &config::Credentials) -> upstream::Credentials {
    match configured {
        config::Credentials::Password { username, password, .. } => upstream::Credentials::Password {
            username: username.clone(),
            password: password.expose().to_owned().into(),
        },
        config::Credentials::IdentityToken { username, token } => {
            upstream::Credentials::IdentityToken { username: username.clone(), token: token.expose().to_owned().into() }
        }
        config::Credentials::Helper { program, server } => {
            upstream::Credentials::Helper { program: program.clone(), server: server.clone() }
        }
    }
}

fn bandwidth(configured: &config::Bandwidth) -> upstream::Bandwidth {
    let window = |window: &config::Window| upstream::Window {
        from: window.from,
        to: window.to,
        limit: window.limit.bytes_per_second(),
    };
    upstream::Bandwidth {
        limit: configured.limit.map(config::Rate::bytes_per_second),
        schedule: configured.schedule.iter().map(window).collect(),
    }
}

fn policies(config: &Config) -> HashMap<Registry, Policy> {
    let rule = |rule: &config::TagRule| TagRule {
        pattern: rule.pattern.clone(),
        tag_ttl: rule.tag_ttl,
        stale_if_error: rule.stale_if_error,
        immutable: rule.immutable,
        offline: rule.offline,
    };
    let policy = |known: &RegistryConfig| Policy {
        tag_ttl: known.tag_ttl,
        stale_if_error: known.stale_if_error,
        not_found_ttl: known.not_found_ttl,
        grant_ttl: known.grant_ttl,
        tag_rules: known.tag_rules.iter().map(rule).collect(),
        allow: known.allow.clone(),
        deny: known.deny.clone(),
    };
    config.registries.iter().map(|known| (known.registry.clone(), policy(known))).collect()
}

fn pull_options(config: &Config) -> pull::Options {
    let fill_policy = |known: &RegistryConfig| FillPolicy {
        lanes_per_blob: known.lanes_per_blob,
        parks_deserted: known.abandon_policy == AbandonPolicy::Park,
        max_fills: known.max_fills,
    };
    let fill_policies = config.registries.iter().map(|known| (known.registry.clone(), fill_policy(known)));
    pull::Options {
        policies: policies(config),
        fill_policies: fill_policies.collect(),
        max_fills: config.upstream.max_fills,
    }
}

fn registry_options(config: &Config) -> registry::Options {
    let registries = config.registries.iter().map(|known| registry::Routing {
        registry: known.registry.clone(),
        aliases: known.aliases.clone(),
        virtual_hosts: known.virtual_hosts.clone(),
    });
    registry::Options { registries: registries.collect(), default_registry: config.server.default_registry.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Overrides;

    #[test]
    fn limits_reach_the_layers() {
        let file = "[upstream]\nmax_fills = 9\nbandwidth_limit = \"3MB/s\"\n[[registry]]\nhost = \"a.io\"\nmax_fills = 2\n\
            lanes_per_blob = 4\nabandon_policy = \"finish\"\nbandwidth_limit = \"1MB/s\"\n\
            connect_timeout = \"3s\"\nread_timeout = \"7s\"\n[server]\nshutdown_grace = \"11s\"\nheader_timeout = \"13s\"";
        let config = Config::from_sources(Some((Path::new("f.toml"), file)), &[], &Overrides::default()).unwrap();
        let pull = pull_options(&config);
        assert_eq!(pull.max_fills, 9);
        let set = FillPolicy { lanes_per_blob: 4, parks_deserted: false, max_fills: 2 };
        assert_eq!(pull.fill_policies[&"a.io".parse().unwrap()], set);
        assert_eq!(pull.fill_policies[&"ghcr.io".parse().unwrap()], FillPolicy::default());
        let upstream = upstream_options(&config);
        assert_eq!(upstream.bandwidth.limit.map(u64::from), Some(3_000_000));
        let limits = upstream.registries.iter().map(|known| known.bandwidth.limit.map(u64::from));
        assert_eq!(limits.flatten().collect::<Vec<_>>(), [1_000_000]);
        let seconds = Duration::from_secs;
        let own = upstream.registries.iter().find(|known| known.registry.as_str() == "a.io").unwrap();
        assert_eq!((own.connect_timeout, own.read_timeout), (seconds(3), seconds(7)));
        let serve = serve_options(&config, None);
        assert_eq!((serve.shutdown_grace, serve.header_timeout), (seconds(11), seconds(13)));
    }

    #[test]
    fn the_defaults_of_the_layers_are_those_of_the_configuration() {
        let config = Config::default();
        assert_eq!(pull_options(&config).max_fills, pull::Options::default().max_fills);
        assert!(pull_options(&config).fill_policies.values().all(|policy| *policy == FillPolicy::default()));
        assert!(policies(&config).values().all(|policy| *policy == Policy::default()));
        assert!(upstream_options(&config).bandwidth.is_unlimited());
    }
}
