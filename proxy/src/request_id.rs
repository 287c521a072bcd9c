//! Request IDs: what one request is called in the logs and spans of everybody on its way (`x-request-id`). Pure.
//!
//! The first proxy of the mesh makes one where none came; the others, and the app, get that. One that is no plain text within
//! bounds is replaced. What a client outside says is not taken at all: an ingress gateway removes it first.

use http::header::{HeaderMap, HeaderName, HeaderValue};
use serde::{Serialize, Serializer};

pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longest one that is passed on.
const MAX_BYTES: usize = 128;
/// A UUID's text.
const UUID_BYTES: usize = 36;

/// Empty where there is none, or where it is the caller's and nobody here tells of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestId {
    value: Option<HeaderValue>,
    /// It is ours, and the request does not have it yet.
    made: bool,
}

impl RequestId {
    /// The one that a request came with, copied if somebody will be `told`; else a new one.
    pub fn begin(headers: &HeaderMap, told: bool, mut random: impl FnMut() -> u64) -> Self {
        match came(headers) {
            Some(came) => Self { value: told.then(|| copied(came)), made: false },
            None => Self { value: Some(new([random(), random()])), made: true },
        }
    }

    /// Has the request carry it on.
    pub fn put(&self, headers: &mut HeaderMap) {
        if let (Some(value), true) = (&self.value, self.made) {
            headers.insert(REQUEST_ID, value.clone());
        }
    }

    /// What the next one is told in place of what came.
    pub fn made(&self) -> Option<&str> {
        self.made.then(|| self.as_str())
    }

    pub fn as_str(&self) -> &str {
        self.value.as_ref().and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

impl Serialize for RequestId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// The one, if it is one and well-formed: visible ASCII.
fn came(headers: &HeaderMap) -> Option<&HeaderValue> {
    let mut all = headers.get_all(REQUEST_ID).iter();
    let (one, None) = (all.next()?, all.next()) else { return None };
    let bytes = one.as_bytes();
    ((1..=MAX_BYTES).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)).then_some(one)
}

/// Apart from what it came in: a record may live long, and would keep all that was read with it.
fn copied(came: &HeaderValue) -> HeaderValue {
    HeaderValue::from_bytes(came.as_bytes()).expect("what was a value is one")
}

/// A UUID of version 4, in one allocation that all copies share.
fn new(random: [u64; 2]) -> HeaderValue {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&random[0].to_be_bytes());
    bytes[8..].copy_from_slice(&random[1].to_be_bytes());
    let mut text = [0; UUID_BYTES];
    uuid::Builder::from_random_bytes(bytes).into_uuid().as_hyphenated().encode_lower(&mut text);
    let text = bytes::Bytes::from_owner(text);
    HeaderValue::from_maybe_shared(text).expect("hex digits and hyphens are visible ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(values: &[&[u8]]) -> HeaderMap {
        values.iter().map(|value| (REQUEST_ID, HeaderValue::from_bytes(value).unwrap())).collect()
    }

    fn begun(values: &[&[u8]]) -> (String, HeaderMap) {
        let mut headers = headers(values);
        let came = headers.clone();
        let id = RequestId::begin(&headers, true, || 0x0123_4567_89ab_cdef);
        id.put(&mut headers);
        assert_eq!(id.made().is_some(), came != headers);
        (id.as_str().to_owned(), headers)
    }

    const MADE: &str = "01234567-89ab-4def-8123-456789abcdef";

    #[test]
    fn what_came_well_formed_is_kept_as_it_is() {
        let longest = [b'x'; MAX_BYTES];
        for kept in [&b"r-1"[..], b"Root=1-67891233-abcdef012345678912345678", &longest] {
            let (id, after) = begun(&[kept]);
            assert_eq!((id.as_bytes(), after), (kept, headers(&[kept])));
        }
        let silent = RequestId::begin(&headers(&[b"r-1"]), false, || panic!("it has one"));
        assert_eq!(silent, RequestId::default(), "nothing is copied for nobody");
    }

    #[test]
    fn what_is_missing_twice_there_too_long_or_no_plain_text_is_made_anew() {
        let too_long = [b'x'; MAX_BYTES + 1];
        let bad: [&[&[u8]]; 6] =
            [&[], &[b""], &[b"a", b"a"], &[&too_long], &[b"two words"], &["\u{e9}".as_bytes()]];
        for values in bad {
            let (id, after) = begun(values);
            assert_eq!((id.as_str(), after), (MADE, headers(&[MADE.as_bytes()])), "{values:?}");
        }
    }
}
