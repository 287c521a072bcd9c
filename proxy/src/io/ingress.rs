//! Clients from outside at a Gateway: plain HTTP, TLS with the certificate that the listener for their server name has, TLS that
//! is passed on to the service of that name, or plain TCP.
//!
//! Which listeners there are is the View's word, asked for every connection; the sockets are the command line's.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use hanse_federation::policy::document::gateway::ListenerProtocol;
use hanse_federation::policy::ingress;
use hanse_identity::ServiceName;
use hanse_identity::tls::outside::chosen_server_config;
use hyper::service::service_fn;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::net::{TcpListener, TcpStream};

use super::forward::Outbound;
use super::forward::ingress::Entrance;
use super::http::{Protocol, detect, serve};
use super::listen::{InFlight, accept_each};
use super::stream::{self, Alert};
use super::tls::{ACCEPT_TIMEOUT, ALPN_H2, ALPN_HTTP1};
use crate::runtime::Plane;
use crate::runtime::certificates::Certificates;
use crate::runtime::drain::Stop;
use crate::server_name::{Hello, NoHello};

/// A port of a Gateway that this proxy serves.
pub struct Gate {
    pub gateway: ServiceName,
    /// As the Gateway names it.
    pub port: u16,
    pub certificates: Option<Arc<Certificates>>,
}

/// Chooses by the View and the server name.
struct Chooser {
    gate: Arc<Gate>,
    plane: Arc<Plane>,
}

impl std::fmt::Debug for Chooser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "certificates of {} on port {}", self.gate.gateway, self.gate.port)
    }
}

impl ResolvesServerCert for Chooser {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let view = self.plane.knowledge.view()?;
        let asked = hello.server_name().map(str::to_ascii_lowercase);
        let name = ingress::certificate(&view, &self.gate.gateway, self.gate.port, asked.as_deref())?;
        let found = self.gate.certificates.as_ref()?.get(name);
        if found.is_none() {
            tracing::warn!(certificate = name, gateway = %self.gate.gateway, "there is no such certificate here");
        }
        found
    }
}

/// Serves one port until draining begins.
pub async fn serve_gate(
    listener: TcpListener,
    gate: Arc<Gate>,
    outbound: Rc<Outbound>,
    plane: Arc<Plane>,
    in_flight: InFlight,
    stop: Stop,
) {
    let chooser = Chooser { gate: Arc::clone(&gate), plane: Arc::clone(&plane) };
    let config = chosen_server_config(Arc::new(chooser), &[ALPN_H2, ALPN_HTTP1]);
    accept_each(listener, stop.clone(), in_flight, |stream, from| {
        let (gate, outbound, plane) = (Arc::clone(&gate), Rc::clone(&outbound), Arc::clone(&plane));
        let (config, stop) = (Arc::clone(&config), stop.clone());
        async move {
            let spoken = plane.knowledge.view().and_then(|v| ingress::protocol(&v, &gate.gateway, gate.port));
            match spoken {
                Some(ListenerProtocol::Http) => {
                    let Some(protocol) = detect(&stream).await else { return };
                    let entrance = Entrance::new(&gate, from, None);
                    enter(stream, protocol, entrance, outbound, stop, &plane).await;
                }
                Some(ListenerProtocol::Https) => {
                    secured(stream, from, &gate, outbound, config, stop, &plane).await
                }
                Some(ListenerProtocol::Tls) => {
                    named(stream, from, gate, outbound, config, stop, &plane).await
                }
                Some(ListenerProtocol::Tcp) => outbound.pass(gate, None, stream).await,
                None => tracing::debug!(%from, gateway = %gate.gateway, port = gate.port, "no such listener"),
            }
        }
    })
    .await;
}

/// By the server name, on a port where that decides whose TLS it is.
async fn named(
    stream: TcpStream,
    from: SocketAddr,
    gate: Arc<Gate>,
    outbound: Rc<Outbound>,
    config: Arc<rustls::ServerConfig>,
    stop: Stop,
    plane: &Arc<Plane>,
) {
    let name = match stream::hello(&stream).await {
        Some(Hello::Name(name)) => Some(name.to_ascii_lowercase()),
        Some(Hello::Refused(NoHello::NoName)) => None,
        Some(Hello::Refused(why)) => {
            plane.telemetry.refused("outside_handshake");
            tracing::debug!(%from, %why, "a client outside was refused");
            return stream::reset(&stream);
        }
        Some(Hello::More) => return plane.telemetry.refused("handshake_timeout"),
        None => return,
    };
    let spoken = plane
        .knowledge
        .view()
        .and_then(|view| ingress::protocol_by_name(&view, &gate.gateway, gate.port, name.as_deref()));
    match (spoken, &name) {
        (Some(ListenerProtocol::Https), _) => {
            secured(stream, from, &gate, outbound, config, stop, plane).await
        }
        (_, Some(_)) => outbound.pass(gate, name, stream).await,
        // No TLSRoute is for who names no server.
        (_, None) => {
            plane.telemetry.refused("no_server_name");
            stream::alert(stream, Alert::MissingExtension).await;
        }
    }
}

async fn secured(
    stream: TcpStream,
    from: SocketAddr,
    gate: &Gate,
    outbound: Rc<Outbound>,
    config: Arc<rustls::ServerConfig>,
    stop: Stop,
    plane: &Arc<Plane>,
) {
    let handshake = tokio_rustls::TlsAcceptor::from(config).accept(stream);
    let stream = match tokio::time::timeout(ACCEPT_TIMEOUT, handshake).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            plane.telemetry.refused("outside_handshake");
            tracing::debug!(%from, %error, "a client outside was refused");
            return;
        }
        Err(_) => return plane.telemetry.refused("handshake_timeout"),
    };
    let connection = stream.get_ref().1;
    let protocol = match connection.alpn_protocol() {
        Some(ALPN_H2) => Protocol::Http2,
        _ => Protocol::Http1,
    };
    let name = connection.server_name().map(str::to_ascii_lowercase);
    let entrance = Entrance::new(gate, from, Some(name));
    enter(stream, protocol, entrance, outbound, stop, plane).await;
}

async fn enter<S>(
    stream: S,
    protocol: Protocol,
    entrance: Entrance,
    outbound: Rc<Outbound>,
    stop: Stop,
    plane: &Arc<Plane>,
) where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let entrance = Rc::new(entrance);
    let service = service_fn(move |request| Rc::clone(&outbound).enter(Rc::clone(&entrance), request));
    serve(stream, protocol, service, None, stop, &plane.telemetry).await;
}
