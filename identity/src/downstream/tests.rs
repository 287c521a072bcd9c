//! Tests of nested issuers: what their certificates say, for whom they speak, and that every revocation of one
//! reaches what it has signed.

use std::time::Duration;

use rcgen::{CertificateParams, DnType, Issuer, KeyPair, PublicKeyData as _};

use super::*;
use crate::authority::AuthorityState;
use crate::bundle::Bundle;
use crate::fixture::{
    DAY, HOUR, NOW, REVIEWS, authority, bundle, east, handmade, handmade_bundle, id, key, leaf_params,
    registration, root_params, serial, sign as sign_leaf, trust, uri, west,
};
use crate::grant::{Refusal, Registration, grant_downstream};
use crate::issue::certificate_request;
use crate::private_key::PrivateKey;
use crate::revocation::{Reason, Revocation, RevocationId, RevocationTarget, Revocations};
use crate::upstream::Upstream;
use crate::verify::{Trust, Usage, VerifiedCaller, VerifyError, verify};

const ISSUER: &str = "spiffe://east.example/ns/edge/sa/issuer";

fn entry() -> Registration {
    Registration { downstream: true, ttl_seconds: 7200, ..registration(ISSUER) }
}

fn ticket(entry: &Registration) -> DownstreamTicket {
    grant_downstream(&east(), [entry], &Revocations::default(), &host("host-1"), &id(ISSUER)).unwrap()
}

fn host(name: &str) -> crate::name::NodeName {
    name.parse().unwrap()
}

/// A nested issuer: its certificate's chain, and what signs with its key.
struct Nested {
    issued: IssuedDownstream,
    signer: Issuer<'static, KeyPair>,
}

impl Nested {
    fn new(authority: &Authority, number: u8) -> Self {
        Self::over(key(), authority, number)
    }

    fn over(key: KeyPair, authority: &Authority, number: u8) -> Self {
        let request = certificate_request(&key).unwrap();
        let issued = issue_downstream(ticket(&entry()), &request, authority, serial(number), NOW).unwrap();
        // Signs as any CA software would: by the name and key of its certificate.
        let der = rustls_pki_types::CertificateDer::from(issued.chain[0].clone());
        let signer = Issuer::from_ca_cert_der(&der, key).unwrap();
        Self { issued, signer }
    }

    /// A chain of that name, as the nested issuer would hand it out.
    fn chain(&self, name: &str) -> Vec<Vec<u8>> {
        let leaf = sign_leaf(&leaf_params(&[name]), &self.signer);
        std::iter::once(leaf).chain(self.issued.chain.clone()).collect()
    }
}

fn check(trust: &Trust, chain: &[Vec<u8>]) -> Result<VerifiedCaller, VerifyError> {
    let chain: Vec<&[u8]> = chain.iter().map(Vec::as_slice).collect();
    let client = verify(trust, &chain, NOW, Usage::Client);
    assert_eq!(client, verify(trust, &chain, NOW, Usage::Server), "both sides are held to the same rules");
    client
}

fn revocation(number: u64, target: RevocationTarget) -> Revocation {
    Revocation::new(RevocationId { number, origin: east() }, target, Reason::KeyCompromise, NOW)
}

#[test]
fn x_3_to_x_6_a_nested_issuer_is_an_authority_of_the_bare_trust_domain_and_nothing_else() {
    let authority = authority(&east());
    let nested = Nested::new(&authority, 9);
    let certificate = x509::parse(&nested.issued.chain[0]).unwrap();
    assert_eq!(x509::uri_names(&certificate).unwrap(), ["spiffe://east.example"]);
    assert_eq!(x509::authority_path_length(&certificate), Some(Some(0)), "X-4: nobody stands below it");
    assert!(certificate.basic_constraints().unwrap().unwrap().critical);
    assert!(certificate.name_constraints().unwrap().is_none(), "X-5");
    let usage = certificate.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.key_cert_sign() && usage.value.crl_sign());
    assert!(!usage.value.digital_signature() && !usage.value.key_agreement(), "X-6");
    assert!(certificate.extended_key_usage().unwrap().is_none());
    let facts = AuthorityFacts::read(&certificate).unwrap();
    let digits = &nested.issued.issuer.key_id.to_string()[..16];
    assert_eq!(facts.subject, format!("CN={digits},2.5.4.11=DOWNSTREAM,O=east.example"));
    assert_eq!(facts.serial, serial(9));
    assert_eq!(nested.issued.chain.len(), 1, "the authority above it is in the bundle");
}

#[test]
fn what_it_signs_is_believed_and_known_as_its_own() {
    let authority = authority(&east());
    let nested = Nested::new(&authority, 9);
    let caller = check(&trust(&[&authority]), &nested.chain(REVIEWS)).unwrap();
    assert_eq!(caller.id(), &id(REVIEWS));
    assert_eq!(caller.nested_issuer(), Some(&nested.issued.issuer));
    let own = authority.certificate().key_id;
    assert_eq!(caller.authorities(), [nested.issued.issuer.key_id, own]);
    let direct = check(&trust(&[&authority]), &crate::fixture::svid(&authority, REVIEWS, 2).chain).unwrap();
    assert_eq!(direct.nested_issuer(), None);
    // Without its certificate nobody knows whose it is, and by another domain's authority it is nobody's.
    let alone = check(&trust(&[&authority]), &nested.chain(REVIEWS)[..1]);
    assert_eq!(alone, Err(VerifyError::UnknownAuthority(east())));
    let elsewhere = check(&trust(&[&authority]), &nested.chain("spiffe://west.example/ns/shop/sa/reviews"));
    assert_eq!(elsewhere, Err(VerifyError::UnknownTrustDomain(west())));
}

#[test]
fn only_the_key_of_the_request_is_used() {
    let authority = authority(&east());
    let key = key();
    let mut evil = CertificateParams::default();
    evil.distinguished_name.push(DnType::CommonName, "node-1");
    evil.subject_alt_names =
        vec![uri("spiffe://west.example"), uri("spiffe://east.example/hanse/node/node-1")];
    evil.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let request = evil.serialize_request(&key).unwrap().der().to_vec();
    let issued = issue_downstream(ticket(&entry()), &request, &authority, serial(9), NOW).unwrap();
    let certificate = x509::parse(&issued.chain[0]).unwrap();
    assert_eq!(x509::uri_names(&certificate).unwrap(), ["spiffe://east.example"]);
    assert_eq!(x509::authority_path_length(&certificate), Some(Some(0)));
    let subject = x509::rfc4514(certificate.subject());
    assert!(!subject.contains("node-1") && subject.contains("DOWNSTREAM"), "{subject}");
    assert_eq!(issued.issuer.key_id, x509::key_id(&key.subject_public_key_info()));
    let mut forged = request;
    let last = forged.len() - 1;
    forged[last] ^= 1;
    let refused = issue_downstream(ticket(&entry()), &forged, &authority, serial(9), NOW);
    assert!(matches!(refused, Err(IssueError::Csr(_))), "{refused:?}");
}

#[test]
fn it_lives_as_long_as_the_entry_says_and_never_beyond_the_entry_or_the_authority() {
    let authority = authority(&east());
    let request = certificate_request(&key()).unwrap();
    let end = |entry: Registration, now: Timestamp| {
        issue_downstream(ticket(&entry), &request, &authority, serial(9), now).map(|issued| issued.not_after)
    };
    assert_eq!(end(entry(), NOW), Ok(NOW + 2 * HOUR));
    assert_eq!(end(Registration { ttl_seconds: 0, ..entry() }, NOW), Ok(NOW + HOUR), "the cluster's default");
    let soon = Registration { expires: Some(NOW + Duration::from_secs(60)), ..entry() };
    assert_eq!(end(soon.clone(), NOW), Ok(NOW + Duration::from_secs(60)));
    let over = end(soon, NOW + HOUR);
    assert!(matches!(over, Err(IssueError::RegistrationExpired(_))), "{over:?}");
    let last = authority.not_after();
    assert_eq!(end(entry(), last - HOUR), Ok(last));
    let issued = Nested::new(&authority, 9).issued;
    let certificate = x509::parse(&issued.chain[0]).unwrap();
    assert_eq!(x509::timestamp(certificate.validity().not_before), Some(NOW - Duration::from_secs(30)));
    // What it signs is believed no longer than its own certificate, whatever the leaf says.
    let nested = Nested::new(&authority, 9);
    let mut params = leaf_params(&[REVIEWS]);
    params.not_after = x509::date_time(NOW + DAY).unwrap();
    let leaf = sign_leaf(&params, &nested.signer);
    let chain: Vec<&[u8]> = vec![&leaf, &nested.issued.chain[0]];
    let trust = trust(&[&authority]);
    let caller = verify(&trust, &chain, NOW, Usage::Client).unwrap();
    assert_eq!(caller.still_believed(&trust, NOW + 2 * HOUR), Err(VerifyError::Expired));
    assert_eq!(verify(&trust, &chain, NOW + 3 * HOUR, Usage::Client), Err(VerifyError::Expired));
}

#[test]
fn who_may_have_one_its_registration_says_on_the_agent_that_it_came_through() {
    let none = Revocations::default();
    let ask = |entry: &Registration, revocations: &Revocations, agent: &str| {
        grant_downstream(&east(), [entry], revocations, &host(agent), &id(ISSUER)).map(drop)
    };
    let no = |agent: &str| Err(Refusal::NotDownstream { id: id(ISSUER), agent: host(agent) });
    assert_eq!(ask(&entry(), &none, "host-1"), Ok(()));
    assert_eq!(ask(&entry(), &none, "host-2"), no("host-2"));
    assert_eq!(ask(&registration(ISSUER), &none, "host-1"), no("host-1"));
    assert_eq!(
        ask(&Registration { downstream: true, ..registration(REVIEWS) }, &none, "host-1"),
        no("host-1")
    );
    for target in [RevocationTarget::Identity(id(ISSUER)), RevocationTarget::Agent(host("host-1"))] {
        let mut revoked = Revocations::default();
        revoked.insert(revocation(1, target));
        assert!(matches!(ask(&entry(), &revoked, "host-1"), Err(Refusal::Revoked { .. })));
    }
    let foreign = grant_downstream(&west(), [&entry()], &none, &host("host-1"), &id(ISSUER));
    assert!(matches!(foreign, Err(Refusal::ForeignTrustDomain { .. })));
}

#[test]
fn a_nested_issuer_speaks_for_no_member_of_the_mesh() {
    let authority = authority(&east());
    let nested = Nested::new(&authority, 9);
    let trust = trust(&[&authority]);
    let names =
        ["/hanse/node/node-1", "/hanse/agent/host-1", "/hanse/gateway/g", "/hanse/admin/ann", "/hanse/new/x"];
    for name in names {
        let refused = check(&trust, &nested.chain(&format!("spiffe://east.example{name}")));
        assert!(
            matches!(&refused, Err(VerifyError::Path(rule)) if rule.contains("nested")),
            "{name} {refused:?}"
        );
    }
    assert!(check(&trust, &nested.chain("spiffe://east.example/hansestadt/x")).is_ok());
    // What is refused is the way that it came, not the name.
    let member = crate::fixture::svid(&authority, "spiffe://east.example/hanse/node/node-1", 2);
    assert!(check(&trust, &member.chain).is_ok());
}

#[test]
fn x_8_nobody_stands_below_a_nested_issuer() {
    let authority = authority(&east());
    let nested = Nested::new(&authority, 9);
    let mut params = root_params(&east());
    params.use_authority_key_identifier_extension = true;
    params.distinguished_name.push(DnType::CommonName, "below");
    let key = key();
    let below = params.signed_by(&key, &nested.signer).unwrap().der().to_vec();
    let leaf = sign_leaf(&leaf_params(&[REVIEWS]), &Issuer::new(params, key));
    let refused = check(&trust(&[&authority]), &[leaf, below, nested.issued.chain[0].clone()]);
    assert!(matches!(&refused, Err(VerifyError::Path(rule)) if rule.contains("leaves alone")), "{refused:?}");
}

/// An authority as it was made before there were nested issuers.
fn without_room() -> (Authority, Bundle) {
    let mut params = root_params(&east());
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let (der, signer) = handmade(params);
    let key = PrivateKey::local(KeyPair::try_from(signer.key().serialize_der().as_slice()).unwrap()).unwrap();
    (Authority::restore(&east(), key, &der).unwrap(), handmade_bundle(&east(), &[&der]))
}

#[test]
fn an_authority_of_path_length_zero_refuses_and_says_what_helps() {
    let (old, bundle) = without_room();
    assert!(!old.allows_nested());
    let request = certificate_request(&key()).unwrap();
    let refused = issue_downstream(ticket(&entry()), &request, &old, serial(9), NOW).unwrap_err();
    assert!(refused.to_string().contains("hanse trust rotate"), "{refused}");
    // And whatever stood below it all the same would not be believed.
    let above = Issuer::from_ca_cert_der(
        &rustls_pki_types::CertificateDer::from(old.certificate().der.as_slice()),
        KeyPair::try_from(old.key().to_pkcs8().unwrap().as_slice()).unwrap(),
    );
    let mut params = root_params(&east());
    params.use_authority_key_identifier_extension = true;
    params.distinguished_name = nested_subject(&east(), &KeyId([1; 32]));
    let key = self::key();
    let forced = params.signed_by(&key, &above.unwrap()).unwrap().der().to_vec();
    let leaf = sign_leaf(&leaf_params(&[REVIEWS]), &Issuer::new(params, key));
    let refused = check(&Trust::new([&bundle], Revocations::default()), &[leaf, forced]);
    assert_eq!(refused, Err(VerifyError::Path("an authority allows fewer authorities below it".to_owned())));
}

/// A node's authority below a root with that path length, and a bundle that has the root.
fn below_root(path_length: BasicConstraints) -> (Authority, Bundle) {
    let mut params = root_params(&east());
    params.subject_alt_names.clear();
    params.is_ca = IsCa::Ca(path_length);
    params.not_after = x509::date_time(NOW + 30 * DAY).unwrap();
    let key = key();
    let pem = params.self_signed(&key).unwrap().pem();
    let upstream = Upstream::from_pem(&east(), pem.as_bytes(), key.serialize_pem().as_bytes()).unwrap();
    let own = PrivateKey::local(self::key()).unwrap();
    let made = upstream.sign(&host("node-1"), &own, serial(5), NOW, 30 * DAY).unwrap();
    let root = upstream.certificate().clone();
    let bundle = Bundle::new(east(), 1, vec![root.clone()]);
    (Authority::restore_below(&east(), own, made, root).unwrap(), bundle)
}

#[test]
fn below_a_root_of_ones_own_it_is_there_if_the_root_allows_it() {
    for roomy in [BasicConstraints::Unconstrained, BasicConstraints::Constrained(2)] {
        let (authority, bundle) = below_root(roomy);
        let nested = Nested::new(&authority, 9);
        assert_eq!(nested.issued.chain.len(), 2, "the node's own authority goes along");
        let chain = nested.chain(REVIEWS);
        let trust = Trust::new([&bundle], Revocations::default());
        let caller = check(&trust, &chain).unwrap();
        assert_eq!(caller.nested_issuer(), Some(&nested.issued.issuer));
        assert_eq!((chain.len(), caller.authorities().len()), (3, 3));
    }
    let (narrow, _) = below_root(BasicConstraints::Constrained(1));
    let request = certificate_request(&key()).unwrap();
    let refused = issue_downstream(ticket(&entry()), &request, &narrow, serial(9), NOW);
    assert_eq!(refused, Err(IssueError::NoNestedIssuerBelowRoot));
}

#[test]
fn every_revocation_of_an_intermediate_reaches_what_it_has_signed() {
    let authority = authority(&east());
    let (nested, other) = (Nested::new(&authority, 9), Nested::new(&authority, 10));
    let NestedIssuer { serial: number, key_id } = nested.issued.issuer.clone();
    let index = |target| Revocation { serials: [number.clone()].into(), ..revocation(1, target) };
    let node = RevocationTarget::Node(host("node-1"));
    let own = authority.certificate().key_id;
    let all = [
        revocation(1, RevocationTarget::Serial(number.clone())),
        revocation(1, RevocationTarget::Key(key_id)),
        // As the issuance index expands them.
        index(RevocationTarget::Identity(id(ISSUER))),
        Revocation { reissue: true, ..index(RevocationTarget::Identity(id(ISSUER))) },
        index(RevocationTarget::Agent(host("host-1"))),
        Revocation { authorities: [own].into(), ..revocation(1, node) },
        Revocation { authorities: [own].into(), ..revocation(1, RevocationTarget::Authority(own)) },
    ];
    for revocation in all {
        let mut trust = trust(&[&authority]);
        let (live, spared) = (check(&trust, &nested.chain(REVIEWS)).unwrap(), other.chain(REVIEWS));
        let elsewhere = check(&trust, &spared).unwrap();
        let above = !revocation.authorities.is_empty();
        assert!(live.is_hit_by(&revocation), "{}", revocation.target);
        assert_eq!(elsewhere.is_hit_by(&revocation), above, "{}", revocation.target);
        trust.revocations.insert(revocation.clone());
        let refused = VerifyError::Revoked { id: id(REVIEWS), revocation: revocation.id.clone() };
        assert_eq!(check(&trust, &nested.chain(REVIEWS)), Err(refused.clone()), "{}", revocation.target);
        assert_eq!(live.still_believed(&trust, NOW), Err(refused), "{}", revocation.target);
        assert_eq!(check(&trust, &spared).is_err(), above, "{}", revocation.target);
        assert_eq!(elsewhere.still_believed(&trust, NOW).is_err(), above);
        trust.revocations.remove(&revocation.id);
        assert_eq!(live.still_believed(&trust, NOW), Ok(()), "{}", revocation.target);
    }
}

#[test]
fn revocations_of_others_and_of_other_domains_do_not_reach_it() {
    let authority = authority(&east());
    let nested = Nested::new(&authority, 9);
    let NestedIssuer { serial: number, key_id } = nested.issued.issuer.clone();
    let mut trust = trust(&[&authority]);
    let foreign = RevocationId { number: 3, origin: west() };
    let kinds = [RevocationTarget::Serial(number.clone()), RevocationTarget::Key(key_id)];
    for (n, target) in kinds.into_iter().enumerate() {
        let id = RevocationId { number: foreign.number + n as u64, ..foreign.clone() };
        trust.revocations.insert(Revocation { id, ..revocation(1, target) });
    }
    trust.revocations.insert(revocation(7, RevocationTarget::Serial(serial(10))));
    assert!(check(&trust, &nested.chain(REVIEWS)).is_ok());
    trust.revocations.insert(revocation(8, RevocationTarget::Serial(number)));
    assert!(check(&trust, &nested.chain(REVIEWS)).is_err());
}

#[test]
fn connections_through_it_end_with_the_authority_above_it() {
    let authority = authority(&east());
    let nested = Nested::new(&authority, 9);
    let mut outgoing = bundle(&[&authority]);
    outgoing.authorities[0].state = AuthorityState::Tainted;
    let trust = Trust::new([&outgoing], Revocations::default());
    let caller = check(&trust, &nested.chain(REVIEWS)).unwrap();
    assert!(caller.is_outgoing(&trust), "a drain sees it");
    let other = crate::fixture::authority(&east());
    let gone = Trust::new([&bundle(&[&other])], Revocations::default());
    assert_eq!(caller.still_believed(&gone, NOW), Err(VerifyError::UnknownAuthority(east())));
}
