//! Tests of the subscriber table.

use std::sync::Arc;

use hanse_federation::traffic::{BOUNDS, Counts, Edge, EdgeKey, Latency, LatencyKey, MAX_EDGES, Seen};
use hanse_identity::{Reason, RevocationTarget};

use super::told::{MAX_IDENTITY_BYTES, TRAFFIC_REMEMBERED};
use super::*;

fn id(name: &str) -> SpiffeId {
    format!("spiffe://east.example/ns/shop/sa/{name}").parse().unwrap()
}

fn join(
    census: &Census,
    name: &str,
    identity: &str,
) -> Result<(StreamKey, mpsc::Receiver<LiveQuestion>), NotJoined> {
    let (questions, asked) = mpsc::channel(4);
    let name: NodeName = name.parse().unwrap();
    let key =
        census.join(SubscriberKind::Proxy, name, id(identity), "0".to_owned(), questions, Timestamp(1))?;
    Ok((key, asked))
}

#[test]
fn a_name_belongs_to_one_identity_while_its_stream_lives() {
    let census = Census::new("east-1".parse().unwrap());
    let (old, mut asked) = join(&census, "reviews-1", "reviews").unwrap();
    let taken = join(&census, "reviews-1", "thief").unwrap_err();
    assert!(matches!(taken, NotJoined::NameTaken { holder, .. } if holder == id("reviews")));
    let (new, _asked) = join(&census, "reviews-1", "reviews").unwrap();
    assert!(
        asked.try_recv().is_err_and(|e| e == mpsc::error::TryRecvError::Disconnected),
        "the old stream ends"
    );
    assert!(!census.is_latest(&old));
    census.leave(&old, Timestamp(2));
    assert!(census.holds(&new.name), "an old stream's end does not end the new one");
    census.forget(&old);
    assert_eq!(census.subscribers(Timestamp(2)).len(), 1);
    census.leave(&new, Timestamp(3));
    assert!(!census.holds(&new.name));
    assert!(!census.subscribers(Timestamp(3))[0].connected);
    census.forget(&new);
    assert!(census.subscribers(Timestamp(3)).is_empty());
    assert!(join(&census, "reviews-1", "thief").is_ok(), "a name that nobody holds is free");
}

#[test]
fn what_is_applied_never_goes_back_and_an_agent_is_forgotten_in_time() {
    let census = Census::new("east-1".parse().unwrap());
    let (questions, _asked) = mpsc::channel(1);
    let host: SpiffeId = "spiffe://east.example/hanse/agent/host-1".parse().unwrap();
    let name = "host-1".parse().unwrap();
    let key = census.join(SubscriberKind::Agent, name, host, String::new(), questions, Timestamp(0)).unwrap();
    census.applied(&key, 9, vec![], Timestamp(1));
    census.applied(&key, 4, vec![], Timestamp(2));
    assert_eq!(census.subscribers(Timestamp(2))[0].applied, 9);
    census.leave(&key, Timestamp(1000));
    let late = Timestamp(1000) + AGENT_REMEMBERED;
    assert_eq!(census.subscribers(late - Duration::from_millis(1)).len(), 1);
    assert!(census.subscribers(late).is_empty());
}

#[tokio::test]
async fn live_connections_are_added_up_and_silence_is_told() {
    let census = Arc::new(Census::new("east-1".parse().unwrap()));
    let (_a, mut first) = join(&census, "a", "a").unwrap();
    let (_b, _silent) = join(&census, "b", "b").unwrap();
    let answering = census.clone();
    tokio::spawn(async move {
        let question = first.recv().await.unwrap();
        let caller = LiveCount { connections: 5, answered: 1, asked: 0, callers: [id("b")].into() };
        answering.live_answer(question.query, caller.clone());
        answering.live_answer(question.query + 1000, caller);
    });
    let revocation = Revocation::new(
        "r-1@east.example".parse().unwrap(),
        RevocationTarget::Identity(id("a")),
        Reason::Hold,
        Timestamp(1),
    );
    let count = census.live(&revocation).await;
    assert_eq!(count, LiveCount { connections: 5, answered: 1, asked: 2, callers: [id("b")].into() });
    census.live_answer(1, LiveCount::default());
}

#[test]
fn what_a_subscriber_says_does_not_grow_without_end() {
    let census = Census::new("east-1".parse().unwrap());
    let (key, _asked) = join(&census, "reviews-1", "reviews").unwrap();
    for batch in 0..4u64 {
        let origin: hanse_identity::TrustDomain = "east.example".parse().unwrap();
        let cause = |number| RevocationId { number, origin: origin.clone() };
        let closed = (0..MAX_CAUSES as u64).map(|n| (cause(batch * 10_000 + n), 1)).collect();
        census.applied(&key, 5, closed, Timestamp(2));
    }
    let closed = &census.subscribers(Timestamp(3))[0].closed;
    assert_eq!(closed.len(), MAX_CAUSES);
    assert_eq!(closed.keys().next().unwrap().number, 30_000, "the newest are kept");
    for n in 1..MAX_PER_IDENTITY {
        join(&census, &format!("thief-{n}"), "reviews").unwrap();
    }
    assert_eq!(join(&census, "thief-0", "reviews").unwrap_err(), NotJoined::TooMany(id("reviews")));
    assert!(join(&census, "reviews-1", "reviews").is_ok(), "a name that is known may come again");
    assert!(join(&census, "ratings-1", "ratings").is_ok());
}

/// Calls that a workload says it made, to that many destinations with long names.
fn report(of: &str, edges: usize) -> Report {
    let key = |n: usize| EdgeKey {
        seen: Seen::ByCaller,
        service: format!("shop/s{n}"),
        source: id(of).to_string(),
        source_cluster: "east".to_owned(),
        destination: format!("spiffe://east.example/{}/{n}", "a".repeat(1900)),
        destination_cluster: "east".to_owned(),
    };
    let edge = |n| Edge { key: key(n), counts: Counts { requests: 1.0, failures: 0.0 } };
    let latency = |n| {
        let EdgeKey { seen, service, source_cluster, destination_cluster, .. } = key(n);
        let key = LatencyKey { seen, service, source_cluster, destination_cluster };
        Latency { key, buckets: vec![1.0; BOUNDS.len() + 1] }
    };
    Report { edges: (0..edges).map(edge).collect(), latencies: (0..edges).map(latency).collect(), cut: false }
}

#[test]
fn what_one_identity_says_it_counted_takes_its_share_of_memory_and_only_while_it_is_there() {
    let census = Census::new("east-1".parse().unwrap());
    let held = || census.table().traffic.held();
    let (honest, _asked) = join(&census, "ratings-1", "ratings").unwrap();
    census.traffic(&honest, report("ratings", 2), Timestamp(1));
    let honest_bytes = held();
    let thieves: Vec<_> = (0..60).map(|n| join(&census, &format!("thief-{n}"), "reviews").unwrap()).collect();
    for (thief, _) in &thieves {
        census.traffic(thief, report("reviews", MAX_EDGES), Timestamp(2));
    }
    assert!(held() <= MAX_IDENTITY_BYTES + honest_bytes, "{} bytes", held());
    let reports = census.counted(Timestamp(2));
    assert_eq!(reports.len(), 61);
    let whole = report("ratings", 2);
    assert!(reports.iter().any(|told| **told == whole), "who says little is told of in full");
    assert!(reports.iter().filter(|told| told.cut).count() == 60, "what was left out is told");
    // Said again, it is instead of what was said before.
    let before = held();
    census.traffic(&thieves[0].0, report("reviews", MAX_EDGES), Timestamp(3));
    assert_eq!(held(), before);
    let gone = thieves.iter().map(|(thief, _)| thief);
    gone.for_each(|thief| census.leave(thief, Timestamp(4)));
    assert_eq!(held(), honest_bytes, "who has left told of nothing");
    let (_taken_over, _asked) = join(&census, "ratings-1", "ratings").unwrap();
    census.traffic(&honest, report("ratings", 2), Timestamp(4));
    assert_eq!(held(), 0, "an older stream of that name");
    let (again, _asked) = join(&census, "thief-0", "reviews").unwrap();
    census.traffic(&again, report("reviews", MAX_EDGES), Timestamp(5));
    assert!(held() > 100_000, "there is room again");
    census.subscribers(Timestamp(5) + TRAFFIC_REMEMBERED);
    assert_eq!(held(), 0, "nobody asks for what was a while ago");
}
