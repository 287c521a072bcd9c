//! ExternalServices and the TLS to them: names that are the mesh's own, addresses that are this host's, ports and roots
//! that cannot be.

use std::collections::BTreeSet;
use std::net::IpAddr;

use hanse_identity::ServiceName;
use hanse_identity::tls::outside::may_be_roots;

use super::{Findings, is_here};
use crate::host::ServiceHost;
use crate::policy::document::edge::{BackendTlsPolicy, ExternalProtocol, ExternalService};
use crate::policy::document::{HttpRoute, PolicyDocument, PolicyKey, PolicyKind, PolicySpec, RefKind};
use crate::policy::external::is_local;
use crate::view::View;

/// Longest certificates that a document may carry.
const MAX_PEM_BYTES: usize = 64 * 1024;

pub(super) fn check_external(
    view: &View,
    documents: &[(PolicyDocument, usize)],
    document: &PolicyDocument,
    external: &ExternalService,
    findings: &mut Findings<'_>,
) {
    if external.addresses.is_empty() && external.hosts.len() > 1 {
        let message = "DNS may say something else for each of the hosts".to_owned();
        let fix = "write an ExternalService for each, or addresses".to_owned();
        findings.error("E4005", "spec.hosts[1]".to_owned(), message, fix);
    }
    for (index, host) in external.hosts.iter().enumerate() {
        check_host(view, documents, document, host, &format!("spec.hosts[{index}]"), findings);
    }
    let mut ports = BTreeSet::new();
    for (index, port) in external.ports.iter().enumerate() {
        if !ports.insert(port.port) {
            let (path, message) =
                (format!("spec.ports[{index}].port"), format!("port {} is there twice", port.port));
            findings.error("E4005", path, message, "remove one of them".to_owned());
        }
        if port.protocol == ExternalProtocol::Tcp {
            let message = "plain TCP does not go outside yet".to_owned();
            let fix =
                "write protocol: HTTP, or leave the port out: captured connections pass through".to_owned();
            findings.error("E4005", format!("spec.ports[{index}].protocol"), message, fix);
        }
    }
    check_via(view, document, external, findings);
    for (index, address) in external.addresses.iter().enumerate() {
        if is_local(*address) && !external.allow_local_addresses {
            let message =
                format!("{address} means the host of whoever dials it, or what only this host can see");
            let fix = "write allowLocalAddresses: true if that is meant".to_owned();
            findings.error("E4005", format!("spec.addresses[{index}]"), message, fix);
        }
    }
}

/// Nobody goes out where the gateway is not: it has to be a service of this cluster.
fn check_via(
    view: &View,
    document: &PolicyDocument,
    external: &ExternalService,
    findings: &mut Findings<'_>,
) {
    let Some(via) = &external.via else { return };
    let named = ServiceName::new(document.name.namespace(), via.name.as_str());
    let Some(service) = named.ok().filter(|service| !is_here(view, service)) else { return };
    let message = format!("{service} is no service of {}: no request would get out", view.cluster);
    let fix = format!("start a proxy for it first: hanse proxy --egress --service {service}");
    findings.error("E4101", "spec.via.name".to_owned(), message, fix);
}

fn check_host(
    view: &View,
    documents: &[(PolicyDocument, usize)],
    document: &PolicyDocument,
    host: &str,
    path: &str,
    findings: &mut Findings<'_>,
) {
    let is_mesh = ServiceHost::parse(host)
        .is_some_and(|named| host.split('.').count() > 2 || is_here(view, &named.service));
    if is_mesh {
        let message = format!("{host} is a name of the mesh's own");
        findings.error("E4005", path.to_owned(), message, "write the name that it has outside".to_owned());
    } else if !host.contains('.') || host.parse::<IpAddr>().is_ok() {
        let message = format!("{host} is no full name of a host");
        let fix = "write it with its domain, such as api.example.com".to_owned();
        findings.error("E4005", path.to_owned(), message, fix);
    }
    let all = view.policies.values().chain(documents.iter().map(|(document, _)| document));
    let rival = all.filter(|other| other.name != document.name).find(|other| match &other.spec {
        PolicySpec::ExternalService(spec) => spec.hosts.iter().any(|h| h.eq_ignore_ascii_case(host)),
        _ => false,
    });
    if let Some(rival) = rival {
        let message = format!("{} has {host} too: the older document has it", rival.key());
        let fix = "give each host to one ExternalService".to_owned();
        findings.warning("E4120", path.to_owned(), message, fix);
    }
}

/// A backend outside is asked on the port that the route names, if it names one: it has to be there, for HTTP.
pub(super) fn check_backend_ports(
    view: &View,
    documents: &[(PolicyDocument, usize)],
    route: &HttpRoute,
    namespace: &str,
    findings: &mut Findings<'_>,
) {
    for (r, rule) in route.rules.iter().enumerate() {
        for (b, backend) in rule.backend_refs.iter().enumerate() {
            let Some(port) = backend.port.filter(|_| backend.kind == RefKind::ExternalService) else {
                continue;
            };
            let key = PolicyKey { kind: PolicyKind::ExternalService, name: backend.service(namespace) };
            let applied = documents.iter().map(|(document, _)| document).find(|d| d.key() == key);
            let Some(PolicySpec::ExternalService(external)) =
                applied.or_else(|| view.policies.get(&key)).map(|document| &document.spec)
            else {
                continue;
            };
            let http = || external.ports.iter().filter(|port| port.protocol == ExternalProtocol::Http);
            if !http().any(|known| known.port == port) {
                let message = format!("{key} has no port {port} for HTTP");
                let known = http().map(|port| port.port.to_string()).collect::<Vec<_>>().join(", ");
                let path = format!("spec.rules[{r}].backendRefs[{b}].port");
                findings.error("E4106", path, message, format!("its ports for HTTP: {known}"));
            }
        }
    }
}

pub(super) fn check_tls(
    view: &View,
    documents: &[(PolicyDocument, usize)],
    document: &PolicyDocument,
    policy: &BackendTlsPolicy,
    findings: &mut Findings<'_>,
) {
    let namespace = document.name.namespace();
    let all = view.policies.values().chain(documents.iter().map(|(document, _)| document));
    let others: Vec<_> = all
        .filter(|other| other.name != document.name && other.name.namespace() == namespace)
        .filter_map(|other| match &other.spec {
            PolicySpec::BackendTlsPolicy(policy) => Some((other, &policy.target_refs)),
            _ => None,
        })
        .collect();
    for (index, target) in policy.target_refs.iter().enumerate() {
        let Ok(service) = hanse_identity::ServiceName::new(namespace, target.name.as_str()) else { continue };
        let path = format!("spec.targetRefs[{index}].name");
        findings.check_other(PolicyKind::ExternalService, &service, "E4101", path.clone());
        let rival = others.iter().find(|(_, targets)| targets.iter().any(|other| other.name == target.name));
        if let Some((rival, _)) = rival {
            let message = format!("{} is for {service} too: the older document is in force", rival.key());
            let fix = format!("merge them, or: hanse policy delete BackendTLSPolicy {}", rival.name);
            findings.warning("E4120", path, message, fix);
        }
    }
    let validation = &policy.validation;
    match (&validation.ca_certificates, validation.well_known_ca_certificates) {
        (Some(_), Some(_)) => {
            let message = "caCertificates and wellKnownCACertificates are both there".to_owned();
            let fix = "keep the roots that are meant".to_owned();
            findings.error("E4005", "spec.validation.wellKnownCACertificates".to_owned(), message, fix);
        }
        (None, None) => {
            let message = "without roots nobody is believed".to_owned();
            let fix = "add caCertificates (PEM), or wellKnownCACertificates: System".to_owned();
            findings.error("E4004", "spec.validation".to_owned(), message, fix);
        }
        (Some(pem), None) => check_roots(pem, "spec.validation.caCertificates".to_owned(), findings),
        (None, Some(_)) => {}
    }
}

/// Certificates of roots, and no key beside one.
pub(super) fn check_roots(pem: &str, path: String, findings: &mut Findings<'_>) {
    let fix = "write the certificates of the roots, each from -----BEGIN CERTIFICATE----- on".to_owned();
    if pem.len() > MAX_PEM_BYTES {
        let message = format!("the certificates have more than {MAX_PEM_BYTES} bytes");
        return findings.error("E4005", path, message, "keep the roots that are needed".to_owned());
    }
    if pem.contains("PRIVATE KEY") {
        let message = "there is a private key in it, which must not enter a document".to_owned();
        return findings.error("E4005", path, message, fix);
    }
    if !may_be_roots(pem) {
        findings.error("E4005", path, "there is no certificate in it that can be a root".to_owned(), fix);
    }
}

pub(super) fn check_config(
    view: &View,
    documents: &[(PolicyDocument, usize)],
    document: &PolicyDocument,
    findings: &mut Findings<'_>,
) {
    let all = view.policies.values().chain(documents.iter().map(|(document, _)| document));
    let mut others = all.filter(|d| d.kind() == PolicyKind::MeshConfig && d.name != document.name);
    if let Some(other) = others.next() {
        let message = format!("there is {} already, and the older one is in force", other.key());
        let fix = format!("apply it under that name, or: hanse policy delete MeshConfig {}", other.name);
        findings.warning("E4120", "metadata.name".to_owned(), message, fix);
    }
}
