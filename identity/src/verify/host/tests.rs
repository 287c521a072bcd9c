//! Tests of hosts' certificates: who is believed, what the proof is bound to, and how agents are named.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, NameConstraints, PKCS_ECDSA_P384_SHA384, PKCS_RSA_SHA256,
};

use super::*;
use crate::fixture::{DAY, HOUR, NOW, east, key, leaf_params, root_params, uri, west};
use crate::host::{HostKey, Naming, fingerprint_name};
use crate::revocation::{Reason, Revocation, RevocationId, RevocationTarget};
use crate::wire::to_pem;

const CSR: &[u8] = b"a certificate request";
const SESSION: [u8; 32] = [7; 32];

/// A company's PKI: a root, and what signs hosts' certificates below it.
struct Company {
    root: Vec<u8>,
    between: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = root_params(&east());
    params.subject_alt_names.clear();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn company_with(between: impl FnOnce(&mut CertificateParams)) -> Company {
    let (root_key, between_key) = (key(), key());
    let params = ca_params("Company Root");
    let root = params.self_signed(&root_key).unwrap().der().to_vec();
    let root_issuer = Issuer::new(params, root_key);
    let mut params = ca_params("Company Hosts");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.use_authority_key_identifier_extension = true;
    between(&mut params);
    let signed = params.signed_by(&between_key, &root_issuer).unwrap().der().to_vec();
    Company { root, between: signed, issuer: Issuer::new(params, between_key) }
}

fn company() -> Company {
    company_with(|_| {})
}

fn host_params(name: &str) -> CertificateParams {
    let mut params = leaf_params(&[]);
    params.distinguished_name.push(DnType::CommonName, name);
    params.subject_alt_names = vec![rcgen::SanType::DnsName(name.to_owned().try_into().unwrap())];
    params
}

impl Company {
    fn trust(&self, naming: Naming) -> HostTrust {
        HostTrust::from_pem(to_pem("CERTIFICATE", &self.root).as_bytes(), naming).unwrap()
    }

    fn host_of(&self, key: &KeyPair, spoil: impl FnOnce(&mut CertificateParams)) -> HostKey {
        let mut params = host_params("web-1.corp.example");
        spoil(&mut params);
        let leaf = params.signed_by(key, &self.issuer).unwrap().der().to_vec();
        let chain: String = [&leaf, &self.between].map(|der| to_pem("CERTIFICATE", der).to_string()).concat();
        HostKey::from_pem(chain.as_bytes(), key.serialize_pem().as_bytes()).unwrap()
    }

    fn host(&self, spoil: impl FnOnce(&mut CertificateParams)) -> HostKey {
        self.host_of(&key(), spoil)
    }

    fn ask(&self, host: &HostKey, naming: Naming) -> Result<VerifiedHost, HostError> {
        ask(&self.trust(naming), host, NOW)
    }
}

fn ask(trust: &HostTrust, host: &HostKey, now: Timestamp) -> Result<VerifiedHost, HostError> {
    let chain: Vec<&[u8]> = host.chain.iter().map(Vec::as_slice).collect();
    verify_host(trust, &east(), &Revocations::default(), &chain, now)
}

fn corp() -> Naming {
    Naming::DnsDomain("corp.example".to_owned())
}

#[test]
fn a_host_proves_its_certificate_with_every_kind_of_key() {
    let company = company();
    for key in [
        key(),
        KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap(),
        KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap(),
    ] {
        let host = company.host_of(&key, |_| {});
        let verified = company.ask(&host, corp()).unwrap();
        assert_eq!(verified.agent.as_str(), "web-1");
        assert_eq!(verified.certificate.subject, "CN=web-1.corp.example");
        let proof = host.prove(&east(), &SESSION, &verified.agent, CSR).unwrap();
        verified.possesses(&east(), &SESSION, &verified.agent, CSR, &proof).unwrap();
    }
}

#[test]
fn a_proof_is_of_one_session_one_agent_one_request_and_one_cluster() {
    let company = company();
    let host = company.host(|_| {});
    let verified = company.ask(&host, corp()).unwrap();
    let web_1 = verified.agent.clone();
    let proof = host.prove(&east(), &SESSION, &web_1, CSR).unwrap();
    let none = Err(HostError::Proof);
    assert_eq!(verified.possesses(&east(), &[8; 32], &web_1, CSR, &proof), none, "another session");
    assert_eq!(verified.possesses(&east(), &SESSION, &web_1, b"another", &proof), none, "another key");
    assert_eq!(verified.possesses(&west(), &SESSION, &web_1, CSR, &proof), none, "another cluster");
    let web_2 = "web-2".parse().unwrap();
    assert_eq!(verified.possesses(&east(), &SESSION, &web_2, CSR, &proof), none, "another agent");
    for at in 0..proof.len() {
        let mut bent = proof.clone();
        bent[at] ^= 1;
        assert_eq!(verified.possesses(&east(), &SESSION, &web_1, CSR, &bent), none);
    }
    // A certificate is no secret: whoever shows it without its key gets nowhere.
    let thief = company.host(|_| {});
    let proof = thief.prove(&east(), &SESSION, &web_1, CSR).unwrap();
    assert_eq!(verified.possesses(&east(), &SESSION, &web_1, CSR, &proof), none, "another key");
    // With the right key, but as somebody else.
    let proof = host.prove(&east(), &SESSION, &web_2, CSR).unwrap();
    let other = verified.possesses(&east(), &SESSION, &web_2, CSR, &proof);
    assert_eq!(other, Err(HostError::OtherName { named: web_1, asked: web_2 }));
}

#[test]
fn what_is_signed_begins_as_nothing_that_tls_signs() {
    let message = proof_message(&east(), &SESSION, &"web-1".parse().unwrap(), CSR, b"a certificate");
    assert_eq!(&message[..64], [0x20; 64]);
    assert_eq!(&message[64..81], b"hanse x509pop v1\0");
    assert!(!message.windows(7).any(|w| w == b"TLS 1.3"));
}

#[test]
fn certificates_that_prove_no_host_are_refused() {
    let company = company();
    let spoiled: Vec<(&str, HostKey)> = vec![
        ("cA", company.host(|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained))),
        (
            "serverAuth alone",
            company.host(|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]),
        ),
        (
            "no usage at all",
            company.host(|p| {
                p.extended_key_usages.clear();
                p.key_usages.clear();
            }),
        ),
        ("no signatures", company.host(|p| p.key_usages = vec![KeyUsagePurpose::KeyEncipherment])),
        (
            "an SVID of ours",
            company.host(|p| p.subject_alt_names.push(uri("spiffe://east.example/ns/a/sa/b"))),
        ),
        ("an SVID of a stranger", company.host(|p| p.subject_alt_names.push(uri("SPIFFE://x.example/a")))),
        (
            "two hosts",
            company.host(|p| {
                p.subject_alt_names.push(rcgen::SanType::DnsName("web-2.corp.example".try_into().unwrap()));
            }),
        ),
        ("no DNS name", company.host(|p| p.subject_alt_names.clear())),
        (
            "a name further below",
            company.host(|p| {
                p.subject_alt_names = vec![rcgen::SanType::DnsName("a.b.corp.example".try_into().unwrap())];
            }),
        ),
        (
            "a wildcard",
            company.host(|p| {
                p.subject_alt_names = vec![rcgen::SanType::DnsName("*.corp.example".try_into().unwrap())];
            }),
        ),
        (
            "a name that only ends alike",
            company.host(|p| {
                p.subject_alt_names = vec![rcgen::SanType::DnsName("evilcorp.example".try_into().unwrap())];
            }),
        ),
    ];
    for (what, host) in spoiled {
        let refused = company.ask(&host, corp()).unwrap_err();
        assert!(matches!(refused, HostError::Certificate(_)), "{what}: {refused:?}");
    }
    let host = company.host(|p| p.extended_key_usages.clear());
    company.ask(&host, corp()).expect("digitalSignature is said outright");
}

#[test]
fn time_and_authorities_are_checked() {
    let company = company();
    let short = company.host(|p| p.not_after = x509::date_time(NOW + HOUR).unwrap());
    let trust = company.trust(corp());
    ask(&trust, &short, NOW).unwrap();
    assert_eq!(ask(&trust, &short, NOW + DAY), Err(HostError::Expired));
    let late = company.host(|p| p.not_before = x509::date_time(NOW + HOUR).unwrap());
    assert_eq!(ask(&trust, &late, NOW), Err(HostError::Expired));
    // An authority of the same name with another key.
    let stranger = self::company();
    assert_eq!(ask(&trust, &stranger.host(|_| {}), NOW), Err(HostError::UnknownAuthority));
    let mut host = company.host(|_| {});
    host.chain.truncate(1);
    assert_eq!(ask(&trust, &host, NOW), Err(HostError::UnknownAuthority), "the authority between is missing");
    host.chain = vec![host.chain[0].clone(); 5];
    assert!(matches!(ask(&trust, &host, NOW), Err(HostError::Certificate(_))), "too long");
    host.chain.clear();
    assert!(matches!(ask(&trust, &host, NOW), Err(HostError::Certificate(_))), "nothing");
}

#[test]
fn name_constraints_of_the_company_bind_its_hosts() {
    let within = |name: &'static str| {
        company_with(move |p| {
            p.name_constraints = Some(NameConstraints {
                permitted_subtrees: vec![GeneralSubtree::DnsName(name.to_owned())],
                excluded_subtrees: Vec::new(),
            });
        })
    };
    let allowed = within("corp.example");
    allowed.ask(&allowed.host(|_| {}), corp()).unwrap();
    let other = within("lab.example");
    assert!(matches!(other.ask(&other.host(|_| {}), corp()), Err(HostError::Certificate(_))));
}

#[test]
fn what_an_authority_of_a_mesh_signed_vouches_for_no_host() {
    // A mesh below the same root: its authority signs what it likes, and bears its trust domain's name.
    let mesh = company_with(|p| p.subject_alt_names = vec![uri("spiffe://east.example")]);
    let refused = mesh.ask(&mesh.host(|_| {}), corp()).unwrap_err();
    assert!(refused.to_string().contains("vouches for no host"), "{refused}");
    let pem = to_pem("CERTIFICATE", &mesh.between);
    let refused = HostTrust::from_pem(pem.as_bytes(), corp()).unwrap_err();
    assert!(refused.to_string().contains("vouches for no host"), "{refused}");
}

#[test]
fn an_authority_below_the_root_may_be_the_one_that_counts() {
    let company = company();
    let pem = to_pem("CERTIFICATE", &company.between);
    let trust = HostTrust::from_pem(pem.as_bytes(), corp()).unwrap();
    ask(&trust, &company.host(|_| {}), NOW).unwrap();
    // The root has signed others: here they do not count.
    let (root_key, users_key) = (key(), key());
    let root = ca_params("Company Root");
    let mut users = ca_params("Company Users");
    users.use_authority_key_identifier_extension = true;
    let users_der = users.signed_by(&users_key, &Issuer::new(root, root_key)).unwrap().der().to_vec();
    let users =
        Company { root: company.root.clone(), between: users_der, issuer: Issuer::new(users, users_key) };
    assert_eq!(ask(&trust, &users.host(|_| {}), NOW), Err(HostError::UnknownAuthority));
}

#[test]
fn a_revoked_key_proves_nothing_here_either() {
    let company = company();
    let host = company.host(|_| {});
    let chain: Vec<&[u8]> = host.chain.iter().map(Vec::as_slice).collect();
    let trust = company.trust(Naming::Fingerprint);
    for der in &chain {
        let key = x509::key_id(x509::parse(der).unwrap().public_key().raw);
        let id = RevocationId { number: 5, origin: east() };
        let mut revocations = Revocations::default();
        let target = RevocationTarget::Key(key);
        revocations.insert(Revocation::new(id.clone(), target, Reason::KeyCompromise, NOW));
        let refused = verify_host(&trust, &east(), &revocations, &chain, NOW);
        assert_eq!(refused, Err(HostError::Revoked(id)));
    }
}

#[test]
fn by_default_an_agent_is_named_after_the_fingerprint() {
    let company = company();
    let (one, other) = (company.host(|_| {}), company.host(|_| {}));
    let named = |host: &HostKey| company.ask(host, Naming::Fingerprint).unwrap();
    let verified = named(&one);
    assert_eq!(verified.agent, fingerprint_name(&one.chain[0]));
    let digits = verified.agent.as_str().strip_prefix("x509pop-").unwrap();
    assert!(verified.certificate.fingerprint.starts_with(digits) && digits.len() == 40);
    assert_ne!(verified.agent, named(&other).agent, "the same names, another certificate");
}

#[test]
fn settings_are_checked_before_they_are_kept() {
    let company = company();
    let pem = to_pem("CERTIFICATE", &company.root);
    for domain in
        ["", ".corp.example", "corp..example", "Corp.example", "corp.example.", "a b", &"a".repeat(300)]
    {
        let refused = HostTrust::from_pem(pem.as_bytes(), Naming::DnsDomain(domain.to_owned()));
        assert!(matches!(refused, Err(HostError::Domain(_))), "{domain:?}");
    }
    assert_eq!(HostTrust::from_pem(b"", corp()), Err(HostError::Authorities));
    let leaf = to_pem("CERTIFICATE", &company.host(|_| {}).chain[0]);
    assert!(matches!(HostTrust::from_pem(leaf.as_bytes(), corp()), Err(HostError::Authority { .. })));
    let mut trust = HostTrust::from_pem(pem.repeat(2).as_bytes(), corp()).unwrap();
    assert_eq!(trust.authorities.len(), 1, "twice the same is once");
    let json = serde_json::to_string(&trust).unwrap();
    assert_eq!(serde_json::from_str::<HostTrust>(&json).unwrap(), trust);
    trust.authorities[0].subject = "CN=somebody else".to_owned();
    assert!(matches!(trust.check(), Err(HostError::Authority { .. })));
}

#[test]
fn a_hosts_files_have_to_belong_together() {
    let company = company();
    let host = company.host(|_| {});
    let chain = to_pem("CERTIFICATE", &host.chain[0]);
    let refused = HostKey::from_pem(chain.as_bytes(), key().serialize_pem().as_bytes()).unwrap_err();
    assert_eq!(refused, HostError::Key("does not belong to the certificate"));
    assert!(matches!(HostKey::from_pem(b"", b""), Err(HostError::Certificate(_))));
    assert!(matches!(HostKey::from_pem(chain.as_bytes(), b""), Err(HostError::Key(_))));
}
