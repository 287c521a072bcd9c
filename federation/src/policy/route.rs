//! Routes as the request path asks them: compiled once per (service, View), matched per request.
//!
//! Precedence is Gateway API's, per match: exact path, longest prefix, regular expression, no path (or `/`), then
//! with a method, then more headers, then more query parameters, then the older route, `namespace/name`, order of
//! rules. Asking allocates nothing: what is handed out is shared.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use hanse_identity::ServiceName;

use super::document::{
    BackendRef, HeaderMatch, HttpMethod, HttpRoute, PathMatch, PathMatchKind, PolicyDocument, PolicyDuration,
    PolicyKind, PolicySpec, QueryMatch, RefKind, RouteMatch, RouteRule,
};
use super::grant::Referrer;
use super::matching::{PathTest, ValueTest};
use super::refers_to;
use crate::host::{Reach, ServiceHost};
use crate::view::View;

mod cors;
mod fault;
mod filter;

pub(super) use cors::Origin;
pub use cors::{Cors, origin_of, preflight_method};
pub use fault::{Abort, Fault, Injected};
pub(super) use filter::only_prefix;
pub use filter::{Filters, Redirect};

/// What a timeout of `0s` comes to: none that anybody lives to see.
pub const NO_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 3600);

/// The parts of a request that a route may look at.
pub struct RequestParts<'r> {
    pub method: &'r str,
    /// Path without query.
    pub path: &'r str,
    /// As it was sent, without the `?`.
    pub query: Option<&'r str>,
    /// Value of the (lower-case) header, if present.
    pub header: &'r dyn Fn(&str) -> Option<&'r str>,
    /// Of a preflight the method that it asks leave for (Fetch, "CORS protocol"): a rule for that method is one for it too.
    pub preflight: Option<&'r str>,
}

/// The routes of one service, in order of precedence (Gateway API v1 HTTPRoute, GRPCRoute).
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
    /// The port of it, where the rule names one and it is outside; HTTP has one port within the mesh.
    pub port: Option<u16>,
    /// `namespace/name` of the HTTPRoute, empty where none applied.
    pub route: Arc<str>,
    /// The rule's name, or `#<index>`; empty where none applied.
    pub rule: Arc<str>,
    /// timeouts.request; `NO_TIMEOUT` for `0s`.
    pub request_timeout: Option<Duration>,
    /// timeouts.backendRequest: per attempt; `NO_TIMEOUT` for `0s`.
    pub attempt_timeout: Option<Duration>,
    /// What else becomes of the request; nothing if absent. With a redirect in it the backend is not asked.
    pub filters: Option<Arc<Filters>>,
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
    /// The chosen backend is in another namespace, and nobody there has granted the reference: 500 (Gateway API).
    #[error("no ReferenceGrant permits the chosen backend")]
    RefNotPermitted,
}

/// One match of one rule.
#[derive(Debug)]
struct Entry {
    path: PathTest,
    method: Option<HttpMethod>,
    headers: Vec<HeaderTest>,
    queries: Vec<QueryTest>,
    rule: usize,
}

#[derive(Debug)]
struct HeaderTest {
    /// Lower case.
    name: String,
    value: ValueTest,
}

#[derive(Debug)]
struct QueryTest {
    name: String,
    value: ValueTest,
}

/// One rule's backends, each ready to be handed out.
#[derive(Debug)]
struct Rule {
    backends: Vec<(Chosen, u32)>,
    /// With a CORS filter: preflights are answered by it, whoever would get the request.
    preflight: Option<Routed>,
}

/// `None`: the route may not name it. It keeps its share.
type Chosen = Option<Routed>;

/// Where a match stands among the others; smaller goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Precedence {
    path: PathRank,
    without_method: bool,
    headers: Reverse<usize>,
    queries: Reverse<usize>,
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
        let mut routes: Vec<(&PolicyDocument, Cow<'_, HttpRoute>)> =
            view.policies.values().filter_map(|document| route_of(document, host)).collect();
        // Where a service has both, GRPCRoutes decide alone (Gateway API, GEP-1426).
        let is_grpc = |(document, _): &(&PolicyDocument, _)| document.kind() == PolicyKind::GrpcRoute;
        if routes.iter().any(is_grpc) {
            routes.retain(is_grpc);
        }
        Self::of(view, host, routes)
    }

    /// Compiles these routes, whose parent is `host`.
    pub(super) fn of(
        view: &View,
        host: &ServiceHost,
        mut routes: Vec<(&PolicyDocument, Cow<'_, HttpRoute>)>,
    ) -> Self {
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
                table.rules.push(Rule::compile(view, rule, index, &name, Referrer::of(document), host));
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
        self.matched(request, random)
    }

    /// As `route`, where something that has no routes is nowhere to go to.
    pub(super) fn matched(&self, request: &RequestParts<'_>, random: u64) -> Result<Routed, NoRoute> {
        let rule = self.matching(request).ok_or(NoRoute::NoMatch)?;
        if let (Some(_), Some(answered)) = (request.preflight, &rule.preflight) {
            return Ok(answered.clone());
        }
        let chosen = weighted(&rule.backends, |(_, weight)| *weight, random);
        let (chosen, _) = chosen.ok_or(NoRoute::NoBackend)?;
        chosen.clone().ok_or(NoRoute::RefNotPermitted)
    }

    fn matching(&self, request: &RequestParts<'_>) -> Option<&Rule> {
        self.entries.iter().find(|entry| entry.holds(request)).map(|entry| &self.rules[entry.rule])
    }
}

impl Entry {
    fn compile(wanted: &RouteMatch, rule: usize) -> Option<Self> {
        let path = PathTest::compile(wanted.path.as_ref().unwrap_or(&PathMatch::everything()))?;
        let headers = distinct_headers(wanted).map(HeaderTest::compile).collect::<Option<_>>()?;
        let queries = distinct_queries(wanted).map(QueryTest::compile).collect::<Option<_>>()?;
        Some(Self { path, method: wanted.method, headers, queries, rule })
    }

    fn holds(&self, request: &RequestParts<'_>) -> bool {
        self.path.holds(request.path)
            && self.method.is_none_or(|method| {
                method.as_str() == request.method || Some(method.as_str()) == request.preflight
            })
            && self.headers.iter().all(|test| test.holds(request))
            && self.queries.iter().all(|test| test.holds(request.query))
    }
}

impl HeaderTest {
    fn compile(wanted: &HeaderMatch) -> Option<Self> {
        let value = ValueTest::compile(wanted.kind, &wanted.value)?;
        Some(Self { name: wanted.name.to_ascii_lowercase(), value })
    }

    fn holds(&self, request: &RequestParts<'_>) -> bool {
        self.is_true_of((request.header)(&self.name))
    }

    fn is_true_of(&self, value: Option<&str>) -> bool {
        value.is_some_and(|value| self.value.holds(value))
    }
}

impl QueryTest {
    fn compile(wanted: &QueryMatch) -> Option<Self> {
        Some(Self { name: wanted.name.clone(), value: ValueTest::compile(wanted.kind, &wanted.value)? })
    }

    /// The first parameter of that name decides.
    fn holds(&self, query: Option<&str>) -> bool {
        let mut parameters =
            query.unwrap_or_default().split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        let first = parameters.find(|(name, _)| percent_decoded(name) == self.name);
        first.is_some_and(|(_, value)| self.value.holds(&percent_decoded(value)))
    }
}

impl Rule {
    fn compile(
        view: &View,
        rule: &RouteRule,
        index: usize,
        route: &Arc<str>,
        from: Referrer<'_>,
        parent: &ServiceHost,
    ) -> Self {
        let name: Arc<str> = rule.name.clone().unwrap_or_else(|| format!("#{index}")).into();
        let timeouts = rule.timeouts.unwrap_or_default();
        let limit = |duration: PolicyDuration| if duration.is_zero() { NO_TIMEOUT } else { duration.get() };
        let filters = Filters::compile(rule, from, view);
        let routed = |backend: ServiceHost, port: Option<u16>| Routed {
            port: port.filter(|_| backend.reach == Reach::External),
            backend: Arc::new(backend),
            route: Arc::clone(route),
            rule: Arc::clone(&name),
            request_timeout: timeouts.request.map(limit),
            attempt_timeout: timeouts.backend_request.map(limit),
            filters: filters.clone(),
        };
        // Nobody is asked: the answer is ready.
        let answered = || routed(parent.clone(), None);
        let preflight = filters.as_ref().and_then(|filters| filters.cors()).map(|_| answered());
        let backends: Vec<_> = match &filters {
            Some(filters) if filters.redirect().is_some() => vec![(Some(answered()), 1)],
            _ => {
                let each = rule.backend_refs.iter();
                let chosen = |backend: &BackendRef| {
                    let host = backend_host(backend, from.namespace);
                    let permitted = from.may_name(view, backend.kind, &host.service);
                    permitted.then(|| routed(host, backend.port))
                };
                each.map(|backend| (chosen(backend), backend.weight)).collect()
            }
        };
        Self { backends, preflight }
    }
}

/// One of these by weight, `random` being uniform over u64; `None` where there is no weight.
pub(super) fn weighted<T>(backends: &[T], weight: impl Fn(&T) -> u32, random: u64) -> Option<&T> {
    let total: u64 = backends.iter().map(|backend| u64::from(weight(backend))).sum();
    // The high bits scaled to the weights: 0 ≤ point < total.
    let scaled = (u128::from(random) * u128::from(total)) >> 64;
    let mut point = u64::try_from(scaled).expect("a product with a u64, shifted by 64, fits");
    backends.iter().find(|backend| match point.checked_sub(u64::from(weight(backend))) {
        Some(left) => {
            point = left;
            false
        }
        None => true,
    })
}

/// The service that a backend names, and how far: a Service stays in this cluster, a ServiceImport may leave it.
pub(super) fn backend_host(backend: &BackendRef, namespace: &str) -> ServiceHost {
    reached(backend.kind, backend.service(namespace))
}

fn reached(kind: RefKind, service: ServiceName) -> ServiceHost {
    let reach = match kind {
        RefKind::Service => Reach::Cluster,
        RefKind::ServiceImport => Reach::ClusterSet,
        RefKind::ExternalService => Reach::External,
        RefKind::Gateway => Reach::Gateway,
    };
    ServiceHost { service, reach }
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
    let queries = Reverse(distinct_queries(wanted).count());
    Precedence { path, without_method: wanted.method.is_none(), headers, queries }
}

/// Of header matches with the same name only the first counts (Gateway API).
pub(super) fn distinct_headers(wanted: &RouteMatch) -> impl Iterator<Item = &HeaderMatch> {
    let first = |(index, header): &(usize, &HeaderMatch)| {
        !wanted.headers[..*index].iter().any(|h| h.name.eq_ignore_ascii_case(&header.name))
    };
    wanted.headers.iter().enumerate().filter(first).map(|(_, header)| header)
}

/// Likewise for query parameters, whose names have a case.
pub(super) fn distinct_queries(wanted: &RouteMatch) -> impl Iterator<Item = &QueryMatch> {
    let first = |(index, query): &(usize, &QueryMatch)| {
        !wanted.query_params[..*index].iter().any(|q| q.name == query.name)
    };
    wanted.query_params.iter().enumerate().filter(first).map(|(_, query)| query)
}

/// Percent-decoded once (RFC 3986 §2.1); as it is where that would not be text.
fn percent_decoded(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return Cow::Borrowed(text);
    }
    let hex = |digit: Option<&u8>| digit.and_then(|d| char::from(*d).to_digit(16));
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        match (*byte, hex(bytes.get(at + 1)), hex(bytes.get(at + 2))) {
            (b'%', Some(high), Some(low)) => {
                decoded.push(u8::try_from(high * 16 + low).expect("two hex digits are a byte"));
                at += 3;
            }
            (byte, ..) => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8(decoded).map_or(Cow::Borrowed(text), Cow::Owned)
}

fn route_of<'v>(
    document: &'v PolicyDocument,
    host: &ServiceHost,
) -> Option<(&'v PolicyDocument, Cow<'v, HttpRoute>)> {
    let route = match &document.spec {
        PolicySpec::HttpRoute(route) => Cow::Borrowed(route),
        PolicySpec::GrpcRoute(route) => Cow::Owned(route.to_http()),
        _ => return None,
    };
    let applies = route.parent_refs.iter().any(|parent| refers_to(parent, document.name.namespace(), host));
    applies.then_some((document, route))
}

fn plain(host: &ServiceHost) -> Routed {
    let nothing: Arc<str> = Arc::from("");
    Routed {
        backend: Arc::new(host.clone()),
        port: None,
        route: Arc::clone(&nothing),
        rule: nothing,
        request_timeout: None,
        attempt_timeout: None,
        filters: None,
    }
}

#[cfg(test)]
mod tests;
