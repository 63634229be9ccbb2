//! More of the layer against scripted servers: other endpoints, tokens of others, pages, turns.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;
use std::time::Instant;

use super::Error;
use super::MAX_QUESTIONS;
use super::Part;
use super::tests::Server;
use super::tests::digest;
use super::tests::options;
use super::tests::reply;
use super::tests::repository;
use super::tests::tag;
use super::tests::upstream;

#[tokio::test]
async fn an_endpoint_that_breaks_the_protocol_is_passed_over() {
    let rows = [
        (307, "location: ftp://x.example/\r\n"),
        (200, "content-encoding: gzip\r\n"),
        (206, "content-range: bytes 5-9/10\r\n"),
        (400, ""),
        (421, ""),
    ];
    for (status, headers) in rows {
        let bad = Server::start(move |_| reply(status, headers, "")).await;
        let good = Server::start(|_| reply(200, "", "{}")).await;
        let upstream = upstream(options(&[&bad.address, &good.address]));
        for _ in 0..2 {
            upstream.get_blob(&repository(), &digest(), Part::whole()).await.unwrap();
        }
        assert_eq!((bad.count("GET"), good.count("GET")), (1, 2), "{status} {headers}");
    }
    let missing = Server::start(|_| reply(404, "", "")).await;
    let good = Server::start(|_| reply(200, "", "{}")).await;
    let upstream = upstream(options(&[&missing.address, &good.address]));
    assert_eq!(upstream.get_manifest(&repository(), &tag()).await.unwrap_err(), Error::NotFound);
    assert_eq!(good.count("GET"), 0, "an answer is an answer");
}

#[tokio::test]
async fn a_kept_token_that_is_refused_is_made_anew_once() {
    let current = Arc::new(Mutex::new("t1"));
    let valid = current.clone();
    let server = Server::start(move |seen| {
        let token = *valid.lock().unwrap();
        if seen.target.starts_with("/token") {
            return reply(200, "", &format!(r#"{{"token":"{token}"}}"#));
        }
        if seen.header("authorization") == Some(&format!("Bearer {token}")) {
            return reply(200, "", "{}");
        }
        let host = seen.header("host").unwrap();
        // One scope for all repositories, and so one token.
        reply(401, &format!("www-authenticate: Bearer realm=\"http://{host}/token\",scope=\"all\"\r\n"), "")
    })
    .await;
    let upstream = upstream(options(&[&server.address]));
    upstream.get_manifest(&repository(), &tag()).await.unwrap();
    *current.lock().unwrap() = "t2";
    let mut other = repository();
    other.name = "c/d".parse().unwrap();
    upstream.get_manifest(&other, &tag()).await.unwrap();
    assert_eq!(server.count("GET /token"), 2);
}

#[tokio::test]
async fn a_page_without_a_tag_is_not_the_end() {
    let server = Server::start(|seen| {
        let more = "link: </v2/a/b/tags/list?page=2>; rel=\"next\"\r\n";
        match seen.target.rsplit('/').next() {
            Some("list?page=2") => reply(200, more, r#"{"tags":["b"]}"#),
            _ => reply(200, more, r#"{"tags":["a","not a tag"]}"#),
        }
    })
    .await;
    let page = upstream(options(&[&server.address])).list_tags(&repository(), None, Some("a")).await.unwrap();
    assert_eq!((page.tags, page.has_more), (vec!["b".to_owned()], true));

    let endless = Server::start(|_| reply(200, "link: <?page=2>; rel=\"next\"\r\n", r#"{"tags":[]}"#)).await;
    let error = upstream(options(&[&endless.address])).list_tags(&repository(), None, None).await.unwrap_err();
    assert!(matches!(error, Error::Protocol { .. }), "{error:?}");
    assert_eq!(endless.count("GET"), 32);
}

#[tokio::test]
async fn questions_take_turns() {
    const PAUSE: Duration = Duration::from_millis(300);
    let server = Server::start(|_| {
        let mut answer = reply(200, "", "{}");
        answer[0].0 = 300;
        answer
    })
    .await;
    let upstream = upstream(options(&[&server.address]));
    let (repository, tag, started) = (repository(), tag(), Instant::now());
    let many = (0..=MAX_QUESTIONS).map(|_| upstream.get_manifest(&repository, &tag));
    for answer in futures_util::future::join_all(many).await {
        answer.unwrap();
    }
    assert!(started.elapsed() >= 2 * PAUSE, "one too many waits for a turn");
}
