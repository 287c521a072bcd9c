//! `identity list` and `identity verify`: the issuance index, and this node's trust asked about a chain.

use std::collections::{BTreeMap, BTreeSet};

use hanse_identity::{
    ClusterName, NodeName, Revocations, Serial, SpiffeId, SvidFacts, Timestamp, Usage, renewal, verify,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tonic::Status;

use super::Call;
use crate::admin::{
    IDENTITY_PAGE, IdentityItem, IdentityList, IdentityListRequest, IdentityVerdict, IdentityVerifyRequest,
    MAX_IDENTITY_PAGE, MAX_PEM, Renewal, merged,
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
        .map(|svid| item(&call.context.cluster, svid, revocations, holders.get(&svid.id)))
        .filter(|item| request.of.as_ref().is_none_or(|text| item.is_meant_by(text)))
        .filter(|item| !request.revoked || item.revoked.is_some())
        .collect();
    items.sort_by(|one, other| (one.not_after, &one.serial).cmp(&(other.not_after, &other.serial)));
    let limit = request.limit.unwrap_or(IDENTITY_PAGE).clamp(1, MAX_IDENTITY_PAGE);
    let more = items.len().saturating_sub(limit);
    items.truncate(limit);
    let shown: BTreeSet<_> = items.iter().map(|item| (item.spiffe_id.clone(), item.agent.clone())).collect();
    let live = reading.state.private.issued.live(now).filter(|svid| svid.not_after > now && !svid.downstream);
    let mut known = renewals(live.filter(|s| shown.contains(&(s.id.clone(), s.agent.clone()))), now);
    items.iter_mut().for_each(|item| item.renewal = known.remove(&item.serial));
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

/// When each of these is replaced, as far as the index can tell: an SVID that was given through an agent may have
/// replaced any older one of its identity there.
fn renewals<'s>(svids: impl Iterator<Item = &'s IssuedSvid>, now: Timestamp) -> BTreeMap<Serial, Renewal> {
    let svids: Vec<(Timestamp, &IssuedSvid)> = svids.filter_map(|svid| Some((svid.issued?, svid))).collect();
    let mut newest: BTreeMap<(&SpiffeId, &NodeName), Timestamp> = BTreeMap::new();
    for (issued, svid) in &svids {
        let known = newest.entry((&svid.id, &svid.agent)).or_insert(*issued);
        *known = (*known).max(*issued);
    }
    let renewal = |issued: Timestamp, svid: &IssuedSvid| {
        let by = renewal::renew_at(issued, svid.not_after, 1.0);
        match by > now {
            true => Renewal::By(by),
            false if newest[&(&svid.id, &svid.agent)] > issued => Renewal::Replaced,
            false => Renewal::Overdue(by),
        }
    };
    svids.iter().map(|(issued, svid)| (svid.serial.clone(), renewal(*issued, svid))).collect()
}

fn item(
    cluster: &ClusterName,
    svid: &IssuedSvid,
    revocations: &Revocations,
    holders: Option<&Vec<NodeName>>,
) -> IdentityItem {
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
        cluster: cluster.clone(),
        spiffe_id: svid.id.clone(),
        serial: svid.serial.clone(),
        key: svid.key,
        authority: svid.authority,
        node: svid.node.clone(),
        agent: svid.agent.clone(),
        holders: holders.cloned().unwrap_or_default(),
        issued: svid.issued,
        not_after: svid.not_after,
        renewal: None,
        downstream: svid.downstream,
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
            let revocations = &reading.state.view.revocations;
            Some(item(&call.context.cluster, &svid, revocations, holders.get(&svid.id)))
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hanse_identity::KeyId;

    use super::*;

    const DAY: u64 = 86_400;

    /// Of one identity on that host, signed that many seconds after 1970; it lives a day.
    fn svid(serial: u8, host: &str, at: u64) -> IssuedSvid {
        let issued = Timestamp::from_seconds(at);
        IssuedSvid {
            serial: Serial::new(&[serial]).unwrap(),
            id: "spiffe://east.example/ns/shop/sa/reviews".parse().unwrap(),
            key: KeyId([serial; 32]),
            authority: KeyId([0; 32]),
            agent: host.parse().unwrap(),
            node: "east-1".parse().unwrap(),
            issued: Some(issued),
            not_after: issued + Duration::from_secs(DAY),
            downstream: false,
        }
    }

    #[test]
    fn a_renewal_is_ahead_has_been_or_is_overdue() {
        let of = |svids: &[IssuedSvid], at| renewals(svids.iter(), Timestamp::from_seconds(at));
        let key = |serial: u8| Serial::new(&[serial]).unwrap();
        let by = |at: u64| Timestamp::from_seconds(at + DAY * 6 / 10);
        let one = [svid(1, "host-1", 0)];
        assert_eq!(of(&one, 1_000)[&key(1)], Renewal::By(by(0)));
        assert_eq!(of(&one, DAY * 7 / 10)[&key(1)], Renewal::Overdue(by(0)));
        let half = DAY / 2;
        let renewed = [svid(1, "host-1", 0), svid(2, "host-1", half)];
        let known = of(&renewed, DAY * 7 / 10);
        assert_eq!((known[&key(1)], known[&key(2)]), (Renewal::Replaced, Renewal::By(by(half))));
        // Another host's is no replacement; of two processes here one has been given a new one.
        let known = of(&[svid(1, "host-1", 0), svid(2, "host-2", half)], DAY * 7 / 10);
        assert_eq!(known[&key(1)], Renewal::Overdue(by(0)));
        let two = [svid(1, "host-1", 0), svid(3, "host-1", 0), svid(2, "host-1", half)];
        let overdue = of(&two, DAY * 7 / 10).into_values().filter(|r| matches!(r, Renewal::Overdue(_)));
        assert_eq!(overdue.count(), 0, "which of the two was given it only their agent knows");
        // What an earlier version recorded says nothing.
        assert!(of(&[IssuedSvid { issued: None, ..svid(1, "host-1", 0) }], 0).is_empty());
    }
}
