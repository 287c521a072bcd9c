//! `hanse node`: identities and list of a cluster's control nodes.

use hanse_control::admin::{NodeListRequest, NodeState};
use hanse_control::io::keys::{self, KeyFileError, NewNode};
use serde_json::json;

use super::{Outcome, talk};
use crate::cli::{Global, NodeCommand, NodeCredential, NodeInit};
use crate::context::Connection;
use crate::errors::{Exit, Failure};
use crate::output::{self, Listing};

pub async fn run(global: &Global, command: &NodeCommand) -> Outcome {
    match command {
        NodeCommand::Init(init) => make(global, init),
        NodeCommand::Credential(credential) => mint(global, credential),
        NodeCommand::List => list(global).await,
    }
}

fn make(global: &Global, init: &NodeInit) -> Outcome {
    let new = NewNode {
        cluster: init.cluster.clone(),
        trust_domain: init.trust_domain.clone(),
        name: init.name.clone(),
        raft_id: init.raft_id,
        address: init.advertise.clone(),
        peer_address: init.peer_advertise.clone().unwrap_or_else(|| init.advertise.clone()),
        region: init.region.clone(),
        zone: init.zone.clone(),
    };
    let file = keys::init(&init.data_dir, new, crate::now()).map_err(|e| key_file(&e))?;
    let text = format!("{}\n", file.record.authority.key_id);
    output::print(global.output, "NodeFile", &file, &text);
    let directory = init.data_dir.display();
    talk(
        global,
        &format!("made   {directory}: authority key (0600, stays here), {directory}/{}", keys::NODE_FILE),
    );
    talk(global, &format!("root   sha256:{}", file.record.authority.key_id));
    talk(
        global,
        &format!(
            "next   put every node's node.json into one JSON array, NODES.json, then on each node:\n       hanse control --data-dir {directory} --initial-nodes NODES.json --listen {} --admin 127.0.0.1:9901\n       hanse node credential --data-dir {directory} --initial-nodes NODES.json --out admin.json",
            init.advertise
        ),
    );
    Ok(Exit::Done)
}

fn mint(global: &Global, wanted: &NodeCredential) -> Outcome {
    let (_, authority) = keys::load(&wanted.data_dir).map_err(|e| key_file(&e))?;
    let nodes = keys::load_nodes(&wanted.initial_nodes).map_err(|e| key_file(&e))?;
    let lifetime = wanted.ttl.min(keys::CREDENTIAL_LIFETIME);
    let credential = keys::mint_credential(&authority, &nodes, &wanted.user, lifetime, crate::now())
        .map_err(|e| Failure::new(Exit::Precondition, "E2010", e.to_string()))?;
    credential.write(&wanted.out).map_err(|e| key_file(&e))?;
    let body = json!({
        "cluster": credential.cluster, "trustDomain": credential.trust_domain,
        "endpoints": credential.endpoints, "file": wanted.out,
    });
    output::print(global.output, "Credential", &body, &format!("{}\n", wanted.out.display()));
    talk(
        global,
        &format!(
            "valid  {}\nnext   name it in the configuration file:\n       [contexts.{}]\n       credential = \"{}\"",
            output::duration(lifetime.as_millis() as u64),
            credential.cluster,
            wanted.out.display()
        ),
    );
    Ok(Exit::Done)
}

async fn list(global: &Global) -> Outcome {
    let nodes = Connection::open(global)?.call(&NodeListRequest {}).await?;
    let titles = [
        "NODE",
        "CLUSTER",
        "ROLE",
        "STATE",
        "TERM",
        "APPLIED",
        "LAG",
        "CERT",
        "VERSION",
        "ADDRESS",
        "+PEER ADDRESS",
    ];
    let quorum = nodes.quorum;
    Listing::of("NodeList", &nodes.meta, &nodes.items, &titles, |node| {
        let state = match node.state {
            NodeState::Leader => "leader",
            NodeState::Follower => "follower",
            NodeState::Leaderless => "leaderless",
            NodeState::Silent => "silent",
        };
        [
            node.node.to_string(),
            node.cluster.to_string(),
            node.role.clone(),
            state.to_owned(),
            node.term.to_string(),
            node.applied.to_string(),
            node.lag.map(|l| l.to_string()).unwrap_or_default(),
            node.certificate_not_after.map(output::left).unwrap_or_default(),
            node.version.clone(),
            node.address.clone(),
            node.peer_address.clone(),
        ]
    })
    .warnings(&nodes.warnings)
    .more("quorum", &quorum)
    .note(format!(
        "quorum {} of {}, {} answer · can lose {}",
        quorum.needed, quorum.voters, quorum.answering, quorum.can_lose
    ))
    .print(global.output);
    Ok(if nodes.meta.partial { Exit::Partial } else { Exit::Done })
}

fn key_file(error: &KeyFileError) -> Failure {
    let exit = match error {
        KeyFileError::Exists(_) => Exit::Precondition,
        KeyFileError::Missing(_) => Exit::NotFound,
        KeyFileError::Exposed { .. } => Exit::NotAllowed,
        KeyFileError::Address { .. } | KeyFileError::RaftId => Exit::Usage,
        _ => Exit::Unreadable,
    };
    Failure::new(exit, "E2011", error.to_string())
}
