//! Headers that no policy may write: the mesh's own, in every spelling, which nobody outside may say either, and those
//! that a message is read by.

/// Headers that decide where a message ends, or for whom it is: never a policy's to change (RFC 9110 §7.6.1).
pub const FRAMING: [&str; 9] = [
    "connection",
    "content-length",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

const CLIENT_CERT: &str = "x-forwarded-client-cert";
const PREFIX: &str = "x-hanse-";

/// Whether two names are one to some server: letter case and punctuation are gone.
pub fn same_spelling(one: &str, other: &str) -> bool {
    let fold = |b: u8| if b.is_ascii_alphanumeric() { b.to_ascii_lowercase() } else { b'-' };
    one.len() == other.len() && one.bytes().zip(other.bytes()).all(|(a, b)| fold(a) == fold(b))
}

/// Whether a header belongs to the mesh, in any spelling that some server folds into the same name: letter case, and
/// any punctuation where we write a hyphen (CGI and its heirs read `_`, some read `.` too).
pub fn is_reserved(name: &str) -> bool {
    let name = name.as_bytes();
    // Nearly every header of a request ends its life here.
    if !matches!(name.first(), Some(b'x' | b'X')) || name.len() < PREFIX.len() {
        return false;
    }
    let folds_to = |wanted: &str| {
        let fold = |b: &u8| if b.is_ascii_alphanumeric() { b.to_ascii_lowercase() } else { b'-' };
        name.iter().zip(wanted.as_bytes()).all(|(have, want)| fold(have) == *want)
    };
    folds_to(PREFIX) || (name.len() == CLIENT_CERT.len() && folds_to(CLIENT_CERT))
}
