//! `hanse agent token|trust-ca|list|show|evict|allow|ban|unban`, `hanse proxy list`: who listens to the control nodes.

use hanse_control::admin::{
    AgentAllowRequest, AgentEvictRequest, AgentItem, AgentListRequest, AgentTokenCreateRequest,
    AgentUnbanRequest, HostTrustDeleteRequest, HostTrustSetRequest, HostTrustShowRequest, ProxyListRequest,
    Revoked,
};
use hanse_identity::NodeName;
use hanse_identity::host::{HostAuthority, Naming};

use super::{Outcome, confirm, read, revoke, talk};
use crate::cli::{AgentTokenCommand, AgentVerb, Global, RevokeWhat, TrustCaCommand};
use crate::context::Connection;
use crate::errors::Exit;
use crate::output::{self, Format, Listing};

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
            Ok(Exit::Done)
        }
        AgentVerb::TrustCa(command) => trust_ca(global, command).await,
        AgentVerb::List => list(global).await,
        AgentVerb::Show { name } => show(global, name).await,
        AgentVerb::Evict { name, note, no_wait } => evict(global, name, note, *no_wait).await,
        AgentVerb::Ban { name, reason, note, dry_run, no_wait } => {
            let what = RevokeWhat {
                agent: Some(name.clone()),
                close_connections: "now".to_owned(),
                reason: reason.clone(),
                note: note.clone(),
                dry_run: *dry_run,
                no_wait: *no_wait,
                ..RevokeWhat::default()
            };
            revoke::order(global, &what).await
        }
        AgentVerb::Allow { name, ttl } => {
            let request = AgentAllowRequest { agent: name.clone(), ttl_seconds: ttl.as_secs() };
            let written = Connection::open(global)?.call(&request).await?;
            let text = format!("{name} may join once by its host's certificate");
            super::service::report(global, &written, &text);
            Ok(Exit::Done)
        }
        AgentVerb::Unban { name } => {
            let written = Connection::open(global)?.call(&AgentUnbanRequest { agent: name.clone() }).await?;
            super::service::report(global, &written, &format!("{name} may join again"));
            talk(global, &format!("next   hanse agent token create {name}, or hanse agent allow {name}"));
            Ok(Exit::Done)
        }
    }
}

async fn list(global: &Global) -> Outcome {
    let agents = Connection::open(global)?.call(&AgentListRequest::default()).await?;
    let titles = [
        "AGENT",
        "STATE",
        "HOST",
        "NODE",
        "CERT",
        "PROOF",
        "WORKLOADS",
        "REGISTRATIONS",
        "SEEN",
        "+APPLIED",
        "+SERIAL",
        "+JOINED",
        "+ID",
    ];
    Listing::of("AgentList", &agents.meta, &agents.items, &titles, |item| {
        [
            item.agent.to_string(),
            item.state.as_str().to_owned(),
            item.remote.map(|r| r.ip().to_string()).unwrap_or_default(),
            item.node.as_ref().filter(|_| item.connected).map(ToString::to_string).unwrap_or_default(),
            item.certificate_not_after.map(output::left).unwrap_or_default(),
            if item.certificate.is_some() { "x509pop" } else { "token" }.to_owned(),
            item.workloads.len().to_string(),
            item.registrations.to_string(),
            seen(item),
            item.applied.map(|a| a.to_string()).unwrap_or_default(),
            item.serial.as_ref().map(ToString::to_string).unwrap_or_default(),
            output::age(item.joined),
            item.id.to_string(),
        ]
    })
    .warnings(&agents.warnings)
    .print(global.output);
    Ok(Exit::Done)
}

/// How long ago a control node heard of it.
fn seen(item: &AgentItem) -> String {
    item.seen.map(|at| if item.connected { "now".to_owned() } else { output::age(at) }).unwrap_or_default()
}

async fn trust_ca(global: &Global, command: &TrustCaCommand) -> Outcome {
    match command {
        TrustCaCommand::Set { file, dns_domain } => {
            let naming = dns_domain.clone().map_or(Naming::Fingerprint, Naming::DnsDomain);
            let request = HostTrustSetRequest { pem: read(file)?, naming };
            let written = Connection::open(global)?.call(&request).await?;
            super::service::report(global, &written, "hosts may join by certificates of these authorities");
        }
        TrustCaCommand::Show => {
            let shown = Connection::open(global)?.call(&HostTrustShowRequest {}).await?;
            let (naming, authorities) = match shown.trust {
                Some(trust) => (Some(trust.naming), trust.authorities),
                None => (None, Vec::new()),
            };
            let note = match &naming {
                None => "no certificate attests a host: join tokens do".to_owned(),
                Some(Naming::Fingerprint) => "agents are named after fingerprints: x509pop-…".to_owned(),
                Some(Naming::DnsDomain(domain)) => {
                    format!("agents are named after their hosts' DNS names, LABEL.{domain}")
                }
            };
            let titles = ["AUTHORITY", "ENDS", "KEY"];
            Listing::of("HostTrust", &shown.meta, &authorities, &titles, |authority: &HostAuthority| {
                [authority.subject.clone(), output::left(authority.not_after), authority.key_id.to_string()]
            })
            .more("naming", &naming)
            .warnings(&shown.warnings)
            .note(note)
            .print(global.output);
        }
        TrustCaCommand::Delete => {
            confirm(global, "trust-ca")?;
            let written = Connection::open(global)?.call(&HostTrustDeleteRequest {}).await?;
            super::service::report(global, &written, "no certificate attests a host any more");
        }
    }
    Ok(Exit::Done)
}

async fn show(global: &Global, name: &NodeName) -> Outcome {
    let request = AgentListRequest { agent: Some(name.clone()) };
    let agents = Connection::open(global)?.call(&request).await?;
    if !matches!(global.output, Format::Table | Format::Wide) {
        Listing::of("AgentList", &agents.meta, &agents.items, &["AGENT"], |item| [item.agent.to_string()])
            .warnings(&agents.warnings)
            .print(global.output);
        return Ok(Exit::Done);
    }
    agents.items.iter().for_each(|item| output::data(&described(item)));
    Ok(Exit::Done)
}

/// One agent, a line for everything that is known of it.
fn described(item: &AgentItem) -> String {
    let state = match (&item.banned, item.evicted) {
        (Some(revocation), _) => format!("banned by {revocation}; hanse agent unban {} ends it", item.agent),
        (None, Some(at)) => match item.allowed {
            Some(until) => format!("evicted at {at}; its host's certificate is let in once until {until}"),
            None => {
                format!("evicted at {at}; it needs a new join token, or hanse agent allow {}", item.agent)
            }
        },
        (None, None) => item.state.as_str().to_owned(),
    };
    let node = item.node.as_ref().map(ToString::to_string).unwrap_or_default();
    let certificate = item.serial.as_ref().map(ToString::to_string).unwrap_or_default();
    let left = item.certificate_not_after.map(|at| format!(" ({} left)", output::left(at)));
    let proof = match &item.certificate {
        Some(host) => {
            format!("x509pop: {}, until {}, sha256 {}", host.subject, host.not_after, host.fingerprint)
        }
        None => "join token".to_owned(),
    };
    let mut text = format!("{}\n", item.agent);
    for (title, value) in [
        ("id", item.id.to_string()),
        ("state", state),
        ("host", item.remote.map(|r| r.to_string()).unwrap_or_default()),
        ("node", if item.connected { node } else { String::new() }),
        ("seen", seen(item)),
        ("joined", item.joined.to_string()),
        ("proof", proof),
        ("serial", certificate + &left.unwrap_or_default()),
        ("applied", item.applied.map(|a| format!("#{a}")).unwrap_or_default()),
        ("entries", item.registrations.to_string()),
    ] {
        if !value.is_empty() {
            text.push_str(&format!("  {title:<9}  {value}\n"));
        }
    }
    for (n, workload) in item.workloads.iter().enumerate() {
        let title = if n == 0 { "workloads" } else { "" };
        text.push_str(&format!(
            "  {title:<9}  {}   {} certificates, the last ends in {}\n",
            workload.id,
            workload.certificates,
            output::left(workload.not_after)
        ));
    }
    text
}

async fn evict(global: &Global, name: &NodeName, note: &str, no_wait: bool) -> Outcome {
    confirm(global, name.as_str())?;
    let connection = Connection::open(global)?;
    let request = AgentEvictRequest { agent: name.clone(), note: note.to_owned() };
    let evicted = connection.call(&request).await?;
    let Some(id) = evicted.revocation.clone() else {
        output::print(global.output, "Evicted", &evicted, &format!("{name} was evicted already\n"));
        return Ok(Exit::Done);
    };
    talk(global, &format!("  committed {id} at {} #{}", connection.name, evicted.revision));
    if no_wait {
        output::print(global.output, "Evicted", &evicted, &format!("{id}\n"));
        return Ok(Exit::Done);
    }
    let revoked = Revoked { id, revision: evicted.revision, expires: None };
    revoke::receipt(
        global,
        &connection,
        &revoked,
        &format!("next: hanse agent token create {name}, or hanse agent allow {name}\n"),
    )
    .await
}

pub async fn proxies(global: &Global) -> Outcome {
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
