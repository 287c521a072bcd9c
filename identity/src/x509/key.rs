//! Public keys: which are strong enough for a certificate of a mesh, and what they are made of.
//!
//! SPIRE, and Envoy with its defaults, agree on P-256, P-384 and RSA; whatever else there is (P-192, DSA, explicit
//! curve parameters, short RSA) has no place in a chain that is believed.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use x509_parser::der_parser::oid::Oid;
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_NIST_EC_P521, OID_PKCS1_RSAENCRYPTION,
};
use x509_parser::public_key::PublicKey as Parsed;
use x509_parser::x509::SubjectPublicKeyInfo;

/// Bytes of a coordinate on each curve (SEC 1 §2.3.5).
const P256_COORDINATE: usize = 32;
const P384_COORDINATE: usize = 48;
const P521_COORDINATE: usize = 66;
/// Bits of an RSA modulus: fewer are weak (NIST SP 800-131A), more cost a verifier what they bring no one.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;
/// RSA public exponents (FIPS 186-5 §5.1 has the lower end); the upper end bounds the cost of a signature check.
const RSA_EXPONENTS: std::ops::RangeInclusive<u64> = 65_537..=u32::MAX as u64;

/// A public key that a certificate in a mesh may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PublicKey<'k> {
    /// The uncompressed point: 0x04, x, y, 65 bytes. Whether it is on the curve is found out by whoever
    /// verifies a signature with it.
    P256(&'k [u8]),
    /// As above, 97 bytes.
    P384(&'k [u8]),
    /// Big-endian, no leading zero; 2048 to 8192 bits (whole bytes) and an odd exponent from 65537 up to 32 bits.
    Rsa { modulus: &'k [u8], exponent: &'k [u8] },
}

impl<'k> PublicKey<'k> {
    /// Reads the key of a certificate; `Err` holds the rule that is broken.
    pub(crate) fn read(key: &'k SubjectPublicKeyInfo<'_>) -> Result<Self, &'static str> {
        if let Some(point) = point(key, &OID_EC_P256, P256_COORDINATE) {
            return Ok(Self::P256(point));
        }
        if let Some(point) = point(key, &OID_NIST_EC_P384, P384_COORDINATE) {
            return Ok(Self::P384(point));
        }
        if key.algorithm.algorithm == OID_PKCS1_RSAENCRYPTION {
            return rsa(key);
        }
        Err("its key is not ECDSA P-256 or P-384 (named, uncompressed) nor RSA")
    }

    /// The members of its JWK that say what key it is (RFC 7518 §6.2.1, §6.3.1).
    pub(crate) fn jwk_members(&self) -> Vec<(&'static str, String)> {
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        match self {
            Self::P256(point) => point_members("P-256", point),
            Self::P384(point) => point_members("P-384", point),
            Self::Rsa { modulus, exponent } => {
                vec![("kty", "RSA".to_owned()), ("n", text(modulus)), ("e", text(exponent))]
            }
        }
    }
}

/// The members of a JWK for an uncompressed point of the curve that JWKs call `name`.
pub(crate) fn point_members(name: &str, point: &[u8]) -> Vec<(&'static str, String)> {
    let (x, y) = point[1..].split_at((point.len() - 1) / 2);
    let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    vec![("kty", "EC".to_owned()), ("crv", name.to_owned()), ("x", text(x)), ("y", text(y))]
}

/// The uncompressed point, if the key is ECDSA P-521: no certificate here has one, but tokens may be signed with it.
pub(crate) fn p521_point<'k>(key: &'k SubjectPublicKeyInfo<'_>) -> Option<&'k [u8]> {
    point(key, &OID_NIST_EC_P521, P521_COORDINATE)
}

/// The uncompressed point, if the key is ECDSA P-256: the one kind that Hanse itself issues for and signs with.
pub(crate) fn p256_point<'k>(key: &'k SubjectPublicKeyInfo<'_>) -> Option<&'k [u8]> {
    point(key, &OID_EC_P256, P256_COORDINATE)
}

/// The uncompressed point on the named `curve`; `None` for every other key.
fn point<'k>(key: &'k SubjectPublicKeyInfo<'_>, curve: &Oid<'_>, coordinate: usize) -> Option<&'k [u8]> {
    let named = key.algorithm.parameters.as_ref()?.as_oid().ok()?;
    let point: &[u8] = &key.subject_public_key.data;
    let fits = key.algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY
        && named == *curve
        && key.subject_public_key.unused_bits == 0
        && point.len() == 1 + 2 * coordinate
        && point[0] == 4;
    fits.then_some(point)
}

fn rsa<'k>(key: &'k SubjectPublicKeyInfo<'_>) -> Result<PublicKey<'k>, &'static str> {
    let unreadable = "its RSA key cannot be read";
    let Ok(Parsed::RSA(parsed)) = key.parsed() else { return Err(unreadable) };
    let modulus = positive(parsed.modulus).ok_or(unreadable)?;
    let exponent = positive(parsed.exponent).ok_or(unreadable)?;
    if !RSA_BITS.contains(&bits(modulus)) || !bits(modulus).is_multiple_of(8) {
        return Err("its RSA key does not have 2048 to 8192 bits, whole bytes of them");
    }
    let value = (bits(exponent) <= 32).then(|| exponent.iter().fold(0, |sum, b| sum << 8 | u64::from(*b)));
    match value {
        Some(value) if RSA_EXPONENTS.contains(&value) && value % 2 == 1 => {
            Ok(PublicKey::Rsa { modulus, exponent })
        }
        _ => Err("its RSA exponent is not odd, from 65537 up to 32 bits"),
    }
}

/// A positive DER INTEGER's content without its sign byte.
fn positive(content: &[u8]) -> Option<&[u8]> {
    let (first, rest) = content.split_first()?;
    match first {
        0 if !rest.is_empty() => Some(rest),
        1..0x80 => Some(content),
        _ => None,
    }
}

fn bits(number: &[u8]) -> usize {
    number.first().map_or(0, |first| number.len() * 8 - first.leading_zeros() as usize)
}

#[cfg(test)]
mod tests;
