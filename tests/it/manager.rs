//! The proxy under a service manager: sockets that are handed over, and what the manager is told.

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Stdio;

use rustix::process::Pid;
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::net::UnixDatagram;
use tokio::process::Child;
use tokio::process::Command;

use crate::support::PATIENCE;
use crate::support::client;
use crate::support::proxy::Setup;
use crate::support::within;

/// A socket that listens, with a name.
struct Handed<'a> {
    name: &'a str,
    socket: TcpListener,
}

fn listening<'a>(name: &'a str) -> Handed<'a> {
    Handed { name, socket: TcpListener::bind("127.0.0.1:0").unwrap() }
}

/// Starts the proxy as systemd does: two descriptors from 3 on, with its own process id beside them. A shell that becomes
/// the proxy puts them there.
fn start(setup: &Setup, home: &Path, handed: [Handed<'_>; 2], environment: &[(&str, &str)]) -> Child {
    let names = handed.each_ref().map(|handed| handed.name).join(":");
    let [first, second] = handed.map(|handed| Stdio::from(OwnedFd::from(handed.socket)));
    let script = "exec 3<&0 4<&1 </dev/null >/dev/null; export LISTEN_PID=$$; exec \"$@\"";
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script, "sh"]).args(setup.words(home)).env_clear().env("HOME", "/nonexistent");
    command.env("LISTEN_FDS", "2").env("LISTEN_FDNAMES", names).envs(environment.iter().copied());
    command.stdin(first).stdout(second).stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap()
}

fn signal(child: &Child, signal: Signal) {
    let id = i32::try_from(child.id().unwrap()).unwrap();
    rustix::process::kill_process(Pid::from_raw(id).unwrap(), signal).unwrap();
}

#[tokio::test]
async fn sockets_that_are_handed_over_take_the_place_of_addresses() {
    let home = TempDir::new().unwrap();
    let (registry, admin) = (listening("registry"), listening("admin"));
    let addresses = [&registry, &admin].map(|handed| handed.socket.local_addr().unwrap());
    // An address that nobody could bind, if anybody tried.
    let setup = Setup::new(&[]).set("server", "listen", vec!["192.0.2.1:1"]).set("admin", "listen", "192.0.2.1:2");
    let mut child = start(&setup, home.path(), [admin, registry], &[]);
    // No connection is refused, not even before the proxy is there.
    assert_eq!(client::request(addresses[0], "GET", "/v2/", &[]).await.status, 200);
    assert_eq!(client::request(addresses[1], "GET", "/healthz", &[]).await.status, 200);
    // What is asked of the API depends on the real address.
    assert_eq!(client::request(addresses[1], "GET", "/api/v1/status", &[]).await.status, 200);
    signal(&child, Signal::TERM);
    assert_eq!(within(PATIENCE, child.wait()).await.unwrap().code(), Some(0));
}

#[tokio::test]
async fn sockets_that_nobody_can_use_are_refused() {
    for names in [["registry", "forebay.socket"], ["admin", "admin"], ["registry", ""]] {
        let home = TempDir::new().unwrap();
        let child = start(&Setup::new(&[]), home.path(), names.map(listening), &[]);
        let output = within(PATIENCE, child.wait_with_output()).await.unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("FileDescriptorName=registry or admin"), "{said}");
    }
}

#[tokio::test]
async fn sockets_of_another_process_are_left_alone() {
    let setup = Setup::new(&[]).environment("LISTEN_PID", "1").environment("LISTEN_FDS", "1");
    let proxy = setup.start().await;
    assert_eq!(proxy.get("/v2/").await.status, 200);
}

#[tokio::test]
async fn the_manager_is_told_how_the_proxy_stands() {
    let home = TempDir::new().unwrap();
    let path = home.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    let told = async || {
        let mut message = [0; 4096];
        let size = within(PATIENCE, manager.recv(&mut message)).await.unwrap();
        String::from_utf8(message[..size].to_vec()).unwrap()
    };
    let environment = [("NOTIFY_SOCKET", path.to_str().unwrap())];
    let (registry, admin) = (listening("registry"), listening("admin"));
    let address = admin.socket.local_addr().unwrap();
    let mut child = start(&Setup::new(&[]), home.path(), [registry, admin], &environment);
    assert_eq!(told().await, "READY=1\n");
    assert_eq!(client::request(address, "GET", "/readyz", &[]).await.status, 200);
    signal(&child, Signal::HUP);
    let reloading = told().await;
    assert!(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{reloading}");
    assert_eq!(told().await, "READY=1\n");
    signal(&child, Signal::TERM);
    assert_eq!(told().await, "STOPPING=1\n");
    assert_eq!(within(PATIENCE, child.wait()).await.unwrap().code(), Some(0));
}
