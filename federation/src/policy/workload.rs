//! Documents of kind Workload: registrations as a file says them, read with the same strictness as policies, and
//! written so that what was written can be applied again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hanse_identity::name::MemberRole;
use hanse_identity::{
    AgentScope, NameError, NodeName, Registration, Selector, ServiceName, SpiffeId, Timestamp, TrustDomain,
};
use serde_json::{Value, json};

use super::document::{Diagnostic, HANSE_API_VERSION, PolicyKind};
use super::moment::Moment;
use super::parse::{diagnostic, unreadable};
use super::schema::{self, Field, Need, Problem, Shape};
use super::tree::{self, Content, Node, Place};
use super::value::PolicyDuration;

/// What the documents call themselves.
pub const WORKLOAD_KIND: &str = "Workload";
/// What the command line's lists of registrations call themselves: each item has a `spec`, and can be applied again.
pub const LIST_API_VERSION: &str = "cli.hanse.dev/v1";
pub const LIST_KIND: &str = "WorkloadList";
/// Most agents, selectors, services of one document: what one registration may have.
const MAX_LISTED: usize = 64;

static DOCUMENT: Shape = Shape::Object(&[
    Field { name: "apiVersion", need: Need::Required, shape: &TEXT },
    Field { name: "kind", need: Need::Required, shape: &TEXT },
    // For people and tools: a registration is known by its SPIFFE ID and agent.
    Field { name: "metadata", need: Need::Optional, shape: &schema::METADATA },
    Field { name: "spec", need: Need::Required, shape: &SPEC },
    Field { name: "status", need: Need::Optional, shape: &Shape::Any },
]);

static SPEC: Shape = Shape::Object(&[
    Field { name: "id", need: Need::Required, shape: &Shape::Text(parses::<SpiffeId>) },
    Field {
        name: "agents",
        need: Need::Optional,
        shape: &Shape::List { of: &AGENT, at_least: 1, at_most: MAX_LISTED },
    },
    // The same by their SPIFFE IDs, as other tools say it; one of the two has to be there.
    Field {
        name: "parents",
        need: Need::Optional,
        shape: &Shape::List { of: &PARENT, at_least: 1, at_most: MAX_LISTED },
    },
    Field {
        name: "selectors",
        need: Need::Required,
        shape: &Shape::List { of: &SELECTOR, at_least: 1, at_most: MAX_LISTED },
    },
    Field {
        name: "services",
        need: Need::Optional,
        shape: &Shape::List { of: &SERVICE, at_least: 0, at_most: MAX_LISTED },
    },
    Field { name: "ttl", need: Need::Optional, shape: &Shape::Text(ttl) },
    Field { name: "address", need: Need::Optional, shape: &Shape::Text(address) },
    Field {
        name: "federatesWith",
        need: Need::Optional,
        shape: &Shape::List { of: &DOMAIN, at_least: 0, at_most: MAX_LISTED },
    },
    Field { name: "hint", need: Need::Optional, shape: &TEXT },
    Field { name: "expires", need: Need::Optional, shape: &Shape::Text(time) },
    Field { name: "admin", need: Need::Optional, shape: &Shape::Truth },
    Field { name: "downstream", need: Need::Optional, shape: &Shape::Truth },
]);

static TEXT: Shape = Shape::Text(any);
static AGENT: Shape = Shape::Text(parses::<AgentScope>);
static PARENT: Shape = Shape::Text(parent);
static SELECTOR: Shape = Shape::Text(selector);
static SERVICE: Shape = Shape::Text(parses::<ServiceName>);
static DOMAIN: Shape = Shape::Text(parses::<TrustDomain>);

fn any(_: &str) -> Result<(), String> {
    Ok(())
}

fn parses<T: std::str::FromStr<Err = NameError>>(text: &str) -> Result<(), String> {
    text.parse::<T>().map(drop).map_err(|e| e.to_string())
}

fn parent(text: &str) -> Result<(), String> {
    text.parse().map_err(|e: NameError| e.to_string()).and_then(|id| agent_of(&id).map(drop))
}

/// The agent that a parent's SPIFFE ID names.
pub fn agent_of(parent: &SpiffeId) -> Result<NodeName, String> {
    match parent.as_member() {
        Some((MemberRole::Agent, name)) => name.parse().map_err(|e: NameError| e.to_string()),
        _ => Err(format!("{parent} is no agent: parents are like spiffe://TRUST-DOMAIN/hanse/agent/NAME")),
    }
}

fn selector(text: &str) -> Result<(), String> {
    let kinds = hanse_identity::grant::selector::KINDS;
    match text.parse::<Selector>() {
        Ok(selector) if !selector.is_unknown() => Ok(()),
        Ok(_) => Err(format!("this version does not know {text:?}; known: {kinds}")),
        Err(error) => Err(error.to_string()),
    }
}

fn ttl(text: &str) -> Result<(), String> {
    seconds(text).map(drop)
}

/// Whole seconds; the bounds are the registration's.
fn seconds(text: &str) -> Result<u64, String> {
    let time = text.parse::<PolicyDuration>().map_err(|e| e.to_string())?.get();
    match time.subsec_nanos() == 0 && !time.is_zero() {
        true => Ok(time.as_secs()),
        false => {
            Err(format!("{text:?} is not a whole number of seconds above 0; leave it out for the default"))
        }
    }
}

fn address(text: &str) -> Result<(), String> {
    let wrong = |_| format!("{text:?} is not IP:PORT, like 10.0.1.7:8443");
    text.parse::<std::net::SocketAddr>().map(drop).map_err(wrong)
}

fn time(text: &str) -> Result<(), String> {
    text.parse::<Moment>().map(drop).map_err(|e| e.to_string())
}

fn instant(text: &str) -> Option<Timestamp> {
    text.parse::<Moment>().ok().map(Moment::get)
}

/// Reads every document of a file, one registration per agent that it names. All diagnostics, not only the first.
pub fn parse_workloads(file: &str, text: &str, now: Timestamp) -> Result<Vec<Registration>, Vec<Diagnostic>> {
    let mut registrations: Vec<Registration> = Vec::new();
    let mut problems = Vec::new();
    let mut seen = BTreeMap::new();
    for node in tree::read(text) {
        let read = node.map_err(|e| vec![unreadable(e)]).and_then(|node| {
            let found = document(&node, now)?;
            Ok((found, node.place))
        });
        match read {
            Ok((found, place)) => {
                for registration in found {
                    problems.extend(repeated(&mut seen, &registration, place));
                    registrations.push(registration);
                }
            }
            Err(found) => problems.extend(found),
        }
    }
    if problems.is_empty() {
        return Ok(registrations);
    }
    problems.sort_by_key(|p| (p.place.line, p.place.column));
    Err(problems.into_iter().map(|problem| diagnostic(file, problem)).collect())
}

fn document(node: &Node, now: Timestamp) -> Result<Vec<Registration>, Vec<Problem>> {
    if let Some(items) = listed(node) {
        return list(items, now);
    }
    // Of another kind nothing else is worth saying.
    if let Some(problem) = not_a_workload(node) {
        return Err(vec![problem]);
    }
    let mut problems = Vec::new();
    schema::check(&DOCUMENT, node, "", &mut problems);
    let Some(spec) = node.get("spec").filter(|_| problems.is_empty()) else { return Err(problems) };
    specified(spec, "spec", now)
}

/// The items, if it is a list as the command line prints it.
fn listed(node: &Node) -> Option<&[Node]> {
    let is = |field: &str, text: &str| node.get(field).and_then(Node::text) == Some(text);
    match &node.get("items")?.content {
        Content::List(items) if is("apiVersion", LIST_API_VERSION) && is("kind", LIST_KIND) => Some(items),
        _ => None,
    }
}

/// Of each item what its `spec` says: the rest of it is what the cluster said about it.
fn list(items: &[Node], now: Timestamp) -> Result<Vec<Registration>, Vec<Problem>> {
    let (mut registrations, mut problems) = (Vec::new(), Vec::new());
    for (number, item) in items.iter().enumerate() {
        let path = format!("items[{number}].spec");
        let Some(spec) = item.get("spec") else {
            let (place, message) = (item.place, "an item needs a spec".to_owned());
            problems.push(Problem { code: "E4004", place, path, message, fix: "add spec".to_owned() });
            continue;
        };
        let mut found = Vec::new();
        schema::check(&SPEC, spec, &path, &mut found);
        match if found.is_empty() { specified(spec, &path, now) } else { Err(found) } {
            Ok(found) => registrations.extend(found),
            Err(found) => problems.extend(found),
        }
    }
    if problems.is_empty() { Ok(registrations) } else { Err(problems) }
}

/// What a spec says; its shape has been checked.
fn specified(spec: &Node, path: &str, now: Timestamp) -> Result<Vec<Registration>, Vec<Problem>> {
    let id: SpiffeId = one(spec, "id").ok_or_else(Vec::new)?;
    let agents = agents(spec, path, &id)?;
    let registration = |agent: AgentScope| Registration {
        services: all(spec, "services"),
        ttl_seconds: spec.get("ttl").and_then(Node::text).and_then(|t| seconds(t).ok()).unwrap_or_default(),
        address: one(spec, "address"),
        federates_with: all(spec, "federatesWith"),
        hint: spec.get("hint").and_then(Node::text).unwrap_or_default().to_owned(),
        expires: spec.get("expires").and_then(Node::text).and_then(instant),
        admin: truth(spec, "admin"),
        downstream: truth(spec, "downstream"),
        ..Registration::new(id.clone(), agent, all::<Selector>(spec, "selectors"))
    };
    let registrations: Vec<Registration> = agents.into_iter().map(registration).collect();
    for registration in &registrations {
        registration.check(now).map_err(|error| {
            let (path, place) = (path.to_owned(), spec.place);
            vec![Problem { code: "E4005", place, path, message: error.to_string(), fix: String::new() }]
        })?;
    }
    Ok(registrations)
}

/// Where it holds: what `agents` and `parents` name.
fn agents(spec: &Node, path: &str, id: &SpiffeId) -> Result<BTreeSet<AgentScope>, Vec<Problem>> {
    let mut agents: BTreeSet<AgentScope> = all(spec, "agents");
    let parents: BTreeSet<SpiffeId> = all(spec, "parents");
    let problem = |code, field: &str, message, fix: &str| {
        let (place, path) = (spec.get(field).unwrap_or(spec).place, format!("{path}.{field}"));
        Err(vec![Problem { code, place, path, message, fix: fix.to_owned() }])
    };
    if let Some(foreign) = parents.iter().find(|p| p.trust_domain() != id.trust_domain()) {
        let message = format!("{foreign} is not of the workload's trust domain {}", id.trust_domain());
        return problem("E4005", "parents", message, "");
    }
    agents.extend(parents.iter().filter_map(|p| agent_of(p).ok()).map(AgentScope::One));
    match agents.is_empty() {
        false => Ok(agents),
        true => problem("E4004", "agents", "a registration needs agents".to_owned(), "add agents"),
    }
}

/// What a field of the spec says; the shape has been checked.
fn one<T: std::str::FromStr>(spec: &Node, field: &str) -> Option<T> {
    spec.get(field)?.text()?.parse().ok()
}

fn truth(spec: &Node, field: &str) -> bool {
    spec.get(field).is_some_and(|node| matches!(node.content, Content::Bool(true)))
}

fn all<T: std::str::FromStr + Ord>(spec: &Node, field: &str) -> BTreeSet<T> {
    match spec.get(field).map(|node| &node.content) {
        Some(Content::List(items)) => {
            items.iter().filter_map(|item| item.text().and_then(|t| t.parse().ok())).collect()
        }
        _ => BTreeSet::new(),
    }
}

fn not_a_workload(node: &Node) -> Option<Problem> {
    let field = |name: &str| node.get(name).and_then(|n| n.text().map(|text| (n, text)));
    let problem = |at: &Node, path: &str, message, fix| {
        Some(Problem { code: "E4003", place: at.place, path: path.to_owned(), message, fix })
    };
    let shown = |text: &str| text.chars().take(80).collect::<String>();
    if let Some((at, kind)) = field("kind").filter(|(_, kind)| *kind != WORKLOAD_KIND) {
        let fix = match PolicyKind::ALL.into_iter().any(|known| known.as_str() == kind) {
            true => "apply it with hanse policy apply".to_owned(),
            false => format!("write kind: {WORKLOAD_KIND}"),
        };
        return problem(at, "kind", format!("kind {:?} is no {WORKLOAD_KIND}", shown(kind)), fix);
    }
    match field("apiVersion").filter(|(_, version)| *version != HANSE_API_VERSION) {
        Some((at, version)) => {
            let message = format!("{WORKLOAD_KIND} has no version {:?} here", shown(version));
            problem(at, "apiVersion", message, format!("write apiVersion: {HANSE_API_VERSION}"))
        }
        None => None,
    }
}

fn repeated(
    seen: &mut BTreeMap<(SpiffeId, AgentScope), usize>,
    registration: &Registration,
    place: Place,
) -> Option<Problem> {
    let key = (registration.id.clone(), registration.agent.clone());
    let message = format!("{} on agent {} is in this file twice", key.0, key.1);
    let first = seen.insert(key, place.line)?;
    let fix = format!("the first is at line {first}; delete one of them");
    Some(Problem { code: "E4005", place, path: "spec.id".to_owned(), message, fix })
}

/// A registration as its author would write it.
pub fn written(registration: &Registration) -> Value {
    let r = registration;
    let mut spec = json!({ "id": r.id, "agents": [r.agent], "selectors": r.selectors });
    let mut add = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            spec[name] = value;
        }
    };
    add("services", (!r.services.is_empty()).then(|| json!(r.services)));
    let ttl = || PolicyDuration::new(Duration::from_secs(r.ttl_seconds)).to_string();
    add("ttl", (r.ttl_seconds != 0).then(|| json!(ttl())));
    add("address", r.address.map(|address| json!(address)));
    add("federatesWith", (!r.federates_with.is_empty()).then(|| json!(r.federates_with)));
    add("hint", (!r.hint.is_empty()).then(|| json!(r.hint)));
    add("expires", r.expires.map(|at| json!(at.to_string())));
    add("admin", r.admin.then_some(json!(true)));
    add("downstream", r.downstream.then_some(json!(true)));
    json!({ "apiVersion": HANSE_API_VERSION, "kind": WORKLOAD_KIND, "spec": spec })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_800_000_000_000);

    const FULL: &str = "apiVersion: hanse.dev/v1alpha1
kind: Workload
metadata:
  name: ratings
spec:
  id: spiffe://east.example/ns/shop/sa/ratings
  agents: [host-1, host-2]
  selectors:
    - unix:uid:1000
    - systemd:unit:ratings.service
  services: [shop/ratings]
  ttl: 10m
  address: 10.0.1.7:8443
  federatesWith: [north.example]
  hint: internal
  expires: 2027-06-30T12:00:00.250Z
  admin: true
  downstream: true
---
apiVersion: hanse.dev/v1alpha1
kind: Workload
spec:
  id: spiffe://east.example/ns/ops/sa/backup
  agents: ['*']
  selectors: [unix:user:backup]
";

    fn wrong(text: &str) -> Vec<Diagnostic> {
        parse_workloads("w.yaml", text, NOW).unwrap_err()
    }

    #[test]
    fn what_is_written_is_read_again_and_every_field_of_a_registration_is_there() {
        let read = parse_workloads("w.yaml", FULL, NOW).unwrap();
        let agents: Vec<String> = read.iter().map(|r| r.agent.to_string()).collect();
        assert_eq!(agents, ["host-1", "host-2", "*"]);
        let full = &read[0];
        assert!(full.admin && !read[2].admin);
        assert!(full.downstream && !read[2].downstream);
        assert_eq!((full.ttl_seconds, full.hint.as_str(), full.selectors.len()), (600, "internal", 2));
        assert_eq!(full.address, Some("10.0.1.7:8443".parse().unwrap()));
        assert_eq!((full.services.len(), full.federates_with.len()), (1, 1));
        assert_eq!(full.expires.unwrap().to_string(), "2027-06-30T12:00:00.250Z");
        for registration in &read {
            let again = written(registration).to_string();
            assert_eq!(
                parse_workloads("w.json", &again, NOW).unwrap(),
                std::slice::from_ref(registration),
                "{again}"
            );
        }
        // Nothing of a registration is left out: a new field has to come here too.
        let members = serde_json::to_value(full).unwrap().as_object().unwrap().len();
        assert_eq!(members, 11);
    }

    #[test]
    fn parents_are_agents_by_their_spiffe_ids() {
        let parents = "parents: ['spiffe://east.example/hanse/agent/host-2', 'spiffe://east.example/hanse/agent/host-1']";
        let same = FULL.replacen("agents: [host-1, host-2]", parents, 1);
        assert_eq!(
            parse_workloads("w.yaml", &same, NOW).unwrap(),
            parse_workloads("w.yaml", FULL, NOW).unwrap()
        );
        let both = FULL.replacen(
            "[host-1, host-2]",
            "[host-3]\n  parents: ['spiffe://east.example/hanse/agent/host-2']",
            1,
        );
        let agents: Vec<_> =
            parse_workloads("w.yaml", &both, NOW).unwrap().iter().map(|r| r.agent.to_string()).collect();
        assert_eq!(agents, ["host-2", "host-3", "*"]);
    }

    #[test]
    fn a_list_of_the_command_line_is_read_again() {
        let read = parse_workloads("w.yaml", FULL, NOW).unwrap();
        // What the cluster says of a registration, and this version does not know, is no mistake.
        let item = |r: &Registration| json!({ "id": r.id, "news": 1, "spec": written(r)["spec"] });
        let items: Vec<Value> = read.iter().map(item).collect();
        let mut list = json!({ "apiVersion": LIST_API_VERSION, "kind": LIST_KIND, "meta": {}, "items": items, "warnings": [] });
        assert_eq!(parse_workloads("l.json", &list.to_string(), NOW).unwrap(), read);
        list["items"][1]["spec"]["service"] = json!([]);
        list["items"][2].as_object_mut().unwrap().remove("spec");
        let found = wrong(&serde_json::to_string_pretty(&list).unwrap());
        let codes: Vec<_> = found.iter().map(|d| (d.code.as_str(), d.path.as_str())).collect();
        assert_eq!(codes, [("E4001", "items[1].spec.service"), ("E4004", "items[2].spec")], "{found:?}");
        list["kind"] = json!("ServiceList");
        assert_eq!(wrong(&list.to_string())[0].code, "E4003");
    }

    #[test]
    fn what_is_wrong_has_its_line_and_a_suggestion() {
        for (from, to, line, code, said) in [
            ("services:", "service:", 11, "E4001", "did you mean services?"),
            ("  agents: [host-1, host-2]\n", "", 6, "E4004", "add agents"),
            ("kind: Workload\nmeta", "kind: HTTPRoute\nmeta", 2, "E4003", "hanse policy apply"),
            ("v1alpha1\nkind: Workload\nmeta", "v2\nkind: Workload\nmeta", 1, "E4003", "hanse.dev/v1alpha1"),
            ("unix:uid:1000", "unix:usr:ann", 9, "E4005", "unix:user:NAME"),
            ("spiffe://east.example/ns/shop", "spiffe://EAST/ns/shop", 6, "E4005", "EAST"),
            ("ttl: 10m", "ttl: 600", 12, "E4002", "600s"),
            ("ttl: 10m", "ttl: 48h", 6, "E4005", "10 s to 24 h"),
            ("10.0.1.7:8443", "ratings:8443", 13, "E4005", "IP:PORT"),
            ("2027-06-30T12", "2027-06-31T12", 16, "E4005", "2027-01-31T12:00:00Z"),
            ("[host-1, host-2]", "[Host_1]", 7, "E4005", "Host_1"),
            ("admin: true", "admin: perhaps", 17, "E4002", "true or false"),
            ("downstream: true", "downstream: 1", 18, "E4002", "true or false"),
            ("agents: [host-1, host-2]", "parents: [host-1]", 7, "E4005", "host-1"),
            (
                "agents: [host-1, host-2]",
                "parents: ['spiffe://east.example/ns/a/sa/b']",
                7,
                "E4005",
                "no agent",
            ),
            ("agents: [host-1, host-2]", "parents: ['spiffe://w/hanse/agent/a']", 7, "E4005", "trust domain"),
            ("federatesWith: [north", "federatesWith: [east", 6, "E4005", "own trust domain"),
        ] {
            assert!(FULL.contains(from), "{from}");
            let found = wrong(&FULL.replacen(from, to, 1));
            let [found] = found.as_slice() else { panic!("{to}: {found:?}") };
            assert_eq!((found.line, found.code.as_str()), (line, code), "{to}: {found:?}");
            assert!(format!("{} {}", found.message, found.fix).contains(said), "{to}: {found:?}");
        }
        let twice = wrong(&format!("{FULL}---\n{FULL}"));
        assert_eq!(twice.len(), 3, "{twice:?}");
        assert!(twice.iter().all(|d| d.message.contains("twice")));
    }

    #[test]
    fn times_are_read_as_they_are_shown() {
        for at in [0, 951_782_400_000, 1_787_392_991_204, 4_102_444_799_999] {
            assert_eq!(instant(&Timestamp(at).to_string()), Some(Timestamp(at)));
        }
        assert_eq!(instant("2000-02-29T00:00:00Z"), Some(Timestamp(951_782_400_000)));
        for text in
            ["", "2027-02-29T00:00:00Z", "2027-1-1T00:00:00Z", "2027-01-01T24:00:00Z", "2027-01-01T00:00:00"]
        {
            assert_eq!(instant(text), None, "{text}");
        }
    }
}
