//! Steps 1, 2 and 5: quorum, join, and that local traffic stays local.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{anyhow, bail, ensure};
use futures_util::{Stream, StreamExt as _};
use hanse_control::admin::{
    ClusterCheckRequest, ClusterListRequest, ClusterState, TapEvent, TapRequest, TrafficRequest,
};
use hanse_control::client::ClientError;
use hanse_federation::tap::{Direction, Filter, Status, Tap, Target, caller};
use serde_json::{Value, json};

use super::{Story, Verdict, ms};
use crate::demo::app::Part;
use crate::demo::load;
use crate::demo::spec::only_in;

/// Requests that are sent to see whether traffic stays local.
const LOCAL_REQUESTS: usize = 200;
/// How long the proxies may take to tell of a request that is looked at.
const TAPPED_WITHIN: Duration = Duration::from_secs(30);
/// How long one of them is waited for, before there is another.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

impl Story<'_> {
    /// 1
    pub(super) async fn quorum(&self) -> anyhow::Result<Verdict> {
        let mut evidence = serde_json::Map::new();
        let mut lines = Vec::new();
        let mut ok = true;
        for cluster in &self.demo.spec.clusters {
            let nodes = self.demo.until("quorum", || self.demo.quorum(cluster)).await?;
            let leader = self.demo.leader(cluster).await?.unwrap_or_default();
            ok &= nodes.quorum.answering == self.demo.spec.nodes && !leader.is_empty();
            lines.push(format!(
                "{cluster} {}/{} leader {leader}",
                nodes.quorum.answering, nodes.quorum.voters
            ));
            let term = nodes.items.iter().map(|n| n.term).max();
            evidence.insert(
                cluster.clone(),
                json!({
                    "leader": leader, "voters": nodes.quorum.voters, "answering": nodes.quorum.answering,
                    "term": term, "canLose": nodes.quorum.can_lose,
                }),
            );
        }
        let stages = self.demo.stages.iter();
        let stages: serde_json::Map<_, _> =
            stages.map(|(name, took)| (format!("{name}Ms"), json!(ms(*took)))).collect();
        evidence.insert("startup".to_owned(), Value::Object(stages));
        Ok(Verdict::new(ok, lines.join(" · "), Value::Object(evidence)))
    }

    /// 2
    pub(super) async fn joined(&self) -> anyhow::Result<Verdict> {
        let mut evidence = serde_json::Map::new();
        let mut lines = Vec::new();
        for (here, there) in [(&self.home, &self.away), (&self.away, &self.home)] {
            let peer = self.demo.until("the peer connected", || self.peer(here, there)).await?;
            let target = self.demo.target(here, &only_in(there), "/")?;
            let sample = load::request(&self.demo.client, &target).await;
            ensure!(
                sample.ok && sample.cluster == *there,
                "a request from {here} to {there} was answered {} by {:?}: {}",
                sample.status,
                sample.cluster,
                sample.why
            );
            let took = sample.end - sample.start;
            lines.push(format!("{here} → {there} {} in {} ms", sample.status, ms(took)));
            evidence.insert(
                format!("{here}To{there}"),
                json!({
                    "state": peer.state, "trustDomain": peer.trust_domain, "roots": peer.roots,
                    "imports": peer.imports, "exports": peer.exports,
                    "gatewaysReady": peer.gateways_ready, "rttMs": peer.rtt_ms,
                    "request": { "status": sample.status, "ms": ms(took), "answeredBy": sample.cluster },
                }),
            );
        }
        let joined = self.demo.stages.iter().find(|(name, _)| name == "join");
        evidence.insert("joinMs".to_owned(), json!(joined.map(|(_, took)| ms(*took))));
        Ok(Verdict::new(true, lines.join(" · "), Value::Object(evidence)))
    }

    /// The peer as `here` sees it, once it is connected, checked and has told its services.
    async fn peer(&self, here: &str, there: &str) -> anyhow::Result<hanse_control::admin::ClusterItem> {
        let connection = self.demo.connection(here)?;
        let clusters = connection.call(&ClusterListRequest {}).await?;
        let peer = clusters.items.into_iter().find(|c| c.cluster.as_str() == there);
        let peer = peer.ok_or_else(|| anyhow::anyhow!("{here} does not know {there}"))?;
        ensure!(
            peer.state == ClusterState::Connected && peer.imports > 0 && peer.gateways_ready > 0,
            "{here} sees {there} {:?}, {} imports, {} gateways ready",
            peer.state,
            peer.imports,
            peer.gateways_ready
        );
        let check = connection.call(&ClusterCheckRequest { cluster: Some(there.parse()?) }).await?;
        let failed: Vec<String> = check
            .items
            .iter()
            .flat_map(|c| &c.checks)
            .filter(|c| !c.ok)
            .map(|c| format!("{}: {}", c.name, c.detail))
            .collect();
        ensure!(check.ok, "cluster check {there} at {here}: {}", failed.join("; "));
        Ok(peer)
    }

    /// 5
    pub(super) async fn local(&self) -> anyhow::Result<Verdict> {
        let mut evidence = serde_json::Map::new();
        let mut ok = true;
        let mut lines = Vec::new();
        for cluster in [&self.home, &self.away] {
            let target = self.demo.target(cluster, "productpage", "/")?;
            let mut served = BTreeMap::<String, usize>::new();
            let mut failed = 0;
            for _ in 0..LOCAL_REQUESTS {
                let timeout = load::REQUEST_TIMEOUT;
                let answer =
                    self.demo.client.get(target.outbound, &target.host, &target.path, timeout).await?;
                match serde_json::from_slice::<Part>(&answer.body) {
                    Ok(part) if answer.status.is_success() && part.complete() => count(&part, &mut served),
                    _ => failed += 1,
                }
            }
            let calls = self.demo.until("the calls of the last minute", || self.calls(cluster)).await?;
            let tapped = self.tapped(cluster).await?;
            let parts: usize = served.values().sum();
            let local = served.get(cluster).copied().unwrap_or_default();
            ok &= failed == 0 && local == parts && parts > 0;
            lines.push(format!("{cluster} {local} of {parts} parts local, {failed} failed"));
            evidence.insert(
                cluster.clone(),
                json!({ "requests": LOCAL_REQUESTS, "failed": failed, "partsByCluster": served, "edges": calls, "tapped": tapped }),
            );
        }
        Ok(Verdict::new(ok, lines.join(" · "), Value::Object(evidence)))
    }
}

impl Story<'_> {
    /// How many edges the control nodes tell of, once productpage's calls of reviews are among them.
    async fn calls(&self, cluster: &str) -> anyhow::Result<usize> {
        let traffic = self.demo.connection(cluster)?.call(&TrafficRequest {}).await?;
        let graph = traffic.report.graph();
        let told = graph.iter().any(|edge| {
            let key = &edge.key;
            key.service == "shop/reviews"
                && key.source.ends_with("/sa/productpage")
                && key.destination.contains("/sa/reviews-")
                && key.destination_cluster == cluster
                && edge.counts.requests > 0.0
        });
        ensure!(told, "{cluster} tells nothing of productpage's calls of reviews: {graph:?}");
        Ok(graph.len())
    }
}

impl Story<'_> {
    /// What is shown of a call of reviews to who looks at it with `hanse tap`.
    async fn tapped(&self, cluster: &str) -> anyhow::Result<Value> {
        let filter = Filter {
            direction: Some(Direction::Inbound),
            from: Some(caller("shop/productpage")?),
            status: Some(Status::Class(2)),
            ..Filter::default()
        };
        let tap = Tap { filter, ..Tap::new(Target::Service("shop/reviews".parse()?)) };
        let request = TapRequest { tap, cluster: Some(cluster.parse()?), seconds: TAPPED_WITHIN.as_secs() };
        let client = self.demo.connection(cluster)?.client().await?;
        let mut events = std::pin::pin!(client.tap(&request).await?);
        let looked = tokio::time::timeout(TAPPED_WITHIN, self.look(cluster, &mut events)).await;
        looked.map_err(|_| anyhow!("{cluster} shows no call of reviews within {TAPPED_WITHIN:?}"))?
    }

    /// Sends requests until one of them is shown. The proxies may hear that they are looked at after the first.
    async fn look(
        &self,
        cluster: &str,
        events: &mut (impl Stream<Item = Result<TapEvent, ClientError>> + Unpin),
    ) -> anyhow::Result<Value> {
        let target = self.demo.target(cluster, "productpage", "/")?;
        loop {
            let timeout = load::REQUEST_TIMEOUT;
            self.demo.client.get(target.outbound, &target.host, &target.path, timeout).await?;
            let Ok(event) = tokio::time::timeout(LOOK_AGAIN, events.next()).await else { continue };
            match event.transpose()? {
                Some(TapEvent::Part(part)) if !part.requests.is_empty() => {
                    let request = &part.requests[0];
                    let told = request.source.ends_with("/ns/shop/sa/productpage")
                        && request.destination == part.identity.to_string()
                        && request.destination_cluster == cluster;
                    ensure!(told, "{cluster} tells of a call of reviews that is none: {part:?}");
                    return Ok(json!({ "proxy": part.proxy, "request": request }));
                }
                Some(TapEvent::Ended { why }) => bail!("{cluster} shows no call of reviews: {why}"),
                None => {
                    bail!("{cluster} shows no call of reviews: the control node ended the tap without a word")
                }
                Some(_) => {}
            }
        }
    }
}

/// Which clusters served this part and those below.
fn count(part: &Part, served: &mut BTreeMap<String, usize>) {
    *served.entry(part.cluster.clone()).or_default() += 1;
    part.parts.iter().for_each(|p| count(p, served));
}
