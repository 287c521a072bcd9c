//! One worker of the sidecar: its listeners, its state, its end. Everything it shares with other workers is in `Plane`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hanse_federation::host::ServiceHost;
use hanse_identity::ServiceName;
use hanse_identity::tls::{ClientAuth, IdentitySource, TrustSource, server_config};
use hyper::service::service_fn;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};

use crate::connections::Side;
use crate::io::app::Inbound;
use crate::io::app::plain::Told;
use crate::io::authorize::Authorizers;
use crate::io::forward::Outbound;
use crate::io::forward::captured::Capture;
use crate::io::forward::tcp::TcpTarget;
use crate::io::http::{detect, serve};
use crate::io::ingress::{Gate, serve_gate};
use crate::io::limits::Limits;
use crate::io::listen::{InFlight, accept_each};
use crate::io::record::Reporter;
use crate::io::stream::{IDLE_AFTER, Streams};
use crate::io::tls::{self, ALPN_H2, ALPN_HTTP1, ALPN_STREAMS, About};
use crate::runtime::access_log::AccessLog;
use crate::runtime::drain::Stop;
use crate::runtime::telemetry::Telemetry;
use crate::runtime::{Plane, now};

/// What every worker of one sidecar has in common.
#[derive(Clone)]
pub struct Settings {
    pub plane: Arc<Plane>,
    /// Services that we serve.
    pub services: Arc<BTreeSet<ServiceName>>,
    /// The app behind us.
    pub app: Option<SocketAddr>,
    /// Ports of the services that are plain TCP, and where the app takes them.
    pub tcp_ports: Arc<BTreeMap<u16, SocketAddr>>,
    pub access_log: Option<AccessLog>,
    pub limits: Arc<Limits>,
    /// How many there are; what a policy limits is divided among them.
    pub workers: u32,
    /// What it takes to take captured connections, if we do.
    pub capture: Option<Arc<Capture>>,
}

/// One worker's listeners; bound before it starts.
#[derive(Default)]
pub struct Listeners {
    pub inbound: Option<std::net::TcpListener>,
    /// Each with the service that it is bound to, if it is to one.
    pub outbound: Vec<(Option<Arc<ServiceHost>>, std::net::TcpListener)>,
    pub tcp: Vec<(Arc<TcpTarget>, std::net::TcpListener)>,
    /// For connections that the kernel turns to us.
    pub captured: Vec<std::net::TcpListener>,
    /// Ports of a Gateway, for clients outside.
    pub gates: Vec<(Arc<Gate>, std::net::TcpListener)>,
}

/// A question to a worker: what do your ladders look like?
pub type Inspect = oneshot::Sender<serde_json::Value>;

/// Questions that may wait for a worker.
pub const INSPECT_QUEUE: usize = 4;
/// How long what is in flight may take when the process ends.
pub const DRAIN_WITHIN: Duration = Duration::from_secs(5);
const TIDY_EVERY: Duration = Duration::from_secs(2);

/// Runs one worker to its end; call it on a `LocalSet`.
pub async fn work(
    settings: Settings,
    listeners: Listeners,
    mut inspections: mpsc::Receiver<Inspect>,
    mut stop: Stop,
) -> anyhow::Result<()> {
    let plane = Arc::clone(&settings.plane);
    let reporter = Rc::new(Reporter::new(Arc::clone(&plane), settings.access_log));
    let in_flight = InFlight::default();
    let streams = || Streams::new(in_flight.clone(), IDLE_AFTER);
    let outbound =
        Rc::new(Outbound::new(Arc::clone(&plane), Rc::clone(&reporter), streams(), settings.workers));
    let mut app = None;
    if let Some(listener) = listeners.inbound {
        let inbound = Rc::new(Inbound::new(
            reporter,
            settings.services,
            settings.app,
            settings.limits,
            streams(),
            settings.tcp_ports,
            Authorizers::new(Arc::clone(&plane), Rc::clone(&outbound)),
        ));
        let listener = TcpListener::from_std(listener)?;
        app = Some(Rc::clone(&inbound));
        let served = serve_inbound(listener, inbound, Arc::clone(&plane), in_flight.clone(), stop.clone());
        tokio::task::spawn_local(served);
    }
    for (bound, listener) in listeners.outbound {
        let listener = TcpListener::from_std(listener)?;
        let (outbound, plane) = (Rc::clone(&outbound), Arc::clone(&plane));
        let served = serve_outbound(listener, bound, outbound, plane, in_flight.clone(), stop.clone());
        tokio::task::spawn_local(served);
    }
    for (target, listener) in listeners.tcp {
        let listener = TcpListener::from_std(listener)?;
        let outbound = Rc::clone(&outbound);
        let carry = move |client, _| Rc::clone(&outbound).carry(Arc::clone(&target), client);
        tokio::task::spawn_local(accept_each(listener, stop.clone(), in_flight.clone(), carry));
    }
    for listener in listeners.captured {
        let Some(capture) = settings.capture.clone() else { continue };
        let listener = TcpListener::from_std(listener)?;
        let (outbound, ends) = (Rc::clone(&outbound), stop.clone());
        let take = move |client, _| Rc::clone(&outbound).captured(Arc::clone(&capture), client, ends.clone());
        tokio::task::spawn_local(accept_each(listener, stop.clone(), in_flight.clone(), take));
    }
    for (gate, listener) in listeners.gates {
        let listener = TcpListener::from_std(listener)?;
        let (outbound, plane) = (Rc::clone(&outbound), Arc::clone(&plane));
        let served = serve_gate(listener, gate, outbound, plane, in_flight.clone(), stop.clone());
        tokio::task::spawn_local(served);
    }
    let mut tidying = tokio::time::interval(TIDY_EVERY);
    loop {
        tokio::select! {
            () = stop.draining() => break,
            _ = tidying.tick() => {
                outbound.tidy(now());
                app.iter().for_each(|inbound| inbound.tidy());
            }
            Some(answer) = inspections.recv() => {
                let _ = answer.send(outbound.describe_ladders());
            }
        }
    }
    if tokio::time::timeout(DRAIN_WITHIN, in_flight.none()).await.is_err() {
        tracing::warn!(connections = in_flight.count(), "connections were still busy when the time was up");
    }
    Ok(())
}

async fn serve_inbound(
    listener: TcpListener,
    inbound: Rc<Inbound>,
    plane: Arc<Plane>,
    in_flight: InFlight,
    stop: Stop,
) {
    let trust: Arc<dyn TrustSource> = Arc::clone(&plane.knowledge) as _;
    let identity: Arc<dyn IdentitySource> = Arc::clone(&plane.credentials) as _;
    let config = server_config(trust, identity, ClientAuth::Required, &[ALPN_STREAMS, ALPN_H2, ALPN_HTTP1]);
    accept_each(listener, stop.clone(), in_flight, |stream, from| {
        let (inbound, plane) = (Rc::clone(&inbound), Arc::clone(&plane));
        let (config, stop) = (Arc::clone(&config), stop.clone());
        async move {
            if let Some(opening) = inbound.opening(&stream) {
                match opening.told(&stream).await {
                    Told::Tls => {}
                    Told::Plain => return inbound.serve_plain(stream, opening, stop).await,
                    Told::Nothing => return plane.telemetry.refused("handshake_timeout"),
                    Told::Gone => return,
                }
            }
            let about = About { side: Side::Inbound, service: None, cluster: None };
            match tls::accept(stream, &config, &plane, about).await {
                Ok(accepted) => inbound_connection(accepted, inbound, stop, &plane.telemetry).await,
                Err(refusal) => {
                    plane.telemetry.refused(refusal.label());
                    tracing::debug!(%from, %refusal, "inbound connection refused");
                }
            }
        }
    })
    .await;
}

async fn inbound_connection(
    accepted: tls::Accepted<TcpStream>,
    inbound: Rc<Inbound>,
    stop: Stop,
    telemetry: &Arc<Telemetry>,
) {
    let caller = Rc::new(inbound.caller(accepted.live.peer(), &accepted.caller_hash, accepted.own));
    let protocol = accepted.protocol;
    // In boxes: hyper moves the futures of requests several times, and these are large.
    let service =
        service_fn(move |request| Box::pin(Rc::clone(&inbound).handle(Rc::clone(&caller), request)));
    serve(accepted.stream, protocol, service, Some(accepted.live), stop, telemetry).await;
}

async fn serve_outbound(
    listener: TcpListener,
    bound: Option<Arc<ServiceHost>>,
    outbound: Rc<Outbound>,
    plane: Arc<Plane>,
    in_flight: InFlight,
    stop: Stop,
) {
    accept_each(listener, stop.clone(), in_flight, |stream, _| {
        let (outbound, bound, stop) = (Rc::clone(&outbound), bound.clone(), stop.clone());
        let plane = Arc::clone(&plane);
        async move {
            let Some(protocol) = detect(&stream).await else { return };
            let service =
                service_fn(move |request| Box::pin(Rc::clone(&outbound).handle(bound.clone(), request)));
            serve(stream, protocol, service, None, stop, &plane.telemetry).await;
        }
    })
    .await;
}

#[cfg(test)]
pub(crate) mod tests;
