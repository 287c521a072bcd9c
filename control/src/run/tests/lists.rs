//! Revocation lists: every authority has one from its birth, it follows what is revoked, and peers are told.

use hanse_identity::crl::CrlError;
use hanse_identity::{Crl, Serial, TrustDomain};

use super::*;

/// The lists of a trust domain as a node has them, each checked against its authority.
pub(super) fn lists(node: &Started, trust_domain: &TrustDomain) -> Vec<Crl> {
    let state = node.context.handle.state();
    let Some(known) = state.view.crls.get(trust_domain) else { return Vec::new() };
    let authorities = &state.view.bundles[trust_domain].authorities;
    assert!(known.len() <= authorities.len());
    let checked = authorities.iter().filter_map(|authority| {
        let crl = known.get(&authority.key_id)?;
        crl.check(authority).map(|()| crl.clone()).map(Some).transpose()
    });
    checked.collect::<Result<_, CrlError>>().unwrap()
}

fn serials(crls: &[Crl]) -> Vec<Vec<Serial>> {
    crls.iter().map(|crl| crl.entries().unwrap().into_keys().collect()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_authority_has_a_list_that_follows_what_is_revoked() {
    let east = found("east", 3).await;
    let own: TrustDomain = "east.example".parse().unwrap();
    let nothing: Vec<Vec<Serial>> = vec![vec![]; 3];
    east.until("an empty list of every authority", |n| serials(&lists(n, &own)) == nothing).await;

    let client = east.client().await;
    let serial: Serial = "41:02:03:04:05:06:07:08:09:0a:0b:0c:0d:0e:0f:10".parse().unwrap();
    let request = RevokeRequest::new(RevocationTarget::Serial(serial.clone()), Reason::KeyCompromise);
    let revoked = client.call(&request).await.unwrap();
    let listed = vec![vec![serial.clone()]; 3];
    east.until("the serial number in every list", |n| serials(&lists(n, &own)) == listed).await;
    let covered = lists(east.any(), &own);
    assert!(covered.iter().all(|crl| crl.number >= revoked.revision), "{covered:?}");

    east.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_comes_back_finds_its_list_as_it_must_be_and_makes_no_other() {
    let mut east = found("east", 1).await;
    let own: TrustDomain = "east.example".parse().unwrap();
    east.until("a list", |n| lists(n, &own).len() == 1).await;
    let before = lists(east.any(), &own);
    east.restart(0).await;
    // Whatever it would do about its list it does before this.
    let token = agent_token(&east.client().await, "host-1").await;
    assert!(!token.invite.is_empty());
    assert_eq!(lists(east.any(), &own), before);
    east.stop().await;
}
