//! Tests of `join`: every refusal, and both or neither under loss, doubling and crashes.

use std::collections::BTreeMap;

use hanse_identity::{AuthorityCertificate, KeyId, NodeName, Serial};

use super::*;
use crate::catalog::{Gateway, Locality, Session};
use crate::change::Change;
use crate::view::{Revision, View};

const VERSION: &str = "0.1.0";
const NOW: Timestamp = Timestamp(1_800_000_000_000);

thread_local! {
    /// Making keys is slow; one authority per cluster and test thread is enough.
    static AUTHORITIES: std::cell::RefCell<BTreeMap<String, AuthorityCertificate>> = const { std::cell::RefCell::new(BTreeMap::new()) };
}

fn authority(cluster: &str) -> AuthorityCertificate {
    AUTHORITIES.with_borrow_mut(|made| {
        let make = || {
            let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
            let trust_domain = format!("{cluster}.example").parse().unwrap();
            let node: NodeName = "n-1".parse().unwrap();
            let serial = Serial::from_random([9; 16]);
            let lifetime = Duration::from_secs(3600);
            hanse_identity::Authority::create(&trust_domain, &node, key, serial, NOW, lifetime)
                .unwrap()
                .certificate()
                .clone()
        };
        made.entry(cluster.to_owned()).or_insert_with(make).clone()
    })
}

fn view(cluster: &str) -> View {
    let mut view = View::new(cluster.parse().unwrap(), format!("{cluster}.example").parse().unwrap());
    view.apply(&Change::GatewayPut(Gateway {
        name: "gateway-1".parse().unwrap(),
        identity: format!("spiffe://{cluster}.example/hanse/gateway/gateway-1").parse().unwrap(),
        locality: Locality::default(),
        passthrough: "127.0.0.1:1".parse().unwrap(),
        tunnel: "127.0.0.1:2".to_owned(),
        ready: true,
        session: Session { incarnation: 1, sequence: 1, node: "n-1".parse().unwrap() },
    }));
    view
}

fn offer(view: &View) -> Offer {
    let authorities = vec![authority(view.cluster.as_str())];
    Offer {
        cluster: view.cluster.clone(),
        trust_domain: view.trust_domain.clone(),
        bundle: Bundle::new(view.trust_domain.clone(), 1, authorities),
        endpoints: vec!["127.0.0.1:7443".to_owned()],
        gateways: crate::session::gateways(view),
        clock: NOW,
        version: VERSION.to_owned(),
    }
}

fn commit(view: &mut View, offer: &Offer, invite: &str) -> u64 {
    let next = Revision(view.revision.0 + 1);
    view.advance(
        next,
        &[Change::PeerPut(record(offer, invite, NOW)), Change::BundlePut(offer.bundle.clone())],
    );
    next.0
}

fn failing(view: &View, offer: &Offer) -> Vec<String> {
    let checks = check_offer(view, offer, "i-1", NOW, VERSION);
    checks
        .into_iter()
        .filter(|check| !check.ok)
        .map(|check| format!("{}: {}", check.name, check.detail))
        .collect()
}

#[test]
fn a_good_offer_passes_and_says_what_was_found() {
    let checks =
        check_offer(&view("west"), &offer(&view("east")), "i-1", NOW + Duration::from_millis(250), VERSION);
    let lines: Vec<String> = checks.iter().map(|c| format!("{} {} {}", c.ok, c.name, c.detail)).collect();
    let KeyId(id) = authority("east").key_id;
    let pin =
        format!("true pin sha256:{:02x}{:02x}{:02x}{:02x}… of east.example", id[0], id[1], id[2], id[3]);
    let expected = [
        pin.as_str(),
        "true clocks skew 0.2 s (limit 30 s)",
        "true names no clash: east, east.example",
        "true version east has 0.1.0, here it is 0.1.0",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn every_refusal_says_how_to_mend_it() {
    let (west, good) = (view("west"), offer(&view("east")));
    let east = |change: fn(&mut Offer)| {
        let mut offer = good.clone();
        change(&mut offer);
        offer
    };
    for (offer, expected) in [
        (offer(&view("west")), "names: west would join itself"),
        (
            {
                let mut twin = offer(&view("east"));
                twin.cluster = "west".parse().unwrap();
                twin
            },
            "names: both clusters are named west",
        ),
        (
            {
                let mut twin = offer(&view("west"));
                twin.cluster = "east".parse().unwrap();
                twin
            },
            "names: both clusters have trust domain west.example",
        ),
        (
            east(|o| o.bundle.authorities.clear()),
            "pin: the bundle of east.example is not good: the bundle has no authority",
        ),
        (
            east(|o| o.bundle.trust_domain = "north.example".parse().unwrap()),
            "pin: east offers the bundle of north.example",
        ),
        (east(|o| o.clock = NOW + Duration::from_secs(31)), "clocks: skew 31.0 s (limit 30 s)"),
        (east(|o| o.clock = NOW - Duration::from_secs(40)), "clocks: skew 40.0 s (limit 30 s)"),
        (
            east(|o| o.version = "1.0.0".to_owned()),
            "version: east has 1.0.0, here it is 0.1.0: more than one minor version apart; upgrade this cluster first",
        ),
        (east(|o| o.version = "x".to_owned()), "version: east has x"),
        (east(|o| o.endpoints.clear()), "reach: east names no control node"),
        (east(|o| o.endpoints = vec!["nowhere".to_owned()]), "reach: an address of east: \"nowhere\""),
        (east(|o| o.gateways.clear()), "gateways: east has no gateway, and a join needs one on each side"),
        (
            east(|o| o.gateways[0].identity = "spiffe://west.example/hanse/gateway/a".parse().unwrap()),
            "gateways: east names spiffe://west.example/hanse/gateway/a as a gateway",
        ),
        (east(|o| o.gateways[0].tunnel = "a b:1".to_owned()), "gateways: gateway gateway-1 of east"),
    ] {
        let found = failing(&west, &offer);
        assert!(found.iter().any(|line| line.starts_with(expected)), "{expected}: {found:?}");
    }
    assert_eq!(failing(&west, &east(|o| o.version = "0.2.7".to_owned())), [""; 0]);
    let mut bare = west.clone();
    bare.gateways.clear();
    assert!(failing(&bare, &good)[0].starts_with("gateways: west has no gateway"));
}

#[test]
fn a_peer_is_joined_again_only_by_its_own_invite() {
    let (mut west, east) = (view("west"), offer(&view("east")));
    commit(&mut west, &east, "i-1");
    assert_eq!(failing(&west, &east), [""; 0]);
    let other = check_offer(&west, &east, "i-2", NOW, VERSION);
    let names = other.iter().find(|check| check.name == "names").unwrap();
    assert!(!names.ok && names.detail.ends_with("leave first: hanse cluster leave east"), "{names:?}");
    let mut thief = offer(&view("north"));
    thief.trust_domain = "east.example".parse().unwrap();
    thief.bundle = east.bundle.clone();
    assert!(
        failing(&west, &thief)[0].starts_with("names: trust domain east.example belongs to east already")
    );
    let mut moved = east.clone();
    moved.trust_domain = "other.example".parse().unwrap();
    assert!(
        failing(&west, &moved)
            .iter()
            .any(|line| line.contains("has already joined west (trust domain east.example)"))
    );
}

#[test]
fn the_inviter_confirms_what_it_has_committed_and_never_refuses_to_undo() {
    let (mut east, west) = (view("east"), view("west"));
    let request = |phase| JoinRequest { invite: "i-1".to_owned(), phase, offer: offer(&west), proof: vec![] };
    let reach_back = [Check::failed("reachBack", "nobody answers")];
    let ok =
        |view: &View, phase| invited(view, &request(phase), &reach_back, NOW, VERSION).iter().all(|c| c.ok);
    assert!(!ok(&east, Phase::Preflight));
    assert!(ok(&east, Phase::Commit));
    east.gateways.clear();
    assert!(!ok(&east, Phase::Commit));
    assert!(ok(&east, Phase::Abort));
    commit(&mut east, &offer(&west), "i-1");
    assert!(ok(&east, Phase::Commit), "the same answer, whatever has changed since");
    let mut other = request(Phase::Commit);
    other.invite = "i-2".to_owned();
    assert!(!invited(&east, &other, &[], NOW, VERSION).iter().all(|c| c.ok));
}

/// Two clusters and the wire between them; what goes wrong on it is drawn from a seed.
struct World {
    east: View,
    west: View,
    random: u64,
    /// In percent: how often a request, or its reply, is lost.
    loss: u64,
    /// West's log refuses the commit.
    west_refuses: bool,
    probes_fail: bool,
    lines: Vec<Check>,
}

/// How a run of the joiner ended.
#[derive(Debug, PartialEq)]
enum End {
    Done { joined: bool },
    Crashed,
}

impl World {
    fn new(seed: u64, loss: u64) -> Self {
        let random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        Self {
            east: view("east"),
            west: view("west"),
            random,
            loss,
            west_refuses: false,
            probes_fail: false,
            lines: vec![],
        }
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_F491_4F6C_DD1D) % 100 < percent
    }

    /// East's shell: decides, commits, undoes.
    fn serve(&mut self, phase: Phase) -> JoinReply {
        let request =
            JoinRequest { invite: "i-1".to_owned(), phase, offer: offer(&self.west), proof: vec![] };
        let reach_back = [Check::passed("reachBack", "1/1 endpoints")];
        let checks = invited(&self.east, &request, &reach_back, NOW, VERSION);
        let good = checks.iter().all(|check| check.ok);
        let west = self.west.cluster.clone();
        let ours = |view: &View| view.peers.get(&west).is_some_and(|peer| peer.record.invite == "i-1");
        match phase {
            Phase::Commit if good && !ours(&self.east) => {
                commit(&mut self.east, &request.offer, "i-1");
            }
            Phase::Abort if ours(&self.east) => self.east.apply(&Change::PeerGone(west.clone())),
            _ => {}
        }
        let committed = ours(&self.east).then_some(self.east.revision.0);
        JoinReply { checks, offer: good.then(|| offer(&self.east)), committed }
    }

    fn send(&mut self, phase: Phase) -> Result<JoinReply, String> {
        if self.chance(self.loss) {
            return Err("the request was lost".to_owned());
        }
        if self.chance(self.loss) {
            self.serve(phase);
        }
        let reply = self.serve(phase);
        if self.chance(self.loss) { Err("the reply was lost".to_owned()) } else { Ok(reply) }
    }

    /// West's shell: performs outputs until the end, or until it crashes before the step `crash_at`.
    fn join(&mut self, crash_at: Option<usize>) -> End {
        let mut joiner = Joiner::new(&self.west, "i-1", NOW, VERSION);
        let mut inputs = vec![JoinerInput::Start];
        let mut steps = 0;
        while let Some(input) = inputs.pop() {
            let outputs = joiner.handle(NOW, input.clone());
            // Heard twice, it does nothing twice (a reply belongs to what was sent last, so after a new sending none is).
            if !outputs.iter().any(|output| matches!(output, JoinerOutput::Send(_))) {
                assert_eq!(joiner.handle(NOW, input), []);
            }
            for output in outputs {
                steps += 1;
                if crash_at == Some(steps) {
                    return End::Crashed;
                }
                match output {
                    JoinerOutput::Line(check) => self.lines.push(check),
                    JoinerOutput::Send(phase) => {
                        inputs.push(JoinerInput::Replied(self.send(phase).map(Box::new)))
                    }
                    JoinerOutput::Probe(gateways) => {
                        let result = if self.probes_fail {
                            Err("refused".to_owned())
                        } else {
                            Ok(Duration::from_micros(4800))
                        };
                        inputs.push(JoinerInput::Probed(
                            gateways.iter().map(|g| (g.name.to_string(), result.clone())).collect(),
                        ));
                    }
                    JoinerOutput::Commit(offer) => {
                        let result = match self.west_refuses {
                            true => Err("no quorum".to_owned()),
                            false => Ok(commit(&mut self.west, &offer, "i-1")),
                        };
                        inputs.push(JoinerInput::Committed(result));
                    }
                    JoinerOutput::Done { joined } => return End::Done { joined },
                }
            }
            assert!(steps < 100, "the join ends");
        }
        panic!("the joiner waits for nothing")
    }

    fn sides(&self) -> (bool, bool) {
        (self.east.peers.contains_key(&self.west.cluster), self.west.peers.contains_key(&self.east.cluster))
    }

    fn shown(&self) -> Vec<String> {
        self.lines
            .iter()
            .map(|c| format!("{} {} {}", if c.ok { "✓" } else { "✗" }, c.name, c.detail))
            .collect()
    }
}

#[test]
fn a_join_shows_its_lines_and_ends_with_both() {
    let mut world = World::new(1, 0);
    assert_eq!(world.join(None), End::Done { joined: true });
    assert_eq!(world.sides(), (true, true));
    let names: Vec<&str> = world.lines.iter().map(|check| check.name.as_str()).collect();
    assert_eq!(names, ["clocks", "names", "version", "reachBack", "gateways", "agree"]);
    assert!(world.lines.iter().all(|check| check.ok));
    assert_eq!(world.shown()[4], "✓ gateways west→east gateway-1 4.8 ms");
    assert_eq!(world.shown()[5], "✓ agree committed at east #1 and west #1");
    assert!(world.west.bundles.contains_key(&world.east.trust_domain));
    // Once more, by the same invite: nothing new, the same answer.
    assert_eq!(world.join(None), End::Done { joined: true });
    assert_eq!(world.sides(), (true, true));
}

#[test]
fn a_failing_check_on_either_side_commits_nothing() {
    for side in ["east", "west"] {
        let mut world = World::new(1, 0);
        if side == "east" {
            world.east.gateways.clear()
        } else {
            world.west.gateways.clear()
        }
        assert_eq!(world.join(None), End::Done { joined: false });
        assert_eq!(world.sides(), (false, false));
        let shown = world.shown();
        assert!(shown.iter().any(|line| line.contains(&format!("{side} has no gateway"))), "{shown:?}");
        assert!(shown.last().unwrap().ends_with("both clusters are as they were before"), "{shown:?}");
    }
}

#[test]
fn dead_gateways_and_a_failed_commit_leave_both_as_before() {
    let mut world = World::new(1, 0);
    world.probes_fail = true;
    assert_eq!(world.join(None), End::Done { joined: false });
    assert_eq!(world.sides(), (false, false));
    assert!(
        world.shown().contains(
            &"✗ gateways west→east gateway-1 did not answer: refused; open the way to a gateway of east"
                .to_owned()
        )
    );
    let mut world = World::new(1, 0);
    world.west_refuses = true;
    assert_eq!(world.join(None), End::Done { joined: false });
    assert_eq!(world.sides(), (false, false));
    assert!(world.shown().contains(&"✗ agree west could not commit: no quorum".to_owned()));
}

#[test]
fn one_gateway_that_answers_is_enough_and_the_others_are_named() {
    let west = view("west");
    let mut joiner = Joiner::new(&west, "i-1", NOW, VERSION);
    joiner.handle(NOW, JoinerInput::Start);
    let reply = JoinReply { checks: vec![], offer: Some(offer(&view("east"))), committed: None };
    joiner.handle(NOW, JoinerInput::Replied(Ok(Box::new(reply))));
    let results =
        vec![("a".to_owned(), Err("refused".to_owned())), ("b".to_owned(), Ok(Duration::from_millis(5)))];
    let outputs = joiner.handle(NOW, JoinerInput::Probed(results));
    let line = Check::passed("gateways", "west→east a did not answer: refused, b 5.0 ms");
    assert_eq!(outputs, [JoinerOutput::Line(line), JoinerOutput::Send(Phase::Commit)]);
}

/// Whatever is lost or doubled on the way: both or neither; and if the other side could not be told, the user is.
#[test]
fn a_join_ends_with_both_or_neither_whatever_is_lost() {
    let (mut joined, mut refused, mut untold) = (0, 0, 0);
    for seed in 1..=3000u64 {
        let mut world = World::new(seed, 5 * (seed % 12));
        world.west_refuses = seed % 5 == 0;
        world.probes_fail = seed % 17 == 0;
        let end = world.join(None);
        match (end, world.sides()) {
            (End::Done { joined: true }, (true, true)) => joined += 1,
            (End::Done { joined: false }, (false, false)) => refused += 1,
            (End::Done { joined: false }, (true, false)) => {
                let last = world.lines.last().unwrap();
                assert!(last.detail.contains("could not be told to undo"), "seed {seed}: {last:?}");
                untold += 1;
                // As the line says: the same token again ends it.
                (world.loss, world.probes_fail) = (0, seed % 2 == 0);
                let again = world.join(None);
                let (east, west) = world.sides();
                assert_eq!(east, west, "seed {seed}: {again:?} {:?}", world.shown());
            }
            (end, sides) => panic!("seed {seed}: {end:?} {sides:?} {:?}", world.shown()),
        }
    }
    assert!(joined > 500 && refused > 500 && untold > 5, "{joined} {refused} {untold}");
}

/// A crash of the joiner anywhere is followed by the same answer: the same token again ends with both or neither.
#[test]
fn a_join_after_a_crash_anywhere_ends_with_both_or_neither() {
    for crash_at in 1..=14 {
        for seed in 1..=40u64 {
            for fails in [false, true] {
                let mut world = World::new(seed, 5 * (seed % 4));
                let first = world.join(Some(crash_at));
                world.loss = 0;
                world.probes_fail = fails;
                let second = world.join(None);
                let sides = world.sides();
                assert_eq!(sides.0, sides.1, "crash at {crash_at}, seed {seed}: {first:?} {second:?}");
                if !fails {
                    assert_eq!(second, End::Done { joined: true }, "crash at {crash_at}, seed {seed}");
                }
            }
        }
    }
}
