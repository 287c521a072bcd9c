//! The issuance index: which SVIDs live, and which intermediate authorities of nested issuers, from whom and through whom.
//! It is what a revocation of an identity, an agent or a key is expanded from.
//!
//! Records come in batches before the SVIDs are handed out, so the log orders issuing and revoking: what is not in
//! the index when a revocation is applied is refused when its record comes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use hanse_federation::Change;
use hanse_identity::name::MemberRole;
use hanse_identity::revocation::MAX_SERIALS;
use hanse_identity::{
    KeyId, NodeName, Revocation, RevocationId, RevocationTarget, Serial, SpiffeId, Timestamp,
};
use serde::{Deserialize, Serialize};

use super::shared::Shared;
use super::{Decision, State};
use crate::command::{Answer, Refusal};

/// Most records of one Command.
pub const MAX_ISSUED_BATCH: usize = 256;
/// Most records that are kept; beyond, those that end soonest go.
pub const MAX_ISSUED: usize = 500_000;
/// Most records of one agent, so that one revocation takes all that a host has been given.
pub const MAX_ISSUED_PER_AGENT: usize = MAX_SERIALS - 4096;
/// Parts of the index. A batch touches a few, so a State that is copied while it is read copies little of the index.
const PARTS: usize = 256;
/// How long after its end a record is kept: the clock of whoever proposes may run ahead.
pub const ISSUED_MARGIN: Duration = Duration::from_secs(300);

/// An SVID that was issued, or the intermediate authority of a nested issuer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IssuedSvid {
    pub serial: Serial,
    pub id: SpiffeId,
    /// Of the certificate's public key.
    pub key: KeyId,
    /// Of the authority that signed it.
    pub authority: KeyId,
    /// Through which it was asked for.
    pub agent: NodeName,
    /// The control node that signed it.
    pub node: NodeName,
    /// When it was signed, by that node's clock; not known of what an earlier version recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issued: Option<Timestamp>,
    pub not_after: Timestamp,
    /// It is an intermediate authority, of the workload that is called so: it signs SVIDs, which are not in the index.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub downstream: bool,
}

/// A record as it is proposed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IssuedRecord {
    #[serde(flatten)]
    pub svid: Arc<IssuedSvid>,
    /// Revision of the State in which it was granted: later revocations were not known then.
    pub granted: u64,
    /// It has been handed out already, while there was no quorum: it cannot be refused any more, only revoked.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub handed_out: bool,
}

/// The index. Written compactly: names once, and a row per SVID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issuance {
    /// By the last byte of the serial number, which is random.
    parts: Vec<Shared<Part>>,
    len: usize,
    of_agents: Shared<BTreeMap<NodeName, usize>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Part {
    by_serial: BTreeMap<Serial, Arc<IssuedSvid>>,
    by_end: BTreeSet<(Timestamp, Serial)>,
    /// The intermediate authorities among them.
    downstream: BTreeSet<Serial>,
}

impl Default for Issuance {
    fn default() -> Self {
        Self { parts: vec![Shared::default(); PARTS], len: 0, of_agents: Shared::default() }
    }
}

impl Issuance {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn get(&self, serial: &Serial) -> Option<&IssuedSvid> {
        self.parts[part_of(serial)].by_serial.get(serial).map(Arc::as_ref)
    }

    /// How many there are of that agent and its workloads.
    pub fn of_agent(&self, agent: &NodeName) -> usize {
        self.of_agents.get(agent).copied().unwrap_or(0)
    }

    /// Those that still live at `now`, or may by a clock that is behind; in no order that means anything.
    pub fn live(&self, now: Timestamp) -> impl Iterator<Item = &IssuedSvid> {
        let lives = move |(end, _): &&(Timestamp, Serial)| *end + ISSUED_MARGIN > now;
        self.parts.iter().flat_map(move |part| {
            let ends = part.by_end.iter().rev().take_while(lives);
            ends.filter_map(|(_, serial)| part.by_serial.get(serial).map(Arc::as_ref))
        })
    }

    /// The intermediate authorities that live at `now`.
    pub fn downstream(&self, now: Timestamp) -> impl Iterator<Item = &IssuedSvid> {
        self.intermediates().filter(move |intermediate| intermediate.not_after > now)
    }

    fn intermediates(&self) -> impl Iterator<Item = &IssuedSvid> {
        self.parts.iter().flat_map(|part| {
            part.downstream.iter().filter_map(|serial| part.by_serial.get(serial).map(Arc::as_ref))
        })
    }

    /// All, in the order of their serial numbers.
    fn sorted(&self) -> Vec<&IssuedSvid> {
        let mut all: Vec<&IssuedSvid> =
            self.parts.iter().flat_map(|part| part.by_serial.values().map(Arc::as_ref)).collect();
        all.sort_unstable_by(|one, other| one.serial.cmp(&other.serial));
        all
    }

    fn insert(&mut self, svid: Arc<IssuedSvid>) {
        let at = part_of(&svid.serial);
        self.remove(at, &svid.serial);
        *self.of_agents.entry(svid.agent.clone()).or_default() += 1;
        self.len += 1;
        let part = &mut *self.parts[at];
        part.by_end.insert((svid.not_after, svid.serial.clone()));
        if svid.downstream {
            part.downstream.insert(svid.serial.clone());
        }
        part.by_serial.insert(svid.serial.clone(), svid);
        self.keep(MAX_ISSUED);
    }

    /// At most so many: those that end first go. An intermediate stands for what it has signed, too, and stays; those
    /// that live are few.
    fn keep(&mut self, most: usize) {
        while self.len > most {
            let ends = self.parts.iter().enumerate().filter_map(|(at, part)| Some((part.first_svid()?, at)));
            let Some(((_, serial), at)) = ends.min() else { return };
            let serial = serial.clone();
            self.remove(at, &serial);
        }
    }

    fn prune(&mut self, now: Timestamp) {
        for at in 0..self.parts.len() {
            let over = |end: Timestamp| end + ISSUED_MARGIN <= now;
            while let Some((_, serial)) = self.parts[at].by_end.first().filter(|(end, _)| over(*end)) {
                let serial = serial.clone();
                self.remove(at, &serial);
            }
        }
    }

    fn remove(&mut self, at: usize, serial: &Serial) {
        if !self.parts[at].by_serial.contains_key(serial) {
            return;
        }
        let part = &mut *self.parts[at];
        let Some(svid) = part.by_serial.remove(serial) else { return };
        part.by_end.remove(&(svid.not_after, svid.serial.clone()));
        part.downstream.remove(serial);
        self.len -= 1;
        if let Some(left) = self.of_agents.get_mut(&svid.agent) {
            *left -= 1;
            if *left == 0 {
                self.of_agents.remove(&svid.agent);
            }
        }
    }
}

impl Part {
    /// The one that ends first, of those that are no intermediates.
    fn first_svid(&self) -> Option<&(Timestamp, Serial)> {
        self.by_end.iter().find(|(_, serial)| !self.downstream.contains(serial))
    }
}

fn part_of(serial: &Serial) -> usize {
    serial.as_bytes().last().map_or(0, |byte| usize::from(*byte) % PARTS)
}

impl State {
    /// Takes records in; those of SVIDs that are revoked by now are refused and must not be handed out. One that has
    /// been handed out is added to the revocations that it has slipped past.
    pub(super) fn issued(&mut self, records: &[IssuedRecord], now: Timestamp) -> Decision {
        if records.len() > MAX_ISSUED_BATCH {
            return Err(Refusal::Invalid(format!("at most {MAX_ISSUED_BATCH} records are taken at once")));
        }
        if records.iter().any(|record| record.svid.downstream) {
            return Err(Refusal::Invalid("an intermediate authority is recorded alone".into()));
        }
        self.recorded(records, now)
    }

    /// The same, whatever they are.
    pub(super) fn recorded(&mut self, records: &[IssuedRecord], now: Timestamp) -> Decision {
        self.private.issued.prune(now);
        let mut refused = BTreeSet::new();
        let mut grown: BTreeMap<RevocationId, BTreeSet<Serial>> = BTreeMap::new();
        for record in records.iter().filter(|r| r.svid.not_after + ISSUED_MARGIN > now) {
            let serial = &record.svid.serial;
            if !record.handed_out && self.is_too_late(record) {
                refused.insert(serial.clone());
                continue;
            }
            for revocation in self.against(record).into_iter().filter(|r| lists_serials(r)) {
                grown.entry(revocation.id.clone()).or_default().insert(serial.clone());
            }
            self.private.issued.insert(record.svid.clone());
        }
        let changes = grown.into_iter().filter_map(|(id, serials)| {
            let mut revocation = self.view.revocations.get(&id)?.clone();
            let room = MAX_SERIALS.saturating_sub(revocation.serials.len());
            revocation.serials.extend(serials.into_iter().take(room));
            Some(Change::Revoked(revocation))
        });
        Ok((Answer::Issued { refused }, changes.collect()))
    }

    /// Whether it must not be handed out: it is revoked by now, or nobody waits any more for what its authority signs.
    pub(super) fn is_too_late(&self, record: &IssuedRecord) -> bool {
        let left = |r: &super::rotation::Rotation| r.is_left(&record.svid.authority);
        // Many nodes may have let the last few pass at the same time: what is beyond all measure is not handed out.
        let too_many = self.private.issued.of_agent(&record.svid.agent) >= MAX_SERIALS;
        too_many || self.private.rotation.as_ref().is_some_and(left) || !self.against(record).is_empty()
    }

    /// The revocations because of which this SVID must not be.
    fn against(&self, record: &IssuedRecord) -> Vec<&Revocation> {
        let (own, svid, all) = (&self.view.trust_domain, &record.svid, &self.view.revocations);
        let agent = SpiffeId::member(own, MemberRole::Agent, &svid.agent);
        let later = |r: &&Revocation| r.id.origin == *own && r.id.number > record.granted;
        [
            all.of_identity(&svid.id),
            all.of_identity(&agent),
            all.of_key(own, svid.key),
            all.of_authority(own, svid.authority),
        ]
        .into_iter()
        .flatten()
        .chain(all.reissued(&svid.id).filter(later))
        .collect()
    }

    /// The serial numbers and authorities that revoking `target` takes in. `Err`: more than one revocation may carry.
    pub fn expanded(
        &self,
        target: &RevocationTarget,
        now: Timestamp,
    ) -> Result<(BTreeSet<Serial>, BTreeSet<KeyId>), Refusal> {
        let live = self.private.issued.live(now);
        // What is revoked by its name, or its key, needs no number: those that end last are for published lists.
        let by_name = matches!(target, RevocationTarget::Identity(_) | RevocationTarget::Key(_));
        let of = |hit: &dyn Fn(&IssuedSvid) -> bool| -> Result<BTreeSet<Serial>, Refusal> {
            let mut all: Vec<&IssuedSvid> = live.filter(|s| hit(s)).collect();
            if all.len() > MAX_SERIALS && !by_name {
                let live = all.len();
                let why = format!("{live} live certificates of {target}, one revocation takes {MAX_SERIALS}");
                return Err(Refusal::Limit(why));
            }
            if all.len() > MAX_SERIALS {
                // Intermediates first: what they signed has another name, and is known by that number alone.
                let rank = |s: &IssuedSvid| (s.downstream, s.not_after, s.serial.clone());
                all.sort_unstable_by_key(|s| std::cmp::Reverse(rank(s)));
                all.truncate(MAX_SERIALS);
            }
            Ok(all.into_iter().map(|s| s.serial.clone()).collect())
        };
        let none = BTreeSet::new();
        Ok(match target {
            RevocationTarget::Serial(_) | RevocationTarget::Cluster(_) => (none, BTreeSet::new()),
            RevocationTarget::Identity(id) => (of(&|s| s.id == *id)?, BTreeSet::new()),
            RevocationTarget::Key(key) => (of(&|s| s.key == *key)?, BTreeSet::new()),
            RevocationTarget::Agent(agent) => (of(&|s| s.agent == *agent)?, BTreeSet::new()),
            // All that its authorities have signed: the authorities say so.
            RevocationTarget::Node(node) => (none, self.authorities_of(node)),
            RevocationTarget::Authority(key) => (none, BTreeSet::from([*key])),
        })
    }

    /// The authorities of a control node: as it was founded, as the bundle names them, and as the index knows them.
    fn authorities_of(&self, node: &NodeName) -> BTreeSet<KeyId> {
        let founded = self.private.nodes.values().filter(|n| n.name == *node).map(|n| n.signing_key());
        let bundle = self.view.bundles.get(&self.view.trust_domain);
        let published = bundle.into_iter().flat_map(|b| &b.authorities);
        // A root of the user's own house is no node's own, whatever it is called: others stand below it too.
        let shared = |key: &KeyId| {
            self.private.nodes.values().any(|n| n.authority.key_id == *key && n.signing_key() != *key)
        };
        let published =
            published.filter(|a| names_node(&a.subject, node) && !shared(&a.key_id)).map(|a| a.key_id);
        let all = self.private.issued.parts.iter().flat_map(|part| part.by_serial.values());
        let used = all.filter(|s| s.node == *node).map(|s| s.authority);
        founded.chain(published).chain(used).collect()
    }

    /// How many live certificates the index has for a revocation, as it would be.
    pub fn live_certificates(&self, revocation: &Revocation, now: Timestamp) -> usize {
        let hit = |s: &&IssuedSvid| match &revocation.target {
            RevocationTarget::Serial(serial) => s.serial == *serial,
            RevocationTarget::Identity(id) => s.id == *id,
            RevocationTarget::Key(key) => s.key == *key,
            RevocationTarget::Agent(agent) => s.agent == *agent,
            RevocationTarget::Node(_) | RevocationTarget::Authority(_) => {
                revocation.authorities.contains(&s.authority)
            }
            RevocationTarget::Cluster(_) => false,
        };
        self.private.issued.live(now).filter(|s| s.not_after > now).filter(hit).count()
    }
}

/// Whether a revocation has the serial numbers of what it hits.
fn lists_serials(revocation: &Revocation) -> bool {
    matches!(
        revocation.target,
        RevocationTarget::Identity(_) | RevocationTarget::Key(_) | RevocationTarget::Agent(_)
    )
}

/// Whether the subject of an authority (RFC 4514) names that node: `CN=<node> <digits of the key>`.
pub fn names_node(subject: &str, node: &NodeName) -> bool {
    let common = subject.split(',').find_map(|part| part.trim().strip_prefix("CN="));
    common.and_then(|name| name.split_once(' ')).is_some_and(|(name, _)| name == node.as_str())
}

/// How the index is written: `[serial, key, id, agent, signer, notAfter]` with positions in the tables.
#[derive(Default, Serialize, Deserialize)]
struct Written {
    ids: Vec<SpiffeId>,
    agents: Vec<NodeName>,
    signers: Vec<(NodeName, KeyId)>,
    svids: Vec<(Serial, KeyId, usize, usize, usize, Timestamp)>,
    /// When each of them was signed, in the same order.
    #[serde(default)]
    issued: Vec<Option<Timestamp>>,
    /// Which of them are intermediate authorities.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    downstream: BTreeSet<Serial>,
}

/// Gives every value a position, once.
struct Positions<T>(BTreeMap<T, usize>);

impl<T: Ord + Clone> Positions<T> {
    fn of(&mut self, table: &mut Vec<T>, value: &T) -> usize {
        if let Some(position) = self.0.get(value) {
            return *position;
        }
        table.push(value.clone());
        self.0.insert(value.clone(), table.len() - 1);
        table.len() - 1
    }
}

impl Serialize for Issuance {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut written = Written::default();
        let mut ids = Positions(BTreeMap::new());
        let mut agents = Positions(BTreeMap::new());
        let mut signers = Positions(BTreeMap::new());
        for svid in self.sorted() {
            let id = ids.of(&mut written.ids, &svid.id);
            let agent = agents.of(&mut written.agents, &svid.agent);
            let signer = signers.of(&mut written.signers, &(svid.node.clone(), svid.authority));
            written.svids.push((svid.serial.clone(), svid.key, id, agent, signer, svid.not_after));
            written.issued.push(svid.issued);
        }
        written.downstream = self.intermediates().map(|svid| svid.serial.clone()).collect();
        written.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Issuance {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let written = Written::deserialize(deserializer)?;
        let beyond =
            || serde::de::Error::custom("a row of the issuance index names what is not in its tables");
        let mut issuance = Self::default();
        let issued = written.issued.into_iter().chain(std::iter::repeat(None));
        for ((serial, key, id, agent, signer, not_after), issued) in written.svids.into_iter().zip(issued) {
            let (node, authority) = written.signers.get(signer).cloned().ok_or_else(beyond)?;
            issuance.insert(Arc::new(IssuedSvid {
                downstream: written.downstream.contains(&serial),
                serial,
                id: written.ids.get(id).cloned().ok_or_else(beyond)?,
                key,
                authority,
                agent: written.agents.get(agent).cloned().ok_or_else(beyond)?,
                node,
                issued,
                not_after,
            }));
        }
        Ok(issuance)
    }
}

#[cfg(test)]
mod tests;
