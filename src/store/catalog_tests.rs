//! What the catalog keeps and forgets.

use super::catalog::Catalog;
use super::catalog::Fact;
use super::*;
use crate::oci::Algorithm;
use std::collections::HashSet;

fn repository(text: &str) -> Repository {
    let (registry, name) = text.split_once('/').unwrap();
    Repository { registry: registry.parse().unwrap(), name: name.parse().unwrap() }
}

fn digest(text: &str) -> Digest {
    Digest::of(Algorithm::Sha256, text.as_bytes())
}

fn learn_all(catalog: &Catalog, digest: &Digest, repository: &Repository, proof: &Proof) {
    for fact in Catalog::facts(repository, proof, Timestamp::from_millis(7)) {
        catalog.learn(digest, &fact);
    }
}

#[test]
fn a_grant_is_for_one_repository() {
    let (catalog, blob) = (Catalog::new(), digest("x"));
    let (mine, other) = (repository("a.io/x"), repository("a.io/y"));
    assert_eq!(catalog.standing(&mine, &blob), Standing::Absent);
    catalog.insert(&blob, 1, Timestamp::now(), &[]);
    learn_all(&catalog, &blob, &mine, &Proof::Content { account: Some("me".into()) });
    assert_eq!(catalog.standing(&mine, &blob), Standing::Granted);
    assert_eq!(catalog.standing(&other, &blob), Standing::Ungranted);
    assert!(catalog.is_opened_by(&blob, &mine.registry, Some("me")));
    assert!(!catalog.is_opened_by(&blob, &mine.registry, Some("you")));
    assert!(!catalog.is_opened_by(&blob, &mine.registry, None));
    assert!(!catalog.is_opened_by(&blob, &repository("b.io/x").registry, Some("me")));
    learn_all(&catalog, &blob, &other, &Proof::Content { account: None });
    assert!(catalog.is_opened_by(&blob, &repository("b.io/x").registry, None), "public now");
    assert!(catalog.purge_grant(&blob, &mine) && !catalog.purge_grant(&blob, &mine));
    assert_eq!(catalog.standing(&mine, &blob), Standing::Ungranted);
    assert_eq!(catalog.standing(&other, &blob), Standing::Granted, "the others keep theirs");
}

#[test]
fn a_right_to_private_content_can_be_taken_back() {
    let (catalog, mine, other) = (Catalog::new(), repository("a.io/x"), repository("a.io/y"));
    let (secret, public) = (digest("secret"), digest("public"));
    for blob in [&secret, &public] {
        catalog.insert(blob, 1, Timestamp::now(), &[]);
    }
    let account = Proof::Content { account: Some("me".into()) };
    learn_all(&catalog, &secret, &mine, &account);
    learn_all(&catalog, &secret, &other, &account);
    learn_all(&catalog, &public, &mine, &Proof::Content { account: None });
    let confirmed_at = Some(Timestamp::from_millis(7));
    assert_eq!(catalog.grant(&mine, &secret), Some(Grant { is_public: false, confirmed_at }));
    assert_eq!(catalog.grant(&mine, &public), Some(Grant { is_public: true, confirmed_at: None }));
    assert!(catalog.learn(&secret, &Fact::Confirmed(mine.clone(), Timestamp::from_millis(9))));
    assert!(!catalog.learn(&secret, &Fact::Confirmed(mine.clone(), Timestamp::from_millis(8))), "older");
    assert_eq!(catalog.grant(&mine, &secret).unwrap().confirmed_at, Some(Timestamp::from_millis(9)));
    assert_eq!(catalog.revoke_all(&mine), [secret], "public content stays open");
    assert!(!catalog.revoke(&mine, &secret) && !catalog.revoke(&mine, &public));
    assert_eq!(catalog.grant(&mine, &secret), None);
    assert!(!catalog.learn(&secret, &Fact::Confirmed(mine.clone(), Timestamp::now())), "a right is not made by it");
    assert_eq!(catalog.standing(&other, &secret), Standing::Granted, "its own right");
    assert!(catalog.revoke(&other, &secret) && catalog.grant(&other, &secret).is_none());
}

#[test]
fn rights_go_with_the_content() {
    let (catalog, blob, mine) = (Catalog::new(), digest("x"), repository("a.io/x"));
    catalog.insert(&blob, 1, Timestamp::now(), &[]);
    learn_all(&catalog, &blob, &mine, &Proof::Content { account: None });
    assert_eq!(catalog.remove(&blob).map(|(size_bytes, _)| size_bytes), Some(1));
    catalog.insert(&blob, 1, Timestamp::now(), &[]);
    assert_eq!(catalog.standing(&mine, &blob), Standing::Ungranted);
    assert!(!catalog.is_opened_by(&blob, &mine.registry, None));
}

#[test]
fn the_oldest_use_goes_first() {
    let catalog = Catalog::new();
    for (name, at) in [("new", 30), ("old", 10), ("middle", 20)] {
        catalog.insert(&digest(name), 100, Timestamp::from_millis(at), &[]);
    }
    let nothing = HashSet::new();
    assert_eq!(catalog.least_recently_used(150, &nothing), [digest("old"), digest("middle")]);
    assert_eq!(catalog.least_recently_used(150, &HashSet::from([digest("old")])), [digest("middle"), digest("new")]);
    catalog.touch(&digest("old"), Timestamp::from_millis(40));
    assert_eq!(catalog.least_recently_used(1, &nothing), [digest("middle")]);
    assert_eq!((catalog.blobs(), catalog.stored_bytes()), (3, 300));
}

#[test]
fn tags_keep_their_history() {
    let (catalog, repository, tag) = (Catalog::new(), repository("a.io/x"), "latest".parse().unwrap());
    let at = Timestamp::from_millis;
    assert_eq!(catalog.point_tag(&repository, &tag, &digest("1"), at(1)).1, Moved::New);
    assert_eq!(catalog.point_tag(&repository, &tag, &digest("1"), at(5)).1, Moved::Unchanged);
    let (record, moved) = catalog.point_tag(&repository, &tag, &digest("2"), at(9));
    assert_eq!(moved, Moved::From(digest("1")));
    assert_eq!(record.history, [Past { digest: digest("1"), first_seen: at(1), last_seen: at(5) }]);
    assert!(catalog.forget_tag(&repository, &tag) && catalog.tag(&repository, &tag).is_none());
}
