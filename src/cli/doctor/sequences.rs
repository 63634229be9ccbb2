//! The requests of each engine, as they were seen on the wire.

use std::time::Duration;

use anyhow::Context as _;
use anyhow::bail;
use reqwest::Method;
use reqwest::Response;
use reqwest::header;

use super::Finding;
use super::Level;
use crate::cli::client_config::Setup;
use crate::oci::ImageName;
use crate::oci::MANIFEST_ACCEPT;
use crate::oci::Reference;
use crate::oci::outline;

const TIMEOUT: Duration = Duration::from_secs(60);
const DIGEST: &str = "docker-content-digest";

/// How an engine asks.
struct Dialect<'a> {
    engine: &'a str,
    /// It asks `/v2/` first.
    pings: bool,
    /// It asks for the digest of a tag before the manifest.
    heads: bool,
    /// The repository, as it stands in the path.
    path: String,
    query: String,
    /// It fetches blobs in pieces.
    ranges: bool,
}

pub(super) async fn act(setup: &Setup, image: &ImageName) -> Vec<Finding> {
    let (registry, name) = (&image.repository.registry, &image.repository.name);
    let ns = format!("?ns={registry}");
    let mut dialects = vec![
        Dialect { engine: "containerd", pings: false, heads: true, path: name.to_string(), query: ns, ranges: true },
        Dialect {
            engine: "podman",
            pings: true,
            heads: false,
            path: format!("{registry}/{name}"),
            query: String::new(),
            ranges: false,
        },
    ];
    let mut found = Vec::new();
    if setup.is_default(registry) && registry.is_docker_hub() {
        let (path, query) = (name.to_string(), String::new());
        dialects.push(Dialect { engine: "dockerd", pings: true, heads: true, path, query, ranges: false });
    } else {
        let text = "its mirrors are for Docker Hub only; try with --image and an image from there";
        found.push(Finding::new("dockerd", Level::Skipped, text));
    }
    for dialect in &dialects {
        found.push(match dialect.pull(setup, &image.reference).await {
            Ok(()) => Finding::new(dialect.engine, Level::Ok, format!("its requests for {image} are answered")),
            Err(error) => Finding::new(dialect.engine, Level::Problem, format!("{image}: {error:#}")),
        });
    }
    found
}

impl Dialect<'_> {
    async fn pull(&self, setup: &Setup, reference: &Reference) -> anyhow::Result<()> {
        let http = reqwest::Client::builder().timeout(TIMEOUT).no_proxy().build();
        let http = http.context("cannot set up the HTTP client")?;
        let ask = async |method: Method, path: String, range: bool| {
            let url = format!("{}{path}{}", setup.base(), self.query);
            let mut request = http.request(method.clone(), url).header(header::ACCEPT, MANIFEST_ACCEPT);
            if range {
                request = request.header(header::RANGE, "bytes=0-");
            }
            let answer = request.send().await.map_err(reqwest::Error::without_url);
            let answer = answer.with_context(|| format!("{method} {path}: no answer from {}", setup.base()))?;
            if !answer.status().is_success() {
                let status = answer.status();
                let text = answer.text().await.unwrap_or_default();
                bail!("{method} {path} was answered {status}: {}", reason(&text));
            }
            Ok(answer)
        };
        if self.pings {
            let answer = ask(Method::GET, "/v2/".to_owned(), false).await?;
            if !answer.headers().contains_key("docker-distribution-api-version") {
                bail!("GET /v2/ is not answered by a registry; something else listens at {}", setup.base());
            }
        }
        let manifests = format!("/v2/{}/manifests", self.path);
        let mut reference = reference.to_string();
        if self.heads {
            reference = digest_of(&ask(Method::HEAD, format!("{manifests}/{reference}"), false).await?)?;
        }
        let answer = ask(Method::GET, format!("{manifests}/{reference}"), false).await?;
        digest_of(&answer)?;
        let document = answer.bytes().await.context("the manifest broke off")?;
        let mut image = outline(&document);
        if let Some(member) = image.members.iter().find(|member| member.platform.is_some()).or(image.members.first()) {
            let answer = ask(Method::GET, format!("{manifests}/{}", member.digest), false).await;
            match answer {
                Ok(answer) => image = outline(&answer.bytes().await.context("the manifest broke off")?),
                // Another platform may be the one that is here.
                Err(_) => return Ok(()),
            }
        }
        let Some((config, _)) = image.config else { return Ok(()) };
        let answer = ask(Method::GET, format!("/v2/{}/blobs/{config}", self.path), self.ranges).await?;
        if self.ranges && answer.status().as_u16() != 206 {
            bail!("a range of a blob was answered {}, in place of 206", answer.status());
        }
        answer.bytes().await.context("a blob broke off")?;
        Ok(())
    }
}

fn digest_of(answer: &Response) -> anyhow::Result<String> {
    let digest = answer.headers().get(DIGEST).and_then(|digest| digest.to_str().ok());
    Ok(digest.context("a manifest came without its digest; something between changes the answers")?.to_owned())
}

/// The message of a registry error.
fn reason(text: &str) -> String {
    let message = serde_json::from_str::<serde_json::Value>(text).ok();
    let message = message.and_then(|json| json["errors"][0]["message"].as_str().map(str::to_owned));
    message.unwrap_or_else(|| "no registry error in the answer".to_owned())
}
