//! The table of forged and malformed certificates: each differs from a good one in one thing, each is well signed,
//! and none is believed. (Threat T1; rules ID-1 to ID-5, X-1, X-2, X-4, X-6, X-7, X-9 and RFC 5280.)

use rcgen::{
    CustomExtension, ExtendedKeyUsagePurpose as Extended, PublicKeyData, SanType, SignatureAlgorithm,
};

use super::*;
use crate::fixture::{
    BASIC_CONSTRAINTS, KEY_USAGE, SUBJECT_ALTERNATIVE_NAME, raw_uris, replace, signed_again,
};

type Spoil = Box<dyn Fn(&mut CertificateParams)>;

const EXTENDED_KEY_USAGE: &[u64] = &[2, 5, 29, 37];

fn spoil(edit: impl Fn(&mut CertificateParams) + 'static) -> Spoil {
    Box::new(edit)
}

/// Adds an extension of this content, in place of what the library would write for it.
fn raw(oid: &'static [u64], critical: bool, content: &[u8]) -> CustomExtension {
    extension(oid, critical, content)
}

/// URI names, byte by byte.
fn named(uris: &[&[u8]]) -> Spoil {
    let content = raw_uris(uris);
    spoil(move |p| {
        p.subject_alt_names.clear();
        p.custom_extensions.push(raw(SUBJECT_ALTERNATIVE_NAME, true, &content));
    })
}

fn with(oid: &'static [u64], critical: bool, content: &'static [u8]) -> Spoil {
    spoil(move |p| p.custom_extensions.push(raw(oid, critical, content)))
}

/// Names that are no SPIFFE ID of a workload of east, or are not the only one.
fn names() -> Vec<(&'static str, Spoil)> {
    let long = format!("spiffe://east.example/{}", "a".repeat(2048));
    let long_domain = format!("spiffe://{}/a", "a".repeat(256));
    let one = |name: &str| named(&[name.as_bytes()]);
    vec![
        ("a NUL in the path", one("spiffe://east.example/ns/shop/sa/reviews\0")),
        ("a NUL and more", one("spiffe://east.example/ns/shop/sa/reviews\0.evil.example")),
        ("a NUL in the trust domain", one("spiffe://east.example\0.evil/ns/shop/sa/reviews")),
        ("an upper-case scheme", one("SPIFFE://east.example/ns/shop/sa/reviews")),
        ("an upper-case trust domain", one("spiffe://East.Example/ns/shop/sa/reviews")),
        ("a percent-encoded letter", one("spiffe://east.example/ns/shop/sa/%72eviews")),
        ("a percent-encoded slash", one("spiffe://east.example/ns%2fshop/sa/reviews")),
        ("a percent-encoded NUL", one("spiffe://east.example/ns/shop/sa/reviews%00")),
        ("a percent-encoded trust domain", one("spiffe://east%2eexample/ns/shop/sa/reviews")),
        ("..", one("spiffe://east.example/ns/shop/../sa/reviews")),
        (".. at the end", one("spiffe://east.example/ns/shop/sa/reviews/..")),
        (".", one("spiffe://east.example/ns/./shop/sa/reviews")),
        ("a trailing slash", one("spiffe://east.example/ns/shop/sa/reviews/")),
        ("an empty segment", one("spiffe://east.example/ns//shop/sa/reviews")),
        ("nothing but a slash", one("spiffe://east.example/")),
        ("no path", one("spiffe://east.example")),
        ("a port", one("spiffe://east.example:443/ns/shop/sa/reviews")),
        ("an empty port", one("spiffe://east.example:/ns/shop/sa/reviews")),
        ("userinfo", one("spiffe://admin@east.example/ns/shop/sa/reviews")),
        ("an empty userinfo", one("spiffe://@east.example/ns/shop/sa/reviews")),
        ("an IPv6 host", one("spiffe://[::1]/ns/shop/sa/reviews")),
        ("a query", one("spiffe://east.example/ns/shop/sa/reviews?a=b")),
        ("an empty query", one("spiffe://east.example/ns/shop/sa/reviews?")),
        ("a fragment", one("spiffe://east.example/ns/shop/sa/reviews#a")),
        ("an empty fragment", one("spiffe://east.example/ns/shop/sa/reviews#")),
        ("more than 2048 bytes", one(&long)),
        ("a trust domain of more than 255 bytes", one(&long_domain)),
        ("no trust domain", one("spiffe:///ns/shop/sa/reviews")),
        ("no authority", one("spiffe:/east.example/ns/shop/sa/reviews")),
        ("another scheme", one("https://east.example/ns/shop/sa/reviews")),
        ("no scheme", one("east.example/ns/shop/sa/reviews")),
        ("a space before", one(" spiffe://east.example/ns/shop/sa/reviews")),
        ("a space after", one("spiffe://east.example/ns/shop/sa/reviews ")),
        ("a line break", one("spiffe://east.example/ns/shop/sa/reviews\n")),
        ("a backslash", one("spiffe://east.example/ns/shop\\sa/reviews")),
        ("a tab in the trust domain", one("spiffe://east.\texample/ns/shop/sa/reviews")),
        ("an empty name", one("")),
        ("bytes that are not UTF-8", named(&[b"spiffe://east.example/\xff"])),
        ("letters beyond ASCII", one("spiffe://east.example/ns/shöp/sa/reviews")),
        ("two names", named(&[REVIEWS.as_bytes(), b"spiffe://east.example/ns/shop/sa/ratings"])),
        ("two names, the second of a stranger", named(&[REVIEWS.as_bytes(), b"spiffe://west.example/a"])),
        ("two names, the first of a stranger", named(&[b"spiffe://west.example/a", REVIEWS.as_bytes()])),
        ("the same name twice", named(&[REVIEWS.as_bytes(), REVIEWS.as_bytes()])),
        ("a name and a web address", named(&[REVIEWS.as_bytes(), b"https://east.example/"])),
        ("a name and an unreadable one", named(&[REVIEWS.as_bytes(), b"\xff"])),
        ("names twice", with(SUBJECT_ALTERNATIVE_NAME, true, b"\x30\x03\x82\x01a")),
        (
            "more names than are read",
            spoil(|p| p.subject_alt_names.extend((0..128).map(|index| dns(&format!("n{index}.example"))))),
        ),
        ("no name", spoil(|p| p.subject_alt_names.clear())),
        ("only a DNS name", spoil(|p| p.subject_alt_names = vec![dns("reviews.shop")])),
        ("a DNS name that looks like one", spoil(|p| p.subject_alt_names = vec![dns(REVIEWS)])),
        (
            "a name in the subject",
            spoil(|p| {
                p.subject_alt_names.clear();
                p.distinguished_name.push(DnType::CommonName, REVIEWS);
            }),
        ),
        ("a name of a trust domain nobody knows", one("spiffe://nowhere.example/ns/shop/sa/reviews")),
        (
            "no subject, and names that are not critical",
            spoil(|p| {
                p.subject_alt_names.clear();
                let content = raw_uris(&[REVIEWS.as_bytes()]);
                p.custom_extensions.push(raw(SUBJECT_ALTERNATIVE_NAME, false, &content));
            }),
        ),
    ]
}

fn dns(name: &str) -> SanType {
    SanType::DnsName(name.to_owned().try_into().unwrap())
}

/// Uses that a leaf does not have.
fn uses() -> Vec<(&'static str, Spoil)> {
    use KeyUsagePurpose as Use;
    let usages = |usages: &'static [Use]| spoil(move |p| p.key_usages = usages.to_vec());
    let extended = |usages: Vec<Extended>| spoil(move |p| p.extended_key_usages = usages.clone());
    let raw_usage = |critical, content: &'static [u8]| {
        spoil(move |p| {
            p.key_usages.clear();
            p.custom_extensions.push(raw(KEY_USAGE, critical, content));
        })
    };
    let raw_extended = |content: &'static [u8]| {
        spoil(move |p| {
            p.extended_key_usages.clear();
            p.custom_extensions.push(raw(EXTENDED_KEY_USAGE, false, content));
        })
    };
    vec![
        ("a CA", spoil(|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained))),
        ("a CA of path length 0", spoil(|p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)))),
        (
            "a CA that does not say so critically",
            spoil(|p| {
                p.is_ca = IsCa::NoCa;
                p.custom_extensions.push(raw(BASIC_CONSTRAINTS, false, &[0x30, 3, 1, 1, 0xff]));
            }),
        ),
        (
            "unreadable basic constraints",
            spoil(|p| {
                p.is_ca = IsCa::NoCa;
                p.custom_extensions.push(raw(BASIC_CONSTRAINTS, true, &[0x30, 3, 4, 1, 0xff]));
            }),
        ),
        ("basic constraints twice", with(BASIC_CONSTRAINTS, true, &[0x30, 0])),
        ("keyCertSign too", usages(&[Use::DigitalSignature, Use::KeyCertSign])),
        ("cRLSign too", usages(&[Use::DigitalSignature, Use::CrlSign])),
        ("keyCertSign only", usages(&[Use::KeyCertSign])),
        ("no digitalSignature", usages(&[Use::KeyEncipherment, Use::KeyAgreement])),
        ("no key usage", usages(&[])),
        ("a key usage that is not critical", raw_usage(false, &[3, 2, 7, 0x80])),
        ("a key usage of no bits", raw_usage(true, &[3, 1, 0])),
        ("a key usage that cannot be read", raw_usage(true, &[4, 2, 7, 0x80])),
        ("clientAuth only", extended(vec![Extended::ClientAuth])),
        ("serverAuth only", extended(vec![Extended::ServerAuth])),
        ("anyExtendedKeyUsage only", extended(vec![Extended::Any])),
        ("code signing only", extended(vec![Extended::CodeSigning])),
        ("clientAuth and any", extended(vec![Extended::ClientAuth, Extended::Any])),
        ("an empty extended key usage", raw_extended(&[0x30, 0])),
        ("an unreadable extended key usage", raw_extended(&[0x30, 2, 4, 0])),
        ("name constraints", with(&[2, 5, 29, 30], true, b"\x30\x0b\xa0\x09\x30\x07\x82\x05a.com")),
        (
            "name constraints, not critical",
            with(&[2, 5, 29, 30], false, b"\x30\x0b\xa0\x09\x30\x07\x82\x05a.com"),
        ),
        ("an unknown critical extension", with(&[1, 2, 3, 4], true, &[5, 0])),
        ("critical certificate policies", with(&[2, 5, 29, 32], true, &[0x30, 5, 0x30, 3, 6, 1, 0x2a])),
        ("critical policy constraints", with(&[2, 5, 29, 36], true, &[0x30, 3, 0x80, 1, 0])),
        ("a critical authority key identifier", {
            spoil(|p| {
                p.use_authority_key_identifier_extension = false;
                p.custom_extensions.push(raw(&[2, 5, 29, 35], true, &[0x30, 0]));
            })
        }),
        ("another signer's key identifier", {
            spoil(|p| {
                p.use_authority_key_identifier_extension = false;
                let mut content = vec![0x30, 22, 0x80, 20];
                content.extend([7; 20]);
                p.custom_extensions.push(raw(&[2, 5, 29, 35], false, &content));
            })
        }),
        ("serial number zero", spoil(|p| p.serial_number = Some(vec![0u8].into()))),
        ("a serial number of 21 bytes", spoil(|p| p.serial_number = Some(vec![1u8; 21].into()))),
        (
            "a serial number of 20 bytes that takes 21",
            spoil(|p| p.serial_number = Some(vec![0x80u8; 20].into())),
        ),
        ("expired", spoil(|p| p.not_after = x509::date_time(NOW - HOUR / 2).unwrap())),
        ("not yet valid", spoil(|p| p.not_before = x509::date_time(NOW + HOUR / 2).unwrap())),
        ("valid backwards", {
            spoil(|p| {
                p.not_before = x509::date_time(NOW + HOUR).unwrap();
                p.not_after = x509::date_time(NOW - HOUR).unwrap();
            })
        }),
    ]
}

/// A key of any kind and bytes.
struct AnyKey(&'static SignatureAlgorithm, Vec<u8>);

impl PublicKeyData for AnyKey {
    fn der_bytes(&self) -> &[u8] {
        &self.1
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.0
    }
}

/// Leaves with a weak or unwanted key, or that were edited where no library lets one.
fn odd_ones(authority: &crate::authority::Authority) -> Vec<(&'static str, Vec<u8>)> {
    let good = spoiled(authority, |_| {});
    let signer = authority.issuer.key();
    let edited = |old: &[u8], new: &[u8]| signed_again(&good, signer, |signed| replace(signed, old, new));
    let keyed = |key: &dyn Fn() -> AnyKey| {
        leaf_params(&[REVIEWS]).signed_by(&key(), &authority.issuer).unwrap().der().to_vec()
    };
    let generated = |algorithm| {
        let key = KeyPair::generate_for(algorithm).unwrap();
        leaf_params(&[REVIEWS]).signed_by(&key, &authority.issuer).unwrap().der().to_vec()
    };
    let weak_rsa = || {
        let modulus = [&[0x02, 0x81, 129, 0][..], &[0xff; 128]].concat();
        let content = [modulus, vec![0x02, 3, 1, 0, 1]].concat();
        AnyKey(&rcgen::PKCS_RSA_SHA256, [&[0x30, 0x81, content.len() as u8][..], &content].concat())
    };
    let p256 = [0x06, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
    let p192 = [0x06, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 1];
    let ec_key = [0x06, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1];
    let dsa = [0x06, 7, 0x2a, 0x86, 0x48, 0xce, 0x38, 4, 1];
    vec![
        ("an RSA key of 1024 bits", keyed(&weak_rsa)),
        ("an Ed25519 key", generated(&rcgen::PKCS_ED25519)),
        ("a P-521 key", generated(&rcgen::PKCS_ECDSA_P521_SHA512)),
        ("a P-192 key", edited(&p256, &p192)),
        ("a DSA key", edited(&ec_key, &dsa)),
        ("a truncated point", keyed(&|| AnyKey(&rcgen::PKCS_ECDSA_P256_SHA256, vec![4; 33]))),
        ("version 1", edited(&[0xa0, 3, 2, 1, 2], &[0xa0, 3, 2, 1, 0])),
        ("version 2", edited(&[0xa0, 3, 2, 1, 2], &[0xa0, 3, 2, 1, 1])),
        ("a negative serial number", edited(&[2, 16, 7, 7], &[2, 16, 0x87, 7])),
        ("a serial number with a byte too many", edited(&[2, 16, 7, 7], &[2, 16, 0, 7])),
        ("bytes after its end", [&good[..], &[0]].concat()),
        ("a missing byte", good[..good.len() - 1].to_vec()),
        ("another algorithm inside than outside", {
            // ecdsa-with-SHA256 becomes ecdsa-with-SHA384, in the signed part only.
            edited(&[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2], &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 3])
        }),
        ("17 KiB", spoiled(authority, |p| p.custom_extensions.push(raw(&[1, 2, 3], false, &[0; 17 * 1024])))),
    ]
}

/// Leaves that are unusual, and right.
fn good_ones() -> Vec<(&'static str, Spoil)> {
    vec![
        ("as it is issued", spoil(|_| {})),
        ("a DNS name too", spoil(|p| p.subject_alt_names.push(dns("reviews.shop")))),
        ("an address too", spoil(|p| p.subject_alt_names.push(SanType::IpAddress([127, 0, 0, 1].into())))),
        ("a subject", spoil(|p| p.distinguished_name.push(DnType::CommonName, "reviews"))),
        ("no extended key usage", spoil(|p| p.extended_key_usages.clear())),
        ("a third extended key usage", spoil(|p| p.extended_key_usages.push(Extended::Any))),
        ("more key usages", spoil(|p| p.key_usages.push(KeyUsagePurpose::KeyAgreement))),
        ("no basic constraints", spoil(|p| p.is_ca = IsCa::NoCa)),
        ("an unknown extension", with(&[1, 2, 3, 4], false, &[5, 0])),
        ("no authority key identifier", spoil(|p| p.use_authority_key_identifier_extension = false)),
        ("a serial number of 20 bytes", spoil(|p| p.serial_number = Some(vec![1u8; 20].into()))),
        ("a trust domain that looks like an address", named(&[b"spiffe://127.0.0.1/a"])),
        ("upper case in the path", named(&[b"spiffe://east.example/NS/Shop"])),
        ("dots that are no way up", named(&[b"spiffe://east.example/.../a..b"])),
    ]
}

#[test]
fn the_unusual_is_believed_where_it_is_right() {
    let ours = authority(&east());
    let by_address = authority(&"127.0.0.1".parse().unwrap());
    let trust = trust(&[&ours, &by_address]);
    for (what, spoil) in good_ones() {
        let signer = if what.contains("address") && what.contains("domain") { &by_address } else { &ours };
        let believed = check(&trust, &[&spoiled(signer, |p| spoil(p))]);
        assert!(believed.is_ok(), "{what}: {believed:?}");
    }
    let key = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
    let rsa = leaf_params(&[REVIEWS]).signed_by(&key, &ours.issuer).unwrap();
    assert!(check(&trust, &[rsa.der()]).is_ok(), "an RSA key of 2048 bits");
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let p384 = leaf_params(&[REVIEWS]).signed_by(&key, &ours.issuer).unwrap();
    assert!(check(&trust, &[p384.der()]).is_ok(), "a P-384 key");
}

#[test]
fn x_9_no_forged_certificate_is_believed() {
    let authority = authority(&east());
    let stranger = crate::fixture::authority(&west());
    let trust = trust(&[&authority, &stranger]);
    let mut table = odd_ones(&authority);
    let cases = names().into_iter().chain(uses());
    table.extend(cases.map(|(what, spoil)| (what, spoiled(&authority, |p| spoil(p)))));
    let wrong: Vec<_> =
        table.iter().filter(|(_, der)| check(&trust, &[der]).is_ok()).map(|(what, _)| what).collect();
    assert!(wrong.is_empty(), "believed, of {} forged: {wrong:?}", table.len());
    assert!(table.len() >= 60, "the table has {} rows", table.len());
}
