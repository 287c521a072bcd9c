//! What proxies counted: told to whichever node they listen to, answered by any.

use hanse_federation::traffic::{BOUNDS, Counts, Edge, EdgeKey, Latency, LatencyKey, Report, Seen};
use hanse_federation::wire::watch::Traffic;

use super::*;

fn report(source: &SpiffeId, destination: &str, requests: f64) -> Report {
    let key = EdgeKey {
        seen: Seen::ByCaller,
        service: "shop/reviews".to_owned(),
        source: source.to_string(),
        source_cluster: "east".to_owned(),
        destination: destination.to_owned(),
        destination_cluster: "east".to_owned(),
    };
    let latency = LatencyKey {
        seen: key.seen,
        service: key.service.clone(),
        source_cluster: key.source_cluster.clone(),
        destination_cluster: key.destination_cluster.clone(),
    };
    let mut buckets = vec![0.0; BOUNDS.len() + 1];
    buckets[3] = requests;
    let counts = Counts { requests, failures: 0.5 };
    Report {
        edges: vec![Edge { key, counts }],
        latencies: vec![Latency { key: latency, buckets }],
        cut: false,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_proxies_counted_is_added_up_over_all_nodes() {
    let east = found("east", 2).await;
    // Proxies listen to the first node, and the second one is asked.
    let second = east.nodes[1].as_ref().unwrap().listen.to_string();
    let credential = Credential { endpoints: vec![second], ..east.credential.clone() };
    let client = Client::connect(&credential).await.unwrap();
    assert_eq!(client.call(&TrafficRequest {}).await.unwrap().report, Report::default());
    let agent = join_agent(&east, "host-1", &agent_token(&client, "host-1").await).await.unwrap();
    let id: SpiffeId = "spiffe://east.example/ns/shop/sa/productpage".parse().unwrap();
    let svid = workload(&east, &client, &agent, &id, &[]).await;
    let reviews = "spiffe://east.example/ns/shop/sa/reviews";
    let say = async |subscriber: &Subscriber, report: Vec<u8>| {
        subscriber.say(Up::Traffic(Traffic { report })).await
    };
    let one = watch_as(&east, &svid, "productpage-1", "proxy").await.unwrap();
    let other = watch_as(&east, &svid, "productpage-2", "proxy").await.unwrap();
    say(&one, encode(&report(&id, reviews, 3.0))).await;
    say(&other, encode(&report(&id, reviews, 1.0))).await;
    let told = async |proxies: usize| {
        eventually_asked("what they counted", || async {
            let traffic = client.call(&TrafficRequest {}).await.unwrap();
            (traffic.reporting == proxies).then_some(traffic)
        })
        .await
    };
    let traffic = told(2).await;
    assert!(!traffic.meta.partial, "{:?}", traffic.warnings);
    let services = traffic.report.services(Seen::ByCaller);
    assert_eq!(services[0].counts, Counts { requests: 4.0, failures: 1.0 });
    assert_eq!((services[0].within(0.5), traffic.report.graph().len()), (Some(5.0), 1));

    // Nobody tells of others' calls, and what cannot be read costs nothing but itself.
    let somebody = "spiffe://east.example/ns/shop/sa/ratings".parse().unwrap();
    say(&one, encode(&report(&somebody, reviews, 1000.0))).await;
    say(&other, b"{".to_vec()).await;
    eventually_asked("the forged one to be left out", || async {
        let report = client.call(&TrafficRequest {}).await.unwrap().report;
        (report.edges.iter().map(|edge| edge.counts.requests).sum::<f64>() == 1.0).then_some(())
    })
    .await;
    east.stop().await;
}
