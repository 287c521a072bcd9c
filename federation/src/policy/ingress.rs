//! A Gateway as its proxies ask it: which listener a client's host means, with which certificate, and by which route its
//! requests go on. Pure; compiled once per View and worker.
//!
//! The more precise host goes first, among listeners and among routes, as Gateway API says; within one host the routes have
//! the precedence that they have for services.

use std::borrow::Cow;
use std::cmp::Reverse;

use hanse_identity::ServiceName;

use super::document::gateway::{Gateway, Listener, ListenerProtocol};
use super::document::{HttpRoute, PolicyDocument, PolicyKey, PolicyKind, PolicySpec, RefKind, TargetRef};
use super::route::{NoRoute, RequestParts, RouteTable, Routed};
use crate::host::{Reach, ServiceHost};
use crate::view::View;

/// One Gateway at one View.
#[derive(Debug)]
pub struct Ingress {
    /// The gateway as a parent of routes.
    pub host: ServiceHost,
    listeners: Vec<Served>,
}

/// A listener with the routes that are attached to it.
#[derive(Debug)]
pub struct Served {
    pub name: String,
    pub protocol: ListenerProtocol,
    port: u16,
    hosts: Hosts,
    /// The more precise first.
    routes: Vec<(Hosts, RouteTable)>,
}

/// Which hosts something is for. The more precise is the smaller.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Hosts {
    One(String),
    /// All that end in it; it begins with a dot. The longer is the more precise.
    Below(Reverse<usize>, String),
    Any,
}

impl Ingress {
    /// `None`: there is no such Gateway.
    pub fn build(view: &View, gateway: &ServiceName) -> Option<Self> {
        let document = find(view, gateway)?;
        let host = ServiceHost { service: gateway.clone(), reach: Reach::Gateway };
        let listeners = document.listeners.iter().map(|listener| Served::build(view, &host, listener));
        Some(Self { listeners: listeners.collect(), host })
    }

    /// The listener that a host means on a port.
    pub fn listener(&self, port: u16, host: &str) -> Option<&Served> {
        let fits = |served: &&Served| served.port == port && served.hosts.has(host);
        self.listeners.iter().filter(fits).min_by_key(|served| &served.hosts)
    }

    /// The listener whose certificate is shown to who asks for `server_name`, or for none.
    pub fn shown(&self, port: u16, server_name: Option<&str>) -> Option<&Served> {
        match server_name {
            Some(name) => self.listener(port, name),
            None => self.listeners.iter().find(|served| served.port == port && served.hosts == Hosts::Any),
        }
    }
}

/// The name of the certificate for who asks for `server_name` on a port, by the listener that it means; who asks for none
/// gets that of the listener for all hosts.
pub fn certificate<'v>(
    view: &'v View,
    gateway: &ServiceName,
    port: u16,
    server_name: Option<&str>,
) -> Option<&'v str> {
    let fits = |listener: &&Listener| {
        let hosts = Hosts::of(listener.hostname.as_deref());
        listener.port == port && server_name.map_or(hosts == Hosts::Any, |name| hosts.has(name))
    };
    let listeners = find(view, gateway)?.listeners.iter().filter(fits);
    let listener = listeners.min_by_key(|listener| Hosts::of(listener.hostname.as_deref()))?;
    listener.tls.as_ref()?.certificate_refs.first().map(|reference| reference.name.as_str())
}

/// What is spoken on a port of the Gateway; `None` if it has no listener there.
pub fn protocol(view: &View, gateway: &ServiceName, port: u16) -> Option<ListenerProtocol> {
    find(view, gateway)?.listeners.iter().find(|l| l.port == port).map(|listener| listener.protocol)
}

fn find<'v>(view: &'v View, gateway: &ServiceName) -> Option<&'v Gateway> {
    let key = PolicyKey { kind: PolicyKind::Gateway, name: gateway.clone() };
    match &view.policies.get(&key)?.spec {
        PolicySpec::Gateway(gateway) => Some(gateway),
        _ => None,
    }
}

impl Served {
    fn build(view: &View, gateway: &ServiceHost, listener: &Listener) -> Self {
        let hosts = Hosts::of(listener.hostname.as_deref());
        let mut attached: Vec<(Hosts, &PolicyDocument, Cow<'_, HttpRoute>)> = Vec::new();
        for document in view.policies.values() {
            let route = match &document.spec {
                PolicySpec::HttpRoute(route) => Cow::Borrowed(route),
                PolicySpec::GrpcRoute(route) => Cow::Owned(route.to_http()),
                _ => continue,
            };
            let namespace = document.name.namespace();
            if !route.parent_refs.iter().any(|parent| is_parent(parent, namespace, gateway, listener)) {
                continue;
            }
            let named: Vec<Option<&str>> = match route.hostnames.as_slice() {
                [] => vec![None],
                names => names.iter().map(|name| Some(name.as_str())).collect(),
            };
            for both in named.into_iter().filter_map(|name| hosts.and(&Hosts::of(name))) {
                attached.push((both, document, route.clone()));
            }
        }
        attached.sort_by(|(a, ..), (b, ..)| a.cmp(b));
        let mut routes = Vec::new();
        for same in attached.chunk_by(|(a, ..), (b, ..)| a == b) {
            let documents = same.iter().map(|(_, document, route)| (*document, route.clone())).collect();
            routes.push((same[0].0.clone(), RouteTable::of(view, gateway, documents)));
        }
        Self { name: listener.name.clone(), protocol: listener.protocol, port: listener.port, hosts, routes }
    }

    /// Where a request for `host` goes. What no rule of a more precise host matches is left to the less precise.
    pub fn route(&self, host: &str, request: &RequestParts<'_>, random: u64) -> Result<Routed, NoRoute> {
        for (_, table) in self.routes.iter().filter(|(hosts, _)| hosts.has(host)) {
            match table.matched(request, random) {
                Err(NoRoute::NoMatch) => {}
                decided => return decided,
            }
        }
        Err(NoRoute::NoMatch)
    }
}

fn is_parent(parent: &TargetRef, namespace: &str, gateway: &ServiceHost, listener: &Listener) -> bool {
    parent.kind == RefKind::Gateway
        && namespace == gateway.service.namespace()
        && parent.service(namespace) == gateway.service
        && parent.section_name.as_ref().is_none_or(|section| *section == listener.name)
        && parent.port.is_none_or(|port| port == listener.port)
}

impl Hosts {
    fn of(hostname: Option<&str>) -> Self {
        let Some(hostname) = hostname else { return Self::Any };
        let hostname = hostname.to_ascii_lowercase();
        match hostname.strip_prefix('*') {
            Some(suffix) => Self::Below(Reverse(suffix.len()), suffix.to_owned()),
            None => Self::One(hostname),
        }
    }

    /// `host` is in lower case.
    fn has(&self, host: &str) -> bool {
        match self {
            Self::One(own) => own == host,
            Self::Below(_, suffix) => host.len() > suffix.len() && host.ends_with(suffix.as_str()),
            Self::Any => true,
        }
    }

    /// The hosts that both are for.
    fn and(&self, other: &Self) -> Option<Self> {
        match (self, other) {
            (Self::Any, both) | (both, Self::Any) => Some(both.clone()),
            (Self::One(host), all) | (all, Self::One(host)) => all.has(host).then(|| Self::One(host.clone())),
            (Self::Below(_, a), Self::Below(_, b)) if a.ends_with(b.as_str()) => Some(self.clone()),
            (Self::Below(_, a), Self::Below(_, b)) if b.ends_with(a.as_str()) => Some(other.clone()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::parse;

    #[test]
    fn the_more_precise_host_goes_first_among_listeners_and_routes() {
        let text = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: { name: public, namespace: shop }
spec:
  gatewayClassName: hanse
  listeners:
    - { name: all, port: 443, protocol: HTTPS, tls: { certificateRefs: [{ name: any }] } }
    - { name: below, port: 443, protocol: HTTPS, hostname: '*.shop.example', tls: { certificateRefs: [{ name: wild }] } }
    - { name: one, port: 443, protocol: HTTPS, hostname: www.shop.example, tls: { certificateRefs: [{ name: www }] } }
    - { name: plain, port: 80, protocol: HTTP }
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: wide, namespace: shop }
spec:
  parentRefs: [{ group: gateway.networking.k8s.io, kind: Gateway, name: public, sectionName: plain }]
  rules: [{ backendRefs: [{ name: wide }] }]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: api, namespace: shop }
spec:
  parentRefs: [{ group: gateway.networking.k8s.io, kind: Gateway, name: public }]
  hostnames: [api.shop.example, '*.other.example']
  rules: [{ matches: [{ path: { value: /v1 } }], backendRefs: [{ name: api }] }]
";
        let mut view = View::new("east".parse().unwrap(), "east.example".parse().unwrap());
        for (document, _) in parse("test", text).unwrap() {
            view.policies.insert(document.key(), document);
        }
        let gateway: ServiceName = "shop/public".parse().unwrap();
        let ingress = Ingress::build(&view, &gateway).unwrap();
        let listener = |port, host| ingress.listener(port, host).map(|served| served.name.as_str());
        assert_eq!(listener(443, "www.shop.example"), Some("one"));
        assert_eq!(listener(443, "a.b.shop.example"), Some("below"));
        assert_eq!(listener(443, "shop.example"), Some("all"));
        assert_eq!(listener(80, "www.shop.example"), Some("plain"));
        assert_eq!(listener(8080, "www.shop.example"), None);
        let cert = |name| certificate(&view, &gateway, 443, name);
        assert_eq!(cert(Some("www.shop.example")), Some("www"));
        assert_eq!(cert(Some("x.shop.example")), Some("wild"));
        assert_eq!((cert(Some("else.example")), cert(None)), (Some("any"), Some("any")));
        assert_eq!(certificate(&view, &gateway, 80, None), None);

        let to = |port, host, path| {
            let request = RequestParts { method: "GET", path, query: None, header: &|_| None };
            let routed = ingress.listener(port, host).unwrap().route(host, &request, 0);
            routed.map(|routed| routed.backend.service.name().to_owned())
        };
        assert_eq!(to(80, "api.shop.example", "/v1/x").as_deref(), Ok("api"));
        assert_eq!(
            to(80, "api.shop.example", "/v2").as_deref(),
            Ok("wide"),
            "no rule of the precise host matches"
        );
        assert_eq!(to(80, "a.other.example", "/v1").as_deref(), Ok("api"));
        assert_eq!(to(80, "other.example", "/v1").as_deref(), Ok("wide"));
        assert_eq!(to(443, "api.shop.example", "/v1").as_deref(), Ok("api"));
        assert_eq!(to(443, "api.shop.example", "/v2"), Err(NoRoute::NoMatch));
        // The listener is for other hosts than the route is.
        assert_eq!(to(443, "www.shop.example", "/v1"), Err(NoRoute::NoMatch));
    }
}
