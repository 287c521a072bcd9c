//! HTTP/1 framing: any bytes into the server that the proxy has, what it takes for plain through the proxy's header rules,
//! and out of its client. Readers with every liberty read what comes out alike, one request each, and it is what httparse
//! reads of what came in; nothing in it names a header of the mesh.

use std::cell::RefCell;
use std::convert::Infallible;
use std::pin::pin;
use std::rc::Rc;

use hyper::body::{Body as _, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

use crate::readers::{self, Read, Verdict};
use crate::{headers, hex};

/// As in the proxy.
const MAX_HEADERS: usize = 128;
const MAX_HEAD_BYTES: usize = 64 * 1024;
/// More than any input and what it becomes.
const PIPE_BYTES: usize = 256 * 1024;

pub fn run(bytes: &[u8]) -> bool {
    let runtime =
        tokio::runtime::Builder::new_current_thread().build().expect("a runtime without timers or sockets");
    let delivered = runtime.block_on(serve(bytes));
    // What another reader finds in the bytes as they came, as far as it finds them beyond doubt.
    let (strict, ..) = readers::all(bytes, readers::strict);
    for (ours, theirs) in delivered.iter().zip(&strict) {
        assert!(
            ours.method == theirs.method && ours.body == theirs.body,
            "{ours:?} for {theirs:?}, of {}",
            hex(bytes)
        );
    }
    !delivered.is_empty()
}

/// All requests that reached an app, in order.
async fn serve(bytes: &[u8]) -> Vec<Read> {
    let (mut client, server) = duplex(PIPE_BYTES);
    client.write_all(bytes).await.expect("the pipe holds it");
    let delivered = Rc::new(RefCell::new(Vec::new()));
    let service = service_fn(|request| {
        let delivered = Rc::clone(&delivered);
        async move { Ok::<_, Infallible>(answer(request, &delivered).await) }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.max_headers(MAX_HEADERS).max_buf_size(MAX_HEAD_BYTES).half_close(true);
    let served = http.serve_connection(TokioIo::new(server), service);
    let drained = async {
        client.shutdown().await.expect("a pipe");
        let mut answers = Vec::new();
        client.read_to_end(&mut answers).await.expect("a pipe");
    };
    // How it ends is the client's fault or not; what counts is what came out.
    let (_ended, ()) = tokio::join!(served, drained);
    delivered.take()
}

async fn answer(mut request: Request<Incoming>, delivered: &RefCell<Vec<Read>>) -> Response<String> {
    let refused = || {
        let mut response = Response::new(String::new());
        *response.status_mut() = StatusCode::BAD_REQUEST;
        response.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
        response
    };
    let plain = headers::is_framing_plain(request.headers());
    if !plain || request.method() == Method::CONNECT || headers::authority(&request).is_err() {
        return refused();
    }
    let fields = request.headers_mut();
    headers::strip_hop_by_hop(fields);
    headers::strip_reserved(fields);
    headers::join_cookies(fields);
    fields.remove(header::EXPECT);
    fields.insert(header::HOST, header::HeaderValue::from_static("reviews.shop"));
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let Ok(target) = path.parse() else { return refused() };
    *request.uri_mut() = target;
    let whole = request.body().size_hint().exact();
    if !request.body().is_end_stream() && whole.is_none() {
        request.headers_mut().insert(header::TRANSFER_ENCODING, header::HeaderValue::from_static("chunked"));
    }

    let (ours, apps) = duplex(PIPE_BYTES);
    let handshake = hyper::client::conn::http1::handshake::<_, Incoming>(TokioIo::new(ours));
    let (mut sender, connection) = handshake.await.expect("a pipe");
    let asked = async move { sender.send_request(request).await.is_ok() };
    // Whichever way the request goes, the connection ends with its sender and the app sees it end.
    let (is_answered, _ended, seen) = tokio::join!(asked, connection, app(apps));
    let (written, read) = seen;
    assert!(read.len() <= 1, "one request became {}: {}", read.len(), hex(&written));
    let Some(read) = read.into_iter().next() else {
        assert!(!is_answered, "answered without having been read: {}", hex(&written));
        return refused();
    };
    assert!(whole.is_none_or(|length| length == read.body.len() as u64), "{read:?}");
    for (name, _) in &read.fields {
        let name = std::str::from_utf8(name).expect("a name is text");
        assert!(!headers::is_reserved(name), "{name} of {}", hex(&written));
    }
    delivered.borrow_mut().push(read);
    Response::new(String::new())
}

/// Reads to the end of the connection, and answers the first request that it reads.
async fn app(mut stream: DuplexStream) -> (Vec<u8>, Vec<Read>) {
    let (mut written, mut answered) = (Vec::new(), false);
    let mut chunk = [0; 4096];
    loop {
        let n = pin!(stream.read(&mut chunk)).await.unwrap_or(0);
        if n == 0 {
            break;
        }
        written.extend_from_slice(&chunk[..n]);
        if !answered && matches!(readers::strict(&written), Verdict::Whole(..)) {
            answered = true;
            // Who has gone away already is not told.
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        }
    }
    let (read, taken, end) = readers::all(&written, readers::strict);
    assert!(end == Verdict::Partial, "{end:?} after {taken} bytes of {}", hex(&written));
    if !read.is_empty() {
        for lax in readers::lax_readers() {
            let by_other = readers::all(&written, |rest| readers::lax(rest, lax));
            assert!(by_other.0 == read && by_other.1 == taken, "{lax:?}: {by_other:?} for {read:?}");
        }
    }
    (written, read)
}

pub fn seeds() -> Vec<Vec<u8>> {
    crate::texts(&[
        "GET /a?b=c HTTP/1.1\r\nHost: reviews.shop\r\nCookie: a=b\r\nCookie: c=d\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: reviews.shop\r\nContent-Length: 5\r\n\r\nhelloGET /2 HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\nT: v\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\ncontent_length: 3\r\nContent-Length: 3\r\n\r\nabc",
        "GET http://reviews.shop/ HTTP/1.1\r\nHost: a\r\nX-Hanse-Cluster: east\r\nX_Forwarded-Client-Cert: By=x\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, x-b\r\nX-B: 1\r\nTE: gzip\r\nUpgrade: websocket\r\n\r\n",
        "GET / HTTP/1.1\nHost: a\n\n",
        "GET / HTTP/1.1\r\nHost: a\r\n folded: 1\r\n\r\n",
        "PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx",
        "HEAD / HTTP/1.0\r\nHost: a\r\n\r\n",
    ])
}
