//! What clients may read.

use super::name::ClientName;
use super::name::ClientPattern;
use crate::oci::Pattern;
use crate::oci::Registry;
use crate::oci::Repository;

/// Lets some clients read some repositories. Rules only allow; what none of them allows is denied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Who; at least one.
    pub clients: Vec<ClientPattern>,
    /// Of which registries; of all, where none is named.
    pub registries: Vec<Registry>,
    /// Which repositories, by the names that the registry knows; all, where none is named.
    pub repositories: Vec<Pattern>,
}

impl Rule {
    /// Whether this rule lets the client read the repository; `None` is a client without credentials.
    pub(super) fn allows(&self, client: Option<&ClientName>, repository: &Repository) -> bool {
        let name = repository.name.as_str();
        (self.registries.is_empty() || self.registries.contains(&repository.registry))
            && (self.repositories.is_empty() || self.repositories.iter().any(|pattern| pattern.matches(name)))
            && self.clients.iter().any(|pattern| pattern.matches(client))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list<T: std::str::FromStr<Err: std::fmt::Debug>>(texts: &[&str]) -> Vec<T> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn all_three_have_to_fit() {
        let allows = |rule: &Rule, client: &str, registry: &str, name: &str| {
            let client: ClientName = client.parse().unwrap();
            let repository = Repository { registry: registry.parse().unwrap(), name: name.parse().unwrap() };
            rule.allows(Some(&client), &repository)
        };
        let narrow = Rule {
            clients: list(&["ci", "team-*"]),
            registries: list(&["ghcr.io"]),
            repositories: list(&["acme/*", "tools"]),
        };
        assert!(allows(&narrow, "ci", "ghcr.io", "acme/app") && allows(&narrow, "team-a", "ghcr.io", "tools"));
        assert!(allows(&narrow, "ci", "ghcr.io", "acme/a/b"));
        assert!(!allows(&narrow, "bob", "ghcr.io", "acme/app"));
        assert!(!allows(&narrow, "ci", "quay.io", "acme/app"));
        assert!(!allows(&narrow, "ci", "ghcr.io", "acme2/app") && !allows(&narrow, "ci", "ghcr.io", "acme"));
        let wide = Rule { clients: list(&["*"]), registries: Vec::new(), repositories: Vec::new() };
        assert!(allows(&wide, "bob", "quay.io", "a") && allows(&wide, "x", "docker.io", "library/alpine"));
    }
}
