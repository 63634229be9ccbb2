//! What the store survives: kills, power cuts, damage. Through its own interface, in processes that can be killed.
//!
//! `FOREBAY_KILL_ROUNDS`, `FOREBAY_POWER_ROUNDS` and `FOREBAY_DAMAGE_ROUNDS` set how often; the defaults are a few seconds.

// A test that cannot go on should stop at the line that says why.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::cast_possible_truncation)]
// Where files may be touched is a rule about the program; tests look at them and damage them.
#![allow(clippy::disallowed_methods)]

mod damage;
mod kill;
mod model;
mod power;
mod random;
mod worker;

/// How many rounds a test runs: what the environment says, or a few.
fn rounds(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Numbers that look random and come again for the same seed.
#[derive(Clone, Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}
