//! Bundles of foreign trust domains by hand, through the Admin API: what is kept, what agents are told, who may.

use hanse_identity::TrustDomain;

use super::*;
use crate::role::Role;
use crate::state::strangers::Dependents;

fn domain(text: &str) -> TrustDomain {
    text.parse().unwrap()
}

fn authority(of: &str) -> hanse_identity::Authority {
    let key = new_key_pair().unwrap();
    let (name, serial) = ("root".parse().unwrap(), keys::random_serial());
    hanse_identity::Authority::create(&domain(of), &name, key, serial, now(), Duration::from_secs(3600))
        .unwrap()
}

/// The certificate of a trust domain's authority.
pub(super) fn authority_pem(of: &str) -> String {
    Bundle::new(domain(of), 0, vec![authority(of).certificate().clone()]).to_pem()
}

fn request(of: &str, bundle: impl Into<String>) -> TrustBundleSetRequest {
    let (trust_domain, bundle) = (domain(of), bundle.into());
    TrustBundleSetRequest { trust_domain, bundle, allow_lower_sequence: false, dry_run: false }
}

fn told(east: &Cluster) -> hanse_identity::wire::AgentState {
    crate::io::issue::agent_state(&east.any().context.handle.state(), &"host-1".parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_bundle_is_set_by_hand_shown_and_deleted() {
    let east = found("east", 1).await;
    let client = east.client().await;
    let north = authority("north.example");
    let wanted = Bundle::new(domain("north.example"), 7, vec![north.certificate().clone()]);

    let dry = TrustBundleSetRequest { dry_run: true, ..request("north.example", wanted.to_jwks(60)) };
    let would = client.call(&dry).await.unwrap();
    assert_eq!((would.revision, would.changed, would.sequence), (None, true, 7));
    assert!(told(&east).strangers.is_empty(), "a dry run changes nothing");

    let kept = client.call(&request("north.example", wanted.to_jwks(60))).await.unwrap();
    assert!(kept.changed && kept.revision.is_some() && kept.url.is_none());
    assert_eq!(kept.authorities, wanted.pins());
    let again = client.call(&request("north.example", wanted.to_jwks(60))).await.unwrap();
    assert!(!again.changed);
    // PEM has no sequence: it is older than what counts.
    let by_pem = request("north.example", wanted.to_pem());
    let refused = client.call(&by_pem).await.unwrap_err();
    assert_eq!(refused.kind, ClientErrorKind::Precondition, "{refused}");
    let older = TrustBundleSetRequest { allow_lower_sequence: true, ..by_pem };
    assert_eq!(client.call(&older).await.unwrap().sequence, 0);

    let listed = client.call(&FederationListRequest::default()).await.unwrap().items;
    assert_eq!((listed.len(), listed[0].state), (1, FederationState::ByHand));
    assert_eq!((&listed[0].url, &listed[0].profile), (&None, &None));
    let believed = client.call(&TrustBundleListRequest::default()).await.unwrap().items;
    assert_eq!(believed.iter().map(|b| b.trust_domain.as_str()).collect::<Vec<_>>(), ["east.example"]);
    let all = client.call(&TrustBundleListRequest { foreign: true }).await.unwrap().items;
    assert_eq!(all.iter().find(|b| b.trust_domain == domain("north.example")).unwrap().pins(), wanted.pins());
    // There is nowhere to fetch it from.
    let fetch = FederationRefreshRequest { trust_domain: domain("north.example") };
    let refused = client.call(&fetch).await.unwrap_err();
    assert!(refused.kind == ClientErrorKind::Precondition && refused.why.contains("by hand"), "{refused}");

    // Agents hear of it, and hear that it is gone; nothing of the mesh believes it.
    assert_eq!(told(&east).strangers, BTreeSet::from([domain("north.example")]));
    assert!(told(&east).bundles.iter().any(|b| b.trust_domain == domain("north.example")));
    assert!(!east.any().context.trust.current().knows(&domain("north.example")));
    let trust_domain = domain("north.example");
    let gone = TrustBundleDeleteRequest { trust_domain, registrations: Dependents::Restrict };
    client.call(&gone).await.unwrap();
    assert!(told(&east).strangers.is_empty() && told(&east).bundles.len() == 1);
    assert_eq!(client.call(&gone).await.unwrap_err().kind, ClientErrorKind::NotFound);
    east.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_not_be_a_foreign_bundle_is_refused_with_its_reason() {
    let east = found("east", 1).await;
    let client = east.client().await;
    let pem = authority_pem("north.example");
    let key = new_key_pair().unwrap().serialize_pem();
    for (of, text, why) in [
        ("north.example", format!("{pem}{key}"), "private key"),
        ("north.example", String::new(), "no authority"),
        ("north.example", authority_pem("south.example"), "not an authority of north.example"),
        ("east.example", authority_pem("east.example"), "hanse trust rotate"),
    ] {
        let refused = client.call(&request(of, text)).await.unwrap_err();
        assert_eq!(refused.kind, ClientErrorKind::Invalid, "{refused}");
        assert!(refused.why.contains(why), "{refused}");
        assert!(!format!("{refused}").contains("BEGIN"));
    }
    // Only a federation-admin may.
    let own = east.credential.svid().unwrap().facts.id;
    client.call(&RoleUnbindRequest { id: own, roles: [Role::FederationAdmin].into() }).await.unwrap();
    let denied = client.call(&request("north.example", pem)).await.unwrap_err();
    assert_eq!(denied.kind, ClientErrorKind::NotAllowed, "{denied}");
    assert!(told(&east).strangers.is_empty());
    east.stop().await;
}
