//! The way to a running proxy: its admin API, over HTTP.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use anyhow::bail;
use reqwest::Method;
use reqwest::header;
use serde::Serialize;
use serde::de::DeserializeOwned;
use url::Url;

use crate::admin::api::ErrorBody;
use crate::config::Error;
use crate::config::Origin;

/// Longest wait for an answer; what takes longer is done in steps.
const TIMEOUT: Duration = Duration::from_secs(60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Where the proxy is, and who asks.
#[derive(Clone, Debug, clap::Args)]
pub struct Remote {
    /// Admin port of the proxy
    #[arg(long, value_name = "URL", env = "FOREBAY_ADMIN_URL", default_value = "http://127.0.0.1:5001")]
    pub admin: Url,
    /// File with the token of admin.token; the variable FOREBAY_ADMIN_TOKEN holds the token itself
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

/// A client of the admin API.
pub(super) struct Client {
    http: reqwest::Client,
    base: Url,
    token: Option<String>,
}

impl Remote {
    /// `forebay ready`: nothing when the proxy takes requests, else why not.
    pub async fn ready(&self) -> anyhow::Result<()> {
        let client = self.client()?;
        let mut url = client.base.clone();
        url.set_path("/readyz");
        let answer = client.http.get(url).send().await.map_err(reqwest::Error::without_url);
        let answer = answer.with_context(|| format!("no answer from {}", client.base))?;
        if answer.status().is_success() {
            return Ok(());
        }
        bail!("not ready: {}", answer.text().await.unwrap_or_default().trim())
    }
}

/// An answer, as it was sent.
pub(super) struct Answer(Vec<u8>);

impl Remote {
    /// A client; asks nobody.
    pub(super) fn client(&self) -> anyhow::Result<Client> {
        if !matches!(self.admin.scheme(), "http" | "https") || !self.admin.has_host() {
            bail!(wrong("admin", "write a URL such as http://127.0.0.1:5001"));
        }
        let token = match &self.token_file {
            Some(path) => Some(crate::config::read_secret(path).map_err(|problem| wrong("token-file", &problem))?),
            None => crate::config::admin_token_of_environment(),
        };
        let http = reqwest::Client::builder().timeout(TIMEOUT).connect_timeout(CONNECT_TIMEOUT).no_proxy().build();
        Ok(Client { http: http.context("cannot set up the HTTP client")?, base: self.admin.clone(), token })
    }
}

/// Wrong usage, which the parser of arguments could not see.
pub(super) fn wrong(flag: &str, problem: &str) -> Error {
    Error::Conflict { origin: Origin::Flag("command line"), key: format!("--{flag}"), problem: problem.to_owned() }
}

impl Client {
    /// With this token, where nothing else gives one.
    pub(super) fn or_token(self, token: Option<String>) -> Self {
        Self { token: self.token.or(token), ..self }
    }

    pub(super) async fn get(&self, path: &str, query: &[(&str, String)]) -> anyhow::Result<Answer> {
        self.ask(Method::GET, path, query, None).await
    }

    pub(super) async fn send<T: Serialize>(&self, method: Method, path: &str, body: &T) -> anyhow::Result<Answer> {
        self.ask(method, path, &[], Some(serde_json::to_vec(body)?)).await
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, String)],
        body: Option<Vec<u8>>,
    ) -> anyhow::Result<Answer> {
        let mut url = self.base.clone();
        url.set_path(&format!("{}/api/v1/{path}", self.base.path().trim_end_matches('/')));
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let mut request = self.http.request(method, url);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.header(header::CONTENT_TYPE, "application/json").body(body);
        }
        let answer = request.send().await.map_err(reqwest::Error::without_url);
        let answer = answer
            .with_context(|| format!("no answer from {}; does the proxy run, and is --admin right?", self.base))?;
        let status = answer.status();
        let bytes = answer.bytes().await.map_err(reqwest::Error::without_url).context("the answer broke off")?;
        if status.is_success() {
            return Ok(Answer(bytes.to_vec()));
        }
        match serde_json::from_slice::<ErrorBody>(&bytes) {
            Ok(refused) => bail!("{}", refused.error.message),
            Err(_) => bail!("{} answered {status}; is it the admin port of a forebay?", self.base),
        }
    }
}

impl Answer {
    pub(super) fn read<T: DeserializeOwned>(&self) -> anyhow::Result<T> {
        serde_json::from_slice(&self.0)
            .context("the answer is not what this version expects; is the proxy newer or older?")
    }

    /// As sent, with line breaks for people.
    pub(super) fn json(&self) -> anyhow::Result<String> {
        let value: serde_json::Value = self.read()?;
        Ok(format!("{value:#}\n"))
    }
}
