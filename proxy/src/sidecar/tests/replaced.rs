//! An SVID that is revoked without its identity: another one comes, and requests wait for it.

use hanse_identity::{Revocation, RevocationTarget, Svid};

use super::*;

/// Revokes the certificate that this sidecar has, and lets everybody hear of it.
fn revoke_certificate(shop: &mut Shop, of: fn(&Shop) -> &Sidecar, number: u64) {
    let facts = of(shop).plane.credentials.current().unwrap().identity.facts.clone();
    let target = RevocationTarget::Serial(facts.serial.clone());
    let revocation = Revocation { target, ..revoke(&facts.id, number) };
    shop.change(|view| view.revocations.insert(revocation));
}

fn take_in(sidecar: &Sidecar, svid: &Svid) {
    sidecar.plane.credentials.install_svid(svid).unwrap();
    sidecar.plane.knowledge.refresh();
}

/// A request that is under way for a while before this SVID is given to `to`.
async fn answered_once_replaced(shop: &Shop, to: &Sidecar, svid: &Svid) -> Answer {
    let asked = shop.product.get(REVIEWS);
    let given = async {
        tokio::time::sleep(Duration::from_millis(150)).await;
        take_in(to, svid);
    };
    tokio::join!(asked, given).0
}

#[test]
fn a_request_waits_for_the_certificate_that_replaces_its_callers() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        assert_eq!(shop.product.get(REVIEWS).await.status, StatusCode::OK);
        revoke_certificate(&mut shop, |shop| &shop.product, 9);
        let next = shop.east.workload("productpage");
        let answer = answered_once_replaced(&shop, &shop.product, &next).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        let rows = shop.reviews.plane.connections.rows(10);
        let serials: Vec<_> = rows.iter().map(|row| row.serial.clone()).collect();
        assert_eq!(serials, [next.facts.serial.to_string()], "nothing was shown of the revoked one");
    });
}

#[test]
fn a_request_waits_for_the_certificate_that_replaces_its_targets() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        assert_eq!(shop.product.get(REVIEWS).await.status, StatusCode::OK);
        revoke_certificate(&mut shop, |shop| &shop.reviews, 9);
        let next = shop.east.workload("reviews");
        let answer = answered_once_replaced(&shop, &shop.reviews, &next).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    });
}

#[test]
fn where_no_certificate_comes_a_request_waits_no_longer_than_it_has_to() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        revoke_certificate(&mut shop, |shop| &shop.product, 9);
        let asked = tokio::time::Instant::now();
        let answer = shop.product.get(REVIEWS).await;
        assert_eq!((answer.status, answer.header("x-hanse-reason")), (StatusCode::FORBIDDEN, "revoked"));
        let waited = asked.elapsed();
        assert!(waited >= Duration::from_secs(2), "{waited:?}");
        // Of a revoked identity there is none to come: it is told so at once, as many times as one waits otherwise.
        let identity = revoke(&shop.east.id("productpage"), 10);
        shop.change(|view| view.revocations.insert(identity));
        let asked = tokio::time::Instant::now();
        for _ in 0..10 {
            assert_eq!(shop.product.get(REVIEWS).await.status, StatusCode::FORBIDDEN);
        }
        assert!(asked.elapsed() < waited, "{:?}", asked.elapsed());
    });
}
