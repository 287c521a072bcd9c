//! `identity list` and `identity verify`: the issuance index, and this node's trust asked about a chain.

use std::collections::{BTreeMap, BTreeSet};

use hanse_identity::{NodeName, Revocations, SpiffeId, SvidFacts, Usage, verify};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tonic::Status;

use super::Call;
use crate::admin::{
    IDENTITY_PAGE, IdentityItem, IdentityList, IdentityListRequest, IdentityVerdict, IdentityVerifyRequest,
    MAX_IDENTITY_PAGE, MAX_PEM, merged,
};
use crate::io::census::{Query, gather};
use crate::io::context::{Context, now};
use crate::state::issuance::IssuedSvid;

pub async fn list(call: Call, request: IdentityListRequest) -> Result<IdentityList, Status> {
    let (holders, silent) = holders(&call.context).await;
    let mut reading = call.read().await;
    reading.silent(&silent);
    let (now, revocations) = (now(), &reading.state.view.revocations);
    let mut items: Vec<IdentityItem> = reading
        .state
        .private
        .issued
        .live(now)
        .filter(|svid| svid.not_after > now && request.ends_before.is_none_or(|end| svid.not_after < end))
        .map(|svid| item(svid, revocations, holders.get(&svid.id)))
        .filter(|item| request.of.as_ref().is_none_or(|text| item.is_meant_by(text)))
        .filter(|item| !request.revoked || item.revoked.is_some())
        .collect();
    // The index gives those that end last first.
    items.reverse();
    let limit = request.limit.unwrap_or(IDENTITY_PAGE).clamp(1, MAX_IDENTITY_PAGE);
    let more = items.len().saturating_sub(limit);
    items.truncate(limit);
    Ok(IdentityList { meta: reading.meta, items, more, warnings: reading.warnings })
}

/// Who runs under which identity now, and the nodes that did not say.
async fn holders(context: &Context) -> (BTreeMap<SpiffeId, Vec<NodeName>>, BTreeSet<NodeName>) {
    let (subscribers, silent) = gather(context, &Query::Subscribers).await.subscribers();
    let mut holders: BTreeMap<SpiffeId, Vec<NodeName>> = BTreeMap::new();
    for subscriber in merged(subscribers).into_iter().filter(|s| s.connected) {
        holders.entry(subscriber.identity).or_default().push(subscriber.name);
    }
    (holders, silent)
}

fn item(svid: &IssuedSvid, revocations: &Revocations, holders: Option<&Vec<NodeName>>) -> IdentityItem {
    let facts = SvidFacts {
        id: svid.id.clone(),
        serial: svid.serial.clone(),
        authority_key_identifier: Some(svid.authority.prefix()),
        key_id: svid.key,
        // The index does not know when it began; what a watermark hits is hit by its serial number too.
        not_before: svid.not_after,
        not_after: svid.not_after,
    };
    IdentityItem {
        spiffe_id: svid.id.clone(),
        serial: svid.serial.clone(),
        key: svid.key,
        authority: svid.authority,
        node: svid.node.clone(),
        agent: svid.agent.clone(),
        holders: holders.cloned().unwrap_or_default(),
        not_after: svid.not_after,
        revoked: revocations.check_from(&facts, &[svid.authority]).map(|r| r.id.clone()),
    }
}

pub async fn check(call: Call, request: IdentityVerifyRequest) -> Result<IdentityVerdict, Status> {
    if request.pem.len() > MAX_PEM {
        return Err(Status::invalid_argument(format!(
            "a chain of more than {MAX_PEM} bytes is not looked at"
        )));
    }
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(request.pem.as_bytes()).collect();
    let chain = chain.map_err(|e| Status::invalid_argument(format!("this is no PEM: {e}")))?;
    let mut reading = call.read().await;
    let trust = reading.state.view.trust();
    let ders: Vec<&[u8]> = chain.iter().map(AsRef::as_ref).collect();
    let verified = verify(&trust, &ders, request.at.unwrap_or_else(now), Usage::Client);
    let facts = ders.first().and_then(|leaf| SvidFacts::parse(leaf).ok());
    let issued = facts.as_ref().and_then(|facts| reading.state.private.issued.get(&facts.serial));
    let issued = issued.filter(|svid| facts.as_ref().is_some_and(|facts| facts.key_id == svid.key));
    let issued = match issued.cloned() {
        Some(svid) => {
            let (holders, silent) = holders(&call.context).await;
            reading.silent(&silent);
            Some(item(&svid, &reading.state.view.revocations, holders.get(&svid.id)))
        }
        None => None,
    };
    Ok(IdentityVerdict {
        believed: verified.is_ok(),
        spiffe_id: facts.as_ref().map(|facts| facts.id.clone()),
        authorities: verified.as_ref().map(|v| v.authorities().to_vec()).unwrap_or_default(),
        why: verified.err().map(|error| error.to_string()),
        issued,
        meta: reading.meta,
        warnings: reading.warnings,
    })
}
