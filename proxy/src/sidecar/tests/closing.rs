//! Connections that a revocation does not close at once, and handshakes that are refused because what is known is old.

use hanse_identity::{Closing, Revocation};

use super::restarts::Load;
use super::*;
use crate::connections::Order;
use crate::runtime::now;
use crate::staleness::{OnStale, Staleness};

/// A request of the product page that is answered for ever.
async fn endless(shop: &Shop) -> hyper::body::Incoming {
    let mut sender = http1(TcpStream::connect(shop.product.outbound).await.unwrap()).await;
    let mut body = sender.send_request(get("http://reviews.shop/forever")).await.unwrap().into_body();
    assert!(body.frame().await.unwrap().is_ok());
    body
}

/// Revokes the product page, and lets only the server's side hear of it.
fn revoke_product(shop: &mut Shop, closing: Closing) -> Revocation {
    let revocation = Revocation { closing, ..revoke(&shop.east.id("productpage"), 9) };
    shop.view.revocations.insert(revocation.clone());
    shop.view.revision.0 += 1;
    shop.reviews.publish(&shop.view);
    revocation
}

/// Whether the stream has ended; one that lives says nothing more.
async fn is_cut(body: &mut hyper::body::Incoming) -> bool {
    let next = tokio::time::timeout(Duration::from_millis(200), body.frame()).await;
    matches!(next, Ok(Some(Err(_)) | None))
}

#[test]
fn connections_with_a_grace_finish_and_are_closed_when_it_is_over() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        let mut body = endless(&shop).await;
        let revocation = revoke_product(&mut shop, Closing::After(30));
        assert!(!is_cut(&mut body).await, "it has thirty seconds");
        assert!(shop.reviews.plane.connections.closed().is_empty());
        // New ones are refused at once, whatever becomes of those that live.
        let again = plane_of(&shop.east.workload("productpage"), &world::view(&[&shop.east]));
        assert!(call(&again, shop.reviews.inbound, "/").await.is_none());

        // Half a minute later, by the clock that the table is given.
        let known = shop.reviews.plane.knowledge.now();
        let late = revocation.at + Duration::from_secs(30);
        let before = late - Duration::from_millis(1);
        let early = shop.reviews.plane.connections.sweep(&known.trust, None, before);
        shop.reviews.plane.connections.gone(early, Duration::from_secs(5)).await;
        assert!(!is_cut(&mut body).await, "its time is not over");
        let sweep = shop.reviews.plane.connections.sweep(&known.trust, None, late);
        shop.reviews.plane.connections.gone(sweep, Duration::from_secs(5)).await;
        assert!(is_cut(&mut body).await);
        assert!(shop.reviews.plane.connections.is_empty());
        assert_eq!(shop.reviews.plane.connections.closed(), [(revocation.id, 1)]);
    });
}

#[test]
fn an_idle_connection_with_a_grace_leaves_by_itself() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        assert_eq!(shop.product.get(REVIEWS).await.status, StatusCode::OK);
        assert_eq!(shop.reviews.plane.connections.len(), 1, "it is kept for the next request");
        let revocation = revoke_product(&mut shop, Closing::After(30));
        until("nothing is in flight, so it goes", async || shop.reviews.plane.connections.is_empty()).await;
        assert_eq!(shop.reviews.plane.connections.closed(), [(revocation.id, 1)]);
    });
}

#[test]
fn connections_that_are_never_closed_stay_and_new_ones_are_refused() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        let mut body = endless(&shop).await;
        let revocation = revoke_product(&mut shop, Closing::Never);
        let known = shop.reviews.plane.knowledge.now();
        // As long as its SVID is valid.
        let sweep = shop.reviews.plane.connections.sweep(&known.trust, None, now() + Duration::from_secs(60));
        shop.reviews.plane.connections.gone(sweep, Duration::from_secs(5)).await;
        assert!(!is_cut(&mut body).await);
        assert_eq!(shop.reviews.plane.connections.len(), 1);
        assert_eq!(shop.reviews.plane.connections.closed(), []);
        let again = plane_of(&shop.east.workload("productpage"), &world::view(&[&shop.east]));
        assert!(call(&again, shop.reviews.inbound, "/").await.is_none());

        // A second revocation that wants it closed now closes it, whatever the first one said.
        let strict = revoke(&shop.east.id("productpage"), 10);
        shop.view.revocations.insert(strict.clone());
        shop.view.revision.0 += 1;
        let view = std::sync::Arc::new(shop.view.clone());
        shop.reviews.plane.put_in_force(view).await;
        assert!(is_cut(&mut body).await);
        assert_eq!(shop.reviews.plane.connections.closed(), [(strict.id, 1)]);
        assert_ne!(revocation.id.number, 10);
    });
}

/// It lives no longer than the SVIDs that it was made with: shortly before, it is left for a new one; then it is cut.
#[test]
fn a_connection_is_left_before_its_svid_ends_and_cut_when_it_does() {
    on_local_set(async {
        let shop = Shop::open().await;
        let mut body = endless(&shop).await;
        let facts = shop.product.plane.credentials.current().unwrap().identity.facts.clone();
        let (known, table) = (shop.reviews.plane.knowledge.now(), &shop.reviews.plane.connections);
        let since = || table.rows(9).iter().map(|row| row.since.clone()).collect::<Vec<_>>();
        // By the clock that the table is given: there is time yet.
        table.sweep(&known.trust, None, facts.not_after - Duration::from_secs(60));
        let first = since();
        assert_eq!(shop.product.get(REVIEWS).await.status, StatusCode::OK);
        assert_eq!((first.len(), &first), (1, &since()), "the one that there is serves");
        table.sweep(&known.trust, None, facts.not_after - Duration::from_secs(1));
        until("what is new has a connection of its own", async || {
            assert_eq!(shop.product.get(REVIEWS).await.status, StatusCode::OK);
            table.len() == 2
        })
        .await;
        assert!(!is_cut(&mut body).await, "what was under way goes on");

        let ended = table.sweep(&known.trust, None, facts.not_after);
        table.gone(ended, Duration::from_secs(5)).await;
        assert!(is_cut(&mut body).await && table.is_empty());
        let metrics = shop.reviews.plane.telemetry.to_text();
        assert!(metrics.contains("hanse_connections_closed_total{cause=\"expired\"} 2"), "{metrics}");
        assert_eq!(table.closed(), [], "nobody was revoked");
    });
}

#[test]
fn stale_revocations_keep_new_connections_out_until_a_control_node_is_heard() {
    on_local_set(async {
        let shop = Shop::open().await;
        let policy = Staleness { bound: Duration::from_secs(30), on_stale: OnStale::DenyNew };
        let app = App::start("strict").await;
        let svid = shop.east.workload("reviews");
        let strict = Sidecar::start_with(Some(&svid), &["shop/reviews"], Some(app.address), policy);
        strict.publish(&shop.view);
        let heard = |ago: u64| {
            strict.plane.knowledge.heard(now() - Duration::from_secs(ago));
        };
        let caller = plane_of(&shop.east.workload("productpage"), &shop.view);
        heard(0);
        // Kept open over all that follows.
        let tcp = TcpStream::connect(strict.inbound).await.unwrap();
        let about = About { side: Side::Outbound, service: None, cluster: None };
        let live = tls::dial(tcp, &caller, Expect::Anyone, None, about).await.unwrap();
        until("it is in the table", async || strict.plane.connections.len() == 1).await;

        heard(31);
        assert!(call(&caller, strict.inbound, "/").await.is_none(), "nobody new");
        let refused =
            strict.plane.telemetry.refused.get_or_create(&Refused { reason: "stale_revocations" }).get();
        assert_eq!(refused, 1);
        assert_eq!(strict.plane.connections.len(), 1, "who is in stays");
        assert_eq!(live.live.order(), Order::Stay);
        // It does not go to anybody either, and says why.
        let answer = strict.get(REVIEWS).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{answer:?}");
        strict.plane.telemetry.freshness(&strict.plane.freshness(now()));
        let metrics = strict.plane.telemetry.to_text();
        assert!(metrics.contains("\nhanse_revocations_stale 1\n"), "{metrics}");
        let plane = std::sync::Arc::clone(&strict.plane);
        let admin = crate::runtime::admin::Admin::new(plane, Vec::new);
        let check = |name: &str| admin.readiness().into_iter().find(|check| check.name == name).unwrap();
        assert!(!check("revocations").ok && check("revocations").detail.starts_with("stale"));

        heard(0);
        assert_eq!(call(&caller, strict.inbound, "/").await.unwrap().status, StatusCode::OK);
        assert_eq!(strict.get(REVIEWS).await.status, StatusCode::OK);
        assert!(check("revocations").ok);
        strict.plane.telemetry.freshness(&strict.plane.freshness(now()));
        assert!(strict.plane.telemetry.to_text().contains("\nhanse_revocations_stale 0\n"));
    });
}

/// The worst case: nobody has heard yet that it is going. Its connections are told (GOAWAY), what is on them is answered, and
/// what comes after that goes to the other one.
#[test]
fn an_instance_that_ends_costs_no_request_whatever_its_method() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        let other = App::start("reviews-v2").await;
        let _second = shop.second(other.address);
        let load = Load::begin(shop.product.outbound, 8);
        until("both are asked", async || {
            load.answered_by("reviews-v1") > 20 && load.answered_by("reviews-v2") > 20
        })
        .await;
        shop.reviews.drain.begin();
        let ended = tokio::time::timeout(crate::sidecar::DRAIN_WITHIN / 2, &mut shop.reviews.ended).await;
        ended.expect("it waits for nothing but what is in flight").unwrap().unwrap();
        load.goes_on(200).await;
        let failed = load.end().await;
        assert!(failed.is_empty(), "{failed:?}");
    });
}
