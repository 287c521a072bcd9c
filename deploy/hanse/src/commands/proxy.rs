//! `hanse proxy config`: what one proxy of this host has in force.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde_json::{Value, json};

use super::Outcome;
use crate::cli::{ConfigPart, Global};
use crate::client::Client;
use crate::errors::{Exit, Failure};
use crate::output::{self, Table};

/// `hanse proxy config`.
pub async fn config(global: &Global, admin: SocketAddr, part: ConfigPart) -> Outcome {
    let client = Client::default();
    let summary = page(&client, global, admin, "/config_dump").await?;
    let wanted = |which| part == ConfigPart::All || part == which;
    let mut text = format!(
        "{} in {} at #{}, {} {}\n",
        text_of(&summary["name"]),
        text_of(&summary["cluster"]),
        summary["revision"],
        if summary["connected"] == true { "following" } else { "last heard of" },
        text_of(&summary["controlNode"]),
    );
    let mut body = json!({ "proxy": summary });
    if wanted(ConfigPart::Listeners) {
        let found = page(&client, global, admin, "/listeners").await?;
        section(&mut text, "listeners", &listeners(&found));
        body["listeners"] = found;
    }
    if wanted(ConfigPart::Policy) {
        let mut table = Table::new(&["POLICY"]);
        items(&summary["policies"]).for_each(|policy| table.row([text_of(policy)]));
        section(&mut text, "policy", &table);
    }
    if wanted(ConfigPart::Endpoints) {
        let found = page(&client, global, admin, "/clusters").await?;
        section(&mut text, "endpoints", &endpoints(&found));
        body["endpoints"] = found;
    }
    if wanted(ConfigPart::Secrets) {
        let found = page(&client, global, admin, "/certs").await?;
        let mut table = Table::new(&["SPIFFE ID", "SERIAL", "NOT AFTER", "REVOKED BY"]);
        table.row(["spiffeId", "serial", "notAfter", "revokedBy"].map(|field| text_of(&found[field])));
        section(&mut text, "secrets", &table);
        body["secrets"] = found;
    }
    output::print(global.output, "ProxyConfig", &body, &text);
    Ok(Exit::Done)
}

async fn page(client: &Client, global: &Global, admin: SocketAddr, path: &str) -> Result<Value, Failure> {
    let what = || Failure::new(Exit::Unreachable, "E5402", format!("no proxy answers at {admin}"));
    let fix = "the address is the proxy's --admin, which is served on its own host only";
    let answer = client.get(admin, "localhost", path, global.timeout).await;
    let answer = answer.map_err(|why| what().why(why.to_string()).fix(fix))?;
    let page = answer.json().filter(|_| answer.status.is_success());
    page.ok_or_else(|| what().why(format!("{path} was answered with {}", answer.status)).fix(fix))
}

fn section(text: &mut String, title: &str, table: &Table) {
    text.push_str(&format!("\n{title}\n{}", table.render(false)));
}

fn listeners(found: &Value) -> Table {
    let mut table = Table::new(&["LISTENER", "ADDRESS", "FOR"]);
    for listener in items(&found["listeners"]) {
        table.row(["kind", "address", "for"].map(|field| text_of(&listener[field])));
    }
    for port in items(&found["tcpPorts"]) {
        table.row(["tcp-port".to_owned(), port["port"].to_string(), text_of(&port["app"])]);
    }
    if found["app"].is_string() {
        table.row(["app".to_owned(), text_of(&found["app"]), String::new()]);
    }
    table
}

/// Each worker has a view of its own of who is well: a target is as well as most of them say.
fn endpoints(found: &Value) -> Table {
    let mut rows: BTreeMap<[String; 5], (usize, usize)> = BTreeMap::new();
    for service in items(&found["workers"]).flat_map(|worker| items(&worker["services"])) {
        for (tier, described) in items(&service["tiers"]).enumerate() {
            for candidate in items(&described["candidates"]) {
                let row = [
                    text_of(&service["service"]),
                    format!("{tier} {}", text_of(&described["tier"])),
                    text_of(&described["cluster"]),
                    text_of(&candidate["target"]),
                    format!("{}/{}", candidate["readyWeight"], candidate["weight"]),
                ];
                let (well, asked) = rows.entry(row).or_default();
                *well += usize::from(candidate["healthy"] == true);
                *asked += 1;
            }
        }
    }
    let mut table = Table::new(&["SERVICE", "TIER", "CLUSTER", "TARGET", "READY WEIGHT", "HEALTHY"]);
    for ([service, tier, cluster, target, weight], (well, asked)) in rows {
        table.row([service, tier, cluster, target, weight, format!("{well}/{asked} workers")]);
    }
    table
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn text_of(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_shown_once_with_what_each_worker_says() {
        let worker = |healthy: bool| {
            let candidate = json!({ "target": "endpoint/reviews-1", "weight": 100, "readyWeight": 100, "healthy": healthy });
            json!({ "services": [{ "service": "shop/reviews", "tiers": [
                { "tier": "zone", "cluster": "east", "candidates": [candidate] },
            ]}]})
        };
        let found = json!({ "workers": [worker(true), worker(false), null] });
        let table = endpoints(&found).render(false);
        let line = table.lines().nth(1).unwrap();
        let cells: Vec<&str> = line.split("  ").filter(|cell| !cell.is_empty()).map(str::trim).collect();
        assert_eq!(cells, ["shop/reviews", "0 zone", "east", "endpoint/reviews-1", "100/100", "1/2 workers"]);
        assert_eq!(table.lines().count(), 2);
    }
}
