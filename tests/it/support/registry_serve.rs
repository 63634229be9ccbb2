//! The socket side of the scripted registry: one answer at a time, spoiled byte by byte as its fault says.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::sockopt;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::GLANCE;
use super::http1::Wire;
use super::registry::Seen;
use super::registry::Shared;
use super::registry::Site;
use super::script::Fault;
use super::script::PIECE_BYTES;

/// What the system keeps of what was written and has not arrived: little, so that what counts as sent is not far ahead of
/// what the proxy has.
const SEND_BUFFER_BYTES: usize = 64 * 1024;
/// Looks at whether all has arrived before a reset, which throws away what is still on its way.
const RESET_GLANCES: usize = 1000;

/// Takes connections until the task is aborted.
pub(crate) async fn accept(shared: Arc<Shared>, listener: TcpListener, site: Site) {
    // Dropped with this task, and every connection with it.
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let _ = stream.set_nodelay(true);
        let _ = sockopt::set_socket_send_buffer_size(&stream, SEND_BUFFER_BYTES);
        let shared = shared.clone();
        let Ok(socket) = Socket::of(&stream) else { continue };
        connections.spawn(async move {
            let tls = shared.tls.clone().filter(|_| site == Site::Registry);
            match tls {
                None => serve(&shared, site, stream, &socket).await,
                Some(acceptor) => {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        serve(&shared, site, stream, &socket).await;
                    }
                }
            }
        });
    }
}

/// A connection beneath whatever is spoken on it.
struct Socket {
    descriptor: OwnedFd,
    local: SocketAddr,
    peer: SocketAddr,
}

impl Socket {
    fn of(stream: &TcpStream) -> std::io::Result<Self> {
        let descriptor = stream.as_fd().try_clone_to_owned()?;
        Ok(Self { descriptor, local: stream.local_addr()?, peer: stream.peer_addr()? })
    }

    /// Makes the end of the connection a reset, once all that was written has arrived.
    async fn end_by_reset(&self) {
        for _ in 0..RESET_GLANCES {
            if !self.has_unacknowledged() {
                break;
            }
            tokio::time::sleep(GLANCE).await;
        }
        let _ = sockopt::set_socket_linger(&self.descriptor, Some(Duration::ZERO));
    }

    fn has_unacknowledged(&self) -> bool {
        let (SocketAddr::V4(local), SocketAddr::V4(peer)) = (self.local, self.peer) else { return false };
        let [local, peer] =
            [local, peer].map(|end| format!("{:08X}:{:04X}", u32::from_ne_bytes(end.ip().octets()), end.port()));
        // Columns: number, local address, remote address, state, bytes to send and to read.
        let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap_or_default();
        let queues = table.lines().find_map(|line| {
            let mut columns = line.split_ascii_whitespace().skip(1);
            (columns.next() == Some(&local) && columns.next() == Some(&peer)).then(|| columns.nth(1)).flatten()
        });
        queues.is_some_and(|queues| !queues.starts_with("00000000:"))
    }
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(shared: &Shared, site: Site, stream: S, socket: &Socket) {
    let mut wire = Wire::new(stream);
    while let Ok(Some((first, headers))) = wire.head().await {
        let mut words = first.split(' ');
        let (Some(method), Some(target)) = (words.next(), words.next()) else { return };
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let length = headers.get("Content-Length").and_then(|value| value.parse().ok()).unwrap_or(0);
        let Ok(body) = wire.bytes(length).await else { return };
        let seen = Seen {
            site,
            method: method.to_owned(),
            path: path.to_owned(),
            query: query.to_owned(),
            headers,
            body,
            status: 0,
            body_bytes: 0,
            finished: false,
        };
        let (index, fault) = shared.arrived(&seen);
        let resets = fault.reset;
        let outcome = reply(shared, index, &mut wire, &seen, fault).await;
        shared.update(index, |seen| seen.finished = true);
        let last = seen.headers.get("Connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        if last || !matches!(outcome, Ok(true)) {
            if resets {
                socket.end_by_reset().await;
            }
            return;
        }
    }
}

/// Sends one answer; true when the connection can take the next request.
async fn reply<S>(shared: &Shared, index: usize, wire: &mut Wire<S>, seen: &Seen, fault: Fault) -> std::io::Result<bool>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    if let Some(gate) = &fault.before_headers {
        gate.pass().await;
    }
    let mut answer = shared.answer(seen, &fault);
    for (name, value) in &fault.set_headers {
        answer.headers.set(name, value.as_str());
    }
    let mut body = answer.body.to_vec();
    if let Some(byte) = fault.corrupt.and_then(|position| body.get_mut(position)) {
        *byte = !*byte;
    }
    let promised = (body.len() as i64 + fault.length_error).max(0) as usize;
    body.truncate(promised);
    let mut head = format!("HTTP/1.1 {} Scripted\r\n", answer.status);
    for (name, value) in answer.headers.iter() {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if fault.chunked {
        head.push_str("Transfer-Encoding: chunked\r\n");
    } else if answer.headers.get("Content-Length").is_none() {
        head.push_str(&format!("Content-Length: {promised}\r\n"));
    }
    head.push_str("\r\n");
    shared.update(index, |seen| seen.status = answer.status);
    wire.write(head.as_bytes()).await?;
    if seen.method == "HEAD" {
        return Ok(true);
    }
    if !send_body(shared, index, wire, &fault, &body).await? {
        return Ok(false);
    }
    if fault.chunked {
        wire.write(b"0\r\n\r\n").await?;
    }
    if let Some(surplus) = &fault.surplus {
        wire.write(surplus).await?;
    }
    if promised > body.len() {
        wire.finish_writing().await?;
        return Ok(false);
    }
    Ok(true)
}

/// Sends the body piece by piece; false when the script cut it off.
async fn send_body<S>(
    shared: &Shared,
    index: usize,
    wire: &mut Wire<S>,
    fault: &Fault,
    body: &[u8],
) -> std::io::Result<bool>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut position = 0;
    loop {
        if fault.cut_at == Some(position) {
            if !fault.reset {
                wire.finish_writing().await?;
            }
            return Ok(false);
        }
        if let Some((at, gate)) = &fault.hold_at
            && *at == position
        {
            gate.pass().await;
        }
        if position == body.len() {
            return Ok(true);
        }
        let stops = [fault.cut_at, fault.hold_at.as_ref().map(|(at, _)| *at)];
        let stop = stops.into_iter().flatten().filter(|stop| *stop > position).min().unwrap_or(usize::MAX);
        let end = stop.min(position + PIECE_BYTES).min(body.len());
        let piece = &body[position..end];
        if fault.chunked {
            wire.write(format!("{:x}\r\n", piece.len()).as_bytes()).await?;
            wire.write(piece).await?;
            wire.write(b"\r\n").await?;
        } else {
            wire.write(piece).await?;
        }
        shared.update(index, |seen| seen.body_bytes += piece.len());
        if let Some(pause) = fault.pause {
            tokio::time::sleep(pause).await;
        }
        position = end;
    }
}
