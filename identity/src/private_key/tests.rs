//! Tests of private keys: local and external ones sign alike, and only a local one can be written down.

use super::*;
use crate::fixture::key;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};

/// Stands for a hardware module: signs, and gives nothing else.
struct Module(KeyPair);

impl PublicKeyData for Module {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.0.algorithm()
    }
}

impl SigningKey for Module {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0.sign(message)
    }
}

#[test]
fn a_local_key_is_written_down_and_read_again() {
    let first = PrivateKey::local(key()).unwrap();
    let again = PrivateKey::from_pkcs8(&first.to_pkcs8().unwrap()).unwrap();
    assert_eq!(first.id(), again.id());
    assert!(!first.is_external());
}

#[test]
fn an_external_key_signs_and_cannot_be_written_down() {
    let external = PrivateKey::external(Box::new(Module(key()))).unwrap();
    assert!(external.is_external() && external.to_pkcs8().is_none());
    let signature = external.sign_fixed(b"message").unwrap();
    let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, external.der_bytes());
    assert!(public.verify(b"message", &signature).is_ok());
    assert!(public.verify(b"another", &signature).is_err());
}

#[test]
fn fixed_signatures_verify_however_short_their_numbers_are() {
    let local = PrivateKey::local(key()).unwrap();
    let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, local.der_bytes());
    // One signature in about 128 has a number with a leading zero byte.
    for number in 0..600_u32 {
        let message = number.to_be_bytes();
        assert!(public.verify(&message, &local.sign_fixed(&message).unwrap()).is_ok());
    }
    assert_eq!(fixed_signature(&[0x30, 6, 2, 1, 5, 2, 1, 7]).map(|f| (f[31], f[63])), Some((5, 7)));
    let too_long = [&[0x30, 38, 2, 33][..], &[1; 33], &[2, 1, 7]].concat();
    for wrong in [&[][..], &[0x30, 0], &[0x30, 6, 2, 1, 5, 2, 1], &[0x30, 7, 2, 1, 5, 2, 1, 7, 0], &too_long]
    {
        assert_eq!(fixed_signature(wrong), None, "{wrong:?}");
    }
}

#[test]
fn other_curves_and_garbage_are_refused() {
    let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    assert_eq!(PrivateKey::local(p384).unwrap_err(), PrivateKeyError::NotP256);
    assert!(matches!(PrivateKey::from_pkcs8(b"garbage"), Err(PrivateKeyError::Unreadable(_))));
}

#[test]
fn its_debug_form_has_no_secret_in_it() {
    let key = PrivateKey::local(key()).unwrap();
    let shown = format!("{key:?}");
    let secret = crate::wire::to_hex(&key.to_pkcs8().unwrap()[40..48]);
    assert!(shown.contains(&key.id().to_string()) && !shown.contains(&secret), "{shown}");
}
