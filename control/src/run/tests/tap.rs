//! Taps: asked of one node, told by proxies that listen to another, and ended from either end.

use hanse_federation::tap::{Direction, MAX_ENCODED, MAX_TAPS, Request as Told, Tap, Target};
use hanse_federation::wire::watch::{Tap as Looking, Tapped};

use super::*;
use crate::client::ClientError;
use crate::role::Role;

const PRODUCT: &str = "spiffe://east.example/ns/shop/sa/productpage";

/// A cluster whose second node is asked, and whose proxies listen to the first.
struct Scene {
    east: Cluster,
    client: Client,
    svid: Svid,
}

async fn scene() -> Scene {
    let east = found("east", 2).await;
    let second = east.nodes[1].as_ref().unwrap().listen.to_string();
    let credential = Credential { endpoints: vec![second], ..east.credential.clone() };
    let client = Client::connect(&credential).await.unwrap();
    let agent = join_agent(&east, "host-1", &agent_token(&client, "host-1").await).await.unwrap();
    let svid = workload(&east, &client, &agent, &PRODUCT.parse().unwrap(), &["shop/productpage"]).await;
    Scene { east, client, svid }
}

impl Subscriber {
    /// Hears until it is told what is looked at.
    async fn looked_at(&mut self) -> Vec<Looking> {
        let heard = async {
            loop {
                let down = self.down.next().await.expect("the stream goes on").expect("the stream goes on");
                if let Some(Down::Taps(taps)) = down.message {
                    return taps.tap;
                }
            }
        };
        tokio::time::timeout(PATIENCE, heard).await.expect("it hears of a tap")
    }
}

async fn next(
    events: &mut (impl tokio_stream::Stream<Item = Result<TapEvent, ClientError>> + Unpin),
) -> TapEvent {
    let next = tokio::time::timeout(PATIENCE, events.next()).await.expect("an event in time");
    next.expect("the tap goes on").unwrap()
}

fn ask(target: Target) -> TapRequest {
    TapRequest { tap: Tap::new(target), cluster: Some("east".parse().unwrap()), seconds: 60 }
}

fn told(source: &str, path: &str) -> Vec<u8> {
    encode(&Told {
        direction: Direction::Outbound,
        source: source.to_owned(),
        path: path.to_owned(),
        ..Told::default()
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_told_to_who_looks_whichever_node_is_asked() {
    let Scene { east, client, svid } = scene().await;
    let mut one = watch_as(&east, &svid, "productpage-1", "proxy").await.unwrap();
    one.announce(&serves("productpage-1", &["shop/productpage"], 1)).await;
    one.until("its endpoint", 0, |view| !view.endpoints.is_empty()).await;
    let mut other = watch_as(&east, &svid, "productpage-2", "proxy").await.unwrap();
    let service = Target::Service("shop/productpage".parse().unwrap());
    let mut events = Box::pin(client.tap(&ask(service.clone())).await.unwrap());
    let TapEvent::Begun { proxies, warnings, until, .. } = next(&mut events).await else {
        panic!("not begun")
    };
    assert_eq!((proxies, warnings), (vec!["productpage-1".parse().unwrap()], vec![]));
    assert!(until > now());
    let looking = one.looked_at().await;
    assert_eq!(looking.len(), 1);
    assert_eq!(decode::<Tap>("tap", &looking[0].tap).unwrap(), Tap::new(service));
    assert!((1..=60_000).contains(&looking[0].left_millis));

    // Others' calls, what cannot be read, what nobody asked this proxy for, and what is too long, go no further.
    let tap = looking[0].id;
    let request =
        vec![told(PRODUCT, "/r/7"), told("spiffe://east.example/ns/shop/sa/web", "/x"), b"{".to_vec()];
    other.say(Up::Tapped(Tapped { tap, request: vec![told(PRODUCT, "/other")], left_out: 0 })).await;
    one.say(Up::Tapped(Tapped { tap: tap + 1, request: vec![told(PRODUCT, "/else")], left_out: 0 })).await;
    let long = told(PRODUCT, &"/".repeat(MAX_ENCODED));
    one.say(Up::Tapped(Tapped { tap, request: [vec![long], request].concat(), left_out: 3 })).await;
    let TapEvent::Part(part) = next(&mut events).await else { panic!("nothing is told") };
    assert_eq!((part.proxy.as_str(), part.identity.to_string().as_str()), ("productpage-1", PRODUCT));
    let paths: Vec<&str> = part.requests.iter().map(|request| request.path.as_str()).collect();
    assert_eq!((paths, part.left_out), (vec!["/r/7"], 4));

    // Who looked is in the trail.
    let of = AuditListRequest { kind: Some("tap".to_owned()), ..Default::default() };
    let rows = client.call(&of).await.unwrap().items;
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].target, "service/shop/productpage, 50 a second, for 60 s");
    assert_eq!(rows[0].actor, "spiffe://east.example/hanse/admin/ann");

    // A proxy that begins to serve it is looked at too, and all ends with the reader.
    other.announce(&serves("productpage-2", &["shop/productpage"], 1)).await;
    assert_eq!(other.looked_at().await[0].id, tap);
    drop(events);
    assert!(one.looked_at().await.is_empty() && other.looked_at().await.is_empty());
    east.until("no tap is open", |node| node.context.taps.count() == 0).await;
    east.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tap_is_refused_with_its_reason_and_ends_with_the_readers_role() {
    let Scene { east, client, svid } = scene().await;
    let _one = watch_as(&east, &svid, "productpage-1", "proxy").await.unwrap();
    let refused = async |request: TapRequest| match client.tap(&request).await {
        Ok(_) => panic!("{request:?} was not refused"),
        Err(error) => (error.kind, error.why),
    };
    let everybody = || ask(Target::Everybody);
    for (request, kind, why) in [
        (ask(Target::Proxy("nobody".parse().unwrap())), ClientErrorKind::NotFound, "hanse proxy list"),
        (ask(Target::Service("shop/none".parse().unwrap())), ClientErrorKind::NotFound, "shop/none"),
        (
            ask(Target::Service("shop/productpage".parse().unwrap())),
            ClientErrorKind::Precondition,
            "hanse service endpoints",
        ),
        (
            TapRequest { cluster: Some("south".parse().unwrap()), ..everybody() },
            ClientErrorKind::NotFound,
            "south",
        ),
        (TapRequest { seconds: 601, ..everybody() }, ClientErrorKind::Invalid, "600s"),
        (
            TapRequest { tap: Tap { rate: 0, ..Tap::new(Target::Everybody) }, ..everybody() },
            ClientErrorKind::Invalid,
            "rate",
        ),
    ] {
        let (was, said) = refused(request.clone()).await;
        assert!(was == kind && said.contains(why), "{request:?}: {was:?} {said}");
    }
    let mut open = Vec::new();
    for _ in 0..MAX_TAPS {
        let mut events = Box::pin(client.tap(&everybody()).await.unwrap());
        assert!(matches!(next(&mut events).await, TapEvent::Begun { .. }));
        open.push(events);
    }
    let (kind, why) = refused(everybody()).await;
    assert!(kind == ClientErrorKind::Precondition && why.contains("taps run"), "{kind:?} {why}");
    let mut last = open.pop().unwrap();
    drop(open);
    let ann: SpiffeId = "spiffe://east.example/hanse/admin/ann".parse().unwrap();
    client.call(&RoleBindRequest { id: ann, roles: [Role::CaAdmin].into() }).await.unwrap();
    let why = loop {
        if let TapEvent::Ended { why } = next(&mut last).await {
            break why;
        }
    };
    assert!(why.ends_with("is no operator any more"), "{why}");
    assert_eq!(refused(everybody()).await.0, ClientErrorKind::NotAllowed);
    east.until("no tap is open", |node| node.context.taps.count() == 0).await;
    east.stop().await;
}
