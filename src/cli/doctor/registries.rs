//! The registries as this host reaches them, and as the proxy sees them. Their answers tell the time, too.

use std::time::Duration;

use futures_util::StreamExt as _;
use reqwest::header;
use url::Url;

use super::Finding;
use super::Level;
use crate::admin::api::Upstreams;
use crate::cli::remote::Client;
use crate::config::Config;

const TIMEOUT: Duration = Duration::from_secs(10);
/// Registries that are asked at once.
const AT_ONCE: usize = 8;
/// Tokens and certificates are judged by the clock; this much does not matter.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(60);

pub(super) async fn ask(config: &Config, proxy: &Client) -> Vec<Finding> {
    let mut found = as_the_proxy_sees_them(proxy).await;
    let http = reqwest::Client::builder().timeout(TIMEOUT).redirect(reqwest::redirect::Policy::none()).build();
    let Ok(http) = http else { return found };
    let endpoints = config.registries.iter().filter_map(|known| {
        // Its own roots or certificate are the proxy's affair: that is above.
        let is_plain = known.ca_file.is_none();
        known.endpoints.first().filter(|_| is_plain).map(|url| (known.registry.to_string(), url.clone()))
    });
    let each = endpoints.map(|(registry, url)| reach(&http, registry, url));
    let answers: Vec<_> = futures_util::stream::iter(each).buffered(AT_ONCE).collect().await;
    let reached = answers.iter().filter(|answer| answer.is_ok()).count();
    let skews: Vec<i64> = answers.iter().filter_map(|answer| answer.as_ref().ok().copied().flatten()).collect();
    found.extend(answers.into_iter().filter_map(Result::err));
    if reached > 0 {
        found.push(Finding::new("registries", Level::Ok, format!("{reached} of them answer on this host")));
    }
    found.extend(clock(&skews));
    found
}

/// Breakers, rate limits, refused credentials.
async fn as_the_proxy_sees_them(proxy: &Client) -> Vec<Finding> {
    let Ok(answer) = proxy.get("upstreams", &[]).await else { return Vec::new() };
    let Ok(upstreams) = answer.read::<Upstreams>() else { return Vec::new() };
    let mut found = Vec::new();
    if upstreams.offline {
        found.push(Finding::new("registries", Level::Warning, "all are switched offline: `forebay offline off`"));
    }
    for upstream in &upstreams.registries {
        let area = upstream.registry.as_str();
        for endpoint in &upstream.endpoints {
            if let Some(error) = &endpoint.error {
                found.push(Finding::new(area, Level::Problem, format!("{}: {error}", endpoint.url)));
            }
            if let Some(seconds) = endpoint.quiet_seconds {
                let text =
                    format!("{} asked to be left alone for {seconds} s more: its rate limit is used up", endpoint.url);
                found.push(Finding::new(area, Level::Warning, text));
            }
        }
        if upstream.offline && !upstreams.offline {
            found.push(Finding::new(area, Level::Warning, "it is switched offline: `forebay offline off --registry`"));
        }
        if let Some(limit) = &upstream.rate_limit
            && limit.limit.is_some_and(|most| limit.remaining * 10 < most)
        {
            let text = format!("only {} requests are left of its rate limit; an account has more", limit.remaining);
            found.push(Finding::new(area, Level::Warning, text));
        }
    }
    found
}

/// How far its clock is ahead of ours, in seconds, where it says the time. Any answer will do: it is there.
async fn reach(http: &reqwest::Client, registry: String, endpoint: Url) -> Result<Option<i64>, Finding> {
    let mut url = endpoint.clone();
    url.set_path(&format!("{}/v2/", endpoint.path().trim_end_matches('/')));
    match http.get(url).send().await {
        Ok(answer) => {
            let date = answer.headers().get(header::DATE).and_then(|date| date.to_str().ok());
            let date = date.and_then(|date| jiff::fmt::rfc2822::parse(date).ok());
            Ok(date.map(|date| date.timestamp().duration_since(jiff::Timestamp::now()).as_secs()))
        }
        Err(error) => {
            let reason = format!("{:#}", anyhow::Error::new(error.without_url()));
            Err(Finding::new(&registry, Level::Warning, format!("this host does not reach {endpoint}: {reason}")))
        }
    }
}

/// One wrong clock among the registries does not count; most of them do.
fn clock(skews: &[i64]) -> Option<Finding> {
    let mut sorted = skews.to_vec();
    sorted.sort_unstable();
    let median = *sorted.get(sorted.len() / 2)?;
    let tolerance = i64::try_from(CLOCK_TOLERANCE.as_secs()).unwrap_or(i64::MAX);
    Some(match median {
        skew if skew.abs() <= tolerance => Finding::new("clock", Level::Ok, "it agrees with the registries"),
        skew if skew > 0 => Finding::new(
            "clock",
            Level::Problem,
            format!("it is {skew} s behind the registries: certificates and tokens are judged wrongly"),
        ),
        skew => Finding::new(
            "clock",
            Level::Problem,
            format!("it is {} s ahead of the registries: certificates and tokens are judged wrongly", -skew),
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_is_judged_by_most() {
        assert_eq!(clock(&[]), None);
        assert_eq!(clock(&[0, 9000, -2]).unwrap().level, Level::Ok);
        let behind = clock(&[300, 301, 2]).unwrap();
        assert!(behind.level == Level::Problem && behind.text.contains("300 s behind"), "{behind:?}");
        assert!(clock(&[-300]).unwrap().text.contains("300 s ahead"));
    }
}
