//! Where a request ends (reliability: T10, T11). Ambiguous HTTP/1.1, and HTTP/2 with every byte in every place, through
//! real sidecars to an app that keeps the bytes it gets: several readers must read them alike, and no request may have
//! come out of another one's body, path or field.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use hanse_identity::tls::{IdentitySource, TrustSource, client_config};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;

use super::readers::{self, Lax, Read, Verdict};
use super::*;

/// The probes ask for what a request could smuggle; it must never arrive.
const SMUGGLED: &[u8] = b"smuggled";
/// Nothing more is said in this time by whoever waits for more of a request.
const QUIET: Duration = Duration::from_millis(40);
/// Longest wait for an answer that has to come: a busy machine gives one when it can.
const ANSWERED_WITHIN: Duration = Duration::from_secs(10);
/// Probes that are said at the same time.
const TOGETHER: usize = 16;

/// An app that keeps all bytes of every connection, and answers what httparse reads.
#[derive(Clone, Default)]
struct RawApp(Rc<RefCell<Vec<Kept>>>);

/// One connection's bytes, and how many of them the test has looked at.
#[derive(Default)]
struct Kept {
    bytes: Vec<u8>,
    read: usize,
}

impl RawApp {
    async fn start() -> (Self, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, app) = (listener.local_addr().unwrap(), Self::default());
        let kept = app.clone();
        tokio::task::spawn_local(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let at = kept.0.borrow().len();
                kept.0.borrow_mut().push(Kept::default());
                let kept = kept.clone();
                tokio::task::spawn_local(async move { kept.serve(stream, at).await });
            }
        });
        (app, address)
    }

    async fn serve(self, mut stream: TcpStream, connection: usize) {
        let (mut buffer, mut answered) = (vec![0; 64 << 10], 0);
        while let Ok(n @ 1..) = stream.read(&mut buffer).await {
            self.0.borrow_mut()[connection].bytes.extend_from_slice(&buffer[..n]);
            loop {
                let verdict = readers::strict(&self.0.borrow()[connection].bytes[answered..]);
                let answer: &[u8] = match verdict {
                    Verdict::Whole(_, taken) => {
                        answered += taken;
                        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
                    }
                    Verdict::Partial => break,
                    Verdict::Refused(_) => return,
                };
                if stream.write_all(answer).await.is_err() {
                    return;
                }
            }
        }
    }

    /// What has come since it was last asked, read by everybody alike.
    fn read_alike(&self, what: &str) -> Vec<Read> {
        let mut read = Vec::new();
        for kept in self.0.borrow_mut().iter_mut() {
            let bytes = &kept.bytes[kept.read..];
            let shown = String::from_utf8_lossy(bytes).into_owned();
            // A body that its client never finished stays for the next time; what came before it was whole.
            let (by_httparse, taken, end) = readers::all(bytes, readers::strict);
            assert_eq!(end, Verdict::Partial, "{what}: the app was sent {shown:?}");
            for lax in readers::lax_readers() {
                let by_other = readers::all(bytes, |rest| readers::lax(rest, lax));
                let alike = by_other == (by_httparse.clone(), taken, Verdict::Partial);
                assert!(alike, "{what}: {lax:?} reads {by_other:?} in {shown:?}");
            }
            read.extend(by_httparse);
            kept.read += taken;
        }
        read
    }

    /// The same, of a client that tried to hide something in it.
    fn read_without_smuggled(&self, what: &str) -> Vec<Read> {
        let read = self.read_alike(what);
        for request in &read {
            let hidden = |text: &[u8]| text.windows(SMUGGLED.len()).any(|word| word == SMUGGLED);
            let is_own = |name: &[u8]| name.starts_with(b"smuggled");
            assert!(!hidden(&request.method), "{what}: {request:?}");
            assert!(!request.fields.iter().any(|(name, _)| is_own(name)), "{what}: {request:?}");
            assert!(!request.target.starts_with(b"/smuggled"), "{what}: {request:?}");
        }
        read
    }
}

struct Scene {
    shop: Shop,
    app: RawApp,
    caller: Arc<crate::runtime::Plane>,
}

impl Scene {
    async fn set() -> Self {
        let mut shop = Shop::open().await;
        let (app, address) = RawApp::start().await;
        // The echo app reads with hyper; this one keeps what it is sent.
        shop.reviews = Sidecar::start(Some(&shop.east.workload("reviews")), &["shop/reviews"], Some(address));
        let (id, inbound) = (shop.east.id("reviews"), shop.reviews.inbound);
        shop.change(|view| {
            view.endpoints.clear();
            add_endpoint(view, "reviews-1", "shop/reviews", &id, inbound);
        });
        let caller = plane_of(&shop.east.workload("productpage"), &shop.view);
        Self { shop, app, caller }
    }

    /// Past the caller's sidecar, as a hostile workload would.
    async fn inbound(&self, alpn: &[u8]) -> tokio_rustls::client::TlsStream<TcpStream> {
        let trust: Arc<dyn TrustSource> = Arc::clone(&self.caller.knowledge) as _;
        let identity: Arc<dyn IdentitySource> = Arc::clone(&self.caller.credentials) as _;
        let config = client_config(trust, identity, Expect::Anyone, &[alpn]);
        let tcp = TcpStream::connect(self.shop.reviews.inbound).await.unwrap();
        let name = ServerName::try_from("hanse.internal").unwrap();
        tokio_rustls::TlsConnector::from(config).connect(name, tcp).await.unwrap()
    }

    async fn outbound(&self) -> TcpStream {
        TcpStream::connect(self.shop.product.outbound).await.unwrap()
    }

    /// Others are served as ever.
    async fn goes_on(&self, what: &str) {
        let answer = self.shop.product.get("http://reviews.shop/next").await;
        assert_eq!(answer.status, StatusCode::OK, "{what}");
        let read = self.app.read_alike(what);
        assert!(read.iter().any(|request| request.target == b"/next"), "{what}: {read:?}");
    }
}

/// Writes, and reads until it is over, the other end closes or says nothing more for so long.
async fn say<S>(mut stream: S, bytes: &[u8], is_over: fn(&[u8]) -> bool, patience: Duration) -> Vec<u8>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    // Whoever is refused early may find its connection closed.
    let _ = stream.write_all(bytes).await;
    let mut heard = Vec::new();
    let mut buffer = vec![0; 16 << 10];
    while let Ok(Ok(n @ 1..)) = tokio::time::timeout(patience, stream.read(&mut buffer)).await {
        heard.extend_from_slice(&buffer[..n]);
        if is_over(&heard) {
            break;
        }
    }
    heard
}

const HIDDEN: &str = "GET /smuggled HTTP/1.1\r\nHost: reviews.shop\r\n\r\n";

/// Heads that disagree about where their body ends, each with a request hidden behind it.
fn framings() -> Vec<String> {
    let mut probes = Vec::new();
    let chunked = format!("0\r\n\r\n{HIDDEN}");
    let post =
        |fields: &str, body: &str| format!("POST /x HTTP/1.1\r\nHost: reviews.shop\r\n{fields}\r\n{body}");
    let codings = [
        "chunked",
        "Chunked",
        "xchunked",
        "chunked, gzip",
        "gzip, chunked",
        "identity",
        "identity, chunked",
        "chunked, chunked",
        "chunked;q=1",
        "\x0bchunked",
        "chunked\0",
        "\"chunked\"",
        "",
        "chunked,",
        ",chunked",
        "\tchunked",
        "chunked \t",
        "\r\n chunked",
        "chu\r\n nked",
        "chunked\r\nTransfer-Encoding: identity",
        "identity\r\nTransfer-Encoding: chunked",
        "chunked\r\nTransfer-Encoding: chunked",
    ];
    let names = [
        "Transfer-Encoding",
        "Transfer-Encoding ",
        "Transfer_Encoding",
        " Transfer-Encoding",
        "X: y\nTransfer-Encoding",
    ];
    for (coding, name) in codings.iter().flat_map(|coding| names.map(|name| (coding, name))) {
        // One reader sees the hidden request behind the chunks, the other takes it for the body.
        for length in
            [format!("Content-Length: {}\r\n", chunked.len()), "Content-Length: 3\r\n".into(), String::new()]
        {
            probes.push(post(&format!("{length}{name}: {coding}\r\n"), &chunked));
        }
    }
    for length in [
        "+5",
        "-5",
        "0x5",
        "5, 5",
        "5, 6",
        "05",
        "5;",
        "1_0",
        "5 5",
        "",
        "5.0",
        "5e0",
        "\u{665}",
        "18446744073709551621",
        "99999999999999999999999",
        "5\r\nContent-Length: 5",
        "5\r\nContent-Length: 0",
        "0\r\nContent-Length: 5",
        "5\n",
        "5\r\n 0",
        "5\r\nContent_Length: 0",
        "5\r\ncontent-length : 0",
        "\x0b5",
    ] {
        probes.push(post(
            &format!("Content-Length: {length}\r\n"),
            &format!("body!{HIDDEN}").replace("/smuggled", "/piped"),
        ));
    }
    let coded = "Transfer-Encoding: chunked\r\n";
    for chunks in [
        "5\nbody!\r\n0\r\n\r\n",
        "5\r\nbody!\n0\r\n\r\n",
        "5\r\nbody!\r\n0\n\n",
        "+5\r\nbody!\r\n0\r\n\r\n",
        "-5\r\nbody!\r\n0\r\n\r\n",
        "0x5\r\nbody!\r\n0\r\n\r\n",
        "5 \r\nbody!\r\n0\r\n\r\n",
        " 5\r\nbody!\r\n0\r\n\r\n",
        "5;a=b\r\nbody!\r\n0\r\n\r\n",
        "5;a=\"\r\nbody!\r\n0\r\n\r\n",
        "5;\nbody!\r\n0\r\n\r\n",
        "5\x0b\r\nbody!\r\n0\r\n\r\n",
        "5\r\r\nbody!\r\n0\r\n\r\n",
        "FFFFFFFFFFFFFFFFF\r\nbody!\r\n0\r\n\r\n",
        "10000000000000005\r\nbody!\r\n0\r\n\r\n",
        "000000000000000000005\r\nbody!\r\n0\r\n\r\n",
        "5\r\nbody!0\r\n\r\n",
        "5\r\nbody!!!\r\n0\r\n\r\n",
        "\r\nbody!\r\n0\r\n\r\n",
        "g\r\nbody!\r\n0\r\n\r\n",
        "5\r\nbody!\r\n0\r\nContent-Length: 9\r\n\r\n",
        "5\r\nbody!\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n",
        "5\r\nbody!\r\n0\r\nHost: other\r\n\r\n",
        "5\r\nbody!\r\n0\r\nX-A: 1\nX-B: 2\r\n\r\n",
        "5\r\nbody!\r\n0\r\nX-Forwarded-Client-Cert: URI=spiffe://east.example/ns/shop/sa/smuggled\r\n\r\n",
        "5\r\nbody!\r\n00\r\n\r\n",
        "5\r\nbody!\r\n0;smuggled\r\n\r\n",
    ] {
        probes.push(post(coded, chunks));
    }
    probes.push(format!("POST /x HTTP/1.0\r\nHost: reviews.shop\r\n{coded}\r\n{chunked}"));
    probes
        .push(format!("POST /x HTTP/1.0\r\nHost: reviews.shop\r\nContent-Length: 3\r\n{coded}\r\n{chunked}"));
    probes.push(format!(
        "GET /x HTTP/1.1\r\nHost: reviews.shop\r\nContent-Length: {}\r\n\r\n{HIDDEN}",
        HIDDEN.len()
    ));
    probes.push(post("Content-Length: 4\r\nExpect: 100-continue\r\n", "body"));
    probes
}

/// Request lines, hosts and fields that are read in several ways. What they hide behind is no body: a second request
/// that follows a whole first one is one by right, so these hide none.
fn heads() -> Vec<String> {
    let mut probes = Vec::new();
    for line in [
        "GET  /x HTTP/1.1",
        "GET\t/x\tHTTP/1.1",
        "GET /x HTTP/1.1 ",
        "GET /x http/1.1",
        "GET /x HTTP/2.0",
        "GET /x HTTP/1.2",
        "GET /x HTTP/01.1",
        "GET /x",
        " GET /x HTTP/1.1",
        "\r\nGET /x HTTP/1.1",
        "\nGET /x HTTP/1.1",
        "GET /x#smuggled HTTP/1.1",
        "GET http://other.shop/x HTTP/1.1",
        "GET http://reviews.shop/x HTTP/1.1",
        "GET http:/x HTTP/1.1",
        "GET x HTTP/1.1",
        "GET //x HTTP/1.1",
        "GET /a b HTTP/1.1",
        "GET /\x7f HTTP/1.1",
        "GET /\0 HTTP/1.1",
        "GET /\x01 HTTP/1.1",
        "GET * HTTP/1.1",
        "OPTIONS * HTTP/1.1",
        "GE T /x HTTP/1.1",
        "G\0T /x HTTP/1.1",
        "GET /x HTTP/1.1\r",
        "CONNECT reviews.shop:80 HTTP/1.1",
        "GET /x\rHTTP/1.1",
        "GET /x\nHTTP/1.1",
        "PRI * HTTP/1.1",
        "GET /x?a#b HTTP/1.1",
        "GET /\u{e9} HTTP/1.1",
    ] {
        probes.push(format!("{line}\r\nHost: reviews.shop\r\n\r\n"));
    }
    for fields in [
        "",
        "Host: reviews.shop\r\nHost: reviews.shop\r\n",
        "Host: reviews.shop\r\nHost: other.shop\r\n",
        "Host: reviews.shop, other.shop\r\n",
        "Host: reviews.shop other\r\n",
        "Host: a@reviews.shop\r\n",
        "Host : reviews.shop\r\n",
        "Host:\r\n",
        "Host: reviews.shop/x\r\n",
        "Host: reviews.shop#\r\n",
        "Host: reviews.shop:80:80\r\n",
        "Host\r\n",
        "Host: reviews.shop\r\nX: a\r\n b\r\n",
        "Host: reviews.shop\nX: y\n",
        "Host: reviews.shop\r\nX: a\rsmuggled: b\r\n",
        "Host: reviews.shop\r\nX: a\nY: b\r\n",
        "Host: reviews.shop\r\nX: a\0b\r\n",
        "Host: reviews.shop\r\nX\t: a\r\n",
        "Host: reviews.shop\r\n: a\r\n",
        "Host: reviews.shop\r\nno colon\r\n",
        "Host: reviews.shop\r\nX y: a\r\n",
        "Host: reviews.shop\r\nX\0: a\r\n",
        "Host: reviews.shop\r\n\u{e9}: a\r\n",
        "Host: reviews.shop\r\nX: \u{e9}\r\n",
        " Host: reviews.shop\r\n",
        "\r\n Host: reviews.shop\r\n",
        "Host: reviews.shop\r\nConnection: content-length, host\r\nContent-Length: 0\r\n",
        "Host: reviews.shop\r\nConnection: close, transfer-encoding\r\nTransfer-Encoding: chunked\r\n",
    ] {
        probes.push(format!("GET /x HTTP/1.1\r\n{fields}\r\n"));
    }
    // After an Upgrade nothing is a request before the app has said 101.
    let upgrade = "Host: reviews.shop\r\nConnection: upgrade\r\nUpgrade: websocket\r\n";
    probes.push(format!("GET /x HTTP/1.1\r\n{upgrade}\r\n"));
    probes.push(format!("GET /x HTTP/1.1\r\n{upgrade}Content-Length: 4\r\n\r\nbody"));
    probes
}

/// Whether a second request is one by right: everybody who takes LF for the end of a line, as RFC 9112 §2.2 lets a
/// server do, reads the same two.
fn is_two_by_right(probe: &str) -> bool {
    let readings = readers::lax_readers().into_iter().map(|lax| {
        let lax = Lax { bare_lf: true, ..lax };
        readers::all(probe.as_bytes(), |rest| readers::lax(rest, lax)).0
    });
    let readings: Vec<_> = readings.collect();
    readings.iter().all(|read| *read == readings[0])
        && readings[0].get(1).is_some_and(|r| r.target == b"/smuggled")
}

#[test]
fn t10_what_can_be_read_in_two_ways_is_refused_or_made_plain() {
    on_local_set(async {
        let scene = Scene::set().await;
        let probes = [framings(), heads()].concat();
        let (by_right, hiding): (Vec<_>, Vec<_>) = probes.iter().partition(|probe| is_two_by_right(probe));
        let mut arrived = 0;
        for (probes, by_right) in [(&by_right, true), (&hiding, false)] {
            for probes in probes.chunks(TOGETHER) {
                let said = probes.iter().map(|probe| async {
                    let from_app =
                        async { say(scene.outbound().await, probe.as_bytes(), |_| false, QUIET).await };
                    let from_mesh = async {
                        say(scene.inbound(b"http/1.1").await, probe.as_bytes(), |_| false, QUIET).await
                    };
                    tokio::join!(from_app, from_mesh);
                });
                futures_util::future::join_all(said).await;
                let what = format!("one of {probes:?}");
                let read = match by_right {
                    true => scene.app.read_alike(&what),
                    false => scene.app.read_without_smuggled(&what),
                };
                arrived += read.len();
            }
        }
        scene.goes_on("after all probes").await;
        let probed = 2 * probes.len();
        println!("{probed} probes, {arrived} requests reached the app, read alike by all readers");
        assert!(by_right.len() < 32, "few are: {by_right:?}");
        assert!(arrived > 2 * by_right.len(), "what is plain arrives");
    });
}

/// A head that HPACK leaves as it is.
fn http2_head(fields: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap());
            block.extend_from_slice(text);
        }
    }
    block
}

fn http2_frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// Whether somebody has answered, reset or said goodbye.
fn is_answered(heard: &[u8]) -> bool {
    let mut rest = heard;
    while let [a, b, c, kind, ..] = *rest {
        if matches!(kind, 1 | 3 | 7) {
            return true;
        }
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        rest = rest.get(9 + length..).unwrap_or_default();
    }
    false
}

/// A request for each place that the byte can be in, each as a whole connection.
fn with_byte(byte: u8) -> Vec<Vec<u8>> {
    let odd = |before: &str, after: &str| [before.as_bytes(), &[byte], after.as_bytes()].concat();
    let (method, path) = (odd("GE", "T"), odd("/a", "smuggled: b"));
    let (authority, name) = (odd("reviews.shop", ""), odd("x", "smuggled"));
    let (value, length) = (odd("a", "smuggled: b"), odd("0", ""));
    let ask = |method: &[u8], path: &[u8], authority: &[u8], more: &[(&[u8], &[u8])]| {
        let mut fields: Vec<(&[u8], &[u8])> =
            vec![(b":method", method), (b":scheme", b"http"), (b":path", path), (b":authority", authority)];
        fields.extend_from_slice(more);
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend(http2_frame(4, 0, 0, &[]));
        bytes.extend(http2_frame(1, 5, 1, &http2_head(&fields)));
        bytes
    };
    vec![
        ask(b"GET", b"/x", b"reviews.shop", &[(&name, b"b")]),
        ask(b"GET", b"/x", b"reviews.shop", &[(b"x", &value)]),
        ask(b"GET", b"/x", b"reviews.shop", &[(b"cookie", b"a=b"), (b"cookie", &value)]),
        ask(b"GET", &path, b"reviews.shop", &[]),
        ask(b"GET", b"/x", &authority, &[]),
        ask(&method, b"/x", b"reviews.shop", &[]),
        ask(b"GET", b"/x", b"reviews.shop", &[(b"host", &authority)]),
        ask(b"POST", b"/x", b"reviews.shop", &[(b"content-length", &length)]),
    ]
}

#[test]
fn t11_no_byte_in_an_http2_request_makes_two_of_it() {
    on_local_set(async {
        let scene = Scene::set().await;
        let (mut asked, mut arrived) = (0, 0);
        for byte in 0..=255u8 {
            let requests = with_byte(byte);
            let said = requests.iter().map(|bytes| async {
                let from_app =
                    async { say(scene.outbound().await, bytes, is_answered, ANSWERED_WITHIN).await };
                let from_mesh =
                    async { say(scene.inbound(b"h2").await, bytes, is_answered, ANSWERED_WITHIN).await };
                tokio::join!(from_app, from_mesh);
            });
            futures_util::future::join_all(said).await;
            let read = scene.app.read_without_smuggled(&format!("byte {byte:#04x}"));
            assert!(read.len() <= 2 * requests.len(), "byte {byte:#04x}: {read:?}");
            assert!(!byte.is_ascii_lowercase() || read.len() > requests.len(), "{byte:#04x} is refused");
            asked += 2 * requests.len();
            arrived += read.len();
        }
        scene.goes_on("after all bytes").await;
        println!("{asked} requests, {arrived} reached the app, read alike by all readers");
    });
}

#[test]
fn t20_what_is_plain_text_at_the_inbound_port_reaches_no_app() {
    on_local_set(async {
        let scene = Scene::set().await;
        let hello = b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00GET / HTTP/1.1\r\nhost: reviews.shop\r\n\r\n";
        let http2 = with_byte(b'a').remove(0);
        for plain in [
            b"GET / HTTP/1.1\r\nhost: reviews.shop\r\n\r\n".to_vec(),
            b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\nGET / HTTP/1.1\r\nhost: reviews.shop\r\n\r\n".to_vec(),
            b"CONNECT reviews.shop:80 HTTP/1.1\r\nhost: reviews.shop\r\n\r\n".to_vec(),
            hello.to_vec(),
            http2,
            b"\0".repeat(1000),
        ] {
            let tcp = TcpStream::connect(scene.shop.reviews.inbound).await.unwrap();
            let heard = say(tcp, &plain, |_| false, QUIET).await;
            assert!(!heard.windows(4).any(|word| word == b"HTTP"), "{:?}", String::from_utf8_lossy(&heard));
        }
        assert!(scene.app.0.borrow().is_empty(), "the app was asked");
        scene.goes_on("after plain text").await;
    });
}
