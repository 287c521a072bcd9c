//! Given a state and a caller: which secrets.

use hanse_identity::{Registration, RevocationTarget};

use super::*;
use crate::fixture::{
    RATINGS, REVIEWS, agent, authority, bundle, caller, east, evidence, id, registration, revocation, state,
    svid, west,
};

fn reviews() -> Registration {
    registration(REVIEWS, [Selector::Uid(1000), Selector::Path("/usr/bin/reviews".to_owned())])
}

fn read(any: Any) -> Secret {
    Secret::decode(&any.value[..]).unwrap()
}

fn bytes(source: &Option<DataSource>) -> String {
    match source.as_ref().unwrap().specifier.as_ref().unwrap() {
        data_source::Specifier::InlineBytes(bytes) => String::from_utf8(bytes.clone()).unwrap(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_process_without_registration_gets_nothing() {
    let east_1 = authority(&east());
    let other = registration(REVIEWS, [Selector::Uid(1001)]);
    let state = state(vec![other], vec![bundle(&[&east_1])]);
    let denied = Standing::of(&state, &east(), &evidence(&caller())).unwrap_err();
    let text = denied.to_string();
    assert!(matches!(denied, Denial::NotRegistered { .. }));
    assert!(
        text.contains("host-1") && text.contains("unix:uid:1000") && text.contains("/usr/bin/reviews"),
        "{text}"
    );
}

#[test]
fn a_registration_of_another_agent_or_trust_domain_counts_for_nothing() {
    let mut elsewhere = reviews();
    elsewhere.agent = "host-2".parse().unwrap();
    let foreign = registration("spiffe://west.example/ns/shop/sa/reviews", [Selector::Uid(1000)]);
    let state = state(vec![elsewhere, foreign], vec![bundle(&[&authority(&east())])]);
    assert!(Standing::of(&state, &east(), &evidence(&caller())).is_err());
    assert_eq!(agent().as_str(), "host-1");
}

#[test]
fn a_digest_is_asked_for_only_where_it_decides() {
    let (path, digest) = (Selector::Path("/usr/bin/reviews".to_owned()), Selector::Sha256("00".repeat(32)));
    let decides = |registrations: Vec<Registration>| {
        digest_decides(&state(registrations, vec![]), &evidence(&caller()))
    };
    let with_digest = |uid| {
        registration(
            REVIEWS,
            [Selector::Uid(uid), Selector::Path("/usr/bin/reviews".to_owned()), digest.clone()],
        )
    };
    assert!(!decides(vec![]));
    assert!(!decides(vec![reviews()]), "no registration names one");
    assert!(!decides(vec![with_digest(1001)]), "it is another user's");
    assert!(decides(vec![with_digest(1001), with_digest(1000)]));
    assert!(decides(vec![registration(REVIEWS, [digest.clone()])]));
    let elsewhere = Registration { agent: "host-2".parse().unwrap(), ..with_digest(1000) };
    assert!(!decides(vec![elsewhere]));
    let known = Evidence { agent: agent(), selectors: [path, digest.clone()].into() };
    assert!(!digest_decides(&state(vec![with_digest(1000)], vec![]), &known), "it has been read");
}

#[test]
fn names_lead_to_their_secrets() {
    let (east_1, west_1) = (authority(&east()), authority(&west()));
    let state = state(vec![reviews(), reviews()], vec![bundle(&[&east_1]), bundle(&[&west_1])]);
    let own = east();
    let standing = Standing::of(&state, &own, &evidence(&caller())).unwrap();
    assert_eq!(standing.identities(), [&id(REVIEWS)]);

    let svid = svid(&east_1, REVIEWS);
    let held = Held::from([(id(REVIEWS), &svid)]);
    let secret = |name: &str| {
        let wanted = standing.read_name(name).unwrap();
        read(standing.secret(name, &wanted, &held).unwrap().unwrap())
    };
    for name in ["default", REVIEWS] {
        let secret = secret(name);
        assert_eq!(secret.name, name);
        let Some(secret::Type::TlsCertificate(certificate)) = secret.r#type else { panic!("{name}") };
        assert_eq!(bytes(&certificate.certificate_chain), svid.chain_pem());
        assert_eq!(bytes(&certificate.private_key), *svid.key_pem());
    }
    for (name, authority) in
        [("ROOTCA", &east_1), ("spiffe://east.example", &east_1), ("spiffe://west.example", &west_1)]
    {
        let secret = secret(name);
        assert_eq!(secret.name, name);
        let Some(secret::Type::ValidationContext(context)) = secret.r#type else { panic!("{name}") };
        assert_eq!(bytes(&context.trusted_ca), bundle(&[authority]).to_pem());
    }
    let Some(secret::Type::ValidationContext(all)) = secret("ALL").r#type else { panic!("ALL") };
    let validator = all.custom_validator_config.unwrap();
    assert_eq!(validator.name, "envoy.tls.cert_validator.spiffe");
    let config = SpiffeCertValidatorConfig::decode(&validator.typed_config.unwrap().value[..]).unwrap();
    let domains: Vec<(String, String)> =
        config.trust_domains.iter().map(|d| (d.name.clone(), bytes(&d.trust_bundle))).collect();
    let expected = [
        ("east.example".to_owned(), bundle(&[&east_1]).to_pem()),
        ("west.example".to_owned(), bundle(&[&west_1]).to_pem()),
    ];
    assert_eq!(domains, expected);
}

#[test]
fn a_stranger_is_shown_only_to_those_that_name_it_and_a_joined_cluster_to_everyone() {
    let stranger: TrustDomain = "stranger.example".parse().unwrap();
    let (east_1, west_1, stranger_1) = (authority(&east()), authority(&west()), authority(&stranger));
    let bundles = vec![bundle(&[&east_1]), bundle(&[&west_1]), bundle(&[&stranger_1])];
    let mut state = state(vec![reviews()], bundles);
    state.strangers.insert(stranger.clone());
    let own = east();
    let seen = |state: &AgentState| {
        let standing = Standing::of(state, &own, &evidence(&caller())).unwrap();
        let api: Vec<String> = standing.bundles_response().bundles.into_keys().collect();
        let svid = svid(&east_1, REVIEWS);
        let federated =
            standing.x509_response(&Held::from([(id(REVIEWS), &svid)])).unwrap().federated_bundles;
        let all = standing.secret("ALL", &Wanted::AllBundles, &Held::new()).unwrap().unwrap();
        let Some(secret::Type::ValidationContext(all)) = read(all).r#type else { panic!("ALL") };
        let config = all.custom_validator_config.unwrap().typed_config.unwrap();
        let config = SpiffeCertValidatorConfig::decode(&config.value[..]).unwrap();
        assert_eq!(config.trust_domains.len(), api.len());
        assert_eq!(federated.len() + 1, api.len());
        (api.len(), standing.read_name("spiffe://stranger.example"))
    };
    assert_eq!(seen(&state), (2, Err(Denial::UnknownTrustDomain(stranger.clone()))));
    // Another workload's entry opens nothing for this one.
    let mut other = registration(RATINGS, [Selector::Uid(7)]);
    other.federates_with.insert(stranger.clone());
    state.registrations.push(other);
    assert_eq!(seen(&state), (2, Err(Denial::UnknownTrustDomain(stranger.clone()))));
    state.registrations[0].federates_with.insert(stranger.clone());
    assert_eq!(seen(&state), (3, Ok(Wanted::Bundle(stranger))));
}

#[test]
fn w_11_hints_are_unique_in_a_response() {
    let east_1 = authority(&east());
    let hinted = |name: &str, hint: &str| Registration {
        hint: hint.to_owned(),
        ..registration(name, [Selector::Uid(1000)])
    };
    let third = "spiffe://east.example/ns/shop/sa/third";
    let registrations =
        vec![hinted(REVIEWS, "internal"), hinted(RATINGS, "internal"), hinted(third, "external")];
    let state = state(registrations, vec![bundle(&[&east_1])]);
    let own = east();
    let standing = Standing::of(&state, &own, &evidence(&caller())).unwrap();
    let svids = [REVIEWS, RATINGS, third].map(|name| svid(&east_1, name));
    let held = svids.iter().map(|svid| (svid.facts.id.clone(), svid)).collect();
    let response = standing.x509_response(&held).unwrap();
    let hints: Vec<&str> = response.svids.iter().map(|svid| svid.hint.as_str()).collect();
    assert_eq!(hints, ["internal", "", "external"]);
}

#[test]
fn names_that_lead_nowhere_are_refused_with_a_reason() {
    let state = state(vec![reviews()], vec![bundle(&[&authority(&east())])]);
    let own = east();
    let standing = Standing::of(&state, &own, &evidence(&caller())).unwrap();
    assert_eq!(standing.read_name(RATINGS), Err(Denial::NotEntitled(id(RATINGS))));
    assert_eq!(standing.read_name("spiffe://west.example"), Err(Denial::UnknownTrustDomain(west())));
    assert_eq!(standing.read_name("tls"), Err(Denial::UnknownName("tls".to_owned())));
    let long = "x".repeat(5000);
    assert!(standing.read_name(&long).unwrap_err().to_string().len() < 400);
}

#[test]
fn a_certificate_that_is_not_there_yet_is_no_secret_and_no_error() {
    let state = state(vec![reviews()], vec![bundle(&[&authority(&east())])]);
    let own = east();
    let standing = Standing::of(&state, &own, &evidence(&caller())).unwrap();
    let wanted = standing.read_name("default").unwrap();
    assert_eq!(standing.secret("default", &wanted, &Held::new()), Ok(None));
}

#[test]
fn a_revoked_identity_is_refused_and_not_replaced_by_the_next_one() {
    let east_1 = authority(&east());
    let second = registration(RATINGS, [Selector::Uid(1000)]);
    let mut state = state(vec![reviews(), second], vec![bundle(&[&east_1])]);
    state.revocations.insert(revocation(7, RevocationTarget::Identity(id(REVIEWS))));
    let own = east();
    let standing = Standing::of(&state, &own, &evidence(&caller())).unwrap();
    let revoked = Denial::Revoked { id: id(REVIEWS), revocation: "r-7@east.example".to_owned() };
    assert_eq!(standing.read_name("default"), Err(revoked));
    assert_eq!(standing.read_name(RATINGS), Ok(Wanted::Certificate(id(RATINGS))));
    assert_eq!(standing.identities(), [&id(RATINGS)]);

    state.revocations.insert(revocation(8, RevocationTarget::Identity(id(RATINGS))));
    let denied = Standing::of(&state, &own, &evidence(&caller()));
    assert!(matches!(denied, Err(Denial::Revoked { .. })));
}

#[test]
fn a_revoked_serial_stops_that_svid_only() {
    let east_1 = authority(&east());
    let (stolen, fresh) = (svid(&east_1, REVIEWS), svid(&east_1, REVIEWS));
    let mut state = state(vec![reviews()], vec![bundle(&[&east_1])]);
    state.revocations.insert(revocation(7, RevocationTarget::Serial(stolen.facts.serial.clone())));
    let own = east();
    let standing = Standing::of(&state, &own, &evidence(&caller())).unwrap();
    assert!(matches!(standing.may_show(&stolen), Err(Denial::Revoked { .. })));
    assert_eq!(standing.may_show(&fresh), Ok(()));
    let held = Held::from([(id(REVIEWS), &stolen)]);
    assert!(matches!(standing.x509_response(&held), Err(Denial::Revoked { .. })));
}

#[test]
fn workload_api_messages_are_complete() {
    let (east_1, east_2, west_1) = (authority(&east()), authority(&east()), authority(&west()));
    let state = state(vec![reviews()], vec![bundle(&[&east_1, &east_2]), bundle(&[&west_1])]);
    let own = east();
    let standing = Standing::of(&state, &own, &evidence(&caller())).unwrap();
    let svid = svid(&east_1, REVIEWS);
    let response = standing.x509_response(&Held::from([(id(REVIEWS), &svid)])).unwrap();
    let own_bundle = [east_1.certificate().der.clone(), east_2.certificate().der.clone()].concat();
    assert_eq!(response.svids.len(), 1);
    assert_eq!(response.svids[0].spiffe_id, REVIEWS);
    assert_eq!(response.svids[0].x509_svid, svid.chain.concat());
    assert_eq!(response.svids[0].x509_svid_key, *svid.key);
    assert_eq!(response.svids[0].bundle, own_bundle);
    assert_eq!(response.federated_bundles.len(), 1);
    assert_eq!(response.federated_bundles["spiffe://west.example"], west_1.certificate().der);
    let bundles = standing.bundles_response().bundles;
    assert_eq!(bundles.len(), 2);
    assert_eq!(bundles["spiffe://east.example"], own_bundle);
}

#[test]
fn retired_authorities_and_empty_bundles_are_left_out() {
    let (east_1, east_2, west_1) = (authority(&east()), authority(&east()), authority(&west()));
    let (mut of_east, mut of_west) = (bundle(&[&east_1, &east_2]), bundle(&[&west_1]));
    of_east.authorities[1].state = AuthorityState::Retired;
    of_west.authorities.clear();
    let state = state(vec![reviews()], vec![of_east, of_west]);
    let own = east();
    let standing = Standing::of(&state, &own, &evidence(&caller())).unwrap();
    let bundles = standing.bundles_response().bundles;
    assert_eq!(bundles.len(), 1);
    assert_eq!(bundles["spiffe://east.example"], east_1.certificate().der);
    assert_eq!(standing.read_name("spiffe://west.example"), Err(Denial::UnknownTrustDomain(west())));
    let all = standing.secret("ALL", &Wanted::AllBundles, &Held::new()).unwrap().unwrap();
    let Some(secret::Type::ValidationContext(all)) = read(all).r#type else { panic!("ALL") };
    let config = all.custom_validator_config.unwrap().typed_config.unwrap();
    let config = SpiffeCertValidatorConfig::decode(&config.value[..]).unwrap();
    assert_eq!(config.trust_domains.len(), 1);
}
