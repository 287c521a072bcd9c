//! A cluster whose authorities are below a root of the user's own house: founded, joined by an agent, serving SVIDs.

use hanse_identity::{Trust, Upstream, Usage, verify};

use super::*;

/// A root as one's own tools make it, in PEM: its certificate and its private key.
pub(super) fn own_root(
    trust_domain: &hanse_identity::TrustDomain,
    path_length: rcgen::BasicConstraints,
) -> Upstream {
    let key = new_key_pair().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::OrganizationName, "Kontor");
    params.is_ca = rcgen::IsCa::Ca(path_length);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
    params.serial_number = Some(rcgen::SerialNumber::from(7_u64));
    let certificate = params.self_signed(&key).unwrap().pem();
    Upstream::from_pem(trust_domain, certificate.as_bytes(), key.serialize_pem().as_bytes()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_under_a_root_of_ones_own_is_believed_by_that_root() {
    let root = own_root(&"east.example".parse().unwrap(), rcgen::BasicConstraints::Unconstrained);
    let mut east = found_by("east", 3, &|directory, new, store| {
        keys::init_below(directory, new, store, &root, now()).unwrap()
    })
    .await;
    assert_eq!(east.bundle().authorities, [root.certificate().clone()], "the root, once");
    let client = east.client().await;
    let token = agent_token(&client, "host-1").await;
    let agent = join_agent(&east, "host-1", &token).await.unwrap();
    let id = "spiffe://east.example/ns/shop/sa/ratings".parse().unwrap();
    let svid = workload(&east, &client, &agent, &id, &[]).await;
    assert_eq!(svid.chain.len(), 2, "the leaf and the node's own authority");
    let trust = Trust::new([&east.bundle()], Revocations::default());
    let chain: Vec<&[u8]> = svid.chain.iter().map(Vec::as_slice).collect();
    assert_eq!(*verify(&trust, &chain, now(), Usage::Client).unwrap().id(), id);

    east.restart(0).await;
    let again = issue_svid(&east, &agent, &id, &["unix:uid:1000"]).await.unwrap();
    assert_eq!(again.facts.id, id);
    east.stop().await;
}
