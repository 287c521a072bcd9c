//! What the table makes of an authority that is on its way out, and of a nested issuer that is revoked.

use hanse_identity::{AuthorityState, Bundle, Revocations, Svid, Usage, verify};

use super::*;
use crate::runtime::now;
use crate::sidecar::tests::world::Domain;

fn trust(domain: &Domain, state: AuthorityState) -> Trust {
    let mut bundle: Bundle = domain.bundle();
    bundle.authorities.iter_mut().for_each(|a| a.state = state);
    Trust::new([&bundle], Revocations::default())
}

fn entrant(domain: &Domain, svid: &Svid) -> Entrant {
    let chain: Vec<&[u8]> = svid.chain.iter().map(Vec::as_slice).collect();
    let peer = verify(&trust(domain, AuthorityState::Active), &chain, now(), Usage::Client).unwrap();
    let own = Arc::new(TlsIdentity::new(&domain.workload("own")).unwrap());
    Entrant { side: Side::Inbound, peer, own, service: None, cluster: None }
}

#[test]
fn connections_below_an_outgoing_authority_leave_in_groups_and_are_cut_only_when_it_is_gone() {
    let east = Domain::new("east.example");
    let table = Arc::new(Connections::new(Arc::default()));
    let svid = east.workload("reviews");
    let live: Vec<Live> = (0..16).map(|_| table.enter(entrant(&east, &svid), now())).collect();
    let orders = |order: fn(&Order) -> bool| live.iter().filter(|l| order(&l.order())).count();
    let leaving = || orders(|o| *o == Order::Leave(Cause::AuthorityOutgoing));

    let (believed, outgoing) = (trust(&east, AuthorityState::Active), trust(&east, AuthorityState::Tainted));
    let start = now();
    table.sweep(&believed, None, start);
    assert!(table.outgoing(&believed).is_empty());
    table.sweep(&outgoing, None, start);
    assert_eq!(table.outgoing(&outgoing), BTreeMap::from([(east.trust_domain.clone(), 16)]));
    assert_eq!(leaving(), 0, "agents have time to replace SVIDs");
    table.sweep(&outgoing, None, start + REPLACED_WITHIN + LEAVE_SPREAD / 2);
    let some = leaving();
    assert!(0 < some && some < live.len(), "{some} leave in the middle");
    // A younger one, with an SVID that was still of the old authority, has as much time.
    let late = table.enter(entrant(&east, &svid), start);
    table.sweep(&outgoing, None, start + REPLACED_WITHIN + LEAVE_SPREAD);
    assert_eq!((leaving(), late.order()), (live.len(), Order::Stay));
    assert_eq!(orders(|o| matches!(o, Order::Close(_))), 0, "what is in flight is finished");

    // Only who is still there when it is gone is cut.
    let gone = Trust::new([&Domain::new("east.example").bundle()], Revocations::default());
    table.sweep(&gone, None, start + REPLACED_WITHIN + LEAVE_SPREAD);
    assert_eq!(orders(|o| *o == Order::Close(Cause::Untrusted)), live.len());
    drop((live, late));
    assert!(table.outgoing(&outgoing).is_empty());
}

#[test]
fn what_we_dialled_below_an_outgoing_authority_leaves_whoever_is_at_the_other_end() {
    let (east, west) = (Domain::new("east.example"), Domain::new("west.example"));
    let table = Arc::new(Connections::new(Arc::default()));
    let both = |state| {
        let (mut own, other) = (east.bundle(), west.bundle());
        own.authorities.iter_mut().for_each(|a| a.state = state);
        Trust::new([&own, &other], Revocations::default())
    };
    let own = Arc::new(TlsIdentity::new(&east.workload("own")).unwrap());
    let live = table.enter(Entrant { own, ..entrant(&west, &west.gateway("gateway-1")) }, now());
    let start = now();
    let outgoing = both(AuthorityState::Tainted);
    table.sweep(&both(AuthorityState::Active), None, start + REPLACED_WITHIN + LEAVE_SPREAD);
    table.sweep(&outgoing, None, start);
    assert_eq!(live.order(), Order::Stay);
    table.sweep(&outgoing, None, start + REPLACED_WITHIN + LEAVE_SPREAD);
    assert_eq!(live.order(), Order::Leave(Cause::AuthorityOutgoing));
    assert!(
        table.outgoing(&outgoing).is_empty(),
        "it rests on the other end's authority, and is counted there"
    );
}

#[test]
fn what_was_taken_back_in_time_stays() {
    let east = Domain::new("east.example");
    let table = Arc::new(Connections::new(Arc::default()));
    let live = table.enter(entrant(&east, &east.workload("reviews")), now());
    let (believed, outgoing) = (trust(&east, AuthorityState::Active), trust(&east, AuthorityState::Tainted));
    let start = now();
    table.sweep(&outgoing, None, start);
    table.sweep(&believed, None, start + Duration::from_secs(1));
    table.sweep(&outgoing, None, start + Duration::from_secs(10));
    assert_eq!(live.order(), Order::Stay, "it counts from when it was seen last");
    assert!(
        outgoing.is_outgoing(&east.workload("own").facts)
            && !believed.is_outgoing(&east.workload("own").facts)
    );
}

#[test]
fn connections_whose_peer_a_nested_issuer_signed_are_counted_and_cut_when_its_intermediate_is_revoked() {
    let east = Domain::new("east.example");
    let table = Arc::new(Connections::new(Arc::default()));
    let ((svid, issuer), (other, _)) = (east.nested("reviews"), east.nested("reviews"));
    let enter = |svid: &Svid| table.enter(entrant(&east, svid), now());
    let (through, beside, direct) = (enter(&svid), enter(&other), enter(&east.workload("reviews")));
    let own = hanse_identity::RevocationId { number: 5, origin: east.trust_domain.clone() };
    let revoked = |target, serials: &[&hanse_identity::Serial]| Revocation {
        serials: serials.iter().map(|s| (*s).clone()).collect(),
        ..Revocation::new(own.clone(), target, hanse_identity::Reason::KeyCompromise, now())
    };
    use hanse_identity::RevocationTarget::{Agent, Identity, Key, Serial};
    let all = [
        revoked(Serial(issuer.serial.clone()), &[]),
        revoked(Key(issuer.key_id), &[]),
        revoked(Identity(east.id("issuer")), &[&issuer.serial]),
        revoked(Agent("host-1".parse().unwrap()), &[&issuer.serial]),
    ];
    for revocation in &all {
        let reach = table.reach(revocation);
        assert_eq!((reach.connections, reach.others.len()), (1, 1), "{}", revocation.target);
    }
    let mut believed = trust(&east, AuthorityState::Active);
    table.sweep(&believed, None, now());
    assert_eq!(through.order(), Order::Stay);
    believed.revocations.insert(all[2].clone());
    table.sweep(&believed, None, now());
    assert_eq!(through.order(), Order::Close(Cause::Revoked(own.clone())));
    assert!(through.check(&believed, now()).is_err(), "nor would it be served");
    assert_eq!((beside.order(), direct.order()), (Order::Stay, Order::Stay));
    drop(through);
    assert_eq!(table.closed(), [(own, 1)]);
}
