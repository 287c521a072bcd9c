//! Tests of what is told of a request at both of its ends: sizes and names in metrics, and what it is called everywhere.

use std::time::Instant;

use hanse_federation::tap::{self, Tap, Target};
use hanse_federation::wire::watch as pb;
use hanse_federation::wire::{decode, encode};

use super::*;
use crate::io::http::MAX_HEADERS;

const HEAD_TOO_LARGE: StatusCode = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;

/// The one line of that family with all of these labels: all of its labels, and its value.
fn line(sidecar: &Sidecar, family: &str, labels: &[&str]) -> Option<(String, f64)> {
    let text = sidecar.plane.telemetry.to_text();
    let wanted = |line: &&str| {
        line.strip_prefix(family).is_some_and(|rest| rest.starts_with('{'))
            && labels.iter().all(|label| line.contains(label))
    };
    let mut lines = text.lines().filter(wanted);
    let found = lines.next().map(|line| line.rsplit_once(' ').unwrap());
    assert_eq!(lines.next(), None, "of {family} with {labels:?} there are two");
    found.map(|(labels, value)| (labels.to_owned(), value.parse().unwrap()))
}

/// What is counted once the request is over.
async fn counted(sidecar: &Sidecar, family: &str, labels: &[&str]) -> (String, f64) {
    until(&format!("{family} with {labels:?}"), async || line(sidecar, family, labels).is_some()).await;
    line(sidecar, family, labels).unwrap()
}

#[test]
fn bodies_are_measured_at_both_ends() {
    on_local_set(async {
        let shop = Shop::open().await;
        let mut sent = 0;
        for bytes in [700, 1300] {
            let request = Request::post("/upload").header("host", "reviews.shop");
            let request = request.body(Full::from(vec![b'a'; bytes])).unwrap();
            sent += shop.product.request(request).await.body.len();
        }
        for (sidecar, reporter) in [(&shop.product, "source"), (&shop.reviews, "destination")] {
            let reporter = format!("reporter=\"{reporter}\"");
            let labels = [reporter.as_str(), "response_code=\"200\"", "request_protocol=\"http\""];
            until("both are counted", async || {
                counted(sidecar, "istio_requests_total", &labels).await.1 == 2.0
            })
            .await;
            let requests = counted(sidecar, "istio_request_bytes_sum", &labels).await;
            assert_eq!(requests.1, 2000.0);
            assert_eq!(counted(sidecar, "istio_response_bytes_sum", &labels).await.1, sent as f64);
            for (bound, below) in [("500.0", 0.0), ("1000.0", 1.0), ("5000.0", 2.0), ("+Inf", 2.0)] {
                let le = format!("le=\"{bound}\"");
                let labels = [&labels[..], &[le.as_str()]].concat();
                assert_eq!(counted(sidecar, "istio_request_bytes_bucket", &labels).await.1, below, "{bound}");
            }
        }
        // The app speaks no HTTP/2; whatever it answers, it was asked by gRPC.
        let mut call = get(REVIEWS);
        call.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
        shop.product.request(call).await;
        assert_eq!(
            counted(&shop.product, "istio_requests_total", &["request_protocol=\"grpc\""]).await.1,
            1.0
        );
    });
}

#[test]
fn both_ends_are_told_by_istios_names() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        shop.product.get(REVIEWS).await;
        let (caller, called) = (shop.east.id("productpage"), shop.east.id("reviews"));
        let both = [
            format!("source_principal=\"{caller}\""),
            format!("destination_principal=\"{called}\""),
            "source_workload=\"productpage\",source_workload_namespace=\"shop\"".to_owned(),
            "source_canonical_service=\"productpage\",source_canonical_revision=\"latest\"".to_owned(),
            "source_app=\"productpage\",source_version=\"unknown\"".to_owned(),
            "destination_workload=\"reviews\",destination_workload_namespace=\"shop\"".to_owned(),
            "destination_canonical_service=\"reviews\",destination_canonical_revision=\"latest\"".to_owned(),
            "destination_app=\"reviews\",destination_version=\"unknown\"".to_owned(),
            "destination_service_name=\"reviews\",destination_service_namespace=\"shop\"".to_owned(),
        ];
        for (sidecar, labels) in [
            (&shop.product, ["reporter=\"source\"", "connection_security_policy=\"unknown\""]),
            (&shop.reviews, ["reporter=\"destination\"", "connection_security_policy=\"mutual_tls\""]),
        ] {
            for family in ["istio_requests_total", "istio_request_bytes_sum", "istio_response_bytes_count"] {
                let (told, _) = counted(sidecar, family, &labels).await;
                both.iter().for_each(|label| assert!(told.contains(label), "{label} is not in {told}"));
            }
        }
        shop.change(|view| view.endpoints.clear());
        shop.product.get(REVIEWS).await;
        let (told, _) = counted(&shop.product, "istio_requests_total", &["response_flags=\"UH\""]).await;
        for label in ["destination_workload=\"unknown\"", "destination_principal=\"unknown\""] {
            assert!(told.contains(label), "{told}");
        }
    });
}

/// T16: what a caller makes up is no label, however much of it there is.
#[test]
fn hosts_paths_and_methods_that_are_made_up_make_no_series() {
    on_local_set(async {
        let shop = Shop::open().await;
        let mut sender = http2(TcpStream::connect(shop.product.outbound).await.unwrap()).await;
        let told = || {
            let text =
                [&shop.product, &shop.reviews].map(|sidecar| sidecar.plane.telemetry.to_text()).concat();
            let series = text.lines().filter(|line| !line.starts_with('#')).count();
            (series, text)
        };
        let (mut before, mut made_up) = (0, 0);
        for rounds in [2, 2, 56] {
            for _ in 0..rounds {
                made_up += 1;
                let method = format!("M{made_up}");
                for (method, url, status) in [
                    ("GET", format!("http://h{made_up}.invented.example/"), 404),
                    ("GET", format!("http://s{made_up}.invented.svc.clusterset.local/"), 503),
                    ("GET", format!("http://reviews.invented{made_up}.svc.cluster.local/"), 503),
                    ("GET", format!("http://reviews.shop/invented{made_up}?invented={made_up}"), 200),
                    (method.as_str(), "http://reviews.shop/".to_owned(), 200),
                ] {
                    let request =
                        Request::builder().method(method).uri(url).header("x-b3-sampled", "invented");
                    let request = request.body(Full::<Bytes>::default()).unwrap();
                    let answer = Answer::of(sender.send_request(request).await.unwrap()).await;
                    assert_eq!(answer.status.as_u16(), status, "{answer:?}");
                }
                if made_up <= 10 {
                    let named = format!("c{made_up}.invented.svc.clusterset.local:6379");
                    let mut stream = TcpStream::connect(shop.product.outbound).await.unwrap();
                    let head = format!("CONNECT {named} HTTP/1.1\r\nhost: {named}\r\n\r\n");
                    stream.write_all(head.as_bytes()).await.unwrap();
                    let answer = upgrade::read_head(&mut stream).await.unwrap();
                    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
                }
            }
            let (series, text) = told();
            assert!(!text.contains("invented"), "{text}");
            // What is counted late, of the first round, is there by the second.
            if made_up <= 4 {
                before = series;
            }
            assert_eq!(series, before, "{text}");
        }
    });
}

/// Somebody looks at that proxy's requests.
fn look(sidecar: &Sidecar) {
    let tap = pb::Tap { id: 1, tap: encode(&Tap::new(Target::Everybody)), left_millis: 60_000 };
    sidecar.plane.taps.begin(pb::Taps { tap: vec![tap] }, Instant::now());
}

async fn told_id(sidecar: &Sidecar) -> String {
    let mut ids = Vec::new();
    until("it is told", async || {
        sidecar.plane.taps.tell(Instant::now(), |tapped| {
            let read = |request: &Vec<u8>| decode::<tap::Request>("request", request).unwrap();
            ids.extend(tapped.request.iter().map(|request| read(request).headers["x-request-id"].clone()));
            true
        });
        !ids.is_empty()
    })
    .await;
    assert_eq!(ids.len(), 1);
    ids.remove(0)
}

/// A request with as many headers as an app may send gets to the other one, with what proxies put in.
#[test]
fn what_a_proxy_puts_in_is_not_one_header_too_many() {
    on_local_set(async {
        let shop = Shop::open().await;
        let mut sender = http2(TcpStream::connect(shop.product.outbound).await.unwrap()).await;
        for (headers, status) in [(MAX_HEADERS, StatusCode::OK), (MAX_HEADERS + 1, HEAD_TOO_LARGE)] {
            let mut request = Request::new(Full::default());
            *request.uri_mut() = REVIEWS.parse().unwrap();
            for number in 0..headers {
                let name: http::HeaderName = format!("x-{number}").parse().unwrap();
                request.headers_mut().insert(name, "1".parse().unwrap());
            }
            let answer = Answer::of(sender.send_request(request).await.unwrap()).await;
            assert_eq!(answer.status, status, "{headers}: {answer:?}");
        }
    });
}

#[test]
fn a_request_has_one_id_from_the_first_proxy_to_the_app() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        shop.product.get(REVIEWS).await;
        look(&shop.product);
        look(&shop.reviews);
        let (too_long, longest) = ("x".repeat(129), "x".repeat(128));
        let mut made = BTreeSet::new();
        for (came, is_kept) in [
            (None, false),
            (Some("r-1"), true),
            (Some(&*longest), true),
            (Some(&*too_long), false),
            (Some("a b"), false),
        ] {
            let mut request = get(REVIEWS);
            if let Some(came) = came {
                request.headers_mut().insert("x-request-id", came.parse().unwrap());
            }
            let answer = shop.product.request(request).await;
            let id = answer.seen()["headers"]["x-request-id"].as_str().unwrap().to_owned();
            assert_eq!(Some(id.as_str()) == came, is_kept, "{came:?} became {id}");
            if !is_kept {
                assert_eq!(id.len(), 36, "{id}");
                assert!(made.insert(id.clone()), "{id} was there before");
            }
            for sidecar in [&mut shop.product, &mut shop.reviews] {
                assert_eq!(told_id(sidecar).await, id);
                let mut logged = sidecar.logged().await;
                while logged.request_id.as_str() != id {
                    logged = sidecar.logged().await;
                }
            }
        }
        // What the mesh answers itself has one too.
        shop.change(|view| view.endpoints.clear());
        shop.product.get(REVIEWS).await;
        let logged = shop.product.logged().await;
        assert_eq!((logged.response_code, logged.request_id.as_str().len()), (503, 36));
    });
}
