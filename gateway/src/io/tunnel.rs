//! The tunnel door: mutual TLS from a caller's proxy, HTTP/2 CONNECT inside, plain copying of what is in the stream
//! (the workloads' own mutual TLS, end to end).
//!
//! Verify, register in the connection table, check again, then serve: no revocation can fall between.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hanse_federation::View;
use hanse_identity::frames::Frames;
use hanse_identity::tls::{
    ClientAuth, IdentitySource, TlsIdentity, TrustSource, server_config, verified_peer,
};
use hanse_identity::{ServiceName, SpiffeId, Usage, VerifiedCaller};
use hanse_proxy::connections::{Entrant, Live, Order, Side};
use hanse_proxy::io::http::{MAX_PENDING_RESETS, MAX_PROVOKED_RESETS};
use hanse_proxy::io::metered::Metered;
use hanse_proxy::runtime::drain::Stop;
use hanse_proxy::runtime::knowledge::HANDSHAKE_WAITS;
use hanse_proxy::runtime::now;
use hanse_proxy::runtime::worker::Random;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::opening::{self, Ended, Target};
use super::{ACCEPT_PAUSE, ENDPOINTS_TRIED, Gateway};
use crate::limit::Permit;
use crate::route::{Admitted, Denied, admit};

/// Connections (not streams) that are served at a time, all sources together.
const MAX_CONNECTIONS: usize = 4096;
/// Of these, how many one source cluster may have: half, so that none can take the door from the others.
pub const MAX_CONNECTIONS_PER_CLUSTER: usize = MAX_CONNECTIONS / 2;
/// Streams per connection that a caller's proxy may have open.
const MAX_STREAMS_PER_CONNECTION: u32 = 512;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);
/// A caller that has gone silent is noticed within the sum of these two.
const PING_EVERY: Duration = Duration::from_secs(2);
const PING_TIMEOUT: Duration = Duration::from_secs(2);
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// How long a stream goes on whose service is no longer exported: what is under way in it may end, and the target's own
/// proxy refuses what is new.
pub const UNEXPORTED_FOR: Duration = Duration::from_secs(2);
/// A CONNECT names a service and little else.
const MAX_HEADER_LIST_BYTES: u32 = 4 * 1024;

/// A tunnel that may be opened: leave, place, and an endpoint that answered.
struct Opened {
    service: ServiceName,
    permit: Permit,
    target: Target,
}

/// Why a CONNECT is not answered with 200.
enum NotOpened {
    Denied(Denied),
    NotConnect,
    NotReady,
    Revoked,
    OverLimit,
    Unreachable,
}

/// Accepts until draining; returns when every connection has ended.
pub async fn serve(listener: TcpListener, gateway: Arc<Gateway>, mut stop: Stop) {
    let trust: Arc<dyn TrustSource> = Arc::clone(&gateway.plane.knowledge) as _;
    let identity: Arc<dyn IdentitySource> = Arc::clone(&gateway.plane.credentials) as _;
    let acceptor = TlsAcceptor::from(server_config(trust, identity, ClientAuth::Required, &[b"h2"]));
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.draining() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, remote)) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        if let Err(stale) = gateway.plane.admits_new(now()) {
            gateway.plane.telemetry.refused("stale_revocations");
            tracing::info!(%remote, %stale, "handshake refused");
            continue;
        }
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            gateway.plane.telemetry.refused("gateway-connections");
            continue;
        };
        let (acceptor, gateway, stop) = (acceptor.clone(), Arc::clone(&gateway), stop.clone());
        connections.spawn(async move {
            let _ = stream.set_nodelay(true);
            gateway.plane.knowledge.settled(HANDSHAKE_WAITS).await;
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
                Ok(Ok(tls)) => connection(tls, gateway, stop).await,
                Ok(Err(error)) => {
                    gateway.plane.telemetry.refused("tls");
                    tracing::info!(%remote, %error, "handshake refused");
                }
                Err(_) => gateway.plane.telemetry.refused("tls-timeout"),
            }
            drop(place);
        });
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// One caller's proxy, from the end of its handshake to the end of its connection.
async fn connection(tls: TlsStream<TcpStream>, gateway: Arc<Gateway>, mut stop: Stop) {
    let plane = &gateway.plane;
    let trust = plane.knowledge.trust();
    let proof = verified_peer(tls.get_ref().1, &trust, now(), Usage::Client);
    let (Ok(Some(caller)), Some(own)) = (proof, plane.credentials.identity()) else {
        plane.telemetry.refused("not-verified");
        return;
    };
    let mut live = enter(&gateway, caller.clone(), own);
    let known = plane.knowledge.now();
    if let Err(error) = live.check(&known.trust, now()) {
        plane.telemetry.refused("revoked");
        tracing::info!(caller = %caller.id(), %error, "refused after the handshake");
        return;
    }
    // Whoever has not heard of it yet would still come in.
    if known.own_revoked.is_some() {
        plane.telemetry.refused("own_revoked");
        return;
    }
    let Some(_place) = gateway.connections.take(caller.id().trust_domain()) else {
        plane.telemetry.refused("gateway-connections");
        return;
    };
    // Dropped with this task: every stream of the connection sees it and ends.
    let (alive, ended) = watch::channel(());
    let streams = Arc::clone(&gateway);
    let service = service_fn(move |request| {
        let (gateway, caller, ended) = (Arc::clone(&streams), caller.clone(), ended.clone());
        async move { Ok::<_, Infallible>(answer(request, gateway, caller, ended).await) }
    });
    let mut http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    http.timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .max_concurrent_streams(MAX_STREAMS_PER_CONNECTION)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(MAX_PROVOKED_RESETS)
        .max_header_list_size(MAX_HEADER_LIST_BYTES)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    let metered = Metered::new(tls, Frames::of_client(), Arc::clone(&plane.telemetry));
    let mut serving = std::pin::pin!(http.serve_connection(TokioIo::new(metered), service));
    let mut leaving = false;
    loop {
        tokio::select! {
            biased;
            order = live.ordered() => match order {
                Order::Close(cause) => {
                    tracing::info!(caller = %live.peer().id(), ?cause, "tunnel connection closed");
                    break;
                }
                // Its SVID is about to expire: no new streams, and time for those that are there.
                Order::Leave(_) => serving.as_mut().graceful_shutdown(),
                Order::Stay => {}
            },
            () = stop.draining(), if !leaving => {
                leaving = true;
                serving.as_mut().graceful_shutdown();
            }
            served = &mut serving => {
                if let Err(error) = served {
                    tracing::debug!(caller = %live.peer().id(), %error, "tunnel connection ended");
                }
                break;
            }
        }
    }
    drop(alive);
}

fn enter(gateway: &Gateway, caller: VerifiedCaller, own: Arc<TlsIdentity>) -> Live {
    let view = gateway.plane.knowledge.view();
    let cluster = view.and_then(|v| v.peer_of(caller.id().trust_domain()).map(|p| p.record.cluster.clone()));
    let entrant = Entrant { side: Side::Tunnel, peer: caller, own, service: None, cluster };
    gateway.plane.connections.enter(entrant, now())
}

/// Answers one CONNECT; the stream itself lives on in a task of its own.
async fn answer(
    mut request: Request<Incoming>,
    gateway: Arc<Gateway>,
    caller: VerifiedCaller,
    mut ended: watch::Receiver<()>,
) -> Response<Empty<Bytes>> {
    let opened = match open(&request, &gateway, &caller).await {
        Ok(opened) => opened,
        Err(why) => return refuse(&gateway, caller.id(), request.uri(), &why),
    };
    let peer = peer_label(&gateway, caller.id());
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let _permit = opened.permit;
        let Ok(upgraded) = upgrade.await else { return };
        let counted = gateway.telemetry.open(&peer, "tunnel");
        tokio::select! {
            biased;
            // The sender is never used: it only ends, with its connection.
            _ = ended.changed() => {}
            () = unexported(&gateway, caller.id(), &opened.service) => {
                gateway.plane.telemetry.refused("not-exported");
                tracing::info!(caller = %caller.id(), service = %opened.service, "stream cut, no longer exported");
            }
            carried = opening::carry(TokioIo::new(upgraded), opened.target, counted) => {
                let Err(error) = carried else { return };
                match error {
                    Ended::NotTls => gateway.plane.telemetry.refused("tunnel-not-tls"),
                    Ended::Silent => gateway.plane.telemetry.refused("tunnel-silent"),
                    Ended::Io(_) => {}
                }
                tracing::debug!(caller = %caller.id(), service = %opened.service, %error, "stream ended");
            }
        }
    });
    Response::new(Empty::new())
}

async fn open(
    request: &Request<Incoming>,
    gateway: &Gateway,
    caller: &VerifiedCaller,
) -> Result<Opened, NotOpened> {
    if request.method() != Method::CONNECT {
        return Err(NotOpened::NotConnect);
    }
    let view = gateway.plane.knowledge.view().ok_or(NotOpened::NotReady)?;
    caller.still_believed(&gateway.plane.knowledge.trust(), now()).map_err(|_| NotOpened::Revoked)?;
    let authority = request.uri().authority().map_or("", |a| a.as_str());
    let admitted = admit(&view, caller.id(), authority).map_err(NotOpened::Denied)?;
    let permit = gateway.limits.take(caller.id().trust_domain()).ok_or(NotOpened::OverLimit)?;
    let target = connect(&view, &admitted).await.ok_or(NotOpened::Unreachable)?;
    Ok(Opened { service: admitted.service().clone(), permit, target })
}

/// Resolves when the caller's cluster may not use the service any more, and has had its time to end.
pub(super) async fn unexported(gateway: &Gateway, caller: &SpiffeId, service: &ServiceName) {
    let mut revisions = gateway.plane.knowledge.revisions();
    let gone = || gateway.plane.knowledge.view().is_some_and(|view| !view.may_call(caller, service));
    loop {
        // Before the first wait too: it may have been taken back while the stream was being opened.
        if gone() {
            tokio::time::sleep(UNEXPORTED_FOR).await;
            if gone() {
                return;
            }
        }
        if revisions.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// The first endpoint that takes a connection. Nothing of the caller's has been sent yet, so trying is free.
async fn connect(view: &View, admitted: &Admitted) -> Option<Target> {
    let random = Random::from_entropy().next();
    for endpoint in admitted.endpoints(view, random).into_iter().take(ENDPOINTS_TRIED) {
        match Target::dial(endpoint.address).await {
            Ok(target) => return Some(target),
            Err(error) => tracing::debug!(endpoint = %endpoint.id, %error, "endpoint does not answer"),
        }
    }
    None
}

fn refuse(gateway: &Gateway, caller: &SpiffeId, uri: &http::Uri, why: &NotOpened) -> Response<Empty<Bytes>> {
    let (status, reason) = match why {
        NotOpened::Denied(denied) => (denied.status(), denied.reason()),
        NotOpened::NotConnect => (StatusCode::METHOD_NOT_ALLOWED, "not-connect"),
        NotOpened::NotReady => (StatusCode::SERVICE_UNAVAILABLE, "not-ready"),
        NotOpened::Revoked => (StatusCode::FORBIDDEN, "revoked"),
        NotOpened::OverLimit => (StatusCode::SERVICE_UNAVAILABLE, "over-limit"),
        NotOpened::Unreachable => (StatusCode::SERVICE_UNAVAILABLE, "endpoints-unreachable"),
    };
    gateway.plane.telemetry.refused(reason);
    tracing::debug!(%caller, %uri, reason, "tunnel refused");
    Response::builder()
        .status(status)
        .header("x-hanse-answered-by", "mesh")
        .header("x-hanse-reason", reason)
        .body(Empty::new())
        .expect("a status and two constant headers make a response")
}

fn peer_label(gateway: &Gateway, caller: &SpiffeId) -> String {
    let view = gateway.plane.knowledge.view();
    let peer = view.as_ref().and_then(|v| v.peer_of(caller.trust_domain()));
    peer.map_or_else(|| "own".to_owned(), |p| p.record.cluster.to_string())
}
