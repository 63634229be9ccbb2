//! Forebay: a content-addressable pull-through caching proxy for container registries.
//!
//! A request goes down through the layers once, and its value comes back up once:
//!
//! ```text
//! serve ─ registry ─ pull ─┬─ store      files, index, room
//!                          └─ upstream   registries, tokens, redirects
//!      └─ access    who asks, and what they may read
//!            oci, metrics, piece below all of them
//! ```
//!
//! | layer | is the only place with |
//! |---|---|
//! | [`serve`] | listening sockets |
//! | [`registry`] | the distribution API: routes, status codes, registry error codes |
//! | [`access`] | passwords, tokens and names of clients, and their rules |
//! | [`pull`] | decisions: serve, join or lead; freshness; grants |
//! | [`upstream`] | the HTTP client, credentials |
//! | [`store`] | files and sled |
//! | [`oci`] | the grammar of digests, names, references, ranges, manifests |
//! | [`piece`] | what passes through from files to sockets |
//! | [`admin`] | health and metrics, on a thread of its own |
//! | [`manager`] | the service manager: sockets that it hands over, how the process stands |
//! | [`app`] | all of the above at once |
//!
//! What always holds: content is visible only after its digest was proven ([`oci::Verified`] can be made no other way);
//! one upstream download for each digest in flight; a repository gets only what it was granted; a manifest's bytes are
//! never changed; nothing that a hit needs waits for the index; every queue, body and wait has a named limit.
//!
//! What is deliberately absent: pushing, compression, conversion of manifests, a database server, a control plane.
//! `tests/layers.rs` fails the build on an import that is not in its table.

pub mod access;
pub mod admin;
pub mod app;
pub mod cli;
pub mod config;
pub mod manager;
pub mod metrics;
pub mod oci;
pub mod piece;
pub mod pull;
pub mod registry;
pub mod serve;
pub mod store;
pub mod telemetry;
pub mod upstream;
