//! Scenarios: a text file of operators' words, with what they are answered written under each.
//!
//! A line is a command; what it prints follows after `----`, up to an empty line. `#` begins a remark. The words:
//! `cluster NAME NODES` · `gateway CLUSTER NAME` · `register CLUSTER SERVICE PROXY` · `caller CLUSTER PROXY ACCOUNT` ·
//! `export CLUSTER SERVICE [CLUSTER…]` · `unexport` · `join INVITER JOINER` · `leave A B` · `cut A B` · `heal [A B]` ·
//! `kill WHO` · `restart WHO` · `unready PROXY` · `ready PROXY` · `slow NODE` · `skew NODE ±MS` ·
//! `rotate CLUSTER [now]` · `abort CLUSTER` · `gate CLUSTER GATE` · `restart dead CLUSTER` ·
//! `lie CLUSTER` · `revoke CLUSTER ID [REASON]` · `revoke CLUSTER serial|key PROXY` · `revoke CLUSTER cluster TRUST-DOMAIN` ·
//! `revoke CLUSTER reissue ID` · `revoke CLUSTER agent PROXY` · `revoke CLUSTER node|authority NODE [REASON]` ·
//! `agent CLUSTER PROXY` (its agent joins, with a new token) · `unban CLUSTER PROXY` ·
//! `lift CLUSTER REVOCATION` · `receipt CLUSTER REVOCATION` (`@2`: the second one that was ordered) · `contact LISTENER TELLER` · `request WHO SERVICE [TIMES]` ·
//! `read CLUSTER` · `run TIME` · `settle` · `show WHAT CLUSTER`. WHO is a node, a proxy, or `leader CLUSTER`.

use std::collections::{BTreeMap, BTreeSet};

use hanse_control::command::{Answer, Command, Outcome};
use hanse_control::state::rotation::Gate;
use hanse_federation::catalog::Export;
use hanse_identity::{Closing, ClusterName, Reason, RevocationId, RevocationTarget, ServiceName, SpiffeId};

use super::network::{Party, Scope};
use super::proxy::ProxyKind;
use super::storm::registration;
use super::{At, EventLog, Violation, World};

/// How long an operator waits for an answer.
const PATIENCE_MS: u64 = 8000;
/// How long for a gate of a rotation.
const GATE_PATIENCE_MS: u64 = 40_000;

/// Runs a scenario; the same text with the answers as they are now.
pub fn play(text: &str) -> Result<String, Violation> {
    let mut world = World::new(1, EventLog::default());
    let mut played = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        played.push_str(line);
        played.push('\n');
        let command = line.trim();
        if command.is_empty() || command.starts_with('#') {
            continue;
        }
        if lines.next_if(|l| l.trim() == "----").is_some() {
            while lines.next_if(|l| !l.trim().is_empty()).is_some() {}
        }
        let answer = world.command(command)?;
        if !answer.is_empty() {
            played.push_str("----\n");
            played.push_str(answer.trim_end());
            played.push('\n');
            // The empty line that ends the answer.
            if lines.peek().is_some_and(|l| !l.trim().is_empty()) {
                played.push('\n');
            }
        }
    }
    Ok(played)
}

impl World {
    fn command(&mut self, line: &str) -> Result<String, Violation> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = match words.as_slice() {
            ["cluster", name, nodes] => self.do_cluster(name, nodes)?,
            ["gateway", cluster, name] => self.do_proxy(cluster, name, None, None)?,
            ["register", cluster, service, name] => self.do_proxy(cluster, name, Some(service), None)?,
            ["caller", cluster, name, account] => self.do_proxy(cluster, name, None, Some(account))?,
            ["export", cluster, service, to @ ..] => self.do_export(cluster, service, to)?,
            ["unexport", cluster, service] => match service.parse() {
                Ok(service) => self.ordered(cluster, Command::Unexport { service })?,
                Err(_) => format!("{service} is no service"),
            },
            ["join", inviter, joiner] => self.do_join(inviter, joiner)?,
            ["leave", a, b] => self.do_leave(a, b)?,
            ["cut", a, b] => self.with_scopes(a, b, |world, a, b| world.network.cut_both(a, b)),
            ["heal", a, b] => self.with_scopes(a, b, |world, a, b| world.network.heal(a, b)),
            ["heal"] => {
                self.network.heal_all();
                String::new()
            }
            ["run", time] => {
                match time.strip_suffix("ms").map(|t| (t, 1)).or(time.strip_suffix('s').map(|t| (t, 1000))) {
                    Some((number, unit)) => {
                        self.run_for(number.parse::<u64>().unwrap_or(0) * unit)?;
                        String::new()
                    }
                    None => format!("{time} is no time"),
                }
            }
            ["settle"] => {
                self.settle(60_000)?;
                "at rest: all agree".to_owned()
            }
            [
                "revoke",
                cluster,
                kind @ ("serial" | "key" | "cluster" | "reissue" | "agent" | "node" | "authority"),
                what,
                reason @ ..,
            ] => self.do_revoke_kind(cluster, kind, what, reason_of(reason.first().copied()))?,
            ["agent", cluster, proxy] => self.do_agent(cluster, proxy)?,
            ["unban", cluster, proxy] => match proxy.parse() {
                Ok(agent) => self.ordered(cluster, Command::AgentUnban { agent })?,
                Err(_) => format!("{proxy} is no name"),
            },
            ["receipt", cluster, id] => match (self.cluster_named(cluster), self.revocation_named(id)) {
                (Some(cluster), Ok(id)) => self.receipt(cluster, &id),
                _ => format!("not understood: {line}"),
            },
            ["contact", listener, teller] => {
                match (self.cluster_named(listener), self.cluster_named(teller)) {
                    (Some(listener), Some(teller)) => {
                        let since = self.now;
                        let heard = |world: &World| world.has_heard(listener, teller, since);
                        if self.run_until(PATIENCE_MS, heard)? { "heard".into() } else { "silence".into() }
                    }
                    _ => "both must be clusters".to_owned(),
                }
            }
            ["revoke", cluster, id, reason @ ..] => self.do_revoke(cluster, id, reason.first().copied())?,
            ["lift", cluster, id] => match self.revocation_named(id) {
                Ok(id) => self.ordered(cluster, Command::Lift { id })?,
                Err(why) => format!("{id} {why}"),
            },
            ["request", who, service] => self.do_requests(who, service, 1)?,
            ["request", who, service, times] => self.do_requests(who, service, times.parse().unwrap_or(1))?,
            ["read", cluster] => self.do_read(cluster)?,
            ["lie", cluster] => match self.cluster_named(cluster) {
                Some(cluster) => {
                    self.liars.push(cluster);
                    String::new()
                }
                None => format!("no cluster {cluster}"),
            },
            ["show", what, cluster] => match self.cluster_named(cluster) {
                Some(cluster) => self.show(what, cluster),
                None => format!("no cluster {cluster}"),
            },
            ["kill", "leader", cluster] => self.do_leader(cluster)?,
            ["restart", "dead", cluster] => match self.cluster_named(cluster) {
                Some(cluster) => {
                    let nodes = 0..self.clusters[cluster].nodes.len();
                    nodes.for_each(|index| self.start_node(At { cluster, index }));
                    String::new()
                }
                None => format!("no cluster {cluster}"),
            },
            ["rotate", cluster, now @ ..] => {
                let reissue = now.first() == Some(&"now");
                self.ordered(cluster, Command::RotateBegin { authority: None, reissue })?
            }
            ["abort", cluster] => self.ordered(cluster, Command::RotateAbort {})?,
            ["gate", cluster, gate] => self.do_gate(cluster, gate)?,
            [verb, who, more @ ..] => self.do_party(verb, who, more)?,
            _ => format!("not understood: {line}"),
        };
        Ok(answer)
    }

    fn do_cluster(&mut self, name: &str, nodes: &str) -> Result<String, Violation> {
        let (Ok(cluster_name), Ok(nodes)) = (name.parse::<ClusterName>(), nodes.parse()) else {
            return Ok("a cluster has a name and a number of nodes".into());
        };
        let cluster = self.found(&cluster_name, nodes);
        self.run_until(PATIENCE_MS, |world| world.leader(cluster).is_some())?;
        Ok(self.show("leader", cluster))
    }

    fn do_proxy(
        &mut self,
        cluster: &str,
        name: &str,
        service: Option<&str>,
        account: Option<&str>,
    ) -> Result<String, Violation> {
        let Some(at) = self.cluster_named(cluster) else { return Ok(format!("no cluster {cluster}")) };
        let services: Vec<ServiceName> = service.and_then(|s| s.parse().ok()).into_iter().collect();
        let index = match (services.first(), account) {
            (Some(service), _) => self.add_sidecar(at, name, service.name(), &services),
            (None, Some(account)) => self.add_sidecar(at, name, account, &[]),
            (None, None) => self.add_gateway(at, name),
        };
        let proxy = &self.clusters[at].proxies[index];
        let (identity, services) = (proxy.identity.clone(), proxy.services.clone());
        let answer = self.ordered(
            cluster,
            Command::WorkloadRegister { registration: registration(&identity, &services) },
        )?;
        let name = name.to_owned();
        self.run_until(PATIENCE_MS, |world| {
            let proxy = &world.clusters[at].proxies[index];
            let announced = proxy.view().is_some_and(|v| {
                v.gateways.contains_key(&proxy.name)
                    || v.endpoints.contains_key(&proxy.name)
                    || account.is_some()
            });
            announced && proxy.has_svid()
        })?;
        Ok(format!("{name} is {identity}: {answer}"))
    }

    /// Has a command committed and says what came of it.
    fn ordered(&mut self, cluster: &str, command: Command) -> Result<String, Violation> {
        let Some(cluster) = self.cluster_named(cluster) else { return Ok(format!("no cluster {cluster}")) };
        let order = self.order(cluster, "admin", command);
        self.run_until(PATIENCE_MS, |world| world.operations[&order].end.is_some())?;
        Ok(match &self.operations[&order].end {
            Some(Ok(outcome)) => match &outcome.result {
                Ok(Answer::Done) => "done".to_owned(),
                Ok(Answer::Already) => "already so".to_owned(),
                Ok(Answer::Revoked(id)) => format!("revoked as {id}"),
                Ok(Answer::Issued { refused }) => format!("recorded, {} refused", refused.len()),
                Err(refusal) => format!("refused: {refusal}"),
            },
            Some(Err(why)) => format!("unknown: {why}"),
            None => "unknown: no answer".to_owned(),
        })
    }

    fn do_export(&mut self, cluster: &str, service: &str, to: &[&str]) -> Result<String, Violation> {
        let Ok(service) = service.parse() else { return Ok(format!("{service} is no service")) };
        let only: BTreeSet<ClusterName> = to.iter().filter_map(|c| c.parse().ok()).collect();
        let to = if only.is_empty() { Export::Everyone } else { Export::Only(only) };
        self.ordered(cluster, Command::Export { service, to })
    }

    fn do_join(&mut self, inviter: &str, joiner: &str) -> Result<String, Violation> {
        let (Some(inviter), Some(joiner)) = (self.cluster_named(inviter), self.cluster_named(joiner)) else {
            return Ok("both must be clusters".into());
        };
        let task = self.join(inviter, joiner);
        self.run_until(60_000, |world| world.joins[task].end.is_some())?;
        let join = &self.joins[task];
        let mut lines: Vec<String> = join
            .lines
            .iter()
            .map(|l| format!("{} {}: {}", if l.ok { "✓" } else { "✗" }, l.name, l.detail))
            .collect();
        lines.push(match join.end {
            Some(super::join::Ended::Joined) => "joined".to_owned(),
            Some(super::join::Ended::AsBefore) => "not joined".to_owned(),
            None => "no end in sight".to_owned(),
        });
        if join.runs > 1 {
            lines.push("started over with the same token".to_owned());
        }
        Ok(lines.join("\n"))
    }

    fn do_leave(&mut self, a: &str, b: &str) -> Result<String, Violation> {
        let (Ok(one), Ok(other)) = (a.parse(), b.parse()) else { return Ok("both must be clusters".into()) };
        let there = self.ordered(a, Command::PeerRemove { cluster: other, only_invite: None })?;
        let here = self.ordered(b, Command::PeerRemove { cluster: one, only_invite: None })?;
        Ok(format!("{a}: {there}\n{b}: {here}"))
    }

    fn do_revoke(&mut self, cluster: &str, id: &str, reason: Option<&str>) -> Result<String, Violation> {
        let Ok(id) = id.parse::<SpiffeId>() else { return Ok(format!("{id} is no SPIFFE ID")) };
        self.ordered(cluster, revocation(RevocationTarget::Identity(id), reason_of(reason)))
    }

    /// The revocation of that id, or the one that was ordered as the nth.
    fn revocation_named(&self, name: &str) -> Result<RevocationId, &'static str> {
        let Some(number) = name.strip_prefix('@') else { return name.parse() };
        let mut ordered = Vec::new();
        for operation in self.operations.values() {
            if let Some(Ok(Outcome { result: Ok(Answer::Revoked(id)), .. })) = &operation.end
                && !ordered.contains(id)
            {
                ordered.push(id.clone());
            }
        }
        let place = number.parse::<usize>().ok().and_then(|number| number.checked_sub(1));
        place.and_then(|place| ordered.get(place).cloned()).ok_or("is no revocation of this scenario")
    }

    /// The agent of a proxy joins: a token, and its use.
    fn do_agent(&mut self, cluster: &str, proxy: &str) -> Result<String, Violation> {
        let Some(Party::Proxy(at, index)) = self.party(proxy) else { return Ok(format!("no proxy {proxy}")) };
        self.agent_joins(at, index);
        self.run_until(PATIENCE_MS, |world| world.operations.values().all(|o| o.end.is_some()))?;
        self.agent_joins(at, index);
        self.run_until(PATIENCE_MS, |world| world.operations.values().all(|o| o.end.is_some()))?;
        Ok(if self.is_out(at, index) { format!("{cluster} does not let it in") } else { "joined".to_owned() })
    }

    /// The certificate or the key that a proxy has now, its agent, a node or its authority, or a neighbour as a whole (on
    /// hold).
    fn do_revoke_kind(
        &mut self,
        cluster: &str,
        kind: &str,
        what: &str,
        reason: Reason,
    ) -> Result<String, Violation> {
        let target = match kind {
            "cluster" => {
                let Ok(trust_domain) = what.parse() else { return Ok(format!("{what} is no trust domain")) };
                return self
                    .ordered(cluster, revocation(RevocationTarget::Cluster(trust_domain), Reason::Hold));
            }
            "reissue" => {
                let Ok(id) = what.parse() else { return Ok(format!("{what} is no SPIFFE ID")) };
                let command = match revocation(RevocationTarget::Identity(id), reason) {
                    Command::Revoke { target, reason, note, expires, closing, .. } => {
                        Command::Revoke { target, reason, note, expires, reissue: true, closing }
                    }
                    other => other,
                };
                return self.ordered(cluster, command);
            }
            "agent" => what.parse().ok().map(RevocationTarget::Agent),
            "node" => what.parse().ok().map(RevocationTarget::Node),
            "authority" => match self.party(what) {
                Some(Party::Node(cluster, index)) => {
                    self.signing_key(At { cluster, index }).map(RevocationTarget::Authority)
                }
                _ => None,
            },
            _ => return self.do_revoke_held(cluster, kind, what),
        };
        match target {
            Some(target) => self.ordered(cluster, revocation(target, reason)),
            None => Ok(format!("there is no {kind} {what}")),
        }
    }

    /// The certificate or the key that a proxy has now.
    fn do_revoke_held(&mut self, cluster: &str, kind: &str, what: &str) -> Result<String, Violation> {
        let Some(Party::Proxy(at, index)) = self.party(what) else { return Ok(format!("no proxy {what}")) };
        let svid = self.clusters[at].proxies[index].running.as_ref().and_then(|life| life.svid.as_ref());
        let Some(facts) = svid.map(|svid| svid.facts.clone()) else {
            return Ok(format!("{what} has no SVID"));
        };
        let target = match kind {
            "key" => RevocationTarget::Key(facts.key_id),
            _ => RevocationTarget::Serial(facts.serial),
        };
        self.ordered(cluster, revocation(target, Reason::KeyCompromise))
    }

    fn do_read(&mut self, cluster: &str) -> Result<String, Violation> {
        let Some(at) = self.cluster_named(cluster) else { return Ok(format!("no cluster {cluster}")) };
        let Some(id) = self.read(at) else { return Ok("no node answers".into()) };
        let answered = self.run_until(PATIENCE_MS, |world| world.readings[&id].end.is_some())?;
        Ok(if answered { "answered".into() } else { "no answer: no quorum".into() })
    }

    fn do_requests(&mut self, who: &str, service: &str, times: usize) -> Result<String, Violation> {
        let Ok(service) = service.parse::<ServiceName>() else {
            return Ok(format!("{service} is no service"));
        };
        let caller = self.party(who).or_else(|| {
            let cluster = self.cluster_named(who)?;
            let proxies = self.clusters[cluster].proxies.iter();
            let mut callers =
                proxies.enumerate().filter(|(_, p)| p.kind == ProxyKind::Sidecar && p.services.is_empty());
            callers.next().map(|(index, _)| Party::Proxy(cluster, index))
        });
        let Some(Party::Proxy(cluster, index)) = caller else {
            return Ok(format!("nobody calls from {who}"));
        };
        let mut ends: BTreeMap<String, usize> = BTreeMap::new();
        for _ in 0..times {
            let id = self.request(cluster, index, &service);
            self.run_until(PATIENCE_MS, |world| world.told[&id].end.is_some())?;
            let end = match &self.told[&id].end {
                Some(Ok(served)) if times > 1 => format!("served by {}", served.cluster),
                Some(Ok(served)) => format!("served by {} in {}", served.endpoint, served.cluster),
                Some(Err(why)) => format!("refused: {why}"),
                None => "no answer".to_owned(),
            };
            *ends.entry(end).or_default() += 1;
        }
        let lines =
            ends.into_iter().map(|(end, count)| if times > 1 { format!("{count} × {end}") } else { end });
        Ok(lines.collect::<Vec<_>>().join("\n"))
    }

    /// Waits until the rotation has come to that gate, or its end.
    fn do_gate(&mut self, cluster: &str, gate: &str) -> Result<String, Violation> {
        let Some(at) = self.cluster_named(cluster) else { return Ok(format!("no cluster {cluster}")) };
        let gates = Gate::ALL.into_iter().chain([Gate::Done]);
        let Some(wanted) = gates.into_iter().find(|g| g.as_str() == gate) else {
            return Ok(format!("{gate} is no gate"));
        };
        self.run_until(GATE_PATIENCE_MS, |world| world.gate_of(at).is_some_and(|gate| gate >= wanted))?;
        Ok(self.gate_of(at).map_or("no leader".to_owned(), |gate| format!("at {gate}")))
    }

    fn do_leader(&mut self, cluster: &str) -> Result<String, Violation> {
        let leader = self.cluster_named(cluster).and_then(|c| self.leader(c));
        let Some(at) = leader else { return Ok(format!("{cluster} has no leader")) };
        let name = self.clusters[at.cluster].nodes[at.index].name.to_string();
        self.do_party("kill", &name, &[])?;
        Ok(format!("{name} is dead"))
    }

    fn do_party(&mut self, verb: &str, who: &str, more: &[&str]) -> Result<String, Violation> {
        let Some(party) = self.party(who) else { return Ok(format!("not understood: {verb} {who}")) };
        match (verb, party, more) {
            ("kill", Party::Node(cluster, index), []) => self.crash_node(At { cluster, index }),
            ("kill", Party::Proxy(cluster, index), []) => self.crash_proxy(cluster, index),
            ("restart", Party::Node(cluster, index), []) => self.start_node(At { cluster, index }),
            ("restart", Party::Proxy(cluster, index), []) => self.start_proxy(cluster, index),
            ("slow", Party::Node(cluster, index), []) => self.clusters[cluster].nodes[index].slow_disk = true,
            ("skew", Party::Node(cluster, index), [ms]) => {
                let skew = ms.parse::<i64>().unwrap_or(0);
                self.clusters[cluster].nodes[index].skew_ms = skew;
                self.most_ahead_ms = self.most_ahead_ms.max(u64::try_from(skew).unwrap_or(0));
            }
            ("ready", Party::Proxy(cluster, index), []) => self.clusters[cluster].proxies[index].ready = true,
            ("unready", Party::Proxy(cluster, index), []) => {
                self.clusters[cluster].proxies[index].ready = false
            }
            _ => return Ok(format!("not understood: {verb} {who}")),
        }
        Ok(String::new())
    }

    fn party(&self, name: &str) -> Option<Party> {
        self.clusters.iter().enumerate().find_map(|(cluster, c)| {
            let node = c.nodes.iter().position(|n| n.name.as_str() == name).map(|i| Party::Node(cluster, i));
            node.or_else(|| {
                c.proxies.iter().position(|p| p.name.as_str() == name).map(|i| Party::Proxy(cluster, i))
            })
        })
    }

    fn with_scopes(&mut self, a: &str, b: &str, act: impl FnOnce(&mut World, Scope, Scope)) -> String {
        let scope = |name: &str| match name {
            "everyone" => Some(Scope::Everyone),
            name => {
                self.cluster_named(name).map(Scope::Cluster).or_else(|| self.party(name).map(Scope::Party))
            }
        };
        match (scope(a), scope(b)) {
            (Some(a), Some(b)) => {
                act(self, a, b);
                String::new()
            }
            _ => format!("not understood: {a} {b}"),
        }
    }
}

fn reason_of(word: Option<&str>) -> Reason {
    if word == Some("hold") { Reason::Hold } else { Reason::KeyCompromise }
}

fn revocation(target: RevocationTarget, reason: Reason) -> Command {
    let (note, closing) = (String::new(), Closing::Now);
    Command::Revoke { target, reason, note, expires: None, reissue: false, closing }
}
