//! `hanse cluster`: tokens, joining, listing, checking, leaving.

use futures_util::StreamExt;
use hanse_control::admin::{
    ClusterCheckRequest, ClusterJoinRequest, ClusterLeaveRequest, ClusterListRequest, ClusterState,
    ClusterTokenCreateRequest, JoinEvent,
};
use hanse_federation::join::Check;
use serde::Serialize;

use super::{Outcome, talk};
use crate::cli::{ClusterCommand, ClusterTokenCommand, Global};
use crate::context::{Connection, failure};
use crate::errors::{Exit, Failure};
use crate::output::{self, Listing};

pub async fn run(global: &Global, command: &ClusterCommand) -> Outcome {
    match command {
        ClusterCommand::Token(ClusterTokenCommand::Create { for_cluster, ttl }) => {
            let request =
                ClusterTokenCreateRequest { cluster: for_cluster.clone(), ttl_seconds: ttl.as_secs() };
            let reply = Connection::open(global)?.call(&request).await?;
            output::print(global.output, "JoinToken", &reply, &format!("{}\n", reply.token));
            talk(
                global,
                &format!(
                    "token  for {for_cluster}, single use, {} left, made by {}\nnext   on {for_cluster}: hanse cluster join --token-file FILE",
                    output::left(reply.expires),
                    reply.made_by
                ),
            );
            Ok(Exit::Done)
        }
        ClusterCommand::Join { token_file, dry_run } => {
            let token = super::read(token_file)?;
            print_join(global, token.trim(), *dry_run).await
        }
        ClusterCommand::List => list(global).await,
        ClusterCommand::Check { name } => check(global, name.clone()).await,
        ClusterCommand::Leave { name } => leave(global, ClusterLeaveRequest { cluster: name.clone() }).await,
    }
}

/// How a join went.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct JoinOutcome {
    pub joined: bool,
    pub cluster: Option<String>,
    pub synced: bool,
    pub took_ms: u64,
    pub checks: Vec<Check>,
    /// The first line that failed.
    pub failed: Option<String>,
}

/// Joins the cluster that made the token; `line` sees every check as it comes.
pub async fn join(
    connection: &Connection,
    token: &str,
    dry_run: bool,
    line: impl Fn(&Check),
) -> Result<JoinOutcome, Failure> {
    let request = ClusterJoinRequest { token: token.to_owned(), dry_run };
    let events =
        connection.client().await?.join(&request).await.map_err(|e| failure(&connection.name, &e))?;
    let mut events = std::pin::pin!(events);
    let mut outcome = JoinOutcome::default();
    while let Some(event) = events.next().await {
        match event.map_err(|e| failure(&connection.name, &e))? {
            JoinEvent::Line(check) => {
                line(&check);
                if !check.ok && outcome.failed.is_none() {
                    outcome.failed = Some(format!("{}: {}", check.name, check.detail));
                }
                outcome.checks.push(check);
            }
            JoinEvent::Done { joined, cluster, synced, took_ms, .. } => {
                outcome.joined = joined;
                outcome.cluster = cluster.map(|c| c.to_string());
                outcome.synced = synced;
                outcome.took_ms = took_ms;
            }
        }
    }
    Ok(outcome)
}

fn mark(ok: bool) -> &'static str {
    if ok { "✓" } else { "✗" }
}

async fn print_join(global: &Global, token: &str, dry_run: bool) -> Outcome {
    let connection = Connection::open(global)?;
    let table = !global.output.is_json();
    let outcome = join(&connection, token, dry_run, |check| {
        if table {
            output::data(&format!("  {} {:<14} {}\n", mark(check.ok), check.name, check.detail));
        }
    });
    let outcome = tokio::time::timeout(global.timeout, outcome).await.map_err(|_| {
        Failure::new(Exit::TimedOut, "E2008", format!("the join did not end within {:?}", global.timeout))
            .fix("hanse cluster list says how far it came; the same token may be tried again")
    })??;
    let other = outcome.cluster.clone().unwrap_or_else(|| "the other cluster".to_owned());
    let took = output::duration(outcome.took_ms);
    let text = match (outcome.joined, dry_run, &outcome.failed) {
        (true, _, _) => {
            format!("joined in {took}. Undo: hanse cluster leave {other}\nnext: hanse cluster list\n")
        }
        (false, true, None) => format!("would join {other}; nothing was changed\n"),
        _ => format!("not joined: both sides are as before ({took})\n"),
    };
    output::print(global.output, "ClusterJoin", &outcome, &text);
    let good = outcome.joined || (dry_run && outcome.failed.is_none());
    Ok(if good { Exit::Done } else { Exit::No })
}

async fn list(global: &Global) -> Outcome {
    let clusters = Connection::open(global)?.call(&ClusterListRequest {}).await?;
    let titles = [
        "CLUSTER",
        "STATE",
        "TRUST DOMAIN",
        "ROOTS",
        "IN/OUT",
        "GATEWAYS",
        "RTT",
        "SYNC AGE",
        "SINCE",
        "+BUNDLE SEQ",
        "+REFUSED",
        "+ENDPOINTS",
        "+ERROR",
    ];
    Listing::of("ClusterList", &clusters.meta, &clusters.items, &titles, |item| {
        let is_self = item.state == ClusterState::This;
        let state = match item.state {
            ClusterState::This => "self",
            ClusterState::Joining => "joining",
            ClusterState::Connected => "connected",
            ClusterState::Degraded => "degraded",
        };
        [
            item.cluster.to_string(),
            state.to_owned(),
            item.trust_domain.to_string(),
            item.roots.to_string(),
            if is_self { String::new() } else { format!("{}/{}", item.imports, item.exports) },
            format!("{}/{}", item.gateways_ready, item.gateways),
            item.rtt_ms.map(|r| format!("{r:.1}ms")).unwrap_or_default(),
            item.sync_age_ms.map(output::duration).unwrap_or_default(),
            item.since.map(output::age).unwrap_or_default(),
            item.bundle_sequence.to_string(),
            item.refused_imports.to_string(),
            item.endpoints.join(","),
            item.error.clone().unwrap_or_default(),
        ]
    })
    .warnings(&clusters.warnings)
    .print(global.output);
    Ok(if clusters.meta.partial { Exit::Partial } else { Exit::Done })
}

async fn check(global: &Global, cluster: Option<hanse_identity::ClusterName>) -> Outcome {
    let reply = Connection::open(global)?.call(&ClusterCheckRequest { cluster }).await?;
    let mut listing = Listing::of("ClusterCheck", &reply.meta, &reply.items, &["CLUSTER"], |item| {
        [item.cluster.to_string()]
    })
    .warnings(&reply.warnings)
    .more("ok", &reply.ok);
    if matches!(global.output, output::Format::Table | output::Format::Wide) {
        let mut table = output::Table::new(&["CLUSTER", "CHECK", "", "DETAIL"]);
        for item in &reply.items {
            for check in &item.checks {
                let cluster = item.cluster.as_str();
                table.row([cluster, check.name.as_str(), mark(check.ok), check.detail.as_str()]);
            }
        }
        listing.table = table;
    }
    listing.print(global.output);
    Ok(if reply.ok { Exit::Done } else { Exit::No })
}

async fn leave(global: &Global, request: ClusterLeaveRequest) -> Outcome {
    let connection = Connection::open(global)?;
    let other = request.cluster.as_str().to_owned();
    let clusters = connection.call(&ClusterListRequest {}).await?;
    if let Some(peer) = clusters.items.iter().find(|c| c.cluster == request.cluster) {
        talk(
            global,
            &format!(
                "  this affects   {} services imported from {other}, {} exported to it: requests go there no longer",
                peer.imports, peer.exports
            ),
        );
    }
    super::confirm(global, &other)?;
    let reply = connection.call(&request).await?;
    let told = if reply.other_side_told {
        format!("{other} was told and has forgotten us too")
    } else {
        format!(
            "{other} could not be told ({}); it finds out when its link is refused",
            reply.error.as_deref().unwrap_or("no reason given")
        )
    };
    output::print(
        global.output,
        "ClusterLeave",
        &reply,
        &format!("left {other} at #{}; {told}\n", reply.revision),
    );
    Ok(if reply.other_side_told { Exit::Done } else { Exit::Partial })
}
