//! Keys in a hardware token, through PKCS#11: made in the token, never out of it, used by asking it to sign.
//!
//! The module is loaded at run time, once per process, from the path that the URI names. `pool` bounds sessions,
//! waiting and time; `uri` reads `pkcs11:` URIs. Tested against SoftHSM.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::digest::{SHA256, digest};
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use cryptoki::slot::Slot;
use hanse_identity::{KeyId, PrivateKey};
use rcgen::{PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm, SigningKey};

use super::{KeyPurpose, KeyStore, KeyStoreError};
use crate::io::keys;

mod pool;
pub mod uri;

use pool::Pool;
use uri::TokenUri;

/// DER of the object identifier prime256v1 (SEC 2): what CKA_EC_PARAMS wants.
const P256_PARAMETERS: [u8; 10] = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
/// Bytes of an uncompressed P-256 point.
const POINT_BYTES: usize = 65;
/// Bytes of a random id under which a key is while it has no better one.
const FIRST_ID_BYTES: usize = 16;

/// The store.
#[derive(Debug)]
pub struct TokenKeyStore {
    pool: Arc<Pool>,
    place: String,
}

/// A key in the token.
struct TokenKey {
    pool: Arc<Pool>,
    purpose: KeyPurpose,
    id: KeyId,
    point: Vec<u8>,
}

/// What a worker has: its own session, and the keys that it has found.
struct Connection {
    session: Session,
    handles: BTreeMap<(KeyPurpose, KeyId), ObjectHandle>,
}

/// Why the token did not do it.
#[derive(Debug, thiserror::Error)]
enum TokenError {
    #[error("{0}")]
    Module(#[from] Error),
    #[error("{0}")]
    Refused(String),
}

impl TokenKeyStore {
    /// Loads the module, finds the token, logs in: a wrong PIN is said now, and tried once.
    pub fn open(uri: &TokenUri) -> Result<Self, KeyStoreError> {
        let place = uri.to_string();
        let failed = |why: String| KeyStoreError::Token { place: place.clone(), why };
        let module = module(&uri.module).map_err(|e| failed(e.to_string()))?;
        let slot = find_slot(&module, uri).map_err(&failed)?;
        let pin = uri.read_pin().map_err(&failed)?;
        let pool = Pool::start(module, slot, pin).map_err(|e| failed(e.to_string()))?;
        Ok(Self { pool: Arc::new(pool), place })
    }

    fn ask<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Connection) -> Result<T, TokenError> + Send + 'static,
    ) -> Result<T, KeyStoreError> {
        self.pool.ask(job).map_err(|why| KeyStoreError::Token { place: self.place.clone(), why })
    }
}

impl KeyStore for TokenKeyStore {
    fn create(&self, purpose: KeyPurpose) -> Result<PrivateKey, KeyStoreError> {
        let first_id = keys::random_bytes::<FIRST_ID_BYTES>();
        let point = self.ask(move |token| generate(&token.session, purpose, &first_id))?;
        let key = TokenKey { pool: self.pool.clone(), purpose, id: key_id(&point)?, point };
        Ok(PrivateKey::external(Box::new(key))?)
    }

    fn open(&self, purpose: KeyPurpose, id: &KeyId) -> Result<PrivateKey, KeyStoreError> {
        let wanted = *id;
        let point = self.ask(move |token| {
            if token.handle(purpose, &wanted)?.is_none() {
                return Ok(None);
            }
            let public = find(&token.session, ObjectClass::PUBLIC_KEY, purpose, &wanted)?;
            public.map(|handle| point(&token.session, handle)).transpose()
        })?;
        let missing = || KeyStoreError::Missing { purpose, id: *id, place: self.place.clone() };
        let point = point.ok_or_else(missing)?;
        if key_id(&point)? != *id {
            let why = format!("what it has under the id {id} is another key");
            return Err(KeyStoreError::Token { place: self.place.clone(), why });
        }
        let key = TokenKey { pool: self.pool.clone(), purpose, id: *id, point };
        Ok(PrivateKey::external(Box::new(key))?)
    }

    fn delete(&self, purpose: KeyPurpose, id: &KeyId) -> Result<(), KeyStoreError> {
        let id = *id;
        self.ask(move |token| {
            token.handles.remove(&(purpose, id));
            for class in [ObjectClass::PRIVATE_KEY, ObjectClass::PUBLIC_KEY] {
                if let Some(handle) = find(&token.session, class, purpose, &id)? {
                    token.session.destroy_object(handle)?;
                }
            }
            Ok(())
        })
    }

    fn list(&self, purpose: KeyPurpose) -> Result<Vec<KeyId>, KeyStoreError> {
        self.ask(move |token| {
            let wanted = [Attribute::Class(ObjectClass::PRIVATE_KEY), Attribute::Token(true), label(purpose)];
            let mut ids = Vec::new();
            for handle in token.session.find_objects(&wanted)? {
                for attribute in token.session.get_attributes(handle, &[AttributeType::Id])? {
                    // A key whose making was interrupted has a shorter id, and is nobody's.
                    if let Attribute::Id(id) = attribute {
                        ids.extend(<[u8; 32]>::try_from(id).map(KeyId));
                    }
                }
            }
            ids.sort();
            Ok(ids)
        })
    }

    fn description(&self) -> String {
        format!("in the token {}", self.place)
    }
}

impl PublicKeyData for TokenKey {
    fn der_bytes(&self) -> &[u8] {
        &self.point
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl SigningKey for TokenKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let (purpose, id) = (self.purpose, self.id);
        let hash = digest(&SHA256, message);
        let signed = self.pool.ask(move |token| {
            let missing = || TokenError::Refused(format!("the key {id} is not there any more"));
            let handle = token.handle(purpose, &id)?.ok_or_else(missing)?;
            Ok(token.session.sign(&Mechanism::Ecdsa, handle, hash.as_ref())?)
        });
        signed
            .and_then(|fixed| der_signature(&fixed).ok_or_else(|| "it gave no signature".to_owned()))
            .map_err(|why| {
                tracing::error!(why, key = %id, "the token did not sign");
                rcgen::Error::RemoteKeyError
            })
    }
}

impl Connection {
    fn handle(&mut self, purpose: KeyPurpose, id: &KeyId) -> Result<Option<ObjectHandle>, TokenError> {
        if let Some(known) = self.handles.get(&(purpose, *id)) {
            return Ok(Some(*known));
        }
        let found = find(&self.session, ObjectClass::PRIVATE_KEY, purpose, id)?;
        if let Some(handle) = found {
            self.handles.insert((purpose, *id), handle);
        }
        Ok(found)
    }
}

impl TokenError {
    /// Whether the session is of no use any more, so that the next job needs a new one.
    fn ends_session(&self) -> bool {
        use RvError as Rv;
        matches!(
            self,
            Self::Module(Error::Pkcs11(
                Rv::SessionHandleInvalid
                    | Rv::SessionClosed
                    | Rv::DeviceError
                    | Rv::DeviceRemoved
                    | Rv::TokenNotPresent
                    | Rv::UserNotLoggedIn
                    | Rv::KeyHandleInvalid
                    | Rv::ObjectHandleInvalid,
                _
            ))
        )
    }

    /// Whether the PIN was refused: to try it again could lock the token.
    fn is_wrong_pin(&self) -> bool {
        use RvError as Rv;
        matches!(
            self,
            Self::Module(Error::Pkcs11(
                Rv::PinIncorrect | Rv::PinLocked | Rv::PinExpired | Rv::PinInvalid,
                _
            ))
        )
    }
}

/// Loaded modules: each is initialised once, and stays until the process ends.
fn module(path: &Path) -> Result<Pkcs11, Error> {
    static LOADED: Mutex<BTreeMap<PathBuf, Pkcs11>> = Mutex::new(BTreeMap::new());
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(module) = loaded.get(path) {
        return Ok(module.clone());
    }
    let module = Pkcs11::new(path)?;
    module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))?;
    loaded.insert(path.to_owned(), module.clone());
    Ok(module)
}

/// The one slot whose token is as the URI says.
fn find_slot(module: &Pkcs11, uri: &TokenUri) -> Result<Slot, String> {
    let slots = module.get_slots_with_initialized_token().map_err(|e| e.to_string())?;
    let mut found = Vec::new();
    for slot in slots {
        let Ok(token) = module.get_token_info(slot) else { continue };
        let fits = |wanted: &Option<String>, is: &str| wanted.as_deref().is_none_or(|wanted| wanted == is);
        if fits(&uri.token, token.label())
            && fits(&uri.serial, token.serial_number())
            && fits(&uri.manufacturer, token.manufacturer_id())
            && fits(&uri.model, token.model())
            && uri.slot_id.is_none_or(|wanted| wanted == slot.id())
        {
            found.push(slot);
        }
    }
    match found.as_slice() {
        [slot] => Ok(*slot),
        [] => Err("the module has no such token (pkcs11-tool --list-slots shows what it has)".to_owned()),
        several => Err(format!("{} tokens are as the URI says: name the one with serial=…", several.len())),
    }
}

fn label(purpose: KeyPurpose) -> Attribute {
    Attribute::Label(format!("hanse-{purpose}").into_bytes())
}

/// Makes a key pair in the token; the private half is sensitive and cannot be taken out. The point of the public half.
fn generate(session: &Session, purpose: KeyPurpose, first_id: &[u8]) -> Result<Vec<u8>, TokenError> {
    let id = Attribute::Id(first_id.to_vec());
    let public = [
        Attribute::Token(true),
        Attribute::Private(false),
        Attribute::Verify(true),
        Attribute::KeyType(KeyType::EC),
        Attribute::EcParams(P256_PARAMETERS.to_vec()),
        id.clone(),
        label(purpose),
    ];
    let private = [
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Sign(true),
        id,
        label(purpose),
    ];
    let (public, private) = session.generate_key_pair(&Mechanism::EccKeyPairGen, &public, &private)?;
    let named = named(session, public, private);
    if named.is_err() {
        // Best effort: it is under an id that nobody looks for.
        let _ = session.destroy_object(private).and(session.destroy_object(public));
    }
    named
}

/// Gives a new key pair the id of its public key, once the token has confirmed that it keeps the private one.
fn named(session: &Session, public: ObjectHandle, private: ObjectHandle) -> Result<Vec<u8>, TokenError> {
    let said = [AttributeType::Sensitive, AttributeType::Extractable, AttributeType::NeverExtractable];
    let said = session.get_attributes(private, &said)?;
    let wanted =
        [Attribute::Sensitive(true), Attribute::Extractable(false), Attribute::NeverExtractable(true)];
    if !wanted.iter().all(|w| said.contains(w)) {
        return Err(TokenError::Refused("it made a key that could be taken out of it".to_owned()));
    }
    let point = point(session, public)?;
    let id = key_id(&point).map_err(|e| TokenError::Refused(e.to_string()))?;
    for handle in [private, public] {
        session.update_attributes(handle, &[Attribute::Id(id.0.to_vec())])?;
    }
    Ok(point)
}

fn find(
    session: &Session,
    class: ObjectClass,
    purpose: KeyPurpose,
    id: &KeyId,
) -> Result<Option<ObjectHandle>, TokenError> {
    let wanted =
        [Attribute::Class(class), Attribute::Token(true), label(purpose), Attribute::Id(id.0.to_vec())];
    match session.find_objects(&wanted)?.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(*one)),
        several => Err(TokenError::Refused(format!("{} objects have the id {id}", several.len()))),
    }
}

/// The uncompressed point: CKA_EC_POINT is an OCTET STRING with it inside; some modules leave the wrapping out.
fn point(session: &Session, public: ObjectHandle) -> Result<Vec<u8>, TokenError> {
    let attributes = session.get_attributes(public, &[AttributeType::EcPoint])?;
    let bytes = attributes.into_iter().find_map(|a| match a {
        Attribute::EcPoint(bytes) => Some(bytes),
        _ => None,
    });
    let bytes = bytes.unwrap_or_default();
    let point = match bytes.as_slice() {
        [0x04, 0x41, point @ ..] if point.len() == POINT_BYTES => point,
        point => point,
    };
    if point.len() != POINT_BYTES || point[0] != 4 {
        return Err(TokenError::Refused("its public key is not a point of P-256".to_owned()));
    }
    Ok(point.to_vec())
}

/// SHA-256 of the SubjectPublicKeyInfo around a point.
fn key_id(point: &[u8]) -> Result<KeyId, KeyStoreError> {
    struct Point<'p>(&'p [u8]);
    impl PublicKeyData for Point<'_> {
        fn der_bytes(&self) -> &[u8] {
            self.0
        }
        fn algorithm(&self) -> &'static SignatureAlgorithm {
            &PKCS_ECDSA_P256_SHA256
        }
    }
    let hash = digest(&SHA256, &Point(point).subject_public_key_info());
    let hash = hash.as_ref().try_into().map_err(|_| rcgen::Error::UnsupportedSignatureAlgorithm)?;
    Ok(KeyId(hash))
}

/// r and s, 32 bytes each, as DER (RFC 3279 §2.2.3).
fn der_signature(fixed: &[u8]) -> Option<Vec<u8>> {
    let (r, s) = fixed.split_at_checked(32).filter(|(_, s)| s.len() == 32)?;
    let mut body = Vec::with_capacity(70);
    for number in [r, s] {
        let start = number.iter().position(|b| *b != 0)?;
        let number = &number[start..];
        // The top bit of the first byte would be a sign.
        let padded = number[0] & 0x80 != 0;
        body.extend([0x02, u8::try_from(number.len() + usize::from(padded)).ok()?]);
        body.extend(padded.then_some(0));
        body.extend_from_slice(number);
    }
    Some([&[0x30, u8::try_from(body.len()).ok()?][..], &body].concat())
}

#[cfg(test)]
mod tests;
