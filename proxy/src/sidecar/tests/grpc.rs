//! gRPC through real sidecars: trailers, streams both ways, deadlines, cancellation, and what the mesh says of its own.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use http::HeaderMap;
use http_body::{Body, Frame};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::*;
use crate::runtime::worker::LocalExecutor;

/// A body that is sent as it is made.
struct Sent(mpsc::UnboundedReceiver<Frame<Bytes>>);

impl Body for Sent {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0.poll_recv(cx).map(|frame| frame.map(Ok))
    }
}

/// Gives back what it gets, frame by frame, and then the trailers of a gRPC server.
struct Echo {
    body: Incoming,
    done: bool,
    /// Calls that have not ended.
    open: Rc<Cell<usize>>,
}

impl Body for Echo {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if self.done {
            return Poll::Ready(None);
        }
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(None) => {
                self.done = true;
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", "0".parse().unwrap());
                trailers.insert("x-hanse-tier", "forged".parse().unwrap());
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
            other => other,
        }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.open.set(self.open.get() - 1);
    }
}

/// A server that speaks HTTP/2 with prior knowledge, and nothing else.
struct GrpcApp {
    address: SocketAddr,
    open: Rc<Cell<usize>>,
    heads: Rc<RefCell<Vec<http::request::Parts>>>,
}

impl GrpcApp {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let app = Self { address: listener.local_addr().unwrap(), open: Rc::default(), heads: Rc::default() };
        let (open, heads) = (Rc::clone(&app.open), Rc::clone(&app.heads));
        tokio::task::spawn_local(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (open, heads) = (Rc::clone(&open), Rc::clone(&heads));
                let service = service_fn(move |request: Request<Incoming>| {
                    let (head, body) = request.into_parts();
                    let silent = head.uri.path() == "/test.Echo/Silent";
                    heads.borrow_mut().push(head);
                    open.set(open.get() + 1);
                    let body = Echo { body, done: false, open: Rc::clone(&open) };
                    async move {
                        if silent {
                            std::future::pending::<()>().await;
                        }
                        let response =
                            http::Response::builder().header("content-type", "application/grpc+proto");
                        Ok::<_, std::convert::Infallible>(response.body(body).unwrap())
                    }
                });
                let http = hyper::server::conn::http2::Builder::new(LocalExecutor);
                let served = http.serve_connection(TokioIo::new(stream), service);
                tokio::task::spawn_local(async move { drop(served.await) });
            }
        });
        app
    }
}

/// The shop with a gRPC server behind reviews, whose sidecar lives as long as it is held.
async fn grpc_shop() -> (Shop, GrpcApp, Sidecar) {
    let mut shop = Shop::open().await;
    let app = GrpcApp::start().await;
    let sidecar = Sidecar::start(Some(&shop.east.workload("reviews")), &["shop/reviews"], Some(app.address));
    let (id, inbound) = (shop.east.id("reviews"), sidecar.inbound);
    shop.change(|view| add_endpoint(view, "reviews-1", "shop/reviews", &id, inbound));
    sidecar.publish(&shop.view);
    (shop, app, sidecar)
}

struct Call {
    frames: mpsc::UnboundedSender<Frame<Bytes>>,
    response: Pin<Box<dyn Future<Output = hyper::Result<http::Response<Incoming>>>>>,
}

/// Begins a call of the product page.
async fn call(shop: &Shop, method: &str, headers: &[(&'static str, &'static str)]) -> Call {
    let stream = TcpStream::connect(shop.product.outbound).await.unwrap();
    let handshake = hyper::client::conn::http2::handshake(LocalExecutor, TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.unwrap();
    tokio::task::spawn_local(async move { drop(connection.await) });
    let (frames, body) = mpsc::unbounded_channel();
    let mut request = Request::post(format!("http://reviews.shop.svc.clusterset.local/test.Echo/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Sent(body)).unwrap();
    let response = Box::pin(async move { sender.send_request(request).await });
    Call { frames, response }
}

#[test]
fn a_call_has_its_trailers_and_streams_both_ways() {
    on_local_set(async {
        let (shop, app, _sidecar) = grpc_shop().await;
        let call = call(&shop, "Stream", &[("grpc-timeout", "20S")]).await;
        call.frames.send(Frame::data(Bytes::from_static(b"one"))).unwrap();
        let mut body = call.response.await.unwrap();
        assert_eq!(
            (body.status(), &body.headers()["content-type"]),
            (StatusCode::OK, &"application/grpc+proto".parse::<http::HeaderValue>().unwrap())
        );
        // Each message comes back before the next is sent: nobody waits for the end of anything.
        for message in ["one", "two", "three"] {
            if message != "one" {
                call.frames.send(Frame::data(Bytes::from_static(message.as_bytes()))).unwrap();
            }
            let frame = body.body_mut().frame().await.unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap(), message);
        }
        drop(call.frames);
        let trailers = body.body_mut().frame().await.unwrap().unwrap().into_trailers().unwrap();
        assert_eq!(trailers["grpc-status"], "0");
        assert!(!trailers.contains_key("x-hanse-tier"), "the app cannot speak for the mesh");
        let head = app.heads.borrow_mut().remove(0);
        assert_eq!((head.version, head.uri.path()), (http::Version::HTTP_2, "/test.Echo/Stream"));
        assert_eq!(head.uri.authority().unwrap().as_str(), "reviews.shop.svc.clusterset.local");
        assert_eq!(
            (&head.headers["te"], &head.headers["grpc-timeout"]),
            (&"trailers".parse::<http::HeaderValue>().unwrap(), &"20S".parse::<http::HeaderValue>().unwrap())
        );
        let caller = head.headers["x-forwarded-client-cert"].to_str().unwrap();
        assert!(caller.ends_with(&format!("URI={}", shop.east.id("productpage"))), "{caller}");
        assert!(!head.headers.contains_key("host"));
    });
}

#[test]
fn a_client_that_cancels_ends_the_call_at_the_app() {
    on_local_set(async {
        let (shop, app, _sidecar) = grpc_shop().await;
        let call = call(&shop, "Stream", &[]).await;
        call.frames.send(Frame::data(Bytes::from_static(b"one"))).unwrap();
        let response = call.response.await.unwrap();
        assert_eq!(app.open.get(), 1);
        drop((response, call.frames));
        until("the app hears that nobody waits", async || app.open.get() == 0).await;
    });
}

#[test]
fn the_mesh_speaks_grpc_to_clients_that_do() {
    on_local_set(async {
        let (mut shop, _app, _sidecar) = grpc_shop().await;
        let status = |response: &http::Response<Incoming>| {
            assert_eq!(response.status(), StatusCode::OK);
            assert_eq!(response.headers()["content-type"], "application/grpc");
            let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
            (header("grpc-status"), header("grpc-message"))
        };
        let late = call(&shop, "Silent", &[("grpc-timeout", "200m")]).await.response.await.unwrap();
        assert_eq!(status(&late), ("4".to_owned(), "timeout".to_owned()));
        assert!(late.into_body().collect().await.unwrap().to_bytes().is_empty());

        // Nothing listens where the app was: the far proxy says so, and the near one puts it into gRPC's words.
        let gone = Sidecar::start(
            Some(&shop.east.workload("reviews")),
            &["shop/reviews"],
            Some("127.0.0.1:1".parse().unwrap()),
        );
        let (id, inbound) = (shop.east.id("reviews"), gone.inbound);
        shop.change(|view| add_endpoint(view, "reviews-1", "shop/reviews", &id, inbound));
        gone.publish(&shop.view);
        let unreachable = call(&shop, "Stream", &[]).await;
        unreachable.frames.send(Frame::data(Bytes::from_static(b"one"))).unwrap();
        assert_eq!(
            status(&unreachable.response.await.unwrap()),
            ("14".to_owned(), "app-unreachable".to_owned())
        );

        shop.change(|view| view.endpoints.clear());
        let nobody = call(&shop, "Stream", &[]).await.response.await.unwrap();
        assert_eq!(status(&nobody).0, "14");
    });
}

#[test]
fn an_app_that_speaks_no_http2_is_told_apart_from_one_that_is_gone() {
    on_local_set(async {
        let shop = Shop::open().await;
        let answer = call(&shop, "Stream", &[]).await;
        answer.frames.send(Frame::data(Bytes::from_static(b"one"))).unwrap();
        let answer = answer.response.await.unwrap();
        assert_eq!(answer.headers()["grpc-status"], "14");
        let message = answer.headers()["grpc-message"].to_str().unwrap();
        assert!(["app-reset", "app-unreachable"].contains(&message), "{message}");
        // Requests that are no gRPC go to the same app as ever.
        assert_eq!(shop.product.get(REVIEWS).await.header("x-app"), "reviews-v1");
    });
}
