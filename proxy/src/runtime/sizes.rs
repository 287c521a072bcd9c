//! Sizes: how many bytes the bodies of requests and responses had, as histograms.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::{MetricType, TypedMetric};

/// Upper bounds of the buckets, in bytes. Few of them: each is a line for every kind of request, twice.
const BOUNDS: [u64; 10] =
    [100, 500, 1_000, 5_000, 10_000, 50_000, 100_000, 1_000_000, 10_000_000, 100_000_000];
/// Kinds of requests that have sizes of their own, at one worker; others are told of together. A kind is some thirty series in
/// all, so that a proxy stays at about ten thousand.
pub const MAX_SIZED: usize = 300;

/// A histogram of sizes. Atomic numbers, as for durations: nobody waits for another who counts.
#[derive(Clone, Debug, Default)]
pub struct Sizes(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    /// Beside the bounds, what is above the last of them.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    sum: AtomicU64,
}

impl Sizes {
    pub fn observe(&self, bytes: u64) {
        let bucket = BOUNDS.partition_point(|bound| *bound < bytes);
        self.0.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.0.sum.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl TypedMetric for Sizes {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Sizes {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> std::fmt::Result {
        let bounds = BOUNDS.into_iter().map(|bound| bound as f64).chain([f64::INFINITY]);
        let counts = self.0.buckets.iter().map(|count| count.load(Ordering::Relaxed));
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = self.0.sum.load(Ordering::Relaxed) as f64;
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;

    use super::*;

    #[test]
    fn a_size_is_in_the_bucket_of_its_bound_and_all_above() {
        let (mut registry, sizes) = (Registry::default(), Sizes::default());
        registry.register("bytes", "Of bodies", sizes.clone());
        [0, 100, 101, 1_000_000_000].into_iter().for_each(|bytes| sizes.observe(bytes));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for line in [
            "bytes_sum 1000000201.0",
            "bytes_count 4",
            "bytes_bucket{le=\"100.0\"} 2",
            "bytes_bucket{le=\"500.0\"} 3",
            "bytes_bucket{le=\"100000000.0\"} 3",
            "bytes_bucket{le=\"+Inf\"} 4",
        ] {
            assert!(text.lines().any(|said| said == line), "{line}\n{text}");
        }
    }
}
