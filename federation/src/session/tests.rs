//! Tests of `session`: what is told and admitted, and that told facts add up to the whole.

use std::time::Duration;

use hanse_identity::{
    AuthorityCertificate, Bundle, NodeName, Reason, Revocation, RevocationTarget, Serial, Timestamp,
};

use super::*;
use crate::catalog::{Export, Locality, Service, Session};
use crate::change::PeerRecord;
use crate::view::{PeerState, Revision};

fn cluster(name: &str) -> ClusterName {
    name.parse().unwrap()
}

fn domain(cluster: &str) -> TrustDomain {
    format!("{cluster}.example").parse().unwrap()
}

fn id(text: &str) -> SpiffeId {
    format!("spiffe://{text}").parse().unwrap()
}

fn view(name: &str) -> View {
    View::new(cluster(name), domain(name))
}

/// west, which has joined east.
fn importer() -> View {
    let mut view = view("west");
    view.apply(&Change::PeerPut(PeerRecord {
        cluster: cluster("east"),
        trust_domain: domain("east"),
        endpoints: vec!["127.0.0.1:7443".to_owned()],
        invite: "i-1".to_owned(),
        joined: Timestamp(1),
    }));
    view
}

fn fold(view: &mut View, facts: Vec<PeerFact>) -> Vec<ImportRefusal> {
    let (facts, refusals) = admit(view, &cluster("east"), facts);
    for fact in facts {
        view.apply(&Change::PeerFact(cluster("east"), fact));
    }
    refusals
}

fn authority(trust_domain: &TrustDomain) -> AuthorityCertificate {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let now = Timestamp::from_seconds(1_800_000_000);
    let node: NodeName = "east-1".parse().unwrap();
    let serial = Serial::from_random([7; 16]);
    hanse_identity::Authority::create(trust_domain, &node, key, serial, now, Duration::from_secs(3600))
        .unwrap()
        .certificate()
        .clone()
}

fn bundle(cluster: &str, sequence: u64) -> Bundle {
    Bundle::new(domain(cluster), sequence, vec![authority(&domain(cluster))])
}

fn revocation(origin: &str, number: u64, target: RevocationTarget) -> Revocation {
    Revocation::new(RevocationId { number, origin: domain(origin) }, target, Reason::Hold, Timestamp(number))
}

fn summary(name: &str, identity: &str) -> ServiceSummary {
    ServiceSummary {
        name: name.parse().unwrap(),
        identities: BTreeSet::from([id(identity)]),
        localities: BTreeMap::new(),
    }
}

fn gateway_summary(identity: &str, tunnel: &str) -> GatewaySummary {
    GatewaySummary {
        name: "gateway-1".parse().unwrap(),
        identity: id(identity),
        locality: Locality::default(),
        tunnel: tunnel.to_owned(),
        ready: true,
    }
}

/// A generator that needs no seed but the number in the test's message (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) % bound
    }

    fn service(&mut self) -> ServiceName {
        format!("shop/s{}", self.below(4)).parse().unwrap()
    }

    fn session(&mut self) -> Session {
        Session { incarnation: 1, sequence: self.below(9), node: "east-1".parse().unwrap() }
    }

    /// Some Change of a cluster named east, mostly of what peers are told.
    fn change(&mut self, authorities: &[AuthorityCertificate], sequence: &mut u64) -> Change {
        let name = format!("p{}", self.below(5));
        match self.below(14) {
            0..=2 => {
                let export = match self.below(4) {
                    0 => None,
                    1 => Some(Export::Everyone),
                    2 => Some(Export::Only(BTreeSet::from([cluster("west")]))),
                    _ => Some(Export::Only(BTreeSet::from([cluster("north")]))),
                };
                let identities = BTreeSet::from([id(&format!("east.example/ns/shop/sa/a{}", self.below(2)))]);
                Change::ServicePut(Service { name: self.service(), identities, export })
            }
            3 => Change::ServiceGone(self.service()),
            4..=6 => Change::EndpointPut(Endpoint {
                id: name.parse().unwrap(),
                services: (0..self.below(3)).map(|_| self.service()).collect(),
                identity: id("east.example/ns/shop/sa/a0"),
                address: "127.0.0.1:1".parse().unwrap(),
                locality: Locality { region: "eu".to_owned(), zone: format!("z{}", self.below(2)) },
                weight: 1 + u32::try_from(self.below(3)).unwrap(),
                ready: self.below(2) == 0,
                session: self.session(),
            }),
            7 => Change::EndpointGone(name.parse().unwrap()),
            8 => Change::GatewayPut(Gateway {
                name: name.parse().unwrap(),
                identity: id(&format!("east.example/hanse/gateway/{name}")),
                locality: Locality::default(),
                passthrough: "127.0.0.1:2".parse().unwrap(),
                tunnel: format!("127.0.0.1:{}", 3 + self.below(2)),
                ready: self.below(2) == 0,
                session: self.session(),
            }),
            9 => Change::GatewayGone(name.parse().unwrap()),
            10 => {
                *sequence += 1;
                let authorities = authorities[..1 + usize::try_from(self.below(2)).unwrap()].to_vec();
                Change::BundlePut(Bundle::new(domain("east"), *sequence, authorities))
            }
            11 | 12 => {
                let origin = if self.below(4) == 0 { "north" } else { "east" };
                let target = RevocationTarget::Identity(id(&format!("{origin}.example/ns/a/sa/x")));
                Change::Revoked(revocation(origin, self.below(5), target))
            }
            _ => Change::Unrevoked(RevocationId { number: self.below(5), origin: domain("east") }),
        }
    }
}

/// What west knows of east, without how far it has been told.
fn known(view: &View) -> String {
    let peer = &view.peers[&cluster("east")];
    crate::wire::encode(&(
        &peer.services,
        &peer.gateways,
        view.bundles.get(&domain("east")),
        &view.revocations,
    ))
    .iter()
    .map(|b| char::from(*b))
    .collect()
}

#[test]
fn hearing_on_from_any_revision_comes_to_the_same_as_hearing_all() {
    let authorities = [authority(&domain("east")), authority(&domain("east"))];
    for seed in 1..=60u64 {
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let mut sequence = 0;
        let mut history = vec![(view("east"), Vec::new())];
        for revision in 1..=25 {
            let changes: Vec<Change> =
                (0..1 + random.below(4)).map(|_| random.change(&authorities, &mut sequence)).collect();
            let mut next = history.last().unwrap().0.clone();
            assert!(next.advance(Revision(revision), &changes));
            history.push((next, changes));
        }
        let last = &history.last().unwrap().0;
        let mut whole = importer();
        assert_eq!(fold(&mut whole, tell_all(last, &cluster("west"))), []);
        assert_eq!(whole.peers[&cluster("east")].state, PeerState::Joined);
        for from in 0..history.len() {
            let mut heard = importer();
            assert_eq!(fold(&mut heard, tell_all(&history[from].0, &cluster("west"))), []);
            for step in from + 1..history.len() {
                let (view, changes) = &history[step];
                let facts = tell(&history[step - 1].0, view, changes, &cluster("west"));
                assert_eq!(fold(&mut heard, facts), [], "seed {seed}");
                assert!(heard.peers[&cluster("east")].synced <= view.revision.0);
            }
            assert_eq!(known(&heard), known(&whole), "seed {seed} from {from}");
            // Several revisions at once, and a retelling over what was known, end in the same.
            let mut leap = importer();
            fold(&mut leap, tell_all(&history[from].0, &cluster("west")));
            let mut retold = leap.clone();
            let changes: Vec<Change> = history[from + 1..].iter().flat_map(|(_, c)| c.clone()).collect();
            fold(&mut leap, tell(&history[from].0, last, &changes, &cluster("west")));
            assert_eq!(known(&leap), known(&whole), "seed {seed} leap from {from}");
            fold(&mut retold, tell_all(last, &cluster("west")));
            assert_eq!(known(&retold), known(&whole), "seed {seed} retold from {from}");
        }
    }
}

#[test]
fn only_what_is_exported_to_the_peer_is_told() {
    let mut east = view("east");
    let service = |name: &str, export| {
        let identities = BTreeSet::from([id("east.example/ns/shop/sa/a"), id("west.example/ns/shop/sa/a")]);
        Change::ServicePut(Service { name: name.parse().unwrap(), identities, export })
    };
    east.apply(&service("shop/all", Some(Export::Everyone)));
    east.apply(&service("shop/secret", None));
    east.apply(&service("shop/north", Some(Export::Only(BTreeSet::from([cluster("north")])))));
    east.apply(&Change::Revoked(revocation("north", 1, RevocationTarget::Identity(id("north.example/a")))));
    let facts = tell_all(&east, &cluster("west"));
    let named: Vec<String> = facts
        .iter()
        .filter_map(|fact| match fact {
            PeerFact::Service(summary) => Some(format!("{} {:?}", summary.name, summary.identities.len())),
            PeerFact::Revoked(_) => Some("a foreign revocation".to_owned()),
            _ => None,
        })
        .collect();
    assert_eq!(named, ["shop/all 1"]);
}

#[test]
fn an_export_that_is_narrowed_or_ended_is_told_as_gone() {
    let before = {
        let mut view = view("east");
        let identities = BTreeSet::new();
        view.apply(&Change::ServicePut(Service {
            name: "shop/a".parse().unwrap(),
            identities,
            export: Some(Export::Everyone),
        }));
        view
    };
    let name: ServiceName = "shop/a".parse().unwrap();
    for change in [
        Change::ServicePut(Service { name: name.clone(), identities: BTreeSet::new(), export: None }),
        Change::ServicePut(Service {
            name: name.clone(),
            identities: BTreeSet::new(),
            export: Some(Export::Only(BTreeSet::from([cluster("north")]))),
        }),
        Change::ServiceGone(name.clone()),
    ] {
        let mut after = before.clone();
        after.advance(Revision(5), std::slice::from_ref(&change));
        let told = tell(&before, &after, std::slice::from_ref(&change), &cluster("west"));
        assert_eq!(told, [PeerFact::ServiceGone(name.clone()), PeerFact::Synced(5)]);
        let back =
            tell(&after, &before, &[Change::ServicePut(before.services[&name].clone())], &cluster("west"));
        assert!(matches!(&back[..], [PeerFact::Service(_), PeerFact::Synced(0)]), "{back:?}");
    }
}

#[test]
fn what_is_none_of_the_peers_business_is_not_told() {
    let before = view("east");
    let changes = [
        Change::ServicePut(Service {
            name: "shop/a".parse().unwrap(),
            identities: BTreeSet::new(),
            export: None,
        }),
        Change::BundlePut(bundle("north", 1)),
        Change::PeerGone(cluster("north")),
        Change::Revoked(revocation("north", 1, RevocationTarget::Identity(id("north.example/a")))),
    ];
    let mut after = before.clone();
    after.advance(Revision(1), &changes);
    assert_eq!(tell(&before, &after, &changes, &cluster("west")), []);
}

#[test]
fn a_peer_speaks_only_of_its_own_trust_domain() {
    let mut west = importer();
    let own = domain("west");
    let foreign = |trust_domain: &TrustDomain| ImportRefusal::ForeignTrustDomain(trust_domain.clone());
    let serial = RevocationTarget::Serial(Serial::new(&[7]).unwrap());
    for (fact, refusal) in [
        (PeerFact::Service(summary("shop/a", "west.example/ns/shop/sa/a")), foreign(&own)),
        (PeerFact::Gateways(vec![gateway_summary("west.example/hanse/gateway/g", "a:1")]), foreign(&own)),
        (PeerFact::Bundle(bundle("west", 9)), foreign(&own)),
        (PeerFact::Bundle(bundle("north", 9)), foreign(&domain("north"))),
        (PeerFact::Revoked(revocation("west", 1, serial.clone())), foreign(&own)),
        (
            PeerFact::Revoked(revocation(
                "east",
                1,
                RevocationTarget::Identity(id("west.example/ns/a/sa/a")),
            )),
            foreign(&own),
        ),
        (
            PeerFact::Revoked(revocation(
                "west",
                1,
                RevocationTarget::Identity(id("east.example/ns/a/sa/a")),
            )),
            foreign(&own),
        ),
        (PeerFact::Unrevoked(RevocationId { number: 1, origin: own.clone() }), foreign(&own)),
        (
            PeerFact::Gateways(vec![gateway_summary("east.example/ns/a/sa/a", "a:1")]),
            ImportRefusal::NotAGateway(id("east.example/ns/a/sa/a")),
        ),
        (
            PeerFact::Gateways(vec![gateway_summary("east.example/hanse/gateway/g", "nowhere")]),
            ImportRefusal::Address("nowhere".to_owned()),
        ),
        (PeerFact::Endpoints(vec!["a:0".to_owned()]), ImportRefusal::Address("a:0".to_owned())),
    ] {
        let before = known(&west);
        // The rest of the batch goes through.
        let name = "shop/good";
        let batch = vec![fact.clone(), PeerFact::Service(summary(name, "east.example/ns/shop/sa/a"))];
        assert_eq!(fold(&mut west, batch), [refusal], "{fact:?}");
        fold(&mut west, vec![PeerFact::ServiceGone(name.parse().unwrap())]);
        assert_eq!(known(&west), before, "{fact:?}");
    }
    assert_eq!(fold(&mut west, vec![PeerFact::Revoked(revocation("east", 1, serial))]), []);
    let (facts, refusals) = admit(&west, &cluster("north"), vec![PeerFact::Begin]);
    assert_eq!((facts, refusals), (vec![], vec![ImportRefusal::UnknownPeer(cluster("north"))]));
}

#[test]
fn a_bundle_is_checked_and_never_goes_back() {
    let mut west = importer();
    let new = bundle("east", 7);
    assert_eq!(fold(&mut west, vec![PeerFact::Bundle(new.clone())]), []);
    for (bad, why) in [
        (bundle("east", 6), "goes back from sequence 7 to 6"),
        (bundle("east", 7), "has two contents with sequence 7"),
        (Bundle { authorities: vec![], ..bundle("east", 8) }, "the bundle has no authority"),
        (
            Bundle { authorities: vec![authority(&domain("west"))], ..bundle("east", 8) },
            "not an authority of east.example",
        ),
    ] {
        let refusals = fold(&mut west, vec![PeerFact::Bundle(bad)]);
        assert!(refusals.len() == 1 && refusals[0].to_string().contains(why), "{refusals:?}");
        assert_eq!(west.bundles[&domain("east")], new);
    }
    assert_eq!(fold(&mut west, vec![PeerFact::Bundle(new.clone()), PeerFact::Bundle(bundle("east", 9))]), []);
    assert_eq!(west.bundles[&domain("east")].sequence, 9);
}

#[test]
fn a_peer_cannot_have_us_remember_without_end() {
    let many = |from: usize, to: usize| -> Vec<PeerFact> {
        (from..to).map(|n| PeerFact::Service(summary(&format!("shop/s{n}"), "east.example/a"))).collect()
    };
    let too_many = ImportRefusal::TooManyServices(MAX_IMPORTED_SERVICES);
    let mut west = importer();
    assert_eq!(fold(&mut west, many(0, MAX_IMPORTED_SERVICES)), []);
    assert_eq!(fold(&mut west, many(5, 6)), []);
    assert_eq!(
        fold(&mut west, many(MAX_IMPORTED_SERVICES, MAX_IMPORTED_SERVICES + 2)),
        [too_many.clone(), too_many.clone()]
    );
    assert_eq!(west.peers[&cluster("east")].services.len(), MAX_IMPORTED_SERVICES);
    // A retelling counts anew, over several batches.
    let mut batch = vec![PeerFact::Begin];
    batch.extend(many(100, 100 + MAX_IMPORTED_SERVICES));
    assert_eq!(fold(&mut west, batch), []);
    assert_eq!(fold(&mut west, many(1, 2)), [too_many]);
    assert_eq!(fold(&mut west, vec![PeerFact::Synced(3)]), []);
    assert_eq!(west.peers[&cluster("east")].services.len(), MAX_IMPORTED_SERVICES);
    let mut wide = summary("shop/a", "east.example/a");
    wide.localities.insert("z".repeat(MAX_TEXT_BYTES + 1), Default::default());
    assert!(matches!(fold(&mut importer(), vec![PeerFact::Service(wide)])[..], [ImportRefusal::TooMany(_)]));
}

#[test]
fn a_broken_retelling_is_asked_for_again_in_whole() {
    let mut west = importer();
    fold(&mut west, vec![PeerFact::Begin, PeerFact::Synced(40)]);
    let from = |view: &View| match resume(view, &cluster("east")) {
        Up::Resume { cluster: ours, from } if ours == cluster("west") => from,
        other => panic!("not a resume of west: {other:?}"),
    };
    assert_eq!(from(&west), 40);
    fold(&mut west, vec![PeerFact::Begin]);
    assert_eq!(from(&west), 0);
    assert_eq!(fold(&mut west, vec![PeerFact::Synced(12)]), [], "a whole retelling may start anew");
    assert_eq!(from(&west), 12);
    assert_eq!(
        fold(&mut west, vec![PeerFact::Synced(11)]),
        [ImportRefusal::WentBack { known: 12, told: 11 }]
    );
    assert_eq!(from(&view("west")), 0);
}

#[test]
fn a_peer_cannot_fill_us_with_revocations_or_long_names() {
    let many = |from: u64, to: u64| -> Vec<PeerFact> {
        let target = || RevocationTarget::Serial(Serial::new(&[7]).unwrap());
        (from..to).map(|number| PeerFact::Revoked(revocation("east", number, target()))).collect()
    };
    let most = MAX_IMPORTED_REVOCATIONS as u64;
    let too_many = ImportRefusal::TooManyRevocations(MAX_IMPORTED_REVOCATIONS);
    let mut west = importer();
    assert_eq!(fold(&mut west, many(0, most)), []);
    assert_eq!(fold(&mut west, many(most - 1, most + 1)), std::slice::from_ref(&too_many));
    let lifted = PeerFact::Unrevoked(RevocationId { number: 0, origin: domain("east") });
    let mut batch = vec![lifted];
    batch.extend(many(most, most + 2));
    assert_eq!(fold(&mut west, batch), [too_many]);
    assert_eq!(west.revocations.len(), MAX_IMPORTED_REVOCATIONS);
    // A retelling counts anew.
    let mut batch = vec![PeerFact::Begin];
    batch.extend(many(5, most + 5));
    batch.push(PeerFact::Synced(9));
    assert_eq!(fold(&mut west, batch), []);
    assert_eq!(west.revocations.len(), MAX_IMPORTED_REVOCATIONS);

    let wide = |n: usize| {
        let mut wide = summary(&format!("shop/s{n}"), "east.example/a");
        let name = |l: usize| format!("{l:0width$}", width = MAX_TEXT_BYTES);
        wide.localities = (0..MAX_LOCALITIES).map(|l| (name(l), Default::default())).collect();
        PeerFact::Service(wide)
    };
    let fit = MAX_IMPORTED_BYTES / (MAX_LOCALITIES * MAX_TEXT_BYTES);
    let mut west = importer();
    let refusals = fold(&mut west, (0..fit + 3).map(wide).collect());
    assert!(!refusals.is_empty() && refusals.iter().all(|r| matches!(r, ImportRefusal::TooMany(_))));
    assert!(west.peers[&cluster("east")].services.len() <= fit);
    assert!(!fold(&mut west, vec![wide(fit + 9)]).is_empty(), "what is held counts in the next batch too");
    assert_eq!(fold(&mut west, vec![wide(0)]), [], "told again is not more");
}

/// east's authority.
fn east_authority() -> hanse_identity::Authority {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let now = Timestamp::from_seconds(1_800_000_000);
    let node: NodeName = "east-1".parse().unwrap();
    let (serial, life) = (Serial::from_random([7; 16]), Duration::from_secs(3600));
    hanse_identity::Authority::create(&domain("east"), &node, key, serial, now, life).unwrap()
}

/// Its empty list with that number.
fn list(authority: &hanse_identity::Authority, number: u64) -> Crl {
    Crl::sign(authority, number, &BTreeMap::new(), Timestamp::from_seconds(1_800_000_000)).unwrap()
}

#[test]
fn revocation_lists_are_told_and_only_those_of_the_peers_own_authorities_are_taken() {
    let authority = east_authority();
    let list = |number| list(&authority, number);
    let certificate = authority.certificate().clone();
    let with = |authorities| Bundle::new(domain("east"), 3, authorities);
    let mut east = view("east");
    east.advance(Revision(5), &[Change::BundlePut(with(vec![certificate.clone()]))]);
    let before = east.clone();
    let put = [Change::CrlPut(domain("east"), list(5))];
    east.advance(Revision(6), &put);
    let told = tell(&before, &east, &put, &cluster("west"));
    assert_eq!(told, [PeerFact::Crl(list_of(&east)), PeerFact::Synced(6)]);

    let mut west = importer();
    let unknown = fold(&mut west, vec![PeerFact::Crl(list(5))]);
    assert!(matches!(&unknown[..], [ImportRefusal::Crl(why)] if why.contains("no authority")), "{unknown:?}");
    assert_eq!(fold(&mut west, tell_all(&east, &cluster("west"))), []);
    assert_eq!(west.crls, east.crls);
    assert_eq!(fold(&mut west, vec![PeerFact::Crl(list(9))]), []);
    for bad in [list(8), Crl { number: 10, ..list(9) }, Crl { der: list(9).der[1..].into(), ..list(10) }] {
        let refused = fold(&mut west, vec![PeerFact::Crl(bad)]);
        assert!(matches!(&refused[..], [ImportRefusal::Crl(_)]), "{refused:?}");
    }
    assert_eq!(list_of(&west).number, 9);
}

#[test]
fn a_retelling_clears_lists_that_it_does_not_name_and_may_start_anew() {
    let authority = east_authority();
    let list = |number| list(&authority, number);
    let bundle = Bundle::new(domain("east"), 3, vec![authority.certificate().clone()]);
    let mut west = importer();
    assert_eq!(fold(&mut west, vec![PeerFact::Bundle(bundle.clone()), PeerFact::Crl(list(9))]), []);
    // As after a restored backup.
    let anew = vec![PeerFact::Begin, PeerFact::Bundle(bundle), PeerFact::Crl(list(4)), PeerFact::Synced(4)];
    assert_eq!(fold(&mut west, anew), []);
    assert_eq!(list_of(&west).number, 4);
    assert_eq!(fold(&mut west, vec![PeerFact::Begin, PeerFact::Synced(5)]), []);
    assert!(west.crls.is_empty());
    west.apply(&Change::PeerFact(cluster("east"), PeerFact::Crl(list(6))));
    assert_eq!(list_of(&west).number, 6);
    west.apply(&Change::PeerGone(cluster("east")));
    assert!(west.crls.is_empty(), "it goes with the peer");
}

/// The one list of east that a View has.
fn list_of(view: &View) -> Crl {
    let lists = &view.crls[&domain("east")];
    assert_eq!(lists.len(), 1);
    lists.values().next().unwrap().clone()
}
