//! The part of step 13 that revokes a control node: at once, with everything that it has signed.
//!
//! The node that signed for the thief, and so for most at home, is put on hold under load. All that it signed is dead
//! from then on: agents and workloads get other SVIDs from the nodes that are left, which go on deciding.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, ensure};
use hanse_control::admin::{
    AgentTokenCreateRequest, IdentityListRequest, NodeListRequest, NodeState, RevokeLiftRequest,
    RevokeRequest, Revoked, TrustBundleListRequest,
};
use hanse_control::state::issuance::names_node;
use hanse_identity::{NodeName, Reason, RevocationTarget, TrustDomain};
use serde_json::json;
use tokio::time::Instant;

use super::kinds::{Agent, Told, facts_of, receipt_line};
use super::{RATE, Story, ms};
use crate::commands::revoke;
use crate::demo::load::{Load, failures, longest_gap, slowest};
use crate::demo::spec::trust_domain;

const BEFORE: Duration = Duration::from_secs(1);
const AFTER: Duration = Duration::from_secs(1);
/// Cut and refused everywhere by then: whoever listened to that node hears of it elsewhere.
const MAX_ENFORCEMENT: Duration = Duration::from_secs(2);
/// Everybody at home has an SVID of another node by then.
const MAX_REPLACEMENT: Duration = Duration::from_secs(10);
const RECEIPT_TIMEOUT: Duration = Duration::from_secs(10);

/// A control node that is about to go.
struct Victim {
    node: NodeName,
    /// Key identifiers of its authorities, as certificates name them.
    authorities: BTreeSet<String>,
    led: bool,
}

impl Story<'_> {
    pub(super) async fn revoke_node(&self, agent: &Agent) -> anyhow::Result<Told> {
        let connection = self.demo.connection(&self.home)?;
        let thief = self.spare_thief(&self.home, &self.away, "node", agent).await?;
        let signer = facts_of(&thief.certificate)?.authority_key_identifier;
        let victim = self.victim(&signer.context("the certificate names its authority")?).await?;
        let before = self.certificates_of(&victim).await?;
        let listed =
            IdentityListRequest { of: Some(agent.name.to_string()), ..IdentityListRequest::default() };
        let own = connection.call(&listed).await?.items;
        let agents_own = own.iter().filter(|item| item.spiffe_id.path().starts_with("/hanse/agent/"));
        let agents_own: Vec<String> = agents_own.map(|item| item.node.to_string()).collect();

        let mut targets = Vec::new();
        for cluster in [&self.home, &self.away] {
            targets.push(self.demo.target(cluster, "productpage", "/")?);
        }
        let load = Load::start(&self.demo.client, targets, RATE);
        tokio::time::sleep(BEFORE).await;
        let (asked, asked_at) = (Instant::now(), crate::now());
        let request = RevokeRequest {
            note: "verify node".to_owned(),
            ..RevokeRequest::new(RevocationTarget::Node(victim.node.clone()), Reason::Hold)
        };
        let revoked = revoke::commit(connection, &request).await?;
        // Whatever comes of it, the hold ends.
        let held = async {
            let (receipt, _) = revoke::wait(connection, &revoked.id, RECEIPT_TIMEOUT).await?;
            let complete_after = asked.elapsed();
            let replaced_after = self.replaced(&victim, asked).await?;
            self.refused_at(&thief, &[&self.home, &self.away], asked_at).await?;
            // Before the lift, which lets it in again.
            let judged = thief.judge(asked_at, self.within(MAX_ENFORCEMENT))?;
            let decided_after = self.decided_without(&victim).await?;
            anyhow::Ok((receipt, complete_after, replaced_after, judged, decided_after))
        };
        let held = held.await;
        let back_after = self.take_back(&revoked, &victim).await?;
        let (receipt, complete_after, replaced_after, (refused, line, doors), decided_after) = held?;
        tokio::time::sleep(AFTER).await;
        let samples = load.finish().await;
        let failed = samples.iter().filter(|s| !s.ok).count();
        let hit = before.values().filter(|by_it| **by_it).count();
        // Told, not judged: what is in flight on a connection that is cut is sent again within a budget only.
        let ok = refused
            && receipt.complete
            && failed < samples.len()
            && replaced_after <= self.within(MAX_REPLACEMENT);
        let line = format!(
            "node: {} ({hit} of {} SVIDs at {}), {line}, {}, all replaced after {} ms, the others decide after {} ms, lifted, back after {} ms, {failed} of {} requests failed, longest gap {} ms",
            victim.node,
            before.len(),
            self.home,
            receipt_line(&receipt, complete_after),
            ms(replaced_after),
            ms(decided_after),
            ms(back_after),
            samples.len(),
            ms(longest_gap(&samples)),
        );
        let evidence = json!({
            "id": revoked.id, "node": victim.node, "led": victim.led, "svids": before.len(), "svidsOfIt": hit,
            "agentsOwnSvidsOf": agents_own, "doors": doors, "receiptCompleteMs": ms(complete_after),
            "receipt": receipt, "replacedMs": ms(replaced_after), "othersDecideMs": ms(decided_after),
            "backAfterLiftMs": ms(back_after), "requests": samples.len(), "failed": failed,
            "failures": failures(&samples), "gapMs": ms(longest_gap(&samples)),
            "slowestMs": ms(slowest(&samples)),
        });
        Ok(Told { ok, line, evidence })
    }

    /// The control node at home that has that authority.
    async fn victim(&self, signer: &str) -> anyhow::Result<Victim> {
        let connection = self.demo.connection(&self.home)?;
        let own: TrustDomain = trust_domain(&self.home).parse()?;
        let bundles = connection.call(&TrustBundleListRequest::default()).await?.items;
        let bundle = bundles.into_iter().find(|b| b.trust_domain == own).context("a bundle of home")?;
        let authority = bundle.authorities.iter().find(|a| a.key_id.prefix() == signer);
        let authority = authority.context("the bundle has the authority")?;
        let nodes = connection.call(&NodeListRequest {}).await?.items;
        let node = nodes.iter().find(|item| names_node(&authority.subject, &item.node));
        let node = node.with_context(|| format!("a node has the authority {}", authority.subject))?;
        let authorities = bundle.authorities.iter().filter(|a| names_node(&a.subject, &node.node));
        Ok(Victim {
            node: node.node.clone(),
            authorities: authorities.map(|a| a.key_id.prefix()).collect(),
            led: node.state == NodeState::Leader,
        })
    }

    /// Every proxy and gateway at home, and whether that node has signed what it shows.
    async fn certificates_of(&self, victim: &Victim) -> anyhow::Result<BTreeMap<String, bool>> {
        let mut by_it = BTreeMap::new();
        for (name, certs) in self.certificates().await? {
            let chain = certs["chainPem"].as_str().with_context(|| format!("{name} shows a certificate"))?;
            let signer = facts_of(chain)?.authority_key_identifier;
            by_it.insert(name, signer.is_some_and(|signer| victim.authorities.contains(&signer)));
        }
        Ok(by_it)
    }

    /// Waits until nobody at home shows anything of that node, and says since when that took.
    async fn replaced(&self, victim: &Victim, asked: Instant) -> anyhow::Result<Duration> {
        self.demo
            .until("SVIDs of other nodes", || async {
                let left = self.certificates_of(victim).await?.into_iter().find(|(_, by_it)| *by_it);
                ensure!(left.is_none(), "{:?} shows a certificate of {}", left, victim.node);
                Ok(())
            })
            .await?;
        Ok(asked.elapsed())
    }

    /// A write that the nodes that are left decide, and what they say of the one that is gone.
    async fn decided_without(&self, victim: &Victim) -> anyhow::Result<Duration> {
        let (connection, asked) = (self.demo.connection(&self.home)?, Instant::now());
        self.demo
            .until("a write without the node", || async {
                let request = AgentTokenCreateRequest { agent: "nobody".parse()?, ttl_seconds: 60 };
                connection.call(&request).await?;
                Ok(())
            })
            .await?;
        let decided = asked.elapsed();
        let nodes = connection.call(&NodeListRequest {}).await?;
        let gone = nodes.items.iter().find(|item| item.node == victim.node).context("the node is listed")?;
        ensure!(gone.state == NodeState::Revoked, "{} is {:?}", victim.node, gone.state);
        ensure!(nodes.quorum.answering + 1 == nodes.quorum.voters, "{:?}", nodes.quorum);
        Ok(decided)
    }

    /// Lifts the hold and waits until the node takes part again.
    async fn take_back(&self, revoked: &Revoked, victim: &Victim) -> anyhow::Result<Duration> {
        let (connection, lifted) = (self.demo.connection(&self.home)?, Instant::now());
        self.demo
            .until("the hold lifted", || async {
                connection.call(&RevokeLiftRequest { id: revoked.id.clone() }).await?;
                Ok(())
            })
            .await?;
        self.demo.until("quorum", || self.demo.quorum(&self.home)).await?;
        let back = lifted.elapsed();
        let nodes = connection.call(&NodeListRequest {}).await?.items;
        ensure!(nodes.iter().any(|n| n.node == victim.node && n.state != NodeState::Revoked));
        Ok(back)
    }
}
