//! One change of what is known: what the journal keeps, and a start replays.

use std::sync::Arc;

use crate::oci::Digest;
use crate::oci::Repository;
use crate::oci::Tag;

use super::Timestamp;
use super::rights::Fact;
use super::tags::TagRecord;

#[derive(Clone, Debug)]
pub(super) enum Change {
    /// Content was published: its length, and when.
    Content(Digest, u64, Timestamp),
    /// Content goes, and all that was known of it.
    Forget(Digest),
    /// Something about content is known now.
    Fact(Digest, Fact),
    /// A repository may not serve content any more.
    Revoke(Digest, Repository),
    /// A tag points elsewhere, or is gone.
    Tag(Repository, Tag, Option<Arc<TagRecord>>),
    /// A tag still points where it pointed.
    Checked(Repository, Tag, Digest, Timestamp),
}
