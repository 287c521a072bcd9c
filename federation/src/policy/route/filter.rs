//! Filters of a rule, compiled: what becomes of a request and its answer beside the choice of a backend
//! (Gateway API v1, HTTPRouteFilter). Pure; header names and values are parsed once.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::super::document::filter::{
    HeaderField, HeaderModifier, PathModifier, PathModifierKind, RequestMirror, RequestRedirect, RouteFilter,
    Scheme,
};
use super::super::document::{PathMatch, PathMatchKind, RouteRule};
use super::super::grant::Referrer;
use super::{Cors, Fault, reached};
use crate::host::ServiceHost;
use crate::view::View;

/// What one rule (or one of its backends) does beside routing.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Filters {
    request: Vec<HeaderEdits>,
    response: Vec<HeaderEdits>,
    redirect: Option<Redirect>,
    host: Option<String>,
    path: Option<PathEdit>,
    mirrors: Vec<Mirror>,
    fault: Option<Fault>,
    cors: Option<Cors>,
}

/// Edits of headers: replace, append, drop.
#[derive(Debug, Default, PartialEq, Eq)]
struct HeaderEdits {
    set: Vec<(HeaderName, HeaderValue)>,
    add: Vec<(HeaderName, HeaderValue)>,
    remove: Vec<HeaderName>,
}

/// An answer in the backend's place.
#[derive(Debug, PartialEq, Eq)]
pub struct Redirect {
    scheme: Option<Scheme>,
    host: Option<String>,
    path: Option<PathEdit>,
    port: Option<u16>,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
}

#[derive(Debug, PartialEq, Eq)]
enum PathEdit {
    Full(String),
    /// Both without trailing slash.
    Prefix {
        matched: String,
        with: String,
    },
}

#[derive(Debug, PartialEq, Eq)]
struct Mirror {
    to: Arc<ServiceHost>,
    numerator: u32,
    denominator: u32,
}

/// Status of a redirect that names none.
const FOUND: u16 = 302;

impl Filters {
    /// `None` where there is nothing to do. What is not as it should be does nothing; validation has refused it.
    pub(super) fn compile(rule: &RouteRule, from: Referrer<'_>, view: &View) -> Option<Arc<Self>> {
        let mut filters = Self::default();
        for filter in &rule.filters {
            filters.add(filter, rule, from, view);
            if let Some(reference) = &filter.extension_ref {
                filters.fault = Fault::find(view, reference, from.namespace);
            }
        }
        (filters != Self::default()).then(|| Arc::new(filters))
    }

    fn add(&mut self, filter: &RouteFilter, rule: &RouteRule, from: Referrer<'_>, view: &View) {
        self.request.extend(filter.request_header_modifier.as_ref().map(HeaderEdits::compile));
        self.response.extend(filter.response_header_modifier.as_ref().map(HeaderEdits::compile));
        if let Some(redirect) = &filter.request_redirect {
            self.redirect = Some(Redirect::compile(redirect, rule));
        }
        if let Some(rewrite) = &filter.url_rewrite {
            self.host.clone_from(&rewrite.hostname);
            self.path = rewrite.path.as_ref().and_then(|path| PathEdit::compile(path, rule));
        }
        if let Some(cors) = &filter.cors {
            self.cors = Some(Cors::compile(cors));
        }
        let mirror = filter.request_mirror.as_ref();
        self.mirrors.extend(mirror.and_then(|mirror| Mirror::compile(mirror, from, view)));
    }

    /// The answer in the backend's place, if there is to be one.
    pub fn redirect(&self) -> Option<&Redirect> {
        self.redirect.as_ref()
    }

    /// What goes wrong on purpose.
    pub fn fault(&self) -> Option<&Fault> {
        self.fault.as_ref()
    }

    /// Whose pages may ask, and read answers.
    pub fn cors(&self) -> Option<&Cors> {
        self.cors.as_ref()
    }

    pub fn edit_request(&self, headers: &mut HeaderMap) {
        self.request.iter().for_each(|edits| edits.apply(headers));
    }

    pub fn edit_response(&self, headers: &mut HeaderMap) {
        self.response.iter().for_each(|edits| edits.apply(headers));
    }

    /// The host that the backend is told in place of the caller's.
    pub fn host(&self) -> Option<&str> {
        self.host.as_deref()
    }

    /// The path that the backend is told, with the query; `None`: the request's own.
    pub fn path_and_query(&self, path: &str, query: Option<&str>) -> Option<String> {
        self.path.as_ref().map(|edit| with_query(edit.apply(path), query))
    }

    /// Who gets a copy; `random` is uniform over u64, asked once for each that gets a share only.
    pub fn mirrors(&self, mut random: impl FnMut() -> u64) -> impl Iterator<Item = &Arc<ServiceHost>> {
        let taken = move |mirror: &&Mirror| {
            let all = mirror.numerator >= mirror.denominator;
            all || (mirror.numerator > 0 && mirror.takes(random()))
        };
        self.mirrors.iter().filter(taken).map(|mirror| &mirror.to)
    }
}

impl HeaderEdits {
    fn compile(modifier: &HeaderModifier) -> Self {
        let field = |field: &HeaderField| {
            Some((field.name.parse::<HeaderName>().ok()?, HeaderValue::from_str(&field.value).ok()?))
        };
        Self {
            set: modifier.set.iter().filter_map(field).collect(),
            add: modifier.add.iter().filter_map(field).collect(),
            remove: modifier.remove.iter().filter_map(|name| name.parse().ok()).collect(),
        }
    }

    fn apply(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.set {
            headers.insert(name.clone(), value.clone());
        }
        for (name, value) in &self.add {
            headers.append(name.clone(), value.clone());
        }
        for name in &self.remove {
            headers.remove(name);
        }
    }
}

impl Redirect {
    fn compile(redirect: &RequestRedirect, rule: &RouteRule) -> Self {
        Self {
            scheme: redirect.scheme,
            host: redirect.hostname.clone(),
            path: redirect.path.as_ref().and_then(|path| PathEdit::compile(path, rule)),
            port: redirect.port,
            status: redirect.status_code.unwrap_or(FOUND),
        }
    }

    /// The value of `Location`, for a request in plain HTTP, or `secure`, to `authority` (host, or host and port). The port is that of
    /// the redirect, else its scheme's, else the request's; one that goes without saying is left out.
    pub fn location(&self, secure: bool, authority: &str, path: &str, query: Option<&str>) -> String {
        let (asked_host, asked_port) = split_port(authority);
        let scheme = self.scheme.unwrap_or(if secure { Scheme::Https } else { Scheme::Http });
        let host = self.host.as_deref().unwrap_or(asked_host);
        let port = self.port.or(if self.scheme.is_some() { None } else { asked_port });
        let port = port.filter(|port| *port != scheme.port()).map(|port| format!(":{port}"));
        let path = self.path.as_ref().map_or_else(|| path.to_owned(), |edit| edit.apply(path));
        format!("{}://{host}{}{}", scheme.as_str(), port.unwrap_or_default(), with_query(path, query))
    }
}

impl PathEdit {
    fn compile(modifier: &PathModifier, rule: &RouteRule) -> Option<Self> {
        match modifier.kind {
            PathModifierKind::ReplaceFullPath => modifier.replace_full_path.clone().map(Self::Full),
            PathModifierKind::ReplacePrefixMatch => {
                let with = modifier.replace_prefix_match.as_ref()?.trim_end_matches('/').to_owned();
                let matched = only_prefix(rule)?.value.trim_end_matches('/').to_owned();
                Some(Self::Prefix { matched, with })
            }
        }
    }

    fn apply(&self, path: &str) -> String {
        match self {
            Self::Full(path) => path.clone(),
            Self::Prefix { matched, with } => {
                let rest = path.strip_prefix(matched.as_str()).unwrap_or(path);
                match format!("{with}{rest}") {
                    empty if empty.is_empty() => "/".to_owned(),
                    path => path,
                }
            }
        }
    }
}

impl Mirror {
    /// `None`: the route may not name whom it is for, who gets nothing.
    fn compile(mirror: &RequestMirror, from: Referrer<'_>, view: &View) -> Option<Self> {
        let backend = &mirror.backend_ref;
        let (numerator, denominator) = match (mirror.percent, mirror.fraction) {
            (_, Some(fraction)) => (fraction.numerator, fraction.denominator),
            (Some(percent), None) => (percent, 100),
            (None, None) => (1, 1),
        };
        let to = Arc::new(reached(backend.kind, backend.service(from.namespace)));
        from.may_name(view, backend.kind, &to.service).then_some(Self { to, numerator, denominator })
    }

    fn takes(&self, random: u64) -> bool {
        let scaled = (u128::from(random) * u128::from(self.denominator)) >> 64;
        scaled < u128::from(self.numerator)
    }
}

/// The path prefix that the rule matches, if that is its one match: what a prefix can be replaced in.
pub(in crate::policy) fn only_prefix(rule: &RouteRule) -> Option<PathMatch> {
    let path = match rule.matches.as_slice() {
        [] => PathMatch::everything(),
        [one] => one.path.clone().unwrap_or_else(PathMatch::everything),
        _ => return None,
    };
    (path.kind == PathMatchKind::PathPrefix).then_some(path)
}

fn with_query(path: String, query: Option<&str>) -> String {
    match query {
        Some(query) => format!("{path}?{query}"),
        None => path,
    }
}

/// Host and port of an authority; the brackets of an IPv6 address stay with the host.
fn split_port(authority: &str) -> (&str, Option<u16>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port.parse().ok()),
        _ => (authority, None),
    }
}

#[cfg(test)]
mod tests;
