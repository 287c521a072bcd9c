//! Step 12: an identity is revoked while it holds live connections into both clusters.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::ensure;
use hanse_control::admin::{Receipt, RevokeLiftRequest, RevokePreviewRequest, RevokeRequest};
use hanse_identity::{Reason, RevocationTarget, SpiffeId};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Story, Verdict, ms};
use crate::commands::revoke;
use crate::demo::load::{self, Load, Sample, Target};
use crate::demo::spec::{only_in, trust_domain};

/// Live connections that productpage holds into each cluster.
const STREAMS: usize = 4;
/// How long they would last.
const STREAM_SECONDS: u64 = 110;
/// Requests per second by which refusal is seen.
const PROBES: u32 = 50;
const BEFORE: Duration = Duration::from_secs(1);
const AFTER: Duration = Duration::from_secs(3);
/// Cut and refused everywhere by then.
const MAX_ENFORCEMENT: Duration = Duration::from_secs(1);
const RECEIPT_TIMEOUT: Duration = Duration::from_secs(10);

/// One live connection: when its last byte came, and when it ended.
#[derive(Clone, Copy, Debug)]
struct Stream {
    last_byte: Instant,
    ended: Option<Instant>,
}

impl Story<'_> {
    /// 12
    pub(super) async fn revoke(&self) -> anyhow::Result<Verdict> {
        let connection = self.demo.connection(&self.home)?;
        let identity = SpiffeId::workload(&trust_domain(&self.home).parse()?, "shop", "productpage")?;
        let target = RevocationTarget::Identity(identity.clone());
        let mut sides = Vec::new();
        for (cluster, service) in [(&self.home, "details".to_owned()), (&self.away, only_in(&self.away))] {
            sides.push(self.side(cluster, &service).await?);
        }
        let thief = self.thief().await?;
        tokio::time::sleep(BEFORE).await;
        let preview = connection.call(&RevokePreviewRequest::new(target.clone())).await?;
        let note = "verify".to_owned();
        let (asked, asked_at) = (Instant::now(), crate::now());
        let request = RevokeRequest { note, ..RevokeRequest::new(target, Reason::Hold) };
        let revoked = revoke::commit(connection, &request).await?;
        let committed = asked.elapsed();
        let (receipt, complete_after) = revoke::wait(connection, &revoked.id, RECEIPT_TIMEOUT).await?;
        tokio::time::sleep(AFTER).await;

        let mut ok = receipt.complete;
        let mut evidence = serde_json::Map::new();
        let mut lines = vec![receipt_line(&receipt, complete_after)];
        for side in sides {
            let (holds, line, figures) = side.judge(asked, self.within(MAX_ENFORCEMENT)).await;
            ok &= holds;
            lines.push(line.clone());
            evidence.insert(figures.0, figures.1);
        }
        let (refused, line, figures) = thief.judge(asked_at, self.within(MAX_ENFORCEMENT))?;
        ok &= refused;
        lines.push(line);
        evidence.insert("thief".to_owned(), figures);
        drop(thief);
        let lift = connection.call(&RevokeLiftRequest { id: revoked.id.clone() }).await?;
        let restored = self.restored().await?;
        lines.push(format!("lifted, back after {} ms", ms(restored)));
        evidence.insert(
            "revocation".to_owned(),
            json!({
                "id": revoked.id, "identity": identity, "revision": revoked.revision,
                "commitMs": ms(committed), "previewLiveConnections": preview.reach,
                "receiptCompleteMs": ms(committed + complete_after), "receipt": receipt,
                "liftedAtRevision": lift.revision, "restoredMs": ms(restored),
            }),
        );
        Ok(Verdict::new(ok, lines.join(" · "), Value::Object(evidence)))
    }

    /// Opens live connections from productpage's proxy to a service, and starts probing it.
    async fn side(&self, cluster: &str, service: &str) -> anyhow::Result<Side> {
        let path = format!("/stream?seconds={STREAM_SECONDS}");
        let stream_target = self.demo.target_from(&self.home, "productpage-1", service, &path)?;
        let mut streams = Vec::new();
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..STREAMS {
            let opened = self
                .demo
                .client
                .stream(stream_target.outbound, &stream_target.host, &stream_target.path)
                .await?;
            ensure!(opened.status.is_success(), "a stream to {service} was answered {}", opened.status);
            let state = Arc::new(Mutex::new(Stream { last_byte: Instant::now(), ended: None }));
            streams.push(state.clone());
            tasks.spawn(follow(opened, state));
        }
        let probe_target = self.demo.target_from(&self.home, "productpage-1", service, "/")?;
        let probes = Load::start(&self.demo.client, vec![probe_target], PROBES);
        Ok(Side { cluster: cluster.to_owned(), streams, _tasks: tasks, probes })
    }

    /// After the lift: until productpage can call both clusters again.
    async fn restored(&self) -> anyhow::Result<Duration> {
        let lifted = Instant::now();
        for service in ["details".to_owned(), only_in(&self.away)] {
            let target: Target = self.demo.target_from(&self.home, "productpage-1", &service, "/")?;
            self.demo
                .until("productpage back after the lift", || async {
                    let sample = load::request(&self.demo.client, &target).await;
                    ensure!(sample.ok, "{} {}", sample.status, sample.why);
                    Ok(())
                })
                .await?;
        }
        Ok(lifted.elapsed())
    }
}

/// What productpage holds and tries in one cluster.
struct Side {
    cluster: String,
    streams: Vec<Arc<Mutex<Stream>>>,
    _tasks: tokio::task::JoinSet<()>,
    probes: Load,
}

impl Side {
    async fn judge(self, asked: Instant, limit: Duration) -> (bool, String, (String, Value)) {
        let samples = self.probes.finish().await;
        let streams: Vec<Stream> = self.streams.iter().map(|s| *lock(s)).collect();
        let cut: Vec<Duration> =
            streams.iter().filter_map(|s| s.ended).map(|at| at.saturating_duration_since(asked)).collect();
        let last_byte = streams.iter().map(|s| s.last_byte.saturating_duration_since(asked)).max();
        let served = |s: &&Sample| s.ok && s.start >= asked;
        let last_served = samples.iter().filter(served).map(|s| s.end - asked).max().unwrap_or_default();
        let refused: Vec<&Sample> = samples.iter().filter(|s| !s.ok && s.start >= asked).collect();
        let before = samples.iter().filter(|s| s.ok && s.end <= asked).count();
        let longest_cut = cut.iter().max().copied().unwrap_or_default();
        let ok = cut.len() == streams.len()
            && longest_cut <= limit
            && last_served <= limit
            && !refused.is_empty()
            && before > 0;
        let line = format!(
            "{}: {} of {} live connections cut within {} ms, last answer after {} ms, {} refused",
            self.cluster,
            cut.len(),
            streams.len(),
            ms(longest_cut),
            ms(last_served),
            refused.len()
        );
        let owned: Vec<Sample> = refused.into_iter().cloned().collect();
        let figures = json!({
            "liveConnections": streams.len(), "cut": cut.len(), "longestCutMs": ms(longest_cut),
            "lastByteMs": last_byte.map(ms), "lastAnswerMs": ms(last_served),
            "answeredBefore": before, "refusedAfter": owned.len(), "refusals": load::failures(&owned),
        });
        (ok, line, (self.cluster, figures))
    }
}

/// Reads a stream to its end.
async fn follow(mut stream: crate::client::Streaming, state: Arc<Mutex<Stream>>) {
    while let Some(Ok(frame)) = stream.body.frame().await {
        if frame.is_data() {
            lock(&state).last_byte = Instant::now();
        }
    }
    lock(&state).ended = Some(Instant::now());
}

fn lock(state: &Mutex<Stream>) -> std::sync::MutexGuard<'_, Stream> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn receipt_line(receipt: &Receipt, after: Duration) -> String {
    let state = if receipt.complete { "complete" } else { "NOT complete" };
    let parts = receipt.parts.iter().map(|p| {
        let enforced = p.proxies.enforced + p.gateways.enforced + p.agents.enforced;
        let total = p.proxies.total + p.gateways.total + p.agents.total;
        format!("{} {enforced}/{total} closed {}", p.cluster, p.closed_connections)
    });
    format!("receipt {state} after {} ms ({})", ms(after), parts.collect::<Vec<_>>().join(", "))
}
