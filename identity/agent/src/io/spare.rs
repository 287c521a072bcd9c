//! A second SVID of the agent's own, signed by another control node than the first.
//!
//! A control node that is revoked takes with it all that it has signed. An agent that had nothing else would have to be
//! let in anew by hand, and with it every host that listened to that node. The spare SVID is renewed like the first, and
//! shown to nobody before it is needed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use hanse_identity::name::MemberRole;
use hanse_identity::svid::{Svid, SvidFacts};
use hanse_identity::tls::{self, Expect};
use hanse_identity::wire::issue::RenewAgentRequest;
use hanse_identity::{Timestamp, Usage, renewal, verify};
use tokio::time::{Instant, timeout};
use tonic::Status;

use super::control_link::{ControlLink, Membership, RPC_TIMEOUT};
use super::dial::{ALPN_H2, DialError, dial};
use super::store::{StoreError, StoredIdentity};
use super::svids::{MakeError, key_and_request, renewal_due};
use super::{jitter, now};
use crate::wire::issue::issue_client::IssueClient;

/// How often it is looked whether a spare is wanted.
const LOOK: Duration = Duration::from_secs(1);
/// Over how long agents that start together fetch their first.
const FIRST_WITHIN: Duration = Duration::from_secs(3);
/// Pause after no other node gave one; twice as long each time, this often: each answer is an entry in the cluster's log.
const AGAIN: Duration = Duration::from_secs(5);
const DOUBLED: u32 = 6;

/// The spare SVID, and what became of it.
#[derive(Default)]
pub struct Spare {
    held: ArcSwapOption<Held>,
    /// The control node that the agent listens to: the next own SVID is its.
    endpoint: ArcSwapOption<String>,
    /// It has been put in use because of a refusal, and no control node has accepted the agent since.
    tried: AtomicBool,
    /// It has been put in use, and the own SVID was not renewed since.
    used: AtomicBool,
}

struct Held {
    svid: Svid,
    /// When it is to be renewed.
    due: Timestamp,
}

/// Why one control node did not give a spare.
#[derive(Debug, thiserror::Error)]
enum SpareError {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("{:?}: {}", .0.code(), .0.message())]
    Refused(#[from] Status),
    #[error("no answer in time")]
    Timeout,
    #[error(transparent)]
    Make(#[from] MakeError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("it signs with the same authority")]
    SameSigner,
    #[error("no other control node is known")]
    NoOther,
}

impl Spare {
    /// What was kept on the disk.
    pub fn put(&self, svid: Option<Svid>) {
        let due = |facts: &SvidFacts| renewal::renew_at(facts.not_before, facts.not_after, jitter());
        self.held.store(svid.map(|svid| Arc::new(Held { due: due(&svid.facts), svid })));
        self.tried.store(false, Ordering::Release);
    }

    /// A control node accepts the agent.
    pub fn connected(&self, endpoint: &str) {
        self.endpoint.store(Some(Arc::new(endpoint.to_owned())));
        self.tried.store(false, Ordering::Release);
    }

    /// Whether a refusal may be answered with it: once, until somebody accepts the agent.
    pub fn may_help(&self) -> bool {
        self.held.load().is_some() && !self.tried.swap(true, Ordering::AcqRel)
    }

    /// Whether the own SVID is the one that was the spare; said once.
    pub fn was_used(&self) -> bool {
        self.used.swap(false, Ordering::AcqRel)
    }
}

impl ControlLink {
    /// Sees to it that there is a spare, for as long as the agent is a member.
    pub(super) async fn keep_spare(self: Arc<Self>, membership: Arc<Membership>) {
        let mut again_at = Instant::now() + FIRST_WITHIN.mul_f64(jitter());
        let mut failures = 0u32;
        loop {
            tokio::time::sleep(LOOK).await;
            if Instant::now() < again_at || !self.wants_spare() {
                continue;
            }
            match self.fetch_spare(&membership).await {
                Ok(()) => failures = 0,
                // Of a single node there is none to be had.
                Err(SpareError::NoOther) => again_at = Instant::now() + AGAIN,
                Err(error) => {
                    tracing::warn!(%error, "no second SVID of the agent's own");
                    again_at = Instant::now()
                        + (AGAIN * 2u32.pow(failures.min(DOUBLED))).mul_f64(0.75 + 0.5 * jitter());
                    failures = failures.saturating_add(1);
                }
            }
        }
    }

    /// Whether there is none that another authority has signed, that is believed, and that need not be renewed yet.
    fn wants_spare(&self) -> bool {
        let own = self.identity.load();
        let (Some(own), true) = (own.as_ref(), self.connected()) else { return false };
        let spare = self.spare.held.load();
        !spare.as_ref().is_some_and(|spare| {
            let facts = &spare.svid.facts;
            facts.authority_key_identifier != own.facts.authority_key_identifier
                && now() < spare.due
                && !self.trust.load().is_outgoing(facts)
                && self.is_believed(&spare.svid)
        })
    }

    fn is_believed(&self, svid: &Svid) -> bool {
        let chain: Vec<&[u8]> = svid.chain.iter().map(Vec::as_slice).collect();
        verify(&self.trust.load(), &chain, now(), Usage::Client).is_ok()
    }

    /// Whether the spare was signed by an authority that is on its way out.
    pub(super) fn spare_must_go(&self) -> bool {
        let spare = self.spare.held.load();
        spare.as_ref().is_some_and(|spare| self.trust.load().is_outgoing(&spare.svid.facts))
    }

    /// Asks the other control nodes first: the one that is listened to signs the next own SVID.
    async fn fetch_spare(self: &Arc<Self>, membership: &Arc<Membership>) -> Result<(), SpareError> {
        let mut endpoints = membership.endpoints();
        if endpoints.len() < 2 {
            return Err(SpareError::NoOther);
        }
        let turn = usize::try_from(super::random() >> 1).unwrap_or(0) % endpoints.len();
        endpoints.rotate_left(turn);
        let current = self.spare.endpoint.load_full();
        endpoints.sort_by_key(|endpoint| current.as_deref() == Some(endpoint));
        let mut last = SpareError::NoOther;
        for endpoint in &endpoints {
            match self.ask_for_spare(membership, endpoint).await {
                Ok(()) => return Ok(()),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn ask_for_spare(
        self: &Arc<Self>,
        membership: &Arc<Membership>,
        endpoint: &str,
    ) -> Result<(), SpareError> {
        let (key, csr_der) = key_and_request()?;
        let expect = Expect::Member(membership.id.trust_domain().clone(), MemberRole::Node);
        let config = tls::client_config(Arc::clone(self) as _, Arc::clone(self) as _, expect, ALPN_H2);
        let mut client = IssueClient::new(dial(endpoint, config).await?.channel);
        let reply = timeout(RPC_TIMEOUT, client.renew_agent(RenewAgentRequest { csr_der })).await;
        let reply = reply.map_err(|_| SpareError::Timeout)??.into_inner();
        let svid = Svid::new(reply.chain_der, key).map_err(MakeError::NotAnSvid)?;
        self.check_own(membership, &svid)?;
        let own = self.identity.load_full();
        let signer = &svid.facts.authority_key_identifier;
        if own.is_some_and(|own| own.facts.authority_key_identifier == *signer) {
            return Err(SpareError::SameSigner);
        }
        let kept = svid.clone();
        membership.change(move |stored| stored.set_spare(&kept)).await?;
        tracing::info!(endpoint, serial = %svid.facts.serial, not_after = %svid.facts.not_after,
            "a second SVID of the agent's own is kept");
        let due = renewal_due(&svid.facts);
        self.spare.held.store(Some(Arc::new(Held { svid, due })));
        Ok(())
    }

    /// Puts the spare in use and keeps the other in its place. Says whether there was one that is believed.
    pub(super) async fn use_spare(&self, membership: &Arc<Membership>) -> bool {
        let spare = self.spare.held.load_full().filter(|spare| self.is_believed(&spare.svid));
        let Some(spare) = spare else { return false };
        if let Err(error) = membership.change(StoredIdentity::swap_spare).await {
            tracing::error!(%error, "which of its SVIDs the agent uses could not be stored");
        }
        if self.take_identity(&spare.svid).is_err() {
            return false;
        }
        let other = membership.lock().spare();
        self.spare.held.store(other.map(|svid| Arc::new(Held { svid, due: now() })));
        self.refused.store(false, Ordering::Release);
        self.spare.used.store(true, Ordering::Release);
        self.replace_own.notify_one();
        true
    }
}
