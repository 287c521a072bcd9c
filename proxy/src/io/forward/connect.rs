//! The connection that an attempt goes by: how it is pooled, dialled and kept, as the policy's limits have it.

use std::rc::Rc;
use std::sync::Arc;

use futures_util::FutureExt as _;
use hanse_federation::choose::{Candidate, Limits, Way};
use hanse_federation::health::Target;
use hanse_identity::tls::Expect;

use super::{Outbound, Outgoing};
use crate::io::dial::{CONNECT_TIMEOUT, DialError, For, Key, MeshConnection, Pool, dial_endpoint};
use crate::io::tunnel::TUNNELS_PER_CLUSTER;

impl Outbound {
    pub(super) fn pool_for(&self, what: For) -> &Rc<Pool> {
        match what {
            For::Requests => &self.pool,
            For::Streams => &self.stream_pool,
        }
    }

    /// A connection to the candidate, of those that there are or a new one.
    pub(super) async fn connection(
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
        (Way::Direct(_), Target::Cluster(_)) => None,
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
