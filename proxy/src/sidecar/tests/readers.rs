//! Readers of HTTP/1.1 that disagree where a message can be read in two ways: httparse, which is strict, and one of our
//! own with the liberties that servers take. What all of them read alike smuggles nothing.

/// One request as a reader reads it: where it ends is what matters, so its body is told too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    pub method: Vec<u8>,
    pub target: Vec<u8>,
    /// Names in lower case, and with `-` for `_`; values without the white space around them.
    pub fields: Vec<(Vec<u8>, Vec<u8>)>,
    pub body: Vec<u8>,
}

/// What a reader gets out of the bytes at their beginning.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A request, and how many bytes it took.
    Whole(Box<Read>, usize),
    /// More bytes are needed.
    Partial,
    Refused(&'static str),
}

/// The liberties of a lax reader.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lax {
    /// A line may end with LF alone; with CR alone too.
    pub bare_lf: bool,
    pub bare_cr: bool,
    /// Content-Length goes before Transfer-Encoding.
    pub length_first: bool,
    /// Of two lengths the last counts, not the first.
    pub last_length: bool,
    /// Anything that has `chunked` in it is chunked.
    pub any_chunked: bool,
    /// `_` is `-` in names, and white space before the colon is nothing.
    pub loose_names: bool,
}

/// One for each liberty, and one with all of them.
pub fn lax_readers() -> Vec<Lax> {
    let none = Lax::default();
    vec![
        none,
        Lax { bare_lf: true, ..none },
        Lax { bare_lf: true, bare_cr: true, ..none },
        Lax { length_first: true, ..none },
        Lax { last_length: true, ..none },
        Lax { any_chunked: true, ..none },
        Lax { loose_names: true, ..none },
        Lax {
            bare_lf: true,
            bare_cr: true,
            length_first: true,
            last_length: true,
            any_chunked: true,
            loose_names: true,
        },
    ]
}

/// As RFC 9112 has it, with httparse for the head and for chunk sizes; whatever is doubtful is refused.
pub fn strict(bytes: &[u8]) -> Verdict {
    let mut fields = [httparse::EMPTY_HEADER; 256];
    let mut request = httparse::Request::new(&mut fields);
    let head = match request.parse(bytes) {
        Ok(httparse::Status::Complete(head)) => head,
        Ok(httparse::Status::Partial) => return Verdict::Partial,
        Err(_) => return Verdict::Refused("httparse"),
    };
    if bytes[..head].iter().enumerate().any(|(at, b)| *b == b'\n' && (at == 0 || bytes[at - 1] != b'\r')) {
        return Verdict::Refused("a bare LF");
    }
    let fields: Vec<_> = request
        .headers
        .iter()
        .map(|f| (f.name.to_ascii_lowercase().into_bytes(), f.value.trim_ascii().to_vec()))
        .collect::<Vec<_>>();
    let all = |name: &str| fields.iter().filter(|(n, _)| n == name.as_bytes()).map(|(_, v)| &v[..]).collect();
    let (hosts, lengths, codings): (Vec<_>, Vec<_>, Vec<_>) =
        (all("host"), all("content-length"), all("transfer-encoding"));
    if hosts.len() != 1 {
        return Verdict::Refused("not one Host");
    }
    let body = match (&lengths[..], &codings[..]) {
        ([], []) => Some((Vec::new(), 0)),
        ([length], []) => match digits(length) {
            Some(length) => sized(&bytes[head..], length),
            None => return Verdict::Refused("a length that is no number"),
        },
        ([], [coding]) if coding.eq_ignore_ascii_case(b"chunked") => match chunked(&bytes[head..], false) {
            Ok(body) => body,
            Err(why) => return Verdict::Refused(why),
        },
        _ => return Verdict::Refused("two framings"),
    };
    let Some((body, taken)) = body else { return Verdict::Partial };
    let method = request.method.unwrap_or_default().as_bytes().to_vec();
    let target = request.path.unwrap_or_default().as_bytes().to_vec();
    Verdict::Whole(Box::new(Read { method, target, fields: dashed(fields), body }), head + taken)
}

/// With these liberties, and with any white space between the parts of a line.
pub fn lax(bytes: &[u8], lax: Lax) -> Verdict {
    let mut at = 0;
    let Some(first) = line(bytes, &mut at, lax) else { return Verdict::Partial };
    let mut parts = first.split(|b| b.is_ascii_whitespace()).filter(|part| !part.is_empty());
    let (method, target) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let (method, target) = (method.to_vec(), target.to_vec());
    let mut fields: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    loop {
        let Some(field) = line(bytes, &mut at, lax) else { return Verdict::Partial };
        if field.is_empty() {
            break;
        }
        if let (Some(b' ' | b'\t'), Some(last)) = (field.first(), fields.last_mut()) {
            last.1.push(b' ');
            last.1.extend(field.trim_ascii());
            continue;
        }
        let Some(colon) = field.iter().position(|b| *b == b':') else { continue };
        let mut name = field[..colon].to_ascii_lowercase();
        if lax.loose_names {
            name = name.trim_ascii().to_vec();
            name.iter_mut().filter(|b| **b == b'_').for_each(|b| *b = b'-');
        }
        fields.push((name, field[colon + 1..].trim_ascii().to_vec()));
    }
    let all = |name: &str| -> Vec<&[u8]> {
        fields.iter().filter(|(n, _)| n == name.as_bytes()).map(|(_, v)| &v[..]).collect()
    };
    let (lengths, codings) = (all("content-length"), all("transfer-encoding"));
    let length = if lax.last_length { lengths.last() } else { lengths.first() };
    let is_chunked = codings.iter().any(|coding| {
        let coding = coding.to_ascii_lowercase();
        match lax.any_chunked {
            true => coding.windows(7).any(|word| word == b"chunked"),
            false => coding == b"chunked",
        }
    });
    let body = match length {
        Some(length) if lax.length_first || !is_chunked => {
            let end = length.iter().position(|b| !b.is_ascii_digit()).unwrap_or(length.len());
            sized(&bytes[at..], digits(&length[..end]).unwrap_or(0))
        }
        _ if is_chunked => match chunked(&bytes[at..], lax.bare_lf) {
            Ok(body) => body,
            Err(why) => return Verdict::Refused(why),
        },
        _ => Some((Vec::new(), 0)),
    };
    let Some((body, taken)) = body else { return Verdict::Partial };
    Verdict::Whole(Box::new(Read { method, target, fields: dashed(fields), body }), at + taken)
}

/// Every whole request of a connection, the bytes that they took, and why the reader did not go on.
pub fn all(bytes: &[u8], reader: impl Fn(&[u8]) -> Verdict) -> (Vec<Read>, usize, Verdict) {
    let (mut read, mut at) = (Vec::new(), 0);
    loop {
        match reader(&bytes[at..]) {
            Verdict::Whole(request, taken) => {
                read.push(*request);
                at += taken;
            }
            end => return (read, at, end),
        }
    }
}

fn dashed(mut fields: Vec<(Vec<u8>, Vec<u8>)>) -> Vec<(Vec<u8>, Vec<u8>)> {
    fields.iter_mut().flat_map(|(name, _)| name).filter(|b| **b == b'_').for_each(|b| *b = b'-');
    fields
}

fn digits(text: &[u8]) -> Option<usize> {
    let is_number = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    is_number.then(|| std::str::from_utf8(text).ok()?.parse().ok()).flatten()
}

fn line<'b>(bytes: &'b [u8], at: &mut usize, lax: Lax) -> Option<&'b [u8]> {
    let rest = &bytes[*at..];
    let crlf = rest.windows(2).position(|two| two == b"\r\n").map(|end| (end, 2));
    let lf = rest.iter().position(|b| *b == b'\n').filter(|_| lax.bare_lf).map(|end| (end, 1));
    let cr = rest.iter().position(|b| *b == b'\r').filter(|_| lax.bare_cr).map(|end| (end, 1));
    // Of ends at the same place the longest.
    let (end, width) = [crlf, lf, cr].into_iter().flatten().min_by_key(|(end, width)| (*end, 2 - width))?;
    *at += end + width;
    Some(&rest[..end])
}

type Body = Option<(Vec<u8>, usize)>;

fn sized(bytes: &[u8], length: usize) -> Body {
    bytes.get(..length).map(|body| (body.to_vec(), length))
}

fn chunked(bytes: &[u8], bare_lf: bool) -> Result<Body, &'static str> {
    let (mut body, mut at) = (Vec::new(), 0);
    let lines = Lax { bare_lf, ..Lax::default() };
    loop {
        let (head, size) = match httparse::parse_chunk_size(&bytes[at..]) {
            Ok(httparse::Status::Complete((head, size))) => (head, size),
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(_) => return Err("a chunk size"),
        };
        at += head;
        if size == 0 {
            break;
        }
        let Ok(size) = usize::try_from(size) else { return Err("a huge chunk") };
        let Some(end) = at.checked_add(size).filter(|end| end + 2 <= bytes.len()) else { return Ok(None) };
        if &bytes[end..end + 2] != b"\r\n" {
            return Err("a chunk that does not end");
        }
        body.extend_from_slice(&bytes[at..end]);
        at = end + 2;
    }
    loop {
        match line(bytes, &mut at, lines) {
            None => return Ok(None),
            Some([]) => return Ok(Some((body, at))),
            Some(_) => {}
        }
    }
}
