//! Intermediate authorities for nested issuers: signed for a workload that asks with its own SVID, recorded before they are
//! handed out. Unlike SVIDs they are not given without a quorum: what they sign cannot be recorded afterwards.

use hanse_federation::wire::encode;
use hanse_identity::wire::issue::DownstreamReply;
use hanse_identity::{IssueError, Timestamp, VerifiedCaller, issue_downstream};
use tonic::Status;

use super::authorities::signing_key;
use super::context::Context;
use super::keys::random_serial;
use super::status::{answered, no_outcome, refused};
use crate::command::{Command, Refusal};
use crate::state::issuance::{IssuedRecord, IssuedSvid};

/// Gives the caller an intermediate over the CSR's key, signed at `now`, if a registration lets it have one where its SVID
/// came from.
pub async fn issue(
    context: &Context,
    caller: &VerifiedCaller,
    csr_der: &[u8],
    now: Timestamp,
) -> Result<DownstreamReply, Status> {
    let state = context.handle.read().await.map_err(|e| no_outcome(&e))?;
    let (id, shown) = (caller.id(), caller.facts());
    // An SVID does not say through which agent it came; the index does.
    let known = state.private.issued.get(&shown.serial).filter(|s| s.id == *id && s.key == shown.key_id);
    let agent = known.map(|svid| svid.agent.clone()).ok_or_else(|| {
        let why =
            "the SVID that was shown is not in the issuance index: ask again once its agent has renewed it";
        refused(&Refusal::Precondition(why.to_owned()))
    })?;
    let ticket = state.downstream_ticket(id, &agent, now).map_err(|refusal| refused(&refusal))?;
    let none = || Status::unavailable("none of this node's authorities signs at the moment: ask again");
    let signer = context.signing_authority(&state).ok_or_else(none)?;
    let issued = issue_downstream(ticket, csr_der, &signer, random_serial(), now).map_err(|e| match e {
        IssueError::NoNestedIssuer | IssueError::NoNestedIssuerBelowRoot => {
            refused(&Refusal::Precondition(e.to_string()))
        }
        _ => Status::invalid_argument(e.to_string()),
    })?;
    let svid = IssuedSvid {
        serial: issued.issuer.serial.clone(),
        id: id.clone(),
        key: issued.issuer.key_id,
        authority: signing_key(&signer),
        agent: agent.clone(),
        node: context.name.clone(),
        issued: Some(now),
        not_after: issued.not_after,
        downstream: true,
    };
    let record =
        Box::new(IssuedRecord { svid: svid.into(), granted: state.view.revision.0, handed_out: false });
    let outcome = context.handle.propose(caller, Command::DownstreamIssued { record }).await;
    answered(outcome.map_err(|e| no_outcome(&e))?)?;
    let state = context.handle.state();
    let bundle = state.view.bundles.get(&state.view.trust_domain);
    let bundle = bundle.ok_or_else(|| Status::internal("the cluster has no bundle of its own"))?;
    let serial = issued.issuer.serial.to_string();
    tracing::info!(%id, %agent, serial, not_after = %issued.not_after, "intermediate authority issued");
    Ok(DownstreamReply {
        chain_der: issued.chain,
        bundle: encode(bundle),
        spiffe_id: id.to_string(),
        serial,
        expires: issued.not_after.0,
    })
}
