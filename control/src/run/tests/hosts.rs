//! Hosts that join with a certificate of a company's own PKI, over real TLS.

use hanse_identity::HostKey;
use hanse_identity::host::Naming;
use hanse_identity::wire::issue::AttestAgentRequest;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};

use super::*;

const ATTEST: &str = "/hanse.issue.v1.Issue/AttestAgent";

/// A company's PKI: one root that signs hosts' certificates.
pub(super) struct Company {
    pub(super) root_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Company {
    pub(super) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "Company Root");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let root_pem = params.self_signed(&key).unwrap().pem();
        Self { root_pem, issuer: Issuer::new(params, key) }
    }

    /// The key and certificate of a host that is valid for that long from an hour ago.
    fn host(&self, name: &str, lifetime: Duration) -> HostKey {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.subject_alt_names = vec![SanType::DnsName(name.to_owned().try_into().unwrap())];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let began = std::time::SystemTime::now() - Duration::from_secs(3600);
        (params.not_before, params.not_after) = (began.into(), (began + lifetime).into());
        let leaf = params.signed_by(&key, &self.issuer).unwrap().pem();
        HostKey::from_pem(leaf.as_bytes(), key.serialize_pem().as_bytes()).unwrap()
    }
}

const DAY: Duration = Duration::from_secs(24 * 3600);

async fn dial(cluster: &Cluster) -> Dialled {
    let tls = pinned_client_config(&"east.example".parse().unwrap(), &cluster.bundle().pins(), ALPN_H2);
    dial::connect(&cluster.any().listen.to_string(), tls).await.unwrap()
}

/// What a host says over a session with that binding.
fn request(host: &HostKey, agent: &str, binding: &[u8; 32], key: &rcgen::KeyPair) -> AttestAgentRequest {
    let csr_der = certificate_request(key).unwrap();
    let signature =
        host.prove(&"east.example".parse().unwrap(), binding, &agent.parse().unwrap(), &csr_der).unwrap();
    AttestAgentRequest { agent: agent.to_owned(), csr_der, chain_der: host.chain.clone(), signature }
}

async fn attest(cluster: &Cluster, host: &HostKey, agent: &str) -> Result<Svid, Status> {
    let (link, key) = (dial(cluster).await, new_key_pair().unwrap());
    let request = request(host, agent, &link.binding, &key);
    let reply: JoinAgentReply = unary(link.channel, ATTEST, request).await?;
    Ok(Svid::new(reply.chain_der, Zeroizing::new(key.serialize_der())).unwrap())
}

async fn trust(client: &Client, company: &Company, naming: Naming) {
    let request = HostTrustSetRequest { pem: company.root_pem.clone(), naming };
    assert!(client.call(&request).await.unwrap().changed);
}

fn corp() -> Naming {
    Naming::DnsDomain("corp.example".to_owned())
}

async fn agent_item(client: &Client, name: &str) -> AgentItem {
    let request = AgentListRequest { agent: Some(name.parse().unwrap()) };
    client.call(&request).await.unwrap().items.remove(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_joins_with_its_own_certificate_and_serves_its_workloads() {
    let east = found("east", 1).await;
    let client = east.client().await;
    let company = Company::new();
    let host = company.host("web-1.corp.example", 30 * DAY);
    let nobody = attest(&east, &host, "web-1").await.unwrap_err();
    assert!(nobody.message().contains("no certificate attests a host here"), "{nobody:?}");
    trust(&client, &company, corp()).await;
    let shown = client.call(&HostTrustShowRequest {}).await.unwrap().trust.unwrap();
    assert_eq!((shown.naming, shown.authorities[0].subject.as_str()), (corp(), "CN=Company Root"));

    let agent = attest(&east, &host, "web-1").await.unwrap();
    assert_eq!(agent.facts.id.to_string(), "spiffe://east.example/hanse/agent/web-1");
    let id: SpiffeId = "spiffe://east.example/ns/shop/sa/web".parse().unwrap();
    let svid = workload(&east, &client, &agent, &id, &[]).await;
    assert_eq!(svid.facts.id, id);
    let item = agent_item(&client, "web-1").await;
    let certificate = item.certificate.expect("it says by what it joined");
    assert_eq!(certificate.subject, "CN=web-1.corp.example");
    let rows =
        client.call(&AuditListRequest { kind: Some("agent-attest".into()), ..Default::default() }).await;
    let rows = rows.unwrap().items;
    assert!(rows[0].target.contains(&certificate.fingerprint[..20]), "{rows:?}");
    let by_token = join_agent(&east, "host-1", &agent_token(&client, "host-1").await).await.unwrap();
    assert_eq!(by_token.facts.id.to_string(), "spiffe://east.example/hanse/agent/host-1");
    assert!(agent_item(&client, "host-1").await.certificate.is_none());

    // By default nobody chooses a name.
    trust(&client, &company, Naming::Fingerprint).await;
    let host = company.host("web-2.corp.example", 30 * DAY);
    let own = hanse_identity::host::fingerprint_name(&host.chain[0]);
    let other = attest(&east, &host, "web-2").await.unwrap_err();
    assert!(other.message().contains(own.as_str()), "{other:?}");
    attest(&east, &host, own.as_str()).await.unwrap();

    assert!(client.call(&HostTrustDeleteRequest {}).await.unwrap().changed);
    let late = company.host("web-3.corp.example", 30 * DAY);
    assert!(attest(&east, &late, "web-3").await.is_err());
    assert_eq!(
        issue_svid(&east, &agent, &id, &["unix:uid:1000"]).await.unwrap().facts.id,
        id,
        "who joined stays"
    );
    east.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proof_that_is_stolen_forged_or_late_admits_nobody() {
    let east = found("east", 1).await;
    let client = east.client().await;
    let company = Company::new();
    trust(&client, &company, corp()).await;
    let host = company.host("web-1.corp.example", 30 * DAY);
    let denied = |outcome: Result<Svid, Status>, text: &str| {
        let status = outcome.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
        assert!(status.message().contains(text), "{status:?}");
    };
    denied(
        attest(&east, &Company::new().host("web-1.corp.example", 30 * DAY), "web-1").await,
        "not signed by",
    );
    denied(
        attest(&east, &company.host("web-1.corp.example", Duration::from_secs(60)), "web-1").await,
        "expired",
    );
    denied(attest(&east, &host, "web-2").await, "is for agent web-1, not web-2");

    // A proof that was made for one session and is shown in another: a hostile node that relays it gets that far.
    let (first, second) = (dial(&east).await, dial(&east).await);
    let key = new_key_pair().unwrap();
    let good = request(&host, "web-1", &first.binding, &key);
    let replayed: Result<JoinAgentReply, Status> = unary(second.channel, ATTEST, good.clone()).await;
    denied(replayed.map(|_| unreachable!()), "on this connection");
    // The certificate of one host with the key of another.
    let thief = company.host("web-9.corp.example", 30 * DAY);
    let third = dial(&east).await;
    let forged = AttestAgentRequest {
        chain_der: host.chain.clone(),
        ..request(&thief, "web-1", &third.binding, &key)
    };
    let forged: Result<JoinAgentReply, Status> = unary(third.channel.clone(), ATTEST, forged).await;
    denied(forged.map(|_| unreachable!()), "not of the certificate's key");
    // A session is a challenge for one proof: the next one is refused, were it good.
    let again = request(&host, "web-1", &third.binding, &key);
    let again: Result<JoinAgentReply, Status> = unary(third.channel, ATTEST, again).await;
    denied(again.map(|_| unreachable!()), "once");
    // An SVID of the mesh opens no such session.
    let agent = join_agent(&east, "host-1", &agent_token(&client, "host-1").await).await.unwrap();
    let member = dial_as(&east, &agent).await;
    let over = request(&host, "web-1", &member.binding, &key);
    let over: Result<JoinAgentReply, Status> = unary(member.channel, ATTEST, over).await;
    denied(over.map(|_| unreachable!()), "without a client certificate");
    let state = east.any().context.handle.state();
    assert!(!state.private.agents.keys().any(|name| name.as_str().starts_with("web-")), "nobody got in");
    // Where it belongs it is good, once.
    let reply: JoinAgentReply = unary(first.channel, ATTEST, good).await.unwrap();
    assert_eq!(reply.cluster, "east");
    east.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_hosts_with_one_certificate_one_joins_and_who_is_put_out_stays_out() {
    const HOSTS: usize = 20;
    let east = found("east", 3).await;
    let client = east.client().await;
    let company = Company::new();
    trust(&client, &company, corp()).await;
    east.until("the settings are everywhere", |n| n.context.handle.state().private.hosts.is_some()).await;
    let host = company.host("web-1.corp.example", 30 * DAY);
    let joins = futures_util::future::join_all((0..HOSTS).map(|_| attest(&east, &host, "web-1"))).await;
    let (won, lost): (Vec<_>, Vec<_>) = joins.into_iter().partition(Result::is_ok);
    assert_eq!(won.len(), 1, "{lost:?}");
    for status in lost.into_iter().map(Result::unwrap_err) {
        assert!(status.message().contains("has joined already"), "{status:?}");
    }
    let agent = won.into_iter().next().unwrap().unwrap();

    let name: NodeName = "web-1".parse().unwrap();
    let put_out = |status: Status| assert!(status.message().contains("was put out"), "{status:?}");
    client.call(&AgentEvictRequest { agent: name.clone(), note: String::new() }).await.unwrap();
    put_out(attest(&east, &host, "web-1").await.unwrap_err());
    put_out(attest(&east, &company.host("web-1.corp.example", 30 * DAY), "web-1").await.unwrap_err());
    let allow = AgentAllowRequest { agent: name.clone(), ttl_seconds: 600 };
    client.call(&allow).await.unwrap();
    assert!(agent_item(&client, "web-1").await.allowed.is_some());
    let again = attest(&east, &host, "web-1").await.unwrap();
    assert_ne!(again.facts.serial, agent.facts.serial);

    let ban = RevokeRequest::new(RevocationTarget::Agent(name.clone()), Reason::KeyCompromise);
    client.call(&ban).await.unwrap();
    let tries = AuditListRequest { actor: Some("agent/web-1".to_owned()), ..Default::default() };
    let before = client.call(&tries).await.unwrap().items;
    assert!(!before.is_empty(), "what it joined by is in the trail");
    let banned = attest(&east, &host, "web-1").await.unwrap_err();
    assert_eq!(client.call(&tries).await.unwrap().items, before, "who may not join writes nothing");
    assert!(banned.code() == Code::PermissionDenied && banned.message().contains("banned"), "{banned:?}");
    assert_eq!(client.call(&allow).await.unwrap_err().kind, ClientErrorKind::Precondition);
    client.call(&AgentUnbanRequest { agent: name }).await.unwrap();
    put_out(attest(&east, &host, "web-1").await.unwrap_err());
    client.call(&allow).await.unwrap();
    let back = attest(&east, &host, "web-1").await.unwrap();
    assert!(east.any().context.trust.current().revocations.check(&back.facts).is_none());
    east.stop().await;
}
