//! What the filters of a rule say wrongly by themselves: two that exclude each other, a field without its type, headers
//! that are not for policies to write.

use super::Findings;
use super::alone::check_group;
use crate::policy::document::cors::{ANY, Cors};
use crate::policy::document::filter::{
    HeaderModifier, PathModifier, PathModifierKind, RequestMirror, RequestRedirect, UrlRewrite,
};
use crate::policy::document::{FilterKind, RouteFilter, RouteRule};
use crate::policy::route::{Origin, only_prefix};
use crate::reserved::{FRAMING, is_reserved};

/// What a redirect may answer (Gateway API v1).
const REDIRECTS: [u16; 5] = [301, 302, 303, 307, 308];

pub(super) fn check_filters(rule: &RouteRule, path: &str, findings: &mut Findings<'_>) {
    for (index, filter) in rule.filters.iter().enumerate() {
        let path = format!("{path}.filters[{index}]");
        check_fields(filter, &path, findings);
        let earlier = rule.filters[..index].iter().any(|earlier| earlier.kind == filter.kind);
        if earlier && filter.kind != FilterKind::RequestMirror {
            let message = format!("the rule has a {} already", filter.kind.as_str());
            findings.error("E4005", format!("{path}.type"), message, "make one of the two".to_owned());
        }
        check_content(filter, rule, &path, findings);
    }
    check_together(rule, path, findings);
}

/// The field that the type names, and no other.
fn check_fields(filter: &RouteFilter, path: &str, findings: &mut Findings<'_>) {
    let wanted = filter.kind.field();
    if !filter.fields().any(|kind| kind == filter.kind) {
        let message = format!("a {} needs {wanted}", filter.kind.as_str());
        findings.error("E4004", path.to_owned(), message, format!("add {wanted}"));
    }
    for other in filter.fields().filter(|kind| *kind != filter.kind) {
        let message = format!("{} is not read in a {}", other.field(), filter.kind.as_str());
        let fix = format!("make it a filter of its own, with type: {}", other.as_str());
        findings.error("E4005", format!("{path}.{}", other.field()), message, fix);
    }
}

fn check_content(filter: &RouteFilter, rule: &RouteRule, path: &str, findings: &mut Findings<'_>) {
    let field = |kind: FilterKind| format!("{path}.{}", kind.field());
    if let Some(modifier) = &filter.request_header_modifier {
        check_modifier(modifier, &field(FilterKind::RequestHeaderModifier), findings);
    }
    if let Some(modifier) = &filter.response_header_modifier {
        check_modifier(modifier, &field(FilterKind::ResponseHeaderModifier), findings);
    }
    if let Some(redirect) = &filter.request_redirect {
        check_redirect(redirect, rule, &field(FilterKind::RequestRedirect), findings);
    }
    if let Some(UrlRewrite { path: Some(modifier), .. }) = &filter.url_rewrite {
        check_path(modifier, rule, &format!("{}.path", field(FilterKind::UrlRewrite)), findings);
    }
    if let Some(cors) = &filter.cors {
        check_cors(cors, &field(FilterKind::Cors), findings);
    }
    if let Some(mirror) = &filter.request_mirror {
        check_mirror(mirror, &field(FilterKind::RequestMirror), findings);
    }
}

fn check_modifier(modifier: &HeaderModifier, path: &str, findings: &mut Findings<'_>) {
    let set = modifier.set.iter().map(|field| ("set", &field.name));
    let add = modifier.add.iter().map(|field| ("add", &field.name));
    let remove = modifier.remove.iter().map(|name| ("remove", name));
    let mut seen: Vec<(&str, &String)> = Vec::new();
    for (list, name) in set.chain(add).chain(remove) {
        let at = format!("{path}.{list}");
        if FRAMING.iter().any(|framing| name.eq_ignore_ascii_case(framing)) {
            let message = format!("{name} says where a message ends or whom it is for");
            let fix = match name.eq_ignore_ascii_case("host") {
                true => "use a URLRewrite with hostname",
                false => "leave it out",
            };
            findings.error("E4005", at, message, fix.to_owned());
        } else if is_reserved(name) {
            let message = format!("{name} is the mesh's own header");
            findings.error("E4005", at, message, "use another name".to_owned());
        } else if let Some((other, _)) = seen.iter().find(|(_, earlier)| earlier.eq_ignore_ascii_case(name)) {
            let message = format!("{name} is in {other} already");
            findings.error("E4005", at, message, format!("remove it from {other} or from {list}"));
        }
        seen.push((list, name));
    }
}

fn check_redirect(redirect: &RequestRedirect, rule: &RouteRule, path: &str, findings: &mut Findings<'_>) {
    if let Some(status) = redirect.status_code.filter(|status| !REDIRECTS.contains(status)) {
        let message = format!("{status} is no redirect that a client follows");
        findings.error(
            "E4005",
            format!("{path}.statusCode"),
            message,
            "write 301, 302, 303, 307 or 308".to_owned(),
        );
    }
    if let Some(modifier) = &redirect.path {
        check_path(modifier, rule, &format!("{path}.path"), findings);
    }
    if *redirect == RequestRedirect::default() {
        let message = "the redirect leads to where the request came from".to_owned();
        let fix = "give it a scheme, hostname, path or port".to_owned();
        findings.error("E4005", path.to_owned(), message, fix);
    }
}

fn check_path(modifier: &PathModifier, rule: &RouteRule, path: &str, findings: &mut Findings<'_>) {
    let (wanted, value, other, unread) = match modifier.kind {
        PathModifierKind::ReplaceFullPath => (
            "replaceFullPath",
            &modifier.replace_full_path,
            "replacePrefixMatch",
            &modifier.replace_prefix_match,
        ),
        PathModifierKind::ReplacePrefixMatch => (
            "replacePrefixMatch",
            &modifier.replace_prefix_match,
            "replaceFullPath",
            &modifier.replace_full_path,
        ),
    };
    if value.is_none() {
        let message = format!("path has no {wanted}, which its type names");
        findings.error("E4004", path.to_owned(), message, format!("add {wanted}"));
    }
    if unread.is_some() {
        let message = format!("{other} is not read with this type");
        findings.error("E4005", format!("{path}.{other}"), message, "remove it".to_owned());
    }
    if value.as_deref() == Some("") && modifier.kind == PathModifierKind::ReplaceFullPath {
        findings.error(
            "E4005",
            format!("{path}.{wanted}"),
            "a path starts with /".to_owned(),
            "write /".to_owned(),
        );
    }
    if modifier.kind == PathModifierKind::ReplacePrefixMatch && only_prefix(rule).is_none() {
        let message = "which prefix is to be replaced is not said: the rule needs exactly one match, \
                       and that by path prefix";
        let fix = "give the rule one match with path type PathPrefix, or write one rule for each prefix";
        findings.error("E4005", format!("{path}.type"), message.to_owned(), fix.to_owned());
    }
}

fn check_mirror(mirror: &RequestMirror, path: &str, findings: &mut Findings<'_>) {
    let at = format!("{path}.backendRef");
    check_group(&mirror.backend_ref.group, mirror.backend_ref.kind, &at, findings);
    if mirror.percent.is_some() && mirror.fraction.is_some() {
        let message = "percent and fraction are two words for the same thing".to_owned();
        findings.error("E4005", format!("{path}.percent"), message, "remove one of them".to_owned());
    }
    if let Some(fraction) = mirror.fraction.filter(|f| f.numerator > f.denominator) {
        let message = format!("{} of {} is more than all", fraction.numerator, fraction.denominator);
        let fix = format!("write numerator: {} or less", fraction.denominator);
        findings.error("E4005", format!("{path}.fraction.numerator"), message, fix);
    }
}

/// A star stands for all, and so alone.
fn check_cors(cors: &Cors, path: &str, findings: &mut Findings<'_>) {
    let has_any = |list: &[String]| list.iter().any(|name| name == ANY);
    for (field, list) in [
        ("allowOrigins", &cors.allow_origins),
        ("allowMethods", &cors.allow_methods),
        ("allowHeaders", &cors.allow_headers),
    ] {
        if list.len() > 1 && has_any(list) {
            let message = format!("{field} has * and others beside it");
            let fix = "write * alone, or leave it out".to_owned();
            findings.error("E4005", format!("{path}.{field}"), message, fix);
        }
    }
    let mut warn = |path: String, message: &str, fix: &str| {
        findings.warning("E4144", path, message.to_owned(), fix.to_owned());
    };
    if cors.allow_origins.is_empty() {
        let fix = "add allowOrigins: [https://shop.example]";
        warn(path.to_owned(), "no page of another origin may ask", fix);
    }
    if cors.allow_credentials != Some(true) {
        return;
    }
    let is_anybody =
        |text: &String| text == ANY || Origin::parse(text).is_ok_and(|origin| origin.is_any_host());
    if cors.allow_origins.iter().any(is_anybody) {
        let fix = "name the origins that may, or remove allowCredentials";
        let message = "any page may ask in its visitor's name, and read the answer";
        warn(format!("{path}.allowCredentials"), message, fix);
    }
    if has_any(&cors.expose_headers) {
        let message = "with credentials browsers take * for the name of a header";
        warn(format!("{path}.exposeHeaders"), message, "name the headers");
    }
}

/// Filters and backends that exclude each other.
fn check_together(rule: &RouteRule, path: &str, findings: &mut Findings<'_>) {
    let has = |kind: FilterKind| rule.filters.iter().any(|filter| filter.kind == kind);
    let redirects = has(FilterKind::RequestRedirect);
    if redirects && has(FilterKind::UrlRewrite) {
        let message = "a request is redirected or rewritten, not both".to_owned();
        findings.error("E4005", format!("{path}.filters"), message, "remove one of the two".to_owned());
    }
    match (redirects, rule.backend_refs.is_empty()) {
        (true, false) => {
            let message = "a rule that redirects sends nothing to its backends".to_owned();
            findings.error("E4005", format!("{path}.backendRefs"), message, "remove backendRefs".to_owned());
        }
        (false, true) => {
            let message = "the rule has no backend: every request of it would get 500".to_owned();
            let fix = "add backendRefs, or a RequestRedirect".to_owned();
            findings.error("E4004", path.to_owned(), message, fix);
        }
        _ => {}
    }
}
