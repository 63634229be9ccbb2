//! The proxy as a user runs it: a configuration file, a process, its log, its signals and its exit code.

use std::net::SocketAddr;
use std::path::Path;
use std::path::PathBuf;
use std::process::Output;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;
use std::time::Instant;

use rustix::process::Pid;
use rustix::process::Resource;
use rustix::process::Rlimit;
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::AsyncBufReadExt;
use tokio::io::AsyncRead;
use tokio::io::BufReader;
use tokio::net::TcpStream;
use tokio::process::Child;
use tokio::process::Command;
use tokio::sync::watch;
use toml::Table;

use super::GLANCE;
use super::NEVER;
use super::PATIENCE;
use super::REGISTRY;
use super::client;
use super::client::Incoming;
use super::client::Reply;
use super::registry::ScriptedRegistry;
use super::within;

const PROGRAM: &str = env!("CARGO_BIN_EXE_forebay");
/// How long the proxy lets a known tag wait for its upstream.
const KNOWN_TAG_WAIT: Duration = Duration::from_secs(2);

/// A `[[registry]]` to be.
#[derive(Clone, Debug)]
pub(crate) struct Registry(Table);

impl Registry {
    pub(crate) fn new(host: &str, endpoint: &str) -> Self {
        let mut table = Table::new();
        table.insert("host".to_owned(), host.into());
        table.insert("endpoints".to_owned(), vec![endpoint].into());
        Self(table).set("connect_timeout", NEVER).set("read_timeout", NEVER)
    }

    pub(crate) fn set(mut self, key: &str, value: impl Into<toml::Value>) -> Self {
        self.0.insert(key.to_owned(), value.into());
        self
    }
}

/// A configuration to be written to a file, and what else the process gets.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    document: Table,
    registries: Vec<Registry>,
    environment: Vec<(String, String)>,
    arguments: Vec<String>,
    file_limit: bool,
    is_powerless: bool,
}

impl Setup {
    /// A proxy that knows these registries (besides the built-in ones) and has the first of them as default.
    pub(crate) fn new(registries: &[Registry]) -> Self {
        let setup = Self {
            document: Table::new(),
            registries: registries.to_vec(),
            environment: Vec::new(),
            arguments: Vec::new(),
            file_limit: false,
            is_powerless: false,
        };
        let setup = setup
            .set("server", "listen", vec!["127.0.0.1:0"])
            .set("server", "header_timeout", NEVER)
            .set("server", "shutdown_grace", NEVER)
            .set("admin", "listen", "127.0.0.1:0")
            .set("storage", "min_free", "1MiB")
            .set("log", "format", "json")
            .set("log", "level", "info");
        match registries.first() {
            Some(Registry(table)) => setup.set("server", "default_registry", table["host"].clone()),
            None => setup,
        }
    }

    pub(crate) fn set(mut self, section: &str, key: &str, value: impl Into<toml::Value>) -> Self {
        let section = self.document.entry(section).or_insert_with(|| Table::new().into());
        section.as_table_mut().expect("sections are tables").insert(key.to_owned(), value.into());
        self
    }

    /// Sets a key of every registry.
    pub(crate) fn each(mut self, key: &str, value: impl Into<toml::Value>) -> Self {
        let value = value.into();
        for registry in &mut self.registries {
            registry.0.insert(key.to_owned(), value.clone());
        }
        self
    }

    pub(crate) fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// Prepares the process for [`Proxy::limit_files`]: a write beyond the limit is an error then, not the end.
    pub(crate) fn survives_file_limit(mut self) -> Self {
        self.file_limit = true;
        self
    }

    /// Permissions hold for the process, also when the tests are run by root.
    pub(crate) fn powerless(mut self) -> Self {
        self.is_powerless = true;
        self
    }

    /// The configuration file.
    pub(crate) fn text(&self) -> String {
        let mut document = self.document.clone();
        if !self.registries.is_empty() {
            let tables: Vec<Table> = self.registries.iter().map(|registry| registry.0.clone()).collect();
            document.insert("registry".to_owned(), tables.into());
        }
        document.to_string()
    }

    /// Starts the proxy in a new directory and waits until it is ready.
    pub(crate) async fn start(self) -> Proxy {
        self.start_in(Arc::new(TempDir::new().unwrap())).await
    }

    async fn start_in(self, home: Arc<TempDir>) -> Proxy {
        let mut child = self.command(home.path()).spawn().unwrap();
        let log = Log::default();
        log.follow(child.stdout.take().expect("stdout is piped"));
        log.follow(child.stderr.take().expect("stderr is piped"));
        let address = log.listening("registry").await;
        let admin = log.listening("admin").await;
        let proxy = Proxy { address, admin, log, child, home, setup: self };
        proxy.wait_ready().await;
        proxy
    }

    /// The command that starts the proxy in this directory, for who starts it in another way.
    pub(crate) fn words(&self, home: &Path) -> Vec<String> {
        let command = self.command(home);
        let words = std::iter::once(command.as_std().get_program()).chain(command.as_std().get_args());
        words.map(|word| word.to_str().expect("plain words").to_owned()).collect()
    }

    /// Starts the proxy where it is expected to give up; its exit code and what it wrote.
    pub(crate) async fn run(&self) -> Output {
        let home = TempDir::new().unwrap();
        within(PATIENCE, self.command(home.path()).output()).await.unwrap()
    }

    fn command(&self, home: &Path) -> Command {
        let file = home.join("forebay.toml");
        let has_path = self.document.get("storage").and_then(|storage| storage.get("path")).is_some();
        let data = home.join("data").to_str().expect("a plain path").to_owned();
        let complete = if has_path { self.clone() } else { self.clone().set("storage", "path", data) };
        std::fs::write(&file, complete.text()).unwrap();
        let mut command = match (self.file_limit, self.is_powerless) {
            (true, _) => program_without_file_signal(),
            (_, true) => program_without_capabilities(),
            _ => program(),
        };
        command.arg("serve").arg("--config").arg(file).args(&self.arguments);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }
}

/// The program with an environment that holds nothing of the one the tests run in.
pub(crate) fn program() -> Command {
    in_clean_environment(Command::new(PROGRAM))
}

/// The signal for a file beyond its limit stays ignored over an exec.
fn program_without_file_signal() -> Command {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\"", PROGRAM]);
    in_clean_environment(shell)
}

/// What root may do beyond its own files is left behind; for others nothing changes.
fn program_without_capabilities() -> Command {
    if !rustix::process::geteuid().is_root() {
        return program();
    }
    let mut powers = Command::new("/usr/bin/setpriv");
    powers.args(["--bounding-set", "-all", "--inh-caps", "-all", PROGRAM]);
    in_clean_environment(powers)
}

fn in_clean_environment(mut command: Command) -> Command {
    command.env_clear().env("HOME", "/nonexistent").env("RUST_BACKTRACE", "1");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// Runs a command of the program to its end.
pub(crate) async fn run(arguments: &[&str]) -> Output {
    within(PATIENCE, program().args(arguments).output()).await.unwrap()
}

/// What the process wrote, line by line.
#[derive(Clone, Debug)]
pub(crate) struct Log {
    lines: Arc<Mutex<Vec<String>>>,
    changed: Arc<watch::Sender<usize>>,
    open_streams: Arc<watch::Sender<usize>>,
}

impl Default for Log {
    fn default() -> Self {
        let (changed, open_streams) = (watch::Sender::new(0), watch::Sender::new(0));
        Self { lines: Arc::default(), changed: Arc::new(changed), open_streams: Arc::new(open_streams) }
    }
}

impl Log {
    fn follow(&self, stream: impl AsyncRead + Unpin + Send + 'static) {
        let log = self.clone();
        log.open_streams.send_modify(|count| *count += 1);
        tokio::spawn(async move {
            let mut lines = BufReader::new(stream).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                log.lines.lock().unwrap().push(line);
                log.changed.send_modify(|version| *version += 1);
            }
            log.open_streams.send_modify(|count| *count -= 1);
        });
    }

    /// Waits until the process has closed its outputs and all of them is here.
    async fn ended(&self) {
        let mut open_streams = self.open_streams.subscribe();
        within(PATIENCE, open_streams.wait_for(|count| *count == 0)).await.unwrap();
    }

    pub(crate) fn text(&self) -> String {
        self.lines.lock().unwrap().join("\n")
    }

    /// The events, one JSON object each.
    pub(crate) fn events(&self) -> Vec<Value> {
        self.lines.lock().unwrap().iter().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits for the first event that satisfies the test.
    pub(crate) async fn wait_for(&self, test: impl Fn(&Value) -> bool) -> Value {
        let mut changed = self.changed.subscribe();
        let found = || self.events().into_iter().find(|event| test(event));
        let patience = Duration::from_secs(PATIENCE);
        // The error of the elapsed wait would hide the log, which says why.
        let waited = tokio::time::timeout(patience, changed.wait_for(|_| found().is_some())).await.is_ok();
        assert!(waited, "no such event; the log:\n{}", self.text());
        found().expect("the event that ended the wait")
    }

    async fn listening(&self, listener: &str) -> SocketAddr {
        let event = self.wait_for(|event| event["message"] == "listening" && event["listener"] == listener).await;
        event["address"].as_str().expect("an address").parse().unwrap()
    }
}

/// A running proxy. Dropping it kills the process, by its own handle.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) log: Log,
    child: Child,
    home: Arc<TempDir>,
    setup: Setup,
}

impl Proxy {
    /// The set-up most tests want: one registry, the default one, under the usual name.
    pub(crate) fn of(upstream: &ScriptedRegistry) -> Setup {
        Setup::new(&[Registry::new(REGISTRY, &upstream.url())])
    }

    /// The file of a blob.
    pub(crate) fn blob_file(&self, digest: &str) -> PathBuf {
        let (algorithm, hex) = digest.split_once(':').expect("a digest");
        self.data().join("blobs").join(algorithm).join(&hex[..2]).join(hex)
    }

    /// Waits until `/readyz` says a text with this in it.
    pub(crate) async fn wait_readiness(&self, part: &str) {
        within(PATIENCE, async {
            loop {
                let reply = self.admin("/readyz").await;
                assert_eq!(reply.status, 200, "it can still pass through");
                if reply.text().contains(part) {
                    return;
                }
                tokio::time::sleep(GLANCE).await;
            }
        })
        .await;
    }

    pub(crate) fn data(&self) -> PathBuf {
        let path = self.setup.document.get("storage").and_then(|storage| storage.get("path"));
        path.and_then(toml::Value::as_str).map_or_else(|| self.home.path().join("data"), PathBuf::from)
    }

    pub(crate) async fn get(&self, target: &str) -> Reply {
        self.get_with(target, &[]).await
    }

    pub(crate) async fn get_with(&self, target: &str, headers: &[(&str, &str)]) -> Reply {
        client::request(self.address, "GET", target, headers).await
    }

    pub(crate) async fn head(&self, target: &str) -> Reply {
        client::request(self.address, "HEAD", target, &[]).await
    }

    pub(crate) async fn range(&self, target: &str, range: &str) -> Reply {
        self.get_with(target, &[("Range", range)]).await
    }

    /// Sends a GET and reads the head of the answer only.
    pub(crate) async fn open(&self, target: &str) -> Incoming {
        client::open(self.address, "GET", target, &[]).await
    }

    pub(crate) async fn admin(&self, target: &str) -> Reply {
        client::request(self.admin, "GET", target, &[]).await
    }

    /// As [`Self::get`], of a tag whose upstream is well. Asks again when the answer is stale only because this machine was
    /// slow: a known tag waits two seconds for its upstream, and then the registry is left alone for ten.
    pub(crate) async fn get_checked(&self, target: &str) -> Reply {
        within(PATIENCE, async {
            let mut was_slow = false;
            loop {
                let asked = Instant::now();
                let reply = self.get(target).await;
                match reply.outcome() {
                    "fwd=stale; detail=slow" if was_slow || asked.elapsed() >= KNOWN_TAG_WAIT => was_slow = true,
                    "fwd=stale; detail=unreachable" if was_slow => {}
                    _ => return reply,
                }
                tokio::time::sleep(GLANCE * 10).await;
            }
        })
        .await
    }

    /// Gets the target until it is a hit: the end of a download is no event that a client could wait for.
    pub(crate) async fn get_until_hit(&self, target: &str) -> Reply {
        within(PATIENCE, async {
            loop {
                let reply = self.get(target).await;
                if reply.status == 200 && reply.is_complete() && reply.outcome() == "hit" {
                    return reply;
                }
                tokio::time::sleep(GLANCE).await;
            }
        })
        .await
    }

    /// Gets the target until it comes from the store, whether the upstream was asked or not.
    pub(crate) async fn get_until_stored(&self, target: &str) -> Reply {
        within(PATIENCE, async {
            loop {
                let reply = self.get(target).await;
                if reply.status == 200 && reply.is_complete() && !reply.outcome().starts_with("fwd=miss") {
                    return reply;
                }
                tokio::time::sleep(GLANCE).await;
            }
        })
        .await
    }

    /// Pulls as an engine does, again after a failure, and never takes wrong bytes for right ones.
    pub(crate) async fn pull(&self, target: &str, bytes: &[u8]) -> Reply {
        within(PATIENCE, async {
            loop {
                let reply = self.get(target).await;
                assert!(!reply.is_poison(bytes), "a complete body of wrong bytes");
                if reply.status == 200 && reply.is_complete() {
                    return reply;
                }
                tokio::time::sleep(GLANCE).await;
            }
        })
        .await
    }

    /// Sends a GET for a range and reads the head of the answer only.
    pub(crate) async fn open_range(&self, target: &str, range: &str) -> Incoming {
        client::open(self.address, "GET", target, &[("Range", range)]).await
    }

    /// Files of unfinished downloads.
    pub(crate) fn spools(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut directories = vec![self.data().join("spool")];
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
                match entry.file_type() {
                    Ok(kind) if kind.is_dir() => directories.push(entry.path()),
                    _ => found.push(entry.path()),
                }
            }
        }
        found
    }

    /// From now on no file of the process can grow beyond this: a disk that is full at a byte of our choice.
    pub(crate) fn limit_files(&self, limit_bytes: Option<u64>) {
        let limit = Rlimit { current: limit_bytes, maximum: None };
        rustix::process::prlimit(Some(self.pid()), Resource::Fsize, limit).unwrap();
    }

    fn pid(&self) -> Pid {
        let id = self.child.id().expect("the process has not been waited for");
        Pid::from_raw(i32::try_from(id).unwrap()).expect("a process id is not 0")
    }

    /// Value of the first sample of that metric which has all these labels (`name="value"`).
    pub(crate) async fn metric(&self, name: &str, labels: &[&str]) -> Option<f64> {
        let text = self.admin("/metrics").await.text();
        let sample = text.lines().find(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
                && labels.iter().all(|label| line.contains(label))
        })?;
        sample.rsplit(' ').next()?.parse().ok()
    }

    /// Waits until that metric satisfies the test: what is counted may be counted a moment after its client has it.
    pub(crate) async fn wait_metric(&self, name: &str, labels: &[&str], test: impl Fn(f64) -> bool) {
        let waiting = async {
            while !self.metric(name, labels).await.is_some_and(&test) {
                tokio::time::sleep(GLANCE).await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(PATIENCE), waiting).await.is_err() {
            panic!("{name} with {labels:?} is never so in\n{}", self.admin("/metrics").await.text());
        }
    }

    /// Waits until that metric is above a value.
    pub(crate) async fn wait_metric_above(&self, name: &str, labels: &[&str], value: f64) {
        self.wait_metric(name, labels, |sample| sample > value).await;
    }

    /// Waits until no download is in progress any more.
    pub(crate) async fn wait_no_fill(&self) {
        within(PATIENCE, async {
            while self.metric("forebay_fills_in_flight", &[]).await.is_some_and(|fills| fills != 0.0) {
                tokio::time::sleep(GLANCE).await;
            }
        })
        .await;
    }

    /// Ends the process in good order and waits for the last line it wrote.
    pub(crate) async fn end_log(&mut self) -> String {
        assert_eq!(self.terminate().await, Some(0), "{}", self.log.text());
        self.log.ended().await;
        self.log.text()
    }

    async fn wait_ready(&self) {
        within(PATIENCE, async {
            while self.admin("/readyz").await.status != 200 {
                tokio::time::sleep(GLANCE).await;
            }
        })
        .await;
    }

    /// Waits until nobody listens on the registry port any more.
    pub(crate) async fn wait_refusing(&self) {
        within(PATIENCE, async {
            while TcpStream::connect(self.address).await.is_ok() {
                tokio::time::sleep(GLANCE).await;
            }
        })
        .await;
    }

    pub(crate) fn signal(&self, signal: Signal) {
        rustix::process::kill_process(self.pid(), signal).unwrap();
    }

    /// Waits for the end of the process; its exit code, unless a signal ended it.
    pub(crate) async fn wait_exit(&mut self, seconds: u64) -> Option<i32> {
        within(seconds, self.child.wait()).await.unwrap().code()
    }

    /// SIGTERM and the exit code.
    pub(crate) async fn terminate(&mut self) -> Option<i32> {
        self.signal(Signal::TERM);
        self.wait_exit(PATIENCE).await
    }

    /// SIGKILL.
    pub(crate) async fn kill(&mut self) {
        self.child.start_kill().unwrap();
        self.wait_exit(PATIENCE).await;
    }

    /// Ends the process in good order, if it still runs, and starts another on the same data.
    pub(crate) async fn restart(self) -> Self {
        self.restart_with(|setup| setup).await
    }

    /// The same with another configuration.
    pub(crate) async fn restart_with(mut self, change: impl FnOnce(Setup) -> Setup) -> Self {
        if self.child.try_wait().unwrap().is_none() {
            assert_eq!(self.terminate().await, Some(0), "{}", self.log.text());
        }
        change(self.setup.clone()).start_in(self.home.clone()).await
    }
}
