//! Tests of `server_name`: ClientHellos made by rustls, whole, byte by byte, and spoiled.

use std::sync::Arc;

use hanse_federation::sni::Sni;
use rustls::pki_types::ServerName;

use super::{MAX_CLIENT_HELLO_BYTES, NoHello, Refused, Verdict, read};

fn client_hello(name: &str) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes).unwrap();
    bytes
}

fn gateway() -> Sni {
    Sni::Gateway { gateway: "gateway-1".parse().unwrap(), cluster: "west".parse().unwrap() }
}

#[test]
fn a_name_of_the_mesh_is_read_whole_or_byte_by_byte() {
    let hello = client_hello(&gateway().to_name().unwrap());
    assert_eq!(read(&hello), Verdict::Name(gateway()));
    for cut in 0..hello.len() {
        assert_eq!(read(&hello[..cut]), Verdict::More, "cut at {cut}");
    }
    let mut with_more = hello.clone();
    with_more.extend_from_slice(b"early bytes of what follows");
    assert_eq!(read(&with_more), Verdict::Name(gateway()));
}

#[test]
fn foreign_names_and_addresses_are_refused() {
    assert_eq!(read(&client_hello("www.example.com")), Verdict::Refused(Refused::ForeignName));
    assert_eq!(read(&client_hello("127.0.0.1")), Verdict::Refused(NoHello::NoName.into()));
}

#[test]
fn what_is_not_tls_is_refused() {
    assert_eq!(read(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"), Verdict::Refused(NoHello::NotTls.into()));
    let huge = vec![0x16; MAX_CLIENT_HELLO_BYTES + 1];
    assert_eq!(read(&huge), Verdict::Refused(NoHello::TooLarge.into()));
}

/// What is passed on for its name must not come to a port that takes plain text as that.
#[test]
fn no_name_is_read_in_what_a_permissive_port_takes_for_plain_text() {
    use hanse_proxy::plain::{Begins, begins};
    let hello = client_hello(&gateway().to_name().unwrap());
    let mut read_so = 0;
    for at in 0..hanse_proxy::plain::LOOKED_AT {
        for byte in 0..=u8::MAX {
            let mut other = hello.clone();
            other[at] = byte;
            if let Verdict::Name(_) = read(&other) {
                read_so += 1;
                assert_eq!(begins(&other), Begins::Tls, "{byte:#x} at {at}");
            }
        }
    }
    assert!(read_so > 256, "the version of the record is nobody's to judge: {read_so}");
}
