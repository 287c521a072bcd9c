//! External authorization, the pure part: what an authorizer is told of a request (`envoy.service.auth.v3.CheckRequest`),
//! and what its answer does to it.

use std::collections::HashMap;

use envoy_types::pb::envoy::config::core::v3::{HeaderValueOption, header_value_option::HeaderAppendAction};
use envoy_types::pb::envoy::service::auth::v3::attribute_context::{
    HttpRequest, Peer, Request as RequestContext,
};
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::envoy::service::auth::v3::{
    AttributeContext, CheckRequest, CheckResponse, DeniedHttpResponse, OkHttpResponse,
};
use hanse_federation::policy::access::External;
use hanse_federation::reserved::{FRAMING, is_reserved, same_spelling};
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Request, StatusCode, Version};

use crate::headers;

/// Headers that one answer may write or take away.
const MAX_EDITS: usize = 64;

/// What an authorizer answered.
#[derive(Debug)]
pub enum Verdict {
    Allow(Allowed),
    Deny(Denied),
}

/// The request goes on, changed.
#[derive(Debug, Default)]
pub struct Allowed {
    remove: Vec<HeaderName>,
    request: Vec<Edit>,
    /// For whoever asked.
    pub response: Edits,
}

/// It does not; whoever asked is told so in the authorizer's words.
#[derive(Debug)]
pub struct Denied {
    pub status: StatusCode,
    pub headers: Edits,
    pub body: String,
}

/// Headers that are written into an answer.
#[derive(Debug, Default)]
pub struct Edits(Vec<Edit>);

#[derive(Debug)]
struct Edit {
    name: HeaderName,
    value: HeaderValue,
    how: HeaderAppendAction,
}

/// Why an answer is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    #[error("it says neither yes nor no")]
    Nothing,
    #[error("it says that it failed")]
    Failed,
    #[error("it changes query parameters, which is not supported")]
    Query,
    #[error("it changes more than {MAX_EDITS} headers")]
    Many,
    #[error("{0:?} is no header that it may change")]
    Header(String),
}

/// What the authorizer is told: who asks whom, and the head of the request as the app would get it. Bodies are not sent.
pub fn question<B>(
    external: &External,
    source: &str,
    destination: &str,
    request: &Request<B>,
) -> CheckRequest {
    let peer = |principal: &str| Some(Peer { principal: principal.to_owned(), ..Peer::default() });
    let mut told: HashMap<String, String> = HashMap::new();
    for (name, value) in request.headers() {
        let name = name.as_str();
        // The host has a field of its own; what stands beside the authority is not what the app gets.
        if name == "host" || is_reserved(name) || !external.tells(name) {
            continue;
        }
        let value = String::from_utf8_lossy(value.as_bytes());
        told.entry(name.to_owned())
            .and_modify(|all| {
                // HTTP/2 may have split it (RFC 9113 §8.2.3).
                all.push_str(if name == "cookie" { "; " } else { "," });
                all.push_str(&value);
            })
            .or_insert_with(|| value.into_owned());
    }
    let target = request.uri().path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let http = HttpRequest {
        method: request.method().as_str().to_owned(),
        host: headers::authority(request).ok().flatten().unwrap_or_default().to_owned(),
        path: target.to_owned(),
        query: request.uri().query().unwrap_or_default().to_owned(),
        scheme: "http".to_owned(),
        protocol: if request.version() == Version::HTTP_2 { "HTTP/2" } else { "HTTP/1.1" }.to_owned(),
        size: -1,
        headers: told,
        ..HttpRequest::default()
    };
    let attributes = AttributeContext {
        source: peer(source),
        destination: peer(destination),
        request: Some(RequestContext { time: None, http: Some(http) }),
        context_extensions: HashMap::from([("policy".to_owned(), external.policy.to_string())]),
        ..AttributeContext::default()
    };
    CheckRequest { attributes: Some(attributes) }
}

/// Reads an answer. One that is not understood is no leave.
pub fn verdict(answer: CheckResponse) -> Result<Verdict, Unusable> {
    let ok = answer.status.as_ref().map(|status| status.code == 0);
    match (ok, answer.http_response) {
        (_, Some(HttpResponse::ErrorResponse(_))) => Err(Unusable::Failed),
        (Some(true) | None, Some(HttpResponse::OkResponse(said))) => allowed(said).map(Verdict::Allow),
        (Some(true), None) => Ok(Verdict::Allow(Allowed::default())),
        (_, Some(HttpResponse::DeniedResponse(said))) => Ok(Verdict::Deny(denied(said))),
        (Some(false), _) => Ok(Verdict::Deny(denied(DeniedHttpResponse::default()))),
        (None, None) => Err(Unusable::Nothing),
    }
}

fn allowed(said: OkHttpResponse) -> Result<Allowed, Unusable> {
    if !said.query_parameters_to_set.is_empty() || !said.query_parameters_to_remove.is_empty() {
        return Err(Unusable::Query);
    }
    if said.headers_to_remove.len() > MAX_EDITS {
        return Err(Unusable::Many);
    }
    Ok(Allowed {
        remove: said.headers_to_remove.iter().map(|name| may_edit(name)).collect::<Result<_, _>>()?,
        // Without a word it replaces what is there, unlike everywhere else (Envoy's ext_authz).
        request: edits(said.headers, HeaderAppendAction::OverwriteIfExistsOrAdd)?,
        response: Edits(edits(said.response_headers_to_add, HeaderAppendAction::AppendIfExistsOrAdd)?),
    })
}

/// A no is a no: what it may not write is left out. A status that says that a server has failed would be taken for a failure of
/// ours, and tried again elsewhere.
fn denied(said: DeniedHttpResponse) -> Denied {
    let code = said.status.and_then(|status| u16::try_from(status.code).ok()).unwrap_or_default();
    let status = StatusCode::from_u16(code).ok().filter(|status| (200..500).contains(&status.as_u16()));
    let written = said.headers.into_iter().take(MAX_EDITS);
    let written =
        written.filter_map(|option| edit(option, HeaderAppendAction::OverwriteIfExistsOrAdd).ok().flatten());
    Denied {
        status: status.unwrap_or(StatusCode::FORBIDDEN),
        headers: Edits(written.collect()),
        body: said.body,
    }
}

fn edits(said: Vec<HeaderValueOption>, unsaid: HeaderAppendAction) -> Result<Vec<Edit>, Unusable> {
    if said.len() > MAX_EDITS {
        return Err(Unusable::Many);
    }
    said.into_iter().filter_map(|option| edit(option, unsaid).transpose()).collect()
}

fn edit(option: HeaderValueOption, unsaid: HeaderAppendAction) -> Result<Option<Edit>, Unusable> {
    // The older of two ways to say it, which most authorizers know alone.
    #[allow(deprecated)]
    let append = option.append.as_ref().map(|append| append.value);
    let how = match (append, HeaderAppendAction::try_from(option.append_action)) {
        (Some(true), _) => HeaderAppendAction::AppendIfExistsOrAdd,
        (Some(false), _) => HeaderAppendAction::OverwriteIfExistsOrAdd,
        (None, Ok(HeaderAppendAction::AppendIfExistsOrAdd)) => unsaid,
        (None, Ok(how)) => how,
        (None, Err(_)) => return Err(Unusable::Header(option.append_action.to_string())),
    };
    let Some(header) = option.header else { return Ok(None) };
    let name = may_edit(&header.key)?;
    let bytes = if header.raw_value.is_empty() { header.value.into_bytes() } else { header.raw_value };
    let value = HeaderValue::from_bytes(&bytes).map_err(|_| Unusable::Header(name.to_string()))?;
    Ok(Some(Edit { name, value, how }))
}

/// The mesh's own headers are nobody's to write, and neither are those that frame a message.
fn may_edit(name: &str) -> Result<HeaderName, Unusable> {
    let refused = || Unusable::Header(name.chars().take(64).collect());
    let parsed: HeaderName = name.parse().map_err(|_| refused())?;
    if is_reserved(parsed.as_str()) || FRAMING.iter().any(|own| same_spelling(own, parsed.as_str())) {
        return Err(refused());
    }
    Ok(parsed)
}

impl Allowed {
    /// Changes the request. What is taken away or replaced is so in every spelling that a server may take for it.
    pub fn apply(&self, headers: &mut HeaderMap) {
        self.remove.iter().for_each(|name| remove(headers, name));
        self.request.iter().for_each(|edit| edit.apply(headers));
    }
}

impl Edits {
    pub fn apply(&self, headers: &mut HeaderMap) {
        self.0.iter().for_each(|edit| edit.apply(headers));
    }

    pub fn extend(&mut self, others: Self) {
        self.0.extend(others.0);
    }
}

impl Edit {
    fn apply(&self, headers: &mut HeaderMap) {
        let there = || headers.keys().any(|name| same_spelling(name.as_str(), self.name.as_str()));
        match self.how {
            HeaderAppendAction::AppendIfExistsOrAdd => {}
            HeaderAppendAction::AddIfAbsent if there() => return,
            HeaderAppendAction::OverwriteIfExists if !there() => return,
            _ => remove(headers, &self.name),
        }
        headers.append(self.name.clone(), self.value.clone());
    }
}

fn remove(headers: &mut HeaderMap, unwanted: &HeaderName) {
    let same = |name: &&HeaderName| same_spelling(name.as_str(), unwanted.as_str());
    while let Some(name) = headers.keys().find(same).cloned() {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::core::v3::HeaderValue as Said;
    use envoy_types::pb::google::protobuf::BoolValue;
    use envoy_types::pb::google::rpc::Status;

    use super::*;

    #[allow(deprecated)]
    fn option(name: &str, value: &str, append: Option<bool>) -> HeaderValueOption {
        HeaderValueOption {
            header: Some(Said { key: name.to_owned(), value: value.to_owned(), ..Said::default() }),
            append: append.map(|value| BoolValue { value }),
            ..HeaderValueOption::default()
        }
    }

    fn answer(code: Option<i32>, http: Option<HttpResponse>) -> CheckResponse {
        let status = code.map(|code| Status { code, ..Status::default() });
        CheckResponse { status, http_response: http, ..CheckResponse::default() }
    }

    fn ok(headers: Vec<HeaderValueOption>) -> CheckResponse {
        let said = OkHttpResponse { headers, ..OkHttpResponse::default() };
        answer(Some(0), Some(HttpResponse::OkResponse(said)))
    }

    #[test]
    fn only_a_plain_yes_is_one() {
        let status = |answer| match verdict(answer) {
            Ok(Verdict::Allow(_)) => 200,
            Ok(Verdict::Deny(denied)) => denied.status.as_u16(),
            Err(_) => 0,
        };
        let said_no = || Some(HttpResponse::DeniedResponse(DeniedHttpResponse::default()));
        let said_yes = || Some(HttpResponse::OkResponse(OkHttpResponse::default()));
        let failed = Some(HttpResponse::ErrorResponse(DeniedHttpResponse::default()));
        assert_eq!(status(answer(Some(0), None)), 200);
        assert_eq!(status(answer(None, said_yes())), 200);
        assert_eq!(status(answer(Some(0), said_no())), 403);
        assert_eq!(status(answer(Some(7), said_yes())), 403);
        assert_eq!(status(answer(Some(7), None)), 403);
        assert_eq!(status(answer(None, said_no())), 403);
        assert_eq!(status(answer(None, None)), 0);
        assert_eq!(status(answer(Some(0), failed)), 0);
    }

    #[test]
    fn no_answer_writes_what_is_the_meshs_own() {
        for name in [
            "x-forwarded-client-cert",
            "X_Forwarded_Client_Cert",
            "x-hanse-caller",
            "x.hanse-caller",
            "host",
            "Content-Length",
            "content_length",
            "transfer-encoding",
            ":path",
            "",
            "a b",
        ] {
            let refused = verdict(ok(vec![option(name, "1", None)])).unwrap_err();
            assert_eq!(refused, Unusable::Header(name.to_owned()));
            let removed =
                OkHttpResponse { headers_to_remove: vec![name.to_owned()], ..OkHttpResponse::default() };
            assert!(verdict(answer(Some(0), Some(HttpResponse::OkResponse(removed)))).is_err(), "{name}");
        }
        assert_eq!(
            verdict(ok(vec![option("x-a", "1\r\nx: y", None)])).unwrap_err(),
            Unusable::Header("x-a".into())
        );
        let many = (0..=MAX_EDITS).map(|_| option("x-a", "1", None)).collect();
        assert_eq!(verdict(ok(many)).unwrap_err(), Unusable::Many);
    }

    #[test]
    fn what_is_replaced_or_taken_away_is_so_in_every_spelling() {
        let said = OkHttpResponse {
            headers: vec![
                option("x-role", "user", None),
                option("x-seen", "2", Some(true)),
                HeaderValueOption {
                    append_action: HeaderAppendAction::AddIfAbsent as i32,
                    ..option("x-there", "new", None)
                },
                HeaderValueOption {
                    append_action: HeaderAppendAction::OverwriteIfExists as i32,
                    ..option("x-nowhere", "new", None)
                },
            ],
            headers_to_remove: vec!["authorization".to_owned()],
            ..OkHttpResponse::default()
        };
        let Ok(Verdict::Allow(allowed)) = verdict(answer(Some(0), Some(HttpResponse::OkResponse(said))))
        else {
            panic!("it said yes")
        };
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("x-role", "root"),
            ("x_role", "root"),
            ("x-seen", "1"),
            ("x_there", "old"),
            ("authorization", "Bearer t"),
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        allowed.apply(&mut headers);
        let mut left: Vec<_> = headers.iter().map(|(n, v)| (n.as_str(), v.to_str().unwrap())).collect();
        left.sort_unstable();
        assert_eq!(left, [("x-role", "user"), ("x-seen", "1"), ("x-seen", "2"), ("x_there", "old")]);
    }

    #[test]
    fn a_denial_is_in_the_authorizers_words() {
        use envoy_types::pb::envoy::r#type::v3::HttpStatus;
        let said = |code| DeniedHttpResponse {
            status: Some(HttpStatus { code }),
            headers: vec![
                option("location", "https://id.example/login", None),
                option("content-length", "7", None),
                option("x-hanse-tier", "forged", None),
            ],
            body: "who are you?".to_owned(),
        };
        let Ok(Verdict::Deny(denied)) =
            verdict(answer(Some(16), Some(HttpResponse::DeniedResponse(said(302)))))
        else {
            panic!("it said no")
        };
        assert_eq!((denied.status.as_u16(), denied.body.as_str()), (302, "who are you?"));
        let mut headers = HeaderMap::new();
        denied.headers.apply(&mut headers);
        assert_eq!(
            (headers.len(), &headers["location"]),
            (1, &HeaderValue::from_static("https://id.example/login"))
        );
        for odd in [0, 100, 101, 70_000] {
            let denied = verdict(answer(Some(16), Some(HttpResponse::DeniedResponse(said(odd)))));
            assert!(matches!(denied, Ok(Verdict::Deny(denied)) if denied.status == 403), "{odd}");
        }
    }
}
