//! Connections of clients outside at a Gateway that are not read: TLS that its client has begun with the service behind, led by
//! the server name of its ClientHello (TLSRoute), and plain TCP (TCPRoute).
//!
//! Behind the listener such a connection is one of the gateway's own: by mutual TLS to the sidecar of its service, where
//! the AccessPolicies are asked about the gateway's identity.

use std::rc::Rc;
use std::sync::Arc;

use hanse_federation::View;
use hanse_federation::host::{Reach, ServiceHost};
use hanse_federation::policy::{CrossReference, StreamTo};
use hanse_identity::ServiceName;
use http::Request;
use tokio::net::TcpStream;

use super::Outbound;
use crate::answer::Reason;
use crate::io::body::OnEnd as _;
use crate::io::ingress::Gate;
use crate::io::record::{Direction, Record, TCP};
use crate::io::stream::{self, Alert};

impl Outbound {
    /// Carries one connection of a client outside to its end. `name`: the server name that it asks for, in lower case, on a
    /// listener for TLS. One that leads nowhere ends with an alert, where its client understands that, or is reset.
    pub async fn pass(self: Rc<Self>, gate: Arc<Gate>, name: Option<String>, client: TcpStream) {
        let mut record = self.passing(&gate, name.as_deref());
        let opened = match self.streams.place() {
            Some(place) => {
                let route = |view: &View, _: &mut Record| self.entered(view, &gate, name.as_deref());
                self.open(route, &mut record).await.map(|opened| (place, opened))
            }
            None => Err(Reason::Overload),
        };
        match opened {
            Ok(opened) => {
                let closed = self.closed_to(&gate, name.as_deref(), opened.1.crossing.clone());
                self.run(opened, client, record, closed).await;
            }
            Err(reason) => {
                record.refused(reason);
                record.on_end(0, true);
                match name {
                    Some(_) if reason == Reason::NoRoute => {
                        stream::alert(client, Alert::UnrecognizedName).await;
                    }
                    _ => stream::reset(&client),
                }
            }
        }
    }

    fn entered(&self, view: &View, gate: &Gate, name: Option<&str>) -> Result<StreamTo, Reason> {
        let ingress = self.ingress(view, &gate.gateway).ok_or(Reason::NoRoute)?;
        Ok(ingress.stream(gate.port, name, self.random.next())?)
    }

    /// Resolves when no listener or route of the Gateway would take such a connection any more, or what has led it into another
    /// namespace is no longer granted.
    async fn closed_to(&self, gate: &Gate, name: Option<&str>, crossing: Option<Arc<CrossReference>>) {
        let mut revisions = self.plane.knowledge.revisions();
        let is_open = || match self.plane.knowledge.view() {
            Some(view) => {
                let ingress = self.ingress(&view, &gate.gateway);
                ingress.is_some_and(|ingress| ingress.takes(gate.port, name))
                    && crossing.as_ref().is_none_or(|crossing| crossing.is_granted(&view))
            }
            None => true,
        };
        while is_open() {
            if revisions.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Its record: of a connection to the server name, or where there is none to the Gateway.
    fn passing(&self, gate: &Gate, name: Option<&str>) -> Record {
        let named = name.and_then(|name| connect_to(name, gate.port));
        let request = named.or_else(|| connect_to(&gateway_host(&gate.gateway), gate.port));
        let request = request.expect("a Gateway's name and a port are an authority");
        let mut record = Record::begin(&self.reporter, Direction::Outbound, &request);
        record.entry.protocol = TCP;
        record
    }
}

fn gateway_host(gateway: &ServiceName) -> String {
    ServiceHost { service: gateway.clone(), reach: Reach::Gateway }.to_host()
}

fn connect_to(host: &str, port: u16) -> Option<Request<()>> {
    Request::connect(format!("{host}:{port}")).body(()).ok()
}
