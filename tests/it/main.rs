//! What Forebay does, seen from outside.
//!
//! Every test starts the real binary with a configuration file of its own, in front of a scripted registry that runs
//! inside the test process and misbehaves when told to. Nothing here looks into the library: only sockets, exit codes,
//! log lines and files a user could see.

// A test that cannot go on should stop at the line that says why.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
// Test data is far below the limits of every integer type it passes through.
#![allow(clippy::cast_possible_truncation)]
// Where files may be touched is a rule about the program; tests write configurations and damage blobs.
#![allow(clippy::disallowed_methods)]

mod support;

mod admin;
mod api;
mod auth;
mod bad_sectors;
mod basics;
mod client_certificates;
mod clients;
mod cold;
mod commands;
mod conditional;
mod damage;
mod deploy;
mod discovery;
mod disk;
mod doctor;
mod errors;
mod eviction;
mod failover;
mod freshness;
mod full_store;
mod grants;
mod guides;
mod lanes;
mod leaks;
mod limits;
mod logins;
mod manager;
mod manifests;
mod multipart;
mod negotiation;
mod offline;
mod outages;
mod parked;
mod pins;
mod quirks;
mod ranges;
mod redirects;
mod reload;
mod resume;
mod routing;
mod rules;
mod server_tls;
mod shutdown;
mod startup;
mod stress;
mod tls;
mod traps;
mod unkept;
mod verify;
