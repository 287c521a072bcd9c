//! `hanse agent token create`, `hanse agent list`, `hanse proxy list`: who listens to the control nodes.

use hanse_control::admin::{AgentListRequest, AgentTokenCreateRequest, ProxyListRequest};

use super::{Outcome, talk};
use crate::cli::{AgentTokenCommand, AgentVerb, Global, ProxyVerb};
use crate::context::Connection;
use crate::errors::Exit;
use crate::output::{self, Listing};

pub async fn run(global: &Global, verb: &AgentVerb) -> Outcome {
    match verb {
        AgentVerb::Token(AgentTokenCommand::Create { name, ttl }) => {
            let request = AgentTokenCreateRequest { agent: name.clone(), ttl_seconds: ttl.as_secs() };
            let reply = Connection::open(global)?.call(&request).await?;
            output::print(global.output, "JoinToken", &reply, &format!("{}\n", reply.token));
            talk(
                global,
                &format!(
                    "token  for agent {name}, single use, {} left\nnext   on that host: hanse agent --name {name} --join-token-file FILE …",
                    output::left(reply.expires)
                ),
            );
        }
        AgentVerb::List => {
            let agents = Connection::open(global)?.call(&AgentListRequest {}).await?;
            let titles = ["AGENT", "STATE", "NODE", "REGISTRATIONS", "APPLIED", "JOINED", "+ID"];
            Listing::of("AgentList", &agents.meta, &agents.items, &titles, |item| {
                [
                    item.agent.to_string(),
                    if item.connected { "connected" } else { "gone" }.to_owned(),
                    item.node.as_ref().map(ToString::to_string).unwrap_or_default(),
                    item.registrations.to_string(),
                    item.applied.map(|a| a.to_string()).unwrap_or_default(),
                    output::age(item.joined),
                    item.id.to_string(),
                ]
            })
            .warnings(&agents.warnings)
            .print(global.output);
        }
    }
    Ok(Exit::Done)
}

pub async fn proxies(global: &Global, verb: &ProxyVerb) -> Outcome {
    let ProxyVerb::List = verb;
    let proxies = Connection::open(global)?.call(&ProxyListRequest {}).await?;
    let titles = ["PROXY", "KIND", "STATE", "NODE", "APPLIED", "LAG", "VERSION", "+IDENTITY", "+REFUSED"];
    Listing::of("ProxyList", &proxies.meta, &proxies.items, &titles, |item| {
        [
            item.name.to_string(),
            item.kind.as_str().to_owned(),
            if item.connected { "connected" } else { "gone" }.to_owned(),
            item.node.to_string(),
            item.applied.to_string(),
            item.lag.to_string(),
            item.version.clone(),
            item.identity.to_string(),
            item.refused.clone().unwrap_or_default(),
        ]
    })
    .warnings(&proxies.warnings)
    .print(global.output);
    Ok(if proxies.meta.partial { Exit::Partial } else { Exit::Done })
}
