//! Step 15: the authorities of a cluster are replaced under load, SVIDs at once, without a restart.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, ensure};
use hanse_control::state::rotation::Gate;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{RATE, Story, Verdict, ms, trust};
use crate::commands::trust as command;
use crate::demo::load::{Load, failures, longest_gap, slowest};
use crate::demo::spec::{Role, trust_domain};

const BEFORE: Duration = Duration::from_secs(1);
const AFTER: Duration = Duration::from_secs(1);
/// All five gates passed by then.
const MAX_ROTATION: Duration = Duration::from_secs(20);
/// Longest wait, whatever the target is.
const PATIENCE: Duration = Duration::from_secs(100);

impl Story<'_> {
    /// 15
    pub(super) async fn rotate(&self) -> anyhow::Result<Verdict> {
        let connection = self.demo.connection(&self.home)?;
        let mut targets = Vec::new();
        for cluster in [&self.home, &self.away] {
            targets.push(self.demo.target(cluster, "productpage", "/")?);
        }
        let (processes, before) = (self.processes(), self.serials().await?);
        let roots = connection.credential().bundle_pem;
        let load = Load::start(&self.demo.client, targets, RATE);
        tokio::time::sleep(BEFORE).await;
        let began = Instant::now();
        let id = command::begin(connection, None, true).await?;
        let status = command::wait(connection, id, PATIENCE, |gate| gate == Gate::Done, |_| {}).await?;
        let took = began.elapsed();
        tokio::time::sleep(AFTER).await;
        let samples = load.finish().await;
        let after = self.serials().await?;
        let moved = before.iter().filter(|(name, serial)| after.get(*name) != Some(serial)).count();
        let restarted = processes.iter().filter(|p| !self.processes().contains(p)).count();
        let failed = samples.iter().filter(|s| !s.ok).count();
        let rotation = status.rotation.clone().context("a rotation was begun")?;
        let done = rotation.gate == Gate::Done && !rotation.aborted;
        let believed = if done { self.believed(&roots).await? } else { 0 };
        let ok = done
            && failed == 0
            && restarted == 0
            && moved == before.len()
            && believed == before.len()
            && took <= self.within(MAX_ROTATION);
        let gates: BTreeMap<&str, Option<u64>> = Gate::ALL
            .iter()
            .map(|gate| {
                let (at, next) = (rotation.reached.get(gate), rotation.reached.get(&gate.next()));
                (gate.as_str(), at.zip(next).map(|(at, next)| ms(next.since(*at))))
            })
            .collect();
        let times = Gate::ALL.iter().map(|gate| {
            let took = gates.get(gate.as_str()).copied().flatten();
            format!("{gate} {}", took.map_or("-".to_owned(), |took| format!("{took} ms")))
        });
        let times = times.collect::<Vec<_>>().join(", ");
        let waiting = if done { String::new() } else { format!(" · {}", command::table(&status)) };
        let summary = format!(
            "{} authorities replaced in {} ms ({times}), {moved} of {} SVIDs replaced, {failed} of {} requests failed, {restarted} restarts{waiting}",
            rotation.new.len(),
            ms(took),
            before.len(),
            samples.len()
        );
        let evidence = json!({
            "rotation": rotation, "tookMs": ms(took), "gatesMs": gates, "svids": before.len(), "svidsMoved": moved,
            "believedByTheNewRootsAlone": believed, "restarts": restarted, "requests": samples.len(),
            "failed": failed, "failures": failures(&samples), "gapMs": ms(longest_gap(&samples)),
            "slowestMs": ms(slowest(&samples)), "waitsFor": status.waits_for, "parts": status.parts,
        });
        Ok(Verdict::new(ok, summary, evidence))
    }

    /// Every process of the demo, by its name and process id.
    fn processes(&self) -> Vec<(String, Option<i32>)> {
        let status = self.demo.supervisor.status();
        let named =
            status.processes.into_iter().map(|p| (format!("{}/{}@{}", p.role, p.name, p.cluster), p.pid));
        named.collect()
    }

    /// The certificate of every proxy and gateway at home, by its process.
    pub(super) async fn certificates(&self) -> anyhow::Result<BTreeMap<String, Value>> {
        let mut certificates = BTreeMap::new();
        for plan in self.demo.supervisor.plans() {
            if plan.key.cluster != self.home || !matches!(plan.key.role, Role::Proxy | Role::Gateway) {
                continue;
            }
            let admin = plan.address("admin").context("a proxy has an admin address")?;
            let answer = self.demo.client.get(admin, "admin", "/certs", Duration::from_secs(2)).await?;
            let certs = answer.json().with_context(|| format!("/certs of {} is no JSON", plan.key))?;
            certificates.insert(plan.key.to_string(), certs);
        }
        ensure!(!certificates.is_empty(), "there is no proxy at {}", self.home);
        Ok(certificates)
    }

    async fn serials(&self) -> anyhow::Result<BTreeMap<String, String>> {
        let certificates = self.certificates().await?;
        Ok(certificates.into_iter().map(|(name, c)| (name, c["serial"].to_string())).collect())
    }

    /// How many verify under the new roots and under none of the old ones.
    async fn believed(&self, old: &str) -> anyhow::Result<usize> {
        let domain = trust_domain(&self.home);
        let new = self.demo.connection(&self.home)?.credential().bundle_pem;
        let chains = self.certificates().await?;
        let chains = chains.values().filter_map(|c| c["chainPem"].as_str());
        let by = |chain: &str, roots: &str| trust::verify(chain, roots, &domain).is_ok();
        Ok(chains.filter(|chain| by(chain, &new) && !by(chain, old)).count())
    }
}
