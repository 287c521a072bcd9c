//! An agent that joins, and comes back, by its host's own certificate.

use hanse_identity::host::{Naming, fingerprint_name};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};

use super::rejoin::SHORT;
use super::*;
use crate::io::host::HostFileError;

/// Files of a host whose certificate a company's root has signed, and what the cluster has to know of that root.
fn company(directory: &tempfile::TempDir, cluster: &Cluster) -> (crate::Config, HostTrust) {
    let named = |params: &mut CertificateParams, name: &str| {
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
    };
    let (root_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let mut root = CertificateParams::default();
    named(&mut root, "Company Root");
    root.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    root.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let root_pem = root.self_signed(&root_key).unwrap().pem();
    let mut leaf = CertificateParams::default();
    named(&mut leaf, "host-1.corp.example");
    leaf.subject_alt_names = vec![SanType::DnsName("host-1.corp.example".try_into().unwrap())];
    leaf.is_ca = IsCa::ExplicitNoCa;
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let leaf = leaf.signed_by(&key, &Issuer::new(root, root_key)).unwrap().pem();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        Some(path)
    };
    let config = crate::Config {
        x509pop_cert: file("host.pem", &leaf),
        x509pop_key: file("host.key", &key.serialize_pem()),
        trust_bundle: file("east.pem", &bundle(&[&cluster.authority]).to_pem()),
        trust_domain: Some(east()),
        ..super::config(directory, None)
    };
    let naming = Naming::DnsDomain("corp.example".to_owned());
    (config, HostTrust::from_pem(root_pem.as_bytes(), naming).unwrap())
}

#[tokio::test]
async fn an_agent_joins_by_its_hosts_certificate() {
    let cluster = Cluster::new(vec![], DAY);
    let node = Node::start(&cluster, "east-1");
    let directory = tempfile::tempdir().unwrap();
    let (config, hosts) = company(&directory, &cluster);
    let store = store(&directory);
    let files = config.host_files().unwrap();
    let by = || Proof::Host(files.read(None).unwrap());
    let endpoints = [node.address.clone()];
    let refused = soon(join(&by(), &agent(), &endpoints, &store)).await.err().unwrap();
    assert!(matches!(&refused, JoinError::Refused(why) if why.contains("was put out")), "{refused}");
    *cluster.hosts.lock().unwrap() = Some(hosts);
    let stored = soon(join(&by(), &agent(), &endpoints, &store)).await.unwrap();
    assert_eq!(stored.svid().unwrap().facts.id.to_string(), "spiffe://east.example/hanse/agent/host-1");
    assert!(stored.invite.starts_with("x509pop "));

    // Without a name it is named after the fingerprint, and later as it was when it joined.
    let unnamed = crate::Config { name: None, ..config };
    let elsewhere = Store::open(&directory.path().join("elsewhere")).unwrap();
    let own = unnamed.agent_name(&elsewhere).unwrap();
    assert_eq!(own, files.default_name().unwrap());
    assert_eq!(own, fingerprint_name(&files.read(None).unwrap().key.chain[0]));
    assert_eq!(unnamed.agent_name(&store).unwrap(), agent());
    // What the agent knows of the cluster is newer than the file.
    std::fs::remove_file(&files.trust_bundle).unwrap();
    assert!(matches!(files.read(None), Err(HostFileError::Unreadable { .. })));
    assert_eq!(files.read(Some(&stored)).unwrap().pins, stored.bundle.pins());
}

#[tokio::test]
async fn an_impostor_hears_nothing_of_a_hosts_certificate() {
    let (cluster, impostor) = (Cluster::new(vec![], DAY), Cluster::new(vec![], DAY));
    let node = Node::start(&impostor, "east-1");
    let directory = tempfile::tempdir().unwrap();
    let (config, hosts) = company(&directory, &cluster);
    *impostor.hosts.lock().unwrap() = Some(hosts);
    let by = Proof::Host(config.host_files().unwrap().read(None).unwrap());
    let store = store(&directory);
    let (endpoints, name) = ([node.address.clone()], agent());
    tokio::select! {
        joined = join(&by, &name, &endpoints, &store) => panic!("{:?}", joined.err()),
        // It goes on trying.
        () = until(|| node.failed.load(Ordering::SeqCst) >= 2) => {}
    }
    assert_eq!(node.connections.load(Ordering::SeqCst), 0, "no handshake was finished");
}

#[tokio::test]
async fn an_agent_whose_svid_has_expired_comes_back_by_its_hosts_certificate_when_the_cluster_lets_it() {
    let cluster = Cluster::new(vec![], SHORT);
    cluster.renews.store(false, Ordering::SeqCst);
    let node = Node::start(&cluster, "east-1");
    cluster.state.send_modify(|s| s.endpoints = vec![node.address.clone()]);
    let directory = tempfile::tempdir().unwrap();
    let (mut config, hosts) = company(&directory, &cluster);
    config.control = vec![node.address.clone()];
    *cluster.hosts.lock().unwrap() = Some(hosts.clone());
    let agent = Member::start_with(&directory, config);
    until(|| agent.page("/readyz").0 == 200).await;
    let first = agent.link.own_not_after();

    // The cluster does not let it: it says so, and goes on running.
    *cluster.hosts.lock().unwrap() = None;
    until(|| agent.not_ready_with("the host's certificate: every control node refuses")).await;
    assert!(agent.not_ready_with("was put out"));
    *cluster.hosts.lock().unwrap() = Some(hosts);
    until(|| agent.page("/readyz").0 == 200).await;
    assert!(agent.link.own_not_after() > first);
    assert!(agent.page("/metrics").1.contains("hanse_agent_rejoins_total 1"));
    agent.stop().await;
}
