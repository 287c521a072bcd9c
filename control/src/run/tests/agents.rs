//! Agents that are evicted, banned and let in again, and many that want in with one token.

use hanse_identity::wire::AgentState;
use hanse_identity::wire::issue::{AgentDown, AgentUp, RenewAgentRequest};

use super::*;
use crate::io::joining::PER_PROOF;

/// An agent's stream, as a control node sees it.
struct Stream {
    _up: mpsc::Sender<AgentUp>,
    down: Streaming<AgentDown>,
}

async fn listen(cluster: &Cluster, agent: &Svid) -> Result<Stream, Status> {
    let link = dial_as(cluster, agent).await;
    let mut grpc = tonic::client::Grpc::new(link.channel).max_decoding_message_size(64 << 20);
    grpc.ready().await.map_err(|e| Status::unavailable(e.to_string()))?;
    let (up, ups) = mpsc::channel(16);
    let codec = tonic_prost::ProstCodec::<AgentUp, AgentDown>::default();
    let path = ::http::uri::PathAndQuery::from_static("/hanse.issue.v1.Issue/WatchAgent");
    let mut down = grpc.streaming(Request::new(ReceiverStream::new(ups)), path, codec).await?.into_inner();
    let first = down.message().await?.ok_or_else(|| Status::aborted("no state"))?;
    let _: AgentState = decode("state", &first.state).unwrap();
    Ok(Stream { _up: up, down })
}

impl Stream {
    /// The last state and how the stream ended.
    async fn end(mut self) -> (Option<AgentState>, Option<Status>) {
        let mut last = None;
        let heard = async {
            loop {
                match self.down.message().await {
                    Ok(Some(down)) => last = Some(decode("state", &down.state).unwrap()),
                    Ok(None) => return None,
                    Err(status) => return Some(status),
                }
            }
        };
        let ended = tokio::time::timeout(PATIENCE, heard).await.expect("the stream ends");
        (last, ended)
    }
}

async fn renew(cluster: &Cluster, agent: &Svid) -> Result<SvidReply, Status> {
    let csr_der = certificate_request(&new_key_pair().unwrap()).unwrap();
    let link = dial_as(cluster, agent).await;
    unary(link.channel, "/hanse.issue.v1.Issue/RenewAgent", RenewAgentRequest { csr_der }).await
}

async fn shown(client: &Client, name: &str) -> AgentItem {
    let request = AgentListRequest { agent: Some(name.parse().unwrap()) };
    client.call(&request).await.unwrap().items.remove(0)
}

const RATINGS: &str = "spiffe://east.example/ns/shop/sa/ratings";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_evicted_agent_is_cut_off_and_comes_back_with_a_new_token_only() {
    let east = found("east", 1).await;
    let client = east.client().await;
    let token = agent_token(&client, "host-1").await;
    let agent = join_agent(&east, "host-1", &token).await.unwrap();
    let id: SpiffeId = RATINGS.parse().unwrap();
    let ratings = workload(&east, &client, &agent, &id, &["shop/ratings"]).await;
    let stream = listen(&east, &agent).await.unwrap();
    let connected = || async {
        Some(shown(&client, "host-1").await).filter(|item| item.state == AgentStanding::Connected)
    };
    let item = eventually_asked("the agent is connected", connected).await;
    assert_eq!((item.serial.as_ref(), item.registrations), (Some(&agent.facts.serial), 1));
    assert_eq!(item.certificate_not_after, Some(agent.facts.not_after));
    assert!(item.remote.unwrap().ip().is_loopback() && item.seen.is_some());
    assert_eq!(item.node.as_ref().map(NodeName::as_str), Some("east-1"));
    let [served] = item.workloads.as_slice() else { panic!("{item:?}") };
    assert_eq!((&served.id, served.certificates, served.not_after), (&id, 1, ratings.facts.not_after));

    let early = agent_token(&client, "host-1").await;
    let evict = AgentEvictRequest { agent: "host-1".parse().unwrap(), note: "reinstalled".into() };
    let began = Instant::now();
    let evicted = client.call(&evict).await.unwrap();
    let revocation = evicted.revocation.expect("it is revoked");
    let (state, ended) = stream.end().await;
    assert!(began.elapsed() < Duration::from_secs(1), "it took {:?}", began.elapsed());
    let hit = state.unwrap().revocations.check(&agent.facts).map(|r| r.id.clone());
    assert_eq!(hit.as_ref(), Some(&revocation), "it is told why");
    assert_eq!(ended.map(|s| s.code()), Some(Code::PermissionDenied));
    assert_eq!(shown(&client, "host-1").await.state, AgentStanding::Evicted);
    assert_eq!(client.call(&evict).await.unwrap().revocation, None, "once is enough");

    for refused in [
        renew(&east, &agent).await.map(drop),
        issue_svid(&east, &agent, &id, &["unix:uid:1000"]).await.map(drop),
        listen(&east, &agent).await.map(drop),
    ] {
        assert!(refused.is_err(), "with the old certificate");
    }
    // Neither the token that it used nor one that was out already.
    assert_eq!(join_agent(&east, "host-1", &token).await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(join_agent(&east, "host-1", &early).await.unwrap_err().code(), Code::PermissionDenied);

    let token = agent_token(&client, "host-1").await;
    let again = join_agent(&east, "host-1", &token).await.unwrap();
    renew(&east, &again).await.unwrap();
    assert_eq!(issue_svid(&east, &again, &id, &["unix:uid:1000"]).await.unwrap().facts.id, id);
    let trust = east.any().context.trust.current();
    assert!(trust.revocations.check(&ratings.facts).is_none(), "what its workloads had is not touched");
    let unknown = AgentEvictRequest { agent: "host-9".parse().unwrap(), note: String::new() };
    assert_eq!(client.call(&unknown).await.unwrap_err().kind, ClientErrorKind::NotFound);
    east.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_banned_agents_name_is_refused_until_the_ban_ends_and_what_it_had_stays_dead() {
    let east = found("east", 1).await;
    let client = east.client().await;
    let agent = join_agent(&east, "host-1", &agent_token(&client, "host-1").await).await.unwrap();
    let id: SpiffeId = RATINGS.parse().unwrap();
    let ratings = workload(&east, &client, &agent, &id, &["shop/ratings"]).await;
    let stream = listen(&east, &agent).await.unwrap();
    let out = agent_token(&client, "host-1").await;
    let name: NodeName = "host-1".parse().unwrap();
    // Not a hold: only unban ends it.
    let ban = RevokeRequest::new(RevocationTarget::Agent(name.clone()), Reason::KeyCompromise);
    let began = Instant::now();
    let ban = client.call(&ban).await.unwrap().id;
    let (_, ended) = stream.end().await;
    assert!(began.elapsed() < Duration::from_secs(1), "it took {:?}", began.elapsed());
    assert!(ended.unwrap().message().contains("banned"));
    let item = shown(&client, "host-1").await;
    assert_eq!((item.state, item.banned), (AgentStanding::Banned, Some(ban.clone())));
    let fresh = agent_token(&client, "host-1").await;
    for token in [&out, &fresh] {
        let refused = join_agent(&east, "host-1", token).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
    }
    let evict = AgentEvictRequest { agent: name.clone(), note: String::new() };
    assert_eq!(client.call(&evict).await.unwrap_err().kind, ClientErrorKind::Precondition);

    let unban = AgentUnbanRequest { agent: name };
    assert!(client.call(&unban).await.unwrap().changed);
    assert!(!client.call(&unban).await.unwrap().changed);
    for token in [&out, &fresh] {
        assert!(join_agent(&east, "host-1", token).await.is_err(), "a token of before");
    }
    assert_eq!(shown(&client, "host-1").await.state, AgentStanding::Evicted);
    let trust = east.any().context.trust.current();
    for old in [&agent.facts, &ratings.facts] {
        let hit = trust.revocations.check(old).expect("it stays dead");
        assert_ne!(hit.id, ban);
    }
    let again = join_agent(&east, "host-1", &agent_token(&client, "host-1").await).await.unwrap();
    let svid = issue_svid(&east, &again, &id, &["unix:uid:1000"]).await.unwrap();
    assert!(east.any().context.trust.current().revocations.check(&svid.facts).is_none());
    east.stop().await;
}

/// Threat 5 of the list that we test by: a token is stolen, raced for, used again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t5_of_two_hundred_joins_with_one_token_exactly_one_wins() {
    const JOINS: usize = 200;
    let east = found("east", 3).await;
    let client = east.client().await;
    let token = Arc::new(agent_token(&client, "host-1").await);
    // Every connection is there before the first request is sent: then they come at once.
    let mut ready = Vec::new();
    for n in 0..JOINS {
        // Spread over the nodes: the log decides, not one of them.
        let endpoint = &token.endpoints[n % 3];
        let dial = || async {
            let tls = pinned_client_config(&token.trust_domain, &token.pins, ALPN_H2);
            dial::connect(endpoint, tls).await.ok()
        };
        ready.push(eventually_asked("a connection", dial).await);
    }
    let start = Arc::new(tokio::sync::Barrier::new(JOINS));
    let mut joins = tokio::task::JoinSet::new();
    for link in ready {
        let (token, start) = (token.clone(), start.clone());
        joins.spawn(async move {
            start.wait().await;
            join_over(link, "host-1", &token).await.map(|(svid, _)| svid)
        });
    }
    let (mut won, mut refused) = (Vec::new(), 0);
    while let Some(joined) = joins.join_next().await {
        match joined.unwrap() {
            Ok(svid) => won.push(svid),
            Err(status) => {
                let used = status.code() == Code::FailedPrecondition
                    && status.message().contains("has been used; ask for a new token");
                let often =
                    status.code() == Code::ResourceExhausted && status.message().contains("come again in");
                assert!(used || often, "{status:?}");
                refused += 1;
            }
        }
    }
    assert_eq!((won.len(), refused), (1, JOINS - 1));
    let state = east.any().context.handle.read().await.unwrap();
    let given = state.private.issued.live(now()).filter(|s| s.agent.as_str() == "host-1").count();
    assert_eq!(given, 1, "nobody else was given a certificate");
    east.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t5_a_spent_token_writes_nothing_and_its_own_request_not_without_end() {
    let east = found("east", 1).await;
    let client = east.client().await;
    let token = agent_token(&client, "host-1").await;
    let agent: NodeName = "host-1".parse().unwrap();
    let request = || certificate_request(&new_key_pair().unwrap()).unwrap();
    let ask = async |csr_der: &[u8]| -> Result<JoinAgentReply, Status> {
        let tls = pinned_client_config(&token.trust_domain, &token.pins, ALPN_H2);
        let link = dial::connect(&token.endpoints[0], tls).await.unwrap();
        let proof = token.prove(&link.binding, &agent_join_request(&agent, csr_der)).unwrap();
        let (invite, agent, csr_der) = (token.invite.clone(), agent.to_string(), csr_der.to_vec());
        let request = JoinAgentRequest { invite, agent, csr_der, proof };
        unary(link.channel, "/hanse.issue.v1.Issue/JoinAgent", request).await
    };
    let own = request();
    ask(&own).await.unwrap();
    let tries = AuditListRequest { actor: Some("agent/host-1".to_owned()), ..Default::default() };
    let before = client.call(&tries).await.unwrap().items;
    assert!(!before.is_empty(), "what it joined by is in the trail");
    for _ in 0..10 {
        assert_eq!(ask(&request()).await.unwrap_err().code(), Code::FailedPrecondition);
    }
    assert_eq!(client.call(&tries).await.unwrap().items, before, "who may not join writes nothing");
    // Whose answer was lost is answered again, but not without end.
    let joining = &east.any().context.joining;
    let mut answered = 1;
    let refused = loop {
        match ask(&own).await {
            Ok(_) => answered += 1,
            Err(status) => break status,
        }
        assert!(answered < 2 * PER_PROOF.capacity, "it is answered without end");
    };
    assert!(answered >= PER_PROOF.capacity, "{answered}");
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    assert!(refused.message().contains("come again in"), "{refused:?}");
    assert_eq!(joining.refused.get(), 1);
    join_agent(&east, "host-2", &agent_token(&client, "host-2").await).await.expect("another host's token");
    east.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t5_an_expired_token_and_another_clusters_admit_nobody() {
    let (east, west) = (found("east", 1).await, found("west", 1).await);
    let (client, other) = (east.client().await, west.client().await);
    let mut foreign = agent_token(&other, "host-1").await;
    foreign.endpoints = agent_token(&client, "host-2").await.endpoints;
    // It pins west's root, so east is not even spoken to; with east's pins the proof is of no invite there.
    let dialled = std::panic::AssertUnwindSafe(join_agent_of(&foreign.pins, "host-1", &foreign));
    assert!(futures_util::FutureExt::catch_unwind(dialled).await.is_err(), "TLS refuses");
    foreign.pins = east.bundle().pins();
    foreign.trust_domain = "east.example".parse().unwrap();
    let refused = join_agent_of(&foreign.pins.clone(), "host-1", &foreign).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);

    let key = new_key_pair().unwrap();
    let view = east.any().context.handle.state().view.clone();
    let made = now() - Duration::from_secs(60);
    let (token, invite) = JoinToken::create(
        "i-old".to_owned(),
        hanse_identity::token::Admits::Agent("host-3".parse().unwrap()),
        view.cluster.clone(),
        view.trust_domain.clone(),
        vec![east.any().listen.to_string()],
        east.bundle().pins(),
        &key,
        made,
        now() + Duration::from_millis(300),
    );
    let handle = &east.any().context.handle;
    handle.propose("", crate::command::Command::InviteCreate { invite }).await.unwrap().result.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let refused = join_agent(&east, "host-3", &token).await.unwrap_err();
    assert!(refused.message().contains("expired"), "{refused:?}");
    assert!(east.any().context.handle.state().private.agents.is_empty());
    east.stop().await;
    west.stop().await;
}
