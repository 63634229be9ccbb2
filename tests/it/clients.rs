//! Clients of the registry port that have to say who they are: passwords, tokens, rules. What is written to strangers, what
//! those who are known get, and that nothing of what they show goes anywhere.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rustix::process::Signal;
use sha2::Digest as _;
use sha2::Sha256;
use tempfile::TempDir;
use toml::Table;
use toml::Value;

use crate::support::GLANCE;
use crate::support::PATIENCE;
use crate::support::REGISTRY;
use crate::support::REPOSITORY;
use crate::support::blob_path;
use crate::support::client;
use crate::support::client::Reply;
use crate::support::content::KIB;
use crate::support::content::MIB;
use crate::support::content::sample;
use crate::support::manifest_path;
use crate::support::proxy;
use crate::support::proxy::Proxy;
use crate::support::proxy::Registry;
use crate::support::proxy::Setup;
use crate::support::registry::ScriptedRegistry;
use crate::support::script::Gate;
use crate::support::script::on;
use crate::support::within;

const CHALLENGE: &str = "Basic realm=\"forebay\"";

/// A line of a file of passwords, as cheap to check as bcrypt can be.
pub(crate) fn user(name: &str, password: &str) -> String {
    format!("{name}:{}\n", bcrypt::hash(password, 4).unwrap())
}

/// A line of a file of tokens.
fn robot(name: &str, token: &str) -> String {
    let hex: String = Sha256::digest(token).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{name}:{hex}\n")
}

pub(crate) fn basic(name: &str, password: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{name}:{password}")))
}

/// A rule for these clients; empty lists are left out.
pub(crate) fn rule(clients: &[&str], registries: &[&str], repositories: &[&str]) -> Value {
    let mut table = Table::new();
    for (key, values) in [("clients", clients), ("registries", registries), ("repositories", repositories)] {
        if !values.is_empty() {
            table.insert(key.to_owned(), values.to_vec().into());
        }
    }
    table.into()
}

/// Files of clients.
struct Files(TempDir);

impl Files {
    fn new(htpasswd: &str, tokens: &str) -> Self {
        let files = Self(TempDir::new().unwrap());
        files.write("htpasswd", htpasswd);
        files.write("tokens", tokens);
        files
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    /// In one step, so that nobody reads half of it.
    fn write(&self, name: &str, text: &str) {
        let temporary = self.0.path().join("temporary");
        std::fs::write(&temporary, text).unwrap();
        std::fs::rename(temporary, self.0.path().join(name)).unwrap();
    }

    /// A proxy that asks for them.
    fn ask(&self, setup: Setup) -> Setup {
        setup.set("clients", "htpasswd", self.path("htpasswd")).set("clients", "tokens", self.path("tokens"))
    }
}

async fn get_as(proxy: &Proxy, path: &str, authorization: &str) -> Reply {
    proxy.get_with(path, &[("Authorization", authorization)]).await
}

#[track_caller]
fn assert_asks_for_login(reply: &Reply, to_head: bool) {
    assert_eq!(reply.status, 401, "{reply:?}");
    assert_eq!(reply.headers.all("WWW-Authenticate"), [CHALLENGE]);
    assert_eq!(reply.header("Docker-Distribution-Api-Version"), Some("registry/2.0"));
    assert!(to_head || reply.error_code() == "UNAUTHORIZED");
}

#[tokio::test]
async fn strangers_learn_nothing() {
    let upstream = ScriptedRegistry::start().await;
    let image = upstream.image(REPOSITORY, "latest", &[sample(1, 1000)]);
    let files = Files::new(&user("ann", "right"), &robot("ci", "t0ken"));
    let proxy = files.ask(Proxy::of(&upstream)).start().await;
    let blob = blob_path(&image.layers[0].0);
    get_as(&proxy, &blob, "Bearer t0ken").await.assert_digest(&image.layers[0].0);
    let asked = upstream.total();
    let paths = [
        "/v2/".to_owned(),
        "/v2".to_owned(),
        format!("/{REGISTRY}/v2/"),
        manifest_path("latest"),
        manifest_path(&image.digest),
        blob,
        format!("/v2/{REPOSITORY}/tags/list"),
        format!("/v2/{REPOSITORY}/referrers/{}", image.digest),
        "/v2/a/manifests/latest?ns=unknown.test".to_owned(),
        "/unknown.test/v2/a/manifests/latest".to_owned(),
        "/v2/_catalog".to_owned(),
        "/favicon.ico".to_owned(),
    ];
    let wrong = [
        None,
        Some(basic("ann", "wrong")),
        Some(basic("eve", "right")),
        Some(basic("ann", "")),
        Some("Basic Og==".to_owned()),
        Some("Basic %%%".to_owned()),
        Some("Bearer t0ke".to_owned()),
        Some("Negotiate abc".to_owned()),
    ];
    for path in &paths {
        for shown in &wrong {
            let headers: Vec<_> = shown.iter().map(|shown| ("Authorization", shown.as_str())).collect();
            assert_asks_for_login(&proxy.get_with(path, &headers).await, false);
        }
        assert_asks_for_login(&proxy.head(path).await, true);
    }
    let push = client::request(proxy.address, "PUT", &manifest_path("latest"), &[("Content-Length", "0")]).await;
    assert_asks_for_login(&push, false);
    assert_eq!(push.header("Connection"), Some("close"), "a body is not read");
    assert_eq!(upstream.total(), asked);
    for (reason, least) in [("missing", 1.0), ("wrong", 1.0), ("malformed", 1.0)] {
        let label = format!("reason=\"{reason}\"");
        proxy.wait_metric("forebay_client_denied_total", &[&label], |count| count > least).await;
    }
}

#[tokio::test]
async fn those_who_are_known_get_everything_and_nothing_of_them_goes_anywhere() {
    let upstream = ScriptedRegistry::start().await;
    let image = upstream.image(REPOSITORY, "latest", &[sample(2, 5000)]);
    let password = "pä:ss %C3%A4";
    let files = Files::new(&user("ann", password), &robot("ci", "t0ken"));
    let mut proxy = files.ask(Proxy::of(&upstream)).set("log", "level", "info,forebay=trace").start().await;
    let blob = blob_path(&image.layers[0].0);
    for shown in [basic("ann", password), "Bearer t0ken".to_owned(), basic("ci", "t0ken")] {
        let ping = get_as(&proxy, "/v2/", &shown).await;
        ping.assert_body(200, b"{}");
        assert_eq!(ping.header("WWW-Authenticate"), None);
        get_as(&proxy, &manifest_path("latest"), &shown).await.assert_digest(&image.digest);
        get_as(&proxy, &blob, &shown).await.assert_digest(&image.layers[0].0);
        let part = [("Authorization", shown.as_str()), ("Range", "bytes=10-19")];
        proxy.get_with(&blob, &part).await.assert_body(206, &image.layers[0].1[10..20]);
        let head = client::request(proxy.address, "HEAD", &blob, &[("Authorization", &shown)]).await;
        assert_eq!((head.status, head.header("Content-Length")), (200, Some("5000")));
        assert_eq!(get_as(&proxy, &format!("/v2/{REPOSITORY}/tags/list"), &shown).await.status, 200);
        get_as(&proxy, "/v2/a/manifests/x?ns=unknown.test", &shown).await.assert_error(404, "NAME_UNKNOWN");
        let push = [("Authorization", shown.as_str()), ("Content-Length", "0")];
        let push = client::request(proxy.address, "PUT", &manifest_path("latest"), &push).await;
        push.assert_error(405, "UNSUPPORTED");
    }
    let twice = [("Authorization", "Bearer t0ken"), ("Authorization", "Bearer t0ken")];
    proxy.get_with(&blob, &twice).await.assert_error(400, "UNSUPPORTED");
    for seen in upstream.log() {
        assert_eq!(seen.headers.get("Authorization"), None, "{seen:?}");
    }
    for name in ["ann", "ci"] {
        proxy.log.wait_for(|event| event["message"] == "request" && event["client"] == name).await;
    }
    let shown = basic("ann", password);
    let log = proxy.end_log().await;
    for word in [&shown[6..], &basic("ci", "t0ken")[6..], "pä:ss", "t0ken"] {
        assert!(!log.contains(word), "{word} is in the log");
    }
}

/// Two repositories with a blob each, and a proxy with rules.
struct Ruled {
    upstream: ScriptedRegistry,
    proxy: Proxy,
    mine: String,
    other: String,
    _files: Files,
}

impl Ruled {
    async fn start(anonymous: bool) -> Self {
        let upstream = ScriptedRegistry::start().await;
        let (mine, other) = (upstream.blob("team/a", sample(3, 4000)), upstream.blob("team/b", sample(4, 4000)));
        let files = Files::new("", &(robot("ann", "a") + &robot("bob", "b")));
        let rules = vec![
            rule(&["ann"], &[REGISTRY], &["team/a"]),
            rule(&["bob"], &[REGISTRY], &["team/*"]),
            rule(&["anonymous"], &["open.test"], &[]),
        ];
        let registry = |host| Registry::new(host, &upstream.url());
        let registries = [
            registry(REGISTRY).set("aliases", vec!["short"]).set("virtual_hosts", vec!["mirror.test"]),
            registry("open.test"),
        ];
        let setup = files.ask(Setup::new(&registries)).set("clients", "rule", rules);
        let proxy = setup.set("clients", "anonymous", anonymous).start().await;
        Self { upstream, proxy, mine, other, _files: files }
    }
}

#[tokio::test]
async fn a_rule_holds_on_every_way_to_a_repository() {
    let ruled = Ruled::start(false).await;
    let Ruled { proxy, upstream, mine, other, .. } = &ruled;
    let (ann, bob) = ("Bearer a", "Bearer b");
    get_as(proxy, &format!("/v2/team/a/blobs/{mine}"), ann).await.assert_digest(mine);
    get_as(proxy, &format!("/v2/team/b/blobs/{other}"), bob).await.assert_digest(other);
    let asked = upstream.total();
    for path in [
        format!("/v2/team/b/blobs/{other}"),
        format!("/v2/team/b/blobs/{mine}"),
        format!("/v2/team/b/blobs/{other}?ns={REGISTRY}"),
        format!("/v2/team/b/blobs/{other}?ns=short"),
        format!("/v2/{REGISTRY}/team/b/blobs/{other}"),
        format!("/{REGISTRY}/v2/team/b/blobs/{other}"),
        format!("/short/v2/team/b/blobs/{other}"),
        format!("/v2/short/team/b/blobs/{other}"),
        format!("/v2/team%2Db/../team/b/blobs/{other}"),
        "/v2/team/b/manifests/latest".to_owned(),
        "/v2/team/b/tags/list".to_owned(),
        format!("/v2/team/b/referrers/{other}"),
        format!("/v2/open.test/team/a/blobs/{mine}"),
    ] {
        let reply = get_as(proxy, &path, ann).await;
        if path.contains("..") {
            reply.assert_error(400, "NAME_INVALID");
        } else {
            reply.assert_error(403, "DENIED");
        }
    }
    let virtual_host = [("Authorization", ann), ("Host", "mirror.test")];
    proxy.get_with(&format!("/v2/team/b/blobs/{other}"), &virtual_host).await.assert_error(403, "DENIED");
    let part = [("Authorization", ann), ("Range", "bytes=0-9")];
    proxy.get_with(&format!("/v2/team/b/blobs/{other}"), &part).await.assert_error(403, "DENIED");
    let path = format!("/v2/team/b/blobs/{other}");
    let head = client::request(proxy.address, "HEAD", &path, &[("Authorization", ann)]).await;
    assert_eq!((head.status, head.header("WWW-Authenticate")), (403, None));
    assert_eq!(upstream.total(), asked, "nobody was asked about what is denied");
    // The answer to a guess does not tell whether it is here.
    let here = get_as(proxy, &path, ann).await;
    let absent = get_as(proxy, &path.replace(&other[7..], &"0".repeat(64)), ann).await;
    assert_eq!(here.body, absent.body);
    get_as(proxy, "/v2/", ann).await.assert_body(200, b"{}");
    let event = proxy.log.wait_for(|event| event["message"] == "request" && event["status"] == 403).await;
    assert_eq!((&event["client"], &event["detail"]), (&"ann".into(), &"denied".into()));
    assert_eq!((&event["registry"], &event["repository"]), (&REGISTRY.into(), &"team/b".into()));
}

#[tokio::test]
async fn what_another_repository_was_granted_is_not_got_by_its_digest() {
    let ruled = Ruled::start(false).await;
    let Ruled { proxy, mine, other, .. } = &ruled;
    get_as(proxy, &format!("/v2/team/b/blobs/{other}"), "Bearer b").await.assert_digest(other);
    get_as(proxy, &format!("/v2/team/a/blobs/{mine}"), "Bearer b").await.assert_digest(mine);
    // Stored, and ann may read the repository; but this repository was never granted it.
    get_as(proxy, &format!("/v2/team/a/blobs/{other}"), "Bearer a").await.assert_error(404, "BLOB_UNKNOWN");
    get_as(proxy, &format!("/v2/team/a/blobs/{mine}"), "Bearer a").await.assert_digest(mine);
}

#[tokio::test]
async fn without_credentials_some_may_be_read_and_a_login_is_asked_for_the_rest() {
    let ruled = Ruled::start(true).await;
    let Ruled { proxy, mine, .. } = &ruled;
    let ping = proxy.get("/v2/").await;
    ping.assert_body(200, b"{}");
    assert_eq!(ping.headers.all("WWW-Authenticate"), [CHALLENGE], "podman learns from it that it may log in");
    let open = proxy.get(&format!("/v2/open.test/team/a/blobs/{mine}")).await;
    open.assert_digest(mine);
    assert_eq!(open.header("WWW-Authenticate"), None);
    get_as(proxy, &format!("/v2/open.test/team/a/blobs/{mine}"), "Basic Og==").await.assert_digest(mine);
    assert_asks_for_login(&proxy.get(&format!("/v2/team/a/blobs/{mine}")).await, false);
    get_as(proxy, &format!("/v2/team/a/blobs/{mine}"), "Bearer a").await.assert_digest(mine);
    assert_asks_for_login(&get_as(proxy, &format!("/v2/open.test/team/a/blobs/{mine}"), "Bearer x").await, false);
    proxy.log.wait_for(|event| event["message"] == "request" && event["client"] == "anonymous").await;
}

#[tokio::test]
async fn files_change_while_everything_runs() {
    let upstream = ScriptedRegistry::start().await;
    let bytes = sample(5, 2 * MIB);
    let held = blob_path(&upstream.blob(REPOSITORY, bytes.clone()));
    let gate = Gate::new();
    upstream.rule(on("GET", &held).hold_at(64 * KIB, &gate));
    let files = Files::new(&user("ann", "old"), "");
    let proxy = files.ask(Proxy::of(&upstream)).start().await;
    let (old, new) = (basic("ann", "old"), basic("ann", "new"));
    let incoming = client::open(proxy.address, "GET", &held, &[("Authorization", &old)]).await;
    assert_eq!(incoming.status, 200);

    files.write("htpasswd", &(user("ann", "new") + "bob:$apr1$lZL6V/ci$eIMz/iKDkbtys/uU7LEK00\n"));
    let refused = "the clients' files have changed and cannot be used; the old ones stay in force";
    let event = proxy.log.wait_for(|event| event["message"] == refused).await;
    let problem = event["problem"].as_str().unwrap();
    assert!(problem.contains("htpasswd") && problem.contains("line 2: this is an MD5 hash"), "{problem}");
    assert!(!problem.contains("eIMz"), "{problem}");
    get_as(&proxy, "/v2/", &old).await.assert_body(200, b"{}");

    files.write("htpasswd", &user("ann", "new"));
    proxy.log.wait_for(|event| event["message"] == "new passwords and tokens of clients are in use").await;
    assert_asks_for_login(&get_as(&proxy, "/v2/", &old).await, false);
    get_as(&proxy, "/v2/", &new).await.assert_body(200, b"{}");
    gate.release();
    incoming.reply().await.assert_body(200, &bytes);
}

#[tokio::test]
async fn a_reload_brings_users_and_rules_or_nothing() {
    let upstream = ScriptedRegistry::start().await;
    let blob = upstream.blob("team/a", sample(6, 100));
    let path = format!("/v2/team/a/blobs/{blob}");
    let files = Files::new("", &robot("ann", "a"));
    let proxy = files.ask(Proxy::of(&upstream)).start().await;
    get_as(&proxy, &path, "Bearer a").await.assert_digest(&blob);
    let file = proxy.data().join("../forebay.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let reload = async || {
        let output = proxy::run(&["reload", "--admin", &format!("http://{}", proxy.admin)]).await;
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };

    let narrow = "\n[[clients.rule]]\nclients = [\"bob\"]\nrepositories = [\"team/*\"]\n";
    files.write("tokens", &(robot("ann", "a") + "bob:hunter2\n"));
    std::fs::write(&file, format!("{text}{narrow}")).unwrap();
    let (code, said) = reload().await;
    assert_eq!(code, Some(1));
    assert!(said.contains("nothing was changed") && said.contains("line 2") && !said.contains("hunter2"), "{said}");
    get_as(&proxy, &path, "Bearer a").await.assert_digest(&blob);

    files.write("tokens", &(robot("ann", "a") + &robot("bob", "b")));
    assert_eq!(reload().await.0, Some(0));
    get_as(&proxy, &path, "Bearer a").await.assert_error(403, "DENIED");
    get_as(&proxy, &path, "Bearer b").await.assert_digest(&blob);

    // And away again, by a signal.
    let mut open: Table = toml::from_str(&text).unwrap();
    open.remove("clients");
    std::fs::write(&file, open.to_string()).unwrap();
    proxy.signal(Signal::HUP);
    within(PATIENCE, async {
        while proxy.get("/v2/").await.status != 200 {
            tokio::time::sleep(GLANCE).await;
        }
    })
    .await;
    proxy.get(&path).await.assert_digest(&blob);
}

#[tokio::test]
async fn a_bad_file_is_named_before_anything_is_bound() {
    let files = Files::new(&(user("ann", "p") + "bob:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=\n"), "");
    let output = files.ask(Setup::new(&[])).run().await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("clients.htpasswd") && said.contains("line 2: this is an SHA-1 hash"), "{said}");
    assert!(said.contains("htpasswd -B") && !said.contains("W6ph5") && !said.contains("listening"), "{said}");
}
