//! A node whose clock is wrong (T29): the others contradict it, it signs nothing, and whoever asks gets it elsewhere.

use hanse_identity::wire::issue::{AgentUp, IssueJwtRequest, JwtReply};

use super::*;
use crate::io::http::unready;
use crate::state::rotation::Gate;

const HOUR: i64 = 3_600_000;
const DAY: i64 = 24 * HOUR;

fn id() -> SpiffeId {
    "spiffe://east.example/ns/shop/sa/web".parse().unwrap()
}

/// Dials that node as whoever the SVID is.
async fn dial_at(east: &Cluster, node: &Started, svid: &Svid) -> Channel {
    let trust = FixedTrust(Arc::new(Trust::new([&east.bundle()], Revocations::default())));
    let expect = Expect::Member(svid.facts.id.trust_domain().clone(), MemberRole::Node);
    let config = client_config(Arc::new(trust), Arc::new(FixedIdentity::new(svid).unwrap()), expect, ALPN_H2);
    dial::connect(&node.listen.to_string(), config).await.unwrap().channel
}

/// An SVID of a registered workload, from that node.
async fn svid_of(east: &Cluster, node: &Started, agent: &Svid) -> Result<Svid, Status> {
    let key = new_key_pair().unwrap();
    let request = IssueSvidRequest {
        spiffe_id: id().to_string(),
        csr_der: certificate_request(&key).unwrap(),
        selectors: vec!["unix:uid:1000".to_owned()],
    };
    let channel = dial_at(east, node, agent).await;
    let reply: SvidReply = unary(channel, "/hanse.issue.v1.Issue/IssueSvid", request).await?;
    Ok(Svid::new(reply.chain_der, Zeroizing::new(key.serialize_der())).unwrap())
}

async fn jwt_of(east: &Cluster, node: &Started, agent: &Svid) -> Result<JwtReply, Status> {
    let request = IssueJwtRequest {
        spiffe_id: id().to_string(),
        selectors: vec!["unix:uid:1000".to_owned()],
        audience: vec!["shop".to_owned()],
        ttl_seconds: 0,
    };
    unary(dial_at(east, node, agent).await, "/hanse.issue.v1.Issue/IssueJwt", request).await
}

/// A join at that node with a token that is there.
async fn join_at(node: &Started, name: &str, token: &JoinToken) -> Result<Svid, Status> {
    let tls = pinned_client_config(&token.trust_domain, &token.pins, ALPN_H2);
    let link = dial::connect(&node.listen.to_string(), tls).await.unwrap();
    join_over(link, name, token).await.map(|(svid, _)| svid)
}

/// Everybody has heard everybody else's clock.
async fn compared(east: &Cluster) {
    let others = east.running().count() - 1;
    let agree = |n: &Started| {
        let clock = n.context.handle.clock();
        clock.doubt();
        clock.known() == others && clock.skew() < Duration::from_secs(30)
    };
    east.until("all clocks are compared, and agree", agree).await;
}

async fn an_agent(east: &Cluster, client: &Client) -> Svid {
    let agent = join_agent(east, "host-1", &agent_token(client, "host-1").await).await.unwrap();
    workload(east, client, &agent, &id(), &[]).await;
    agent
}

/// The codes of warnings about clocks; that a reading may be old is none of them, and a busy machine's to say.
fn warned_of_clocks(warnings: &[crate::admin::Warning]) -> Vec<&str> {
    warnings.iter().map(|w| w.code.as_str()).filter(|code| ["E3103", "E3104"].contains(code)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t29_a_node_that_the_others_contradict_signs_nothing_until_it_agrees_again() {
    let east = found("east", 3).await;
    let client = east.client().await;
    let agent = an_agent(&east, &client).await;
    compared(&east).await;
    let leader = east.leader().unwrap();
    let follower = (0..3).find(|n| *n != leader).unwrap();
    let told = |status: Status, how: &str| {
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        let said = status.message();
        assert!(
            said.contains(how) && said.contains("2 of 3 nodes") && said.contains("ask another"),
            "{said}"
        );
    };
    let settings = [
        (leader, HOUR, "ahead of"),
        (follower, -HOUR, "behind"),
        (leader, -DAY, "behind"),
        (follower, DAY, "ahead of"),
        (leader, -3_650 * DAY, "behind"),
        (follower, 61_000, "ahead of"),
    ];
    for (number, (which, set, how)) in settings.into_iter().enumerate() {
        let wrong = east.nodes[which].as_ref().unwrap();
        let right: Vec<&Started> =
            east.nodes.iter().flatten().filter(|n| n.context.name != wrong.context.name).collect();
        let before = wrong.context.metrics.signings_refused.get();
        // At once: what was heard of the others stays good.
        wrong.context.handle.clock().set(set);
        let real = now();
        told(svid_of(&east, wrong, &agent).await.unwrap_err(), how);
        told(jwt_of(&east, wrong, &agent).await.unwrap_err(), how);
        let host = format!("host-{}", number + 2);
        let token = agent_token(&client, &host).await;
        told(join_at(wrong, &host, &token).await.unwrap_err(), how);
        assert_eq!(wrong.context.metrics.signings_refused.get() - before, 3);
        // The token is as good as before, elsewhere, and so is everything else.
        join_at(right[0], &host, &token).await.unwrap();
        for node in &right {
            let svid = svid_of(&east, node, &agent).await.unwrap();
            let (from, until) = (svid.facts.not_before, svid.facts.not_after);
            assert!(from <= now() && until > now() && until <= now() + hanse_identity::grant::MAX_LIFETIME);
        }
        eventually_asked("a JWT-SVID", || async { jwt_of(&east, right[1], &agent).await.ok() }).await;
        // What it enters into the log, and signs for itself, is dated by the others.
        let outcome = wrong.context.handle.propose("", crate::command::Command::Lapse { ids: vec![] }).await;
        assert!(outcome.is_ok() && wrong.context.time().since(real) < PATIENCE);
        wrong.context.renew_own().unwrap();
        let own = hanse_identity::tls::IdentitySource::identity(&*wrong.context.own).unwrap();
        assert!(own.facts.not_before <= now() && own.facts.not_after > now(), "{:?}", own.facts);

        let nodes = client.call(&NodeListRequest {}).await.unwrap();
        let silent: Vec<_> =
            nodes.items.iter().filter(|i| i.not_signing.is_some()).map(|i| &i.node).collect();
        assert_eq!(silent, [&wrong.context.name]);
        assert_eq!(warned_of_clocks(&nodes.warnings), ["E3104"], "{:?}", nodes.warnings);
        assert!(unready(&wrong.context).unwrap().contains("signs nothing"));

        wrong.context.handle.clock().set(0);
        svid_of(&east, wrong, &agent).await.expect("it signs again, at once");
        assert_eq!(unready(&wrong.context), None);
        // The others may have heard what it said meanwhile.
        compared(&east).await;
    }
    // Within the limit it signs; that is told all the same.
    let wrong = east.nodes[follower].as_ref().unwrap();
    wrong.context.handle.clock().set(45_000);
    svid_of(&east, wrong, &agent).await.unwrap();
    let nodes = client.call(&NodeListRequest {}).await.unwrap();
    assert_eq!(warned_of_clocks(&nodes.warnings), ["E3103"], "{:?}", nodes.warnings);
    east.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t29_agents_leave_a_node_that_signs_nothing() {
    let east = found("east", 3).await;
    let client = east.client().await;
    let agent = an_agent(&east, &client).await;
    compared(&east).await;
    let wrong = east.nodes[1].as_ref().unwrap();
    let mut grpc = tonic::client::Grpc::new(dial_at(&east, wrong, &agent).await);
    grpc.ready().await.unwrap();
    let (_up, ups) = mpsc::channel::<AgentUp>(1);
    let codec = tonic_prost::ProstCodec::<AgentUp, hanse_identity::wire::issue::AgentDown>::default();
    let path = ::http::uri::PathAndQuery::from_static("/hanse.issue.v1.Issue/WatchAgent");
    let stream = grpc.streaming(Request::new(ReceiverStream::new(ups)), path, codec).await.unwrap();
    let mut stream: Streaming<_> = stream.into_inner();
    stream.next().await.unwrap().unwrap();
    wrong.context.handle.clock().set(-HOUR);
    let ended = async {
        loop {
            if let Err(status) = stream.next().await.expect("it says why") {
                return status;
            }
        }
    };
    let ended = tokio::time::timeout(PATIENCE, ended).await.expect("the stream ends");
    assert!(ended.message().contains("clock is contradicted"), "{ended:?}");
    east.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t29_one_node_or_two_go_on_signing_whatever_their_clocks_say() {
    for nodes in [1, 2] {
        let east = found("east", nodes).await;
        let client = east.client().await;
        let agent = an_agent(&east, &client).await;
        compared(&east).await;
        east.any().context.handle.clock().set(HOUR);
        for node in east.running() {
            // Two need each other for a quorum: on a busy machine they may be looking for a leader.
            eventually_asked("an SVID", || async { svid_of(&east, node, &agent).await.ok() }).await;
        }
        east.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t29_cut_off_from_the_others_it_still_knows_that_its_clock_is_wrong() {
    let mut east = found("east", 3).await;
    let client = east.client().await;
    let agent = an_agent(&east, &client).await;
    compared(&east).await;
    for other in [0, 1] {
        east.nodes[other].take().unwrap().stop().await;
    }
    let left = east.nodes[2].as_ref().unwrap();
    left.context.handle.clock().set(HOUR);
    let refused = svid_of(&east, left, &agent).await.unwrap_err();
    assert!(refused.message().contains("ahead of"), "{refused:?}");
    left.context.handle.clock().set(0);
    svid_of(&east, left, &agent).await.expect("without a quorum SVIDs are still given");
    east.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t29_a_leader_with_a_wrong_clock_opens_no_gate_of_a_rotation_early() {
    let east = found("east", 3).await;
    let client = east.client().await;
    // It has an SVID that lives, and no stream: it cannot say what it believes.
    an_agent(&east, &client).await;
    compared(&east).await;
    client.call(&TrustRotateRequest { authority: None, reissue: true }).await.unwrap();
    let waiting = async || {
        let leader = &east.nodes[east.leader()?].as_ref()?.context;
        leader.handle.clock().set(2 * DAY);
        let state = leader.handle.state();
        let gate = state.rotating().expect("nobody has said that this host may be left out").gate;
        let measured = crate::io::rotation::measure(leader, &state).await;
        let waits = measured.waits_for.iter().any(|w| w.who == "agent host-1");
        (gate == Gate::Spread).then_some(waits)
    };
    let waits = eventually_asked("the gate that waits for agents", &waiting).await;
    assert!(waits, "by a clock two days ahead the agent's SVID has ended");
    east.stop().await;
}
