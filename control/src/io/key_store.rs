//! Key stores: where the private keys of a control node are made, kept and used, and the flags that say which store.
//!
//! One interface, `KeyStore`; behind it files in the data directory (`files`, sealed by `sealed` under a secret that
//! `secret` reads) or a hardware token (`pkcs11`). What comes out is a `PrivateKey`: whoever signs with it does not
//! know where it is.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use hanse_identity::private_key::PrivateKeyError;
use hanse_identity::{KeyId, PrivateKey, TrustDomain};

pub mod files;
pub mod pkcs11;
pub mod sealed;
pub mod secret;

pub use files::FileKeyStore;
pub use secret::Secret;

/// What a key is for. A key of one purpose is not found under another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeyPurpose {
    /// Signs X.509 SVIDs and revocation lists.
    Authority,
    /// Signs JWT-SVIDs.
    Jwt,
}

/// Makes, opens and forgets ECDSA P-256 signing keys, by the SHA-256 of their public key. All of it blocks: on a
/// disk for files, on a token for hardware.
pub trait KeyStore: Send + Sync + fmt::Debug {
    /// Makes a new key; it is kept safely when this returns.
    fn create(&self, purpose: KeyPurpose) -> Result<PrivateKey, KeyStoreError>;

    /// The key with that id.
    fn open(&self, purpose: KeyPurpose, id: &KeyId) -> Result<PrivateKey, KeyStoreError>;

    /// Forgets a key for good; one that is not there is forgotten already.
    fn delete(&self, purpose: KeyPurpose, id: &KeyId) -> Result<(), KeyStoreError>;

    /// The ids of all keys of that purpose, sorted.
    fn list(&self, purpose: KeyPurpose) -> Result<Vec<KeyId>, KeyStoreError>;

    /// How keys are kept here, in a few words for people.
    fn description(&self) -> String;
}

/// Why a key cannot be made, opened or deleted.
#[derive(Debug, thiserror::Error)]
pub enum KeyStoreError {
    #[error("there is no {purpose} key {id} in {place}")]
    Missing { purpose: KeyPurpose, id: KeyId, place: String },
    #[error("{path} may be read by others (mode {mode:o}); it must be 0600")]
    Exposed { path: PathBuf, mode: u32 },
    #[error("{path}: {why}")]
    Io { path: PathBuf, why: std::io::Error },
    #[error(
        "{0} is encrypted, and no secret was given to open it with: --key-encryption-file, --key-encryption-credential, --key-passphrase-fd or --key-passphrase-prompt"
    )]
    SecretWanted(PathBuf),
    #[error(
        "{0} does not open: the secret is not the one that it was encrypted with, or the file was changed or belongs to another node"
    )]
    WrongSecret(PathBuf),
    #[error("{path} cannot be opened as a key file: {why}")]
    Format { path: PathBuf, why: &'static str },
    #[error("{path} holds key {found}, not the one that its name says")]
    AnotherKey { path: PathBuf, found: KeyId },
    #[error("{0}")]
    Secret(#[from] secret::SecretError),
    #[error("{place}: {why}")]
    Token { place: String, why: String },
    #[error("--authority-key: {0}")]
    Uri(#[from] pkcs11::uri::UriError),
    #[error("the key: {0}")]
    Key(#[from] PrivateKeyError),
    #[error("a key pair cannot be made: {0}")]
    Making(#[from] rcgen::Error),
}

/// Where this node's private keys are, and what they are encrypted with. None of it is a secret itself: secrets are
/// in files, descriptors, credentials or somebody's head, never in an argument or in the environment.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Keys at rest")]
pub struct KeyFlags {
    /// Encrypt keys under the 32 bytes in this file (make one: hanse node encryption-key); keep it off the data directory's disk and backups
    #[arg(long, value_name = "FILE", group = "key-encryption")]
    pub key_encryption_file: Option<PathBuf>,
    /// Encrypt keys under the 32 bytes in this systemd credential ($CREDENTIALS_DIRECTORY/NAME; see LoadCredentialEncrypted=)
    #[arg(long, value_name = "NAME", group = "key-encryption")]
    pub key_encryption_credential: Option<String>,
    /// Encrypt keys under a passphrase (Argon2id), read from this file descriptor
    #[arg(long, value_name = "FD", group = "key-encryption")]
    pub key_passphrase_fd: Option<u32>,
    /// Encrypt keys under a passphrase (Argon2id), asked for on the terminal
    #[arg(long, group = "key-encryption")]
    pub key_passphrase_prompt: bool,
    /// Make and use the node's signing keys in a PKCS#11 token (RFC 7512), which they never leave:
    /// pkcs11:token=LABEL?module-path=/PATH/MODULE.so&pin-source=file:/PATH/PIN
    #[arg(long, value_name = "URI", conflicts_with = "key-encryption")]
    pub authority_key: Option<String>,
}

impl KeyFlags {
    /// The store of the node whose data directory this is. Reads the secret.
    pub fn open(
        &self,
        data_dir: &Path,
        trust_domain: &TrustDomain,
    ) -> Result<Arc<dyn KeyStore>, KeyStoreError> {
        match &self.authority_key {
            Some(uri) => Ok(Arc::new(pkcs11::TokenKeyStore::open(&uri.parse()?)?)),
            None => Ok(Arc::new(self.files(data_dir, trust_domain)?)),
        }
    }

    /// The same for files only, for what is done to files.
    pub fn files(&self, data_dir: &Path, trust_domain: &TrustDomain) -> Result<FileKeyStore, KeyStoreError> {
        let secret = self.secret(data_dir)?;
        Ok(FileKeyStore::new(data_dir, trust_domain.clone(), secret))
    }

    /// As they are typed again for the same node's other commands, each after a space; no secret is among them.
    pub fn as_typed(&self) -> String {
        let file = self.key_encryption_file.as_ref();
        let file = file.map(|path| format!(" --key-encryption-file {}", path.display()));
        let credential = self.key_encryption_credential.as_ref();
        let credential = credential.map(|name| format!(" --key-encryption-credential {name}"));
        let descriptor = self.key_passphrase_fd.map(|fd| format!(" --key-passphrase-fd {fd}"));
        let prompt = self.key_passphrase_prompt.then(|| " --key-passphrase-prompt".to_owned());
        let token = self.authority_key.as_ref().map(|uri| format!(" --authority-key '{uri}'"));
        [file, credential, descriptor, prompt, token].into_iter().flatten().collect()
    }

    fn secret(&self, data_dir: &Path) -> Result<Option<Secret>, KeyStoreError> {
        if let Some(path) = &self.key_encryption_file {
            return Ok(Some(Secret::of_file(path, data_dir)?));
        }
        if let Some(name) = &self.key_encryption_credential {
            return Ok(Some(Secret::of_credential(name)?));
        }
        if let Some(descriptor) = self.key_passphrase_fd {
            return Ok(Some(Secret::of_descriptor(descriptor)?));
        }
        if self.key_passphrase_prompt {
            return Ok(Some(Secret::of_prompt(!files::has_keys(data_dir))?));
        }
        Ok(None)
    }
}

impl KeyPurpose {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Authority => "authority",
            Self::Jwt => "jwt",
        }
    }
}

impl fmt::Display for KeyPurpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for KeyPurpose {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Authority, Self::Jwt].into_iter().find(|p| p.as_str() == text).ok_or(())
    }
}

#[cfg(test)]
mod tests;
