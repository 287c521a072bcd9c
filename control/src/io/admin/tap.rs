//! `tap`: live requests of this cluster's proxies, whichever node they listen to.
//!
//! Who asks is in the audit trail before anything is told. The stream ends with its reader, its time, the reader's role, or
//! this node; its other ends, at the other nodes and at the proxies, end with it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use hanse_federation::View;
use hanse_federation::tap::{MAX_TIME, Target};
use hanse_identity::{ClusterName, NodeName, SpiffeId};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::{Stream, StreamExt as _};
use tonic::Status;

use super::Call;
use crate::admin::{SubscriberKind, TapEvent, TapPart, TapRequest, Warning};
use crate::command::{Command, Refusal};
use crate::io::census::{NODE_TIMEOUT, Query, Subscriber, gather};
use crate::io::context::{Context, now, stopped};
use crate::io::node_link::TapStream;
use crate::io::roles::{Who, admits};
use crate::io::status::{document, read, refused};
use crate::io::taps::{Tapping, TooMany, Wanted};
use crate::role::Role;
use crate::wire::control::Document;

/// Events that wait for a slow reader.
const QUEUE: usize = 16;
/// How often it is looked whether the reader may still look.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Pause before a node that went away is asked again.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// How long a slow reader may take to hear why it is over.
const FAREWELL: Duration = Duration::from_secs(1);

type Events = mpsc::Sender<Result<Document, Status>>;

/// Begins one, or says why not.
pub async fn begin(
    call: Call,
    reader: SpiffeId,
    request: TapRequest,
) -> Result<mpsc::Receiver<Result<Document, Status>>, Status> {
    request.tap.check().map_err(|e| Status::invalid_argument(e.to_string()))?;
    let time = Duration::from_secs(request.seconds);
    if time.is_zero() || time > MAX_TIME {
        let why = format!("a tap runs for 1 s at least and {MAX_TIME:?} at most");
        return Err(Status::invalid_argument(why));
    }
    let gathered = gather(&call.context, &Query::Subscribers).await;
    let mut reading = call.read().await;
    reading.silent(gathered.silent.difference(&gathered.revoked));
    let view = &reading.state.view;
    is_own(view, request.cluster.as_ref())?;
    let (subscribers, _) = gathered.subscribers();
    let proxies = found(view, &subscribers, &request.tap.target)?;
    let own = call.context.taps.open(request.tap.clone(), time).map_err(too_many)?;
    // Nothing has been told yet, and nothing will be if this cannot be kept.
    call.write(Command::Tap { what: request.tap.to_string(), seconds: request.seconds }).await?;
    let (events, told) = mpsc::channel(QUEUE);
    let until = now() + time;
    let begun = TapEvent::Begun {
        meta: reading.meta,
        proxies: proxies.into_iter().collect(),
        until,
        warnings: reading.warnings,
    };
    events.try_send(Ok(document(&begun))).map_err(|_| Status::cancelled("the reader has gone"))?;
    let wanted = Wanted { tap: request.tap, left_millis: request.seconds * 1000 };
    tokio::spawn(run(call.context, reader, own, wanted, events));
    Ok(told)
}

/// What another node asks for: this node's own part of a tap.
pub fn of_own_subscribers(context: &Context, wanted: &Document) -> Result<TapStream, Status> {
    let wanted: Wanted = read("wanted tap", wanted)?;
    wanted.tap.check().map_err(|e| Status::invalid_argument(e.to_string()))?;
    let tapping =
        context.taps.open(wanted.tap, Duration::from_millis(wanted.left_millis)).map_err(too_many)?;
    let mut stop = context.stop.clone();
    let parts = tapping.map(|part| Ok(document(&part)));
    // A node that stops waits for its streams.
    let stopping = async move { stopped(&mut stop).await };
    Ok(Box::pin(futures_util::StreamExt::take_until(parts, stopping)))
}

fn too_many(error: TooMany) -> Status {
    Status::resource_exhausted(error.to_string())
}

/// Proxies of other clusters listen to those clusters' control nodes, and to nobody else.
fn is_own(view: &View, cluster: Option<&ClusterName>) -> Result<(), Status> {
    match cluster {
        Some(name) if view.peers.contains_key(name) => Err(refused(&Refusal::Precondition(format!(
            "{name} is another cluster, whose proxies tell {} nothing: ask there, with a --context of {name}",
            view.cluster
        )))),
        Some(name) if *name != view.cluster => {
            Err(refused(&Refusal::NotFound { what: format!("cluster {name}") }))
        }
        _ => Ok(()),
    }
}

/// Who is to tell now, or why that is nobody.
fn found(view: &View, subscribers: &[Subscriber], target: &Target) -> Result<BTreeSet<NodeName>, Status> {
    let connected = || subscribers.iter().filter(|subscriber| subscriber.connected);
    let is_meant = |subscriber: &&Subscriber| {
        subscriber.kind == SubscriberKind::Proxy && target.includes(&subscriber.name, view)
    };
    let proxies: BTreeSet<NodeName> = connected().filter(is_meant).map(|s| s.name.clone()).collect();
    if !proxies.is_empty() {
        return Ok(proxies);
    }
    let precondition = |why: String| Err(refused(&Refusal::Precondition(why)));
    match target {
        Target::Proxy(name) => {
            if connected().any(|s| s.name == *name && s.kind == SubscriberKind::Gateway) {
                return precondition(format!(
                    "{name} is a gateway, which passes on what it cannot read: tap the proxies at both ends"
                ));
            }
            Err(refused(&Refusal::NotFound {
                what: format!("a proxy {name} that listens to a control node (hanse proxy list)"),
            }))
        }
        Target::Service(service) => {
            let has_it = |name: &&ClusterName| view.peers[*name].services.contains_key(service);
            let elsewhere: Vec<String> = view.peers.keys().filter(has_it).map(ToString::to_string).collect();
            if view.services.contains_key(service) {
                return precondition(format!(
                    "no proxy of {service} listens to a control node of {} now (hanse service endpoints {service})",
                    view.cluster
                ));
            }
            if !elsewhere.is_empty() {
                let (own, theirs) = (&view.cluster, elsewhere.join(", "));
                return precondition(format!(
                    "{service} is served in {theirs} only, whose proxies tell {own} nothing: ask there, with a --context of it, \
                     or look at its callers in {own}: hanse tap --to {service}"
                ));
            }
            Err(refused(&Refusal::NotFound { what: format!("service {service}") }))
        }
        Target::Everybody => precondition(format!("no proxy listens to a control node of {}", view.cluster)),
    }
}

/// Passes on what is told, until it is over.
async fn run(context: Arc<Context>, reader: SpiffeId, own: Tapping, wanted: Wanted, events: Events) {
    let time = Duration::from_millis(wanted.left_millis);
    let until = tokio::time::Instant::now() + time;
    let mut tasks = JoinSet::new();
    {
        let events = events.clone();
        // Its own parts are there to be read: nothing can fail.
        tasks.spawn(async move { drop(pass_on(own.map(Ok), &events).await) });
    }
    for node in context.handle.state().private.nodes.values().filter(|node| node.raft_id != context.raft_id) {
        let (context, name, wanted) = (context.clone(), node.name.clone(), wanted.clone());
        tasks.spawn(of_node(context, node.raft_id, name, wanted, until, events.clone()));
    }
    let mut stop = context.stop.clone();
    let why = tokio::select! {
        () = events.closed() => return,
        () = tokio::time::sleep_until(until) => format!("it has run for {time:?}"),
        () = stopped(&mut stop) => format!("control node {} stops: begin again", context.name),
        why = until_not_allowed(&context, &reader) => why,
    };
    tasks.shutdown().await;
    let ended = TapEvent::Ended { why };
    let _ = tokio::time::timeout(FAREWELL, events.send(Ok(document(&ended)))).await;
}

/// Resolves when the reader may not look any more.
async fn until_not_allowed(context: &Context, reader: &SpiffeId) -> String {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if context.is_revoked() {
            return format!("control node {} is revoked: begin again", context.name);
        }
        if !admits(Who::Has(Role::Operator), &context.handle.state(), reader) {
            return format!("{reader} is no {} any more", Role::Operator);
        }
    }
}

/// What the subscribers of another node tell. One that goes away is asked again: its proxies are at the others meanwhile.
async fn of_node(
    context: Arc<Context>,
    raft_id: u64,
    name: NodeName,
    wanted: Wanted,
    until: tokio::time::Instant,
    events: Events,
) {
    let mut told = false;
    loop {
        let left = until.saturating_duration_since(tokio::time::Instant::now());
        let left_millis = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
        let question = document(&Wanted { left_millis, ..wanted.clone() });
        let outcome = match context.links.tap(raft_id, question, NODE_TIMEOUT).await {
            Ok(parts) => {
                told = false;
                let read = |part: Result<Document, Status>| read::<TapPart>("tapped requests", &part?);
                pass_on(parts.map(read), &events).await
            }
            Err(status) => Err(status),
        };
        if let Err(status) = outcome
            && !std::mem::replace(&mut told, true)
        {
            let message = format!("control node {name} tells nothing of its proxies: {}", status.message());
            let warning = TapEvent::Warning(Warning { code: "E3102".to_owned(), message });
            if events.send(Ok(document(&warning))).await.is_err() {
                return;
            }
        }
        tokio::time::sleep(AGAIN_AFTER).await;
    }
}

/// Ends when there is no more, or nobody who reads.
async fn pass_on(parts: impl Stream<Item = Result<TapPart, Status>>, events: &Events) -> Result<(), Status> {
    let mut parts = std::pin::pin!(parts);
    while let Some(part) = parts.next().await {
        if events.send(Ok(document(&TapEvent::Part(part?)))).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use hanse_federation::Change;
    use hanse_federation::catalog::ServiceSummary;
    use hanse_federation::change::PeerRecord;
    use hanse_identity::Timestamp;

    use super::*;

    /// East, joined with west, which alone has shop/reviews.
    fn view() -> View {
        let mut view = View::new("east".parse().unwrap(), "east.example".parse().unwrap());
        view.apply(&Change::PeerPut(PeerRecord {
            cluster: "west".parse().unwrap(),
            trust_domain: "west.example".parse().unwrap(),
            endpoints: vec![],
            invite: "i".to_owned(),
            joined: Timestamp(1),
        }));
        let peer = view.peers.values_mut().next().unwrap();
        let name: hanse_identity::ServiceName = "shop/reviews".parse().unwrap();
        let (identities, localities) = Default::default();
        peer.services.insert(name.clone(), ServiceSummary { name, identities, localities });
        view
    }

    #[test]
    fn a_peers_proxies_are_not_looked_at_and_it_is_said_where_they_are() {
        let view = view();
        let west: ClusterName = "west".parse().unwrap();
        let refused = is_own(&view, Some(&west)).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
        assert!(refused.message().contains("with a --context of west"), "{refused}");
        assert!(is_own(&view, Some(&"east".parse().unwrap())).is_ok() && is_own(&view, None).is_ok());
        let reviews = Target::Service("shop/reviews".parse().unwrap());
        let refused = found(&view, &[], &reviews).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
        assert!(refused.message().contains("is served in west only"), "{refused}");
        assert!(refused.message().contains("hanse tap --to shop/reviews"), "{refused}");
    }
}
