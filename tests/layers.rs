//! The fences between layers: who may import whom, and which crate is whose.
#![expect(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test that reads the sources")]

use std::path::Path;
use std::path::PathBuf;

/// Layer → layers of this crate that it may use.
const LAYERS: &[(&str, &[&str])] = &[
    ("oci", &[]),
    ("metrics", &[]),
    ("piece", &[]),
    ("manager", &[]),
    ("store", &["oci", "metrics", "piece"]),
    ("upstream", &["oci", "metrics"]),
    ("pull", &["oci", "metrics", "piece", "store", "upstream"]),
    ("registry", &["oci", "metrics", "piece", "pull"]),
    ("serve", &["piece"]),
    ("admin", &["metrics", "oci", "pull", "store", "telemetry"]),
    ("telemetry", &[]),
    ("config", &["oci", "telemetry"]),
    ("cli", &["admin", "config", "oci", "store"]),
    (
        "app",
        &[
            "oci",
            "metrics",
            "store",
            "upstream",
            "pull",
            "registry",
            "serve",
            "admin",
            "telemetry",
            "config",
            "manager",
        ],
    ),
    ("main", &[]),
    ("lib", &[]),
];

/// Text → layers that it may stand in.
const OWNED: &[(&str, &[&str])] = &[
    ("sled::", &["store"]),
    ("std::fs", &["cli", "config", "piece", "store"]),
    ("tokio::fs", &[]),
    ("rustix::fs", &["store", "piece", "serve"]),
    ("reqwest::", &["cli", "upstream", "telemetry"]),
    ("hyper::", &["registry", "serve", "admin"]),
    ("http::", &["upstream", "registry", "serve", "admin", "telemetry"]),
    ("listenfd::", &["manager"]),
    ("sd_notify::", &["manager"]),
    ("moka::", &["store", "upstream", "pull"]),
    ("tokio::net::Tcp", &["serve", "admin"]),
    ("tokio::", &["store", "upstream", "pull", "registry", "serve", "admin", "cli", "telemetry", "app", "main"]),
    ("StatusCode", &["upstream", "registry", "serve", "admin", "telemetry"]),
];

/// sled's name stands in one file.
const SLED_FILE: &str = "src/store/index.rs";
/// Longer files have a second room inside.
const MAX_LINES: usize = 600;

#[test]
fn layers_import_only_what_is_below() {
    let mut wrong = Vec::new();
    each_source(|path, layer, code| {
        let allowed = LAYERS.iter().find(|(name, _)| *name == layer).map(|(_, allowed)| *allowed);
        let Some(allowed) = allowed else { return wrong.push(format!("{}: no layer `{layer}`", path.display())) };
        if code.contains("use crate::{") {
            wrong.push(format!("{}: one `use` for each layer, so that this test can read it", path.display()));
        }
        for used in names_after(code, "crate::") {
            if used != layer && !allowed.contains(&used) {
                wrong.push(format!("{}: `{layer}` must not use `{used}`", path.display()));
            }
        }
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn crates_stay_with_their_layers() {
    let mut wrong = Vec::new();
    each_source(|path, layer, code| {
        for (text, layers) in OWNED {
            if mentions(code, text) && !layers.contains(&layer) {
                wrong.push(format!("{}: `{text}` does not belong in `{layer}`", path.display()));
            }
        }
        if mentions(code, "sled::") && path != Path::new(SLED_FILE) {
            wrong.push(format!("{}: sled is named in {SLED_FILE} only", path.display()));
        }
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_stay_small() {
    let mut long = Vec::new();
    for path in sources() {
        let lines = std::fs::read_to_string(&path).unwrap().lines().count();
        if lines > MAX_LINES {
            long.push(format!("{}: {lines} lines", path.display()));
        }
    }
    assert!(long.is_empty(), "{}", long.join("\n"));
}

#[test]
fn the_fences_can_fail() {
    assert_eq!(names_after("use crate::store::Store; x(crate::oci::Tag)", "crate::"), ["store", "oci"]);
    assert!(mentions("let x = sled::open();", "sled::") && !mentions("unsled::open()", "sled::"));
    assert_eq!(
        code_of("a // sled::x\n//! crate::pull\n#[cfg(test)]\nmod tests;\nb\n#[cfg(test)]\nmod tests {\ncrate::app\n}"),
        "a \nb\n"
    );
}

fn sources() -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![PathBuf::from("src")]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    assert!(found.len() > 20, "run from the root of the project");
    found
}

/// Calls `each` with every file of production code: its path, its layer, its text without comments and unit tests.
fn each_source(mut each: impl FnMut(&Path, &str, &str)) {
    for path in sources() {
        if path.file_stem().is_some_and(|stem| stem == "tests") {
            continue;
        }
        let layer = path.components().nth(1).unwrap().as_os_str().to_str().unwrap().trim_end_matches(".rs").to_owned();
        each(&path, &layer, &code_of(&std::fs::read_to_string(&path).unwrap()));
    }
}

fn code_of(text: &str) -> String {
    let mut code = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if line.trim() == "#[cfg(test)]" {
            match lines.next() {
                Some(next) if next.trim_end().ends_with(';') => continue,
                _ => break,
            }
        }
        let line = line.split("//").next().unwrap_or_default();
        if !line.is_empty() {
            code.push_str(line);
            code.push('\n');
        }
    }
    code
}

/// The names that follow `prefix`, where it starts a path.
fn names_after<'a>(code: &'a str, prefix: &str) -> Vec<&'a str> {
    let starts = code.match_indices(prefix).filter(|(at, _)| starts_word(code, *at));
    let name = |at: usize| {
        let rest = &code[at..];
        &rest[..rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len())]
    };
    starts.map(|(at, _)| name(at + prefix.len())).collect()
}

fn mentions(code: &str, text: &str) -> bool {
    code.match_indices(text).any(|(at, _)| starts_word(code, at))
}

fn starts_word(code: &str, at: usize) -> bool {
    !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':')
}
