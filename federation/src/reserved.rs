//! Headers that are the mesh's own, in every spelling: nobody outside may say them, and no policy may write them.

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
