//! The SPIFFE Workload API on the agent's socket: X.509 and JWT profiles. WIT is not served: its calls are unimplemented.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use hanse_identity::SpiffeId;
use hanse_identity::jwt::check_audiences;
use prost_types::value::Kind;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::Shared;
use super::session::{Sent, Session, Woken, send, serve};
use crate::secrets::{Held, Standing};
use crate::wire::workload::spiffe_workload_api_server::SpiffeWorkloadApi;
use crate::wire::workload::{
    JwtBundlesRequest, JwtBundlesResponse, Jwtsvid, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest,
    ValidateJwtsvidResponse, X509BundlesRequest, X509BundlesResponse, X509svidRequest, X509svidResponse,
};

/// Name of this kind of stream in metrics and `/entries`.
pub const KIND: &str = "workload-api";
/// Metadata that every call carries, so that a browser or a confused proxy cannot make one (Workload Endpoint §3).
pub const SECURITY_HEADER: &str = "workload.spiffe.io";
/// How long a new stream waits for its first SVID before the client is told why there is none.
pub const FIRST_SVID_WAIT: Duration = Duration::from_secs(10);

/// The service.
#[derive(Clone)]
pub struct WorkloadApi(pub Arc<Shared>);

#[tonic::async_trait]
impl SpiffeWorkloadApi for WorkloadApi {
    type FetchX509SVIDStream = ReceiverStream<Sent<X509svidResponse>>;
    type FetchX509BundlesStream = ReceiverStream<Sent<X509BundlesResponse>>;
    type FetchJWTBundlesStream = ReceiverStream<Sent<JwtBundlesResponse>>;

    async fn fetch_x509svid(
        &self,
        request: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        let session = self.open(&request).await?;
        Ok(Response::new(serve(|client| stream_svids(session, client))))
    }

    async fn fetch_x509_bundles(
        &self,
        request: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        let session = self.open(&request).await?;
        let message = |standing: &Standing<'_>| standing.bundles_response();
        Ok(Response::new(serve(|client| stream_bundles(session, client, message))))
    }

    async fn fetch_jwtsvid(
        &self,
        request: Request<JwtsvidRequest>,
    ) -> Result<Response<JwtsvidResponse>, Status> {
        let mut session = self.open(&request).await?;
        let request = request.into_inner();
        check_audiences(&request.audience).map_err(Status::invalid_argument)?;
        let (ids, hints) = {
            let ground = session.peek()?;
            let standing = session.standing(&ground)?;
            let ids =
                standing.jwt_identities(&request.spiffe_id).map_err(|denial| session.denied(&denial))?;
            let hints: Vec<String> = ids.iter().map(|id| standing.hint(id)).collect();
            (ids, hints)
        };
        let tokens = self.0.jwt.tokens(&mut session, &ids, &request.audience).await?;
        let svids = ids.iter().zip(&tokens).zip(hints).map(|((id, token), hint)| Jwtsvid {
            spiffe_id: id.to_string(),
            svid: token.to_string(),
            hint,
        });
        Ok(Response::new(JwtsvidResponse { svids: svids.collect() }))
    }

    async fn fetch_jwt_bundles(
        &self,
        request: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        let session = self.open(&request).await?;
        let message = |standing: &Standing<'_>| standing.jwt_bundles_response();
        Ok(Response::new(serve(|client| stream_bundles(session, client, message))))
    }

    async fn validate_jwtsvid(
        &self,
        request: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        let session = self.open(&request).await?;
        let request = request.into_inner();
        if request.audience.is_empty() || request.svid.is_empty() {
            return Err(Status::invalid_argument("the request lacks an audience or a JWT-SVID"));
        }
        let valid = self.0.jwt.validate(&session, &request.svid, &request.audience)?;
        let spiffe_id = valid.id.to_string();
        Ok(Response::new(ValidateJwtsvidResponse { spiffe_id, claims: Some(to_struct(valid.claims)) }))
    }
}

impl WorkloadApi {
    /// A session of a caller that has an identity; others are refused at once and not by way of a stream.
    async fn open<T>(&self, request: &Request<T>) -> Result<Session, Status> {
        let session = Session::open(&self.0, request.extensions(), KIND).await?;
        let ground = session.peek()?;
        session.standing(&ground)?;
        Ok(session)
    }
}

/// Refuses a call without the security header, whatever it calls; what it calls has not been looked at then.
pub fn check_header(request: Request<()>) -> Result<Request<()>, Status> {
    match request.metadata().get(SECURITY_HEADER).map(|value| value.as_bytes()) {
        Some(b"true") => Ok(request),
        _ => Err(Status::invalid_argument(format!("the call lacks the metadata {SECURITY_HEADER}: true"))),
    }
}

async fn stream_svids(
    mut session: Session,
    client: mpsc::Sender<Sent<X509svidResponse>>,
) -> Result<(), Status> {
    let give_up = Instant::now() + FIRST_SVID_WAIT;
    let mut last: Option<X509svidResponse> = None;
    loop {
        let ground = session.ground().await?;
        let standing = session.standing(&ground)?;
        let identities: BTreeSet<SpiffeId> = standing.identities().into_iter().cloned().collect();
        session.hold(&identities)?;
        // Asked before: one that becomes ready in between would be missing in a message that is said to be complete.
        let settled = session.settled();
        let ready = session.ready()?;
        let held: Held<'_> = ready.iter().map(|(id, svid)| (id.clone(), &**svid)).collect();
        let response = standing.x509_response(&held).map_err(|denial| session.denied(&denial))?;
        // The first message is complete; later ones follow each change. One without SVIDs says nothing new.
        let sendable = !response.svids.is_empty() && (last.is_some() || settled);
        if sendable && last.as_ref() != Some(&response) {
            if send(&client, Ok(response.clone())).await.is_err() {
                return Ok(());
            }
            last = Some(response);
        }
        session.handled(standing.revision());
        tokio::select! {
            biased;
            () = client.closed() => return Ok(()),
            woken = session.changed() => if woken == Woken::Shutdown {
                return Err(Status::unavailable("the agent is stopping"));
            },
            () = tokio::time::sleep_until(give_up), if last.is_none() => return Err(session.missing()),
        }
    }
}

/// Sends the message that a state makes, now and whenever it is another one.
async fn stream_bundles<T: Clone + PartialEq>(
    mut session: Session,
    client: mpsc::Sender<Sent<T>>,
    message: impl Fn(&Standing<'_>) -> T,
) -> Result<(), Status> {
    let mut last: Option<T> = None;
    loop {
        let ground = session.ground().await?;
        let standing = session.standing(&ground)?;
        let response = message(&standing);
        if last.as_ref() != Some(&response) {
            if send(&client, Ok(response.clone())).await.is_err() {
                return Ok(());
            }
            last = Some(response);
        }
        session.handled(standing.revision());
        tokio::select! {
            biased;
            () = client.closed() => return Ok(()),
            woken = session.changed() => if woken == Woken::Shutdown {
                return Err(Status::unavailable("the agent is stopping"));
            },
        }
    }
}

/// Claims as `google.protobuf.Struct`. Their nesting is bounded by the parser that read them.
fn to_struct(claims: serde_json::Map<String, serde_json::Value>) -> prost_types::Struct {
    prost_types::Struct { fields: claims.into_iter().map(|(name, value)| (name, to_value(value))).collect() }
}

fn to_value(json: serde_json::Value) -> prost_types::Value {
    use serde_json::Value;
    let kind = match json {
        Value::Null => Kind::NullValue(0),
        Value::Bool(value) => Kind::BoolValue(value),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or(f64::NAN)),
        Value::String(text) => Kind::StringValue(text),
        Value::Array(values) => {
            Kind::ListValue(prost_types::ListValue { values: values.into_iter().map(to_value).collect() })
        }
        Value::Object(fields) => Kind::StructValue(to_struct(fields)),
    };
    prost_types::Value { kind: Some(kind) }
}
