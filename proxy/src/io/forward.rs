//! Forwarding: a request of our own app on its way into the mesh, from its head to the head of its response.
//!
//! Service → route → tier → target → connection → attempt, again if that is allowed. Each decision is one of the pure
//! modules'; what is here is the order of them, and the waiting.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hanse_federation::choose::{Candidate, Choice, RetrySettings, TierKind, Way};
use hanse_federation::health::{Health, Observation, Target};
use hanse_federation::host::{Reach, ServiceHost};
use hanse_federation::policy::document::edge::ExternalProtocol;
use hanse_federation::policy::external::Externals;
use hanse_federation::policy::ingress::Ingress;
use hanse_federation::{Revision, View};
use http::{Method, Request, Response, Version};
use hyper::body::{Body as _, Incoming};
use hyper::ext::Protocol;
use tokio::time::Instant;

use super::body::{AnswerBody, RequestBody, ResponseBody};
use super::dial::{Carried, DialError, For, Pool};
use super::http::{MAX_CARRIED_HEADERS, MAX_HEADERS};
use super::outside::Outsiders;
use super::record::{Direction, Record, Reporter};
use super::stream::Streams;
use super::tunnel::Tunnels;
use crate::answer::Reason;
use crate::attempt::{Attempts, Failure, Verdict};
use crate::breaker::Held;
use crate::headers;
use crate::outbound::{self, Plan};
use crate::runtime::credentials::Current;
use crate::runtime::knowledge::Known;
use crate::runtime::worker::Random;
use crate::runtime::{Plane, now};
use crate::session::Session;
pub(super) use answers::mark;
use answers::{grpc_answer, mesh_answer, terse_answer};
use backend::Backends;
use connect::Unconnected;
use cors::{Crossing, preflight};
use failed::Failed;
use hosts::{Host, Hosts};
use message::{NO_AUTHORITY, bodiless_copy, finish, give_up, nobody_there, prepare, redirected, was_shed};
use names::{Named, OwnNames, forget_made_up};
use tables::Tables;
use upgrade::Upgrade;

pub use backend::UnderWay;

mod answers;
mod backend;
pub mod captured;
mod connect;
mod cors;
mod describe;
mod egress;
mod failed;
mod fault;
mod granted;
mod hosts;
pub mod ingress;
mod message;
mod mirror;
mod names;
mod outside;
mod passthrough;
mod tables;
pub mod tcp;
pub mod upgrade;

/// One worker's outbound side.
pub struct Outbound {
    plane: Arc<Plane>,
    reporter: Rc<Reporter>,
    pool: Rc<Pool>,
    /// Connections for streams.
    stream_pool: Rc<Pool>,
    streams: Streams,
    tunnels: Rc<Tunnels>,
    health: Rc<RefCell<Health>>,
    random: Rc<Random>,
    hosts: Hosts,
    tables: RefCell<HashMap<ServiceHost, Rc<Tables>>>,
    backends: Backends,
    /// Of this proxy; limits are divided among them.
    workers: u32,
    own: RefCell<OwnNames>,
    outsiders: Outsiders,
    externals: RefCell<(Revision, Rc<Externals>)>,
    ingress: RefCell<(Revision, Option<Rc<Ingress>>)>,
    in_flight: Cell<usize>,
    /// Copies under way.
    mirroring: Cell<usize>,
}

/// A request that is being tried.
struct Outgoing<'r> {
    view: &'r View,
    plan: &'r Plan,
    tables: &'r Tables,
    deadline: Instant,
    attempts: Attempts,
    retry: Arc<RetrySettings>,
    tried: Vec<Target>,
    what: For,
    /// What its target is chosen by, where the policy hashes.
    hash: Option<u64>,
    /// That it came with, where the policy has sessions.
    session: Option<Session>,
    /// Its place among the retries, once it is one.
    retrying: Option<Held>,
    /// It goes to an egress gateway: what fails is mostly not there, but beyond.
    leaves: bool,
}

/// Where a request has come in.
enum Door {
    /// Of our app; the listener may be for one service, whatever the Host says.
    App(Option<Arc<ServiceHost>>),
    /// Of a client outside.
    Gateway(Rc<ingress::Entrance>),
    /// Of the mesh, on its way out of it through us.
    Egress(egress::Leaving),
}

pub type OutboundResponse = Response<ResponseBody<Record>>;

/// Requests that one worker has in flight at a time.
const MAX_IN_FLIGHT: usize = 16_384;
/// How long a request waits for our own SVID, where a revoked one is being replaced: some round trips and a write to the
/// log, or a leader's election.
const REPLACED_WITHIN: Duration = Duration::from_secs(3);
/// Pause before a target is tried that has failed this very request; doubles up to the second.
const SAME_AGAIN_FIRST: Duration = Duration::from_millis(20);
const SAME_AGAIN_AT_MOST: Duration = Duration::from_millis(320);

impl Outbound {
    pub fn new(plane: Arc<Plane>, reporter: Rc<Reporter>, streams: Streams, workers: u32) -> Self {
        let (pool, random) = (Rc::new(Pool::default()), Rc::new(Random::from_entropy()));
        let health = Rc::new(RefCell::new(Health::default()));
        let outsiders = Outsiders::new(Arc::clone(&plane.telemetry));
        let tunnels =
            Tunnels::new(Arc::clone(&plane), Rc::clone(&pool), Rc::clone(&health), Rc::clone(&random));
        Self {
            plane,
            reporter,
            pool,
            stream_pool: Rc::default(),
            streams,
            tunnels: Rc::new(tunnels),
            health,
            random,
            hosts: Hosts::default(),
            tables: RefCell::default(),
            backends: Backends::default(),
            workers,
            own: RefCell::default(),
            outsiders,
            externals: RefCell::default(),
            ingress: RefCell::default(),
            in_flight: Cell::new(0),
            mirroring: Cell::new(0),
        }
    }

    /// Answers one request of our app. `bound`: the listener is for one service, whatever the Host says.
    pub async fn handle(
        self: Rc<Self>,
        bound: Option<Arc<ServiceHost>>,
        request: Request<Incoming>,
    ) -> Result<OutboundResponse, Infallible> {
        if *request.method() == Method::CONNECT && request.version() == Version::HTTP_11 && bound.is_none() {
            return self.connect(request).await;
        }
        self.answer(Door::App(bound), request).await
    }

    async fn answer(
        self: Rc<Self>,
        door: Door,
        request: Request<Incoming>,
    ) -> Result<OutboundResponse, Infallible> {
        let mut record = Record::begin(&self.reporter, Direction::Outbound, &request);
        let is_grpc = headers::is_grpc(request.headers());
        if self.in_flight.get() >= MAX_IN_FLIGHT {
            return Ok(mesh_answer(Reason::Overload, is_grpc, record));
        }
        self.in_flight.set(self.in_flight.get() + 1);
        let _in_flight = Decrement(&self.in_flight);
        match self.forward(&door, request, is_grpc, &mut record).await {
            Ok(mut response) => {
                record.answered(response.status());
                record.entry.response_code_details.clear();
                if let Some(agreed) = response.extensions_mut().remove::<upgrade::Agreed>() {
                    return Ok(self.switch(agreed, response, record));
                }
                let response = if is_grpc { grpc_answer(response) } else { response };
                Ok(response.map(|body| ResponseBody::answer(body, record)))
            }
            Err(reason) => {
                if matches!(door, Door::App(None)) {
                    forget_made_up(reason, &mut record);
                }
                Ok(match door {
                    Door::App(_) | Door::Egress(_) => mesh_answer(reason, is_grpc, record),
                    Door::Gateway(_) => terse_answer(reason, is_grpc, record),
                })
            }
        }
    }

    async fn forward(
        self: &Rc<Self>,
        door: &Door,
        mut request: Request<Incoming>,
        is_grpc: bool,
        record: &mut Record,
    ) -> Result<Response<AnswerBody>, Reason> {
        // Only an app's request has nothing in it yet that is a proxy's.
        let most = if matches!(door, Door::App(_)) { MAX_HEADERS } else { MAX_CARRIED_HEADERS };
        if request.headers().len() > most {
            return Err(Reason::HeadTooLarge);
        }
        let known = self.plane.knowledge.settled(REPLACED_WITHIN).await;
        let (view, own) = self.standing(&known, record)?;
        let authority = headers::authority(&request).map_err(|_| Reason::BadRequest)?;
        let host = match door {
            Door::App(bound) => self.host(view, bound.as_deref(), authority)?,
            Door::Gateway(entrance) => Host::unread(entrance.host(), authority.unwrap_or(NO_AUTHORITY)),
            Door::Egress(leaving) => Host::unread(leaving.host(), authority.unwrap_or(NO_AUTHORITY)),
        };
        if *request.method() == Method::CONNECT || !headers::is_framing_plain(request.headers()) {
            return Err(Reason::BadRequest);
        }
        let mut plan = match door {
            Door::App(_) => self.plan(view, &host, &request, is_grpc)?,
            Door::Gateway(entrance) => self.plan_entered(view, entrance, authority, &request, is_grpc)?,
            Door::Egress(leaving) => leaving.plan(),
        };
        plan.route.as_ref().clone_into(&mut record.entry.policy);
        let mut tables = match *plan.backend == host.service {
            true => self.tables_of(view, &host),
            false => self.tables(view, &plan.backend),
        };
        record.entry.upstream_cluster = tables.names.service.clone();
        if let Some(answer) = preflight(&plan, &request, record) {
            return Ok(answer);
        }
        let crossing = Crossing::of(&plan, request.headers());
        if let Some(redirect) = plan.filters.as_ref().and_then(|filters| filters.redirect()) {
            let asked = (authority.unwrap_or(NO_AUTHORITY), door.is_secure());
            let answer = redirected(redirect, asked, request.uri(), &plan, record)?;
            return Ok(crossing.told(&plan, answer));
        }
        let within = plan.backend.reach != Reach::External;
        let handed = self.hand_over(view, door, &mut plan, authority);
        if handed.is_some() {
            tables = self.tables(view, &plan.backend);
        } else if !within {
            let found = self.tables_for(view, &plan, authority, ExternalProtocol::Http, record);
            tables = Box::pin(found).await?;
        }
        let deadline = Instant::now() + plan.request_timeout;
        if let Some(answer) = self.inject(&plan, &request, is_grpc, deadline, record).await? {
            return Ok(answer);
        }
        tables.backend.budget.borrow_mut().deposit(now());

        let on = tables.ladder.borrow().settings.hash_on.clone();
        let caller = &own.identity.facts.id;
        let hash = on.and_then(|on| outbound::hash_of(&on, request.headers(), request.uri().query(), caller));
        let sessions = tables.ladder.borrow().settings.session.clone();
        let session = sessions.as_ref().and_then(|policy| Session::of(policy, request.headers(), now()));
        let upgrade = if within { Upgrade::asked(&mut request) } else { None };
        let mut request =
            prepare(request, plan.filters.as_deref(), host.authority.as_ref(), door.client(), record)?;
        if matches!(door, Door::Egress(_)) {
            // Some servers fold trailers into the headers, where what authorizers put in is.
            request.body_mut().drop_trailers();
        }
        let attempts = match &upgrade {
            Some(upgrade) => Attempts::new(&upgrade.method, false),
            None => Attempts::new(request.method(), !request.body().is_end_stream()),
        };
        match &upgrade {
            Some(upgrade) => upgrade.put_on(&mut request)?,
            None => self.send_copies(view, &plan, &mut request),
        }
        if let Some(handed) = &handed {
            handed.put_on(&mut request)?;
        }
        let outgoing = Outgoing {
            view,
            plan: &plan,
            tables: &tables,
            deadline,
            attempts,
            retry: Arc::clone(&tables.ladder.borrow().settings.retry),
            tried: Vec::new(),
            what: if upgrade.is_some() { For::Streams } else { For::Requests },
            hash,
            session,
            retrying: None,
            leaves: handed.is_some(),
        };
        let response = self.try_until_answered(outgoing, request, record).await?;
        let response = crossing.told(&plan, response);
        Ok(match upgrade {
            Some(upgrade) => upgrade.answered(response),
            None => response,
        })
    }

    /// Whether we may send anything at all; what is known then, and who we are, in the record.
    fn standing<'k>(
        &self,
        known: &'k Known,
        record: &mut Record,
    ) -> Result<(&'k Arc<View>, Arc<Current>), Reason> {
        if known.own_revoked.is_some() {
            return Err(Reason::Revoked);
        }
        let view = known.view.as_ref().ok_or(Reason::NotReady)?;
        let own = self.plane.credentials.current().ok_or(Reason::NotReady)?;
        self.tell_source(view, &own, record);
        if now() >= own.identity.facts.not_after { Err(Reason::NotReady) } else { Ok((view, own)) }
    }

    fn plan(
        &self,
        view: &View,
        host: &Host,
        request: &Request<Incoming>,
        is_grpc: bool,
    ) -> Result<Plan, Reason> {
        let tables = self.tables_of(view, host);
        outbound::plan_for(request, |parts| {
            outbound::plan(&host.service, &tables.routes, parts, is_grpc, self.random.next())
        })
    }

    async fn try_until_answered(
        &self,
        mut outgoing: Outgoing<'_>,
        request: Request<RequestBody>,
        record: &mut Record,
    ) -> Result<Response<AnswerBody>, Reason> {
        let mut pause = SAME_AGAIN_FIRST;
        let mut request = Some(request);
        loop {
            let choice = self.choose(&outgoing)?;
            if outgoing.tried.contains(&choice.candidate.target) {
                tokio::time::sleep(pause.mul_f64(0.5 + self.random.fraction())).await;
                pause = (pause * 2).min(SAME_AGAIN_AT_MOST);
            }
            if Instant::now() >= outgoing.deadline {
                return Err(Reason::Timeout);
            }
            let (tier, cluster) = self.describe(&outgoing, &choice);
            record.entry.tier = tier;
            record.entry.failover = choice.tier > 0;
            record.entry.destination_cluster = cluster.text.clone();
            self.admit(&outgoing, &choice.candidate.target, &cluster.name, record)?;
            outgoing.attempts.begin();
            record.entry.attempts = outgoing.attempts.made();
            // Kept only if it may be sent again; a body is not.
            let spare = request.as_ref().filter(|_| outgoing.attempts.keeps_request()).map(bodiless_copy);
            let Some(sent) = request.take() else { return Err(Reason::ConnectionLost) };
            let mut failed = match self.attempt(&outgoing, &choice.candidate, sent, record).await {
                Ok(response) if outgoing.retry.statuses.contains(&response.status().as_u16()) => {
                    Failed::status(response)
                }
                Ok(response) => {
                    let mut response = finish(response, outgoing.plan, tier, &cluster, record);
                    if let Some(policy) = &outgoing.tables.ladder.borrow().settings.session {
                        let (key, headers) = (choice.candidate.key, response.headers_mut());
                        Session::tell(policy, outgoing.session, key, headers, now());
                    }
                    return Ok(response);
                }
                Err(failed) => failed,
            };
            if failed.reason == Reason::Overflow {
                return Err(failed.reason);
            }
            if failed.failure == Failure::Shed && !outgoing.has_another(&choice) {
                return give_up(failed, outgoing.plan, tier, &cluster, record);
            }
            request = failed.request.take().or(spare);
            let (attempts, backend) = (&mut outgoing.attempts, &outgoing.tables.backend);
            let mut budget = backend.budget.borrow_mut();
            let verdict = attempts.after(failed.failure, &outgoing.retry, &mut budget, now());
            drop(budget);
            match verdict {
                Verdict::GiveUp => return give_up(failed, outgoing.plan, tier, &cluster, record),
                Verdict::PickAgain => {}
                Verdict::Retry => {
                    if outgoing.retrying.is_none() {
                        match self.take_retry(&outgoing, &cluster.name, record) {
                            Ok(place) => outgoing.retrying = Some(place),
                            Err(_) => return give_up(failed, outgoing.plan, tier, &cluster, record),
                        }
                    }
                    self.reporter.retried(&record.entry.upstream_cluster, failed.failure.label())
                }
            }
            if !outgoing.tried.contains(&choice.candidate.target) {
                outgoing.tried.push(choice.candidate.target);
            }
        }
    }

    fn describe(&self, outgoing: &Outgoing<'_>, choice: &Choice) -> (&'static str, Named) {
        let tier = match outgoing.tables.ladder.borrow().tiers[choice.tier].kind {
            TierKind::Zone => "zone",
            TierKind::Region => "region",
            TierKind::Cluster => "cluster",
            TierKind::Peer => "peer",
            TierKind::Outside => return ("outside", outgoing.tables.names.outside(&outgoing.view.cluster)),
        };
        (tier, outgoing.tables.names.cluster(choice.candidate.cluster(&outgoing.view.cluster)))
    }

    /// One attempt, and health told of it.
    async fn attempt(
        &self,
        outgoing: &Outgoing<'_>,
        candidate: &Candidate,
        request: Request<RequestBody>,
        record: &mut Record,
    ) -> Result<Response<AnswerBody>, Failed> {
        let is_tcp = *request.method() == Method::CONNECT && request.extensions().get::<Protocol>().is_none();
        let outcome = self.send(outgoing, candidate, request, record).await;
        let observation = match &outcome {
            // Of one port, which says nothing of the service's other ports: health knows targets only.
            Err(failed)
                if (is_tcp || outgoing.leaves) && matches!(failed.failure, Failure::NobodyThere { .. }) =>
            {
                None
            }
            Ok(response) if response.status().is_server_error() && !outgoing.leaves => {
                Some(Observation::ServerError)
            }
            Ok(_) => Some(Observation::Success),
            Err(failed) => failed.observation,
        };
        if let Some(observation) = observation {
            let ladder = outgoing.tables.ladder.borrow();
            let (service, settings) = (&outgoing.plan.backend.service, &ladder.settings.outlier);
            self.health.borrow_mut().observe(now(), service, &candidate.target, observation, settings);
        }
        outcome
    }

    async fn send(
        &self,
        outgoing: &Outgoing<'_>,
        candidate: &Candidate,
        request: Request<RequestBody>,
        record: &mut Record,
    ) -> Result<Response<AnswerBody>, Failed> {
        if let Way::Outside(address) = candidate.way {
            // Boxed, as few requests go there and all would carry its size.
            return Box::pin(self.send_outside(outgoing, candidate, address, request, record)).await;
        }
        let is_stream = *request.method() == Method::CONNECT;
        let connection = match outgoing.tables.recent.usable(outgoing.what, candidate) {
            Some(connection) => connection,
            // In a box: mostly there is one, and the future of every request has room for what is in here.
            None => match Box::pin(self.connect_for(outgoing, candidate, record)).await {
                Ok(connection) => connection,
                Err(Unconnected::Refused(reason)) => return Err(Failed::refused(reason, request)),
                Err(Unconnected::Dial(error)) => return Err(Failed::unconnected(&error, request, record)),
            },
        };
        record.entry.destination_spiffe = connection.peer_text.clone();
        if is_stream && request.extensions().get::<Protocol>().is_some() && !connection.takes_upgrades() {
            return Err(Failed::unconnected(&DialError::NoUpgrades, request, record));
        }
        let carried = is_stream.then(|| connection.carry());
        let configured = outgoing.plan.attempt_timeout.or(outgoing.retry.per_try);
        let own_limit = outgoing.attempts.timeout(configured);
        let limit = own_limit.map_or(outgoing.deadline, |own| outgoing.deadline.min(Instant::now() + own));
        let mut sender = connection.sender();
        let asked = Instant::now();
        let answered = tokio::time::timeout_at(limit, sender.try_send_request(request)).await;
        let says_how_loaded = match &answered {
            Ok(Ok(response)) => outbound::says_how_loaded(response),
            Ok(Err(_)) => false,
            Err(_) => true,
        };
        if says_how_loaded {
            let mut load = outgoing.tables.backend.load.borrow_mut();
            load.answered(now(), &candidate.target, asked.elapsed());
        }
        match answered {
            Err(_) => {
                if is_stream {
                    // Streams that their ends have left may still fill it.
                    connection.retire();
                }
                Err(Failed::late())
            }
            Ok(Err(mut error)) => Err(match error.take_message() {
                Some(request) => Failed::unsent(request),
                None => Failed::broken(error.into_error()),
            }),
            Ok(Ok(response)) if was_shed(&response) => {
                outgoing.tables.backend.load.borrow_mut().shed(now(), &candidate.target);
                Err(Failed::shed(response.map(AnswerBody::streamed)))
            }
            Ok(Ok(response)) => match nobody_there(&response) {
                None if is_stream => {
                    let mut response = upgrade::restored(response).map(AnswerBody::streamed);
                    if let Some(carried) = carried {
                        response.extensions_mut().insert(carried);
                    }
                    Ok(response)
                }
                None => Self::received(outgoing, response).await,
                Some(undelivered) => {
                    if let Way::Tunnel(_) = candidate.way {
                        // The next one may lead to another endpoint behind the same gateway.
                        connection.retire();
                    }
                    Err(Failed::nobody_there(undelivered, response.map(AnswerBody::streamed)))
                }
            },
        }
    }

    /// A response whose head has come. Where the request could be tried again, a small body is waited for: until it is
    /// complete nothing has been said to our app, and a target that dies here costs nobody an answer.
    async fn received(
        outgoing: &Outgoing<'_>,
        response: Response<Incoming>,
    ) -> Result<Response<AnswerBody>, Failed> {
        if !outgoing.attempts.keeps_request() {
            return Ok(response.map(AnswerBody::streamed));
        }
        let (head, body) = response.into_parts();
        let body = AnswerBody::complete_if_small(body).await.map_err(Failed::broken)?;
        Ok(Response::from_parts(head, body))
    }
}

impl Outgoing<'_> {
    /// Whether the tier has somebody else to ask.
    fn has_another(&self, choice: &Choice) -> bool {
        let ladder = self.tables.ladder.borrow();
        let tier = ladder.tiers.get(choice.tier);
        tier.is_some_and(|tier| {
            let mut others = tier.candidates.iter().map(|candidate| &candidate.target);
            others.any(|target| *target != choice.candidate.target && !self.tried.contains(target))
        })
    }
}

impl Door {
    fn is_secure(&self) -> bool {
        matches!(self, Self::Gateway(entrance) if entrance.is_secure())
    }

    /// Who came in from outside, and whether by TLS.
    fn client(&self) -> Option<(IpAddr, bool)> {
        match self {
            Self::App(_) | Self::Egress(_) => None,
            Self::Gateway(entrance) => Some(entrance.client()),
        }
    }
}

struct Decrement<'c>(&'c Cell<usize>);

impl Drop for Decrement<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
