//! The connection that an attempt goes by: how it is pooled, dialled and kept, as the policy's limits have it.

use std::cell::RefCell;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use futures_util::FutureExt as _;
use hanse_federation::choose::{Candidate, Limits, Way};
use hanse_federation::health::Target;
use hanse_identity::tls::Expect;

use super::{Outbound, Outgoing};
use crate::answer::Reason;
use crate::io::dial::{CONNECT_TIMEOUT, DialError, For, Key, MeshConnection, Pool, dial_endpoint};
use crate::io::record::Record;
use crate::io::tunnel::TUNNELS_PER_CLUSTER;

/// The connections that requests of one service went by last. Kept with its tables, so for as long as the View is the same
/// and with it who may answer there: what was found for a candidate once needs no second look.
#[derive(Default)]
pub(super) struct Recent(RefCell<Vec<(u64, Weak<MeshConnection>)>>);

/// Why there is no connection.
pub(super) enum Unconnected {
    Refused(Reason),
    Dial(DialError),
}

/// Connections that are remembered so; above that they are looked up.
const MAX_RECENT: usize = 16;

impl Recent {
    /// The connection to the candidate, if one for requests was found and may still be used.
    pub fn usable(&self, what: For, candidate: &Candidate) -> Option<Rc<MeshConnection>> {
        if !is_one(what, candidate) {
            return None;
        }
        let recent = self.0.borrow();
        let (_, held) = recent.iter().find(|(key, _)| *key == candidate.key)?;
        held.upgrade().filter(|connection| connection.is_usable())
    }

    fn remember(&self, what: For, candidate: &Candidate, connection: &Rc<MeshConnection>) {
        if !is_one(what, candidate) {
            return;
        }
        let mut recent = self.0.borrow_mut();
        recent.retain(|(key, held)| *key != candidate.key && held.strong_count() > 0);
        if recent.len() < MAX_RECENT {
            recent.push((candidate.key, Rc::downgrade(connection)));
        }
    }
}

/// Whether all requests for the candidate share one connection. Through gateways there are several, used in turn.
fn is_one(what: For, candidate: &Candidate) -> bool {
    what == For::Requests && matches!(candidate.way, Way::Direct(_))
}

impl Outbound {
    pub(super) fn pool_for(&self, what: For) -> &Rc<Pool> {
        match what {
            For::Requests => &self.pool,
            For::Streams => &self.stream_pool,
        }
    }

    /// A connection to the candidate within the request's time, and within the limit of those that wait for one.
    pub(super) async fn connect_for(
        &self,
        outgoing: &Outgoing<'_>,
        candidate: &Candidate,
        record: &mut Record,
    ) -> Result<Rc<MeshConnection>, Unconnected> {
        let _waiting = self.wait_for_connection(outgoing, candidate, record).map_err(Unconnected::Refused)?;
        let connected =
            tokio::time::timeout_at(outgoing.deadline, self.connection(outgoing, candidate)).await;
        let connection = connected.unwrap_or(Err(DialError::ConnectTimeout)).map_err(Unconnected::Dial)?;
        if candidate.identities.contains(&connection.peer) {
            outgoing.tables.recent.remember(outgoing.what, candidate, &connection);
        }
        Ok(connection)
    }

    /// A connection to the candidate, of those that there are or a new one.
    async fn connection(
        &self,
        outgoing: &Outgoing<'_>,
        candidate: &Candidate,
    ) -> Result<Rc<MeshConnection>, DialError> {
        let pool = self.pool_for(outgoing.what);
        let what = outgoing.what;
        let service = &outgoing.plan.backend.service;
        let limits = &outgoing.tables.limits;
        let expect = || Expect::Identities(Arc::clone(&candidate.identities));
        let admits = |peer: &hanse_identity::SpiffeId| candidate.identities.contains(peer);
        let no_address = || DialError::Connect("a cluster has no address of its own".to_owned());
        let key = key(outgoing, candidate).ok_or_else(no_address)?;
        match &candidate.way {
            Way::Tunnel(cluster) => {
                let dial = || {
                    let tunnels = Rc::clone(&self.tunnels);
                    let dialled = tunnels.dial_service(service.clone(), cluster.clone(), expect(), what);
                    within(limits, dialled).boxed_local()
                };
                let most = limits.connections.map_or(TUNNELS_PER_CLUSTER, |most| most as usize);
                pool.connection(key, most.min(TUNNELS_PER_CLUSTER), admits, dial).await
            }
            Way::Direct(address) => {
                let dial = || {
                    let (plane, cluster) = (Arc::clone(&self.plane), outgoing.view.cluster.clone());
                    let connect = limits.connect_timeout.unwrap_or(CONNECT_TIMEOUT);
                    let dialled =
                        dial_endpoint(plane, *address, connect, service.clone(), cluster, expect(), what);
                    within(limits, dialled).boxed_local()
                };
                pool.connection(key, 1, admits, dial).await
            }
            Way::Outside(_) => Err(no_address()),
        }
    }
}

/// What a connection to the candidate is pooled as.
pub(super) fn key(outgoing: &Outgoing<'_>, candidate: &Candidate) -> Option<Key> {
    match (&candidate.way, &candidate.target) {
        (Way::Tunnel(cluster), _) => {
            Some(Key::Service(outgoing.plan.backend.service.clone(), cluster.clone()))
        }
        (Way::Direct(address), Target::Endpoint(id)) => Some(Key::Endpoint(id.clone(), *address)),
        (Way::Direct(_), Target::Cluster(_) | Target::Address(_)) | (Way::Outside(_), _) => None,
    }
}

/// A dial within the policy's time, whose connection is kept as long as the policy says.
fn within(
    limits: &Limits,
    dialled: impl Future<Output = Result<MeshConnection, DialError>> + 'static,
) -> impl Future<Output = Result<MeshConnection, DialError>> + 'static {
    let (longest, idle) = (limits.connect_timeout, limits.idle_timeout);
    async move {
        let dialled = match longest {
            Some(longest) => {
                tokio::time::timeout(longest, dialled).await.unwrap_or(Err(DialError::ConnectTimeout))
            }
            None => dialled.await,
        };
        let mut connection = dialled?;
        connection.idle_after = idle.unwrap_or(connection.idle_after);
        Ok(connection)
    }
}
