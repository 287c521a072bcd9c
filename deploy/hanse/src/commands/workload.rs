//! `hanse workload`: which executables get which identity.

use std::path::PathBuf;

use hanse_control::admin::{
    WorkloadApplyRequest, WorkloadDeleteRequest, WorkloadItem, WorkloadListRequest, WorkloadRegisterRequest,
};
use hanse_federation::policy::workload::{LIST_KIND, agent_of, parse_workloads, written};
use hanse_identity::name::MemberRole;
use hanse_identity::{NodeName, Registration, SpiffeId};
use serde::Serialize;

use super::Outcome;
use super::service::report;
use crate::cli::{Global, WorkloadCommand};
use crate::context::Connection;
use crate::errors::{Exit, Failure};
use crate::output::{self, Format, Listing};

pub async fn run(global: &Global, command: &WorkloadCommand) -> Outcome {
    match command {
        WorkloadCommand::Register { .. } => register(global, command).await,
        WorkloadCommand::Apply { files, dry_run } => apply(global, files, *dry_run).await,
        WorkloadCommand::Delete { id, agent } => {
            let request = WorkloadDeleteRequest { id: id.clone(), agent: agent.clone() };
            let written = Connection::open(global)?.call(&request).await?;
            report(global, &written, &format!("{id} no longer registered on {agent}"));
            Ok(Exit::Done)
        }
        WorkloadCommand::List { agent } => list(global, agent.as_ref()).await,
        WorkloadCommand::Show { id } => show(global, id).await,
    }
}

async fn register(global: &Global, command: &WorkloadCommand) -> Outcome {
    let mut registrations = registrations(command)?;
    let which = |r: &Registration| r.agent.to_string();
    let agents: Vec<String> = registrations.iter().map(which).collect();
    let id = registrations[0].id.clone();
    let connection = Connection::open(global)?;
    let written = match registrations.len() {
        1 => connection.call(&WorkloadRegisterRequest { registration: registrations.remove(0) }).await?,
        _ => connection.call(&WorkloadApplyRequest { registrations }).await?,
    };
    report(global, &written, &format!("{id} registered on {}", agents.join(", ")));
    Ok(Exit::Done)
}

/// What was typed, as registrations: one per agent, held against the rules that need no cluster.
fn registrations(command: &WorkloadCommand) -> Result<Vec<Registration>, Failure> {
    let WorkloadCommand::Register {
        id,
        agents,
        selectors,
        services,
        ttl,
        federates_with,
        hint,
        expires_in,
        address,
        parents,
        admin,
        downstream,
    } = command
    else {
        return Ok(Vec::new());
    };
    let now = crate::now();
    let mut agents = agents.clone();
    for parent in parents {
        let agent = agent_of(parent).map_err(Failure::usage)?;
        if parent.trust_domain() != id.trust_domain() {
            let why = format!("{parent} is not of the workload's trust domain {}", id.trust_domain());
            return Err(Failure::usage(why));
        }
        agents.push(agent.into());
    }
    agents.sort();
    agents.dedup();
    let registration = |agent: &hanse_identity::AgentScope| Registration {
        services: services.iter().cloned().collect(),
        // Under a second is not the cluster's default, it is too short.
        ttl_seconds: ttl.map(|t| t.as_secs().max(1)).unwrap_or_default(),
        address: *address,
        federates_with: federates_with.iter().cloned().collect(),
        hint: hint.clone(),
        expires: expires_in.map(|time| now + time),
        admin: *admin,
        downstream: *downstream,
        ..Registration::new(id.clone(), agent.clone(), selectors.iter().cloned())
    };
    let registrations: Vec<Registration> = agents.iter().map(registration).collect();
    registrations.iter().try_for_each(|r| r.check(now)).map_err(|e| Failure::usage(e.to_string()))?;
    Ok(registrations)
}

/// All files are one write: a mistake in any of them changes nothing.
async fn apply(global: &Global, files: &[PathBuf], dry_run: bool) -> Outcome {
    let (mut registrations, mut diagnostics) = (Vec::new(), Vec::new());
    for (file, text) in super::policy::texts(files)? {
        match parse_workloads(&file, &text, crate::now()) {
            Ok(found) => registrations.extend(found),
            Err(found) => diagnostics.extend(found),
        }
    }
    super::policy::print_diagnostics(global, &diagnostics);
    let refused = !diagnostics.is_empty();
    let mut effects = Vec::new();
    let mut meta = serde_json::json!({});
    if !refused {
        let connection = Connection::open(global)?;
        let known = connection.call(&WorkloadListRequest {}).await?;
        meta = serde_json::to_value(&known.meta).unwrap_or_default();
        for new in &registrations {
            let mut before = known.items.iter().filter(|item| item.id == new.id && item.agent == new.agent);
            let action = match before.next().map(registration_of) {
                None => "created",
                Some(before) if before == *new => "unchanged",
                Some(_) => "changed",
            };
            effects.push((format!("{} on {}", new.id, new.agent), action));
        }
        if !dry_run && !registrations.is_empty() {
            connection.call(&WorkloadApplyRequest { registrations }).await?;
        }
    }
    let items: Vec<_> = effects
        .iter()
        .map(|(name, action)| serde_json::json!({ "workload": name, "action": action }))
        .collect();
    let suffix = if dry_run { " (dry run)" } else { "" };
    Listing::of("WorkloadApply", &meta, &items, &["WORKLOAD", "ACTION"], |item| {
        let text = |field: &str| item[field].as_str().unwrap_or_default().to_owned();
        [text("workload"), format!("{}{suffix}", text("action"))]
    })
    .more("applied", &(!refused && !dry_run))
    .more("diagnostics", &diagnostics)
    .print(global.output);
    Ok(if refused { Exit::No } else { Exit::Done })
}

/// A registration as a program reads it: what the cluster says of it, and the `spec` that `workload apply` takes again.
#[derive(Serialize)]
struct Listed {
    #[serde(flatten)]
    item: WorkloadItem,
    spec: serde_json::Value,
}

impl From<WorkloadItem> for Listed {
    fn from(item: WorkloadItem) -> Self {
        let spec = written(&registration_of(&item))["spec"].take();
        Self { item, spec }
    }
}

/// What a cluster has, as what was applied.
fn registration_of(item: &WorkloadItem) -> Registration {
    Registration {
        services: item.services.clone(),
        ttl_seconds: item.ttl_seconds,
        address: item.address,
        federates_with: item.federates_with.clone(),
        hint: item.hint.clone(),
        expires: item.expires,
        admin: item.admin,
        downstream: item.downstream,
        ..Registration::new(item.id.clone(), item.agent.clone(), item.selectors.iter().cloned())
    }
}

async fn list(global: &Global, agent: Option<&NodeName>) -> Outcome {
    let mut workloads = Connection::open(global)?.call(&WorkloadListRequest {}).await?;
    workloads.items.retain(|item| agent.is_none_or(|agent| item.agent.covers(agent)));
    let titles = [
        "ID",
        "AGENT",
        "SERVICES",
        "STATE",
        "+SELECTORS",
        "+TTL",
        "+ADDRESS",
        "+FEDERATES-WITH",
        "+HINT",
        "+EXPIRES",
        "+ADMIN",
        "+DOWNSTREAM",
    ];
    let items: Vec<Listed> = workloads.items.into_iter().map(Listed::from).collect();
    Listing::of(LIST_KIND, &workloads.meta, &items, &titles, |Listed { item, .. }| {
        [
            item.id.to_string(),
            item.agent.to_string(),
            joined(&item.services),
            state(item),
            joined(&item.selectors),
            if item.ttl_seconds == 0 { String::new() } else { format!("{}s", item.ttl_seconds) },
            item.address.map(|a| a.to_string()).unwrap_or_default(),
            joined(&item.federates_with),
            item.hint.clone(),
            item.expires.map(|at| format!("in {}", output::left(at))).unwrap_or_default(),
            yes(item.admin),
            yes(item.downstream),
        ]
    })
    .warnings(&workloads.warnings)
    .print(global.output);
    Ok(Exit::Done)
}

async fn show(global: &Global, id: &SpiffeId) -> Outcome {
    let workloads = Connection::open(global)?.call(&WorkloadListRequest {}).await?;
    let entries: Vec<WorkloadItem> = workloads.items.into_iter().filter(|item| item.id == *id).collect();
    if entries.is_empty() {
        return Err(Failure::new(Exit::NotFound, "E2301", format!("there is no registration of {id}"))
            .fix("hanse workload list shows what there is"));
    }
    if global.output == Format::Yaml {
        // What `workload apply` takes.
        let documents = entries.iter().map(|entry| output::yaml(&written(&registration_of(entry))));
        output::data(&documents.collect::<Vec<_>>().join("---\n"));
        return Ok(Exit::Done);
    }
    if !matches!(global.output, Format::Table | Format::Wide) {
        let items: Vec<Listed> = entries.into_iter().map(Listed::from).collect();
        Listing::of(LIST_KIND, &workloads.meta, &items, &["ID"], |listed| [listed.item.id.to_string()])
            .warnings(&workloads.warnings)
            .print(global.output);
        return Ok(Exit::Done);
    }
    for entry in &entries {
        output::data(&described(entry));
    }
    Ok(Exit::Done)
}

/// One registration, a line for everything that it says.
fn described(entry: &WorkloadItem) -> String {
    let agent = match entry.agent.name() {
        Some(name) => {
            format!("{name} ({})", SpiffeId::member(entry.id.trust_domain(), MemberRole::Agent, name))
        }
        None => "* (every agent)".to_owned(),
    };
    let ttl = match entry.ttl_seconds {
        0 => "the cluster's default".to_owned(),
        seconds => format!("{seconds}s"),
    };
    let mut text = format!("{}\n  agent      {agent}\n  state      {}\n", entry.id, state(entry));
    for (n, selector) in entry.selectors.iter().enumerate() {
        let unknown =
            if selector.is_unknown() { "   not known to this version: matches nothing" } else { "" };
        let title = if n == 0 { "selectors" } else { "" };
        text.push_str(&format!("  {title:<9}  {selector}{unknown}\n"));
    }
    text.push_str(&format!("  ttl        {ttl}\n"));
    let more = [
        ("services", joined(&entry.services)),
        ("address", entry.address.map(|a| a.to_string()).unwrap_or_default()),
        ("federates", joined(&entry.federates_with)),
        ("hint", entry.hint.clone()),
        ("admin", if entry.admin { "yes, with the roles that hanse role list shows" } else { "" }.to_owned()),
        (
            "nested",
            if entry.downstream { "it may be an issuer: hanse trust downstream" } else { "" }.to_owned(),
        ),
        ("expires", entry.expires.map(|at| format!("{at} (in {})", output::left(at))).unwrap_or_default()),
    ];
    for (title, value) in more.into_iter().filter(|(_, value)| !value.is_empty()) {
        text.push_str(&format!("  {title:<9}  {value}\n"));
    }
    text
}

fn state(item: &WorkloadItem) -> String {
    item.revoked.as_ref().map_or("ok".to_owned(), |r| format!("revoked by {r}"))
}

fn yes(said: bool) -> String {
    if said { "yes" } else { "" }.to_owned()
}

fn joined<T: ToString>(texts: impl IntoIterator<Item = T>) -> String {
    texts.into_iter().map(|t| t.to_string()).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    fn typed(more: &[&str]) -> Result<Vec<Registration>, String> {
        let line = ["hanse", "workload", "register", "spiffe://east.example/ns/shop/sa/a"];
        let line = line.iter().chain(more);
        let cli = crate::cli::Cli::try_parse_from(line).map_err(|e| e.to_string())?;
        let crate::cli::Command::Workload(command) = cli.command else { panic!("not a workload command") };
        registrations(&command).map_err(|e| e.message)
    }

    #[test]
    fn what_is_shown_in_json_and_in_yaml_can_be_applied_again() {
        let now = crate::now();
        let registration = |agent: &str| Registration {
            services: ["shop/a".parse().unwrap()].into(),
            ttl_seconds: 600,
            address: Some("10.0.1.7:8443".parse().unwrap()),
            federates_with: ["north.example".parse().unwrap()].into(),
            hint: "internal".to_owned(),
            expires: Some(now + std::time::Duration::from_secs(3600)),
            admin: true,
            downstream: true,
            ..Registration::new(
                "spiffe://east.example/ns/shop/sa/a".parse().unwrap(),
                agent.parse::<hanse_identity::AgentScope>().unwrap(),
                ["unix:uid:1000".parse().unwrap()],
            )
        };
        let made: Vec<Registration> = ["host-1", "*"].map(registration).into();
        let item = |r: &Registration| WorkloadItem::of(r, Some("r-7@east.example".parse().unwrap()));
        let items: Vec<Listed> = made.iter().map(|r| item(r).into()).collect();
        let list = Listing::of(LIST_KIND, &serde_json::json!({}), &items, &["ID"], |_| [String::new()]);
        let json = serde_json::to_string_pretty(&list.envelope()).unwrap();
        assert_eq!(parse_workloads("-", &json, now).unwrap(), made, "{json}");
        assert_eq!(parse_workloads("-", &output::yaml(&list.envelope()), now).unwrap(), made);
        let documents: Vec<String> = made.iter().map(|r| output::yaml(&written(r))).collect();
        assert_eq!(parse_workloads("-", &documents.join("---\n"), now).unwrap(), made);
    }

    #[test]
    fn one_registration_per_agent_and_the_bounds_are_said_before_anything_is_asked() {
        let selector = ["--selector", "unix:user:ann"];
        let on = |agents: &[&'static str]| {
            let agents = agents.iter().flat_map(|a| ["--agent", a]);
            typed(&agents.chain(selector).collect::<Vec<_>>())
        };
        let two = on(&["host-1", "host-2"]).unwrap();
        assert_eq!(two.iter().map(|r| r.agent.to_string()).collect::<Vec<_>>(), ["host-1", "host-2"]);
        assert_eq!(on(&["*"]).unwrap()[0].agent, hanse_identity::AgentScope::Any);
        assert!(on(&[]).is_err());
        let parent = "spiffe://east.example/hanse/agent/host-1";
        let by_parent =
            typed(&[&["--parent", parent, "--agent", "host-1", "--agent", "host-2"], &selector[..]].concat());
        assert_eq!(by_parent.unwrap(), two);
        for wrong in ["spiffe://east.example/ns/shop/sa/a", "spiffe://west.example/hanse/agent/host-1"] {
            assert!(typed(&[&["--parent", wrong], &selector[..]].concat()).is_err(), "{wrong}");
        }
        let with = |more: &[&'static str]| {
            typed(&["--agent", "host-1"].iter().chain(&selector).chain(more).copied().collect::<Vec<_>>())
        };
        for ttl in ["0s", "9s", "25h"] {
            let why = with(&["--ttl", ttl]).unwrap_err();
            assert!(why.contains("10 s to 24 h"), "{why}");
        }
        let full =
            with(&["--ttl", "10s", "--hint", "h", "--federates-with", "x.example", "--expires-in", "1h"]);
        let full = full.unwrap().remove(0);
        assert_eq!((full.ttl_seconds, full.hint.as_str(), full.federates_with.len()), (10, "h", 1));
        assert!(full.expires.is_some());
        assert!(with(&["--federates-with", "east.example"]).unwrap_err().contains("own trust domain"));
        assert!(with(&["--selector", "unix:usr:ann"]).unwrap_err().contains("unix:user:NAME"));
    }
}
