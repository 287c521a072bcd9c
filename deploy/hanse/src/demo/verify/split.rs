//! Step 6: shares of traffic, by cluster and by version.

use std::collections::BTreeMap;

use hanse_federation::policy::PolicyKind;
use serde_json::json;

use super::{RATE, Story, Verdict, policies, rounded};
use crate::demo::load::{Load, Sample, failures};

/// Requests over which shares are taken.
const REQUESTS: usize = 1000;
/// The share asked for, in percent, and how far it may be missed.
const SHARE: u32 = 80;
const WITHIN_POINTS: f64 = 5.0;

impl Story<'_> {
    /// 6
    pub(super) async fn split(&self) -> anyhow::Result<Verdict> {
        self.apply(&policies::distribute(&self.home, &self.away, SHARE)).await?;
        let by_cluster = self.thousand().await?;
        self.delete(PolicyKind::BackendPolicy).await?;
        self.apply(&policies::versions(SHARE)).await?;
        let by_version = self.thousand().await?;
        self.delete(PolicyKind::HttpRoute).await?;

        let clusters = shares(&by_cluster, |s| &s.cluster);
        let versions = shares(&by_version, |s| &s.version);
        let home = clusters.get(&self.home).copied().unwrap_or_default();
        let away = clusters.get(&self.away).copied().unwrap_or_default();
        let first = versions.get("v1").copied().unwrap_or_default();
        let near = |share: f64, wanted: u32| (share - f64::from(wanted)).abs() <= WITHIN_POINTS;
        let failed = by_cluster.iter().chain(&by_version).filter(|s| !s.ok).count();
        let ok = near(home, SHARE) && near(away, 100 - SHARE) && near(first, SHARE) && failed == 0;
        let summary = format!(
            "{} {home:.1} % · {} {away:.1} % of {} requests; HTTPRoute v1 {first:.1} % of {}; {failed} failed",
            self.home,
            self.away,
            by_cluster.len(),
            by_version.len()
        );
        let evidence = json!({
            "requests": by_cluster.len(), "wantedPercent": SHARE, "percentByCluster": clusters,
            "route": { "requests": by_version.len(), "wantedPercent": SHARE, "percentByVersion": versions },
            "failed": failed, "failures": failures(&by_cluster),
        });
        Ok(Verdict::new(ok, summary, evidence))
    }

    async fn thousand(&self) -> anyhow::Result<Vec<Sample>> {
        let target = self.demo.target(&self.home, "reviews", "/")?;
        let load = Load::start(&self.demo.client, vec![target], RATE);
        self.demo
            .until("1000 answers", || async {
                let count = load.samples().len();
                anyhow::ensure!(count >= REQUESTS, "{count} answers");
                Ok(())
            })
            .await?;
        let mut samples = load.finish().await;
        samples.truncate(REQUESTS);
        Ok(samples)
    }
}

fn shares<'s>(samples: &'s [Sample], of: impl Fn(&'s Sample) -> &'s String) -> BTreeMap<String, f64> {
    let mut counts = BTreeMap::<String, usize>::new();
    let answered = samples.iter().filter(|s| s.ok);
    answered.clone().for_each(|s| *counts.entry(of(s).clone()).or_default() += 1);
    let all = answered.count().max(1) as f64;
    counts.into_iter().map(|(name, n)| (name, rounded(n as f64 * 100.0 / all))).collect()
}
