//! Sealed keys: the form of an encrypted key file. Bytes in, bytes out; disks and prompts are elsewhere.
//!
//! All numbers big-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `hansekey` |
//! | 1 | version of the form: 1 |
//! | 1 | how the data key is derived: 1 = HKDF-SHA-256 (RFC 5869) of 32 random bytes, 2 = Argon2id (RFC 9106) of a passphrase |
//! | 4, 4, 4 | Argon2: memory in KiB, passes, lanes; all 0 for HKDF |
//! | 32 | salt of the derivation: every file has a data key of its own |
//! | 12 | nonce |
//! | rest | AES-256-GCM of the PKCS#8 DER, tag at the end |
//!
//! Associated data: the header up to the nonce, the key's purpose, its id, and the trust domain. So a file that is
//! renamed, or carried to another trust domain, does not open.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use hanse_identity::{KeyId, TrustDomain};
use zeroize::Zeroizing;

use super::{KeyPurpose, Secret};

const MAGIC: &[u8; 8] = b"hansekey";
const VERSION: u8 = 1;
const SALT_BYTES: usize = 32;
const HEADER_BYTES: usize = 8 + 1 + 1 + 3 * 4 + SALT_BYTES + NONCE_LEN;
const TAG_BYTES: usize = 16;
const DATA_KEY_BYTES: usize = 32;
/// What the derived key is for (RFC 5869, info).
const HKDF_INFO: &[u8] = b"hanse key file 1";
/// Largest file that is read, in bytes: a P-256 key has 138.
pub const MAX_FILE_BYTES: usize = 4096;

/// Argon2id as this program writes it: 64 MiB, 3 passes, 1 lane (RFC 9106 §4, second recommendation, in one thread).
pub const ARGON2: Argon2Cost = Argon2Cost { memory_kib: 64 * 1024, passes: 3, lanes: 1 };
/// The most that is done because a file says so: whoever can write the file must not be able to use up the host.
pub const ARGON2_MOST: Argon2Cost = Argon2Cost { memory_kib: 1024 * 1024, passes: 16, lanes: 8 };

/// Cost of deriving a key from a passphrase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Argon2Cost {
    pub memory_kib: u32,
    pub passes: u32,
    pub lanes: u32,
}

/// Which key this is; the encryption vouches for it.
#[derive(Clone, Copy, Debug)]
pub struct Label<'l> {
    pub purpose: KeyPurpose,
    pub id: &'l KeyId,
    pub trust_domain: &'l TrustDomain,
}

/// Randomness that the caller drew.
#[derive(Clone, Copy, Debug)]
pub struct Fresh {
    pub salt: [u8; SALT_BYTES],
    pub nonce: [u8; NONCE_LEN],
}

/// Why bytes do not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    #[error("{0}")]
    Format(&'static str),
    #[error("the secret does not fit")]
    WrongSecret,
    #[error("the key cannot be derived")]
    Derivation,
}

/// Whether these bytes are a sealed key at all.
pub fn is_sealed(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

/// Encrypts a key.
pub fn seal(pkcs8: &[u8], label: Label<'_>, secret: &Secret, fresh: Fresh) -> Result<Vec<u8>, SealError> {
    let cost = match secret {
        Secret::Key(_) => Argon2Cost { memory_kib: 0, passes: 0, lanes: 0 },
        Secret::Passphrase { cost, .. } => *cost,
    };
    let mut file = Vec::with_capacity(HEADER_BYTES + pkcs8.len() + TAG_BYTES);
    file.extend_from_slice(MAGIC);
    file.extend_from_slice(&[VERSION, derivation(secret)]);
    [cost.memory_kib, cost.passes, cost.lanes].iter().for_each(|n| file.extend_from_slice(&n.to_be_bytes()));
    file.extend_from_slice(&fresh.salt);
    let associated = associated(&file, label);
    file.extend_from_slice(&fresh.nonce);
    let key = data_key(secret, cost, &fresh.salt)?;
    // Encrypted in place, in a buffer that never grows: no copy of the plain key is left behind.
    let mut body = Zeroizing::new(Vec::with_capacity(pkcs8.len() + TAG_BYTES));
    body.extend_from_slice(pkcs8);
    key.seal_in_place_append_tag(
        Nonce::assume_unique_for_key(fresh.nonce),
        Aad::from(associated),
        &mut *body,
    )
    .map_err(|_| SealError::Derivation)?;
    file.extend_from_slice(&body);
    Ok(file)
}

/// Decrypts what `seal` made; PKCS#8 DER.
pub fn open(file: &[u8], label: Label<'_>, secret: &Secret) -> Result<Zeroizing<Vec<u8>>, SealError> {
    if !is_sealed(file) {
        return Err(SealError::Format("it does not begin as one"));
    }
    if file.len() < HEADER_BYTES + TAG_BYTES || file.len() > MAX_FILE_BYTES {
        return Err(SealError::Format("its length is not that of one"));
    }
    if file[8] != VERSION {
        return Err(SealError::Format("its version is not known here"));
    }
    if file[9] != derivation(secret) {
        return Err(match file[9] {
            1 => SealError::Format("it is encrypted under a key of 32 bytes, and a passphrase was given"),
            2 => SealError::Format("it is encrypted under a passphrase, and a key of 32 bytes was given"),
            _ => SealError::Format("how its data key is derived is not known here"),
        });
    }
    let number = |at: usize| u32::from_be_bytes(file[at..at + 4].try_into().expect("four bytes were taken"));
    let cost = Argon2Cost { memory_kib: number(10), passes: number(14), lanes: number(18) };
    let (header, rest) = file.split_at(HEADER_BYTES - NONCE_LEN);
    let (nonce, body) = rest.split_at(NONCE_LEN);
    let key = data_key(secret, cost, &header[22..])?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| SealError::WrongSecret)?;
    let mut body = Zeroizing::new(body.to_vec());
    let length = key
        .open_in_place(nonce, Aad::from(associated(header, label)), &mut body)
        .map_err(|_| SealError::WrongSecret)?
        .len();
    body.truncate(length);
    Ok(body)
}

fn derivation(secret: &Secret) -> u8 {
    match secret {
        Secret::Key(_) => 1,
        Secret::Passphrase { .. } => 2,
    }
}

/// Every part is of fixed length or ends in a zero byte, which none of them has: no two labels read the same.
fn associated(header: &[u8], label: Label<'_>) -> Vec<u8> {
    let Label { purpose, id, trust_domain } = label;
    [header, purpose.as_str().as_bytes(), &[0], &id.0, trust_domain.as_str().as_bytes(), &[0]].concat()
}

fn data_key(secret: &Secret, cost: Argon2Cost, salt: &[u8]) -> Result<LessSafeKey, SealError> {
    let mut key = Zeroizing::new([0_u8; DATA_KEY_BYTES]);
    match secret {
        Secret::Key(secret) => Salt::new(HKDF_SHA256, salt)
            .extract(secret.as_slice())
            .expand(&[HKDF_INFO], DataKey)
            .and_then(|okm| okm.fill(key.as_mut_slice()))
            .map_err(|_| SealError::Derivation)?,
        Secret::Passphrase { text, .. } => {
            cost.check()?;
            let cost = argon2::Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(DATA_KEY_BYTES));
            let cost = cost.map_err(|_| SealError::Format("its Argon2 parameters are none"))?;
            argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, cost)
                .hash_password_into(text, salt, key.as_mut_slice())
                .map_err(|_| SealError::Derivation)?;
        }
    }
    UnboundKey::new(&AES_256_GCM, key.as_slice()).map(LessSafeKey::new).map_err(|_| SealError::Derivation)
}

impl Argon2Cost {
    fn check(self) -> Result<(), SealError> {
        let most = ARGON2_MOST;
        let within =
            self.memory_kib <= most.memory_kib && self.passes <= most.passes && self.lanes <= most.lanes;
        within.then_some(()).ok_or(SealError::Format("it asks for more work to open it than is ever done"))
    }
}

/// How many bytes HKDF is to give.
struct DataKey;

impl KeyType for DataKey {
    fn len(&self) -> usize {
        DATA_KEY_BYTES
    }
}
