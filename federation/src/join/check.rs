//! What both sides look at before anything is committed.

use std::time::Duration;

use hanse_identity::Timestamp;
use hanse_identity::name::MemberRole;

use super::{Check, JoinRequest, MAX_CLOCK_SKEW, Offer, Phase};
use crate::session::{self, MAX_ENDPOINTS, MAX_GATEWAYS};
use crate::view::{Peer, View};

/// The checks on the other side's offer that need nothing but our own View: self-join, names, trust domains,
/// bundle, clocks, version, and that both sides have gateways. Used by both sides.
pub fn check_offer(
    view: &View,
    offer: &Offer,
    invite: &str,
    now: Timestamp,
    our_version: &str,
) -> Vec<Check> {
    let mut checks = vec![
        check_bundle(offer),
        check_clocks(offer, now),
        check_names(view, offer, invite),
        check_version(offer, our_version),
    ];
    checks.extend(check_endpoints(offer));
    checks.extend(check_gateways(view, offer));
    checks
}

/// The inviter's decision on a request whose proof has been checked. `reach_back` is what its own dials to the
/// joiner's endpoints and gateways gave (only asked for in preflight). A commit that was made already is confirmed
/// whatever has changed since: the same request gets the same answer. An abort is never refused.
pub fn invited(
    view: &View,
    request: &JoinRequest,
    reach_back: &[Check],
    now: Timestamp,
    our_version: &str,
) -> Vec<Check> {
    let offer = &request.offer;
    match request.phase {
        Phase::Abort => Vec::new(),
        Phase::Commit if peer_by(view, offer, &request.invite).is_some() => {
            vec![Check::passed("agree", format!("{} has joined by this invite", offer.cluster))]
        }
        Phase::Commit => check_offer(view, offer, &request.invite, now, our_version),
        Phase::Preflight => {
            let mut checks = check_offer(view, offer, &request.invite, now, our_version);
            checks.extend_from_slice(reach_back);
            checks
        }
    }
}

/// The peer that this very invite has made.
fn peer_by<'v>(view: &'v View, offer: &Offer, invite: &str) -> Option<&'v Peer> {
    let peer = view.peers.get(&offer.cluster)?;
    (peer.record.invite == invite && peer.record.trust_domain == offer.trust_domain).then_some(peer)
}

fn check_bundle(offer: &Offer) -> Check {
    let bundle = &offer.bundle;
    if bundle.trust_domain != offer.trust_domain {
        let detail = format!(
            "{} offers the bundle of {}, not of its own {}; nothing can mend this but its operator",
            offer.cluster, bundle.trust_domain, offer.trust_domain
        );
        return Check::failed("pin", detail);
    }
    match bundle.check() {
        Ok(()) => {
            let pins: Vec<String> =
                bundle.authorities.iter().map(|a| format!("sha256:{}", &a.key_id.to_string()[..8])).collect();
            Check::passed("pin", format!("{}… of {}", pins.join("… "), offer.trust_domain))
        }
        Err(error) => {
            Check::failed("pin", format!("the bundle of {} is not good: {error}", offer.trust_domain))
        }
    }
}

fn check_clocks(offer: &Offer, now: Timestamp) -> Check {
    let skew = now.since(offer.clock).max(offer.clock.since(now));
    let detail = format!("skew {} s (limit {} s)", seconds(skew), MAX_CLOCK_SKEW.as_secs());
    if skew <= MAX_CLOCK_SKEW {
        return Check::passed("clocks", detail);
    }
    Check::failed(
        "clocks",
        format!("{detail}: {} has {}, here it is {now}; set both clocks by NTP", offer.cluster, offer.clock),
    )
}

fn check_names(view: &View, offer: &Offer, invite: &str) -> Check {
    let fail = |detail: String| Check::failed("names", detail);
    if offer.cluster == view.cluster && offer.trust_domain == view.trust_domain {
        return fail(format!("{} would join itself; use the token in the other cluster", offer.cluster));
    }
    if offer.cluster == view.cluster {
        return fail(format!(
            "both clusters are named {}; found one of them anew with another name",
            offer.cluster
        ));
    }
    if offer.trust_domain == view.trust_domain {
        let detail = format!(
            "both clusters have trust domain {}; found one of them anew with another",
            offer.trust_domain
        );
        return fail(detail);
    }
    if let Some(other) = view.peer_of(&offer.trust_domain).filter(|p| p.record.cluster != offer.cluster) {
        let other = &other.record.cluster;
        let detail = format!(
            "trust domain {} belongs to {other} already; if {other} is no more: hanse cluster leave {other}",
            offer.trust_domain
        );
        return fail(detail);
    }
    if let Some(peer) = view.peers.get(&offer.cluster)
        && peer_by(view, offer, invite).is_none()
    {
        let detail = format!(
            "{} has already joined {} (trust domain {}) by another invite; leave first: hanse cluster leave {}",
            offer.cluster, view.cluster, peer.record.trust_domain, offer.cluster
        );
        return fail(detail);
    }
    Check::passed("names", format!("no clash: {}, {}", offer.cluster, offer.trust_domain))
}

/// The same major version, and at most one minor version apart.
fn check_version(offer: &Offer, our_version: &str) -> Check {
    let theirs: String = offer.version.chars().take(40).collect();
    let detail = format!("{} has {theirs}, here it is {our_version}", offer.cluster);
    match (major_minor(&offer.version), major_minor(our_version)) {
        (Some((a, b)), Some((c, d))) if a == c && b.abs_diff(d) <= 1 => Check::passed("version", detail),
        (Some(theirs), Some(ours)) => {
            let older = if theirs < ours { &offer.cluster.to_string() } else { "this cluster" };
            Check::failed(
                "version",
                format!("{detail}: more than one minor version apart; upgrade {older} first"),
            )
        }
        _ => Check::failed("version", format!("{detail}: not of the form MAJOR.MINOR.PATCH")),
    }
}

fn major_minor(version: &str) -> Option<(u64, u64)> {
    let mut parts = version.split('.');
    let major = parts.next()?.parse().ok()?;
    let minor = parts.next()?.parse().ok()?;
    Some((major, minor))
}

/// Only said if it fails: that they answer is for whoever dials them.
fn check_endpoints(offer: &Offer) -> Option<Check> {
    let cluster = &offer.cluster;
    if offer.endpoints.is_empty() {
        let detail = format!("{cluster} names no control node to dial; start its nodes with --advertise");
        return Some(Check::failed("reach", detail));
    }
    if offer.endpoints.len() > MAX_ENDPOINTS {
        let detail = format!(
            "{cluster} names {} control nodes; at most {MAX_ENDPOINTS} are kept",
            offer.endpoints.len()
        );
        return Some(Check::failed("reach", detail));
    }
    let refusal = offer.endpoints.iter().find_map(|endpoint| session::address(endpoint).err())?;
    Some(Check::failed("reach", format!("an address of {cluster}: {refusal}; mend its --advertise")))
}

/// Only said if it fails: whether they pass traffic is for the probes to say.
fn check_gateways(view: &View, offer: &Offer) -> Option<Check> {
    let fail = |detail: String| Some(Check::failed("gateways", detail));
    if view.gateways.is_empty() {
        return fail(no_gateway(view.cluster.as_str()));
    }
    if offer.gateways.is_empty() {
        return fail(no_gateway(offer.cluster.as_str()));
    }
    if offer.gateways.len() > MAX_GATEWAYS {
        let detail = format!(
            "{} names {} gateways; at most {MAX_GATEWAYS} are kept",
            offer.cluster,
            offer.gateways.len()
        );
        return fail(detail);
    }
    for gateway in &offer.gateways {
        if !gateway.identity.is_member(&offer.trust_domain, MemberRole::Gateway) {
            let detail = format!(
                "{} names {} as a gateway, which is no gateway of {}",
                offer.cluster, gateway.identity, offer.trust_domain
            );
            return fail(detail);
        }
        if let Err(refusal) = session::address(&gateway.tunnel) {
            return fail(format!(
                "gateway {} of {}: {refusal}; mend its --advertise",
                gateway.name, offer.cluster
            ));
        }
    }
    None
}

fn no_gateway(cluster: &str) -> String {
    format!(
        "{cluster} has no gateway, and a join needs one on each side; start one there: hanse gateway --name gateway-1 …"
    )
}

/// Seconds with one decimal.
pub(super) fn seconds(duration: Duration) -> String {
    format!("{}.{}", duration.as_secs(), duration.subsec_millis() / 100)
}
