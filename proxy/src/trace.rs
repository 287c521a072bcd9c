//! Trace context: W3C Trace Context (level 1) and B3, single and in several headers; read from a request and written
//! into it. Pure.
//!
//! `traceparent` counts before `b3`, and that before `X-B3-*`. A proxy that records spans puts its own in its caller's
//! place, as `traceparent` and in the form of B3 that came in; one that does not passes on what it got, since a parent
//! that nobody ever exports would tear the trace. What is malformed goes no further either way.

use std::fmt;
use std::str::FromStr;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use serde::{Serialize, Serializer};

pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
pub const B3: HeaderName = HeaderName::from_static("b3");
const B3_PREFIX: &str = "x-b3-";
const B3_TRACE: HeaderName = HeaderName::from_static("x-b3-traceid");
const B3_SPAN: HeaderName = HeaderName::from_static("x-b3-spanid");
const B3_PARENT: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const B3_SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const B3_FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");

/// Length of a `traceparent` of version 00.
const TRACEPARENT_BYTES: usize = 55;
/// What a later version may write after what is known of it.
const MAX_LATER_BYTES: usize = 256;
/// Bounds of a `tracestate`, all its headers together; what the specification asks to be passed on at least.
const MAX_STATE_BYTES: usize = 512;
const MAX_STATE_MEMBERS: usize = 32;
const MAX_STATE_KEY: usize = 256;
const MAX_STATE_VALUE: usize = 256;

/// Never all zero, but in place of none.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct TraceId(pub [u8; 16]);

/// Never all zero, but in place of none.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct SpanId(pub [u8; 8]);

/// Which traces that begin here are recorded: a share of the trace IDs, so that whoever decides later decides the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampling(u64);

/// One proxy's part of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub trace: TraceId,
    pub id: SpanId,
    /// Whose part this is; zero: nobody's.
    pub parent: SpanId,
    /// It is to be recorded.
    pub sampled: bool,
    debug: bool,
}

/// What a request has of a trace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    came: Option<Came>,
    /// Well-formed, malformed.
    good: Kinds,
    bad: Kinds,
    own: Option<Span>,
}

/// What the caller said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Came {
    trace: TraceId,
    span: SpanId,
    sampled: Option<bool>,
    debug: bool,
}

/// Headers that a trace is told by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Kinds {
    parent: bool,
    state: bool,
    single: bool,
    several: bool,
}

impl Trace {
    /// Reads a request's headers. With `sampling`, spans are recorded here, and the request gets one.
    pub fn begin(headers: &HeaderMap, sampling: Option<Sampling>, mut random: impl FnMut() -> u64) -> Self {
        let mut trace = Self::read(headers);
        let Some(sampling) = sampling else { return trace };
        let mut span_id = || loop {
            let id = random();
            if id != 0 {
                return id.to_be_bytes();
            }
        };
        let id = SpanId(span_id());
        // An ID of its own where only a decision came.
        let came = trace.came.unwrap_or_default();
        let trace_id = if came.trace == TraceId::default() {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&span_id());
            bytes[8..].copy_from_slice(&span_id());
            TraceId(bytes)
        } else {
            came.trace
        };
        let sampled = came.sampled.unwrap_or_else(|| sampling.takes(&trace_id));
        trace.own = Some(Span { trace: trace_id, id, parent: came.span, sampled, debug: came.debug });
        trace
    }

    fn read(headers: &HeaderMap) -> Self {
        let there = Kinds::of(headers);
        let mut trace = Self { bad: there, ..Self::default() };
        if there == Kinds::default() {
            return trace;
        }
        if there.parent {
            trace.came = one(headers, &TRACEPARENT).and_then(traceparent);
            trace.good.parent = trace.came.is_some();
            trace.good.state = trace.good.parent && there.state && is_state_good(headers);
        }
        if there.single {
            let came = one(headers, &B3).and_then(b3_single);
            trace.good.single = came.is_some();
            trace.came = trace.came.or(came);
        }
        if there.several {
            let came = b3_several(headers);
            trace.good.several = came.is_some();
            trace.came = trace.came.or(came);
        }
        trace.bad = Kinds {
            parent: there.parent && !trace.good.parent,
            state: there.state && !trace.good.state,
            single: there.single && !trace.good.single,
            several: there.several && !trace.good.several,
        };
        trace
    }

    /// Writes it into the headers of the request that goes on.
    pub fn put(&self, headers: &mut HeaderMap) {
        self.bad.remove(headers);
        let Some(own) = &self.own else { return };
        headers.insert(TRACEPARENT, own.traceparent());
        if self.good.single {
            headers.insert(B3, own.b3());
        }
        if self.good.several {
            Kinds { several: true, ..Kinds::default() }.remove(headers);
            headers.insert(B3_TRACE, own.b3_trace());
            headers.insert(B3_SPAN, visible(own.id.hex().as_bytes()));
            if own.parent != SpanId::default() {
                headers.insert(B3_PARENT, visible(own.parent.hex().as_bytes()));
            }
            if own.debug {
                headers.insert(B3_FLAGS, HeaderValue::from_static("1"));
            } else {
                let sampled = HeaderValue::from_static(if own.sampled { "1" } else { "0" });
                headers.insert(B3_SAMPLED, sampled);
            }
        }
    }

    /// Ours, where spans are recorded here.
    pub fn span(&self) -> Option<&Span> {
        self.own.as_ref()
    }

    /// By which the request is found in a trace: our span where there is one, else our caller's. Zero: there is no trace.
    pub fn ids(&self) -> (TraceId, SpanId) {
        match (&self.own, &self.came) {
            (Some(own), _) => (own.trace, own.id),
            (None, Some(came)) => (came.trace, came.span),
            (None, None) => Default::default(),
        }
    }
}

impl Kinds {
    /// One pass over the names: a request that has none of them has to cost next to nothing.
    fn of(headers: &HeaderMap) -> Self {
        let mut there = Self::default();
        for name in headers.keys() {
            match name.as_str() {
                "traceparent" => there.parent = true,
                "tracestate" => there.state = true,
                "b3" => there.single = true,
                name if name.starts_with(B3_PREFIX) => there.several = true,
                _ => {}
            }
        }
        there
    }

    fn remove(self, headers: &mut HeaderMap) {
        if self.parent {
            headers.remove(TRACEPARENT);
        }
        if self.state {
            headers.remove(TRACESTATE);
        }
        if self.single {
            headers.remove(B3);
        }
        if self.several {
            for name in [B3_TRACE, B3_SPAN, B3_PARENT, B3_SAMPLED, B3_FLAGS] {
                headers.remove(name);
            }
        }
    }
}

impl Span {
    fn traceparent(&self) -> HeaderValue {
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        text[3..35].copy_from_slice(self.trace.hex().as_bytes());
        text[36..52].copy_from_slice(self.id.hex().as_bytes());
        text[54] = if self.sampled { b'1' } else { b'0' };
        visible(&text)
    }

    /// `{trace}-{span}-{sampled}-{parent}`, the last only where there is one.
    fn b3(&self) -> HeaderValue {
        let state = if self.debug {
            'd'
        } else if self.sampled {
            '1'
        } else {
            '0'
        };
        let mut text = format!("{}-{}-{state}", self.trace.short(), self.id);
        if self.parent != SpanId::default() {
            text.push('-');
            text.push_str(self.parent.hex().as_str());
        }
        visible(text.as_bytes())
    }

    fn b3_trace(&self) -> HeaderValue {
        visible(self.trace.short().as_bytes())
    }
}

impl Sampling {
    pub const ALL: Self = Self(u64::MAX);

    fn takes(self, trace: &TraceId) -> bool {
        let low = u64::from_be_bytes(trace.0[8..].try_into().expect("the second half of sixteen is eight"));
        self == Self::ALL || low < self.0
    }
}

impl FromStr for Sampling {
    type Err = String;

    /// Percent: `1`, `0.5`, `100`.
    fn from_str(text: &str) -> Result<Self, String> {
        let percent: f64 = text.parse().map_err(|_| "is not a number of percent")?;
        if !(0.0..=100.0).contains(&percent) {
            return Err("is not within 0 and 100 percent".to_owned());
        }
        // A float becomes the nearest integer in range, so that all is all.
        Ok(Self((percent / 100.0 * u64::MAX as f64) as u64))
    }
}

/// Up to 32 lower-case hex digits, without an allocation.
#[derive(Clone, Copy)]
struct Hex {
    digits: [u8; 32],
    length: usize,
}

impl Hex {
    fn of(bytes: &[u8]) -> Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut hex = Self { digits: [0; 32], length: bytes.len() * 2 };
        for (pair, byte) in hex.digits.chunks_exact_mut(2).zip(bytes) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 15)];
        }
        hex
    }

    fn as_bytes(&self) -> &[u8] {
        &self.digits[..self.length]
    }

    fn as_str(&self) -> &str {
        std::str::from_utf8(self.as_bytes()).expect("hex digits are ASCII")
    }
}

impl TraceId {
    fn hex(&self) -> Hex {
        Hex::of(&self.0)
    }

    /// As B3 writes it: an ID of 64 bits stays one.
    fn short(&self) -> String {
        let hex = self.hex();
        let text = hex.as_str();
        text.strip_prefix("0000000000000000").unwrap_or(text).to_owned()
    }
}

impl SpanId {
    fn hex(&self) -> Hex {
        Hex::of(&self.0)
    }
}

macro_rules! as_hex {
    ($id:ty) => {
        impl fmt::Display for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.hex().as_str())
            }
        }

        impl fmt::Debug for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        /// Empty in place of none.
        impl Serialize for $id {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let hex = self.hex();
                serializer.serialize_str(if *self == Self::default() { "" } else { hex.as_str() })
            }
        }
    };
}

as_hex!(TraceId);
as_hex!(SpanId);

fn visible(bytes: &[u8]) -> HeaderValue {
    HeaderValue::from_bytes(bytes).expect("hex digits and hyphens are visible ASCII")
}

/// The header's value, unless it is there twice.
fn one<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h [u8]> {
    let mut values = headers.get_all(name).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    Some(value.as_bytes())
}

/// Lower-case hex digits, exactly as many as the bytes take; not all zero.
fn id<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    if text.len() != N * 2 {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    bytes.iter().any(|byte| *byte != 0).then_some(bytes)
}

fn digit(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

/// `00-<32 hex>-<16 hex>-<2 hex>`; later versions may go on after another hyphen (W3C Trace Context §3.2.2, §3.2.4).
fn traceparent(text: &[u8]) -> Option<Came> {
    let (known, rest) = text.split_at_checked(TRACEPARENT_BYTES)?;
    let (b'-', b'-', b'-') = (known[2], known[35], known[52]) else { return None };
    let version = digit(known[0])? << 4 | digit(known[1])?;
    let fits = match version {
        0 => rest.is_empty(),
        0xff => false,
        // It is passed on as it is, so it has to be text.
        _ => rest.is_empty() || rest[0] == b'-' && rest.len() <= MAX_LATER_BYTES && is_visible(rest),
    };
    let flags = digit(known[53])? << 4 | digit(known[54])?;
    let came = Came {
        trace: TraceId(id(&known[3..35])?),
        span: SpanId(id(&known[36..52])?),
        sampled: Some(flags & 1 == 1),
        debug: false,
    };
    fits.then_some(came)
}

fn is_visible(text: &[u8]) -> bool {
    text.iter().all(u8::is_ascii_graphic)
}

/// Whether a `tracestate` is well-formed and within bounds (W3C Trace Context §3.3.1).
fn is_state_good(headers: &HeaderMap) -> bool {
    let values = || headers.get_all(TRACESTATE).iter().map(HeaderValue::as_bytes);
    // Several headers are one list, joined by commas.
    if values().map(|value| value.len() + 1).sum::<usize>() > MAX_STATE_BYTES + 1 {
        return false;
    }
    let mut keys = [&[][..]; MAX_STATE_MEMBERS];
    let mut members = 0;
    for member in values().flat_map(|value| value.split(|byte| *byte == b',')) {
        let member = member.trim_ascii();
        if member.is_empty() {
            continue;
        }
        let Some(equals) = member.iter().position(|byte| *byte == b'=') else { return false };
        let (key, value) = (&member[..equals], &member[equals + 1..]);
        if members == MAX_STATE_MEMBERS || !is_key(key) || !is_value(value) || keys[..members].contains(&key)
        {
            return false;
        }
        keys[members] = key;
        members += 1;
    }
    members > 0
}

fn is_key(key: &[u8]) -> bool {
    let first = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let further = |byte: &u8| first(byte) || b"_-*/@".contains(byte);
    key.len() <= MAX_STATE_KEY && key.first().is_some_and(first) && key.iter().all(further)
}

fn is_value(value: &[u8]) -> bool {
    (1..=MAX_STATE_VALUE).contains(&value.len())
        && value.iter().all(|b| matches!(b, 0x20..=0x7e) && *b != b'=')
}

/// `{trace}-{span}`, then maybe the decision and the parent; or the decision alone (openzipkin/b3-propagation).
fn b3_single(text: &[u8]) -> Option<Came> {
    let decision = |text: &[u8]| match text {
        b"0" => Some((Some(false), false)),
        b"1" => Some((Some(true), false)),
        b"d" => Some((Some(true), true)),
        _ => None,
    };
    if let Some((sampled, debug)) = decision(text) {
        return Some(Came { sampled, debug, ..Came::default() });
    }
    let mut parts = text.split(|byte| *byte == b'-');
    let (trace, span) = (b3_trace(parts.next()?)?, SpanId(id(parts.next()?)?));
    let (sampled, debug) = match parts.next() {
        Some(text) => decision(text)?,
        None => (None, false),
    };
    if let Some(parent) = parts.next() {
        id::<8>(parent)?;
    }
    parts.next().is_none().then_some(Came { trace, span, sampled, debug })
}

fn b3_several(headers: &HeaderMap) -> Option<Came> {
    let value = |name: HeaderName| headers.contains_key(&name).then(|| one(headers, &name));
    let debug = match value(B3_FLAGS) {
        None | Some(Some(b"0")) => false,
        Some(Some(b"1")) => true,
        Some(_) => return None,
    };
    let sampled = match value(B3_SAMPLED) {
        None => debug.then_some(true),
        Some(Some(b"1" | b"true")) => Some(true),
        Some(Some(b"0" | b"false")) => Some(debug),
        Some(_) => return None,
    };
    match (value(B3_TRACE), value(B3_SPAN)) {
        (Some(trace), Some(span)) => {
            let (trace, span) = (b3_trace(trace?)?, SpanId(id(span?)?));
            if let Some(parent) = value(B3_PARENT) {
                id::<8>(parent?)?;
            }
            Some(Came { trace, span, sampled, debug })
        }
        (None, None) if sampled.is_some() => Some(Came { sampled, debug, ..Came::default() }),
        _ => None,
    }
}

/// 128 or 64 bits.
fn b3_trace(text: &[u8]) -> Option<TraceId> {
    if text.len() == 32 {
        return id(text).map(TraceId);
    }
    let mut bytes = [0; 16];
    bytes[8..].copy_from_slice(&id::<8>(text)?);
    Some(TraceId(bytes))
}

#[cfg(test)]
mod tests;
