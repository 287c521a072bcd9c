//! What the tests of this crate have in common: authorities, SVIDs, and certificates that no one should believe.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber, SigningKey,
};
use zeroize::Zeroizing;

use crate::authority::Authority;
use crate::bundle::{AuthorityCertificate, Bundle};
use crate::grant::{AgentScope, Evidence, Registration, Selector, grant, grant_member};
use crate::issue::{certificate_request, issue};
use crate::jwt::JwtKey;
use crate::name::{SpiffeId, TrustDomain};
use crate::revocation::Revocations;
use crate::svid::{Serial, Svid};
use crate::time::Timestamp;
use crate::verify::Trust;
use crate::x509;

pub(crate) const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);
pub(crate) const HOUR: Duration = Duration::from_secs(3600);
pub(crate) const DAY: Duration = Duration::from_secs(24 * 3600);
pub(crate) const REVIEWS: &str = "spiffe://east.example/ns/shop/sa/reviews";

pub(crate) const SUBJECT_ALTERNATIVE_NAME: &[u64] = &[2, 5, 29, 17];
pub(crate) const KEY_USAGE: &[u64] = &[2, 5, 29, 15];
pub(crate) const BASIC_CONSTRAINTS: &[u64] = &[2, 5, 29, 19];

pub(crate) fn east() -> TrustDomain {
    "east.example".parse().unwrap()
}

pub(crate) fn west() -> TrustDomain {
    "west.example".parse().unwrap()
}

pub(crate) fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

pub(crate) fn key() -> KeyPair {
    KeyPair::generate().unwrap()
}

pub(crate) fn serial(number: u8) -> Serial {
    Serial::from_random([number; 16])
}

pub(crate) fn authority(trust_domain: &TrustDomain) -> Authority {
    let node = "node-1".parse().unwrap();
    Authority::create(trust_domain, &node, key(), serial(1), NOW - DAY, 30 * DAY).unwrap()
}

pub(crate) fn bundle(authorities: &[&Authority]) -> Bundle {
    let trust_domain = authorities[0].trust_domain().clone();
    let authorities = authorities.iter().map(|a| a.certificate().clone()).collect();
    Bundle::new(trust_domain, 1, authorities)
}

pub(crate) fn jwt_key(trust_domain: &TrustDomain) -> JwtKey {
    JwtKey::new(trust_domain, key().try_into().unwrap())
}

/// A bundle with one X.509 authority and these JWT keys, all of them published.
pub(crate) fn jwt_bundle(keys: &[&JwtKey]) -> Bundle {
    let jwt_authorities = keys.iter().map(|key| key.authority(NOW + 30 * DAY)).collect();
    Bundle { jwt_authorities, ..bundle(&[&authority(keys[0].trust_domain())]) }
}

pub(crate) fn trust(authorities: &[&Authority]) -> Trust {
    let bundles: Vec<_> = authorities.iter().map(|a| bundle(&[a])).collect();
    Trust::new(&bundles, Revocations::default())
}

/// An SVID, the honest way: registration or membership, ticket, request, signature.
pub(crate) fn svid(authority: &Authority, name: &str, number: u8) -> Svid {
    let (id, none) = (id(name), Revocations::default());
    let ticket = match id.as_member() {
        Some(_) => grant_member(authority.trust_domain(), &none, &id, HOUR),
        None => {
            let evidence = evidence();
            let registrations = [registration(name)];
            grant(authority.trust_domain(), &registrations, &none, &evidence, &id)
        }
    };
    let key = key();
    let request = certificate_request(&key).unwrap();
    let issued = issue(ticket.unwrap(), &request, authority, serial(number), NOW).unwrap();
    Svid::new(issued.chain, Zeroizing::new(key.serialize_der())).unwrap()
}

pub(crate) fn evidence() -> Evidence {
    let selectors = [Selector::Uid(1000), Selector::Path("/usr/bin/app".to_owned())].into();
    Evidence { agent: "host-1".parse().unwrap(), selectors }
}

pub(crate) fn registration(name: &str) -> Registration {
    let agent: AgentScope = "host-1".parse().unwrap();
    Registration::new(id(name), agent, [Selector::Uid(1000)])
}

/// Parameters of a good leaf, for tests to spoil.
pub(crate) fn leaf_params(names: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = names.iter().map(|name| uri(name)).collect();
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(SerialNumber::from_slice(&[7; 16]));
    params.not_before = x509::date_time(NOW - HOUR).unwrap();
    params.not_after = x509::date_time(NOW + HOUR).unwrap();
    params
}

pub(crate) fn uri(name: &str) -> SanType {
    SanType::URI(name.to_owned().try_into().unwrap())
}

/// A leaf that `issuer` signed although it should not have.
pub(crate) fn sign<S: SigningKey>(params: &CertificateParams, issuer: &Issuer<'_, S>) -> Vec<u8> {
    params.signed_by(&key(), issuer).unwrap().der().to_vec()
}

/// A good leaf of `REVIEWS`, spoiled.
pub(crate) fn spoiled(authority: &Authority, spoil: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
    let mut params = leaf_params(&[REVIEWS]);
    spoil(&mut params);
    sign(&params, &authority.issuer)
}

/// Parameters of a good root, for tests to spoil.
pub(crate) fn root_params(trust_domain: &TrustDomain) -> CertificateParams {
    let mut params = leaf_params(&[&trust_domain.id().to_string()]);
    params.distinguished_name.push(DnType::CommonName, "handmade");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.extended_key_usages.clear();
    params.use_authority_key_identifier_extension = false;
    params
}

/// A root made by hand: its certificate, and what signs with it.
pub(crate) fn handmade(params: CertificateParams) -> (Vec<u8>, Issuer<'static, KeyPair>) {
    let key = key();
    let der = params.self_signed(&key).unwrap().der().to_vec();
    (der, Issuer::new(params, key))
}

pub(crate) fn handmade_bundle(trust_domain: &TrustDomain, roots: &[&[u8]]) -> Bundle {
    let parse = |der: &&[u8]| AuthorityCertificate::parse(der, trust_domain).unwrap();
    Bundle::new(trust_domain.clone(), 1, roots.iter().map(parse).collect())
}

/// An extension by its OID and DER content.
pub(crate) fn extension(oid: &[u64], critical: bool, content: &[u8]) -> CustomExtension {
    let mut extension = CustomExtension::from_oid_content(oid, content.to_vec());
    extension.set_criticality(critical);
    extension
}

/// A certificate with an edited to-be-signed part of the same length, signed again by `signer` (ECDSA): for what
/// no library would write.
pub(crate) fn signed_again<S: SigningKey>(der: &[u8], signer: &S, edit: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let certificate = x509_parser::parse_x509_certificate(der).unwrap().1;
    let mut signed = certificate.tbs_certificate.as_ref().to_vec();
    edit(&mut signed);
    // The algorithm stays; in DER it ends where the BIT STRING of the signature begins.
    let body = &der[4..];
    assert_eq!(der[1], 0x82, "it has 256 bytes and more");
    let (algorithm_at, bits) = (signed.len(), certificate.signature_value.data.len());
    let algorithm_end = body.len() - (1 + der_header(bits + 1).len() + 1 + bits);
    let algorithm = body[algorithm_at..algorithm_end].to_vec();
    let signature = signer.sign(&signed).unwrap();
    let signature = [&[0x03], &der_header(signature.len() + 1)[..], &[0], &signature].concat();
    let content = [signed, algorithm, signature].concat();
    [&[0x30], &der_header(content.len())[..], &content].concat()
}

/// The length part of a DER header.
pub(crate) fn der_header(length: usize) -> Vec<u8> {
    match u8::try_from(length) {
        Ok(short) if short < 0x80 => vec![short],
        Ok(long) => vec![0x81, long],
        Err(_) => vec![0x82, (length >> 8) as u8, length as u8],
    }
}

/// Puts `new` in the place of the only occurrence of `old`.
pub(crate) fn replace(bytes: &mut [u8], old: &[u8], new: &[u8]) {
    let mut places = bytes.windows(old.len()).enumerate().filter(|(_, window)| *window == old);
    let (at, _) = places.next().expect("it is there");
    assert!(places.next().is_none(), "it is there once");
    bytes[at..at + new.len()].copy_from_slice(new);
}

/// A subject alternative name extension with these URI bytes, whatever they are.
pub(crate) fn raw_uris(uris: &[&[u8]]) -> Vec<u8> {
    let name = |uri: &&[u8]| [&[0x86], &der_header(uri.len())[..], uri].concat();
    let names: Vec<u8> = uris.iter().flat_map(name).collect();
    [&[0x30], &der_header(names.len())[..], &names].concat()
}
