//! Tests of taps: what is told of a request that goes through two proxies, at both ends.

use std::time::Instant;

use hanse_federation::tap::{Direction, Request, Tap, Target};
use hanse_federation::wire::watch as pb;
use hanse_federation::wire::{decode, encode};

use super::world::*;
use super::{REVIEWS, Shop};

/// Somebody looks at that proxy's requests, in all their detail.
fn look(sidecar: &Sidecar, change: impl FnOnce(&mut Tap)) {
    let mut tap = Tap::new(Target::Everybody);
    change(&mut tap);
    let tap = pb::Tap { id: 1, tap: encode(&tap), left_millis: 60_000 };
    sidecar.plane.taps.begin(pb::Taps { tap: vec![tap] }, Instant::now());
}

/// What is told since the last time: so many requests.
async fn told(sidecar: &Sidecar, requests: usize) -> Vec<Request> {
    let mut all: Vec<Request> = Vec::new();
    until("they are told", async || {
        sidecar.plane.taps.tell(Instant::now(), |tapped| {
            assert_eq!(tapped.left_out, 0);
            all.extend(tapped.request.iter().map(|request| decode("request", request).unwrap()));
            true
        });
        all.len() >= requests
    })
    .await;
    all
}

#[test]
fn both_ends_of_a_request_are_told_with_who_called_whom_and_without_what_is_secret() {
    on_local_set(async {
        let shop = Shop::open().await;
        shop.product.get(REVIEWS).await;
        look(&shop.product, |_| {});
        look(&shop.reviews, |tap| tap.query = true);
        let mut request = get(REVIEWS);
        for (name, value) in [
            ("authorization", "Bearer secret"),
            ("cookie", "session=secret"),
            ("user-agent", "curl/8"),
            ("x-request-id", "r-1"),
            ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ] {
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        let answer = shop.product.request(request).await;
        let (outbound, inbound) = (told(&shop.product, 1).await, told(&shop.reviews, 1).await);
        assert_eq!((outbound.len(), inbound.len()), (1, 1), "what was over before is not told");
        let (outbound, inbound) = (&outbound[0], &inbound[0]);
        for (seen, direction) in [(outbound, Direction::Outbound), (inbound, Direction::Inbound)] {
            assert_eq!(seen.direction, direction);
            assert_eq!((seen.method.as_str(), seen.path.as_str(), seen.response_code), ("GET", "/x", 200));
            assert_eq!(seen.source, shop.east.id("productpage").to_string());
            assert_eq!(seen.destination, shop.east.id("reviews").to_string());
            assert_eq!((seen.source_cluster.as_str(), seen.destination_cluster.as_str()), ("east", "east"));
            assert_eq!((seen.service.as_str(), seen.response_flags.as_str()), ("shop/reviews", "-"));
            assert_eq!(seen.trace_id, "0af7651916cd43dd8448eb211c80319c");
            assert_eq!(seen.bytes_sent, answer.body.len() as u64);
            assert!(seen.duration_micros > 0);
            let headers: Vec<_> = seen.headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
            assert_eq!(headers, [("user-agent", "curl/8"), ("x-request-id", "r-1")]);
            assert!(!String::from_utf8(encode(seen)).unwrap().contains("secret"));
        }
        assert!(!outbound.tier.is_empty() && !outbound.failover && outbound.attempts == 1, "{outbound:?}");
        assert_eq!((outbound.query.as_deref(), inbound.query.as_deref()), (None, Some("q=1")));
    });
}

#[test]
fn what_the_mesh_answered_itself_is_told_with_its_flags() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        look(&shop.product, |tap| tap.filter.refused = true);
        shop.product.get(REVIEWS).await;
        shop.change(|view| view.endpoints.clear());
        shop.product.get(REVIEWS).await;
        let told = told(&shop.product, 1).await;
        assert_eq!(told.len(), 1, "the app's own answer was not asked for");
        assert_eq!((told[0].response_code, told[0].response_flags.as_str()), (503, "UH"));
        assert!(!told[0].reason.is_empty() && told[0].destination.is_empty(), "{:?}", told[0]);
        shop.product.plane.taps.end();
        shop.product.get(REVIEWS).await;
        shop.product.plane.taps.tell(Instant::now(), |tapped| panic!("nobody looks: {tapped:?}"));
    });
}
