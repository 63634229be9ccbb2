//! `If-None-Match`: nothing is sent twice to a client that has it.

use crate::support::REPOSITORY;
use crate::support::blob_path;
use crate::support::content::sample;
use crate::support::content::unknown_digest;
use crate::support::manifest_path;
use crate::support::proxy::Proxy;
use crate::support::registry::ScriptedRegistry;

#[tokio::test]
async fn a_client_that_has_it_gets_304() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(1, 1000);
    let image = upstream.image(REPOSITORY, "latest", &[bytes]);
    let layer = &image.layers[0].0;
    let proxy = Proxy::of(&upstream).start().await;
    let table = [
        (manifest_path("latest"), &image.digest),
        (manifest_path(&image.digest), &image.digest),
        (blob_path(layer), layer),
    ];
    for (path, digest) in table {
        proxy.get(&path).await.assert_digest(digest);
        let other = unknown_digest();
        let matching = [
            format!("\"{digest}\""),
            digest.clone(),
            format!("W/\"{digest}\""),
            format!("\"{other}\", \"{digest}\""),
            "*".to_owned(),
        ];
        for condition in matching {
            let reply = proxy.get_with(&path, &[("If-None-Match", &condition)]).await;
            reply.assert_body(304, b"");
            assert_eq!(reply.header("ETag"), Some(format!("\"{digest}\"").as_str()), "{condition}");
            assert_eq!(reply.header("Docker-Content-Digest"), Some(digest.as_str()));
        }
        for condition in [format!("\"{other}\""), other.clone(), "nonsense".to_owned()] {
            let reply = proxy.get_with(&path, &[("If-None-Match", &condition)]).await;
            reply.assert_digest(digest);
        }
    }
}

#[tokio::test]
async fn a_client_without_a_condition_never_gets_304() {
    let upstream = ScriptedRegistry::start().await;
    let image = upstream.image(REPOSITORY, "latest", &[sample(2, 10)]);
    let proxy = Proxy::of(&upstream).each("tag_ttl", "1ms").start().await;
    for _ in 0..3 {
        proxy.get(&manifest_path("latest")).await.assert_digest(&image.digest);
        assert_eq!(proxy.head(&manifest_path("latest")).await.status, 200);
    }
}
