//! Tests of the admin endpoint, over a socket.

use http_body_util::{BodyExt as _, Empty};

use super::*;
use crate::runtime::drain::drain;
use crate::sidecar::tests::world::{Domain, view};
use hanse_federation::Locality;

async fn get(address: SocketAddr, path: &str) -> (StatusCode, String) {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get(path).header("host", "localhost").body(Empty::<Bytes>::new()).unwrap();
    let response = sender.send_request(request).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn readiness_names_what_is_missing_and_no_page_shows_a_key() {
    let plane = Arc::new(Plane::new("p".parse().unwrap(), Locality::default()));
    let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    let admin =
        Admin::new(Arc::clone(&plane), Vec::new).page("/extra", || async { json!({ "extra": true }) });
    let (drain, stop) = drain();
    let served = tokio::spawn(serve(TcpListener::from_std(listener).unwrap(), Arc::new(admin), stop));

    assert_eq!(get(address, "/healthz").await.0, StatusCode::OK);
    let (status, body) = get(address, "/readyz").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(body.contains("[-] svid") && body.contains("[-] view"), "{body}");

    let east = Domain::new("east.example");
    let svid = east.workload("reviews");
    plane.credentials.install_svid(&svid).unwrap();
    plane.publish(Arc::new(view(&[&east])));
    assert_eq!(get(address, "/readyz").await, (StatusCode::OK, "ready\n".to_owned()));
    let (_, body) = get(address, "/readyz?verbose").await;
    assert!(body.contains("[+] svid: spiffe://east.example/ns/shop/sa/reviews"), "{body}");
    assert!(get(address, "/extra").await.1.contains("\"extra\": true"));
    assert_eq!(get(address, "/nothing").await.0, StatusCode::NOT_FOUND);

    let mut certs = String::new();
    for path in ["/certs", "/connections", "/config_dump", "/metrics", "/version", "/extra"] {
        let (status, body) = get(address, path).await;
        assert_eq!(status, StatusCode::OK, "{path}");
        assert!(!body.contains("PRIVATE KEY"), "{path}");
        if path == "/certs" {
            certs = body;
        }
    }
    let certs: Value = serde_json::from_str(&certs).unwrap();
    assert_eq!(certs["spiffeId"], "spiffe://east.example/ns/shop/sa/reviews");
    assert_eq!(certs["serial"], svid.facts.serial.to_string());
    assert_eq!(certs["chainPem"], svid.chain_pem());
    assert_eq!(certs["bundlePem"], east.bundle().to_pem());
    assert!(get(address, "/metrics").await.1.contains("hanse_view_revision 1"));

    drain.end();
    served.await.unwrap();
}

#[test]
fn the_admin_endpoint_stays_on_loopback() {
    assert!(bind("0.0.0.0:0".parse().unwrap()).is_err());
    assert!(bind("192.0.2.1:0".parse().unwrap()).is_err());
}
