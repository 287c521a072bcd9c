//! `hanse node`: identities and list of a cluster's control nodes.

use std::path::Path;

use hanse_control::admin::{NodeListRequest, NodeState};
use hanse_control::io::key_store::{KeyFlags, KeyStoreError, secret};
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
        NodeCommand::EncryptionKey { out } => make_encryption_key(global, out),
        NodeCommand::EncryptKeys { data_dir, keys } => encrypt_keys(global, data_dir, keys),
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
    let store = init.keys.open(&init.data_dir, &new.trust_domain).map_err(|e| key_file(&e.into()))?;
    let file = match (&init.upstream_cert, &init.upstream_key) {
        (Some(certificate), Some(key)) => keys::load_upstream(&new.trust_domain, certificate, key)
            .and_then(|root| keys::init_below(&init.data_dir, new, store.as_ref(), &root, crate::now())),
        _ => keys::init(&init.data_dir, new, store.as_ref(), crate::now()),
    };
    let file = file.map_err(|e| key_file(&e))?;
    let text = format!("{}\n", file.record.authority.key_id);
    output::print(global.output, "NodeFile", &file, &text);
    let directory = init.data_dir.display();
    talk(global, &format!("made   {directory}/{}; authority key: {}", keys::NODE_FILE, store.description()));
    talk(global, &format!("root   sha256:{}", file.record.authority.key_id));
    let flags = init.keys.as_typed();
    talk(
        global,
        &format!(
            "next   put every node's node.json into one JSON array, NODES.json, then on each node:\n       hanse control --data-dir {directory} --initial-nodes NODES.json --listen {} --admin 127.0.0.1:9901{flags}\n       hanse node credential --data-dir {directory} --initial-nodes NODES.json --out admin.json{flags}",
            init.advertise
        ),
    );
    Ok(Exit::Done)
}

fn mint(global: &Global, wanted: &NodeCredential) -> Outcome {
    let file = keys::load_node(&wanted.data_dir).map_err(|e| key_file(&e))?;
    let store = wanted.keys.open(&wanted.data_dir, &file.trust_domain).map_err(|e| key_file(&e.into()))?;
    let authority =
        keys::signing_authority(&wanted.data_dir, &file, store.as_ref()).map_err(|e| key_file(&e))?;
    let bundle = keys::load_bundle(&wanted.data_dir).map_err(|e| key_file(&e))?;
    let nodes = keys::load_nodes(&wanted.initial_nodes).map_err(|e| key_file(&e))?;
    let lifetime = wanted.ttl.min(keys::CREDENTIAL_LIFETIME);
    let (user, now) = (&wanted.user, crate::now());
    let credential = keys::mint_credential(&authority, &nodes, bundle.as_ref(), user, lifetime, now)
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

fn make_encryption_key(global: &Global, out: &Path) -> Outcome {
    secret::make_key_file(out).map_err(|e| key_file(&e))?;
    let body = json!({ "file": out, "bytes": secret::KEY_BYTES });
    output::print(global.output, "EncryptionKey", &body, &format!("{}\n", out.display()));
    talk(
        global,
        &format!(
            "next   keep a copy where no copy of the data directory is: without it the node's keys are lost\n       hanse node init … --key-encryption-file {0}\n       systemd-creds encrypt {0} /etc/credstore.encrypted/hanse-keys",
            out.display()
        ),
    );
    Ok(Exit::Done)
}

fn encrypt_keys(global: &Global, data_dir: &Path, flags: &KeyFlags) -> Outcome {
    let file = keys::load_node(data_dir).map_err(|e| key_file(&e))?;
    let store = flags.files(data_dir, &file.trust_domain).map_err(|e| key_file(&e.into()))?;
    let written = store.encrypt_all().map_err(|e| key_file(&e.into()))?;
    let text: String = written.iter().map(|path| format!("{}\n", path.display())).collect();
    output::print(global.output, "EncryptedKeys", &json!({ "files": written }), &text);
    talk(
        global,
        if written.is_empty() {
            "note   there was no plain key"
        } else {
            "note   the plain bytes were overwritten and unlinked; flash, copy-on-write file systems, snapshots and backups may still hold them: rotate the authority if that matters"
        },
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
            NodeState::Revoked => "revoked",
        };
        [
            node.node.to_string(),
            node.cluster.to_string(),
            node.role.clone(),
            match &node.not_signing {
                Some(_) => format!("{state}, signs nothing"),
                None => state.to_owned(),
            },
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
        KeyFileError::Store(KeyStoreError::Missing { .. }) => Exit::NotFound,
        KeyFileError::Store(KeyStoreError::Exposed { .. } | KeyStoreError::WrongSecret(_)) => {
            Exit::NotAllowed
        }
        KeyFileError::Store(KeyStoreError::SecretWanted(_)) => Exit::Usage,
        _ => Exit::Unreadable,
    };
    Failure::new(exit, "E2011", error.to_string())
}
