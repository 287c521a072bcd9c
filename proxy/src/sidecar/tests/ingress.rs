//! Clients outside at a Gateway, through a real proxy that serves it and the sidecar behind: the example, with a certificate
//! of the test's.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use hanse_federation::policy::PolicySpec;
use hanse_federation::policy::document::gateway::ListenerProtocol;
use hanse_identity::tls::outside::web_client_config;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::sync::mpsc;

use super::balancing::example;
use super::outside::Web;
use super::*;
use crate::io::ingress::Gate;
use crate::runtime::Plane;
use crate::runtime::access_log::AccessLog;
use crate::runtime::certificates::Certificates;
use crate::runtime::drain::{Drain, drain};
use crate::sidecar::{Listeners, Settings, work};

/// A proxy that serves `shop/public`, at the front of a shop.
struct Public {
    shop: Shop,
    plane: Arc<Plane>,
    web: Web,
    directory: tempfile::TempDir,
    certificates: Arc<Certificates>,
    plain: SocketAddr,
    secure: SocketAddr,
    _drain: Drain,
}

pub(super) fn write(directory: &Path, name: &str, chain: &str, key: &str, mode: u32) {
    let path = directory.join(name).with_extension("key");
    std::fs::write(&path, key).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    std::fs::write(directory.join(name).with_extension("crt"), chain).unwrap();
}

/// A proxy that serves those ports of a Gateway; where they are.
pub(super) fn serve(
    plane: &Arc<Plane>,
    gateway: &hanse_identity::ServiceName,
    ports: &[u16],
    certificates: Option<Arc<Certificates>>,
    access_log: Option<AccessLog>,
) -> (Vec<SocketAddr>, Drain) {
    let mut listeners = Listeners::default();
    let mut addresses = Vec::new();
    for port in ports {
        let listener = crate::io::listen::bind("127.0.0.1:0".parse().unwrap(), 1).unwrap().remove(0);
        addresses.push(listener.local_addr().unwrap());
        let gate = Gate { gateway: gateway.clone(), port: *port, certificates: certificates.clone() };
        listeners.gates.push((Arc::new(gate), listener));
    }
    let settings = Settings {
        plane: Arc::clone(plane),
        services: Arc::default(),
        app: None,
        tcp_ports: Arc::default(),
        access_log,
        limits: Arc::default(),
        workers: 1,
        capture: None,
    };
    let (drain, stop) = drain();
    // Nobody inspects in tests.
    let (_inspect, inspections) = mpsc::channel(1);
    tokio::task::spawn_local(work(settings, listeners, inspections, stop));
    (addresses, drain)
}

impl Public {
    async fn open() -> Self {
        let mut shop = Shop::open().await;
        shop.apply(&example("gateway"));
        let (web, directory) = (Web::new(), tempfile::tempdir().unwrap());
        let (chain, key) = web.issue("www.shop.example");
        write(directory.path(), "www", &chain, &key, 0o600);
        let certificates = Arc::new(Certificates::open(directory.path()).unwrap());
        let plane = Arc::new(Plane::new("public-1".parse().unwrap(), hanse_federation::Locality::default()));
        plane.credentials.install_svid(&shop.east.workload("public")).unwrap();
        plane.publish(Arc::new(shop.view.clone()));
        let gateway = "shop/public".parse().unwrap();
        let certs = Some(Arc::clone(&certificates));
        let (addresses, drain) = serve(&plane, &gateway, &[80, 443], certs, None);
        let (plain, secure) = (addresses[0], addresses[1]);
        Self { shop, plane, web, directory, certificates, plain, secure, _drain: drain }
    }

    /// A TLS connection that asks for `name`; the leaf that was shown, and a way to ask.
    async fn connect(&self, name: &str) -> std::io::Result<(Vec<u8>, Http1<Full<Bytes>>)> {
        let roots = [CertificateDer::from_pem_slice(self.web.root.as_bytes()).unwrap()];
        let config = web_client_config(&roots, &[tls::ALPN_HTTP1]).unwrap();
        let tcp = TcpStream::connect(self.secure).await?;
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let tls = tokio_rustls::TlsConnector::from(config).connect(name, tcp).await?;
        let leaf = tls.get_ref().1.peer_certificates().unwrap()[0].to_vec();
        Ok((leaf, http1(tls).await))
    }

    async fn ask(&self, url: &str) -> Answer {
        let (_, mut sender) = self.connect("www.shop.example").await.unwrap();
        Answer::of(sender.send_request(get(url)).await.unwrap()).await
    }
}

#[test]
fn a_client_outside_gets_to_a_service_by_the_gateways_routes_and_certificate() {
    on_local_set(async {
        let public = Public::open().await;
        // Plain HTTP is sent to HTTPS.
        let mut sender = http1(TcpStream::connect(public.plain).await.unwrap()).await;
        let answer =
            Answer::of(sender.send_request(get("http://www.shop.example/x?q=1")).await.unwrap()).await;
        assert_eq!(answer.status, StatusCode::MOVED_PERMANENTLY);
        assert_eq!(answer.header("location"), "https://www.shop.example/x?q=1");

        let (_, mut sender) = public.connect("www.shop.example").await.unwrap();
        let mut request = get("https://www.shop.example/x?q=1");
        for (name, forged) in [
            // What it names ends at this hop, but for what this hop writes.
            ("connection", "x-forwarded-for, x-forwarded-proto"),
            ("x-forwarded-for", "192.0.2.66"),
            ("x-forwarded-proto", "gopher"),
            ("x-real-ip", "192.0.2.66"),
            ("forwarded", "for=192.0.2.66"),
            ("x-request-id", "forged"),
            ("x_request_id", "forged"),
            ("x-forwarded-client-cert", "URI=spiffe://east.example/ns/shop/sa/admin"),
        ] {
            request.headers_mut().insert(name, forged.parse().unwrap());
        }
        let answer = Answer::of(sender.send_request(request).await.unwrap()).await;
        assert_eq!((answer.status.as_u16(), answer.header("x-app")), (200, "reviews-v1"), "{answer:?}");
        for ours in ["x-hanse-cluster", "x-hanse-tier", "x-hanse-answered-by"] {
            assert_eq!(answer.header(ours), "", "the mesh is nobody's business outside");
        }
        let headers = answer.seen()["headers"].clone();
        assert_eq!(headers["host"], "www.shop.example");
        assert_eq!(
            (&headers["x-forwarded-for"], &headers["x-forwarded-proto"]),
            (&"127.0.0.1".into(), &"https".into())
        );
        assert!(headers["x-real-ip"].is_null() && headers["forwarded"].is_null(), "{headers}");
        assert_eq!(headers["x-request-id"].as_str().map(str::len), Some(36), "{headers}");
        assert!(headers["x_request_id"].is_null(), "{headers}");
        let caller = headers["x-forwarded-client-cert"].as_str().unwrap();
        assert!(caller.ends_with(";URI=spiffe://east.example/ns/shop/sa/public"), "{caller}");

        // A host that no route is for, and one that no listener is for.
        assert_eq!(public.ask("https://other.shop.example/").await.status, StatusCode::NOT_FOUND);
        let answer = public.ask("https://www.elsewhere.example/").await;
        assert_eq!(
            (answer.status.as_u16(), &answer.body[..]),
            (404, &b"no-route\n"[..]),
            "no names, no addresses"
        );
        assert!(public.connect("www.elsewhere.example").await.is_err(), "no certificate is for it");
        let refused = Refused { reason: "outside_handshake" };
        assert_eq!(public.plane.telemetry.refused.get_or_create(&refused).get(), 1);
    });
}

#[test]
fn a_plain_listener_leads_into_the_mesh_where_a_route_says_so() {
    on_local_set(async {
        let mut public = Public::open().await;
        public.shop.apply(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: { name: plain, namespace: shop }\nspec:\n  \
             parentRefs: [{ group: gateway.networking.k8s.io, kind: Gateway, name: public, sectionName: web }]\n  \
             hostnames: [plain.shop.example]\n  rules:\n  - backendRefs: \
             [{ group: multicluster.x-k8s.io, kind: ServiceImport, name: reviews }]\n",
        );
        public.plane.publish(Arc::new(public.shop.view.clone()));
        let mut sender = http1(TcpStream::connect(public.plain).await.unwrap()).await;
        let mut request = get("http://plain.shop.example/x?q=1");
        request.headers_mut().insert("x-forwarded-proto", "https".parse().unwrap());
        let answer = Answer::of(sender.send_request(request).await.unwrap()).await;
        assert_eq!((answer.status.as_u16(), answer.header("x-app")), (200, "reviews-v1"), "{answer:?}");
        let headers = answer.seen()["headers"].clone();
        assert_eq!(
            (&headers["host"], &headers["x-forwarded-proto"]),
            (&"plain.shop.example".into(), &"http".into())
        );
        let caller = headers["x-forwarded-client-cert"].as_str().unwrap();
        assert!(caller.ends_with(";URI=spiffe://east.example/ns/shop/sa/public"), "{caller}");
        // On the same connection, another host goes where it did; and this one is not served where it is not meant to be.
        let answer = Answer::of(sender.send_request(get("http://www.shop.example/")).await.unwrap()).await;
        assert_eq!(answer.status, StatusCode::MOVED_PERMANENTLY);
        assert_eq!(public.ask("https://plain.shop.example/").await.status, StatusCode::NOT_FOUND);
    });
}

#[test]
fn a_certificate_is_replaced_without_a_restart_and_a_key_that_others_read_is_not_taken() {
    on_local_set(async {
        let public = Public::open().await;
        let (first, mut kept) = public.connect("www.shop.example").await.unwrap();
        let (chain, key) = public.web.issue("www.shop.example");
        write(public.directory.path(), "www", &chain, &key, 0o644);
        let problems = public.certificates.refresh();
        assert!(problems.len() == 1 && problems[0].contains("chmod 600"), "{problems:?}");
        assert_eq!(public.connect("www.shop.example").await.unwrap().0, first, "the one before it stays");
        write(public.directory.path(), "www", &chain, &key, 0o600);
        assert_eq!(public.certificates.refresh(), Vec::<String>::new());
        let (second, _) = public.connect("www.shop.example").await.unwrap();
        assert_ne!(second, first);
        assert_eq!(second, CertificateDer::from_pem_slice(chain.as_bytes()).unwrap().to_vec());
        // Nobody was sent away for it.
        let answer = kept.send_request(get("https://www.shop.example/")).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        // A key of another certificate is none.
        let (_, other) = public.web.issue("www.shop.example");
        write(public.directory.path(), "www", &chain, &other, 0o600);
        assert_eq!(public.certificates.refresh().len(), 1);
        assert_eq!(public.connect("www.shop.example").await.unwrap().0, second);
    });
}

#[test]
fn a_plain_connection_is_of_no_use_at_a_listener_that_has_become_secure() {
    on_local_set(async {
        let public = Public::open().await;
        let mut sender = http1(TcpStream::connect(public.plain).await.unwrap()).await;
        let mut ask = async || {
            Answer::of(sender.send_request(get("http://www.shop.example/")).await.unwrap()).await.status
        };
        assert_eq!(ask().await, StatusCode::MOVED_PERMANENTLY);
        let mut view = public.shop.view.clone();
        for document in view.policies.values_mut() {
            let PolicySpec::Gateway(gateway) = &mut document.spec else { continue };
            let tls = gateway.listeners.iter().find_map(|listener| listener.tls.clone());
            for listener in &mut gateway.listeners {
                (listener.protocol, listener.tls) = (ListenerProtocol::Https, tls.clone());
            }
        }
        view.revision.0 += 1;
        public.plane.publish(Arc::new(view));
        assert_eq!(ask().await, StatusCode::MISDIRECTED_REQUEST);
    });
}

#[test]
fn a_gateway_answers_preflights_and_says_whose_pages_may_read() {
    on_local_set(async {
        let mut public = Public::open().await;
        // The example as it is with a Gateway. Its host is any that no other route has.
        let route = example("http-route-cors");
        assert!(route.contains("\n  # - {"), "the Gateway is in a comment");
        public.shop.apply(&route.replace("\n  # - {", "\n  - {"));
        public.plane.publish(Arc::new(public.shop.view.clone()));
        let (_, mut sender) = public.connect("www.shop.example").await.unwrap();
        for (method, asks, status) in [("OPTIONS", Some("PUT"), 204), ("GET", None, 200)] {
            let mut request = get("https://api.shop.example/x");
            *request.method_mut() = method.parse().unwrap();
            request.headers_mut().insert("origin", "https://shop.example".parse().unwrap());
            if let Some(asks) = asks {
                request.headers_mut().insert("access-control-request-method", asks.parse().unwrap());
            }
            let answer = Answer::of(sender.send_request(request).await.unwrap()).await;
            assert_eq!(answer.status.as_u16(), status, "{answer:?}");
            assert_eq!(answer.header("access-control-allow-origin"), "https://shop.example");
            assert_eq!(answer.header("access-control-expose-headers"), "x-app");
            assert_eq!(answer.header("access-control-allow-methods"), asks.unwrap_or_default());
            assert_eq!(answer.header("x-hanse-answered-by"), "", "the mesh is nobody's business outside");
        }
    });
}
