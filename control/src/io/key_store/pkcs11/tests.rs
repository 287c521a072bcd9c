//! Tests of keys in a token: SoftHSM where it is installed, and the URI and signature forms everywhere.

use std::process::Command;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};

use super::uri::UriError;
use super::*;

/// Set in the process that the outer test starts: the URI of the token to use. A module reads its configuration from
/// the environment when it is loaded, so it needs a process of its own.
const URI_VARIABLE: &str = "HANSE_TEST_PKCS11_URI";
const PIN: &str = "271828";

/// Where Debian, Fedora and Homebrew put SoftHSM.
fn softhsm() -> Option<PathBuf> {
    const PLACES: [&str; 5] = [
        "/usr/lib/softhsm/libsofthsm2.so",
        "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
        "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
        "/usr/lib64/pkcs11/libsofthsm2.so",
        "/opt/homebrew/lib/softhsm/libsofthsm2.so",
    ];
    let tool = Command::new("softhsm2-util").arg("--version").output();
    PLACES.iter().map(PathBuf::from).find(|p| p.exists()).filter(|_| tool.is_ok_and(|t| t.status.success()))
}

/// A fresh token in a directory of its own; the directory, its configuration file, its URI.
fn new_token(module: &Path) -> (tempfile::TempDir, PathBuf, String) {
    let dir = tempfile::tempdir().unwrap();
    let tokens = dir.path().join("tokens");
    std::fs::create_dir(&tokens).unwrap();
    let configuration = dir.path().join("softhsm2.conf");
    std::fs::write(
        &configuration,
        format!("directories.tokendir = {}\nlog.level = ERROR\n", tokens.display()),
    )
    .unwrap();
    let made = Command::new("softhsm2-util")
        .args(["--init-token", "--free", "--label", "hanse test", "--so-pin", "314159", "--pin", PIN])
        .env("SOFTHSM2_CONF", &configuration)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let pin = dir.path().join("pin");
    keys::replace(&pin, format!("{PIN}\n").as_bytes(), 0o600).unwrap();
    let uri = format!(
        "pkcs11:token=hanse%20test?module-path={}&pin-source=file:{}",
        module.display(),
        pin.display()
    );
    (dir, configuration, uri)
}

#[test]
fn keys_of_a_token_sign_and_stay_in_it() {
    let Some(module) = softhsm() else {
        eprintln!("skipped: SoftHSM is not installed here (Debian: apt-get install softhsm2)");
        return;
    };
    let (_dir, configuration, uri) = new_token(&module);
    let inner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", "--nocapture"])
        .arg("io::key_store::pkcs11::tests::inside_a_process_with_a_token")
        .env("SOFTHSM2_CONF", configuration)
        .env(URI_VARIABLE, uri)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&inner.stdout);
    assert!(inner.status.success(), "{said}\n{}", String::from_utf8_lossy(&inner.stderr));
    assert!(said.contains("1 passed"), "{said}");
}

#[test]
#[ignore = "started by keys_of_a_token_sign_and_stay_in_it, in a process whose module has a token"]
fn inside_a_process_with_a_token() {
    let uri: TokenUri = std::env::var(URI_VARIABLE).unwrap().parse().unwrap();
    let store = TokenKeyStore::open(&uri).unwrap();
    let (one, two) =
        (store.create(KeyPurpose::Authority).unwrap(), store.create(KeyPurpose::Authority).unwrap());
    let jwt = store.create(KeyPurpose::Jwt).unwrap();
    assert!(one.is_external() && one.to_pkcs8().is_none());
    let mut both = vec![one.id(), two.id()];
    both.sort();
    assert_eq!(store.list(KeyPurpose::Authority).unwrap(), both);
    assert_eq!(store.list(KeyPurpose::Jwt).unwrap(), [jwt.id()]);
    assert!(matches!(store.open(KeyPurpose::Authority, &jwt.id()), Err(KeyStoreError::Missing { .. })));

    the_token_says_that_it_keeps_them(&store, &one.id());
    more_threads_than_sessions_sign(&store, &one.id());
    an_authority_signs_with_it(&store);

    store.delete(KeyPurpose::Authority, &two.id()).unwrap();
    store.delete(KeyPurpose::Authority, &two.id()).unwrap();
    assert!(matches!(store.open(KeyPurpose::Authority, &two.id()), Err(KeyStoreError::Missing { .. })));
    assert!(two.sign(b"message").is_err(), "a key that is gone signs no more");
    assert!(one.sign(b"message").is_ok(), "the others do");

    let nowhere = TokenUri { token: Some("another".into()), ..uri.clone() };
    assert!(TokenKeyStore::open(&nowhere).unwrap_err().to_string().contains("no such token"));
}

fn the_token_says_that_it_keeps_them(store: &TokenKeyStore, id: &KeyId) {
    let id = *id;
    let value = store.ask(move |token| {
        let handle = token.handle(KeyPurpose::Authority, &id)?.unwrap();
        let kept = [AttributeType::Sensitive, AttributeType::Extractable, AttributeType::AlwaysSensitive];
        let kept = token.session.get_attributes(handle, &kept)?;
        assert!(kept.contains(&Attribute::Sensitive(true)) && kept.contains(&Attribute::Extractable(false)));
        // What cannot be read is left out of the answer.
        Ok(token.session.get_attributes(handle, &[AttributeType::Value])?)
    });
    assert!(value.unwrap().is_empty(), "the secret number can be read");
}

fn more_threads_than_sessions_sign(store: &TokenKeyStore, id: &KeyId) {
    std::thread::scope(|scope| {
        for thread in 0..12_u8 {
            scope.spawn(move || {
                let key = store.open(KeyPurpose::Authority, id).unwrap();
                let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key.der_bytes().to_vec());
                for number in 0..10_u8 {
                    let signature = key.sign(&[thread, number]).unwrap();
                    assert!(public.verify(&[thread, number], &signature).is_ok());
                }
            });
        }
    });
}

/// A whole node's identity with its authority's key in the token: `init`, restart, an SVID.
fn an_authority_signs_with_it(store: &TokenKeyStore) {
    let dir = tempfile::tempdir().unwrap();
    let new = keys::NewNode {
        cluster: "east".parse().unwrap(),
        trust_domain: "east.example".parse().unwrap(),
        name: "east-1".parse().unwrap(),
        raft_id: 1,
        address: "127.0.0.1:7001".into(),
        peer_address: "127.0.0.1:7001".into(),
        region: String::new(),
        zone: String::new(),
    };
    keys::init(dir.path(), new, store, keys::now()).unwrap();
    assert!(!super::super::files::has_keys(dir.path()), "no key is on the disk");
    let node = keys::load_node(dir.path()).unwrap();
    let authority = keys::first_authority(&node, store).unwrap();
    assert!(authority.key().is_external());
    let none = hanse_identity::Revocations::default();
    let svid = keys::node_svid(&authority, &node.record.name, &none, keys::NODE_SVID_LIFETIME, keys::now());
    assert_eq!(svid.unwrap().chain.last(), Some(&node.record.authority.der));
}

#[test]
fn uris_name_a_token_a_module_and_a_file_with_the_pin() {
    let uri: TokenUri =
        "pkcs11:token=My%20HSM;serial=01?module-path=/usr/lib/m.so&pin-source=file:/etc/pin".parse().unwrap();
    assert_eq!((uri.token.as_deref(), uri.serial.as_deref()), (Some("My HSM"), Some("01")));
    assert_eq!(
        (uri.module.as_path(), uri.pin_source.as_path()),
        (Path::new("/usr/lib/m.so"), Path::new("/etc/pin"))
    );
    assert_eq!(uri.to_string(), "pkcs11:token=My HSM;serial=01");
    let error = |text: &str| text.parse::<TokenUri>().unwrap_err();
    let rest = "?module-path=/m.so&pin-source=/pin";
    assert_eq!(error("token=x"), UriError::Scheme);
    assert_eq!(error(&format!("pkcs11:{rest}")), UriError::Lacks("which token (token=…)"));
    assert_eq!(error(&format!("pkcs11:token=x&y=1{rest}&pin-value=1234")), UriError::PinValue);
    assert_eq!(error(&format!("pkcs11:object=x{rest}")), UriError::Unknown("object".into()));
    assert_eq!(error(&format!("pkcs11:token=x;token=y{rest}")), UriError::Twice("token".into()));
    assert_eq!(error(&format!("pkcs11:token=%2{rest}")), UriError::Encoding("%2".into()));
    assert_eq!(error(&format!("pkcs11:token=x;slot-id=y{rest}")), UriError::SlotId("y".into()));
    assert!(matches!(error("pkcs11:token=x?module-path=m.so&pin-source=/p"), UriError::Path { .. }));
    assert!(matches!(error("pkcs11:token=x?module-path=/m.so"), UriError::Lacks(_)));
}

#[test]
fn signatures_of_a_token_are_written_as_der() {
    let mut fixed = [0; 64];
    (fixed[31], fixed[63]) = (5, 0x80);
    assert_eq!(der_signature(&fixed).unwrap(), [0x30, 7, 2, 1, 5, 2, 2, 0, 0x80]);
    assert_eq!(der_signature(&[0; 64]), None);
    assert_eq!(der_signature(&[1; 63]), None);
}
