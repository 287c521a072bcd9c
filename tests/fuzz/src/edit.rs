//! An edit of something that is valid: the search gets behind the door that a signature is, where random bytes never get.

/// The first two bytes say where, the third how much goes, the rest comes in its place.
pub fn edited(valid: &[u8], edit: &[u8]) -> Vec<u8> {
    let &[a, b, gone, ref new @ ..] = edit else { return edit.to_vec() };
    let at = usize::from(u16::from_be_bytes([a, b])) % (valid.len() + 1);
    let end = (at + usize::from(gone)).min(valid.len());
    [&valid[..at], new, &valid[end..]].concat()
}

/// The edit that changes nothing, one that cuts, one that puts something in, and one that swaps a byte.
pub fn seeds() -> Vec<Vec<u8>> {
    vec![vec![0, 0, 0], vec![0, 40, 9], vec![0, 12, 0, b'a', b'.'], vec![0, 20, 1, 0x30]]
}
