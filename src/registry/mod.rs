//! The distribution API: client, route, target, pull, reply.
//!
//! Where clients have to say who they are, `access` is asked before anything else is looked at, so that strangers learn
//! nothing, and once more when the repository is known, before the store is looked into.
//!
//! What it is for: turning a request of a container engine into a question to `pull`, and the answer into status,
//! headers and body. The only place with status codes and registry error codes.
//!
//! What it promises: every request is answered; the world of registries is closed; a body that fails is cut, never
//! ended cleanly; every answer carries `Cache-Status` and a request id and leaves one line in the access log.
//!
//! What it must never know: the HTTP client, files, the index, sockets, the configuration file.

mod body;
mod condition;
mod error;
mod exchange;
mod multipart;
mod query;
mod reply;
mod route;
mod target;

use std::sync::Arc;

use arc_swap::ArcSwap;
use http::header::{AUTHORIZATION, HOST, TRANSFER_ENCODING};
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderValue, Method, Request, Response, Version};
use tracing::{Instrument, warn};

pub use self::body::Body;
pub use self::target::{InvalidOptions, Options, Routing, RoutingTable};

use self::body::{Content, Streamed};
use self::condition::{Part, is_held, part};
use self::error::Failure;
use self::exchange::Exchange;
use self::multipart::Multipart;
use self::query::Query;
use self::reply::Reply;
use self::route::{Endpoint, Route};
use crate::access::Certificate;
use crate::access::Checks;
use crate::access::Client;
use crate::access::Clients;
use crate::access::Refusal;
use crate::metrics::Metrics;
use crate::oci::{ByteRange, Digest, Reference, Repository};
use crate::piece::Piece;
use crate::pull::{Blob, BlobReader, Error, Puller, ReadError};

/// The service on the registry port. Cheap to clone.
#[derive(Clone)]
pub struct Service(Arc<Inner>);

struct Inner {
    world: ArcSwap<World>,
    checks: Checks,
    puller: Puller,
    metrics: Metrics,
}

/// What a request is judged by, from its beginning to its end.
struct World {
    table: Arc<RoutingTable>,
    /// `None` lets everybody in.
    clients: Option<Arc<Clients>>,
}

impl Service {
    /// Answers for the registries of the table, and to everybody.
    pub fn new(table: RoutingTable, puller: Puller, metrics: Metrics) -> Self {
        let world = ArcSwap::from_pointee(World { table: Arc::new(table), clients: None });
        Self(Arc::new(Inner { world, checks: Checks::new(), puller, metrics }))
    }

    /// Answers for the registries of another table to other clients, both from the next request on.
    pub fn reconfigure(&self, table: RoutingTable, clients: Option<Clients>) {
        self.0.world.store(Arc::new(World { table: Arc::new(table), clients: clients.map(Arc::new) }));
    }

    /// Answers to these clients from the next request on; `None` is everybody. Who was known before stays so, as far as
    /// nothing about them has changed.
    pub fn admit(&self, clients: Option<Clients>) {
        let now = self.0.world.load_full();
        let clients = clients.map(|clients| match &now.clients {
            Some(before) => clients.inherit(before),
            None => clients,
        });
        self.0.world.store(Arc::new(World { table: now.table.clone(), clients: clients.map(Arc::new) }));
    }

    /// Answers one request. Its body is never read; the access log is written when the body of the answer is dropped.
    pub async fn handle<B>(&self, request: Request<B>) -> Response<Body> {
        let (request, body) = request.into_parts();
        drop(body);
        let mut exchange = Exchange::begin(&request, self.0.metrics.clone());
        let span = exchange.span();
        let answer = self.0.answer(&request, &mut exchange).instrument(span.clone()).await;
        let reply = answer.unwrap_or_else(|failure| {
            if failure.status.is_server_error() {
                warn!(parent: &span, status = failure.status.as_u16(), reason = failure.message, "request failed");
            }
            Reply::failure(&failure)
        });
        reply.into_response(request.method == Method::HEAD, exchange)
    }
}

impl Inner {
    async fn answer(&self, request: &Parts, exchange: &mut Exchange) -> Result<Reply, Failure> {
        let host = check_framing(request)?;
        let world = self.world.load_full();
        // On the heap, or each request would carry the room for it where nobody wants to know.
        let client = match &world.clients {
            Some(clients) => Some(Box::pin(self.identify(clients, request, exchange)).await?),
            None => None,
        };
        let route = Route::parse(&request.method, request.uri.path())?;
        exchange.is_of_kind(route.kind());
        let query = Query::parse(request.uri.query())?;
        let target = world.table.resolve(&route, query.namespace.as_ref(), host)?;
        let repository = target.as_ref().and_then(|target| target.repository.clone());
        if let Some(target) = target {
            exchange.is_about(target);
        }
        let ping = || Reply::ping(client.as_ref().is_some_and(Client::could_log_in));
        let Some(repository) = repository else {
            return Ok(ping());
        };
        if let Some(client) = &client {
            client.may_read(&repository).map_err(|refusal| deny(refusal, request, exchange))?;
        }
        match &route.endpoint {
            Endpoint::Ping => Ok(ping()),
            Endpoint::Manifest { reference, .. } => self.manifest(request, &repository, reference).await,
            Endpoint::Blob { digest, .. } => self.blob(request, &repository, digest).await,
            // On the heap, or each pull would carry the room for these through the layers.
            Endpoint::Tags { .. } => Box::pin(self.tags(&route, &query, &repository)).await,
            Endpoint::Referrers { digest, .. } => Box::pin(self.referrers(&query, &repository, digest)).await,
        }
    }

    async fn identify(
        &self,
        clients: &Arc<Clients>,
        request: &Parts,
        exchange: &mut Exchange,
    ) -> Result<Client, Failure> {
        let mut shown = request.headers.get_all(AUTHORIZATION).iter();
        let authorization = shown.next().map(HeaderValue::as_bytes);
        if shown.next().is_some() {
            return Err(Failure::ambiguous("`Authorization` is given more than once"));
        }
        let certificate = request.extensions.get::<Certificate>();
        let client = clients.identify(&self.checks, certificate, authorization).await;
        let client = client.map_err(|refusal| deny(refusal, request, exchange))?;
        exchange.is_from(client.name());
        Ok(client)
    }

    async fn manifest(
        &self,
        request: &Parts,
        repository: &Repository,
        reference: &Reference,
    ) -> Result<Reply, Failure> {
        let manifest = self.puller.manifest(repository, reference).await.map_err(failing(repository))?;
        Ok(if is_held(&request.headers, &manifest.digest) {
            Reply::not_modified(&manifest.digest, &manifest.outcome)
        } else {
            Reply::manifest(&manifest.digest, &manifest.media_type, manifest.bytes, &manifest.outcome)
        })
    }

    async fn blob(&self, request: &Parts, repository: &Repository, digest: &Digest) -> Result<Reply, Failure> {
        let is_held = is_held(&request.headers, digest);
        // Only the right to the content is asked for; no download for a client that wants none of it.
        if is_held || request.method == Method::HEAD {
            let blob = self.puller.head_blob(repository, digest).await.map_err(failing(repository))?;
            return Ok(if is_held {
                Reply::not_modified(&blob.digest, &blob.outcome)
            } else {
                Reply::blob_head(&blob.digest, blob.size_bytes, &blob.outcome)
            });
        }
        let blob = self.puller.blob(repository, digest).await.map_err(failing(repository))?;
        read(request, repository, digest, blob).await
    }

    async fn tags(&self, route: &Route, query: &Query, repository: &Repository) -> Result<Reply, Failure> {
        let name = route.name().map_or("", |name| name.as_str());
        let page = query.tags()?;
        if page.n == Some(0) {
            return Ok(Reply::tags(name, &[], None, None));
        }
        let n = page.n;
        let found = self.puller.tags(repository, &page).await.map_err(failing(repository))?;
        let last = found.tags.last().filter(|_| found.has_more);
        let next_page = last.map(|last| query.next_page(route, n, last));
        Ok(Reply::tags(name, &found.tags, next_page, Some(&found.outcome)))
    }

    async fn referrers(&self, query: &Query, repository: &Repository, digest: &Digest) -> Result<Reply, Failure> {
        let found = self.puller.referrers(repository, digest, query.artifact_type()).await;
        let found = found.map_err(failing(repository))?;
        Ok(Reply::referrers(found.index, found.filtered, &found.outcome))
    }
}

/// The answer to a `GET` of a blob: all of it, or the part asked for.
async fn read(request: &Parts, repository: &Repository, digest: &Digest, blob: Blob) -> Result<Reply, Failure> {
    let size_bytes = blob.size_bytes();
    let outcome = blob.outcome();
    let range = match (part(&request.headers, digest, size_bytes), size_bytes) {
        (Part::Unsatisfiable, Some(size_bytes)) => return Ok(Reply::unsatisfiable(size_bytes, &outcome)),
        (Part::Range(range), Some(size_bytes)) => Some((range, size_bytes)),
        (Part::Several(ranges), Some(size_bytes)) => match several(digest, &blob, &ranges, size_bytes) {
            Some(reply) => return Ok(reply),
            None => None,
        },
        _ => None,
    };
    // A range over everything is read as the whole, which ends only after the content is verified.
    let partial = range.filter(|(range, size_bytes)| range.size_bytes() < *size_bytes);
    let reader = blob.read(partial.map(|(range, _)| range));
    if size_bytes == Some(0) {
        // An empty body is over before it is polled, so the verdict on it has to be waited for here.
        if let Some(Err(error)) = Box::pin(end_of(reader)).await {
            let error = Error::UpstreamWrong { reason: error.to_string() };
            return Err(Failure::pulling(&error, repository));
        }
        return Ok(Reply::blob(digest, Content::Full(Default::default()), &outcome));
    }
    Ok(match range {
        Some((range, size_bytes)) => {
            let content = Content::Blob(Streamed::new(reader, Some(range.size_bytes())));
            Reply::part(digest, range, size_bytes, content, &outcome)
        }
        None => Reply::blob(digest, Content::Blob(Streamed::new(reader, size_bytes)), &outcome),
    })
}

async fn end_of(mut empty: BlobReader) -> Option<Result<Piece, ReadError>> {
    empty.next().await
}

/// The answer to a request for several ranges, of which these are inside the content; `None` when it has to be the
/// whole, because its bytes come in order only. One part in place of many is sent only where no other exists.
fn several(digest: &Digest, blob: &Blob, ranges: &[ByteRange], size_bytes: u64) -> Option<Reply> {
    let outcome = blob.outcome();
    let mut readers = blob.parts(ranges)?;
    Some(match ranges {
        [] => Reply::unsatisfiable(size_bytes, &outcome),
        [range] => {
            let content = Content::Blob(Streamed::new(readers.pop()?, Some(range.size_bytes())));
            Reply::part(digest, *range, size_bytes, content, &outcome)
        }
        _ => {
            let parts = Multipart::new(size_bytes, ranges.iter().copied().zip(readers).collect());
            let (boundary, body_bytes) = (parts.boundary().to_owned(), parts.size_bytes());
            let content = Content::Parts(Streamed::new(parts, Some(body_bytes)));
            Reply::parts(digest, &boundary, content, &outcome)
        }
    })
}

/// A push is refused before its body is read.
fn deny(refusal: Refusal, request: &Parts, exchange: &Exchange) -> Failure {
    exchange.is_denied(refusal.as_str());
    let close = !matches!(request.method, Method::GET | Method::HEAD);
    Failure { close, ..Failure::from(refusal) }
}

fn failing(repository: &Repository) -> impl Fn(Error) -> Failure {
    move |error| Failure::pulling(&error, repository)
}

/// Refuses what two servers in a row could understand differently; returns the host that was asked: that of an
/// absolute-form target, else `Host` (RFC 9112 sections 3.2 and 3.2.2).
fn check_framing(request: &Parts) -> Result<Option<&str>, Failure> {
    let mut hosts = request.headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(Failure::ambiguous("`Host` is given more than once"));
    }
    if host.is_none() && request.version == Version::HTTP_11 {
        return Err(Failure::ambiguous("`Host` is missing"));
    }
    let host = host.map(|value| value.to_str().ok().filter(|host| is_host(host)));
    let host = host.map(|host| host.ok_or_else(|| Failure::ambiguous("`Host` is not a host"))).transpose()?;
    if matches!(request.method, Method::GET | Method::HEAD) && request.headers.contains_key(TRANSFER_ENCODING) {
        return Err(Failure::ambiguous("a request to pull has no body, so no `Transfer-Encoding` either"));
    }
    Ok(request.uri.authority().map(Authority::as_str).or(host))
}

/// The grammar of `Host`: an authority without a user. Empty is valid (RFC 9110 section 7.2) and names nothing.
fn is_host(text: &str) -> bool {
    text.is_empty() || (!text.contains('@') && text.parse::<Authority>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_host_is_asked() {
        let host = |target: &str, version: Version, hosts: &[&[u8]]| {
            let mut request = Request::get(target).version(version);
            for host in hosts {
                request = request.header(HOST, *host);
            }
            let (parts, ()) = request.body(()).unwrap().into_parts();
            check_framing(&parts).map(|host| host.map(str::to_owned)).map_err(|failure| failure.status.as_u16())
        };
        let (old, new) = (Version::HTTP_10, Version::HTTP_11);
        let asked = |host: &str| Ok(Some(host.to_owned()));
        assert_eq!(host("/v2/", new, &[b"a.example:5000"]), asked("a.example:5000"));
        assert_eq!(host("/v2/", new, &[b"[::1]:5000"]), asked("[::1]:5000"));
        assert_eq!(host("http://b.example/v2/", new, &[b"a.example"]), asked("b.example"));
        assert_eq!(host("/v2/", new, &[b""]), asked(""));
        assert_eq!(host("/v2/", old, &[]), Ok(None));
        let bad: [&[&[u8]]; 6] = [&[], &[b"a", b"a"], &[b"a b"], &[b"a/b"], &[b"me@a"], &[b"\xff"]];
        for hosts in bad {
            assert_eq!(host("/v2/", new, hosts), Err(400), "{hosts:?}");
        }
        assert_eq!(host("http://b.example/v2/", new, &[]), Err(400));
    }
}
