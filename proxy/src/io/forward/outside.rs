//! Requests that leave the mesh: which service outside a host means, where it is now, and one attempt there. Routes, time
//! limits, retries, limits and health are those of any other request.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use hanse_federation::View;
use hanse_federation::choose::{Candidate, Ladder};
use hanse_federation::health::Target;
use hanse_federation::host::{Reach, ServiceHost, host_of};
use hanse_federation::policy::document::edge::{ExternalProtocol, OutboundMode};
use hanse_federation::policy::external::{External, Externals, passthrough_name};
use hanse_federation::policy::{Filters, RouteTable, StreamRoutes};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Request, Response, Uri, Version, header};
use hyper::body::Body as _;
use tokio::time::Instant;

use super::connect::Recent;
use super::failed::Failed;
use super::hosts::Host;
use super::names::Names;
use super::tables::Tables;
use super::{Outbound, Outgoing};
use crate::answer::Reason;
use crate::headers;
use crate::io::body::{AnswerBody, RequestBody};
use crate::io::dial::{CONNECT_TIMEOUT, DialError};
use crate::io::outside::{Connection, Place, Tls};
use crate::io::record::Record;
use crate::outbound::{self, Plan};
use crate::runtime::now;
use crate::runtime::resolve::{Answer, NamedBy};

/// Somebody outside, as the tables of one moment have it.
pub(super) struct Outside {
    pub external: Arc<External>,
    /// What DNS said; `None` where it is not asked, or has not answered yet.
    answer: Option<Arc<Answer>>,
    tls: Option<Tls>,
}

impl Outbound {
    /// Which service a request is for, one outside included.
    pub(super) fn host(
        &self,
        view: &View,
        bound: Option<&ServiceHost>,
        authority: Option<&str>,
    ) -> Result<Rc<Host>, Reason> {
        let named = self.hosts.of(bound, authority);
        let Some(authority) = authority.filter(|_| bound.is_none()) else { return named };
        let externals = self.externals(view);
        if externals.is_empty() && externals.config.outbound == OutboundMode::RegistryOnly {
            return named;
        }
        // `reviews.shop` is a service's name and could be a host's: who is in the mesh goes first.
        let documented = externals.find(authority);
        let is_named = |host: &Rc<Host>| is_mesh(view, &host.service, authority, documented.is_some());
        if named.as_ref().is_ok_and(is_named) {
            return named;
        }
        match (documented, externals.config.outbound) {
            (Some(external), _) => Ok(Host::unread(external.host(), authority)),
            // The short name of a service that has gone is no host outside: whoever has that domain would get its requests.
            (None, OutboundMode::AllowAny)
                if host_of(authority).is_some()
                    && !named
                        .as_ref()
                        .is_ok_and(|host| externals.is_namespace(host.service.service.namespace())) =>
            {
                let anywhere = ServiceHost { service: passthrough_name(), reach: Reach::External };
                Ok(Host::unread(anywhere, authority))
            }
            (None, _) => named,
        }
    }

    /// The tables for a backend, and if it is outside, where it is: what is asked of DNS for the first time is waited for.
    pub(super) async fn tables_for(
        &self,
        view: &View,
        plan: &Plan,
        authority: Option<&str>,
        protocol: ExternalProtocol,
        record: &mut Record,
    ) -> Result<Rc<Tables>, Reason> {
        let backend: &ServiceHost = &plan.backend;
        if backend.reach != Reach::External {
            return Ok(self.tables(view, backend));
        }
        let external = match backend.service == passthrough_name() {
            true => {
                let config = self.externals(view).config;
                authority.and_then(|a| External::passthrough(a, protocol, config)).map(Arc::new)
            }
            false => self.externals(view).get(&backend.service).cloned(),
        };
        let external = external.ok_or(Reason::NoSuchService)?;
        let mut refuse = |reason: Reason, why: String| {
            record.entry.response_code_details = why;
            reason
        };
        if external.port(plan.port, authority, protocol).is_none() {
            let wanted = match plan.port {
                Some(port) => port.to_string(),
                None => authority.unwrap_or_default().to_owned(),
            };
            let why = format!("ExternalService {} has no such {protocol:?} port: {wanted}", external.name);
            return Err(refuse(Reason::UnknownHost, why));
        }
        let tls = match external.tls.as_ref().filter(|_| protocol == ExternalProtocol::Http) {
            Some(policy) => {
                let made = self.outsiders.tls(&external.name, &policy.validation).await;
                let why = |e| format!("the BackendTLSPolicy of {} cannot be used: {e}", external.name);
                Some(made.map_err(|e| refuse(Reason::NoBackend, why(e)))?)
            }
            None => None,
        };
        let answer = match external.asks_dns() {
            Some(name) => match self.plane.resolved.first(name, named_by(backend)).await {
                Some(answer) => Some(answer),
                None => return Err(refuse(Reason::Unreachable, format!("DNS says nothing of {name} yet"))),
            },
            None => None,
        };
        let tables = self.outside_tables(view, backend, Outside { external, answer, tls });
        if tables.ladder.borrow().tiers.is_empty()
            && let Some(outside) = &tables.outside
        {
            return Err(refuse(Reason::NoHealthyEndpoint, outside.nowhere()));
        }
        Ok(tables)
    }

    /// As `tables`, for a backend outside: nothing is waited for, and there may be no address.
    pub(super) fn tables_outside(&self, view: &View, host: &ServiceHost) -> Rc<Tables> {
        if let Some(held) = self.tables.borrow().get(host).filter(|held| held.revision == view.revision) {
            return Rc::clone(held);
        }
        let ladder = Ladder::outside(view, host, &[], None);
        Rc::new(self.made(view, host, ladder, Rc::new(Names::new(&host.service)), None))
    }

    fn outside_tables(&self, view: &View, host: &ServiceHost, outside: Outside) -> Rc<Tables> {
        let held = self.tables.borrow().get(host).cloned();
        if let Some(held) = &held
            && held.revision == view.revision
            && held.outside.as_ref().is_some_and(|held| held.is_same(&outside))
        {
            return Rc::clone(held);
        }
        let addresses = outside.addresses();
        let previous = held.as_ref().map(|held| held.ladder.borrow());
        let ladder = Ladder::outside(view, host, &addresses, previous.as_deref());
        drop(previous);
        let names = held.map_or_else(|| Rc::new(Names::new(&host.service)), |held| Rc::clone(&held.names));
        let built = Rc::new(self.made(view, host, ladder, names, Some(outside)));
        if host.service != passthrough_name() {
            self.tables.borrow_mut().insert(host.clone(), Rc::clone(&built));
        }
        built
    }

    fn made(
        &self,
        view: &View,
        host: &ServiceHost,
        ladder: Ladder,
        names: Rc<Names>,
        outside: Option<Outside>,
    ) -> Tables {
        Tables {
            revision: view.revision,
            routes: RouteTable::build(view, host),
            streams: StreamRoutes::build(view, host),
            limits: ladder.settings.limits.share(self.workers),
            backend: self.backends.of(host, host.service != passthrough_name()),
            ladder: ladder.into(),
            names,
            recent: Recent::default(),
            outside,
        }
    }

    /// What the documents say of outside; compiled on first use after the View changed.
    pub(super) fn externals(&self, view: &View) -> Rc<Externals> {
        let mut externals = self.externals.borrow_mut();
        if externals.0 != view.revision {
            *externals = (view.revision, Rc::new(Externals::build(view)));
        }
        Rc::clone(&externals.1)
    }

    /// Whether somebody outside that is still known has the address.
    pub(super) fn is_outside(&self, target: &Target) -> bool {
        let tables = self.tables.borrow();
        tables.values().filter(|tables| tables.outside.is_some()).any(|tables| {
            let ladder = tables.ladder.borrow();
            ladder.tiers.iter().flat_map(|tier| &tier.candidates).any(|c| c.target == *target)
        })
    }

    /// One attempt outside.
    pub(super) async fn send_outside(
        &self,
        outgoing: &Outgoing<'_>,
        candidate: &Candidate,
        address: IpAddr,
        request: Request<RequestBody>,
        record: &mut Record,
    ) -> Result<Response<AnswerBody>, Failed> {
        let waiting = match self.wait_for_connection(outgoing, candidate, record) {
            Ok(waiting) => waiting,
            Err(reason) => return Err(Failed::refused(reason, request)),
        };
        let is_grpc = headers::is_grpc(request.headers());
        let placed = outgoing.tables.outside.as_ref().and_then(|outside| {
            let authority = authority_of(&request)?;
            let port = outside.external.port(outgoing.plan.port, Some(authority), ExternalProtocol::Http)?;
            let (address, tls) = (SocketAddr::new(address, port), outside.tls.clone());
            let kept = outside.external.answers_to(&host_of(authority)?.0)
                || outgoing.plan.filters.as_deref().and_then(Filters::host).is_some();
            let named = if kept { authority } else { outside.external.spec.hosts.first()? };
            let may_be_here = outside.external.spec.allow_local_addresses;
            Some((
                Place { address, tls, prefers_http2: is_grpc, may_be_here },
                named.parse::<Authority>().ok()?,
            ))
        });
        let Some((place, authority)) = placed else {
            return Err(Failed::refused(Reason::NoBackend, request));
        };
        let configured = outgoing.plan.attempt_timeout.or(outgoing.retry.per_try);
        let own_limit = outgoing.attempts.timeout(configured);
        let limit = own_limit.map_or(outgoing.deadline, |own| outgoing.deadline.min(Instant::now() + own));
        let mut waiting = Some(waiting);
        let mut request = request;
        let asked = Instant::now();
        loop {
            let within = outgoing.tables.limits.connect_timeout.unwrap_or(CONNECT_TIMEOUT);
            let connected = self.outsiders.connection(&place, within);
            let (connection, fresh) = match tokio::time::timeout_at(outgoing.deadline, connected).await {
                Ok(Ok(connected)) => connected,
                Ok(Err(error)) => return Err(Failed::unconnected(&error, request, record)),
                Err(_) => return Err(Failed::unconnected(&DialError::ConnectTimeout, request, record)),
            };
            waiting.take();
            let (connection, sent) = match connection {
                Connection::Http1(mut sender) => {
                    let asked = sender.try_send_request(as_http1(request, &authority));
                    let sent = tokio::time::timeout_at(limit, asked).await;
                    (Connection::Http1(sender), sent)
                }
                Connection::Http2(mut sender) => {
                    let asked = sender.try_send_request(as_http2(request, &authority, place.tls.is_some()));
                    let sent = tokio::time::timeout_at(limit, asked).await;
                    (Connection::Http2(sender), sent)
                }
            };
            let mut response = match sent {
                Err(_) => return Err(Failed::late()),
                Ok(Ok(response)) => response,
                Ok(Err(mut error)) => match error.take_message() {
                    // A pooled connection that the server had closed: not its fault, take another.
                    Some(unsent) if !fresh => {
                        request = unsent;
                        continue;
                    }
                    Some(unsent) => return Err(Failed::unsent(unsent)),
                    None => return Err(Failed::broken(error.into_error())),
                },
            };
            self.outsiders.give_back(&place, connection);
            if outbound::says_how_loaded(&response) {
                let mut load = outgoing.tables.backend.load.borrow_mut();
                load.answered(now(), &candidate.target, asked.elapsed());
            }
            // What a stranger calls the mesh's is not.
            headers::strip_reserved(response.headers_mut());
            return Self::received(outgoing, response).await;
        }
    }
}

impl Outside {
    fn is_same(&self, other: &Self) -> bool {
        let answer = |outside: &Self| outside.answer.as_ref().map(Arc::as_ptr);
        answer(self) == answer(other) && self.external == other.external && self.tls == other.tls
    }

    fn addresses(&self) -> Vec<IpAddr> {
        let known = match &self.answer {
            Some(answer) => &answer.addresses,
            None => &self.external.spec.addresses,
        };
        self.external.allowed(known)
    }

    /// Why there is no address.
    fn nowhere(&self) -> String {
        let name = self.external.asks_dns().unwrap_or("it");
        match &self.answer {
            Some(answer) if answer.addresses.is_empty() => {
                format!(
                    "DNS has no address of {name}: {}",
                    answer.error.as_deref().unwrap_or("none was given")
                )
            }
            _ => format!(
                "{name} is said to be at {:?}, which this host must not be sent to (allowLocalAddresses)",
                self.answer.as_ref().map_or(&self.external.spec.addresses, |answer| &answer.addresses)
            ),
        }
    }
}

/// Who says which name is asked for.
fn named_by(backend: &ServiceHost) -> NamedBy {
    if backend.service == passthrough_name() { NamedBy::App } else { NamedBy::Document }
}

/// Whether a service of the mesh has that name: by its long form, or because there is one. What a peer exports takes no host
/// that a document of ours has.
fn is_mesh(view: &View, host: &ServiceHost, authority: &str, documented: bool) -> bool {
    let is_long = authority.trim_end_matches('.').matches('.').count() > 1;
    is_long
        || view.services.contains_key(&host.service)
        || view.endpoints_of(&host.service).next().is_some()
        || (!documented && view.peers.values().any(|peer| peer.services.contains_key(&host.service)))
}

fn authority_of(request: &Request<RequestBody>) -> Option<&str> {
    headers::authority(request).ok().flatten()
}

/// The request in HTTP/1.1's form.
fn as_http1(request: Request<RequestBody>, authority: &Authority) -> Request<RequestBody> {
    let (mut parts, body) = request.into_parts();
    parts.uri = Uri::from(path_of(&parts.uri));
    parts.version = Version::HTTP_11;
    headers::join_cookies(&mut parts.headers);
    parts.headers.insert(
        header::HOST,
        HeaderValue::from_str(authority.as_str()).expect("an authority is visible ASCII"),
    );
    let unknown_length = !body.is_end_stream() && body.size_hint().exact().is_none();
    if unknown_length && !parts.headers.contains_key(header::CONTENT_LENGTH) {
        // Unless told so, hyper sends a GET without its body.
        parts.headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    Request::from_parts(parts, body)
}

fn path_of(uri: &Uri) -> PathAndQuery {
    uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"))
}

/// The request in HTTP/2's form.
fn as_http2(request: Request<RequestBody>, authority: &Authority, tls: bool) -> Request<RequestBody> {
    let (mut parts, body) = request.into_parts();
    let mut uri = http::uri::Parts::default();
    uri.scheme = Some(if tls { Scheme::HTTPS } else { Scheme::HTTP });
    uri.authority = Some(authority.clone());
    uri.path_and_query = Some(path_of(&parts.uri));
    parts.uri = Uri::from_parts(uri).expect("scheme, authority and path are a URI");
    parts.version = Version::HTTP_2;
    parts.headers.remove(header::HOST);
    parts.headers.remove(header::TRANSFER_ENCODING);
    Request::from_parts(parts, body)
}
