//! `WWW-Authenticate` (RFC 9110 section 11.6.1), read as leniently as registries write it.

use http::HeaderMap;
use http::header::WWW_AUTHENTICATE;

const MAX_LINE_BYTES: usize = 16 * 1024;
const MAX_CHALLENGES: usize = 16;
const MAX_PARAMS: usize = 32;

/// What a registry asks for. Bearer is preferred where several are offered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// A token of a token service.
    Bearer {
        realm: String,
        service: Option<String>,
        /// Space-separated.
        scope: Option<String>,
    },
    /// User name and password.
    Basic,
}

/// The best challenge that can be answered; `None` when there is no such.
pub(super) fn wanted(headers: &HeaderMap) -> Option<Wanted> {
    let mut challenges = Vec::new();
    for line in headers.get_all(WWW_AUTHENTICATE) {
        if let Ok(line) = line.to_str()
            && line.len() <= MAX_LINE_BYTES
        {
            parse_line(line, &mut challenges);
        }
    }
    let bearer = challenges.iter().find_map(|challenge| match challenge.param("realm") {
        Some(realm) if challenge.scheme == "bearer" => Some(Wanted::Bearer {
            realm: realm.to_owned(),
            service: challenge.param("service").map(str::to_owned),
            scope: challenge.param("scope").map(str::to_owned),
        }),
        _ => None,
    });
    bearer.or_else(|| challenges.iter().any(|challenge| challenge.scheme == "basic").then_some(Wanted::Basic))
}

/// Scheme and parameter names in lower case.
struct Challenge {
    scheme: String,
    params: Vec<(String, String)>,
    /// The last parameter was an unquoted `scope`, whose actions may go on behind a comma.
    open_scope: bool,
}

impl Challenge {
    fn param(&self, name: &str) -> Option<&str> {
        self.params.iter().find(|(key, value)| key == name && !value.is_empty()).map(|(_, value)| value.as_str())
    }
}

/// A word with `=` behind it is a parameter of the challenge before it; any other word begins a challenge.
fn parse_line(line: &str, challenges: &mut Vec<Challenge>) {
    let first = challenges.len();
    let mut rest = line;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let Some(end) = rest.find([' ', '\t', ',', '=', '"']).or_else(|| (!rest.is_empty()).then_some(rest.len()))
        else {
            return;
        };
        if end == 0 {
            rest = &rest[1..];
            continue;
        }
        let (word, after) = rest.split_at(end);
        rest = after;
        let current = challenges[first..].last_mut();
        if let Some(value) = after.trim_start().strip_prefix('=') {
            let (value, quoted, after) = read_value(value.trim_start());
            rest = after;
            if let Some(current) = current.filter(|current| current.params.len() < MAX_PARAMS) {
                let name = word.to_ascii_lowercase();
                current.open_scope = name == "scope" && !quoted;
                current.params.push((name, value));
            }
        } else if let Some(current) = current.filter(|current| current.open_scope && !after.starts_with([' ', '\t'])) {
            if let Some((_, scope)) = current.params.last_mut() {
                scope.push(',');
                scope.push_str(word);
            }
        } else if challenges.len() < MAX_CHALLENGES {
            challenges.push(Challenge { scheme: word.to_ascii_lowercase(), params: Vec::new(), open_scope: false });
        } else {
            return;
        }
    }
}

/// The value, whether it was quoted, and what follows it.
fn read_value(text: &str) -> (String, bool, &str) {
    let Some(inner) = text.strip_prefix('"') else {
        let end = text.find([' ', '\t', ',']).unwrap_or(text.len());
        return (text[..end].to_owned(), false, &text[end..]);
    };
    let mut value = String::new();
    let mut chars = inner.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, true, &inner[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            _ => value.push(c),
        }
    }
    (value, true, "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    fn read(lines: &[&str]) -> Option<Wanted> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(WWW_AUTHENTICATE, HeaderValue::from_str(line).unwrap());
        }
        wanted(&headers)
    }

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Option<Wanted> {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Some(Wanted::Bearer { realm: realm.to_owned(), service: owned(service), scope: owned(scope) })
    }

    #[test]
    fn forms_in_the_wild() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#;
        let hub_wants =
            bearer("https://auth.docker.io/token", Some("registry.docker.io"), Some("repository:a/b:pull,push"));
        assert_eq!(read(&[hub]), hub_wants);
        assert_eq!(read(&["Negotiate", r#"Basic realm="x""#, hub]), hub_wants);
        assert_eq!(read(&[&format!(r#"Negotiate YII/+a==, Basic realm="x, y", {hub}"#)]), hub_wants);
        assert_eq!(read(&[r#"BEARER   Realm = "https://x/t" ,  Service="s""#]), bearer("https://x/t", Some("s"), None));
        assert_eq!(read(&[r#"Bearer realm="https://x/\"q\"\\",service="""#]), bearer(r#"https://x/"q"\"#, None, None));
        assert_eq!(
            read(&["Bearer realm=https://x/t?a=b,scope=repository:a:pull,push,service=s"]),
            bearer("https://x/t?a=b", Some("s"), Some("repository:a:pull,push"))
        );
        assert_eq!(
            read(&[r#"Bearer realm="https://nvcr.io/proxy_auth""#]),
            bearer("https://nvcr.io/proxy_auth", None, None)
        );
        assert_eq!(read(&[r#"Basic realm="ecr""#]), Some(Wanted::Basic));
        assert_eq!(read(&["Basic"]), Some(Wanted::Basic));
        assert_eq!(read(&["Bearer", "Basic"]), Some(Wanted::Basic));
    }

    #[test]
    fn nothing_to_answer() {
        for line in
            ["", "Negotiate", "Bearer", "Bearer service=x", "Digest realm=x", "realm=x", "= \" ,", "Bearer realm=\"\""]
        {
            assert_eq!(read(&[line]), None, "{line}");
        }
        assert_eq!(read(&[]), None);
        let long = format!("Basic realm={}", "x".repeat(MAX_LINE_BYTES));
        assert_eq!(read(&[&long]), None);
    }

    proptest! {
        #[test]
        fn any_line_ends(line in "[ -~\\t]{0,200}") {
            let _ = read(&[&line]);
        }
    }
}
