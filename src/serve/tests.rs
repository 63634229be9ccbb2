use super::*;
use crate::piece::FileRange;
use crate::piece::HeldFile;

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::Full;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::connection::LINGER;

/// Longest wait for anything; only a failing test waits that long.
const PATIENCE: Duration = Duration::from_secs(120);

/// Promises 1 MiB, gives 3 bytes, waits a turn as a reader of a blob does, then fails.
struct Broken(u8);

impl http_body::Body for Broken {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.0 += 1;
        match self.0 {
            1 => Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"abc"))))),
            2 => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            _ => Poll::Ready(Some(Err(io::Error::other("broken")))),
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(1 << 20)
    }
}

/// The same without a promise.
struct Unpromised(Broken);

impl http_body::Body for Unpromised {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        Pin::new(&mut self.0).poll_frame(cx)
    }
}

/// Has nothing to give, for ever.
struct Stuck;

impl http_body::Body for Stuck {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        Poll::Pending
    }
}

/// On an address that no client comes from: who connects to a port that was closed cannot meet itself there.
fn options() -> Options {
    Options {
        listen: vec!["127.0.0.2:0".parse().unwrap()],
        max_connections: 8,
        header_timeout: 10 * PATIENCE,
        shutdown_grace: 10 * PATIENCE,
        tls: None,
    }
}

async fn start<H, F, B>(options: Options, handler: H) -> (SocketAddr, CancellationToken, JoinHandle<()>)
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body + Unpin + Send + 'static,
    B::Data: Into<Piece>,
    B::Error: Into<BoxError>,
{
    let listeners = Listeners::bind(&options).await.unwrap();
    let address = listeners.addresses()[0];
    let shutdown = CancellationToken::new();
    (address, shutdown.clone(), tokio::spawn(listeners.run(handler, shutdown)))
}

async fn hello(_: Request<Incoming>) -> Response<Full<Bytes>> {
    Response::new(Full::from("hello"))
}

/// Says when a request is here, and holds its answer back.
#[derive(Clone, Default)]
struct Held {
    asked: Arc<Notify>,
    may_answer: Arc<Notify>,
}

impl Held {
    async fn answer(self) -> Response<Full<Bytes>> {
        self.asked.notify_one();
        self.may_answer.notified().await;
        Response::new(Full::from("slow"))
    }
}

/// Makes an exchange again that took longer than the server lingers: by design a reset may have ended it.
async fn within_linger(exchange: impl AsyncFn() -> io::Result<String>) -> String {
    loop {
        let began = Instant::now();
        match exchange().await {
            Ok(answer) => return answer,
            Err(error) => assert!(began.elapsed() >= LINGER, "{error}"),
        }
    }
}

/// Everything up to the FIN; an RST is an error.
async fn read_to_end(stream: &mut TcpStream) -> io::Result<String> {
    let mut bytes = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("no end")?;
    Ok(String::from_utf8(bytes).unwrap())
}

async fn exchange(address: SocketAddr, request: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(request.as_bytes()).await?;
    read_to_end(&mut stream).await
}

#[tokio::test]
async fn a_failing_body_without_length_has_no_clean_end() {
    let (address, ..) = start(options(), |_| async { Response::new(Unpromised(Broken(0))) }).await;
    let error = exchange(address, "GET / HTTP/1.0\r\n\r\n").await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "the end of the connection is the end of the body");
    let answer = exchange(address, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    assert!(answer.contains("chunked") && !answer.contains("\r\n0\r\n"), "{answer}");
}

#[tokio::test]
async fn a_cut_answer_without_length_has_no_clean_end() {
    let forever = |_| async { Response::new(Stuck) };
    let (address, shutdown, running) =
        start(Options { shutdown_grace: Duration::from_millis(50), ..options() }, forever).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await.unwrap());
    }
    shutdown.cancel();
    timeout(PATIENCE, running).await.expect("the grace is over").unwrap();
    assert!(read_to_end(&mut client).await.is_err());
}

#[tokio::test]
async fn a_failing_body_is_cut_with_fin() {
    let (address, ..) = start(options(), |_| async { Response::new(Broken(0)) }).await;
    let answer = exchange(address, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    assert!(answer.contains("content-length: 1048576\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\nabc"), "{answer}");
}

#[tokio::test]
async fn a_failing_body_is_cut_with_fin_although_the_client_sends_more() {
    let (address, ..) = start(options(), |_| async { Response::new(Broken(0)) }).await;
    let request = format!("GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 900000\r\n\r\n{}", "x".repeat(300_000));
    let answer = within_linger(|| exchange(address, &request)).await;
    assert!(answer.ends_with("\r\n\r\nabc"), "{answer}");
}

#[tokio::test]
async fn an_answer_before_the_end_of_an_upload_arrives() {
    let (address, ..) = start(options(), hello).await;
    let upload = async || {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 9000000\r\n\r\n").await?;
        for _ in 0..20 {
            stream.write_all(&[b'x'; 65536]).await?;
            sleep(Duration::from_millis(5)).await;
        }
        read_to_end(&mut stream).await
    };
    let answer = within_linger(upload).await;
    assert!(answer.ends_with("hello"), "{answer}");
}

#[tokio::test]
async fn a_client_may_close_its_sending_side() {
    let held = Held::default();
    let (asked, may_answer) = (held.asked.clone(), held.may_answer.clone());
    let (address, ..) = start(options(), move |_| held.clone().answer()).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    stream.shutdown().await.unwrap();
    asked.notified().await;
    // Time to notice that nothing more comes.
    sleep(Duration::from_millis(100)).await;
    may_answer.notify_one();
    assert!(read_to_end(&mut stream).await.unwrap().ends_with("slow"));
}

#[tokio::test]
async fn tls_and_silence_are_closed_without_a_word() {
    let header_timeout = Duration::from_millis(300);
    let (address, ..) = start(Options { header_timeout, ..options() }, hello).await;
    assert_eq!(exchange(address, "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}\u{3}\u{3}").await.unwrap(), "");
    let started = Instant::now();
    assert_eq!(exchange(address, "").await.unwrap(), "");
    assert!(started.elapsed() >= header_timeout);
    assert_eq!(exchange(address, "GET / HTTP/1.1\r\nho").await.unwrap(), "");
}

#[tokio::test]
async fn too_many_connections_are_told_so() {
    let (address, ..) = start(Options { max_connections: 1, ..options() }, hello).await;
    let mut first = TcpStream::connect(address).await.unwrap();
    first.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut head = [0; 15];
    first.read_exact(&mut head).await.unwrap();
    let refused = exchange(address, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    assert!(refused.contains("\r\nDocker-Distribution-Api-Version: registry/2.0\r\n"), "{refused}");
    assert!(refused.starts_with("HTTP/1.1 503 ") && refused.contains("Retry-After: 5\r\n"), "{refused}");
    let (head, body) = refused.split_once("\r\n\r\n").unwrap();
    assert!(head.ends_with(&format!("Content-Length: {}", body.len())), "{refused}");
    drop(first);
    let close = "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let again = async {
        while !exchange(address, close).await.unwrap().starts_with("HTTP/1.1 200 ") {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, again).await.expect("its place is free");
}

#[tokio::test]
async fn shutting_down_finishes_answers_and_closes_idle_connections() {
    let held = Held::default();
    let (asked, may_answer) = (held.asked.clone(), held.may_answer.clone());
    let (address, shutdown, running) = start(options(), move |_| held.clone().answer()).await;
    let mut idle = TcpStream::connect(address).await.unwrap();
    let busy = tokio::spawn(exchange(address, "GET / HTTP/1.1\r\nhost: a\r\n\r\n"));
    timeout(PATIENCE, asked.notified()).await.expect("the request is here");
    shutdown.cancel();
    assert_eq!(read_to_end(&mut idle).await.unwrap(), "");
    may_answer.notify_one();
    assert!(busy.await.unwrap().unwrap().ends_with("slow"));
    timeout(PATIENCE, running).await.expect("still draining").unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn the_grace_bounds_the_shutdown() {
    let held = Held::default();
    let asked = held.asked.clone();
    let (address, shutdown, running) =
        start(Options { shutdown_grace: Duration::from_millis(200), ..options() }, move |_| held.clone().answer())
            .await;
    let client = tokio::spawn(exchange(address, "GET / HTTP/1.1\r\nhost: a\r\n\r\n"));
    timeout(PATIENCE, asked.notified()).await.expect("the request is here");
    shutdown.cancel();
    timeout(PATIENCE, running).await.expect("the grace is over").unwrap();
    assert!(!matches!(client.await.unwrap(), Ok(answer) if !answer.is_empty()));
}

#[tokio::test]
async fn bind_errors_name_the_address() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let error = Listeners::bind(&Options { listen: vec![address], ..options() }).await.unwrap_err();
    assert_eq!(error.to_string(), format!("cannot listen on {address}: the address is in use by another program"));
    let denied = BindError::new(address, io::ErrorKind::PermissionDenied.into());
    assert!(denied.to_string().contains("permission denied"));
}

// === Files ===

/// Pieces of a file and bytes, in the order given, with a promise of its own.
struct Pieces(VecDeque<Piece>, u64);

impl Pieces {
    fn new(pieces: Vec<Piece>) -> Self {
        let size_bytes = pieces.iter().map(Piece::size_bytes).sum();
        Self(pieces.into(), size_bytes)
    }
}

impl Body for Pieces {
    type Data = Piece;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Piece>>>> {
        let next = self.0.pop_front();
        self.1 -= next.as_ref().map_or(0, Piece::size_bytes);
        Poll::Ready(next.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.1)
    }
}

const FILE_BYTES: usize = 5_000_003;

/// A file, and what is in it.
fn file() -> (Arc<File>, Vec<u8>) {
    let content: Vec<u8> = (0..FILE_BYTES).map(|n| n.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes()[7]).collect();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&content).unwrap();
    (Arc::new(file), content)
}

/// The whole file in ranges of several sizes, with bytes between them.
fn ranges(file: &Arc<File>) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut start = 0;
    for size_bytes in [1, 70_000, 1 << 20, (1 << 20) + 1, 3] {
        pieces.push(Piece::File(FileRange::new(file.clone(), start..start + size_bytes)));
        pieces.push(Bytes::from_static(b"<between>").into());
        start += size_bytes;
    }
    pieces.push(Piece::File(FileRange::new(file.clone(), start..FILE_BYTES as u64)));
    pieces
}

fn expected(content: &[u8]) -> Vec<u8> {
    let file = ranges(&Arc::new(tempfile::tempfile().unwrap()));
    let mut bytes = Vec::new();
    for piece in file {
        match piece {
            Piece::Bytes(between) => bytes.extend_from_slice(&between),
            Piece::File(range) => {
                let start = usize::try_from(range.start()).unwrap();
                bytes.extend_from_slice(&content[start..start + usize::try_from(range.size_bytes()).unwrap()]);
            }
        }
    }
    bytes
}

/// The next answer of a connection: its head, and as many bytes as it promises.
async fn answer(stream: &mut (impl AsyncRead + Unpin)) -> (String, Vec<u8>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("closed in the head"));
    }
    let head = String::from_utf8(head).unwrap();
    let length = head.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next());
    let mut body = vec![0; length.expect("a length").parse().unwrap()];
    stream.read_exact(&mut body).await.expect("closed in the body");
    (head, body)
}

#[tokio::test]
async fn files_and_bytes_arrive_in_order_also_pipelined() {
    let (file, content) = file();
    let (address, ..) = start(options(), move |request: Request<Incoming>| {
        let pieces = if request.uri() == "/file" { ranges(&file) } else { vec![Bytes::from_static(b"small").into()] };
        async { Response::new(Pieces::new(pieces)) }
    })
    .await;
    let expected = expected(&content);
    let mut stream = TcpStream::connect(address).await.unwrap();
    let get = |method: &str, path: &str| format!("{method} {path} HTTP/1.1\r\nhost: a\r\n\r\n");
    let requests = [get("GET", "/file"), get("GET", "/"), get("GET", "/file"), get("GET", "/")].concat();
    stream.write_all(requests.as_bytes()).await.unwrap();
    for round in 0..2 {
        let (head, body) = answer(&mut stream).await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        assert!(body == expected, "round {round}");
        assert_eq!(answer(&mut stream).await.1, b"small", "round {round}");
    }
    stream.write_all(get("HEAD", "/file").as_bytes()).await.unwrap();
    let mut head = vec![0; 15];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!(head, b"HTTP/1.1 200 OK");
}

#[tokio::test]
async fn a_file_without_a_length_arrives_in_chunks() {
    struct Unsized(Pieces);
    impl Body for Unsized {
        type Data = Piece;
        type Error = io::Error;
        fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Piece>>>> {
            Pin::new(&mut self.0).poll_frame(cx)
        }
    }
    let (file, content) = file();
    let (address, ..) = start(options(), move |_| {
        let body = Unsized(Pieces::new(ranges(&file)));
        async { Response::new(body) }
    })
    .await;
    // An old client gets no chunks but the end of the connection.
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.unwrap();
    assert!(all.ends_with(&expected(&content)));
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.unwrap();
    let start = all.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
    assert!(dechunked(&all[start..]) == expected(&content));
}

fn dechunked(mut rest: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let end = rest.windows(2).position(|two| two == b"\r\n").unwrap();
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
        if size == 0 {
            return bytes;
        }
        bytes.extend_from_slice(&rest[end + 2..end + 2 + size]);
        rest = &rest[end + 2 + size + 2..];
    }
}

#[tokio::test]
async fn a_file_that_became_shorter_cuts_the_answer() {
    let (file, content) = file();
    let held = HeldFile::from(file.clone());
    let promised = Piece::File(FileRange::new(held.clone(), 0..FILE_BYTES as u64));
    file.set_len(2_000_000).unwrap();
    let (address, ..) = start(options(), move |_| {
        let body = Pieces::new(vec![promised.clone()]);
        async { Response::new(body) }
    })
    .await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut all = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut all)).await.expect("no end").unwrap();
    let start = all.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
    assert!(String::from_utf8_lossy(&all[..start]).contains("content-length: 5000003\r\n"));
    assert!(all[start..] == content[..2_000_000], "{} bytes", all.len() - start);
    assert!(held.has_failed(), "whoever handed the file out can tell");
}

// === TLS ===

struct Certificates {
    pem: Pem,
    root: CertificateDer<'static>,
}

fn certificates() -> Certificates {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (cert, key) = (made.cert.pem().into_bytes(), made.signing_key.serialize_pem().into_bytes());
    Certificates { pem: Pem { cert, key, client_ca: None }, root: made.cert.der().clone() }
}

async fn tls_client(
    address: SocketAddr,
    root: &CertificateDer<'static>,
    protocols: &[&[u8]],
) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(root.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    let stream = TcpStream::connect(address).await?;
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect("localhost".try_into().unwrap(), stream).await
}

#[tokio::test]
async fn encrypted_files_arrive_by_both_protocols() {
    let (file, content) = file();
    let expected = expected(&content);
    let made = certificates();
    let tls = Some(Tls::new(&made.pem).unwrap());
    let (address, ..) = start(Options { tls, ..options() }, move |_| {
        let body = Pieces::new(ranges(&file));
        async { Response::new(body) }
    })
    .await;
    let mut stream = tls_client(address, &made.root, &[b"http/1.1"]).await.unwrap();
    for _ in 0..2 {
        stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        assert!(answer(&mut stream).await.1 == expected);
    }

    let stream = tls_client(address, &made.root, &[b"h2", b"http/1.1"]).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut client, connection) =
        hyper::client::conn::http2::handshake(executor, hyper_util::rt::TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = || Request::get("https://localhost/").body(Full::<Bytes>::default()).unwrap();
    let (first, second) = tokio::join!(client.send_request(request()), client.clone().send_request(request()));
    for response in [first.unwrap(), second.unwrap()] {
        assert_eq!(response.version(), http::Version::HTTP_2);
        let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
        assert!(body == expected);
    }
}

#[tokio::test]
async fn certificates_change_while_connections_are_open() {
    let (old, new) = (certificates(), certificates());
    let tls = Tls::new(&old.pem).unwrap();
    let (address, ..) = start(Options { tls: Some(tls.clone()), ..options() }, hello).await;
    let mut open = tls_client(address, &old.root, &[]).await.unwrap();
    tls.replace(&new.pem).unwrap();
    assert!(tls_client(address, &old.root, &[]).await.is_err());
    let mut anew = tls_client(address, &new.root, &[]).await.unwrap();
    for stream in [&mut open, &mut anew] {
        stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        assert_eq!(answer(stream).await.1, b"hello");
    }
    // With roots for clients, one without a certificate is refused at the latest when it asks.
    tls.replace(&Pem { client_ca: Some(old.pem.cert.clone()), ..new.pem }).unwrap();
    let refused = async {
        let mut stream = tls_client(address, &new.root, &[]).await?;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await?;
        stream.read_u8().await
    };
    assert!(refused.await.is_err());
}

#[tokio::test]
async fn a_client_that_does_not_shake_hands_is_let_go() {
    let header_timeout = Duration::from_millis(300);
    let tls = Some(Tls::new(&certificates().pem).unwrap());
    let (address, ..) = start(Options { tls, header_timeout, ..options() }, hello).await;
    assert_eq!(exchange(address, "").await.unwrap(), "");
    // Plain HTTP on this port gets an alert, or nothing; never an answer.
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut all = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut all)).await.expect("no end");
    assert!(!all.starts_with(b"HTTP"));
}

#[tokio::test]
async fn an_idle_connection_of_http_2_ends() {
    let made = certificates();
    let tls = Some(Tls::new(&made.pem).unwrap());
    let header_timeout = Duration::from_millis(500);
    let (address, ..) = start(Options { tls, header_timeout, ..options() }, hello).await;
    let used = async || {
        let stream = tls_client(address, &made.root, &[b"h2"]).await.ok()?;
        let executor = hyper_util::rt::TokioExecutor::new();
        let shaken = hyper::client::conn::http2::handshake(executor, hyper_util::rt::TokioIo::new(stream)).await;
        let (mut client, connection) = shaken.ok()?;
        let ended = tokio::spawn(connection);
        let request = Request::get("https://localhost/").body(Full::<Bytes>::default()).unwrap();
        client.send_request(request).await.ok()?;
        Some((client, ended))
    };
    // On a slow machine, shaking hands can take longer than a connection may be idle.
    let once_used = async {
        loop {
            if let Some(used) = used().await {
                return used;
            }
        }
    };
    let (_client, ended) = timeout(PATIENCE, once_used).await.expect("no connection");
    let _ = timeout(PATIENCE, ended).await.expect("it is still open").unwrap();
}
