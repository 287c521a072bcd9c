//! `hanse identity`: which SVIDs live, what is in one, and whether the cluster believes it.

use std::path::Path;

use hanse_agent::client::{FetchError, Fetched, WorkloadApi};
use hanse_control::admin::{IdentityItem, IdentityList, IdentityListRequest, IdentityVerifyRequest, Renewal};
use hanse_identity::wire::to_pem;
use hanse_identity::{SvidFacts, Timestamp};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::public_key::PublicKey;

use super::{Outcome, talk};
use crate::cli::{Global, IdentityCommand};
use crate::context::Connection;
use crate::errors::{Exit, Failure};
use crate::output::{self, Listing};

/// Certificates of a file that are shown.
const MAX_SHOWN: usize = 16;
/// Characters of the bar that shows how much of its life a certificate has left.
const BAR: usize = 20;

pub async fn run(global: &Global, command: &IdentityCommand) -> Outcome {
    match command {
        IdentityCommand::List { expiring, revoked, limit } => {
            let request = IdentityListRequest {
                ends_before: expiring.map(|time| crate::now() + time),
                revoked: *revoked,
                limit: usize::try_from(*limit).ok(),
                ..IdentityListRequest::default()
            };
            let list = Connection::open(global)?.call(&request).await?;
            print(global, &list);
            Ok(if list.meta.partial { Exit::Partial } else { Exit::Done })
        }
        IdentityCommand::Show { what, pem } if what.starts_with("unix:") => show_own(global, what, *pem).await,
        IdentityCommand::Show { what, pem } if what == "-" || Path::new(what).is_file() => match pem {
            true => show_pem(Path::new(what)),
            false => show_file(global, Path::new(what)).await,
        },
        IdentityCommand::Show { what, pem: true } => Err(Failure::new(
            Exit::NotFound,
            "E5102",
            format!("control nodes keep no certificates, only what the index says of {what:?}"),
        )
        .fix("a chain is with the agent of its host, which gives it to the workload itself: there, hanse identity show unix:///run/hanse/agent.sock --pem; a file of it is shown by its path")),
        IdentityCommand::Show { what, pem: false } => {
            let request = IdentityListRequest { of: Some(what.clone()), ..IdentityListRequest::default() };
            let list = Connection::open(global)?.call(&request).await?;
            if list.items.is_empty() {
                return Err(Failure::new(
                    Exit::NotFound,
                    "E5101",
                    format!("no SVID that lives is {what:?}'s"),
                )
                .fix("hanse identity list; a file is shown by its path"));
            }
            print(global, &list);
            Ok(if list.meta.partial { Exit::Partial } else { Exit::Done })
        }
        IdentityCommand::Verify { file, at } => verify(global, file, *at).await,
    }
}

fn print(global: &Global, list: &IdentityList) {
    let titles = [
        "SPIFFE ID",
        "CLUSTER",
        "SERIAL",
        "HOLDER",
        "LEFT",
        "NEXT RENEWAL",
        "STATE",
        "+SIGNED BY",
        "+KEY",
        "+ISSUED",
    ];
    let mut listing = Listing::of("IdentityList", &list.meta, &list.items, &titles, |item| {
        [
            item.spiffe_id.to_string(),
            item.cluster.to_string(),
            item.serial.to_string(),
            holder(item),
            output::left(item.not_after),
            if item.downstream { "by its holder".to_owned() } else { renewal(item.renewal) },
            state(item),
            format!("{} {}", item.node, item.authority.prefix()),
            item.key.to_string(),
            item.issued.map(|at| at.to_string()).unwrap_or_default(),
        ]
    })
    .more("more", &list.more)
    .warnings(&list.warnings);
    if list.more > 0 {
        listing = listing.note(format!("and {} more", list.more));
    }
    listing.print(global.output);
}

/// The proxies that run under it, and the agent that holds its key.
fn holder(item: &IdentityItem) -> String {
    let names: Vec<String> = item.holders.iter().map(ToString::to_string).collect();
    match names.is_empty() {
        true => format!("({})", item.agent),
        false => format!("{} ({})", names.join(" "), item.agent),
    }
}

fn state(item: &IdentityItem) -> String {
    let kind = if item.downstream { "intermediate, " } else { "" };
    kind.to_owned() + &item.revoked.as_ref().map_or("ok".to_owned(), |id| format!("revoked by {id}"))
}

/// `in 5h`, `replaced`, `overdue 6m ‼`.
fn renewal(renewal: Option<Renewal>) -> String {
    match renewal {
        None => String::new(),
        Some(Renewal::By(at)) => format!("in {}", output::left(at)),
        Some(Renewal::Replaced) => "replaced".to_owned(),
        Some(Renewal::Overdue(at)) => format!("overdue {} ‼", output::age(at)),
    }
}

/// The certificates of a file as they are in it, and nothing else that is in it.
fn show_pem(path: &Path) -> Outcome {
    let (_, ders) = chain(path)?;
    ders.iter().for_each(|der| output::data(&to_pem("CERTIFICATE", der)));
    Ok(Exit::Done)
}

fn chain(path: &Path) -> Result<(String, Vec<Vec<u8>>), Failure> {
    let pem = super::read(path)?;
    let ders = CertificateDer::pem_slice_iter(pem.as_bytes()).take(MAX_SHOWN).collect::<Result<Vec<_>, _>>();
    let ders = ders.map_err(|e| Failure::unreadable(path, format!("it is no PEM: {e}")))?;
    if ders.is_empty() {
        return Err(Failure::unreadable(path, "it has no certificate in PEM"));
    }
    Ok((pem, ders.into_iter().map(|der| der.to_vec()).collect()))
}

/// What is in the file; of an SVID of this cluster also what the index knows, if the cluster can be asked.
async fn show_file(global: &Global, path: &Path) -> Outcome {
    let (_, ders) = chain(path)?;
    let (mut text, certificates) = describe_all(&ders).map_err(|why| Failure::unreadable(path, why))?;
    let facts = SvidFacts::parse(&ders[0]);
    let mut issued = None;
    match &facts {
        Ok(facts) => match known(global, facts).await {
            Ok(found) => issued = found,
            Err(failure) => talk(global, &format!("the cluster was not asked who holds it: {failure}")),
        },
        Err(why) => text.push_str(&format!("no SVID    {why}\n")),
    }
    if let Some(item) = &issued {
        text.push_str(&format!("holder     {}\n", holder(item)));
        if let Some(id) = &item.revoked {
            text.push_str(&format!("revoked    by {id}\n"));
        }
    }
    let body = json!({
        "certificates": certificates, "spiffeId": facts.as_ref().ok().map(|f| f.id.to_string()),
        "notAnSvid": facts.as_ref().err().map(ToString::to_string), "issued": issued,
    });
    output::print(global.output, "Certificate", &body, &text);
    Ok(Exit::Done)
}

/// The SVIDs that this process itself is given by the Workload API there, without their keys.
async fn show_own(global: &Global, api: &str, pem: bool) -> Outcome {
    let api: WorkloadApi = api.parse().map_err(Failure::usage)?;
    let failed = |e: FetchError| {
        Failure::new(Exit::Unreachable, "E1012", format!("{api}: {e}"))
            .fix("hanse workload register gives this process an identity")
    };
    let given = api.fetch_all(global.timeout).await.map_err(failed)?;
    if pem {
        // What is between the blocks is for people (RFC 7468 §2): whose the next chain is, if there are several.
        let several = given.len() > 1;
        let chain = |g: &Fetched| match several {
            true => format!("{}\n{}", g.svid.facts.id, g.svid.chain_pem()),
            false => g.svid.chain_pem(),
        };
        output::data(&given.iter().map(chain).collect::<String>());
        return Ok(Exit::Done);
    }
    let (mut text, mut svids) = (String::new(), Vec::new());
    for Fetched { svid, .. } in &given {
        let described = describe_all(&svid.chain);
        let (lines, certificates) =
            described.map_err(|why| Failure::new(Exit::Unreadable, "E1003", format!("{api}: {why}")))?;
        text.push_str(&lines);
        svids.push(json!({ "spiffeId": svid.facts.id, "certificates": certificates }));
    }
    output::print(global.output, "OwnIdentities", &json!({ "items": svids }), &text);
    Ok(Exit::Done)
}

async fn known(global: &Global, facts: &SvidFacts) -> Result<Option<IdentityItem>, Failure> {
    let request =
        IdentityListRequest { of: Some(facts.serial.to_string()), ..IdentityListRequest::default() };
    let list = Connection::open(global)?.call(&request).await?;
    Ok(list.items.into_iter().find(|item| item.key == facts.key_id))
}

fn describe_all(ders: &[Vec<u8>]) -> Result<(String, Vec<Value>), String> {
    let described: Vec<(String, Value)> = ders.iter().map(|der| describe(der)).collect::<Result<_, _>>()?;
    Ok(described.into_iter().unzip())
}

/// One certificate, for people and as a document.
fn describe(der: &[u8]) -> Result<(String, Value), String> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|e| e.to_string())?;
    let names = certificate.subject_alternative_name().map_err(|e| e.to_string())?;
    let names: Vec<String> =
        names.iter().flat_map(|n| &n.value.general_names).map(ToString::to_string).collect();
    let key = match certificate.public_key().parsed() {
        Ok(PublicKey::EC(point)) => format!("EC, {} bits", point.key_size()),
        Ok(PublicKey::RSA(key)) => format!("RSA, {} bits", key.key_size()),
        _ => certificate.public_key().algorithm.algorithm.to_string(),
    };
    let time =
        |t: x509_parser::time::ASN1Time| Timestamp::from_seconds(u64::try_from(t.timestamp()).unwrap_or(0));
    let (from, until) = (time(certificate.validity().not_before), time(certificate.validity().not_after));
    let (subject, issuer) = (certificate.subject().to_string(), certificate.issuer().to_string());
    let kind = if certificate.is_ca() { "authority" } else { "leaf" };
    let text = format!(
        "{kind:<10} {subject}\n  names    {}\n  issuer   {issuer}\n  serial   {}\n  key      {key}\n  valid    {from} to {until}\n           {}\n",
        names.join(", "),
        certificate.raw_serial_as_string(),
        bar(from, until, crate::now()),
    );
    let document = json!({
        "kind": kind, "subject": subject, "issuer": issuer, "names": names,
        "serial": certificate.raw_serial_as_string().replace(':', ""), "key": key,
        "notBefore": from.to_string(), "notAfter": until.to_string(),
    });
    Ok((text, document))
}

/// How much of a life is over: `[########------------] 31m left`.
fn bar(from: Timestamp, until: Timestamp, now: Timestamp) -> String {
    let whole = until.since(from).as_secs_f64().max(1.0);
    let over = ((now.since(from).as_secs_f64() / whole) * BAR as f64).clamp(0.0, BAR as f64) as usize;
    let state = match (now < from, now >= until) {
        (true, _) => "not yet valid".to_owned(),
        (_, true) => "expired".to_owned(),
        _ => format!("{} left", output::left(until)),
    };
    format!("[{}{}] {state}", "#".repeat(over), "-".repeat(BAR - over))
}

async fn verify(global: &Global, path: &Path, at: Option<Timestamp>) -> Outcome {
    let (pem, _) = chain(path)?;
    let verdict = Connection::open(global)?.call(&IdentityVerifyRequest { pem, at }).await?;
    let who = verdict.spiffe_id.as_ref().map_or("no SVID".to_owned(), ToString::to_string);
    let text = match &verdict.why {
        None => {
            let keys: Vec<String> = verdict.authorities.iter().map(|key| key.prefix()).collect();
            format!("believed   {who}, by {}\n", keys.join(" below "))
        }
        Some(why) => format!("refused    {who}: {why}\n"),
    };
    output::print(global.output, "IdentityVerdict", &verdict, &text);
    Ok(if verdict.believed { Exit::Done } else { Exit::No })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_shows_what_is_over() {
        let at = Timestamp::from_seconds;
        assert!(bar(at(100), at(200), at(50)).starts_with("[--------------------] not yet valid"));
        assert!(bar(at(100), at(200), at(150)).starts_with("[##########----------] "));
        assert!(bar(at(100), at(200), at(200)).ends_with("] expired"));
    }

    #[test]
    fn a_certificate_is_described_with_its_names_key_and_validity() {
        let der = an_authority();
        let (text, document) = describe(&der).unwrap();
        assert!(text.contains("spiffe://east.example") && text.contains("EC, 256 bits"), "{text}");
        assert_eq!(document["kind"], "authority");
        assert_eq!(document["names"].as_array().unwrap().len(), 1);
    }

    /// An authority, as a control node makes one.
    fn an_authority() -> Vec<u8> {
        use hanse_control::io::keys;
        let (now, day) = (crate::now(), std::time::Duration::from_secs(86_400));
        let (domain, node) = ("east.example".parse().unwrap(), "node-1".parse().unwrap());
        let key = keys::new_key_pair().unwrap();
        let serial = keys::random_serial();
        let authority = hanse_identity::Authority::create(&domain, &node, key, serial, now, day).unwrap();
        authority.certificate().der.clone()
    }
}
