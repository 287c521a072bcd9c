//! What an HTTP/2 connection may ask of us before it asks for anything: frames are counted by their nine-byte headers
//! as the bytes pass, and a connection that sends more of those that carry nothing than it has earned is a flood.
//!
//! Pure: bytes in, a verdict out; the time is asked for only when credit has run out. The HTTP/2 library bounds memory
//! (what is queued, CONTINUATION, empty DATA, resets of its own making), but it answers SETTINGS and PING, and reads
//! WINDOW_UPDATE, PRIORITY and what it does not know, for as long as somebody sends them.

use std::time::{Duration, Instant};

/// Frames that carry nothing which a connection may send without having earned any, in each `PERIOD`.
pub const IDLE_FRAMES: u32 = 1_000;
/// What each frame with a head or a body earns, in either direction: a client that acknowledges every DATA frame of ours
/// for its stream and for the connection, and measures the path by PING beside it, spends three.
pub const EARNED: u32 = 4;
/// Credit that may be saved up.
pub const MAX_CREDIT: u32 = 64_000;
/// Requests that a client may take back in each `PERIOD`, besides one for each that it lets be answered.
pub const RESETS: u32 = 1_000;
/// When credit comes back.
pub const PERIOD: Duration = Duration::from_secs(1);

/// What is sent before the first frame of a client (RFC 9113 §3.4).
const PREFACE_BYTES: u32 = 24;
const HEADER_BYTES: usize = 9;
const END_STREAM: u8 = 0x1;
const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const RST_STREAM: u8 = 0x3;

/// Too many frames that carry nothing; which kind it was that ran out of credit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a flood of HTTP/2 {0} frames: more than {IDLE_FRAMES} a second for which no request or body was sent"
)]
pub struct Flood(pub &'static str);

/// The frames of one connection.
#[derive(Clone, Debug)]
pub struct Frames {
    received: Scan,
    sent: Scan,
    credit: u32,
    /// `None`: resets are the other end's business.
    resets: Option<u32>,
    /// The newest stream that a request came on: HEADERS of older ones are trailers.
    newest: u32,
    refilled: Option<Instant>,
}

/// Finds frames in bytes that come in pieces.
#[derive(Clone, Debug, Default)]
struct Scan {
    header: [u8; HEADER_BYTES],
    have: usize,
    /// Bytes of a payload that are still to come.
    skip: u32,
}

struct Frame {
    kind: u8,
    flags: u8,
    length: u32,
    stream: u32,
}

impl Frames {
    /// Of a connection that was accepted: the preface comes first, and requests may be taken back.
    pub fn of_client() -> Self {
        Self { resets: Some(RESETS), ..Self::new(PREFACE_BYTES, 0) }
    }

    /// Of a connection that was dialled.
    pub fn of_server() -> Self {
        Self::new(0, PREFACE_BYTES)
    }

    fn new(received: u32, sent: u32) -> Self {
        let after = |skip| Scan { skip, ..Scan::default() };
        let (received, sent) = (after(received), after(sent));
        Self { received, sent, credit: IDLE_FRAMES, resets: None, newest: 0, refilled: None }
    }

    /// The next bytes that were read.
    pub fn received(&mut self, bytes: &[u8], now: impl Fn() -> Instant) -> Result<(), Flood> {
        let Self { received, credit, resets, newest, refilled, .. } = self;
        received.each(bytes, |frame| {
            let paid = match frame.kind {
                DATA if frame.length > 0 || frame.flags & END_STREAM != 0 => earn(credit),
                HEADERS => {
                    if let Some(resets) = resets.as_mut().filter(|_| frame.stream > *newest) {
                        *resets = (*resets + 1).min(RESETS);
                    }
                    *newest = frame.stream.max(*newest);
                    earn(credit)
                }
                RST_STREAM => match resets {
                    // One that is given back by the next request, and one that is not.
                    Some(resets) => spend(resets, 2),
                    // A server's, after each of our requests: that has earned more.
                    None => spend(credit, 1),
                },
                _ => spend(credit, 1),
            };
            if paid {
                return Ok(());
            }
            let now = now();
            if refilled.is_some_and(|at| now.saturating_duration_since(at) < PERIOD) {
                return Err(Flood(frame.name()));
            }
            *refilled = Some(now);
            (*credit, *resets) = (IDLE_FRAMES.max(*credit), resets.map(|_| RESETS));
            Ok(())
        })
    }

    /// The next bytes that were written.
    pub fn sent(&mut self, bytes: &[u8]) {
        let Self { sent, credit, .. } = self;
        let counted = sent.each(bytes, |frame| {
            if matches!(frame.kind, DATA | HEADERS) {
                earn(credit);
            }
            Ok(())
        });
        debug_assert!(counted.is_ok(), "what we send is no flood");
    }
}

fn earn(credit: &mut u32) -> bool {
    *credit = (*credit + EARNED).min(MAX_CREDIT);
    true
}

fn spend(credit: &mut u32, cost: u32) -> bool {
    let left = credit.checked_sub(cost);
    *credit = left.unwrap_or(*credit);
    left.is_some()
}

impl Scan {
    fn each(
        &mut self,
        mut bytes: &[u8],
        mut seen: impl FnMut(&Frame) -> Result<(), Flood>,
    ) -> Result<(), Flood> {
        loop {
            let skipped = bytes.len().min(self.skip as usize);
            self.skip -= skipped as u32;
            bytes = &bytes[skipped..];
            if bytes.is_empty() {
                return Ok(());
            }
            let taken = bytes.len().min(HEADER_BYTES - self.have);
            self.header[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
            self.have += taken;
            bytes = &bytes[taken..];
            if self.have == HEADER_BYTES {
                let [a, b, c, kind, flags, s, t, u, v] = self.header;
                let length = u32::from_be_bytes([0, a, b, c]);
                let stream = u32::from_be_bytes([s & 0x7f, t, u, v]);
                (self.have, self.skip) = (0, length);
                seen(&Frame { kind, flags, length, stream })?;
            }
        }
    }
}

impl Frame {
    fn name(&self) -> &'static str {
        match self.kind {
            DATA => "empty DATA",
            2 => "PRIORITY",
            RST_STREAM => "RST_STREAM",
            4 => "SETTINGS",
            5 => "PUSH_PROMISE",
            6 => "PING",
            7 => "GOAWAY",
            8 => "WINDOW_UPDATE",
            9 => "CONTINUATION",
            _ => "unknown",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        frame_of(1, kind, flags, payload)
    }

    fn frame_of(stream: u32, kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        bytes.extend([kind, flags]);
        bytes.extend(stream.to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    fn client() -> (Frames, Instant) {
        let (mut frames, start) = (Frames::of_client(), Instant::now());
        frames.received(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", || start).unwrap();
        (frames, start)
    }

    #[test]
    fn frames_that_carry_nothing_are_a_flood_when_none_were_earned() {
        let frames: [(&str, Vec<u8>); 7] = [
            ("SETTINGS", frame(4, 0, &[])),
            ("PING", frame(6, 0, &[7; 8])),
            ("WINDOW_UPDATE", frame(8, 0, &[0, 0, 0, 1])),
            ("PRIORITY", frame(2, 0, &[0, 0, 0, 3, 1])),
            ("CONTINUATION", frame(9, 0, b"x")),
            ("empty DATA", frame(0, 0, &[])),
            ("unknown", frame(0xfa, 0, b"grease")),
        ];
        for (name, one) in frames {
            let (mut client, start) = client();
            // The first credit, and what comes back when it is looked at for the first time.
            let most = 2 * IDLE_FRAMES + 1;
            assert_eq!(client.received(&one.repeat(most as usize), || start), Ok(()), "{name}");
            assert_eq!(client.clone().received(&one, || start), Err(Flood(name)));
            // A second later it is none.
            let later = start + PERIOD;
            assert_eq!(client.received(&one.repeat(IDLE_FRAMES as usize), || later), Ok(()), "{name}");
        }
    }

    #[test]
    fn who_reads_what_it_asked_for_may_say_so_as_often_as_it_likes() {
        let (mut client, start) = client();
        let (request, body) = (frame(1, 0x5, b"h"), frame(0, 0, &[0; 100]));
        let (window, ping) = (frame(8, 0, &[0, 0, 0, 1]), frame(6, 0, &[7; 8]));
        client.received(&request, || start).unwrap();
        for _ in 0..100_000 {
            client.sent(&body);
            let said = [&window[..], &window, &ping].concat();
            assert_eq!(client.received(&said, || start), Ok(()));
        }
        // What was saved up has an end.
        let sent = (1u32..).find(|_| client.received(&ping, || start).is_err()).unwrap();
        assert!(sent <= MAX_CREDIT + IDLE_FRAMES + 2, "{sent}");
    }

    #[test]
    fn who_takes_back_more_than_half_of_its_requests_floods() {
        let request = |stream| frame_of(stream, 1, 0x5, b"h");
        let reset = frame(3, 0, &[0, 0, 0, 8]);
        let (mut client, start) = client();
        let pair = |n: u32| [&request(2 * n + 1)[..], &reset].concat();
        let sent = (1u32..).find(|n| client.received(&pair(*n), || start).is_err()).unwrap();
        assert!((RESETS..=2 * RESETS + 2).contains(&sent), "{sent}");
        // Trailers are no second request.
        let (mut client, start) = self::client();
        let trailed = |n: u32| [&request(2 * n + 1)[..], &request(2 * n + 1), &reset].concat();
        let sent = (1u32..).find(|n| client.received(&trailed(*n), || start).is_err()).unwrap();
        assert!((RESETS..=2 * RESETS + 2).contains(&sent), "{sent}");
        let (mut client, start) = self::client();
        let half = |n: u32| [&request(4 * n + 1)[..], &request(4 * n + 3), &reset].concat();
        assert!((0..100_000).all(|n| client.received(&half(n), || start).is_ok()));
        // A server that refuses streams refuses our own, as often as we open some and no more often for long.
        let mut server = Frames::of_server();
        server.sent(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        let refused = |server: &mut Frames| {
            server.sent(&request(1));
            server.received(&reset, || start)
        };
        assert!((0..100_000).all(|_| refused(&mut server).is_ok()));
        let more = (1u32..).find(|_| server.received(&reset, || start).is_err()).unwrap();
        assert!(more <= MAX_CREDIT + IDLE_FRAMES + 2, "{more}");
    }

    #[test]
    fn it_does_not_matter_in_what_pieces_the_bytes_come() {
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        for n in 0..2 * IDLE_FRAMES + 1 {
            bytes.extend(frame(8, 0, &[0, 0, 0, 1]));
            bytes.extend(if n % 5 == 0 { frame(3, 0, &[0, 0, 0, 8]) } else { Vec::new() });
        }
        let start = Instant::now();
        for size in [1, 2, 8, 9, 10, 13, 1000, bytes.len()] {
            let mut client = Frames::of_client();
            for piece in bytes.chunks(size) {
                assert_eq!(client.received(piece, || start), Ok(()), "pieces of {size}");
            }
            assert_eq!(
                client.received(&frame(8, 0, &[0; 4]), || start),
                Err(Flood("WINDOW_UPDATE")),
                "pieces of {size}"
            );
        }
    }
}
