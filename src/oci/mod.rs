//! Ground layer: the values of the OCI distribution and image specifications.
//!
//! What it is for: turning text from clients, registries and operators into values that cannot be wrong, so that nothing
//! above checks them again. Each type has one validating constructor.
//!
//! What it promises: no I/O, no clock, no async; every parser has a length limit and refuses what the grammar refuses.
//! A [`Verified`] can only be made by comparing a finished hash with the wanted [`Digest`].
//!
//! What it must never know: files, sockets, HTTP types, configuration, any other layer.

mod digest;
mod image_name;
mod manifest;
mod media_type;
mod name;
mod outline;
mod pattern;
mod range;
mod reference;
mod referrers;

pub use self::digest::{Algorithm, Digest, Hasher, InvalidDigest, Mismatch, Verified};
pub use self::image_name::{ImageName, InvalidImageName};
pub use self::manifest::{Children, InvalidManifest, MAX_MANIFEST_BYTES, inspect};
pub use self::media_type::{InvalidMediaType, MANIFEST_ACCEPT, MediaType};
pub use self::name::{InvalidName, Registry, Repository, RepositoryName};
pub use self::outline::{InvalidPlatform, Member, Outline, Platform, outline, platform_of};
pub use self::pattern::{InvalidPattern, Pattern, TagPattern, fits};
pub use self::range::{ByteRange, ContentRange, RangeHeader, Selection};
pub use self::reference::{InvalidTag, Reference, Tag};
pub use self::referrers::filter_referrers;
