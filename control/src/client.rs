//! The client of the Admin API, as the CLI uses it: fails over between control nodes, and says of every failure
//! what happened, why, and what to do about it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use hanse_federation::wire::{decode, encode};
use hanse_identity::issue::certificate_request;
use hanse_identity::name::MemberRole;
use hanse_identity::tls::{Expect, client_config};
use hanse_identity::wire::issue::{DownstreamReply, DownstreamRequest};
use hanse_identity::{
    AuthorityCertificate, Bundle, ClusterName, NodeName, Revocations, Svid, Trust, TrustDomain, Usage, verify,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Mutex;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};
use zeroize::Zeroizing;

use crate::admin::{AdminCall, ClusterJoinRequest, CredentialRenewRequest, JoinEvent, TapEvent, TapRequest};
use crate::command::Refusal;
use crate::io::dial::{self, ALPN_H2, DialError, FixedIdentity, FixedTrust};
use crate::io::keys;
use crate::io::status::{CAUSE_KEY, NO_QUORUM, REFUSAL_KEY, REVOKED};
use crate::state::issuance::names_node;
use crate::wire::control::Document;

pub use crate::io::keys::Credential;

/// How long one question may take, unless the caller says otherwise.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(15);
/// Largest answer.
const MAX_REPLY_BYTES: usize = 256 << 20;

/// A connection to one cluster's control nodes.
pub struct Client {
    cluster: ClusterName,
    trust_domain: TrustDomain,
    endpoints: Vec<String>,
    tls: Arc<rustls::ClientConfig>,
    deadline: Duration,
    /// The endpoint in use, by its place in the list.
    current: Mutex<Option<(usize, Channel)>>,
}

/// What kind of failure it is: the CLI turns it into an exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientErrorKind {
    /// No control node answers, or none that is believed.
    Unreachable,
    /// The credential is missing, expired, revoked or not entitled.
    NotAllowed,
    NotFound,
    Precondition,
    /// The cluster has no leader: try again later.
    NoQuorum,
    Timeout,
    /// The request itself is wrong.
    Invalid,
    /// A defect on one side or a mismatch of versions.
    Internal,
}

/// Why a question has no answer: what happened, why, how to fix it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {why}")]
pub struct ClientError {
    pub kind: ClientErrorKind,
    pub what: String,
    pub why: String,
    pub fix: String,
    /// What the control node's log refused, if it did.
    pub refusal: Option<Refusal>,
}

impl Client {
    /// Reads the credential and dials the first control node that answers.
    pub async fn connect(credential: &Credential) -> Result<Self, ClientError> {
        let svid = credential.svid().map_err(|e| ClientError::credential(e.to_string()))?;
        if svid.facts.not_after <= crate::io::keys::now() {
            return Err(ClientError::credential(format!("it expired at {}", svid.facts.not_after)));
        }
        let identity = FixedIdentity::new(&svid).map_err(|e| ClientError::credential(e.to_string()))?;
        let bundle = bundle_from_pem(&credential.bundle_pem, &credential.trust_domain)?;
        let trust = FixedTrust(Arc::new(Trust::new([&bundle], Revocations::default())));
        let expect = Expect::Member(credential.trust_domain.clone(), MemberRole::Node);
        let client = Self {
            cluster: credential.cluster.clone(),
            trust_domain: credential.trust_domain.clone(),
            endpoints: credential.endpoints.clone(),
            tls: client_config(Arc::new(trust), Arc::new(identity), expect, ALPN_H2),
            deadline: DEFAULT_DEADLINE,
            current: Mutex::new(None),
        };
        client.channel(None).await?;
        Ok(client)
    }

    /// How long one question may take.
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    pub fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Asks one question. A node that cannot be dialled, or that goes away before it has answered a read, is
    /// replaced by the next; a write that may have arrived is not sent twice.
    pub async fn call<C: AdminCall>(&self, question: &C) -> Result<C::Reply, ClientError> {
        let question = Document { json: encode(question) };
        let reply: Document = self.ask(("hanse.control.v1.Admin", C::RPC), &question).await?;
        decode(C::RPC, &reply.json).map_err(|e| ClientError::mismatch(C::RPC, &e))
    }

    /// Asks, as a workload that may be a nested issuer, for an intermediate authority over the CSR's key.
    pub async fn downstream(&self, csr_der: Vec<u8>) -> Result<DownstreamReply, ClientError> {
        let service = ("hanse.issue.v1.Issue", "IssueDownstream");
        self.ask(service, &DownstreamRequest { csr_der }).await.map_err(|error| match error.kind {
            ClientErrorKind::NotAllowed => ClientError {
                fix: "a ca-admin lets a workload have one, where its SVID comes from: hanse workload register ID --agent AGENT --selector … --downstream"
                    .to_owned(),
                ..error
            },
            _ => error,
        })
    }

    async fn ask<Q, A>(&self, rpc: (&str, &'static str), question: &Q) -> Result<A, ClientError>
    where
        Q: prost::Message + Clone + 'static,
        A: prost::Message + Default + 'static,
    {
        let asked = tokio::time::timeout(self.deadline, self.try_all(rpc, question));
        asked.await.unwrap_or_else(|_| {
            Err(ClientError {
                kind: ClientErrorKind::Timeout,
                what: format!("{} was not answered", rpc.1),
                why: format!("{} did not answer within {:?}", self.cluster, self.deadline),
                fix: "try again, or give it longer with --timeout".to_owned(),
                refusal: None,
            })
        })
    }

    async fn try_all<Q, A>(
        &self,
        (service, rpc): (&str, &'static str),
        question: &Q,
    ) -> Result<A, ClientError>
    where
        Q: prost::Message + Clone + 'static,
        A: prost::Message + Default + 'static,
    {
        let mut failed = None;
        for _ in 0..self.endpoints.len().max(1) {
            let (place, channel) = self.channel(failed).await?;
            match unary(channel, &format!("/{service}/{rpc}"), question.clone()).await {
                Ok(reply) => return Ok(reply),
                Err(status) if was_not_done(&status) || (is_gone(&status) && is_read(rpc)) => {
                    failed = Some(place);
                }
                Err(status) => {
                    if is_gone(&status) {
                        *self.current.lock().await = None;
                    }
                    return Err(ClientError::from_status(rpc, &status));
                }
            }
        }
        Err(ClientError {
            kind: ClientErrorKind::Unreachable,
            what: format!("{rpc} was not answered"),
            why: "every control node went away while it was asked".to_owned(),
            fix: "look at the nodes: hanse node list".to_owned(),
            refusal: None,
        })
    }

    /// Has the credential renewed: a new key, a new certificate, and the bundle as it is now.
    pub async fn renew(&self, credential: &Credential) -> Result<Credential, ClientError> {
        let unusable = |why: String| ClientError::mismatch("CredentialRenew", &why);
        let key = keys::new_key_pair().map_err(|e| unusable(e.to_string()))?;
        let csr_der = certificate_request(&key).map_err(|e| unusable(e.to_string()))?;
        let reply = self.call(&CredentialRenewRequest { csr_der }).await?;
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(reply.chain_pem.as_bytes()).collect();
        let chain = chain.map_err(|e| unusable(format!("{e:?}")))?;
        let chain: Vec<Vec<u8>> = chain.iter().map(|der| der.to_vec()).collect();
        let svid =
            Svid::new(chain, Zeroizing::new(key.serialize_der())).map_err(|e| unusable(e.to_string()))?;
        let same = credential.svid().is_ok_and(|old| old.facts.id == svid.facts.id);
        if !same || reply.bundle.trust_domain != self.trust_domain {
            return Err(unusable(format!("it is for {}", svid.facts.id)));
        }
        reply.bundle.check().map_err(|e| unusable(e.to_string()))?;
        let trust = Trust::new([&reply.bundle], Revocations::default());
        let chain: Vec<&[u8]> = svid.chain.iter().map(Vec::as_slice).collect();
        verify(&trust, &chain, keys::now(), Usage::Client).map_err(|e| unusable(e.to_string()))?;
        Ok(Credential {
            endpoints: reply.endpoints,
            chain_pem: svid.chain_pem(),
            key_pem: svid.key_pem().to_string(),
            bundle_pem: reply.bundle.to_pem(),
            ..credential.clone()
        })
    }

    /// Has the credential renewed by another node than that one, because what that one has signed is about to be revoked.
    pub async fn renew_apart_from(
        credential: &Credential,
        node: &NodeName,
    ) -> Result<Credential, ClientError> {
        let mut why = "every node that was asked signs as it does".to_owned();
        for (place, endpoint) in credential.endpoints.iter().enumerate() {
            let one = Credential { endpoints: vec![endpoint.clone()], ..credential.clone() };
            match async { Self::connect(&one).await?.renew(&one).await }.await {
                Ok(renewed) if !is_signed_by(&renewed, node) => {
                    // This one first: it is none that is about to go.
                    let mut endpoints = credential.endpoints.clone();
                    endpoints.rotate_left(place);
                    return Ok(Credential { endpoints, ..renewed });
                }
                Ok(_) => {}
                Err(error) => why = error.why,
            }
        }
        Err(ClientError {
            kind: ClientErrorKind::Precondition,
            what: format!("{node} has signed this credential, and no other node renews it"),
            why,
            fix: "make one on another control node first: hanse node credential --data-dir DIR --out FILE"
                .to_owned(),
            refusal: None,
        })
    }

    /// Joins another cluster: a stream of lines and then the end. No deadline but the steps' own.
    pub async fn join(
        &self,
        request: &ClusterJoinRequest,
    ) -> Result<impl Stream<Item = Result<JoinEvent, ClientError>> + use<>, ClientError> {
        self.stream("ClusterJoin", request).await
    }

    /// Looks at live requests, until the stream is dropped or ends by itself.
    pub async fn tap(
        &self,
        request: &TapRequest,
    ) -> Result<impl Stream<Item = Result<TapEvent, ClientError>> + use<>, ClientError> {
        self.stream("Tap", request).await
    }

    async fn stream<Q, E>(
        &self,
        rpc: &'static str,
        question: &Q,
    ) -> Result<impl Stream<Item = Result<E, ClientError>> + use<Q, E>, ClientError>
    where
        Q: Serialize,
        E: DeserializeOwned,
    {
        let document = Document { json: encode(question) };
        let mut failed = None;
        let stream = loop {
            let (place, channel) = self.channel(failed).await?;
            match streaming(channel, rpc, document.clone()).await {
                Ok(stream) => break stream,
                Err(status) if failed.is_none() && was_not_done(&status) => failed = Some(place),
                Err(status) => return Err(ClientError::from_status(rpc, &status)),
            }
        };
        Ok(stream.map(move |document| {
            let document = document.map_err(|status| ClientError::from_status(rpc, &status))?;
            decode(rpc, &document.json).map_err(|e| ClientError::mismatch(rpc, &e))
        }))
    }

    /// The channel in use, or a new one, dialled after the endpoint that has failed.
    async fn channel(&self, failed: Option<usize>) -> Result<(usize, Channel), ClientError> {
        let mut current = self.current.lock().await;
        if let Some((place, channel)) = &*current
            && failed != Some(*place)
        {
            return Ok((*place, channel.clone()));
        }
        let count = self.endpoints.len();
        let first = failed.map_or(0, |place| place + 1);
        let mut errors = Vec::new();
        for place in (first..first + count).map(|n| n % count.max(1)) {
            match dial::connect(&self.endpoints[place], self.tls.clone()).await {
                Ok(link) => {
                    *current = Some((place, link.channel.clone()));
                    return Ok((place, link.channel));
                }
                Err(error) => errors.push(error),
            }
        }
        *current = None;
        Err(ClientError::unreachable(&self.cluster, &errors))
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("cluster", &self.cluster)
            .field("endpoints", &self.endpoints)
            .finish_non_exhaustive()
    }
}

/// One unary rpc by its path.
async fn unary<Q, A>(channel: Channel, path: &str, question: Q) -> Result<A, Status>
where
    Q: prost::Message + 'static,
    A: prost::Message + Default + 'static,
{
    let mut grpc = tonic::client::Grpc::new(channel).max_decoding_message_size(MAX_REPLY_BYTES);
    grpc.ready().await.map_err(|e| Status::unavailable(dial::with_sources(&e)))?;
    let path = http::uri::PathAndQuery::try_from(path).map_err(|e| Status::internal(e.to_string()))?;
    let codec = tonic_prost::ProstCodec::<Q, A>::default();
    grpc.unary(Request::new(question), path, codec).await.map(tonic::Response::into_inner)
}

/// One rpc of the Admin service that answers with a stream.
async fn streaming(
    channel: Channel,
    rpc: &'static str,
    question: Document,
) -> Result<Streaming<Document>, Status> {
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.map_err(|e| Status::unavailable(dial::with_sources(&e)))?;
    let path = format!("/hanse.control.v1.Admin/{rpc}");
    let path = http::uri::PathAndQuery::try_from(path).map_err(|e| Status::internal(e.to_string()))?;
    let codec = tonic_prost::ProstCodec::<Document, Document>::default();
    grpc.server_streaming(Request::new(question), path, codec).await.map(tonic::Response::into_inner)
}

/// Whether it is certain that nothing was done: it never left, or the node is revoked and said so.
fn was_not_done(status: &Status) -> bool {
    dial::never_sent(status) || status.metadata().get(CAUSE_KEY).is_some_and(|cause| cause == REVOKED)
}

/// Whether the connection broke (and not: the node answered that it cannot).
fn is_gone(status: &Status) -> bool {
    let says_why = status.metadata().contains_key(CAUSE_KEY);
    let transport = std::error::Error::source(status).is_some();
    !says_why && (status.code() == Code::Unavailable || (status.code() == Code::Unknown && transport))
}

/// Questions that change nothing, and so may be asked twice.
pub(crate) fn is_read(rpc: &str) -> bool {
    rpc.ends_with("List")
        || matches!(
            rpc,
            "ClusterCheck"
                | "ServiceEndpoints"
                | "PolicyGet"
                | "PolicyValidate"
                | "RevokePreview"
                | "RevokeStatus"
                | "RevokeShow"
                | "RevokeExport"
                | "HostTrustShow"
                | "IdentityVerify"
                | "TrustStatus"
                | "Traffic"
                | "CredentialRenew"
        )
}

/// Whether an authority of that control node has signed the credential, as far as its bundle tells: below a root of one's
/// own house it has that root only.
pub fn is_signed_by(credential: &Credential, node: &NodeName) -> bool {
    let signer = credential.svid().ok().and_then(|svid| svid.facts.authority_key_identifier);
    let bundle = bundle_from_pem(&credential.bundle_pem, &credential.trust_domain);
    let authorities = bundle.map(|bundle| bundle.authorities).unwrap_or_default();
    signer.is_some_and(|signer| {
        authorities.iter().any(|a| a.key_id.prefix() == signer && names_node(&a.subject, node))
    })
}

fn bundle_from_pem(pem: &str, trust_domain: &TrustDomain) -> Result<Bundle, ClientError> {
    let mut authorities = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|e| ClientError::credential(format!("its bundle: {e:?}")))?;
        let authority = AuthorityCertificate::parse(&certificate, trust_domain);
        authorities.push(authority.map_err(|e| ClientError::credential(format!("its bundle: {e}")))?);
    }
    if authorities.is_empty() {
        return Err(ClientError::credential("its bundle is empty".to_owned()));
    }
    Ok(Bundle::new(trust_domain.clone(), 0, authorities))
}

impl ClientError {
    fn credential(why: String) -> Self {
        Self {
            kind: ClientErrorKind::NotAllowed,
            what: "the credential cannot be used".to_owned(),
            why,
            fix: "make a new one on a control node: hanse node credential --data-dir DIR --out FILE"
                .to_owned(),
            refusal: None,
        }
    }

    fn unreachable(cluster: &ClusterName, errors: &[DialError]) -> Self {
        let stranger = errors.iter().any(|e| matches!(e, DialError::Tls { .. }));
        let why = if errors.is_empty() {
            "the credential names no endpoint".to_owned()
        } else {
            errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
        };
        let fix = if stranger {
            "what answers there is not believed: is the credential of this cluster, and has a clock gone wrong? \
             there is no flag that skips this check"
        } else {
            "are the control nodes running, and is the address right? hanse context list"
        };
        Self {
            kind: ClientErrorKind::Unreachable,
            what: format!("no control node of {cluster} can be reached"),
            why,
            fix: fix.to_owned(),
            refusal: None,
        }
    }

    fn mismatch(rpc: &str, error: &dyn fmt::Display) -> Self {
        Self {
            kind: ClientErrorKind::Internal,
            what: format!("the answer to {rpc} cannot be read"),
            why: error.to_string(),
            fix: "do the command line and the control nodes have the same version? hanse node list"
                .to_owned(),
            refusal: None,
        }
    }

    /// What a control node answered in place of a document.
    pub fn from_status(rpc: &str, status: &Status) -> Self {
        let cause = status.metadata().get(CAUSE_KEY);
        let refusal = status
            .metadata()
            .get(REFUSAL_KEY)
            .and_then(|json| decode::<Refusal>("refusal", json.as_bytes()).ok());
        let (kind, fix) = match status.code() {
            _ if cause.is_some_and(|cause| cause == NO_QUORUM) => {
                (ClientErrorKind::NoQuorum, "try again in a moment; which nodes answer: hanse node list")
            }
            Code::Unauthenticated => (
                ClientErrorKind::NotAllowed,
                "make a new credential on a control node: hanse node credential --data-dir DIR --out FILE",
            ),
            Code::PermissionDenied => {
                (ClientErrorKind::NotAllowed, "use a credential that is entitled to this")
            }
            Code::NotFound => {
                (ClientErrorKind::NotFound, "look at what there is with the matching list command")
            }
            Code::FailedPrecondition | Code::AlreadyExists | Code::Aborted | Code::ResourceExhausted => {
                (ClientErrorKind::Precondition, "see why above; nothing was changed")
            }
            Code::InvalidArgument | Code::OutOfRange => {
                (ClientErrorKind::Invalid, "correct the request; nothing was changed")
            }
            Code::DeadlineExceeded | Code::Cancelled => {
                (ClientErrorKind::Timeout, "try again, or give it longer with --timeout")
            }
            Code::Unavailable => {
                (ClientErrorKind::Unreachable, "try again; which nodes answer: hanse node list")
            }
            Code::Unknown if std::error::Error::source(status).is_some() => {
                (ClientErrorKind::Unreachable, "try again; which nodes answer: hanse node list")
            }
            _ => (ClientErrorKind::Internal, "look at the control node's log"),
        };
        Self {
            kind,
            what: format!("{rpc} was not done"),
            why: status.message().to_owned(),
            fix: fix.to_owned(),
            refusal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::driver::ProposeError;
    use crate::io::status::{no_outcome, node_revoked, refused};

    #[test]
    fn every_failure_has_its_kind() {
        let kind = |status: Status| ClientError::from_status("X", &status).kind;
        assert_eq!(kind(no_outcome(&ProposeError::NoLeader)), ClientErrorKind::NoQuorum);
        assert_eq!(kind(no_outcome(&ProposeError::Timeout(DEFAULT_DEADLINE))), ClientErrorKind::NoQuorum);
        assert_eq!(kind(refused(&Refusal::NotFound { what: "x".to_owned() })), ClientErrorKind::NotFound);
        assert_eq!(kind(refused(&Refusal::Precondition("x".to_owned()))), ClientErrorKind::Precondition);
        assert_eq!(kind(refused(&Refusal::Limit("x".to_owned()))), ClientErrorKind::Precondition);
        assert_eq!(kind(refused(&Refusal::Invalid("x".to_owned()))), ClientErrorKind::Invalid);
        assert_eq!(kind(Status::unauthenticated("x")), ClientErrorKind::NotAllowed);
        assert_eq!(kind(Status::permission_denied("x")), ClientErrorKind::NotAllowed);
        assert_eq!(kind(Status::deadline_exceeded("x")), ClientErrorKind::Timeout);
        assert_eq!(kind(Status::unavailable("x")), ClientErrorKind::Unreachable);
        assert_eq!(kind(Status::internal("x")), ClientErrorKind::Internal);
        let refusal = Refusal::Precondition("in use".to_owned());
        assert_eq!(ClientError::from_status("X", &refused(&refusal)).refusal, Some(refusal));
    }

    #[test]
    fn only_reads_are_asked_twice() {
        for rpc in ["NodeList", "ProxyList", "RevokeStatus", "PolicyGet"] {
            assert!(is_read(rpc), "{rpc}");
        }
        for rpc in
            ["Revoke", "RevokeLift", "PolicyApply", "ClusterTokenCreate", "WorkloadRegister", "ServiceExport"]
        {
            assert!(!is_read(rpc), "{rpc}");
        }
        assert!(!is_gone(&no_outcome(&ProposeError::NoLeader)));
        assert!(was_not_done(&node_revoked()) && !was_not_done(&no_outcome(&ProposeError::NoLeader)));
        assert!(is_gone(&Status::unavailable("broken")));
    }
}
