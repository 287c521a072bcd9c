//! Tests of traces: what the app at the far end of two proxies is told.

use hanse_federation::Locality;

use super::world::*;
use super::{REVIEWS, Shop};
use crate::runtime::Plane;

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// A shop whose proxies both record spans.
async fn traced_shop(sampling: &str) -> Shop {
    let mut shop = Shop::open().await;
    let plane = || Plane::new("traced".parse().unwrap(), Locality::default());
    let plane = || plane().with_sampling(Some(sampling.parse().unwrap()));
    let app = shop.app.as_ref().map(|app| app.address);
    let (product, reviews) = (shop.east.workload("productpage"), shop.east.workload("reviews"));
    shop.product = Sidecar::start_on(plane(), Some(&product), &[], None, &[], &[]);
    shop.reviews = Sidecar::start_on(plane(), Some(&reviews), &["shop/reviews"], app, &[], &[]);
    let (id, inbound) = (shop.east.id("reviews"), shop.reviews.inbound);
    shop.change(|view| {
        view.endpoints.clear();
        add_endpoint(view, "reviews-1", "shop/reviews", &id, inbound);
    });
    shop
}

fn told(answer: &Answer, name: &str) -> String {
    answer.seen()["headers"][name].as_str().unwrap_or_default().to_owned()
}

#[test]
fn without_sampling_a_trace_is_passed_on_and_nonsense_is_not() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        let mut request = get(REVIEWS);
        request.headers_mut().insert("traceparent", PARENT.parse().unwrap());
        request.headers_mut().insert("tracestate", "shop=1".parse().unwrap());
        request.headers_mut().insert("b3", "nonsense".parse().unwrap());
        let answer = shop.product.request(request).await;
        assert_eq!(told(&answer, "traceparent"), PARENT);
        assert_eq!((told(&answer, "tracestate"), told(&answer, "b3")), ("shop=1".to_owned(), String::new()));
        for sidecar in [&mut shop.product, &mut shop.reviews] {
            let logged = sidecar.logged().await;
            assert_eq!(logged.trace_id.to_string(), PARENT[3..35]);
            assert_eq!(logged.span_id.to_string(), PARENT[36..52]);
        }
        assert_eq!(told(&shop.product.get(REVIEWS).await, "traceparent"), "", "nothing begins");
        assert_eq!(shop.product.logged().await.trace_id, Default::default());
    });
}

#[test]
fn each_proxy_that_records_spans_is_the_parent_of_the_next() {
    on_local_set(async {
        let mut shop = traced_shop("100").await;
        let mut request = get(REVIEWS);
        request.headers_mut().insert("x-b3-traceid", PARENT[3..35].parse().unwrap());
        request.headers_mut().insert("x-b3-spanid", PARENT[36..52].parse().unwrap());
        let answer = shop.product.request(request).await;
        let (client, server) = (shop.product.logged().await, shop.reviews.logged().await);
        assert_eq!(client.trace_id.to_string(), PARENT[3..35]);
        assert_eq!(server.trace_id, client.trace_id);
        assert_ne!(server.span_id, client.span_id);
        let expected = format!("00-{}-{}-01", client.trace_id, server.span_id);
        assert_eq!(told(&answer, "traceparent"), expected);
        assert_eq!(told(&answer, "x-b3-spanid"), server.span_id.to_string());
        assert_eq!(told(&answer, "x-b3-parentspanid"), client.span_id.to_string());

        // Where there is none, one begins at the first proxy, and the second keeps to its decision.
        let answer = shop.product.get(REVIEWS).await;
        let (client, server) = (shop.product.logged().await, shop.reviews.logged().await);
        assert_ne!(client.trace_id, Default::default());
        assert_eq!(server.trace_id, client.trace_id);
        assert_eq!(told(&answer, "traceparent"), format!("00-{}-{}-01", client.trace_id, server.span_id));
    });
}
