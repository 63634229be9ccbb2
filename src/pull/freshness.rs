//! Whether a tag's record may be served as it stands: a pure function of record, policy and time.

use std::time::Duration;

use crate::store::TagRecord;
use crate::store::Timestamp;

/// How fresh a registry's tags are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// A tag checked this long ago is served without asking.
    pub tag_ttl: Duration,
    /// A tag checked this long ago is still served when the upstream cannot be asked.
    pub stale_if_error: Duration,
    /// A tag that the upstream does not have is not asked for again that long.
    pub not_found_ttl: Duration,
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

pub(super) fn judge(record: &TagRecord, policy: &Policy, now: Timestamp) -> Freshness {
    // A record from the future means that the clock was set back: it is checked, not trusted.
    if record.checked_at > now {
        return Freshness::Check;
    }
    let age = now.since(record.checked_at);
    if age < policy.tag_ttl {
        Freshness::Fresh
    } else if age < policy.stale_if_error {
        Freshness::Check
    } else {
        Freshness::Unusable
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;
    use crate::oci::Digest;

    #[test]
    fn judges_by_age() {
        let policy = Policy {
            tag_ttl: Duration::from_secs(10),
            stale_if_error: Duration::from_secs(100),
            not_found_ttl: Duration::ZERO,
        };
        let now = Timestamp::from_millis(1_000_000);
        let judged = |age_ms: i64| {
            let checked_at = Timestamp::from_millis(1_000_000_u64.saturating_add_signed(-age_ms));
            let digest = Digest::of(Algorithm::Sha256, b"");
            let record = TagRecord {
                digest,
                first_seen: checked_at,
                checked_at,
                history: Vec::new(),
                gone_at: None,
                refused: None,
            };
            judge(&record, &policy, now)
        };
        for (age_ms, expected) in [
            (0, Freshness::Fresh),
            (9_999, Freshness::Fresh),
            (10_000, Freshness::Check),
            (99_999, Freshness::Check),
            (100_000, Freshness::Unusable),
            (-1, Freshness::Check),
        ] {
            assert_eq!(judged(age_ms), expected, "{age_ms}");
        }
        let never = Policy { tag_ttl: Duration::ZERO, ..policy };
        let digest = Digest::of(Algorithm::Sha256, b"");
        let record =
            TagRecord { digest, first_seen: now, checked_at: now, history: Vec::new(), gone_at: None, refused: None };
        assert_eq!(judge(&record, &never, now), Freshness::Check);
    }
}
