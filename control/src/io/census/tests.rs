//! Tests of the subscriber table.

use std::sync::Arc;

use hanse_identity::{Reason, RevocationTarget};

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
