//! `hanse stat`, `hanse edges` and `hanse top`: what proxies counted in the last minute, without any other system.

use std::io::IsTerminal as _;
use std::time::Duration;

use hanse_control::admin::{TrafficReply, TrafficRequest};
use hanse_federation::traffic::{Edge, Seen, ServiceTraffic};
use serde::Serialize;

use super::{Outcome, qualified};
use crate::cli::{EdgesCommand, Global, StatCommand, TopCommand, TopSort};
use crate::context::Connection;
use crate::errors::{Exit, Failure};
use crate::output::{self, Listing};

/// Least time between two screens.
const FASTEST: Duration = Duration::from_millis(200);
const CLEAR: &str = "\x1b[2J\x1b[H";
const SERVICES: [&str; 7] = ["SERVICE", "CLUSTER", "RPS", "SUCCESS", "P50", "P95", "P99"];
const NOTHING: &str = "nothing was counted in the last minute";

/// One service, as it is printed.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ServiceItem {
    service: String,
    /// The cluster that served; empty: the mesh answered itself.
    cluster: String,
    requests_per_second: f64,
    failures_per_second: f64,
    success: Option<f64>,
    /// Upper bounds of the buckets; absent: above all of them.
    p50_millis: Option<f64>,
    p95_millis: Option<f64>,
    p99_millis: Option<f64>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EdgeItem<'e> {
    service: &'e str,
    source: &'e str,
    source_cluster: &'e str,
    destination: &'e str,
    destination_cluster: &'e str,
    requests_per_second: f64,
    success: Option<f64>,
    /// Mutual TLS 1.3 was spoken, and the identity at the other end is known by it.
    secured: bool,
    seen: Seen,
}

pub async fn stat(global: &Global, command: &StatCommand) -> Outcome {
    let wanted = wanted(global, command.service.as_deref())?;
    let traffic = Connection::open(global)?.call(&TrafficRequest {}).await?;
    let seen = if command.by_target { Seen::ByTarget } else { Seen::ByCaller };
    let items = services(&traffic, seen, wanted.as_deref(), TopSort::Rps);
    let listing = Listing::of("Stat", &traffic.meta, &items, &SERVICES, service_row);
    finish(global, listing, &traffic, items.is_empty())
}

pub async fn edges(global: &Global, command: &EdgesCommand) -> Outcome {
    let wanted = wanted(global, command.service.as_deref())?;
    let traffic = Connection::open(global)?.call(&TrafficRequest {}).await?;
    let items = edge_items(&traffic, wanted.as_deref());
    let listing = edge_listing(&traffic, &items);
    finish(global, listing, &traffic, items.is_empty())
}

pub async fn top(global: &Global, command: &TopCommand) -> Outcome {
    let watched = !command.once && !global.output.is_json() && std::io::stdout().is_terminal();
    let connection = Connection::open(global)?;
    loop {
        let traffic = connection.call(&TrafficRequest {}).await?;
        let items = services(&traffic, Seen::ByCaller, None, command.sort);
        let listing = Listing::of("Top", &traffic.meta, &items, &SERVICES, service_row);
        if !watched {
            let edges = edge_items(&traffic, None);
            return finish(global, listing.more("edges", &edges), &traffic, items.is_empty());
        }
        output::data(CLEAR);
        finish(global, listing, &traffic, items.is_empty())?;
        tokio::time::sleep(command.every.max(FASTEST)).await;
    }
}

fn wanted(global: &Global, service: Option<&str>) -> Result<Option<String>, Failure> {
    service.map(|name| qualified(global, name).map(|name| name.to_string())).transpose()
}

fn finish(global: &Global, listing: Listing, traffic: &TrafficReply, nothing: bool) -> Outcome {
    let note = match (nothing, traffic.reporting) {
        (true, _) => NOTHING.to_owned(),
        (false, 1) => "of the last minute, by 1 proxy".to_owned(),
        (false, proxies) => format!("of the last minute, by {proxies} proxies"),
    };
    listing.warnings(&traffic.warnings).more("reporting", &traffic.reporting).note(note).print(global.output);
    Ok(if traffic.meta.partial { Exit::Partial } else { Exit::Done })
}

fn services(traffic: &TrafficReply, seen: Seen, wanted: Option<&str>, sort: TopSort) -> Vec<ServiceItem> {
    let rows = traffic.report.services(seen).into_iter();
    let mut rows: Vec<_> = rows.filter(|row| wanted.is_none_or(|wanted| row.service == wanted)).collect();
    // What is slower than all buckets has no number, and is the slowest.
    let by = |row: &ServiceTraffic| match sort {
        TopSort::Rps => row.counts.requests,
        TopSort::Failures => row.counts.failures,
        TopSort::P99 => row.within(0.99).unwrap_or(f64::INFINITY),
    };
    rows.sort_by(|a, b| by(b).total_cmp(&by(a)));
    let item = |row: ServiceTraffic| ServiceItem {
        p50_millis: row.within(0.5),
        p95_millis: row.within(0.95),
        p99_millis: row.within(0.99),
        requests_per_second: row.counts.requests,
        failures_per_second: row.counts.failures,
        success: row.counts.success(),
        service: row.service,
        cluster: row.cluster,
    };
    rows.into_iter().map(item).collect()
}

fn service_row(item: &ServiceItem) -> [String; 7] {
    let within =
        |millis: Option<f64>| millis.map_or_else(|| ">30s".to_owned(), |millis| format!("<{millis}ms"));
    [
        item.service.clone(),
        item.cluster.clone(),
        format!("{:.1}", item.requests_per_second),
        success(item.success),
        within(item.p50_millis),
        within(item.p95_millis),
        within(item.p99_millis),
    ]
}

fn success(share: Option<f64>) -> String {
    share.map(|share| format!("{:.2}%", share * 100.0)).unwrap_or_default()
}

fn edge_items<'t>(traffic: &'t TrafficReply, wanted: Option<&str>) -> Vec<EdgeItem<'t>> {
    let edges = traffic.report.graph().into_iter();
    let item = |Edge { key, counts }: &'t Edge| EdgeItem {
        service: &key.service,
        source: &key.source,
        source_cluster: &key.source_cluster,
        destination: &key.destination,
        destination_cluster: &key.destination_cluster,
        requests_per_second: counts.requests,
        success: counts.success(),
        secured: !key.destination.is_empty() && !key.source.is_empty(),
        seen: key.seen,
    };
    edges.filter(|edge| wanted.is_none_or(|wanted| edge.key.service == wanted)).map(item).collect()
}

fn edge_listing(traffic: &TrafficReply, items: &[EdgeItem<'_>]) -> Listing {
    let titles = [
        "SOURCE",
        "DESTINATION",
        "SERVICE",
        "RPS",
        "SUCCESS",
        "SECURED",
        "+SOURCE ID",
        "+DESTINATION ID",
        "+SEEN BY",
    ];
    Listing::of("Edges", &traffic.meta, items, &titles, |item| {
        [
            end(item.source_cluster, item.source),
            end(item.destination_cluster, item.destination),
            item.service.to_owned(),
            format!("{:.1}", item.requests_per_second),
            success(item.success),
            if item.secured { "mTLS 1.3".to_owned() } else { String::new() },
            item.source.to_owned(),
            item.destination.to_owned(),
            if item.seen == Seen::ByCaller { "caller".to_owned() } else { "target".to_owned() },
        ]
    })
}

/// `west/productpage`.
pub(super) fn end(cluster: &str, identity: &str) -> String {
    let name = identity.rsplit('/').next().unwrap_or_default();
    if name.is_empty() { cluster.to_owned() } else { format!("{cluster}/{name}") }
}
