//! Revoke each kind: every kind of revocation, against a thief of an identity of its own, under load.
//!
//! The identities are spare ones that nobody calls, so that the load has nothing to lose: not one of its requests may
//! fail. When a control node is revoked (`node`), which hits everybody, it is told how many do. A thief holds connections at a proxy of one cluster and at the gateway of the other, keeps knocking at both,
//! and must be cut and refused. An agent that can be revoked runs for this step, and stays.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use hanse_control::admin::{
    AgentTokenCreateRequest, ProofState, Receipt, RevokeLiftRequest, RevokeListRequest, RevokeRequest,
    Revoked, TrustBundleListRequest, WorkloadRegisterRequest,
};
use hanse_identity::proof::HandshakeOutcome;
use hanse_identity::{
    KeyId, NodeName, Reason, Registration, RevocationTarget, Selector, SpiffeId, SvidFacts, TrustDomain,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::theft::Thief;
use super::{Story, Verdict, ms};
use crate::cli::RevokeWhat;
use crate::commands::revoke;
use crate::demo::load::{self, Load};
use crate::demo::ports::Ports;
use crate::demo::spec::{Key, NAMESPACE, Role, only_in, trust_domain};

/// Requests per second of the load that must not notice.
const UNRELATED: u32 = 50;
/// Pace of the thieves' knocking, per door.
const PACE: Duration = Duration::from_millis(50);
/// How long a thief is watched before the revocation, and after it has been refused everywhere.
const BEFORE: Duration = Duration::from_millis(300);
const AFTER: Duration = Duration::from_millis(500);
/// Cut and refused everywhere by then.
const MAX_ENFORCEMENT: Duration = Duration::from_secs(1);
const RECEIPT_TIMEOUT: Duration = Duration::from_secs(10);
/// Everything below an authority has been replaced by then.
const AUTHORITY_TIMEOUT: Duration = Duration::from_secs(60);
/// Name of the agent that is revoked.
const SPARE_AGENT: &str = "agent-2";

/// What is revoked, and how. One spare identity each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Serial,
    Certificate,
    Key,
    IdentityOnHold,
    IdentityReissued,
    AgentOnHold,
}

impl Kind {
    const ALL: [Self; 6] = [
        Self::Serial,
        Self::Certificate,
        Self::Key,
        Self::IdentityOnHold,
        Self::IdentityReissued,
        Self::AgentOnHold,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Serial => "serial",
            Self::Certificate => "cert",
            Self::Key => "key",
            Self::IdentityOnHold => "identity",
            Self::IdentityReissued => "reissue",
            Self::AgentOnHold => "agent",
        }
    }

    const fn is_hold(self) -> bool {
        matches!(self, Self::IdentityOnHold | Self::AgentOnHold)
    }
}

/// An agent, as the thieves reach it.
pub(super) struct Agent {
    pub(super) name: NodeName,
    socket: PathBuf,
}

/// What became of one revocation.
pub(super) struct Told {
    pub(super) ok: bool,
    pub(super) line: String,
    pub(super) evidence: Value,
}

impl Story<'_> {
    pub(super) async fn revoke_each_kind(&self) -> anyhow::Result<Verdict> {
        let (first, spare) = (self.first_agent(&self.home)?, self.spare_agent().await?);
        for kind in Kind::ALL {
            let agent = if kind == Kind::AgentOnHold { &spare } else { &first };
            self.register_spare(&self.home, kind.name(), agent).await?;
        }
        self.register_spare(&self.home, "node", &first).await?;
        let neighbour = self.first_agent(&self.away)?;
        self.register_spare(&self.away, "cluster", &neighbour).await?;
        let targets = [&self.home, &self.away].map(|cluster| self.demo.target(cluster, "productpage", "/"));
        let targets = targets.into_iter().collect::<Result<_, _>>()?;
        let unrelated = Load::start(&self.demo.client, targets, UNRELATED);

        let mut told = Vec::new();
        for kind in Kind::ALL {
            let agent = if kind == Kind::AgentOnHold { &spare } else { &first };
            told.push((kind.name(), self.revoke_kind(kind, agent).await));
        }
        told.push(("cluster", self.revoke_neighbour(&neighbour).await));
        let samples = unrelated.finish().await;
        // Not under that load: these hit what everybody rests on, and the first has a load of its own.
        told.push(("node", self.revoke_node(&first).await));
        told.push(("authority", self.revoke_authority().await));
        let (mut ok, mut lines, mut evidence) = (true, Vec::new(), BTreeMap::new());
        for (name, told) in told {
            // One kind that fails hides no other.
            let told = told.unwrap_or_else(|error| Told {
                ok: false,
                line: format!("{name}: {error:#}"),
                evidence: json!({ "error": format!("{error:#}") }),
            });
            ok &= told.ok;
            lines.push(told.line);
            evidence.insert(name, told.evidence);
        }

        let failed = samples.iter().filter(|s| !s.ok).count();
        ok &= failed == 0 && !samples.is_empty();
        lines.push(format!("{failed} of {} unrelated requests failed", samples.len()));
        let unrelated =
            json!({ "requests": samples.len(), "failed": failed, "failures": load::failures(&samples) });
        evidence.insert("unrelated", unrelated);
        Ok(Verdict::new(ok, lines.join(" · "), json!(evidence)))
    }

    /// One kind, against a thief that has got in at home and away.
    async fn revoke_kind(&self, kind: Kind, agent: &Agent) -> anyhow::Result<Told> {
        let connection = self.demo.connection(&self.home)?;
        let thief = self.spare_thief(&self.home, &self.away, kind.name(), agent).await?;
        tokio::time::sleep(BEFORE).await;
        let asked_at = crate::now();
        let (asked, revoked) = (Instant::now(), self.order(kind, agent, &thief).await?);
        let (receipt, waited) = revoke::wait(connection, &revoked.id, RECEIPT_TIMEOUT).await?;
        let complete_after = asked.elapsed();
        self.refused_at(&thief, &[&self.home, &self.away], asked_at).await?;
        let (refused, line, doors) = thief.judge(asked_at, self.within(MAX_ENFORCEMENT))?;
        let mut evidence = json!({
            "id": revoked.id, "target": thief.id, "doors": doors, "receiptCompleteMs": ms(complete_after),
            "receiptWaitedMs": ms(waited), "receipt": receipt,
        });
        // What comes after: a lifted hold lets the same certificate in again; a new certificate is let in; a revoked
        // key and certificate stay refused, and the workload gets new ones.
        let again = if kind.is_hold() {
            let lifted = Instant::now();
            connection.call(&RevokeLiftRequest { id: revoked.id }).await?;
            self.let_in_again(&thief, &[&self.home, &self.away]).await?;
            evidence["letInAfterLiftMs"] = json!(ms(lifted.elapsed()));
            format!("lifted, in again after {} ms", ms(lifted.elapsed()))
        } else {
            let successor = self.spare_thief(&self.home, &self.away, kind.name(), agent).await?;
            let new = successor.certificate != thief.certificate;
            ensure!(new, "the agent gave the revoked certificate of {} again", thief.id);
            evidence["newCertificateLetIn"] = json!(new);
            "new certificate let in".to_owned()
        };
        let (told, proof) = (receipt_line(&receipt, complete_after), proof_line(&receipt));
        let line = format!("{}: {line}, {told}, {proof}, {again}", kind.name());
        let proved = is_proved(kind, &receipt, [&self.home, &self.away]);
        Ok(Told { ok: refused && receipt.complete && proved, line, evidence })
    }

    /// Commits the revocation of that kind.
    async fn order(&self, kind: Kind, agent: &Agent, thief: &Thief) -> anyhow::Result<Revoked> {
        let facts = facts_of(&thief.certificate)?;
        let what = match kind {
            Kind::Serial => RevokeWhat { serial: Some(facts.serial.to_string()), ..RevokeWhat::default() },
            Kind::Certificate => {
                let file = self.demo.directory.join("stolen.pem");
                std::fs::write(&file, &thief.certificate)?;
                RevokeWhat { cert: Some(file), ..RevokeWhat::default() }
            }
            Kind::Key => RevokeWhat { key: Some(facts.key_id.to_string()), ..RevokeWhat::default() },
            Kind::IdentityOnHold | Kind::IdentityReissued => {
                RevokeWhat { identity: Some(facts.id), ..RevokeWhat::default() }
            }
            Kind::AgentOnHold => RevokeWhat { agent: Some(agent.name.clone()), ..RevokeWhat::default() },
        };
        let reason = if kind.is_hold() { Reason::Hold } else { Reason::KeyCompromise };
        let request = RevokeRequest {
            note: format!("verify {}", kind.name()),
            reissue: kind == Kind::IdentityReissued,
            ..RevokeRequest::new(revoke::target(&what)?, reason)
        };
        Ok(revoke::commit(self.demo.connection(&self.home)?, &request).await?)
    }

    /// The other cluster as a whole is put on hold here: its workload is cut and refused at this cluster's gateway and
    /// nowhere else, nothing of it is believed, and a lift brings everything back.
    async fn revoke_neighbour(&self, agent: &Agent) -> anyhow::Result<Told> {
        let connection = self.demo.connection(&self.home)?;
        let crossing = self.demo.target(&self.home, &only_in(&self.away), "/")?;
        let back = self.demo.target(&self.away, &only_in(&self.home), "/")?;
        let thief = self.spare_thief(&self.away, &self.home, "cluster", agent).await?;
        tokio::time::sleep(BEFORE).await;
        let target = RevocationTarget::Cluster(trust_domain(&self.away).parse()?);
        let (asked, asked_at) = (Instant::now(), crate::now());
        let request =
            RevokeRequest { note: "verify cluster".to_owned(), ..RevokeRequest::new(target, Reason::Hold) };
        let revoked = revoke::commit(connection, &request).await?;
        let (receipt, _) = revoke::wait(connection, &revoked.id, RECEIPT_TIMEOUT).await?;
        let complete_after = asked.elapsed();
        self.refused_at(&thief, &[&self.home], asked_at).await?;
        let (refused, line, door) = thief.judge_at(&self.home, asked_at, self.within(MAX_ENFORCEMENT));
        let at_its_own = thief.let_in_since(&self.away, asked_at);
        let crossed = load::request(&self.demo.client, &crossing).await;

        let lifted = Instant::now();
        connection.call(&RevokeLiftRequest { id: revoked.id.clone() }).await?;
        self.let_in_again(&thief, &[&self.home]).await?;
        for target in [&crossing, &back] {
            self.demo
                .until("requests between the clusters after the lift", || async {
                    let sample = load::request(&self.demo.client, target).await;
                    ensure!(sample.ok, "{} {}", sample.status, sample.why);
                    Ok(())
                })
                .await?;
        }
        let ok = refused && receipt.complete && at_its_own > 0 && !crossed.ok;
        let line = format!(
            "cluster: {line}, {}, let in at its own, lifted, back after {} ms",
            receipt_line(&receipt, complete_after),
            ms(lifted.elapsed())
        );
        let evidence = json!({
            "id": revoked.id, "target": trust_domain(&self.away), "door": door,
            "letInAtItsOwnMeanwhile": at_its_own, "requestAcrossAnswered": crossed.ok, "acrossWhy": crossed.why,
            "receiptCompleteMs": ms(complete_after), "receipt": receipt, "backAfterLiftMs": ms(lifted.elapsed()),
        });
        Ok(Told { ok, line, evidence })
    }

    /// One authority at home: all below it is replaced, then it is gone in both clusters and on the list of both.
    async fn revoke_authority(&self) -> anyhow::Result<Told> {
        let connection = self.demo.connection(&self.home)?;
        let own: TrustDomain = trust_domain(&self.home).parse()?;
        let known = async |cluster: &str| -> anyhow::Result<Vec<KeyId>> {
            let bundles =
                self.demo.connection(cluster)?.call(&TrustBundleListRequest::default()).await?.items;
            let bundle = bundles.into_iter().find(|b| b.trust_domain == own).context("a bundle of home")?;
            Ok(bundle.trusted().map(|authority| authority.key_id).collect())
        };
        let before = known(&self.home).await?;
        let key = *before.last().context("home has an authority")?;
        let request = RevokeRequest {
            note: "verify authority".to_owned(),
            ..RevokeRequest::new(RevocationTarget::Authority(key), Reason::KeyCompromise)
        };
        let asked = Instant::now();
        let revoked = revoke::commit(connection, &request).await?;
        let (receipt, _) = revoke::wait(connection, &revoked.id, AUTHORITY_TIMEOUT).await?;
        let took = asked.elapsed();
        let mut gone = Vec::new();
        for cluster in [&self.home, &self.away] {
            let listed = self.demo.connection(cluster)?.call(&RevokeListRequest {}).await?.items;
            let entry = listed.iter().find(|item| item.revocation.id == revoked.id);
            let hit = entry.is_some_and(|item| item.revocation.authorities.contains(&key));
            let keys = known(cluster).await?;
            gone.push(hit && !keys.contains(&key) && keys.len() == before.len());
        }
        let both = gone.iter().all(|gone| *gone);
        let line = format!(
            "authority: {}, {} in both clusters",
            receipt_line(&receipt, took),
            if both { "replaced and on the list" } else { "NOT gone" }
        );
        let evidence = json!({
            "id": revoked.id, "key": key, "receiptCompleteMs": ms(took), "goneAtHomeAndAway": gone, "receipt": receipt,
        });
        Ok(Told { ok: receipt.complete && both, line, evidence })
    }

    /// Waits until the thief has been refused at these doors, and watches it a little longer.
    pub(super) async fn refused_at(
        &self,
        thief: &Thief,
        doors: &[&String],
        asked: hanse_identity::Timestamp,
    ) -> anyhow::Result<()> {
        self.demo
            .until("the thief refused", || async {
                let open = doors.iter().find(|door| thief.refused_since(door, asked) == 0);
                ensure!(open.is_none(), "not refused at {}", open.map(|d| d.as_str()).unwrap_or_default());
                Ok(())
            })
            .await?;
        tokio::time::sleep(AFTER).await;
        Ok(())
    }

    async fn let_in_again(&self, thief: &Thief, doors: &[&String]) -> anyhow::Result<()> {
        let lifted = crate::now();
        self.demo
            .until("the thief let in after the lift", || async {
                let out = doors.iter().find(|door| thief.let_in_since(door, lifted) == 0);
                ensure!(out.is_none(), "not let in at {}", out.map(|d| d.as_str()).unwrap_or_default());
                Ok(())
            })
            .await
    }

    /// A thief of a spare identity of `from`, with doors there and in `to`.
    pub(super) async fn spare_thief(
        &self,
        from: &str,
        to: &str,
        name: &str,
        agent: &Agent,
    ) -> anyhow::Result<Thief> {
        let log = self.demo.directory.join(format!("logs/thief-{name}.log"));
        let doors = self.doors(from, to)?;
        Thief::start(&self.executable(from, name), &agent.socket, &doors, PACE, &log).await
    }

    fn executable(&self, cluster: &str, name: &str) -> PathBuf {
        self.demo.directory.join("bin").join(cluster).join(format!("spare-{name}")).join("hanse")
    }

    /// Gives a spare identity to an executable of its own.
    async fn register_spare(&self, cluster: &str, name: &str, agent: &Agent) -> anyhow::Result<()> {
        let executable = self.executable(cluster, name);
        std::fs::create_dir_all(executable.parent().context("a link has a directory")?)?;
        std::fs::hard_link(self.demo.directory.join("bin/hanse"), &executable)?;
        let id = SpiffeId::workload(&trust_domain(cluster).parse()?, NAMESPACE, &format!("spare-{name}"))?;
        let selectors = [
            Selector::Uid(nix::unistd::Uid::current().as_raw()),
            Selector::Path(executable.display().to_string()),
        ];
        let registration = Registration::new(id, agent.name.clone(), selectors);
        self.demo.connection(cluster)?.call(&WorkloadRegisterRequest { registration }).await?;
        Ok(())
    }

    fn first_agent(&self, cluster: &str) -> anyhow::Result<Agent> {
        let plan = self.demo.clusters.iter().find(|c| c.name == cluster).context("a cluster of the demo")?;
        Ok(Agent { name: "agent-1".parse()?, socket: plan.agent_socket.clone() })
    }

    /// A second agent at home, as the first one but for its name.
    async fn spare_agent(&self) -> anyhow::Result<Agent> {
        let name: NodeName = SPARE_AGENT.parse()?;
        let plan = self.demo.supervisor.plan(&self.home, Role::Agent, "agent-1");
        let mut plan = plan.context("home has an agent")?;
        let home =
            self.demo.clusters.iter().find(|c| c.name == self.home).context("a cluster of the demo")?;
        let at = |file: &str| home.directory.join(file);
        let (socket, token) = (at("agent-2.sock"), at("agent-2.token"));
        let request = AgentTokenCreateRequest { agent: name.clone(), ttl_seconds: 600 };
        let made = self.demo.connection(&self.home)?.call(&request).await?;
        crate::demo::up::write_private(&token, made.token.as_bytes())?;
        let mut ports = Ports::new();
        let admin = ports.reserve()?;
        plan.key = Key { name: SPARE_AGENT.to_owned(), ..plan.key };
        plan.log = plan.log.with_file_name(format!("{}-agent-{SPARE_AGENT}.log", self.home));
        plan.addresses = BTreeMap::from([
            ("admin".to_owned(), admin.to_string()),
            ("socket".to_owned(), socket.display().to_string()),
        ]);
        let flag = |name: &str, value: &Path| format!("--{name}={}", value.display());
        for argument in &mut plan.arguments {
            *argument = match argument.split_once('=') {
                Some(("--data-dir", _)) => flag("data-dir", &at(SPARE_AGENT)),
                Some(("--name", _)) => format!("--name={SPARE_AGENT}"),
                Some(("--socket", _)) => flag("socket", &socket),
                Some(("--join-token-file", _)) => flag("join-token-file", &token),
                Some(("--admin", _)) => format!("--admin={admin}"),
                _ => continue,
            };
        }
        ports.release([admin]);
        self.demo.supervisor.start(&plan)?;
        self.demo.ready(&[Role::Agent]).await?;
        Ok(Agent { name, socket })
    }
}

pub(super) fn facts_of(pem: &str) -> anyhow::Result<SvidFacts> {
    let leaf = CertificateDer::from_pem_slice(pem.as_bytes()).context("the thief told no certificate")?;
    Ok(SvidFacts::parse(&leaf)?)
}

/// Whether whoever still had the certificate was refused at listeners of both clusters. What came through an agent that is
/// put out itself, nobody has whose word counts.
fn is_proved(kind: Kind, receipt: &Receipt, clusters: [&String; 2]) -> bool {
    if kind == Kind::AgentOnHold {
        return receipt.proof.state == ProofState::NotHeld;
    }
    let refused =
        |cluster: &&String| {
            receipt.proof.tried.iter().map(|tried| &tried.attempt).any(|a| {
                a.cluster.as_str() == **cluster && matches!(a.outcome, HandshakeOutcome::Refused { .. })
            })
        };
    receipt.proof.state == ProofState::Refused && clusters.iter().all(refused)
}

fn proof_line(receipt: &Receipt) -> String {
    let refused =
        receipt.proof.tried.iter().filter(|t| matches!(t.attempt.outcome, HandshakeOutcome::Refused { .. }));
    match receipt.proof.state {
        ProofState::NotHeld => "proof not held".to_owned(),
        ProofState::Refused => format!("proof: {} handshakes refused", refused.count()),
        state => format!("proof: {state:?}"),
    }
}

pub(super) fn receipt_line(receipt: &Receipt, after: Duration) -> String {
    let state = if receipt.complete { "complete" } else { "NOT complete" };
    format!("receipt {state} after {} ms", ms(after))
}
