//! Sources to configurations, and bad sources to their messages.
#![expect(clippy::disallowed_methods, reason = "tests read and write configuration files")]

use super::*;
use std::fs;

fn from_file(text: &str) -> Result<Config, Error> {
    Config::from_sources(Some((Path::new("f.toml"), text)), &[], &Overrides::default())
}

fn message(text: &str) -> String {
    from_file(text).expect_err(text).to_string()
}

fn from_environment(variables: &[(&str, &str)]) -> Result<Config, Error> {
    let variables: Vec<_> = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Config::from_sources(None, &variables, &Overrides::default())
}

fn registry<'a>(config: &'a Config, host: &str) -> &'a RegistryConfig {
    config.registries.iter().find(|known| known.registry.as_str() == host).expect("the registry is configured")
}

fn password_of(registry: &RegistryConfig) -> Option<&str> {
    match &registry.credentials {
        Some(Credentials::Password { password, .. }) => Some(password.expose()),
        _ => None,
    }
}

#[test]
fn nothing_set_is_the_default() {
    assert_eq!(from_file(""), Ok(Config::default()));
    assert_eq!(from_environment(&[]), Ok(Config::default()));
}

#[test]
fn defaults_are_the_documented_ones() {
    let config = Config::default();
    assert_eq!(config.server.listen, ["127.0.0.1:5000".parse().unwrap()]);
    assert_eq!(config.admin.listen, "127.0.0.1:5001".parse().unwrap());
    assert_eq!(config.storage.max_size.to_string(), "50GiB");
    assert_eq!(config.storage.min_free.to_string(), "5%");
    assert_eq!(config.storage.memory_cache.to_string(), "64MiB");
    assert_eq!(config.storage.scrub_interval, Some(Duration::from_secs(30 * 24 * 3600)));
    assert_eq!(config.storage.scrub_rate.to_string(), "20MB/s");
    assert_eq!(config.registries.len(), 9);
    assert_eq!(registry(&config, "docker.io").endpoints[0].as_str(), "https://registry-1.docker.io/");
    assert_eq!(registry(&config, "ghcr.io").endpoints[0].as_str(), "https://ghcr.io/");
}

#[test]
fn the_annotated_file_holds_the_defaults() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/default.toml");
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(from_file(&text), Ok(Config::default()));
    // And names every key, in use or as a comment.
    for line in Config::default().to_toml().lines() {
        if let Some((key, _)) = line.split_once(" = ") {
            assert!(text.contains(&format!("{key} = ")), "{key}");
        }
    }
}

#[test]
fn the_commented_registry_of_the_annotated_file_is_valid() {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("config/default.toml")).unwrap();
    let example = text.split("# [[registry]]\n").nth(1).unwrap();
    let lines = example.lines().map(|line| line.trim_start_matches("# "));
    let kept: Vec<_> = lines
        .filter(|line| {
            !["password_file", "ca_file", "docker_config", "credential_helper", "client_"]
                .iter()
                .any(|key| line.starts_with(key))
        })
        .collect();
    let config = from_file(&format!("[[registry]]\n{}", kept.join("\n"))).unwrap();
    assert_eq!(registry(&config, "registry.example:5000").aliases, ["example"]);
}

#[test]
fn every_file_in_the_folder_parses() {
    // The files that the examples point at, where this test can put them.
    let etc = tempfile::tempdir().unwrap();
    let ca = rcgen::generate_simple_self_signed(["registry.example".to_owned()]).unwrap();
    fs::write(etc.path().join("registry-ca.pem"), ca.cert.pem()).unwrap();
    fs::write(etc.path().join("registry-password"), "secret").unwrap();
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("config")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            let text = fs::read_to_string(&path).unwrap().replace("/etc/forebay", etc.path().to_str().unwrap());
            let read = Config::from_sources(Some((&path, &text)), &[], &Overrides::default());
            assert!(read.is_ok(), "{}", read.unwrap_err());
        }
    }
}

#[test]
fn a_file_sets_every_kind_of_value() {
    let config = from_file(
        r#"
        [server]
        listen = ["0.0.0.0:0", "[::]:0", "0.0.0.0:0"]
        default_registry = "r.example:5000"
        shutdown_grace = "0s"
        max_connections = 10
        header_timeout = "1m30s"
        [admin]
        listen = "[::1]:9000"
        [storage]
        path = "/data"
        max_size = "80%"
        min_free = 1024
        memory_cache = "1MB"
        scrub_interval = ""
        scrub_rate = "1MiB/s"
        [log]
        level = "warn,forebay::pull=debug"
        format = "json"
        [telemetry]
        otlp_endpoint = "http://127.0.0.1:4318"
        service_name = "cache"
        [[registry]]
        host = "r.example:5000"
        endpoints = ["http://a.example/base", "https://b.example"]
        aliases = ["r"]
        virtual_hosts = ["r.local"]
        username = "u"
        password = "p"
        token_realms = ["auth.example:8443"]
        tag_ttl = "0s"
        [[registry]]
        host = "docker.io"
        tag_ttl = "1h"
        [[registry]]
        host = "plain.example"
        "#,
    )
    .unwrap();
    assert_eq!(config.server.listen.len(), 3);
    assert_eq!(config.server.header_timeout, Duration::from_secs(90));
    assert_eq!(config.storage.min_free, SizeOrPercent::Size(Size::from_bytes(1024)));
    assert_eq!(config.storage.scrub_interval, None);
    assert_eq!(config.storage.scrub_rate.bytes_per_second().get(), 1024 * 1024);
    assert_eq!(config.log.format, telemetry::Format::Json);
    assert_eq!(config.registries.len(), 11);
    let full = registry(&config, "r.example:5000");
    assert_eq!(full.endpoints[0].as_str(), "http://a.example/base");
    assert_eq!(password_of(full), Some("p"));
    assert_eq!(full.tag_ttl, Duration::ZERO);
    let hub = registry(&config, "docker.io");
    assert_eq!((hub.endpoints[0].as_str(), hub.tag_ttl.as_secs()), ("https://registry-1.docker.io/", 3600));
    assert_eq!(registry(&config, "plain.example").endpoints[0].as_str(), "https://plain.example/");
    // What is shown reads back, but for the password.
    let shown = config.to_toml();
    let mut again = from_file(&shown).unwrap();
    let index = again.registries.iter().position(|r| r.credentials.is_some()).unwrap();
    assert_eq!(password_of(&again.registries[index]), Some(REDACTED));
    again.registries[index].credentials = full.credentials.clone();
    assert_eq!(again, config);
}

#[test]
fn bad_plain_settings() {
    let rows = [
        ("server = 5", "f.toml: server = 5: write it as a table, [server]"),
        (
            "[sever]",
            "f.toml: unknown key sever; known here: [server], [admin], [clients], [storage], [upstream], [log], [telemetry], [[registry]]",
        ),
        ("[admin]\nlisen = 1", "f.toml: unknown key admin.lisen; known here: listen, token, token_file"),
        (
            "[storage]\nmaxsize = 1",
            "f.toml: unknown key storage.maxsize; known here: path, max_size, min_free, memory_cache, scrub_interval, scrub_rate",
        ),
        ("[server]\nlisten = []", "f.toml: server.listen: list from one to 64 addresses"),
        (
            "[server]\nlisten = \"127.0.0.1:1\"",
            "f.toml: server.listen = \"127.0.0.1:1\": write it as a list of strings",
        ),
        ("[server]\nlisten = [5000]", "f.toml: server.listen = 5000: write each entry as a string"),
        (
            "[server]\nlisten = [\"localhost\"]",
            "f.toml: server.listen = \"localhost\": write an IP address and a port, such as 127.0.0.1:5000, or [::]:5000 for all interfaces",
        ),
        ("[server]\nlisten = [\"[::1]:1\", \"[::1]:1\"]", "f.toml: server.listen = \"[::1]:1\": it is listed twice"),
        ("[server]\nmax_connections = 0", "f.toml: server.max_connections = 0: write a number from 1 to 1000000"),
        ("[server]\nmax_connections = -1", "f.toml: server.max_connections = -1: write a number from 1 to 1000000"),
        ("[server]\nheader_timeout = \"0s\"", "f.toml: server.header_timeout = \"0s\": it must be longer than zero"),
        ("[server]\nshutdown_grace = 30", "f.toml: server.shutdown_grace = 30: write it as a string"),
        (
            "[server]\nshutdown_grace = \"30\"",
            "f.toml: server.shutdown_grace = \"30\": a duration is numbers with ms, s, m, h or d, largest unit first, such as \"30s\" or \"1h30m\"",
        ),
        (
            "[server]\ndefault_registry = \"r.example\"",
            "f.toml: server.default_registry: r.example is not a configured registry; add a [[registry]] for it",
        ),
        (
            "[admin]\nlisten = \"127.0.0.1:5000\"",
            "f.toml: admin.listen: 127.0.0.1:5000 is in server.listen too; give the admin port another",
        ),
        ("[storage]\npath = \"\"", "f.toml: storage.path = \"\": write a path"),
        ("[storage]\nmax_size = 0", "f.toml: storage.max_size = 0: it must be larger than zero"),
        ("[storage]\nmin_free = \"0KB\"", "f.toml: storage.min_free = \"0KB\": it must be larger than zero"),
        ("[storage]\nmemory_cache = \"0\"", "f.toml: storage.memory_cache = \"0\": it must be larger than zero"),
        (
            "[storage]\nmax_size = \"101%\"",
            "f.toml: storage.max_size = \"101%\": write a size such as \"50GiB\" or a percentage of the file system from \"1%\" to \"100%\"",
        ),
        (
            "[storage]\nmemory_cache = \"64 megs\"",
            "f.toml: storage.memory_cache = \"64 megs\": a size is a number of bytes or a number with B, KB, MB, GB, TB, KiB, MiB, GiB or TiB, such as \"50GiB\"",
        ),
        ("[storage]\nscrub_interval = \"0s\"", "f.toml: storage.scrub_interval = \"0s\": it must be longer than zero"),
        ("[storage]\nmemory_cache = 1.5", "f.toml: storage.memory_cache = 1.5: write it as a number or a string"),
        ("[storage]\nmax_size = \"99999999TiB\"", "f.toml: storage.max_size = \"99999999TiB\": the size is too large"),
        (
            "[log]\nlevel = \"verbose\"",
            "f.toml: log.level = \"verbose\": write off, error, warn, info, debug or trace, or directives such as info,forebay=debug",
        ),
        ("[log]\nformat = \"xml\"", "f.toml: log.format = \"xml\": write \"text\" or \"json\""),
        (
            "[telemetry]\notlp_endpoint = \"grpc://c\"",
            "f.toml: telemetry.otlp_endpoint = \"grpc://c\": write a URL such as http://127.0.0.1:4318, without user, query or fragment, or leave it empty",
        ),
        (
            "[telemetry]\nservice_name = \"\"",
            "f.toml: telemetry.service_name = \"\": write a name of 1 to 128 characters",
        ),
    ];
    for (text, expected) in rows {
        assert_eq!(message(text), expected, "{text}");
    }
}

#[test]
fn bad_syntax_names_its_place() {
    assert!(message("[server]\nlisten = [\n").starts_with("f.toml: line "), "{}", message("[server]\nlisten = [\n"));
    let twice = message("[log]\nlevel = \"info\"\nlevel = \"warn\"");
    assert!(twice.starts_with("f.toml: line 3, column 1: ") && !twice.contains('\n'), "{twice}");
    // The parser's excerpt of the line is not repeated: it may hold a secret.
    let secret = message("[[registry]]\npassword = \"hunter2\" x");
    assert!(!secret.contains("hunter2"), "{secret}");
}

#[test]
fn bad_registries() {
    let rows = [
        ("registry = 5", "f.toml: registry = 5: write each registry as [[registry]]"),
        ("[registry]\nhost = \"x\"", "f.toml: registry = { … }: write each registry as [[registry]]"),
        ("[[registry]]\ntag_ttl = \"1s\"", "f.toml: registry[1].host: each [[registry]] needs a host"),
        (
            "[[registry]]\nhost = \"Ghcr.io\"",
            "f.toml: registry[1].host = \"Ghcr.io\": a registry is a lower-case host name, with a port if it needs one, such as `ghcr.io` or `registry.example:5000`",
        ),
        (
            "[[registry]]\nhost = \"a.io\"\n[[registry]]\nhost = \"a.io\"",
            "f.toml: registry[a.io].host: this registry is configured twice; keep one [[registry]] for it",
        ),
        (
            "[[registry]]\nhost = \"a.io\"\nendpoint = \"x\"",
            "f.toml: unknown key registry[a.io].endpoint; known here: host, endpoints, aliases, virtual_hosts, username, password, password_file, credential_helper, docker_config, ca_file, client_cert, client_key, proxy, token_realms, tag_ttl, stale_if_error, not_found_ttl, grant_ttl, offline, tag_rule, allow, deny, connect_timeout, read_timeout, bandwidth_limit, bandwidth_schedule, max_requests_per_minute, max_fills, lanes_per_blob, abandon_policy",
        ),
        ("[[registry]]\nhost = \"a.io\"\nendpoints = []", "f.toml: registry[a.io].endpoints: list from one to 16 URLs"),
        (
            "[[registry]]\nhost = \"a.io\"\nendpoints = [\"ftp://a.io\"]",
            "f.toml: registry[a.io].endpoints = \"ftp://a.io\": write a URL such as https://registry.example or http://registry.example:5000/base",
        ),
        (
            "[[registry]]\nhost = \"a.io\"\nendpoints = [\"a.io\"]",
            "f.toml: registry[a.io].endpoints = \"a.io\": write a URL such as https://registry.example or http://registry.example:5000/base (relative URL without a base)",
        ),
        (
            "[[registry]]\nhost = \"a.io\"\nendpoints = [\"https://u:hunter2@a.io\"]",
            "f.toml: registry[a.io].endpoints = \"***\": a URL here holds no user and no password; use username and password or password_file",
        ),
        (
            "[[registry]]\nhost = \"a.io\"\nendpoints = [\"https://a.io/?token=hunter2\"]",
            "f.toml: registry[a.io].endpoints = \"***\": a URL here has no query and no fragment",
        ),
        (
            "[[registry]]\nhost = \"a.io\"\nendpoints = [\"https://a.io/#f\"]",
            "f.toml: registry[a.io].endpoints = \"***\": a URL here has no query and no fragment",
        ),
        (
            "[[registry]]\nhost = \"a.io\"\nendpoints = [\"https://a.io\", \"https://a.io/\"]",
            "f.toml: registry[a.io].endpoints = \"https://a.io/\": it is listed twice",
        ),
        (
            "[[registry]]\nhost = \"a.io\"\naliases = [\"A b\"]",
            "f.toml: registry[a.io].aliases = \"A b\": write a lower-case name, with a port if it needs one, such as hub or mirror.example:5000",
        ),
        (
            "[[registry]]\nhost = \"a.io\"\naliases = [\"ghcr.io\"]",
            "f.toml: registry[a.io].aliases: `ghcr.io` is the host of a registry",
        ),
        (
            "[[registry]]\nhost = \"a.io\"\naliases = [\"b.io\"]\n[[registry]]\nhost = \"b.io\"",
            "f.toml: registry[a.io].aliases: `b.io` is the host of a registry",
        ),
        (
            "[[registry]]\nhost = \"a.io\"\naliases = [\"x\"]\n[[registry]]\nhost = \"b.io\"\naliases = [\"x\"]",
            "f.toml: registry[b.io].aliases: `x` is an alias of a.io already",
        ),
        (
            "[[registry]]\nhost = \"a.io\"\nvirtual_hosts = [\"x\"]\n[[registry]]\nhost = \"b.io\"\nvirtual_hosts = [\"x\"]",
            "f.toml: registry[b.io].virtual_hosts: `x` is a virtual host of a.io already",
        ),
        (
            "[[registry]]\nhost = \"a.io\"\nusername = \"u\"",
            "f.toml: registry[a.io].username: a username needs a password or password_file beside it",
        ),
        (
            "[[registry]]\nhost = \"a.io\"\npassword = \"hunter2\"",
            "f.toml: registry[a.io].password: a password needs a username beside it",
        ),
        (
            "[[registry]]\nhost = \"a.io\"\nusername = \"u\"\npassword = 12345",
            "f.toml: registry[a.io].password = ***: write it as a string",
        ),
        (
            "[[registry]]\nhost = \"a.io\"\nusername = \"u\"\npassword_file = \"/nowhere/p\"",
            "f.toml: registry[a.io].password_file = \"/nowhere/p\": cannot read the file: No such file or directory (os error 2)",
        ),
        (
            "[[registry]]\nhost = \"a.io\"\nca_file = \"/nowhere/ca\"",
            "f.toml: registry[a.io].ca_file = \"/nowhere/ca\": cannot read the file: No such file or directory (os error 2)",
        ),
        (
            "[[registry]]\nhost = \"a.io\"\nread_timeout = \"0s\"",
            "f.toml: registry[a.io].read_timeout = \"0s\": it must be longer than zero",
        ),
    ];
    for (text, expected) in rows {
        assert_eq!(message(text), expected, "{text}");
    }
}

#[test]
fn files_beside_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let password = write("password", "hunter2\n");
    let empty = write("empty", "\n");
    let certificate = rcgen::generate_simple_self_signed(["a.io".to_owned()]).unwrap().cert.pem();
    let ca = write("ca.pem", &certificate);

    let base = "[[registry]]\nhost = \"a.io\"\n";
    let config = from_file(&format!("{base}username = \"u\"\npassword_file = {password:?}\nca_file = {ca:?}")).unwrap();
    let read = registry(&config, "a.io");
    assert!(
        matches!(&read.credentials, Some(Credentials::Password { password, .. }) if password.expose() == "hunter2")
    );
    assert_eq!(read.ca_pem, certificate.as_bytes());
    let shown = config.to_toml();
    assert!(shown.contains("password_file") && !shown.contains("hunter2"), "{shown}");
    assert_eq!(from_file(&shown), Ok(config));

    let both = message(&format!("{base}username = \"u\"\npassword = \"p\"\npassword_file = {password:?}"));
    assert_eq!(both, "f.toml: registry[a.io].password: give either password or password_file, not both");
    assert!(message(&format!("{base}username = \"u\"\npassword_file = {empty:?}")).ends_with("the file is empty"));
    let nothing = write("nothing", "");
    assert!(message(&format!("{base}ca_file = {nothing:?}")).ends_with("the file is empty"));

    let missing = folder.path().join("none.toml");
    let error = Config::load(Some(&missing), &Overrides::default()).unwrap_err();
    let expected = "cannot read the configuration: No such file or directory (os error 2)";
    assert_eq!(error.to_string(), format!("{}: {expected}", missing.display()));
}

#[test]
fn secrets_do_not_print() {
    let config = from_file("[[registry]]\nhost = \"a.io\"\nusername = \"u\"\npassword = \"hunter2\"").unwrap();
    for text in [format!("{config:?}"), config.to_toml(), Secret::from("hunter2".to_owned()).to_string()] {
        assert!(text.contains(REDACTED) && !text.contains("hunter2"), "{text}");
    }
}

#[test]
fn the_environment_wins_over_the_file() {
    let file = "[storage]\nmax_size = \"nonsense\"\nmin_free = \"7%\"";
    let variables = [("FOREBAY_STORAGE__MAX_SIZE".to_owned(), "20%".to_owned())];
    let config = Config::from_sources(Some((Path::new("f.toml"), file)), &variables, &Overrides::default()).unwrap();
    assert_eq!(config.storage.max_size, SizeOrPercent::Percent(20));
    assert_eq!(config.storage.min_free, SizeOrPercent::Percent(7));

    let config = from_environment(&[
        ("FOREBAY_SERVER__LISTEN", "127.0.0.1:1, [::1]:2"),
        ("FOREBAY_SERVER__MAX_CONNECTIONS", "7"),
        ("FOREBAY_SERVER__DEFAULT_REGISTRY", ""),
        ("FOREBAY_LOG__LEVEL", "debug"),
        ("FOREBAY_TELEMETRY__OTLP_ENDPOINT", ""),
        // Injected by orchestrators for a service of this name.
        ("FOREBAY_SERVICE_HOST", "10.0.0.1"),
        ("FOREBAY_PORT_5000_TCP", "tcp://10.0.0.1:5000"),
    ])
    .unwrap();
    assert_eq!(config.server.listen.len(), 2);
    assert_eq!(config.server.max_connections, 7);
    assert_eq!(config.server.default_registry, None);
    assert_eq!(config.log.level, "debug");
}

#[test]
fn bad_environment() {
    let rows = [
        (
            ("FOREBAY_STORAGE__MAXSIZE", "1"),
            "FOREBAY_STORAGE__MAXSIZE: unknown key storage.maxsize; known here: path, max_size, min_free, memory_cache, scrub_interval, scrub_rate",
        ),
        (
            ("FOREBAY_STORE__PATH", "1"),
            "FOREBAY_STORE__PATH: unknown key store.path; known here: FOREBAY_SERVER__*, FOREBAY_ADMIN__*, FOREBAY_CLIENTS__*, FOREBAY_STORAGE__*, FOREBAY_UPSTREAM__*, FOREBAY_LOG__*, FOREBAY_TELEMETRY__*",
        ),
        (
            ("FOREBAY_REGISTRY__HOST", "x"),
            "FOREBAY_REGISTRY__HOST: registry: registries are set in the file or with --upstream, not by the environment",
        ),
        (("FOREBAY_SERVER__LISTEN", ""), "FOREBAY_SERVER__LISTEN: server.listen: list from one to 64 addresses"),
        (
            ("FOREBAY_SERVER__DEFAULT_REGISTRY", "x.io"),
            "FOREBAY_SERVER__DEFAULT_REGISTRY: server.default_registry: x.io is not a configured registry; add a [[registry]] for it",
        ),
        (("FOREBAY_LOG__FORMAT", "xml"), "FOREBAY_LOG__FORMAT: log.format = \"xml\": write \"text\" or \"json\""),
    ];
    for (variable, expected) in rows {
        assert_eq!(from_environment(&[variable]).unwrap_err().to_string(), expected);
    }
}

fn with_upstreams(file: &str, upstream: &[&str]) -> Result<Config, Error> {
    let upstream = upstream.iter().map(|&text| text.to_owned()).collect();
    let overrides = Overrides { upstream, ..Overrides::default() };
    Config::from_sources(Some((Path::new("f.toml"), file)), &[], &overrides)
}

#[test]
fn the_command_line_wins_over_all() {
    let overrides = Overrides {
        listen: vec!["127.0.0.1:0".to_owned()],
        admin_listen: Some("127.0.0.1:0".to_owned()),
        data: Some("/d".to_owned()),
        upstream: vec![],
    };
    let variables = [("FOREBAY_STORAGE__PATH".to_owned(), "/e".to_owned())];
    let config = Config::from_sources(None, &variables, &overrides).unwrap();
    assert_eq!(config.server.listen, [config.admin.listen]);
    assert_eq!(config.storage.path, Path::new("/d"));

    let config =
        with_upstreams("", &["docker.io=http://127.0.0.1:1", "new.io=http://a", "docker.io=https://b/base"]).unwrap();
    let endpoints: Vec<_> = registry(&config, "docker.io").endpoints.iter().map(Url::as_str).collect();
    assert_eq!(endpoints, ["http://127.0.0.1:1/", "https://b/base"]);
    assert_eq!(registry(&config, "new.io").endpoints[0].as_str(), "http://a/");
}

#[test]
fn credentials_stay_with_the_origins_they_were_configured_with() {
    let file = "[[registry]]\nhost = \"a.io\"\nendpoints = [\"https://m.io/base\", \"http://n.io\"]\n\
        username = \"u\"\npassword = \"p\"";
    for (upstream, are_kept) in [
        (vec![], true),
        (vec!["a.io=https://m.io:443/other"], true),
        (vec!["a.io=http://n.io"], true),
        (vec!["b.io=http://x.io"], true),
        (vec!["a.io=http://m.io"], false),
        (vec!["a.io=https://m.io:444"], false),
        (vec!["a.io=http://127.0.0.1:5000"], false),
        (vec!["a.io=https://m.io", "a.io=https://x.io"], false),
    ] {
        let config = with_upstreams(file, &upstream).unwrap();
        let read = registry(&config, "a.io");
        assert_eq!((read.credentials.is_some(), read.drops_credentials), (are_kept, !are_kept), "{upstream:?}");
        assert_eq!(config.to_toml().contains("are not used"), !are_kept);
    }
}

#[test]
fn bad_flags() {
    let rows = [
        (
            "docker.io",
            "--upstream: registry.endpoints = \"docker.io\": write HOST=URL, such as docker.io=http://mirror:5000",
        ),
        (
            "docker.io=ftp://x",
            "--upstream: registry.endpoints = \"docker.io=ftp://x\": write a URL such as https://registry.example or http://registry.example:5000/base",
        ),
        (
            "x.io=https://u:hunter2@x.io",
            "--upstream: registry.endpoints = \"***\": a URL here holds no user and no password; use username and password or password_file",
        ),
    ];
    for (flag, expected) in rows {
        assert_eq!(with_upstreams("", &[flag]).unwrap_err().to_string(), expected);
    }
    let clash = with_upstreams("[[registry]]\nhost = \"a.io\"\naliases = [\"x\"]", &["x=http://x"]).unwrap_err();
    assert_eq!(clash.to_string(), "f.toml: registry[a.io].aliases: `x` is the host of a registry");
    let overrides = Overrides { listen: vec!["nowhere".to_owned()], ..Overrides::default() };
    let error = Config::from_sources(None, &[], &overrides).unwrap_err().to_string();
    assert!(error.starts_with("--listen: server.listen = \"nowhere\": write an IP address"), "{error}");
}
