//! Requests that leave the mesh through an egress gateway: a service whose proxies have no app, and alone send requests to the
//! ExternalServices that name it (`via`).
//!
//! A caller's proxy sends such a request there as to any service, and says which ExternalService it is for. The gateway
//! believes nothing of that: the document has to name a service that it serves, and the request a host of the document.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;

use hanse_federation::View;
use hanse_federation::host::{Reach, ServiceHost, host_of};
use hanse_federation::policy::route::NO_TIMEOUT;
use hanse_identity::ServiceName;
use http::uri::{Authority, Scheme};
use http::{HeaderValue, Request, Response, Uri};
use hyper::body::Incoming;

use super::{Door, Outbound};
use crate::answer::Reason;
use crate::headers;
use crate::io::body::{AnswerBody, OnEnd as _, RequestBody};
use crate::io::record::{Direction, Record};
use crate::outbound::Plan;

/// Where a request is to leave to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaving {
    external: ServiceName,
    /// What a route names.
    port: Option<u16>,
}

/// A request that an egress gateway is to send.
pub(super) struct Handed {
    leaving: Leaving,
    /// By which the service outside is called, where the request calls it by no name of its.
    renamed: Option<Authority>,
}

impl Leaving {
    /// As the header has it: `NAMESPACE/NAME` or `NAMESPACE/NAME:PORT`.
    fn parse(text: &str) -> Option<Self> {
        let (name, port) = match text.split_once(':') {
            Some((name, port)) => (name, Some(port.parse().ok()?)),
            None => (text, None),
        };
        Some(Self { external: name.parse().ok()?, port })
    }

    fn of<B>(request: &Request<B>) -> Option<Self> {
        let mut said = request.headers().get_all(headers::LEAVES).iter();
        let (one, None) = (said.next()?, said.next()) else { return None };
        Self::parse(one.to_str().ok()?)
    }

    fn value(&self) -> HeaderValue {
        let text = match self.port {
            Some(port) => format!("{}:{port}", self.external),
            None => self.external.to_string(),
        };
        HeaderValue::from_str(&text).expect("a service's name and a port are visible ASCII")
    }

    pub(super) fn host(&self) -> ServiceHost {
        ServiceHost { service: self.external.clone(), reach: Reach::External }
    }

    /// As the gateway plans it: routes and time limits are the caller's, and were asked there.
    pub(super) fn plan(&self) -> Plan {
        Plan {
            backend: Arc::new(self.host()),
            port: self.port,
            route: Arc::default(),
            request_timeout: NO_TIMEOUT,
            attempt_timeout: Some(NO_TIMEOUT),
            filters: None,
        }
    }
}

impl Handed {
    /// Says in the request what the gateway has to know.
    pub(super) fn put_on(&self, request: &mut Request<RequestBody>) -> Result<(), Reason> {
        request.headers_mut().insert(headers::LEAVES, self.leaving.value());
        if let Some(renamed) = &self.renamed {
            let mut uri = std::mem::take(request.uri_mut()).into_parts();
            uri.scheme = Some(Scheme::HTTP);
            uri.authority = Some(renamed.clone());
            *request.uri_mut() = Uri::from_parts(uri).map_err(|_| Reason::BadRequest)?;
        }
        Ok(())
    }
}

impl Outbound {
    /// Has the plan lead to the egress gateway, if its backend outside has one. `None`: it goes out from here.
    pub(super) fn hand_over(
        &self,
        view: &View,
        door: &Door,
        plan: &mut Plan,
        authority: Option<&str>,
    ) -> Option<Handed> {
        if plan.backend.reach != Reach::External || matches!(door, Door::Egress(_)) {
            return None;
        }
        let external = Arc::clone(self.externals(view).get(&plan.backend.service)?);
        let via = external.via()?;
        let host = plan.filters.as_ref().and_then(|filters| filters.host()).or(authority);
        let is_its_own = host.and_then(host_of).is_some_and(|(host, _)| external.answers_to(&host));
        let first = || external.spec.hosts.first().and_then(|host| host.parse().ok());
        let renamed = if is_its_own { None } else { first() };
        let leaving = Leaving { external: external.name.clone(), port: plan.port };
        // Not beyond this cluster: its documents say who may leave it, and where.
        plan.backend = Arc::new(ServiceHost { service: via, reach: Reach::Cluster });
        Some(Handed { leaving, renamed })
    }

    /// Sends a request of the mesh out of it, where we are the gateway for that: `services` are those that we serve. The record
    /// is of what is outside; it ends with the response.
    pub async fn leave(
        self: &Rc<Self>,
        services: &BTreeSet<ServiceName>,
        request: Request<Incoming>,
    ) -> Result<(Response<AnswerBody>, Record), Reason> {
        let leaving = self.may_leave(services, &request)?;
        let mut record = Record::begin(&self.reporter, Direction::Outbound, &request);
        let is_grpc = headers::is_grpc(request.headers());
        match self.forward(&Door::Egress(leaving), request, is_grpc, &mut record).await {
            Ok(response) => {
                record.answered(response.status());
                record.entry.response_code_details.clear();
                Ok((response, record))
            }
            Err(reason) => {
                record.refused(reason);
                record.on_end(0, true);
                Err(reason)
            }
        }
    }

    fn may_leave<B>(
        &self,
        services: &BTreeSet<ServiceName>,
        request: &Request<B>,
    ) -> Result<Leaving, Reason> {
        // Nothing that was not meant for outside goes there.
        let leaving = Leaving::of(request).ok_or(Reason::NothingServed)?;
        let view = self.plane.knowledge.view().ok_or(Reason::NotReady)?;
        let externals = self.externals(&view);
        let external = externals.get(&leaving.external);
        let external = external.filter(|external| external.via().is_some_and(|via| services.contains(&via)));
        let external = external.ok_or(Reason::NotAllowed)?;
        // What policies have read as the host is the host that is asked.
        let authority = headers::authority(request).ok().flatten();
        match authority.and_then(host_of) {
            Some((host, _)) if external.answers_to(&host) => Ok(leaving),
            _ => Err(Reason::BadRequest),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_request_leaves_to_is_read_as_it_was_written_and_said_once() {
        for text in ["shop/payments", "shop/payments:8443"] {
            let leaving = Leaving::parse(text).unwrap();
            assert_eq!(leaving.value(), text);
            let request = Request::builder().header(headers::LEAVES, text);
            assert_eq!(Leaving::of(&request.body(()).unwrap()), Some(leaving));
        }
        for bad in ["", "payments", "shop/payments:", "shop/payments:65536", "shop/payments:8:8", "a/b/c"] {
            assert_eq!(Leaving::parse(bad), None, "{bad:?}");
        }
        let twice = Request::builder().header(headers::LEAVES, "a/b").header(headers::LEAVES, "a/c");
        assert_eq!(Leaving::of(&twice.body(()).unwrap()), None);
        assert!(headers::is_reserved(headers::LEAVES.as_str()), "no app can say it");
    }
}
