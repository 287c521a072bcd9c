//! Routes as the request path asks them: compiled once per (service, View), matched per request.
//!
//! Precedence is Gateway API's, per match: exact path, longest prefix, regular expression, no path (or `/`), then
//! with a method, then more headers, then the older route, `namespace/name`, order of rules. Asking allocates
//! nothing: what is handed out is shared.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use regex::{Regex, RegexBuilder};

use super::document::{
    BackendRef, HeaderMatch, HeaderMatchKind, HttpMethod, HttpRoute, PathMatch, PathMatchKind,
    PolicyDocument, PolicyDuration, PolicySpec, RefKind, RouteMatch, RouteRule,
};
use super::refers_to;
use crate::host::{Reach, ServiceHost};
use crate::view::View;

/// Longest regular expression that is compiled, in bytes.
pub const MAX_PATTERN_BYTES: usize = 1024;
/// Most memory that a compiled expression, and then its cache, may take.
const MAX_COMPILED_BYTES: usize = 128 * 1024;
/// Deepest nesting of an expression.
const MAX_NESTING: u32 = 32;
/// What a timeout of `0s` comes to: none that anybody lives to see.
pub const NO_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 3600);

/// The parts of a request that a route may look at.
pub struct RequestParts<'r> {
    pub method: &'r str,
    /// Path without query.
    pub path: &'r str,
    /// Value of the (lower-case) header, if present.
    pub header: &'r dyn Fn(&str) -> Option<&'r str>,
}

/// The routes of one service, in order of precedence (Gateway API v1 HTTPRoute).
#[derive(Debug, Default)]
pub struct RouteTable {
    /// In order of precedence; the first that matches decides.
    entries: Vec<Entry>,
    rules: Vec<Rule>,
    /// The answer where the service has no route, ready made.
    plain: Option<Routed>,
}

/// Where a request goes, by name of a service; the ladder takes it from there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routed {
    /// The chosen backend (the service itself where no route applies).
    pub backend: Arc<ServiceHost>,
    /// `namespace/name` of the HTTPRoute, empty where none applied.
    pub route: Arc<str>,
    /// The rule's name, or `#<index>`; empty where none applied.
    pub rule: Arc<str>,
    /// timeouts.request; `NO_TIMEOUT` for `0s`.
    pub request_timeout: Option<Duration>,
    /// timeouts.backendRequest: per attempt; `NO_TIMEOUT` for `0s`.
    pub attempt_timeout: Option<Duration>,
}

/// Why a request has no backend although the service has routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoRoute {
    /// No rule matches: 404 (Gateway API).
    #[error("no rule of the service's routes matches the request")]
    NoMatch,
    /// The rule has no usable backend: 500 (Gateway API).
    #[error("the matching rule has no backend with weight")]
    NoBackend,
}

/// Why a regular expression is not compiled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    #[error("it is longer than {MAX_PATTERN_BYTES} bytes")]
    TooLong,
    #[error("compiled, it needs more than {MAX_COMPILED_BYTES} bytes")]
    TooCostly,
    #[error("{0}")]
    Syntax(String),
}

/// One match of one rule.
#[derive(Debug)]
struct Entry {
    path: PathTest,
    method: Option<HttpMethod>,
    headers: Vec<HeaderTest>,
    rule: usize,
}

#[derive(Debug)]
enum PathTest {
    Exact(String),
    /// Without trailing slash: empty matches every path.
    Prefix(String),
    Pattern(Regex),
}

#[derive(Debug)]
struct HeaderTest {
    /// Lower case.
    name: String,
    value: ValueTest,
}

#[derive(Debug)]
enum ValueTest {
    Exact(String),
    Pattern(Regex),
}

/// One rule's backends, each ready to be handed out.
#[derive(Debug)]
struct Rule {
    backends: Vec<(Routed, u32)>,
    weight: u64,
}

/// Where a match stands among the others; smaller goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Precedence {
    path: PathRank,
    without_method: bool,
    headers: Reverse<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum PathRank {
    Exact,
    Prefix(Reverse<usize>),
    Pattern,
    /// `/` says nothing about the path: behind a pattern, which would never be reached otherwise.
    Any,
}

impl RouteTable {
    /// Collects and compiles the routes whose parent is this service (Service or ServiceImport).
    pub fn build(view: &View, host: &ServiceHost) -> Self {
        let mut routes: Vec<(&PolicyDocument, &HttpRoute)> =
            view.policies.values().filter_map(|document| route_of(document, host)).collect();
        routes.sort_by_key(|(document, _)| (document.created, &document.name));
        let mut table = Self { plain: Some(plain(host)), ..Self::default() };
        let mut ranked = Vec::new();
        for (document, route) in routes {
            let name: Arc<str> = document.name.to_string().into();
            for (index, rule) in route.rules.iter().enumerate() {
                for wanted in matches_of(rule) {
                    // A pattern that cannot be compiled matches nothing; validation has refused it long before.
                    let Some(entry) = Entry::compile(&wanted, table.rules.len()) else { continue };
                    ranked.push((precedence(&wanted), entry));
                }
                table.rules.push(Rule::compile(rule, index, &name, document.name.namespace()));
            }
        }
        // Stable: what is equal stays in the order of routes and rules.
        ranked.sort_by_key(|(precedence, _)| *precedence);
        table.entries = ranked.into_iter().map(|(_, entry)| entry).collect();
        table
    }

    /// Whether any route applies to the service.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// `random` is uniform over u64 and decides weights.
    pub fn route(
        &self,
        host: &ServiceHost,
        request: &RequestParts<'_>,
        random: u64,
    ) -> Result<Routed, NoRoute> {
        if self.is_empty() {
            return Ok(match &self.plain {
                Some(routed) if *routed.backend == *host => routed.clone(),
                _ => plain(host),
            });
        }
        let rule = self.matching(request).ok_or(NoRoute::NoMatch)?;
        if rule.weight == 0 {
            return Err(NoRoute::NoBackend);
        }
        // The high bits scaled to the weights: 0 ≤ point < weight.
        let scaled = (u128::from(random) * u128::from(rule.weight)) >> 64;
        let mut point = u64::try_from(scaled).expect("a product with a u64, shifted by 64, fits");
        for (routed, weight) in &rule.backends {
            match point.checked_sub(u64::from(*weight)) {
                Some(left) => point = left,
                None => return Ok(routed.clone()),
            }
        }
        Err(NoRoute::NoBackend)
    }

    /// Every backend that the request could go to, with its weight: for `policy simulate`. Empty if nothing matches.
    pub fn backends(&self, request: &RequestParts<'_>) -> Vec<(Routed, u32)> {
        self.matching(request).map(|rule| rule.backends.clone()).unwrap_or_default()
    }

    fn matching(&self, request: &RequestParts<'_>) -> Option<&Rule> {
        self.entries.iter().find(|entry| entry.holds(request)).map(|entry| &self.rules[entry.rule])
    }
}

impl Entry {
    fn compile(wanted: &RouteMatch, rule: usize) -> Option<Self> {
        let path = PathTest::compile(wanted.path.as_ref().unwrap_or(&PathMatch::everything()))?;
        let headers = distinct_headers(wanted).map(HeaderTest::compile).collect::<Option<_>>()?;
        Some(Self { path, method: wanted.method, headers, rule })
    }

    fn holds(&self, request: &RequestParts<'_>) -> bool {
        self.path.holds(request.path)
            && self.method.is_none_or(|method| method.as_str() == request.method)
            && self.headers.iter().all(|test| test.holds(request))
    }
}

impl PathTest {
    fn compile(wanted: &PathMatch) -> Option<Self> {
        Some(match wanted.kind {
            PathMatchKind::Exact => Self::Exact(wanted.value.clone()),
            PathMatchKind::PathPrefix => Self::Prefix(wanted.value.trim_end_matches('/').to_owned()),
            PathMatchKind::RegularExpression => Self::Pattern(compile_pattern(&wanted.value).ok()?),
        })
    }

    fn holds(&self, path: &str) -> bool {
        match self {
            Self::Exact(wanted) => path == wanted,
            Self::Prefix(prefix) => match path.strip_prefix(prefix.as_str()) {
                Some(rest) => prefix.is_empty() || rest.is_empty() || rest.starts_with('/'),
                None => false,
            },
            Self::Pattern(pattern) => pattern.is_match(path),
        }
    }
}

impl HeaderTest {
    fn compile(wanted: &HeaderMatch) -> Option<Self> {
        let value = match wanted.kind {
            HeaderMatchKind::Exact => ValueTest::Exact(wanted.value.clone()),
            HeaderMatchKind::RegularExpression => ValueTest::Pattern(compile_pattern(&wanted.value).ok()?),
        };
        Some(Self { name: wanted.name.to_ascii_lowercase(), value })
    }

    fn holds(&self, request: &RequestParts<'_>) -> bool {
        (request.header)(&self.name).is_some_and(|value| match &self.value {
            ValueTest::Exact(wanted) => value == wanted,
            ValueTest::Pattern(pattern) => pattern.is_match(value),
        })
    }
}

impl Rule {
    fn compile(rule: &RouteRule, index: usize, route: &Arc<str>, namespace: &str) -> Self {
        let name: Arc<str> = rule.name.clone().unwrap_or_else(|| format!("#{index}")).into();
        let timeouts = rule.timeouts.unwrap_or_default();
        let limit = |duration: PolicyDuration| if duration.is_zero() { NO_TIMEOUT } else { duration.get() };
        let routed = |backend: &BackendRef| Routed {
            backend: Arc::new(backend_host(backend, namespace)),
            route: Arc::clone(route),
            rule: Arc::clone(&name),
            request_timeout: timeouts.request.map(limit),
            attempt_timeout: timeouts.backend_request.map(limit),
        };
        let backends: Vec<_> = rule.backend_refs.iter().map(|b| (routed(b), b.weight)).collect();
        let weight = backends.iter().map(|(_, weight)| u64::from(*weight)).sum();
        Self { backends, weight }
    }
}

/// The service that a backend names, and how far: a Service stays in this cluster, a ServiceImport may leave it.
pub fn backend_host(backend: &BackendRef, namespace: &str) -> ServiceHost {
    let reach = match backend.kind {
        RefKind::Service => Reach::Cluster,
        RefKind::ServiceImport => Reach::ClusterSet,
    };
    ServiceHost { service: backend.service(namespace), reach }
}

/// Compiles an expression that has to match the whole text, within the limits.
pub fn compile_pattern(pattern: &str) -> Result<Regex, PatternError> {
    if pattern.len() > MAX_PATTERN_BYTES {
        return Err(PatternError::TooLong);
    }
    RegexBuilder::new(&format!("^(?:{pattern})$"))
        .size_limit(MAX_COMPILED_BYTES)
        .dfa_size_limit(MAX_COMPILED_BYTES)
        .nest_limit(MAX_NESTING)
        .build()
        .map_err(|e| match e {
            regex::Error::CompiledTooBig(_) => PatternError::TooCostly,
            // The last line says what is wrong; those above draw the (wrapped) pattern.
            other => PatternError::Syntax(other.to_string().lines().last().unwrap_or_default().to_owned()),
        })
}

/// The matches of a rule; one without any matches everything.
pub(super) fn matches_of(rule: &RouteRule) -> Vec<RouteMatch> {
    match rule.matches.as_slice() {
        [] => vec![RouteMatch::default()],
        matches => matches.to_vec(),
    }
}

pub(super) fn precedence(wanted: &RouteMatch) -> Precedence {
    let path = wanted.path.clone().unwrap_or_else(PathMatch::everything);
    let prefix = path.value.trim_end_matches('/');
    let path = match path.kind {
        PathMatchKind::Exact => PathRank::Exact,
        PathMatchKind::PathPrefix if prefix.is_empty() => PathRank::Any,
        PathMatchKind::PathPrefix => PathRank::Prefix(Reverse(prefix.chars().count())),
        PathMatchKind::RegularExpression => PathRank::Pattern,
    };
    let headers = Reverse(distinct_headers(wanted).count());
    Precedence { path, without_method: wanted.method.is_none(), headers }
}

/// Of header matches with the same name only the first counts (Gateway API).
pub(super) fn distinct_headers(wanted: &RouteMatch) -> impl Iterator<Item = &HeaderMatch> {
    let first = |(index, header): &(usize, &HeaderMatch)| {
        !wanted.headers[..*index].iter().any(|h| h.name.eq_ignore_ascii_case(&header.name))
    };
    wanted.headers.iter().enumerate().filter(first).map(|(_, header)| header)
}

fn route_of<'v>(
    document: &'v PolicyDocument,
    host: &ServiceHost,
) -> Option<(&'v PolicyDocument, &'v HttpRoute)> {
    let PolicySpec::HttpRoute(route) = &document.spec else { return None };
    let applies = route.parent_refs.iter().any(|parent| refers_to(parent, document.name.namespace(), host));
    applies.then_some((document, route))
}

fn plain(host: &ServiceHost) -> Routed {
    let nothing: Arc<str> = Arc::from("");
    Routed {
        backend: Arc::new(host.clone()),
        route: Arc::clone(&nothing),
        rule: nothing,
        request_timeout: None,
        attempt_timeout: None,
    }
}

#[cfg(test)]
mod tests;
