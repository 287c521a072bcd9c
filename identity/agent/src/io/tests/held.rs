//! How long SVIDs are held, and when they are replaced.

use std::sync::Arc;

use hanse_identity::AuthorityState;

use super::*;
use crate::attest::{Caller, Process};
use crate::fixture::{REVIEWS, caller, id};
use crate::io::streams::{MAX_STREAMS_PER_PROCESS, SdsCount};
use crate::io::svids::{HeldKey, Holding, IDLE_GRACE, Lease};

fn me(pid: u32) -> Arc<Caller> {
    let process = Process { pid, started: 1 };
    Arc::new(Caller { process, uid: own_uid(), ..caller() })
}

async fn ready(lease: &mut Lease) -> Arc<Svid> {
    loop {
        if let Holding::Ready(svid) = lease.holding() {
            return svid;
        }
        soon(lease.changed()).await;
    }
}

#[tokio::test]
async fn each_process_has_its_own_key_and_a_reconnect_keeps_it() {
    let bench = Bench::with(&[REVIEWS]);
    let svids = &bench.shared.svids;
    let (mut one, mut two) =
        (svids.hold(&id(REVIEWS), &me(1)).unwrap(), svids.hold(&id(REVIEWS), &me(2)).unwrap());
    let (of_one, of_two) = (ready(&mut one).await, ready(&mut two).await);
    assert_ne!(of_one.facts.serial, of_two.facts.serial);
    assert_ne!(of_one.facts.key_id, of_two.facts.key_id);
    drop(one);
    let mut again = svids.hold(&id(REVIEWS), &me(1)).unwrap();
    assert_eq!(ready(&mut again).await.facts, of_one.facts);
    assert_eq!(bench.issuer.issued.lock().unwrap()[&id(REVIEWS)], 2);
}

#[tokio::test(start_paused = true)]
async fn an_svid_that_nobody_holds_is_dropped_after_the_grace() {
    let bench = Bench::with(&[REVIEWS]);
    let svids = bench.shared.svids.clone();
    let mut lease = svids.hold(&id(REVIEWS), &me(1)).unwrap();
    ready(&mut lease).await;
    drop(lease);
    tokio::time::sleep(IDLE_GRACE / 2).await;
    // Whatever else wakes the task does not prolong the grace.
    bench.change(|_| {});
    tokio::time::sleep(IDLE_GRACE / 4).await;
    assert_eq!(svids.list().len(), 1);
    tokio::time::sleep(IDLE_GRACE / 2).await;
    assert!(svids.list().is_empty());
    let lease = svids.hold(&id(REVIEWS), &me(1)).unwrap();
    tokio::time::sleep(IDLE_GRACE * 4).await;
    assert_eq!(svids.list().len(), 1);
    drop(lease);
}

#[tokio::test]
async fn an_svid_of_a_tainted_authority_is_replaced() {
    let bench = Bench::with(&[REVIEWS]);
    let mut lease = bench.shared.svids.hold(&id(REVIEWS), &me(1)).unwrap();
    let before = ready(&mut lease).await;
    let east_2 = authority(&east());
    let both = bundle(&[&bench.east_1, &east_2]);
    let new_key = east_2.certificate().key_id;
    *bench.issuer.authority.lock().unwrap() = Arc::new(east_2);
    bench.change(|state| {
        state.bundles[0] = both;
        state.bundles[0].authorities[0].state = AuthorityState::Tainted;
    });
    while lease_facts(&lease) == before.facts.serial {
        soon(lease.changed()).await;
    }
    assert_eq!(bench.view.borrow().state.as_ref().unwrap().bundles[0].authorities[1].key_id, new_key);
    assert_eq!(bench.issuer.issued.lock().unwrap()[&id(REVIEWS)], 2);
}

fn lease_facts(lease: &Lease) -> hanse_identity::Serial {
    match lease.holding() {
        Holding::Ready(svid) => svid.facts.serial.clone(),
        other => panic!("the old one is held until the new one is there: {other:?}"),
    }
}

#[tokio::test]
async fn a_failed_renewal_keeps_the_valid_one() {
    let bench = Bench::with(&[REVIEWS]);
    let mut lease = bench.shared.svids.hold(&id(REVIEWS), &me(1)).unwrap();
    let before = ready(&mut lease).await;
    bench.issuer.failing.store(2, Ordering::SeqCst);
    bench.shared.svids.renew_now(&HeldKey { id: id(REVIEWS), process: me(1).process });
    while lease_facts(&lease) == before.facts.serial {
        soon(lease.changed()).await;
    }
    assert_eq!(bench.shared.metrics.renew_failures.get(), 2);
}

#[tokio::test]
async fn what_does_not_verify_is_not_handed_out() {
    let bench = Bench::with(&[REVIEWS]);
    *bench.issuer.authority.lock().unwrap() = Arc::new(authority(&east()));
    let mut lease = bench.shared.svids.hold(&id(REVIEWS), &me(1)).unwrap();
    soon(lease.changed()).await;
    let Holding::Pending(Some(error)) = lease.holding() else { panic!("{:?}", lease.holding()) };
    assert!(error.to_string().contains("does not verify"), "{error}");
}

#[tokio::test]
async fn applied_is_what_the_slowest_stream_has_followed() {
    let streams = Streams::default();
    assert_eq!(streams.applied(7), (7, 0));
    let process = crate::fixture::caller().process;
    let open = || streams.open("sds", process, 1000, 5).unwrap();
    let (slow, fast) = (open(), open());
    fast.handled(7);
    assert_eq!(streams.applied(7), (5, 2));
    assert_eq!(streams.sds(7), SdsCount { subscribers: 2, acknowledged: 1, rejected: 0 });
    let mut progress = streams.progress();
    slow.handled(6);
    assert!(progress.has_changed().unwrap());
    progress.mark_unchanged();
    assert_eq!(streams.applied(7), (6, 2));
    drop(slow);
    assert!(progress.has_changed().unwrap());
    assert_eq!(streams.applied(7), (7, 1));
}

#[tokio::test]
async fn one_process_does_not_open_streams_without_end() {
    let streams = Streams::default();
    let process = crate::fixture::caller().process;
    let held: Vec<_> = (0..MAX_STREAMS_PER_PROCESS).map(|_| streams.open("sds", process, 1000, 1)).collect();
    assert!(held.iter().all(Result::is_ok));
    assert!(streams.open("sds", process, 1000, 1).is_err());
    let other = crate::attest::Process { started: process.started + 1, ..process };
    assert!(streams.open("sds", other, 1000, 1).is_ok(), "a pid that is used again is another process");
    drop(held);
    assert!(streams.open("sds", process, 1000, 1).is_ok());
}
