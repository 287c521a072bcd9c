//! A cluster that was stopped as a whole and comes up on copies of its data directories: what was revoked stays revoked,
//! and nothing is counted twice.

use super::*;
use crate::admin::{IdentityListRequest, IdentityVerifyRequest};

/// As a cold backup has it: every file, with its mode.
fn copied(from: &Path) -> tempfile::TempDir {
    fn copy(from: &Path, to: &Path) {
        for entry in std::fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let there = to.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                std::fs::create_dir(&there).unwrap();
                std::fs::set_permissions(&there, entry.metadata().unwrap().permissions()).unwrap();
                copy(&entry.path(), &there);
            } else {
                std::fs::copy(entry.path(), there).unwrap();
            }
        }
    }
    let to = tempfile::tempdir().unwrap();
    copy(from, to.path());
    to
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_revoked_stays_revoked_when_all_nodes_come_up_on_copies_of_their_disks() {
    let mut east = found("east", 3).await;
    let client = east.client().await;
    let agent = join_agent(&east, "host-1", &agent_token(&client, "host-1").await).await.unwrap();
    let [held, stolen, good] =
        ["held", "stolen", "good"].map(|name| format!("spiffe://east.example/ns/shop/sa/{name}"));
    let [held, stolen, good]: [SpiffeId; 3] = [held, stolen, good].map(|id| id.parse().unwrap());
    let mut svids = Vec::new();
    for id in [&held, &stolen, &good] {
        svids.push(workload(&east, &client, &agent, id, &[]).await);
    }
    let hold = RevokeRequest::new(RevocationTarget::Identity(held.clone()), Reason::Hold);
    let hold = client.call(&hold).await.unwrap().id;
    let serial = RevocationTarget::Serial(svids[1].facts.serial.clone());
    let serial = client.call(&RevokeRequest::new(serial, Reason::KeyCompromise)).await.unwrap().id;
    // The log of some is compacted into a snapshot, of others it is not: whichever it is, it is a copy.
    east.stop_all_and_start_on(copied).await;

    let client = east.client().await;
    let mut ids: Vec<_> = client
        .call(&RevokeListRequest {})
        .await
        .unwrap()
        .items
        .into_iter()
        .map(|r| r.revocation.id)
        .collect();
    ids.sort();
    assert_eq!(ids, [hold.clone(), serial.clone()]);
    let mut verdicts = Vec::new();
    for svid in &svids {
        let asked = IdentityVerifyRequest { pem: svid.chain_pem(), at: None };
        verdicts.push(client.call(&asked).await.unwrap().believed);
    }
    assert_eq!(verdicts, [false, false, true]);
    let refused = issue_svid(&east, &agent, &held, &["unix:uid:1000"]).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
    issue_svid(&east, &agent, &good, &["unix:uid:1000"]).await.unwrap();
    // The index came along: an order that comes later still knows what was given before.
    let before = client.call(&IdentityListRequest::default()).await.unwrap().items;
    assert!(svids.iter().all(|svid| before.iter().any(|item| item.serial == svid.facts.serial)));
    let later = RevokeRequest::new(RevocationTarget::Identity(good.clone()), Reason::Hold);
    let later = client.call(&later).await.unwrap().id;
    assert!(later.number > hold.number.max(serial.number), "{later} after {hold} and {serial}");
    let shown = client.call(&RevokeShowRequest { id: later }).await.unwrap();
    assert!(shown.revocation.serials.contains(&svids[2].facts.serial));
    east.stop().await;
}
