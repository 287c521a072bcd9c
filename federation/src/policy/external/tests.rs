//! Services outside: by which names and ports they go, where they must not be, and whose document wins.

use super::*;
use crate::policy::parse;

fn view(text: &str) -> View {
    let mut view = View::new("east".parse().unwrap(), "east.example".parse().unwrap());
    for (document, _) in parse("test", text).unwrap() {
        view.policies.insert(document.key(), document);
    }
    view
}

const PAYMENTS: &str = "
apiVersion: hanse.dev/v1alpha1
kind: ExternalService
metadata: { name: payments, namespace: shop }
spec:
  hosts: [api.payments.example]
  ports:
    - { port: 8080, protocol: HTTP }
    - { port: 80, targetPort: 443, protocol: HTTP }
    - { port: 5432, protocol: TCP }
---
apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: { name: payments, namespace: shop }
spec:
  targetRefs: [{ group: hanse.dev, kind: ExternalService, name: payments }]
  validation: { hostname: api.payments.example, wellKnownCACertificates: System }
";

#[test]
fn a_host_names_its_service_and_a_port_of_it() {
    let all = Externals::build(&view(PAYMENTS));
    assert_eq!(all.config.outbound, OutboundMode::RegistryOnly);
    let payments = all.find("API.payments.example.:8080").unwrap();
    assert_eq!(payments.name.to_string(), "shop/payments");
    assert_eq!(payments.tls.as_ref().unwrap().validation.hostname, "api.payments.example");
    assert_eq!(payments.asks_dns(), Some("api.payments.example"));
    let http = |authority| payments.port(None, authority, ExternalProtocol::Http);
    assert_eq!(http(Some("api.payments.example:8080")), Some(8080));
    assert_eq!(http(Some("api.payments.example:80")), Some(443));
    assert_eq!(http(Some("api.payments.example")), Some(443), "80 is what a URL without a port means");
    assert_eq!(http(Some("api.payments.example:5432")), None, "that is not HTTP");
    assert_eq!(http(Some("reviews.shop:7")), Some(443), "a route led here from another name");
    let chosen = |port| payments.port(Some(port), Some("api.payments.example"), ExternalProtocol::Http);
    assert_eq!((chosen(8080), chosen(80), chosen(5432)), (Some(8080), Some(443), None), "and by which port");
    assert_eq!(payments.port(None, Some("api.payments.example:5432"), ExternalProtocol::Tcp), Some(5432));
    for other in ["payments.example", "x.api.payments.example", "api.payments.example:x", ""] {
        assert!(all.find(other).is_none(), "{other:?}");
    }
}

#[test]
fn the_older_document_has_the_host() {
    let mut view = view(&format!(
        "{PAYMENTS}---
apiVersion: hanse.dev/v1alpha1
kind: ExternalService
metadata: {{ name: impostor, namespace: aaa }}
spec:
  hosts: [api.payments.example]
  ports: [{{ port: 80, protocol: HTTP }}]
---
apiVersion: hanse.dev/v1alpha1
kind: MeshConfig
metadata: {{ name: mesh }}
spec: {{ outbound: AllowAny }}
"
    ));
    for document in view.policies.values_mut().filter(|d| d.name.name() == "impostor") {
        document.created = hanse_identity::Timestamp(1);
    }
    let all = Externals::build(&view);
    assert_eq!(all.find("api.payments.example").unwrap().name.to_string(), "shop/payments");
    assert_eq!(all.config.outbound, OutboundMode::AllowAny);
}

#[test]
fn addresses_that_mean_this_host_are_none_of_anybody_else() {
    for local in [
        "127.0.0.1",
        "127.8.8.8",
        "0.0.0.0",
        "0.1.2.3",
        "169.254.169.254",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1",
        "febf::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "fd00:ec2::254",
        "fd20:ce::254",
        "100.100.100.200",
        "168.63.129.16",
        // What transparent mode routes to this host.
        "240.240.0.1",
        "::ffff:240.240.0.1",
        "fd68:616e:7365::1",
    ] {
        assert!(is_local(local.parse().unwrap()), "{local}");
    }
    for outside in ["192.0.2.1", "10.0.0.1", "2001:db8::1", "fd00::1", "fec0::1", "::ffff:192.0.2.1"] {
        assert!(!is_local(outside.parse().unwrap()), "{outside}");
    }
    let all = Externals::build(&view(PAYMENTS));
    let payments = all.find("api.payments.example").unwrap();
    let answers = ["169.254.169.254".parse().unwrap(), "192.0.2.1".parse().unwrap()];
    assert_eq!(payments.allowed(&answers), [answers[1]]);
}

#[test]
fn anywhere_is_where_the_authority_says() {
    let config = MeshConfig { outbound: OutboundMode::AllowAny, allow_local_addresses: false };
    let to = |authority| External::passthrough(authority, ExternalProtocol::Http, config);
    assert!(External::passthrough("a.example", ExternalProtocol::Http, MeshConfig::default()).is_none());
    let named = to("www.example.org:8080").unwrap();
    assert_eq!(
        (named.asks_dns(), named.port(None, None, ExternalProtocol::Http)),
        (Some("www.example.org"), Some(8080))
    );
    let literal = to("192.0.2.7").unwrap();
    assert_eq!(literal.asks_dns(), None);
    assert_eq!(literal.spec.addresses, ["192.0.2.7".parse::<IpAddr>().unwrap()]);
    assert!(to("127.0.0.1:80").unwrap().allowed(&["127.0.0.1".parse().unwrap()]).is_empty());
    for bad in ["", "a b", "user@host", "host:0", "host:99999", "a..b"] {
        assert!(to(bad).is_none(), "{bad:?}");
    }
}
