//! How the scripted registry lets requests in: not at all checked, Basic, or tokens from its own token server.

use std::collections::HashMap;
use std::net::SocketAddr;

use serde_json::json;
use url::form_urlencoded;

use super::registry::Answer;
use super::registry::Seen;
use super::registry::State;
use super::registry_api;

/// What a registry asks for.
#[derive(Clone, Debug, Default)]
pub(crate) enum Auth {
    #[default]
    None,
    Basic(&'static str, &'static str),
    Bearer(TokenServer),
}

/// Field names under which a token server hands out its token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TokenField {
    Token,
    AccessToken,
    Both,
}

#[derive(Clone, Debug)]
pub(crate) struct TokenServer {
    /// The realm of the challenge; its own `/token` when absent.
    pub(crate) realm: Option<String>,
    /// The realm in the challenge for a request that carried a bad token.
    pub(crate) realm_for_bad_token: Option<String>,
    /// Who gets a token; absent: everybody, without credentials.
    pub(crate) credentials: Option<(&'static str, &'static str)>,
    /// Who posts this gets a token, and nobody else.
    pub(crate) refresh_token: Option<&'static str>,
    pub(crate) field: TokenField,
    pub(crate) expires_in: Option<u64>,
    /// Field values of the challenge, with `{realm}` and `{scope}` filled in.
    pub(crate) challenges: Vec<&'static str>,
}

impl Default for TokenServer {
    fn default() -> Self {
        Self {
            realm: None,
            realm_for_bad_token: None,
            credentials: None,
            refresh_token: None,
            field: TokenField::Both,
            expires_in: Some(300),
            challenges: vec![r#"Bearer realm="{realm}",service="scripted",scope="{scope}""#],
        }
    }
}

/// Tokens given out: token to scope.
#[derive(Debug, Default)]
pub(crate) struct Tokens {
    scopes: HashMap<String, String>,
    count: usize,
    pub(crate) denied: Vec<String>,
}

impl Tokens {
    pub(crate) fn revoke(&mut self) {
        self.scopes.clear();
    }
}

/// Value of an `Authorization: Basic` field.
pub(crate) fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", base64(format!("{user}:{password}").as_bytes()))
}

/// `GET /token`, or `POST` with a form.
pub(crate) fn token(state: &mut State, seen: &Seen) -> Answer {
    let Auth::Bearer(server) = &state.auth else {
        return Answer::error(404, "UNSUPPORTED");
    };
    let given = seen.headers.get("Authorization");
    let fields = if seen.method == "POST" { &seen.body[..] } else { seen.query.as_bytes() };
    let values = |name: &str| -> Vec<String> {
        form_urlencoded::parse(fields).filter(|(key, _)| key == name).map(|(_, value)| value.into_owned()).collect()
    };
    if let Some(wanted) = server.refresh_token {
        let is_flow =
            seen.method == "POST" && values("grant_type") == ["refresh_token"] && !values("client_id").is_empty();
        if !is_flow || values("refresh_token") != [wanted] || given.is_some() {
            return Answer::error(401, "UNAUTHORIZED");
        }
    }
    match server.credentials {
        Some((user, password)) if given != Some(&basic(user, password)) => {
            return Answer::error(401, "UNAUTHORIZED");
        }
        None if given.is_some() => return Answer::error(401, "UNAUTHORIZED"),
        _ => {}
    }
    let scopes = values("scope");
    if scopes.is_empty() {
        return Answer::error(400, "UNSUPPORTED");
    }
    state.tokens.count += 1;
    let token = format!("token-{}-of-the-script", state.tokens.count);
    let mut reply = json!({});
    if server.field != TokenField::AccessToken {
        reply["token"] = token.clone().into();
    }
    if server.field != TokenField::Token {
        reply["access_token"] = token.clone().into();
    }
    if let Some(seconds) = server.expires_in {
        reply["expires_in"] = seconds.into();
    }
    state.tokens.scopes.insert(token, scopes.join(" "));
    Answer::new(200, "application/json", reply.to_string())
}

/// The 401 for this request, if it is not let in.
pub(crate) fn refusal(state: &State, address: SocketAddr, seen: &Seen) -> Option<Answer> {
    let given = seen.headers.get("Authorization");
    match &state.auth {
        Auth::None => None,
        Auth::Basic(user, password) => (given != Some(&basic(user, password)))
            .then(|| Answer::error(401, "UNAUTHORIZED").with("WWW-Authenticate", "Basic realm=\"scripted\"")),
        Auth::Bearer(server) => {
            let repository = registry_api::repository(&seen.path).unwrap_or_default();
            let wanted = format!("repository:{repository}:pull");
            let held =
                given.and_then(|value| value.strip_prefix("Bearer ")).and_then(|token| state.tokens.scopes.get(token));
            let allowed = held.is_some_and(|scope| scope.split(' ').any(|part| part == wanted));
            if allowed && !state.tokens.denied.iter().any(|denied| denied == repository) {
                return None;
            }
            let own = || format!("http://{address}/token");
            let realm = match &server.realm_for_bad_token {
                Some(realm) if given.is_some() => realm.clone(),
                _ => server.realm.clone().unwrap_or_else(own),
            };
            let mut answer = Answer::error(401, "UNAUTHORIZED");
            for challenge in &server.challenges {
                let challenge = challenge.replace("{realm}", &realm).replace("{scope}", &wanted);
                answer = answer.with("WWW-Authenticate", challenge);
            }
            Some(answer)
        }
    }
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let word = group.iter().fold(0_u32, |word, byte| (word << 8) | u32::from(*byte)) << (8 * (3 - group.len()));
        for place in 0..4 {
            let digit = (word >> (18 - 6 * place)) & 63;
            text.push(if place <= group.len() { ALPHABET[digit as usize] as char } else { '=' });
        }
    }
    text
}

#[test]
fn base64_pads_each_length() {
    let table = [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")];
    for (plain, encoded) in table {
        assert_eq!(base64(plain.as_bytes()), encoded);
    }
}
