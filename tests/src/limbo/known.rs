//! Where our verdict on a case of x509-limbo differs from the expected one, and why we want it to.
//!
//! No wrong accept here concerns an SVID: most are about the DNS name that a web server should have and ours are never
//! asked for, the others about what makes a certificate tidy and not about what makes it true.

use super::Comparison;
use super::Comparison::{WrongAccept, WrongReject};

/// One difference, or a class of them.
#[derive(Debug)]
pub struct Difference {
    /// A case's id, or the beginning of several followed by `*`.
    pub cases: &'static str,
    pub comparison: Comparison,
    pub reason: &'static str,
}

const WEB_NAMES: &str = "it turns on which DNS name or address a web server is asked for; an SVID is matched by its \
    SPIFFE ID alone, and what has none is refused by `verify`";
const WEB_PROFILE: &str =
    "it is a rule of the web's authorities (CA/Browser Forum) that SPIFFE does not have";
const KEY_IDENTIFIERS: &str = "a missing key identifier makes a path harder to find, not less true: ours are found \
    by name and proven by signature; one that contradicts is refused";
const DEPTH: &str = "the case sets a limit of its own, which our verifier cannot be given: it has its own limit \
    (4 certificates) and keeps to the authorities' path lengths";
const SELF_ISSUED: &str = "authorities whose subject is their own issuer are not followed: no path has two authorities \
    of one name, which is what bounds the search";
const REVOCATION_LISTS: &str = "certificate revocation lists are written for others to read; our own verifier is told \
    of revocations by the mesh, and earlier";

/// Every difference that is known and wanted, in this corpus and in the whole of x509-limbo's core.
pub const DIFFERENCES: &[Difference] = &[
    Difference { cases: "webpki::san::*", comparison: WrongAccept, reason: WEB_NAMES },
    Difference { cases: "webpki::cn::*", comparison: WrongAccept, reason: WEB_NAMES },
    Difference { cases: "rfc5280::san::ip-in-dns", comparison: WrongAccept, reason: WEB_NAMES },
    Difference { cases: "rfc5280::ca-as-leaf-wrong-san", comparison: WrongAccept, reason: WEB_NAMES },
    Difference { cases: "webpki::eku::*", comparison: WrongAccept, reason: WEB_PROFILE },
    Difference { cases: "webpki::aki::*", comparison: WrongAccept, reason: WEB_PROFILE },
    Difference { cases: "rfc5280::ski::root-missing-ski", comparison: WrongAccept, reason: KEY_IDENTIFIERS },
    Difference {
        cases: "rfc5280::ski::intermediate-missing-ski",
        comparison: WrongAccept,
        reason: KEY_IDENTIFIERS,
    },
    Difference { cases: "rfc5280::aki::leaf-missing-aki", comparison: WrongAccept, reason: KEY_IDENTIFIERS },
    Difference {
        cases: "rfc5280::aki::intermediate-missing-aki",
        comparison: WrongAccept,
        reason: KEY_IDENTIFIERS,
    },
    Difference {
        cases: "rfc5280::aki::cross-signed-root-missing-aki",
        comparison: WrongAccept,
        reason: KEY_IDENTIFIERS,
    },
    Difference { cases: "pathlen::max-chain-depth*", comparison: WrongAccept, reason: DEPTH },
    Difference { cases: "crl::*", comparison: WrongAccept, reason: REVOCATION_LISTS },
    Difference {
        cases: "pathlen::max-chain-depth-1-self-issued",
        comparison: WrongReject,
        reason: SELF_ISSUED,
    },
    Difference { cases: "pathlen::self-issued*", comparison: WrongReject, reason: SELF_ISSUED },
    Difference { cases: "rfc5280::nc::permitted-self-issued", comparison: WrongReject, reason: SELF_ISSUED },
    Difference {
        cases: "cve::cve-2024-0567",
        comparison: WrongReject,
        reason: "ten certificates: more than four are refused before any is looked at",
    },
    Difference {
        cases: "rfc5280::root-and-intermediate-swapped",
        comparison: WrongReject,
        reason: "its anchor is an intermediate; a bundle's authorities are self-signed (X509-SVID §6.1), and stock \
            Envoy believes no others either",
    },
    Difference {
        cases: "rfc5280::nc::nc-permits-email*",
        comparison: WrongReject,
        reason: "constraints on e-mail addresses are not compared, so they forbid them all",
    },
];

/// The difference that is listed for a case with this outcome.
pub fn difference(id: &str, comparison: Comparison) -> Option<&'static Difference> {
    DIFFERENCES.iter().find(|known| known.comparison == comparison && known.covers(id))
}

impl Difference {
    fn covers(&self, id: &str) -> bool {
        match self.cases.strip_suffix('*') {
            Some(beginning) => id.starts_with(beginning),
            None => id == self.cases,
        }
    }
}
