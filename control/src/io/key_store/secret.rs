//! The secret that keys are encrypted under: 32 random bytes from a file or a systemd credential, or a passphrase from
//! a descriptor or a terminal. Never from an argument, never from the environment.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::sealed::{ARGON2, Argon2Cost};
use crate::io::keys;

/// Bytes of a key-encryption key.
pub const KEY_BYTES: usize = 32;
/// Shortest passphrase, in bytes.
pub const MIN_PASSPHRASE_BYTES: usize = 12;
/// Longest passphrase, in bytes.
pub const MAX_PASSPHRASE_BYTES: usize = 1024;
/// Where systemd puts a unit's credentials (systemd.exec(5)); the variable holds a path, no secret.
const CREDENTIALS_DIRECTORY: &str = "CREDENTIALS_DIRECTORY";

/// What keys are encrypted under. Wiped when dropped, never shown.
#[derive(Clone)]
pub enum Secret {
    /// 32 random bytes.
    Key(Zeroizing<[u8; KEY_BYTES]>),
    /// Something that a person knows; `cost` is for what is written, what is read has its own.
    Passphrase { text: Zeroizing<Vec<u8>>, cost: Argon2Cost },
}

/// Why there is no secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("the key-encryption key cannot be read: {0}")]
    Unreadable(String),
    #[error(
        "the key-encryption key {path} has {length} bytes, not {KEY_BYTES}; make one: hanse node encryption-key --out FILE"
    )]
    Length { path: PathBuf, length: usize },
    #[error(
        "the key-encryption key {0} is inside the data directory: whoever has a copy of that has both, and the encryption is worth nothing"
    )]
    Inside(PathBuf),
    #[error("{0:?} is not the name of a credential")]
    CredentialName(String),
    #[error("$CREDENTIALS_DIRECTORY is not set: this process was not started by systemd with credentials")]
    NoCredentials,
    #[error("the passphrase has {0} bytes; it must have {MIN_PASSPHRASE_BYTES} to {MAX_PASSPHRASE_BYTES}")]
    PassphraseLength(usize),
    #[error("the two passphrases are not the same")]
    NotTheSame,
    #[error("the passphrase cannot be read from {from}: {why}")]
    Passphrase { from: String, why: std::io::Error },
}

impl Secret {
    /// From a file of 32 bytes, 0600 or stricter, outside the data directory.
    pub fn of_file(path: &Path, data_dir: &Path) -> Result<Self, SecretError> {
        let unreadable = |e: std::io::Error| SecretError::Unreadable(format!("{}: {e}", path.display()));
        let real = path.canonicalize().map_err(unreadable)?;
        if data_dir.canonicalize().is_ok_and(|dir| real.starts_with(dir)) {
            return Err(SecretError::Inside(path.to_owned()));
        }
        Self::of_bytes(path)
    }

    /// From a systemd credential of 32 bytes.
    pub fn of_credential(name: &str) -> Result<Self, SecretError> {
        let plain = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0']);
        if !plain {
            return Err(SecretError::CredentialName(name.to_owned()));
        }
        let directory = std::env::var_os(CREDENTIALS_DIRECTORY).ok_or(SecretError::NoCredentials)?;
        Self::of_bytes(&Path::new(&directory).join(name))
    }

    fn of_bytes(path: &Path) -> Result<Self, SecretError> {
        let bytes = keys::read_private(path).map_err(|e| SecretError::Unreadable(e.to_string()))?;
        let bytes = Zeroizing::new(bytes);
        let length = bytes.len();
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        if length != KEY_BYTES {
            return Err(SecretError::Length { path: path.to_owned(), length });
        }
        key.copy_from_slice(&bytes);
        Ok(Self::Key(key))
    }

    /// A passphrase from an open descriptor of this process, up to its end; one line end at the end is not part of it.
    pub fn of_descriptor(descriptor: u32) -> Result<Self, SecretError> {
        let from = || format!("descriptor {descriptor}");
        // Larger than any passphrase: one that is too long is refused, not cut.
        let mut text = Zeroizing::new(Vec::with_capacity(MAX_PASSPHRASE_BYTES + 3));
        let most = MAX_PASSPHRASE_BYTES as u64 + 3;
        // Standard input is read as it is; any other is opened again by its number, which for a pipe wants the user
        // that made it.
        match descriptor {
            0 => std::io::stdin().lock().take(most).read_to_end(&mut text),
            other => {
                File::open(format!("/dev/fd/{other}")).and_then(|file| file.take(most).read_to_end(&mut text))
            }
        }
        .map_err(|why| SecretError::Passphrase { from: from(), why })?;
        if text.ends_with(b"\n") {
            text.pop();
        }
        Self::passphrase(text)
    }

    /// A passphrase from whoever sits at the terminal; `new`: asked twice.
    pub fn of_prompt(new: bool) -> Result<Self, SecretError> {
        let ask = |what: &str| {
            rpassword::prompt_password(format!("{what}: "))
                .map(Zeroizing::new)
                .map_err(|why| SecretError::Passphrase { from: "the terminal".to_owned(), why })
        };
        let text = ask("Passphrase of the node's keys")?;
        if new && ask("The same again")? != text {
            return Err(SecretError::NotTheSame);
        }
        Self::passphrase(Zeroizing::new(text.as_bytes().to_vec()))
    }

    /// A passphrase that was read.
    pub fn passphrase(text: Zeroizing<Vec<u8>>) -> Result<Self, SecretError> {
        if !(MIN_PASSPHRASE_BYTES..=MAX_PASSPHRASE_BYTES).contains(&text.len()) {
            return Err(SecretError::PassphraseLength(text.len()));
        }
        Ok(Self::Passphrase { text, cost: ARGON2 })
    }
}

/// Makes a key-encryption key: 32 random bytes in a new file, 0600. Refuses to overwrite.
pub fn make_key_file(path: &Path) -> Result<(), keys::KeyFileError> {
    let key = Zeroizing::new(keys::random_bytes::<KEY_BYTES>());
    keys::write_new(path, key.as_slice(), 0o600)
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Key(_) => "Secret::Key(…)",
            Self::Passphrase { .. } => "Secret::Passphrase(…)",
        })
    }
}
