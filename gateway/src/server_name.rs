//! The server name of a TLS connection that is not ours to decrypt: which of the mesh's it is. Reading is `hanse_proxy`'s.

use hanse_federation::sni::Sni;
pub use hanse_proxy::server_name::MAX_CLIENT_HELLO_BYTES;
use hanse_proxy::server_name::{self, Hello, NoHello};

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
    #[error(transparent)]
    NoHello(#[from] NoHello),
    #[error("the server name is not one of the mesh's")]
    ForeignName,
}

/// Reads the server name from the first bytes of a connection. Called again with more bytes after `More`.
pub fn read(bytes: &[u8]) -> Verdict {
    match server_name::read(bytes) {
        Hello::More => Verdict::More,
        Hello::Refused(refused) => Verdict::Refused(refused.into()),
        Hello::Name(name) => Sni::parse(&name).map_or(Verdict::Refused(Refused::ForeignName), Verdict::Name),
    }
}

#[cfg(test)]
mod tests;
