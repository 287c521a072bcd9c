//! A local caller's stream, whichever protocol it speaks: who it is, what it may have, what it waits for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::select_all;
use hanse_identity::svid::Svid;
use hanse_identity::wire::AgentState;
use hanse_identity::{Evidence, SpiffeId, TrustDomain};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Extensions, Status};

use super::socket::Attested;
use super::svids::{Holding, IssuerError, Lease, MakeError};
use super::{Shared, StreamTicket, View, stopped};
use crate::attest::Caller;
use crate::secrets::{Denial, Standing};
use crate::subscription::Rejection;

/// Messages that wait for a client that does not read; after that it has `SEND_TIMEOUT`.
pub const MAX_UNSENT: usize = 2;
/// How long a client may leave its messages unread before its stream is closed.
pub const SEND_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a new stream waits for the cluster's state after the agent has joined.
pub const STATE_WAIT: Duration = Duration::from_secs(3);

pub type Sent<T> = Result<T, Status>;

/// One stream of one attested process.
pub struct Session {
    pub shared: Arc<Shared>,
    pub caller: Arc<Caller>,
    pub evidence: Evidence,
    /// Its executable has been read for this session, or could not be.
    hashed: bool,
    view: watch::Receiver<View>,
    shutdown: watch::Receiver<bool>,
    leases: BTreeMap<SpiffeId, Lease>,
    ticket: StreamTicket,
}

/// The cluster's state with the own trust domain: what `Standing` is made from.
pub struct Ground {
    state: Arc<AgentState>,
    own: TrustDomain,
}

/// Why a waiting stream wakes up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// State or SVIDs changed.
    Changed,
    Shutdown,
}

impl Ground {
    fn of(view: &View) -> Result<Self, Status> {
        match (&view.state, &view.trust_domain) {
            (Some(state), Some(own)) => Ok(Self { state: Arc::clone(state), own: own.clone() }),
            _ => Err(Status::unavailable("no control node has been reached yet")),
        }
    }
}

impl Session {
    /// Opens a session for the caller of a request, once the cluster's state is there.
    pub async fn open(
        shared: &Arc<Shared>,
        extensions: &Extensions,
        kind: &'static str,
    ) -> Result<Self, Status> {
        let caller = attested(extensions)?;
        let evidence = Evidence { agent: shared.name.clone(), selectors: caller.selectors() };
        let mut view = shared.view.clone();
        view.mark_changed();
        if view.borrow().trust_domain.is_none() {
            return Err(Status::unavailable("this agent has not joined its cluster yet"));
        }
        let state_is_there = view.wait_for(|v| v.state.is_some());
        let revision = match tokio::time::timeout(STATE_WAIT, state_is_there).await {
            Ok(Ok(view)) => view.state.as_ref().map_or(0, |s| s.revision),
            _ => return Err(Status::unavailable("no control node has been reached yet")),
        };
        let ticket = shared.streams.open(kind, caller.process, caller.uid, revision);
        let ticket = ticket.map_err(|full| Status::resource_exhausted(full.to_string()))?;
        let (shared, shutdown) = (Arc::clone(shared), shared.shutdown.clone());
        let leases = BTreeMap::new();
        let mut session = Self { shared, caller, evidence, hashed: false, view, shutdown, leases, ticket };
        session.ground().await?;
        session.view.mark_changed();
        Ok(session)
    }

    /// The state to decide from, with all the evidence that this takes; `changed` waits for a newer one.
    pub async fn ground(&mut self) -> Result<Ground, Status> {
        let ground = Ground::of(&self.view.borrow_and_update())?;
        if !self.hashed {
            let hashing = self.shared.svids.hashing();
            self.hashed = hashing.look(&ground.state, &self.evidence, &self.caller).await;
            self.evidence.selectors = self.caller.selectors();
        }
        Ok(ground)
    }

    /// As `ground`, without having seen it.
    pub fn peek(&self) -> Result<Ground, Status> {
        Ground::of(&self.view.borrow())
    }

    /// What the caller may have now.
    pub fn standing<'g>(&self, ground: &'g Ground) -> Result<Standing<'g>, Status> {
        Standing::of(&ground.state, &ground.own, &self.evidence).map_err(|denial| self.denied(&denial))
    }

    /// Waits until something changes in the cluster's state that `peek` has not shown.
    pub async fn newer(&mut self) -> Result<(), Status> {
        let Self { view, shutdown, .. } = self;
        tokio::select! {
            biased;
            () = stopped(shutdown) => Err(Status::unavailable("the agent is stopping")),
            changed = view.changed() => changed.map_err(|_| Status::unavailable("the agent is stopping")),
        }
    }

    /// Holds exactly these identities' SVIDs.
    pub fn hold(&mut self, wanted: &BTreeSet<SpiffeId>) -> Result<(), Status> {
        self.leases.retain(|id, _| wanted.contains(id));
        for id in wanted {
            if !self.leases.contains_key(id) {
                let lease = self.shared.svids.hold(id, &self.caller);
                let lease = lease.map_err(|full| Status::resource_exhausted(full.to_string()))?;
                self.leases.insert(id.clone(), lease);
            }
        }
        Ok(())
    }

    /// The SVIDs that are ready; an error if one was dropped for good.
    pub fn ready(&self) -> Result<BTreeMap<SpiffeId, Arc<Svid>>, Status> {
        let mut ready = BTreeMap::new();
        for (id, lease) in &self.leases {
            match lease.holding() {
                Holding::Ready(svid) => drop(ready.insert(id.clone(), svid)),
                Holding::Denied(denial) => return Err(self.denied(&denial)),
                Holding::Pending(_) => {}
            }
        }
        Ok(ready)
    }

    /// Whether every held SVID is ready or has been tried.
    pub fn settled(&self) -> bool {
        self.leases.values().all(|lease| !matches!(lease.holding(), Holding::Pending(None)))
    }

    /// Why an SVID is missing, as the caller is told.
    pub fn missing(&self) -> Status {
        let pending = self.leases.values().find_map(|lease| match lease.holding() {
            Holding::Pending(error) => Some(error),
            _ => None,
        });
        match pending.flatten() {
            Some(MakeError::Issuer(IssuerError::Refused(reason))) => Status::permission_denied(reason),
            Some(error) => Status::unavailable(error.to_string()),
            None => Status::unavailable("the SVID is not there yet"),
        }
    }

    /// Waits for anything that may change what the caller gets.
    pub async fn changed(&mut self) -> Woken {
        let Self { view, shutdown, leases, .. } = self;
        let svids = async {
            match leases.is_empty() {
                true => std::future::pending().await,
                false => drop(select_all(leases.values_mut().map(|lease| Box::pin(lease.changed()))).await),
            }
        };
        tokio::select! {
            biased;
            () = stopped(shutdown) => Woken::Shutdown,
            changed = view.changed() => if changed.is_ok() { Woken::Changed } else { Woken::Shutdown },
            () = svids => Woken::Changed,
        }
    }

    /// Everything that this revision means for the caller is in force there, as far as its protocol tells.
    pub fn handled(&self, revision: u64) {
        self.ticket.handled(revision);
    }

    /// What the client refused last, if it has accepted nothing newer since.
    pub fn rejected(&self, rejection: Option<&Rejection>) {
        self.ticket.rejected(rejection);
    }

    pub fn stream_number(&self) -> u64 {
        self.ticket.number()
    }

    /// A refusal as the caller gets it, logged and counted.
    pub fn denied(&self, denial: &Denial) -> Status {
        self.shared.metrics.denials.inc();
        let caller = &self.caller;
        tracing::info!(pid = caller.process.pid, uid = caller.uid, path = caller.path.as_deref(), %denial, "denied");
        match denial {
            Denial::UnknownName(_) | Denial::NotAnId(_) => Status::invalid_argument(denial.to_string()),
            Denial::UnknownTrustDomain(_) => Status::not_found(denial.to_string()),
            _ => Status::permission_denied(denial.to_string()),
        }
    }
}

/// The attested caller that the connection carries.
fn attested(extensions: &Extensions) -> Result<Arc<Caller>, Status> {
    match extensions.get::<Attested>() {
        Some(Attested(Ok(caller))) => Ok(Arc::clone(caller)),
        Some(Attested(Err(error))) => Err(Status::permission_denied(error.to_string())),
        None => Err(Status::permission_denied("this connection was not attested")),
    }
}

/// Hands a message to the client; `Err` if it is gone or does not read.
pub async fn send<T>(client: &mpsc::Sender<Sent<T>>, message: Sent<T>) -> Result<(), ()> {
    client.send_timeout(message, SEND_TIMEOUT).await.map_err(drop)
}

/// Runs a stream's task and gives what the client reads. The task's error is the last thing that it reads.
pub fn serve<T, F, Fut>(run: F) -> ReceiverStream<Sent<T>>
where
    T: Send + 'static,
    F: FnOnce(mpsc::Sender<Sent<T>>) -> Fut,
    Fut: Future<Output = Result<(), Status>> + Send + 'static,
{
    let (client, messages) = mpsc::channel(MAX_UNSENT);
    let task = run(client.clone());
    tokio::spawn(async move {
        if let Err(status) = task.await {
            let _ = send(&client, Err(status)).await;
        }
    });
    ReceiverStream::new(messages)
}
