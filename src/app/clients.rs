//! The clients of the registry port, taken up while everything runs.

use crate::access;
use crate::access::InvalidOptions;
use crate::config;
use crate::config::ClientTexts;

/// Where the clients come from, and what was there when they were last taken up.
pub(super) struct ClientFiles {
    config: config::Clients,
    texts: ClientTexts,
    /// What the last look found, where that was something else.
    seen: Option<Result<ClientTexts, config::Error>>,
    /// What was wrong with it, so that it is said once.
    refused: Option<String>,
}

/// What a look at the files has brought.
pub(super) enum Look {
    Nothing,
    /// A change that may not be all of it yet.
    Settling,
    New(Box<access::Clients>),
}

impl ClientFiles {
    /// Reads the files. Blocks.
    pub(super) fn load(config: &config::Clients) -> Result<(Self, access::Clients), config::Error> {
        let texts = config.read()?;
        let clients = clients(config, &texts)?;
        Ok((Self { config: config.clone(), texts, seen: None, refused: None }, clients))
    }

    /// Takes up a change that two looks have found the same: between them, half of a file may be written. Looks into the
    /// files instead of being told: that also works where they are links that change, as in a cluster. Files that cannot be
    /// used change nothing. Blocks.
    pub(super) fn look(&mut self) -> Look {
        let found = self.config.read();
        if found.as_ref() == Ok(&self.texts) {
            (self.seen, self.refused) = (None, None);
            return Look::Nothing;
        }
        if self.seen.as_ref() != Some(&found) {
            self.seen = Some(found);
            return Look::Settling;
        }
        match found.and_then(|texts| Ok((clients(&self.config, &texts)?, texts))) {
            Ok((clients, texts)) => {
                (self.texts, self.seen, self.refused) = (texts, None, None);
                Look::New(Box::new(clients))
            }
            Err(error) => {
                let problem = error.to_string();
                if self.refused.as_ref() != Some(&problem) {
                    tracing::warn!(
                        problem,
                        "the clients' files have changed and cannot be used; the old ones stay in force"
                    );
                    self.refused = Some(problem);
                }
                Look::Nothing
            }
        }
    }
}

fn clients(config: &config::Clients, texts: &ClientTexts) -> Result<access::Clients, config::Error> {
    let options = access::Options {
        htpasswd: texts.htpasswd.clone(),
        tokens: texts.tokens.clone(),
        anonymous: config.anonymous,
        rules: config.rules.clone(),
    };
    access::Clients::new(options).map_err(|error| match error {
        InvalidOptions::Htpasswd(line) => config.htpasswd_refused(&line.to_string()),
        InvalidOptions::Tokens(line) => config.tokens_refused(&line.to_string()),
        InvalidOptions::Randomness(_) => {
            config::Error::Refused { key: "clients".to_owned(), problem: error.to_string() }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "the test writes the files")]
    fn a_change_is_taken_up_when_it_has_settled() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        let write = |text: &str| std::fs::write(&path, text).unwrap();
        let line = |name: &str, digit: &str| format!("{name}:{}\n", digit.repeat(64));
        let both = line("ann", "a") + &line("bob", "b");
        write(&line("ann", "a"));
        let config =
            config::Clients { htpasswd: None, tokens: Some(path.clone()), anonymous: false, rules: Vec::new() };
        let (mut files, _) = ClientFiles::load(&config).unwrap();
        assert!(matches!(files.look(), Look::Nothing));
        write("");
        assert!(matches!(files.look(), Look::Settling), "it is being written");
        write(&both);
        assert!(matches!(files.look(), Look::Settling));
        assert!(matches!(files.look(), Look::New(_)));
        assert!(matches!(files.look(), Look::Nothing));
        write("nonsense");
        assert!(matches!(files.look(), Look::Settling));
        assert!(matches!(files.look(), Look::Nothing));
        assert!(files.refused.as_deref().is_some_and(|problem| problem.contains("line 1")));
        write(&both);
        assert!(matches!(files.look(), Look::Nothing), "as it was");
        assert_eq!(files.refused, None);
    }
}
