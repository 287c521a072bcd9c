//! What the mesh answers in an app's place, towards our app: in HTTP's words, and in gRPC's for clients that speak it.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};

use super::OutboundResponse;
use crate::answer::{Reason, grpc_status};
use crate::headers;
use crate::io::body::{AnswerBody, ResponseBody};
use crate::io::record::Record;

pub(super) fn mesh_answer(reason: Reason, is_grpc: bool, record: Record) -> OutboundResponse {
    let details = match record.entry.response_code_details.as_str() {
        "" => String::new(),
        details => format!(": {details}"),
    };
    worded(reason, &details, is_grpc, record)
}

/// The same for clients outside, who are told no names and addresses.
pub(super) fn terse_answer(reason: Reason, is_grpc: bool, record: Record) -> OutboundResponse {
    worded(reason, "", is_grpc, record)
}

fn worded(reason: Reason, details: &str, is_grpc: bool, mut record: Record) -> OutboundResponse {
    record.refused(reason);
    let body = match is_grpc {
        true => Bytes::new(),
        false => Bytes::from(format!("{}{details}\n", reason.as_str())),
    };
    let mut response = Response::new(ResponseBody::whole(body, record));
    *response.status_mut() = reason.status();
    mark(response.headers_mut(), reason);
    if is_grpc {
        tell_grpc(&mut response);
    }
    response
}

/// What the far side's mesh said, as a gRPC client reads it. Answers of servers stay as they are.
pub(super) fn grpc_answer(response: Response<AnswerBody>) -> Response<AnswerBody> {
    let headers = response.headers();
    if !headers.contains_key(headers::ANSWERED_BY) || headers::is_grpc(headers) {
        return response;
    }
    let mut response = response.map(|_| AnswerBody::empty());
    tell_grpc(&mut response);
    response
}

/// Puts the mesh's answer into the status of the call, in place of HTTP's (gRPC over HTTP/2, "Trailers-Only").
fn tell_grpc<B>(response: &mut Response<B>) {
    let status = grpc_status(response.status());
    let headers = response.headers_mut();
    headers.remove(header::CONTENT_LENGTH);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", HeaderValue::from(u16::from(status)));
    if let Some(reason) = headers.get(headers::REASON).cloned() {
        headers.insert("grpc-message", reason);
    }
    *response.status_mut() = StatusCode::OK;
}

/// The headers of every response that the mesh makes itself.
pub fn mark(headers: &mut http::HeaderMap, reason: Reason) {
    headers.insert(headers::ANSWERED_BY, headers::ANSWERED_BY_MESH);
    headers.insert(headers::REASON, HeaderValue::from_static(reason.as_str()));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
}
