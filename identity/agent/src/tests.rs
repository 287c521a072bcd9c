//! Starting: token files, the stored identity, and what the operator is told.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use hanse_identity::name::MemberRole;
use hanse_identity::svid::Svid;
use hanse_identity::token::{Admits, JoinToken, TokenError};
use hanse_identity::{Revocations, SpiffeId, grant, issue};

use super::*;
use crate::fixture::{agent, authority, bundle, east, later, serial};
use crate::io::store::{StoreError, TokenFileError};
use crate::io::svids::key_and_request;

fn token(admits: Admits, expires: Timestamp) -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    let (cluster, pins) = ("east".parse().unwrap(), bundle(&[&authority(&east())]).pins());
    let endpoints = vec!["127.0.0.1:1".to_owned()];
    let (token, _) =
        JoinToken::create("i-1".to_owned(), admits, cluster, east(), endpoints, pins, &key, now(), expires);
    token.to_string()
}

fn for_this_agent() -> Admits {
    Admits::Agent(agent())
}

/// The agent's own SVID, of that lifetime.
fn stored(lifetime: Duration) -> StoredIdentity {
    let east_1 = authority(&east());
    let own = SpiffeId::member(&east(), MemberRole::Agent, &agent());
    let ticket = grant::grant_member(&east(), &Revocations::default(), &own, lifetime).unwrap();
    let (key, csr) = key_and_request().unwrap();
    let issued = issue(ticket, &csr, &east_1, serial(), now()).unwrap();
    let svid = Svid::new(issued.chain, key).unwrap();
    let mut stored = StoredIdentity {
        name: agent(),
        cluster: "east".parse().unwrap(),
        trust_domain: east(),
        chain_pem: String::new(),
        key_pem: String::new(),
        bundle: bundle(&[&east_1]),
        endpoints: vec!["127.0.0.1:1".to_owned()],
        invite: String::new(),
        spare: None,
    };
    stored.set_svid(&svid);
    stored
}

fn config(directory: &Path, join_token_file: Option<PathBuf>) -> Config {
    Config {
        data_dir: directory.join("data"),
        name: Some(agent()),
        socket: directory.join("agent.sock"),
        join_token_file,
        x509pop_cert: None,
        x509pop_key: None,
        trust_bundle: None,
        trust_domain: None,
        control: Vec::new(),
        admin: None,
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_good_token_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    std::fs::write(&path, format!("\n{}\n", token(for_this_agent(), later(now(), 60)))).unwrap();
    let token = read_token(&path, &agent(), now()).unwrap();
    assert_eq!((token.invite.as_str(), token.admits), ("i-1", for_this_agent()));
}

#[test]
fn a_bad_token_file_is_an_error_that_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    let read = |text: &str| {
        std::fs::write(&path, text).unwrap();
        read_token(&path, &agent(), now()).unwrap_err()
    };
    let missing = read_token(&dir.path().join("none"), &agent(), now()).unwrap_err();
    assert!(matches!(missing, TokenFileError::Unreadable { .. }));
    assert!(missing.to_string().contains("none"), "{missing}");
    assert!(matches!(read(" \n"), TokenFileError::Empty(_)));
    assert!(matches!(read(&"x".repeat(100_000)), TokenFileError::TooLarge(_)));
    let malformed =
        |e: &TokenFileError| matches!(e, TokenFileError::Token { source: TokenError::Malformed(_), .. });
    assert!(malformed(&read("not a token")));
    let cut = token(for_this_agent(), later(now(), 60));
    assert!(malformed(&read(&cut[..cut.len() / 2])));
    let other = read(&token(Admits::Agent("host-2".parse().unwrap()), later(now(), 60)));
    assert!(matches!(other, TokenFileError::OtherAgent { .. }));
    let cluster = read(&token(Admits::Cluster("west".parse().unwrap()), later(now(), 60)));
    assert!(matches!(cluster, TokenFileError::Token { source: TokenError::WrongKind(_), .. }));
    let expired = read(&token(for_this_agent(), now()));
    assert!(matches!(expired, TokenFileError::Token { source: TokenError::Expired(_), .. }));
}

#[test]
fn the_stored_identity_is_private_and_read_back_whole() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let store = Store::open(&data).unwrap();
    assert!(store.identity().unwrap().is_none());
    let stored = stored(Duration::from_secs(3600));
    std::fs::write(data.join("kept"), "by someone else").unwrap();
    store.write_identity(&stored).unwrap();
    store.write_identity(&stored).unwrap();
    assert_eq!(mode(&data), 0o700);
    assert_eq!(mode(&data.join("agent.json")), 0o600);
    let files: Vec<_> = std::fs::read_dir(&data).unwrap().map(|f| f.unwrap().file_name()).collect();
    assert_eq!(files.len(), 2, "{files:?}");
    let again = store.identity().unwrap().unwrap();
    assert_eq!(again.svid().unwrap().facts, stored.svid().unwrap().facts);
    assert_eq!(
        (again.bundle.clone(), again.endpoints.clone()),
        (stored.bundle.clone(), stored.endpoints.clone())
    );
    std::fs::write(data.join("agent.json"), "{").unwrap();
    assert!(matches!(store.identity(), Err(StoreError::Content { .. })));
}

#[test]
fn a_valid_stored_identity_is_used_and_a_token_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), Some(dir.path().join("no-such-file")));
    let store = Store::open(&config.data_dir).unwrap();
    store.write_identity(&stored(Duration::from_secs(3600))).unwrap();
    assert!(matches!(start(&config, &agent(), &store, now()), Ok(Start::Stored(_))));
}

#[test]
fn without_an_identity_a_token_is_demanded_and_an_expired_one_waits_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path(), None);
    let store = Store::open(&config.data_dir).unwrap();
    let told = |config: &Config, at| {
        start(config, config.name.as_ref().unwrap(), &store, at).err().unwrap().to_string()
    };
    assert!(told(&config, now()).contains("has not joined"));
    let path = dir.path().join("token");
    std::fs::write(&path, token(for_this_agent(), later(now(), 60))).unwrap();
    config.join_token_file = Some(path.clone());
    assert!(matches!(start(&config, &agent(), &store, now()), Ok(Start::Proof(Proof::Token(_)))));
    assert_eq!(config.token_file(), path);
    // Expired or not, and whatever the token file says by now: it starts, and says elsewhere what it waits for.
    std::fs::remove_file(path).unwrap();
    store.write_identity(&stored(Duration::from_secs(3600))).unwrap();
    assert!(matches!(start(&config, &agent(), &store, later(now(), 7200)), Ok(Start::Stored(_))));
    config.join_token_file = None;
    assert_eq!(config.token_file(), config.data_dir.join("join-token"));
    config.name = Some("host-2".parse().unwrap());
    assert!(told(&config, now()).contains("host-1"));
}

#[test]
fn the_admin_address_must_be_loopback() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path(), None);
    config.admin = Some("0.0.0.0:0".parse().unwrap());
    assert!(run(config).unwrap_err().to_string().contains("loopback"));
}

#[test]
fn the_command_line_is_read_into_a_config() {
    use clap::{Args as _, FromArgMatches as _};
    let command = Config::augment_args(clap::Command::new("agent"));
    command.clone().debug_assert();
    let line = "agent --data-dir d --name host-1 --socket s --control a:1 --control b:2 --admin 127.0.0.1:9";
    let config = Config::from_arg_matches(&command.clone().get_matches_from(line.split(' '))).unwrap();
    assert_eq!((config.name, config.control), (Some(agent()), vec!["a:1".to_owned(), "b:2".to_owned()]));
    let wrong = "agent --data-dir d --name Host_1 --socket s";
    assert!(command.try_get_matches_from(wrong.split(' ')).unwrap_err().to_string().contains("node name"));
}
