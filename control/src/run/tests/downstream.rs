//! A nested issuer from its registration to what becomes of its SVIDs when it is revoked.

use std::process::Command as Process;

use hanse_identity::wire::to_pem;
use hanse_identity::{NestedIssuer, TrustDomain, Usage, VerifyError, verify};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose, SanType};

use super::lists::lists;
use super::upstream::own_root;
use super::*;
use crate::state::audit::AuditOutcome;

const REVIEWS: &str = "spiffe://east.example/ns/shop/sa/reviews";

fn issuer_id() -> SpiffeId {
    "spiffe://east.example/ns/edge/sa/issuer".parse().unwrap()
}

/// Registers a workload on the agent's host, and fetches an SVID of it.
async fn registered(cluster: &Cluster, client: &Client, agent: &Svid, downstream: bool) -> Svid {
    let (_, name) = agent.facts.id.as_member().unwrap();
    let name: NodeName = name.parse().unwrap();
    let registration = Registration {
        downstream,
        ttl_seconds: 7200,
        ..Registration::new(issuer_id(), name, ["unix:uid:1000".parse().unwrap()])
    };
    client.call(&WorkloadRegisterRequest { registration }).await.unwrap();
    issue_svid(cluster, agent, &issuer_id(), &["unix:uid:1000"]).await.unwrap()
}

/// The command line of whoever has that SVID.
async fn as_caller(cluster: &Cluster, svid: &Svid) -> Client {
    let (chain_pem, key_pem) = (svid.chain_pem(), svid.key_pem().to_string());
    Client::connect(&Credential { chain_pem, key_pem, ..cluster.credential.clone() }).await.unwrap()
}

/// A nested issuer with a certificate of its own.
struct Nested {
    serial: hanse_identity::Serial,
    chain: Vec<Vec<u8>>,
    signer: Issuer<'static, KeyPair>,
}

impl Nested {
    /// Asks for an intermediate over a fresh key.
    async fn of(client: &Client) -> Result<Self, crate::client::ClientError> {
        let key = KeyPair::generate().unwrap();
        let reply = client.downstream(certificate_request(&key).unwrap()).await?;
        assert_eq!(reply.spiffe_id, issuer_id().to_string());
        let signer = Issuer::from_ca_cert_der(&reply.chain_der[0].as_slice().into(), key).unwrap();
        let lives = Timestamp(reply.expires).left(now());
        assert!(lives > Duration::from_secs(7000) && lives <= Duration::from_secs(7200), "{lives:?}");
        Ok(Self { serial: reply.serial.parse().unwrap(), chain: reply.chain_der, signer })
    }

    /// An SVID that it gives to a workload of its own.
    fn svid(&self, id: &str) -> Svid {
        let mut leaf = CertificateParams::default();
        leaf.distinguished_name = rcgen::DistinguishedName::new();
        leaf.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        leaf.use_authority_key_identifier_extension = true;
        leaf.is_ca = rcgen::IsCa::ExplicitNoCa;
        let serial = crate::io::keys::random_serial();
        leaf.serial_number = Some(rcgen::SerialNumber::from_slice(serial.as_bytes()));
        let key = KeyPair::generate().unwrap();
        let der = leaf.signed_by(&key, &self.signer).unwrap().der().to_vec();
        let chain = std::iter::once(der).chain(self.chain.clone()).collect();
        Svid::new(chain, Zeroizing::new(key.serialize_der())).unwrap()
    }
}

/// What every node, proxy and gateway of the cluster thinks of it now.
fn believed(cluster: &Cluster, svid: &Svid) -> Result<Option<NestedIssuer>, VerifyError> {
    let trust = cluster.any().context.handle.state().view.trust();
    let chain: Vec<&[u8]> = svid.chain.iter().map(Vec::as_slice).collect();
    verify(&trust, &chain, now(), Usage::Client).map(|caller| caller.nested_issuer().cloned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workload_that_may_be_a_nested_issuer_gets_an_intermediate_and_every_revocation_reaches_what_it_signs()
 {
    let east = found("east", 1).await;
    let client = east.client().await;
    let agent = join_agent(&east, "host-1", &agent_token(&client, "host-1").await).await.unwrap();

    let plain = registered(&east, &client, &agent, false).await;
    let refused = Nested::of(&as_caller(&east, &plain).await).await.err().unwrap();
    assert_eq!(refused.kind, ClientErrorKind::NotAllowed);
    assert!(refused.why.contains("downstream") && refused.fix.contains("--downstream"), "{refused:?}");
    for other in [&agent, &east.credential.svid().unwrap()] {
        let refused = Nested::of(&as_caller(&east, other).await).await.err().unwrap();
        assert_eq!(refused.kind, ClientErrorKind::NotAllowed, "{refused:?}");
    }

    let svid = registered(&east, &client, &agent, true).await;
    let own = as_caller(&east, &svid).await;
    let nested = Nested::of(&own).await.unwrap();
    let theirs = nested.svid(REVIEWS);
    assert_eq!(believed(&east, &theirs).unwrap().unwrap().serial, nested.serial);
    // It is in the index as what it is, and in the trail.
    let listed = client.call(&IdentityListRequest::default()).await.unwrap().items;
    let item = listed.iter().find(|item| item.serial == nested.serial).expect("it is in the index");
    assert!(item.downstream && item.spiffe_id == issuer_id() && item.renewal.is_none(), "{item:?}");
    assert!(listed.iter().filter(|item| item.downstream).count() == 1);
    let kind = Some("downstream-issue".to_owned());
    let rows = client.call(&AuditListRequest { kind, ..Default::default() }).await.unwrap().items;
    let row = rows.iter().find(|row| row.outcome == AuditOutcome::Done).expect("a row");
    assert_eq!(
        (row.actor.clone(), &row.certificate),
        (issuer_id().to_string(), &Some(svid.facts.serial.clone()))
    );

    // Whoever has an SVID of it is a workload to other workloads, and nobody to control nodes.
    let stranger = as_caller(&east, &nested.svid(&issuer_id().to_string())).await;
    let refused = Nested::of(&stranger).await.err().unwrap();
    assert!(
        refused.kind == ClientErrorKind::NotAllowed && refused.why.contains("nested issuer"),
        "{refused:?}"
    );
    assert_eq!(
        watch_as(&east, &theirs, "reviews-1", "proxy").await.err().unwrap().code(),
        Code::PermissionDenied
    );
    let admin = nested.svid("spiffe://east.example/hanse/admin/ann");
    assert!(matches!(believed(&east, &admin), Err(VerifyError::Path(_))));

    let key = |nested: &Nested| believed(&east, &nested.svid(REVIEWS)).unwrap().unwrap().key_id;
    let kinds: [(&str, bool); 4] = [("serial", false), ("key", false), ("identity", true), ("agent", false)];
    let (mut svid, spared) = (svid, nested);
    for (kind, reissue) in kinds {
        let own = as_caller(&east, &svid).await;
        let nested = Nested::of(&own).await.unwrap();
        let theirs = nested.svid(REVIEWS);
        let planned = async || {
            let status = client.call(&TrustStatusRequest {}).await.unwrap();
            status.nested.into_values().flatten().any(|i| i.serial == nested.serial)
        };
        assert!(planned().await, "{kind}: a rotation would wait for it, and does not say so");
        let target = match kind {
            "serial" => RevocationTarget::Serial(nested.serial.clone()),
            "key" => RevocationTarget::Key(key(&nested)),
            "identity" => RevocationTarget::Identity(issuer_id()),
            _ => RevocationTarget::Agent("host-1".parse().unwrap()),
        };
        let asked = RevokePreviewRequest { target: target.clone(), reissue };
        let preview = client.call(&asked).await.unwrap();
        assert!(preview.intermediates.iter().any(|i| i.serial == nested.serial), "{kind}: {preview:?}");
        let narrow = matches!(kind, "serial" | "key");
        assert_eq!(preview.intermediates.len() == 1, narrow, "{kind}: {:?}", preview.intermediates);
        let request = RevokeRequest { reissue, ..RevokeRequest::new(target, Reason::KeyCompromise) };
        let revoked = client.call(&request).await.unwrap();
        let refused = believed(&east, &theirs).unwrap_err();
        assert!(
            matches!(&refused, VerifyError::Revoked { revocation, .. } if *revocation == revoked.id),
            "{kind}: {refused:?}"
        );
        assert_eq!(believed(&east, &spared.svid(REVIEWS)).is_ok(), narrow, "{kind}");
        let receipt = client.call(&RevokeStatusRequest { id: revoked.id }).await.unwrap();
        assert!(receipt.intermediates.iter().any(|i| i.serial == nested.serial), "{kind}: {receipt:?}");
        assert!(!planned().await, "{kind}: no rotation waits for what is revoked");
        if reissue {
            svid = issue_svid(&east, &agent, &issuer_id(), &["unix:uid:1000"]).await.unwrap();
        }
    }
    east.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openssl_believes_what_a_nested_issuer_signs_until_its_certificate_is_on_the_list() {
    if Process::new("openssl").arg("version").output().is_err() {
        eprintln!("skipped: openssl is not installed");
        return;
    }
    let east = found("east", 1).await;
    let trust_domain: TrustDomain = "east.example".parse().unwrap();
    let client = east.client().await;
    let agent = join_agent(&east, "host-1", &agent_token(&client, "host-1").await).await.unwrap();
    let svid = registered(&east, &client, &agent, true).await;
    let nested = Nested::of(&as_caller(&east, &svid).await).await.unwrap();
    let theirs = nested.svid(REVIEWS);
    // Stock verifiers that read lists want one of every authority on the path: of its own, the nested issuer signs it.
    let list = rcgen::CertificateRevocationListParams {
        this_update: rcgen::date_time_ymd(2020, 1, 1),
        next_update: rcgen::date_time_ymd(2120, 1, 1),
        crl_number: rcgen::SerialNumber::from(1_u64),
        issuing_distribution_point: None,
        revoked_certs: Vec::new(),
        key_identifier_method: rcgen::KeyIdMethod::Sha256,
    };
    let list = list.signed_by(&nested.signer).unwrap().pem().unwrap();

    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let pem =
        |ders: &[Vec<u8>]| ders.iter().map(|der| to_pem("CERTIFICATE", der).to_string()).collect::<String>();
    let bundle = file("bundle.pem", &east.bundle().to_pem());
    let (leaf, chain) =
        (file("leaf.pem", &pem(&theirs.chain[..1])), file("chain.pem", &pem(&theirs.chain[1..])));
    let verify = |more: &[&str]| {
        let fixed =
            ["verify", "-x509_strict", "-purpose", "sslclient", "-CAfile", &bundle, "-untrusted", &chain];
        let output = Process::new("openssl").args(fixed).args(more).arg(&leaf).output().unwrap();
        let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        (output.status.success(), said.concat())
    };
    let (ok, said) = verify(&[]);
    assert!(ok, "{said}");
    let ours =
        || lists(east.any(), &trust_domain).iter().map(|crl| crl.to_pem().to_string()).collect::<String>();
    east.until("a list", |n| lists(n, &trust_domain).len() == 1).await;
    let (ok, said) = verify(&["-crl_check_all", "-CRLfile", &file("ours.pem", &ours())]);
    assert!(!ok && said.contains("unable to get certificate CRL"), "{said}");
    let (ok, said) = verify(&["-crl_check_all", "-CRLfile", &file("all.pem", &(ours() + &list))]);
    assert!(ok, "{said}");
    let target = RevocationTarget::Serial(nested.serial.clone());
    client.call(&RevokeRequest::new(target, Reason::KeyCompromise)).await.unwrap();
    east.until("the serial number in the list", |n| {
        let lists = lists(n, &trust_domain);
        lists.iter().all(|crl| crl.entries().unwrap().contains_key(&nested.serial))
    })
    .await;
    let (ok, said) = verify(&["-crl_check_all", "-CRLfile", &file("all.pem", &(ours() + &list))]);
    assert!(!ok && said.contains("certificate revoked"), "{said}");
    east.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn below_a_root_of_ones_own_that_does_not_allow_it_the_request_is_refused_with_the_reason() {
    let root = own_root(&"east.example".parse().unwrap(), rcgen::BasicConstraints::Constrained(1));
    let east = found_by("east", 1, &|directory, new, store| {
        keys::init_below(directory, new, store, &root, now()).unwrap()
    })
    .await;
    let client = east.client().await;
    let agent = join_agent(&east, "host-1", &agent_token(&client, "host-1").await).await.unwrap();
    let svid = registered(&east, &client, &agent, true).await;
    let refused = Nested::of(&as_caller(&east, &svid).await).await.err().unwrap();
    assert_eq!(refused.kind, ClientErrorKind::Precondition);
    assert!(refused.why.contains("path length"), "{refused:?}");
    let listed = client.call(&IdentityListRequest::default()).await.unwrap().items;
    assert!(listed.iter().all(|item| !item.downstream), "nothing is recorded of what was not signed");
    east.stop().await;
}
