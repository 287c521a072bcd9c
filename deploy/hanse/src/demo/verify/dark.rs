//! Step 11: a cluster goes dark, by the wire and by being paused; traffic leaves it and comes back.

use std::time::Duration;

use hanse_federation::policy::PolicyKind;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{RATE, Story, Verdict, ms, policies};
use crate::demo::damage::What;
use crate::demo::load::{Load, Sample, failures, slowest};
use crate::demo::spec::Key;
use crate::demo::wire::Mode;

/// Share of home in the traffic while away is well, in percent.
const SHARE: u32 = 50;
const BEFORE: Duration = Duration::from_secs(2);
/// How long a cluster stays dark.
const DARK: Duration = Duration::from_secs(8);
/// Traffic must have left by then.
const MAX_LEAVING: Duration = Duration::from_secs(5);
/// A request that takes longer was sent into the dark.
const SLOW: Duration = Duration::from_millis(1000);
/// Longest that traffic may take to come back, and the answers in the last hundred that count as back.
const RETURN_TIMEOUT: Duration = Duration::from_secs(30);
const RETURNED_OF_HUNDRED: usize = 20;

impl Story<'_> {
    /// 11
    pub(super) async fn dark(&self) -> anyhow::Result<Verdict> {
        self.apply(&policies::distribute(&self.home, &self.away, SHARE)).await?;
        let wire = self.darkness(Darkness::Wire).await?;
        let keys = self.demo.select(&What::Cluster(self.away.clone())).await?;
        let paused = self.darkness(Darkness::Pause(keys)).await?;
        self.delete(PolicyKind::BackendPolicy).await?;
        self.apply(&policies::failover()).await?;
        let summary = format!("wire silent: {} · {} paused: {}", wire.summary, self.away, paused.summary);
        let evidence = json!({ "wireSilent": wire.evidence, "clusterPaused": paused.evidence });
        Ok(Verdict::new(wire.ok && paused.ok, summary, evidence))
    }

    async fn darkness(&self, kind: Darkness) -> anyhow::Result<Verdict> {
        let target = self.demo.target(&self.home, "reviews", "/")?;
        let load = Load::start(&self.demo.client, vec![target], RATE);
        self.returned(&load, Instant::now()).await?;
        tokio::time::sleep(BEFORE).await;
        let dark = Instant::now();
        self.set(&kind, true).await?;
        tokio::time::sleep(DARK).await;
        let light = Instant::now();
        self.set(&kind, false).await?;
        let returned = self.returned(&load, light).await;
        let samples = load.finish().await;
        Ok(self.judge(&samples, dark, light, returned.ok()))
    }

    async fn set(&self, kind: &Darkness, dark: bool) -> anyhow::Result<()> {
        match kind {
            Darkness::Wire => {
                let mode = if dark { Mode::Silent } else { Mode::Open };
                self.demo.set_wire(&[&self.home, &self.away], mode).await
            }
            Darkness::Pause(keys) => {
                let signal = if dark { Signal::SIGSTOP } else { Signal::SIGCONT };
                keys.iter().for_each(|key| {
                    self.demo.supervisor.signal(key, signal);
                });
                Ok(())
            }
        }
    }

    /// Waits until away answers its part again; how long that took.
    async fn returned(&self, load: &Load, since: Instant) -> anyhow::Result<Duration> {
        loop {
            let samples = load.samples();
            let last: Vec<&Sample> = samples.iter().rev().take(100).filter(|s| s.start >= since).collect();
            let away = last.iter().filter(|s| s.ok && s.cluster == self.away).count();
            if away >= RETURNED_OF_HUNDRED {
                return Ok(since.elapsed());
            }
            anyhow::ensure!(
                since.elapsed() < RETURN_TIMEOUT,
                "{} answers {away} of the last {} requests after {RETURN_TIMEOUT:?}",
                self.away,
                last.len()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn judge(
        &self,
        samples: &[Sample],
        dark: Instant,
        light: Instant,
        returned: Option<Duration>,
    ) -> Verdict {
        let in_the_dark = |s: &&Sample| s.start >= dark && s.start < light;
        let affected = |s: &&Sample| !s.ok || s.end - s.start > SLOW || s.cluster == self.away;
        let sent: Vec<&Sample> = samples.iter().filter(in_the_dark).filter(affected).collect();
        let left = sent.iter().map(|s| s.start - dark).max().unwrap_or_default();
        let all: Vec<Sample> = samples.iter().filter(in_the_dark).cloned().collect();
        let failed = all.iter().filter(|s| !s.ok).count();
        let ok = left <= self.within(MAX_LEAVING) && returned.is_some() && !all.is_empty();
        let back = returned.map_or("not back".to_owned(), |took| format!("back after {} ms", ms(took)));
        let summary = format!(
            "left after {} ms, {failed} of {} failed, slowest {} ms, {back}",
            ms(left),
            all.len(),
            ms(slowest(&all))
        );
        let evidence: Value = json!({
            "darkMs": ms(light - dark), "requests": all.len(), "failed": failed,
            "trafficLeftAfterMs": ms(left), "sentIntoTheDark": sent.len(), "slowestMs": ms(slowest(&all)),
            "returnedAfterMs": returned.map(ms), "failures": failures(&all),
        });
        Verdict::new(ok, summary, evidence)
    }
}

enum Darkness {
    Wire,
    /// Every process of the other cluster.
    Pause(Vec<Key>),
}
