//! The texts and numbers that fields of many documents hold, and what each has to look like.

use super::Shape;
use crate::policy::value::{Label, Percent, PolicyDuration};
use crate::stranger::{EndpointUrl, MAX_ROOTS_BYTES};
use hanse_identity::ClusterName;

pub(super) static ANY_TEXT: Shape = Shape::Text(any_text);
pub(super) static LABEL: Shape = Shape::Text(label);
pub(super) static CLUSTER: Shape = Shape::Text(cluster);
pub(super) static GROUP: Shape = Shape::OneOf(&["", "core", "multicluster.x-k8s.io", "hanse.dev"]);
pub(super) static REF_KIND: Shape = Shape::OneOf(&["Service", "ServiceImport", "ExternalService"]);
/// Copies stay in the mesh.
pub(super) static MIRROR_KIND: Shape = Shape::OneOf(&["Service", "ServiceImport"]);
pub(super) static PORT: Shape = Shape::Integer { from: 1, to: 65_535 };
pub(super) static COUNT: Shape = Shape::Integer { from: 1, to: 1_000_000 };
pub(super) static DURATION: Shape = Shape::Text(duration);
pub(super) static PERCENT: Shape = Shape::Text(percent);
pub(super) static HEADER_NAME: Shape = Shape::Text(header_name);
pub(super) static GRPC_NAME: Shape = Shape::Text(grpc_name);
pub(super) static HEADER_VALUE: Shape = Shape::Text(header_value);
pub(super) static QUERY_NAME: Shape = Shape::Text(query_name);
pub(super) static NEW_PATH: Shape = Shape::Text(new_path);
pub(super) static HOST_NAME: Shape = Shape::Text(host_name);
pub(super) static PRECISE_HOST_NAME: Shape = Shape::Text(precise_host_name);
pub(super) static RULE_NAME: Shape = Shape::Text(rule_name);
pub(super) static OBJECT_NAME: Shape = Shape::Text(object_name);

/// Longest text that a document may say in one field.
const MAX_FIELD_BYTES: usize = 4096;

fn any_text(text: &str) -> Result<(), String> {
    let fits = text.len() <= MAX_FIELD_BYTES;
    if fits { Ok(()) } else { Err(format!("it is longer than {MAX_FIELD_BYTES} bytes")) }
}

pub(super) fn jwks(text: &str) -> Result<(), String> {
    let fits = text.len() <= hanse_identity::jwt::user::MAX_JWKS_BYTES;
    if fits { Ok(()) } else { Err("it is larger than any key set that is read".to_owned()) }
}

pub(super) fn endpoint_url(text: &str) -> Result<(), String> {
    text.parse::<EndpointUrl>().map(drop).map_err(|e| e.to_string())
}

pub(super) fn roots(text: &str) -> Result<(), String> {
    let fits = text.len() <= MAX_ROOTS_BYTES;
    if fits { Ok(()) } else { Err(format!("it is larger than {MAX_ROOTS_BYTES} bytes")) }
}

fn label(text: &str) -> Result<(), String> {
    text.parse::<Label>().map(drop).map_err(|e| e.to_string())
}

pub(super) fn cluster(text: &str) -> Result<(), String> {
    text.parse::<ClusterName>().map(drop).map_err(|e| e.to_string())
}

fn duration(text: &str) -> Result<(), String> {
    text.parse::<PolicyDuration>().map(drop).map_err(|e| e.to_string())
}

fn percent(text: &str) -> Result<(), String> {
    text.parse::<Percent>().map(drop).map_err(|e| e.to_string())
}

/// RFC 9110 §5.1: a token.
fn header_name(text: &str) -> Result<(), String> {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if !text.is_empty() && text.len() <= 256 && text.bytes().all(token) {
        Ok(())
    } else {
        Err(format!("{:?} is not the name of a header", shown(text)))
    }
}

/// RFC 9110 §5.5: visible ASCII, with spaces and tabs inside.
fn header_value(text: &str) -> Result<(), String> {
    let inside = |b: u8| b == b'\t' || (b' '..=b'~').contains(&b);
    if text.len() > MAX_FIELD_BYTES {
        return Err(format!("it is longer than {MAX_FIELD_BYTES} bytes"));
    }
    if text.bytes().all(inside) && text.trim() == text {
        return Ok(());
    }
    Err("a header's value has visible ASCII only, and no space at its ends".to_owned())
}

fn query_name(text: &str) -> Result<(), String> {
    let fits = !text.is_empty() && text.len() <= 256;
    if fits { Ok(()) } else { Err("the name of a parameter has 1 to 256 bytes".to_owned()) }
}

/// The name of a service or method, or a pattern of one.
fn grpc_name(text: &str) -> Result<(), String> {
    if text.len() > 1024 {
        return Err("it is longer than 1024 bytes".to_owned());
    }
    if text.contains('/') { Err("service and method are two fields, without /".to_owned()) } else { Ok(()) }
}

/// What may stand for a path or the beginning of one: as it is sent, so percent-encoded where it has to be.
fn new_path(text: &str) -> Result<(), String> {
    let sent = |b: u8| b.is_ascii_graphic() && !b"?#\"<>\\^`{|}".contains(&b);
    if text.len() > 1024 {
        return Err("it is longer than 1024 bytes".to_owned());
    }
    match (text.is_empty() || text.starts_with('/'), text.bytes().all(sent)) {
        (true, true) => Ok(()),
        (false, _) => Err("a path starts with /".to_owned()),
        (true, false) => {
            Err("a path has no query and no fragment, and what is not allowed in it is percent-encoded"
                .to_owned())
        }
    }
}

/// One host, no wildcard.
fn precise_host_name(text: &str) -> Result<(), String> {
    if text.starts_with("*.") {
        return Err("one host is needed here, without *".to_owned());
    }
    host_name(text)
}

fn host_name(text: &str) -> Result<(), String> {
    let bare = text.strip_prefix("*.").unwrap_or(text);
    if bare.len() <= 253 && bare.split('.').all(|part| label(part).is_ok()) {
        Ok(())
    } else {
        Err(format!("{:?} is not a host name", shown(text)))
    }
}

/// Rule names may have several labels (Gateway API SectionName).
fn rule_name(text: &str) -> Result<(), String> {
    if is_subdomain(text) { Ok(()) } else { Err(format!("{:?} is not a name for a rule", shown(text))) }
}

/// The name of anything in Kubernetes (Gateway API ObjectName).
fn object_name(text: &str) -> Result<(), String> {
    if is_subdomain(text) { Ok(()) } else { Err(format!("{:?} is not the name of an object", shown(text))) }
}

/// RFC 1123: labels with dots between them.
fn is_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(|part| label(part).is_ok())
}

pub(super) fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}
