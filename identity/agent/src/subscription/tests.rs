//! Both protocols, rule by rule.

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};

use super::delta::DeltaSubscription;
use super::world::Subscription;
use super::*;

fn asking(names: &[&str]) -> DiscoveryRequest {
    let resource_names = names.iter().map(|n| (*n).to_owned()).collect();
    DiscoveryRequest { resource_names, type_url: Secret::type_url(), ..Default::default() }
}

fn answering(names: &[&str], response: &DiscoveryResponse) -> DiscoveryRequest {
    let (version_info, response_nonce) = (response.version_info.clone(), response.nonce.clone());
    DiscoveryRequest { version_info, response_nonce, ..asking(names) }
}

fn refusal() -> Option<rpc::Status> {
    Some(rpc::Status { code: 13, message: "no such\nkey".into(), ..Default::default() })
}

fn rejecting(names: &[&str], response: &DiscoveryResponse, previous: &str) -> DiscoveryRequest {
    DiscoveryRequest { version_info: previous.into(), error_detail: refusal(), ..answering(names, response) }
}

fn secrets(entries: &[(&str, &str)]) -> BTreeMap<String, Any> {
    let any = |value: &str| Any { type_url: Secret::type_url(), value: value.as_bytes().to_vec() };
    entries.iter().map(|(name, value)| ((*name).to_owned(), any(value))).collect()
}

fn answer<C: Conversation>(stream: &mut C, entries: &[(&str, &str)]) -> Option<C::Response> {
    stream.answer(secrets(entries), &BTreeSet::new())
}

// ---- state of the world

#[test]
fn first_request_is_answered_and_the_acknowledgement_is_not() {
    let mut stream = Subscription::new(7);
    assert_eq!(stream.hear(&asking(&["default"])), Ok(Heard::Asked));
    let first = answer(&mut stream, &[("default", "a")]).unwrap();
    assert_eq!((first.version_info.as_str(), first.resources.len()), ("1", 1));
    assert!(stream.unanswered() && !stream.in_force());
    assert_eq!(stream.hear(&answering(&["default"], &first)), Ok(Heard::Accepted { version: 1 }));
    assert_eq!(answer(&mut stream, &[("default", "a")]), None);
    assert!(!stream.unanswered() && stream.in_force());
    let second = answer(&mut stream, &[("default", "b")]).unwrap();
    assert_eq!(second.version_info, "2");
    assert_ne!(second.nonce, first.nonce);
    assert!(!stream.in_force(), "sent is not in force");
}

#[test]
fn what_was_rejected_is_kept_in_mind_and_sent_again_only_when_it_has_changed() {
    let mut stream = Subscription::new(7);
    stream.hear(&asking(&["ALL"])).unwrap();
    let good = answer(&mut stream, &[("ALL", "good")]).unwrap();
    stream.hear(&answering(&["ALL"], &good)).unwrap();
    let bad = answer(&mut stream, &[("ALL", "bad")]).unwrap();
    let rejected = Heard::Rejected { version: 2, detail: "no suchkey".into() };
    assert_eq!(stream.hear(&rejecting(&["ALL"], &bad, "1")), Ok(rejected));
    for _ in 0..3 {
        assert_eq!(answer(&mut stream, &[("ALL", "bad")]), None);
        assert!(!stream.in_force() && !stream.unanswered());
    }
    let kept = Rejection { version: 2, names: vec!["ALL".into()], detail: "no suchkey".into() };
    assert_eq!(stream.rejection(), Some(&kept));
    let better = answer(&mut stream, &[("ALL", "better")]).unwrap();
    assert_eq!(stream.rejection(), Some(&kept), "until something newer is in force");
    assert_eq!(stream.hear(&answering(&["ALL"], &better)), Ok(Heard::Accepted { version: 3 }));
    assert!(stream.in_force() && stream.rejection().is_none());
}

#[test]
fn an_answer_to_an_older_response_or_to_none_is_ignored() {
    let mut stream = Subscription::new(7);
    stream.hear(&asking(&["default"])).unwrap();
    let first = answer(&mut stream, &[("default", "a")]).unwrap();
    let second = answer(&mut stream, &[("default", "b")]).unwrap();
    let of_another_stream =
        DiscoveryResponse { nonce: second.nonce.replace("0007-", "0008-"), ..second.clone() };
    for stale in [&first, &of_another_stream, &DiscoveryResponse::default()] {
        assert_eq!(stream.hear(&answering(&["ALL"], stale)), Ok(Heard::Stale));
        assert_eq!(stream.hear(&rejecting(&["ALL"], stale, "")), Ok(Heard::Stale));
    }
    assert!(stream.names().contains("default") && stream.unanswered() && stream.rejection().is_none());
    assert_eq!(stream.hear(&answering(&["default"], &second)), Ok(Heard::Accepted { version: 2 }));
}

#[test]
fn names_may_change_on_the_stream() {
    let mut stream = Subscription::new(7);
    stream.hear(&asking(&["default"])).unwrap();
    let first = answer(&mut stream, &[("default", "a")]).unwrap();
    stream.hear(&answering(&["default"], &first)).unwrap();
    assert_eq!(stream.hear(&answering(&["ALL", "default"], &first)), Ok(Heard::Asked));
    let both = answer(&mut stream, &[("default", "a"), ("ALL", "x")]).unwrap();
    assert_eq!(both.resources.len(), 2);
    // Asked for less: nothing is sent. Asked again: it is.
    stream.hear(&answering(&["default"], &both)).unwrap();
    assert_eq!(answer(&mut stream, &[("default", "a")]), None);
    assert!(stream.in_force() && !stream.holds("ALL"));
    stream.hear(&answering(&["ALL", "default"], &both)).unwrap();
    assert!(answer(&mut stream, &[("default", "a"), ("ALL", "x")]).is_some());
    // Asked for nothing: the stream goes on.
    let mut stream = Subscription::new(7);
    stream.hear(&asking(&["default"])).unwrap();
    let first = answer(&mut stream, &[("default", "a")]).unwrap();
    assert_eq!(stream.hear(&answering(&[], &first)), Ok(Heard::Accepted { version: 1 }));
    assert!(stream.names().is_empty() && stream.in_force());
}

#[test]
fn a_nonce_of_an_earlier_stream_does_not_stop_the_first_request_and_its_version_is_heeded() {
    let mut stream = Subscription::new(7);
    let old = DiscoveryRequest { response_nonce: "old".into(), version_info: "9".into(), ..asking(&["ALL"]) };
    assert_eq!(stream.hear(&old), Ok(Heard::Asked));
    assert!(stream.holds("ALL"), "the client has something");
    let mut stream = Subscription::new(8);
    stream.hear(&asking(&["ALL"])).unwrap();
    assert!(!stream.holds("ALL"), "it has nothing");
}

/// `set_node_on_first_message_only`: who the client says it is matters in no request; attestation decides.
#[test]
fn a_request_without_a_node_is_as_good_as_one_with() {
    use envoy_types::pb::envoy::config::core::v3::Node;
    let mut stream = Subscription::new(7);
    let with_node = DiscoveryRequest {
        node: Some(Node { id: "x".repeat(60_000), ..Default::default() }),
        ..asking(&["default"])
    };
    stream.hear(&with_node).unwrap();
    let first = answer(&mut stream, &[("default", "a")]).unwrap();
    assert_eq!(stream.hear(&answering(&["default"], &first)), Ok(Heard::Accepted { version: 1 }));
}

#[test]
fn requests_that_make_no_sense_are_errors() {
    let mut stream = Subscription::new(7);
    assert_eq!(stream.hear(&asking(&[])), Err(RequestError::NoNames));
    let other = DiscoveryRequest { type_url: "type.googleapis.com/x".into(), ..asking(&["ALL"]) };
    assert!(matches!(stream.hear(&other), Err(RequestError::Type(_))));
    let many: Vec<String> = (0..=MAX_NAMES).map(|n| n.to_string()).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(stream.hear(&asking(&many)), Err(RequestError::TooManyNames(MAX_NAMES + 1)));
    let long = "x".repeat(MAX_NAME_BYTES + 1);
    assert_eq!(stream.hear(&asking(&[&long])), Err(RequestError::NameTooLong(long.len())));
    assert!(matches!(stream.hear(&asking(&["*"])), Err(RequestError::Wildcard(_))));
}

// ---- delta

fn subscribing(names: &[&str]) -> DeltaDiscoveryRequest {
    let resource_names_subscribe = names.iter().map(|n| (*n).to_owned()).collect();
    DeltaDiscoveryRequest { resource_names_subscribe, type_url: Secret::type_url(), ..Default::default() }
}

fn accepting(response: &DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest { response_nonce: response.nonce.clone(), ..Default::default() }
}

fn names_in(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    response.resources.iter().map(|r| r.name.as_str()).collect()
}

#[test]
fn delta_sends_only_what_is_new() {
    let mut stream = DeltaSubscription::new(7);
    assert_eq!(stream.hear(&subscribing(&["default", "ALL"])), Ok(Heard::Asked));
    // Only one of them is ready.
    let first = answer(&mut stream, &[("ALL", "x")]).unwrap();
    assert_eq!(names_in(&first), ["ALL"]);
    let second = answer(&mut stream, &[("ALL", "x"), ("default", "a")]).unwrap();
    assert_eq!(names_in(&second), ["default"]);
    assert_ne!(first.nonce, second.nonce);
    // Two responses are on their way; each has its own answer, in whatever order.
    assert_eq!(stream.hear(&accepting(&second)), Ok(Heard::Accepted { version: 2 }));
    assert!(!stream.in_force() && stream.unanswered());
    assert_eq!(stream.hear(&accepting(&first)), Ok(Heard::Accepted { version: 1 }));
    assert!(stream.in_force() && !stream.unanswered());
    assert_eq!(answer(&mut stream, &[("ALL", "x"), ("default", "a")]), None);
    let third = answer(&mut stream, &[("ALL", "y"), ("default", "a")]).unwrap();
    assert_eq!(names_in(&third), ["ALL"]);
    assert_ne!(third.resources[0].version, first.resources[0].version);
    assert_eq!(stream.hear(&accepting(&first)), Ok(Heard::Stale), "answered already");
}

#[test]
fn delta_keeps_a_rejection_in_mind_and_does_not_repeat_it() {
    let mut stream = DeltaSubscription::new(7);
    stream.hear(&subscribing(&["ALL"])).unwrap();
    let bad = answer(&mut stream, &[("ALL", "bad")]).unwrap();
    let no = DeltaDiscoveryRequest { error_detail: refusal(), ..accepting(&bad) };
    assert_eq!(stream.hear(&no), Ok(Heard::Rejected { version: 1, detail: "no suchkey".into() }));
    assert_eq!(answer(&mut stream, &[("ALL", "bad")]), None);
    assert!(!stream.in_force());
    assert_eq!(stream.rejection().unwrap().names, ["ALL"]);
    let good = answer(&mut stream, &[("ALL", "good")]).unwrap();
    stream.hear(&accepting(&good)).unwrap();
    assert!(stream.in_force() && stream.rejection().is_none());
}

#[test]
fn delta_does_not_send_what_a_returning_client_has_and_sends_what_has_changed() {
    let mut first = DeltaSubscription::new(7);
    first.hear(&subscribing(&["ALL", "default"])).unwrap();
    let sent = answer(&mut first, &[("ALL", "x"), ("default", "a")]).unwrap();
    let versions = sent.resources.iter().map(|r| (r.name.clone(), r.version.clone())).collect();
    let mut again = DeltaSubscription::new(8);
    let back =
        DeltaDiscoveryRequest { initial_resource_versions: versions, ..subscribing(&["ALL", "default"]) };
    again.hear(&back).unwrap();
    assert!(again.holds("ALL"));
    let news = answer(&mut again, &[("ALL", "x"), ("default", "b")]).unwrap();
    assert_eq!(names_in(&news), ["default"]);
    again.hear(&accepting(&news)).unwrap();
    assert!(again.in_force(), "what it brought along counts");
}

#[test]
fn delta_sends_again_what_is_asked_for_again_and_nothing_after_unsubscribing() {
    let mut stream = DeltaSubscription::new(7);
    stream.hear(&subscribing(&["ALL"])).unwrap();
    let first = answer(&mut stream, &[("ALL", "x")]).unwrap();
    stream.hear(&accepting(&first)).unwrap();
    stream.hear(&subscribing(&["ALL"])).unwrap();
    let again = answer(&mut stream, &[("ALL", "x")]).unwrap();
    assert_eq!(again.resources[0].version, first.resources[0].version);
    let gone = DeltaDiscoveryRequest { resource_names_unsubscribe: vec!["ALL".into()], ..accepting(&again) };
    assert_eq!(stream.hear(&gone), Ok(Heard::Accepted { version: 2 }));
    assert!(stream.names().is_empty() && stream.in_force() && !stream.holds("ALL"));
    assert_eq!(answer(&mut stream, &[]), None);
}

#[test]
fn delta_tells_once_of_what_does_not_exist_and_sends_it_when_it_does() {
    let mut stream = DeltaSubscription::new(7);
    stream.hear(&subscribing(&["spiffe://west.example"])).unwrap();
    let missing = BTreeSet::from(["spiffe://west.example".to_owned()]);
    let told = stream.answer(BTreeMap::new(), &missing).unwrap();
    assert_eq!(
        (told.resources.len(), &told.removed_resources[..]),
        (0, &["spiffe://west.example".to_owned()][..])
    );
    stream.hear(&accepting(&told)).unwrap();
    assert_eq!(stream.answer(BTreeMap::new(), &missing), None);
    assert!(stream.in_force() && !stream.holds("spiffe://west.example"));
    let there = answer(&mut stream, &[("spiffe://west.example", "x")]).unwrap();
    assert_eq!(names_in(&there), ["spiffe://west.example"]);
}

#[test]
fn delta_requests_that_make_no_sense_are_errors() {
    let mut stream = DeltaSubscription::new(7);
    assert_eq!(stream.hear(&subscribing(&[])), Err(RequestError::NoNames));
    assert!(matches!(stream.hear(&subscribing(&["*"])), Err(RequestError::Wildcard(_))));
    let many: Vec<String> = (0..MAX_NAMES).map(|n| n.to_string()).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    stream.hear(&subscribing(&many)).unwrap();
    assert_eq!(stream.hear(&subscribing(&["one-more"])), Err(RequestError::TooManyNames(MAX_NAMES + 1)));
    let other = DeltaDiscoveryRequest { type_url: "type.googleapis.com/x".into(), ..Default::default() };
    assert!(matches!(stream.hear(&other), Err(RequestError::Type(_))));
}

#[test]
fn delta_waits_when_nothing_is_ever_answered() {
    let mut stream = DeltaSubscription::new(7);
    stream.hear(&subscribing(&["ALL"])).unwrap();
    let sent = (0..100).filter(|n| answer(&mut stream, &[("ALL", &n.to_string())]).is_some()).count();
    assert_eq!(sent, 16);
}

// ---- rate

#[test]
fn a_client_that_asks_too_fast_is_held_back_and_recovers() {
    let mut now = Timestamp(1_000_000);
    let mut rate = RequestRate::new(now);
    assert_eq!((0..1000).filter(|_| rate.take(now)).count(), 64);
    now = now + Duration::from_millis(250);
    assert_eq!((0..1000).filter(|_| rate.take(now)).count(), 2);
    now = now + Duration::from_secs(3600);
    assert_eq!((0..1000).filter(|_| rate.take(now)).count(), 64);
}
