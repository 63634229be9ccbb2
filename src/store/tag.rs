//! How the record of a tag changes: what the upstream says of it, and when.

use crate::oci::Digest;

use super::Past;
use super::TagRecord;
use super::Timestamp;

/// Most past digests kept of one tag; the oldest is forgotten.
const MAX_TAG_HISTORY: usize = 64;

impl TagRecord {
    /// Seen for the first time.
    pub(super) fn new(digest: &Digest, now: Timestamp) -> Self {
        Self { digest: *digest, first_seen: now, checked_at: now, history: Vec::new(), gone_at: None, refused: None }
    }

    /// It still points where it pointed.
    pub(super) fn confirmed(&self, now: Timestamp) -> Self {
        Self { checked_at: now, gone_at: None, refused: None, ..self.clone() }
    }

    /// It points elsewhere.
    pub(super) fn moved_to(&self, digest: &Digest, now: Timestamp) -> Self {
        let mut history = self.history.clone();
        if history.len() >= MAX_TAG_HISTORY {
            history.remove(0);
        }
        history.push(Past { digest: self.digest, first_seen: self.first_seen, last_seen: self.checked_at });
        Self { history, ..Self::new(digest, now) }
    }

    /// The upstream says that it points elsewhere, and that is not followed: it counts as checked all the same.
    pub(super) fn refusing(&self, digest: &Digest, now: Timestamp) -> Self {
        let first_seen =
            self.refused.as_ref().filter(|past| past.digest == *digest).map_or(now, |past| past.first_seen);
        let refused = Some(Past { digest: *digest, first_seen, last_seen: now });
        Self { checked_at: now, gone_at: None, refused, ..self.clone() }
    }

    /// The upstream says that there is no such tag any more.
    pub(super) fn gone(&self, now: Timestamp) -> Self {
        Self { gone_at: Some(now), ..self.clone() }
    }

    /// When the upstream last said anything about it.
    pub(super) fn heard_at(&self) -> Timestamp {
        self.gone_at.map_or(self.checked_at, |gone_at| gone_at.max(self.checked_at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    fn digest(text: &str) -> Digest {
        Digest::of(Algorithm::Sha256, text.as_bytes())
    }

    #[test]
    fn a_life_of_a_tag() {
        let at = Timestamp::from_millis;
        let record = TagRecord::new(&digest("1"), at(1)).confirmed(at(5)).moved_to(&digest("2"), at(9));
        assert_eq!(record.history, [Past { digest: digest("1"), first_seen: at(1), last_seen: at(5) }]);
        let gone = record.gone(at(11));
        assert_eq!((gone.digest, gone.checked_at, gone.heard_at()), (digest("2"), at(9), at(11)));
        let back = gone.moved_to(&digest("1"), at(20));
        assert_eq!((back.gone_at, back.heard_at(), back.history.len()), (None, at(20), 2));
        assert_eq!(back.history[1].last_seen, at(9), "it was last seen before it went");
        let back = gone.confirmed(at(20));
        assert_eq!((back.gone_at, back.first_seen), (None, at(9)));
    }

    #[test]
    fn a_refused_move_keeps_the_digest_and_remembers_the_other() {
        let at = Timestamp::from_millis;
        let record = TagRecord::new(&digest("1"), at(1));
        let refusing = record.refusing(&digest("2"), at(5)).refusing(&digest("2"), at(7));
        assert_eq!((refusing.digest, refusing.checked_at), (digest("1"), at(7)));
        let expected = Past { digest: digest("2"), first_seen: at(5), last_seen: at(7) };
        assert_eq!((refusing.refused.clone(), refusing.history.len()), (Some(expected), 0));
        assert_eq!(refusing.refusing(&digest("3"), at(9)).refused.unwrap().first_seen, at(9));
        assert_eq!(refusing.confirmed(at(9)).refused, None, "it came back to what is known");
    }

    #[test]
    fn the_history_has_a_limit() {
        let at = Timestamp::from_millis;
        let mut record = TagRecord::new(&digest("0"), at(0));
        for turn in 1..=100 {
            record = record.moved_to(&digest(&turn.to_string()), at(turn));
        }
        assert_eq!(record.history.len(), MAX_TAG_HISTORY);
        assert_eq!(record.history.last().unwrap().digest, digest("99"));
    }

    #[test]
    fn older_records_are_read() {
        let digest = digest("1");
        let text = format!(r#"{{"digest":"{digest}","first_seen":1,"checked_at":2}}"#);
        let record: TagRecord = serde_json::from_str(&text).unwrap();
        assert_eq!(
            record,
            TagRecord { checked_at: Timestamp::from_millis(2), ..TagRecord::new(&digest, Timestamp::from_millis(1)) }
        );
        assert!(
            !serde_json::to_string(&record).unwrap().contains("gone_at"),
            "rows of most tags stay as short as they were"
        );
    }
}
