//! The server name of a TLS connection that is not ours to decrypt: read from its ClientHello, bounded.
//!
//! Pure: bytes in, verdict out. Parsing is rustls's; this file only feeds it and bounds what it is fed. What a name may
//! be is for who asks: the gateway knows the mesh's, a TLSRoute its own.

use std::io;

/// Largest ClientHello that is looked at (post-quantum key shares make them about 1.8 KiB).
pub const MAX_CLIENT_HELLO_BYTES: usize = 16 * 1024;

/// What is known after some bytes of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hello {
    /// The ClientHello is not complete yet.
    More,
    Name(String),
    Refused(NoHello),
}

/// Why there is no name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoHello {
    #[error("the ClientHello is larger than 16 KiB")]
    TooLarge,
    #[error("this is not TLS")]
    NotTls,
    #[error("the ClientHello names no server")]
    NoName,
}

/// Reads the server name from the first bytes of a connection. Called again with more bytes after `More`.
pub fn read(bytes: &[u8]) -> Hello {
    if bytes.len() > MAX_CLIENT_HELLO_BYTES {
        return Hello::Refused(NoHello::TooLarge);
    }
    let mut acceptor = rustls::server::Acceptor::default();
    let mut left = bytes;
    while !left.is_empty() {
        match acceptor.read_tls(&mut left as &mut dyn io::Read) {
            Ok(0) => break,
            Ok(_) => {}
            Err(_) => return Hello::Refused(NoHello::NotTls),
        }
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => {
                let name = accepted.client_hello().server_name().map(str::to_owned);
                return name.map_or(Hello::Refused(NoHello::NoName), Hello::Name);
            }
            Err(_) => return Hello::Refused(NoHello::NotTls),
        }
    }
    Hello::More
}
