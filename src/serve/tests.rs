use super::*;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::Full;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
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
    }
}

async fn start<H, F, B>(options: Options, handler: H) -> (SocketAddr, CancellationToken, JoinHandle<()>)
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: http_body::Body + Send + 'static,
    B::Data: Buf + Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
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
