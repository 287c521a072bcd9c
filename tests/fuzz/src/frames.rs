//! HTTP/2 frames: it does not matter in what pieces the bytes come, and no bytes stop the meter from counting.

use std::time::Instant;

use hanse_identity::frames::Frames;

pub fn run(bytes: &[u8]) -> bool {
    let Some((size, bytes)) = bytes.split_first() else { return false };
    let start = Instant::now();
    let (mut whole, mut pieces) = (Frames::of_client(), Frames::of_client());
    // Much of it, so that credit can run out.
    let bytes = bytes.repeat(200);
    let by_whole = whole.received(&bytes, || start);
    let by_pieces =
        bytes.chunks(usize::from(*size) + 1).try_for_each(|piece| pieces.received(piece, || start));
    assert_eq!(by_whole, by_pieces);
    if by_whole.is_ok() {
        assert_eq!(format!("{whole:?}"), format!("{pieces:?}"));
    }
    by_whole.is_ok()
}

pub fn seeds() -> Vec<Vec<u8>> {
    let frame = |kind: u8, flags: u8, stream: u32, payload: &[u8]| {
        let length = u32::try_from(payload.len()).expect("a short one").to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    };
    let preface = &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..];
    let kinds = [
        frame(0, 1, 1, b"body"),
        frame(0, 0, 1, b""),
        frame(1, 5, 1, b"\x82\x84\x86"),
        frame(3, 0, 1, &[0, 0, 0, 8]),
        frame(4, 0, 0, &[0, 3, 0, 0, 0, 9]),
        frame(6, 0, 0, &[7; 8]),
        frame(8, 0, 0, &[0, 0, 1, 0]),
        frame(9, 0, 1, b"\x82"),
    ];
    let all = kinds.concat();
    let mut seeds: Vec<_> = kinds.iter().map(|one| [&[3], &one[..]].concat()).collect();
    seeds.push([&[0], preface, &all].concat());
    seeds.push([&[200], preface, &all].concat());
    seeds
}
