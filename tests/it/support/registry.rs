//! One registry that follows a script: real content and the pull side of the distribution API, with faults by rule, a
//! log of everything that was asked, a token server and a second listener that plays the object store behind it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;

use bytes::Bytes;
use serde_json::Value;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::net::TcpSocket;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use super::PATIENCE;
use super::content;
use super::content::Image;
use super::http1::Headers;
use super::registry_auth::Auth;
use super::registry_auth::Tokens;
use super::registry_serve::accept;
use super::reserve;
use super::script::Fault;
use super::script::Rule;
use super::script::matches;
use super::within;

/// Which of the two listeners took a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Site {
    Registry,
    Cdn,
}

/// One request, as the registry saw and answered it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) site: Site,
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) headers: Headers,
    pub(crate) body: Vec<u8>,
    /// 0 until the answer begins.
    pub(crate) status: u16,
    pub(crate) body_bytes: usize,
    /// The answer ended, one way or another.
    pub(crate) finished: bool,
}

pub(crate) struct Manifest {
    pub(crate) media_type: String,
    pub(crate) bytes: Bytes,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) blobs: HashMap<(String, String), Bytes>,
    pub(crate) manifests: HashMap<(String, String), Manifest>,
    pub(crate) tags: HashMap<(String, String), String>,
    /// `None`: this registry has no referrers API.
    pub(crate) referrers: Option<HashMap<String, Vec<Value>>>,
    pub(crate) auth: Auth,
    pub(crate) tokens: Tokens,
    /// Where blobs are redirected to, when they are.
    pub(crate) cdn: Option<SocketAddr>,
    pub(crate) signatures: HashMap<String, (String, String)>,
    rules: Vec<Rule>,
    log: Vec<Seen>,
}

pub(crate) struct Shared {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
    pub(crate) address: SocketAddr,
    pub(crate) tls: Option<TlsAcceptor>,
}

/// What goes out, before the script spoils it.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Headers,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn new(status: u16, content_type: &str, body: impl Into<Bytes>) -> Self {
        let mut headers = Headers::default();
        headers.push("Docker-Distribution-Api-Version", "registry/2.0");
        headers.push("Content-Type", content_type);
        Self { status, headers, body: body.into() }
    }

    pub(crate) fn error(status: u16, code: &str) -> Self {
        let body = json!({ "errors": [{ "code": code, "message": "scripted" }] }).to_string();
        Self::new(status, "application/json", body)
    }

    pub(crate) fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push(name, value);
        self
    }
}

pub(crate) struct ScriptedRegistry {
    shared: Arc<Shared>,
    listener: Mutex<Option<JoinHandle<()>>>,
    cdn: Mutex<Option<JoinHandle<()>>>,
    /// Keeps the port while nobody listens there.
    _port: TcpSocket,
}

impl Drop for ScriptedRegistry {
    fn drop(&mut self) {
        for slot in [&self.listener, &self.cdn] {
            if let Some(task) = slot.lock().unwrap().take() {
                task.abort();
            }
        }
    }
}

impl ScriptedRegistry {
    /// An empty registry that lets everybody in.
    pub(crate) async fn start() -> Self {
        Self::start_on("127.0.0.1:0", None).await
    }

    pub(crate) async fn start_on(address: &str, tls: Option<TlsAcceptor>) -> Self {
        let address = tokio::net::lookup_host(address).await.unwrap().next().expect("an address of this machine");
        let (port, address) = reserve(address);
        let shared = Arc::new(Shared { state: Mutex::default(), changed: watch::Sender::new(0), address, tls });
        let registry = Self { shared, listener: Mutex::default(), cdn: Mutex::default(), _port: port };
        registry.resume().await;
        registry
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.shared.address
    }

    pub(crate) fn url(&self) -> String {
        let scheme = if self.shared.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.shared.address)
    }

    /// Closes the listener and every connection: the next dial is refused.
    pub(crate) async fn stop(&self) {
        let task = self.listener.lock().unwrap().take();
        if let Some(task) = task {
            task.abort();
            let _ = task.await;
        }
    }

    /// Listens, after [`Self::stop`] on the same port again.
    pub(crate) async fn resume(&self) {
        let listener = TcpListener::bind(self.shared.address).await.unwrap();
        let task = tokio::spawn(accept(self.shared.clone(), listener, Site::Registry));
        *self.listener.lock().unwrap() = Some(task);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap()
    }

    pub(crate) fn blob(&self, repository: &str, bytes: impl Into<Bytes>) -> String {
        let bytes = bytes.into();
        let digest = content::sha256(&bytes);
        self.blob_as(repository, &digest, bytes);
        digest
    }

    /// A blob under a digest that the caller made (sha512, or a lie).
    pub(crate) fn blob_as(&self, repository: &str, digest: &str, bytes: impl Into<Bytes>) {
        self.state().blobs.insert((repository.to_owned(), digest.to_owned()), bytes.into());
    }

    pub(crate) fn remove_blob(&self, repository: &str, digest: &str) {
        self.state().blobs.remove(&(repository.to_owned(), digest.to_owned()));
    }

    pub(crate) fn manifest(&self, repository: &str, tag: &str, media_type: &str, bytes: impl Into<Bytes>) -> String {
        let bytes = bytes.into();
        let digest = content::sha256(&bytes);
        self.manifest_as(repository, &digest, media_type, bytes);
        self.tag(repository, tag, &digest);
        digest
    }

    pub(crate) fn manifest_as(&self, repository: &str, digest: &str, media_type: &str, bytes: impl Into<Bytes>) {
        let manifest = Manifest { media_type: media_type.to_owned(), bytes: bytes.into() };
        self.state().manifests.insert((repository.to_owned(), digest.to_owned()), manifest);
    }

    /// Lets a tag name a digest, from now on.
    pub(crate) fn tag(&self, repository: &str, tag: &str, digest: &str) {
        self.state().tags.insert((repository.to_owned(), tag.to_owned()), digest.to_owned());
    }

    pub(crate) fn remove_tag(&self, repository: &str, tag: &str) {
        self.state().tags.remove(&(repository.to_owned(), tag.to_owned()));
    }

    /// A whole image: manifest, config and layers.
    pub(crate) fn image(&self, repository: &str, tag: &str, layers: &[Bytes]) -> Image {
        let image = content::image(&format!("{repository}:{tag}"), layers);
        self.blob(repository, image.config.clone());
        for (_, layer) in &image.layers {
            self.blob(repository, layer.clone());
        }
        self.manifest(repository, tag, content::OCI_MANIFEST, image.manifest.clone());
        image
    }

    /// An index over these images, which must be in the repository already.
    pub(crate) fn index(&self, repository: &str, tag: &str, images: &[&Image]) -> (String, Bytes) {
        let children: Vec<(String, usize)> =
            images.iter().map(|image| (image.digest.clone(), image.manifest.len())).collect();
        let bytes = content::index(&children);
        (self.manifest(repository, tag, content::OCI_INDEX, bytes.clone()), bytes)
    }

    /// Has the referrers API from now on; `referrers` are the descriptors for one subject.
    pub(crate) fn referrers(&self, subject: &str, referrers: Vec<Value>) {
        self.state().referrers.get_or_insert_default().insert(subject.to_owned(), referrers);
    }

    pub(crate) fn require(&self, auth: Auth) {
        self.state().auth = auth;
    }

    /// Forgets every token given out so far.
    pub(crate) fn revoke_tokens(&self) {
        self.state().tokens.revoke();
    }

    /// Grants tokens for this repository but never its content.
    pub(crate) fn deny(&self, repository: &str) {
        self.state().tokens.denied.push(repository.to_owned());
    }

    /// From now on blobs are redirected to a second listener with a signed URL.
    pub(crate) async fn redirect_blobs(&self) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        self.state().cdn = Some(listener.local_addr().unwrap());
        let task = tokio::spawn(accept(self.shared.clone(), listener, Site::Cdn));
        *self.cdn.lock().unwrap() = Some(task);
    }

    /// Lets every signed URL given out so far expire.
    pub(crate) fn expire_signatures(&self) {
        for (_, digest) in self.state().signatures.values_mut() {
            "expired".clone_into(digest);
        }
    }

    pub(crate) fn rule(&self, rule: Rule) {
        self.state().rules.push(rule);
    }

    pub(crate) fn clear_rules(&self) {
        self.state().rules.clear();
    }

    /// Everything asked so far.
    pub(crate) fn log(&self) -> Vec<Seen> {
        self.state().log.clone()
    }

    /// The requests with this method (`*`: any) whose path fits the pattern.
    pub(crate) fn seen(&self, method: &str, pattern: &str) -> Vec<Seen> {
        let mut log = self.log();
        log.retain(|seen| (method == "*" || seen.method == method) && matches(pattern, &seen.path));
        log
    }

    pub(crate) fn count(&self, method: &str, pattern: &str) -> usize {
        self.seen(method, pattern).len()
    }

    /// All requests, whatever they asked for.
    pub(crate) fn total(&self) -> usize {
        self.state().log.len()
    }

    /// Body bytes that left this registry for paths that fit.
    pub(crate) fn body_bytes_sent(&self, pattern: &str) -> usize {
        self.seen("GET", pattern).iter().map(|seen| seen.body_bytes).sum()
    }

    /// Waits until the log satisfies the test.
    pub(crate) async fn wait_until(&self, mut test: impl FnMut(&[Seen]) -> bool) {
        let mut changed = self.shared.changed.subscribe();
        within(PATIENCE, changed.wait_for(|_| test(&self.state().log))).await.unwrap();
    }

    /// Waits until `count` such requests have arrived.
    pub(crate) async fn wait_for(&self, method: &str, pattern: &str, count: usize) {
        self.wait_until(|log| {
            log.iter().filter(|seen| seen.method == method && matches(pattern, &seen.path)).count() >= count
        })
        .await;
    }

    /// Waits until `count` such requests have been answered to the end.
    pub(crate) async fn wait_answered(&self, method: &str, pattern: &str, count: usize) {
        self.wait_until(|log| {
            log.iter().filter(|seen| seen.finished && seen.method == method && matches(pattern, &seen.path)).count()
                >= count
        })
        .await;
    }
}

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Notes a request and finds the fault it meets.
    pub(crate) fn arrived(&self, seen: &Seen) -> (usize, Fault) {
        let (index, fault) = {
            let mut state = self.lock();
            let has_range = seen.headers.get("Range").is_some();
            let fault = state.rules.iter_mut().find_map(|rule| rule.meet(&seen.method, &seen.path, has_range));
            state.log.push(seen.clone());
            (state.log.len() - 1, fault.unwrap_or_default())
        };
        self.changed.send_modify(|version| *version += 1);
        (index, fault)
    }

    pub(crate) fn update(&self, index: usize, change: impl FnOnce(&mut Seen)) {
        change(&mut self.lock().log[index]);
        self.changed.send_modify(|version| *version += 1);
    }
}
