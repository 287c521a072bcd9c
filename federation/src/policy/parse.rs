//! Reading documents in the user's form from YAML (several documents) or JSON, with a place for all that is wrong.

use std::collections::BTreeMap;

use hanse_identity::{ServiceName, Timestamp};

use super::document::{
    DEFAULT_NAMESPACE, Diagnostic, PolicyDocument, PolicyKey, PolicyKind, PolicySpec, Severity,
};
use super::schema::{self, Problem};
use super::tree::{self, Node, Place};
use super::value::near;
use super::workload::WORKLOAD_KIND;

/// Kinds of the plan and of Gateway API that this version does not carry out.
const NOT_YET: [&str; 5] = ["ClusterPeer", "ExportPolicy", "Revocation", "ServiceExport", "ServiceImport"];

/// Reads every document of a file (YAML, several documents, or JSON). All diagnostics, not only the first.
/// `file` is the name to show. Documents come with the line they start at.
pub fn parse(file: &str, text: &str) -> Result<Vec<(PolicyDocument, usize)>, Vec<Diagnostic>> {
    let mut documents = Vec::new();
    let mut problems = Vec::new();
    let mut seen = BTreeMap::new();
    for node in tree::read(text) {
        let read = node
            .map_err(|e| vec![unreadable(e)])
            .and_then(|node| document(&node).map(|d| (d, node.place.line)));
        match read {
            Ok((document, line)) => {
                problems.extend(repeated(&mut seen, document.key(), line));
                documents.push((document, line));
            }
            Err(found) => problems.extend(found),
        }
    }
    if problems.is_empty() {
        return Ok(documents);
    }
    problems.sort_by_key(|p| (p.place.line, p.place.column));
    Err(problems.into_iter().map(|problem| diagnostic(file, problem)).collect())
}

/// Gives diagnostics of `validate`, which only know their document's line, the line and column of their field.
pub fn locate(text: &str, diagnostics: &mut [Diagnostic]) {
    let nodes: Vec<Node> = tree::read(text).into_iter().flatten().collect();
    for diagnostic in diagnostics.iter_mut().filter(|d| d.column == 0) {
        if let Some(node) = nodes.iter().find(|node| node.place.line == diagnostic.line) {
            let place = node.find(&diagnostic.path);
            (diagnostic.line, diagnostic.column) = (place.line, place.column);
        }
    }
}

fn document(node: &Node) -> Result<PolicyDocument, Vec<Problem>> {
    let mut problems = Vec::new();
    schema::check(&schema::DOCUMENT, node, "", &mut problems);
    let kind = match kind_of(node) {
        Ok(kind) => kind,
        Err(problem) => {
            problems.extend(problem);
            return Err(problems);
        }
    };
    let spec = node.get("spec").filter(|spec| !spec.is_null());
    if let (Some(kind), Some(spec)) = (kind, spec) {
        let shape = match kind {
            PolicyKind::HttpRoute => &schema::HTTP_ROUTE,
            PolicyKind::GrpcRoute => &schema::GRPC_ROUTE,
            PolicyKind::TcpRoute => &schema::stream::TCP_ROUTE,
            PolicyKind::TlsRoute => &schema::stream::TLS_ROUTE,
            PolicyKind::BackendPolicy => &schema::BACKEND_POLICY,
            PolicyKind::AccessPolicy => &schema::ACCESS_POLICY,
            PolicyKind::FaultInjection => &schema::FAULT_INJECTION,
            PolicyKind::RateLimit => &schema::RATE_LIMIT,
            PolicyKind::RequestAuthentication => &schema::REQUEST_AUTHENTICATION,
            PolicyKind::ExternalService => &schema::edge::EXTERNAL_SERVICE,
            PolicyKind::BackendTlsPolicy => &schema::edge::BACKEND_TLS_POLICY,
            PolicyKind::MeshConfig => &schema::edge::MESH_CONFIG,
            PolicyKind::Gateway => &schema::gateway::GATEWAY,
            PolicyKind::PeerAuthentication => &schema::peer::PEER_AUTHENTICATION,
            PolicyKind::ReferenceGrant => &schema::grant::REFERENCE_GRANT,
        };
        schema::check(shape, spec, "spec", &mut problems);
    }
    match (kind, spec, name_of(node)) {
        (Some(kind), Some(spec), Some(name)) if problems.is_empty() => typed(kind, spec)
            .map(|spec| PolicyDocument { name, created: Timestamp::default(), spec })
            .map_err(|p| vec![p]),
        _ => Err(problems),
    }
}

/// The kind, if it and the version are known. `Ok(None)`: the shape has said already that one of them is missing.
fn kind_of(node: &Node) -> Result<Option<PolicyKind>, Option<Problem>> {
    let field = |name: &str| node.get(name).and_then(|n| n.text().map(|text| (n, text)));
    let Some((at, text)) = field("kind") else { return Ok(None) };
    let problem = |code, at: &Node, path: &str, message, fix| {
        Some(Problem { code, place: at.place, path: path.to_owned(), message, fix })
    };
    let Some(kind) = PolicyKind::ALL.into_iter().find(|kind| kind.as_str() == text) else {
        let shown: String = text.chars().take(80).collect();
        let known = PolicyKind::ALL.map(PolicyKind::as_str);
        return Err(if NOT_YET.contains(&text) {
            let fix = format!("this version has: {}", known.join(", "));
            problem("E4125", at, "kind", format!("kind {shown} is not supported by this version"), fix)
        } else {
            let fix = match near(text, known) {
                _ if text == WORKLOAD_KIND => "apply it with hanse workload apply".to_owned(),
                Some(near) => format!("did you mean {near}?"),
                None => format!("known: {}", known.join(", ")),
            };
            problem("E4003", at, "kind", format!("unknown kind {shown:?}"), fix)
        });
    };
    match field("apiVersion") {
        Some((at, version)) if !kind.reads(version) => {
            let shown: String = version.chars().take(80).collect();
            let message = format!("{kind} has no version {shown:?} here");
            Err(problem(
                "E4003",
                at,
                "apiVersion",
                message,
                format!("write apiVersion: {}", kind.api_version()),
            ))
        }
        _ => Ok(Some(kind)),
    }
}

fn name_of(node: &Node) -> Option<ServiceName> {
    let metadata = node.get("metadata")?;
    let namespace = metadata.get("namespace").and_then(Node::text).unwrap_or(DEFAULT_NAMESPACE);
    ServiceName::new(namespace, metadata.get("name")?.text()?).ok()
}

/// Serde's reading, after the shape has been found good: what it still refuses has one place, the spec.
fn typed(kind: PolicyKind, spec: &Node) -> Result<PolicySpec, Problem> {
    let json = spec.to_json();
    let read = match kind {
        PolicyKind::HttpRoute => serde_json::from_value(json).map(PolicySpec::HttpRoute),
        PolicyKind::GrpcRoute => serde_json::from_value(json).map(PolicySpec::GrpcRoute),
        PolicyKind::TcpRoute => serde_json::from_value(json).map(PolicySpec::TcpRoute),
        PolicyKind::TlsRoute => serde_json::from_value(json).map(PolicySpec::TlsRoute),
        PolicyKind::BackendPolicy => serde_json::from_value(json).map(PolicySpec::BackendPolicy),
        PolicyKind::AccessPolicy => serde_json::from_value(json).map(PolicySpec::AccessPolicy),
        PolicyKind::FaultInjection => serde_json::from_value(json).map(PolicySpec::FaultInjection),
        PolicyKind::RateLimit => serde_json::from_value(json).map(PolicySpec::RateLimit),
        PolicyKind::RequestAuthentication => {
            serde_json::from_value(json).map(PolicySpec::RequestAuthentication)
        }
        PolicyKind::ExternalService => serde_json::from_value(json).map(PolicySpec::ExternalService),
        PolicyKind::BackendTlsPolicy => serde_json::from_value(json).map(PolicySpec::BackendTlsPolicy),
        PolicyKind::MeshConfig => serde_json::from_value(json).map(PolicySpec::MeshConfig),
        PolicyKind::Gateway => serde_json::from_value(json).map(PolicySpec::Gateway),
        PolicyKind::PeerAuthentication => serde_json::from_value(json).map(PolicySpec::PeerAuthentication),
        PolicyKind::ReferenceGrant => serde_json::from_value(json).map(PolicySpec::ReferenceGrant),
    };
    read.map_err(|e| Problem {
        code: "E4005",
        place: spec.place,
        path: "spec".to_owned(),
        message: e.to_string(),
        fix: String::new(),
    })
}

fn repeated(seen: &mut BTreeMap<PolicyKey, usize>, key: PolicyKey, line: usize) -> Option<Problem> {
    let message = format!("{key} is in this file twice");
    let first = seen.insert(key, line)?;
    Some(Problem {
        code: "E4005",
        place: Place { line, column: 1 },
        path: "metadata.name".to_owned(),
        message,
        fix: format!("the first is at line {first}; give one of them another name"),
    })
}

pub(super) fn unreadable(error: tree::Unreadable) -> Problem {
    Problem {
        code: "E4000",
        place: error.place,
        path: String::new(),
        message: format!("the document cannot be read: {}", error.message),
        fix: String::new(),
    }
}

pub(super) fn diagnostic(file: &str, problem: Problem) -> Diagnostic {
    Diagnostic {
        code: problem.code.to_owned(),
        severity: Severity::Error,
        message: problem.message,
        file: file.to_owned(),
        line: problem.place.line,
        column: problem.place.column,
        fix: problem.fix,
        path: problem.path,
    }
}

#[cfg(test)]
mod tests;
