//! Where bytes are kept. An engine makes spools, publishes them under their digest, opens, removes and lists.
//!
//! There is one: a directory. A second one goes beside `fs.rs` and becomes a variant here.

mod fs;
mod layout;
mod spools;

pub(super) use self::fs::{FsEngine as Engine, Listed, SpoolFile};
pub(super) use self::layout::SpoolStem;
pub(super) use self::spools::Parked;
