//! Envoy's Secret Discovery Service, state of the world, on the agent's socket.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use envoy_types::pb::envoy::service::secret::v3::secret_discovery_service_server::SecretDiscoveryService;
use hanse_identity::SpiffeId;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::session::{Sent, Session, Woken, send, serve};
use super::{Shared, random};
use crate::secrets::{Held, Wanted};
use crate::subscription::{Heard, Subscription};

/// Name of this kind of stream in metrics and `/entries`.
pub const KIND: &str = "sds";

/// The service.
#[derive(Clone)]
pub struct Sds(pub Arc<Shared>);

#[tonic::async_trait]
impl SecretDiscoveryService for Sds {
    type StreamSecretsStream = ReceiverStream<Sent<DiscoveryResponse>>;
    type DeltaSecretsStream =
        Pin<Box<dyn tokio_stream::Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        let session = Session::open(&self.0, request.extensions(), KIND).await?;
        let requests = request.into_inner();
        Ok(Response::new(serve(|client| converse(session, requests, client))))
    }

    async fn delta_secrets(
        &self,
        _request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        Err(Status::unimplemented("use StreamSecrets: this agent serves secrets as the state of the world"))
    }

    async fn fetch_secrets(
        &self,
        _request: Request<DiscoveryRequest>,
    ) -> Result<Response<DiscoveryResponse>, Status> {
        Err(Status::unimplemented("use StreamSecrets: a secret that is fetched once is never renewed"))
    }
}

/// One stream, until the client goes, the agent stops, or the caller may not have what it asks for.
async fn converse(
    mut session: Session,
    mut requests: Streaming<DiscoveryRequest>,
    client: mpsc::Sender<Sent<DiscoveryResponse>>,
) -> Result<(), Status> {
    let mut subscription = Subscription::new(random() ^ session.stream_number());
    loop {
        let (response, revision) = update(&mut session, &mut subscription)?;
        if let Some(response) = response
            && send(&client, Ok(response)).await.is_err()
        {
            return Ok(());
        }
        session.handled(revision);
        tokio::select! {
            biased;
            () = client.closed() => return Ok(()),
            woken = session.changed() => if woken == Woken::Shutdown {
                return Err(Status::unavailable("the agent is stopping"));
            },
            request = requests.message() => match request? {
                None => return Ok(()),
                Some(request) => hear(&session, &mut subscription, &request)?,
            },
        }
    }
}

/// What the client has to be sent now, and the revision that it brings the client to.
fn update(
    session: &mut Session,
    subscription: &mut Subscription,
) -> Result<(Option<DiscoveryResponse>, u64), Status> {
    let ground = session.ground()?;
    let standing = session.standing(&ground)?;
    let mut wanted: BTreeMap<String, Wanted> = BTreeMap::new();
    for name in subscription.names() {
        let read = standing.read_name(name).map_err(|denial| session.denied(&denial))?;
        wanted.insert(name.clone(), read);
    }
    let certificates: BTreeSet<SpiffeId> = wanted.values().filter_map(Wanted::identity).cloned().collect();
    session.hold(&certificates)?;
    let ready = session.ready()?;
    let held: Held<'_> = ready.iter().map(|(id, svid)| (id.clone(), &**svid)).collect();
    let mut secrets = BTreeMap::new();
    for (name, wanted) in &wanted {
        if let Some(secret) =
            standing.secret(name, wanted, &held).map_err(|denial| session.denied(&denial))?
        {
            secrets.insert(name.clone(), secret);
        }
    }
    Ok((subscription.answer(secrets), standing.revision()))
}

fn hear(
    session: &Session,
    subscription: &mut Subscription,
    request: &DiscoveryRequest,
) -> Result<(), Status> {
    let heard = subscription.hear(request).map_err(|error| Status::invalid_argument(error.to_string()))?;
    let pid = session.caller.process.pid;
    match heard {
        Heard::Asked | Heard::Stale => {}
        Heard::Accepted { version } => {
            session.shared.metrics.acks.inc();
            tracing::debug!(pid, version, "SDS client put a version in force");
        }
        Heard::Rejected { version, detail } => {
            session.shared.metrics.nacks.inc();
            let names: Vec<&str> = subscription.names().iter().map(String::as_str).collect();
            tracing::warn!(
                pid,
                version,
                ?names,
                detail,
                "SDS client rejected a version and keeps the one before"
            );
        }
    }
    Ok(())
}
