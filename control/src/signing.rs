//! Which of its authorities a node signs with, and which it makes, publishes, opens and forgets: decided by the committed
//! bundle, from what the node holds. Pure; `io/authorities` does it.

use hanse_identity::{AuthorityCertificate, AuthorityState, Bundle, KeyId};

/// An authority whose private key the node holds, by the key that signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldKey {
    pub key: KeyId,
    /// Made by this process for the rotation that runs: not in the bundle before it is published.
    pub fresh: bool,
    /// Below a root of the user's own house there is one for ever, and the bundle does not have it.
    pub below_a_root: bool,
}

/// The next thing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Rest,
    Make,
    Publish(KeyId),
    /// Its key is in the store: the node ended after it was published, and before the node had heard of that.
    Open(KeyId),
    Forget(KeyId),
}

/// The one that comes last in the bundle of those that are in such a state there.
pub fn choose(held: &[HeldKey], bundle: &Bundle, fits: impl Fn(AuthorityState) -> bool) -> Option<KeyId> {
    if let Some(below) = held.iter().find(|h| h.below_a_root) {
        return Some(below.key);
    }
    let held = |a: &&AuthorityCertificate| held.iter().any(|h| h.key == a.key_id);
    bundle.authorities.iter().rev().filter(|a| fits(a.state)).find(held).map(|a| a.key_id)
}

/// What signs for others: the newest of the node's that the bundle says is active.
pub fn signing(held: &[HeldKey], bundle: &Bundle) -> Option<KeyId> {
    choose(held, bundle, |state| state == AuthorityState::Active)
}

/// What is to be done. `closed` are the keys in the node's store that it has not opened, `wanted` says whether a rotation
/// waits for its next authority.
pub fn step(held: &[HeldKey], closed: &[KeyId], bundle: &Bundle, wanted: bool) -> Step {
    let published = |key: &KeyId| bundle.authorities.iter().find(|a| a.key_id == *key);
    if let Some(key) = closed.iter().find(|key| published(key).is_some_and(AuthorityCertificate::is_trusted))
    {
        return Step::Open(*key);
    }
    for h in held.iter().filter(|h| !h.below_a_root) {
        match published(&h.key) {
            None if h.fresh && wanted => return Step::Publish(h.key),
            // The last key is never given up, whatever the bundle says.
            None if held.len() > 1 => return Step::Forget(h.key),
            Some(a) if a.state == AuthorityState::Retired && held.len() > 1 => return Step::Forget(h.key),
            _ => {}
        }
    }
    if wanted { Step::Make } else { Step::Rest }
}

#[cfg(test)]
mod tests {
    use AuthorityState::{Active, Prepared, Retired, Tainted};
    use hanse_identity::Timestamp;

    use super::*;

    const OLD: HeldKey = HeldKey { key: KeyId([1; 32]), fresh: false, below_a_root: false };
    const NEW: HeldKey = HeldKey { key: KeyId([2; 32]), fresh: true, below_a_root: false };

    fn bundle(entries: &[(HeldKey, AuthorityState)]) -> Bundle {
        let entry = |(held, state): &(HeldKey, AuthorityState)| AuthorityCertificate {
            der: vec![held.key.0[0]],
            key_id: held.key,
            subject: format!("CN=east-1 {}", held.key),
            not_after: Timestamp(u64::MAX),
            state: *state,
        };
        Bundle::new("east.example".parse().unwrap(), 1, entries.iter().map(entry).collect())
    }

    #[test]
    fn one_is_made_and_published_when_a_rotation_wants_it() {
        let alone = bundle(&[(OLD, Active)]);
        assert_eq!(step(&[OLD], &[], &alone, false), Step::Rest);
        assert_eq!(step(&[OLD], &[], &alone, true), Step::Make);
        assert_eq!(step(&[OLD, NEW], &[], &alone, true), Step::Publish(NEW.key));
        assert_eq!(step(&[OLD, NEW], &[], &bundle(&[(OLD, Active), (NEW, Prepared)]), false), Step::Rest);
    }

    #[test]
    fn what_is_no_more_in_the_bundle_is_forgotten_but_never_the_last() {
        let keys = [OLD, NEW];
        assert_eq!(step(&keys, &[], &bundle(&[(NEW, Active)]), false), Step::Forget(OLD.key));
        assert_eq!(step(&keys, &[], &bundle(&[(OLD, Retired), (NEW, Active)]), false), Step::Forget(OLD.key));
        // Taken back before it was ever used.
        assert_eq!(step(&keys, &[], &bundle(&[(OLD, Active)]), false), Step::Forget(NEW.key));
        assert_eq!(step(&keys[..1], &[], &bundle(&[(NEW, Active)]), false), Step::Rest);
    }

    #[test]
    fn the_newest_active_one_signs_and_nothing_else() {
        let signs = |entries: &[(HeldKey, AuthorityState)]| signing(&[OLD, NEW], &bundle(entries));
        assert_eq!(signs(&[(OLD, Active), (NEW, Prepared)]), Some(OLD.key));
        assert_eq!(signs(&[(OLD, Active), (NEW, Active)]), Some(NEW.key));
        assert_eq!(signs(&[(OLD, Tainted), (NEW, Active)]), Some(NEW.key));
        assert_eq!(signs(&[(OLD, Active), (NEW, Tainted)]), Some(OLD.key), "taken back");
        assert_eq!(signs(&[(OLD, Tainted), (NEW, Prepared)]), None);
    }

    #[test]
    fn one_that_was_published_just_before_the_node_ended_is_opened_when_that_is_heard() {
        let there = bundle(&[(OLD, Active), (NEW, Prepared)]);
        assert_eq!(step(&[OLD], &[NEW.key], &there, false), Step::Open(NEW.key));
        // Of one that never was published nothing is known, and nothing is done with it.
        assert_eq!(step(&[OLD], &[NEW.key], &bundle(&[(OLD, Active)]), false), Step::Rest);
        assert_eq!(step(&[OLD], &[NEW.key], &bundle(&[(OLD, Active), (NEW, Retired)]), false), Step::Rest);
    }
}
