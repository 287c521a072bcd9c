//! What a worker tells of its ladders and ejections, for `/clusters`.

use hanse_federation::choose::Candidate;
use hanse_federation::health::Target;
use hanse_federation::host::ServiceHost;
use hanse_identity::{ClusterName, ServiceName, Timestamp};
use std::rc::Rc;

use super::{Outbound, Tables};
use crate::runtime::now;

impl Outbound {
    /// This worker's ladders and ejections, for `/clusters`.
    pub fn describe_ladders(&self) -> serde_json::Value {
        let (at, health) = (now(), self.health.borrow());
        let ladder = |(host, tables): (&ServiceHost, &Rc<Tables>)| {
            let ladder = tables.ladder.borrow();
            let shares = ladder.shares(at, &health);
            let load = tables.backend.load.borrow();
            let under_way = tables.backend.breakers.all().into_iter().map(|(cluster, counts)| {
                serde_json::json!({
                    "cluster": cluster, "requests": counts.requests.get(), "pending": counts.pending.get(),
                    "retries": counts.retries.get(),
                })
            });
            let tiers = ladder.tiers.iter().zip(shares).map(|(tier, share)| {
                let candidate = |c: &Candidate| {
                    serde_json::json!({
                        "target": describe_target(&c.target),
                        "weight": c.weight,
                        "readyWeight": c.ready_weight,
                        "healthy": health.is_healthy(at, &host.service, &c.target),
                        "underWay": load.of(at, &c.target).under_way,
                        "latencyMs": load.of(at, &c.target).latency,
                    })
                };
                serde_json::json!({
                    "tier": tier.kind,
                    "cluster": tier.cluster,
                    "share": share,
                    "candidates": tier.candidates.iter().map(candidate).collect::<Vec<_>>(),
                })
            });
            serde_json::json!({
                "host": host.to_host(),
                "service": host.service,
                "revision": tables.revision,
                "tiers": tiers.collect::<Vec<_>>(),
                "algorithm": ladder.settings.algorithm,
                "panic": ladder.is_in_panic(at, &health),
                "underWay": under_way.collect::<Vec<_>>(),
            })
        };
        let ejected = |(service, target, until): &(ServiceName, Target, Timestamp)| {
            serde_json::json!({
                "service": service, "target": describe_target(target), "until": until.to_string(),
            })
        };
        let lost = |(cluster, since): &(ClusterName, Timestamp)| {
            serde_json::json!({
                "cluster": cluster, "since": since.to_string(),
            })
        };
        serde_json::json!({
            "services": self.tables.borrow().iter().map(ladder).collect::<Vec<_>>(),
            "ejected": health.ejected(at).iter().map(ejected).collect::<Vec<_>>(),
            "lostPaths": health.lost_paths().iter().map(lost).collect::<Vec<_>>(),
        })
    }
}

fn describe_target(target: &Target) -> String {
    match target {
        Target::Endpoint(id) => format!("endpoint/{id}"),
        Target::Cluster(cluster) => format!("cluster/{cluster}"),
        Target::Address(address) => format!("address/{address}"),
    }
}
