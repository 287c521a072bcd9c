//! Connections of our app that a TCPRoute or TLSRoute has led into another namespace: they end when the grant for that is
//! withdrawn, whatever has become of the route meanwhile.

use std::rc::Rc;
use std::sync::Arc;

use hanse_federation::policy::CrossReference;

use super::Outbound;

impl Outbound {
    /// Resolves when what has led a connection is no longer granted.
    pub(super) async fn no_longer_granted(self: Rc<Self>, crossing: Option<Arc<CrossReference>>) {
        // Within one namespace there is nothing to withdraw.
        let Some(crossing) = crossing else { return std::future::pending().await };
        let mut revisions = self.plane.knowledge.revisions();
        let is_granted = || self.plane.knowledge.view().is_none_or(|view| crossing.is_granted(&view));
        while is_granted() {
            if revisions.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }
}
