//! `hanse revoke show`: all that is known of one revocation.

use hanse_control::admin::{RevokeShowRequest, RevokeShown};
use hanse_identity::{Closing, RevocationId};

use super::text::receipt_lines;
use crate::cli::Global;
use crate::commands::Outcome;
use crate::context::Connection;
use crate::errors::Exit;
use crate::output;

pub async fn run(global: &Global, id: RevocationId) -> Outcome {
    let shown = Connection::open(global)?.call(&RevokeShowRequest { id }).await?;
    output::print(global.output, "Revocation", &shown, &page(&shown));
    Ok(Exit::Done)
}

fn page(shown: &RevokeShown) -> String {
    let revocation = &shown.revocation;
    let mut page = String::new();
    let mut line = |label: &str, value: String| {
        if !value.is_empty() {
            page.push_str(&format!("{label:<13}{value}\n"));
        }
    };
    line("id", revocation.id.to_string());
    line("target", revocation.target.to_string());
    let lift = if shown.can_be_lifted { "   (can be lifted)" } else { "" };
    line("reason", format!("{}{lift}", revocation.reason));
    line("note", revocation.note.clone());
    line("by", revocation.actor.clone());
    line("at", format!("{}   ({} ago)", revocation.at, output::age(revocation.at)));
    line(
        "expires",
        match revocation.expires {
            Some(at) => format!("{at}   (in {})", output::left(at)),
            None => "never: until it is lifted or cleared".to_owned(),
        },
    );
    line(
        "connections",
        match revocation.closing {
            Closing::Now => "closed at once".to_owned(),
            Closing::After(seconds) => format!("closed {seconds} s after it was ordered"),
            Closing::Never => "left alone".to_owned(),
        },
    );
    let reissue = "what was issued until then is dead, new certificates are given".to_owned();
    line("reissue", if revocation.reissue { reissue } else { String::new() });
    let authorities: Vec<String> = revocation.authorities.iter().map(ToString::to_string).collect();
    line("authorities", authorities.join(" "));
    if let Some(lists) = shown.lists {
        let named = revocation.serials.len().max(1);
        line(
            "certificates",
            format!("{named} by serial number, in {} of {} revocation lists", lists.enforced, lists.total),
        );
    }
    page.push_str(&receipt_lines(&shown.receipt));
    let state = if shown.receipt.complete { "complete" } else { "NOT complete" };
    page.push_str(&format!("{:<13}{state}\n", "receipt"));
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use hanse_control::admin::{Meta, Receipt, Tally, part_of};
    use hanse_identity::{Reason, Revocation, RevocationTarget, Timestamp};

    #[test]
    fn a_page_says_who_what_when_and_how_far() {
        let id: RevocationId = "r-42@east.example".parse().unwrap();
        let target = RevocationTarget::Identity("spiffe://east.example/ns/shop/sa/ratings".parse().unwrap());
        let revocation = Revocation {
            note: "laptop lost".to_owned(),
            actor: "spiffe://east.example/hanse/admin/ann".to_owned(),
            closing: Closing::After(30),
            serials: [[7; 16], [8; 16]].map(hanse_identity::Serial::from_random).into(),
            ..Revocation::new(id.clone(), target, Reason::Hold, Timestamp(1_787_392_991_204))
        };
        let part = part_of("east".parse().unwrap(), &id, Some(42), [], Default::default());
        let shown = RevokeShown {
            meta: Meta {
                cluster: "east".parse().unwrap(),
                raft_index: 50,
                observed_at: Timestamp(1_787_392_991_204),
                partial: false,
            },
            can_be_lifted: revocation.can_be_lifted(),
            lists: Some(Tally { enforced: 2, total: 3 }),
            receipt: Receipt::new(id, vec![part]),
            revocation,
            warnings: Vec::new(),
        };
        let page = page(&shown);
        for told in [
            "r-42@east.example",
            "spiffe://east.example/ns/shop/sa/ratings",
            "hold   (can be lifted)",
            "laptop lost",
            "spiffe://east.example/hanse/admin/ann",
            "2026-08-22T10:03:11.204Z",
            "until it is lifted or cleared",
            "closed 30 s after it was ordered",
            "2 by serial number, in 2 of 3 revocation lists",
            "enforced  east",
            "receipt      complete",
        ] {
            assert!(page.contains(told), "{told:?} is not in\n{page}");
        }
    }
}
