//! The measured servers, as their users run them: a process with a data directory of its own.

use std::fs::File;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use tempfile::TempDir;

use crate::content::Content;
use crate::upstream::Upstream;

const START_TIMEOUT: Duration = Duration::from_secs(60);
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
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
    home: TempDir,
}

/// Certificate and key, as files.
#[derive(Clone, Debug)]
pub(crate) struct TlsFiles {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
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

    /// Forebay that speaks TLS where there are certificates.
    pub(crate) fn forebay_tls(upstream: &Upstream, tls: Option<&TlsFiles>) -> Result<Self> {
        let Some(TlsFiles { cert, key }) = tls else { return Self::forebay(upstream) };
        let files = format!("{{ cert = \"{}\", key = \"{}\" }}", cert.display(), key.display());
        Self::forebay_with(upstream, &[("FOREBAY_SERVER__TLS", &files)])
    }

    /// Forebay with some settings, each by its name in the environment.
    pub(crate) fn forebay_with(upstream: &Upstream, settings: &[(&str, &str)]) -> Result<Self> {
        Self::forebay_command(upstream, settings, Command::new(forebay_program()))
    }

    /// Forebay, counted instruction by instruction once [`Server::count_instructions`] says so. `None` without valgrind.
    pub(crate) fn forebay_counted(upstream: &Upstream, counts: &Path) -> Result<Option<Self>> {
        if Command::new("valgrind").arg("--version").stdout(Stdio::null()).status().is_err() {
            return Ok(None);
        }
        let mut command = Command::new("valgrind");
        command.args(["--tool=callgrind", "--instr-atstart=no"]);
        command.arg(format!("--callgrind-out-file={}", counts.display())).arg(forebay_program());
        Self::forebay_command(upstream, &[("PATH", "/usr/local/bin:/usr/bin:/bin")], command).map(Some)
    }

    /// Begins or ends counting, of a server under valgrind.
    pub(crate) fn count_instructions(&self, is_on: bool) -> Result<()> {
        let switch = if is_on { "-i=on" } else { "-i=off" };
        let mut control = Command::new("callgrind_control");
        let status = control.arg(switch).arg(self.child.id().to_string()).stdout(Stdio::null()).status()?;
        if status.success() { Ok(()) } else { bail!("callgrind_control {switch}: {status}") }
    }

    fn forebay_command(upstream: &Upstream, settings: &[(&str, &str)], mut command: Command) -> Result<Self> {
        let home = TempDir::new()?;
        command.args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--data"]);
        command.arg(home.path().join("data")).arg("--upstream").arg(format!("docker.io={}", upstream.url()));
        command.env_clear().env("HOME", home.path());
        // A full disk would make it pass bytes through, which is not what is measured here.
        command.env("FOREBAY_STORAGE__MIN_FREE", "64MiB");
        command.envs(settings.iter().copied());
        let child = spawn(command, &home).context("cannot start forebay")?;
        let mut server = Self { address: SocketAddr::from(([127, 0, 0, 1], 0)), child, home };
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            if let Some(address) = server.log_text().lines().find_map(listening) {
                server.address = address.parse()?;
                return Ok(server);
            }
            server.wait_a_moment("forebay", deadline)?;
        }
    }

    fn docker_registry(upstream: &Upstream) -> Result<Option<Self>> {
        let home = TempDir::new()?;
        let address = free_address()?;
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
        Self::listens_at("docker-registry", command, address, home)
    }

    /// nginx as Debian configures it (one worker a processor, sendfile, an access log), serving these files under these
    /// paths. `None` when it is not installed.
    pub(crate) fn nginx(files: &[(String, Content)], tls: Option<&TlsFiles>) -> Result<Option<Self>> {
        let home = TempDir::new()?;
        let address = free_address()?;
        for (path, content) in files {
            let path = home.path().join("root").join(path.trim_start_matches('/'));
            std::fs::create_dir_all(path.parent().context("a file at the root")?)?;
            content.write_to(&path)?;
        }
        let listen = match tls {
            None => format!("listen {address};"),
            Some(TlsFiles { cert, key }) => format!(
                "listen {address} ssl; ssl_certificate {}; ssl_certificate_key {}; ssl_protocols TLSv1.3;",
                cert.display(),
                key.display()
            ),
        };
        let at = home.path().display();
        let configuration = format!(
            "daemon off; worker_processes auto; pid {at}/pid; error_log {at}/log;\n\
             events {{ worker_connections 4096; }}\n\
             http {{ sendfile on; tcp_nopush on; access_log {at}/access.log; keepalive_requests 100000000;\n\
             default_type application/octet-stream; client_body_temp_path {at}/t1; proxy_temp_path {at}/t2;\n\
             fastcgi_temp_path {at}/t3; uwsgi_temp_path {at}/t4; scgi_temp_path {at}/t5;\n\
             server {{ {listen} root {at}/root; }} }}\n"
        );
        let file = home.path().join("nginx.conf");
        std::fs::write(&file, configuration)?;
        make_readable(home.path())?;
        let mut command = Command::new("nginx");
        command.arg("-c").arg(file);
        Self::listens_at("nginx", command, address, home)
    }

    /// A server that is there once its address takes connections.
    fn listens_at(name: &str, command: Command, address: SocketAddr, home: TempDir) -> Result<Option<Self>> {
        let child = match spawn(command, &home) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            child => child?,
        };
        let mut server = Self { address, child, home };
        let deadline = Instant::now() + START_TIMEOUT;
        while TcpStream::connect(address).is_err() {
            server.wait_a_moment(name, deadline)?;
        }
        Ok(Some(server))
    }

    fn wait_a_moment(&mut self, name: &str, deadline: Instant) -> Result<()> {
        if Instant::now() > deadline || self.child.try_wait()?.is_some() {
            bail!("{name} does not listen:\n{}", self.log());
        }
        std::thread::sleep(Duration::from_millis(20));
        Ok(())
    }

    /// The last lines it wrote.
    pub(crate) fn log(&self) -> String {
        let text = self.log_text();
        let lines: Vec<&str> = text.lines().collect();
        lines.iter().rev().take(KEPT_LINES).rev().map(|line| format!("  {line}\n")).collect()
    }

    fn log_text(&self) -> String {
        let bytes = std::fs::read(self.home.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The process that was started, and its children.
    fn processes(&self) -> Vec<String> {
        let first = self.child.id().to_string();
        let children = std::fs::read_to_string(format!("/proc/{first}/task/{first}/children")).unwrap_or_default();
        children.split_whitespace().map(str::to_owned).chain([first]).collect()
    }

    /// Processor seconds of all its threads and children so far, in user and kernel mode.
    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        let mut ticks = 0;
        for process in self.processes() {
            let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
            // The command name, in parentheses, may hold anything; fields 14 and 15 of proc(5) are counted from behind.
            let (_, fields) = stat.rsplit_once(')').context("no command name in stat")?;
            ticks += fields.split_whitespace().skip(11).take(2).flat_map(str::parse::<u64>).sum::<u64>();
        }
        Ok(ticks as f64 / TICKS_PER_SECOND)
    }

    /// Memory of its own at this moment: without mapped files, without the page cache.
    pub(crate) fn rss_anon_bytes(&self) -> Result<u64> {
        Ok(self.status("RssAnon:")?.trim_end_matches(" kB").parse::<u64>()? * 1024)
    }

    /// Threads and open descriptors at this moment.
    pub(crate) fn threads_and_descriptors(&self) -> Result<(u64, u64)> {
        let descriptors = std::fs::read_dir(format!("/proc/{}/fd", self.child.id()))?.count();
        Ok((self.status("Threads:")?.parse()?, descriptors as u64))
    }

    fn status(&self, name: &str) -> Result<String> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let value = status.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
        Ok(value.trim().to_owned())
    }
}

/// The address in the line that says where the registry port is.
fn listening(line: &str) -> Option<&str> {
    let rest = line.split_once("listener=\"registry\" address=")?.1;
    rest.split_whitespace().next()
}

/// Programs that cannot say which port they were given get one that was free a moment ago.
fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// nginx's workers are somebody else when it is started by root.
fn make_readable(home: &Path) -> Result<()> {
    Ok(std::fs::set_permissions(home, std::fs::Permissions::from_mode(0o755))?)
}

impl Drop for Server {
    /// Asks first: a master that is killed leaves its workers behind.
    fn drop(&mut self) {
        let process = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(process) = process {
            let _ = rustix::process::kill_process(process, rustix::process::Signal::TERM);
        }
        let deadline = Instant::now() + STOP_TIMEOUT;
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The log goes to a file: reading it would take time from the server.
fn spawn(mut command: Command, home: &TempDir) -> std::io::Result<Child> {
    let log = File::create(home.path().join("log"))?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn()
}
