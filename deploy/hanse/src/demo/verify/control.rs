//! Steps 10 and 16: the leader dies, and then every control node of a cluster.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use hanse_control::admin::{
    ClusterListRequest, NodeListRequest, PolicyGetRequest, RevokeListRequest, RevokeRequest,
    WorkloadDeleteRequest, WorkloadListRequest, WorkloadRegisterRequest,
};
use hanse_identity::{NodeName, Reason, Registration, RevocationTarget, Selector, SpiffeId};
use serde_json::json;
use tokio::time::Instant;

use super::{RATE, Story, Verdict, ms};
use crate::context::Connection;
use crate::demo::damage::What;
use crate::demo::load::{Load, failures, longest_gap, slowest};
use crate::demo::spec::{only_in, trust_domain};
use crate::errors::Failure;

/// Writers at the same time, and the pause of each between writes.
const WRITERS: usize = 4;
const WRITE_PACE: Duration = Duration::from_millis(50);
const BEFORE: Duration = Duration::from_secs(1);
const AFTER: Duration = Duration::from_secs(4);
/// Writes must be accepted again by then.
const MAX_WRITE_GAP: Duration = Duration::from_secs(2);
/// How long a cluster is without any control node.
const WITHOUT_CONTROL: Duration = Duration::from_secs(10);

/// One acknowledged write.
struct Write {
    id: SpiffeId,
    start: Instant,
    end: Instant,
}

impl Story<'_> {
    /// 10
    pub(super) async fn kill_leader(&self) -> anyhow::Result<Verdict> {
        let connection = self.demo.connection(&self.home)?;
        let target = self.demo.target(&self.home, "productpage", "/")?;
        let load = Load::start(&self.demo.client, vec![target], RATE);
        let stop = AtomicBool::new(false);
        let numbers = Arc::new(AtomicU64::new(0));
        let writers = (0..WRITERS).map(|_| self.write(connection, &stop, &numbers));
        let breaking = async {
            tokio::time::sleep(BEFORE).await;
            let leads = async || self.demo.leader(&self.home).await?.context("no node leads");
            // On a machine that is short of time a leader may just be being elected.
            self.demo.until("a leader", leads).await?;
            let keys = self.demo.select(&What::Leader(self.home.clone())).await?;
            let killed = Instant::now();
            self.demo.kill(&keys).await?;
            tokio::time::sleep(AFTER).await;
            anyhow::Ok((keys, killed, self.demo.until("another leader", leads).await?))
        };
        // However that ends, the writers do.
        let breaking = async {
            let broken = breaking.await;
            stop.store(true, Ordering::Relaxed);
            broken
        };
        let (written, broken) = tokio::join!(futures_util::future::join_all(writers), breaking);
        let (keys, killed, leader) = broken?;
        let names: Vec<String> = keys.iter().map(ToString::to_string).collect();
        self.demo.heal(&names).await?;
        self.demo.until("quorum", || self.demo.quorum(&self.home)).await?;
        let samples = load.finish().await;
        let refused: Vec<String> = written.iter().flat_map(|(_, refused)| refused.clone()).collect();
        let writes: Vec<Write> = written.into_iter().flat_map(|(writes, _)| writes).collect();
        let next = writes.iter().filter(|w| w.start >= killed).map(|w| w.end - killed).min();
        let missing = self.missing(connection, &writes).await?;
        self.forget(connection, &writes).await?;
        let failed = samples.iter().filter(|s| !s.ok).count();
        let in_time = next.is_some_and(|gap| gap <= self.within(MAX_WRITE_GAP));
        let ok = failed == 0 && in_time && missing == 0 && !writes.is_empty();
        let summary = format!(
            "{} killed, next write accepted after {}, {missing} of {} acknowledged writes missing, {failed} of {} requests failed",
            names.join(" "),
            next.map_or("never".to_owned(), |gap| format!("{} ms", ms(gap))),
            writes.len(),
            samples.len()
        );
        let evidence = json!({
            "killed": names, "newLeader": leader, "nextWriteMs": next.map(ms),
            "writesAcknowledged": writes.len(), "acknowledgedWritesMissing": missing,
            "writesWithoutAnswer": refused.len(), "lastWriteRefusal": refused.last(),
            "requests": samples.len(), "failed": failed, "gapMs": ms(longest_gap(&samples)),
            "slowestMs": ms(slowest(&samples)), "failures": failures(&samples),
        });
        Ok(Verdict::new(ok, summary, evidence))
    }

    /// Writes one registration after another; which were acknowledged, and what the others met.
    async fn write(
        &self,
        connection: &Connection,
        stop: &AtomicBool,
        numbers: &AtomicU64,
    ) -> (Vec<Write>, Vec<String>) {
        let (mut writes, mut refused) = (Vec::new(), Vec::new());
        while !stop.load(Ordering::Relaxed) {
            let number = numbers.fetch_add(1, Ordering::Relaxed);
            let start = Instant::now();
            match self.register(connection, number).await {
                Ok(id) => writes.push(Write { id, start, end: Instant::now() }),
                Err(failure) => refused.push(failure.to_string()),
            }
            tokio::time::sleep(WRITE_PACE).await;
        }
        (writes, refused)
    }

    async fn register(&self, connection: &Connection, number: u64) -> Result<SpiffeId, Failure> {
        let account = format!("write-{number}");
        let domain = trust_domain(&self.home).parse().map_err(anyhow::Error::from)?;
        let id = SpiffeId::workload(&domain, "verify", &account).map_err(anyhow::Error::from)?;
        let nothing = Selector::Path(format!("/nonexistent/{account}"));
        let registration = Registration::new(id.clone(), agent(), [nothing]);
        connection.call(&WorkloadRegisterRequest { registration }).await?;
        Ok(id)
    }

    async fn missing(&self, connection: &Connection, writes: &[Write]) -> anyhow::Result<usize> {
        let workloads = connection.call(&WorkloadListRequest {}).await?;
        let there: BTreeSet<&SpiffeId> = workloads.items.iter().map(|w| &w.id).collect();
        Ok(writes.iter().filter(|w| !there.contains(&w.id)).count())
    }

    /// Takes the story's registrations away again, those without an answer too.
    async fn forget(&self, connection: &Connection, writes: &[Write]) -> anyhow::Result<()> {
        let workloads = connection.call(&WorkloadListRequest {}).await?;
        let ours = workloads.items.iter().filter(|w| w.id.path().starts_with("/ns/verify/"));
        let ours: Vec<SpiffeId> = ours.map(|w| w.id.clone()).collect();
        ensure!(ours.len() >= writes.len(), "{} registrations of {} are there", ours.len(), writes.len());
        let deletions = ours.into_iter().map(|id| async move {
            connection.call(&WorkloadDeleteRequest { id, agent: agent().into() }).await
        });
        futures_util::future::try_join_all(deletions).await?;
        Ok(())
    }

    /// 16
    pub(super) async fn kill_control(&self) -> anyhow::Result<Verdict> {
        let connection = self.demo.connection(&self.home)?;
        let domain = trust_domain(&self.home).parse()?;
        let nobody = SpiffeId::workload(&domain, "verify", "nobody")?;
        let request = RevokeRequest {
            note: "something to remember".to_owned(),
            ..RevokeRequest::new(RevocationTarget::Identity(nobody), Reason::Hold)
        };
        let revoked = crate::commands::revoke::commit(connection, &request).await?;
        let before = self.remembered(connection).await?;
        let targets = vec![
            self.demo.target(&self.home, "productpage", "/")?,
            self.demo.target(&self.home, &only_in(&self.away), "/")?,
            self.demo.target(&self.away, &only_in(&self.home), "/")?,
        ];
        let load = Load::start(&self.demo.client, targets, RATE);
        tokio::time::sleep(BEFORE).await;
        let keys = self.demo.select(&What::Control(self.home.clone())).await?;
        self.demo.kill(&keys).await?;
        tokio::time::sleep(WITHOUT_CONTROL).await;
        let restarted = Instant::now();
        let names: Vec<String> = keys.iter().map(ToString::to_string).collect();
        self.demo.heal(&names).await?;
        self.demo.until("quorum", || self.demo.quorum(&self.home)).await?;
        let quorum_after = restarted.elapsed();
        tokio::time::sleep(BEFORE).await;
        let samples = load.finish().await;
        let after = self.remembered(connection).await?;
        let failed = samples.iter().filter(|s| !s.ok).count();
        let intact = before.peers == after.peers
            && before.policies == after.policies
            && before.revocations == after.revocations
            && after.revocations.contains(&revoked.id.to_string());
        let ok = failed == 0 && after.revision >= before.revision && intact;
        let summary = format!(
            "{failed} of {} requests failed; revision {} → {}, {} peers, {} policies, {} revocations {}",
            samples.len(),
            before.revision,
            after.revision,
            after.peers.len(),
            after.policies.len(),
            after.revocations.len(),
            if intact { "intact" } else { "NOT intact" }
        );
        let evidence = json!({
            "killed": names, "withoutControlMs": ms(WITHOUT_CONTROL), "quorumAfterMs": ms(quorum_after),
            "requests": samples.len(), "failed": failed, "gapMs": ms(longest_gap(&samples)),
            "slowestMs": ms(slowest(&samples)), "before": before, "after": after,
            "failures": failures(&samples),
        });
        let lift = hanse_control::admin::RevokeLiftRequest { id: revoked.id };
        connection.call(&lift).await?;
        Ok(Verdict::new(ok, summary, evidence))
    }

    async fn remembered(&self, connection: &Connection) -> anyhow::Result<Remembered> {
        let nodes = connection.call(&NodeListRequest {}).await?;
        let clusters = connection.call(&ClusterListRequest {}).await?;
        let policies = connection.call(&PolicyGetRequest::default()).await?;
        let revocations = connection.call(&RevokeListRequest {}).await?;
        Ok(Remembered {
            revision: nodes.meta.raft_index,
            peers: clusters
                .items
                .iter()
                .map(|c| format!("{} {} {}", c.cluster, c.trust_domain, c.roots))
                .collect(),
            policies: policies
                .items
                .iter()
                .map(|p| format!("{}/{} {}", p.key.kind, p.key.name, p.document))
                .collect(),
            revocations: revocations.items.iter().map(|r| r.revocation.id.to_string()).collect(),
        })
    }
}

/// What must survive the death of all control nodes.
#[derive(Debug, serde::Serialize)]
struct Remembered {
    revision: u64,
    peers: BTreeSet<String>,
    policies: BTreeSet<String>,
    revocations: BTreeSet<String>,
}

fn agent() -> NodeName {
    "agent-1".parse().expect("agent-1 is one DNS label")
}
