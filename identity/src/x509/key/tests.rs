//! Tests of public keys: which are let in, with keys that no library would make.

use rcgen::{CertificateParams, KeyPair, PKCS_RSA_SHA256, PublicKeyData, SignatureAlgorithm};

use super::*;
use crate::fixture::{REVIEWS, authority, der_header, east, leaf_params, replace, signed_again};
use crate::x509;

/// An RSA public key of any numbers.
struct Numbers(Vec<u8>);

impl Numbers {
    fn new(modulus: &[u8], exponent: &[u8]) -> Self {
        let integer = |content: &[u8]| [&[0x02], &der_header(content.len())[..], content].concat();
        let content = [integer(modulus), integer(exponent)].concat();
        Self([&[0x30], &der_header(content.len())[..], &content].concat())
    }
}

impl PublicKeyData for Numbers {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_RSA_SHA256
    }
}

fn leaf_with(key: &impl PublicKeyData) -> Vec<u8> {
    let params: CertificateParams = leaf_params(&[REVIEWS]);
    params.signed_by(key, &authority(&east()).issuer).unwrap().der().to_vec()
}

fn read(der: &[u8]) -> Result<(), &'static str> {
    let certificate = x509::parse(der).unwrap();
    PublicKey::read(certificate.public_key()).map(|_| ())
}

/// A modulus of that many bits, as DER writes it.
fn modulus(bits: usize) -> Vec<u8> {
    let mut bytes = vec![0xff; bits.div_ceil(8)];
    bytes[0] = 0xff >> (bytes.len() * 8 - bits);
    if bytes[0] & 0x80 != 0 {
        bytes.insert(0, 0);
    }
    bytes
}

#[test]
fn rsa_moduli_have_2048_to_8192_bits() {
    const SHORT: Result<(), &str> = Err("its RSA key does not have 2048 to 8192 bits, whole bytes of them");
    let of = |bits| read(&leaf_with(&Numbers::new(&modulus(bits), &[1, 0, 1])));
    assert_eq!((of(512), of(1024), of(2047)), (SHORT, SHORT, SHORT));
    assert_eq!((of(2048), of(3072), of(4096), of(8192)), (Ok(()), Ok(()), Ok(()), Ok(())));
    assert_eq!((of(8193), of(16_384), of(2052)), (SHORT, SHORT, SHORT));
    // Long as it is written, but not as a number.
    let mut padded = vec![0; 200];
    padded.extend(modulus(1024));
    assert!(read(&leaf_with(&Numbers::new(&padded, &[1, 0, 1]))).is_err());
    let negative = vec![0x80; 256];
    assert_eq!(read(&leaf_with(&Numbers::new(&negative, &[1, 0, 1]))), Err("its RSA key cannot be read"));
}

#[test]
fn rsa_exponents_are_odd_and_neither_small_nor_large() {
    let of = |exponent: &[u8]| read(&leaf_with(&Numbers::new(&modulus(2048), exponent)));
    assert_eq!(of(&[1, 0, 1]), Ok(()));
    assert_eq!(of(&[0, 0xff, 0xff, 0xff, 0xff]), Ok(()));
    for exponent in [&[1][..], &[3], &[1, 0, 0], &[0, 0xff, 0xff], &[1, 0, 0, 0, 1], &[0], &[0x81, 0, 1]] {
        assert!(of(exponent).is_err(), "{exponent:?}");
    }
}

#[test]
fn curves_are_named_and_known() {
    let key = KeyPair::generate().unwrap();
    let good = leaf_with(&key);
    assert_eq!(read(&good), Ok(()));
    let p256 = [0x06, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
    for (what, last) in [("P-192", 1), ("prime192v2", 2), ("prime239v1", 4)] {
        let mut weak = p256;
        weak[9] = last;
        let der = signed_again(&good, &key, |signed| replace(signed, &p256, &weak));
        assert!(read(&der).is_err(), "{what}");
    }
    let compressed = signed_again(&good, &key, |signed| {
        let point = key.der_bytes();
        replace(signed, &point[..8], &[&[2], &point[1..8]].concat());
    });
    assert!(read(&compressed).is_err(), "not an uncompressed point");
}

#[test]
fn jwk_members_are_the_key() {
    let numbers = Numbers::new(&modulus(2048), &[1, 0, 1]);
    let der = leaf_with(&numbers);
    let certificate = x509::parse(&der).unwrap();
    let members = PublicKey::read(certificate.public_key()).unwrap().jwk_members();
    assert_eq!(members[0], ("kty", "RSA".to_owned()));
    assert_eq!(members[1], ("n", URL_SAFE_NO_PAD.encode([0xff; 256])));
    assert_eq!(members[2], ("e", "AQAB".to_owned()));
}
