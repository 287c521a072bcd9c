//! What `show` answers in a scenario: how a cluster stands, in words that stay the same from run to run.

use std::collections::BTreeMap;

use hanse_federation::View;
use hanse_federation::catalog::{Export, ServiceSummary};
use hanse_identity::{AuthorityState, Bundle};

use super::{At, Proxy, World};

impl Proxy {
    pub(super) fn has_svid(&self) -> bool {
        self.running.as_ref().is_some_and(|life| life.svid.is_some())
    }
}

impl World {
    pub(super) fn show(&self, what: &str, cluster: usize) -> String {
        let Some(leader) = self.leader(cluster) else {
            return format!("{} has no leader", self.clusters[cluster].name);
        };
        let Some(state) = self.state_of(leader) else { return "no State".to_owned() };
        let view = &state.view;
        match what {
            "leader" => self.show_leader(leader),
            "nodes" => self.show_nodes(cluster),
            "services" => lines(view.services.values().map(|s| {
                let export = match &s.export {
                    None => "not exported".to_owned(),
                    Some(Export::Everyone) => "exported to everyone".to_owned(),
                    Some(Export::Only(to)) => format!("exported to {}", lines_of(to.iter(), " ")),
                };
                format!(
                    "{}: {export}, endpoints {}",
                    s.name,
                    lines_of(view.endpoints_of(&s.name).map(|e| &e.id), " ")
                )
            })),
            "endpoints" => lines(view.endpoints.values().map(|e| {
                let ready = if e.ready { "ready" } else { "not ready" };
                let mut proxies = self.clusters[cluster].proxies.iter();
                let own = proxies.any(|p| p.name == e.id && p.stands(view));
                let life = if own { "of its present life" } else { "of an earlier life" };
                format!("{}: {ready}, {life}, vouched for by {}", e.id, e.session.node)
            })),
            "peers" => lines(view.peers.values().map(|p| {
                let services = lines_of(p.services.values().map(summary), ", ");
                let gateways = lines_of(p.gateways.iter().map(|g| &g.name), " ");
                format!("{}: {:?}, gateways {gateways}; services {services}", p.record.cluster, p.state)
            })),
            "revocations" => {
                lines(view.revocations.iter().map(|r| format!("{}: {} ({})", r.id, r.target, r.reason)))
            }
            "bundles" => {
                lines(view.bundles.values().map(|b| format!("{}: {}", b.trust_domain, authorities(b))))
            }
            "rotation" => self.show_rotation(leader, state),
            "proxies" => lines(self.clusters[cluster].proxies.iter().map(|p| proxy(p, view))),
            "log" => self.show_log(cluster),
            other => format!("nothing is known about {other}"),
        }
    }

    fn show_leader(&self, leader: At) -> String {
        let nodes = &self.clusters[leader.cluster].nodes;
        let up = nodes.iter().filter(|n| n.running.is_some()).count();
        format!("{} leads, {up} of {} nodes are up", nodes[leader.index].name, nodes.len())
    }

    fn show_nodes(&self, cluster: usize) -> String {
        let truth = self.ledger.truth(cluster).revision.0;
        lines(self.clusters[cluster].nodes.iter().map(|n| match &n.running {
            None => format!("{}: down", n.name),
            Some(running) if running.state.view.revision.0 == truth => format!("{}: up to date", n.name),
            Some(_) => format!("{}: behind", n.name),
        }))
    }

    /// Whether a node has had to be sent a snapshot can be seen from where its log begins.
    fn show_log(&self, cluster: usize) -> String {
        lines(self.clusters[cluster].nodes.iter().map(|n| match &n.running {
            None => format!("{}: down", n.name),
            Some(running) => {
                let status = running.node.status();
                format!("{}: snapshot {}, log from {}", n.name, status.snapshot_index, status.first_index)
            }
        }))
    }
}

/// How many authorities there are, by their state.
fn authorities(bundle: &Bundle) -> String {
    let mut states: BTreeMap<&str, usize> = BTreeMap::new();
    for authority in &bundle.authorities {
        *states
            .entry(match authority.state {
                AuthorityState::Active => "active",
                AuthorityState::Prepared => "prepared",
                AuthorityState::Tainted => "tainted",
                AuthorityState::Retired => "retired",
            })
            .or_default() += 1;
    }
    lines_of(states.into_iter().map(|(state, count)| format!("{count} {state}")), ", ")
}

fn summary(summary: &ServiceSummary) -> String {
    let (ready, all) = (summary.ready_weight(), summary.weight());
    format!("{} ({ready}/{all} ready)", summary.name)
}

fn proxy(proxy: &Proxy, view: &View) -> String {
    let stand = match proxy.view() {
        None if !proxy.is_up() => "down".to_owned(),
        None => "no View yet".to_owned(),
        Some(own) if own.revision == view.revision => "up to date".to_owned(),
        Some(_) => "behind".to_owned(),
    };
    format!("{}: {stand}, {} connections", proxy.name, proxy.connections())
}

fn lines(all: impl Iterator<Item = String>) -> String {
    let all: Vec<String> = all.collect();
    if all.is_empty() { "none".to_owned() } else { all.join("\n") }
}

fn lines_of<T: ToString>(all: impl Iterator<Item = T>, between: &str) -> String {
    let all: Vec<String> = all.map(|one| one.to_string()).collect();
    if all.is_empty() { "none".to_owned() } else { all.join(between) }
}
