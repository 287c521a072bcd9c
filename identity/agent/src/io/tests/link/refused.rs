//! A control node that does not accept the agent's SVID says so by an alert of TLS, which the agent hears every time.

use rustls::AlertDescription;

use super::*;
use crate::io::dial::{ALPN_H2, DialError, dial};
use crate::wire::issue::issue_client::IssueClient;

/// A cluster of one node that has revoked its agent.
fn refusing() -> (Arc<Cluster>, Node) {
    let cluster = Cluster::new(vec![], DAY);
    let own = SpiffeId::member(&east(), MemberRole::Agent, &agent());
    let mut revocations = Revocations::default();
    revocations.insert(revocation(3, RevocationTarget::Identity(own)));
    let node = Node::start_believing(&cluster, "east-1", revocations);
    (cluster, node)
}

/// An SVID of the agent, and the key that it was made for.
fn own_svid(cluster: &Cluster) -> Svid {
    let (key, csr) = key_and_request().unwrap();
    Svid::new(cluster.sign_member(MemberRole::Agent, &agent(), &csr, DAY), key).unwrap()
}

#[tokio::test]
async fn the_alert_is_heard_every_time() {
    let (cluster, node) = refusing();
    let identity = Arc::new(TlsIdentity::new(&own_svid(&cluster)).unwrap());
    let trust = Arc::new(Trust::new([&bundle(&[&cluster.authority])], Revocations::default()));
    let own = Arc::new(NodeTls { trust, identity });
    let expect = tls::Expect::Member(east(), MemberRole::Node);
    let config = tls::client_config(Arc::clone(&own) as _, own, expect, ALPN_H2);
    for _ in 0..20 {
        let alert = match soon(dial(&node.address, Arc::clone(&config))).await {
            Err(DialError::Refused(alert)) => Some(alert),
            Err(other) => panic!("{other}"),
            Ok(dialed) => {
                let mut client = IssueClient::new(dialed.channel.clone());
                soon(client.renew_agent(RenewAgentRequest::default())).await.unwrap_err();
                dialed.alert.refusal()
            }
        };
        assert_eq!(alert, Some(AlertDescription::CertificateRevoked));
    }
}

#[tokio::test]
async fn an_agent_that_is_refused_says_that_it_has_to_join_anew() {
    let (cluster, node) = refusing();
    let directory = tempfile::tempdir().unwrap();
    let mut stored = StoredIdentity {
        name: agent(),
        cluster: "east".parse().unwrap(),
        trust_domain: east(),
        chain_pem: String::new(),
        key_pem: String::new(),
        bundle: bundle(&[&cluster.authority]),
        endpoints: vec![node.address.clone()],
        invite: "i-1".to_owned(),
        spare: None,
    };
    stored.set_svid(&own_svid(&cluster));
    store(&directory).write_identity(&stored).unwrap();
    let agent = Member::start(&directory);
    until(|| agent.not_ready_with("the control nodes do not accept the agent's own SVID")).await;
    agent.stop().await;
}
