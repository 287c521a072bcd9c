//! What a verification costs: good chains, and hostile ones made to cost as much as they can.

use std::time::{Duration, Instant};

use hanse_identity::{
    AuthorityCertificate, Bundle, Revocations, Timestamp, Trust, TrustDomain, Usage, verify,
};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, RsaKeySize, SanType,
};

/// The bound that issue and specification state for one hostile chain, in a release build.
pub const BOUND: Duration = Duration::from_millis(5);
/// How often each chain is verified for the table.
const RUNS: usize = 200;
const DOMAIN: &str = "spiffe://east.example";
const NAME: &str = "spiffe://east.example/ns/shop/sa/reviews";

/// One row of the table.
pub struct Cost {
    pub what: &'static str,
    /// Whether the chain is believed.
    pub believed: bool,
    pub half: Duration,
    pub worst: Duration,
}

/// A chain, and the roots that are believed.
struct Case {
    what: &'static str,
    roots: Vec<Vec<u8>>,
    chain: Vec<Vec<u8>>,
}

/// An authority: its certificate and what signs with it.
struct Signer {
    der: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

/// Verifies every chain so many times, at least once.
pub fn measure(runs: usize) -> Vec<Cost> {
    cases().iter().map(|case| case.measure(runs.max(1))).collect()
}

/// Prints the table; `false` if a hostile chain cost more than the bound, which says something in a release build.
pub fn print() -> bool {
    println!("{:>9} {:>9}  chain", "p50 µs", "max µs");
    let costs = measure(RUNS);
    for cost in &costs {
        let verdict = if cost.believed { "believed" } else { "refused" };
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        println!("{:>9.1} {:>9.1}  {} ({verdict})", micros(cost.half), micros(cost.worst), cost.what);
    }
    costs.iter().all(|cost| cost.half <= BOUND)
}

impl Case {
    fn measure(&self, runs: usize) -> Cost {
        let trust_domain: TrustDomain = "east.example".parse().expect("it is a trust domain");
        let parse = |der: &Vec<u8>| AuthorityCertificate::parse(der, &trust_domain).ok();
        let authorities: Vec<_> = self.roots.iter().filter_map(parse).collect();
        let bundle = Bundle::new(trust_domain, 1, authorities);
        let trust = Trust::new([&bundle], Revocations::default());
        let chain: Vec<&[u8]> = self.chain.iter().map(Vec::as_slice).collect();
        let now = Timestamp::from_seconds(1_800_000_000);
        let mut believed = false;
        let mut times: Vec<_> = (0..runs)
            .map(|_| {
                let start = Instant::now();
                believed = verify(&trust, &chain, now, Usage::Client).is_ok();
                start.elapsed()
            })
            .collect();
        times.sort();
        Cost { what: self.what, believed, half: times[runs / 2], worst: times[runs - 1] }
    }
}

fn p256() -> KeyPair {
    KeyPair::generate().expect("a key")
}

fn p384() -> KeyPair {
    KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).expect("a key")
}

fn rsa4096() -> KeyPair {
    KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_4096).expect("a key")
}

fn uri(name: &str) -> SanType {
    SanType::URI(name.to_owned().try_into().expect("it is ASCII"))
}

fn params(common: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common);
    params.subject_alt_names = vec![uri(DOMAIN)];
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2040, 1, 1);
    params
}

fn root(common: &str, key: KeyPair, edit: impl FnOnce(&mut CertificateParams)) -> Signer {
    let mut params = params(common);
    edit(&mut params);
    let der = params.self_signed(&key).expect("a certificate").der().to_vec();
    Signer { der, issuer: Issuer::new(params, key) }
}

fn below(above: &Signer, common: &str, key: KeyPair) -> Signer {
    let params = params(common);
    let der = params.signed_by(&key, &above.issuer).expect("a certificate").der().to_vec();
    Signer { der, issuer: Issuer::new(params, key) }
}

fn leaf(above: &Signer, edit: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
    let mut params = params("reviews");
    params.subject_alt_names = vec![uri(NAME)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    edit(&mut params);
    params.signed_by(&p256(), &above.issuer).expect("a certificate").der().to_vec()
}

/// A leaf whose signature nobody's key made, though everything else is right.
fn forged(above: &Signer) -> Vec<u8> {
    let mut der = leaf(above, |_| {});
    let last = der.len() - 1;
    der[last] ^= 1;
    der
}

fn cases() -> Vec<Case> {
    let mut cases = vec![one_authority()];
    cases.extend(deep(
        "leaf, intermediate, root: P-256",
        "a forged leaf, twice two P-256 intermediates",
        p256,
    ));
    cases.extend(deep(
        "leaf, intermediate, root: P-384",
        "a forged leaf, twice two P-384 intermediates",
        p384,
    ));
    cases.extend(deep(
        "leaf, intermediate, root: RSA 4096",
        "a forged leaf, twice two RSA 4096 intermediates",
        rsa4096,
    ));
    cases.extend([same_subject(), roots_of_one_name(), many_names(), large(), long()]);
    cases
}

fn one_authority() -> Case {
    let root = root("root", p256(), |_| {});
    Case { what: "leaf, root: P-256", chain: vec![leaf(&root, |_| {})], roots: vec![root.der] }
}

/// A good chain with one intermediate; and a hostile one with two ways to the root, each of them true up to the leaf.
fn deep(good: &'static str, hostile: &'static str, key: fn() -> KeyPair) -> [Case; 2] {
    let root = root("root", key(), |_| {});
    let upper = below(&root, "upper", key());
    let (one, other) = (below(&upper, "lower", key()), below(&upper, "lower", key()));
    let good = Case {
        what: good,
        chain: vec![leaf(&upper, |_| {}), upper.der.clone()],
        roots: vec![root.der.clone()],
    };
    let hostile = Case {
        what: hostile,
        chain: vec![forged(&one), one.der, other.der, upper.der],
        roots: vec![root.der],
    };
    [good, hostile]
}

/// x509-limbo's pathological chain, as long as it may be: authorities of one name with different keys.
fn same_subject() -> Case {
    let root = root("same", p384(), |_| {});
    let between: Vec<_> = (0..3).map(|_| below(&root, "same", p384())).collect();
    let mut chain = vec![forged(&between[0])];
    chain.extend(between.into_iter().map(|signer| signer.der));
    Case { what: "three authorities with the root's name and other keys", chain, roots: vec![root.der] }
}

/// A bundle full of roots with one name, and a leaf that could be anyone's.
fn roots_of_one_name() -> Case {
    let roots: Vec<_> = (0..64).map(|_| root("root", p384(), |_| {})).collect();
    let chain = vec![forged(&roots[63])];
    Case {
        what: "64 roots of one name, a forged leaf",
        chain,
        roots: roots.into_iter().map(|r| r.der).collect(),
    }
}

/// A hostile trust domain's own root: as many constraints as fit, and a leaf with as many names as fit.
fn many_names() -> Case {
    let dns = |index: usize| format!("n{index}.example");
    let root = root("root", p256(), |params| {
        let excluded_subtrees = (0..700).map(|i| GeneralSubtree::DnsName(dns(i))).collect();
        params.name_constraints = Some(NameConstraints { permitted_subtrees: Vec::new(), excluded_subtrees });
    });
    let leaf = leaf(&root, |params| {
        let names =
            (0..1000).map(|i| SanType::DnsName(format!("x{i}.test").try_into().expect("it is ASCII")));
        params.subject_alt_names.extend(names);
    });
    Case { what: "1000 names against 700 constraints", chain: vec![leaf], roots: vec![root.der] }
}

/// As many extensions as fit into three certificates of nearly 16 KiB.
fn large() -> Case {
    let root = root("root", p256(), |_| {});
    let stuffed = |params: &mut CertificateParams| {
        let extension =
            |i: u64| CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 70_000, i], vec![5, 0]);
        params.custom_extensions.extend((0..800).map(extension));
    };
    let stuffing: Vec<_> = (0..3)
        .map(|_| {
            let mut params = params("between");
            stuffed(&mut params);
            params.signed_by(&p256(), &root.issuer).expect("a certificate").der().to_vec()
        })
        .collect();
    let mut chain = vec![forged(&root)];
    chain.extend(stuffing);
    Case { what: "a forged leaf and three authorities of 800 extensions", chain, roots: vec![root.der] }
}

fn long() -> Case {
    let root = root("root", p256(), |_| {});
    let mut chain = vec![leaf(&root, |_| {})];
    chain.extend(std::iter::repeat_n(root.der.clone(), 100));
    Case { what: "a chain of 101 certificates", chain, roots: vec![root.der] }
}
