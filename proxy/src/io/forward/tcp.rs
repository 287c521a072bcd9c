//! Plain TCP of our app on its way into the mesh: a connection to a listener that is bound to a service's port, or to what
//! an HTTP CONNECT names.
//!
//! It is opened at once, whoever speaks first, as a CONNECT on a connection for streams: nothing of the client's is sent
//! before the far app has taken the connection, so whatever fails until then is tried elsewhere.

use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hanse_federation::View;
use hanse_federation::host::{Reach, ServiceHost};
use hanse_federation::policy::{CrossReference, StreamTo};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::names::forget_made_up;
use super::{Carried, Outbound, OutboundResponse, Outgoing, REPLACED_WITHIN, mesh_answer};
use crate::answer::Reason;
use crate::attempt::Attempts;
use crate::headers;
use crate::io::body::{OnEnd as _, RequestBody, ResponseBody};
use crate::io::dial::For;
use crate::io::record::{Direction, Record, TCP};
use crate::io::stream::{self, Ending, Place};
use crate::outbound::{self, Plan};
use crate::runtime::now;

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpTarget {
    pub host: ServiceHost,
    pub port: u16,
}

/// A stream that the far app has taken.
pub(super) struct Opened {
    mesh: OnUpgrade,
    /// What has led it into another namespace, if it is there.
    pub crossing: Option<Arc<CrossReference>>,
    /// Its place on its connection.
    _carried: Option<Carried>,
}

/// Longest time until a connection is open, all attempts together, and for one of them.
const OPEN_WITHIN: Duration = Duration::from_secs(10);
const ATTEMPT_WITHIN: Duration = Duration::from_secs(3);

impl Outbound {
    /// Carries one connection of our app to its end. One that cannot be opened is reset.
    pub async fn carry(self: Rc<Self>, target: Arc<TcpTarget>, client: TcpStream) {
        let mut record = self.tcp_record(&target);
        let opened = match self.streams.place() {
            Some(place) => {
                let name = self.server_name(&target, &client).await;
                let opened = self.open_to(&target, name.as_deref(), &mut record).await;
                opened.map(|opened| (place, opened))
            }
            None => Err(Reason::Overload),
        };
        match opened {
            Ok(opened) => {
                let withdrawn = Rc::clone(&self).no_longer_granted(opened.1.crossing.clone());
                self.run(opened, client, record, withdrawn).await;
            }
            Err(reason) => {
                record.refused(reason);
                record.on_end(0, true);
                stream::reset(&client);
            }
        }
    }

    /// Carries a connection that is open to its end, or until `withdrawn` resolves.
    pub(super) async fn run(
        &self,
        (_place, opened): (Place, Opened),
        mut client: TcpStream,
        record: Record,
        withdrawn: impl Future<Output = ()>,
    ) {
        let Some(mut mesh) = stream::taken(opened.mesh).await else { return stream::reset(&client) };
        let idle = self.streams.idle();
        let ending = stream::carry_while(&mut client, &mut mesh, record, idle, withdrawn).await;
        if !matches!(ending, Ending::Complete) {
            tracing::debug!(?ending, "a TCP connection into the mesh ended");
            stream::reset(&client);
        }
    }

    /// Answers a CONNECT of our app, which uses us as a proxy for TCP.
    pub(super) async fn connect(
        self: Rc<Self>,
        mut request: Request<Incoming>,
    ) -> Result<OutboundResponse, Infallible> {
        let authority = request.uri().authority();
        let target = authority
            .and_then(|authority| Some((ServiceHost::parse(authority.as_str())?, authority.port_u16()?)))
            .map(|(host, port)| TcpTarget { host, port });
        let Some((target, client)) = target.zip(request.extensions_mut().remove::<OnUpgrade>()) else {
            let record = Record::begin(&self.reporter, Direction::Outbound, &request);
            return Ok(mesh_answer(Reason::UnknownHost, false, record));
        };
        let mut record = self.tcp_record(&target);
        let Some(place) = self.streams.place() else {
            return Ok(mesh_answer(Reason::Overload, false, record));
        };
        // What follows is not there before we have answered, so no TLSRoute can be asked.
        let opened = match self.open_to(&target, None, &mut record).await {
            Ok(opened) => opened,
            Err(reason) => {
                forget_made_up(reason, &mut record);
                return Ok(mesh_answer(reason, false, record));
            }
        };
        let idle = self.streams.idle();
        let withdrawn = Rc::clone(&self).no_longer_granted(opened.crossing);
        tokio::task::spawn_local(async move {
            let (_place, _carried) = (place, opened._carried);
            let Some((mut client, mut mesh)) = stream::joined(client, opened.mesh).await else { return };
            stream::carry_while(&mut client, &mut mesh, record, idle, withdrawn).await;
        });
        Ok(Response::new(ResponseBody::none()))
    }

    fn tcp_record(&self, target: &TcpTarget) -> Record {
        let mut record =
            Record::begin(&self.reporter, Direction::Outbound, &connect_to(&target.host, target.port, ()));
        record.entry.protocol = TCP;
        record
    }

    /// The server name that the client asks for, where a route goes by it.
    async fn server_name(&self, target: &TcpTarget, client: &TcpStream) -> Option<String> {
        let view = self.plane.knowledge.view()?;
        let names = self.tables(&view, &target.host).streams.reads_names(target.port);
        if names { stream::server_name(client).await } else { None }
    }

    async fn open_to(
        &self,
        target: &TcpTarget,
        name: Option<&str>,
        record: &mut Record,
    ) -> Result<Opened, Reason> {
        let route = |view: &View, record: &mut Record| -> Result<StreamTo, Reason> {
            let asked = self.tables(view, &target.host);
            record.entry.upstream_cluster = asked.names.service.clone();
            let routed = asked.streams.route(target.port, name, self.random.next())?;
            Ok(routed.unwrap_or_else(|| StreamTo {
                backend: Arc::new(target.host.clone()),
                port: target.port,
                route: Arc::default(),
                crossing: None,
            }))
        };
        self.open(route, record).await
    }

    /// Opens a connection to where it is routed.
    pub(super) async fn open(
        &self,
        route: impl FnOnce(&View, &mut Record) -> Result<StreamTo, Reason>,
        record: &mut Record,
    ) -> Result<Opened, Reason> {
        let known = self.plane.knowledge.settled(REPLACED_WITHIN).await;
        let (view, own) = self.standing(&known, record)?;
        let to = route(view, record)?;
        to.route.as_ref().clone_into(&mut record.entry.policy);
        if to.backend.reach == Reach::External {
            // Documents of before may say so: what is outside is asked by requests only.
            "connections do not go outside".clone_into(&mut record.entry.response_code_details);
            return Err(Reason::NoBackend);
        }
        let plan = Plan {
            backend: to.backend,
            port: None,
            route: to.route,
            request_timeout: OPEN_WITHIN,
            attempt_timeout: Some(ATTEMPT_WITHIN),
            filters: None,
        };
        let tables = self.tables(view, &plan.backend);
        record.entry.upstream_cluster = tables.names.service.clone();
        tables.backend.budget.borrow_mut().deposit(now());
        let on = tables.ladder.borrow().settings.hash_on.clone();
        let caller = &own.identity.facts.id;
        let hash = on.and_then(|on| outbound::hash_of(&on, &HeaderMap::new(), None, caller));
        let outgoing = Outgoing {
            view,
            plan: &plan,
            tables: &tables,
            deadline: Instant::now() + plan.request_timeout,
            // As harmless as a GET: no app is told anything before it is open.
            attempts: Attempts::new(&Method::GET, false),
            retry: Arc::clone(&tables.ladder.borrow().settings.retry),
            tried: Vec::new(),
            what: For::Streams,
            hash,
            session: None,
            retrying: None,
            leaves: false,
        };
        let request = connect_to(&plan.backend, to.port, RequestBody::Empty);
        let mut response = self.try_until_answered(outgoing, request, record).await?;
        record.answered(response.status());
        record.entry.response_code_details.clear();
        let carried = response.extensions_mut().remove::<Carried>();
        match response.extensions_mut().remove::<OnUpgrade>() {
            Some(mesh) => {
                // Open, it is a connection and no request: it takes no place of one, for hours perhaps.
                record.under_way = None;
                Ok(Opened { mesh, crossing: to.crossing, _carried: carried })
            }
            None => {
                let reason = response.headers().get(headers::REASON).and_then(|reason| reason.to_str().ok());
                reason.unwrap_or_default().clone_into(&mut record.entry.response_code_details);
                Err(match response.status() {
                    StatusCode::FORBIDDEN => Reason::NotAllowed,
                    StatusCode::NOT_FOUND => Reason::NothingServed,
                    _ => Reason::Unreachable,
                })
            }
        }
    }
}

fn connect_to<B>(host: &ServiceHost, port: u16, body: B) -> Request<B> {
    let authority = format!("{}:{port}", host.to_host());
    Request::connect(authority).body(body).expect("a service's host name and a port are an authority")
}
