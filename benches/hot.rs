//! Whole answers from a warm cache, from the parsed request to the last byte of the body, without a socket.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Buf;
use bytes::Bytes;
use divan::Bencher;
use divan::counter::BytesCount;
use divan::counter::ItemsCount;
use forebay::metrics::Metrics;
use forebay::oci::Algorithm;
use forebay::oci::Digest;
use forebay::oci::MediaType;
use forebay::oci::Registry;
use forebay::oci::Repository;
use forebay::oci::Verified;
use forebay::pull;
use forebay::pull::Policy;
use forebay::pull::Puller;
use forebay::registry;
use forebay::registry::RoutingTable;
use forebay::registry::Service;
use forebay::store;
use forebay::store::Amount;
use forebay::store::Document;
use forebay::store::Proof;
use forebay::store::Store;
use forebay::upstream;
use forebay::upstream::RegistryOptions;
use forebay::upstream::Upstream;
use http_body_util::BodyExt;
use http_body_util::Empty;
use tokio::runtime::Runtime;

fn main() {
    // Before the first TLS client: the HTTP client takes whatever provider is installed.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    divan::main();
}

const LARGE_BLOB_BYTES: usize = 64 * 1024 * 1024;

struct Proxy {
    runtime: Runtime,
    service: Service,
    _data: tempfile::TempDir,
}

impl Proxy {
    /// A proxy that holds one manifest, as `library/bench:latest`, and one blob.
    fn with_image(blob_bytes: usize) -> (Self, [String; 3]) {
        let runtime = Runtime::new().expect("a runtime starts");
        let data = tempfile::tempdir().expect("there is room for a directory");
        let registry: Registry = "docker.io".parse().expect("a registry");
        let repository = Repository { registry: registry.clone(), name: "library/bench".parse().expect("a name") };
        let (service, paths) = runtime.block_on(async {
            let store = open_store(data.path());
            let (manifest, blob) = fill(&store, &repository, blob_bytes).await;
            let paths = [
                "/v2/library/bench/manifests/latest".to_owned(),
                format!("/v2/library/bench/manifests/{manifest}"),
                format!("/v2/library/bench/blobs/{blob}"),
            ];
            (service(&registry, store), paths)
        });
        (Self { runtime, service, _data: data }, paths)
    }

    fn get(&self, path: &str) -> usize {
        let request = http::Request::get(path).header("host", "127.0.0.1").body(Empty::<Bytes>::new());
        self.runtime.block_on(async {
            let response = self.service.handle(request.expect("a request")).await;
            assert_eq!(response.status(), 200);
            let (mut body, mut bytes) = (response.into_body(), 0);
            while let Some(frame) = body.frame().await {
                bytes += frame.expect("the body is whole").data_ref().map_or(0, Buf::remaining);
            }
            bytes
        })
    }
}

fn open_store(path: &std::path::Path) -> Store {
    let options = store::Options {
        path: path.to_owned(),
        max_size: Amount::Bytes(1 << 40),
        min_free: Amount::Bytes(0),
        memory_cache_bytes: 64 << 20,
    };
    Store::open(&options, Metrics::disabled()).expect("the store opens")
}

async fn fill(store: &Store, repository: &Repository, blob_bytes: usize) -> (Digest, Digest) {
    let document = Bytes::from(format!("{{\"schemaVersion\":2,\"layers\":[]{}}}", " ".repeat(1400)));
    let manifest = Digest::of(Algorithm::Sha256, &document);
    let verified = Verified::check(&manifest, &document).expect("it is its digest");
    let proof = Proof::Content { account: None };
    let document = Document { bytes: document, media_type: MediaType::oci_manifest() };
    store.put_document(verified, document, repository, &proof).await.expect("it is kept");
    let content = Bytes::from(vec![7; blob_bytes]);
    let blob = Digest::of(Algorithm::Sha256, &content);
    let spool = store.begin(&blob, Some(content.len() as u64), repository).await.expect("there is room");
    spool.lane(0).write(vec![content]).await.expect("it is written");
    store.publish(spool.finish().await.expect("it is its digest"), repository, &proof).await.expect("it is kept");
    store.point_tag(repository, &"latest".parse().expect("a tag"), &manifest).await;
    (manifest, blob)
}

fn service(registry: &Registry, store: Store) -> Service {
    let nowhere = "http://127.0.0.1:9".parse().expect("a URL");
    let registries = vec![RegistryOptions::new(registry.clone(), vec![nowhere])];
    let upstream = Upstream::new(upstream::Options { registries, ..Default::default() }, Metrics::disabled());
    let hour = Duration::from_secs(3600);
    let policy = Policy { tag_ttl: hour, stale_if_error: hour, not_found_ttl: hour, ..Policy::default() };
    let policies = HashMap::from([(registry.clone(), policy)]);
    let puller = Puller::new(
        pull::Options { policies, ..Default::default() },
        store,
        upstream.expect("it starts"),
        Metrics::disabled(),
    );
    let routing = registry::Routing { registry: registry.clone(), aliases: vec![], virtual_hosts: vec![] };
    let options = registry::Options { registries: vec![routing], default_registry: Some(registry.clone()) };
    let table = RoutingTable::new(options).expect("names do not clash");
    Service::new(table, puller, Metrics::disabled())
}

#[divan::bench]
fn manifest_by_tag(bencher: Bencher<'_, '_>) {
    let (proxy, [tag, ..]) = Proxy::with_image(1);
    bencher.counter(ItemsCount::new(1u32)).bench_local(|| proxy.get(&tag));
}

#[divan::bench]
fn manifest_by_digest(bencher: Bencher<'_, '_>) {
    let (proxy, [_, digest, _]) = Proxy::with_image(1);
    bencher.counter(ItemsCount::new(1u32)).bench_local(|| proxy.get(&digest));
}

#[divan::bench]
fn small_blob(bencher: Bencher<'_, '_>) {
    let (proxy, [.., blob]) = Proxy::with_image(2000);
    bencher.counter(ItemsCount::new(1u32)).bench_local(|| proxy.get(&blob));
}

#[divan::bench]
fn large_blob(bencher: Bencher<'_, '_>) {
    let (proxy, [.., blob]) = Proxy::with_image(LARGE_BLOB_BYTES);
    bencher.counter(BytesCount::new(LARGE_BLOB_BYTES)).bench_local(|| proxy.get(&blob));
}
