//! Identity files of a control node, and what it signs for itself.
//!
//! Owns `node.json` in the data directory, the node's own SVID, and the credential file of the command line; private
//! keys are in a `KeyStore` (`key_store`). Randomness is drawn here; `identity` gets it as an argument.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use hanse_identity::authority::AuthorityError;
use hanse_identity::issue::certificate_request;
use hanse_identity::name::MemberRole;
use hanse_identity::svid::SvidError;
use hanse_identity::{
    Authority, AuthorityCertificate, AuthorityState, Bundle, ClusterName, Intermediate, IssueError, NodeName,
    PrivateKey, Refusal, Revocations, Serial, SpiffeId, Svid, Timestamp, TrustDomain, Upstream, grant, issue,
};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::key_store::{KeyPurpose, KeyStore, KeyStoreError, files};
use crate::state::issuance::names_node;
use crate::state::{NodeRecord, anchors};

/// How long a node's authority certificate is valid.
pub const AUTHORITY_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);
/// How long a node's own SVID is valid; it is made anew at half-life.
pub const NODE_SVID_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// How long the credential of an administrator is valid.
pub const CREDENTIAL_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// The public part, as `--initial-nodes` wants it.
pub const NODE_FILE: &str = "node.json";

/// The cluster's own bundle, as the node last had it.
pub const BUNDLE_FILE: &str = "bundle.json";

/// What a node is to its cluster, without any secret: `node.json`, and an element of `--initial-nodes`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeFile {
    pub cluster: ClusterName,
    pub trust_domain: TrustDomain,
    #[serde(default)]
    pub region: String,
    #[serde(default)]
    pub zone: String,
    pub record: NodeRecord,
}

/// What `init` needs to know.
#[derive(Clone, Debug)]
pub struct NewNode {
    pub cluster: ClusterName,
    pub trust_domain: TrustDomain,
    pub name: NodeName,
    /// Not zero, and unlike that of the other nodes.
    pub raft_id: u64,
    /// `host:port` for this cluster.
    pub address: String,
    /// `host:port` as other clusters reach it.
    pub peer_address: String,
    pub region: String,
    pub zone: String,
}

/// What the command line shows to a control node: its SVID with key, whom to dial, whom to believe.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Credential {
    pub cluster: ClusterName,
    pub trust_domain: TrustDomain,
    /// `host:port` of control nodes.
    pub endpoints: Vec<String>,
    pub chain_pem: String,
    pub key_pem: String,
    pub bundle_pem: String,
}

/// Why a data directory could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    #[error("{0} exists already; a node's identity is made once (to start over, remove the data directory)")]
    Exists(PathBuf),
    #[error("{0} does not exist; make the node's identity first: hanse node init")]
    Missing(PathBuf),
    #[error("{path} may be read by others (mode {mode:o}); it must be 0600")]
    Exposed { path: PathBuf, mode: u32 },
    #[error("{path}: {why}")]
    Io { path: PathBuf, why: std::io::Error },
    #[error("{path} cannot be read as JSON: {why}")]
    Json { path: PathBuf, why: serde_json::Error },
    #[error("{0}")]
    Authority(#[from] AuthorityError),
    #[error("{0}")]
    Store(#[from] KeyStoreError),
    #[error("{what} {given:?} is not HOST:PORT")]
    Address { what: &'static str, given: String },
    #[error("a Raft id is at least 1")]
    RaftId,
}

/// Why a node could not sign for itself or for its administrator.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    #[error("the key pair cannot be made: {0}")]
    Key(#[from] rcgen::Error),
    #[error("{0}")]
    Refused(#[from] Refusal),
    #[error("{0}")]
    Issue(#[from] IssueError),
    #[error("{0}")]
    Svid(#[from] SvidError),
    #[error("no node was given: a credential needs somewhere to dial")]
    NoNodes,
    #[error("node {0} belongs to another cluster or trust domain")]
    ForeignNode(NodeName),
}

/// Makes a node's identity: directory 0700, authority key (born in `store`), `node.json` with its certificate. Refuses
/// to overwrite. Everything is synced before it returns; `node.json` is last, so that it is there only if all is.
pub fn init(
    dir: &Path,
    new: NewNode,
    store: &dyn KeyStore,
    now: Timestamp,
) -> Result<NodeFile, KeyFileError> {
    make(dir, new, store, |new, key, serial| {
        let authority =
            Authority::create(&new.trust_domain, &new.name, key, serial, now, AUTHORITY_LIFETIME)?;
        Ok((authority.certificate().clone(), None))
    })
}

/// The same below a root of the user's own house, which signs once and is not kept.
pub fn init_below(
    dir: &Path,
    new: NewNode,
    store: &dyn KeyStore,
    root: &Upstream,
    now: Timestamp,
) -> Result<NodeFile, KeyFileError> {
    make(dir, new, store, |new, key, serial| {
        let intermediate = root.sign(&new.name, &key, serial, now, AUTHORITY_LIFETIME)?;
        Ok((root.certificate().clone(), Some(intermediate)))
    })
}

/// What of an authority is written down: what goes into the bundle, and what stands below that.
type Certified = (AuthorityCertificate, Option<Intermediate>);

fn make(
    dir: &Path,
    new: NewNode,
    store: &dyn KeyStore,
    certify: impl FnOnce(&NewNode, PrivateKey, Serial) -> Result<Certified, AuthorityError>,
) -> Result<NodeFile, KeyFileError> {
    if new.raft_id == 0 {
        return Err(KeyFileError::RaftId);
    }
    check_address("the address", &new.address)?;
    check_address("the peer address", &new.peer_address)?;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|why| io_error(dir, why))?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(|why| io_error(dir, why))?;
    let node_path = dir.join(NODE_FILE);
    if node_path.exists() {
        return Err(KeyFileError::Exists(node_path));
    }
    if files::has_keys(dir) {
        return Err(KeyFileError::Exists(dir.join(files::KEYS_FOLDER)));
    }
    let key = store.create(KeyPurpose::Authority)?;
    let (authority, intermediate) = certify(&new, key, random_serial())?;
    let file = NodeFile {
        cluster: new.cluster,
        trust_domain: new.trust_domain,
        region: new.region,
        zone: new.zone,
        record: NodeRecord {
            raft_id: new.raft_id,
            name: new.name,
            address: new.address,
            peer_address: new.peer_address,
            authority,
            intermediate,
        },
    };
    replace(&node_path, &pretty(&file), 0o644)?;
    Ok(file)
}

/// Reads who the node is: what `init` gave.
pub fn load_node(dir: &Path) -> Result<NodeFile, KeyFileError> {
    read_json(&dir.join(NODE_FILE))
}

/// The authority that the node was made with, its key opened in `store`.
pub fn first_authority(file: &NodeFile, store: &dyn KeyStore) -> Result<Authority, KeyFileError> {
    let record = &file.record;
    let key = store.open(KeyPurpose::Authority, &record.signing_key())?;
    let (trust_domain, root) = (&file.trust_domain, &record.authority);
    Ok(match &record.intermediate {
        None => Authority::restore(trust_domain, key, &root.der)?,
        Some(own) => Authority::restore_below(trust_domain, key, own.clone(), root.clone())?,
    })
}

/// Writes the cluster's own bundle beside `node.json`: what `signing_authority` goes by, and a start.
pub fn write_bundle(dir: &Path, bundle: &Bundle) -> Result<(), KeyFileError> {
    replace(&dir.join(BUNDLE_FILE), &pretty(bundle), 0o644)
}

/// The bundle that was written last; none on a node that was just made.
pub fn load_bundle(dir: &Path) -> Result<Option<Bundle>, KeyFileError> {
    match read_json(&dir.join(BUNDLE_FILE)) {
        Ok(bundle) => Ok(Some(bundle)),
        Err(KeyFileError::Missing(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What a node signs with by its files alone, for commands that do not ask the cluster: the authority that the bundle
/// beside `node.json` says, or else the one that it was made with.
pub fn signing_authority(
    dir: &Path,
    file: &NodeFile,
    store: &dyn KeyStore,
) -> Result<Authority, KeyFileError> {
    let bundle = load_bundle(dir)?.filter(|_| file.record.intermediate.is_none());
    let own = |a: &&AuthorityCertificate| {
        a.state == AuthorityState::Active && names_node(&a.subject, &file.record.name)
    };
    match bundle.iter().flat_map(|b| &b.authorities).rfind(own) {
        Some(own) => {
            let key = store.open(KeyPurpose::Authority, &own.key_id)?;
            Ok(Authority::restore(&file.trust_domain, key, &own.der)?)
        }
        None => first_authority(file, store),
    }
}

/// Reads a root of the user's own house: its certificate, and its private key, which is not kept.
pub fn load_upstream(
    trust_domain: &TrustDomain,
    certificate: &Path,
    key: &Path,
) -> Result<Upstream, KeyFileError> {
    let key = Zeroizing::new(read_private(key)?);
    Ok(Upstream::from_pem(trust_domain, &read(certificate)?, &key)?)
}

/// Reads a file of `--initial-nodes`: a JSON array of what `node init` printed, or one of them alone.
pub fn load_nodes(path: &Path) -> Result<Vec<NodeFile>, KeyFileError> {
    let json = read_json::<serde_json::Value>(path)?;
    let files = match json {
        serde_json::Value::Array(_) => serde_json::from_value(json),
        one => serde_json::from_value(one).map(|file| vec![file]),
    };
    files.map_err(|why| KeyFileError::Json { path: path.to_owned(), why })
}

/// The node's own SVID: a fresh key, signed by its own authority. The chain is the leaf and the own root, so that
/// whoever only has a pin can check it.
pub fn node_svid(
    authority: &Authority,
    node: &NodeName,
    revocations: &Revocations,
    lifetime: Duration,
    now: Timestamp,
) -> Result<Svid, SignError> {
    let id = SpiffeId::member(authority.trust_domain(), MemberRole::Node, node);
    let (mut chain, key) = sign_member(authority, &id, revocations, lifetime, now)?;
    chain.push(authority.certificate().der.clone());
    Ok(Svid::new(chain, key)?)
}

/// The SVID of the bundle endpoint: the same ID on every node, so that whoever federates with this cluster can ask any.
pub fn endpoint_svid(
    authority: &Authority,
    revocations: &Revocations,
    lifetime: Duration,
    now: Timestamp,
) -> Result<Svid, SignError> {
    let id = endpoint_id(authority.trust_domain());
    let (chain, key) = sign_member(authority, &id, revocations, lifetime, now)?;
    Ok(Svid::new(chain, key)?)
}

/// `spiffe://<trust domain>/hanse/endpoint/bundle`.
pub fn endpoint_id(trust_domain: &TrustDomain) -> SpiffeId {
    let name = "bundle".parse().expect("a literal that is a node name");
    SpiffeId::member(trust_domain, MemberRole::Endpoint, &name)
}

/// Makes the credential of an administrator: key born here, signed by this node's authority, believing in the
/// `bundle`, or in the authorities that all `nodes` were made with.
pub fn mint_credential(
    authority: &Authority,
    nodes: &[NodeFile],
    bundle: Option<&Bundle>,
    user: &NodeName,
    lifetime: Duration,
    now: Timestamp,
) -> Result<Credential, SignError> {
    let first = nodes.first().ok_or(SignError::NoNodes)?;
    let stranger = |n: &&NodeFile| n.cluster != first.cluster || n.trust_domain != *authority.trust_domain();
    if let Some(foreign) = nodes.iter().find(stranger) {
        return Err(SignError::ForeignNode(foreign.record.name.clone()));
    }
    let id = SpiffeId::member(authority.trust_domain(), MemberRole::Admin, user);
    let (chain, key) = sign_member(authority, &id, &Revocations::default(), lifetime, now)?;
    let svid = Svid::new(chain, key)?;
    let authorities = match bundle {
        Some(bundle) => bundle.authorities.clone(),
        None => anchors(nodes.iter().map(|n| &n.record)),
    };
    let bundle = Bundle::new(first.trust_domain.clone(), 1, authorities);
    Ok(Credential {
        cluster: first.cluster.clone(),
        trust_domain: first.trust_domain.clone(),
        endpoints: nodes.iter().map(|n| n.record.address.clone()).collect(),
        chain_pem: svid.chain_pem(),
        key_pem: svid.key_pem().to_string(),
        bundle_pem: bundle.to_pem(),
    })
}

impl Credential {
    /// Writes the file, 0600, in place of an older one.
    pub fn write(&self, path: &Path) -> Result<(), KeyFileError> {
        replace(path, &Zeroizing::new(pretty(self)), 0o600)
    }

    /// Reads the file; one that others may read is refused.
    pub fn read(path: &Path) -> Result<Self, KeyFileError> {
        let bytes = Zeroizing::new(read_private(path)?);
        serde_json::from_slice(&bytes).map_err(|why| KeyFileError::Json { path: path.to_owned(), why })
    }

    /// The SVID in it.
    pub fn svid(&self) -> Result<Svid, SvidError> {
        Svid::from_pem(&self.chain_pem, &self.key_pem)
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential")
            .field("cluster", &self.cluster)
            .field("endpoints", &self.endpoints)
            .finish_non_exhaustive()
    }
}

/// A fresh P-256 key pair.
pub fn new_key_pair() -> Result<KeyPair, rcgen::Error> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
}

/// Fills an array from the operating system's random source.
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .expect("the system's random source does not fail once it has been seeded");
    bytes
}

/// A random number, for ids that must not collide.
pub fn random_u64() -> u64 {
    u64::from_be_bytes(random_bytes())
}

/// A fresh certificate serial number.
pub fn random_serial() -> Serial {
    Serial::from_random(random_bytes())
}

/// The clock, read.
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// What `Svid::new` is made from.
type ChainAndKey = (Vec<Vec<u8>>, Zeroizing<Vec<u8>>);

fn sign_member(
    authority: &Authority,
    id: &SpiffeId,
    revocations: &Revocations,
    lifetime: Duration,
    now: Timestamp,
) -> Result<ChainAndKey, SignError> {
    let key = new_key_pair()?;
    let csr = certificate_request(&key)?;
    let ticket = grant::grant_member(authority.trust_domain(), revocations, id, lifetime)?;
    let issued = issue(ticket, &csr, authority, random_serial(), now)?;
    Ok((issued.chain, Zeroizing::new(key.serialize_der())))
}

fn check_address(what: &'static str, given: &str) -> Result<(), KeyFileError> {
    let fits = given.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && given.len() <= 255 && port.parse::<u16>().is_ok_and(|p| p != 0)
    });
    if fits { Ok(()) } else { Err(KeyFileError::Address { what, given: given.to_owned() }) }
}

fn io_error(path: &Path, why: std::io::Error) -> KeyFileError {
    match why.kind() {
        std::io::ErrorKind::NotFound => KeyFileError::Missing(path.to_owned()),
        std::io::ErrorKind::AlreadyExists => KeyFileError::Exists(path.to_owned()),
        _ => KeyFileError::Io { path: path.to_owned(), why },
    }
}

fn pretty<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(value).expect("plain data with string keys always serialises");
    bytes.push(b'\n');
    bytes
}

fn read(path: &Path) -> Result<Vec<u8>, KeyFileError> {
    fs::read(path).map_err(|why| io_error(path, why))
}

pub(super) fn read_private(path: &Path) -> Result<Vec<u8>, KeyFileError> {
    let mode = fs::metadata(path).map_err(|why| io_error(path, why))?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyFileError::Exposed { path: path.to_owned(), mode });
    }
    read(path)
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, KeyFileError> {
    serde_json::from_slice(&read(path)?).map_err(|why| KeyFileError::Json { path: path.to_owned(), why })
}

/// Makes a file that was not there, synced.
pub(super) fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), KeyFileError> {
    let open = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let mut file = open.map_err(|why| io_error(path, why))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(|why| io_error(path, why))?;
    sync_parent(path)
}

/// Puts a file in place of an older one, at once and synced: never half of it is seen.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<(), KeyFileError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{:016x}.new", random_u64()));
    let temporary = path.with_file_name(name);
    let written = write_new(&temporary, bytes, mode)
        .and_then(|()| fs::rename(&temporary, path).map_err(|why| io_error(path, why)));
    if written.is_err() {
        // What is left is our own half-written file; the error that matters is returned.
        let _ = fs::remove_file(&temporary);
    }
    written.and_then(|()| sync_parent(path))
}

pub(super) fn sync_parent(path: &Path) -> Result<(), KeyFileError> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(|why| io_error(parent, why))
}

#[cfg(test)]
mod tests;
