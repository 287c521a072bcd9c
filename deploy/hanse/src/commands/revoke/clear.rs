//! `hanse revoke clear`: takes revocations away, in bulk and whatever they are.

use hanse_control::admin::{RevokeClearRequest, RevokeListRequest};
use hanse_identity::{Reason, RevocationId};

use crate::cli::Global;
use crate::commands::{Outcome, confirm, talk};
use crate::context::Connection;
use crate::errors::{Exit, Failure};
use crate::output;

pub async fn run(global: &Global, ids: Vec<RevocationId>, all: bool, include_compromised: bool) -> Outcome {
    let connection = Connection::open(global)?;
    let known = connection.call(&RevokeListRequest {}).await?.items;
    if let Some(missing) = ids.iter().find(|id| !known.iter().any(|item| item.revocation.id == **id)) {
        return Err(Failure::new(Exit::NotFound, "E3005", format!("revocation {missing} does not exist"))
            .fix("hanse revoke list"));
    }
    // What peers have told is in the list, too, and is theirs.
    let own = known.iter().map(|item| &item.revocation).filter(|r| r.id.origin == *connection.trust_domain());
    let meant = own.filter(|r| all || ids.contains(&r.id));
    let (compromised, others): (Vec<_>, Vec<_>) = meant.partition(|r| r.reason == Reason::KeyCompromise);
    let number = others.len() + if include_compromised { compromised.len() } else { 0 };
    talk(global, &format!("  this clears    {number} revocations: what they name is believed again"));
    if !compromised.is_empty() {
        let fate = if include_compromised { "cleared too" } else { "not cleared" };
        talk(global, &format!("  compromised    {} for a compromised key: {fate}", compromised.len()));
    }
    confirm(global, "clear")?;
    let cleared = connection.call(&RevokeClearRequest { ids, all, include_compromised }).await?;
    let kept = match cleared.kept {
        0 => String::new(),
        kept => format!(", {kept} for a compromised key kept (--include-compromised)"),
    };
    let text = format!("{} revocations cleared at #{}{kept}\n", cleared.cleared, cleared.revision);
    output::print(global.output, "RevocationsCleared", &cleared, &text);
    Ok(Exit::Done)
}
