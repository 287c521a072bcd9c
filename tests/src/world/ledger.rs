//! The ledger: what has happened, as the World saw it, and what must never happen (design §11).
//!
//! It folds the Changes of every revision once, in the order in which the first node publishes them, and holds
//! everybody else's State, View and connections against that.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use hanse_control::command::{Command, Outcome, Proposal};
use hanse_control::node::Applied;
use hanse_control::state::State;
use hanse_control::state::issuance::names_node;
use hanse_federation::{Change, PeerFact, Revision, View};
use hanse_identity::{
    AuthorityCertificate, AuthorityState, Bundle, ClusterName, KeyId, NodeName, RevocationId,
    RevocationTarget, Revocations, Timestamp, TrustDomain,
};

use super::At;
use super::authorities::WorldSvid;
use super::clocks::{SURELY_WRONG, USUAL_SKEW};
use super::keys::own_bundle;
use super::proxy::Proxy;

/// What others said of the time was heard in whole milliseconds.
const DATING_MARGIN: Duration = Duration::from_millis(10);

/// What must never happen has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub at: u64,
    pub what: String,
}

impl std::error::Error for Violation {}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "at {} ms: {}", self.at, self.what)
    }
}

#[derive(Debug, Default)]
pub struct Ledger {
    clusters: Vec<Book>,
    violation: Option<Violation>,
}

/// One cluster's history.
#[derive(Debug)]
struct Book {
    truth: View,
    /// Who led in each term.
    leaders: BTreeMap<u64, usize>,
    /// The proposal that each index held.
    entries: BTreeMap<u64, u64>,
    outcomes: BTreeMap<u64, Outcome>,
    /// A retry under another id: the first id that it had.
    first_ids: BTreeMap<u64, u64>,
    applied: BTreeMap<u64, u64>,
    facts: BTreeMap<u64, Arc<Proposal>>,
    /// Proposals that may be applied more than once.
    repeatable: BTreeSet<u64>,
    /// What was in force from that revision on.
    revocations: BTreeMap<u64, Arc<Revocations>>,
    acknowledged: BTreeMap<u64, Outcome>,
    /// Its own bundle, as it was from that revision on.
    bundles: BTreeMap<u64, Bundle>,
    /// Authorities that have signed, and those of them that are gone from the bundle.
    signed: BTreeSet<KeyId>,
    retired: BTreeSet<KeyId>,
    /// Whoever starts to read now must see at least that.
    floor: u64,
    /// By (proxy, life): the newest revision that it has had in force.
    in_force: BTreeMap<(usize, u64), u64>,
}

impl Ledger {
    pub(super) fn violate(&mut self, at: u64, what: impl FnOnce() -> String) {
        if self.violation.is_none() {
            self.violation = Some(Violation { at, what: what() });
        }
    }

    pub(super) fn verdict(&self) -> Result<(), Violation> {
        self.violation.clone().map_or(Ok(()), Err)
    }

    pub(super) fn found(&mut self, founded: &State) {
        let truth = founded.view.clone();
        let revocations = BTreeMap::from([(0, Arc::new(Revocations::default()))]);
        self.clusters.push(Book {
            truth,
            leaders: BTreeMap::new(),
            entries: BTreeMap::new(),
            outcomes: BTreeMap::new(),
            first_ids: BTreeMap::new(),
            applied: BTreeMap::new(),
            facts: BTreeMap::new(),
            repeatable: BTreeSet::new(),
            revocations,
            acknowledged: BTreeMap::new(),
            bundles: own_bundle(founded).map(|bundle| (0, bundle.clone())).into_iter().collect(),
            signed: BTreeSet::new(),
            retired: BTreeSet::new(),
            floor: 0,
            in_force: BTreeMap::new(),
        });
    }

    /// What the cluster has agreed on so far.
    pub fn truth(&self, cluster: usize) -> &View {
        &self.clusters[cluster].truth
    }

    /// At which revision a cluster committed a revocation first.
    pub fn revoked_in(&self, cluster: usize, id: &RevocationId) -> Option<u64> {
        let known = self.clusters[cluster].revocations.iter();
        known.filter(|(_, in_force)| in_force.get(id).is_some()).map(|(revision, _)| *revision).min()
    }

    pub fn acknowledged_count(&self) -> usize {
        self.clusters.iter().map(|b| b.acknowledged.len()).sum()
    }

    pub(super) fn floor(&self, cluster: usize) -> u64 {
        self.clusters[cluster].floor
    }

    /// At most one leader per term.
    pub(super) fn role(&mut self, now: u64, at: At, term: u64, leads: bool) {
        if leads {
            let leader = *self.clusters[at.cluster].leaders.entry(term).or_insert(at.index);
            if leader != at.index {
                self.violate(now, || {
                    format!(
                        "nodes {leader} and {} of cluster {} both lead in term {term}",
                        at.index, at.cluster
                    )
                });
            }
        }
    }

    /// What enters the log is dated by the true time, or nearly.
    pub(super) fn proposed(&mut self, now: u64, true_time: Timestamp, at: At, proposal: &Arc<Proposal>) {
        let cluster = at.cluster;
        let off_by = proposal.now.since(true_time).max(true_time.since(proposal.now));
        if off_by > USUAL_SKEW + DATING_MARGIN {
            self.violate(now, || {
                format!("{:?} dates {:?} by a clock that is off by {off_by:?}", at.party(), proposal.command)
            });
        }
        if matches!(proposal.command, Command::Issued { .. }) {
            self.clusters[cluster].repeatable.insert(proposal.id);
        }
        if matches!(proposal.command, Command::PeerFacts { .. }) {
            self.clusters[cluster].facts.insert(proposal.id, proposal.clone());
        }
    }

    pub(super) fn renamed(&mut self, cluster: usize, from: u64, to: u64) {
        let book = &mut self.clusters[cluster];
        let first = book.first_ids.get(&from).copied().unwrap_or(from);
        book.first_ids.insert(to, first);
    }

    /// One index, one proposal; one proposal, one outcome.
    pub(super) fn applied(&mut self, now: u64, at: At, id: u64, outcome: &Outcome) {
        let book = &mut self.clusters[at.cluster];
        let index = outcome.revision;
        let held = *book.entries.entry(index).or_insert(id);
        if held != id {
            return self.violate(now, || {
                format!("index {index} of cluster {} held proposals {held:x} and {id:x}", at.cluster)
            });
        }
        // A record that is taken in twice is there once: the State does not remember who proposed it.
        if book.repeatable.contains(&id) {
            return;
        }
        let known = book.outcomes.entry(id).or_insert_with(|| outcome.clone());
        if known != outcome {
            let known = known.clone();
            return self.violate(now, || format!("proposal {id:x} came out as {known:?} and as {outcome:?}"));
        }
        let first = book.first_ids.get(&id).copied().unwrap_or(id);
        let applied = *book.applied.entry(first).or_insert(index);
        if applied != index {
            return self.violate(now, || {
                format!("proposal {first:x} was applied at {applied} and again at {index}")
            });
        }
        if let Some(facts) = book.facts.remove(&id)
            && let Command::PeerFacts { cluster, facts, .. } = &facts.command
            && let Some(foreign) = facts.iter().find(|f| !book.speaks_of_itself(cluster, f))
        {
            let what = format!("{cluster} told and the log took: {foreign:?}");
            self.violate(now, || what);
        }
    }

    /// No acknowledged write is lost: the entry that was acknowledged is the one that its index holds.
    pub(super) fn acknowledged(&mut self, cluster: usize, id: u64, outcome: &Outcome) {
        let book = &mut self.clusters[cluster];
        book.floor = book.floor.max(outcome.revision);
        book.acknowledged.insert(id, outcome.clone());
    }

    /// Nothing that was acknowledged may be missing from what everybody has in the end.
    pub fn lost_writes(&self, cluster: usize, state: &State) -> Option<String> {
        let book = &self.clusters[cluster];
        let revision = state.view.revision.0;
        let lost = book.acknowledged.iter().find(|(id, outcome)| {
            outcome.revision > revision || book.entries.get(&outcome.revision) != Some(id)
        });
        lost.map(|(id, outcome)| format!("acknowledged write {id:x} at {} is lost", outcome.revision))
    }

    pub(super) fn read(&mut self, now: u64, cluster: usize, floor: u64, revision: u64) {
        let book = &mut self.clusters[cluster];
        book.floor = book.floor.max(revision);
        if revision < floor {
            self.violate(now, || {
                format!(
                    "a read of cluster {cluster} saw {revision}, but {floor} had been seen before it began"
                )
            });
        }
    }

    /// Equal index ⇒ equal State, and every revision follows the one before.
    pub(super) fn published(&mut self, now: u64, at: At, state: &State, applied: &[Arc<Applied>]) {
        let book = &mut self.clusters[at.cluster];
        let mut wrong = None;
        for one in applied {
            let newest = book.truth.revision.0;
            if one.revision > newest + 1 || (one.reset && one.revision > newest) {
                wrong = Some(format!("{:?} published {} after {newest}", at.party(), one.revision));
                break;
            }
            if one.revision == newest + 1 {
                wrong = book.fold(one);
                if wrong.is_some() {
                    break;
                }
            }
        }
        if wrong.is_none() && state.view.revision == book.truth.revision && state.view != book.truth {
            wrong = Some(format!(
                "{:?} has another State at {} than was agreed on",
                at.party(),
                state.view.revision
            ));
        }
        if let Some(what) = wrong {
            self.violate(now, || what);
        }
    }

    /// Of each node only the newest authority that is active signs, nothing for whom the signer knows to be revoked, and
    /// nothing by a clock that all others contradict.
    pub(super) fn issued(
        &mut self,
        now: u64,
        at: At,
        (node, off_by): (&NodeName, Duration),
        revision: u64,
        svid: &WorldSvid,
    ) {
        if off_by > SURELY_WRONG {
            self.violate(now, || {
                format!("{:?} signed {} by a clock that is off by {off_by:?}", at.party(), svid.facts.id)
            });
        }
        let book = &mut self.clusters[at.cluster];
        let own = book.bundles.range(..=revision).next_back().map(|(_, bundle)| &bundle.authorities);
        let entry = own.and_then(|own| own.iter().find(|a| a.key_id == svid.authority));
        let wrong = match entry.map(|a| a.state) {
            None => Some("before its authority was published".to_owned()),
            Some(AuthorityState::Active) => {
                let active = |a: &&AuthorityCertificate| {
                    a.state == AuthorityState::Active && names_node(&a.subject, node)
                };
                let newest = own.and_then(|own| own.iter().rfind(active)).map(|a| a.key_id);
                (newest != Some(svid.authority))
                    .then(|| "with an authority that is not its newest".to_owned())
            }
            Some(state) => Some(format!("with an authority that is {state:?}")),
        };
        book.signed.insert(svid.authority);
        let revoked = book.revoked_at(revision, svid);
        if let Some(wrong) = wrong {
            self.violate(now, || format!("{:?} signed {} {wrong}", at.party(), svid.facts.id));
        } else if let Some(by) = revoked {
            self.violate(now, || {
                format!(
                    "{:?} signed {} at {revision} though it is revoked by {by}",
                    at.party(),
                    svid.facts.id
                )
            });
        }
    }

    /// Somebody in `cluster` with that View has let a caller (or a target) in.
    pub(super) fn admitted(&mut self, now: u64, cluster: usize, view: &View, svid: &WorldSvid) {
        let revision = view.revision.0;
        if let Some(by) = self.clusters[cluster].revoked_at(revision, svid) {
            self.violate(now, || {
                format!("cluster {cluster} at {revision} admits {}, revoked by {by}", svid.facts.id)
            });
        }
    }

    /// A View never goes back, is the same for all at one revision, and nobody keeps a connection that it forbids.
    pub(super) fn in_force(&mut self, now: u64, cluster: usize, index: usize, proxy: &Proxy) {
        let (Some(view), Some(life)) = (proxy.view(), &proxy.running) else { return };
        let book = &mut self.clusters[cluster];
        let revision = view.revision.0;
        let newest = book.in_force.entry((index, proxy.life)).or_default();
        let before = std::mem::replace(newest, revision.max(*newest));
        let mut wrong = None;
        if revision < before {
            wrong = Some(format!("the View of {} went back from {before} to {revision}", proxy.name));
        } else if view.revision == book.truth.revision && *view != book.truth {
            wrong = Some(format!("{} has another View at {revision} than was agreed on", proxy.name));
        }
        for connection in life.connections.values() {
            if let Some(by) = book.revoked_at(revision, &connection.other) {
                let who = &connection.other.facts.id;
                wrong = Some(format!(
                    "{} at {revision} keeps a connection with {who}, revoked by {by}",
                    proxy.name
                ));
            }
        }
        if let Some(what) = wrong {
            self.violate(now, || what);
        }
    }
}

impl Book {
    /// Folds in one revision; says what is wrong with it.
    fn fold(&mut self, applied: &Applied) -> Option<String> {
        let told = applied.changes.iter().find_map(|c| match c {
            Change::PeerFact(cluster, _) => Some(cluster.clone()),
            _ => None,
        });
        // A join commits a peer's first gateways along with the peer.
        let only_told = applied.changes.iter().all(|c| matches!(c, Change::PeerFact(..)));
        let before = told.filter(|_| only_told).map(|cluster| (cluster, self.truth.clone()));
        let mut wrong = None;
        for change in &applied.changes {
            wrong =
                wrong.or_else(|| self.goes_back(change)).or_else(|| self.rotates(applied.revision, change));
            self.truth.apply(change);
        }
        self.truth.advance(Revision(applied.revision), &[]);
        if let Some((cluster, before)) = before {
            wrong = wrong.or_else(|| meddled(&before, &self.truth, &cluster));
        }
        let touched = applied.changes.iter().any(|c| {
            matches!(
                c,
                Change::Revoked(_) | Change::Unrevoked(_) | Change::PeerGone(_) | Change::PeerFact(..)
            )
        });
        if touched {
            self.revocations.insert(applied.revision, Arc::new(self.truth.revocations.clone()));
        }
        wrong
    }

    /// What a peer told of itself does not go back: a revocation would be forgotten that way.
    fn goes_back(&self, change: &Change) -> Option<String> {
        let Change::PeerFact(cluster, fact) = change else { return None };
        let peer = self.truth.peers.get(cluster)?;
        match fact {
            // Nobody restores a backup here, so a retelling has no reason to go back either.
            PeerFact::Synced(told) if *told < peer.synced => {
                Some(format!("what {cluster} told goes back from {} to {told}", peer.synced))
            }
            PeerFact::Bundle(bundle) => {
                let known = self.truth.bundles.get(&bundle.trust_domain)?;
                let back = bundle.sequence < known.sequence;
                back.then(|| {
                    format!(
                        "the bundle of {cluster} goes back from {} to {}",
                        known.sequence, bundle.sequence
                    )
                })
            }
            _ => None,
        }
    }

    /// What has signed and is gone from the cluster's own bundle never comes back.
    fn rotates(&mut self, revision: u64, change: &Change) -> Option<String> {
        let Change::BundlePut(bundle) = change else { return None };
        if bundle.trust_domain != self.truth.trust_domain {
            return None;
        }
        let there: BTreeSet<KeyId> = bundle.authorities.iter().map(|a| a.key_id).collect();
        let back = there.intersection(&self.retired).next().copied();
        let revoked = self.truth.revocations.iter().find(|r| {
            matches!(r.target, RevocationTarget::Authority(_))
                && r.authorities.iter().any(|k| there.contains(k))
        });
        let revoked = revoked.map(|r| format!("an authority that {} revokes is in the bundle again", r.id));
        self.retired.extend(self.signed.difference(&there).copied());
        self.bundles.insert(revision, bundle.clone());
        revoked.or_else(|| back.map(|key| format!("the retired authority {key} is in the bundle again")))
    }

    fn speaks_of_itself(&self, cluster: &ClusterName, fact: &PeerFact) -> bool {
        let Some(own) = self.truth.peers.get(cluster).map(|p| &p.record.trust_domain) else { return true };
        match fact {
            PeerFact::Service(summary) => summary.identities.iter().all(|id| id.trust_domain() == own),
            PeerFact::Gateways(gateways) => gateways.iter().all(|g| g.identity.trust_domain() == own),
            PeerFact::Bundle(bundle) => bundle.trust_domain == *own,
            PeerFact::Revoked(revocation) => revocation.id.origin == *own && revocation.trust_domain() == own,
            PeerFact::Unrevoked(id) => id.origin == *own,
            // It names a key, and a View takes it in only for an authority of the peer's own bundle.
            PeerFact::Crl(_) => true,
            PeerFact::ServiceGone(_) | PeerFact::Endpoints(_) | PeerFact::Synced(_) | PeerFact::Begin => true,
        }
    }

    /// The revocation that hits an SVID for all who have that revision.
    fn revoked_at(&self, revision: u64, svid: &WorldSvid) -> Option<String> {
        let (_, revocations) = self.revocations.range(..=revision).next_back()?;
        // Not by `Revocations::check`: its indexes are among what is to be tested.
        revocations.iter().find(|r| r.hits(&svid.facts)).map(|r| r.id.to_string())
    }
}

/// Whether what a peer told has changed anything outside its own domain.
fn meddled(before: &View, after: &View, cluster: &ClusterName) -> Option<String> {
    let own = before.peers.get(cluster).map(|p| p.record.trust_domain.clone())?;
    let others = |view: &View| {
        view.bundles.iter().filter(|(d, _)| **d != own).map(|(_, b)| b.clone()).collect::<Vec<_>>()
    };
    let crls = |view: &View| {
        view.crls.iter().filter(|(d, _)| **d != own).map(|(_, c)| c.clone()).collect::<Vec<_>>()
    };
    let revoked = |view: &View| {
        let foreign = |r: &&hanse_identity::Revocation| r.id.origin != own || *r.trust_domain() != own;
        view.revocations.iter().filter(foreign).cloned().collect::<Vec<_>>()
    };
    let peers = |view: &View| {
        let records = view.peers.iter().map(|(name, p)| (name.clone(), p.record.trust_domain.clone()));
        records.collect::<Vec<(ClusterName, TrustDomain)>>()
    };
    let same = before.services == after.services
        && before.endpoints == after.endpoints
        && before.gateways == after.gateways
        && before.policies == after.policies
        && peers(before) == peers(after)
        && others(before) == others(after)
        && crls(before) == crls(after)
        && revoked(before) == revoked(after);
    (!same).then(|| format!("what {cluster} told has changed names outside {own}"))
}
