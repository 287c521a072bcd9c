//! Steps 7, 8 and 9: a service dies at home, away takes over, and traffic comes back.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use serde_json::json;
use tokio::time::Instant;

use super::{RATE, Story, Verdict, ms, policies};
use crate::demo::app::Part;
use crate::demo::damage::What;
use crate::demo::load::{Load, failures, longest_gap, slowest};
use crate::demo::process::ProcessState;
use crate::demo::spec::{Role, only_in, trust_domain};

/// How long the load runs before and after the damage.
const BEFORE: Duration = Duration::from_secs(1);
const AFTER: Duration = Duration::from_secs(4);
/// Longest time without a success that is accepted.
const MAX_GAP: Duration = Duration::from_secs(1);
/// Requests by which bytes through the gateways are seen.
const CROSSINGS: usize = 20;
/// Longest that traffic may take to come back.
const RETURN_TIMEOUT: Duration = Duration::from_secs(30);
/// Answers in a row from home that count as having returned.
const RETURNED_ANSWERS: usize = 200;
/// How long it is watched afterwards.
const STEADY: Duration = Duration::from_secs(3);

impl Story<'_> {
    /// 7
    pub(super) async fn kill_service(&self) -> anyhow::Result<Verdict> {
        self.apply(&policies::failover()).await?;
        let target = self.demo.target(&self.home, "reviews", "/")?;
        let load = Load::start(&self.demo.client, vec![target], RATE);
        tokio::time::sleep(BEFORE).await;
        let keys = self.demo.select(&self.reviews()).await?;
        let killed = Instant::now();
        self.demo.kill(&keys).await?;
        tokio::time::sleep(AFTER).await;
        let samples = load.finish().await;
        let failed = samples.iter().filter(|s| !s.ok).count();
        let gap = longest_gap(&samples);
        let first_away = samples.iter().filter(|s| s.ok && s.cluster == self.away).map(|s| s.end).min();
        let away = samples.iter().filter(|s| s.ok && s.cluster == self.away).count();
        let late_home = samples
            .iter()
            .filter(|s| s.start > killed + self.within(MAX_GAP) && s.cluster == self.home)
            .count();
        let ok = failed == 0 && gap <= self.within(MAX_GAP) && away > 0 && late_home == 0;
        let summary = format!(
            "{} requests, {failed} failed, gap {} ms, slowest {} ms, {away} answered by {}",
            samples.len(),
            ms(gap),
            ms(slowest(&samples)),
            self.away
        );
        let evidence = json!({
            "killed": keys.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "requestsPerSecond": RATE, "requests": samples.len(), "failed": failed,
            "gapMs": ms(gap), "slowestMs": ms(slowest(&samples)), "answeredByAway": away,
            "firstAnswerOfAwayMs": first_away.map(|at| ms(at.saturating_duration_since(killed))),
            "failures": failures(&samples),
        });
        Ok(Verdict::new(ok, summary, evidence))
    }

    fn reviews(&self) -> What {
        What::Service { service: "reviews".to_owned(), cluster: self.home.clone() }
    }

    /// 8
    pub(super) async fn crossing(&self) -> anyhow::Result<Verdict> {
        let expected = format!("spiffe://{}/ns/shop/sa/productpage", trust_domain(&self.home));
        // While home has no reviews they are away's; should they be back, away's productpage is away for certain.
        let dead = self.demo.select(&self.reviews()).await?;
        let dead = dead.iter().filter_map(|k| self.demo.supervisor.state(k));
        let service = match dead.clone().all(|s| s.state == ProcessState::Exited) {
            true => "reviews".to_owned(),
            false => only_in(&self.away),
        };
        let target = self.demo.target_from(&self.home, "productpage-1", &service, "/")?;
        let before = (self.bytes(&self.home).await?, self.bytes(&self.away).await?);
        let mut seen = BTreeMap::<String, usize>::new();
        let mut served = BTreeMap::<String, usize>::new();
        let mut answered = 0;
        for _ in 0..CROSSINGS {
            let timeout = Duration::from_secs(10);
            let answer = self.demo.client.get(target.outbound, &target.host, "/", timeout).await?;
            answered += answer.body.len() as u64;
            let part: Part = serde_json::from_slice(&answer.body)
                .with_context(|| format!("{service} answered {}", answer.status))?;
            *seen.entry(part.caller_seen.clone()).or_default() += 1;
            *served.entry(part.cluster.clone()).or_default() += 1;
        }
        let after = (self.bytes(&self.home).await?, self.bytes(&self.away).await?);
        let out = after.0.passthrough.saturating_sub(before.0.passthrough);
        let inward = after.1.tunnel.saturating_sub(before.1.tunnel);
        let ok = seen.get(&expected) == Some(&CROSSINGS)
            && served.get(&self.away) == Some(&CROSSINGS)
            && out > 0
            && inward > 0;
        let summary = format!(
            "{service}@{} saw {}; {out} bytes through {}'s gateways, {inward} through {}'s",
            self.away,
            seen.keys().cloned().collect::<Vec<_>>().join(" "),
            self.home,
            self.away
        );
        let evidence = json!({
            "requests": CROSSINGS, "service": service, "expectedCaller": expected, "callersSeen": seen, "servedBy": served,
            "bytesThroughOwnGateways": out, "bytesThroughRemoteGateways": inward,
            "bytesAnswered": answered,
        });
        Ok(Verdict::new(ok, summary, evidence))
    }

    /// Bytes that a cluster's gateways have carried so far.
    async fn bytes(&self, cluster: &str) -> anyhow::Result<Carried> {
        let mut carried = Carried::default();
        for number in 1..=crate::demo::spec::GATEWAYS {
            let name = format!("gateway-{number}");
            let admin = self.demo.address(cluster, Role::Gateway, &name, "admin")?;
            let answer = self.demo.client.get(admin, "admin", "/metrics", Duration::from_secs(2)).await?;
            let text = String::from_utf8_lossy(&answer.body).into_owned();
            carried.tunnel += sum(&text, "hanse_gateway_bytes_total", "mode=\"tunnel\"");
            carried.passthrough += sum(&text, "hanse_gateway_bytes_total", "mode=\"passthrough\"");
        }
        Ok(carried)
    }

    /// 9
    pub(super) async fn restart_service(&self) -> anyhow::Result<Verdict> {
        let target = self.demo.target(&self.home, "reviews", "/")?;
        let load = Load::start(&self.demo.client, vec![target], RATE);
        tokio::time::sleep(BEFORE).await;
        let restarted = Instant::now();
        let names: Vec<String> =
            self.demo.select(&self.reviews()).await?.iter().map(ToString::to_string).collect();
        self.demo.heal(&names).await?;
        let returned = loop {
            let mut samples = load.samples();
            samples.sort_by_key(|s| s.end);
            let last = samples.iter().rev().take(RETURNED_ANSWERS);
            if samples.len() > RETURNED_ANSWERS && last.clone().all(|s| s.ok && s.cluster == self.home) {
                break last.map(|s| s.end).min();
            }
            if restarted.elapsed() > RETURN_TIMEOUT {
                break None;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        tokio::time::sleep(STEADY).await;
        let samples = load.finish().await;
        let failed = samples.iter().filter(|s| !s.ok).count();
        let at_home = |s: &&crate::demo::load::Sample| s.ok && s.cluster == self.home;
        let first_home = samples.iter().filter(at_home).map(|s| s.end).min();
        let flaps = match returned {
            Some(at) => samples.iter().filter(|s| s.start > at && s.cluster != self.home).count(),
            None => 0,
        };
        let ok = returned.is_some() && failed == 0 && flaps == 0;
        let after = |at: Option<Instant>| at.map(|at| ms(at.saturating_duration_since(restarted)));
        let summary = match returned {
            Some(_) => format!(
                "first answer of {} after {} ms, all after {} ms, then {flaps} elsewhere; {failed} of {} failed",
                self.home,
                after(first_home).unwrap_or_default(),
                after(returned).unwrap_or_default(),
                samples.len()
            ),
            None => format!("traffic did not return within {RETURN_TIMEOUT:?}"),
        };
        let evidence = json!({
            "requests": samples.len(), "failed": failed, "firstAnswerOfHomeMs": after(first_home),
            "allAnswersOfHomeMs": after(returned), "answersElsewhereAfterReturn": flaps,
            "watchedMs": ms(STEADY), "returnAfterSeconds": policies::RETURN_AFTER_SECONDS,
            "failures": failures(&samples),
        });
        Ok(Verdict::new(ok, summary, evidence))
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Carried {
    tunnel: u64,
    passthrough: u64,
}

/// Sum of a metric's samples whose labels contain `label`.
fn sum(text: &str, metric: &str, label: &str) -> u64 {
    let samples = text.lines().filter_map(|line| line.strip_prefix(metric));
    let samples = samples.filter(|rest| rest.starts_with('{') && rest.contains(label));
    samples.filter_map(|rest| rest.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_a_metric_are_summed_by_label() {
        let text = "# TYPE hanse_gateway_bytes counter\n\
                    hanse_gateway_bytes_total{peer=\"east\",mode=\"tunnel\",direction=\"in\"} 10\n\
                    hanse_gateway_bytes_total{peer=\"east\",mode=\"tunnel\",direction=\"out\"} 5\n\
                    hanse_gateway_bytes_total{peer=\"east\",mode=\"passthrough\",direction=\"in\"} 7\n";
        assert_eq!(sum(text, "hanse_gateway_bytes_total", "mode=\"tunnel\""), 15);
        assert_eq!(sum(text, "hanse_gateway_bytes_total", "mode=\"passthrough\""), 7);
        assert_eq!(sum(text, "hanse_gateway_streams", "mode"), 0);
    }
}
