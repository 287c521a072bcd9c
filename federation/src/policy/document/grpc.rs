//! GRPCRoute (Gateway API v1) as documents write it, and the HTTPRoute that means the same: a call is a POST to
//! `/service/method`.

use serde::{Deserialize, Serialize};

use super::filter::RouteFilter;
use super::{
    BackendRef, HeaderMatch, HttpMethod, HttpRoute, PathMatch, PathMatchKind, RouteMatch, RouteRule,
    TargetRef,
};

/// GRPCRoute.spec of Gateway API v1, in the parts that this version carries out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcRoute {
    pub parent_refs: Vec<TargetRef>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hostnames: Vec<String>,
    pub rules: Vec<GrpcRouteRule>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcRouteRule {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub matches: Vec<GrpcRouteMatch>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<RouteFilter>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub backend_refs: Vec<BackendRef>,
}

/// Both must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcRouteMatch {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<GrpcMethodMatch>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HeaderMatch>,
}

/// At least one of service and method.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcMethodMatch {
    #[serde(rename = "type", default)]
    pub kind: GrpcMethodMatchKind,
    /// With its package, `helloworld.Greeter`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum GrpcMethodMatchKind {
    #[default]
    Exact,
    /// The whole of each.
    RegularExpression,
}

/// Any service or any method, in a pattern of a path.
const ANY: &str = "[^/]+";

impl GrpcRoute {
    /// The same in terms of HTTP. Precedence comes out as GRPCRoute's: a method of a service, then the service, then
    /// patterns.
    pub fn to_http(&self) -> HttpRoute {
        let rule = |rule: &GrpcRouteRule| RouteRule {
            name: rule.name.clone(),
            matches: rule.matches.iter().map(GrpcRouteMatch::to_http).collect(),
            filters: rule.filters.clone(),
            timeouts: None,
            backend_refs: rule.backend_refs.clone(),
        };
        HttpRoute {
            parent_refs: self.parent_refs.clone(),
            hostnames: self.hostnames.clone(),
            rules: self.rules.iter().map(rule).collect(),
        }
    }
}

impl GrpcRouteMatch {
    fn to_http(&self) -> RouteMatch {
        RouteMatch {
            path: self.method.as_ref().map(GrpcMethodMatch::path),
            headers: self.headers.clone(),
            query_params: Vec::new(),
            method: self.method.as_ref().map(|_| HttpMethod::Post),
        }
    }
}

impl GrpcMethodMatch {
    fn path(&self) -> PathMatch {
        let named = |name: &Option<String>| name.clone().filter(|name| !name.is_empty());
        let (kind, value) = match (self.kind, named(&self.service), named(&self.method)) {
            (GrpcMethodMatchKind::Exact, Some(service), Some(method)) => {
                (PathMatchKind::Exact, format!("/{service}/{method}"))
            }
            (GrpcMethodMatchKind::Exact, Some(service), None) => {
                (PathMatchKind::PathPrefix, format!("/{service}"))
            }
            (GrpcMethodMatchKind::Exact, None, method) => {
                let method = method.map_or_else(|| ANY.to_owned(), |method| regex::escape(&method));
                (PathMatchKind::RegularExpression, format!("/{ANY}/{method}"))
            }
            (GrpcMethodMatchKind::RegularExpression, service, method) => {
                let part = |part: Option<String>| format!("(?:{})", part.as_deref().unwrap_or(ANY));
                (PathMatchKind::RegularExpression, format!("/{}/{}", part(service), part(method)))
            }
        };
        PathMatch { kind, value }
    }
}
