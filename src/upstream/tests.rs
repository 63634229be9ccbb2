//! The layer against a scripted server on loopback.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWrite;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio::time::sleep;

use super::*;
use crate::oci::Algorithm;

pub(super) const BODY: &str = "0123456789";
/// A limit that no test reaches: a machine that stands still must not decide what is not about time.
const NEVER: Duration = Duration::from_secs(3600);

/// A request as the server saw it.
pub(crate) struct Seen {
    method: String,
    pub(crate) target: String,
    head: String,
}

impl Seen {
    /// Lower-case name.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .filter_map(|line| line.split_once(": "))
            .find_map(|(key, value)| key.eq_ignore_ascii_case(name).then_some(value))
    }
}

/// Pieces of a raw answer with a pause before each; the connection closes behind them.
pub(crate) type Reply = Vec<(u64, String)>;

pub(crate) fn reply(status: u16, headers: &str, body: &str) -> Reply {
    vec![(
        0,
        format!("HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n{body}", body.len()),
    )]
}

/// A HEAD answer: a length without a body.
fn head_reply(headers: &str) -> Reply {
    vec![(0, format!("HTTP/1.1 200 X\r\nconnection: close\r\ncontent-length: 10\r\n{headers}\r\n"))]
}

pub(crate) struct Server {
    pub(crate) address: String,
    /// `METHOD target` of each request.
    log: Arc<Mutex<Vec<String>>>,
}

impl Server {
    pub(crate) async fn start(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (script, seen) = (Arc::new(script), log.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, script.clone(), seen.clone()));
            }
        });
        Self { address, log }
    }

    pub(crate) fn count(&self, start: &str) -> usize {
        self.log.lock().unwrap().iter().filter(|line| line.starts_with(start)).count()
    }
}

async fn answer(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    script: Arc<impl Fn(&Seen) -> Reply>,
    log: Arc<Mutex<Vec<String>>>,
) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).ok()?;
    let mut words = head.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    log.lock().unwrap().push(format!("{method} {target}"));
    for (pause_ms, piece) in script(&Seen { method, target, head }) {
        sleep(Duration::from_millis(pause_ms)).await;
        stream.write_all(piece.as_bytes()).await.ok()?;
    }
    stream.shutdown().await.ok()
}

pub(crate) fn options(endpoints: &[&str]) -> RegistryOptions {
    let endpoints = endpoints.iter().map(|address| format!("http://{address}").parse().unwrap()).collect();
    let mut options = RegistryOptions::new("r.example".parse().unwrap(), endpoints);
    (options.connect_timeout, options.read_timeout) = (NEVER, NEVER);
    options
}

fn with_credentials(mut options: RegistryOptions) -> RegistryOptions {
    options.credentials =
        Some(Credentials::Password { username: "me".into(), password: Secret::from("hunter2".to_owned()) });
    options
}

pub(crate) fn upstream(registry: RegistryOptions) -> Upstream {
    let options = Options { registries: vec![registry], ..Options::default() };
    Upstream::new(options, Metrics::disabled()).unwrap()
}

pub(super) fn repository() -> Repository {
    Repository { registry: "r.example".parse().unwrap(), name: "a/b".parse().unwrap() }
}

pub(super) fn tag() -> Reference {
    Reference::Tag("latest".parse().unwrap())
}

pub(super) fn digest() -> Digest {
    Digest::of(Algorithm::Sha256, BODY.as_bytes())
}

async fn read_all(body: &mut BlobBody) -> Result<String, Error> {
    let mut text = String::new();
    while let Some(bytes) = body.chunk().await? {
        text.push_str(std::str::from_utf8(&bytes).unwrap());
    }
    Ok(text)
}

/// A registry that wants a token of its own `/token`, and answers with `inner` to those that have it.
fn token_registry(seen: &Seen, token: &str, life: &str, inner: impl Fn(&Seen) -> Reply) -> Reply {
    if seen.target.starts_with("/token") {
        return vec![(50, String::new())]
            .into_iter()
            .chain(reply(200, "", &format!(r#"{{"token":"{token}"{life}}}"#)))
            .collect();
    }
    if seen.header("authorization") == Some(&format!("Bearer {token}")) {
        return inner(seen);
    }
    let host = seen.header("host").unwrap();
    reply(401, &format!("www-authenticate: Bearer realm=\"http://{host}/token\",service=\"s\"\r\n"), "")
}

#[tokio::test]
async fn one_token_for_all_who_wait() {
    let server = Server::start(|seen| {
        assert_eq!(seen.header("accept-encoding"), Some("identity"));
        assert_eq!(seen.header("referer"), None);
        token_registry(seen, "t1", "", |_| reply(200, "content-type: application/json\r\n", "{}"))
    })
    .await;
    let upstream = upstream(options(&[&server.address]));
    let many = (0..20).map(|_| {
        let upstream = upstream.clone();
        tokio::spawn(async move { upstream.get_manifest(&repository(), &tag()).await })
    });
    for result in futures_util::future::join_all(many).await {
        assert_eq!(result.unwrap().unwrap().identity, Identity::Anonymous);
    }
    assert_eq!(server.count("GET /token?service=s&scope=repository%3Aa%2Fb%3Apull"), 1);
    let before = server.log.lock().unwrap().len();
    upstream.get_manifest(&repository(), &tag()).await.unwrap();
    assert_eq!(server.log.lock().unwrap().len(), before + 1, "the token is sent at once");
}

#[tokio::test]
async fn credentials_go_to_the_own_realm_and_name_the_identity() {
    let server = Server::start(|seen| {
        if seen.target.starts_with("/token") {
            assert_eq!(seen.header("authorization"), Some("Basic bWU6aHVudGVyMg=="));
            assert!(seen.target.ends_with("&account=me"), "{}", seen.target);
        }
        token_registry(seen, "t1", ",\"expires_in\":300", |_| {
            head_reply("content-type: application/vnd.oci.image.index.v1+json; charset=utf-8\r\n")
        })
    })
    .await;
    let upstream = upstream(with_credentials(options(&[&server.address])));
    let head = upstream.head_manifest(&repository(), &tag()).await.unwrap();
    assert_eq!(head.identity, Identity::Account("me@r.example".into()));
    assert_eq!((head.size_bytes, head.digest), (Some(10), None));
    assert!(head.media_type.unwrap().is_index());
}

#[tokio::test]
async fn credentials_never_asked_for_are_anonymous() {
    let server = Server::start(|seen| {
        assert_eq!(seen.header("authorization"), None);
        reply(200, "", "{}")
    })
    .await;
    let upstream = upstream(with_credentials(options(&[&server.address])));
    assert_eq!(upstream.get_manifest(&repository(), &tag()).await.unwrap().identity, Identity::Anonymous);
}

#[tokio::test]
async fn a_foreign_realm_gets_nothing() {
    let foreign = Server::start(|_| reply(200, "", r#"{"token":"t"}"#)).await;
    let realm = format!("http://localhost:{}/token", foreign.address.rsplit_once(':').unwrap().1);
    let challenge = format!("www-authenticate: Bearer realm=\"{realm}\"\r\n");
    let server = Server::start(move |_| reply(401, &challenge, "")).await;
    for options in [options(&[&server.address]), with_credentials(options(&[&server.address]))] {
        let error = upstream(options).get_manifest(&repository(), &tag()).await.unwrap_err();
        assert!(matches!(error, Error::Protocol { .. }), "{error:?}");
    }
    assert_eq!(foreign.count(""), 0);
    let mut allowed = with_credentials(options(&[&server.address]));
    allowed.token_realms = vec!["localhost".to_owned()];
    let error = upstream(allowed).get_manifest(&repository(), &tag()).await.unwrap_err();
    assert!(matches!(error, Error::Denied { with_credentials: true, .. }), "{error:?}");
    assert_eq!(foreign.count("GET /token"), 1);
}

#[tokio::test]
async fn a_token_service_does_not_redirect() {
    let server = Server::start(|seen| match seen.target.starts_with("/token") {
        true => reply(302, "location: /token2\r\n", ""),
        false => token_registry(seen, "t", "", |_| reply(200, "", "")),
    })
    .await;
    let error = upstream(options(&[&server.address])).get_manifest(&repository(), &tag()).await.unwrap_err();
    assert!(matches!(error, Error::Protocol { .. }), "{error:?}");
    assert_eq!(server.count("GET /token2"), 0);
}

#[tokio::test]
async fn a_stale_token_is_dropped_and_the_challenge_read_without_it() {
    let round = Arc::new(Mutex::new("t1"));
    let current = round.clone();
    let server = Server::start(move |seen| {
        let token = *current.lock().unwrap();
        let stale = seen.header("authorization").is_some_and(|sent| sent != format!("Bearer {token}"));
        if stale && !seen.target.starts_with("/token") {
            return reply(401, "www-authenticate: Bearer realm=\"http://localhost:1/elsewhere\"\r\n", "");
        }
        token_registry(seen, token, "", |_| reply(200, "", "{}"))
    })
    .await;
    let upstream = upstream(options(&[&server.address]));
    upstream.get_manifest(&repository(), &tag()).await.unwrap();
    *round.lock().unwrap() = "t2";
    upstream.get_manifest(&repository(), &tag()).await.unwrap();
    assert_eq!(server.count("GET /token"), 2);
}

#[tokio::test]
async fn refusals_are_denials() {
    let server = Server::start(|seen| match seen.target.as_str() {
        target if target.contains("/tags/") => reply(403, "", r#"{"errors":[{"code":"DENIED","message":"hunter2"}]}"#),
        target if target.contains("/blobs/") => reply(401, "www-authenticate: Basic realm=\"x\"\r\n", ""),
        _ if seen.target.starts_with("/token") => reply(401, "", ""),
        _ => token_registry(seen, "t", "", |_| reply(200, "", "")),
    })
    .await;
    let anonymous = upstream(options(&[&server.address]));
    let error = anonymous.list_tags(&repository(), None, None).await.unwrap_err();
    assert_eq!(error.to_string(), "the registry refused anonymous access (403 DENIED)");
    let known = upstream(with_credentials(options(&[&server.address])));
    for (upstream, with) in [(anonymous, false), (known, true)] {
        for error in [
            upstream.head_blob(&repository(), &digest()).await.unwrap_err(),
            upstream.get_manifest(&repository(), &tag()).await.unwrap_err(),
        ] {
            assert!(matches!(error, Error::Denied { with_credentials, .. } if with_credentials == with), "{error:?}");
            assert!(!format!("{error:?}").contains("hunter2"));
        }
    }
}

#[tokio::test]
async fn redirects_drop_the_token_and_keep_the_range() {
    let cdn = Server::start(|seen| {
        assert_eq!(seen.header("authorization"), None);
        assert_eq!(seen.header("range"), Some("bytes=4-"));
        reply(206, "content-range: bytes 4-9/10\r\n", &BODY[4..])
    })
    .await;
    let location = format!("location: http://{}/x?X-Signature=topsecret\r\n", cdn.address);
    let server = Server::start(move |seen| token_registry(seen, "t", "", |_| reply(307, &location, ""))).await;
    let upstream = upstream(options(&[&server.address]));
    let mut body = upstream.get_blob(&repository(), &digest(), Part { start: 4, end: None }).await.unwrap();
    assert_eq!((body.start(), body.total_bytes()), (4, Some(10)));
    assert!(!format!("{body:?}").contains("topsecret"));
    assert_eq!(read_all(&mut body).await.unwrap(), &BODY[4..]);
    assert_eq!(cdn.count("GET /x"), 1);
}

#[tokio::test]
async fn a_refused_redirect_is_made_anew_once() {
    let cdn = Server::start(|seen| match seen.target.as_str() {
        "/x?1" => reply(403, "", ""),
        _ => reply(200, "", BODY),
    })
    .await;
    let address = cdn.address.clone();
    let asked = Mutex::new(0);
    let server = Server::start(move |_| {
        *asked.lock().unwrap() += 1;
        reply(307, &format!("location: http://{address}/x?{}\r\n", asked.lock().unwrap()), "")
    })
    .await;
    let upstream = upstream(options(&[&server.address]));
    let mut body = upstream.get_blob(&repository(), &digest(), Part::whole()).await.unwrap();
    assert_eq!(read_all(&mut body).await.unwrap(), BODY);
    assert_eq!((server.count("GET"), cdn.count("GET")), (2, 2));
}

#[tokio::test]
async fn a_stranger_gets_an_anonymous_token_only() {
    let stranger = Server::start(|seen| {
        assert_ne!(seen.header("authorization").map(|sent| sent.starts_with("Basic")), Some(true));
        token_registry(seen, "visitor", "", |_| reply(200, "", "{}"))
    })
    .await;
    let location = format!("location: http://{}/v2/y\r\n", stranger.address);
    let server = Server::start(move |seen| token_registry(seen, "own", "", |_| reply(307, &location, ""))).await;
    let upstream = upstream(with_credentials(options(&[&server.address])));
    let manifest = upstream.get_manifest(&repository(), &tag()).await.unwrap();
    assert_eq!(manifest.identity, Identity::Account("me@r.example".into()));
    assert_eq!(stranger.count("GET /token"), 1);
}

#[tokio::test]
async fn redirect_loops_end() {
    let server = Server::start(|_| reply(302, "location: /again?topsecret\r\n", "")).await;
    let error = upstream(options(&[&server.address])).get_manifest(&repository(), &tag()).await.unwrap_err();
    assert!(matches!(error, Error::Protocol { .. }) && !error.to_string().contains("topsecret"), "{error:?}");
    assert_eq!(server.count("GET"), 6);
}

#[tokio::test]
async fn a_cut_body_is_told_from_a_clean_end() {
    let server = Server::start(|_| vec![(0, format!("HTTP/1.1 200 X\r\ncontent-length: 20\r\n\r\n{BODY}"))]).await;
    let upstream = upstream(options(&[&server.address]));
    let mut body = upstream.get_blob(&repository(), &digest(), Part::whole()).await.unwrap();
    assert_eq!(body.total_bytes(), Some(20));
    assert!(matches!(read_all(&mut body).await, Err(Error::Cut { after_bytes: 10, .. })));
}

#[tokio::test]
async fn wrong_ranges_and_codings_are_refused() {
    for headers in ["content-range: bytes 0-9/10\r\n", "content-range: bytes 4-9/10\r\ncontent-encoding: gzip\r\n"] {
        let server = Server::start(move |_| reply(206, headers, BODY)).await;
        let part = Part { start: 4, end: None };
        let error = upstream(options(&[&server.address])).get_blob(&repository(), &digest(), part).await.unwrap_err();
        assert!(matches!(error, Error::Protocol { .. }), "{error:?}");
    }
    let server = Server::start(|_| reply(200, "", BODY)).await;
    let part = Part { start: 4, end: None };
    let body = upstream(options(&[&server.address])).get_blob(&repository(), &digest(), part).await.unwrap();
    assert_eq!(body.start(), 0, "an ignored range is said");
}

#[tokio::test]
async fn broken_servers_get_a_few_tries() {
    let asked = Mutex::new(0);
    let flaky = Server::start(move |_| {
        *asked.lock().unwrap() += 1;
        if *asked.lock().unwrap() < 3 { reply(503, "", "") } else { reply(200, "", "{}") }
    })
    .await;
    upstream(options(&[&flaky.address])).get_manifest(&repository(), &tag()).await.unwrap();
    let broken = Server::start(|_| reply(500, "", "")).await;
    let error = upstream(options(&[&broken.address])).get_manifest(&repository(), &tag()).await.unwrap_err();
    assert_eq!((error, broken.count("GET")), (Error::Unavailable { status: 500 }, 3));
    let error = upstream(options(&["127.0.0.1:1"])).get_manifest(&repository(), &tag()).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
}

#[tokio::test]
async fn retry_after_is_kept() {
    let server = Server::start(|_| reply(429, "retry-after: 3600\r\n", "")).await;
    let upstream = upstream(options(&[&server.address]));
    for _ in 0..5 {
        let error = upstream.head_manifest(&repository(), &tag()).await.unwrap_err();
        assert!(matches!(error, Error::RateLimited { retry_after: Some(wait) } if wait > Duration::from_secs(3000)));
    }
    assert_eq!(server.count("HEAD"), 1);
    let blob = upstream.get_blob(&repository(), &digest(), Part::whole()).await;
    assert!(blob.is_err() && server.count("GET") == 1, "blobs are still asked for");
}

#[tokio::test]
async fn heads_and_limits() {
    let server = Server::start(|seen| match seen.method.as_str() {
        "HEAD" => reply(405, "", ""),
        _ => vec![(0, "HTTP/1.1 200 X\r\ncontent-length: 99999999\r\n\r\n".to_owned())],
    })
    .await;
    let upstream = upstream(options(&[&server.address]));
    assert_eq!(upstream.head_manifest(&repository(), &tag()).await.unwrap().digest, None);
    let error = upstream.get_manifest(&repository(), &tag()).await.unwrap_err();
    assert!(error.to_string().contains("larger"), "{error}");
    let other = Repository { registry: "other.example".parse().unwrap(), ..repository() };
    assert_eq!(upstream.head_blob(&other, &digest()).await.unwrap_err(), Error::UnknownRegistry);
}

#[tokio::test]
async fn listings() {
    let server = Server::start(|seen| match seen.target.rsplit('/').next() {
        Some("list?n=2&last=a") => reply(200, "", r#"{"name":"a/b","tags":["b","not a tag","c","d"]}"#),
        Some("list") => reply(200, "", r#"{"name":"a/b","tags":null}"#),
        Some(target) if target.ends_with("?artifactType=x%2Fy") => {
            let headers = "oci-filters-applied: artifactType\r\nlink: </v2/a/b/referrers/z?page=2>; rel=\"next\"\r\n";
            reply(200, headers, r#"{"schemaVersion":2,"manifests":[{"size":1}]}"#)
        }
        Some(target) if target.ends_with("?page=2") => reply(200, "", r#"{"manifests":[{"size":2}]}"#),
        _ => reply(404, "", ""),
    })
    .await;
    let upstream = upstream(options(&[&server.address]));
    let page = upstream.list_tags(&repository(), Some(2), Some("a")).await.unwrap();
    assert_eq!(page, TagPage { tags: vec!["b".into(), "c".into()], has_more: true });
    assert_eq!(upstream.list_tags(&repository(), None, None).await.unwrap().tags, Vec::<String>::new());
    let referrers = upstream.referrers(&repository(), &digest(), Some("x/y")).await.unwrap();
    assert!(referrers.filtered);
    let merged: serde_json::Value = serde_json::from_slice(&referrers.index).unwrap();
    assert_eq!(merged["manifests"].as_array().unwrap().len(), 2);
    assert_eq!(upstream.referrers(&repository(), &digest(), None).await.unwrap_err(), Error::NotFound);
}

#[tokio::test]
async fn https_trusts_the_extra_roots_only() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(stream) = acceptor.accept(stream).await {
                answer(stream, Arc::new(|_: &Seen| reply(200, "", BODY)), Arc::default()).await;
            }
        }
    });
    let mut registry = options(&[]);
    registry.endpoints = vec![format!("https://localhost:{port}").parse().unwrap()];
    let error = upstream(registry.clone()).get_manifest(&repository(), &tag()).await.unwrap_err();
    assert!(matches!(&error, Error::Unreachable { reason } if reason.contains("certificate")), "{error:?}");
    registry.ca_pem = made.cert.pem().into_bytes();
    let upstream = upstream(registry);
    upstream.get_manifest(&repository(), &tag()).await.unwrap();
    let mut body = upstream.get_blob(&repository(), &digest(), Part::whole()).await.unwrap();
    assert_eq!(read_all(&mut body).await.unwrap(), BODY);
}

#[test]
fn bad_options_are_refused() {
    let refused = |change: fn(&mut RegistryOptions)| {
        let mut registry = options(&["127.0.0.1:1"]);
        change(&mut registry);
        Upstream::new(Options { registries: vec![registry], ..Options::default() }, Metrics::disabled()).unwrap_err()
    };
    assert!(matches!(refused(|o| o.endpoints.clear()), SetupError::NoEndpoint { .. }));
    assert!(matches!(refused(|o| o.ca_pem = b"x".to_vec()), SetupError::BadCa { .. }));
    let secret = refused(|o| o.endpoints = vec!["https://me:hunter2@r.example".parse().unwrap()]);
    assert!(matches!(secret, SetupError::BadEndpoint { .. }) && !format!("{secret} {secret:?}").contains("hunter2"));
}

#[tokio::test]
async fn a_head_that_says_nothing_is_no_yes() {
    for status in [405, 501] {
        let server = Server::start(move |_| reply(status, "", "")).await;
        let upstream = upstream(options(&[&server.address]));
        assert!(!upstream.head_manifest(&repository(), &tag()).await.unwrap().is_supported);
        let head = upstream.head_blob(&repository(), &digest()).await.unwrap();
        assert_eq!((head.is_supported, head.size_bytes), (false, None));
    }
}

#[tokio::test]
async fn a_url_signed_for_get_is_asked_for_its_first_byte() {
    let rows = [
        (403, 206, "content-range: bytes 0-0/10\r\n", "0", Some(10)),
        (400, 200, "", BODY, Some(10)),
        (405, 416, "content-range: bytes */0\r\n", "", Some(0)),
        (501, 206, "", "0", None),
    ];
    for (refusal, status, headers, body, size_bytes) in rows {
        let cdn = Server::start(move |seen| match seen.header("range") {
            None => reply(refusal, "", ""),
            Some(range) => {
                assert_eq!((seen.method.as_str(), range), ("GET", "bytes=0-0"));
                reply(status, headers, body)
            }
        })
        .await;
        let location = format!("location: http://{}/x\r\n", cdn.address);
        let server = Server::start(move |_| reply(307, &location, "")).await;
        let head = upstream(options(&[&server.address])).head_blob(&repository(), &digest()).await.unwrap();
        assert_eq!((head.is_supported, head.size_bytes), (true, size_bytes), "{refusal} {status}");
        assert_eq!((cdn.count("HEAD"), cdn.count("GET")), (1, 1));
    }
}

#[tokio::test]
async fn rate_limits_belong_to_those_who_set_them() {
    let tokens = Mutex::new(0);
    let server = Server::start(move |seen| {
        if seen.target.starts_with("/token") {
            *tokens.lock().unwrap() += 1;
            if *tokens.lock().unwrap() > 1 {
                return reply(429, "", "");
            }
        }
        token_registry(seen, "t", ",\"expires_in\":0.01", |_| reply(200, "", "{}"))
    })
    .await;
    let limited = upstream(options(&[&server.address]));
    limited.get_manifest(&repository(), &tag()).await.unwrap();
    // The life of the token is over.
    sleep(Duration::from_millis(20)).await;
    for _ in 0..3 {
        let error = limited.get_manifest(&repository(), &tag()).await.unwrap_err();
        assert!(matches!(error, Error::RateLimited { retry_after: Some(_) }), "{error:?}");
    }
    assert_eq!((server.count("GET /token"), server.count("GET /v2/")), (2, 2), "left alone after one refusal");

    let cdn = Server::start(|_| reply(429, "retry-after: 60\r\n", "")).await;
    let location = format!("location: http://{}/x\r\n", cdn.address);
    let server = Server::start(move |seen| match seen.target.contains("/blobs/") {
        true => reply(307, &location, ""),
        false => reply(200, "", "{}"),
    })
    .await;
    let upstream = upstream(options(&[&server.address]));
    let error = upstream.get_blob(&repository(), &digest(), Part::whole()).await.unwrap_err();
    assert!(matches!(error, Error::RateLimited { .. }), "{error:?}");
    upstream.get_manifest(&repository(), &tag()).await.unwrap();
}
