//! Trace context: whatever a request says, what goes on is well-formed, and the next proxy reads in it what this one
//! wrote, in each of its forms.

use http::header::{HeaderMap, HeaderName, HeaderValue};

use crate::trace::{B3, Sampling, TRACEPARENT, TRACESTATE, Trace};

/// `name: value` in each line, with names of trace headers by their number.
fn headers(bytes: &[u8]) -> HeaderMap {
    const NAMES: [&str; 8] = [
        "traceparent",
        "tracestate",
        "b3",
        "x-b3-traceid",
        "x-b3-spanid",
        "x-b3-parentspanid",
        "x-b3-sampled",
        "x-b3-flags",
    ];
    let mut headers = HeaderMap::new();
    for line in bytes.split(|byte| *byte == b'\n').take(32) {
        let [number, value @ ..] = line else { continue };
        let name = NAMES[usize::from(*number) % NAMES.len()];
        if let Ok(value) = HeaderValue::from_bytes(value) {
            headers.append(HeaderName::from_static(name), value);
        }
    }
    headers
}

/// As W3C Trace Context has it, version 00; and later ones, which may go on after a dash.
fn is_traceparent(value: &HeaderValue) -> bool {
    let Ok(text) = value.to_str() else { return false };
    let parts: Vec<&str> = text.split('-').collect();
    let [version, trace, span, flags, rest @ ..] = &parts[..] else { return false };
    let hex = |part: &str, length| {
        part.len() == length && part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    hex(version, 2)
        && *version != "ff"
        && (*version != "00" || rest.is_empty())
        && hex(trace, 32)
        && hex(span, 16)
        && hex(flags, 2)
        && [trace, span].iter().all(|part| part.bytes().any(|b| b != b'0'))
}

pub fn run(bytes: &[u8]) -> bool {
    let came = headers(bytes);
    let mut number = 0;
    let mut random = || {
        number += 1;
        number
    };
    // Of a proxy that records nothing: what it reads is what the next one reads.
    let passing = Trace::begin(&came, None, &mut random);
    let mut passed = came.clone();
    passing.put(&mut passed);
    let next = Trace::begin(&passed, None, &mut random);
    assert_eq!(next.ids(), passing.ids(), "{came:?} became {passed:?}");
    assert!(passed.get_all(TRACEPARENT).iter().all(is_traceparent), "{came:?} became {passed:?}");
    assert!(passed.len() <= came.len());
    // Of one that does: whichever form the next one reads, it reads our span.
    let own = Trace::begin(&came, Some(Sampling::ALL), &mut random);
    let span = *own.span().expect("spans are recorded");
    let mut written = came.clone();
    own.put(&mut written);
    assert!(written.get_all(TRACEPARENT).iter().count() == 1 && is_traceparent(&written[TRACEPARENT]));
    let read = |headers: &HeaderMap| Trace::begin(headers, None, || 1).ids();
    assert_eq!(read(&written), (span.trace, span.id), "{came:?} became {written:?}");
    written.remove(TRACEPARENT);
    written.remove(TRACESTATE);
    for _ in 0..2 {
        if !written.is_empty() {
            assert_eq!(read(&written), (span.trace, span.id), "{came:?} became {written:?}");
        }
        written.remove(B3);
    }
    passing != Trace::default() && !passed.is_empty()
}

pub fn seeds() -> Vec<Vec<u8>> {
    crate::texts(&[
        "\x000-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "\x0000-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\n\x01a=1,b@c=2",
        "\x00cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-later",
        "\x00cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-late\u{e9}r",
        "\x0200f067aa0ba902b7-00f067aa0ba902b7-d-05e3ac9a4f6e3b90",
        "\x02480bd7e2f0ef8bd2a5d3f5c5d3f5c5d3-00f067aa0ba902b7-0",
        "\x020",
        "\x03480bd7e2f0ef8bd2\n\x0400f067aa0ba902b7\n\x0505e3ac9a4f6e3b90\n\x061",
        "\x03480bd7e2f0ef8bd2\n\x0400f067aa0ba902b7\n\x071",
        "\x060",
        "\x0000-00000000000000000000000000000000-00f067aa0ba902b7-01\n\x060",
    ])
}
