//! The failover ladder: which tier, and in it which target, a request goes to.
//!
//! Tiers come from locality: same zone, same region, rest of the cluster, then peers (in policy order, else by
//! name). A tier opens continuously as the tiers above lose healthy capacity (`openNextTierBelow`), and traffic
//! goes back only after the upper tier has been well for `returnAfter`, with a ramp. Works with no policy.
//! Pure: built once per (service, View), asked once per request with `now` and a random number. One ladder is
//! asked with one `Health`, that of its worker.
//!
//! `build` makes the tiers, `settings` reads the policy, `shares` divides the traffic and holds back who returns.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hanse_identity::{ClusterName, ServiceName, SpiffeId, Timestamp};

use crate::catalog::{EndpointId, Locality};
use crate::health::{Health, Observation, OutlierSettings, Standing, Target};
use crate::host::ServiceHost;
use crate::view::View;

mod build;
mod retry;
mod settings;
mod shares;

pub use retry::RetrySettings;
pub use settings::settings_of;

use shares::Division;

/// What kind of step of the ladder a tier is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub enum TierKind {
    Zone,
    Region,
    Cluster,
    Peer,
}

/// One place a request can go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub target: Target,
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
    /// At the same moment: candidates that stay in because too many would be out.
    pardoned: Vec<Place>,
    cached: Option<(Timestamp, u64)>,
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
    pardoned: &'s [Place],
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
    pub outlier: OutlierSettings,
    pub retry: Arc<RetrySettings>,
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

/// Within a tier, one on trial gets this fraction of what it would get if it were well.
const TRIAL_FRACTION: u64 = 8;

impl Ladder {
    /// Builds the ladder for a caller at `from`. Carries the memory of `previous` (same service) over.
    pub fn build(view: &View, host: &ServiceHost, from: &Locality, previous: Option<&Ladder>) -> Self {
        let settings = settings_of(view, host);
        let tiers = build::tiers(view, host, from, &settings);
        let division = Division::new(&tiers, &settings.mode, previous.map(|ladder| &ladder.division));
        Self {
            service: host.service.clone(),
            known: build::is_known(view, host, &settings),
            shares: Vec::with_capacity(tiers.len()),
            pardoned: Vec::new(),
            cached: None,
            division,
            tiers,
            settings,
        }
    }

    /// Picks a target. `tried` are targets that this request has failed at: they are passed over while any
    /// other is left. `random` is uniform over u64. If nothing is healthy, the least bad is tried rather than
    /// nothing (panic), as long as anything is registered.
    ///
    /// A healthy target that has been tried goes before one that is ejected: the latter is known to fail.
    pub fn choose(
        &mut self,
        now: Timestamp,
        health: &Health,
        tried: &[Target],
        random: u64,
    ) -> Result<Choice, NoChoice> {
        if self.tiers.is_empty() {
            return Err(if self.known { NoChoice::NobodyHealthy } else { NoChoice::NoSuchService });
        }
        self.divide(now, health);
        let sight = Sight::new(now, &self.service, health, &self.pardoned);
        let mut dice = Dice(random);
        let picked = match self.open_tier(dice.unit()) {
            None => self.pick_least_bad(sight, tried, &mut dice),
            Some(first) => self
                .pick_healthy_from(first, sight, tried, &mut dice)
                .or_else(|| self.pick_healthy_from(first, sight, &[], &mut dice)),
        };
        let (tier, index) = picked.ok_or(NoChoice::NobodyHealthy)?;
        Ok(Choice { tier, candidate: self.tiers[tier].candidates[index].clone() })
    }

    /// Share of traffic per tier at this moment, 0.0 to 1.0, for `service endpoints` and `/clusters`.
    pub fn shares(&self, now: Timestamp, health: &Health) -> Vec<f64> {
        let mut shares = Vec::with_capacity(self.tiers.len());
        let pardoned = self.pardoned_at(now, health);
        let sight = Sight::new(now, &self.service, health, &pardoned);
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
        self.pardoned = self.pardoned_at(now, health);
        let sight = Sight::new(now, &self.service, health, &self.pardoned);
        self.division.divide(now, sight.capacities(&self.tiers), &self.settings, &mut self.shares);
        self.cached = moment;
    }

    /// The own endpoints beyond `max_ejected` that are out for answers of 5xx.
    fn pardoned_at(&self, now: Timestamp, health: &Health) -> Vec<Place> {
        if self.settings.max_ejected >= 1.0 || health.is_quiet(&self.service) {
            return Vec::new();
        }
        let sight = Sight::new(now, &self.service, health, &[]);
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

    /// In this tier, else in those after it, else in those before it, whatever their shares: that is how one
    /// request survives a tier that has just died.
    fn pick_healthy_from(
        &self,
        first: usize,
        sight: Sight<'_>,
        tried: &[Target],
        dice: &mut Dice,
    ) -> Option<Place> {
        let weight = |place: Place, candidate: &Candidate| {
            let ready = u64::from(candidate.ready_weight);
            if ready == 0 || tried.contains(&candidate.target) {
                return 0;
            }
            match sight.standing(place, candidate) {
                Standing::Well => ready * TRIAL_FRACTION,
                Standing::OnTrial => ready,
                Standing::Ejected(_) | Standing::PathLost => 0,
            }
        };
        let mut in_order = (first..self.tiers.len()).chain(0..first);
        in_order.find_map(|tier| {
            let candidates = self.tiers[tier].candidates.iter().enumerate();
            dice.pick(candidates.map(|(index, c)| weight((tier, index), c))).map(|index| (tier, index))
        })
    }

    /// Panic: nobody is healthy. What has a path before what has none, what was not tried before what was, what
    /// is ready before what is not, what still answered before what could not be reached, upper tiers first.
    fn pick_least_bad(&self, sight: Sight<'_>, tried: &[Target], dice: &mut Dice) -> Option<Place> {
        let badness = |tier: usize, index: usize, candidate: &Candidate| {
            let standing = sight.standing((tier, index), candidate);
            let was_tried = tried.contains(&candidate.target);
            let not_ready = candidate.ready_weight == 0;
            (standing == Standing::PathLost, was_tried, not_ready, severity(standing), tier)
        };
        // Weight 0: a peer that has exported the service and has nobody registered for it.
        let registered = |candidate: &Candidate| candidate.weight > 0;
        let least_in = |(tier, t): (usize, &Tier)| {
            let candidates = t.candidates.iter().enumerate().filter(|(_, c)| registered(c));
            candidates.map(|(index, c)| badness(tier, index, c)).min()
        };
        let least = self.tiers.iter().enumerate().filter_map(least_in).min()?;
        let tier = least.4;
        let weights = self.tiers[tier].candidates.iter().enumerate().map(|(index, candidate)| {
            let least_bad = registered(candidate) && badness(tier, index, candidate) == least;
            u64::from(if least_bad { candidate.weight } else { 0 })
        });
        dice.pick(weights).map(|index| (tier, index))
    }
}

impl<'s> Sight<'s> {
    fn new(now: Timestamp, service: &'s ServiceName, health: &'s Health, pardoned: &'s [Place]) -> Self {
        Self { now, service, health, quiet: health.is_quiet(service), pardoned }
    }

    fn standing(&self, place: Place, candidate: &Candidate) -> Standing {
        if self.quiet {
            return Standing::Well;
        }
        match self.health.standing(self.now, self.service, &candidate.target) {
            Standing::Ejected(_) if self.pardoned.contains(&place) => Standing::OnTrial,
            standing => standing,
        }
    }

    /// Healthy and ready weight by all weight, 0.0 to 1.0, per tier.
    fn capacities(self, tiers: &[Tier]) -> impl Iterator<Item = f64> {
        tiers.iter().enumerate().map(move |(tier, t)| {
            let (mut ready, mut all) = (0u64, 0u64);
            for (index, candidate) in t.candidates.iter().enumerate() {
                all += u64::from(candidate.weight);
                let standing = || self.standing((tier, index), candidate);
                if candidate.ready_weight > 0 && matches!(standing(), Standing::Well | Standing::OnTrial) {
                    ready += u64::from(candidate.ready_weight);
                }
            }
            // Weights are far below 2⁵², so that both are exact.
            if all == 0 { 0.0 } else { (ready as f64 / all as f64).min(1.0) }
        })
    }
}

impl Candidate {
    /// The cluster that it is in, seen from a caller in `own`.
    pub fn cluster<'c>(&'c self, own: &'c ClusterName) -> &'c ClusterName {
        match &self.way {
            Way::Direct(_) => own,
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
            outlier: OutlierSettings::default(),
            retry: Arc::default(),
        }
    }
}

/// Order of ejected targets in panic: one that answers badly may yet answer, one that nobody reaches will not.
fn severity(standing: Standing) -> u8 {
    match standing {
        Standing::Well | Standing::OnTrial => 0,
        Standing::Ejected(Observation::ServerError | Observation::Success) => 1,
        Standing::Ejected(Observation::NobodyThere | Observation::Reset | Observation::Timeout) => 2,
        Standing::Ejected(Observation::ConnectFailure) | Standing::PathLost => 3,
    }
}

/// The request's one random number, stretched to as many as are needed (SplitMix64, Steele et al. 2014).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in 0.0..1.0.
    fn unit(&mut self) -> f64 {
        (self.roll() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in 0..n; n > 0.
    fn below(&mut self, n: u64) -> u64 {
        let wide = u128::from(self.roll()) * u128::from(n);
        (wide >> 64) as u64
    }

    /// An index by weight, in one pass: each replaces the one picked so far with the chance that its weight has
    /// in the sum up to it. `None` if there is no weight.
    fn pick(&mut self, weights: impl Iterator<Item = u64>) -> Option<usize> {
        let mut picked = None;
        let mut sum = 0;
        for (index, weight) in weights.enumerate().filter(|(_, weight)| *weight > 0) {
            sum += weight;
            if picked.is_none() || self.below(sum) < weight {
                picked = Some(index);
            }
        }
        picked
    }
}

#[cfg(test)]
mod tests;
