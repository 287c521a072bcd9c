//! Requests of clients outside, on their way into the mesh: by the Gateway's listeners and routes, as the gateway's own
//! identity. What such a client says of itself in the mesh's headers is taken out, and what we know of it is put there.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use hanse_federation::View;
use hanse_federation::host::{Reach, ServiceHost, host_of};
use hanse_federation::policy::document::gateway::ListenerProtocol;
use hanse_federation::policy::ingress::Ingress;
use hanse_identity::ServiceName;
use http::Request;
use hyper::body::Incoming;

use super::{Door, Outbound, OutboundResponse};
use crate::answer::Reason;
use crate::headers;
use crate::io::ingress::Gate;
use crate::outbound::{self, Plan};
use crate::request_id::REQUEST_ID;

/// How a client outside has come in.
pub struct Entrance {
    gateway: ServiceName,
    port: u16,
    from: IpAddr,
    /// By TLS, with the server name that it asked for, if it did.
    tls: Option<Option<String>>,
}

impl Entrance {
    pub fn new(gate: &Gate, from: SocketAddr, tls: Option<Option<String>>) -> Self {
        Self { gateway: gate.gateway.clone(), port: gate.port, from: from.ip().to_canonical(), tls }
    }

    /// The Gateway, as the parent of routes.
    pub(super) fn host(&self) -> ServiceHost {
        ServiceHost { service: self.gateway.clone(), reach: Reach::Gateway }
    }

    pub(super) fn is_secure(&self) -> bool {
        self.tls.is_some()
    }

    pub(super) fn client(&self) -> (IpAddr, bool) {
        (self.from, self.is_secure())
    }

    fn protocol(&self) -> ListenerProtocol {
        if self.is_secure() { ListenerProtocol::Https } else { ListenerProtocol::Http }
    }
}

impl Outbound {
    /// Answers one request of a client outside.
    pub async fn enter(
        self: Rc<Self>,
        entrance: Rc<Entrance>,
        mut request: Request<Incoming>,
    ) -> Result<OutboundResponse, Infallible> {
        // For routes to match; written again when all that ends here has gone.
        let (from, tls) = entrance.client();
        headers::forwarded_for(request.headers_mut(), from, tls);
        // A new one is made, as no client outside names requests in our logs; Envoy does the same at the edge.
        headers::remove_as_read(request.headers_mut(), REQUEST_ID.as_str());
        let mut response = self.answer(Door::Gateway(entrance), request).await?;
        // How the mesh is made is nobody's business outside.
        headers::strip_reserved(response.headers_mut());
        Ok(response)
    }

    pub(super) fn plan_entered(
        &self,
        view: &View,
        entrance: &Entrance,
        authority: Option<&str>,
        request: &Request<Incoming>,
        is_grpc: bool,
    ) -> Result<Plan, Reason> {
        let ingress = self.ingress(view, &entrance.gateway).ok_or(Reason::NoRoute)?;
        let (host, _) = authority.and_then(host_of).ok_or(Reason::BadRequest)?;
        let listener = ingress.listener(entrance.port, &host).ok_or(Reason::NoRoute)?;
        if listener.protocol != entrance.protocol() {
            // It was another one when the connection came in.
            return Err(Reason::Misdirected);
        }
        if let Some(name) = &entrance.tls
            && ingress.shown(entrance.port, name.as_deref()).is_none_or(|shown| shown.name != listener.name)
        {
            // Who was shown one listener's certificate is not let in by another's.
            return Err(Reason::Misdirected);
        }
        outbound::plan_for(request, |parts| {
            let routed = listener.route(&host, parts, self.random.next())?;
            Ok(outbound::planned(routed, parts.header, is_grpc))
        })
    }

    /// The Gateway at this View; compiled on first use after it changed.
    pub(super) fn ingress(&self, view: &View, gateway: &ServiceName) -> Option<Rc<Ingress>> {
        let mut ingress = self.ingress.borrow_mut();
        if ingress.0 != view.revision {
            *ingress = (view.revision, Ingress::build(view, gateway).map(Rc::new));
        }
        ingress.1.clone()
    }
}
