//! `hanse revoke export --crl`: the published revocation lists, as other software reads them.

use std::io::Write as _;
use std::path::Path;

use hanse_control::admin::{PublishedList, RevokeExportRequest};
use hanse_identity::TrustDomain;

use crate::cli::{Global, ListEncoding};
use crate::commands::{Outcome, talk};
use crate::context::Connection;
use crate::errors::{Exit, Failure};
use crate::output::{self, Format, Listing};

/// Which lists, and how they are written.
pub struct What {
    pub encoding: ListEncoding,
    /// The beginning of an authority's key id.
    pub authority: Option<String>,
}

pub async fn run(
    global: &Global,
    what: &What,
    trust_domain: Option<TrustDomain>,
    out: Option<&Path>,
) -> Outcome {
    let mut lists = Connection::open(global)?.call(&RevokeExportRequest { trust_domain }).await?;
    lists.items = chosen(lists.items, what.authority.as_deref())?;
    if let Some(out) = out {
        let bytes = encoded(&lists.items, what.encoding)?;
        std::fs::write(out, bytes)
            .map_err(|e| Failure::usage(format!("cannot write {}: {e}", out.display())))?;
    } else if matches!(global.output, Format::Table | Format::Wide) {
        let bytes = encoded(&lists.items, what.encoding)?;
        for warning in &lists.warnings {
            talk(global, &format!("warning {} {}", warning.code, warning.message));
        }
        let mut stdout = std::io::stdout().lock();
        // A reader that has gone away wants no more.
        let _ = stdout.write_all(&bytes).and_then(|()| stdout.flush());
        return Ok(Exit::Done);
    }
    let titles = ["AUTHORITY", "SUBJECT", "NUMBER", "ENTRIES", "NEXT UPDATE"];
    let mut listing = Listing::of("RevocationListList", &lists.meta, &lists.items, &titles, |list| {
        [
            list.crl.authority.prefix(),
            list.subject.clone(),
            list.crl.number.to_string(),
            list.entries.to_string(),
            format!("in {}", output::left(list.crl.next_update)),
        ]
    })
    .warnings(&lists.warnings);
    if let Some(out) = out {
        listing = listing.note(format!("written to {}", out.display()));
    }
    listing.print(global.output);
    Ok(Exit::Done)
}

fn chosen(lists: Vec<PublishedList>, authority: Option<&str>) -> Result<Vec<PublishedList>, Failure> {
    let Some(prefix) = authority else { return Ok(lists) };
    let prefix = prefix.to_ascii_lowercase();
    let known: Vec<String> = lists.iter().map(|l| l.crl.authority.to_string()).collect();
    let chosen: Vec<PublishedList> =
        lists.into_iter().filter(|l| l.crl.authority.to_string().starts_with(&prefix)).collect();
    match chosen.len() {
        1 => Ok(chosen),
        0 => Err(Failure::new(Exit::NotFound, "E3005", format!("no list is of an authority {prefix}…"))
            .what(format!("authorities with a list: {}", known.join(" ")))),
        _ => Err(Failure::usage(format!("{prefix}… is the beginning of several authorities' key ids"))),
    }
}

fn encoded(lists: &[PublishedList], encoding: ListEncoding) -> Result<Vec<u8>, Failure> {
    match (encoding, lists) {
        (_, []) => Err(Failure::new(Exit::NotFound, "E3005", "no revocation list is published")),
        (ListEncoding::Pem, lists) => {
            Ok(lists.iter().flat_map(|l| l.crl.to_pem().as_bytes().to_vec()).collect())
        }
        (ListEncoding::Der, [list]) => Ok(list.crl.der.to_vec()),
        (ListEncoding::Der, lists) => {
            Err(Failure::usage(format!("DER holds one list, and there are {}", lists.len()))
                .fix("--authority HEX chooses one; --encoding pem writes all"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hanse_identity::{Crl, Timestamp};

    fn list(key: u8) -> PublishedList {
        PublishedList {
            trust_domain: "east.example".parse().unwrap(),
            subject: format!("CN={key}"),
            entries: 0,
            crl: Crl {
                authority: hanse_identity::KeyId([key; 32]),
                number: 7,
                next_update: Timestamp(1),
                der: [0x30, 0x00, key].as_slice().into(),
            },
        }
    }

    #[test]
    fn pem_holds_all_lists_and_der_one() {
        let two = [list(1), list(2)];
        let pem = String::from_utf8(encoded(&two, ListEncoding::Pem).unwrap()).unwrap();
        assert_eq!(pem.matches("-----BEGIN X509 CRL-----\n").count(), 2);
        assert_eq!(encoded(&two, ListEncoding::Der).unwrap_err().exit, Exit::Usage);
        assert_eq!(encoded(&two[..1], ListEncoding::Der).unwrap(), [0x30, 0x00, 1]);
        assert_eq!(encoded(&[], ListEncoding::Pem).unwrap_err().exit, Exit::NotFound);
    }

    #[test]
    fn an_authority_is_named_by_the_beginning_of_its_key_id() {
        let lists = || vec![list(0x11), list(0x12)];
        assert_eq!(chosen(lists(), None).unwrap().len(), 2);
        assert_eq!(chosen(lists(), Some("12")).unwrap(), [list(0x12)]);
        assert_eq!(chosen(lists(), Some("1")).unwrap_err().exit, Exit::Usage);
        assert_eq!(chosen(lists(), Some("ff")).unwrap_err().exit, Exit::NotFound);
    }
}
