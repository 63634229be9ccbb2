//! The measured servers, as their users run them: a process with a data directory of its own.

use std::collections::VecDeque;
use std::io::BufRead;
use std::io::BufReader;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Child;
use std::process::ChildStderr;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::mpsc;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use serde_json::Value;
use tempfile::TempDir;

use crate::upstream::Upstream;

const START_TIMEOUT: Duration = Duration::from_secs(10);
/// Log lines that are kept for the message of a failed case.
const KEPT_LINES: usize = 20;
/// The unit of processor times in `/proc` (USER_HZ), the same on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// The binary that is measured: the one of this build, or `FOREBAY_BIN`.
pub(crate) fn forebay_program() -> PathBuf {
    std::env::var_os("FOREBAY_BIN").map_or_else(|| env!("CARGO_BIN_EXE_forebay").into(), PathBuf::from)
}

/// What is put in front of the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Forebay,
    /// Debian's docker-registry (distribution) in proxy mode.
    DockerRegistry,
}

/// A running server with an empty cache. Dropping it kills the process and deletes its data.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    child: Child,
    log: Arc<Mutex<VecDeque<String>>>,
    _home: TempDir,
}

impl Server {
    /// `None` when the program is not installed.
    pub(crate) fn start(kind: Kind, upstream: &Upstream) -> Result<Option<Self>> {
        match kind {
            Kind::Forebay => Self::forebay(upstream).map(Some),
            Kind::DockerRegistry => Self::docker_registry(upstream),
        }
    }

    /// Forebay with nothing but defaults, apart from addresses and directories.
    pub(crate) fn forebay(upstream: &Upstream) -> Result<Self> {
        Self::forebay_with(upstream, &[])
    }

    /// Forebay with some settings, each by its name in the environment.
    pub(crate) fn forebay_with(upstream: &Upstream, settings: &[(&str, &str)]) -> Result<Self> {
        let home = TempDir::new()?;
        let program = forebay_program();
        let mut command = Command::new(&program);
        command.args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--data"]);
        command.arg(home.path().join("data")).arg("--upstream").arg(format!("docker.io={}", upstream.url()));
        command.env_clear().env("HOME", home.path()).env("FOREBAY_LOG__FORMAT", "json");
        // A full disk would make it pass bytes through, which is not what is measured here.
        command.env("FOREBAY_STORAGE__MIN_FREE", "64MiB");
        command.envs(settings.iter().copied());
        let mut child = spawn(command).with_context(|| format!("cannot start {}", program.display()))?;
        let (listening, addresses) = mpsc::channel();
        let log = follow(&mut child, listening);
        let mut server = Self { address: SocketAddr::from(([127, 0, 0, 1], 0)), child, log, _home: home };
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            let Ok(line) = addresses.recv_timeout(deadline.saturating_duration_since(Instant::now())) else {
                bail!("forebay does not listen:\n{}", server.log());
            };
            let event: Value = serde_json::from_str(&line).unwrap_or_default();
            if event["message"] == "listening" && event["listener"] == "registry" {
                server.address = event["address"].as_str().context("an event without an address")?.parse()?;
                return Ok(server);
            }
        }
    }

    fn docker_registry(upstream: &Upstream) -> Result<Option<Self>> {
        let home = TempDir::new()?;
        // It cannot say which port it was given: one that was free a moment ago has to do.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let data = home.path().join("data");
        let configuration = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http: {{addr: '{address}', secret: bench}}\nproxy: {{remoteurl: '{}'}}\n",
            data.display(),
            upstream.url()
        );
        let file = home.path().join("config.yml");
        std::fs::write(&file, configuration)?;
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(file).env("HOME", home.path()).env("OTEL_TRACES_EXPORTER", "none");
        let mut child = match spawn(command) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            child => child?,
        };
        let log = follow(&mut child, mpsc::channel().0);
        let server = Self { address, child, log, _home: home };
        let deadline = Instant::now() + START_TIMEOUT;
        while TcpStream::connect(address).is_err() {
            if Instant::now() > deadline {
                bail!("docker-registry does not listen:\n{}", server.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(Some(server))
    }

    /// The last lines it wrote.
    pub(crate) fn log(&self) -> String {
        let lines = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().map(|line| format!("  {line}\n")).collect()
    }

    /// Processor seconds of all its threads so far, in user and kernel mode.
    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // The command name, in parentheses, may hold anything; fields 14 and 15 of proc(5) are counted from behind it.
        let (_, fields) = stat.rsplit_once(')').context("no command name in stat")?;
        let ticks: Vec<u64> =
            fields.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse().ok()).collect();
        Ok(ticks.iter().sum::<u64>() as f64 / TICKS_PER_SECOND)
    }

    /// Memory of its own at this moment: without mapped files, without the page cache.
    pub(crate) fn rss_anon_bytes(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let value = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
        Ok(value.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(mut command: Command) -> std::io::Result<Child> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()
}

/// Reads the log to its end, so that the server never waits for it; every line also goes to `lines` while that is open.
fn follow(child: &mut Child, lines: mpsc::Sender<String>) -> Arc<Mutex<VecDeque<String>>> {
    let kept = Arc::new(Mutex::new(VecDeque::new()));
    let of_thread = kept.clone();
    let stderr: Option<ChildStderr> = child.stderr.take();
    std::thread::spawn(move || {
        let Some(stderr) = stderr else { return };
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            let mut kept = of_thread.lock().unwrap_or_else(PoisonError::into_inner);
            kept.push_back(line.clone());
            if kept.len() > KEPT_LINES {
                kept.pop_front();
            }
            drop(kept);
            let _ = lines.send(line);
        }
    });
    kept
}
