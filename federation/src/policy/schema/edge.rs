//! The shapes of ExternalService, BackendTLSPolicy and MeshConfig.

use super::text::{ANY_TEXT, LABEL, PORT, PRECISE_HOST_NAME};
use super::{Shape, not_yet, optional, required};

pub static EXTERNAL_SERVICE: Shape = Shape::Object(&[
    required("hosts", &Shape::List { of: &PRECISE_HOST_NAME, at_least: 1, at_most: 16 }),
    required("ports", &Shape::List { of: &EXTERNAL_PORT, at_least: 1, at_most: 16 }),
    optional("addresses", &Shape::List { of: &ADDRESS, at_least: 1, at_most: 32 }),
    optional("allowLocalAddresses", &Shape::Truth),
    optional("via", &EGRESS_REF),
]);

static EGRESS_REF: Shape = Shape::Object(&[
    optional("group", &Shape::OneOf(&["", "core"])),
    required("kind", &Shape::OneOf(&["Service"])),
    required("name", &LABEL),
    not_yet("namespace", "put the document into the namespace of the gateway"),
]);

static EXTERNAL_PORT: Shape = Shape::Object(&[
    required("port", &PORT),
    optional("targetPort", &PORT),
    required("protocol", &Shape::OneOf(&["HTTP", "TCP"])),
]);

static ADDRESS: Shape = Shape::Text(address);

pub static BACKEND_TLS_POLICY: Shape = Shape::Object(&[
    required("targetRefs", &Shape::List { of: &EXTERNAL_REF, at_least: 1, at_most: 16 }),
    required("validation", &VALIDATION),
    not_yet("options", "TLS 1.3 is spoken, and nothing can be chosen about it"),
]);

static EXTERNAL_REF: Shape = Shape::Object(&[
    required("group", &Shape::OneOf(&["hanse.dev"])),
    required("kind", &Shape::OneOf(&["ExternalService"])),
    required("name", &LABEL),
    not_yet("sectionName", "give the port that speaks TLS an ExternalService of its own"),
]);

static VALIDATION: Shape = Shape::Object(&[
    required("hostname", &PRECISE_HOST_NAME),
    optional("caCertificates", &ANY_TEXT),
    not_yet("caCertificateRefs", "write the certificates into caCertificates, as PEM"),
    optional("wellKnownCACertificates", &Shape::OneOf(&["System"])),
    optional("subjectAltNames", &Shape::List { of: &SUBJECT_ALT_NAME, at_least: 1, at_most: 5 }),
]);

static SUBJECT_ALT_NAME: Shape = Shape::Object(&[
    required("type", &Shape::OneOf(&["Hostname"])),
    required("hostname", &PRECISE_HOST_NAME),
    not_yet("uri", "who has a SPIFFE ID is a member of a mesh: join its cluster"),
]);

pub static MESH_CONFIG: Shape = Shape::Object(&[
    required("outbound", &Shape::OneOf(&["RegistryOnly", "AllowAny"])),
    optional("allowLocalAddresses", &Shape::Truth),
]);

fn address(text: &str) -> Result<(), String> {
    let shown = || text.chars().take(80).collect::<String>();
    text.parse::<std::net::IpAddr>().map(drop).map_err(|_| format!("{:?} is no IP address", shown()))
}
