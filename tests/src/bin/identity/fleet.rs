//! Many workloads in one cluster: this process is their agent. It joins with a token, has every identity issued once
//! (and again, as a full re-issue), with as many requests under way as an agent of a big host would have.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use hanse_control::admin::AgentTokenCreateRequest;
use hanse_control::io::dial::{self, ALPN_H2, FixedIdentity, FixedTrust};
use hanse_identity::issue::certificate_request;
use hanse_identity::name::MemberRole;
use hanse_identity::svid::Svid;
use hanse_identity::tls::{Expect, client_config, pinned_client_config};
use hanse_identity::token::{JoinToken, agent_join_request};
use hanse_identity::wire::issue::{IssueSvidRequest, JoinAgentReply, JoinAgentRequest, SvidReply};
use hanse_identity::{Bundle, Registration, Revocations, SpiffeId, Trust};
use hanse_tests::house::Demo;
use serde_json::json;
use tokio::task::JoinSet;
use tonic::transport::Channel;
use zeroize::Zeroizing;

use crate::scene;

const AGENT: &str = "fleet";

#[derive(clap::Args)]
pub struct Arguments {
    #[arg(long, default_value_t = 10_000)]
    workloads: usize,
    /// Requests under way at a time
    #[arg(long, default_value_t = 64)]
    at_a_time: usize,
}

pub async fn run(arguments: Arguments) -> Result<()> {
    let demo = Demo::up(["--rps", "0"])?;
    let client = Arc::new(scene::administrator(&demo, "east").await?);
    report_memory(&demo, "before")?;

    let selectors = ["unix:uid:65534"];
    let registration = |id: &SpiffeId| -> Result<Registration> {
        Ok(serde_json::from_value(json!({ "id": id, "agent": AGENT, "selectors": selectors }))?)
    };
    let ids: Result<Vec<_>> = (0..arguments.workloads).map(|n| scene::identity("east", n)).collect();
    let ids = ids?;
    let started = Instant::now();
    let registrations: Result<Vec<_>> = ids.iter().map(registration).collect();
    scene::register(&client, registrations?).await?;
    let took = started.elapsed().as_secs_f64();
    println!("{} workloads registered in {took:.1} s ({:.0}/s)", ids.len(), ids.len() as f64 / took);

    let channels = join(&demo, &client).await?;
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let csr = Arc::new(certificate_request(&key)?);
    for what in ["first issue", "full re-issue"] {
        let (started, mut under_way) = (Instant::now(), JoinSet::new());
        let mut slowest = Vec::new();
        for (number, id) in ids.iter().enumerate() {
            if under_way.len() >= arguments.at_a_time {
                slowest.push(under_way.join_next().await.context("there are requests")???);
            }
            let request = IssueSvidRequest {
                spiffe_id: id.to_string(),
                csr_der: csr.to_vec(),
                selectors: selectors.iter().map(|s| (*s).to_owned()).collect(),
            };
            let channel = channels[number % channels.len()].clone();
            under_way.spawn(async move {
                let started = Instant::now();
                let _: SvidReply = unary(channel, "/hanse.issue.v1.Issue/IssueSvid", request).await?;
                anyhow::Ok(started.elapsed().as_secs_f64() * 1e3)
            });
        }
        while let Some(done) = under_way.join_next().await {
            slowest.push(done??);
        }
        let took = started.elapsed().as_secs_f64();
        let rate = ids.len() as f64 / took;
        println!(
            "{what} of {} SVIDs: {took:.1} s, {rate:.0}/s over {} control nodes; each {}",
            ids.len(),
            channels.len(),
            scene::spread(&mut slowest)
        );
        report_memory(&demo, what)?;
    }
    Ok(())
}

fn report_memory(demo: &Demo, when: &str) -> Result<()> {
    let mut nodes = Vec::new();
    for number in 1..=3 {
        let name = format!("control-{number}");
        nodes.push(format!("{:.0}", scene::resident_mib(demo.pid("east", "control", &name)?)?));
    }
    println!("  resident memory of the control nodes, {when}: {} MiB", nodes.join(", "));
    Ok(())
}

/// Joins as an agent, and dials every control node as that.
async fn join(demo: &Demo, client: &hanse_control::client::Client) -> Result<Vec<Channel>> {
    let request = AgentTokenCreateRequest { agent: AGENT.parse()?, ttl_seconds: 600 };
    let token: JoinToken = client.call(&request).await?.token.parse().map_err(|e| anyhow::anyhow!("{e}"))?;
    let tls = pinned_client_config(&token.trust_domain, &token.pins, ALPN_H2);
    let link = dial::connect(&token.endpoints[0], tls).await?;
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let csr_der = certificate_request(&key)?;
    let proof = token.prove(&link.binding, &agent_join_request(&AGENT.parse()?, &csr_der))?;
    let request = JoinAgentRequest { invite: token.invite.clone(), agent: AGENT.to_owned(), csr_der, proof };
    let reply: JoinAgentReply = unary(link.channel, "/hanse.issue.v1.Issue/JoinAgent", request).await?;
    let bundle: Bundle = serde_json::from_slice(&reply.bundle)?;
    let svid = Svid::new(reply.chain_der, Zeroizing::new(key.serialize_der()))?;
    let trust = Arc::new(FixedTrust(Arc::new(Trust::new([&bundle], Revocations::default()))));
    let mut channels = Vec::new();
    for number in 1..=3 {
        let address = demo.address("east", "control", &format!("control-{number}"), "api")?;
        let expect = Expect::Member(token.trust_domain.clone(), MemberRole::Node);
        let config = client_config(trust.clone(), Arc::new(FixedIdentity::new(&svid)?), expect, ALPN_H2);
        channels.push(dial::connect(&address, config).await?.channel);
    }
    Ok(channels)
}

async fn unary<Q, A>(channel: Channel, path: &'static str, question: Q) -> Result<A>
where
    Q: prost::Message + Send + Sync + 'static,
    A: prost::Message + Default + Send + Sync + 'static,
{
    let mut grpc = tonic::client::Grpc::new(channel);
    tokio::time::timeout(Duration::from_secs(10), grpc.ready()).await??;
    let codec = tonic_prost::ProstCodec::<Q, A>::default();
    let path = ::http::uri::PathAndQuery::from_static(path);
    Ok(grpc.unary(tonic::Request::new(question), path, codec).await?.into_inner())
}
