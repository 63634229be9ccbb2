//! Which rule a tag is under, and whether its record may be served as it stands: pure functions of record, policy and time.

use std::time::Duration;

use crate::oci::Pattern;
use crate::oci::RepositoryName;
use crate::oci::Tag;
use crate::oci::TagPattern;
use crate::store::TagRecord;
use crate::store::Timestamp;

/// What is kept of a registry, how fresh, and for whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// A tag checked this long ago is served without asking.
    pub tag_ttl: Duration,
    /// A tag checked this long ago is still served when the upstream cannot be asked; so is content whose grant has run
    /// out.
    pub stale_if_error: Duration,
    /// A tag that the upstream does not have is not asked for again that long.
    pub not_found_ttl: Duration,
    /// A grant for content that was fetched with credentials is asked for again after this.
    pub grant_ttl: Duration,
    /// Exceptions for some tags; the first that fits decides.
    pub tag_rules: Vec<TagRule>,
    /// The only repositories that may be pulled; all when empty.
    pub allow: Vec<Pattern>,
    /// Repositories that may not be pulled, also when allowed.
    pub deny: Vec<Pattern>,
}

impl Default for Policy {
    /// Tags for 5 min, 30 d when the upstream fails, absence for 10 s, grants for 1 h; no rules; all repositories.
    fn default() -> Self {
        Self {
            tag_ttl: Duration::from_secs(5 * 60),
            stale_if_error: Duration::from_secs(30 * 24 * 3600),
            not_found_ttl: Duration::from_secs(10),
            grant_ttl: Duration::from_secs(3600),
            tag_rules: Vec::new(),
            allow: Vec::new(),
            deny: Vec::new(),
        }
    }
}

/// What differs for some tags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagRule {
    /// Which tags.
    pub pattern: TagPattern,
    /// In place of the registry's.
    pub tag_ttl: Option<Duration>,
    /// In place of the registry's.
    pub stale_if_error: Option<Duration>,
    /// Once known, the tag stays where it points: a move is refused.
    pub immutable: bool,
    /// The upstream is never asked where the tag points.
    pub offline: bool,
}

/// What holds for one tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TagPolicy {
    pub(super) tag_ttl: Duration,
    pub(super) stale_if_error: Duration,
    pub(super) immutable: bool,
    pub(super) offline: bool,
    /// The rule that decided; `None`: the registry's own keys.
    pub(super) pattern: Option<TagPattern>,
}

impl Policy {
    /// What holds for what is under no rule.
    pub(super) fn without_rules(&self) -> TagPolicy {
        TagPolicy {
            tag_ttl: self.tag_ttl,
            stale_if_error: self.stale_if_error,
            immutable: false,
            offline: false,
            pattern: None,
        }
    }

    pub(super) fn for_tag(&self, repository: &RepositoryName, tag: &Tag) -> TagPolicy {
        let Some(rule) = self.tag_rules.iter().find(|rule| rule.pattern.matches(repository, tag)) else {
            return self.without_rules();
        };
        TagPolicy {
            tag_ttl: rule.tag_ttl.unwrap_or(self.tag_ttl),
            stale_if_error: rule.stale_if_error.unwrap_or(self.stale_if_error),
            immutable: rule.immutable,
            offline: rule.offline,
            pattern: Some(rule.pattern.clone()),
        }
    }

    /// Whether the operator lets this repository be pulled.
    pub(super) fn allows(&self, repository: &RepositoryName) -> bool {
        let fits = |pattern: &Pattern| pattern.matches(repository.as_str());
        (self.allow.is_empty() || self.allow.iter().any(fits)) && !self.deny.iter().any(fits)
    }
}

/// What to do with a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Freshness {
    /// Serve it.
    Fresh,
    /// Ask; serve it all the same when the upstream cannot answer.
    Check,
    /// Ask; the record is too old for anything else.
    Unusable,
}

pub(super) fn judge(record: &TagRecord, policy: &TagPolicy, now: Timestamp) -> Freshness {
    judge_age(record.checked_at, policy.tag_ttl, policy.stale_if_error, now)
}

/// The same for anything that the upstream said at some time.
pub(super) fn judge_age(said_at: Timestamp, ttl: Duration, stale_if_error: Duration, now: Timestamp) -> Freshness {
    // A record from the future means that the clock was set back: it is checked, not trusted.
    if said_at > now {
        return Freshness::Check;
    }
    let age = now.since(said_at);
    if age < ttl {
        Freshness::Fresh
    } else if age < stale_if_error {
        Freshness::Check
    } else {
        Freshness::Unusable
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn judges_by_age() {
        let now = Timestamp::from_millis(1_000_000);
        let judged = |ttl, age_ms: i64| {
            let said_at = Timestamp::from_millis(1_000_000_u64.saturating_add_signed(-age_ms));
            judge_age(said_at, ttl, 100 * SECOND, now)
        };
        for (age_ms, expected) in [
            (0, Freshness::Fresh),
            (9_999, Freshness::Fresh),
            (10_000, Freshness::Check),
            (99_999, Freshness::Check),
            (100_000, Freshness::Unusable),
            (-1, Freshness::Check),
        ] {
            assert_eq!(judged(10 * SECOND, age_ms), expected, "{age_ms}");
        }
        assert_eq!(judged(Duration::ZERO, 0), Freshness::Check);
    }

    #[test]
    fn the_first_rule_that_fits_decides_and_leaves_the_rest_to_the_registry() {
        let rule = |pattern: &str| TagRule {
            pattern: pattern.parse().unwrap(),
            tag_ttl: None,
            stale_if_error: None,
            immutable: false,
            offline: false,
        };
        let policy = Policy {
            tag_ttl: 10 * SECOND,
            stale_if_error: 100 * SECOND,
            tag_rules: vec![
                TagRule { tag_ttl: Some(SECOND), ..rule("team/app:*") },
                TagRule { immutable: true, stale_if_error: Some(1000 * SECOND), ..rule("v*") },
                TagRule { offline: true, ..rule("*") },
            ],
            ..Policy::default()
        };
        let found = |repository: &str, tag: &str| policy.for_tag(&repository.parse().unwrap(), &tag.parse().unwrap());
        let app = found("team/app", "v1");
        assert_eq!((app.tag_ttl, app.stale_if_error, app.immutable, app.offline), (SECOND, 100 * SECOND, false, false));
        assert_eq!(app.pattern.unwrap().to_string(), "team/app:*");
        let release = found("team/other", "v1");
        assert_eq!((release.tag_ttl, release.stale_if_error), (10 * SECOND, 1000 * SECOND));
        assert!(release.immutable && !release.offline);
        assert!(found("team/other", "latest").offline);
        let plain =
            Policy { tag_rules: Vec::new(), ..policy.clone() }.for_tag(&"a".parse().unwrap(), &"v1".parse().unwrap());
        assert_eq!((plain.tag_ttl, plain.immutable, plain.pattern), (10 * SECOND, false, None));
    }

    #[test]
    fn deny_wins_over_allow() {
        let list = |patterns: &[&str]| patterns.iter().map(|text| text.parse().unwrap()).collect::<Vec<Pattern>>();
        let allows = |allow: &[&str], deny: &[&str], name: &str| {
            let policy = Policy { allow: list(allow), deny: list(deny), ..Policy::default() };
            policy.allows(&name.parse().unwrap())
        };
        assert!(allows(&[], &[], "a/b"));
        assert!(allows(&["a/*"], &[], "a/b") && !allows(&["a/*"], &[], "b/b"));
        assert!(!allows(&[], &["a/*"], "a/b") && allows(&[], &["a/*"], "b/b"));
        assert!(!allows(&["a/*"], &["a/secret"], "a/secret") && allows(&["a/*"], &["a/secret"], "a/b"));
    }
}
