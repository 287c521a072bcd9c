//! The agent's files: its own identity, and a join that has begun. Private, written whole or not at all.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use hanse_identity::svid::{Svid, SvidError};
use hanse_identity::token::{Admits, JoinToken, TokenError};
use hanse_identity::wire::base64_bytes;
use hanse_identity::{Bundle, ClusterName, NodeName, Timestamp, TrustDomain};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

/// Largest token file that is read.
pub const MAX_TOKEN_FILE_BYTES: u64 = 64 * 1024;
const IDENTITY_FILE: &str = "agent.json";
const JOINING_FILE: &str = "joining.json";

/// The data directory.
#[derive(Clone, Debug)]
pub struct Store {
    directory: PathBuf,
}

/// What an agent that has joined needs in order to start again.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoredIdentity {
    pub name: NodeName,
    pub cluster: ClusterName,
    pub trust_domain: TrustDomain,
    pub chain_pem: String,
    pub key_pem: String,
    pub bundle: Bundle,
    /// `host:port` of control nodes.
    pub endpoints: Vec<String>,
    /// Of the token that it joined with, which is spent.
    #[serde(default)]
    pub invite: String,
    /// The SVID for when the control node is revoked that has signed the other one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spare: Option<StoredSpare>,
}

/// A second SVID of the agent's own.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoredSpare {
    pub chain_pem: String,
    pub key_pem: String,
}

/// A join whose answer has not arrived: the same request again gets the same answer.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoredJoin {
    pub invite: String,
    /// PKCS#8 DER.
    #[serde(with = "base64_bytes")]
    pub key: Vec<u8>,
    #[serde(with = "base64_bytes")]
    pub csr: Vec<u8>,
}

/// Why a file of the data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{}: {source}", .path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{} cannot be read: {reason}", .path.display())]
    Content { path: PathBuf, reason: String },
}

/// Why a token file does not let this agent join.
#[derive(Debug, thiserror::Error)]
pub enum TokenFileError {
    #[error("join token file {}: {source}", .path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("join token file {} is larger than a token", .0.display())]
    TooLarge(PathBuf),
    #[error("join token file {} is empty", .0.display())]
    Empty(PathBuf),
    #[error("join token file {}: {source}", .path.display())]
    Token { path: PathBuf, source: TokenError },
    #[error("the join token is for agent {token}, this is agent {agent}")]
    OtherAgent { token: NodeName, agent: NodeName },
}

impl Store {
    /// The directory, made if need be, closed to everyone else.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        let failed = |source| StoreError::Io { path: directory.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
        std::fs::set_permissions(directory, Permissions::from_mode(0o700)).map_err(failed)?;
        Ok(Self { directory: directory.to_owned() })
    }

    /// The identity that was stored; `None` if this agent has never joined.
    pub fn identity(&self) -> Result<Option<StoredIdentity>, StoreError> {
        self.read(IDENTITY_FILE)
    }

    pub fn write_identity(&self, identity: &StoredIdentity) -> Result<(), StoreError> {
        self.write(IDENTITY_FILE, identity)
    }

    /// The join that was begun with this invite.
    pub fn joining(&self, invite: &str) -> Result<Option<StoredJoin>, StoreError> {
        let joining: Option<StoredJoin> = self.read(JOINING_FILE)?;
        Ok(joining.filter(|j| j.invite == invite))
    }

    pub fn write_joining(&self, joining: &StoredJoin) -> Result<(), StoreError> {
        self.write(JOINING_FILE, joining)
    }

    /// Forgets a join that has been answered: its key is the identity's now.
    pub fn remove_joining(&self) -> Result<(), StoreError> {
        let path = self.directory.join(JOINING_FILE);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(StoreError::Io { path, source }),
            _ => Ok(()),
        }
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, StoreError> {
        let path = self.directory.join(name);
        let text = match std::fs::read(&path) {
            Ok(text) => Zeroizing::new(text),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StoreError::Io { path, source }),
        };
        let content = serde_json::from_slice(&text);
        content.map(Some).map_err(|e| StoreError::Content { path, reason: e.to_string() })
    }

    /// Writes beside, flushes, renames over, flushes the directory: after a crash the file is old or new.
    fn write<T: Serialize>(&self, name: &str, content: &T) -> Result<(), StoreError> {
        let path = self.directory.join(name);
        let beside = self.directory.join(format!("{name}.new"));
        let text = serde_json::to_vec_pretty(content);
        let text = text.map_err(|e| StoreError::Content { path: path.clone(), reason: e.to_string() })?;
        let text = Zeroizing::new(text);
        let written = || -> io::Result<()> {
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
            file.set_permissions(Permissions::from_mode(0o600))?;
            file.write_all(&text)?;
            file.sync_all()?;
            std::fs::rename(&beside, &path)?;
            File::open(&self.directory)?.sync_all()
        };
        written().map_err(|source| StoreError::Io { path: path.clone(), source })
    }
}

impl StoredIdentity {
    pub fn svid(&self) -> Result<Svid, SvidError> {
        Svid::from_pem(&self.chain_pem, &self.key_pem)
    }

    pub fn spare(&self) -> Option<Svid> {
        let spare = self.spare.as_ref()?;
        Svid::from_pem(&spare.chain_pem, &spare.key_pem).ok()
    }

    pub fn set_spare(&mut self, svid: &Svid) {
        let (chain_pem, key_pem) = (svid.chain_pem(), svid.key_pem().as_str().to_owned());
        self.spare = Some(StoredSpare { chain_pem, key_pem });
    }

    /// The spare one becomes the one in use, and the other way round.
    pub fn swap_spare(&mut self) {
        if let Some(spare) = &mut self.spare {
            std::mem::swap(&mut spare.chain_pem, &mut self.chain_pem);
            std::mem::swap(&mut spare.key_pem, &mut self.key_pem);
        }
    }

    pub fn set_svid(&mut self, svid: &Svid) {
        self.key_pem.zeroize();
        self.chain_pem = svid.chain_pem();
        self.key_pem = svid.key_pem().as_str().to_owned();
    }
}

impl Drop for StoredIdentity {
    fn drop(&mut self) {
        self.key_pem.zeroize();
    }
}

impl Drop for StoredSpare {
    fn drop(&mut self) {
        self.key_pem.zeroize();
    }
}

impl Drop for StoredJoin {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

/// Reads a join token that admits this agent now.
pub fn read_token(path: &Path, agent: &NodeName, now: Timestamp) -> Result<JoinToken, TokenFileError> {
    let unreadable = |source| TokenFileError::Unreadable { path: path.to_owned(), source };
    let size = std::fs::metadata(path).map_err(unreadable)?.len();
    if size > MAX_TOKEN_FILE_BYTES {
        return Err(TokenFileError::TooLarge(path.to_owned()));
    }
    let text = Zeroizing::new(std::fs::read_to_string(path).map_err(unreadable)?);
    if text.trim().is_empty() {
        return Err(TokenFileError::Empty(path.to_owned()));
    }
    let of_token = |source| TokenFileError::Token { path: path.to_owned(), source };
    let token: JoinToken = text.trim().parse().map_err(of_token)?;
    match &token.admits {
        Admits::Agent(name) if name == agent => {}
        Admits::Agent(name) => {
            return Err(TokenFileError::OtherAgent { token: name.clone(), agent: agent.clone() });
        }
        other => return Err(of_token(TokenError::WrongKind(other.clone()))),
    }
    if token.expires <= now {
        return Err(of_token(TokenError::Expired(token.expires)));
    }
    Ok(token)
}
