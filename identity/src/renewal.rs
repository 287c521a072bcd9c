//! Renewal: when an SVID is to be renewed, as arithmetic on its validity.

use std::time::Duration;

use crate::time::Timestamp;

/// When to renew: half of the lifetime, ± 10 % of it by `jitter` (0.0 to 1.0, drawn by the caller).
pub fn renew_at(not_before: Timestamp, not_after: Timestamp, jitter: f64) -> Timestamp {
    let lifetime = not_after.since(not_before).as_millis() as f64;
    let share = 0.4 + 0.2 * jitter.clamp(0.0, 1.0);
    not_before + Duration::from_millis((lifetime * share) as u64)
}

/// How long to wait after `failures` failed renewals in a row: 250 ms doubling to 10 s, ± 25 % by `jitter`.
pub fn retry_after(failures: u32, jitter: f64) -> Duration {
    let base = 250u64.saturating_mul(1 << failures.min(6)).min(10_000) as f64;
    Duration::from_millis((base * (0.75 + 0.5 * jitter.clamp(0.0, 1.0))) as u64)
}

#[cfg(test)]
mod tests;
