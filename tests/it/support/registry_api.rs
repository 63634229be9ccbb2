//! The correct answers of the scripted registry: manifests, blobs with ranges, tags, referrers, redirects.

use bytes::Bytes;
use serde_json::json;
use url::form_urlencoded;

use super::content::OCI_INDEX;
use super::registry::Answer;
use super::registry::Seen;
use super::registry::Shared;
use super::registry::Site;
use super::registry::State;
use super::registry_auth;
use super::script::Fault;

impl Shared {
    /// What a well-behaved registry would say, unless the fault names a status.
    pub(crate) fn answer(&self, seen: &Seen, fault: &Fault) -> Answer {
        if let Some(status) = fault.status {
            let mut answer = Answer::error(status, "SCRIPTED");
            if let Some(body) = &fault.body {
                answer.body = body.clone();
            }
            return answer;
        }
        let state = &mut *self.lock();
        if seen.site == Site::Cdn {
            return signed(state, seen, fault);
        }
        if seen.path == "/token" {
            return registry_auth::token(state, seen);
        }
        if let Some(refusal) = registry_auth::refusal(state, self.address, seen) {
            return refusal;
        }
        if seen.path == "/v2/" {
            return Answer::new(200, "application/json", "{}");
        }
        route(state, seen, fault).unwrap_or_else(|| Answer::error(404, "NAME_UNKNOWN"))
    }
}

/// Repository of a path of the distribution API.
pub(crate) fn repository(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("/v2/")?;
    let (rest, _) = rest.rsplit_once('/')?;
    let (repository, _) = rest.rsplit_once('/')?;
    Some(repository)
}

pub(crate) fn query(seen: &Seen, name: &str) -> Option<String> {
    form_urlencoded::parse(seen.query.as_bytes()).find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
}

fn route(state: &mut State, seen: &Seen, fault: &Fault) -> Option<Answer> {
    let repository = repository(&seen.path)?.to_owned();
    let mut ending = seen.path.rsplit('/');
    let last = ending.next()?.replace("%3A", ":");
    match ending.next()? {
        "manifests" => Some(manifest(state, &repository, &last)),
        "blobs" => Some(blob(state, seen, &repository, &last, fault)),
        "tags" if last == "list" => Some(tags(state, seen, &repository)),
        "referrers" => Some(referrers(state, seen, &last)),
        _ => None,
    }
}

fn manifest(state: &State, repository: &str, reference: &str) -> Answer {
    let by_tag = state.tags.get(&(repository.to_owned(), reference.to_owned()));
    let digest = by_tag.map_or(reference, String::as_str).to_owned();
    match state.manifests.get(&(repository.to_owned(), digest.clone())) {
        None => Answer::error(404, "MANIFEST_UNKNOWN"),
        Some(manifest) => Answer::new(200, &manifest.media_type, manifest.bytes.clone())
            .with("ETag", format!("\"{digest}\""))
            .with("Docker-Content-Digest", digest),
    }
}

fn blob(state: &mut State, seen: &Seen, repository: &str, digest: &str, fault: &Fault) -> Answer {
    let key = (repository.to_owned(), digest.to_owned());
    let Some(bytes) = state.blobs.get(&key).cloned() else {
        return Answer::error(404, "BLOB_UNKNOWN");
    };
    if let Some(cdn) = state.cdn
        && seen.method == "GET"
    {
        let signature = format!("signature-{}", state.signatures.len() + 1);
        state.signatures.insert(signature.clone(), key);
        let location = format!("http://{cdn}/signed/{digest}?X-Signature={signature}");
        return Answer::new(307, "text/plain", "").with("Location", location);
    }
    ranged(seen, &bytes, fault).with("Docker-Content-Digest", digest).with("ETag", format!("\"{digest}\""))
}

/// The object store: a valid signature, a GET, and no credentials, as real ones insist.
fn signed(state: &State, seen: &Seen, fault: &Fault) -> Answer {
    if seen.headers.get("Authorization").is_some() {
        return Answer::new(400, "application/xml", "<Error>two kinds of authentication</Error>");
    }
    let known = query(seen, "X-Signature").and_then(|signature| state.signatures.get(&signature));
    match known.and_then(|key| state.blobs.get(key)) {
        Some(bytes) if seen.method == "GET" => ranged(seen, bytes, fault),
        _ => Answer::new(403, "application/xml", "<Error>SignatureDoesNotMatch</Error>"),
    }
}

fn ranged(seen: &Seen, bytes: &Bytes, fault: &Fault) -> Answer {
    let whole = || Answer::new(200, "application/octet-stream", bytes.clone()).with("Accept-Ranges", "bytes");
    if fault.ignore_range || seen.method != "GET" {
        return whole();
    }
    let Some(range) = seen.headers.get("Range").and_then(|value| value.strip_prefix("bytes=")) else {
        return whole();
    };
    let Some((start, end)) = range.split_once('-').filter(|_| !range.contains(',')) else {
        return whole();
    };
    let length = bytes.len();
    let (start, end) = match (start.parse::<usize>(), end.parse::<usize>()) {
        (Ok(start), Ok(end)) => (start, (end + 1).min(length)),
        (Ok(start), Err(_)) => (start, length),
        (Err(_), Ok(suffix)) => (length.saturating_sub(suffix), length),
        (Err(_), Err(_)) => return whole(),
    };
    if start >= end {
        return Answer::error(416, "RANGE_INVALID").with("Content-Range", format!("bytes */{length}"));
    }
    Answer::new(206, "application/octet-stream", bytes.slice(start..end))
        .with("Accept-Ranges", "bytes")
        .with("Content-Range", format!("bytes {start}-{}/{length}", end - 1))
}

fn tags(state: &State, seen: &Seen, repository: &str) -> Answer {
    let mut names: Vec<&str> =
        state.tags.keys().filter(|(name, _)| name == repository).map(|(_, tag)| tag.as_str()).collect();
    if names.is_empty() {
        return Answer::error(404, "NAME_UNKNOWN");
    }
    names.sort_unstable();
    if let Some(last) = query(seen, "last") {
        names.retain(|name| *name > last.as_str());
    }
    let limit = query(seen, "n").and_then(|n| n.parse().ok()).unwrap_or(usize::MAX);
    let more = names.len() > limit && limit > 0;
    names.truncate(limit);
    let answer = Answer::new(200, "application/json", json!({ "name": repository, "tags": names }).to_string());
    match names.last().filter(|_| more) {
        Some(last) => answer.with("Link", format!("</v2/{repository}/tags/list?last={last}&n={limit}>; rel=\"next\"")),
        None => answer,
    }
}

fn referrers(state: &State, seen: &Seen, subject: &str) -> Answer {
    let Some(known) = &state.referrers else {
        return Answer::error(404, "UNSUPPORTED");
    };
    let mut manifests = known.get(subject).cloned().unwrap_or_default();
    let filter = query(seen, "artifactType");
    if let Some(filter) = &filter {
        manifests.retain(|descriptor| descriptor["artifactType"] == filter.as_str());
    }
    let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests });
    let answer = Answer::new(200, OCI_INDEX, index.to_string());
    if filter.is_some() { answer.with("OCI-Filters-Applied", "artifactType") } else { answer }
}
