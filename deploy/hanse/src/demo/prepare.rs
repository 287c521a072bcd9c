//! What a demo needs on disk before its first process starts: executables, identities, credentials, contexts.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use hanse_control::io::key_store::{KeyFlags, secret};
use hanse_control::io::keys::{self, Credential, NewNode, NodeFile};

use super::spec::{ClusterPlan, Plan};
use crate::context::Configuration;

/// Longest path of a Unix socket that the kernel takes, less the terminating zero.
const MAX_SOCKET_PATH: usize = 107;

/// Makes the directory of a new demo: private, with a name of its own.
pub fn directory() -> anyhow::Result<PathBuf> {
    let directory = tempfile::Builder::new()
        .prefix(super::find::PREFIX)
        .rand_bytes(6)
        .permissions(fs::Permissions::from_mode(0o700))
        .tempdir()
        .context("cannot make a temporary directory")?;
    // It outlives this process when the demo goes on in the background; `down` removes it.
    let directory = directory.keep();
    Ok(directory.canonicalize()?)
}

/// The name under which a demo cluster is known to the command line.
pub fn context_name(cluster: &str) -> String {
    format!("demo-{cluster}")
}

/// Where the demo's contexts are.
pub fn configuration_path(directory: &Path) -> PathBuf {
    directory.join("config.toml")
}

/// Writes everything. `executable` is what every process runs.
pub fn prepare(plan: &Plan, executable: &Path) -> anyhow::Result<()> {
    for name in ["bin", "logs", "credentials"] {
        fs::create_dir_all(plan.directory.join(name))?;
    }
    executables(plan, executable)?;
    fs::write(plan.directory.join("relays.json"), serde_json::to_vec_pretty(&plan.relays)?)?;
    let mut configuration = Configuration::default();
    for cluster in &plan.clusters {
        let length = cluster.agent_socket.as_os_str().len();
        anyhow::ensure!(
            length <= MAX_SOCKET_PATH,
            "the path {} is too long for a Unix socket; set TMPDIR to a shorter directory",
            cluster.agent_socket.display()
        );
        fs::create_dir_all(&cluster.directory)?;
        identities(cluster)?;
        let context = crate::context::Context { credential: cluster.credential.clone() };
        configuration.contexts.insert(context_name(&cluster.name), context);
    }
    fs::write(configuration_path(&plan.directory), toml::to_string_pretty(&configuration)?)?;
    Ok(())
}

/// One copy of the executable, and a hard link to it per identity: an agent knows callers by their path.
fn executables(plan: &Plan, executable: &Path) -> anyhow::Result<()> {
    let copy = plan.directory.join("bin/hanse");
    fs::copy(executable, &copy).with_context(|| format!("cannot copy {}", executable.display()))?;
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755))?;
    let linked = plan.clusters.iter().flat_map(|c| &c.registrations).map(|r| &r.executable);
    for path in linked {
        fs::create_dir_all(path.parent().context("a link has a directory")?)?;
        fs::hard_link(&copy, path)?;
    }
    Ok(())
}

/// Every control node's identity, the list of them, and a credential for the command line.
fn identities(cluster: &ClusterPlan) -> anyhow::Result<()> {
    let now = keys::now();
    secret::make_key_file(&cluster.encryption_key)?;
    let flags = KeyFlags { key_encryption_file: Some(cluster.encryption_key.clone()), ..KeyFlags::default() };
    let mut nodes = Vec::<NodeFile>::new();
    for node in &cluster.nodes {
        let new = NewNode {
            cluster: cluster.name.parse()?,
            trust_domain: cluster.trust_domain.parse()?,
            name: node.name.parse()?,
            raft_id: node.raft_id,
            address: node.address.to_string(),
            peer_address: node.peer_address.to_string(),
            region: String::new(),
            zone: String::new(),
        };
        let store = flags.open(&node.data, &new.trust_domain)?;
        nodes.push(keys::init(&node.data, new, store.as_ref(), now)?);
    }
    fs::write(&cluster.initial_nodes, serde_json::to_vec_pretty(&nodes)?)?;
    let first = cluster.nodes.first().context("a cluster has a node")?;
    let own = nodes.first().context("a cluster has a node")?;
    let store = flags.open(&first.data, &own.trust_domain)?;
    let authority = keys::first_authority(own, store.as_ref())?;
    let user = "demo".parse()?;
    let credential: Credential =
        keys::mint_credential(&authority, &nodes, None, &user, keys::CREDENTIAL_LIFETIME, now)?;
    credential.write(&cluster.credential)?;
    Ok(())
}
