//! How a State is written into a snapshot: one line with format and checksum, then JSON.
//!
//! `hanse-state 1 <sha256 of the JSON, hex>\n{"view":…,"private":…}`. A newer format gets a new number, and an
//! older node that meets it stops instead of guessing.

use bytes::Bytes;

use super::State;

/// The format that is written, and the only one that is read so far.
pub const FORMAT: u32 = 1;
const MAGIC: &str = "hanse-state";
/// Longest first line.
const MAX_HEADER_BYTES: usize = 128;
/// SHA-256 in hex.
const DIGEST_DIGITS: usize = 64;

/// Why bytes are not a State.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    #[error("it does not start like a Hanse state")]
    NotAState,
    #[error("it has format {0}, this version reads {FORMAT}")]
    Format(u32),
    #[error("its checksum does not fit: it is damaged or cut off")]
    Checksum,
    #[error("it cannot be read: {0}")]
    Json(String),
}

/// Writes a State.
pub fn encode(state: &State) -> Bytes {
    let header = |digest: &str| format!("{MAGIC} {FORMAT} {digest}\n").into_bytes();
    // The room for the header first: a large State is not copied to put one before it.
    let mut bytes = header(&"0".repeat(DIGEST_DIGITS));
    let start = bytes.len();
    serde_json::to_writer(&mut bytes, state).expect("a State has string keys and no failing serialisers");
    let header = header(&digest(&bytes[start..]));
    bytes[..start].copy_from_slice(&header);
    bytes.shrink_to_fit();
    bytes.into()
}

/// Reads a State, and refuses one that is not exactly what was written.
pub fn decode(bytes: &[u8]) -> Result<State, SnapshotError> {
    let json = body(bytes)?;
    serde_json::from_slice(json).map_err(|e| SnapshotError::Json(e.to_string()))
}

/// Whether it is whole and can be read: before anyone relies on it.
pub fn check(bytes: &[u8]) -> Result<(), SnapshotError> {
    decode(bytes).map(drop)
}

fn body(bytes: &[u8]) -> Result<&[u8], SnapshotError> {
    let head = &bytes[..bytes.len().min(MAX_HEADER_BYTES)];
    let end = head.iter().position(|b| *b == b'\n').ok_or(SnapshotError::NotAState)?;
    let line = std::str::from_utf8(&head[..end]).map_err(|_| SnapshotError::NotAState)?;
    let mut words = line.split(' ');
    if words.next() != Some(MAGIC) {
        return Err(SnapshotError::NotAState);
    }
    let format = words.next().and_then(|w| w.parse().ok()).ok_or(SnapshotError::NotAState)?;
    if format != FORMAT {
        return Err(SnapshotError::Format(format));
    }
    let json = &bytes[end + 1..];
    match words.next() == Some(digest(json).as_str()) {
        true => Ok(json),
        false => Err(SnapshotError::Checksum),
    }
}

fn digest(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    let mut hex = String::with_capacity(DIGEST_DIGITS);
    for byte in digest.as_ref() {
        write!(hex, "{byte:02x}").expect("writing to a String does not fail");
    }
    hex
}
