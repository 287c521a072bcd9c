//! ClientHello: what is said of a beginning holds for the whole, and the name is the one that a plain reader finds.

use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use crate::hex;
use crate::server_name::{Hello, MAX_CLIENT_HELLO_BYTES, NoHello, read};

pub fn run(bytes: &[u8]) -> bool {
    let whole = read(bytes);
    assert_eq!(bytes.len() > MAX_CLIENT_HELLO_BYTES, whole == Hello::Refused(NoHello::TooLarge));
    if whole == Hello::Refused(NoHello::TooLarge) {
        return false;
    }
    let mut cuts = vec![bytes.len() / 3, bytes.len() / 2, bytes.len().saturating_sub(1)];
    cuts.extend(0..bytes.len().min(8));
    for end in cuts {
        let begun = read(&bytes[..end]);
        assert!(begun == Hello::More || begun == whole, "{end}: {begun:?}, then {whole:?}: {}", hex(bytes));
    }
    let Hello::Name(name) = &whole else { return false };
    assert!(name.len() <= 253 && name.is_ascii(), "{name:?}");
    if let Some(plain) = plain_name(bytes) {
        assert!(plain.eq_ignore_ascii_case(name.as_bytes()), "{name:?} of {}", hex(bytes));
    }
    true
}

/// The host name of a ClientHello that is all in one record (RFC 8446 §4.1.2, RFC 6066 §3); `None`: it is not.
fn plain_name(bytes: &[u8]) -> Option<&[u8]> {
    let [0x16, _, _, a, b, record @ ..] = bytes else { return None };
    let record = record.get(..usize::from(u16::from_be_bytes([*a, *b])))?;
    let [1, a, b, c, hello @ ..] = record else { return None };
    let hello = hello.get(..usize::try_from(u32::from_be_bytes([0, *a, *b, *c])).ok()?)?;
    // Version and random.
    let mut rest = hello.get(34..)?;
    let _session = vector(&mut rest, 1)?;
    let _suites = vector(&mut rest, 2)?;
    let _compression = vector(&mut rest, 1)?;
    let mut extensions = vector(&mut rest, 2)?;
    loop {
        let [a, b, after @ ..] = extensions else { return None };
        extensions = after;
        let mut extension = vector(&mut extensions, 2)?;
        if [*a, *b] == [0, 0] {
            let mut names = vector(&mut extension, 2)?;
            let [0, after @ ..] = names else { return None };
            names = after;
            return vector(&mut names, 2);
        }
    }
}

/// What a length of so many bytes says, taken off the front.
fn vector<'b>(rest: &mut &'b [u8], width: usize) -> Option<&'b [u8]> {
    let (length, after) = rest.split_at_checked(width)?;
    let length = length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
    let (taken, after) = after.split_at_checked(length)?;
    *rest = after;
    Some(taken)
}

pub fn seeds() -> Vec<Vec<u8>> {
    let hello = |name: &str| {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        // It never gets as far as to see a certificate.
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions that there are")
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let name = ServerName::try_from(name.to_owned()).expect("a constant");
        let mut connection =
            ClientConnection::new(Arc::new(config), name).expect("a configuration that works");
        let mut bytes = Vec::new();
        connection.write_tls(&mut bytes).expect("a vector takes all");
        bytes
    };
    let new = hello("gateway-1.gateway.east.hanse");
    // As some clients do: the handshake in two records.
    let (front, back) = new[5..].split_at(100);
    let record = |part: &[u8]| {
        let length = u16::try_from(part.len()).expect("a short one").to_be_bytes();
        [&[0x16, 3, 1], &length[..], part].concat()
    };
    let split = [record(front), record(back)].concat();
    vec![new, split, hello("192.0.2.7"), b"GET / HTTP/1.1\r\n\r\n".to_vec()]
}
