//! The shape of Gateway, and of the parents of routes that may be attached to one.

use super::text::{HOST_NAME, LABEL, PORT, RULE_NAME};
use super::{Shape, not_yet, optional, required};
use crate::policy::document::gateway::GATEWAY_CLASS;

pub static GATEWAY: Shape = Shape::Object(&[
    required("gatewayClassName", &Shape::OneOf(&[GATEWAY_CLASS])),
    required("listeners", &Shape::List { of: &LISTENER, at_least: 1, at_most: 64 }),
    not_yet("addresses", "say where to listen with hanse proxy --gateway-listen PORT=ADDRESS"),
    not_yet("allowedListeners", "write all listeners into the Gateway"),
    not_yet("infrastructure", "start the proxies that serve it yourself"),
    not_yet("tls", "clients are asked for no certificate"),
]);

static LISTENER: Shape = Shape::Object(&[
    required("name", &RULE_NAME),
    required("port", &PORT),
    required("protocol", &Shape::OneOf(&["HTTP", "HTTPS", "TLS", "TCP"])),
    optional("hostname", &HOST_NAME),
    optional("tls", &TLS),
    optional("allowedRoutes", &ALLOWED_ROUTES),
]);

static TLS: Shape = Shape::Object(&[
    optional("mode", &Shape::OneOf(&["Terminate", "Passthrough"])),
    optional("certificateRefs", &Shape::List { of: &CERTIFICATE, at_least: 1, at_most: 1 }),
    not_yet("frontendValidation", "clients are asked for no certificate"),
    not_yet("options", "TLS 1.3 is spoken, and nothing can be chosen about it"),
]);

static CERTIFICATE: Shape = Shape::Object(&[
    optional("group", &Shape::OneOf(&[""])),
    optional("kind", &Shape::OneOf(&["Secret"])),
    required("name", &LABEL),
    not_yet("namespace", "leave it out: the name is that of files on the host"),
]);

static ALLOWED_ROUTES: Shape = Shape::Object(&[
    optional("namespaces", &NAMESPACES),
    not_yet("kinds", "the protocol says it: HTTPRoutes and GRPCRoutes, TLSRoutes, or TCPRoutes"),
]);

static NAMESPACES: Shape = Shape::Object(&[
    optional("from", &Shape::OneOf(&["Same"])),
    not_yet("selector", "put the routes into the Gateway's namespace"),
]);

pub static ROUTE_PARENT: Shape = Shape::Object(&[
    optional(
        "group",
        &Shape::OneOf(&["", "core", "multicluster.x-k8s.io", "hanse.dev", "gateway.networking.k8s.io"]),
    ),
    required("kind", &Shape::OneOf(&["Service", "ServiceImport", "ExternalService", "Gateway"])),
    required("name", &LABEL),
    optional("namespace", &LABEL),
    optional("port", &PORT),
    optional("sectionName", &RULE_NAME),
]);
