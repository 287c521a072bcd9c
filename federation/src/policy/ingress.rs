//! A Gateway as its proxies ask it: which listener a client's host means, with which certificate, and by which route its
//! requests, or its connections, go on. Pure; compiled once per View and worker.
//!
//! The more precise host goes first, among listeners and among routes, as Gateway API says; within one host the routes have
//! the precedence that they have for services.

use std::borrow::Cow;

use hanse_identity::ServiceName;

use super::document::gateway::{Gateway, Listener, ListenerProtocol};
use super::document::{HttpRoute, PolicyDocument, PolicyKey, PolicyKind, PolicySpec, RefKind, TargetRef};
use super::hosts::Hosts;
use super::route::{NoRoute, RequestParts, RouteTable, Routed};
use super::stream::{StreamRoutes, StreamTo};
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
    /// Of connections, where those are not read.
    streams: StreamRoutes,
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

    /// Where a connection goes that is not read. `name`: the server name that its client asks for, in lower case, where the
    /// listener is for TLS. `random` is uniform over u64 and decides weights.
    pub fn stream(&self, port: u16, name: Option<&str>, random: u64) -> Result<StreamTo, NoRoute> {
        let listener = self.shown(port, name).ok_or(NoRoute::NoMatch)?;
        listener.streams.route(port, name, random)?.ok_or(NoRoute::NoMatch)
    }

    /// Whether a listener and a route take such a connection, wherever that leads it.
    pub fn takes(&self, port: u16, name: Option<&str>) -> bool {
        !matches!(self.stream(port, name, 0), Err(NoRoute::NoMatch | NoRoute::NoBackend))
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
    let listener = meant(view, gateway, port, server_name)?;
    listener.tls.as_ref()?.certificate_refs.first().map(|reference| reference.name.as_str())
}

/// What is spoken on a port of the Gateway; `None` if it has no listener there. Where it goes by the server name, as some
/// listeners pass TLS on and others end it, that is `Tls`.
pub fn protocol(view: &View, gateway: &ServiceName, port: u16) -> Option<ListenerProtocol> {
    let listeners = find(view, gateway)?.listeners.iter().filter(|listener| listener.port == port);
    listeners.map(|listener| listener.protocol).max()
}

/// What is spoken by who asks for `server_name` on a port, in lower case, or for none.
pub fn protocol_by_name(
    view: &View,
    gateway: &ServiceName,
    port: u16,
    server_name: Option<&str>,
) -> Option<ListenerProtocol> {
    meant(view, gateway, port, server_name).map(|listener| listener.protocol)
}

fn meant<'v>(
    view: &'v View,
    gateway: &ServiceName,
    port: u16,
    server_name: Option<&str>,
) -> Option<&'v Listener> {
    let fits = |listener: &&Listener| {
        let hosts = Hosts::of(listener.hostname.as_deref());
        listener.port == port && server_name.map_or(hosts == Hosts::Any, |name| hosts.has(name))
    };
    let listeners = find(view, gateway)?.listeners.iter().filter(fits);
    listeners.min_by_key(|listener| Hosts::of(listener.hostname.as_deref()))
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
        let (name, port) = (listener.name.clone(), listener.port);
        let is_ours = |parent: &TargetRef, namespace: &str| is_parent(parent, namespace, gateway, listener);
        let connections = match listener.protocol {
            ListenerProtocol::Http | ListenerProtocol::Https => None,
            ListenerProtocol::Tls => Some(PolicyKind::TlsRoute),
            ListenerProtocol::Tcp => Some(PolicyKind::TcpRoute),
        };
        if let Some(kind) = connections {
            let streams = StreamRoutes::attached(view, kind, &hosts, is_ours);
            return Self { name, protocol: listener.protocol, port, hosts, routes: Vec::new(), streams };
        }
        let mut attached: Vec<(Hosts, &PolicyDocument, Cow<'_, HttpRoute>)> = Vec::new();
        for document in view.policies.values() {
            let route = match &document.spec {
                PolicySpec::HttpRoute(route) => Cow::Borrowed(route),
                PolicySpec::GrpcRoute(route) => Cow::Owned(route.to_http()),
                _ => continue,
            };
            let namespace = document.name.namespace();
            if !route.parent_refs.iter().any(|parent| is_ours(parent, namespace)) {
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
        let protocol = listener.protocol;
        Self { name, protocol, port, hosts, routes, streams: StreamRoutes::default() }
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
            let request =
                RequestParts { method: "GET", path, query: None, header: &|_| None, preflight: None };
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
    #[test]
    fn the_more_precise_server_name_goes_first_and_no_listener_stands_in_for_another() {
        let parents = |section: &str| {
            format!(
                "parentRefs: [{{ group: gateway.networking.k8s.io, kind: Gateway, name: public, sectionName: {section} }}]"
            )
        };
        let route = |kind: &str, name: &str, section: &str, hosts: &str| {
            format!(
                "---\napiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{ name: {name}, namespace: shop }}\n\
                 spec:\n  {}\n{hosts}  rules: [{{ backendRefs: [{{ name: {name}, port: 7 }}] }}]\n",
                parents(section)
            )
        };
        let tls = |name: &str, section: &str, hosts: &str| {
            route("TLSRoute", name, section, &format!("  hostnames: [{hosts}]\n"))
        };
        let text = [
            "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: { name: public, namespace: shop }
spec:
  gatewayClassName: hanse
  listeners:
    - { name: all, port: 443, protocol: TLS, tls: { mode: Passthrough } }
    - { name: below, port: 443, protocol: TLS, hostname: '*.shop.example', tls: { mode: Passthrough } }
    - { name: web, port: 443, protocol: HTTPS, hostname: www.shop.example, tls: { certificateRefs: [{ name: www }] } }
    - { name: raw, port: 5432, protocol: TCP }
"
            .to_owned(),
            tls("any", "all", "'*.example'"),
            tls("wide", "below", "'*.shop.example', '*.other.example'"),
            tls("one", "below", "db.shop.example"),
            tls("late", "below", "db.shop.example"),
            route("TCPRoute", "bytes", "raw", ""),
            // Of kinds that the listener does not take: as if they were not there.
            tls("none", "raw", "raw.example"),
            route("HTTPRoute", "web", "below", ""),
        ]
        .concat();
        let mut view = View::new("east".parse().unwrap(), "east.example".parse().unwrap());
        for (age, (mut document, _)) in parse("test", &text).unwrap().into_iter().enumerate() {
            document.created = hanse_identity::Timestamp(age as u64);
            view.policies.insert(document.key(), document);
        }
        let gateway: ServiceName = "shop/public".parse().unwrap();
        let ingress = Ingress::build(&view, &gateway).unwrap();
        let to = |port, name| ingress.stream(port, name, 0).map(|to| to.backend.service.name().to_owned());
        for (name, expected) in [
            (Some("db.shop.example"), Some("one")),
            (Some("x.shop.example"), Some("wide")),
            (Some("a.b.shop.example"), Some("wide")),
            // The route is for these hosts and its listener is not; the listener for all has another route.
            (Some("a.other.example"), Some("any")),
            (Some("shop.example"), Some("any")),
            (Some("example"), None),
            (None, None),
        ] {
            assert_eq!(to(443, name).ok().as_deref(), expected, "{name:?}");
        }
        assert_eq!(to(443, Some("www.shop.example")), Err(NoRoute::NoMatch), "that name's TLS ends here");
        let spoken = |name| protocol_by_name(&view, &gateway, 443, name);
        assert_eq!(spoken(Some("www.shop.example")), Some(ListenerProtocol::Https));
        assert_eq!(spoken(Some("db.shop.example")), Some(ListenerProtocol::Tls));
        assert_eq!(protocol(&view, &gateway, 443), Some(ListenerProtocol::Tls));
        assert_eq!(
            (to(5432, None).as_deref(), ingress.stream(5432, None, 0).unwrap().port),
            (Ok("bytes"), 7)
        );
        assert_eq!(to(80, None), Err(NoRoute::NoMatch));
    }
}
