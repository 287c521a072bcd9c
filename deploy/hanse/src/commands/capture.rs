//! `hanse proxy capture`: sets the table and the routes of the network namespace that it runs in, and takes them away.
//!
//! `nft` sets the table in one transaction; what else has to be done for it is undone where something fails. What was set,
//! as nft prints it, is kept in a file, so that `show` can tell whether it still is.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Outcome, talk};
use crate::capture::{Dns, Inbound, Outbound, Plan, REMOVE, TABLE, bound, listeners, name_servers, routes};
use crate::cli::{CaptureCommand, CaptureUp, Global, OutboundScope};
use crate::errors::{Exit, Failure};
use crate::output;

/// What `up` set, for `show`.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    plan: Plan,
    /// As nft listed it.
    table: String,
}

/// Where records are, one for each network namespace.
const RECORDS: &str = "/run/hanse";

pub fn run(global: &Global, command: &CaptureCommand) -> Outcome {
    match command {
        CaptureCommand::Up(wanted) => up(global, wanted),
        CaptureCommand::Down => down(global),
        CaptureCommand::Show => show(global),
    }
}

fn up(global: &Global, wanted: &CaptureUp) -> Outcome {
    let plan = plan(wanted)?;
    plan.check().map_err(Failure::usage)?;
    let ruleset = plan.ruleset();
    if wanted.dry_run {
        output::print(global.output, "Capture", &json!({ "plan": plan, "ruleset": ruleset }), &ruleset);
        return Ok(Exit::Done);
    }
    spares_its_proxy(global, &plan)?;
    let before = listed()?;
    let mut added = Vec::new();
    let done = set(&plan, &ruleset, &mut added).and_then(|table| keep(&Record { plan: plan.clone(), table }));
    if let Err(failure) = done {
        undo(before.as_deref(), &added);
        return Err(failure.why("nothing was changed: what had been set before is set again"));
    }
    output::print(global.output, "Capture", &json!({ "state": "up", "plan": plan }), "up\n");
    for resolver in plan.dns.iter().flat_map(|dns| &dns.spared_uids) {
        talk(
            global,
            &format!("note   user {resolver} runs a name server here: its own questions are left alone"),
        );
    }
    Ok(Exit::Done)
}

fn down(global: &Global) -> Outcome {
    nft(&["-f", "-"], REMOVE)?;
    for (family, network, _) in routes() {
        if has_route(family, &network)? {
            ip(&[family, "route", "del", "local", &network, "dev", "lo"])?;
        }
    }
    let record = record_file()?;
    match fs::remove_file(&record) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(Failure::unreadable(&record, error));
        }
        _ => {}
    }
    output::print(global.output, "Capture", &json!({ "state": "down" }), "down\n");
    Ok(Exit::Done)
}

fn show(global: &Global) -> Outcome {
    let now = listed()?;
    let path = record_file()?;
    let record = fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Record>(&text).ok());
    let mut missing = Vec::new();
    for (family, network, _) in routes() {
        if !has_route(family, &network)? {
            missing.push(network);
        }
    }
    let wants_routes = record.as_ref().is_some_and(|record| record.plan.outbound.is_some());
    let (state, differs) = match (&now, &record) {
        (None, _) => ("down", None),
        (Some(_), None) => ("unknown", Some("nobody here knows by whom it was set".to_owned())),
        (Some(now), Some(record)) if *now != record.table => {
            ("changed", Some("somebody has changed the table since".to_owned()))
        }
        (Some(_), Some(_)) if wants_routes && missing.len() == routes().len() => {
            ("changed", Some(format!("there is no route for {}", missing.join(" and "))))
        }
        _ => ("up", None),
    };
    let plan = record.filter(|_| now.is_some()).map(|record| record.plan);
    let body = json!({ "state": state, "differs": differs, "plan": plan, "table": now });
    let mut text = format!("{state}{}\n", differs.as_ref().map(|why| format!(": {why}")).unwrap_or_default());
    text += now.as_deref().unwrap_or_default();
    output::print(global.output, "Capture", &body, &text);
    if differs.is_some() {
        talk(global, "fix    hanse proxy capture up, with the flags that are meant, sets it anew");
        return Ok(Exit::No);
    }
    Ok(Exit::Done)
}

/// What was typed, with users by number and what this host's own name servers ask left alone.
fn plan(wanted: &CaptureUp) -> Result<Plan, Failure> {
    let spared = [&wanted.uid].into_iter().chain(&wanted.exclude_uids).map(|user| uid(user));
    let outbound = wanted.capture_port.map(|port| Outbound {
        port: port.get(),
        all: wanted.outbound == OutboundScope::All,
        exclude_ports: wanted.exclude_ports.clone(),
        exclude_networks: wanted.exclude_networks.clone(),
    });
    let spared_uids = spared.collect::<Result<BTreeSet<u32>, Failure>>()?;
    let dns = wanted.dns_port.map(|port| {
        let servers = name_servers(&sockets("udp"));
        Dns { port: port.get(), spared_uids: servers.difference(&spared_uids).copied().collect() }
    });
    let inbound =
        wanted.inbound_port.map(|port| Inbound { port: port.get(), app_ports: wanted.app_ports.clone() });
    Ok(Plan { spared_uids, outbound, dns, inbound })
}

fn uid(user: &str) -> Result<u32, Failure> {
    if let Ok(number) = user.parse() {
        return Ok(number);
    }
    match nix::unistd::User::from_name(user) {
        Ok(Some(found)) => Ok(found.uid.as_raw()),
        _ => Err(Failure::usage(format!("there is no user {user:?}"))
            .why("the connections of the user that the proxy runs as are left alone, else they would come back to it")
            .fix("--uid USER, by name or number")),
    }
}

/// Where the proxy runs already, whether its user is spared.
fn spares_its_proxy(global: &Global, plan: &Plan) -> Result<(), Failure> {
    let captured = |port: u16, user: &u32, what: &str| {
        let message =
            format!("what listens on port {port} runs as user {user}, whose {what} would be captured");
        Failure::new(Exit::Precondition, "E5201", message)
            .why("its own would come back to it without end")
            .fix(format!("--uid {user}"))
    };
    if let Some(dns) = &plan.dns {
        let users = bound(&sockets("udp"), dns.port);
        let spared = |user: &&u32| plan.spared_uids.contains(user) || dns.spared_uids.contains(user);
        if let Some(user) = users.iter().find(|user| !spared(user)) {
            return Err(captured(dns.port, user, "questions"));
        }
    }
    let Some(outbound) = &plan.outbound else { return Ok(()) };
    let users = listeners(&sockets("tcp"), outbound.port);
    match users.iter().find(|user| !plan.spared_uids.contains(user)) {
        Some(user) => Err(captured(outbound.port, user, "connections")),
        None => {
            if users.is_empty() {
                let port = outbound.port;
                talk(
                    global,
                    &format!(
                        "note   nobody listens on port {port} yet: until the proxy does, connections fail"
                    ),
                );
            }
            Ok(())
        }
    }
}

/// The kernel's sockets of this network namespace, of IPv4 and IPv6.
fn sockets(transport: &str) -> String {
    let read = |file: String| fs::read_to_string(file).unwrap_or_default();
    read(format!("/proc/self/net/{transport}")) + &read(format!("/proc/self/net/{transport}6"))
}

/// Routes, then the table; the table as nft lists it. `added` has the routes that were not there.
fn set(plan: &Plan, ruleset: &str, added: &mut Vec<(&'static str, String)>) -> Result<String, Failure> {
    if plan.outbound.is_some() {
        for (family, network, from) in routes() {
            if family == "-6" && !has_ipv6() {
                continue;
            }
            if !has_route(family, &network)? {
                ip(&[family, "route", "add", "local", &network, "dev", "lo", "src", from])?;
                added.push((family, network));
            }
        }
    }
    nft(&["-f", "-"], ruleset)?;
    listed()?.ok_or_else(|| Failure::new(Exit::No, "E5202", "nft took the table, and does not list it"))
}

/// As it was. There is nobody to tell if this fails too.
fn undo(before: Option<&str>, added: &[(&'static str, String)]) {
    let _ = nft(&["-f", "-"], &format!("{REMOVE}{}", before.unwrap_or_default()));
    for (family, network) in added {
        let _ = ip(&[family, "route", "del", "local", network, "dev", "lo"]);
    }
}

fn keep(record: &Record) -> Result<(), Failure> {
    let path = record_file()?;
    let text = serde_json::to_vec(record).expect("a record has string keys");
    // A new file, renamed: a link that somebody has left there is replaced and not followed.
    let fresh = path.with_extension("new");
    let no_such_file = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    };
    let written = fs::create_dir_all(RECORDS)
        .and_then(|()| fs::remove_file(&fresh).or_else(no_such_file))
        .and_then(|()| fs::File::create_new(&fresh))
        .and_then(|mut file| file.write_all(&text))
        .and_then(|()| fs::rename(&fresh, &path));
    written.map_err(|error| {
        Failure::new(Exit::Precondition, "E5202", format!("cannot write {}: {error}", path.display()))
    })
}

fn record_file() -> Result<PathBuf, Failure> {
    let namespace = fs::metadata("/proc/self/ns/net")
        .map_err(|error| Failure::unreadable("/proc/self/ns/net".as_ref(), error))?;
    Ok(PathBuf::from(RECORDS).join(format!("capture-{}.json", namespace.ino())))
}

/// Our table as it is now.
fn listed() -> Result<Option<String>, Failure> {
    let family_and_name: Vec<&str> = TABLE.split(' ').collect();
    let tables = nft(&["list", "tables"], "")?;
    if !tables.lines().any(|line| line == format!("table {TABLE}")) {
        return Ok(None);
    }
    nft(&[&["list", "table"], family_and_name.as_slice()].concat(), "").map(Some)
}

fn has_ipv6() -> bool {
    let disabled = fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6");
    disabled.is_ok_and(|disabled| disabled.trim() == "0")
}

fn has_route(family: &str, network: &str) -> Result<bool, Failure> {
    if family == "-6" && !has_ipv6() {
        return Ok(false);
    }
    let said = ip(&[family, "route", "show", "table", "local", network, "dev", "lo"])?;
    Ok(said.lines().any(|line| line.contains(network)))
}

fn nft(arguments: &[&str], input: &str) -> Result<String, Failure> {
    tool("nft", "nftables", arguments, input)
}

fn ip(arguments: &[&str]) -> Result<String, Failure> {
    tool("ip", "iproute2", arguments, "")
}

/// Runs one of the system's own programs; what it printed.
fn tool(program: &str, package: &str, arguments: &[&str], input: &str) -> Result<String, Failure> {
    let failed =
        |why: String| Failure::new(Exit::Precondition, "E5202", format!("{program} failed")).what(why);
    let ran = || -> std::io::Result<Output> {
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes())?;
        }
        child.wait_with_output()
    };
    let output = ran().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            Failure::new(Exit::Precondition, "E5203", format!("{program} is not installed, or not in PATH"))
                .fix(format!("apt-get install {package}, or your system's like of it"))
        }
        _ => failed(error.to_string()),
    })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let failure = failed(format!("{program} {}: {said}", arguments.join(" ")));
    Err(match said.contains("not permitted") {
        true => failure
            .why("redirection needs CAP_NET_ADMIN in this network namespace")
            .fix("run it as root, or in an init container with that capability"),
        false => failure,
    })
}
