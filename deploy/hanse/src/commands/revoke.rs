//! `hanse revoke`: what it would hit before, the receipt after, and the list.

mod clear;
mod export;
mod show;
mod text;

use std::path::Path;
use std::time::Duration;

use hanse_control::admin::{
    ProofState, ReachState, Receipt, ReceiptPart, RevokeLiftRequest, RevokeListRequest, RevokePreviewRequest,
    RevokeRequest, RevokeStatusRequest, Revoked,
};
use hanse_control::state::rotation::Gate;
use hanse_identity::{Closing, Reason, Revocation, RevocationId, RevocationTarget, Serial, SvidFacts};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::json;
use tokio::time::Instant;

use self::text::{blast_radius, receipt_lines};
use super::{Outcome, talk};
use crate::cli::{Global, RevokeCommand, RevokeVerb, RevokeWhat, parse_duration};
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
            output::print(global.output, "RevocationReceipt", &receipt, &receipt_lines(&receipt));
            Ok(verdict(&receipt))
        }
        Some(RevokeVerb::Show { id }) => show::run(global, revocation_id(id)?).await,
        Some(RevokeVerb::Clear { ids, all, include_compromised }) => {
            let ids = ids.iter().map(|id| revocation_id(id)).collect::<Result<_, _>>()?;
            clear::run(global, ids, *all, *include_compromised).await
        }
        Some(RevokeVerb::Export { crl: _, encoding, authority, trust_domain, out }) => {
            let what = export::What { encoding: *encoding, authority: authority.clone() };
            export::run(global, &what, trust_domain.clone(), out.as_deref()).await
        }
        None => order(global, &command.what).await,
    }
}

fn revocation_id(text: &str) -> Result<RevocationId, Failure> {
    text.parse().map_err(|rule| Failure::usage(format!("{text:?} {rule}")))
}

/// What the flags name.
pub fn target(what: &RevokeWhat) -> Result<RevocationTarget, Failure> {
    if let Some(serial) = &what.serial {
        let serial = serial.parse().map_err(|rule| Failure::usage(format!("{serial:?} {rule}")))?;
        return Ok(RevocationTarget::Serial(serial));
    }
    if let Some(file) = &what.cert {
        return serial_of(file).map(RevocationTarget::Serial);
    }
    if let Some(key) = &what.key {
        let key = key.parse().map_err(|rule| Failure::usage(format!("{key:?} {rule}")))?;
        return Ok(RevocationTarget::Key(key));
    }
    let named = None
        .or(what.identity.clone().map(RevocationTarget::Identity))
        .or(what.agent.clone().map(RevocationTarget::Agent))
        .or(what.node.clone().map(RevocationTarget::Node))
        .or(what.authority.map(RevocationTarget::Authority))
        .or(what.trust_domain.clone().map(RevocationTarget::Cluster));
    named.ok_or_else(|| {
        Failure::usage("what is to be revoked?")
            .fix("--identity SPIFFE-ID, --serial HEX, --cert FILE, --key HEX, --agent NAME, --node NAME, --authority KEY, or --cluster TRUST-DOMAIN")
    })
}

/// The serial number of the first certificate in a PEM file.
fn serial_of(file: &Path) -> Result<Serial, Failure> {
    let bad = |why: String| Failure::usage(format!("{}: {why}", file.display()));
    let pem = std::fs::read(file).map_err(|e| bad(e.to_string()))?;
    let leaf =
        CertificateDer::from_pem_slice(&pem).map_err(|_| bad("it has no certificate in PEM".to_owned()))?;
    Ok(SvidFacts::parse(&leaf).map_err(|e| bad(e.to_string()))?.serial)
}

fn closing(what: &RevokeWhat) -> Result<Closing, Failure> {
    match what.close_connections.as_str() {
        "now" => Ok(Closing::Now),
        "never" => Ok(Closing::Never),
        time => {
            let time = parse_duration(time).map_err(|rule| {
                Failure::usage(format!("--close-connections {time:?}: now, never, or a time: {rule}"))
            })?;
            Ok(Closing::After(u32::try_from(time.as_secs()).unwrap_or(u32::MAX)))
        }
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
    if let RevocationTarget::Node(node) = &request.target {
        connection.outlive(node).await?;
    }
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
        if receipt.gates.is_some() {
            // This command line has to know the authorities that come, or it could not ask again.
            super::trust::status(connection).await?;
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Revokes what was typed, and shows the receipt.
pub async fn order(global: &Global, what: &RevokeWhat) -> Outcome {
    let (target, reason, closing) = (target(what)?, reason(what)?, closing(what)?);
    let connection = Connection::open(global)?;
    let preview = connection.call(&RevokePreviewRequest::new(target.clone())).await?;
    talk(global, &blast_radius(&preview));
    if what.dry_run {
        output::print(global.output, "RevokePreview", &preview, "dry run: nothing was changed\n");
        return Ok(Exit::Done);
    }
    super::confirm(global, word(&target).as_str())?;
    let request = RevokeRequest { target, reason, note: what.note.clone(), reissue: what.reissue, closing };
    let revoked = commit(&connection, &request).await?;
    talk(global, &format!("  committed {} at {} #{}", revoked.id, connection.name, revoked.revision));
    if what.no_wait {
        if let RevocationTarget::Authority(_) = request.target {
            let signs = |gate: Gate| gate >= Gate::Activate;
            super::trust::wait(&connection, revoked.revision, global.timeout, signs, |_| {}).await?;
        }
        output::print(global.output, "Revoked", &revoked, &format!("{}\n", revoked.id));
        return Ok(Exit::Done);
    }
    let undo = match (&request.target, reason) {
        (_, Reason::Hold) => format!("undo: hanse revoke lift {}\n", revoked.id),
        (RevocationTarget::Agent(name), _) => {
            format!("undo: hanse agent unban {name} (it has to join anew)\n")
        }
        (RevocationTarget::Authority(_), _) => "undo: not possible\n".to_owned(),
        _ => "undo: not possible; a hold (--hold) could be lifted\n".to_owned(),
    };
    receipt(global, &connection, &revoked, &undo).await
}

/// Waits until a revocation is enforced, and shows who does.
pub async fn receipt(global: &Global, connection: &Connection, revoked: &Revoked, undo: &str) -> Outcome {
    let (receipt, took) = wait(connection, &revoked.id, global.timeout).await?;
    let parts = receipt_lines(&receipt);
    let state = if receipt.complete { "complete" } else { "NOT complete" };
    let text = format!("{parts}  receipt  {state} after {:.1} s\n{undo}", took.as_secs_f64());
    let body = json!({
        "id": revoked.id, "revision": revoked.revision, "expires": revoked.expires,
        "tookMs": took.as_millis() as u64, "receipt": receipt,
    });
    output::print(global.output, "RevocationReceipt", &body, &text);
    Ok(verdict(&receipt))
}

/// 0 complete; 9 if somebody could not be asked; 8 if somebody is behind; 1 if nobody is, and a revoked certificate was
/// believed all the same.
fn verdict(receipt: &Receipt) -> Exit {
    let cannot_ask = |p: &ReceiptPart| p.state == ReachState::Unreachable || !p.nodes_silent.is_empty();
    if receipt.complete {
        Exit::Done
    } else if receipt.parts.iter().any(cannot_ask) {
        Exit::Partial
    } else if receipt.proof.state == ProofState::Accepted && receipt.parts.iter().all(ReceiptPart::complete) {
        Exit::No
    } else {
        Exit::TimedOut
    }
}

/// What a person types to confirm: the last part of the name.
fn word(target: &RevocationTarget) -> String {
    match target {
        RevocationTarget::Serial(serial) => serial.to_string(),
        RevocationTarget::Identity(id) => id.path().rsplit('/').next().unwrap_or_default().to_owned(),
        RevocationTarget::Key(key) | RevocationTarget::Authority(key) => key.prefix(),
        RevocationTarget::Agent(name) | RevocationTarget::Node(name) => name.to_string(),
        RevocationTarget::Cluster(trust_domain) => trust_domain.to_string(),
    }
}

/// Until when it stays.
fn end(revocation: &Revocation) -> String {
    match revocation.expires {
        Some(at) => output::left(at),
        None if revocation.can_be_lifted() => "when lifted".to_owned(),
        None => "never".to_owned(),
    }
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
            end(&item.revocation),
            item.revocation.actor.clone(),
            item.revocation.note.clone(),
        ]
    })
    .warnings(&revocations.warnings)
    .print(global.output);
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_target_has_its_flag() {
        let key = "ab".repeat(32);
        let id: hanse_identity::SpiffeId = "spiffe://east.example/ns/shop/sa/ratings".parse().unwrap();
        let none = RevokeWhat::default;
        for (what, text) in [
            (RevokeWhat { serial: Some("3f:09".into()), ..none() }, "serial 3f09".to_owned()),
            (RevokeWhat { identity: Some(id.clone()), ..none() }, id.to_string()),
            (
                RevokeWhat { key: Some(key.clone()), ..none() },
                RevocationTarget::Key(key.parse().unwrap()).to_string(),
            ),
            (RevokeWhat { agent: Some("host-1".parse().unwrap()), ..none() }, "agent host-1".to_owned()),
            (RevokeWhat { node: Some("east-2".parse().unwrap()), ..none() }, "node east-2".to_owned()),
            (RevokeWhat { authority: Some(key.parse().unwrap()), ..none() }, format!("authority {key}")),
        ] {
            assert_eq!(target(&what).unwrap().to_string(), text);
        }
        let west = RevokeWhat { trust_domain: Some("west.example".parse().unwrap()), ..none() };
        assert!(matches!(target(&west).unwrap(), RevocationTarget::Cluster(_)));
        assert!(target(&none()).is_err());
        assert!(target(&RevokeWhat { key: Some("ab".into()), ..none() }).is_err());
        assert!(target(&RevokeWhat { cert: Some("/nonexistent".into()), ..none() }).is_err());
    }

    #[test]
    fn the_list_says_until_when_a_revocation_stays() {
        let id: RevocationId = "r-1@east.example".parse().unwrap();
        let node = RevocationTarget::Node("east-2".parse().unwrap());
        let of = |target: &RevocationTarget, reason| {
            Revocation::new(id.clone(), target.clone(), reason, crate::now())
        };
        assert_eq!(end(&of(&node, Reason::Hold)), "when lifted");
        assert_eq!(end(&of(&node, Reason::KeyCompromise)), "never");
        let authority = RevocationTarget::Authority("ab".repeat(32).parse().unwrap());
        let at = crate::now() + Duration::from_secs(3 * 86_400 + 60);
        let lapses = Revocation { expires: Some(at), ..of(&authority, Reason::KeyCompromise) };
        assert_eq!(end(&lapses), output::left(at));
    }

    /// What a script sees when the bound (`--timeout`) has passed and somebody is behind, or could not be asked.
    #[test]
    fn the_exit_code_says_whether_the_receipt_is_complete() {
        use hanse_control::admin::{Proof, part_of};
        let id: RevocationId = "r-1@east.example".parse().unwrap();
        let part = |cluster: &str, revision, silent: &[&str]| {
            let silent = silent.iter().map(|node| node.parse().unwrap()).collect();
            part_of(cluster.parse().unwrap(), &id, revision, [], silent)
        };
        let code = |parts: Vec<ReceiptPart>| verdict(&Receipt::new(id.clone(), parts));
        assert_eq!(code(vec![part("east", Some(1), &[]), part("west", Some(2), &[])]), Exit::Done);
        assert_eq!(code(vec![part("east", Some(1), &[]), part("west", None, &[])]), Exit::TimedOut);
        assert_eq!(code(vec![part("east", Some(1), &["east-3"])]), Exit::Partial);
        let gone = ReceiptPart::unreachable("west".parse().unwrap(), "refused".to_owned());
        assert_eq!(code(vec![part("east", Some(1), &[]), gone]), Exit::Partial);
        let believed = Proof { state: ProofState::Accepted, ..Proof::default() };
        let told = |revision| {
            Receipt::new(id.clone(), vec![part("east", revision, &[])]).with_proof(believed.clone())
        };
        assert_eq!([verdict(&told(Some(1))), verdict(&told(None))], [Exit::No, Exit::TimedOut]);
        assert_eq!([Exit::No as u8, Exit::TimedOut as u8, Exit::Partial as u8], [1, 8, 9]);
    }

    #[test]
    fn connections_are_closed_now_later_or_never() {
        let told =
            |text: &str| closing(&RevokeWhat { close_connections: text.to_owned(), ..RevokeWhat::default() });
        assert_eq!(told("now").unwrap(), Closing::Now);
        assert_eq!(told("never").unwrap(), Closing::Never);
        assert_eq!(told("30s").unwrap(), Closing::After(30));
        assert!(told("soon").is_err());
    }
}
