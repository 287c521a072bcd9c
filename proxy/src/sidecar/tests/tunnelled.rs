//! Tests of the way into other clusters: two gateway hops, a gateway that dies, a path that goes dark.
//!
//! The gateways here are the smallest that speak the protocol; the real one has its tests in its own crate.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hanse_federation::catalog::{Export, Gateway, GatewaySummary, LocalityWeight, ServiceSummary, Session};
use hanse_federation::policy::{parse, validate};
use hanse_federation::{Change, Locality, View};
use hanse_identity::AuthorityState;
use hanse_identity::tls::{ClientAuth, IdentitySource, TrustSource, server_config};
use http::{Request, Response, StatusCode};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::balancing::hang;
use super::world::*;
use super::{REVIEWS, add_peer};
use crate::connections::Side;
use crate::io::tls::{ALPN_H2, About, accept};
use crate::runtime::now;
use crate::runtime::worker::LocalExecutor;

/// Another cluster that serves reviews, behind one gateway.
struct Abroad {
    domain: Domain,
    _reviews: Sidecar,
    _app: App,
    gateway: FarGateway,
}

/// A tunnel listener: CONNECT, to one endpoint whatever is asked for.
struct FarGateway {
    address: SocketAddr,
    name: &'static str,
    identity: hanse_identity::SpiffeId,
    /// Authorities that were asked for.
    asked: Rc<RefCell<Vec<String>>>,
    /// What it answers.
    answer: Rc<Cell<StatusCode>>,
}

/// A wire that can be cut, or go dark: still there, but nothing comes through.
struct Wire {
    address: SocketAddr,
    dark: Rc<Cell<bool>>,
    carried: Rc<Cell<usize>>,
    task: tokio::task::JoinHandle<()>,
    connections: Rc<RefCell<Vec<tokio::task::AbortHandle>>>,
}

impl Wire {
    async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (dark, carried) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(0)));
        let connections: Rc<RefCell<Vec<tokio::task::AbortHandle>>> = Rc::default();
        let (seen, count, held) = (Rc::clone(&dark), Rc::clone(&carried), Rc::clone(&connections));
        let task = tokio::task::spawn_local(async move {
            loop {
                let (near, _) = listener.accept().await.unwrap();
                let far = TcpStream::connect(target).await.unwrap();
                let (near_read, near_write) = near.into_split();
                let (far_read, far_write) = far.into_split();
                for (from, to) in [(near_read, far_write), (far_read, near_write)] {
                    let carried = carry(from, to, Rc::clone(&seen), Rc::clone(&count));
                    held.borrow_mut().push(tokio::task::spawn_local(carried).abort_handle());
                }
            }
        });
        Self { address, dark, carried, task, connections }
    }

    fn cut(&self) {
        self.task.abort();
        self.connections.borrow_mut().drain(..).for_each(|connection| connection.abort());
    }
}

async fn carry(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    dark: Rc<Cell<bool>>,
    carried: Rc<Cell<usize>>,
) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(n) = from.read(&mut buffer).await {
        if n == 0 {
            break;
        }
        carried.set(carried.get() + n);
        if !dark.get() && to.write_all(&buffer[..n]).await.is_err() {
            break;
        }
    }
    if dark.get() {
        std::future::pending::<()>().await;
    }
}

impl FarGateway {
    async fn start(domain: &Domain, name: &'static str, view: &View, endpoint: SocketAddr) -> Self {
        let svid = domain.gateway(name);
        let identity = svid.facts.id.clone();
        let plane = plane_of(&svid, view);
        let (trust, own): (Arc<dyn TrustSource>, Arc<dyn IdentitySource>) =
            (Arc::clone(&plane.knowledge) as _, Arc::clone(&plane.credentials) as _);
        let config = server_config(trust, own, ClientAuth::Required, &[ALPN_H2]);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked: Rc<RefCell<Vec<String>>> = Rc::default();
        let answer = Rc::new(Cell::new(StatusCode::OK));
        let (asked_here, answer_here) = (Rc::clone(&asked), Rc::clone(&answer));
        tokio::task::spawn_local(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (plane, config) = (Arc::clone(&plane), Arc::clone(&config));
                let (asked, answer) = (Rc::clone(&asked_here), Rc::clone(&answer_here));
                tokio::task::spawn_local(async move {
                    let about = About { side: Side::Tunnel, service: None, cluster: None };
                    let Ok(accepted) = accept(stream, &config, &plane, about).await else { return };
                    let service = service_fn(move |request| {
                        asked.borrow_mut().push(request.uri().to_string());
                        connect(request, answer.get(), endpoint)
                    });
                    let http = hyper::server::conn::http2::Builder::new(LocalExecutor);
                    let _ = http.serve_connection(TokioIo::new(accepted.stream), service).await;
                });
            }
        });
        Self { address, name, identity, asked, answer }
    }

    fn summary(&self, tunnel: SocketAddr) -> GatewaySummary {
        GatewaySummary {
            name: self.name.parse().unwrap(),
            identity: self.identity.clone(),
            locality: Locality::default(),
            tunnel: tunnel.to_string(),
            ready: true,
        }
    }
}

async fn connect(
    request: Request<Incoming>,
    answer: StatusCode,
    endpoint: SocketAddr,
) -> Result<Response<Empty<bytes::Bytes>>, std::convert::Infallible> {
    if answer == StatusCode::OK {
        tokio::task::spawn_local(async move {
            let Ok(upgraded) = hyper::upgrade::on(request).await else { return };
            let mut near = TokioIo::new(upgraded);
            let mut far = TcpStream::connect(endpoint).await.unwrap();
            let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
        });
    }
    let mut response = Response::new(Empty::new());
    *response.status_mut() = answer;
    Ok(response)
}

impl Abroad {
    async fn found(trust_domain: &str, east: &Domain) -> Self {
        let domain = Domain::new(trust_domain);
        let app = App::start("abroad").await;
        let mut view = view(&[&domain]);
        add_peer(&mut view, "east", east);
        add_service(&mut view, "shop/reviews", &[domain.id("reviews")], Some(Export::Everyone));
        let reviews = Sidecar::start(Some(&domain.workload("reviews")), &["shop/reviews"], Some(app.address));
        reviews.publish(&view);
        let gateway = FarGateway::start(&domain, "gateway-1", &view, reviews.inbound).await;
        Self { domain, _reviews: reviews, _app: app, gateway }
    }

    /// Makes it a peer of the View's cluster, with a gateway that is reached at `tunnel`.
    fn join(&self, view: &mut View, tunnel: SocketAddr) {
        let cluster = self.domain.cluster();
        add_peer(view, cluster.as_str(), &self.domain);
        let peer = view.peers.get_mut(&cluster).unwrap();
        let weight = LocalityWeight { endpoints: 1, ready_endpoints: 1, weight: 100, ready_weight: 100 };
        let summary = ServiceSummary {
            name: "shop/reviews".parse().unwrap(),
            identities: [self.domain.id("reviews")].into(),
            localities: BTreeMap::from([("/".to_owned(), weight)]),
        };
        peer.services.insert(summary.name.clone(), summary);
        peer.gateways = vec![self.gateway.summary(tunnel)];
    }
}

fn add_own_gateway(view: &mut View, domain: &Domain, name: &str, passthrough: SocketAddr) {
    let gateway = Gateway {
        name: name.parse().unwrap(),
        identity: domain.gateway(name).facts.id,
        locality: Locality::default(),
        passthrough,
        tunnel: passthrough.to_string(),
        ready: true,
        session: Session { incarnation: 1, sequence: 1, node: "node-1".parse().unwrap() },
    };
    view.gateways.insert(gateway.name.clone(), gateway);
}

#[test]
fn through_both_gateways_the_target_sees_the_callers_own_identity() {
    on_local_set(async {
        let east = Domain::new("east.example");
        let west = Abroad::found("west.example", &east).await;
        let own = Wire::to(west.gateway.address).await;
        let mut view = view(&[&east]);
        add_own_gateway(&mut view, &east, "gateway-1", own.address);
        west.join(&mut view, west.gateway.address);
        let mut product = Sidecar::start(Some(&east.workload("productpage")), &[], None);
        product.publish(&view);

        let answer = product.get(REVIEWS).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        assert_eq!((answer.header("x-hanse-cluster"), answer.header("x-hanse-tier")), ("west", "peer"));
        let seen = answer.seen();
        let caller = seen["headers"]["x-forwarded-client-cert"].as_str().unwrap();
        assert!(caller.ends_with(&format!("URI={}", east.id("productpage"))), "{caller}");
        assert!(own.carried.get() > 0, "it went through our own gateway");
        let asked = west.gateway.asked.borrow().clone();
        assert_eq!(asked.first().map(String::as_str), Some("reviews.shop.svc.cluster.local:80"));
        let logged = product.logged().await;
        assert_eq!(logged.destination_spiffe, west.domain.id("reviews").to_string());

        // One connection carries them all.
        for _ in 0..20 {
            assert_eq!(product.get(REVIEWS).await.status, StatusCode::OK);
        }
        assert!(west.gateway.asked.borrow().len() <= crate::io::tunnel::TUNNELS_PER_CLUSTER);

        // The far cluster revokes its own workload: the inner connection goes, the tunnel stays.
        view.revocations.insert(revoke(&west.domain.id("reviews"), 3));
        view.revision.0 += 1;
        product.plane.put_in_force(Arc::new(view.clone())).await;
        let rows = product.plane.connections.rows(10);
        assert!(!rows.is_empty() && rows.iter().all(|row| row.side == Side::Tunnel), "{rows:?}");
        assert_eq!(product.get(REVIEWS).await.status, StatusCode::SERVICE_UNAVAILABLE);
    });
}

/// The gateway's GOAWAY is not enough: a stream that is in the tunnel keeps it, and hyper says nothing before the next.
#[test]
fn a_tunnel_that_was_dialled_below_an_outgoing_authority_is_left_by_its_caller() {
    on_local_set(async {
        let east = Domain::new("east.example");
        let west = Abroad::found("west.example", &east).await;
        let mut view = view(&[&east]);
        west.join(&mut view, west.gateway.address);
        let product = Sidecar::start(Some(&east.workload("productpage")), &[], None);
        product.publish(&view);
        assert_eq!(product.get(REVIEWS).await.status, StatusCode::OK);
        let sides = || product.plane.connections.rows(10).iter().map(|row| row.side).collect::<Vec<_>>();
        assert!(sides().contains(&Side::Tunnel) && sides().contains(&Side::Outbound), "{:?}", sides());

        let own = view.bundles.get_mut(&east.trust_domain).unwrap();
        own.authorities.iter_mut().for_each(|a| a.state = AuthorityState::Tainted);
        view.revision.0 += 1;
        product.publish(&view);
        // When everybody has had the time to replace its SVID, by the clock that the table is given.
        let known = product.plane.knowledge.now();
        product.plane.connections.sweep(&known.trust, None, now() + Duration::from_secs(6));
        until("nothing of it is left", async || sides().is_empty()).await;
    });
}

#[test]
fn a_gateway_that_refuses_is_not_asked_for_ever() {
    on_local_set(async {
        let east = Domain::new("east.example");
        let west = Abroad::found("west.example", &east).await;
        west.gateway.answer.set(StatusCode::FORBIDDEN);
        let mut view = view(&[&east]);
        west.join(&mut view, west.gateway.address);
        let product = Sidecar::start(Some(&east.workload("productpage")), &[], None);
        product.publish(&view);
        let answer = product.get(REVIEWS).await;
        assert_eq!(
            (answer.status, answer.header("x-hanse-reason")),
            (StatusCode::SERVICE_UNAVAILABLE, "unreachable")
        );
        assert!(west.gateway.asked.borrow().len() <= crate::attempt::MAX_ATTEMPTS as usize);
        west.gateway.answer.set(StatusCode::OK);
        until("served once it is allowed", async || product.get(REVIEWS).await.status == StatusCode::OK)
            .await;
    });
}

#[test]
fn a_gateway_that_dies_costs_no_idempotent_request() {
    on_local_set(async {
        let east = Domain::new("east.example");
        let west = Abroad::found("west.example", &east).await;
        let (first, second) = (Wire::to(west.gateway.address).await, Wire::to(west.gateway.address).await);
        let mut view = view(&[&east]);
        add_own_gateway(&mut view, &east, "gateway-1", first.address);
        add_own_gateway(&mut view, &east, "gateway-2", second.address);
        west.join(&mut view, west.gateway.address);
        let product = Sidecar::start(Some(&east.workload("productpage")), &[], None);
        product.publish(&view);
        until("both gateways carry", async || {
            assert_eq!(product.get(REVIEWS).await.status, StatusCode::OK);
            first.carried.get() > 0 && second.carried.get() > 0
        })
        .await;
        first.cut();
        for turn in 0..50 {
            assert_eq!(product.get(REVIEWS).await.status, StatusCode::OK, "turn {turn}");
        }
    });
}

#[test]
fn a_gateway_that_is_leaving_is_let_go_before_it_cuts_anybody_off() {
    on_local_set(async {
        let east = Domain::new("east.example");
        let west = Abroad::found("west.example", &east).await;
        let (first, second) = (Wire::to(west.gateway.address).await, Wire::to(west.gateway.address).await);
        let mut view = view(&[&east]);
        add_own_gateway(&mut view, &east, "gateway-1", first.address);
        add_own_gateway(&mut view, &east, "gateway-2", second.address);
        west.join(&mut view, west.gateway.address);
        let product = Sidecar::start(Some(&east.workload("productpage")), &[], None);
        product.publish(&view);
        until("both gateways carry", async || {
            assert_eq!(product.get(REVIEWS).await.status, StatusCode::OK);
            first.carried.get() > 0 && second.carried.get() > 0
        })
        .await;
        let gateway = view.gateways.values_mut().find(|gateway| gateway.name.as_str() == "gateway-1");
        gateway.unwrap().ready = false;
        view.revision.0 += 1;
        product.publish(&view);
        until("nothing runs over it any more", async || {
            assert_eq!(product.get(REVIEWS).await.status, StatusCode::OK);
            first.connections.borrow().iter().all(tokio::task::AbortHandle::is_finished)
        })
        .await;
        assert!(second.connections.borrow().iter().any(|connection| !connection.is_finished()));
    });
}

/// Has so many per cent of east's requests go to north and the rest to west, two at a time to each.
fn share(view: &mut View, north: u32) {
    let text = format!(
        "apiVersion: hanse.dev/v1alpha1\nkind: BackendPolicy\nmetadata: {{ name: reviews, namespace: shop }}\nspec:\n  \
         targetRefs: [{{ group: multicluster.x-k8s.io, kind: ServiceImport, name: reviews }}]\n  \
         limits: {{ maxRequests: 2 }}\n  locality:\n    mode: Distribute\n    \
         distribute: [{{ from: east, to: {{ north: {north}, west: {} }} }}]\n",
        100 - north
    );
    let documents = parse("test", &text).unwrap();
    let findings = validate(view, "test", &documents);
    assert!(findings.is_empty(), "{findings:#?}");
    for (document, _) in documents {
        view.apply(&Change::PolicyPut(Box::new(document)));
    }
    view.revision.0 += 1;
}

#[test]
fn a_cluster_that_is_full_is_full_for_itself_alone() {
    on_local_set(async {
        let east = Domain::new("east.example");
        let north = Abroad::found("north.example", &east).await;
        let west = Abroad::found("west.example", &east).await;
        let mut view = view(&[&east]);
        north.join(&mut view, north.gateway.address);
        west.join(&mut view, west.gateway.address);
        share(&mut view, 100);
        let product = Sidecar::start(Some(&east.workload("productpage")), &[], None);
        product.publish(&view);
        assert_eq!(product.get(REVIEWS).await.header("x-hanse-cluster"), "north");
        let hung = [hang(&product), hang(&product)];
        let mut in_a_row = 0;
        until("north is full", async || {
            in_a_row = if product.get(REVIEWS).await.status == 503 { in_a_row + 1 } else { 0 };
            in_a_row == 3
        })
        .await;

        share(&mut view, 50);
        product.publish(&view);
        let (mut served, mut refused) = (0, 0);
        for _ in 0..40 {
            let answer = product.get(REVIEWS).await;
            match (answer.status.as_u16(), answer.header("x-hanse-cluster")) {
                (200, "west") => served += 1,
                (503, _) => {
                    assert_eq!(answer.body, "overflow: limits.maxRequests of shop/reviews in north\n");
                    refused += 1;
                }
                _ => panic!("{answer:?}"),
            }
        }
        // Half of them each: fewer than six is once in a million times.
        assert!(served > 5 && refused > 5, "{served} served, {refused} refused");
        let metrics = product.plane.telemetry.to_text();
        let overflows = |cluster: &str| {
            metrics.contains(&format!(
                "hanse_overflows_total{{service=\"shop/reviews\",destination_cluster=\"{cluster}\",limit=\"maxRequests\"}}"
            ))
        };
        assert!(overflows("north") && !overflows("west"), "{metrics}");
        hung.iter().for_each(tokio::task::JoinHandle::abort);
        until("north has room again", async || {
            product.get(REVIEWS).await.header("x-hanse-cluster") == "north"
        })
        .await;
    });
}

#[test]
fn a_path_that_goes_dark_is_left_within_the_promise_and_found_again() {
    on_local_set(async {
        let east = Domain::new("east.example");
        let north = Abroad::found("north.example", &east).await;
        let west = Abroad::found("west.example", &east).await;
        let wire = Wire::to(north.gateway.address).await;
        let mut view = view(&[&east]);
        north.join(&mut view, wire.address);
        west.join(&mut view, west.gateway.address);
        let product = Sidecar::start(Some(&east.workload("productpage")), &[], None);
        product.publish(&view);
        assert_eq!(product.get(REVIEWS).await.header("x-hanse-cluster"), "north", "peers by name");

        wire.dark.set(true);
        let dark_since = Instant::now();
        while dark_since.elapsed() < Duration::from_secs(5) {
            let asked = Instant::now();
            let answer = product.get(REVIEWS).await;
            assert_eq!((answer.status, answer.header("x-hanse-cluster")), (StatusCode::OK, "west"));
            assert!(asked.elapsed() < Duration::from_millis(3500), "{:?}", asked.elapsed());
            if dark_since.elapsed() > Duration::from_millis(3500) {
                assert!(
                    asked.elapsed() < Duration::from_millis(500),
                    "traffic has left: {:?}",
                    asked.elapsed()
                );
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }

        wire.dark.set(false);
        // Back after the path is probed; the ramp then lets traffic return.
        until("a tunnel to north again", async || {
            let rows = product.plane.connections.rows(10);
            rows.iter()
                .any(|row| row.side == Side::Tunnel && row.cluster.as_ref() == Some(&north.domain.cluster()))
        })
        .await;
    });
}

#[test]
fn where_the_only_path_is_known_to_be_dead_requests_fail_fast_and_say_so() {
    on_local_set(async {
        let east = Domain::new("east.example");
        let west = Abroad::found("west.example", &east).await;
        let wire = Wire::to(west.gateway.address).await;
        let mut view = view(&[&east]);
        west.join(&mut view, wire.address);
        let product = Sidecar::start(Some(&east.workload("productpage")), &[], None);
        product.publish(&view);
        assert_eq!(product.get(REVIEWS).await.status, StatusCode::OK);
        wire.dark.set(true);
        let first = product.get(REVIEWS).await;
        assert_eq!(first.status, StatusCode::SERVICE_UNAVAILABLE, "{first:?}");
        let asked = Instant::now();
        let next = product.get(REVIEWS).await;
        assert_eq!(
            (next.status, next.header("x-hanse-reason")),
            (StatusCode::SERVICE_UNAVAILABLE, "unreachable")
        );
        assert_eq!(next.body, "unreachable: no path to cluster west\n");
        assert!(asked.elapsed() < Duration::from_secs(3), "no dial of its own: {:?}", asked.elapsed());
        wire.dark.set(false);
        until("served again", async || product.get(REVIEWS).await.status == StatusCode::OK).await;
    });
}
