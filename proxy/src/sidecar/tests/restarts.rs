//! Nothing fails while things change: a sidecar gives way to its successor, and policies and certificates are replaced, under
//! load.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use super::balancing::Three;
use super::*;
use crate::io::listen::take_over;
use crate::runtime::Plane;
use crate::sidecar::DRAIN_WITHIN;

/// Clients that ask for reviews one request after the other, by GET and by POST, each on a connection that it keeps for as long
/// as it may.
pub(super) struct Load {
    seen: Rc<Seen>,
    clients: Vec<tokio::task::JoinHandle<()>>,
}

#[derive(Default)]
struct Seen {
    stop: Cell<bool>,
    /// Good answers, by the app that gave them.
    answers: RefCell<BTreeMap<String, usize>>,
    failed: RefCell<Vec<String>>,
}

impl Load {
    pub fn begin(outbound: SocketAddr, clients: usize) -> Self {
        let seen = Rc::<Seen>::default();
        let client =
            |number: usize| tokio::task::spawn_local(Rc::clone(&seen).ask(outbound, number % 2 == 1));
        let clients = (0..clients).map(client).collect();
        Self { seen, clients }
    }

    pub fn answered(&self) -> usize {
        self.seen.answers.borrow().values().sum()
    }

    pub fn answered_by(&self, app: &str) -> usize {
        self.seen.answers.borrow().get(app).copied().unwrap_or_default()
    }

    /// Until there are so many answers more.
    pub async fn goes_on(&self, answers: usize) {
        let before = self.answered();
        until("the load goes on", async || self.answered() >= before + answers).await;
    }

    /// Ends it; what has failed.
    pub async fn end(self) -> Vec<String> {
        self.seen.stop.set(true);
        for client in self.clients {
            client.await.unwrap();
        }
        self.seen.failed.take()
    }
}

impl Seen {
    async fn ask(self: Rc<Self>, outbound: SocketAddr, posts: bool) {
        let request = || match posts {
            true => {
                let body = Full::new(Bytes::from(vec![7; 2000]));
                Request::post("/x").header("host", "reviews.shop").body(body).unwrap()
            }
            false => get(REVIEWS),
        };
        let mut kept: Option<Http1<_>> = None;
        while !self.stop.get() {
            let mut sender = match kept.take() {
                Some(kept) => kept,
                None => http1(TcpStream::connect(outbound).await.unwrap()).await,
            };
            // Closed, as it was told or as nothing was under way: as any client does, it makes another one.
            if sender.ready().await.is_err() {
                continue;
            }
            match sender.send_request(request()).await {
                Ok(response) => {
                    let answer = Answer::of(response).await;
                    if answer.status == StatusCode::OK && !answer.body.is_empty() {
                        *self.answers.borrow_mut().entry(answer.header("x-app").to_owned()).or_default() += 1;
                    } else {
                        self.failed.borrow_mut().push(format!("{answer:?}"));
                    }
                    kept = Some(sender);
                }
                // It was never sent.
                Err(error) if error.is_canceled() => {}
                Err(error) => self.failed.borrow_mut().push(error.to_string()),
            }
            // As clients have it that do something else too: the sidecars have the same thread.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

#[test]
fn a_callers_sidecar_gives_way_to_its_successor_and_no_request_fails() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        let outbound = shop.product.outbound;
        let load = Load::begin(outbound, 8);
        load.goes_on(40).await;
        // Two that are kept and asked rarely: one will ask in the meantime, one never again.
        let mut kept = http1(TcpStream::connect(outbound).await.unwrap()).await;
        let mut idle = http1(TcpStream::connect(outbound).await.unwrap()).await;
        for sender in [&mut kept, &mut idle] {
            let answer = Answer::of(sender.send_request(get(REVIEWS)).await.unwrap()).await;
            assert_eq!((answer.status, answer.header("connection")), (StatusCode::OK, ""));
        }
        assert!(crate::io::listen::bind(outbound, 1).is_err(), "nobody shares it who does not say so");

        let plane = Plane::new("proxy-2".parse().unwrap(), hanse_federation::Locality::default());
        let svid = shop.east.workload("productpage");
        let listener = take_over(outbound, 1).unwrap().remove(0);
        let next = Sidecar::start_at(listener, plane, Some(&svid), &[], None, &[], &[]);
        next.publish(&shop.view);
        // Connected, and neither has taken them in: those that are at the old one's listener are its own.
        let connect = || {
            let stream = std::net::TcpStream::connect(outbound).unwrap();
            stream.set_nonblocking(true).unwrap();
            TcpStream::from_std(stream).unwrap()
        };
        let waiting: Vec<_> = (0..16).map(|_| connect()).collect();
        shop.product.drain.begin();
        let last = Answer::of(kept.send_request(get(REVIEWS)).await.unwrap()).await;
        assert_eq!((last.status, last.header("connection")), (StatusCode::OK, "close"));
        for stream in waiting {
            let mut sender = http1(stream).await;
            let answer = Answer::of(sender.send_request(get(REVIEWS)).await.unwrap()).await;
            assert_eq!(answer.status, StatusCode::OK);
        }
        let ended = tokio::time::timeout(DRAIN_WITHIN / 2, &mut shop.product.ended).await;
        ended.expect("it waits for nobody who asks for nothing").unwrap().unwrap();
        until("it is closed while nothing is under way", async || idle.is_closed()).await;
        load.goes_on(40).await;
        let failed = load.end().await;
        assert!(failed.is_empty(), "{failed:?}");
        let served = next.plane.telemetry.to_text();
        assert!(served.contains("istio_requests_total{reporter=\"source\""), "{served}");
    });
}

#[test]
fn policies_and_certificates_are_replaced_under_load_and_no_request_fails() {
    on_local_set(async {
        let mut three = Three::open().await;
        let load = Load::begin(three.shop.product.outbound, 8);
        for (round, (algorithm, access)) in [
            ("RoundRobin", "Allow"),
            ("Random", "Audit"),
            ("Maglev, hashOn: { sourceIdentity: true }", "Allow"),
            ("LeastRequest", "Audit"),
        ]
        .into_iter()
        .cycle()
        .take(8)
        .enumerate()
        {
            three.shop.policy(&format!(
                "  loadBalancing: {{ algorithm: {algorithm} }}\n  limits: {{ maxRequests: {} }}\n  retry: {{ attempts: {} }}",
                1000 + round,
                1 + round % 2
            ));
            let rules = "[{ name: all, from: { namespaces: [shop] }, to: { methods: [GET, POST] } }]";
            access::apply(&mut three.shop, &access::policy("callers", access, rules));
            three.shop.apply(&format!(
                "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{ name: reviews, namespace: shop }}\n\
                 spec:\n  parentRefs: [{{ kind: Service, name: reviews }}]\n  rules:\n  - backendRefs: [{{ name: reviews }}]\n    \
                 filters: [{{ type: ResponseHeaderModifier, responseHeaderModifier: {{ set: [{{ name: x-round, value: \"{round}\" }}] }} }}]\n"
            ));
            let renewed = three.shop.east.workload(if round % 2 == 0 { "productpage" } else { "reviews" });
            let whose = if round % 2 == 0 { &three.shop.product } else { &three.shop.reviews };
            whose.plane.credentials.install_svid(&renewed).unwrap();
            whose.plane.knowledge.refresh();
            three.others.iter().for_each(|(_, sidecar)| sidecar.publish(&three.shop.view));
            let answer = three.shop.product.get(REVIEWS).await;
            assert_eq!(answer.header("x-round"), round.to_string(), "in force for the next request");
            load.goes_on(10).await;
        }
        three.shop.change(|view| view.policies.clear());
        three.others.iter().for_each(|(_, sidecar)| sidecar.publish(&three.shop.view));
        load.goes_on(10).await;
        let failed = load.end().await;
        assert!(failed.is_empty(), "{failed:?}");
    });
}
