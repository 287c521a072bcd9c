//! Streams to our app: upgrades, which come as extended CONNECTs (RFC 8441) and are HTTP/1.1 again from here on, and
//! plain TCP, which comes as CONNECT.
//!
//! A stream has a connection of its own to the app. It lives on the caller's mesh connection, and ends with that.

use std::rc::Rc;

use hanse_federation::host::ServiceHost;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::ext::Protocol;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::standing::{Asked, Standing};
use super::{App, Caller, Inbound, InboundResponse, Serving, broke_off, connect_app, mesh_answer, prepare};
use crate::answer::Reason;
use crate::headers;
use crate::inbound::{admit_stream, came_to};
use crate::io::body::{RequestBody, ResponseBody};
use crate::io::forward::upgrade::{METHOD, STATUS};
use crate::io::http::MAX_CARRIED_HEADERS;
use crate::io::record::{Direction, Record, TCP};
use crate::io::stream::{self, Ending};

/// What stands for the app's 2xx between proxies, where a 2xx would mean that the stream is open.
const NOT_UPGRADED: StatusCode = StatusCode::UPGRADE_REQUIRED;

/// What a CONNECT asks for.
struct Wanted {
    protocol: HeaderValue,
    mesh: OnUpgrade,
}

impl Inbound {
    /// Answers one CONNECT of the mesh.
    pub(super) async fn connect(
        self: Rc<Self>,
        caller: Rc<Caller>,
        mut request: Request<Incoming>,
    ) -> InboundResponse {
        if caller.verified.is_none() {
            // Nobody's to ask for: what is not HTTP has a port of its own.
            let mut record = Record::begin(&self.reporter, Direction::Inbound, &request);
            record.entry.destination_spiffe = caller.names.destination.clone();
            return mesh_answer(Reason::BadRequest, record);
        }
        if request.extensions().get::<Protocol>().is_none() {
            return self.connect_tcp(caller, request).await;
        }
        let wanted = wanted(&mut request);
        let mut record = Record::begin(&self.reporter, Direction::Inbound, &request);
        let outcome = match (wanted, self.admit(&caller, &mut request, &mut record)) {
            (_, Err(reason)) | (Err(reason), Ok(_)) => Err(reason),
            (Ok(_), Ok(_)) if self.is_full(&caller) => Err(Reason::Overload),
            (Ok(_), Ok(_)) if request.headers().len() > MAX_CARRIED_HEADERS => Err(Reason::HeadTooLarge),
            (Ok(wanted), Ok((admitted, user))) => {
                match self.room(&admitted, &caller, &user, &request, &mut record) {
                    Ok(room) => {
                        let _asking = self.in_flight.begin();
                        // Before anybody edits it: what is asked again is what was asked.
                        let standing = Standing::new(&self, &caller, Asked::Request(head(&request), user));
                        let edits = match self.authorize(&admitted, &caller, &mut request, &mut record).await
                        {
                            Ok(edits) => edits,
                            Err(stopped) => {
                                let mut response = stopped.answer(record);
                                stand_in(&mut response);
                                return response;
                            }
                        };
                        // Any request may say that it would be something else: until the answer it is one like all.
                        let place = match room.enter(true, &mut record) {
                            Ok(place) => place.inspect(|held| held.place().asked()),
                            Err(turned) => return turned.answer(record),
                        };
                        let upgraded = self.upgrade(wanted, &caller, request, &mut record).await;
                        if let (Some(held), Ok((response, _))) = (place, &upgraded) {
                            held.answered(came_to(response));
                        }
                        upgraded.map(|(mut response, ends)| {
                            edits.apply(response.headers_mut());
                            (response, ends.map(|ends| (ends, standing)))
                        })
                    }
                    Err(turned) => return turned.answer(record),
                }
            }
        };
        match outcome {
            Ok((response, Some((ends, standing)))) => self.carry(response, ends, standing, record),
            Ok((response, None)) => {
                let serving =
                    Serving { record, borrowed: None, left: None, _flying: Some(self.in_flight.begin()) };
                response.map(|body| ResponseBody::streamed(body, serving))
            }
            Err(reason) => mesh_answer(reason, record),
        }
    }

    async fn upgrade(
        &self,
        wanted: Wanted,
        caller: &Caller,
        request: Request<Incoming>,
        record: &mut Record,
    ) -> Result<(Response<Incoming>, Option<(OnUpgrade, OnUpgrade)>), Reason> {
        let app = self.app.as_ref().ok_or(Reason::NothingServed)?;
        if headers::is_grpc(request.headers()) {
            return Err(Reason::BadRequest);
        }
        let mut request = prepare(request, caller, record)?;
        request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        request.headers_mut().insert(header::UPGRADE, wanted.protocol.clone());
        let mut response = app.ask_upgrade(request).await?;
        record.answered(response.status());
        let agreed = (response.status() == StatusCode::SWITCHING_PROTOCOLS)
            .then(|| response.extensions_mut().remove::<OnUpgrade>())
            .flatten();
        let same = headers::upgrade(response.headers())
            .is_some_and(|said| said.as_bytes().eq_ignore_ascii_case(wanted.protocol.as_bytes()));
        headers::strip_hop_by_hop(response.headers_mut());
        headers::strip_reserved(response.headers_mut());
        match agreed {
            Some(app) if same => {
                *response.status_mut() = StatusCode::OK;
                response.headers_mut().remove(header::CONTENT_LENGTH);
                Ok((response, Some((wanted.mesh, app))))
            }
            // To something that nobody asked for.
            Some(_) => Err(Reason::AppReset),
            None => {
                stand_in(&mut response);
                Ok((response, None))
            }
        }
    }

    /// Answers a CONNECT to a port that is plain TCP: 200 once the app has taken the connection.
    async fn connect_tcp(
        self: Rc<Self>,
        caller: Rc<Caller>,
        mut request: Request<Incoming>,
    ) -> InboundResponse {
        let mut record = Record::begin(&self.reporter, Direction::Inbound, &request);
        record.entry.protocol = TCP;
        record.entry.source_spiffe = caller.names.source.clone();
        let opened = match self.streams.place() {
            Some(place) => self.open_tcp(&caller, &request, &mut record).await.map(|opened| (place, opened)),
            None => Err(Reason::Overload),
        };
        let opened = opened.and_then(|(place, (app, asked))| {
            let mesh = request.extensions_mut().remove::<OnUpgrade>().ok_or(Reason::BadRequest)?;
            Ok((place, app, asked, mesh))
        });
        let (place, mut app, asked, mesh) = match opened {
            Ok(opened) => opened,
            Err(reason) => return mesh_answer(reason, record),
        };
        record.answered(StatusCode::OK);
        let idle = self.streams.idle();
        let standing = Standing::new(&self, &caller, asked);
        tokio::task::spawn_local(async move {
            let _place = place;
            let Some(mut mesh) = stream::taken(mesh).await else { return stream::reset(&app) };
            let ending = stream::carry_while(&mut mesh, &mut app, record, idle, standing.lost()).await;
            if !matches!(ending, Ending::Complete) {
                tracing::debug!(?ending, "a TCP connection to the app ended");
                stream::reset(&app);
            }
        });
        Response::new(ResponseBody::none())
    }

    async fn open_tcp(
        &self,
        caller: &Caller,
        request: &Request<Incoming>,
        record: &mut Record,
    ) -> Result<(TcpStream, Asked), Reason> {
        let authority = request.uri().authority().ok_or(Reason::BadRequest)?;
        let host = ServiceHost::parse(authority.as_str()).ok_or(Reason::UnknownHost)?;
        let service = self.services.get(&host.service).ok_or(Reason::NothingServed)?;
        let text = self.service_texts.get(service).cloned().unwrap_or_default();
        let port = authority.port_u16().ok_or(Reason::BadRequest)?;
        self.admit_by(caller, text, record, |view, revoked, access| {
            admit_stream(view, revoked, service, port, access, caller.verified.as_ref())
        })?;
        // Only what was declared: a port that is HTTP has policies that look at requests.
        let app = connect_app(*self.tcp_ports.get(&port).ok_or(Reason::NothingServed)?).await?;
        Ok((app, Asked::Port(host.service, port)))
    }

    /// Opens the stream, and carries it.
    fn carry(
        &self,
        response: Response<Incoming>,
        (mesh, app): (OnUpgrade, OnUpgrade),
        standing: Standing,
        record: Record,
    ) -> InboundResponse {
        let Some(place) = self.streams.place() else { return mesh_answer(Reason::Overload, record) };
        let idle = self.streams.idle();
        tokio::task::spawn_local(async move {
            let _place = place;
            let Some((mut mesh, mut app)) = stream::joined(mesh, app).await else { return };
            let ending = stream::carry_while(&mut mesh, &mut app, record, idle, standing.lost()).await;
            if !matches!(ending, Ending::Complete) {
                tracing::debug!(?ending, "a stream ended");
            }
        });
        response.map(|_| ResponseBody::none())
    }
}

/// Has an answer that opens no stream not be taken for one that does.
fn stand_in<B>(response: &mut Response<B>) {
    if response.status().is_success() {
        let status = HeaderValue::from_str(response.status().as_str());
        response.headers_mut().insert(STATUS, status.expect("three digits are a value"));
        *response.status_mut() = NOT_UPGRADED;
    }
}

/// What policies decide by.
fn head(request: &Request<Incoming>) -> Request<()> {
    let mut head = Request::new(());
    request.method().clone_into(head.method_mut());
    request.uri().clone_into(head.uri_mut());
    request.headers().clone_into(head.headers_mut());
    head
}

/// Reads what the CONNECT is for, and makes it the request that it stands for.
fn wanted(request: &mut Request<Incoming>) -> Result<Wanted, Reason> {
    let protocol = request.extensions_mut().remove::<Protocol>().ok_or(Reason::BadRequest)?;
    let protocol = HeaderValue::from_str(protocol.as_str()).map_err(|_| Reason::BadRequest)?;
    let method = match request.headers().get(METHOD) {
        Some(method) => Method::from_bytes(method.as_bytes()).map_err(|_| Reason::BadRequest)?,
        None => Method::GET,
    };
    *request.method_mut() = method;
    if !headers::may_upgrade_to(&protocol) {
        return Err(Reason::BadRequest);
    }
    let mesh = request.extensions_mut().remove::<OnUpgrade>().ok_or(Reason::BadRequest)?;
    Ok(Wanted { protocol, mesh })
}

impl App {
    /// Over a connection of its own, which the answer may take over.
    async fn ask_upgrade(&self, request: Request<RequestBody>) -> Result<Response<Incoming>, Reason> {
        let stream = self.connect().await?;
        let handshake = http1::Builder::new().handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|_| Reason::AppUnreachable)?;
        tokio::task::spawn_local(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "connection to the app");
            }
        });
        sender.send_request(request).await.map_err(|error| broke_off(&error))
    }
}
