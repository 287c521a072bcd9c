//! The app behind this proxy: requests that the mesh brings, and whether the app is there at all.
//!
//! A request is admitted, its headers are put right, and it goes to the app on loopback: over pooled HTTP/1.1, or over
//! HTTP/2 with prior knowledge where it is gRPC, which needs trailers and streams both ways.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hanse_federation::policy::access::AccessTable;
use hanse_federation::policy::body::BodyLimits;
use hanse_federation::policy::permissive::PermissivePorts;
use hanse_federation::{Revision, View};
use hanse_identity::{RevocationId, ServiceName, SpiffeId, VerifiedCaller};
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Request, Response, Uri, Version, header};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::authentication::{Authentication, Believed};
use super::authorize::Authorizers;
use super::body::{OnEnd, RequestBody, ResponseBody, is_all_here};
use super::concurrency::Held;
use super::forward::mark;
use super::http::{CONNECTION_WINDOW, MAX_CARRIED_HEADERS, MAX_HEAD_BYTES, STREAM_WINDOW};
use super::limits::Limits;
use super::listen::{Flying, InFlight};
use super::record::{Direction, Record, Reporter};
use super::stream::Streams;
use crate::answer::Reason;
use crate::headers;
use crate::inbound::{Admitted, Refused, admit, came_to};
use crate::runtime::text::Text;
use crate::runtime::worker::LocalExecutor;
use crate::runtime::{Plane, now};
use shed::Turned;

mod authorize;
mod egress;
pub mod plain;
mod shed;
mod standing;
mod streams;

/// One worker's inbound side.
pub struct Inbound {
    plane: Arc<Plane>,
    reporter: Rc<Reporter>,
    services: Arc<BTreeSet<ServiceName>>,
    /// The same, as records have them.
    service_texts: BTreeMap<ServiceName, Text>,
    app: Option<Rc<App>>,
    in_flight: InFlight,
    plain: plain::Plain,
    limits: Arc<Limits>,
    streams: Streams,
    /// Ports that are plain TCP, and where the app takes them.
    tcp_ports: Arc<BTreeMap<u16, SocketAddr>>,
    users: RefCell<Authentication>,
    authorizers: Authorizers,
    /// The AccessPolicies for what we serve, at that revision.
    access: RefCell<(Revision, Rc<AccessTable>)>,
    /// What bodies may be, at that revision.
    bodies: Cell<(Revision, BodyLimits)>,
    /// Ports that take plain text, at that revision.
    permissive: RefCell<(Revision, Rc<PermissivePorts>)>,
}

/// One connection's caller, as its requests are told of it.
pub struct Caller {
    /// `None`: it came in plain text, where that is let in.
    verified: Option<VerifiedCaller>,
    client_cert: Option<HeaderValue>,
    names: CallerNames,
}

/// One connection's two ends, as records have them.
struct CallerNames {
    source: Text,
    destination: Text,
    /// The clusters of both, at that revision.
    clusters: RefCell<(Option<Revision>, Text, Text)>,
}

/// The app's address and the connections to it that nobody uses at the moment.
struct App {
    address: SocketAddr,
    idle: RefCell<VecDeque<Idle>>,
    /// For gRPC: the one connection that all requests share.
    shared: RefCell<Option<http2::SendRequest<RequestBody>>>,
}

/// A connection that waits for the next request, the one that waits longest first.
struct Idle {
    connection: http1::SendRequest<RequestBody>,
    since: Instant,
}

/// A connection to the app while a response runs on it.
struct Borrowed {
    app: Rc<App>,
    connection: http1::SendRequest<RequestBody>,
}

/// What lives as long as a response to the mesh.
pub struct Serving {
    record: Record,
    borrowed: Option<Borrowed>,
    /// Of what is outside, where it has come from there.
    left: Option<Box<Record>>,
    _flying: Option<Flying>,
}

pub type InboundResponse = Response<ResponseBody<Serving>>;

/// Requests that one worker has at the app at a time, each on a connection of its own.
const MAX_IN_FLIGHT: usize = 4096;
/// Connections to the app that one worker keeps for the next request: what a burst needed is there for the next one, and is
/// closed when that does not come.
const MAX_IDLE: usize = 1024;
const IDLE_AFTER: Duration = Duration::from_secs(30);
/// Longest wait for the app to accept a connection: it is on this host.
pub(super) const APP_CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// What is wrong is in the log, and not for whoever makes up tokens (RFC 6750 §3).
const BAD_TOKEN: HeaderValue = HeaderValue::from_static("Bearer error=\"invalid_token\"");

impl Inbound {
    pub fn new(
        reporter: Rc<Reporter>,
        services: Arc<BTreeSet<ServiceName>>,
        app: Option<SocketAddr>,
        limits: Arc<Limits>,
        streams: Streams,
        tcp_ports: Arc<BTreeMap<u16, SocketAddr>>,
        authorizers: Authorizers,
    ) -> Self {
        let plane = Arc::clone(authorizers.plane());
        let app =
            app.map(|address| Rc::new(App { address, idle: RefCell::default(), shared: RefCell::default() }));
        let access = RefCell::default();
        let (in_flight, users) = (InFlight::default(), RefCell::default());
        let service_texts = services.iter().map(|service| (service.clone(), Text::of(service))).collect();
        Self {
            plane,
            reporter,
            services,
            service_texts,
            app,
            in_flight,
            plain: plain::Plain::default(),
            limits,
            streams,
            tcp_ports,
            users,
            authorizers,
            access,
            bodies: Cell::default(),
            permissive: RefCell::default(),
        }
    }

    /// What the requests of one verified connection have in common.
    pub fn caller(&self, verified: &VerifiedCaller, hash: &str, own: SpiffeId) -> Caller {
        let client_cert = headers::client_cert(&own, hash, verified.id());
        let (source, destination) = (Text::of(verified.id()), Text::of(&own));
        let names = CallerNames { source, destination, clusters: RefCell::default() };
        Caller { verified: Some(verified.clone()), client_cert: Some(client_cert), names }
    }

    /// Called every few seconds: closes connections to the app that nobody needs.
    pub fn tidy(&self) {
        if let Some(app) = &self.app {
            app.tidy(Instant::now());
        }
    }

    /// Answers one request of the mesh.
    pub async fn handle(
        self: Rc<Self>,
        caller: Rc<Caller>,
        mut request: Request<Incoming>,
    ) -> Result<InboundResponse, Infallible> {
        if *request.method() == Method::CONNECT {
            return Ok(self.connect(caller, request).await);
        }
        let mut record = Record::begin(&self.reporter, Direction::Inbound, &request);
        let admitted = self.admit(&caller, &mut request, &mut record);
        let full = self.is_full(&caller);
        let too_large = request.headers().len() > MAX_CARRIED_HEADERS;
        let flying = self.begin(&caller);
        let outcome = match admitted {
            Ok(_) if full => Err(Reason::Overload),
            Ok(_) if too_large => Err(Reason::HeadTooLarge),
            // It is for a host outside, by an egress gateway: an app is none, whatever service they share.
            Ok(_) if self.app.is_some() && request.headers().contains_key(&headers::LEAVES) => {
                Err(Reason::NothingServed)
            }
            Ok((admitted, user)) => match self.room(&admitted, &caller, &user, &request, &mut record) {
                Ok(room) => match self.authorize(&admitted, &caller, &mut request, &mut record).await {
                    Ok(edits) if self.app.is_none() => {
                        return Ok(self
                            .leave(&caller, request, record, flying, |headers| edits.apply(headers))
                            .await);
                    }
                    Ok(edits) => match room.enter(is_all_here(request.body()), &mut record) {
                        Ok(place) => {
                            let served = self.serve(admitted, &caller, request, place, &mut record).await;
                            served.map(|(mut response, borrowed)| {
                                edits.apply(response.headers_mut());
                                (response, borrowed)
                            })
                        }
                        Err(turned) => return Ok(turned.answer(record)),
                    },
                    Err(stopped) => return Ok(stopped.answer(record)),
                },
                Err(turned) => return Ok(turned.answer(record)),
            },
            Err(reason) => Err(reason),
        };
        Ok(match outcome {
            Ok((response, borrowed)) => {
                record.answered(response.status());
                let serving = Serving { record, borrowed, left: None, _flying: Some(flying) };
                response.map(|body| ResponseBody::streamed(body, serving))
            }
            Err(reason) => mesh_answer(reason, record),
        })
    }

    fn admit(
        &self,
        caller: &Caller,
        request: &mut Request<Incoming>,
        record: &mut Record,
    ) -> Result<(Admitted, Believed), Reason> {
        let mut believed = None;
        let service = self.named_service(request);
        let admitted = self.admit_by(caller, service, record, |view, revoked, access| {
            // What ends here ends before anybody decides by the headers, so that nobody takes out afterwards what we put in.
            if !headers::is_framing_plain(request.headers()) {
                return Err(Refused::Reason(Reason::BadRequest));
            }
            headers::strip_hop_by_hop(request.headers_mut());
            if let Some(view) = view {
                let headers = request.headers_mut();
                believed = Authentication::authenticate(&self.users, view, &self.services, headers, now())
                    .map_err(Refused::Token)?;
            }
            let user = believed.as_ref().map(|user| &user.token);
            admit(view, revoked, &self.services, access, caller.verified.as_ref(), user, request)
        })?;
        Ok((admitted, believed))
    }

    /// Decides by what is known now, and tells the record.
    fn admit_by(
        &self,
        caller: &Caller,
        service: Text,
        record: &mut Record,
        admit: impl FnOnce(Option<&View>, Option<&RevocationId>, &AccessTable) -> Result<Admitted, Refused>,
    ) -> Result<Admitted, Reason> {
        let known = self.plane.knowledge.now();
        record.entry.source_spiffe = caller.names.source.clone();
        record.entry.destination_spiffe = caller.names.destination.clone();
        if let Some(view) = known.view.as_deref() {
            (record.entry.source_cluster, record.entry.destination_cluster) = caller.clusters(view);
        }
        record.entry.upstream_cluster = service;
        if known.own_is_replaced {
            // Its connection is about to be closed: it may come again over another, here too.
            return Err(Reason::NotReady);
        }
        let view = known.view.as_deref();
        let access = view.map(|view| self.access(view)).unwrap_or_default();
        let admitted = admit(view, known.own_revoked.as_ref(), &access);
        match &admitted {
            Ok(admitted) => {
                admitted.granted().by.as_ref().clone_into(&mut record.entry.policy);
                for rule in &admitted.granted().audited {
                    record.audited(rule);
                }
            }
            Err(refused) => match refused {
                Refused::Policy(denied) => {
                    record.entry.response_code_details = denied.to_string();
                    record.denied(denied);
                }
                Refused::Token(why) => record.entry.response_code_details = why.to_string(),
                Refused::Reason(_) => {}
            },
        }
        admitted.map_err(|refused| refused.reason())
    }

    /// Whether there is credit for it.
    fn within_limits(
        &self,
        caller: &Caller,
        request: &Request<Incoming>,
        record: &mut Record,
    ) -> Result<(), Turned> {
        let Some(view) = self.plane.knowledge.view() else { return Ok(()) };
        let caller = caller.verified.as_ref().map(VerifiedCaller::id);
        let taken = self.limits.take(&view, &self.plane.name, &self.services, caller, request);
        taken.map_err(|limited| {
            record.limited(&limited.name);
            Turned { reason: Reason::RateLimited, after: limited.after }
        })
    }

    /// The policies at this View; compiled on first use after it changed.
    fn access(&self, view: &View) -> Rc<AccessTable> {
        let mut access = self.access.borrow_mut();
        if access.0 != view.revision {
            *access = (view.revision, Rc::new(AccessTable::build(view, &self.services)));
        }
        Rc::clone(&access.1)
    }

    /// What bodies may be at this View; asked of the policies anew after it changed.
    fn body_limits(&self, is_grpc: bool) -> BodyLimits {
        let (mut revision, mut limits) = self.bodies.get();
        if let Some(view) = self.plane.knowledge.view().filter(|view| view.revision != revision) {
            (revision, limits) = (view.revision, BodyLimits::of(&view, &self.services));
            self.bodies.set((revision, limits));
        }
        // Of calls that stream, messages may be minutes apart.
        if is_grpc { BodyLimits { slow: None, ..limits } } else { limits }
    }

    /// The one of our services that the request names, else our only one; for records.
    fn named_service(&self, request: &Request<Incoming>) -> Text {
        let text = match self.services.len() {
            0 | 1 => None,
            _ => {
                let authority = headers::authority(request).ok().flatten();
                let named = authority.and_then(hanse_federation::host::ServiceHost::parse);
                named.and_then(|host| self.service_texts.get(&host.service))
            }
        };
        text.or_else(|| self.service_texts.values().next()).cloned().unwrap_or_default()
    }

    async fn serve(
        &self,
        admitted: Admitted,
        caller: &Caller,
        request: Request<Incoming>,
        place: Option<Held>,
        record: &mut Record,
    ) -> Result<(Response<Incoming>, Option<Borrowed>), Reason> {
        let app = self.app.as_ref().ok_or(Reason::NothingServed)?;
        let mut request = prepare(request, caller, record)?;
        if self.users.borrow().has_rules() || !admitted.granted().external.is_empty() {
            // Some servers fold trailers into the headers, where what we, or authorizers, say is.
            request.body_mut().drop_trailers();
        }
        let is_grpc = request.version() == Version::HTTP_2;
        let fate = request.body_mut().limit(self.body_limits(is_grpc))?;
        if let Some(held) = &place {
            request.body_mut().occupies(held.place());
        }
        let asked = if is_grpc {
            app.ask_shared(request).await.map(|response| (response, None))
        } else {
            let borrowed = |connection| Borrowed { app: Rc::clone(app), connection };
            app.ask_alone(request).await.map(|(response, connection)| (response, Some(borrowed(connection))))
        };
        // The app has only seen that it broke off.
        let (mut response, borrowed) = asked.map_err(|reason| fate.cut().unwrap_or(reason))?;
        fate.answered();
        if let Some(held) = place {
            held.answered(came_to(&response));
        }
        headers::strip_hop_by_hop(response.headers_mut());
        headers::strip_reserved(response.headers_mut());
        *response.version_mut() = Version::HTTP_11;
        Ok((response, borrowed))
    }
}

impl Caller {
    /// Its cluster and ours, as records have them; made anew when the View has changed.
    fn clusters(&self, view: &View) -> (Text, Text) {
        let mut clusters = self.names.clusters.borrow_mut();
        if clusters.0 != Some(view.revision) {
            let from = self.verified.as_ref().map(|caller| caller.id().trust_domain());
            let source = match from.and_then(|from| view.peer_of(from)) {
                Some(peer) => Text::of(&peer.record.cluster),
                None if from == Some(&view.trust_domain) => Text::of(&view.cluster),
                None => Text::default(),
            };
            *clusters = (Some(view.revision), source, Text::of(&view.cluster));
        }
        (clusters.1.clone(), clusters.2.clone())
    }
}

impl App {
    /// Over a connection that is the request's own until its response has ended.
    async fn ask_alone(
        &self,
        mut request: Request<RequestBody>,
    ) -> Result<(Response<Incoming>, http1::SendRequest<RequestBody>), Reason> {
        loop {
            let (mut connection, fresh) = self.borrow_connection().await?;
            match connection.try_send_request(request).await {
                Ok(response) => return Ok((response, connection)),
                Err(mut error) => match error.take_message() {
                    // A pooled connection that the app had closed: not the app's fault, take another.
                    Some(unsent) if !fresh => request = unsent,
                    Some(_) => return Err(Reason::AppUnreachable),
                    None => return Err(broke_off(error.error())),
                },
            }
        }
    }

    /// Over the connection that is shared.
    async fn ask_shared(&self, mut request: Request<RequestBody>) -> Result<Response<Incoming>, Reason> {
        loop {
            let (mut connection, fresh) = self.shared_connection().await?;
            match connection.try_send_request(request).await {
                Ok(response) => return Ok(response),
                Err(mut error) => match error.take_message() {
                    Some(unsent) if !fresh => request = unsent,
                    Some(_) => return Err(Reason::AppUnreachable),
                    None => return Err(broke_off(error.error())),
                },
            }
        }
    }

    /// The shared connection, and whether it is new.
    async fn shared_connection(&self) -> Result<(http2::SendRequest<RequestBody>, bool), Reason> {
        let shared = self.shared.borrow().clone();
        if let Some(connection) = shared.filter(|connection| !connection.is_closed()) {
            return Ok((connection, false));
        }
        let mut http = http2::Builder::new(LocalExecutor);
        http.initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(MAX_HEAD_BYTES as u32);
        let handshake = http.handshake(TokioIo::new(self.connect().await?)).await;
        let (sender, connection) = handshake.map_err(|_| Reason::AppUnreachable)?;
        tokio::task::spawn_local(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "HTTP/2 connection to the app");
            }
        });
        // Who dialled at the same time uses its own for what it has; the last one stays.
        *self.shared.borrow_mut() = Some(sender.clone());
        Ok((sender, true))
    }

    async fn connect(&self) -> Result<TcpStream, Reason> {
        connect_app(self.address).await
    }

    /// A connection to the app, and whether it is new.
    async fn borrow_connection(&self) -> Result<(http1::SendRequest<RequestBody>, bool), Reason> {
        if let Some(connection) = self.take_idle() {
            return Ok((connection, false));
        }
        let stream = self.connect().await?;
        let handshake = http1::Builder::new().handshake(TokioIo::new(stream)).await;
        let (sender, connection) = handshake.map_err(|_| Reason::AppUnreachable)?;
        tokio::task::spawn_local(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection to the app");
            }
        });
        Ok((sender, true))
    }

    /// The connection used last that is ready for the next request: the youngest is the least likely to be closed.
    fn take_idle(&self) -> Option<http1::SendRequest<RequestBody>> {
        let mut idle = self.idle.borrow_mut();
        // One may still be on its way to readiness: those before it are asked then.
        for at in (0..idle.len()).rev() {
            if idle[at].connection.is_ready() {
                return idle.remove(at).map(|idle| idle.connection);
            }
            if idle[at].connection.is_closed() {
                idle.remove(at);
            }
        }
        None
    }

    fn give_back(&self, connection: http1::SendRequest<RequestBody>) {
        let mut idle = self.idle.borrow_mut();
        if idle.len() >= MAX_IDLE {
            idle.pop_front();
        }
        idle.push_back(Idle { connection, since: Instant::now() });
    }

    /// Closes what nobody has needed for long.
    fn tidy(&self, now: Instant) {
        let mut idle = self.idle.borrow_mut();
        let old = idle.partition_point(|idle| now.saturating_duration_since(idle.since) > IDLE_AFTER);
        idle.drain(..old);
    }
}

impl OnEnd for Serving {
    fn on_end(self, bytes: u64, complete: bool) {
        if let Some(borrowed) = self.borrowed.filter(|_| complete) {
            borrowed.app.give_back(borrowed.connection);
        }
        if let Some(left) = self.left {
            left.on_end(bytes, complete);
        }
        self.record.on_end(bytes, complete);
    }
}

/// The request as the app gets it: HTTP/1.1, or HTTP/2 where it is gRPC, with the caller named by us and nobody else.
fn prepare(
    request: Request<Incoming>,
    caller: &Caller,
    record: &Record,
) -> Result<Request<RequestBody>, Reason> {
    let authority = headers::authority(&request).map_err(|_| Reason::BadRequest)?;
    let authority = authority.ok_or(Reason::BadRequest)?;
    let host = HeaderValue::from_str(authority).map_err(|_| Reason::BadRequest)?;
    let path = request.uri().path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
    let is_grpc = headers::is_grpc(request.headers());
    let mut uri = http::uri::Parts::default();
    uri.path_and_query = Some(path);
    if is_grpc {
        uri.scheme = Some(http::uri::Scheme::HTTP);
        uri.authority = Some(authority.parse().map_err(|_| Reason::BadRequest)?);
    }
    let uri = Uri::from_parts(uri).map_err(|_| Reason::BadRequest)?;
    let (mut parts, body) = request.into_parts();
    if parts.method == Method::CONNECT || !headers::is_framing_plain(&parts.headers) {
        return Err(Reason::BadRequest);
    }
    parts.uri = uri;
    parts.version = if is_grpc { Version::HTTP_2 } else { Version::HTTP_11 };
    parts.extensions.clear();
    headers::strip_hop_by_hop(&mut parts.headers);
    headers::strip_reserved(&mut parts.headers);
    headers::join_cookies(&mut parts.headers);
    record.put(&mut parts.headers);
    if is_grpc {
        parts.headers.remove(header::HOST);
    } else {
        parts.headers.insert(header::HOST, host);
    }
    let unknown_length = !body.is_end_stream() && body.size_hint().exact().is_none();
    if !is_grpc && unknown_length && !parts.headers.contains_key(header::CONTENT_LENGTH) {
        // Unless told so, hyper sends a GET without its body.
        parts.headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    if let Some(client_cert) = &caller.client_cert {
        parts.headers.insert(headers::CLIENT_CERT, client_cert.clone());
    }
    Ok(Request::from_parts(parts, RequestBody::new(body, record.received.clone())))
}

async fn connect_app(address: SocketAddr) -> Result<TcpStream, Reason> {
    let connected = tokio::time::timeout(APP_CONNECT_TIMEOUT, TcpStream::connect(address)).await;
    let stream = connected.map_err(|_| Reason::AppUnreachable)?.map_err(|_| Reason::AppUnreachable)?;
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

fn broke_off(error: &hyper::Error) -> Reason {
    tracing::debug!(%error, "the app broke off");
    Reason::AppReset
}

fn mesh_answer(reason: Reason, mut record: Record) -> InboundResponse {
    record.refused(reason);
    let body = Bytes::from(format!("{}\n", reason.as_str()));
    let mut response = Response::new(ResponseBody::whole(
        body,
        Serving { record, borrowed: None, left: None, _flying: None },
    ));
    *response.status_mut() = reason.status();
    mark(response.headers_mut(), reason);
    if reason == Reason::Unauthenticated {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, BAD_TOKEN);
    }
    response
}

#[cfg(test)]
mod tests;
