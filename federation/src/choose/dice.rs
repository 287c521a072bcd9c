//! Numbers that decide: a request's random number, stretched, and hashes that are the same in every process.

/// The request's one random number, stretched to as many as are needed (SplitMix64, Steele et al. 2014).
pub(super) struct Dice(u64);

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

impl Dice {
    pub(super) fn new(random: u64) -> Self {
        Self(random)
    }

    pub(super) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        mixed(self.0)
    }

    /// Uniform in 0.0..1.0.
    pub(super) fn unit(&mut self) -> f64 {
        unit(self.roll())
    }

    /// Uniform in 0..n; n > 0.
    pub(super) fn below(&mut self, n: u64) -> u64 {
        let wide = u128::from(self.roll()) * u128::from(n);
        (wide >> 64) as u64
    }

    /// An index by weight, of those that are not `except`. `None` if there is no weight.
    pub(super) fn by_weight(&mut self, weights: &[u64], except: Option<usize>) -> Option<usize> {
        let weight = |index: usize| if Some(index) == except { 0 } else { weights[index] };
        let sum: u64 = (0..weights.len()).map(weight).sum();
        let mut point = if sum == 0 { return None } else { self.below(sum) };
        (0..weights.len()).find(|index| match point.checked_sub(weight(*index)) {
            Some(rest) => {
                point = rest;
                false
            }
            None => true,
        })
    }
}

/// A number in 0.0..1.0.
pub(super) fn unit(number: u64) -> f64 {
    (number >> 11) as f64 / (1u64 << 53) as f64
}

/// Spreads what is close together (the finaliser of SplitMix64).
pub(super) fn mixed(number: u64) -> u64 {
    let mut z = number;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// One hash of two.
pub(super) fn both(a: u64, b: u64) -> u64 {
    mixed(a ^ b.wrapping_mul(GOLDEN).rotate_left(31))
}

/// A hash that is the same in every proxy and version (FNV-1a, mixed). Not for secrets.
pub fn stable_hash(bytes: &[u8]) -> u64 {
    let fnv = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    mixed(bytes.iter().fold(0xcbf2_9ce4_8422_2325, fnv))
}
