//! Within a tier: who of those that may be chosen gets the request, by the policy's algorithm; and who is the least bad
//! where nobody may.

use super::dice::{Dice, both, unit};
use super::{Algorithm, Ask, Candidate, Ladder, Place, Sight, Tier};
use crate::health::{Observation, Standing};
use crate::load::Burden;

/// Within a tier, one on trial gets this fraction of what it would get if it were well.
const TRIAL_FRACTION: u64 = 8;
/// One draw in so many looks only at what is under way: else whoever was slow for a moment would not be asked, and so not
/// known to be fast again, for long.
const UNBIASED: u64 = 16;
/// Tells the hash that picks a tier from the one that picks a target in it.
const TIER_SALT: u64 = 0x7469_6572;

/// Whose turn it is, by tier and candidate (RoundRobin). Each worker begins somewhere else.
#[derive(Debug, Default)]
pub(super) struct Turns(Vec<Vec<i64>>);

impl Turns {
    /// The turns of a tier that is as it was go on.
    pub(super) fn new(tiers: &[Tier], previous: Option<(&Turns, &[Tier])>) -> Self {
        let same =
            |a: &Tier, b: &Tier| a.candidates.iter().map(|c| c.key).eq(b.candidates.iter().map(|c| c.key));
        let held = |tier: &Tier| {
            let (turns, tiers) = previous?;
            let at = tiers.iter().position(|other| same(tier, other))?;
            turns.0.get(at).cloned()
        };
        Self(tiers.iter().map(|tier| held(tier).unwrap_or_default()).collect())
    }

    /// Smooth weighted round robin: all gain their weight, and whoever has most gives up the sum.
    fn next(&mut self, tier: usize, weights: &[u64], dice: &mut Dice) -> Option<usize> {
        let turns = &mut self.0[tier];
        if turns.len() != weights.len() {
            let begun = |weight: &u64| i64::try_from(dice.below(weight + 1)).unwrap_or(0);
            *turns = weights.iter().map(begun).collect();
        }
        let signed = |weight: u64| i64::try_from(weight).unwrap_or(i64::MAX);
        let mut sum = 0;
        let mut first = None;
        for (index, weight) in weights.iter().enumerate().filter(|(_, weight)| **weight > 0) {
            turns[index] += signed(*weight);
            sum += signed(*weight);
            if first.is_none_or(|best| turns[index] > turns[best]) {
                first = Some(index);
            }
        }
        let first = first?;
        turns[first] -= sum;
        Some(first)
    }
}

impl Ladder {
    pub(super) fn pick(&self, ask: &Ask<'_>, turns: &mut Turns, weights: &mut Vec<u64>) -> Option<Place> {
        let sight = Sight::new(ask.now, &self.service, ask.health, &self.outlook);
        let mut dice = Dice::new(ask.random);
        if let Some(place) = self.of_session(ask, sight) {
            return Some(place);
        }
        let point = match ask.hash {
            Some(hash) => unit(both(hash, TIER_SALT)),
            None => dice.unit(),
        };
        let Some(first) = self.open_tier(point) else { return self.pick_least_bad(sight, ask, &mut dice) };
        let again = Ask { tried: &[], ..*ask };
        self.pick_healthy_from(first, sight, ask, &mut dice, turns, weights)
            .or_else(|| self.pick_healthy_from(first, sight, &again, &mut dice, turns, weights))
    }

    /// Where the request's session has been, if anybody could be sent there now.
    fn of_session(&self, ask: &Ask<'_>, sight: Sight<'_>) -> Option<Place> {
        let key = ask.session?;
        let open = self.tiers.iter().enumerate().zip(&self.shares).filter(|(_, share)| **share > 0.0);
        open.map(|(tier, _)| tier).find_map(|(tier, t)| {
            let index = t.candidates.iter().position(|candidate| candidate.key == key)?;
            let place = (tier, index);
            // On trial it gets what everybody on trial gets, sessions or not.
            let well = sight.standing(place, &t.candidates[index]) == Standing::Well;
            (well && self.weight(place, sight, ask) > 0).then_some(place)
        })
    }

    /// What a candidate counts for in its tier; 0 = not to be chosen.
    fn weight(&self, place: Place, sight: Sight<'_>, ask: &Ask<'_>) -> u64 {
        let candidate = &self.tiers[place.0].candidates[place.1];
        let ready = u64::from(candidate.ready_weight);
        if ready == 0 || ask.tried.contains(&candidate.target) || !admits(ask, candidate) {
            return 0;
        }
        match sight.standing(place, candidate) {
            Standing::Well => self.warming.share_of(place, ready * TRIAL_FRACTION),
            Standing::OnTrial => ready,
            Standing::Ejected(_) | Standing::PathLost => 0,
        }
    }

    /// In this tier, else in those after it, else in those before it, whatever their shares: that is how one
    /// request survives a tier that has just died.
    fn pick_healthy_from(
        &self,
        first: usize,
        sight: Sight<'_>,
        ask: &Ask<'_>,
        dice: &mut Dice,
        turns: &mut Turns,
        weights: &mut Vec<u64>,
    ) -> Option<Place> {
        let mut in_order = (first..self.tiers.len()).chain(0..first);
        in_order.find_map(|tier| {
            weights.clear();
            let candidates = 0..self.tiers[tier].candidates.len();
            weights.extend(candidates.map(|index| self.weight((tier, index), sight, ask)));
            self.pick_in(tier, weights, ask, dice, turns).map(|index| (tier, index))
        })
    }

    fn pick_in(
        &self,
        tier: usize,
        weights: &[u64],
        ask: &Ask<'_>,
        dice: &mut Dice,
        turns: &mut Turns,
    ) -> Option<usize> {
        match self.settings.algorithm {
            Algorithm::Random => dice.by_weight(weights, None),
            Algorithm::RoundRobin => turns.next(tier, weights, dice),
            Algorithm::LeastRequest => self.better_of_two(tier, weights, ask, dice),
            Algorithm::RingHash | Algorithm::Maglev => {
                let hash = ask.hash.unwrap_or_else(|| dice.roll());
                let candidates = &self.tiers[tier].candidates;
                let whole = |index: usize| u64::from(candidates[index].ready_weight) * TRIAL_FRACTION;
                // Who is to get less than all gets the same few keys all the time.
                let admits = |index: usize| {
                    let share = || weights[index] as f64 / whole(index) as f64;
                    weights[index] > 0 && unit(both(hash, candidates[index].key)) < share()
                };
                let by_table = self.tables.get(tier).and_then(|table| table.find(hash, admits));
                by_table.or_else(|| by_score(candidates, weights, hash))
            }
        }
    }

    /// Power of two choices: two are drawn by weight, and the one with less to bear is taken.
    fn better_of_two(&self, tier: usize, weights: &[u64], ask: &Ask<'_>, dice: &mut Dice) -> Option<usize> {
        let first = dice.by_weight(weights, None)?;
        let Some(second) = dice.by_weight(weights, Some(first)) else { return Some(first) };
        let unbiased = dice.below(UNBIASED) == 0;
        let burden = |index: usize| {
            let burden = ask.load.of(ask.now, &self.tiers[tier].candidates[index].target);
            Burden { latency: burden.latency.filter(|_| !unbiased), ..burden }
        };
        let worse = burden(first).is_worse_than(weights[first], &burden(second), weights[second]);
        Some(if worse { second } else { first })
    }

    /// Nobody is healthy. What has a path before what has none, what was not tried before what was, what is ready
    /// before what is not, what still answered before what could not be reached, upper tiers first.
    fn pick_least_bad(&self, sight: Sight<'_>, ask: &Ask<'_>, dice: &mut Dice) -> Option<Place> {
        let badness = |tier: usize, index: usize, candidate: &Candidate| {
            let standing = sight.standing((tier, index), candidate);
            let was_tried = ask.tried.contains(&candidate.target);
            let not_ready = candidate.ready_weight == 0;
            (standing == Standing::PathLost, was_tried, not_ready, severity(standing), tier)
        };
        // Weight 0: a peer that has exported the service and has nobody registered for it.
        let registered = |candidate: &Candidate| candidate.weight > 0 && admits(ask, candidate);
        let least_in = |(tier, t): (usize, &Tier)| {
            let candidates = t.candidates.iter().enumerate().filter(|(_, c)| registered(c));
            candidates.map(|(index, c)| badness(tier, index, c)).min()
        };
        let least = self.tiers.iter().enumerate().filter_map(least_in).min()?;
        let tier = least.4;
        let weight = |(index, candidate): (usize, &Candidate)| {
            let least_bad = registered(candidate) && badness(tier, index, candidate) == least;
            u64::from(if least_bad { candidate.weight } else { 0 })
        };
        let weights: Vec<u64> = self.tiers[tier].candidates.iter().enumerate().map(weight).collect();
        dice.by_weight(&weights, None).map(|index| (tier, index))
    }
}

fn admits(ask: &Ask<'_>, candidate: &Candidate) -> bool {
    ask.only.is_none_or(|only| only(candidate))
}

/// Weighted rendezvous: where no table helps, the same key still goes to the same candidate.
fn by_score(candidates: &[Candidate], weights: &[u64], hash: u64) -> Option<usize> {
    let score = |index: usize| {
        let point = unit(both(hash, candidates[index].key)).max(f64::MIN_POSITIVE);
        weights[index] as f64 / -point.ln()
    };
    let all = (0..weights.len()).filter(|index| weights[*index] > 0);
    all.max_by(|a, b| score(*a).total_cmp(&score(*b)))
}

/// Order of ejected targets where nobody is healthy: one that answers badly may yet answer, one that nobody reaches
/// will not.
fn severity(standing: Standing) -> u8 {
    match standing {
        Standing::Well | Standing::OnTrial => 0,
        Standing::Ejected(Observation::ServerError | Observation::Success) => 1,
        Standing::Ejected(Observation::NobodyThere | Observation::Reset | Observation::Timeout) => 2,
        Standing::Ejected(Observation::ConnectFailure) | Standing::PathLost => 3,
    }
}
