//! Who is let in, by what.

use super::*;
use crate::oci::Registry;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures_util::FutureExt as _;
use sha2::Digest as _;

fn clients(options: Options) -> Arc<Clients> {
    Arc::new(Clients::new(options).unwrap())
}

fn htpasswd(users: &[(&str, &str)]) -> Option<Vec<u8>> {
    let line = |(name, password): &(&str, &str)| format!("{name}:{}\n", bcrypt::hash(password, 4).unwrap());
    Some(users.iter().map(line).collect::<String>().into_bytes())
}

fn tokens(tokens: &[(&str, &str)]) -> Option<Vec<u8>> {
    let hex = |token: &str| sha2::Sha256::digest(token).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    Some(tokens.iter().map(|(name, token)| format!("{name}:{}\n", hex(token))).collect::<String>().into_bytes())
}

fn basic(name: &str, password: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{name}:{password}")))
}

fn certificate(name: &str) -> Certificate {
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    Certificate::read(params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der())
}

async fn who(
    clients: &Arc<Clients>,
    certificate: Option<&Certificate>,
    header: Option<&str>,
) -> Result<String, Refusal> {
    let found = clients.identify(&Checks::new(), certificate, header.map(str::as_bytes)).await;
    found.map(|client| client.name().to_string())
}

fn repository(registry: &str, name: &str) -> Repository {
    Repository { registry: registry.parse().unwrap(), name: name.parse().unwrap() }
}

fn rule(clients: &[&str], registry: &str, repositories: &[&str]) -> Rule {
    Rule {
        clients: clients.iter().map(|text| text.parse().unwrap()).collect(),
        registries: vec![registry.parse::<Registry>().unwrap()],
        repositories: repositories.iter().map(|text| text.parse().unwrap()).collect(),
    }
}

#[tokio::test]
async fn passwords_and_tokens() {
    let clients = clients(Options {
        htpasswd: htpasswd(&[("ann", "pä:ss"), ("both", "password")]),
        tokens: tokens(&[("ci", "t0ken"), ("both", "b0th")]),
        ..Options::default()
    });
    for (header, expected) in [
        (basic("ann", "pä:ss"), Ok("ann")),
        (basic("ci", "t0ken"), Ok("ci")),
        (basic("both", "password"), Ok("both")),
        (basic("both", "b0th"), Ok("both")),
        ("Bearer t0ken".to_owned(), Ok("ci")),
        (basic("ann", "t0ken"), Err(Refusal::Wrong)),
        (basic("ci", "pä:ss"), Err(Refusal::Wrong)),
        (basic("ann", ""), Err(Refusal::Wrong)),
        (basic("", "pä:ss"), Err(Refusal::Wrong)),
        (basic("anonymous", "x"), Err(Refusal::Wrong)),
        ("Bearer pä:ss".to_owned(), Err(Refusal::Malformed)),
        ("Bearer b0th0".to_owned(), Err(Refusal::Wrong)),
        ("Negotiate x".to_owned(), Err(Refusal::Malformed)),
        ("Basic Og==".to_owned(), Err(Refusal::Missing)),
    ] {
        for _ in 0..2 {
            assert_eq!(who(&clients, None, Some(&header)).await.as_deref(), expected.as_ref().copied(), "{header}");
        }
    }
    assert_eq!(who(&clients, None, None).await, Err(Refusal::Missing));
}

#[tokio::test]
async fn what_counts_first() {
    let options = Options { htpasswd: htpasswd(&[("ann", "p")]), anonymous: true, ..Options::default() };
    let both = clients(options.clone());
    let node = certificate("node1");
    let right = basic("ann", "p");
    let wrong = basic("ann", "q");
    assert_eq!(who(&both, Some(&node), None).await.as_deref(), Ok("node1"));
    assert_eq!(who(&both, Some(&node), Some(&right)).await.as_deref(), Ok("ann"));
    assert_eq!(who(&both, Some(&node), Some(&wrong)).await, Err(Refusal::Wrong));
    assert_eq!(who(&both, Some(&node), Some("Basic Og==")).await.as_deref(), Ok("node1"));
    assert_eq!(who(&both, None, None).await.as_deref(), Ok("anonymous"));
    assert_eq!(who(&both, Some(&certificate("é")), None).await.as_deref(), Ok("anonymous"));
    assert_eq!(who(&both, None, Some(&wrong)).await, Err(Refusal::Wrong), "wrong is not anonymous");
    // Where nothing could check a header, it says nothing.
    let certificates = clients(Options::default());
    assert_eq!(who(&certificates, Some(&node), Some(&wrong)).await.as_deref(), Ok("node1"));
    assert_eq!(who(&certificates, None, Some(&wrong)).await, Err(Refusal::Nameless));
}

#[tokio::test]
async fn rules_decide_for_each_repository() {
    let options = Options {
        tokens: tokens(&[("ci", "t"), ("bob", "u")]),
        anonymous: true,
        rules: vec![
            rule(&["ci"], "ghcr.io", &["acme/*"]),
            rule(&["*"], "quay.io", &[]),
            rule(&["anonymous"], "docker.io", &["library/*"]),
        ],
        ..Options::default()
    };
    let known = clients(options.clone());
    let may = async |clients: &Arc<Clients>, header: Option<&str>, registry: &str, name: &str| {
        let client = clients.identify(&Checks::new(), None, header.map(str::as_bytes)).await.unwrap();
        client.may_read(&repository(registry, name))
    };
    let (ci, bob) = (Some("Bearer t"), Some("Bearer u"));
    assert_eq!(may(&known, ci, "ghcr.io", "acme/app").await, Ok(()));
    assert_eq!(may(&known, ci, "ghcr.io", "other/app").await, Err(Refusal::Denied));
    assert_eq!(may(&known, bob, "ghcr.io", "acme/app").await, Err(Refusal::Denied));
    assert_eq!(may(&known, bob, "quay.io", "a/b").await, Ok(()));
    assert_eq!(may(&known, bob, "docker.io", "library/a").await, Err(Refusal::Denied));
    assert_eq!(may(&known, None, "docker.io", "library/a").await, Ok(()));
    assert_eq!(may(&known, None, "quay.io", "a/b").await, Err(Refusal::Missing), "a login would help");
    let open = clients(Options { tokens: None, ..options.clone() });
    assert_eq!(may(&open, None, "quay.io", "a/b").await, Err(Refusal::Denied), "nothing would help");
    let free = clients(Options { rules: Vec::new(), ..options });
    assert_eq!(may(&free, bob, "ghcr.io", "acme/app").await, Ok(()));
}

#[tokio::test]
async fn those_who_are_known_wait_for_nobody() {
    let clients = clients(Options { htpasswd: htpasswd(&[("ann", "p")]), ..Options::default() });
    let checks = Checks::new();
    let ask = async |header: String| clients.identify(&checks, None, Some(header.as_bytes())).await.map(|_| ());
    assert_eq!(ask(basic("ann", "p")).await, Ok(()));
    assert_eq!(ask(basic("ann", "old")).await, Err(Refusal::Wrong));
    // Somebody else has all turns and all places.
    let turns = checks.running.available_permits();
    let _turns = checks.running.acquire_many(u32::try_from(turns).unwrap()).await.unwrap();
    let places = checks.places.available_permits();
    let held = checks.places.acquire_many(u32::try_from(places - 1).unwrap()).await.unwrap();
    assert_eq!(ask(basic("ann", "p")).await, Ok(()));
    assert_eq!(ask(basic("ann", "old")).await, Err(Refusal::Wrong), "what was wrong stays so");
    let mut waiting = Box::pin(ask(basic("ann", "guess")));
    assert!((&mut waiting).now_or_never().is_none());
    assert_eq!(ask(basic("ann", "another")).await, Err(Refusal::Busy));
    assert_eq!(ask(basic("eve", "another")).await, Err(Refusal::Busy));
    drop(waiting);
    drop(held);
    assert_eq!(checks.places.available_permits(), places);
}

#[tokio::test]
async fn one_check_for_all_who_send_the_same() {
    let clients = clients(Options { htpasswd: htpasswd(&[("ann", "p")]), ..Options::default() });
    let checks = Checks::new();
    let turns = u32::try_from(checks.running.available_permits()).unwrap();
    let held = checks.running.acquire_many(turns).await.unwrap();
    let header = basic("ann", "p");
    let mut first = Box::pin(clients.identify(&checks, None, Some(header.as_bytes())));
    assert!((&mut first).now_or_never().is_none());
    // Somebody else's check of it ends before it is this one's turn.
    assert!(clients.passwords.as_ref().unwrap().check("ann", b"p"));
    drop(held);
    // No thread is needed for it any more: it is there with the turn.
    assert!((&mut first).now_or_never().is_some());
}

#[test]
fn bad_files_are_told_apart_and_nothing_is_printed() {
    let bad = |htpasswd: Option<&[u8]>, tokens: Option<&[u8]>| {
        let options = Options {
            htpasswd: htpasswd.map(<[u8]>::to_vec),
            tokens: tokens.map(<[u8]>::to_vec),
            ..Options::default()
        };
        Clients::new(options).unwrap_err()
    };
    assert!(matches!(bad(Some(b"a:b"), None), InvalidOptions::Htpasswd(BadLine { line: 1, .. })));
    assert!(matches!(bad(None, Some(b"\na:b")), InvalidOptions::Tokens(BadLine { line: 2, .. })));
    let options = Options { htpasswd: htpasswd(&[("ann", "p")]), ..Options::default() };
    assert_eq!(format!("{options:?} {:?}", Clients::new(options.clone()).unwrap()), "Options Clients");
}
