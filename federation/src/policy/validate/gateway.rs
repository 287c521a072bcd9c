//! Gateways: listeners that can be told apart, certificates where TLS ends, and nothing where it does not. And the routes that
//! want to be attached to them.

use std::collections::BTreeMap;

use super::Findings;
use crate::policy::document::gateway::{Gateway, Listener, ListenerProtocol, ListenerTls, TlsMode};
use crate::policy::document::{PolicyDocument, PolicyKey, PolicyKind, PolicySpec, RefKind, TargetRef};
use crate::policy::hosts::Hosts;
use crate::view::View;

pub(super) fn check(gateway: &Gateway, findings: &mut Findings<'_>) {
    let (mut names, mut ports, mut hosts) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for (index, listener) in gateway.listeners.iter().enumerate() {
        let path = |field: &str| format!("spec.listeners[{index}].{field}");
        if let Some(first) = names.insert(&listener.name, index) {
            let message = format!("listener {} is there already, as listeners[{first}]", listener.name);
            findings.error("E4005", path("name"), message, "give one of them another name".to_owned());
        }
        let other = *ports.entry(listener.port).or_insert(listener.protocol);
        if other != listener.protocol && !(is_by_name(other) && is_by_name(listener.protocol)) {
            let message =
                format!("port {} has {} and {}", listener.port, word(other), word(listener.protocol));
            findings.error("E4005", path("protocol"), message, "give each a port of its own".to_owned());
        }
        if listener.protocol == ListenerProtocol::Tcp && listener.hostname.is_some() {
            let message = "a TCP connection names no host".to_owned();
            findings.error(
                "E4005",
                path("hostname"),
                message,
                "remove it, or write protocol: TLS".to_owned(),
            );
        }
        let hostname = listener.hostname.as_ref().map(|name| name.to_ascii_lowercase());
        if let Some(first) = hosts.insert((listener.port, hostname), index) {
            let message = format!("listeners[{first}] has the same port and hosts");
            findings.error("E4005", path("hostname"), message, "remove one of them".to_owned());
        }
        if let Some((code, field, message, fix)) = wrong_tls(listener.protocol, listener.tls.as_ref()) {
            findings.error(code, path(field), message.to_owned(), fix.to_owned());
        }
    }
}

/// Whether the server name tells listeners of one port apart.
fn is_by_name(protocol: ListenerProtocol) -> bool {
    matches!(protocol, ListenerProtocol::Https | ListenerProtocol::Tls)
}

fn word(protocol: ListenerProtocol) -> &'static str {
    match protocol {
        ListenerProtocol::Http => "HTTP",
        ListenerProtocol::Https => "HTTPS",
        ListenerProtocol::Tls => "TLS",
        ListenerProtocol::Tcp => "TCP",
    }
}

/// What is wrong with a listener's TLS: code, field, message, fix.
fn wrong_tls(
    protocol: ListenerProtocol,
    tls: Option<&ListenerTls>,
) -> Option<(&'static str, &'static str, &'static str, &'static str)> {
    const CERTIFICATE: &str =
        "add tls: { certificateRefs: [{ name: NAME }] }, and NAME.crt and NAME.key on its hosts";
    let shown = tls.is_some_and(|tls| !tls.certificate_refs.is_empty());
    let passes = tls.is_some_and(|tls| tls.mode == TlsMode::Passthrough);
    match protocol {
        ListenerProtocol::Https if passes => Some((
            "E4005",
            "tls.mode",
            "HTTPS ends at the Gateway",
            "write mode: Terminate, or protocol: TLS and a TLSRoute",
        )),
        ListenerProtocol::Https if !shown => Some(("E4004", "tls", "HTTPS needs a certificate", CERTIFICATE)),
        ListenerProtocol::Tls if !passes => Some((
            "E4125",
            "tls.mode",
            "this version passes TLS on as it is, and ends it for HTTPS only",
            "write tls: { mode: Passthrough }, or protocol: HTTPS",
        )),
        ListenerProtocol::Tls if shown => Some((
            "E4005",
            "tls.certificateRefs",
            "the service behind shows its own certificate: the Gateway needs none",
            "remove it",
        )),
        ListenerProtocol::Http if tls.is_some() => Some((
            "E4005",
            "tls",
            "there is no TLS on a listener for HTTP",
            "write protocol: HTTPS, or remove tls",
        )),
        ListenerProtocol::Tcp if tls.is_some() => Some((
            "E4005",
            "tls",
            "there is no TLS on a listener for TCP",
            "write protocol: TLS, or remove tls",
        )),
        _ => None,
    }
}

/// Parents of a route that are Gateways: one of the listeners has to be there, take that kind of route, and be for a host
/// of it. Whether the Gateway is there is asked elsewhere.
pub(super) fn check_parents(
    view: &View,
    documents: &[(PolicyDocument, usize)],
    document: &PolicyDocument,
    (parents, hostnames): (&[TargetRef], &[String]),
    findings: &mut Findings<'_>,
) {
    let (kind, namespace) = (document.kind(), document.name.namespace());
    for (index, parent) in parents.iter().enumerate().filter(|(_, parent)| parent.kind == RefKind::Gateway) {
        let Some(gateway) = gateway_of(view, documents, parent, namespace) else { continue };
        let named: Vec<&Listener> =
            gateway.listeners.iter().filter(|listener| is_named(parent, listener)).collect();
        let fits: Vec<&Listener> = named.iter().copied().filter(|l| takes(l.protocol, kind)).collect();
        let path = |field: &str| format!("spec.parentRefs[{index}].{field}");
        if named.is_empty() {
            let (field, wanted) = match (&parent.section_name, parent.port) {
                (Some(section), _) => ("sectionName", section.clone()),
                (None, port) => ("port", format!("on port {}", port.unwrap_or_default())),
            };
            let all = gateway.listeners.iter().map(|l| format!("{} on port {}", l.name, l.port));
            let fix = format!("its listeners: {}", all.collect::<Vec<_>>().join(", "));
            let message = format!("Gateway {} has no listener {wanted}", parent.service(namespace));
            findings.error("E4101", path(field), message, fix);
        } else if fits.is_empty() {
            let protocols = named.iter().map(|l| format!("{} is for {}", l.name, word(l.protocol)));
            let protocols = protocols.collect::<Vec<_>>().join(", ");
            let message = format!("no listener of {} takes a {kind}: {protocols}", parent.service(namespace));
            let fix =
                "HTTP and HTTPS take HTTPRoutes and GRPCRoutes, TLS takes TLSRoutes, TCP takes TCPRoutes";
            findings.error("E4109", path("name"), message, fix.to_owned());
        } else if !hostnames.is_empty() && !fits.iter().any(|listener| has_any(listener, hostnames)) {
            let message = format!("no listener of {} is for a host of this route", parent.service(namespace));
            let fix = "write hostnames that one of them has, or leave them out".to_owned();
            findings.warning("E4121", path("name"), message, fix);
        }
    }
}

fn gateway_of<'d>(
    view: &'d View,
    documents: &'d [(PolicyDocument, usize)],
    parent: &TargetRef,
    namespace: &str,
) -> Option<&'d Gateway> {
    let key = PolicyKey { kind: PolicyKind::Gateway, name: parent.service(namespace) };
    let applied = documents.iter().map(|(document, _)| document).find(|document| document.key() == key);
    match &applied.or_else(|| view.policies.get(&key))?.spec {
        PolicySpec::Gateway(gateway) => Some(gateway),
        _ => None,
    }
}

fn is_named(parent: &TargetRef, listener: &Listener) -> bool {
    parent.section_name.as_ref().is_none_or(|section| *section == listener.name)
        && parent.port.is_none_or(|port| port == listener.port)
}

fn takes(protocol: ListenerProtocol, kind: PolicyKind) -> bool {
    match protocol {
        ListenerProtocol::Http | ListenerProtocol::Https => {
            matches!(kind, PolicyKind::HttpRoute | PolicyKind::GrpcRoute)
        }
        ListenerProtocol::Tls => kind == PolicyKind::TlsRoute,
        ListenerProtocol::Tcp => kind == PolicyKind::TcpRoute,
    }
}

fn has_any(listener: &Listener, hostnames: &[String]) -> bool {
    let own = Hosts::of(listener.hostname.as_deref());
    hostnames.iter().any(|name| own.and(&Hosts::of(Some(name))).is_some())
}

#[cfg(test)]
mod tests {
    use super::super::validate;
    use super::*;
    use crate::catalog::Service;
    use crate::change::Change;
    use crate::policy::parse;

    /// Codes and paths of what is found in documents of a cluster that has shop/db.
    fn findings(text: &str) -> Vec<String> {
        let mut view = View::new("east".parse().unwrap(), "east.example".parse().unwrap());
        let (name, identities) = ("shop/db".parse().unwrap(), Default::default());
        view.apply(&Change::ServicePut(Service { name, identities, export: None }));
        let documents = parse("f.yaml", text).unwrap_or_else(|e| panic!("{text}\n{e:#?}"));
        let found = validate(&view, "f.yaml", &documents);
        found.iter().map(|d| format!("{} {}", d.code, d.path)).collect()
    }

    fn gateway(listeners: &str) -> String {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{ name: edge, namespace: shop }}\n\
             spec: {{ gatewayClassName: hanse, listeners: [{listeners}] }}\n---\n"
        )
    }

    const TLS: &str =
        "{ name: tls, port: 443, protocol: TLS, hostname: '*.shop.example', tls: { mode: Passthrough } }";
    const TCP: &str = "{ name: tcp, port: 5432, protocol: TCP }";

    #[test]
    fn listeners_that_pass_on_what_they_do_not_read_have_no_certificates_and_share_no_port_with_others() {
        for (listeners, expected) in [
            (format!("{TLS}, {TCP}"), vec![]),
            ("{ name: a, port: 1, protocol: TLS }".to_owned(), vec!["E4125 spec.listeners[0].tls.mode"]),
            (
                "{ name: a, port: 1, protocol: TLS, tls: { certificateRefs: [{ name: a }] } }".to_owned(),
                vec!["E4125 spec.listeners[0].tls.mode"],
            ),
            (
                "{ name: a, port: 1, protocol: TLS, tls: { mode: Passthrough, certificateRefs: [{ name: a }] } }".to_owned(),
                vec!["E4005 spec.listeners[0].tls.certificateRefs"],
            ),
            (
                "{ name: a, port: 1, protocol: HTTPS, tls: { mode: Passthrough } }".to_owned(),
                vec!["E4005 spec.listeners[0].tls.mode"],
            ),
            (
                "{ name: a, port: 1, protocol: HTTPS, tls: {} }".to_owned(),
                vec!["E4004 spec.listeners[0].tls"],
            ),
            (
                "{ name: a, port: 1, protocol: TCP, hostname: a.example, tls: { mode: Passthrough } }".to_owned(),
                vec!["E4005 spec.listeners[0].hostname", "E4005 spec.listeners[0].tls"],
            ),
            (
                format!("{TLS}, {{ name: a, port: 443, protocol: HTTPS, tls: {{ certificateRefs: [{{ name: a }}] }} }}"),
                vec![],
            ),
            (
                format!("{TLS}, {{ name: a, port: 443, protocol: TCP }}"),
                vec!["E4005 spec.listeners[1].protocol"],
            ),
        ] {
            assert_eq!(findings(&gateway(&listeners)), expected, "{listeners}");
        }
    }

    #[test]
    fn a_route_is_attached_where_a_listener_takes_it_and_goes_where_a_connection_can() {
        let gateway = gateway(&format!("{TLS}, {TCP}"));
        let route = |kind: &str, parent: &str, hosts: &str, backend: &str| {
            format!(
                "{gateway}apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{ name: r, namespace: shop }}\n\
                 spec:\n  parentRefs: [{{ group: gateway.networking.k8s.io, kind: Gateway, name: edge{parent} }}]\n{hosts}  \
                 rules: [{{ backendRefs: [{backend}] }}]\n"
            )
        };
        let db = "{ name: db, port: 5432 }";
        let outside = "{ group: hanse.dev, kind: ExternalService, name: pay, port: 443 }";
        let named = "  hostnames: [db.shop.example]\n";
        for (kind, parent, hosts, backend, expected) in [
            ("TLSRoute", "", named, db, vec![]),
            ("TLSRoute", ", sectionName: tls", named, db, vec![]),
            ("TLSRoute", ", sectionName: tsl", named, db, vec!["E4101 spec.parentRefs[0].sectionName"]),
            ("TLSRoute", ", port: 444", named, db, vec!["E4101 spec.parentRefs[0].port"]),
            ("TLSRoute", ", sectionName: tcp", named, db, vec!["E4109 spec.parentRefs[0].name"]),
            ("TLSRoute", "", "  hostnames: [a.example]\n", db, vec!["E4121 spec.parentRefs[0].name"]),
            ("TCPRoute", "", "", db, vec![]),
            ("TCPRoute", ", sectionName: tls", "", db, vec!["E4109 spec.parentRefs[0].name"]),
            ("HTTPRoute", "", "", db, vec!["E4109 spec.parentRefs[0].name"]),
            ("TCPRoute", "", "", "{ name: db }", vec!["E4106 spec.rules[0].backendRefs[0].port"]),
            (
                "TCPRoute",
                "",
                "",
                outside,
                vec!["E4107 spec.rules[0].backendRefs[0].name", "E4109 spec.rules[0].backendRefs[0].kind"],
            ),
        ] {
            assert_eq!(findings(&route(kind, parent, hosts, backend)), expected, "{kind} {parent} {hosts}");
        }
        // To a service the port of its caller is good enough; of what is outside nobody's connections are routed.
        let text = |kind: &str| {
            route("TCPRoute", "", "", "{ name: db }")
                .replace("group: gateway.networking.k8s.io, kind: Gateway, name: edge", kind)
        };
        assert_eq!(findings(&text("kind: Service, name: db")), Vec::<String>::new());
        let found = findings(&text("group: hanse.dev, kind: ExternalService, name: pay"));
        assert_eq!(found, ["E4101 spec.parentRefs[0].name", "E4109 spec.parentRefs[0].kind"]);
    }

    #[test]
    fn a_gateway_reads_routes_of_both_kinds_and_a_service_one() {
        let route = |kind: &str, parent: &str| {
            format!(
                "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{ name: r, namespace: shop }}\nspec:\n  \
                 parentRefs: [{{ {parent} }}]\n  rules: [{{ backendRefs: [{{ name: db }}] }}]\n---\n"
            )
        };
        let both = |parent: &str| [route("HTTPRoute", parent), route("GRPCRoute", parent)].concat();
        let gateway = gateway("{ name: web, port: 80, protocol: HTTP }");
        let at_gateway = both("group: gateway.networking.k8s.io, kind: Gateway, name: edge");
        assert_eq!(findings(&format!("{gateway}{at_gateway}")), Vec::<String>::new());
        assert_eq!(findings(&both("kind: Service, name: db")), ["E4121 spec.parentRefs[0]"]);
    }

    #[test]
    fn two_policies_for_the_tls_to_one_service_are_told() {
        let external = "apiVersion: hanse.dev/v1alpha1\nkind: ExternalService\nmetadata: { name: pay, namespace: shop }\n\
                        spec: { hosts: [pay.example], ports: [{ port: 80, protocol: HTTP }] }\n---\n";
        let policy = |name: &str| {
            format!(
                "apiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {{ name: {name}, namespace: shop }}\n\
                 spec:\n  targetRefs: [{{ group: hanse.dev, kind: ExternalService, name: pay }}]\n  \
                 validation: {{ hostname: pay.example, wellKnownCACertificates: System }}\n---\n"
            )
        };
        assert_eq!(findings(&format!("{external}{}", policy("one"))), Vec::<String>::new());
        let two = format!("{external}{}{}", policy("one"), policy("two"));
        assert_eq!(findings(&two), ["E4120 spec.targetRefs[0].name"; 2]);
    }

    #[test]
    fn a_backend_outside_is_asked_on_a_port_that_it_has() {
        let text = |port: &str| {
            format!(
                "apiVersion: hanse.dev/v1alpha1\nkind: ExternalService\nmetadata: {{ name: pay, namespace: shop }}\n\
                 spec: {{ hosts: [pay.example], ports: [{{ port: 80, protocol: HTTP }}, {{ port: 8443, protocol: HTTP }}] }}\n---\n\
                 apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{ name: r, namespace: shop }}\n\
                 spec:\n  parentRefs: [{{ kind: Service, name: db }}]\n  rules:\n  - backendRefs: \
                 [{{ group: hanse.dev, kind: ExternalService, name: pay{port} }}]\n"
            )
        };
        assert_eq!(findings(&text("")), Vec::<String>::new());
        assert_eq!(findings(&text(", port: 8443")), Vec::<String>::new());
        assert_eq!(findings(&text(", port: 443")), ["E4106 spec.rules[0].backendRefs[0].port"]);
    }
}
