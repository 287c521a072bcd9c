//! JSON Web Keys (RFC 7517, RFC 7518 §6): from a SubjectPublicKeyInfo to the parameters of a JWK, and back.

use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::signature::{self, ParsedPublicKey, RsaPublicKeyComponents, VerificationAlgorithm};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};
use x509_parser::prelude::FromDer as _;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::x509::key::{PublicKey, p521_point, point_members};

/// Largest SubjectPublicKeyInfo that is read, in bytes: an RSA key of 8192 bits has about 1050.
pub(crate) const MAX_SPKI_BYTES: usize = 2048;

/// The kinds of keys that bundle documents may hold and that signatures are verified with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyKind {
    P256,
    P384,
    P521,
    Rsa,
}

impl KeyKind {
    /// `crv` of RFC 7518 §6.2.1.1.
    fn curve(self) -> Option<&'static str> {
        match self {
            Self::P256 => Some("P-256"),
            Self::P384 => Some("P-384"),
            Self::P521 => Some("P-521"),
            Self::Rsa => None,
        }
    }

    fn of_curve(name: &str) -> Option<Self> {
        [Self::P256, Self::P384, Self::P521].into_iter().find(|kind| kind.curve() == Some(name))
    }

    /// Bytes of one coordinate: the size of the field.
    fn coordinate_bytes(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
            Self::P521 => 66,
            Self::Rsa => 0,
        }
    }

    /// Some algorithm that a key of this kind is read for; it says nothing about the key's use.
    fn reader(self) -> &'static dyn VerificationAlgorithm {
        match self {
            Self::P256 => &signature::ECDSA_P256_SHA256_FIXED,
            Self::P384 => &signature::ECDSA_P384_SHA384_FIXED,
            Self::P521 => &signature::ECDSA_P521_SHA512_FIXED,
            Self::Rsa => &signature::RSA_PKCS1_2048_8192_SHA256,
        }
    }
}

/// What kind of key a SubjectPublicKeyInfo (DER) holds; `None` if it is none of ours or cannot be read.
pub(crate) fn key_kind(spki_der: &[u8]) -> Option<KeyKind> {
    kind(&read(spki_der)?)
}

/// Whether a SubjectPublicKeyInfo (DER) is a whole and sound key: on its curve, of a size that is believed.
pub(crate) fn is_sound(spki_der: &[u8]) -> bool {
    key_kind(spki_der).is_some_and(|kind| ParsedPublicKey::new(kind.reader(), spki_der).is_ok())
}

fn read(spki_der: &[u8]) -> Option<SubjectPublicKeyInfo<'_>> {
    if spki_der.len() > MAX_SPKI_BYTES {
        return None;
    }
    let (rest, key) = SubjectPublicKeyInfo::from_der(spki_der).ok()?;
    rest.is_empty().then_some(key)
}

fn kind(key: &SubjectPublicKeyInfo<'_>) -> Option<KeyKind> {
    match PublicKey::read(key) {
        Ok(PublicKey::P256(_)) => Some(KeyKind::P256),
        Ok(PublicKey::P384(_)) => Some(KeyKind::P384),
        Ok(PublicKey::Rsa { .. }) => Some(KeyKind::Rsa),
        Err(_) => p521_point(key).map(|_| KeyKind::P521),
    }
}

/// `kty` and the parameters of the key itself; `None` for a kind of key that no document of ours holds.
pub(super) fn to_jwk(spki_der: &[u8]) -> Option<Map<String, Value>> {
    let key = read(spki_der)?;
    let members = match PublicKey::read(&key) {
        Ok(public) => public.jwk_members(),
        Err(_) => point_members("P-521", p521_point(&key)?),
    };
    Some(members.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect())
}

/// The SubjectPublicKeyInfo (DER) of a JWK of a known `kty`; `Err` says what is wrong with it.
pub(crate) fn from_jwk(jwk: &Map<String, Value>) -> Result<Vec<u8>, &'static str> {
    let text = |name: &str| jwk.get(name).and_then(Value::as_str);
    let der: PublicKeyX509Der<'static> = match text("kty") {
        Some("EC") => {
            let kind =
                text("crv").and_then(KeyKind::of_curve).ok_or("its crv is none of P-256, P-384, P-521")?;
            let coordinate = |name| {
                let bytes = text(name).and_then(|text| URL_SAFE_NO_PAD.decode(text).ok());
                bytes.filter(|bytes| bytes.len() == kind.coordinate_bytes())
            };
            let missing = "its x and y are not the coordinates of a point (RFC 7518 §6.2.1)";
            let (x, y) = (coordinate("x").ok_or(missing)?, coordinate("y").ok_or(missing)?);
            let point = [&[4], x.as_slice(), y.as_slice()].concat();
            let key =
                ParsedPublicKey::new(kind.reader(), point).map_err(|_| "its point is not on its curve")?;
            key.as_der().map_err(|_| "its key cannot be written as DER")?
        }
        Some("RSA") => {
            let number = |name| text(name).and_then(|text| URL_SAFE_NO_PAD.decode(text).ok());
            let missing = "its n and e are not numbers (RFC 7518 §6.3.1)";
            let (n, e) = (number("n").ok_or(missing)?, number("e").ok_or(missing)?);
            if n.len() > MAX_SPKI_BYTES || e.len() > MAX_SPKI_BYTES {
                return Err("its RSA key is larger than 8192 bits");
            }
            let components = RsaPublicKeyComponents { n: stripped(&n), e: stripped(&e) };
            components.as_der().map_err(|_| "its n and e are no RSA key")?
        }
        _ => return Err("its kty is neither EC nor RSA"),
    };
    let der = der.as_ref().to_vec();
    if is_sound(&der) { Ok(der) } else { Err("its key is of a size that is not believed") }
}

/// A big-endian number without leading zeros.
fn stripped(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    &number[zeros..]
}
