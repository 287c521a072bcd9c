//! Knowledge: the View, the trust that follows from it, and whether we ourselves are still believed, as one value
//! that is swapped whole. Readers load a pointer; nobody waits.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use hanse_federation::{Revision, View};
use hanse_identity::tls::TrustSource;
use hanse_identity::{RevocationId, Timestamp, Trust};
use tokio::sync::watch;

use super::credentials::Credentials;

/// All that is known at one moment; its parts belong together.
#[derive(Clone)]
pub struct Known {
    /// `None` until the first View.
    pub view: Option<Arc<View>>,
    /// The View's once there is one; before that, the bundles that the agent gave.
    pub trust: Arc<Trust>,
    /// The revocation that hits our own SVID, if any.
    pub own_revoked: Option<RevocationId>,
    /// Whether it hits that SVID only and not our identity: then the agent is about to give us another one.
    pub own_is_replaced: bool,
}

/// How long a handshake waits for our own SVID, where a revoked one is being replaced: less than the other end waits for
/// the handshake.
pub const HANDSHAKE_WAITS: Duration = Duration::from_secs(1);

/// How the link to the control plane is.
#[derive(Clone, Debug, Default, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Link {
    /// `host:port` of the control node that we follow, or last followed.
    pub control_node: String,
    pub connected: bool,
    /// When it last said something.
    pub heard: Timestamp,
}

/// Views that are no longer in force, but that a request may still be reading: freeing a large one takes long, and is
/// not for a worker to do.
type Retired = Vec<Arc<View>>;

/// Holder of the newest `Known`.
pub struct Knowledge {
    known: ArcSwap<Known>,
    credentials: Arc<Credentials>,
    revisions: watch::Sender<Revision>,
    /// Whether no revocation hits our own SVID.
    believed: watch::Sender<bool>,
    /// Writers take turns, so that a refresh cannot undo a publication.
    writing: Mutex<Retired>,
    link: Mutex<Link>,
}

impl Known {
    pub fn revision(&self) -> Revision {
        self.view.as_ref().map_or(Revision(0), |view| view.revision)
    }
}

impl Knowledge {
    pub fn new(credentials: Arc<Credentials>) -> Self {
        let known =
            Known { view: None, trust: credentials.agent_trust(), own_revoked: None, own_is_replaced: false };
        Self {
            known: ArcSwap::from_pointee(known),
            credentials,
            revisions: watch::channel(Revision(0)).0,
            believed: watch::channel(true).0,
            writing: Mutex::default(),
            link: Mutex::default(),
        }
    }

    /// What is known now.
    pub fn now(&self) -> Arc<Known> {
        self.known.load_full()
    }

    /// What is known, once our own SVID is believed. One that was revoked without our identity is being replaced (its
    /// control node, its key or its serial number was revoked, or it is reissued): who waits for that, `within` at most,
    /// fails nobody who has nothing to do with the revocation.
    pub async fn settled(&self, within: Duration) -> Arc<Known> {
        let known = self.now();
        if known.own_revoked.is_none() || !known.own_is_replaced {
            return known;
        }
        let mut believed = self.believed.subscribe();
        // Too late: whoever asked decides by what is known then.
        let _ = tokio::time::timeout(within, believed.wait_for(|believed| *believed)).await;
        self.now()
    }

    pub fn view(&self) -> Option<Arc<View>> {
        self.known.load().view.clone()
    }

    /// Swaps the View in; says whether what is believed has changed with it. Callers want `Plane::publish`, which also
    /// asks live connections.
    pub fn publish(&self, view: Arc<View>) -> bool {
        let mut retired = self.writing.lock().expect("no writer panics while it holds its turn");
        let before = self.known.load_full();
        let same_trust = before
            .view
            .as_ref()
            .is_some_and(|old| old.bundles == view.bundles && old.revocations == view.revocations);
        let trust = if same_trust { Arc::clone(&before.trust) } else { Arc::new(view.trust()) };
        let revision = view.revision;
        self.store(Some(view), trust);
        retired.extend(before.view.clone());
        drop(before);
        retired.retain(|view| Arc::strong_count(view) > 1);
        self.revisions.send_replace(revision);
        !same_trust
    }

    /// Takes in that our own credentials, or the agent's bundles, have changed.
    pub fn refresh(&self) {
        let mut retired = self.writing.lock().expect("no writer panics while it holds its turn");
        let before = self.known.load_full();
        let trust =
            if before.view.is_some() { Arc::clone(&before.trust) } else { self.credentials.agent_trust() };
        self.store(before.view.clone(), trust);
        retired.retain(|view| Arc::strong_count(view) > 1);
    }

    fn store(&self, view: Option<Arc<View>>, trust: Arc<Trust>) {
        let own = self.credentials.current().map(|own| Arc::clone(&own.identity));
        let revocations = &trust.revocations;
        let own_revoked = own
            .as_ref()
            .and_then(|own| revocations.check(&own.facts).map(|revocation| revocation.id.clone()));
        let own_is_replaced =
            own_revoked.is_some() && own.is_some_and(|own| revocations.of_identity(&own.facts.id).is_none());
        let believed = own_revoked.is_none();
        self.known.store(Arc::new(Known { view, trust, own_revoked, own_is_replaced }));
        self.believed.send_if_modified(|before| std::mem::replace(before, believed) != believed);
    }

    /// Resolves when our own SVID is no longer believed, or is again.
    pub fn belief(&self) -> watch::Receiver<bool> {
        self.believed.subscribe()
    }

    /// Resolves on every new revision.
    pub fn revisions(&self) -> watch::Receiver<Revision> {
        self.revisions.subscribe()
    }

    pub fn link(&self) -> Link {
        self.link.lock().expect("no writer panics while it holds the link").clone()
    }

    /// A control node has said something.
    pub fn heard(&self, at: Timestamp) {
        self.set_link(|link| link.heard = at);
    }

    pub(super) fn set_link(&self, change: impl FnOnce(&mut Link)) {
        change(&mut self.link.lock().expect("no writer panics while it holds the link"));
    }
}

impl TrustSource for Knowledge {
    fn trust(&self) -> Arc<Trust> {
        Arc::clone(&self.known.load().trust)
    }
}
