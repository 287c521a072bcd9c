//! TCPRoute and TLSRoute (Gateway API v1) as documents write them: where connections go that are not read.

use serde::{Deserialize, Serialize};

use super::{BackendRef, HttpRoute, RouteRule, TargetRef};

/// TCPRoute.spec of Gateway API v1.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TcpRoute {
    /// The services whose callers the route is for; with a port, for that port only.
    pub parent_refs: Vec<TargetRef>,
    /// One: there is nothing to tell connections apart by.
    pub rules: Vec<StreamRule>,
}

/// TLSRoute.spec of Gateway API v1: for connections whose client begins TLS itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TlsRoute {
    pub parent_refs: Vec<TargetRef>,
    /// Server names that the client may ask for; `*.` at the beginning stands for one label or more.
    pub hostnames: Vec<String>,
    pub rules: Vec<StreamRule>,
}

/// One of the backends by weight; one without a port is asked for the port that the caller asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StreamRule {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub backend_refs: Vec<BackendRef>,
}

impl TcpRoute {
    /// The HTTPRoute that has the same references, to be held against a View.
    pub fn to_http(&self) -> HttpRoute {
        as_http(&self.parent_refs, &self.rules)
    }
}

impl TlsRoute {
    /// Likewise.
    pub fn to_http(&self) -> HttpRoute {
        as_http(&self.parent_refs, &self.rules)
    }
}

fn as_http(parents: &[TargetRef], rules: &[StreamRule]) -> HttpRoute {
    let rule = |rule: &StreamRule| RouteRule {
        name: rule.name.clone(),
        backend_refs: rule.backend_refs.clone(),
        ..RouteRule::default()
    };
    HttpRoute {
        parent_refs: parents.to_vec(),
        hostnames: Vec::new(),
        rules: rules.iter().map(rule).collect(),
    }
}
