//! Revocations in force: shown with all that is known, exported for others, cleared.

use std::process::Command as Process;

use hanse_identity::TrustDomain;

use super::lists::lists;
use super::*;
use crate::state::audit::AuditOutcome;

fn of_identity(id: &SpiffeId, reason: Reason) -> RevokeRequest {
    RevokeRequest {
        note: "lost".to_owned(),
        ..RevokeRequest::new(RevocationTarget::Identity(id.clone()), reason)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_is_shown_with_all_that_is_known_of_it() {
    let east = found("east", 3).await;
    let own: TrustDomain = "east.example".parse().unwrap();
    let client = east.client().await;
    let agent = join_agent(&east, "host-1", &agent_token(&client, "host-1").await).await.unwrap();
    let id: SpiffeId = "spiffe://east.example/ns/shop/sa/reviews".parse().unwrap();
    let svid = workload(&east, &client, &agent, &id, &["shop/reviews"]).await;
    let web: SpiffeId = "spiffe://east.example/ns/shop/sa/web".parse().unwrap();
    let caller = workload(&east, &client, &agent, &web, &[]).await;
    let mut proxy = watch_as(&east, &caller, "web-1", "proxy").await.unwrap();
    east.until("a list of every authority", |n| lists(n, &own).len() == 3).await;

    let revoked = client.call(&of_identity(&id, Reason::Hold)).await.unwrap();
    let show = RevokeShowRequest { id: revoked.id.clone() };
    let before = client.call(&show).await.unwrap();
    assert_eq!(before.receipt.parts[0].proxies, Tally { enforced: 0, total: 1 });
    assert_eq!(before.receipt.parts[0].behind[0].name.as_str(), "web-1");
    proxy.until("the revocation", 0, |view| view.revocations.get(&revoked.id).is_some()).await;
    let shown = eventually_asked("a complete receipt and the lists", || async {
        let shown = client.call(&show).await.unwrap();
        let listed = shown.lists == Some(Tally { enforced: 3, total: 3 });
        (shown.receipt.complete && listed).then_some(shown)
    })
    .await;
    let revocation = &shown.revocation;
    assert_eq!((revocation.note.as_str(), revocation.reason), ("lost", Reason::Hold));
    assert!(revocation.actor.ends_with("/hanse/admin/ann"), "{}", revocation.actor);
    assert!(revocation.serials.contains(&svid.facts.serial) && shown.can_be_lifted);
    assert_eq!(shown.receipt.parts[0].proxies, Tally { enforced: 1, total: 1 });

    client.call(&RevokeLiftRequest { id: revoked.id.clone() }).await.unwrap();
    assert_eq!(client.call(&show).await.unwrap_err().kind, ClientErrorKind::NotFound);
    east.stop().await;
}

/// What a user gets who runs `hanse revoke export --crl` and then openssl.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openssl_believes_the_exported_lists_and_refuses_what_they_name() {
    if Process::new("openssl").arg("version").output().is_err() {
        eprintln!("skipped: openssl is not installed");
        return;
    }
    let east = found("east", 3).await;
    let own: TrustDomain = "east.example".parse().unwrap();
    let client = east.client().await;
    let agent = join_agent(&east, "host-1", &agent_token(&client, "host-1").await).await.unwrap();
    let id: SpiffeId = "spiffe://east.example/ns/shop/sa/reviews".parse().unwrap();
    let (gone, good) = (
        workload(&east, &client, &agent, &id, &["shop/reviews"]).await,
        issue_svid(&east, &agent, &id, &["unix:uid:1000"]).await.unwrap(),
    );
    let request =
        RevokeRequest::new(RevocationTarget::Serial(gone.facts.serial.clone()), Reason::KeyCompromise);
    client.call(&request).await.unwrap();
    east.until("the serial number in every list", |n| {
        let lists = lists(n, &own);
        lists.len() == 3 && lists.iter().all(|crl| crl.entries().unwrap().contains_key(&gone.facts.serial))
    })
    .await;
    let exported = client.call(&RevokeExportRequest::default()).await.unwrap();
    assert!(!exported.meta.partial && exported.items.len() == 3, "{exported:?}");
    assert!(exported.items.iter().all(|list| list.entries == 1 && list.trust_domain == own));

    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &[u8]| {
        let path = directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let bundle = file("bundle.pem", east.bundle().to_pem().as_bytes());
    let all: String = exported.items.iter().map(|list| list.crl.to_pem().to_string()).collect();
    let all = file("lists.pem", all.as_bytes());
    let openssl = |arguments: &[&str]| {
        let output = Process::new("openssl").args(arguments).output().unwrap();
        let said =
            [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        (output.status.success(), said)
    };
    for list in &exported.items {
        let der = file("one.der", &list.crl.der);
        let (ok, said) =
            openssl(&["crl", "-inform", "DER", "-in", &der, "-CAfile", &bundle, "-noout", "-text"]);
        assert!(ok && said.contains("verify OK"), "{said}");
        assert!(said.to_lowercase().contains(&gone.facts.serial.to_string()), "{said}");
    }
    let verify = |svid: &Svid| {
        let svid = file("svid.pem", svid.chain_pem().as_bytes());
        openssl(&["verify", "-crl_check_all", "-CAfile", &bundle, "-CRLfile", &all, &svid])
    };
    let (ok, said) = verify(&good);
    assert!(ok, "{said}");
    let (ok, said) = verify(&gone);
    assert!(!ok && said.contains("certificate revoked"), "{said}");
    east.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revocations_are_cleared_by_name_or_all_and_compromised_keys_only_if_that_is_said() {
    let east = found("east", 1).await;
    let client = east.client().await;
    let id = |name: &str| format!("spiffe://east.example/ns/shop/sa/{name}").parse::<SpiffeId>().unwrap();
    let mut ids = Vec::new();
    for (name, reason) in [
        ("a", Reason::Cessation),
        ("b", Reason::Superseded),
        ("c", Reason::KeyCompromise),
        ("d", Reason::Hold),
    ] {
        ids.push(client.call(&of_identity(&id(name), reason)).await.unwrap().id);
    }
    let clear = |ids: &[hanse_identity::RevocationId], all, include_compromised| RevokeClearRequest {
        ids: ids.to_vec(),
        all,
        include_compromised,
    };
    let left = || async {
        let items = client.call(&RevokeListRequest {}).await.unwrap().items;
        items.into_iter().map(|item| item.revocation.id).collect::<Vec<_>>()
    };
    let refused = client.call(&clear(&[], false, false)).await.unwrap_err();
    assert_eq!(refused.kind, ClientErrorKind::Invalid);
    let refused = client.call(&clear(&ids[2..3], false, false)).await.unwrap_err();
    assert_eq!(refused.kind, ClientErrorKind::Precondition);
    let unknown = ["r-9999@east.example".parse().unwrap()];
    assert_eq!(client.call(&clear(&unknown, false, true)).await.unwrap_err().kind, ClientErrorKind::NotFound);
    assert_eq!(left().await, ids, "what is refused changes nothing");

    let done = client.call(&clear(&ids[..1], false, false)).await.unwrap();
    assert_eq!((done.cleared, done.kept), (1, 0));
    let done = client.call(&clear(&[], true, false)).await.unwrap();
    assert_eq!((done.cleared, done.kept), (2, 1));
    assert_eq!(left().await, ids[2..3]);
    let done = client.call(&clear(&[], true, true)).await.unwrap();
    assert_eq!((done.cleared, done.kept), (1, 0));
    assert!(left().await.is_empty());

    let rows = AuditListRequest { kind: Some("revoke-clear".to_owned()), ..Default::default() };
    let rows = client.call(&rows).await.unwrap().items;
    let done = rows.iter().filter(|row| row.outcome == AuditOutcome::Done).count();
    assert_eq!(done, 3, "{rows:?}");
    assert!(rows.iter().any(|row| row.target.contains("key compromises too")), "{rows:?}");
    east.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_authority_is_replaced_and_its_receipt_says_how_far_that_is() {
    use crate::state::rotation::Gate;

    let east = found("east", 3).await;
    let client = east.client().await;
    let own: TrustDomain = "east.example".parse().unwrap();
    // Not that of the node whose authority has signed the administrator's credential.
    let (file, stolen, _) = load(east.directories[2].path());
    let key = stolen.certificate().key_id;
    let target = RevocationTarget::Authority(key);
    let preview = client.call(&RevokePreviewRequest::new(target.clone())).await.unwrap();
    assert_eq!((preview.already, preview.certificates), (None, 0));
    let revoked = client.call(&RevokeRequest::new(target, Reason::KeyCompromise)).await.unwrap();
    let status = RevokeStatusRequest { id: revoked.id.clone() };
    let first = client.call(&status).await.unwrap();
    assert_eq!(first.gates.as_ref().map(|gates| gates.rotation), Some(revoked.revision));
    let receipt = eventually_asked("a complete receipt", || async {
        Some(client.call(&status).await.unwrap()).filter(|receipt| receipt.complete)
    })
    .await;
    let gates = receipt.gates.unwrap();
    assert_eq!((gates.gate, gates.reached.len()), (Gate::Done, 6));
    east.until("a bundle without it", |n| {
        let view = &n.context.handle.state().view;
        let there = view.bundles[&own].authorities.iter().any(|a| a.key_id == key);
        !there && view.bundles[&own].authorities.len() == 3
    })
    .await;
    assert_eq!(client.call(&NodeListRequest {}).await.unwrap().quorum.answering, 3);
    let listed = client.call(&RevokeListRequest {}).await.unwrap().items.remove(0);
    assert!(listed.revocation.authorities.contains(&key) && !listed.can_be_lifted);

    // What a thief signs with the stolen key is nobody's, here and wherever the list has been told.
    let thief = SpiffeId::member(&own, MemberRole::Agent, &"host-1".parse().unwrap());
    let ticket =
        hanse_identity::grant::grant_member(&own, &Revocations::default(), &thief, Duration::from_secs(3600))
            .unwrap();
    let request = new_key_pair().unwrap();
    let csr = certificate_request(&request).unwrap();
    let forged = hanse_identity::issue(ticket, &csr, &stolen, keys::random_serial(), now()).unwrap();
    let forged = Svid::new(forged.chain, Zeroizing::new(request.serialize_der())).unwrap();
    let verdict = IdentityVerifyRequest { pem: forged.chain_pem(), at: None };
    assert!(!client.call(&verdict).await.unwrap().believed);
    let back = crate::command::Command::AuthorityPublish {
        node: file.record.name.clone(),
        certificate: stolen.certificate().clone(),
        rotation: None,
    };
    let outcome = east.any().context.handle.propose("", back).await.unwrap();
    assert!(outcome.result.unwrap_err().to_string().contains("is revoked by"));
    east.stop().await;
}
