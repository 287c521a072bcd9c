//! The serving side of the links between nodes. Only nodes of the own trust domain come this far, and each speaks
//! only for itself: its Raft id is looked up by its verified SPIFFE ID.

use std::pin::Pin;
use std::sync::Arc;

use hanse_identity::name::MemberRole;
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

use super::MAX_MESSAGE_BYTES;
use crate::command::Proposal;
use crate::io::driver::{Attempt, Handle, PROPOSE_ATTEMPT};
use crate::io::server::ConnInfo;
use crate::wire::control::node_server::Node;
use crate::wire::control::{Document, RaftBatch};

/// Answers census questions about this node's own subscribers.
#[tonic::async_trait]
pub trait CensusSource: Send + Sync + 'static {
    /// census::Query → census::Part.
    async fn census(&self, query: Document) -> Result<Document, Status>;

    /// taps::Wanted → admin::TapPart, for as long as the stream is held.
    fn tap(&self, wanted: &Document) -> Result<TapStream, Status>;
}

/// What subscribers of this node tell of their requests.
pub type TapStream = Pin<Box<dyn Stream<Item = Result<Document, Status>> + Send>>;

/// The `Node` service.
pub struct NodeService {
    handle: Handle,
    census: Arc<dyn CensusSource>,
}

impl NodeService {
    pub fn new(handle: Handle, census: Arc<dyn CensusSource>) -> Self {
        Self { handle, census }
    }

    /// Which node is at the other end.
    fn caller<T>(&self, request: &Request<T>) -> Result<u64, Status> {
        let denied = || Status::permission_denied("only nodes of this cluster may call this");
        let info = request.extensions().get::<ConnInfo>().ok_or_else(denied)?;
        let caller = info.caller.as_ref().ok_or_else(denied)?.id();
        let state = self.handle.state();
        if !caller.is_member(&state.view.trust_domain, MemberRole::Node) {
            return Err(denied());
        }
        let name = caller.as_member().map(|(_, name)| name).ok_or_else(denied)?;
        let record = state.private.nodes.values().find(|n| n.name.as_str() == name);
        record.map(|r| r.raft_id).ok_or_else(denied)
    }
}

#[tonic::async_trait]
impl Node for NodeService {
    async fn raft(&self, request: Request<Streaming<RaftBatch>>) -> Result<Response<Document>, Status> {
        let from = self.caller(&request)?;
        let mut batches = request.into_inner();
        let mut parts = Parts::default();
        while let Some(batch) = batches.message().await? {
            if self.handle.inbox().is_closed() {
                return Err(Status::unavailable("the node is shutting down"));
            }
            for message in parts.join(batch)? {
                // Dropped if the loop is behind: Raft sends it again.
                self.handle.inbox().message(from, message);
            }
        }
        Ok(Response::new(Document::default()))
    }

    async fn forward(&self, request: Request<Document>) -> Result<Response<Document>, Status> {
        self.caller(&request)?;
        let proposal = serde_json::from_slice::<Proposal>(&request.into_inner().json)
            .map_err(|e| Status::invalid_argument(format!("the proposal cannot be read: {e}")))?;
        match self.handle.propose_here(Arc::new(proposal), PROPOSE_ATTEMPT).await {
            Attempt::Applied(outcome) => {
                let json = serde_json::to_vec(&outcome).expect("an Outcome has no failing serialisers");
                Ok(Response::new(Document { json }))
            }
            Attempt::NotLeader => Err(Status::failed_precondition("this node does not lead")),
            Attempt::Overloaded(waiting) => {
                Err(Status::resource_exhausted(format!("{waiting} proposals are waiting")))
            }
            Attempt::Unknown => Err(Status::deadline_exceeded("no outcome yet")),
            Attempt::ShuttingDown => Err(Status::unavailable("the node is shutting down")),
        }
    }

    async fn census(&self, request: Request<Document>) -> Result<Response<Document>, Status> {
        self.caller(&request)?;
        self.census.census(request.into_inner()).await.map(Response::new)
    }

    type TapStream = TapStream;

    async fn tap(&self, request: Request<Document>) -> Result<Response<TapStream>, Status> {
        self.caller(&request)?;
        self.census.tap(request.get_ref()).map(Response::new)
    }
}

/// Puts messages together again that came in parts.
#[derive(Default)]
pub(super) struct Parts {
    begun: Vec<u8>,
}

impl Parts {
    /// The messages that are complete with this batch.
    pub(super) fn join(&mut self, batch: RaftBatch) -> Result<Vec<Vec<u8>>, Status> {
        let mut messages = batch.message;
        if let Some(first) = messages.first_mut()
            && !self.begun.is_empty()
        {
            if self.begun.len() + first.len() > MAX_MESSAGE_BYTES {
                return Err(Status::resource_exhausted("the message is too long"));
            }
            self.begun.append(first);
            *first = std::mem::take(&mut self.begun);
        }
        if batch.more
            && let Some(last) = messages.pop()
        {
            self.begun = last;
        }
        Ok(messages)
    }
}
