//! Asking external authorizers (Envoy's ext_authz over gRPC): one HTTP/2 connection per worker and authorizer, so many
//! questions at a time, so long for an answer.
//!
//! One in the mesh is asked as our app would ask it: through this worker's own outbound side, over a pipe in memory, so that
//! mutual TLS, balancing and failover are those of every request. One on this host is dialled.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use envoy_types::pb::envoy::service::auth::v3::authorization_client::AuthorizationClient;
use envoy_types::pb::envoy::service::auth::v3::{CheckRequest, CheckResponse};
use hanse_federation::host::{Reach, ServiceHost};
use hanse_federation::policy::access::{Authorizer, External};
use hanse_identity::frames::Frames;
use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tonic::body::Body;

use super::forward::Outbound;
use super::http::{MAX_HEAD_BYTES, Protocol, serve};
use super::metered::Metered;
use crate::answer::Reason;
use crate::external::Unusable;
use crate::runtime::Plane;
use crate::runtime::drain::{Drain, Stop, drain};
use crate::runtime::telemetry::AuthorizationLabels;
use crate::runtime::worker::LocalExecutor;

/// Questions that one worker has at one authorizer at a time.
const MAX_ASKING: usize = 512;
/// Authorizers that one worker keeps connections to; above that it begins anew.
const MAX_AUTHORIZERS: usize = 64;
/// Largest answer that is read.
const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// What the pipe to our own outbound side holds.
const PIPE_BYTES: usize = 64 * 1024;

/// One worker's connections to authorizers.
pub struct Authorizers {
    plane: Arc<Plane>,
    outbound: Rc<Outbound>,
    known: RefCell<BTreeMap<Authorizer, Rc<Known>>>,
    /// The pipes end with the worker and not before: what is finished while it drains is still asked about.
    _drain: Drain,
    stop: Stop,
}

#[derive(Default)]
struct Known {
    sender: RefCell<Option<http2::SendRequest<Body>>>,
    asking: Cell<usize>,
}

/// A place among the questions under way.
struct Asking(Rc<Known>);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Silent {
    #[error("it has as many questions already as it may be asked at a time")]
    Busy,
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("it cannot be reached: {0}")]
    Unreachable(String),
    /// It was reached, and said no word.
    #[error("it broke the question off: {0}")]
    BrokeOff(String),
    #[error("it answered {0:?}: {1}")]
    Status(tonic::Code, String),
    #[error("its answer cannot be used: {0}")]
    Unusable(#[from] Unusable),
}

impl Authorizers {
    pub fn new(plane: Arc<Plane>, outbound: Rc<Outbound>) -> Self {
        let (drain, stop) = drain();
        Self { plane, outbound, known: RefCell::default(), _drain: drain, stop }
    }

    pub fn plane(&self) -> &Arc<Plane> {
        &self.plane
    }

    /// This worker's outbound side.
    pub fn outbound(&self) -> &Rc<Outbound> {
        &self.outbound
    }

    /// What the authorizer says, within the policy's time. `nobody`: the question is about a caller without an identity.
    pub async fn ask(
        &self,
        external: &External,
        question: CheckRequest,
        nobody: bool,
    ) -> Result<CheckResponse, Silent> {
        let known = self.known(&external.authorizer);
        // These have a quarter here too, so that nobody keeps the mesh out.
        if known.asking.get() >= if nobody { MAX_ASKING / 4 } else { MAX_ASKING } {
            return Err(Silent::Busy);
        }
        known.asking.set(known.asking.get() + 1);
        let asking = Asking(known);
        let asked = self.check(&external.authorizer, &asking.0, question);
        let answered = tokio::time::timeout(external.timeout, asked).await;
        answered.unwrap_or(Err(Silent::Timeout(external.timeout)))
    }

    /// Counts what came of it: `allowed`, `denied`, `failed` or `failed-open`.
    pub fn count(&self, policy: &str, decision: &'static str) {
        let labels = AuthorizationLabels { policy: policy.to_owned(), decision };
        self.plane.telemetry.authorizations.get_or_create(&labels).inc();
    }

    fn known(&self, authorizer: &Authorizer) -> Rc<Known> {
        let mut all = self.known.borrow_mut();
        if all.len() >= MAX_AUTHORIZERS && !all.contains_key(authorizer) {
            all.clear();
        }
        Rc::clone(all.entry(authorizer.clone()).or_default())
    }

    async fn check(
        &self,
        authorizer: &Authorizer,
        known: &Known,
        question: CheckRequest,
    ) -> Result<CheckResponse, Silent> {
        loop {
            let (sender, fresh) = self.connection(authorizer, known).await?;
            let mut client = AuthorizationClient::with_origin(Wire(sender.clone()), origin(authorizer))
                .max_decoding_message_size(MAX_ANSWER_BYTES);
            match client.check(question.clone()).await {
                Ok(answer) => return Ok(answer.into_inner()),
                // A connection that had been closed meanwhile: to ask twice changes nothing.
                Err(_) if !fresh && sender.is_closed() => {}
                // It was reached just now: whatever has ended this, the request may have brought it about.
                Err(status) => {
                    return Err(match Silent::of(&status) {
                        Silent::Unreachable(why) if fresh => Silent::BrokeOff(why),
                        silent => silent,
                    });
                }
            }
        }
    }

    /// The one connection, and whether it is new.
    async fn connection(
        &self,
        authorizer: &Authorizer,
        known: &Known,
    ) -> Result<(http2::SendRequest<Body>, bool), Silent> {
        let there = known.sender.borrow().clone();
        if let Some(sender) = there.filter(|sender| !sender.is_closed()) {
            return Ok((sender, false));
        }
        let sender = match authorizer {
            Authorizer::Address(address) => {
                let metered = Metered::new(
                    dial(*address).await?,
                    Frames::of_server(),
                    Arc::clone(&self.plane.telemetry),
                );
                handshake(metered).await?
            }
            Authorizer::Service(service) => {
                let host = ServiceHost { service: service.clone(), reach: Reach::ClusterSet };
                handshake(self.pipe(Arc::new(host))).await?
            }
        };
        // Who dialled at the same time uses its own for what it has; the last one stays.
        *known.sender.borrow_mut() = Some(sender.clone());
        Ok((sender, true))
    }

    /// The client's end of a pipe into our own outbound side.
    fn pipe(&self, host: Arc<ServiceHost>) -> tokio::io::DuplexStream {
        let (client, server) = tokio::io::duplex(PIPE_BYTES);
        let (outbound, plane, stop) = (Rc::clone(&self.outbound), Arc::clone(&self.plane), self.stop.clone());
        tokio::task::spawn_local(async move {
            let service =
                service_fn(move |request| Rc::clone(&outbound).handle(Some(Arc::clone(&host)), request));
            serve(server, Protocol::Http2, service, None, stop, &plane.telemetry).await;
        });
        client
    }
}

/// What our own outbound side, or the authorizer's proxy, says in its place where it is there: a bound, or that it was reached and
/// broke off. Such an answer is a reason and nothing else.
const THERE: [Reason; 5] =
    [Reason::Overload, Reason::Overflow, Reason::Shed, Reason::AppReset, Reason::ConnectionLost];

impl Silent {
    /// Tells what was said from what is made here of the end of a connection.
    fn of(status: &tonic::Status) -> Self {
        let why = status.message().to_owned();
        let mut cause = std::error::Error::source(status);
        if cause.is_none() {
            return Self::Status(status.code(), why);
        }
        while let Some(error) = cause {
            if error.downcast_ref::<h2::Error>().is_some_and(is_said) {
                return Self::BrokeOff(why);
            }
            cause = error.source();
        }
        Self::Unreachable(why)
    }

    /// Whether nobody is there to answer. Neither what it says that cannot be used is that, nor that it failed or broke off, which
    /// a request may have brought about, nor a bound, ours or its own, which whoever sends enough requests could reach.
    pub fn is_absence(&self) -> bool {
        let is_there = |why: &str| THERE.iter().any(|reason| reason.as_str() == why);
        match self {
            Self::Busy | Self::Unusable(_) | Self::BrokeOff(_) => false,
            Self::Timeout(_) | Self::Unreachable(_) => true,
            Self::Status(tonic::Code::Unavailable, why) => !is_there(why),
            // Said by somebody who is there.
            Self::Status(..) => false,
        }
    }
}

/// Whether somebody has said this in frames, by breaking the rules perhaps: a stream that was reset, a connection that was ended for
/// what was asked. A connection that is gone says nothing, and who says goodbye is leaving.
fn is_said(error: &h2::Error) -> bool {
    let goodbye = error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR);
    !error.is_io() && !goodbye
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.0.asking.set(self.0.asking.get() - 1);
    }
}

async fn dial(address: SocketAddr) -> Result<TcpStream, Silent> {
    let tcp = TcpStream::connect(address).await.map_err(|e| Silent::Unreachable(e.to_string()))?;
    let _ = tcp.set_nodelay(true);
    Ok(tcp)
}

async fn handshake<I>(io: I) -> Result<http2::SendRequest<Body>, Silent>
where
    I: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let mut http = http2::Builder::new(LocalExecutor);
    http.max_header_list_size(MAX_HEAD_BYTES as u32);
    let shaken = http.handshake(TokioIo::new(io)).await;
    let (sender, connection) = shaken.map_err(|e| Silent::Unreachable(e.to_string()))?;
    tokio::task::spawn_local(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection to an authorizer");
        }
    });
    Ok(sender)
}

/// What the authorizer is called in `:authority`.
fn origin(authorizer: &Authorizer) -> Uri {
    let authority = match authorizer {
        Authorizer::Service(service) => {
            ServiceHost { service: service.clone(), reach: Reach::ClusterSet }.to_host()
        }
        Authorizer::Address(address) => address.to_string(),
    };
    format!("http://{authority}").parse().expect("names of services and socket addresses are authorities")
}

/// A connection as tonic's client wants it.
struct Wire(http2::SendRequest<Body>);

impl tower::Service<Request<Body>> for Wire {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_there_is_not_away() {
        let said = |reason: Reason| Silent::Status(tonic::Code::Unavailable, reason.as_str().to_owned());
        for away in
            [Reason::NoHealthyEndpoint, Reason::NoSuchService, Reason::Unreachable, Reason::AppUnreachable]
        {
            assert!(said(away).is_absence(), "{away:?}");
        }
        for there in THERE {
            assert!(!said(there).is_absence(), "{there:?}");
        }
        let broke = |error: h2::Error| Silent::of(&tonic::Status::from_error(Box::new(error)));
        for reason in [h2::Reason::REFUSED_STREAM, h2::Reason::CANCEL, h2::Reason::INTERNAL_ERROR] {
            let silent = broke(reason.into());
            assert!(matches!(silent, Silent::BrokeOff(_)) && !silent.is_absence(), "{silent:?}");
        }
        let gone = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        assert!(Silent::of(&tonic::Status::from_error(Box::new(gone))).is_absence());
    }
}
