//! Where bytes are kept. An engine makes spools, publishes them under their digest, opens, removes and lists.
//!
//! There is one: a directory. A second one goes beside `fs.rs` and becomes a variant here.

mod audit;
mod check;
mod fs;
mod layout;
mod quarantine;
mod records;
mod seal;
mod spools;

pub(super) use self::audit::Audit;
pub(super) use self::check::{Check, check};
pub(super) use self::fs::{FsEngine as Engine, Listed, SpoolFile};
pub(super) use self::layout::SpoolStem;
pub(super) use self::quarantine::{Removal, limit_bytes as quarantine_limit_bytes};
pub(super) use self::records::Records;
pub(super) use self::seal::Condition;
pub(super) use self::spools::Parked;
