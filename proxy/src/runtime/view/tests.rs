//! Tests of the Watch stream, against control nodes that say what a test has them say.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use hanse_federation::wire::decode;
use hanse_federation::{Announcement, Locality, Revision};
use hanse_identity::ServiceName;
use hanse_identity::tls::{ClientAuth, server_config};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tonic::server::{Grpc, StreamingService};

use super::*;
use crate::runtime::access_log::Entry;
use crate::runtime::drain::drain;
use crate::runtime::taps::Outcome;
use crate::runtime::worker::LocalExecutor;
use crate::sidecar::tests::world::{
    Domain, add_endpoint, add_service, on_local_set, plane_of, revoke, until, view,
};

/// One stream, as a control node has it.
struct Session {
    node: &'static str,
    up: Streaming<pb::WatchUp>,
    down: mpsc::Sender<Result<pb::WatchDown, Status>>,
}

/// Hands the stream to the test.
struct Accept {
    node: &'static str,
    sessions: mpsc::Sender<Session>,
}

impl StreamingService<pb::WatchUp> for Accept {
    type Response = pb::WatchDown;
    type ResponseStream = ReceiverStream<Result<pb::WatchDown, Status>>;
    type Future = BoxFuture<'static, Result<tonic::Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: tonic::Request<Streaming<pb::WatchUp>>) -> Self::Future {
        let (down, outgoing) = mpsc::channel(16);
        let session = Session { node: self.node, up: request.into_inner(), down };
        let sessions = self.sessions.clone();
        Box::pin(async move {
            sessions.send(session).await.map_err(|_| Status::unavailable("the test is over"))?;
            Ok(tonic::Response::new(ReceiverStream::new(outgoing)))
        })
    }
}

/// A control node of that domain; its streams go to `sessions`.
async fn control_node(domain: &Domain, node: &'static str, sessions: mpsc::Sender<Session>) -> SocketAddr {
    let plane = plane_of(&domain.member(MemberRole::Node, node), &view(&[domain]));
    let (trust, own): (Arc<dyn TrustSource>, Arc<dyn IdentitySource>) =
        (Arc::clone(&plane.knowledge) as _, Arc::clone(&plane.credentials) as _);
    let acceptor = tokio_rustls::TlsAcceptor::from(server_config(trust, own, ClientAuth::Required, &[b"h2"]));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::task::spawn_local(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let (acceptor, sessions) = (acceptor.clone(), sessions.clone());
            tokio::task::spawn_local(async move {
                let Ok(stream) = acceptor.accept(tcp).await else { return };
                let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                    let accept = Accept { node, sessions: sessions.clone() };
                    async move {
                        let mut grpc = Grpc::new(tonic_prost::ProstCodec::default());
                        Ok::<_, Infallible>(grpc.streaming(accept, request.map(tonic::body::Body::new)).await)
                    }
                });
                let http = hyper::server::conn::http2::Builder::new(LocalExecutor);
                let _ = http.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    address
}

impl Session {
    async fn next(&mut self) -> watch_up::Message {
        let next = tokio::time::timeout(Duration::from_secs(5), self.up.next()).await;
        next.expect("a message in time").unwrap().unwrap().message.unwrap()
    }

    async fn hello(&mut self) -> pb::Hello {
        match self.next().await {
            watch_up::Message::Hello(hello) => hello,
            other => panic!("expected Hello, not {other:?}"),
        }
    }

    async fn announcement(&mut self) -> Announcement {
        match self.next().await {
            watch_up::Message::Announce(announce) => decode("announcement", &announce.announcement).unwrap(),
            other => panic!("expected Announce, not {other:?}"),
        }
    }

    async fn applied(&mut self) -> pb::Applied {
        match self.next().await {
            watch_up::Message::Applied(applied) => applied,
            other => panic!("expected Applied, not {other:?}"),
        }
    }

    async fn say(&self, message: watch_down::Message) {
        self.down.send(Ok(pb::WatchDown { message: Some(message) })).await.unwrap();
    }

    async fn snapshot(&self, view: &View) {
        let snapshot = pb::Snapshot { revision: view.revision.0, view: encode(view) };
        self.say(watch_down::Message::Snapshot(snapshot)).await;
    }

    async fn changes(&self, revision: u64, changes: &[Change]) {
        let changes = pb::Changes { revision, change: changes.iter().map(encode).collect() };
        self.say(watch_down::Message::Changes(changes)).await;
    }
}

struct Followed {
    plane: Arc<Plane>,
    east: Domain,
    sessions: mpsc::Receiver<Session>,
    announce: watch::Sender<Announce>,
    view: View,
}

impl Followed {
    async fn start() -> Self {
        let east = Domain::new("east.example");
        let (handed, sessions) = mpsc::channel(4);
        let mut control = Vec::new();
        for node in ["east-1", "east-2"] {
            control.push(control_node(&east, node, handed.clone()).await.to_string());
        }
        let plane = Arc::new(Plane::new("reviews-1".parse().unwrap(), Locality::default()));
        plane.credentials.install_bundles(vec![east.bundle()]);
        plane.knowledge.refresh();
        let (announce, announced) = watch::channel(Announce { ready: false, serves: Serves::Nothing });
        let subscription = Subscription { kind: "proxy", control, announce: announced };
        // The other half is kept by the task: the process never ends in these tests.
        let (drain, stop) = drain();
        let followed = follow(Arc::clone(&plane), subscription, stop);
        tokio::task::spawn_local(async move {
            followed.await;
            drop(drain);
        });
        plane.credentials.install_svid(&east.workload("reviews")).unwrap();
        let view = view(&[&east]);
        Self { plane, east, sessions, announce, view }
    }

    async fn session(&mut self) -> Session {
        let session = tokio::time::timeout(Duration::from_secs(10), self.sessions.recv()).await;
        session.expect("somebody dials").unwrap()
    }

    /// A session in which the View at that revision has been put in force.
    async fn told(&mut self, revision: u64) -> Session {
        let mut session = self.session().await;
        self.view.revision = Revision(revision);
        session.snapshot(&self.view).await;
        session.hello().await;
        session.announcement().await;
        session.applied().await;
        session
    }
}

#[test]
fn a_view_comes_down_and_what_is_done_with_it_goes_up() {
    on_local_set(async {
        let mut followed = Followed::start().await;
        let mut session = followed.session().await;
        let hello = session.hello().await;
        assert_eq!(
            (hello.name.as_str(), hello.kind.as_str(), hello.from_revision),
            ("reviews-1", "proxy", 0)
        );
        let first = session.announcement().await;
        assert!(!first.ready);

        followed.view.revision = Revision(7);
        session.snapshot(&followed.view).await;
        assert_eq!(session.applied().await.revision, 7);
        assert_eq!(followed.plane.knowledge.now().revision(), Revision(7));

        let revocation = revoke(&followed.east.id("product"), 8);
        session.changes(8, &[Change::Revoked(revocation.clone())]).await;
        assert_eq!(
            session.applied().await,
            pb::Applied { revision: 8, closed: Vec::new(), outgoing: Vec::new() }
        );
        let known = followed.plane.knowledge.now();
        assert!(known.trust.revocations.get(&revocation.id).is_some(), "what is applied is in force");

        followed.announce.send_modify(|announce| announce.ready = true);
        let second = session.announcement().await;
        assert!(second.ready && second.sequence > first.sequence);
        assert_eq!(second.incarnation, first.incarnation);

        let revocation = encode(&crate::sidecar::tests::world::revoke(&followed.east.id("product"), 9));
        session.say(watch_down::Message::Live(pb::LiveQuery { query: 5, revocation })).await;
        let reply = session.next().await;
        assert_eq!(reply, watch_up::Message::Live(pb::LiveReply { query: 5, ..Default::default() }));
    });
}

#[test]
fn what_an_earlier_life_left_in_our_place_is_answered_with_a_later_announcement() {
    on_local_set(async {
        let mut followed = Followed::start().await;
        let services: std::collections::BTreeSet<ServiceName> = ["shop/reviews".parse().unwrap()].into();
        let inbound = "127.0.0.1:15006".parse().unwrap();
        let serves = Serves::Services { services: services.clone(), inbound, weight: 100 };
        let mut session = followed.session().await;
        session.hello().await;
        session.announcement().await;
        followed.announce.send_replace(Announce { ready: true, serves });
        let first = session.announcement().await;
        let address = "127.0.0.1:15006".parse().unwrap();
        followed.view.revision = Revision(7);
        add_endpoint(&mut followed.view, "reviews-1", "shop/reviews", &followed.east.id("reviews"), address);
        let place = followed.view.endpoints.get_mut(&first.name).unwrap();
        assert!(place.session.incarnation < first.incarnation);
        session.snapshot(&followed.view).await;
        assert_eq!(session.applied().await.revision, 7);
        let second = session.announcement().await;
        assert_eq!((second.incarnation, &second.serves), (first.incarnation, &first.serves));
        assert!(second.sequence > first.sequence);

        // One of a host whose clock was ahead.
        let mut place = followed.view.endpoints[&first.name].clone();
        place.session.incarnation = first.incarnation + 1000;
        session.changes(8, &[Change::EndpointPut(place.clone())]).await;
        assert_eq!(session.applied().await.revision, 8);
        let third = session.announcement().await;
        assert_eq!(third.incarnation, first.incarnation + 1001);

        // Now it is in the log, and nothing more is said.
        place.session = session_of(&third);
        session.changes(9, &[Change::EndpointPut(place)]).await;
        assert_eq!(session.applied().await.revision, 9);
        session.changes(10, &[]).await;
        assert_eq!(session.applied().await.revision, 10);
    });
}

fn session_of(said: &Announcement) -> hanse_federation::catalog::Session {
    let (incarnation, sequence) = (said.incarnation, said.sequence);
    hanse_federation::catalog::Session { incarnation, sequence, node: "east-1".parse().unwrap() }
}

#[test]
fn who_looks_is_told_of_requests_until_the_stream_ends() {
    on_local_set(async {
        let mut followed = Followed::start().await;
        let plane = Arc::clone(&followed.plane);
        let request = http::Request::get("http://reviews/r/7").body(()).unwrap();
        let head = || {
            plane.taps.head(
                &request,
                &crate::trace::Trace::default(),
                &crate::request_id::RequestId::default(),
            )
        };
        let mut session = followed.session().await;
        session.hello().await;
        session.announcement().await;
        assert!(head().is_none(), "nobody looks");
        let everybody = hanse_federation::tap::Tap::new(hanse_federation::tap::Target::Everybody);
        let tap = pb::Tap { id: 7, tap: encode(&everybody), left_millis: 60_000 };
        session.say(watch_down::Message::Taps(pb::Taps { tap: vec![tap] })).await;
        until("it is looked", async || head().is_some()).await;
        let outcome = Outcome {
            outbound: false,
            entry: &Entry::default(),
            received: 0,
            sent: 0,
            duration: Duration::from_millis(1),
        };
        plane.taps.offer(*head().unwrap(), &outcome);
        let watch_up::Message::Tapped(told) = session.next().await else { panic!("nothing is told") };
        assert_eq!((told.tap, told.left_out), (7, 0));
        let told: hanse_federation::tap::Request = decode("request", &told.request[0]).unwrap();
        assert_eq!((told.path.as_str(), told.duration_micros), ("/r/7", 1000));
        drop(session);
        until("nobody looks", async || head().is_none()).await;
    });
}

#[test]
fn another_node_continues_where_the_first_left_off_and_a_view_never_goes_back() {
    on_local_set(async {
        let mut followed = Followed::start().await;
        let session = followed.told(7).await;
        let (first, link) = (session.node, followed.plane.knowledge.link());
        assert!(link.connected);
        drop(session);

        let mut session = followed.session().await;
        assert_ne!(session.node, first, "the other node is next");
        assert_eq!(session.hello().await.from_revision, 7);
        session.announcement().await;
        assert_eq!(session.applied().await.revision, 7, "this node has not heard what is in force already");
        // This node is behind: what it says of the past is passed over, until it has caught up.
        let mut old = followed.view.clone();
        old.revision = Revision(5);
        add_service(&mut old, "shop/past", &[], None);
        session.snapshot(&old).await;
        session.changes(6, &[Change::ServiceGone("shop/past".parse().unwrap())]).await;
        session.changes(8, &[]).await;
        assert_eq!(session.applied().await.revision, 8);
        let past: ServiceName = "shop/past".parse().unwrap();
        assert!(!followed.plane.knowledge.view().unwrap().services.contains_key(&past));
    });
}

#[test]
fn what_a_node_says_with_its_last_breath_is_in_force() {
    on_local_set(async {
        let mut followed = Followed::start().await;
        let session = followed.told(7).await;
        // As a node does that is revoked itself: both are there before either has been looked at.
        let revocation = revoke(&followed.east.id("product"), 8);
        session.changes(8, &[Change::Revoked(revocation.clone())]).await;
        session.down.send(Err(Status::unavailable("this node is revoked"))).await.unwrap();
        drop(session);

        let mut session = followed.session().await;
        assert_eq!(session.hello().await.from_revision, 8);
        let known = followed.plane.knowledge.now();
        assert!(known.trust.revocations.get(&revocation.id).is_some());
    });
}

#[test]
fn what_cannot_be_read_makes_us_ask_for_everything_and_a_foreign_view_is_refused() {
    on_local_set(async {
        let mut followed = Followed::start().await;
        let session = followed.told(7).await;
        let unreadable = pb::Changes { revision: 8, change: vec![br#"{"fromTheFuture":1}"#.to_vec()] };
        session.say(watch_down::Message::Changes(unreadable)).await;

        let mut session = followed.session().await;
        assert_eq!(session.hello().await.from_revision, 0, "the whole View, please");
        let mut foreign = view(&[&Domain::new("west.example")]);
        foreign.revision = Revision(99);
        session.snapshot(&foreign).await;
        followed.session().await;
        assert_eq!(followed.plane.knowledge.now().revision(), Revision(7), "what we had is still in force");
    });
}

#[test]
fn who_is_no_node_of_our_domain_is_not_followed() {
    on_local_set(async {
        let east = Domain::new("east.example");
        let (handed, mut sessions) = mpsc::channel(4);
        // Same name, other authority; and a workload's SVID where a node's should be.
        let impostor = control_node(&Domain::new("east.example"), "east-1", handed.clone()).await;
        let plane = Arc::new(Plane::new("p".parse().unwrap(), Locality::default()));
        plane.credentials.install_bundles(vec![east.bundle()]);
        plane.credentials.install_svid(&east.workload("reviews")).unwrap();
        plane.knowledge.refresh();
        let mut follower = Follower::new(Arc::clone(&plane));
        let (_announce, announced) = watch::channel(Announce { ready: true, serves: Serves::Nothing });
        let mut subscription = Subscription { kind: "proxy", control: Vec::new(), announce: announced };
        let outcome = follower.session(&impostor.to_string(), 0, &mut subscription).await;
        assert!(matches!(outcome, Err(SessionError::Unreachable(_))), "{outcome:?}");
        assert!(sessions.try_recv().is_err());
    });
}
