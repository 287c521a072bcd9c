//! `hanse audit list`: who did what, and what came of it.

use hanse_control::admin::{AuditListRequest, MAX_AUDIT_PAGE};
use hanse_control::state::audit::{AuditOutcome, AuditRow};

use super::Outcome;
use crate::cli::{AuditCommand, Global};
use crate::context::Connection;
use crate::errors::Exit;
use crate::output::{Format, Listing};

pub async fn run(global: &Global, command: &AuditCommand) -> Outcome {
    let AuditCommand::List { since, actor, kind, limit } = command;
    let connection = Connection::open(global)?;
    let mut request = AuditListRequest {
        since: since.map(|age| crate::now() - age),
        actor: actor.clone(),
        kind: kind.clone(),
        ..AuditListRequest::default()
    };
    let mut rows: Vec<AuditRow> = Vec::new();
    let page = loop {
        request.limit = Some((limit - rows.len()).min(MAX_AUDIT_PAGE));
        let mut page = connection.call(&request).await?;
        rows.append(&mut page.items);
        if page.next.is_none() || rows.len() >= *limit {
            break page;
        }
        request.before = page.next;
    };
    let for_people = matches!(global.output, Format::Table | Format::Wide);
    let titles = ["REVISION", "AT", "ACTOR", "KIND", "TARGET", "OUTCOME", "+CERTIFICATE", "+NOTE"];
    let mut listing = Listing::of("AuditList", &page.meta, &rows, &titles, |row| {
        [
            row.revision.to_string(),
            row.at.to_string(),
            who(&row.actor),
            row.kind.clone(),
            row.target.clone(),
            outcome(&row.outcome),
            row.certificate.as_ref().map(ToString::to_string).unwrap_or_default(),
            row.note.clone(),
        ]
    })
    .more("next", &page.next)
    .more("forgotten", &page.forgotten)
    .warnings(&page.warnings);
    if page.next.is_some() && for_people {
        listing = listing.note(format!("the newest {} that fit; --limit shows more", rows.len()));
    }
    if page.forgotten > 0 && for_people {
        listing = listing.note(format!("{} older rows had to make room", page.forgotten));
    }
    listing.print(global.output);
    Ok(if page.meta.partial { Exit::Partial } else { Exit::Done })
}

/// A SPIFFE ID without its scheme.
fn who(actor: &str) -> String {
    match actor.parse::<hanse_identity::SpiffeId>() {
        Ok(id) => format!("{}{}", id.trust_domain(), id.path()),
        Err(_) if actor.is_empty() => "(the mesh)".to_owned(),
        Err(_) => actor.to_owned(),
    }
}

fn outcome(outcome: &AuditOutcome) -> String {
    match outcome {
        AuditOutcome::Done => "done".to_owned(),
        AuditOutcome::Already => "already so".to_owned(),
        AuditOutcome::Refused(why) => format!("refused: {why}"),
    }
}
