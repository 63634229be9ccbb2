//! The query parameters of the distribution API; unknown ones are ignored.

use url::form_urlencoded;

use super::route::{Route, can_name_registry};
use crate::oci::{InvalidTag, Tag};
use crate::pull::TagQuery;

/// Most tags in one answer; a client that asks for more gets a link to the rest. Registries refuse more than this too.
const MAX_TAGS_PER_PAGE: u32 = 1000;
/// Longest query that is read, in bytes as sent.
const MAX_QUERY_BYTES: usize = 4096;

/// The registry that an image reference named, as proxies are told it: a lookup key, in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Namespace(String);

impl Namespace {
    /// A registry or an alias by its grammar, known or not.
    pub(super) fn parse(text: &str) -> Result<Self, BadQuery> {
        let text = text.to_ascii_lowercase();
        if can_name_registry(&text) { Ok(Self(text)) } else { Err(BadQuery::Namespace) }
    }

    /// The key to look up.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// A parameter that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadQuery {
    /// `ns` is no registry by its grammar.
    #[error("`ns` is a registry's host, with its port if it has one, such as `docker.io`")]
    Namespace,
    /// Readers could differ in which of them counts.
    #[error("`ns` is given more than once")]
    RepeatedNamespace,
    /// `n` is no number.
    #[error("`n` is a number of tags, zero or more")]
    Number,
    /// `last` is no tag.
    #[error("`last`: {0}")]
    Last(InvalidTag),
    /// The query is too long.
    #[error("the query is longer than {MAX_QUERY_BYTES} bytes")]
    TooLong,
}

/// The parameters, decoded; what only one endpoint reads is checked there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Query {
    /// `ns`.
    pub(super) namespace: Option<Namespace>,
    n: Option<String>,
    last: Option<String>,
    artifact_types: Vec<String>,
}

impl Query {
    /// Reads what follows the `?`.
    pub(super) fn parse(raw: Option<&str>) -> Result<Self, BadQuery> {
        let Some(raw) = raw else { return Ok(Self::default()) };
        if raw.len() > MAX_QUERY_BYTES {
            return Err(BadQuery::TooLong);
        }
        let mut query = Self::default();
        for (key, value) in form_urlencoded::parse(raw.as_bytes()) {
            match &*key {
                "ns" if query.namespace.is_some() => return Err(BadQuery::RepeatedNamespace),
                "ns" => query.namespace = Some(Namespace::parse(&value)?),
                "n" => query.n = Some(value.into_owned()),
                "last" => query.last = Some(value.into_owned()),
                "artifactType" => query.artifact_types.push(value.into_owned()),
                _ => {}
            }
        }
        Ok(query)
    }

    /// The page of `tags/list` that is asked for.
    pub(super) fn tags(&self) -> Result<TagQuery, BadQuery> {
        let n = self.n.as_deref().map(parse_number).transpose()?;
        let last = self.last.as_deref().filter(|last| !last.is_empty());
        let last = last.map(str::parse::<Tag>).transpose().map_err(BadQuery::Last)?;
        Ok(TagQuery { n, last })
    }

    /// The one `artifactType` to filter by. With several, nothing is filtered and the client does it itself.
    pub(super) fn artifact_type(&self) -> Option<&str> {
        match self.artifact_types.as_slice() {
            [one] if !one.is_empty() => Some(one),
            _ => None,
        }
    }

    /// `Link` to the tags after `last`, on the path and in the namespace that the client used.
    pub(super) fn next_page(&self, route: &Route, n: Option<u32>, last: &str) -> String {
        let mut parameters = form_urlencoded::Serializer::new(String::new());
        if let Some(n) = n {
            parameters.append_pair("n", &n.to_string());
        }
        parameters.append_pair("last", last);
        if let Some(namespace) = &self.namespace {
            parameters.append_pair("ns", namespace.as_str());
        }
        format!("<{route}?{}>; rel=\"next\"", parameters.finish())
    }
}

fn parse_number(text: &str) -> Result<u32, BadQuery> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(BadQuery::Number);
    }
    Ok(text.parse::<u32>().map_or(MAX_TAGS_PER_PAGE, |n| n.min(MAX_TAGS_PER_PAGE)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;

    #[test]
    fn namespaces() {
        let namespace = |raw: &str| Query::parse(Some(raw)).map(|query| query.namespace.map(|ns| ns.0));
        assert_eq!(namespace("ns=docker.io"), Ok(Some("docker.io".into())));
        assert_eq!(namespace("other=1&ns=reg.example%3A5000"), Ok(Some("reg.example:5000".into())));
        assert_eq!(namespace("ns=Docker.IO"), Ok(Some("docker.io".into())));
        assert_eq!(namespace(""), Ok(None));
        assert_eq!(namespace("ns=docker.io&ns=x"), Err(BadQuery::RepeatedNamespace));
        assert_eq!(namespace("ns=docker.io&ns=docker.io"), Err(BadQuery::RepeatedNamespace));
        for bad in [
            "ns=",
            "ns=docker.io%0d%0aX",
            "ns=docker.io.",
            "ns=http://docker.io",
            "ns=user@docker.io",
            "ns=docker.io/library",
            "ns=[::1]:5000",
            "ns=a%20b",
            "ns=v2",
            "ns=..",
        ] {
            assert_eq!(namespace(bad), Err(BadQuery::Namespace), "{bad}");
        }
        assert_eq!(namespace(&"a".repeat(MAX_QUERY_BYTES + 1)), Err(BadQuery::TooLong));
    }

    #[test]
    fn tag_pages() {
        let page = |raw: &str| {
            let page = Query::parse(Some(raw)).unwrap().tags()?;
            Ok((page.n, page.last.map(|tag| tag.to_string())))
        };
        assert_eq!(page(""), Ok((None, None)));
        assert_eq!(page("n=2&last=v1.2"), Ok((Some(2), Some("v1.2".into()))));
        assert_eq!(page("n=0"), Ok((Some(0), None)));
        assert_eq!(page("n=99999999999999999999"), Ok((Some(MAX_TAGS_PER_PAGE), None)));
        for bad in ["n=-1", "n=", "n=two", "n=1.5", "n=%2B1"] {
            assert_eq!(page(bad), Err(BadQuery::Number), "{bad}");
        }
        assert_eq!(page("last=a/b"), Err(BadQuery::Last(InvalidTag)));
    }

    #[test]
    fn links_stay_where_the_client_is() {
        let link = |path: &str, raw: &str, n| {
            let route = Route::parse(&Method::GET, path).unwrap();
            Query::parse(Some(raw)).unwrap().next_page(&route, n, "b&c>")
        };
        assert_eq!(
            link("/v2/a/tags/list", "n=2&ns=reg.example%3A5000", Some(2)),
            "</v2/a/tags/list?n=2&last=b%26c%3E&ns=reg.example%3A5000>; rel=\"next\""
        );
        assert_eq!(link("/hub/v2/a/tags/list", "", None), "</hub/v2/a/tags/list?last=b%26c%3E>; rel=\"next\"");
        assert!(link("/v2/docker.io/a/tags/list", "", None).starts_with("</v2/docker.io/a/tags/list?"));
    }

    #[test]
    fn only_one_artifact_type_filters() {
        let artifact_type = |raw: &str| Query::parse(Some(raw)).unwrap().artifact_type().map(str::to_owned);
        assert_eq!(artifact_type("artifactType=a%2Fb%2Bjson"), Some("a/b+json".into()));
        assert_eq!(artifact_type("artifactType=a/b&artifactType=c/d"), None);
        assert_eq!(artifact_type("artifactType="), None);
    }
}
