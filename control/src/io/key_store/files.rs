//! Keys in files of the data directory: `keys/<purpose>-<key id>.key`, 0600, sealed if there is a secret.
//!
//! A directory of an earlier version has `authority.key`, plain PKCS#8, instead; it is still read.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use hanse_identity::{KeyId, PrivateKey, TrustDomain};
use zeroize::Zeroizing;

use super::sealed::{self, Fresh, Label, MAX_FILE_BYTES, SealError};
use super::{KeyPurpose, KeyStore, KeyStoreError, Secret};
use crate::io::keys;

/// The folder of the keys, in the data directory.
pub const KEYS_FOLDER: &str = "keys";
/// The one authority's key as earlier versions wrote it.
pub const EARLIER_AUTHORITY_KEY_FILE: &str = "authority.key";

/// The store.
#[derive(Debug)]
pub struct FileKeyStore {
    data_dir: PathBuf,
    trust_domain: TrustDomain,
    secret: Option<Secret>,
}

/// Whether the directory has private keys already.
pub fn has_keys(data_dir: &Path) -> bool {
    let filled = |dir: &Path| fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some());
    data_dir.join(EARLIER_AUTHORITY_KEY_FILE).exists() || filled(&data_dir.join(KEYS_FOLDER))
}

impl FileKeyStore {
    /// Keys of that directory. Without a secret new keys are written in plain, and sealed ones do not open.
    pub fn new(data_dir: &Path, trust_domain: TrustDomain, secret: Option<Secret>) -> Self {
        Self { data_dir: data_dir.to_owned(), trust_domain, secret }
    }

    /// Encrypts every key of the directory that is plain; the files that were written. The plain bytes are
    /// overwritten where they were, then let go of. That is all a program can do: a disk that writes elsewhere (flash,
    /// a copy-on-write file system, a snapshot, a backup) may still have them.
    pub fn encrypt_all(&self) -> Result<Vec<PathBuf>, KeyStoreError> {
        let mut written = Vec::new();
        let mut plain = Vec::new();
        for purpose in [KeyPurpose::Authority, KeyPurpose::Jwt] {
            plain.extend(self.named(purpose)?.into_iter().map(|id| (purpose, self.path(purpose, &id))));
        }
        let earlier = self.data_dir.join(EARLIER_AUTHORITY_KEY_FILE);
        if earlier.exists() {
            plain.push((KeyPurpose::Authority, earlier));
        }
        for (purpose, path) in plain {
            let bytes = read_key_file(&path)?;
            if sealed::is_sealed(&bytes) {
                continue;
            }
            let key = PrivateKey::from_pkcs8(&bytes)?;
            let mut old = OpenOptions::new().write(true).open(&path).map_err(|why| io(&path, why))?;
            let target = self.path(purpose, &key.id());
            let file = self.sealed(purpose, &key, &bytes)?;
            self.make_folder()?;
            keys::replace(&target, &file, 0o600).map_err(|e| as_io(&target, e))?;
            // Not before what was written has been read back is the other one given up.
            self.open(purpose, &key.id())?;
            overwrite(&mut old, bytes.len()).map_err(|why| io(&path, why))?;
            if path != target {
                fs::remove_file(&path).map_err(|why| io(&path, why))?;
                keys::sync_parent(&path).map_err(|e| as_io(&path, e))?;
            }
            written.push(target);
        }
        Ok(written)
    }

    fn folder(&self) -> PathBuf {
        self.data_dir.join(KEYS_FOLDER)
    }

    fn path(&self, purpose: KeyPurpose, id: &KeyId) -> PathBuf {
        self.folder().join(format!("{purpose}-{id}.key"))
    }

    fn make_folder(&self) -> Result<(), KeyStoreError> {
        let folder = self.folder();
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        made.and_then(|()| fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)))
            .and_then(|()| File::open(&self.data_dir)?.sync_all())
            .map_err(|why| io(&folder, why))
    }

    fn sealed(&self, purpose: KeyPurpose, key: &PrivateKey, pkcs8: &[u8]) -> Result<Vec<u8>, KeyStoreError> {
        let id = key.id();
        let path = self.path(purpose, &id);
        let secret = self.secret.as_ref().ok_or_else(|| KeyStoreError::SecretWanted(path.clone()))?;
        let label = Label { purpose, id: &id, trust_domain: &self.trust_domain };
        let fresh = Fresh { salt: keys::random_bytes(), nonce: keys::random_bytes() };
        sealed::seal(pkcs8, label, secret, fresh).map_err(|e| self.not_opened(&path, e))
    }

    fn not_opened(&self, path: &Path, error: SealError) -> KeyStoreError {
        let path = path.to_owned();
        match error {
            SealError::Format(why) => KeyStoreError::Format { path, why },
            SealError::WrongSecret => KeyStoreError::WrongSecret(path),
            SealError::Derivation => KeyStoreError::Format { path, why: "its data key cannot be derived" },
        }
    }

    /// The key in a file, whatever its form.
    fn read(&self, path: &Path, purpose: KeyPurpose, id: &KeyId) -> Result<PrivateKey, KeyStoreError> {
        let bytes = read_key_file(path)?;
        let key = if sealed::is_sealed(&bytes) {
            let secret = self.secret.as_ref().ok_or_else(|| KeyStoreError::SecretWanted(path.to_owned()))?;
            let label = Label { purpose, id, trust_domain: &self.trust_domain };
            let pkcs8 = sealed::open(&bytes, label, secret).map_err(|e| self.not_opened(path, e))?;
            PrivateKey::from_pkcs8(&pkcs8)?
        } else {
            tracing::warn!(
                path = %path.display(),
                "THIS PRIVATE KEY IS NOT ENCRYPTED: whoever has a copy of the data directory can sign as this node; hanse node encrypt-keys"
            );
            PrivateKey::from_pkcs8(&bytes)?
        };
        Ok(key)
    }

    /// The ids that file names of the folder say.
    fn named(&self, purpose: KeyPurpose) -> Result<Vec<KeyId>, KeyStoreError> {
        let folder = self.folder();
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(why) if why.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(why) => return Err(io(&folder, why)),
        };
        let mut ids = Vec::new();
        for entry in entries {
            let name = entry.map_err(|why| io(&folder, why))?.file_name();
            let parts = name.to_str().and_then(|n| n.strip_suffix(".key")).and_then(|n| n.split_once('-'));
            let id: Option<KeyId> =
                parts.filter(|(kind, _)| kind.parse() == Ok(purpose)).and_then(|(_, id)| id.parse().ok());
            ids.extend(id);
        }
        ids.sort();
        Ok(ids)
    }

    /// The key of a directory of an earlier version.
    fn earlier(&self) -> Result<Option<PrivateKey>, KeyStoreError> {
        let path = self.data_dir.join(EARLIER_AUTHORITY_KEY_FILE);
        if !path.exists() {
            return Ok(None);
        }
        // Its name says nothing of the key, so any is the one that was meant.
        self.read(&path, KeyPurpose::Authority, &KeyId([0; 32])).map(Some)
    }
}

impl KeyStore for FileKeyStore {
    fn create(&self, purpose: KeyPurpose) -> Result<PrivateKey, KeyStoreError> {
        let key = PrivateKey::local(keys::new_key_pair()?)?;
        let pkcs8 = key.to_pkcs8().ok_or(rcgen::Error::RemoteKeyError)?;
        self.make_folder()?;
        let path = self.path(purpose, &key.id());
        match &self.secret {
            Some(_) => keys::write_new(&path, &self.sealed(purpose, &key, &pkcs8)?, 0o600),
            None => keys::write_new(&path, &pkcs8, 0o600),
        }
        .map_err(|e| as_io(&path, e))?;
        Ok(key)
    }

    fn open(&self, purpose: KeyPurpose, id: &KeyId) -> Result<PrivateKey, KeyStoreError> {
        let path = self.path(purpose, id);
        let key = if path.exists() {
            self.read(&path, purpose, id)?
        } else {
            let earlier = if purpose == KeyPurpose::Authority { self.earlier()? } else { None };
            let place = self.folder().display().to_string();
            let missing = || KeyStoreError::Missing { purpose, id: *id, place };
            earlier.filter(|key| key.id() == *id).ok_or_else(missing)?
        };
        if key.id() != *id {
            return Err(KeyStoreError::AnotherKey { path, found: key.id() });
        }
        Ok(key)
    }

    fn delete(&self, purpose: KeyPurpose, id: &KeyId) -> Result<(), KeyStoreError> {
        let mut paths = vec![self.path(purpose, id)];
        if purpose == KeyPurpose::Authority && self.earlier()?.is_some_and(|key| key.id() == *id) {
            paths.push(self.data_dir.join(EARLIER_AUTHORITY_KEY_FILE));
        }
        for path in paths.into_iter().filter(|p| p.exists()) {
            let gone = || -> std::io::Result<()> {
                let mut file = OpenOptions::new().write(true).open(&path)?;
                let length = file.metadata()?.len();
                overwrite(&mut file, usize::try_from(length).unwrap_or(MAX_FILE_BYTES).min(MAX_FILE_BYTES))?;
                fs::remove_file(&path)
            };
            gone().map_err(|why| io(&path, why))?;
            keys::sync_parent(&path).map_err(|e| as_io(&path, e))?;
        }
        Ok(())
    }

    fn list(&self, purpose: KeyPurpose) -> Result<Vec<KeyId>, KeyStoreError> {
        let mut ids = self.named(purpose)?;
        if purpose == KeyPurpose::Authority {
            ids.extend(self.earlier()?.map(|key| key.id()));
        }
        ids.sort();
        ids.dedup();
        Ok(ids)
    }

    fn description(&self) -> String {
        let folder = self.folder();
        match &self.secret {
            Some(_) => format!("encrypted in {}", folder.display()),
            None => format!("NOT ENCRYPTED in {} (see --key-encryption-file)", folder.display()),
        }
    }
}

/// A key file, bounded, refused if others may read it.
fn read_key_file(path: &Path) -> Result<Zeroizing<Vec<u8>>, KeyStoreError> {
    let mut file = File::open(path).map_err(|why| io(path, why))?;
    let mode = file.metadata().map_err(|why| io(path, why))?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyStoreError::Exposed { path: path.to_owned(), mode });
    }
    // Room for all of it from the start: a buffer that grows leaves copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_FILE_BYTES + 1));
    (&mut file).take(MAX_FILE_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(|why| io(path, why))?;
    if bytes.len() > MAX_FILE_BYTES {
        return Err(KeyStoreError::Format { path: path.to_owned(), why: "it is too large for one" });
    }
    Ok(bytes)
}

fn overwrite(file: &mut File, length: usize) -> std::io::Result<()> {
    file.write_all(&vec![0; length])?;
    file.sync_all()
}

fn io(path: &Path, why: std::io::Error) -> KeyStoreError {
    KeyStoreError::Io { path: path.to_owned(), why }
}

fn as_io(path: &Path, error: keys::KeyFileError) -> KeyStoreError {
    match error {
        keys::KeyFileError::Io { path, why } => KeyStoreError::Io { path, why },
        keys::KeyFileError::Exists(path) => io(&path, std::io::ErrorKind::AlreadyExists.into()),
        other => io(path, std::io::Error::other(other.to_string())),
    }
}
