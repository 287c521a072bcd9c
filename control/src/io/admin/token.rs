//! Join tokens: made on the node that is asked. The log gets the public half; the token is printed once.

use std::time::Duration;

use hanse_identity::token::{Admits, JoinToken};
use tonic::Status;

use super::Call;
use crate::admin::{AgentTokenCreateRequest, ClusterTokenCreateRequest, TokenReply};
use crate::command::Command;
use crate::io::keys::{new_key_pair, random_bytes};
use crate::io::status::no_outcome;

/// Shortest and longest life of a token.
const MIN_TTL: Duration = Duration::from_secs(10);
const MAX_TTL: Duration = Duration::from_secs(24 * 3600);

pub async fn for_cluster(call: Call, request: ClusterTokenCreateRequest) -> Result<TokenReply, Status> {
    if request.cluster == call.context.cluster {
        return Err(Status::failed_precondition(format!(
            "{} is this cluster: it cannot join itself",
            request.cluster
        )));
    }
    create(call, Admits::Cluster(request.cluster), request.ttl_seconds).await
}

pub async fn for_agent(call: Call, request: AgentTokenCreateRequest) -> Result<TokenReply, Status> {
    create(call, Admits::Agent(request.agent), request.ttl_seconds).await
}

async fn create(call: Call, admits: Admits, ttl_seconds: u64) -> Result<TokenReply, Status> {
    let ttl = Duration::from_secs(ttl_seconds);
    if !(MIN_TTL..=MAX_TTL).contains(&ttl) {
        let bounds = format!("{} s and {} h", MIN_TTL.as_secs(), MAX_TTL.as_secs() / 3600);
        return Err(Status::invalid_argument(format!("a token lives between {bounds}")));
    }
    let context = &call.context;
    let state = context.handle.read().await.map_err(|e| no_outcome(&e))?;
    let nodes = state.private.nodes.values();
    let endpoints: Vec<String> = match &admits {
        Admits::Agent(_) => nodes.map(|n| n.address.clone()).collect(),
        Admits::Cluster(_) => nodes.map(|n| n.peer_address.clone()).collect(),
    };
    let pins = state.view.bundles.get(&context.trust_domain).map(|b| b.pins()).unwrap_or_default();
    let key = new_key_pair().map_err(|e| Status::internal(format!("no key for the token: {e}")))?;
    let now = context.time();
    let id = random_bytes::<8>().iter().map(|b| format!("{b:02x}")).collect();
    let (token, invite) = JoinToken::create(
        id,
        admits,
        context.cluster.clone(),
        context.trust_domain.clone(),
        endpoints.clone(),
        pins.clone(),
        &key,
        now,
        now + ttl,
    );
    let reply = TokenReply {
        token: token.to_string(),
        invite: invite.id.clone(),
        expires: invite.expires,
        endpoints,
        pins,
        made_by: context.name.clone(),
    };
    call.write(Command::InviteCreate { invite }).await?;
    Ok(reply)
}
