//! Tests of the identity files.

use super::*;

fn new_node(name: &str) -> NewNode {
    NewNode {
        cluster: "east".parse().unwrap(),
        trust_domain: "east.example".parse().unwrap(),
        name: name.parse().unwrap(),
        raft_id: 1,
        address: "127.0.0.1:7001".into(),
        peer_address: "127.0.0.1:7001".into(),
        region: "r1".into(),
        zone: "z1".into(),
    }
}

/// The plain store of the same directory.
fn store(dir: &Path) -> files::FileKeyStore {
    files::FileKeyStore::new(dir, "east.example".parse().unwrap(), None)
}

fn load(dir: &Path) -> Result<(NodeFile, Authority), KeyFileError> {
    let file = load_node(dir)?;
    let authority = first_authority(&file, &store(dir))?;
    Ok((file, authority))
}

fn key_file(dir: &Path, node: &NodeFile) -> PathBuf {
    dir.join(format!("keys/authority-{}.key", node.record.authority.key_id))
}

#[test]
fn an_identity_is_made_once_and_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("node");
    let made = init(&data, new_node("east-1"), &store(&data), now()).unwrap();
    let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&data), 0o700);
    assert_eq!(mode(&data.join("keys")), 0o700);
    assert_eq!(mode(&key_file(&data, &made)), 0o600);
    let (read, authority) = load(&data).unwrap();
    assert_eq!(read, made);
    assert_eq!(authority.certificate().key_id, made.record.authority.key_id);
    assert!(matches!(init(&data, new_node("east-1"), &store(&data), now()), Err(KeyFileError::Exists(_))));
}

#[test]
fn a_key_that_others_may_read_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let made = init(dir.path(), new_node("east-1"), &store(dir.path()), now()).unwrap();
    let key = key_file(dir.path(), &made);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(load(dir.path()), Err(KeyFileError::Store(KeyStoreError::Exposed { mode: 0o640, .. }))));
}

#[test]
fn addresses_and_raft_ids_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("node");
    let mut new = new_node("east-1");
    new.address = "127.0.0.1".into();
    assert!(matches!(init(&data, new, &store(&data), now()), Err(KeyFileError::Address { .. })));
    let mut new = new_node("east-1");
    new.raft_id = 0;
    assert!(matches!(init(&data, new, &store(&data), now()), Err(KeyFileError::RaftId)));
    assert!(!files::has_keys(&data));
}

#[test]
fn a_node_signs_for_itself_with_its_root_at_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let file = init(dir.path(), new_node("east-1"), &store(dir.path()), now()).unwrap();
    let (_, authority) = load(dir.path()).unwrap();
    let svid =
        node_svid(&authority, &file.record.name, &Revocations::default(), NODE_SVID_LIFETIME, now()).unwrap();
    assert_eq!(svid.facts.id.to_string(), "spiffe://east.example/hanse/node/east-1");
    assert_eq!(svid.chain.last(), Some(&file.record.authority.der));
}

#[test]
fn a_credential_is_private_and_round_trips() {
    let dir = tempfile::tempdir().unwrap();
    let file = init(dir.path(), new_node("east-1"), &store(dir.path()), now()).unwrap();
    let (_, authority) = load(dir.path()).unwrap();
    let user = "operator".parse().unwrap();
    let made =
        mint_credential(&authority, std::slice::from_ref(&file), None, &user, CREDENTIAL_LIFETIME, now())
            .unwrap();
    let path = dir.path().join("credential.json");
    made.write(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let read = Credential::read(&path).unwrap();
    assert_eq!(read.svid().unwrap().facts.id.to_string(), "spiffe://east.example/hanse/admin/operator");
    assert_eq!(read.endpoints, ["127.0.0.1:7001"]);
    assert!(!format!("{read:?}").contains("PRIVATE"));
    let mut foreign = file.clone();
    foreign.trust_domain = "west.example".parse().unwrap();
    let nodes = [file, foreign];
    assert!(matches!(
        mint_credential(&authority, &nodes, None, &user, CREDENTIAL_LIFETIME, now()),
        Err(SignError::ForeignNode(_))
    ));
}

#[test]
fn a_node_under_a_root_of_ones_own_keeps_nothing_of_the_roots_key() {
    let dir = tempfile::tempdir().unwrap();
    let (certificate, key_file) = (dir.path().join("root.pem"), dir.path().join("root.key"));
    let root_key = new_key_pair().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, "Root of our own");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
    params.serial_number = Some(rcgen::SerialNumber::from(7_u64));
    fs::write(&certificate, params.self_signed(&root_key).unwrap().pem()).unwrap();
    replace(&key_file, root_key.serialize_pem().as_bytes(), 0o644).unwrap();
    let load_root = || load_upstream(&"east.example".parse().unwrap(), &certificate, &key_file);
    assert!(matches!(load_root(), Err(KeyFileError::Exposed { .. })), "a root's key that others may read");
    fs::set_permissions(&key_file, fs::Permissions::from_mode(0o600)).unwrap();
    let root = load_root().unwrap();

    let mut files = Vec::new();
    for number in 1..=3 {
        let data = dir.path().join(format!("node-{number}"));
        let mut new = new_node(&format!("east-{number}"));
        (new.raft_id, new.address) = (number, format!("127.0.0.1:{}", 7000 + number));
        files.push(init_below(&data, new, &store(&data), &root, now()).unwrap());
    }
    assert!(files.iter().all(|f| f.record.authority == files[0].record.authority), "they share the root");
    assert_ne!(files[0].record.signing_key(), files[1].record.signing_key());
    let records: Vec<NodeRecord> = files.iter().map(|f| f.record.clone()).collect();
    let state =
        crate::state::State::founded(files[0].cluster.clone(), files[0].trust_domain.clone(), records);
    let bundle = &state.view.bundles[&files[0].trust_domain];
    assert_eq!(bundle.authorities, [root.certificate().clone()]);
    bundle.check().unwrap();

    let data = dir.path().join("node-2");
    let (file, authority) = load(&data).unwrap();
    let svid = node_svid(&authority, &file.record.name, &Revocations::default(), NODE_SVID_LIFETIME, now());
    let svid = svid.unwrap();
    assert_eq!(svid.chain.len(), 3, "leaf, the node's own authority, the root");
    let trust = hanse_identity::Trust::new([bundle], Revocations::default());
    let chain: Vec<&[u8]> = svid.chain.iter().map(Vec::as_slice).collect();
    let caller = hanse_identity::verify(&trust, &chain, now(), hanse_identity::Usage::Server).unwrap();
    assert_eq!(caller.id().to_string(), "spiffe://east.example/hanse/node/east-2");
    let credential =
        mint_credential(&authority, &files, None, &"operator".parse().unwrap(), CREDENTIAL_LIFETIME, now())
            .unwrap();
    assert_eq!(credential.bundle_pem.matches("BEGIN CERTIFICATE").count(), 1);

    let secret = &root_key.serialized_der()[36..68];
    for entry in fs::read_dir(data.join("keys")).unwrap().chain(fs::read_dir(&data).unwrap()) {
        let path = entry.unwrap().path();
        let bytes = if path.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
        assert!(!bytes.windows(32).any(|w| w == secret), "{} holds the root's key", path.display());
    }
}
