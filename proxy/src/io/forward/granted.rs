//! Connections of our app that a TCPRoute or TLSRoute has led into another namespace: they end when the grant for that is
//! withdrawn, as the next one would not be opened.

use std::rc::Rc;
use std::sync::Arc;

use hanse_federation::host::ServiceHost;

use super::Outbound;
use super::tcp::TcpTarget;

impl Outbound {
    /// Resolves when the route of such a connection may no longer name the backend that has it. `name`: the server name that
    /// its client has asked for.
    pub(super) async fn no_longer_permitted(
        self: Rc<Self>,
        target: Arc<TcpTarget>,
        name: Option<String>,
        backend: Arc<ServiceHost>,
    ) {
        // Within one namespace there is nothing to withdraw.
        if backend.service.namespace() == target.host.service.namespace() {
            return std::future::pending().await;
        }
        let mut revisions = self.plane.knowledge.revisions();
        let is_refused = || {
            let view = self.plane.knowledge.view();
            view.is_some_and(|view| {
                self.tables(&view, &target.host).streams.refuses(target.port, name.as_deref(), &backend)
            })
        };
        while !is_refused() {
            if revisions.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }
}
