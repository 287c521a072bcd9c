//! Rotation: authorities are replaced in five gates. Each opens only when the one before is true everywhere; what the
//! State alone can tell is checked here again, the rest is measured by the leader (`io/rotation.rs`).
//!
//! Prepare (every node has made its next authority) → Spread (everybody believes it) → Activate (it signs) → Drain
//! (nothing rests on the old ones) → Retire (they are gone).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use hanse_federation::Change;
use hanse_identity::name::MemberRole;
use hanse_identity::{
    AuthorityCertificate, AuthorityState, Bundle, Closing, KeyId, NodeName, Reason, Revocation, RevocationId,
    SpiffeId, Timestamp,
};
use serde::{Deserialize, Serialize};

use super::issuance::{IssuedSvid, names_node};
use super::{Decision, MAX_AUTHORITIES, State, already, done};
use crate::command::{Answer, Proposal, Refusal};

/// What a rotation waits at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Gate {
    /// Until every node has published its next authority and a revocation list of it.
    Prepare,
    /// Until everybody has the bundle with them in force.
    Spread,
    /// They sign. Until no SVID that somebody holds is of the old ones.
    Activate,
    /// Until no live connection rests on the old ones.
    Drain,
    /// The old ones are out of the bundle. Until everybody has that in force.
    Retire,
    Done,
}

/// One rotation, while it runs and after.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rotation {
    /// The log index at which it began.
    pub id: u64,
    /// SPIFFE ID of who began it; empty for the mesh itself.
    pub by: String,
    /// SVIDs of the old authorities are replaced at once.
    pub reissue: bool,
    pub gate: Gate,
    /// When it came to each gate.
    pub reached: BTreeMap<Gate, Timestamp>,
    /// Nodes whose authority is replaced.
    pub nodes: BTreeSet<NodeName>,
    pub old: BTreeSet<KeyId>,
    pub new: BTreeMap<NodeName, KeyId>,
    /// What it revokes, if it is the revocation of an authority.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revocation: Option<RevocationId>,
    /// How long the drain waits for live connections; `never` closes them: until there are none.
    #[serde(default = "until_there_are_none")]
    pub closing: Closing,
    /// It was taken back. If the new ones had signed by then, they are the `old` ones now.
    #[serde(default)]
    pub aborted: bool,
}

fn until_there_are_none() -> Closing {
    Closing::Never
}

/// What a rotation is begun for.
pub(super) struct Wanted<'w> {
    /// Only that authority.
    pub authority: Option<&'w KeyId>,
    pub reissue: bool,
    pub revocation: Option<RevocationId>,
    pub closing: Closing,
}

impl Gate {
    /// In their order.
    pub const ALL: [Self; 5] = [Self::Prepare, Self::Spread, Self::Activate, Self::Drain, Self::Retire];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Spread => "spread",
            Self::Activate => "activate",
            Self::Drain => "drain",
            Self::Retire => "retire",
            Self::Done => "done",
        }
    }

    /// What comes after it.
    pub fn next(self) -> Self {
        match self {
            Self::Prepare => Self::Spread,
            Self::Spread => Self::Activate,
            Self::Activate => Self::Drain,
            Self::Drain => Self::Retire,
            Self::Retire | Self::Done => Self::Done,
        }
    }
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Rotation {
    pub fn is_running(&self) -> bool {
        self.gate != Gate::Done
    }

    pub fn began(&self) -> Timestamp {
        self.reached.get(&Gate::Prepare).copied().unwrap_or_default()
    }

    /// Whether a node has still to make its next authority.
    pub fn wants(&self, node: &NodeName) -> bool {
        self.gate == Gate::Prepare && self.nodes.contains(node) && !self.new.contains_key(node)
    }

    /// Whether nothing new of that authority may appear: because nobody holds anything of it any more, or because it is
    /// revoked and others sign.
    pub fn is_left(&self, key: &KeyId) -> bool {
        let from = if self.revocation.is_some() { Gate::Activate } else { Gate::Drain };
        self.reached.contains_key(&from) && self.old.contains(key)
    }

    /// Whether the drain waits for live connections still.
    pub fn waits_for_connections(&self, now: Timestamp) -> bool {
        let since = self.reached.get(&Gate::Drain).copied().unwrap_or(now);
        self.closing.left(since, now).is_none_or(|left| !left.is_zero())
    }

    fn reach(&mut self, gate: Gate, now: Timestamp) {
        self.gate = gate;
        self.reached.insert(gate, now);
    }
}

impl State {
    /// The rotation that runs.
    pub fn rotating(&self) -> Option<&Rotation> {
        self.private.rotation.as_ref().filter(|r| r.is_running())
    }

    /// SVIDs that may be in use at `now` and are signed by an old authority of the rotation, but for revoked ones.
    pub fn unmoved<'s>(&'s self, r: &'s Rotation, now: Timestamp) -> impl Iterator<Item = &'s IssuedSvid> {
        let live = self.private.issued.live(now).filter(move |s| s.not_after > now);
        live.filter(|s| !s.downstream && r.old.contains(&s.authority)).filter(|s| !self.is_revoked(s))
    }

    /// Intermediates of nested issuers that an old authority of the rotation has signed and that live, but for revoked
    /// ones. Nobody but their holders can replace them and what they signed. The revocation of an authority takes them
    /// along: their holders are not asked.
    pub fn nested<'s>(&'s self, r: &'s Rotation, now: Timestamp) -> impl Iterator<Item = &'s IssuedSvid> {
        self.nested_issuers(now).filter(|_| r.revocation.is_none()).filter(|s| r.old.contains(&s.authority))
    }

    /// All intermediates of nested issuers that live, but for revoked ones.
    pub fn nested_issuers(&self, now: Timestamp) -> impl Iterator<Item = &IssuedSvid> {
        self.private.issued.downstream(now).filter(|s| !self.is_revoked(s))
    }

    fn is_revoked(&self, svid: &IssuedSvid) -> bool {
        let (own, all) = (&self.view.trust_domain, &self.view.revocations);
        let agent = SpiffeId::member(own, MemberRole::Agent, &svid.agent);
        all.of_identity(&agent).is_some()
            || all.of_identity(&svid.id).is_some()
            || all.of_key(own, svid.key).is_some()
            || all.of_serial(own, &svid.serial).is_some()
            || all.of_authority(own, svid.authority).is_some()
    }

    /// The nodes that have still to make an authority; a node that was revoked meanwhile has not.
    pub fn unprepared<'s>(&'s self, r: &'s Rotation) -> impl Iterator<Item = &'s NodeName> {
        r.nodes.iter().filter(|node| !r.new.contains_key(*node) && !self.is_revoked_node(node))
    }

    fn is_revoked_node(&self, node: &NodeName) -> bool {
        let id = SpiffeId::member(&self.view.trust_domain, MemberRole::Node, node);
        self.view.revocations.of_identity(&id).is_some()
    }

    /// New authorities of which no revocation list is published yet; nobody publishes that of a revoked node.
    pub fn without_list<'s>(&'s self, r: &'s Rotation) -> impl Iterator<Item = &'s NodeName> {
        let lists = self.view.crls.get(&self.view.trust_domain);
        let listed = move |key: &KeyId| lists.is_some_and(|lists| lists.contains_key(key));
        let unlisted = r.new.iter().filter(move |(_, key)| !listed(key)).map(|(node, _)| node);
        unlisted.filter(|node| !self.is_revoked_node(node))
    }

    pub(super) fn rotate_begin(&mut self, index: u64, proposal: &Proposal, wanted: Wanted<'_>) -> Decision {
        let Wanted { authority, reissue, revocation, closing } = wanted;
        if let Some(r) = self.rotating() {
            let why = format!("rotation {} runs and is at {}: hanse trust rotate --status", r.id, r.gate);
            return Err(Refusal::Precondition(why));
        }
        if self.private.nodes.values().any(|node| node.intermediate.is_some()) {
            return Err(Refusal::Precondition(
                "the nodes' authorities are below a root of your own: only whoever has its key can make their successors"
                    .to_owned(),
            ));
        }
        let bundle = self.own_bundle();
        let all = || self.private.nodes.values().map(|n| &n.name).filter(|n| !self.is_revoked_node(n));
        let (nodes, old): (BTreeSet<NodeName>, BTreeSet<KeyId>) = match authority {
            None => (all().cloned().collect(), bundle.trusted().map(|a| a.key_id).collect()),
            Some(key) => {
                let found = bundle.trusted().find(|a| a.key_id == *key);
                let found = found.ok_or_else(|| Refusal::NotFound { what: format!("authority {key}") })?;
                let owner = all().filter(|node| names_node(&found.subject, node));
                (owner.cloned().collect(), BTreeSet::from([*key]))
            }
        };
        // A node on hold makes no other, and has nothing left to come back with if this one goes.
        if let Some(key) = authority
            && let Some(node) = self.on_hold(key)
        {
            return Err(Refusal::Precondition(format!(
                "it is the authority of {node}, which is on hold: lift that first, or revoke the node for good"
            )));
        }
        let staying = bundle.trusted().filter(|a| !old.contains(&a.key_id)).count();
        if nodes.is_empty() && staying == 0 {
            let why = "it is the only authority, and its node is revoked: nobody could sign".to_owned();
            return Err(Refusal::Precondition(why));
        }
        if bundle.authorities.len() + nodes.len() > MAX_AUTHORITIES {
            let (there, more) = (bundle.authorities.len(), nodes.len());
            let why = format!("{MAX_AUTHORITIES} authorities: there are {there}, and {more} would be added");
            return Err(Refusal::Limit(why));
        }
        self.private.rotation = Some(Rotation {
            id: index,
            by: proposal.actor.clone(),
            reissue,
            gate: Gate::Prepare,
            reached: BTreeMap::from([(Gate::Prepare, proposal.now)]),
            nodes,
            old,
            new: BTreeMap::new(),
            revocation,
            closing,
            aborted: false,
        });
        Ok((Answer::Done, Vec::new()))
    }

    /// Whether this node may publish an authority that does not sign yet.
    pub(super) fn may_prepare(
        &self,
        node: &NodeName,
        certificate: &AuthorityCertificate,
    ) -> Result<(), Refusal> {
        // What is ordered against a node names the authorities that it has then.
        if self.is_revoked_node(node) || !self.rotating().is_some_and(|r| r.wants(node)) {
            return Err(Refusal::Precondition(format!("no new authority is wanted of node {node}")));
        }
        let read = AuthorityCertificate::parse(&certificate.der, &self.view.trust_domain);
        let read = read.map_err(|e| Refusal::Invalid(format!("the authority: {e}")))?;
        if read != (AuthorityCertificate { state: read.state, ..certificate.clone() })
            || !names_node(&read.subject, node)
        {
            return Err(Refusal::Invalid(format!("the certificate is not that of an authority of {node}")));
        }
        Ok(())
    }

    pub(super) fn prepared(&mut self, node: &NodeName, key: KeyId) {
        if let Some(r) = &mut self.private.rotation {
            r.new.insert(node.clone(), key);
        }
    }

    pub(super) fn rotate_step(&mut self, id: u64, to: Gate, now: Timestamp) -> Decision {
        let Some(r) = self.private.rotation.as_ref().filter(|r| r.id == id) else {
            return Err(Refusal::NotFound { what: format!("rotation {id}") });
        };
        if to <= r.gate {
            return already();
        }
        if to != r.gate.next() {
            return Err(Refusal::Precondition(format!("{} comes before {to}", r.gate.next())));
        }
        let mut changes = Vec::new();
        let mut spared = BTreeSet::new();
        let bundle = match to {
            Gate::Prepare => None,
            Gate::Spread => {
                self.none_waits(self.unprepared(r).next(), "has not made its next authority")?;
                None
            }
            Gate::Activate => {
                self.none_waits(self.without_list(r).next(), "has published no revocation list of it")?;
                Some(self.activated(r)?)
            }
            Gate::Drain => {
                if let Some(last) = self.unmoved(r, now).filter(|_| !r.reissue).map(|s| s.not_after).max() {
                    return Err(Refusal::Precondition(format!(
                        "an SVID of an old authority lives until {last}"
                    )));
                }
                if let Some(last) = self.nested(r, now).max_by_key(|s| s.not_after) {
                    return Err(Refusal::Precondition(format!(
                        "an intermediate of {} below an old authority lives until {}",
                        last.id, last.not_after
                    )));
                }
                let mut bundle = self.own_bundle();
                set_state(&mut bundle, &r.old, AuthorityState::Tainted).then_some(bundle)
            }
            Gate::Retire => {
                changes.extend(self.no_more_believed(r));
                spared = self.spared(r);
                Some(self.without_the_old(r, &spared)?)
            }
            Gate::Done => None,
        };
        let Some(r) = &mut self.private.rotation else { return already() };
        r.old.retain(|key| !spared.contains(key));
        r.reach(to, now);
        match bundle {
            Some(mut bundle) => {
                bundle.sequence += 1;
                changes.push(Change::BundlePut(bundle));
                done(changes)
            }
            None => Ok((Answer::Done, Vec::new())),
        }
    }

    /// The revocation that the rotation is for, with the keys: from here it hits all that is below them.
    fn no_more_believed(&self, r: &Rotation) -> Option<Change> {
        let mut revocation = self.revokes(r)?.clone();
        revocation.authorities.clone_from(&r.old);
        Some(Change::Revoked(revocation))
    }

    /// The revocation that the rotation is for, if it has not been cleared.
    fn revokes(&self, r: &Rotation) -> Option<&Revocation> {
        self.view.revocations.get(r.revocation.as_ref()?)
    }

    /// The revocation of that authority of ours, done or on its way.
    pub(super) fn authority_revocation(&self, key: &KeyId) -> Option<&Revocation> {
        let going = self.rotating().filter(|r| r.old.contains(key)).and_then(|r| self.revokes(r));
        going.or_else(|| self.view.revocations.of_authority(&self.view.trust_domain, *key))
    }

    fn none_waits(&self, node: Option<&NodeName>, why: &str) -> Result<(), Refusal> {
        node.map_or(Ok(()), |node| Err(Refusal::Precondition(format!("node {node} {why}"))))
    }

    /// The new ones sign, in one step with what becomes of the old ones.
    fn activated(&self, r: &Rotation) -> Result<Bundle, Refusal> {
        let mut bundle = self.own_bundle();
        let new: BTreeSet<KeyId> = r.new.values().copied().collect();
        let there = bundle.authorities.iter().filter(|a| new.contains(&a.key_id)).count();
        if there != new.len() {
            return Err(Refusal::Precondition("a new authority is not in the bundle".to_owned()));
        }
        set_state(&mut bundle, &new, AuthorityState::Active);
        if r.reissue {
            set_state(&mut bundle, &r.old, AuthorityState::Tainted);
        }
        Ok(bundle)
    }

    /// The node of that authority, if it is on hold.
    fn on_hold(&self, key: &KeyId) -> Option<&NodeName> {
        let bundle = self.view.bundles.get(&self.view.trust_domain)?;
        let authority = bundle.authorities.iter().find(|a| a.key_id == *key)?;
        let held = |node: &&NodeName| self.is_revoked_node(node) && !self.is_revoked_for_good(node);
        let nodes = self.private.nodes.values().map(|n| &n.name);
        nodes.filter(|node| names_node(&authority.subject, node)).find(held)
    }

    fn is_revoked_for_good(&self, node: &NodeName) -> bool {
        let id = SpiffeId::member(&self.view.trust_domain, MemberRole::Node, node);
        let mut revocations = self.view.revocations.iter();
        revocations.any(|r| r.reason != Reason::Hold && r.silences().is_some_and(|silenced| silenced == id))
    }

    /// Of the old authorities those that stay: of nodes that were on hold when the others made their next, and are not
    /// revoked for good. A node without an authority is believed by nobody, and never would be again.
    fn spared(&self, r: &Rotation) -> BTreeSet<KeyId> {
        if r.revocation.is_some() || r.aborted {
            return BTreeSet::new();
        }
        let may_come_back = |node: &NodeName| !r.new.contains_key(node) && !self.is_revoked_for_good(node);
        let nodes = self.private.nodes.values().map(|n| &n.name).filter(|node| may_come_back(node));
        let nodes: Vec<&NodeName> = nodes.collect();
        let bundle = self.own_bundle();
        let old = bundle.authorities.iter().filter(|a| r.old.contains(&a.key_id));
        old.filter(|a| nodes.iter().any(|node| names_node(&a.subject, node))).map(|a| a.key_id).collect()
    }

    fn without_the_old(&self, r: &Rotation, spared: &BTreeSet<KeyId>) -> Result<Bundle, Refusal> {
        let mut bundle = self.own_bundle();
        bundle.authorities.retain(|a| spared.contains(&a.key_id) || !r.old.contains(&a.key_id));
        set_state(&mut bundle, spared, AuthorityState::Active);
        if !bundle.authorities.iter().any(|a| a.state == AuthorityState::Active) {
            return Err(Refusal::Precondition("no authority that signs would be left".to_owned()));
        }
        Ok(bundle)
    }

    pub(super) fn rotate_abort(&mut self, now: Timestamp) -> Decision {
        let none = || Refusal::Precondition("no rotation runs".to_owned());
        let r = self.rotating().ok_or_else(none)?;
        if let Some(revocation) = self.revokes(r) {
            let why =
                format!("{} revokes the authority: clear that first, if it was a mistake", revocation.id);
            return Err(Refusal::Precondition(why));
        }
        let mut bundle = self.own_bundle();
        let new: BTreeSet<KeyId> = r.new.values().copied().collect();
        match r.gate {
            Gate::Prepare | Gate::Spread => {
                // They have signed nothing.
                bundle.authorities.retain(|a| !new.contains(&a.key_id));
            }
            Gate::Activate | Gate::Drain if r.aborted => return already(),
            Gate::Activate | Gate::Drain => {
                set_state(&mut bundle, &r.old, AuthorityState::Active);
                set_state(&mut bundle, &new, AuthorityState::Tainted);
            }
            Gate::Retire | Gate::Done => {
                let why = "the old authorities have been taken out: what they signed is believed no more; rotate again";
                return Err(Refusal::Precondition(why.to_owned()));
            }
        }
        let changed = bundle != self.own_bundle();
        let Some(r) = &mut self.private.rotation else { return Err(none()) };
        (r.aborted, r.revocation, r.closing) = (true, None, Closing::Never);
        match r.gate {
            Gate::Prepare | Gate::Spread => r.reach(Gate::Done, now),
            _ => {
                // From here it is a rotation back, through the same gates: SVIDs of the new ones have to be replaced.
                let owner = |key: &KeyId| {
                    let subject = bundle.authorities.iter().find(|a| a.key_id == *key).map(|a| &a.subject);
                    r.nodes.iter().find(|node| subject.is_some_and(|s| names_node(s, node))).cloned()
                };
                let back = r.old.iter().filter_map(|key| Some((owner(key)?, *key))).collect();
                (r.old, r.new, r.reissue) = (new, back, true);
                r.reached.retain(|gate, _| *gate < Gate::Activate);
                r.reach(Gate::Activate, now);
            }
        }
        if !changed {
            return Ok((Answer::Done, Vec::new()));
        }
        bundle.sequence += 1;
        done(vec![Change::BundlePut(bundle)])
    }

    /// Nothing changes: the trail remembers who was given a certificate.
    pub(super) fn credential_renew(&self, id: &SpiffeId) -> Decision {
        if !id.is_member(&self.view.trust_domain, MemberRole::Admin) {
            return Err(Refusal::NotAllowed(format!("{id} is no administrator of this cluster")));
        }
        match self.view.revocations.of_identity(id) {
            Some(revocation) => Err(Refusal::NotAllowed(format!("{id} is revoked by {}", revocation.id))),
            None => Ok((Answer::Done, Vec::new())),
        }
    }
}

/// Whether any of them was in another state.
fn set_state(bundle: &mut Bundle, keys: &BTreeSet<KeyId>, state: AuthorityState) -> bool {
    let mut changed = false;
    for authority in bundle.authorities.iter_mut().filter(|a| keys.contains(&a.key_id)) {
        changed |= authority.state != state;
        authority.state = state;
    }
    changed
}

#[cfg(test)]
mod tests;
