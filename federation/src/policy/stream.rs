//! Routes of connections that are not read: TCPRoute and TLSRoute, compiled once per (service or listener of a Gateway, View),
//! asked per connection.
//!
//! A TLSRoute goes before a TCPRoute, the more precise server name before the less precise one, then the older document,
//! then the first by name (Gateway API).

use std::sync::Arc;

use super::document::stream::StreamRule;
use super::document::{BackendRef, PolicyDocument, PolicyKind, PolicySpec, TargetRef};
use super::grant::{CrossReference, Referrer};
use super::hosts::Hosts;
use super::route::{NoRoute, backend_host, weighted};
use super::{Label, refers_to};
use crate::host::ServiceHost;
use crate::view::View;

/// The routes of one service, in order of precedence.
#[derive(Debug, Default)]
pub struct StreamRoutes(Vec<Route>);

/// Where a connection goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamTo {
    pub backend: Arc<ServiceHost>,
    pub port: u16,
    /// `namespace/name` of the route.
    pub route: Arc<str>,
    /// What has led there, where that is another namespace: the connection is to end when it is no longer granted.
    pub crossing: Option<Arc<CrossReference>>,
}

#[derive(Debug)]
struct Route {
    /// Of the service; empty: all.
    ports: Vec<u16>,
    /// The server names that it is for; `None`: whatever it is, TLS or not.
    names: Option<Hosts>,
    document: Arc<str>,
    backends: Vec<Backend>,
}

#[derive(Debug)]
struct Backend {
    host: Arc<ServiceHost>,
    crossing: Option<Arc<CrossReference>>,
    /// Whether the route may name it. It keeps its share if not.
    permitted: bool,
    port: Option<u16>,
    weight: u32,
}

impl StreamRoutes {
    /// Collects the routes whose parent is this service (Service or ServiceImport).
    pub fn build(view: &View, host: &ServiceHost) -> Self {
        Self::collect(view, |_| true, |parent, namespace| refers_to(parent, namespace, host))
    }

    /// Those of one kind that are attached to a listener of a Gateway, for the names that both are for.
    pub(super) fn attached(
        view: &View,
        kind: PolicyKind,
        listener: &Hosts,
        is_parent: impl Fn(&TargetRef, &str) -> bool,
    ) -> Self {
        let Self(mut routes) = Self::collect(view, |document| document.kind() == kind, is_parent);
        routes.retain_mut(|route| {
            // The port of such a parent is the listener's.
            route.ports.clear();
            let Some(names) = &route.names else { return true };
            let both = listener.and(names);
            let attached = both.is_some();
            route.names = both;
            attached
        });
        Self::ordered(routes)
    }

    fn collect(
        view: &View,
        is_meant: impl Fn(&PolicyDocument) -> bool,
        is_parent: impl Fn(&TargetRef, &str) -> bool,
    ) -> Self {
        let mut documents: Vec<&PolicyDocument> = view.policies.values().filter(|d| is_meant(d)).collect();
        documents.sort_by_key(|document| (document.created, &document.name));
        let mut routes = Vec::new();
        for document in documents {
            let names: Vec<Option<Hosts>> = match &document.spec {
                PolicySpec::TcpRoute(_) => vec![None],
                PolicySpec::TlsRoute(route) => {
                    route.hostnames.iter().map(|name| Some(Hosts::of(Some(name)))).collect()
                }
                _ => continue,
            };
            let (PolicySpec::TcpRoute(super::TcpRoute { parent_refs, rules })
            | PolicySpec::TlsRoute(super::TlsRoute { parent_refs, rules, .. })) = &document.spec
            else {
                continue;
            };
            let namespace = document.name.namespace();
            let parents: Vec<&TargetRef> =
                parent_refs.iter().filter(|parent| is_parent(parent, namespace)).collect();
            let Some(rule) = rules.first().filter(|_| !parents.is_empty()) else { continue };
            // One without a port means all.
            let ports: Option<Vec<u16>> = parents.iter().map(|parent| parent.port).collect();
            let ports = ports.unwrap_or_default();
            let (label, from): (Arc<str>, _) = (document.name.to_string().into(), Referrer::of(document));
            for name in names {
                routes.push(Route::compile(name, &ports, rule, &label, from, view));
            }
        }
        Self::ordered(routes)
    }

    fn ordered(mut routes: Vec<Route>) -> Self {
        // Stable: what is equal stays in the order of documents.
        routes.sort_by(|a, b| (a.names.is_none(), &a.names).cmp(&(b.names.is_none(), &b.names)));
        Self(routes)
    }

    /// Whether any route applies to the service.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether any route is for that port.
    pub fn covers(&self, port: u16) -> bool {
        self.0.iter().any(|route| route.is_for(port))
    }

    /// Whether what becomes of a connection to that port goes by the server name that its client asks for.
    pub fn reads_names(&self, port: u16) -> bool {
        self.0.iter().any(|route| route.is_for(port) && route.names.is_some())
    }

    /// `Ok(None)`: no route is for that port. `name`: the server name, where the client has begun TLS with one. `random`
    /// is uniform over u64 and decides weights.
    pub fn route(&self, port: u16, name: Option<&str>, random: u64) -> Result<Option<StreamTo>, NoRoute> {
        let Some(route) = self.taking(port, name)? else { return Ok(None) };
        let chosen = weighted(&route.backends, |b| b.weight, random).ok_or(NoRoute::NoBackend)?;
        if !chosen.permitted {
            return Err(NoRoute::RefNotPermitted);
        }
        Ok(Some(StreamTo {
            backend: Arc::clone(&chosen.host),
            port: chosen.port.unwrap_or(port),
            route: Arc::clone(&route.document),
            crossing: chosen.crossing.clone(),
        }))
    }

    /// The route that decides, where any is for that port.
    fn taking(&self, port: u16, name: Option<&str>) -> Result<Option<&Route>, NoRoute> {
        let mut routes = self.0.iter().filter(|route| route.is_for(port)).peekable();
        if routes.peek().is_none() {
            return Ok(None);
        }
        let name = name.map(str::to_ascii_lowercase);
        let matches = |route: &&Route| match (&route.names, &name) {
            (Some(names), Some(name)) => names.has(name),
            (Some(_), None) => false,
            (None, _) => true,
        };
        routes.find(matches).map(Some).ok_or(NoRoute::NoMatch)
    }
}

impl Route {
    fn compile(
        names: Option<Hosts>,
        ports: &[u16],
        rule: &StreamRule,
        document: &Arc<str>,
        from: Referrer<'_>,
        view: &View,
    ) -> Self {
        let backend = |reference: &BackendRef| {
            let host = backend_host(reference, from.namespace);
            let crossing = CrossReference::of(from, reference.kind, &host.service).map(Arc::new);
            Backend {
                permitted: crossing.as_ref().is_none_or(|crossing| crossing.is_granted(view)),
                host: Arc::new(host),
                crossing,
                port: reference.port,
                weight: reference.weight,
            }
        };
        let backends = rule.backend_refs.iter().map(backend).collect();
        Self { ports: ports.to_vec(), names, document: Arc::clone(document), backends }
    }

    fn is_for(&self, port: u16) -> bool {
        self.ports.is_empty() || self.ports.contains(&port)
    }
}

/// Whether it is a server name as a TLSRoute has it: a DNS name, with `*` for its first labels at most.
pub(super) fn check_server_name(text: &str) -> Result<(), String> {
    let name = text.strip_prefix("*.").unwrap_or(text);
    let labels_fit = name.split('.').all(|label| label.to_ascii_lowercase().parse::<Label>().is_ok());
    let is_address = name.parse::<std::net::IpAddr>().is_ok();
    if labels_fit && !is_address && text.len() <= 253 {
        return Ok(());
    }
    Err(format!("{text:?} is no server name; write one like db.example.com or *.example.com"))
}

#[cfg(test)]
mod tests;
