//! Real authorities, made once per process, and SVIDs as the World carries them: the facts and who signed.

use std::collections::BTreeMap;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use hanse_federation::View;
use hanse_identity::{
    Authority, AuthorityCertificate, Crl, KeyId, NodeName, RevocationId, Serial, SpiffeId, SvidFacts,
    Timestamp, TrustDomain,
};

/// The moment at which every World begins.
pub const EPOCH: Timestamp = Timestamp(1_800_000_000_000);
/// Authorities outlive every World.
const AUTHORITY_LIFETIME: Duration = Duration::from_secs(10 * 365 * 86_400);

/// An SVID without its bytes: what is in it, and which authority signed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorldSvid {
    pub facts: SvidFacts,
    pub authority: KeyId,
}

/// Why an SVID is not believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Disbelief {
    UnknownTrustDomain,
    UnknownAuthority,
    Expired,
    Revoked(RevocationId),
    /// A revocation that does not hit it kept it out.
    NotHit(RevocationId),
}

type Made = BTreeMap<(TrustDomain, NodeName, u32), (AuthorityCertificate, Crl)>;

/// The certificate of a node's authority of one generation.
pub fn authority(trust_domain: &TrustDomain, node: &NodeName, generation: u32) -> AuthorityCertificate {
    made(trust_domain, node, generation).0
}

/// The first revocation list of that authority: empty.
pub fn first_list(trust_domain: &TrustDomain, node: &NodeName, generation: u32) -> Crl {
    made(trust_domain, node, generation).1
}

fn made(trust_domain: &TrustDomain, node: &NodeName, generation: u32) -> (AuthorityCertificate, Crl) {
    static MADE: OnceLock<Mutex<Made>> = OnceLock::new();
    let made = MADE.get_or_init(Mutex::default);
    let mut made = made.lock().unwrap_or_else(PoisonError::into_inner);
    let create = || {
        let key =
            rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("a P-256 key can be made");
        let serial = Serial::from_random([7; 16]);
        let authority = Authority::create(trust_domain, node, key, serial, EPOCH, AUTHORITY_LIFETIME);
        let authority = authority.expect("the names are valid and the key is P-256");
        let list = Crl::sign(&authority, 1, &BTreeMap::new(), EPOCH).expect("an empty list can be signed");
        (authority.certificate().clone(), list)
    };
    made.entry((trust_domain.clone(), node.clone(), generation)).or_insert_with(create).clone()
}

impl WorldSvid {
    /// Valid from `begins`, as it says in whole seconds.
    pub fn new(id: SpiffeId, serial: u128, authority: KeyId, begins: Timestamp, ends: Timestamp) -> Self {
        // No two SVIDs have one key.
        let mut key = [0; 32];
        key[..16].copy_from_slice(&serial.to_be_bytes());
        let facts = SvidFacts {
            id,
            serial: Serial::from_random(serial.to_be_bytes()),
            authority_key_identifier: Some(authority.prefix()),
            key_id: KeyId(key),
            not_before: Timestamp::from_seconds(begins.seconds()),
            not_after: ends,
        };
        Self { facts, authority }
    }

    /// What `identity::verify` decides, without signatures.
    pub fn check(&self, view: &View, now: Timestamp) -> Result<(), Disbelief> {
        let bundle = view.bundles.get(self.facts.id.trust_domain()).ok_or(Disbelief::UnknownTrustDomain)?;
        if !bundle.trusted().any(|a| a.key_id == self.authority) {
            return Err(Disbelief::UnknownAuthority);
        }
        if now >= self.facts.not_after {
            return Err(Disbelief::Expired);
        }
        match view.revocations.check(&self.facts) {
            // Found by an index: those are among what is to be tested.
            Some(revocation) if !revocation.hits(&self.facts) => {
                Err(Disbelief::NotHit(revocation.id.clone()))
            }
            Some(revocation) => Err(Disbelief::Revoked(revocation.id.clone())),
            None => Ok(()),
        }
    }
}
