//! The failover ladder: which tier, and in it which target, a request goes to.
//!
//! Tiers come from locality: same zone, same region, rest of the cluster, then peers (in policy order, else by
//! name). A tier opens continuously as the tiers above lose healthy capacity (`openNextTierBelow`), and traffic
//! goes back only after the upper tier has been well for `returnAfter`, with a ramp. Works with no policy.
//! Pure: built once per (service, View), asked once per request with `now` and a random number. One ladder is
//! asked with one `Health`, that of its worker.
//!
//! `build` makes the tiers, `settings` reads the policy, `shares` divides the traffic and holds back who returns; within a
//! tier `pick` balances, for which `table` has the tables of consistent hashing and `warm` knows who has just come up.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hanse_identity::{ClusterName, ServiceName, SpiffeId, Timestamp};

use crate::catalog::{EndpointId, Locality};
use crate::health::{Health, Observation, OutlierSettings, Standing, Target};
use crate::host::ServiceHost;
use crate::load::Load;
use crate::policy::document::balance::{Algorithm, HashOn, SessionPersistencePolicy};
use crate::view::View;

mod build;
mod dice;
mod limits;
mod pick;
mod retry;
mod settings;
mod shares;
mod table;
mod warm;

pub use dice::stable_hash;
pub use limits::Limits;
pub use retry::RetrySettings;
pub use settings::settings_of;

use pick::Turns;
use shares::Division;
use table::Table;
use warm::Warming;

/// What kind of step of the ladder a tier is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub enum TierKind {
    Zone,
    Region,
    Cluster,
    Peer,
    /// Out of the mesh.
    Outside,
}

/// One place a request can go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub target: Target,
    /// Stands for the target wherever hashes are compared; the same in every proxy.
    pub key: u64,
    /// Who may answer there.
    pub identities: Arc<BTreeSet<SpiffeId>>,
    pub weight: u32,
    /// Share of it that the registry calls ready (for a peer: ready weight).
    pub ready_weight: u32,
    pub way: Way,
}

/// How to get there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// Straight to the proxy's inbound listener.
    Direct(SocketAddr),
    /// Through one of the peer's gateways.
    Tunnel(ClusterName),
    /// To somebody who is no member of any mesh.
    Outside(IpAddr),
}

/// One step of the ladder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tier {
    pub kind: TierKind,
    /// Own cluster or the peer. Where all peers are one tier (mode Ignore), the first of them; a candidate's own
    /// cluster is in its `way`.
    pub cluster: ClusterName,
    pub candidates: Vec<Candidate>,
}

/// All that `choose` needs to know of one service at one View, and the memory for `returnAfter`.
#[derive(Debug)]
pub struct Ladder {
    pub service: ServiceName,
    pub tiers: Vec<Tier>,
    pub settings: LadderSettings,
    /// Whether any cluster that we know has the service, with or without somebody to answer.
    known: bool,
    division: Division,
    /// Shares at the moment and version of `Health` that `cached` says.
    shares: Vec<f64>,
    /// At the same moment.
    outlook: Outlook,
    cached: Option<(Timestamp, u64)>,
    turns: Turns,
    /// By tier; none where nobody hashes.
    tables: Vec<Arc<Table>>,
    warming: Warming,
    /// Scratch: what each candidate of a tier counts for.
    weights: Vec<u64>,
}

/// One question to a ladder.
#[derive(Clone, Copy)]
pub struct Ask<'a> {
    pub now: Timestamp,
    pub health: &'a Health,
    pub load: &'a Load,
    /// Targets that this request has failed at: they are passed over while any other is left.
    pub tried: &'a [Target],
    /// Uniform over u64.
    pub random: u64,
    /// Where the policy hashes: requests with the same hash go to the same target.
    pub hash: Option<u64>,
    /// The `key` of the target that the request's session has been with: it is preferred wherever it may be chosen.
    pub session: Option<u64>,
    /// If there is one, nobody else may be chosen.
    pub only: Option<&'a dyn Fn(&Candidate) -> bool>,
}

/// What is out of the ordinary at a moment.
#[derive(Debug, Default)]
struct Outlook {
    /// Candidates that stay in because too many would be out.
    pardoned: Vec<Place>,
    /// So little is healthy that ejections no longer count.
    panic: bool,
}

/// Index of a tier, and in it of a candidate.
type Place = (usize, usize);

/// What one moment's questions have in common.
#[derive(Clone, Copy)]
struct Sight<'s> {
    now: Timestamp,
    service: &'s ServiceName,
    health: &'s Health,
    /// No target of the service has failed of late: nothing needs to be looked up.
    quiet: bool,
    outlook: &'s Outlook,
}

/// BackendPolicy in the form that the ladder uses.
#[derive(Clone, Debug, PartialEq)]
pub struct LadderSettings {
    pub mode: LocalityMode,
    /// Steps within the own cluster, in order; what is in none of them is the last, `Cluster`.
    pub prefer: Vec<TierKind>,
    /// The only peers to fail over to, in order; `None` = all that export the service, by name.
    pub failover: Option<Vec<ClusterName>>,
    /// 0.0 to 1.0; default 0.7.
    pub open_next_tier_below: f64,
    /// Default 30 s.
    pub return_after: Duration,
    /// Most of the own endpoints that may be out at a time, 0.0 to 1.0; default 1. Beyond it, those stay in that
    /// still answer, if only with 5xx: what hits most of them is no fault of the endpoint. One that nobody reaches
    /// is out all the same.
    pub max_ejected: f64,
    /// While less than this share of all tiers together is healthy, ejections do not count; default 0.
    pub panic_below: f64,
    pub outlier: OutlierSettings,
    pub retry: Arc<RetrySettings>,
    pub algorithm: Algorithm,
    /// What is hashed, where the algorithm hashes.
    pub hash_on: Option<Arc<HashOn>>,
    /// Time in which an endpoint that has come up gets its full share.
    pub warmup: Duration,
    pub limits: Arc<Limits>,
    pub session: Option<Arc<SessionPersistencePolicy>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalityMode {
    Failover,
    /// Share of traffic (percent) per cluster; a cluster that is not healthy gives its share to the others.
    /// A cluster that is not named, or has 0, gets nothing.
    Distribute(Vec<(ClusterName, u32)>),
    LocalOnly,
    Ignore,
}

/// The answer for one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Index into `Ladder::tiers`.
    pub tier: usize,
    pub candidate: Candidate,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoChoice {
    /// Envoy's `NC`/`NR`: no cluster that we know has it.
    #[error("no cluster that this one knows offers the service")]
    NoSuchService,
    /// Envoy's `UH`.
    #[error("no endpoint of the service is healthy in any open tier")]
    NobodyHealthy,
}

impl Ladder {
    /// Builds the ladder for a caller at `from`. Carries the memory of `previous` (same service) over.
    pub fn build(view: &View, host: &ServiceHost, from: &Locality, previous: Option<&Ladder>) -> Self {
        let settings = settings_of(view, host);
        let tiers = build::tiers(view, host, from, &settings);
        let known = build::is_known(view, host, &settings);
        Self::of_tiers(host, tiers, settings, known, previous)
    }

    /// The ladder of a service outside the mesh: one step, with its addresses.
    pub fn outside(view: &View, host: &ServiceHost, addresses: &[IpAddr], previous: Option<&Ladder>) -> Self {
        let tiers = build::outside_tier(view, addresses).into_iter().collect();
        Self::of_tiers(host, tiers, settings_of(view, host), true, previous)
    }

    fn of_tiers(
        host: &ServiceHost,
        tiers: Vec<Tier>,
        settings: LadderSettings,
        known: bool,
        previous: Option<&Ladder>,
    ) -> Self {
        let division = Division::new(&tiers, &settings.mode, previous.map(|ladder| &ladder.division));
        Self {
            service: host.service.clone(),
            known,
            shares: Vec::with_capacity(tiers.len()),
            outlook: Outlook::default(),
            cached: None,
            division,
            turns: Turns::new(&tiers, previous.map(|ladder| (&ladder.turns, ladder.tiers.as_slice()))),
            tables: table::tables(
                &tiers,
                settings.algorithm,
                previous.map(|ladder| ladder.tables.as_slice()),
            ),
            warming: Warming::new(
                &tiers,
                settings.warmup,
                previous.map(|l| (&l.warming, l.tiers.as_slice())),
            ),
            weights: Vec::new(),
            tiers,
            settings,
        }
    }

    /// Picks a target. If nothing is healthy, the least bad is tried rather than nothing, as long as anything is
    /// registered.
    ///
    /// A healthy target that has been tried goes before one that is ejected: the latter is known to fail.
    pub fn choose(&mut self, ask: &Ask<'_>) -> Result<Choice, NoChoice> {
        if self.tiers.is_empty() {
            return Err(if self.known { NoChoice::NobodyHealthy } else { NoChoice::NoSuchService });
        }
        self.warming.step(ask.now, self.settings.warmup);
        self.divide(ask.now, ask.health);
        let (mut turns, mut weights) = (std::mem::take(&mut self.turns), std::mem::take(&mut self.weights));
        let picked = self.pick(ask, &mut turns, &mut weights);
        (self.turns, self.weights) = (turns, weights);
        let (tier, index) = picked.ok_or(NoChoice::NobodyHealthy)?;
        Ok(Choice { tier, candidate: self.tiers[tier].candidates[index].clone() })
    }

    /// Share of traffic per tier at this moment, 0.0 to 1.0, for `service endpoints` and `/clusters`.
    pub fn shares(&self, now: Timestamp, health: &Health) -> Vec<f64> {
        let mut shares = Vec::with_capacity(self.tiers.len());
        let outlook = self.outlook_at(now, health);
        let sight = Sight::new(now, &self.service, health, &outlook);
        self.division.clone().divide(now, sight.capacities(&self.tiers), &self.settings, &mut shares);
        shares
    }

    /// The identity set of the endpoint `id`, if it is on the ladder.
    pub fn candidate(&self, id: &EndpointId) -> Option<&Candidate> {
        let target = Target::Endpoint(id.clone());
        self.tiers.iter().flat_map(|t| &t.candidates).find(|c| c.target == target)
    }

    /// Brings `shares` up to date, and the memory of who lost traffic and when.
    fn divide(&mut self, now: Timestamp, health: &Health) {
        let moment = Some((now, health.version()));
        if self.cached == moment {
            return;
        }
        self.outlook = self.outlook_at(now, health);
        let sight = Sight::new(now, &self.service, health, &self.outlook);
        self.division.divide(now, sight.capacities(&self.tiers), &self.settings, &mut self.shares);
        self.cached = moment;
    }

    /// Whether so little is healthy that ejections do not count, as far as is known without looking at each.
    pub fn is_in_panic(&self, now: Timestamp, health: &Health) -> bool {
        self.outlook_at(now, health).panic
    }

    fn outlook_at(&self, now: Timestamp, health: &Health) -> Outlook {
        let mut outlook = Outlook { pardoned: self.pardoned_at(now, health), panic: false };
        if self.settings.panic_below > 0.0 && !health.is_quiet(&self.service) {
            let sight = Sight::new(now, &self.service, health, &outlook);
            outlook.panic = sight.capacity_of_all(&self.tiers) < self.settings.panic_below;
        }
        outlook
    }

    /// The own endpoints beyond `max_ejected` that are out for answers of 5xx.
    fn pardoned_at(&self, now: Timestamp, health: &Health) -> Vec<Place> {
        if self.settings.max_ejected >= 1.0 || health.is_quiet(&self.service) {
            return Vec::new();
        }
        let none = Outlook::default();
        let sight = Sight::new(now, &self.service, health, &none);
        let (mut all, mut out, mut answering) = (0usize, 0usize, Vec::new());
        for (tier, t) in self.tiers.iter().enumerate().filter(|(_, t)| t.kind != TierKind::Peer) {
            for (index, candidate) in t.candidates.iter().enumerate() {
                let standing = sight.standing((tier, index), candidate);
                all += 1;
                out += usize::from(matches!(standing, Standing::Ejected(_)));
                if standing == Standing::Ejected(Observation::ServerError) {
                    answering.push((tier, index));
                }
            }
        }
        // As many as asked for, rounded down, but one at least: else two endpoints at 40 % would never lose one.
        let most = ((self.settings.max_ejected * all as f64) as usize).max(1);
        answering.truncate(out.saturating_sub(most));
        answering
    }

    /// The tier that a point in 0.0..1.0 falls to; `None` if nothing is healthy anywhere.
    fn open_tier(&self, point: f64) -> Option<usize> {
        let mut below = 0.0;
        let mut last = None;
        for (tier, share) in self.shares.iter().enumerate().filter(|(_, share)| **share > 0.0) {
            below += share;
            last = Some(tier);
            if point < below {
                break;
            }
        }
        last
    }
}

impl<'a> Ask<'a> {
    /// A first attempt by whatever balances best.
    pub fn new(now: Timestamp, health: &'a Health, load: &'a Load, random: u64) -> Self {
        Self { now, health, load, tried: &[], random, hash: None, session: None, only: None }
    }
}

impl<'s> Sight<'s> {
    fn new(now: Timestamp, service: &'s ServiceName, health: &'s Health, outlook: &'s Outlook) -> Self {
        Self { now, service, health, quiet: health.is_quiet(service), outlook }
    }

    fn standing(&self, place: Place, candidate: &Candidate) -> Standing {
        if self.quiet {
            return Standing::Well;
        }
        match self.health.standing(self.now, self.service, &candidate.target) {
            Standing::Ejected(_) if self.outlook.panic => Standing::Well,
            Standing::Ejected(_) if self.outlook.pardoned.contains(&place) => Standing::OnTrial,
            standing => standing,
        }
    }

    /// Healthy and ready weight by all weight, 0.0 to 1.0, per tier.
    fn capacities(self, tiers: &[Tier]) -> impl Iterator<Item = f64> {
        tiers.iter().enumerate().map(move |(tier, t)| share(self.capacity(tier, t)))
    }

    /// The same of all tiers together.
    fn capacity_of_all(self, tiers: &[Tier]) -> f64 {
        let each = tiers.iter().enumerate().map(|(tier, t)| self.capacity(tier, t));
        share(each.fold((0, 0), |(ready, all), (r, a)| (ready + r, all + a)))
    }

    /// Healthy and ready weight, and all weight.
    fn capacity(self, tier: usize, t: &Tier) -> (u64, u64) {
        let (mut ready, mut all) = (0u64, 0u64);
        for (index, candidate) in t.candidates.iter().enumerate() {
            all += u64::from(candidate.weight);
            let standing = || self.standing((tier, index), candidate);
            if candidate.ready_weight > 0 && matches!(standing(), Standing::Well | Standing::OnTrial) {
                ready += u64::from(candidate.ready_weight);
            }
        }
        (ready, all)
    }
}

/// Weights are far below 2⁵², so that both are exact.
fn share((ready, all): (u64, u64)) -> f64 {
    if all == 0 { 0.0 } else { (ready as f64 / all as f64).min(1.0) }
}

impl Candidate {
    /// The cluster that it is in, seen from a caller in `own`.
    pub fn cluster<'c>(&'c self, own: &'c ClusterName) -> &'c ClusterName {
        match &self.way {
            Way::Direct(_) | Way::Outside(_) => own,
            Way::Tunnel(cluster) => cluster,
        }
    }
}

impl LadderSettings {
    pub const DEFAULT_OPEN_NEXT_TIER_BELOW: f64 = 0.7;
    pub const DEFAULT_RETURN_AFTER: Duration = Duration::from_secs(30);
}

impl Default for LadderSettings {
    fn default() -> Self {
        Self {
            mode: LocalityMode::Failover,
            prefer: vec![TierKind::Zone, TierKind::Region, TierKind::Cluster],
            failover: None,
            open_next_tier_below: Self::DEFAULT_OPEN_NEXT_TIER_BELOW,
            return_after: Self::DEFAULT_RETURN_AFTER,
            max_ejected: 1.0,
            panic_below: 0.0,
            outlier: OutlierSettings::default(),
            retry: Arc::default(),
            algorithm: Algorithm::default(),
            hash_on: None,
            warmup: Duration::ZERO,
            limits: Arc::default(),
            session: None,
        }
    }
}

#[cfg(test)]
mod tests;
