//! Envoy's Secret Discovery Service on the agent's socket: state of the world, incremental, and fetched once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use envoy_types::pb::envoy::service::secret::v3::secret_discovery_service_server::SecretDiscoveryService;
use envoy_types::pb::google::protobuf::Any;
use hanse_identity::SpiffeId;
use prost::Name as _;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::session::{Sent, Session, Woken, send, serve};
use super::{Shared, now, random};
use crate::secrets::{Denial, Held, Wanted};
use crate::subscription::delta::DeltaSubscription;
use crate::subscription::world::Subscription;
use crate::subscription::{Conversation, Heard, RequestRate, version_of};

/// Name of this kind of stream in metrics and `/entries`.
pub const KIND: &str = "sds";
/// Name of a fetch while it waits.
const FETCH_KIND: &str = "sds-fetch";
/// How long a client may leave a response unanswered before its stream is closed: who is silent does not hold up what
/// is said of the others.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a fetch waits for secrets that are being made.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);

/// The service.
#[derive(Clone)]
pub struct Sds(pub Arc<Shared>);

#[tonic::async_trait]
impl SecretDiscoveryService for Sds {
    type StreamSecretsStream = ReceiverStream<Sent<DiscoveryResponse>>;
    type DeltaSecretsStream = ReceiverStream<Sent<DeltaDiscoveryResponse>>;

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        let session = Session::open(&self.0, request.extensions(), KIND).await?;
        let conversation = Subscription::new(random() ^ session.stream_number());
        let requests = request.into_inner();
        Ok(Response::new(serve(|client| converse(session, conversation, requests, client))))
    }

    async fn delta_secrets(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        let session = Session::open(&self.0, request.extensions(), KIND).await?;
        let conversation = DeltaSubscription::new(random() ^ session.stream_number());
        let requests = request.into_inner();
        Ok(Response::new(serve(|client| converse(session, conversation, requests, client))))
    }

    async fn fetch_secrets(
        &self,
        request: Request<DiscoveryRequest>,
    ) -> Result<Response<DiscoveryResponse>, Status> {
        let mut session = Session::open(&self.0, request.extensions(), FETCH_KIND).await?;
        let mut conversation = Subscription::new(session.stream_number());
        heard(conversation.hear(&request.into_inner()))?;
        let give_up = Instant::now() + FETCH_TIMEOUT;
        loop {
            let secrets = gather(&mut session, &conversation).await?;
            if secrets.ready.len() == conversation.names().len() {
                let versions: Vec<String> = secrets.ready.values().map(version_of).collect();
                return Ok(Response::new(DiscoveryResponse {
                    version_info: versions.join("-").chars().take(64).collect(),
                    type_url: Secret::type_url(),
                    resources: secrets.ready.into_values().collect(),
                    ..Default::default()
                }));
            }
            tokio::select! {
                woken = session.changed() => if woken == Woken::Shutdown {
                    return Err(Status::unavailable("the agent is stopping"));
                },
                () = tokio::time::sleep_until(give_up) => return Err(session.missing()),
            }
        }
    }
}

/// One stream, until the client goes, the agent stops, or the caller may not have what it asks for.
async fn converse<C: Conversation>(
    mut session: Session,
    mut conversation: C,
    mut requests: Streaming<C::Request>,
    client: mpsc::Sender<Sent<C::Response>>,
) -> Result<(), Status> {
    let mut rate = RequestRate::new(now());
    let mut answer_by: Option<Instant> = None;
    loop {
        let Secrets { ready, missing, revision } = gather(&mut session, &conversation).await?;
        if let Some(response) = conversation.answer(ready, &missing)
            && send(&client, Ok(response)).await.is_err()
        {
            return Ok(());
        }
        if conversation.in_force() {
            session.handled(revision);
        }
        session.rejected(conversation.rejection());
        answer_by = match conversation.unanswered() {
            true => answer_by.or_else(|| Some(Instant::now() + ANSWER_TIMEOUT)),
            false => None,
        };
        tokio::select! {
            biased;
            () = client.closed() => return Ok(()),
            woken = session.changed() => if woken == Woken::Shutdown {
                return Err(Status::unavailable("the agent is stopping"));
            },
            request = requests.message() => match request? {
                None => return Ok(()),
                Some(_) if !rate.take(now()) => {
                    return Err(Status::resource_exhausted("requests come faster than they are answered"));
                }
                Some(request) => {
                    let said = heard(conversation.hear(&request))?;
                    note(&session, conversation.names(), &said);
                    if matches!(said, Heard::Accepted { .. } | Heard::Rejected { .. }) {
                        answer_by = None;
                    }
                }
            },
            () = tokio::time::sleep_until(answer_by.unwrap_or_else(Instant::now)), if answer_by.is_some() => {
                session.shared.metrics.unanswered.inc();
                let limit = ANSWER_TIMEOUT.as_secs();
                return Err(Status::aborted(format!("a response was neither accepted nor rejected within {limit} s")));
            }
        }
    }
}

/// What a stream is to have now.
struct Secrets {
    ready: BTreeMap<String, Any>,
    /// Names that exist nowhere, where the client can be told so.
    missing: BTreeSet<String>,
    revision: u64,
}

async fn gather<C: Conversation>(session: &mut Session, conversation: &C) -> Result<Secrets, Status> {
    let ground = session.ground().await?;
    let standing = session.standing(&ground)?;
    let mut wanted: BTreeMap<&String, Wanted> = BTreeMap::new();
    let mut missing = BTreeSet::new();
    for name in conversation.names() {
        match standing.read_name(name) {
            Ok(read) => drop(wanted.insert(name, read)),
            // Silence would leave what the client has in force.
            Err(Denial::UnknownTrustDomain(trust_domain)) if conversation.holds(name) => {
                wanted.insert(name, Wanted::NoBundle(trust_domain));
            }
            Err(Denial::UnknownTrustDomain(_)) if C::TELLS_OF_MISSING => drop(missing.insert(name.clone())),
            Err(denial) => return Err(session.denied(&denial)),
        }
    }
    let certificates: BTreeSet<SpiffeId> = wanted.values().filter_map(Wanted::identity).cloned().collect();
    session.hold(&certificates)?;
    let svids = session.ready()?;
    let held: Held<'_> = svids.iter().map(|(id, svid)| (id.clone(), &**svid)).collect();
    let mut ready = BTreeMap::new();
    for (name, wanted) in &wanted {
        let secret = standing.secret(name, wanted, &held).map_err(|denial| session.denied(&denial))?;
        if let Some(secret) = secret {
            ready.insert((*name).clone(), secret);
        }
    }
    Ok(Secrets { ready, missing, revision: standing.revision() })
}

fn heard(said: Result<Heard, crate::subscription::RequestError>) -> Result<Heard, Status> {
    said.map_err(|error| Status::invalid_argument(error.to_string()))
}

fn note(session: &Session, names: &BTreeSet<String>, said: &Heard) {
    let pid = session.caller.process.pid;
    match said {
        Heard::Asked => {}
        Heard::Stale => drop(session.shared.metrics.stale.inc()),
        Heard::Accepted { version } => {
            session.shared.metrics.acks.inc();
            tracing::debug!(pid, version, "SDS client put a version in force");
        }
        Heard::Rejected { version, detail } => {
            session.shared.metrics.nacks.inc();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            tracing::warn!(
                pid,
                version,
                ?names,
                detail,
                "SDS client rejected a version and keeps the one before"
            );
        }
    }
}
