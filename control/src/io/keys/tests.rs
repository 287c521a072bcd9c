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
        mint_credential(&authority, std::slice::from_ref(&file), &user, CREDENTIAL_LIFETIME, now()).unwrap();
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
        mint_credential(&authority, &nodes, &user, CREDENTIAL_LIFETIME, now()),
        Err(SignError::ForeignNode(_))
    ));
}
