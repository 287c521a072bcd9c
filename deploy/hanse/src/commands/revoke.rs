//! `hanse revoke`: what it would hit before, the receipt after, and the list.

use std::time::Duration;

use hanse_control::admin::{
    ReachState, Receipt, ReceiptPart, RevokeLiftRequest, RevokeListRequest, RevokePreview,
    RevokePreviewRequest, RevokeRequest, RevokeStatusRequest, Revoked, Tally,
};
use hanse_identity::{Reason, RevocationId, RevocationTarget};
use serde_json::json;
use tokio::time::Instant;

use super::{Outcome, talk};
use crate::cli::{Global, RevokeCommand, RevokeVerb, RevokeWhat};
use crate::context::Connection;
use crate::errors::{Exit, Failure};
use crate::output::{self, Listing};

/// Pace of asking how far a revocation is enforced.
const POLL: Duration = Duration::from_millis(50);

pub async fn run(global: &Global, command: &RevokeCommand) -> Outcome {
    match &command.verb {
        Some(RevokeVerb::List) => list(global).await,
        Some(RevokeVerb::Lift { id }) => {
            let id = revocation_id(id)?;
            let written = Connection::open(global)?.call(&RevokeLiftRequest { id: id.clone() }).await?;
            super::service::report(global, &written, &format!("{id} lifted"));
            Ok(Exit::Done)
        }
        Some(RevokeVerb::Status { id }) => {
            let id = revocation_id(id)?;
            let connection = Connection::open(global)?;
            let receipt = connection.call(&RevokeStatusRequest { id }).await?;
            let text: String = receipt.parts.iter().map(part_line).collect();
            output::print(global.output, "RevocationReceipt", &receipt, &text);
            Ok(verdict(&receipt))
        }
        None => revoke(global, &command.what).await,
    }
}

fn revocation_id(text: &str) -> Result<RevocationId, Failure> {
    text.parse().map_err(|rule| Failure::usage(format!("{text:?} {rule}")))
}

fn target(what: &RevokeWhat) -> Result<RevocationTarget, Failure> {
    match (&what.serial, &what.identity) {
        (Some(serial), None) => serial
            .parse()
            .map(RevocationTarget::Serial)
            .map_err(|rule| Failure::usage(format!("{serial:?} {rule}"))),
        (None, Some(identity)) => Ok(RevocationTarget::Identity(identity.clone())),
        _ => Err(Failure::usage("what is to be revoked?").fix("--identity SPIFFE-ID, or --serial HEX")),
    }
}

fn reason(what: &RevokeWhat) -> Result<Reason, Failure> {
    if what.hold {
        return Ok(Reason::Hold);
    }
    match what.reason.as_str() {
        "unspecified" => Ok(Reason::Unspecified),
        "key-compromise" => Ok(Reason::KeyCompromise),
        "superseded" => Ok(Reason::Superseded),
        "cessation" => Ok(Reason::Cessation),
        "hold" => Err(Failure::usage("a hold is asked for by --hold")),
        other => Err(Failure::usage(format!(
            "{other:?} is no reason; known: unspecified, key-compromise, superseded, cessation"
        ))),
    }
}

/// Commits a revocation; the code that the demo uses too.
pub async fn commit(connection: &Connection, request: &RevokeRequest) -> Result<Revoked, Failure> {
    connection.call(request).await
}

/// Asks until the receipt is complete or time is up; the last receipt either way.
pub async fn wait(
    connection: &Connection,
    id: &RevocationId,
    timeout: Duration,
) -> Result<(Receipt, Duration), Failure> {
    let started = Instant::now();
    loop {
        let receipt = connection.call(&RevokeStatusRequest { id: id.clone() }).await?;
        if receipt.complete || started.elapsed() >= timeout {
            return Ok((receipt, started.elapsed()));
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn revoke(global: &Global, what: &RevokeWhat) -> Outcome {
    let (target, reason) = (target(what)?, reason(what)?);
    let connection = Connection::open(global)?;
    let preview = connection.call(&RevokePreviewRequest::new(target.clone())).await?;
    talk(global, &blast_radius(&preview));
    if what.dry_run {
        output::print(global.output, "RevokePreview", &preview, "dry run: nothing was changed\n");
        return Ok(Exit::Done);
    }
    super::confirm(global, word(&target).as_str())?;
    let request = RevokeRequest { note: what.note.clone(), ..RevokeRequest::new(target, reason) };
    let revoked = commit(&connection, &request).await?;
    talk(global, &format!("  committed {} at {} #{}", revoked.id, connection.name, revoked.revision));
    if what.no_wait {
        output::print(global.output, "Revoked", &revoked, &format!("{}\n", revoked.id));
        return Ok(Exit::Done);
    }
    let (receipt, took) = wait(&connection, &revoked.id, global.timeout).await?;
    let undo = if reason == Reason::Hold {
        format!("undo: hanse revoke lift {}\n", revoked.id)
    } else {
        "undo: not possible; a hold (--hold) could be lifted\n".to_owned()
    };
    let parts: String = receipt.parts.iter().map(part_line).collect();
    let state = if receipt.complete { "complete" } else { "NOT complete" };
    let text = format!("{parts}  receipt  {state} after {:.1} s\n{undo}", took.as_secs_f64());
    let body = json!({
        "id": revoked.id, "revision": revoked.revision, "expires": revoked.expires,
        "tookMs": took.as_millis() as u64, "receipt": receipt,
    });
    output::print(global.output, "RevocationReceipt", &body, &text);
    Ok(verdict(&receipt))
}

/// 0 complete; 9 if somebody could not be asked; 8 if somebody is behind.
fn verdict(receipt: &Receipt) -> Exit {
    let cannot_ask = |p: &ReceiptPart| p.state == ReachState::Unreachable || !p.nodes_silent.is_empty();
    if receipt.complete {
        Exit::Done
    } else if receipt.parts.iter().any(cannot_ask) {
        Exit::Partial
    } else {
        Exit::TimedOut
    }
}

/// What a person types to confirm: the last part of the name.
fn word(target: &RevocationTarget) -> String {
    match target {
        RevocationTarget::Serial(serial) => serial.to_string(),
        RevocationTarget::Identity(id) => id.path().rsplit('/').next().unwrap_or_default().to_owned(),
        RevocationTarget::Key(key) => key.prefix(),
        RevocationTarget::Agent(name) | RevocationTarget::Node(name) => name.to_string(),
        RevocationTarget::Cluster(trust_domain) => trust_domain.to_string(),
    }
}

fn blast_radius(preview: &RevokePreview) -> String {
    let mut lines = vec![format!("  revoke         {}", preview.target)];
    if let Some(already) = &preview.already {
        lines.push(format!("  already        {already} hits it"));
    }
    lines.push(format!(
        "  this affects   {} proxies and gateways that run under it, {} registrations",
        preview.holders.len(),
        preview.registrations
    ));
    if !preview.holders.is_empty() {
        lines.push(format!("  holders        {}", preview.holders.join(" ")));
    }
    for reach in &preview.reach {
        let error = reach.error.as_ref().map(|e| format!("   ({e})")).unwrap_or_default();
        lines.push(format!(
            "  connections    {:<8} {} live   ({} of {} proxies and gateways answered){error}",
            reach.cluster.as_str(),
            reach.live_connections,
            reach.answered,
            reach.asked
        ));
    }
    for service in &preview.sole_server_of {
        lines.push(format!("  outage         nobody else here may answer for {service}"));
    }
    lines.join("\n")
}

fn part_line(part: &ReceiptPart) -> String {
    let of = |tally: Tally| format!("{}/{}", tally.enforced, tally.total);
    let state = match part.state {
        ReachState::Committed => "enforced",
        ReachState::NotCommitted => "not yet committed",
        ReachState::Unreachable => "unreachable",
    };
    let mut line = format!(
        "  {state}  {:<8} {} proxies, {} gateways, {} agents   closed {} live connections\n",
        part.cluster.as_str(),
        of(part.proxies),
        of(part.gateways),
        of(part.agents),
        part.closed_connections
    );
    for behind in &part.behind {
        let how = if behind.connected { "connected" } else { "gone" };
        line.push_str(&format!(
            "    behind   {} {} ({how}, at #{})\n",
            behind.kind.as_str(),
            behind.name,
            behind.applied
        ));
    }
    for node in &part.nodes_silent {
        line.push_str(&format!("    silent   control node {node}\n"));
    }
    if let Some(error) = &part.error {
        line.push_str(&format!("    error    {error}\n"));
    }
    line
}

async fn list(global: &Global) -> Outcome {
    let revocations = Connection::open(global)?.call(&RevokeListRequest {}).await?;
    let titles = ["ID", "TARGET", "REASON", "AGE", "ENFORCED", "EXPIRES", "+BY", "+NOTE"];
    Listing::of("RevocationList", &revocations.meta, &revocations.items, &titles, |item| {
        let reason = serde_json::to_value(item.revocation.reason).unwrap_or_default();
        [
            item.revocation.id.to_string(),
            item.revocation.target.to_string(),
            reason.as_str().unwrap_or_default().to_owned(),
            output::age(item.revocation.at),
            format!("{}/{}", item.enforced, item.subscribers),
            item.revocation.expires.map_or("when lifted".to_owned(), output::left),
            item.revocation.actor.clone(),
            item.revocation.note.clone(),
        ]
    })
    .warnings(&revocations.warnings)
    .print(global.output);
    Ok(Exit::Done)
}
