//! Trust: rotations of the cluster's authorities, its bundles, and the administrator's own certificate.

use hanse_identity::grant::grant_member;
use hanse_identity::name::MemberRole;
use hanse_identity::wire::to_pem;
use hanse_identity::{Bundle, SpiffeId, issue};
use tonic::Status;

use super::Call;
use crate::admin::{
    CredentialRenewRequest, CredentialReply, Listing, TrustAbortRequest, TrustBundleListRequest,
    TrustRotateRequest, TrustStatus, TrustStatusRequest, Written, nested,
};
use crate::command::Command;
use crate::io::keys::{CREDENTIAL_LIFETIME, random_serial};
use crate::io::rotation::measure;

pub async fn rotate(call: Call, request: TrustRotateRequest) -> Result<Written, Status> {
    let TrustRotateRequest { authority, reissue } = request;
    call.written(Command::RotateBegin { authority, reissue }).await
}

pub async fn abort(call: Call, _: TrustAbortRequest) -> Result<Written, Status> {
    call.written(Command::RotateAbort {}).await
}

pub async fn status(call: Call, _: TrustStatusRequest) -> Result<TrustStatus, Status> {
    let reading = call.read().await;
    let measured = measure(&call.context, &reading.state).await;
    Ok(TrustStatus {
        rotation: reading.state.private.rotation.clone(),
        waits_for: measured.waits_for,
        parts: measured.parts,
        nested: nested(&reading.state, call.context.time()),
        meta: reading.meta,
        warnings: reading.warnings,
    })
}

pub async fn bundles(call: Call, request: TrustBundleListRequest) -> Result<Listing<Bundle>, Status> {
    let reading = call.read().await;
    let strangers = reading.state.private.strangers.values().filter_map(|stranger| stranger.bundle.as_ref());
    let foreign = strangers.filter(|_| request.foreign);
    let items = reading.state.view.bundles.values().chain(foreign).cloned().collect();
    Ok(Listing { meta: reading.meta, items, warnings: reading.warnings })
}

/// A new certificate for whoever asks, an administrator, and for nobody else.
pub async fn renew(call: Call, request: CredentialRenewRequest) -> Result<CredentialReply, Status> {
    let context = &call.context;
    let id: SpiffeId = call.actor.id.parse().map_err(|e| Status::permission_denied(format!("{e}")))?;
    if !id.is_member(&context.trust_domain, MemberRole::Admin) {
        return Err(Status::permission_denied(format!(
            "{id} is no administrator: its agent renews its SVID"
        )));
    }
    let state = call.read().await.state;
    let bundle = state.view.bundles.get(&context.trust_domain).cloned();
    let bundle = bundle.ok_or_else(|| Status::internal("the cluster has no bundle of its own"))?;
    let ticket = grant_member(&context.trust_domain, &state.view.revocations, &id, CREDENTIAL_LIFETIME)
        .map_err(|e| Status::permission_denied(e.to_string()))?;
    let now = context.handle.clock().to_sign_by().inspect_err(|_| {
        context.metrics.signings_refused.inc();
    })?;
    let none = || Status::unavailable("none of this node's authorities signs at the moment: ask again");
    let signer = context.signing_authority(&state).ok_or_else(none)?;
    let issued = issue(ticket, &request.csr_der, &signer, random_serial(), now)
        .map_err(|e| Status::invalid_argument(e.to_string()))?;
    // In the trail before it is handed out.
    call.write(Command::CredentialRenew { id, serial: issued.facts.serial.clone() }).await?;
    context.metrics.svid_issued.inc();
    Ok(CredentialReply {
        chain_pem: issued.chain.iter().map(|der| to_pem("CERTIFICATE", der).to_string()).collect(),
        bundle,
        endpoints: state.private.nodes.values().map(|n| n.address.clone()).collect(),
        not_after: issued.facts.not_after,
    })
}
