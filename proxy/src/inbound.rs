//! Inbound, the pure part: who may have a request served here.

use std::collections::BTreeSet;

use hanse_identity::{RevocationId, ServiceName, VerifiedCaller};

use crate::answer::Reason;
use hanse_federation::View;

/// Leave to hand one request to the app. Only `admit` makes one.
#[derive(Debug)]
pub struct Admitted {
    _only_admit_makes_one: (),
}

/// Decides for one request. The caller's certificate was verified and its connection is in the table, so a revocation
/// closes it; what can change under a living connection beside that is asked here: our exports, and our own standing.
///
/// Default deny between clusters: a caller from abroad needs one of our services to be exported to its cluster. A
/// route may have sent the request to any of them under another's Host, so the Host does not narrow it.
pub fn admit(
    view: Option<&View>,
    own_revoked: Option<&RevocationId>,
    services: &BTreeSet<ServiceName>,
    caller: &VerifiedCaller,
) -> Result<Admitted, Reason> {
    if own_revoked.is_some() {
        return Err(Reason::Revoked);
    }
    let view = view.ok_or(Reason::NotReady)?;
    let allowed = *caller.id().trust_domain() == view.trust_domain
        || services.iter().any(|service| view.may_call(caller.id(), service));
    if allowed { Ok(Admitted { _only_admit_makes_one: () }) } else { Err(Reason::NotAllowed) }
}
