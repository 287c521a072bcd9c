//! Tests of key stores on real files: what is on disk, what opens it, what does not.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use rcgen::SigningKey as _;
use zeroize::Zeroizing;

use super::sealed::{Argon2Cost, Fresh, Label, SealError};
use super::*;
use crate::io::keys;

fn east() -> TrustDomain {
    "east.example".parse().unwrap()
}

fn key(byte: u8) -> Secret {
    Secret::Key(Zeroizing::new([byte; 32]))
}

/// Cheap: the tests are about what fits, not about how long it takes.
fn passphrase(text: &str) -> Secret {
    let cost = Argon2Cost { memory_kib: 64, passes: 1, lanes: 1 };
    Secret::Passphrase { text: Zeroizing::new(text.as_bytes().to_vec()), cost }
}

fn store(dir: &Path, secret: Option<Secret>) -> FileKeyStore {
    FileKeyStore::new(dir, east(), secret)
}

/// Every byte of every file in a directory.
fn all_bytes(dir: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        bytes.extend(if path.is_dir() { all_bytes(&path) } else { fs::read(&path).unwrap() });
    }
    bytes
}

fn holds(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

/// Where the 32 bytes of the secret number are in the PKCS#8 of a P-256 key.
fn scalar(key: &PrivateKey) -> Vec<u8> {
    key.to_pkcs8().unwrap()[36..68].to_vec()
}

#[test]
fn a_key_is_made_opened_listed_and_deleted() {
    for secret in [None, Some(key(1)), Some(passphrase("correct horse"))] {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path(), secret.clone());
        let (one, two) =
            (store.create(KeyPurpose::Authority).unwrap(), store.create(KeyPurpose::Authority).unwrap());
        let jwt = store.create(KeyPurpose::Jwt).unwrap();
        assert_eq!(store.open(KeyPurpose::Authority, &one.id()).unwrap().id(), one.id());
        assert!(store.open(KeyPurpose::Authority, &two.id()).unwrap().sign(b"m").is_ok());
        let mut both = vec![one.id(), two.id()];
        both.sort();
        assert_eq!(store.list(KeyPurpose::Authority).unwrap(), both);
        assert_eq!(store.list(KeyPurpose::Jwt).unwrap(), [jwt.id()]);
        let other = store.open(KeyPurpose::Authority, &jwt.id());
        assert!(matches!(other, Err(KeyStoreError::Missing { .. })), "{other:?}");
        let encrypted = secret.is_some();
        assert_eq!(holds(&all_bytes(dir.path()), &scalar(&one)), !encrypted);
        store.delete(KeyPurpose::Authority, &one.id()).unwrap();
        store.delete(KeyPurpose::Authority, &one.id()).unwrap();
        assert!(matches!(store.open(KeyPurpose::Authority, &one.id()), Err(KeyStoreError::Missing { .. })));
        assert_eq!(store.list(KeyPurpose::Authority).unwrap(), [two.id()]);
    }
}

#[test]
fn a_sealed_key_opens_under_its_own_secret_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let id = store(dir.path(), Some(key(1))).create(KeyPurpose::Authority).unwrap().id();
    let open = |secret| store(dir.path(), secret).open(KeyPurpose::Authority, &id);
    assert!(open(Some(key(1))).is_ok());
    assert!(matches!(open(Some(key(2))), Err(KeyStoreError::WrongSecret(_))));
    assert!(matches!(open(Some(passphrase("correct horse"))), Err(KeyStoreError::Format { .. })));
    let without = open(None).unwrap_err().to_string();
    assert!(without.contains("--key-encryption-file"), "{without}");
    let west = FileKeyStore::new(dir.path(), "west.example".parse().unwrap(), Some(key(1)));
    let carried = west.open(KeyPurpose::Authority, &id);
    assert!(matches!(carried, Err(KeyStoreError::WrongSecret(_))), "{carried:?}");
    let (from, to) = (format!("authority-{id}.key"), format!("jwt-{id}.key"));
    fs::copy(dir.path().join("keys").join(from), dir.path().join("keys").join(to)).unwrap();
    let renamed = store(dir.path(), Some(key(1))).open(KeyPurpose::Jwt, &id);
    assert!(matches!(renamed, Err(KeyStoreError::WrongSecret(_))), "{renamed:?}");
}

#[test]
fn no_changed_byte_of_a_sealed_key_goes_unnoticed() {
    let id = KeyId([7; 32]);
    let label = Label { purpose: KeyPurpose::Authority, id: &id, trust_domain: &east() };
    let fresh = Fresh { salt: [3; 32], nonce: [4; 12] };
    let sealed = sealed::seal(b"a private key", label, &key(1), fresh).unwrap();
    assert_eq!(*sealed::open(&sealed, label, &key(1)).unwrap(), b"a private key");
    for position in 0..sealed.len() {
        let mut changed = sealed.clone();
        changed[position] ^= 1;
        assert!(sealed::open(&changed, label, &key(1)).is_err(), "byte {position}");
    }
    for length in 0..sealed.len() {
        assert!(sealed::open(&sealed[..length], label, &key(1)).is_err(), "{length} bytes");
    }
}

#[test]
fn a_file_cannot_ask_for_more_work_than_is_ever_done() {
    let id = KeyId([7; 32]);
    let label = Label { purpose: KeyPurpose::Authority, id: &id, trust_domain: &east() };
    let fresh = Fresh { salt: [3; 32], nonce: [4; 12] };
    let secret = passphrase("correct horse");
    let sealed = sealed::seal(b"a private key", label, &secret, fresh).unwrap();
    for at in [10, 14, 18] {
        let mut greedy = sealed.clone();
        greedy[at..at + 4].copy_from_slice(&u32::MAX.to_be_bytes());
        let refused = sealed::open(&greedy, label, &secret).unwrap_err();
        assert!(matches!(refused, SealError::Format(why) if why.contains("more work")), "{refused:?}");
    }
    let mut nothing = sealed;
    nothing[10..22].fill(0);
    assert!(sealed::open(&nothing, label, &secret).is_err());
}

#[test]
fn the_key_of_an_earlier_version_is_read_and_encrypted_in_place() {
    let dir = tempfile::tempdir().unwrap();
    let pair = keys::new_key_pair().unwrap();
    let earlier = dir.path().join(files::EARLIER_AUTHORITY_KEY_FILE);
    keys::replace(&earlier, pair.serialized_der(), 0o600).unwrap();
    let link = dir.path().join("link-to-the-same-inode");
    fs::hard_link(&earlier, &link).unwrap();
    let id = store(dir.path(), None).list(KeyPurpose::Authority).unwrap()[0];
    let plain = store(dir.path(), None).open(KeyPurpose::Authority, &id).unwrap();
    let wanted = store(dir.path(), None).encrypt_all();
    assert!(matches!(wanted, Err(KeyStoreError::SecretWanted(_))), "{wanted:?}");
    assert!(earlier.exists(), "nothing is given up without a secret");

    let store = store(dir.path(), Some(key(1)));
    assert_eq!(store.encrypt_all().unwrap(), [dir.path().join(format!("keys/authority-{id}.key"))]);
    assert!(!earlier.exists());
    // The other name of the same inode shows that the bytes themselves are gone, not only the name.
    assert!(fs::read(&link).unwrap().iter().all(|b| *b == 0));
    assert!(!holds(&all_bytes(dir.path()), &scalar(&plain)));
    assert_eq!(store.open(KeyPurpose::Authority, &id).unwrap().id(), id);
    assert!(store.encrypt_all().unwrap().is_empty(), "once is enough");
}

#[test]
fn plain_keys_of_the_folder_are_encrypted_in_place() {
    let dir = tempfile::tempdir().unwrap();
    let plain = store(dir.path(), None);
    let (one, jwt) = (plain.create(KeyPurpose::Authority).unwrap(), plain.create(KeyPurpose::Jwt).unwrap());
    let store = store(dir.path(), Some(passphrase("correct horse")));
    assert_eq!(store.encrypt_all().unwrap().len(), 2);
    assert!(!holds(&all_bytes(dir.path()), &scalar(&one)) && !holds(&all_bytes(dir.path()), &scalar(&jwt)));
    assert_eq!(store.open(KeyPurpose::Jwt, &jwt.id()).unwrap().id(), jwt.id());
}

#[test]
fn secrets_come_from_private_files_outside_the_data_directory() {
    let (dir, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = dir.path().join("keys.key");
    secret::make_key_file(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(secret::make_key_file(&path).is_err(), "a key that keys are encrypted under is not overwritten");
    assert!(Secret::of_file(&path, data.path()).is_ok());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(Secret::of_file(&path, data.path()).is_err());
    let inside = data.path().join("keys.key");
    secret::make_key_file(&inside).unwrap();
    let refused = Secret::of_file(&inside, data.path()).unwrap_err();
    assert!(matches!(refused, secret::SecretError::Inside(_)), "{refused}");
    let short = dir.path().join("short");
    keys::replace(&short, b"too short", 0o600).unwrap();
    assert!(matches!(
        Secret::of_file(&short, data.path()),
        Err(secret::SecretError::Length { length: 9, .. })
    ));
    for name in ["", "../x", ".", "a/b"] {
        assert!(matches!(Secret::of_credential(name), Err(secret::SecretError::CredentialName(_))), "{name}");
    }
}

#[test]
fn passphrases_are_bounded_and_no_secret_is_shown() {
    let of = |text: &[u8]| Secret::passphrase(Zeroizing::new(text.to_vec()));
    assert!(of(b"short").is_err() && of(&[b'x'; 2000]).is_err());
    let shown = format!("{:?} {:?}", of(b"correct horse").unwrap(), key(9));
    assert!(!shown.contains("horse") && !shown.contains('9'), "{shown}");
}

#[test]
fn a_passphrase_is_read_from_a_descriptor() {
    use std::os::fd::AsRawFd as _;
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "correct horse\n").unwrap();
    let descriptor = u32::try_from(file.as_file().as_raw_fd()).unwrap();
    let Secret::Passphrase { text, .. } = Secret::of_descriptor(descriptor).unwrap() else {
        panic!("a descriptor gives a passphrase")
    };
    assert_eq!(*text, b"correct horse");
}
