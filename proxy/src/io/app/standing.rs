//! Whether whoever has a stream open here would still be let in. A request is decided about when it begins; a stream may
//! last for days, so it is decided about again whenever what is known has changed.

use std::rc::Rc;

use hanse_identity::ServiceName;
use http::Request;

use super::{Caller, Inbound};
use crate::inbound::{admit, admit_stream};
use crate::io::authentication::Believed;

/// One open stream: who has it, and what was asked when it began.
pub(super) struct Standing {
    inbound: Rc<Inbound>,
    caller: Rc<Caller>,
    asked: Asked,
}

/// What was asked.
pub(super) enum Asked {
    /// A request that was upgraded: its head, and the end user as was believed then. The token is not judged again.
    Request(Request<()>, Believed),
    /// A port that is plain TCP.
    Port(ServiceName, u16),
}

impl Standing {
    pub(super) fn new(inbound: &Rc<Inbound>, caller: &Rc<Caller>, asked: Asked) -> Self {
        Self { inbound: Rc::clone(inbound), caller: Rc::clone(caller), asked }
    }

    /// Resolves when the caller would no longer be let in.
    pub(super) async fn lost(&self) {
        let mut revisions = self.inbound.plane.knowledge.revisions();
        // Asked before the first wait too: what is known may have changed while the stream was being opened.
        while self.is_good() {
            if revisions.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Only what policies and exports say: who is not believed any more is cut with the whole connection.
    fn is_good(&self) -> bool {
        let known = self.inbound.plane.knowledge.now();
        let Some(view) = known.view.as_deref() else { return true };
        let (access, caller) = (self.inbound.access(view), self.caller.verified.as_ref());
        let admitted = match &self.asked {
            Asked::Request(head, user) => {
                let user = user.as_ref().map(|user| &user.token);
                admit(Some(view), None, &self.inbound.services, &access, caller, user, head)
            }
            Asked::Port(service, port) => admit_stream(Some(view), None, service, *port, &access, caller),
        };
        admitted.is_ok()
    }
}
