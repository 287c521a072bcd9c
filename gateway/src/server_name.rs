//! The server name of a TLS connection that is not ours to decrypt: read from its ClientHello, bounded.
//!
//! Pure: bytes in, verdict out. Parsing is rustls's; this file only feeds it and bounds what it is fed.

use std::io;

use hanse_federation::sni::Sni;

/// Largest ClientHello that is looked at (post-quantum key shares make them about 1.8 KiB).
pub const MAX_CLIENT_HELLO_BYTES: usize = 16 * 1024;

/// What is known after some bytes of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The ClientHello is not complete yet.
    More,
    Name(Sni),
    Refused(Refused),
}

/// Why a connection is closed without going anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("the ClientHello is larger than 16 KiB")]
    TooLarge,
    #[error("this is not TLS")]
    NotTls,
    #[error("the ClientHello names no server")]
    NoName,
    #[error("the server name is not one of the mesh's")]
    ForeignName,
}

/// Reads the server name from the first bytes of a connection. Called again with more bytes after `More`.
pub fn read(bytes: &[u8]) -> Verdict {
    if bytes.len() > MAX_CLIENT_HELLO_BYTES {
        return Verdict::Refused(Refused::TooLarge);
    }
    let mut acceptor = rustls::server::Acceptor::default();
    let mut left = bytes;
    while !left.is_empty() {
        match acceptor.read_tls(&mut left as &mut dyn io::Read) {
            Ok(0) => break,
            Ok(_) => {}
            Err(_) => return Verdict::Refused(Refused::NotTls),
        }
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => return name(accepted.client_hello().server_name()),
            Err(_) => return Verdict::Refused(Refused::NotTls),
        }
    }
    Verdict::More
}

fn name(server_name: Option<&str>) -> Verdict {
    match server_name.map(Sni::parse) {
        None => Verdict::Refused(Refused::NoName),
        Some(None) => Verdict::Refused(Refused::ForeignName),
        Some(Some(sni)) => Verdict::Name(sni),
    }
}

#[cfg(test)]
mod tests;
