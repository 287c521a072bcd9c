//! The path as policies read it: what they take is read alike by every server, however often it is normalised.

use hanse_federation::policy::access::plain_path;

fn decoded(path: &str) -> Vec<u8> {
    let bytes = path.as_bytes();
    let (mut out, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let hex = bytes.get(at + 1..at + 3).and_then(|hex| std::str::from_utf8(hex).ok());
        let byte = hex.filter(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
        match byte.and_then(|hex| u8::from_str_radix(hex, 16).ok()).filter(|_| bytes[at] == b'%') {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    out
}

/// RFC 3986 §5.2.4, after `;` and what follows has gone from each segment.
fn without_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    for segment in path.split('/').skip(1) {
        match segment.split(';').next().unwrap_or_default() {
            "." => {}
            ".." => drop(kept.pop()),
            segment => kept.push(segment),
        }
    }
    format!("/{}", kept.join("/"))
}

pub fn run(bytes: &[u8]) -> bool {
    let Ok(path) = std::str::from_utf8(bytes) else { return false };
    if plain_path(path).is_err() {
        return false;
    }
    let once = String::from_utf8(decoded(path)).expect("what is plain decodes to text");
    assert!(once.starts_with('/'));
    assert_eq!(decoded(&once), once.as_bytes(), "decoding again changes nothing: {path:?}");
    assert!(!once.chars().any(|c| matches!(c, '\\' | '\0'..='\x1f' | '\x7f')), "{path:?}");
    assert_eq!(
        once.matches('/').count(),
        path.matches('/').count(),
        "no separator comes out of it: {path:?}"
    );
    // Parameters may go; no segment goes with them.
    let parameters_gone: Vec<_> = once.split('/').map(|s| s.split(';').next().unwrap_or_default()).collect();
    assert_eq!(without_dots(&once), parameters_gone.join("/"), "{path:?}");
    true
}

pub fn seeds() -> Vec<Vec<u8>> {
    crate::texts(&[
        "/shop/reviews/7",
        "/a%20b/caf%C3%A9;v=1/",
        "/a//b",
        "/a/%2e%2e/b",
        "/a/..;x/b",
        "/a%2fb",
        "/a%252fb",
        "/a\\b",
        "/%c0%ae",
        "*",
    ])
}
