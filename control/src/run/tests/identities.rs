//! `identity list|verify` over the wire: what lives, by each of its names, and whether a chain is believed.

use super::*;
use crate::admin::{IdentityItem, IdentityListRequest, IdentityVerdict, IdentityVerifyRequest};

async fn of(client: &Client, text: &str) -> Vec<IdentityItem> {
    let request = IdentityListRequest { of: Some(text.to_owned()), ..Default::default() };
    client.call(&request).await.unwrap().items
}

async fn verdict(client: &Client, svid: &Svid, at: Option<Timestamp>) -> IdentityVerdict {
    client.call(&IdentityVerifyRequest { pem: svid.chain_pem(), at }).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_lives_is_found_by_each_of_its_names_and_believed_until_it_is_revoked() {
    let east = found("east", 1).await;
    let client = east.client().await;
    let token = agent_token(&client, "host-1").await;
    let agent = join_agent(&east, "host-1", &token).await.unwrap();
    let id: SpiffeId = "spiffe://east.example/ns/shop/sa/reviews".parse().unwrap();
    let svid = workload(&east, &client, &agent, &id, &["shop/reviews"]).await;
    let facts = &svid.facts;

    for name in ["reviews", "spiffe://east.example/ns/shop/sa/reviews", &facts.serial.to_string()] {
        let items = of(&client, name).await;
        let [item] = &items[..] else { panic!("{name}: {items:?}") };
        assert_eq!((&item.spiffe_id, &item.serial, item.key), (&id, &facts.serial, facts.key_id));
        assert_eq!((item.agent.as_str(), item.node.as_str()), ("host-1", "east-1"));
        assert_eq!((item.not_after, &item.revoked), (facts.not_after, &None));
        assert_eq!(item.cluster.as_str(), "east");
        let issued = item.issued.unwrap();
        let Some(Renewal::By(by)) = item.renewal else { panic!("{item:?}") };
        assert!(issued <= now() && issued < by && by < item.not_after, "{item:?}");
    }
    assert_eq!(of(&client, "host-1").await.len(), 2, "the agent's own and the workload's");
    assert!(of(&client, "ratings").await.is_empty());
    let all = client.call(&IdentityListRequest::default()).await.unwrap().items;
    assert!(
        all.len() == 2 && all[0].not_after <= all[1].not_after,
        "that which ends first is first: {all:?}"
    );
    let page = client.call(&IdentityListRequest { limit: Some(1), ..Default::default() }).await.unwrap();
    assert_eq!((page.items.len(), page.more), (1, 1));
    assert_eq!(page.items[0].serial, all[0].serial);
    let soon = IdentityListRequest { ends_before: Some(facts.not_after), ..Default::default() };
    let soon = client.call(&soon).await.unwrap().items;
    assert!(soon.iter().all(|item| item.not_after < facts.not_after), "{soon:?}");

    let _proxy = watch_as(&east, &svid, "reviews-1", "proxy").await.unwrap();
    let believed = verdict(&client, &svid, None).await;
    assert!(believed.believed, "{believed:?}");
    assert_eq!(believed.authorities.len(), 1);
    let issued = believed.issued.unwrap();
    assert_eq!(issued.serial, facts.serial);
    assert_eq!(issued.holders.iter().map(NodeName::as_str).collect::<Vec<_>>(), ["reviews-1"]);
    let late = verdict(&client, &svid, Some(facts.not_after + Duration::from_secs(1))).await;
    assert!(!late.believed && late.why.as_ref().unwrap().contains("expired"), "{late:?}");
    let other = found("east", 1).await;
    let theirs = other.client().await;
    let refused = verdict(&theirs, &svid, None).await;
    assert!(!refused.believed && refused.issued.is_none(), "{refused:?}");
    assert!(refused.why.unwrap().contains("not signed by an authority of east.example"));
    let no_pem = IdentityVerifyRequest { pem: "-----BEGIN CERTIFICATE-----\n!".to_owned(), at: None };
    assert!(client.call(&no_pem).await.is_err());
    let empty = IdentityVerifyRequest { pem: String::new(), at: None };
    assert!(!client.call(&empty).await.unwrap().believed);

    let target = RevocationTarget::Serial(facts.serial.clone());
    let revoked = client.call(&RevokeRequest::new(target, Reason::KeyCompromise)).await.unwrap();
    let listed = IdentityListRequest { revoked: true, ..Default::default() };
    let listed = client.call(&listed).await.unwrap().items;
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert_eq!(listed[0].revoked.as_ref(), Some(&revoked.id));
    let refused = verdict(&client, &svid, None).await;
    assert!(!refused.believed && refused.why.unwrap().contains(&revoked.id.to_string()));
    other.stop().await;
    east.stop().await;
}
