//! Passwords, known by their bcrypt hashes only.
//!
//! Engines send the password with each request, and bcrypt is slow on purpose. So the last right password of each user is
//! remembered, and a number of wrong guesses, all as hashes with a random key. Guesses cannot push a right one out, and a
//! change of its line forgets it.
//!
//! A wrong password takes as long as the most expensive line of the file, whatever line it is for, or none: time does not
//! tell who is in the file.

use std::collections::HashMap;
use std::hint::black_box;
use std::str::FromStr as _;
use std::sync::Mutex;
use std::sync::PoisonError;

use bcrypt::HashParts;
use moka::sync::Cache;
use sha2::Digest as _;
use sha2::Sha256;
use subtle::ConstantTimeEq as _;

use super::line::BadLine;
use super::line::lines;

/// Highest cost of a line: one more doubles the time of a check, and this one takes about a second.
const MAX_COST: u32 = 14;
/// Lowest cost: bcrypt has none below.
const MIN_COST: u32 = 4;
/// Most wrong guesses that are remembered.
const MAX_WRONG: u64 = 1024;
/// What an unknown name is checked against when the file is empty.
const DEFAULT_COST: u32 = 10;

/// A hash with our own key: tells passwords apart and nothing else.
type Print = [u8; 32];

/// The users of a file.
pub(super) struct Passwords {
    users: HashMap<String, User>,
    /// The highest cost of all lines.
    cost: u32,
    key: [u8; 32],
    wrong: Cache<Print, ()>,
}

struct User {
    hash: String,
    cost: u32,
    right: Mutex<Option<Print>>,
}

/// What is known of a password without checking it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    Right,
    Wrong,
    /// It has to be checked.
    Not,
}

impl Passwords {
    /// Reads lines as `htpasswd -B` writes them; no other hashes than bcrypt's.
    pub(super) fn parse(text: &[u8], key: [u8; 32]) -> Result<Self, BadLine> {
        let mut users = HashMap::new();
        for line in lines(text)? {
            let cost = cost_of(line.proof).map_err(|problem| line.refuse(problem))?;
            let user = User { hash: line.proof.to_owned(), cost, right: Mutex::new(None) };
            if users.insert(line.name.as_str().to_owned(), user).is_some() {
                return Err(line.refuse("this name is in the file already"));
            }
        }
        let cost = users.values().map(|user| user.cost).max().unwrap_or(DEFAULT_COST);
        Ok(Self { users, cost, key, wrong: Cache::new(MAX_WRONG) })
    }

    /// Takes over the right passwords of lines that have not changed.
    pub(super) fn inherit(mut self, before: &Self) -> Self {
        self.key = before.key;
        for (name, user) in &self.users {
            let same = before.users.get(name).filter(|known| known.hash == user.hash);
            if let Some(print) = same.and_then(User::right) {
                user.remember(print);
            }
        }
        self
    }

    /// What earlier checks have told.
    pub(super) fn recall(&self, name: &str, password: &[u8]) -> Known {
        let print = self.print(name, password);
        let right = self.users.get(name).and_then(User::right);
        if right.is_some_and(|right| bool::from(right.ct_eq(&print))) {
            return Known::Right;
        }
        if self.wrong.contains_key(&print) { Known::Wrong } else { Known::Not }
    }

    /// Whether it is this user's password. Takes its time, and all of a processor.
    pub(super) fn check(&self, name: &str, password: &[u8]) -> bool {
        let user = self.users.get(name);
        let decoy = decoy(self.cost);
        let (hash, cost) = user.map_or((decoy.as_str(), self.cost), |user| (&user.hash, user.cost));
        let fits = bcrypt::verify(password, hash).unwrap_or(false);
        let print = self.print(name, password);
        if let (Some(user), true) = (user, fits) {
            user.remember(print);
            return true;
        }
        for cost in costs_to_add(cost, self.cost) {
            let _ = black_box(bcrypt::verify(password, &self::decoy(cost)));
        }
        self.wrong.insert(print, ());
        false
    }

    fn print(&self, name: &str, password: &[u8]) -> Print {
        // The length keeps two pairs apart that read the same in a row.
        let hasher = Sha256::new().chain_update(self.key).chain_update(name.len().to_le_bytes());
        hasher.chain_update(name).chain_update(password).finalize().into()
    }
}

impl User {
    fn right(&self) -> Option<Print> {
        *self.right.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, print: Print) {
        *self.right.lock().unwrap_or_else(PoisonError::into_inner) = Some(print);
    }
}

/// The checks that make up for one that was cheaper than the most expensive: each takes twice as long as the one before, so
/// together they take what is missing.
fn costs_to_add(cost: u32, highest: u32) -> std::ops::Range<u32> {
    cost..highest
}

/// A hash that no password has.
fn decoy(cost: u32) -> String {
    format!("$2b${cost:02}${}", ".".repeat(53))
}

/// What a check costs; else what is wrong with the hash.
fn cost_of(hash: &str) -> Result<u32, String> {
    let advice = "only bcrypt is accepted; `htpasswd -B` makes such lines";
    if !["$2y$", "$2b$", "$2a$"].iter().any(|start| hash.starts_with(start)) {
        let kind = match hash {
            _ if hash.starts_with("$apr1$") || hash.starts_with("$1$") => "this is an MD5 hash",
            _ if hash.starts_with("{SHA") || hash.starts_with("{SSHA") => "this is an SHA-1 hash",
            _ if hash.starts_with("$5$") || hash.starts_with("$6$") => "this is a SHA-2 crypt hash",
            _ if hash.starts_with("$2x$") => "this is a hash of a bcrypt with a known fault",
            _ => "this is no bcrypt hash",
        };
        return Err(format!("{kind}: {advice}"));
    }
    let cost = HashParts::from_str(hash).map_err(|_| format!("this is a damaged bcrypt hash: {advice}"))?.get_cost();
    if (MIN_COST..=MAX_COST).contains(&cost) {
        return Ok(cost);
    }
    Err(format!("its cost is {cost}; use one from {MIN_COST} to {MAX_COST}: `htpasswd -B -C 10`"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEY: [u8; 32] = [7; 32];

    fn line(name: &str, password: &str, cost: u32) -> String {
        format!("{name}:{}\n", bcrypt::hash(password, cost).unwrap())
    }

    fn read(text: &str) -> Result<Passwords, BadLine> {
        Passwords::parse(text.as_bytes(), KEY)
    }

    #[test]
    fn as_htpasswd_writes_them() {
        // htpasswd -nbB -C 5 ann correct-horse
        let written = read("ann:$2y$05$o4nJW3iIdHD8GkmqLjy2veyvTrbu6xjpMkOdBVfe8PbmAsmBivOEm\n").unwrap();
        assert!(written.check("ann", b"correct-horse") && !written.check("ann", b"correct-house"));
        let passwords = read(&line("ann", "pä:ss %C3", 4).replace("$2b$", "$2y$")).unwrap();
        assert!(passwords.check("ann", "pä:ss %C3".as_bytes()));
        assert!(!passwords.check("ann", b"pa:ss %C3") && !passwords.check("Ann", "pä:ss %C3".as_bytes()));
        assert!(!passwords.check("ann", b""));
    }

    #[test]
    fn verdicts_are_remembered_for_the_name_and_password() {
        let passwords = read(&(line("ann", "right", 4) + &line("bob", "other", 4))).unwrap();
        assert_eq!(passwords.recall("ann", b"right"), Known::Not);
        assert!(passwords.check("ann", b"right"));
        assert_eq!(passwords.recall("ann", b"right"), Known::Right);
        assert_eq!(passwords.recall("bob", b"right"), Known::Not);
        assert_eq!(passwords.recall("annr", b"ight"), Known::Not);
        assert!(!passwords.check("ann", b"wrong") && !passwords.check("eve", b"wrong"));
        assert_eq!(passwords.recall("ann", b"wrong"), Known::Wrong);
        assert_eq!(passwords.recall("eve", b"wrong"), Known::Wrong);
        assert_eq!(passwords.recall("ann", b"right"), Known::Right);
    }

    #[test]
    fn guesses_push_no_right_password_out() {
        let passwords = read(&line("ann", "right", 4)).unwrap();
        assert!(passwords.check("ann", b"right"));
        for guess in 0..3 * MAX_WRONG {
            passwords.wrong.insert(passwords.print("ann", &guess.to_le_bytes()), ());
        }
        passwords.wrong.run_pending_tasks();
        assert!(passwords.wrong.entry_count() <= MAX_WRONG);
        assert_eq!(passwords.recall("ann", b"right"), Known::Right);
    }

    #[test]
    fn unchanged_lines_stay_known() {
        let (ann, bob) = (line("ann", "a", 4), line("bob", "b", 4));
        let before = read(&format!("{ann}{bob}")).unwrap();
        assert!(before.check("ann", b"a") && before.check("bob", b"b") && !before.check("eve", b"e"));
        let after = Passwords::parse((ann + &line("bob", "b", 4) + &line("eve", "e", 4)).as_bytes(), [8; 32]).unwrap();
        let after = after.inherit(&before);
        assert_eq!(after.recall("ann", b"a"), Known::Right);
        assert_eq!(after.recall("ann", b"b"), Known::Not);
        assert_eq!(after.recall("bob", b"b"), Known::Not, "its line is another");
        assert_eq!(after.recall("eve", b"e"), Known::Not);
        assert!(after.check("eve", b"e"));
    }

    #[test]
    fn a_wrong_password_costs_the_same_for_every_name() {
        let work = |costs: &mut dyn Iterator<Item = u32>| costs.map(|cost| 1u64 << cost).sum::<u64>();
        for own in MIN_COST..=MAX_COST {
            let mut costs = std::iter::once(own).chain(costs_to_add(own, MAX_COST));
            assert_eq!(work(&mut costs), 1 << MAX_COST, "{own}");
        }
        let passwords = read(&(line("ann", "a", 4) + &line("bob", "b", 6))).unwrap();
        assert_eq!(passwords.cost, 6);
        assert_eq!(cost_of(&decoy(passwords.cost)), Ok(6), "an unknown name is checked all the same");
    }

    #[test]
    fn other_hashes_are_refused_by_line() {
        let bcrypt = line("ok", "p", 4);
        for (hash, said) in [
            ("$apr1$lZL6V/ci$eIMz/iKDkbtys/uU7LEK00", "an MD5 hash"),
            ("{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=", "an SHA-1 hash"),
            ("$6$salt$hash", "a SHA-2 crypt hash"),
            ("$2x$05$abcdefghijklmnopqrstuu5s2v8.iXieOjg/.AySBTTZIIVFJeBui", "known fault"),
            ("rqXexS6ZhobKA", "no bcrypt hash"),
            ("hunter2", "no bcrypt hash"),
            ("", "no bcrypt hash"),
            ("$2y$05$short", "damaged"),
            ("$2y$05$abcdefghijklmnopqrstuu5s2v8.iXieOjg/.AySBTTZIIVFJeBuié", "damaged"),
            ("$2y$31$abcdefghijklmnopqrstuu5s2v8.iXieOjg/.AySBTTZIIVFJeBui", "its cost is 31"),
            ("$2y$03$abcdefghijklmnopqrstuu5s2v8.iXieOjg/.AySBTTZIIVFJeBui", "its cost is 3"),
        ] {
            let error = read(&format!("{bcrypt}\nbad:{hash}\n")).err().unwrap();
            let text = error.to_string();
            assert!(text.starts_with("line 3: ") && text.contains(said), "{hash}: {text}");
            assert!(hash.len() < 5 || !text.contains(&hash[4..]), "{text}");
        }
        let twice = read(&(line("ann", "a", 4) + &line("ann", "b", 4))).err().unwrap();
        assert_eq!(twice.to_string(), "line 2: this name is in the file already");
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "(a:\\$2[aby]\\$0[4-6]\\$[./A-Za-z0-9é]{50,54}\n?){0,3}", password in proptest::collection::vec(any::<u8>(), 0..100)) {
            if let Ok(passwords) = read(&text) {
                prop_assert_eq!(passwords.recall("a", &password), Known::Not);
            }
            let _ = cost_of(&text);
        }
    }
}
