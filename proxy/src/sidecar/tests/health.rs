//! BackendPolicy.health.active: what the proxy in front of an app finds, and that callers hear of it.

use std::cell::Cell;
use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;

use http::{HeaderMap, Response};
use http_body_util::StreamBody;
use http_body_util::combinators::BoxBody;
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::balancing::example;
use super::*;
use crate::io::check::watch_app;
use crate::runtime::worker::LocalExecutor;

/// What an app says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Says {
    Well,
    Ill,
    /// Nothing at all.
    Hangs,
}

/// An app whose checks, by HTTP and by gRPC, say what they are told to; everything else it answers with 200.
struct Patient {
    address: SocketAddr,
    says: Rc<Cell<Says>>,
    asked: Rc<Cell<usize>>,
}

impl Patient {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (says, asked) = (Rc::new(Cell::new(Says::Well)), Rc::new(Cell::new(0)));
        let (held, counted) = (Rc::clone(&says), Rc::clone(&asked));
        tokio::task::spawn_local(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (says, asked) = (Rc::clone(&held), Rc::clone(&counted));
                let service = service_fn(move |request| answer(Rc::clone(&says), Rc::clone(&asked), request));
                tokio::task::spawn_local(async move {
                    let either = hyper_util::server::conn::auto::Builder::new(LocalExecutor);
                    drop(either.serve_connection(TokioIo::new(stream), service).await);
                });
            }
        });
        Self { address, says, asked }
    }
}

async fn answer(
    says: Rc<Cell<Says>>,
    asked: Rc<Cell<usize>>,
    request: Request<Incoming>,
) -> Result<Response<BoxBody<Bytes, Infallible>>, Infallible> {
    let (path, well) = (request.uri().path(), says.get() == Says::Well);
    let checked = path == "/health" || path == "/grpc.health.v1.Health/Check";
    asked.set(asked.get() + usize::from(checked));
    if checked && says.get() == Says::Hangs {
        std::future::pending::<()>().await;
    }
    if path != "/grpc.health.v1.Health/Check" {
        let status = if path == "/health" && !well { 500 } else { 200 };
        return Ok(Response::builder().status(status).body(BoxBody::new(Full::default())).unwrap());
    }
    // Message of two bytes: field 1 is SERVING or NOT_SERVING.
    let message = Bytes::from(vec![0, 0, 0, 0, 2, 8, if well { 1 } else { 2 }]);
    let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
    let frames = [Ok(Frame::data(message)), Ok(Frame::trailers(trailers))];
    let body = StreamBody::new(tokio_stream::iter(frames));
    Ok(Response::builder().header("content-type", "application/grpc").body(BoxBody::new(body)).unwrap())
}

/// A proxy's watch over its app.
fn watched(shop: &Shop, app: SocketAddr) -> (watch::Receiver<bool>, crate::runtime::drain::Drain) {
    let (told, ready) = watch::channel(false);
    let (drain, stop) = crate::runtime::drain::drain();
    let services = Arc::new(BTreeSet::from(["shop/reviews".parse().unwrap()]));
    tokio::spawn(watch_app(app, Arc::clone(&shop.reviews.plane), services, told, stop));
    (ready, drain)
}

async fn becomes(ready: &mut watch::Receiver<bool>, wanted: bool) {
    let became =
        tokio::time::timeout(Duration::from_secs(10), ready.wait_for(|ready| *ready == wanted)).await;
    became.unwrap_or_else(|_| panic!("never {wanted}")).unwrap();
}

#[test]
fn an_app_that_fails_its_checks_is_not_ready_and_callers_leave_it() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        shop.apply(&example("backend-policy-health"));
        let patient = Patient::start().await;
        let (mut ready, _drain) = watched(&shop, patient.address);
        becomes(&mut ready, true).await;
        for ill in [Says::Ill, Says::Hangs] {
            patient.says.set(ill);
            let before = patient.asked.get();
            becomes(&mut ready, false).await;
            assert!(patient.asked.get() >= before + 3, "{ill:?}: not before the third");
            patient.says.set(Says::Well);
            becomes(&mut ready, true).await;
        }
        let metrics = shop.reviews.plane.telemetry.to_text();
        for series in ["{kind=\"http\",outcome=\"passed\"}", "{kind=\"http\",outcome=\"failed\"}"] {
            assert!(metrics.contains(&format!("hanse_app_checks_total{series}")), "{metrics}");
        }
        assert!(metrics.contains("hanse_app_ready 1"), "{metrics}");

        // What it announces is what callers see in their View: the other one gets everything.
        let _second = shop.second(patient.address);
        patient.says.set(Says::Ill);
        becomes(&mut ready, false).await;
        shop.change(|view| {
            let endpoint = view.endpoints.get_mut(&"reviews-2".parse().unwrap()).unwrap();
            endpoint.ready = false;
        });
        for _ in 0..10 {
            assert_eq!(shop.product.get(REVIEWS).await.header("x-app"), "reviews-v1");
        }
    });
}

#[test]
fn grpc_health_and_connections_are_checked_too() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        let patient = Patient::start().await;
        let soon = |text: String| text.replace("interval: 1s", "interval: 100ms");
        shop.apply(&soon(example("backend-policy-health-grpc")));
        let (mut ready, _drain) = watched(&shop, patient.address);
        becomes(&mut ready, true).await;
        patient.says.set(Says::Ill);
        becomes(&mut ready, false).await;
        // Only whether it takes connections counts from here on; of the policy's other check nothing is left.
        shop.apply(&soon(example("backend-policy-health-tcp")));
        becomes(&mut ready, true).await;
        let asked = patient.asked.get();
        patient.says.set(Says::Well);
        shop.change(|view| view.policies.clear());
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!((patient.asked.get(), *ready.borrow()), (asked, true));
    });
}

#[test]
fn nothing_is_ready_before_it_is_known_what_to_check() {
    on_local_set(async {
        let patient = Patient::start().await;
        patient.says.set(Says::Ill);
        let mut shop = Shop::open().await;
        shop.apply(&example("backend-policy-health"));
        let blank = Sidecar::start(Some(&shop.east.workload("reviews")), &[], None);
        let (told, mut ready) = watch::channel(false);
        let (_drain, stop) = crate::runtime::drain::drain();
        let services = Arc::new(BTreeSet::from(["shop/reviews".parse().unwrap()]));
        tokio::spawn(watch_app(patient.address, Arc::clone(&blank.plane), services, told, stop));
        blank.publish(&shop.view);
        until("it is asked", async || patient.asked.get() >= 3).await;
        assert!(!*ready.borrow(), "it has never been well");
        patient.says.set(Says::Well);
        becomes(&mut ready, true).await;
    });
}
