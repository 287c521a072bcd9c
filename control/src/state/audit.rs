//! The audit trail: who did what, when, as whom, and what came of it. Part of the State: the same on every node, and
//! in every snapshot.
//!
//! What every proxy and every SVID causes is left out (announcements, what peers tell, issuing): it would drive out
//! what people did. What the role table denies never becomes a Proposal; it is counted and logged (`io/roles.rs`).

use std::collections::VecDeque;
use std::sync::Arc;

use hanse_federation::Export;
use hanse_identity::host::Naming;
use hanse_identity::token::Admits;
use hanse_identity::{Serial, Timestamp};
use serde::{Deserialize, Serialize};

use super::shared::Shared;
use crate::command::{Answer, Command, Proposal, Refusal};
use crate::state::issuance::IssuedSvid;

/// Most rows about what changed something.
pub const MAX_DEEDS: usize = 10_000;
/// Most rows about what changed nothing, and about what strangers cause: bounded apart, so that a flood of refused
/// requests drives out no deed.
pub const MAX_OTHERS: usize = 2_000;
/// Longest texts of a row, in bytes; together with the rest a row has at most about 1 KiB.
const MAX_ACTOR_BYTES: usize = super::roles::MAX_HOLDER_BYTES;
const MAX_TARGET_BYTES: usize = 200;
const MAX_WHY_BYTES: usize = 160;
const MAX_NOTE_BYTES: usize = 160;

/// One request that reached the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditRow {
    /// The log index at which it was applied.
    pub revision: u64,
    /// By the clock of the node that took the request.
    pub at: Timestamp,
    /// SPIFFE ID; empty for the mesh itself.
    pub actor: String,
    /// Serial number of the certificate that the actor showed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<Serial>,
    /// `revoke`, `workload-register` …
    pub kind: String,
    /// What it was about.
    pub target: String,
    pub outcome: AuditOutcome,
    /// What the actor said about it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum AuditOutcome {
    Done,
    /// It was so already.
    Already,
    /// Nothing was changed, and this is why.
    Refused(String),
}

/// The newest rows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditTrail {
    /// Oldest first.
    deeds: Shared<VecDeque<Arc<AuditRow>>>,
    /// Oldest first.
    others: Shared<VecDeque<Arc<AuditRow>>>,
    /// Rows that had to make room.
    forgotten: u64,
}

/// What a Command is, for those who read the trail; never a secret.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    pub kind: &'static str,
    pub target: String,
    pub note: String,
}

impl AuditTrail {
    /// Takes in what became of a proposal, if it is one that is kept.
    pub(super) fn record(
        &mut self,
        index: u64,
        proposal: &Proposal,
        result: &Result<Answer, Refusal>,
        changed: bool,
    ) {
        let Some(subject) = subject(&proposal.command) else { return };
        let outcome = match result {
            Err(refusal) => AuditOutcome::Refused(cut(&refusal.to_string(), MAX_WHY_BYTES)),
            Ok(Answer::Already) => AuditOutcome::Already,
            // A revocation that was in force already is answered with its id.
            Ok(Answer::Revoked(_)) if !changed => AuditOutcome::Already,
            Ok(_) => AuditOutcome::Done,
        };
        // How often a foreign domain changes its bundle is not in our hands.
        let by_a_stranger =
            proposal.actor.is_empty() && matches!(proposal.command, Command::ForeignBundlePut { .. });
        // Nor how often a workload asks.
        let by_a_workload = matches!(proposal.command, Command::DownstreamIssued { .. });
        let (rows, most) = match outcome {
            AuditOutcome::Done if !by_a_stranger && !by_a_workload => (&mut self.deeds, MAX_DEEDS),
            _ => (&mut self.others, MAX_OTHERS),
        };
        if rows.len() >= most {
            rows.pop_front();
            self.forgotten += 1;
        }
        rows.push_back(Arc::new(AuditRow {
            revision: index,
            at: proposal.now,
            actor: cut(&proposal.actor, MAX_ACTOR_BYTES),
            certificate: proposal.certificate.clone(),
            kind: subject.kind.to_owned(),
            target: cut(&subject.target, MAX_TARGET_BYTES),
            outcome,
            note: cut(&subject.note, MAX_NOTE_BYTES),
        }));
    }

    /// Newest first.
    pub fn newest(&self) -> impl Iterator<Item = &AuditRow> {
        let mut changed = self.deeds.iter().rev().peekable();
        let mut unchanged = self.others.iter().rev().peekable();
        std::iter::from_fn(move || {
            let from_changed = match (changed.peek(), unchanged.peek()) {
                (Some(one), Some(other)) => one.revision > other.revision,
                (one, _) => one.is_some(),
            };
            if from_changed { changed.next() } else { unchanged.next() }.map(Arc::as_ref)
        })
    }

    pub fn len(&self) -> usize {
        self.deeds.len() + self.others.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many rows had to make room since the cluster was founded.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }
}

/// What a Command is about, or `None` if the trail leaves it out. Every Command has to be decided on here.
pub fn subject(command: &Command) -> Option<Subject> {
    let (kind, target) = match command {
        Command::Announce { .. } | Command::Withdraw { .. } | Command::PeerFacts { .. } => return None,
        // It follows from revocations, which are here.
        Command::CrlPublish { .. } => return None,
        // Issuers change their keys as often as they like; the documents that name them are here.
        Command::IssuerKeys { .. } => return None,
        // What nodes issue is in the issuance index.
        Command::Issued { .. } => return None,
        Command::DownstreamIssued { record } => {
            let IssuedSvid { serial, id, agent, not_after, .. } = &*record.svid;
            ("downstream-issue", format!("serial {serial} to {id} on agent {agent} until {not_after}"))
        }
        Command::RevocationsClear { ids, compromised } => {
            let compromises = if *compromised { ", key compromises too" } else { "" };
            ("revoke-clear", format!("{}{compromises}", several_of(ids.iter().map(ToString::to_string))))
        }
        Command::Export { service, to } => ("service-export", format!("{service} to {}", receivers(to))),
        Command::Unexport { service } => ("service-unexport", service.to_string()),
        Command::PolicyApply { documents } => {
            ("policy-apply", several(documents.iter().map(hanse_federation::policy::PolicyDocument::key)))
        }
        Command::PolicyDelete { keys } => ("policy-delete", several(keys.iter().cloned())),
        Command::PolicyLapse { keys } => ("policy-lapse", several(keys.iter().cloned())),
        Command::Revoke { target, reason, .. } => ("revoke", format!("{target} ({reason})")),
        Command::Lift { id } => ("revoke-lift", id.to_string()),
        Command::Lapse { ids } => ("revoke-lapse", format!("{} revocations", ids.len())),
        Command::InviteCreate { invite } => match &invite.admits {
            Admits::Agent(name) => ("agent-token-create", format!("agent {name}, invite {}", invite.id)),
            Admits::Cluster(name) => {
                ("cluster-token-create", format!("cluster {name}, invite {}", invite.id))
            }
        },
        Command::AgentJoin { invite, .. } => ("agent-join", format!("invite {invite}")),
        Command::HostTrustPut { trust } => {
            let named = match &trust.naming {
                Naming::Fingerprint => "agents named after fingerprints".to_owned(),
                Naming::DnsDomain(domain) => format!("agents named after DNS names below {domain}"),
            };
            let authorities = several_of(trust.authorities.iter().map(|a| a.subject.clone()));
            ("host-trust-set", format!("{authorities}; {named}"))
        }
        Command::HostTrustDelete {} => ("host-trust-delete", "certificates that attest hosts".to_owned()),
        Command::AgentAttest { agent, join, .. } => {
            let certificate = &join.certificate;
            let host = format!("{}, sha256 {}", certificate.subject, certificate.fingerprint);
            ("agent-attest", format!("agent {agent} by its host's certificate: {host}"))
        }
        Command::AgentAllow { agent, until } => ("agent-allow", format!("agent {agent} until {until}")),
        Command::AgentEvict { agent, .. } => ("agent-evict", format!("agent {agent}")),
        Command::AgentUnban { agent } => ("agent-unban", format!("agent {agent}")),
        Command::WorkloadRegister { registration: r } => {
            ("workload-register", format!("{} on {}", r.id, r.agent))
        }
        Command::WorkloadDelete { id, agent } => ("workload-delete", format!("{id} on {agent}")),
        Command::WorkloadApply { registrations } => {
            ("workload-apply", several_of(registrations.iter().map(|r| format!("{} on {}", r.id, r.agent))))
        }
        Command::WorkloadLapse { keys } => ("workload-lapse", format!("{} registrations", keys.len())),
        Command::PeerAccept { invite, offer, .. } => {
            ("cluster-accept", format!("cluster {}, invite {invite}", offer.cluster))
        }
        Command::PeerAdd { invite, offer } => {
            ("cluster-join", format!("cluster {}, invite {invite}", offer.cluster))
        }
        Command::PeerRemove { cluster, only_invite: None } => ("cluster-leave", format!("cluster {cluster}")),
        Command::PeerRemove { cluster, only_invite: Some(invite) } => {
            ("cluster-join-undo", format!("cluster {cluster}, invite {invite}"))
        }
        Command::AuthorityPublish { node, certificate, .. } => {
            ("authority-publish", format!("sha256:{} of node {node}", certificate.key_id))
        }
        Command::RotateBegin { authority, reissue } => {
            let which = authority.map_or("every authority".to_owned(), |key| format!("sha256:{key}"));
            ("trust-rotate", format!("{which}{}", if *reissue { ", SVIDs replaced at once" } else { "" }))
        }
        Command::RotateStep { id, to } => ("trust-rotate-step", format!("rotation {id} to {to}")),
        Command::RotateAbort {} => ("trust-rotate-abort", "the rotation that runs".to_owned()),
        Command::CredentialRenew { id, serial } => ("credential-renew", format!("{id}, serial {serial}")),
        Command::Tap { what, seconds } => ("tap", format!("{what}, for {seconds} s")),
        Command::JwtAuthorityPublish { node, authority } => {
            ("jwt-authority-publish", format!("{} of node {node}", authority.key_id))
        }
        Command::RoleBind { id, roles } => ("role-bind", format!("{id}: {}", named(roles))),
        Command::FederationPut { federation: f, bundle } => {
            let given = if bundle.is_some() { ", with a bundle" } else { "" };
            ("federation-put", format!("{} from {} by {}{given}", f.trust_domain, f.url, f.profile.as_str()))
        }
        Command::FederationDelete { trust_domain, registrations: None } => {
            ("federation-delete", trust_domain.to_string())
        }
        Command::FederationDelete { trust_domain, registrations: Some(mode) } => {
            ("bundle-delete", format!("{trust_domain}, {mode} registrations"))
        }
        Command::ForeignBundleSet { bundle, older } => {
            let older = if *older { ", even an older one" } else { "" };
            let (domain, keys) = (&bundle.trust_domain, bundle.authorities.len());
            ("bundle-set", format!("{domain}, sequence {}, {keys} authorities{older}", bundle.sequence))
        }
        Command::ForeignBundlePut { bundle, .. } => (
            "foreign-bundle",
            format!(
                "{}, sequence {}, {} authorities",
                bundle.trust_domain,
                bundle.sequence,
                bundle.authorities.len()
            ),
        ),
        Command::RoleUnbind { id, roles } => ("role-unbind", format!("{id}: {}", named(roles))),
    };
    let note = match command {
        Command::Revoke { note, .. } | Command::AgentEvict { note, .. } => note.clone(),
        _ => String::new(),
    };
    Some(Subject { kind, target, note })
}

fn receivers(to: &Export) -> String {
    match to {
        Export::Everyone => "every joined cluster".to_owned(),
        Export::Only(clusters) => several_of(clusters.iter().map(ToString::to_string)),
    }
}

fn named<'r>(roles: impl IntoIterator<Item = &'r crate::role::Role>) -> String {
    several_of(roles.into_iter().map(ToString::to_string))
}

fn several(keys: impl Iterator<Item = hanse_federation::policy::PolicyKey>) -> String {
    several_of(keys.map(|key| format!("{} {}", key.kind, key.name)))
}

/// The first few by name, the others by number.
fn several_of(names: impl Iterator<Item = String>) -> String {
    const NAMED: usize = 4;
    let all: Vec<String> = names.collect();
    let mut text = all.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    if all.len() > NAMED {
        text.push_str(&format!(" and {} more", all.len() - NAMED));
    }
    text
}

/// At most `most` bytes, cut between characters; control characters become spaces, so that no row can pose as two.
fn cut(text: &str, most: usize) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    if text.len() <= most {
        return text.chars().map(clean).collect();
    }
    const MARK: char = '…';
    let end = (0..=most - MARK.len_utf8()).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text[..end].chars().map(clean).chain([MARK]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_between_characters_and_cannot_pose_as_lines() {
        assert_eq!(cut("short", 10), "short");
        assert_eq!(cut("two\nlines\u{1b}[31m", 100), "two lines [31m");
        let long = cut(&"ä".repeat(100), 20);
        assert!(long.len() <= 20 && long.ends_with('…'), "{long}");
    }

    #[test]
    fn refused_requests_drive_out_no_deed_and_the_trail_is_bounded() {
        let mut trail = AuditTrail::default();
        let proposal = Proposal {
            id: 1,
            now: Timestamp(5),
            actor: "spiffe://east.example/hanse/admin/ann".into(),
            certificate: None,
            command: Command::Unexport { service: "shop/reviews".parse().unwrap() },
        };
        trail.record(1, &proposal, &Ok(Answer::Done), true);
        let refused = Err(Refusal::Invalid("\"".repeat(10_000)));
        for index in 2..2 + 2 * MAX_OTHERS as u64 {
            trail.record(index, &proposal, &refused, false);
        }
        assert_eq!(trail.len(), 1 + MAX_OTHERS);
        assert_eq!(trail.forgotten(), MAX_OTHERS as u64);
        let rows: Vec<_> = trail.newest().collect();
        assert!(rows.windows(2).all(|pair| pair[0].revision > pair[1].revision));
        assert_eq!(rows.last().unwrap().outcome, AuditOutcome::Done, "the deed is still there");
        for index in 0..MAX_DEEDS as u64 + 10 {
            trail.record(10_000 + index, &proposal, &Ok(Answer::Done), true);
        }
        assert_eq!(trail.len(), MAX_DEEDS + MAX_OTHERS);
    }

    #[test]
    fn a_row_has_about_a_kibibyte_at_most() {
        let mut trail = AuditTrail::default();
        let long = "x".repeat(100_000);
        let proposal = Proposal {
            id: 1,
            now: Timestamp(u64::MAX),
            actor: long.clone(),
            certificate: Some(Serial::new(&[0x7f; 20]).unwrap()),
            command: Command::AgentJoin { invite: long.clone(), request_hash: String::new() },
        };
        trail.record(u64::MAX, &proposal, &Err(Refusal::Invalid(long)), false);
        let row = serde_json::to_vec(trail.newest().next().unwrap()).unwrap();
        assert!(row.len() <= 1024, "{}", row.len());
    }
}
