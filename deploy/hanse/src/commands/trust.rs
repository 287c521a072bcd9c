//! `hanse trust`: whom this cluster trusts, how its authorities are replaced, and who may trust it.

use std::collections::BTreeSet;
use std::time::Duration;

use hanse_control::admin::{
    BundlePart, IntermediateItem, TrustAbortRequest, TrustBundleListRequest, TrustRotateRequest, TrustStatus,
    TrustStatusRequest,
};
use hanse_control::state::rotation::{Gate, Rotation};
use hanse_identity::{Bundle, KeyId};
use serde_json::json;
use tokio::time::Instant;

use super::{Outcome, bundle, downstream, federation, talk};
use crate::cli::{Global, TrustCommand, TrustRotate};
use crate::context::Connection;
use crate::errors::{Exit, Failure};
use crate::output;

/// Pace of asking how far a rotation is.
const POLL: Duration = Duration::from_millis(250);
/// Of whom a gate waits for, so many are named.
const NAMED: usize = 12;

pub async fn run(global: &Global, command: &TrustCommand) -> Outcome {
    match command {
        TrustCommand::Federate(wanted) => federation::federate(global, wanted).await,
        TrustCommand::Federation(command) => federation::run(global, command).await,
        TrustCommand::Rotate(wanted) => rotate(global, wanted).await,
        TrustCommand::Bundle(command) => bundle::run(global, command).await,
        TrustCommand::Verify => verify(global).await,
        TrustCommand::Downstream(wanted) => downstream::run(global, wanted).await,
    }
}

async fn rotate(global: &Global, wanted: &TrustRotate) -> Outcome {
    let connection = Connection::open(global)?;
    if wanted.plan {
        return plan(global, &connection, wanted).await;
    }
    if wanted.status {
        let status = status(&connection).await?;
        print(global, &status);
        return Ok(Exit::Done);
    }
    if wanted.abort {
        let written = connection.call(&TrustAbortRequest {}).await?;
        super::service::report(global, &written, "the rotation is taken back");
        // At once: if this credential is of an authority that goes now, it may go within a second.
        connection.renew().await?;
        let status = status(&connection).await?;
        talk(global, table(&status).trim_end());
        return Ok(Exit::Done);
    }
    let began = begin(&connection, wanted.authority, wanted.reissue_now).await?;
    talk(global, &format!("  rotation {began} began at {}", connection.name));
    // Without waiting for the end, it is waited until this command line knows the new authorities: it could not come back
    // to look, or to take it back.
    let far_enough = |gate: Gate| match wanted.no_wait {
        true => gate >= Gate::Activate,
        false => gate == Gate::Done,
    };
    let mut shown = None;
    let status = wait(&connection, began, global.timeout, far_enough, |status| {
        let gate = status.rotation.as_ref().map(|r| r.gate);
        if gate != shown && gate.is_some_and(|gate| gate != Gate::Done) {
            talk(global, &format!("  {:<9} …", gate.map_or("", Gate::as_str)));
            shown = gate;
        }
    })
    .await?;
    print(global, &status);
    let gate = status.rotation.as_ref().map(|r| r.gate);
    if status.rotation.as_ref().is_some_and(Rotation::is_running) {
        talk(global, "it goes on by itself: hanse trust rotate --status, or --abort");
        if !gate.is_some_and(far_enough) {
            talk(global, "it was waited for as long as --timeout says: --timeout 5m waits longer");
        }
    }
    Ok(if gate.is_some_and(far_enough) { Exit::Done } else { Exit::TimedOut })
}

/// Begins a rotation; the code that the demo uses too.
pub async fn begin(connection: &Connection, authority: Option<KeyId>, reissue: bool) -> Result<u64, Failure> {
    Ok(connection.call(&TrustRotateRequest { authority, reissue }).await?.revision)
}

/// How the rotation stands; this administrator's credential is renewed where it would not outlive it.
pub async fn status(connection: &Connection) -> Result<TrustStatus, Failure> {
    let status = connection.call(&TrustStatusRequest {}).await?;
    if let Some(rotation) = &status.rotation
        && needs_renewal(connection, rotation)
    {
        connection.renew().await?;
    }
    Ok(status)
}

/// Asks until the rotation has come far enough, or is over, or time is up; the last status either way.
pub async fn wait(
    connection: &Connection,
    id: u64,
    timeout: Duration,
    far_enough: impl Fn(Gate) -> bool,
    mut tell: impl FnMut(&TrustStatus),
) -> Result<TrustStatus, Failure> {
    let started = Instant::now();
    loop {
        let status = status(connection).await?;
        tell(&status);
        let over =
            status.rotation.as_ref().is_none_or(|r| r.id != id || !r.is_running() || far_enough(r.gate));
        if over || started.elapsed() >= timeout {
            return Ok(status);
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Whether the credential is of an authority that goes, or does not know one that comes.
fn needs_renewal(connection: &Connection, rotation: &Rotation) -> bool {
    let credential = connection.credential();
    let Ok(svid) = credential.svid() else { return false };
    let signer = svid.facts.authority_key_identifier.unwrap_or_default();
    let of_old = rotation.old.iter().any(|key| key.prefix() == signer);
    if of_old && rotation.is_running() && rotation.gate >= Gate::Activate {
        return true;
    }
    let known: BTreeSet<KeyId> = authorities(&credential.bundle_pem, &credential.trust_domain);
    match rotation.gate {
        Gate::Prepare => false,
        // The old ones are to be forgotten too.
        Gate::Done => !rotation.aborted && rotation.old.iter().any(|key| known.contains(key)),
        _ => rotation.new.values().any(|key| !known.contains(key)),
    }
}

fn authorities(pem: &str, trust_domain: &hanse_identity::TrustDomain) -> BTreeSet<KeyId> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject as _;
    let certificates = CertificateDer::pem_slice_iter(pem.as_bytes()).filter_map(Result::ok);
    certificates
        .filter_map(|der| hanse_identity::AuthorityCertificate::parse(&der, trust_domain).ok())
        .map(|authority| authority.key_id)
        .collect()
}

async fn plan(global: &Global, connection: &Connection, wanted: &TrustRotate) -> Outcome {
    let bundles = connection.call(&TrustBundleListRequest::default()).await?;
    let status = connection.call(&TrustStatusRequest {}).await?;
    let own = bundles.items.iter().find(|b| b.trust_domain == connection.credential().trust_domain);
    let meant =
        |a: &&hanse_identity::AuthorityCertificate| wanted.authority.is_none_or(|key| key == a.key_id);
    let old: Vec<_> = own.into_iter().flat_map(Bundle::trusted).filter(meant).collect();
    let mut text = String::new();
    for authority in &old {
        text += &format!(
            "  replace  sha256:{}  {}  {}\n",
            &authority.key_id.to_string()[..16],
            authority.subject,
            output::left(authority.not_after)
        );
    }
    let nested: Vec<&IntermediateItem> =
        old.iter().filter_map(|authority| status.nested.get(&authority.key_id)).flatten().collect();
    text += &nested_lines(&nested);
    for part in &status.parts {
        text += &format!("  asks     {}\n", part_line(part));
    }
    if let Some(running) = status.rotation.as_ref().filter(|r| r.is_running()) {
        text += &format!("  refused  while rotation {} runs, which is at {}\n", running.id, running.gate);
    }
    let body =
        json!({ "replaces": old, "nested": nested, "asks": status.parts, "rotation": status.rotation });
    output::print(global.output, "TrustRotationPlan", &body, &text);
    Ok(Exit::Done)
}

/// The nested issuers whose intermediates a rotation waits for.
fn nested_lines(nested: &[&IntermediateItem]) -> String {
    let mut text = String::new();
    for one in nested.iter().take(NAMED) {
        text += &format!(
            "  nested   {}  through agent {}  serial {}  {}\n",
            one.spiffe_id,
            one.agent,
            one.serial,
            output::left(one.not_after)
        );
    }
    if let Some(more) = nested.len().checked_sub(NAMED).filter(|more| *more > 0) {
        text += &format!("  nested   {more} more\n");
    }
    if !nested.is_empty() {
        text += "  nested   each is waited for: have its holder ask again (hanse trust downstream) once the new authorities sign,\n";
        text += "           then end the old one (hanse revoke --serial)\n";
    }
    text
}

fn print(global: &Global, status: &TrustStatus) {
    output::print(global.output, "TrustRotation", status, &table(status));
}

/// The five gates.
pub fn table(status: &TrustStatus) -> String {
    let Some(rotation) = &status.rotation else { return "no rotation has been run\n".to_owned() };
    let mut text = String::new();
    for (number, gate) in (1..).zip(Gate::ALL) {
        let at = rotation.reached.get(&gate);
        let next = rotation.reached.get(&gate.next());
        let state = match (at, next) {
            _ if gate == rotation.gate => "now".to_owned(),
            (Some(at), Some(next)) if *next >= *at => format!("done  {:.1} s", next.since(*at).as_secs_f64()),
            (None, _) if !rotation.is_running() => "-".to_owned(),
            _ if gate == Gate::Retire => "locked".to_owned(),
            _ => "waits".to_owned(),
        };
        text += &format!(" {number} {:<9} {:<42} {state}\n", gate.as_str(), meaning(gate, rotation));
    }
    if rotation.aborted {
        let how = if rotation.is_running() { "is being" } else { "was" };
        text += &format!("   rotation {} {how} taken back\n", rotation.id);
    }
    for waits in status.waits_for.iter().take(NAMED) {
        text += &format!("   waits for  {:<8} {:<24} {}\n", waits.cluster.as_str(), waits.who, waits.why);
    }
    if let Some(more) = status.waits_for.len().checked_sub(NAMED).filter(|more| *more > 0) {
        text += &format!("   waits for  {more} more\n");
    }
    for part in &status.parts {
        text += &format!("   {}\n", part_line(part));
    }
    text
}

fn meaning(gate: Gate, rotation: &Rotation) -> String {
    match gate {
        Gate::Prepare => format!("new authorities made: {} of {}", rotation.new.len(), rotation.nodes.len()),
        Gate::Spread => "every verifier believes old and new".to_owned(),
        Gate::Activate if rotation.reissue => "the new ones sign, SVIDs are replaced".to_owned(),
        Gate::Activate => "the new ones sign, SVIDs are renewed".to_owned(),
        Gate::Drain => "no live connection rests on an old one".to_owned(),
        Gate::Retire | Gate::Done => "the old ones are removed everywhere".to_owned(),
    }
}

fn part_line(part: &BundlePart) -> String {
    if let Some(error) = &part.error {
        return format!("{:<8} cannot be asked: {error}", part.cluster.as_str());
    }
    let of = |tally: hanse_control::admin::Tally| format!("{}/{}", tally.enforced, tally.total);
    format!(
        "{:<8} {} proxies, {} gateways, {} agents have it   {} SVIDs and {} connections on outgoing authorities",
        part.cluster.as_str(),
        of(part.proxies),
        of(part.gateways),
        of(part.agents),
        part.svids(),
        part.connections()
    )
}

async fn verify(global: &Global) -> Outcome {
    let connection = Connection::open(global)?;
    let status = connection.call(&TrustStatusRequest {}).await?;
    let complete = |p: &BundlePart| {
        p.error.is_none() && p.revision.is_some() && p.behind.is_empty() && p.nodes_silent.is_empty()
    };
    let asked = |p: &BundlePart| p.error.is_none() && p.nodes_silent.is_empty();
    let mut text: String = status.parts.iter().map(|p| format!("  {}\n", part_line(p))).collect();
    for part in &status.parts {
        for behind in &part.behind {
            let (kind, name, applied) = (behind.kind.as_str(), &behind.name, behind.applied);
            text += &format!("    behind   {kind} {name} at #{applied}\n");
        }
        text += &part.nodes_silent.iter().map(|n| format!("    silent   node {n}\n")).collect::<String>();
    }
    let ok = status.parts.iter().all(complete);
    let body = json!({ "ok": ok, "parts": status.parts });
    output::print(global.output, "TrustVerification", &body, &text);
    Ok(match ok {
        true => Exit::Done,
        false if status.parts.iter().all(asked) => Exit::No,
        false => Exit::Partial,
    })
}

#[cfg(test)]
mod tests {
    use hanse_identity::{Serial, Timestamp};

    use super::*;

    #[test]
    fn a_plan_names_the_nested_issuers_that_it_would_wait_for_and_what_to_do() {
        let one = IntermediateItem {
            serial: Serial::from_random([1; 16]),
            spiffe_id: "spiffe://east.example/ns/edge/sa/issuer".parse().unwrap(),
            agent: "edge-1".parse().unwrap(),
            not_after: Timestamp(0),
        };
        assert_eq!(nested_lines(&[]), "");
        let text = nested_lines(&[&one]);
        for words in
            ["ns/edge/sa/issuer", "agent edge-1", &one.serial.to_string(), "expired", "hanse revoke --serial"]
        {
            assert!(text.contains(words), "{words}: {text}");
        }
        let text = nested_lines(&[&one; NAMED + 3]);
        assert!(text.contains("  nested   3 more\n"), "{text}");
    }
}
