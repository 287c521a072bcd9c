//! The SPIFFE Workload API, X.509 profile, on the agent's socket.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hanse_identity::SpiffeId;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use super::Shared;
use super::session::{Sent, Session, Woken, send, serve};
use crate::secrets::Held;
use crate::wire::workload::spiffe_workload_api_server::SpiffeWorkloadApi;
use crate::wire::workload::{
    JwtBundlesRequest, JwtBundlesResponse, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest,
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
    type FetchJWTBundlesStream =
        Pin<Box<dyn tokio_stream::Stream<Item = Result<JwtBundlesResponse, Status>> + Send>>;

    async fn fetch_x509svid(
        &self,
        request: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        check_header(request.metadata())?;
        let session = Session::open(&self.0, request.extensions(), KIND).await?;
        refuse_strangers(&session)?;
        Ok(Response::new(serve(|client| stream_svids(session, client))))
    }

    async fn fetch_x509_bundles(
        &self,
        request: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        check_header(request.metadata())?;
        let session = Session::open(&self.0, request.extensions(), KIND).await?;
        refuse_strangers(&session)?;
        Ok(Response::new(serve(|client| stream_bundles(session, client))))
    }

    async fn fetch_jwtsvid(
        &self,
        request: Request<JwtsvidRequest>,
    ) -> Result<Response<JwtsvidResponse>, Status> {
        check_header(request.metadata())?;
        Err(no_jwt())
    }

    async fn fetch_jwt_bundles(
        &self,
        request: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        check_header(request.metadata())?;
        Err(no_jwt())
    }

    async fn validate_jwtsvid(
        &self,
        request: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        check_header(request.metadata())?;
        Err(no_jwt())
    }
}

fn no_jwt() -> Status {
    Status::unimplemented("this agent serves X.509 SVIDs only")
}

fn check_header(metadata: &MetadataMap) -> Result<(), Status> {
    match metadata.get(SECURITY_HEADER).map(|value| value.as_bytes()) {
        Some(b"true") => Ok(()),
        _ => Err(Status::invalid_argument(format!("the call lacks the metadata {SECURITY_HEADER}: true"))),
    }
}

/// A caller without identity is refused at once and not by way of a stream.
fn refuse_strangers(session: &Session) -> Result<(), Status> {
    let ground = session.peek()?;
    session.standing(&ground).map(drop)
}

async fn stream_svids(
    mut session: Session,
    client: mpsc::Sender<Sent<X509svidResponse>>,
) -> Result<(), Status> {
    let give_up = Instant::now() + FIRST_SVID_WAIT;
    let mut last: Option<X509svidResponse> = None;
    loop {
        let ground = session.ground()?;
        let standing = session.standing(&ground)?;
        let identities: BTreeSet<SpiffeId> = standing.identities().into_iter().cloned().collect();
        session.hold(&identities)?;
        let ready = session.ready()?;
        let held: Held<'_> = ready.iter().map(|(id, svid)| (id.clone(), &**svid)).collect();
        let response = standing.x509_response(&held).map_err(|denial| session.denied(&denial))?;
        // The first message is complete; later ones follow each change. One without SVIDs says nothing new.
        let sendable = !response.svids.is_empty() && (last.is_some() || session.settled());
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

async fn stream_bundles(
    mut session: Session,
    client: mpsc::Sender<Sent<X509BundlesResponse>>,
) -> Result<(), Status> {
    let mut last: Option<X509BundlesResponse> = None;
    loop {
        let ground = session.ground()?;
        let standing = session.standing(&ground)?;
        let response = standing.bundles_response();
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
