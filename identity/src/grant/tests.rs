//! Tests of grants: what is asked in which order, and what lifetime comes out.

use super::*;
use crate::fixture::{HOUR, NOW, REVIEWS, east, evidence, id, registration, west};
use crate::revocation::{Reason, Revocation, RevocationId, RevocationTarget};

fn ask(registrations: &[Registration], revocations: &Revocations, name: &str) -> Result<Ticket, Refusal> {
    grant(&east(), registrations, revocations, &evidence(), &id(name))
}

fn revoked(name: &str) -> Revocations {
    let mut revocations = Revocations::default();
    revocations.insert(Revocation::new(
        RevocationId { number: 7, origin: east() },
        RevocationTarget::Identity(id(name)),
        Reason::KeyCompromise,
        NOW,
    ));
    revocations
}

#[test]
fn a_registered_workload_gets_a_ticket() {
    let ticket = ask(&[registration(REVIEWS)], &Revocations::default(), REVIEWS).unwrap();
    assert_eq!(ticket.id(), &id(REVIEWS));
    assert_eq!(ticket.lifetime(), DEFAULT_LIFETIME);
}

#[test]
fn every_selector_must_hold_on_the_right_agent() {
    let none = Revocations::default();
    let mut other_user = registration(REVIEWS);
    other_user.selectors = [Selector::Uid(1000), Selector::Gid(5)].into();
    let mut other_agent = registration(REVIEWS);
    other_agent.agent = "host-2".parse().unwrap();
    let mut no_selector = registration(REVIEWS);
    no_selector.selectors.clear();
    let other_name = registration("spiffe://east.example/ns/shop/sa/ratings");
    for unfit in [other_user, other_agent, no_selector, other_name] {
        let refusal = ask(std::slice::from_ref(&unfit), &none, REVIEWS).unwrap_err();
        let expected = Refusal::NotRegistered { id: REVIEWS.to_owned(), agent: "host-1".parse().unwrap() };
        assert_eq!(refusal, expected, "{unfit:?}");
    }
}

#[test]
fn entitled_keeps_the_order_of_registrations() {
    let two = [registration(REVIEWS), registration("spiffe://east.example/ns/shop/sa/ratings")];
    let evidence = evidence();
    let ids: Vec<_> = entitled(&two, &evidence).iter().map(|r| r.id.clone()).collect();
    assert_eq!(ids, [two[0].id.clone(), two[1].id.clone()]);
}

#[test]
fn the_trust_domain_is_asked_first_then_revocations_then_registrations() {
    let foreign = "spiffe://west.example/ns/shop/sa/reviews";
    let refusal = ask(&[], &revoked(foreign), foreign).unwrap_err();
    assert!(matches!(refusal, Refusal::ForeignTrustDomain { .. }), "{refusal:?}");
    let refusal = ask(&[], &revoked(REVIEWS), REVIEWS).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "spiffe://east.example/ns/shop/sa/reviews is revoked by r-7@east.example: key-compromise"
    );
    let refusal = ask(&[registration(REVIEWS)], &revoked(REVIEWS), REVIEWS).unwrap_err();
    assert!(matches!(refusal, Refusal::Revoked { .. }), "{refusal:?}");
}

#[test]
fn lifetimes_are_clamped() {
    for (asked, granted) in [(1, MIN_LIFETIME), (60, Duration::from_secs(60)), (u64::MAX, MAX_LIFETIME)] {
        let registration = Registration { ttl_seconds: asked, ..registration(REVIEWS) };
        let ticket = ask(&[registration], &Revocations::default(), REVIEWS).unwrap();
        assert_eq!(ticket.lifetime(), granted);
    }
}

#[test]
fn registrations_give_no_power_over_the_mesh() {
    for role in ["node", "agent", "admin", "king"] {
        let name = format!("spiffe://east.example/hanse/{role}/x");
        let refusal = ask(&[registration(&name)], &Revocations::default(), &name).unwrap_err();
        assert!(matches!(refusal, Refusal::MemberIdentity { .. }), "{refusal:?}");
    }
    let gateway = "spiffe://east.example/hanse/gateway/gateway-1";
    assert!(ask(&[registration(gateway)], &Revocations::default(), gateway).is_ok());
}

#[test]
fn members_get_tickets_unless_revoked() {
    let none = Revocations::default();
    let node = id("spiffe://east.example/hanse/node/east-1");
    assert_eq!(grant_member(&east(), &none, &node, HOUR).unwrap().lifetime(), HOUR);
    assert_eq!(grant_member(&east(), &none, &node, Duration::ZERO).unwrap().lifetime(), MIN_LIFETIME);
    let refusal = grant_member(&east(), &revoked(&node.to_string()), &node, HOUR).unwrap_err();
    assert!(matches!(refusal, Refusal::Revoked { .. }), "{refusal:?}");
    let refusal = grant_member(&west(), &none, &node, HOUR).unwrap_err();
    assert!(matches!(refusal, Refusal::ForeignTrustDomain { .. }), "{refusal:?}");
    for name in [REVIEWS, "spiffe://east.example/hanse/node/a/b", "spiffe://east.example/hanse/node"] {
        let refusal = grant_member(&east(), &none, &id(name), HOUR).unwrap_err();
        assert_eq!(refusal, Refusal::NotAMember { id: id(name) });
    }
}

#[test]
fn selectors_are_read_as_they_are_written() {
    let sha256 = format!("unix:sha256:{}", "ab".repeat(32));
    for text in ["unix:uid:1000", "unix:gid:0", "unix:path:/usr/bin/a:b", &sha256] {
        assert_eq!(text.parse::<Selector>().unwrap().to_string(), text);
    }
    let upper: Selector = sha256.replace("ab", "AB").parse().unwrap();
    assert_eq!(upper.to_string(), sha256);
    for text in [
        "unix:supplementary-gid:7",
        "unix:user:ann",
        "unix:group:shop-users",
        "unix:supplementary-group:docker",
        "systemd:unit:getty@tty1.service",
        "systemd:unit:docker-4f.scope",
    ] {
        assert_eq!(text.parse::<Selector>().unwrap().to_string(), text);
    }
    let other_spelling: Selector = "unix:supplementary_gid:7".parse().unwrap();
    assert_eq!(other_spelling, Selector::SupplementaryGid(7));
    for text in [
        "",
        "unix:uid:-1",
        "unix:uid:4294967296",
        "unix:uid:x",
        "unix:path:bin",
        "unix:sha256:ab",
        "unix:user:",
        "unix:user:a b",
        "unix:user:a:b",
        "systemd:unit:app",
        "systemd:unit:app.slice",
        "systemd:unit:a/b.service",
        "systemd:unit:.service",
        "docker:label:x",
        "unix:uid",
        "unix",
    ] {
        assert!(text.parse::<Selector>().is_err(), "{text:?}");
    }
}

#[test]
fn a_selector_that_a_newer_version_stored_is_kept_and_gives_nothing() {
    let stored = "{\"id\":\"spiffe://east.example/ns/shop/sa/reviews\",\"agent\":\"host-1\",\
         \"selectors\":[\"tpm:ek:47\",\"unix:uid:1000\"]}";
    let newer: Registration = serde_json::from_str(stored).unwrap();
    assert!(!newer.matches(&evidence()));
    let written = serde_json::to_value(&newer).unwrap();
    assert_eq!(written["selectors"].as_array().unwrap().len(), 2, "it is written as it was read");
    assert!(written.to_string().contains("tpm:ek:47"));
    assert!("tpm:ek:47".parse::<Selector>().is_err(), "and cannot be asked for here");
    let refusal = newer.check(NOW).unwrap_err();
    assert!(matches!(refusal, RegistrationError::UnknownSelector(_)), "{refusal}");
    assert!(ask(&[newer], &Revocations::default(), REVIEWS).is_err());
}

#[test]
fn a_registration_may_hold_on_every_host_and_the_one_for_this_host_counts_first() {
    let everywhere = Registration { agent: AgentScope::Any, ttl_seconds: 60, ..registration(REVIEWS) };
    let here = Registration { ttl_seconds: 600, ..registration(REVIEWS) };
    assert!(everywhere.matches(&evidence()));
    let none = Revocations::default();
    let lifetime = |registrations: &[Registration]| ask(registrations, &none, REVIEWS).unwrap().lifetime();
    assert_eq!(lifetime(std::slice::from_ref(&everywhere)), Duration::from_secs(60));
    for order in [[here.clone(), everywhere.clone()], [everywhere.clone(), here.clone()]] {
        assert_eq!(lifetime(&order), Duration::from_secs(600));
    }
    let written = serde_json::to_value(&everywhere).unwrap();
    assert_eq!(written["agent"], "*");
    assert_eq!(serde_json::from_value::<Registration>(written).unwrap(), everywhere);
    for wrong in ["", "**", "host *"] {
        assert!(wrong.parse::<AgentScope>().is_err(), "{wrong:?}");
    }
}

#[test]
fn a_ticket_ends_with_the_registration_that_holds_longest() {
    let until = |hours: u32| Registration { expires: Some(NOW + HOUR * hours), ..registration(REVIEWS) };
    let none = Revocations::default();
    let end = |registrations: &[Registration]| ask(registrations, &none, REVIEWS).unwrap().not_after();
    assert_eq!(end(&[until(1), until(3), until(2)]), Some(NOW + HOUR * 3));
    assert_eq!(end(&[until(1), registration(REVIEWS)]), None);
}

#[test]
fn what_may_not_be_registered_is_said_with_its_bounds() {
    let good = || registration(REVIEWS);
    assert_eq!(good().check(NOW), Ok(()));
    assert_eq!(Registration { ttl_seconds: 10, ..good() }.check(NOW), Ok(()));
    assert_eq!(Registration { ttl_seconds: 24 * 3600, ..good() }.check(NOW), Ok(()));
    let wrong = |registration: Registration| registration.check(NOW).unwrap_err().to_string();
    assert!(wrong(Registration { selectors: BTreeSet::new(), ..good() }).contains("at least one selector"));
    for ttl_seconds in [1, 9, 24 * 3600 + 1, u64::MAX] {
        let why = wrong(Registration { ttl_seconds, ..good() });
        assert!(why.contains(&ttl_seconds.to_string()) && why.contains("10 s to 24 h"), "{why}");
    }
    assert!(wrong(Registration { expires: Some(NOW), ..good() }).contains("has passed"));
    assert!(wrong(Registration { hint: "x".repeat(1025), ..good() }).contains("1024"));
    assert!(wrong(Registration { hint: "a\nb".to_owned(), ..good() }).contains("control character"));
    let itself = Registration { federates_with: [east()].into(), ..good() };
    assert!(wrong(itself).contains("own trust domain"));
    let many = (0..65).map(|n| format!("td-{n}.example").parse().unwrap()).collect();
    assert!(wrong(Registration { federates_with: many, ..good() }).contains("at most 64"));
}
