//! What operators ask the engine, against a store and a registry on loopback.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use tempfile::TempDir;

use crate::metrics::Metrics;
use crate::oci::Algorithm;
use crate::oci::Digest;
use crate::oci::Reference;
use crate::oci::Registry;
use crate::oci::Repository;
use crate::oci::Tag;
use crate::store::Amount;
use crate::store::Store;
use crate::upstream::Credentials;
use crate::upstream::tests::Reply;
use crate::upstream::tests::Seen;
use crate::upstream::tests::Server;
use crate::upstream::tests::options;
use crate::upstream::tests::reply;

use super::Error;
use super::Health;
use super::Options;
use super::Outcome;
use super::Policy;
use super::Puller;
use super::Right;
use super::Source;
use super::StaleReason;
use super::TagRule;
use super::Verdict;
use super::Why;

const DAY: Duration = Duration::from_secs(24 * 3600);
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// What the registry says.
#[derive(Clone, Debug, Default)]
struct Script {
    /// Of every tag.
    content: Option<String>,
    /// In the place of everything else.
    status: Option<u16>,
    /// The only `Authorization` that is let in.
    basic: Option<&'static str>,
}

struct World {
    puller: Puller,
    script: Arc<Mutex<Script>>,
    server: Server,
    _folder: TempDir,
}

fn answer(script: &Script, seen: &Seen) -> Reply {
    if let Some(status) = script.status {
        return reply(status, "", "");
    }
    if script.basic.is_some() && seen.header("authorization") != script.basic {
        return reply(401, "www-authenticate: Basic realm=\"x\"\r\n", "");
    }
    let Some(content) = script.content.as_ref().filter(|_| seen.target.contains("/manifests/")) else {
        return reply(404, "", "");
    };
    let digest = digest_of(content);
    let limits = "ratelimit-limit: 100;w=60\r\nratelimit-remaining: 9\r\n";
    reply(200, &format!("content-type: {MANIFEST}\r\ndocker-content-digest: {digest}\r\n{limits}"), content)
}

fn manifest(name: &str) -> String {
    format!(r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","annotations":{{"name":"{name}"}}}}"#)
}

fn digest_of(content: &str) -> Digest {
    Digest::of(Algorithm::Sha256, content.as_bytes())
}

fn registry() -> Registry {
    "r.example".parse().unwrap()
}

fn repository(name: &str) -> Repository {
    Repository { registry: registry(), name: name.parse().unwrap() }
}

fn tag(name: &str) -> Tag {
    name.parse().unwrap()
}

impl World {
    async fn start(content: &str) -> Self {
        let script = Arc::new(Mutex::new(Script { content: Some(manifest(content)), ..Script::default() }));
        let told = script.clone();
        let server = Server::start(move |seen| {
            let script = told.lock().unwrap().clone();
            // A HEAD has the headers of its GET; the connection closes behind it.
            answer(&script, seen)
        })
        .await;
        let folder = tempfile::tempdir().unwrap();
        let store = crate::store::Options {
            path: folder.path().to_owned(),
            max_size: Amount::Bytes(1 << 30),
            min_free: Amount::Bytes(0),
            memory_cache_bytes: 1 << 20,
        };
        let store = Store::open(&store, Metrics::disabled()).unwrap();
        let upstream = crate::upstream::tests::upstream(options(&[&server.address]));
        let policies = HashMap::from([(registry(), Policy { tag_ttl: DAY, ..Policy::default() })]);
        let puller = Puller::new(Options { policies, ..Options::default() }, store, upstream, Metrics::disabled());
        Self { puller, script, server, _folder: folder }
    }

    fn say(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.script.lock().unwrap());
    }

    fn policy(&self, policy: Policy) {
        self.puller.set_policies(HashMap::from([(registry(), policy)]));
    }

    /// Again while it is stale because this machine was slow to check it.
    async fn pull(&self, name: &str, tag_name: &str) -> Result<Outcome, Error> {
        let reference = Reference::Tag(tag(tag_name));
        loop {
            let outcome = self.puller.manifest(&repository(name), &reference).await.map(|manifest| manifest.outcome);
            if outcome != Ok(Outcome::Stale { reason: StaleReason::Slow }) {
                return outcome;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn why(&self, name: &str, reference: &Reference) -> Why {
        self.puller.why(&repository(name), reference).unwrap()
    }

    fn why_tag(&self, tag_name: &str) -> Why {
        self.why("a/b", &Reference::Tag(tag(tag_name)))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn why_tells_what_a_request_would_get() {
    let world = World::start("one").await;
    let before = world.why_tag("latest");
    assert_eq!(
        (before.verdict, before.source, before.right, before.digest),
        (Verdict::Fetch, Source::Upstream, Right::NotHere, None)
    );
    assert_eq!(world.server.count(""), 0, "it asks nobody");

    world.pull("a/b", "latest").await.unwrap();
    let fresh = world.why_tag("latest");
    assert_eq!((fresh.verdict, fresh.source, fresh.right), (Verdict::Hit, Source::Store, Right::Public));
    let digest = fresh.digest.unwrap();
    assert_eq!((digest, fresh.rule, fresh.immutable), (digest_of(&manifest("one")), None, false));
    let checked_at = fresh.checked_at.unwrap();
    assert_eq!(fresh.fresh_until.unwrap().since(checked_at), DAY);
    assert_eq!(fresh.stale_until.unwrap().since(checked_at), Policy::default().stale_if_error);
    assert_eq!(world.why("a/b", &Reference::Digest(digest)).verdict, Verdict::Hit);
    let other = world.why("a/c", &Reference::Digest(digest));
    assert_eq!((other.verdict, other.right), (Verdict::Confirm, Right::None), "another repository has to show it");

    let rule = TagRule {
        pattern: "late*".parse().unwrap(),
        tag_ttl: Some(Duration::ZERO),
        stale_if_error: None,
        immutable: true,
        offline: false,
    };
    world.policy(Policy { tag_rules: vec![rule.clone()], ..Policy::default() });
    let ruled = world.why_tag("latest");
    assert_eq!((ruled.verdict, ruled.rule.as_deref(), ruled.immutable), (Verdict::Check, Some("late*"), true));

    world.say(|script| script.content = Some(manifest("two")));
    assert_eq!(world.pull("a/b", "latest").await, Ok(Outcome::MoveRefused));
    let held = world.why_tag("latest");
    assert_eq!((held.digest, held.refused_digest), (Some(digest), Some(digest_of(&manifest("two")))));

    world.say(|script| script.status = Some(503));
    assert!(matches!(world.pull("a/b", "latest").await, Ok(Outcome::Stale { .. })));
    let stale = world.why_tag("latest");
    assert_eq!((stale.verdict, stale.trouble), (Verdict::Stale, Some("upstream-error")));

    world.say(|script| script.status = Some(404));
    assert!(world.pull("a/b", "none").await.is_err());
    assert_eq!(world.why_tag("none").verdict, Verdict::Absent);

    world.policy(Policy { tag_rules: vec![TagRule { offline: true, ..rule }], ..Policy::default() });
    assert_eq!(world.why_tag("latest").verdict, Verdict::Offline);
    world.policy(Policy { deny: vec!["a/*".parse().unwrap()], ..Policy::default() });
    let denied = world.why_tag("latest");
    assert_eq!((denied.verdict, denied.source), (Verdict::NotAllowed, Source::None));
    assert_eq!(world.pull("a/b", "latest").await, Err(Error::NotAllowed));
    let unknown = Repository { registry: "else.example".parse().unwrap(), name: "a".parse().unwrap() };
    assert_eq!(world.puller.why(&unknown, &Reference::Tag(tag("x"))).unwrap_err(), Error::UnknownRegistry);
    let told = serde_json::to_value(&denied).unwrap();
    assert_eq!((&told["verdict"], &told["right"]["kind"]), (&"not-allowed".into(), &"public".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn history_keeps_every_digest_and_the_end() {
    let world = World::start("one").await;
    world.policy(Policy { tag_ttl: Duration::ZERO, not_found_ttl: Duration::ZERO, ..Policy::default() });
    let history = || world.puller.history(&repository("a/b"), &tag("latest")).unwrap();
    assert_eq!(history(), None);
    for name in ["one", "two", "one"] {
        world.say(|script| script.content = Some(manifest(name)));
        world.pull("a/b", "latest").await.unwrap();
        world.pull("a/b", "latest").await.unwrap();
    }
    let record = history().unwrap();
    let digests: Vec<Digest> = record.history.iter().map(|past| past.digest).collect();
    assert_eq!(
        (record.digest, digests),
        (digest_of(&manifest("one")), ["one", "two"].map(|name| digest_of(&manifest(name))).to_vec())
    );
    assert!(record.history.iter().all(|past| past.first_seen <= past.last_seen && past.last_seen <= record.first_seen));
    world.say(|script| script.content = None);
    assert!(world.pull("a/b", "latest").await.is_err());
    assert!(history().unwrap().gone_at.is_some());
    assert_eq!(world.why_tag("latest").digest, None);
    world.say(|script| script.content = Some(manifest("one")));
    world.pull("a/b", "latest").await.unwrap();
    assert_eq!((history().unwrap().gone_at, history().unwrap().history.len()), (None, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn registries_are_switched_off_and_on() {
    let world = World::start("one").await;
    world.policy(Policy { tag_ttl: Duration::ZERO, ..Policy::default() });
    world.pull("a/b", "latest").await.unwrap();
    for which in [Some(registry()), None] {
        world.puller.set_offline(which.as_ref(), true).unwrap();
        let asked = world.server.count("");
        assert_eq!(world.pull("a/b", "latest").await, Ok(Outcome::Offline));
        assert_eq!(world.pull("a/b", "other").await, Err(Error::Offline));
        assert_eq!(world.why_tag("latest").verdict, Verdict::Offline);
        assert_eq!(world.why_tag("other").verdict, Verdict::Unavailable);
        assert!(world.puller.upstreams()[0].offline && world.puller.is_offline() == which.is_none());
        assert_eq!(world.server.count(""), asked);
        world.puller.set_offline(which.as_ref(), false).unwrap();
        assert_eq!(world.pull("a/b", "latest").await, Ok(Outcome::Revalidated));
    }
    let unknown = "else.example".parse().unwrap();
    assert_eq!(world.puller.set_offline(Some(&unknown), true), Err(Error::UnknownRegistry));
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_swapped_while_it_runs() {
    let world = World::start("one").await;
    // u:right
    world.say(|script| script.basic = Some("Basic dTpyaWdodA=="));
    let log_in = |password: &str| {
        let credentials = Credentials::Password { username: "u".into(), password: password.to_owned().into() };
        world.puller.set_credentials(&registry(), Some(credentials)).unwrap();
    };
    assert!(matches!(world.pull("a/b", "latest").await, Err(Error::Denied { with_credentials: false, .. })));
    log_in("wrong");
    assert!(matches!(world.pull("a/b", "latest").await, Err(Error::Denied { with_credentials: true, .. })));
    log_in("right");
    world.pull("a/b", "latest").await.unwrap();
    assert_eq!(world.puller.upstreams()[0].account.as_deref(), Some("u@r.example"));
    let Right::Private { confirmed_at: Some(confirmed_at), expires_at } = world.why_tag("latest").right else {
        panic!("{:?}", world.why_tag("latest"))
    };
    assert_eq!(expires_at.since(confirmed_at), Policy::default().grant_ttl);
    let bad = Credentials::Password { username: "a:b".into(), password: "p".to_owned().into() };
    assert!(world.puller.set_credentials(&registry(), Some(bad)).is_err());
    assert_eq!(world.puller.upstreams()[0].account.as_deref(), Some("u@r.example"), "a bad one changes nothing");
    // What the new account may not read is closed by the first refusal.
    world.policy(Policy { grant_ttl: Duration::ZERO, tag_ttl: DAY, ..Policy::default() });
    log_in("wrong");
    assert!(matches!(world.pull("a/b", "latest").await, Err(Error::Denied { with_credentials: true, .. })));
    assert_eq!(world.why_tag("latest").right, Right::None);
}

#[tokio::test(flavor = "multi_thread")]
async fn upstreams_show_how_they_are() {
    let world = World::start("one").await;
    world.pull("a/b", "latest").await.unwrap();
    let well = &world.puller.upstreams()[0];
    let limit = well.rate_limit.as_ref().unwrap();
    assert_eq!((limit.limit, limit.remaining, limit.window_seconds), (Some(100), 9, Some(60)));
    assert_eq!(
        (well.registry.as_str(), well.endpoints[0].health, well.account.as_ref()),
        ("r.example", Health::Closed, None)
    );
    assert!(well.endpoints[0].url.contains(&world.server.address));
    world.say(|script| script.status = Some(503));
    while world.puller.upstreams()[0].endpoints[0].health == Health::Closed {
        assert!(world.pull("a/b", "other").await.is_err());
    }
    let open = world.puller.upstreams()[0].endpoints[0].clone();
    assert_eq!((open.health, open.error.as_deref()), (Health::Open, Some("the registry answered 503")));
    assert!(open.tried_in_ms.is_some());
    assert_eq!(world.pull("a/b", "other").await, Err(Error::UpstreamUnavailable { status: 503 }));
    world.say(|script| *script = Script { content: Some(manifest("one")), ..Script::default() });
    tokio::time::timeout(Duration::from_secs(60), async {
        while world.pull("a/b", "other").await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
    assert_eq!(world.puller.upstreams()[0].endpoints[0].health, Health::Closed);
    let limited = serde_json::to_value(world.puller.upstreams()).unwrap();
    assert_eq!(limited[0]["endpoints"][0]["health"], "closed");
}
