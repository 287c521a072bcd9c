//! Tests of the routes of connections: ports, server names, precedence, weights.

use super::*;
use crate::change::Change;
use crate::policy::parse;

fn view(documents: &[&str]) -> View {
    let mut view = View::new("east".parse().unwrap(), "east.example".parse().unwrap());
    for (age, text) in documents.iter().enumerate() {
        for (mut document, _) in parse("test", text).unwrap_or_else(|e| panic!("{text}\n{e:#?}")) {
            document.created = hanse_identity::Timestamp(age as u64 + 1);
            view.apply(&Change::PolicyPut(Box::new(document)));
        }
    }
    view
}

fn document(kind: &str, name: &str, parent: &str, more: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{ name: {name}, namespace: shop }}\nspec:\n  \
         parentRefs: [{{ kind: Service, name: db{parent} }}]\n  {more}\n"
    )
}

fn to(routes: &StreamRoutes, port: u16, name: Option<&str>) -> String {
    match routes.route(port, name, 0) {
        Ok(Some(to)) => format!("{}:{}", to.backend.service.name(), to.port),
        Ok(None) => "as it is".to_owned(),
        Err(no) => no.to_string(),
    }
}

fn db() -> ServiceHost {
    ServiceHost::parse("db.shop").unwrap()
}

#[test]
fn the_more_precise_server_name_wins_and_tcp_takes_the_rest() {
    let tls = |name: &str, host: &str| {
        let rules = format!("hostnames: [\"{host}\"]\n  rules: [{{ backendRefs: [{{ name: {name} }}] }}]");
        document("TLSRoute", name, ", port: 5432", &rules)
    };
    let documents = [
        tls("all", "*.example.com"),
        tls("below", "*.db.example.com"),
        tls("one", "a.db.example.com"),
        tls("later", "a.db.example.com"),
        document("TCPRoute", "rest", ", port: 5432", "rules: [{ backendRefs: [{ name: rest, port: 1 }] }]"),
    ];
    let texts: Vec<&str> = documents.iter().map(String::as_str).collect();
    let routes = StreamRoutes::build(&view(&texts), &db());
    for (name, expected) in [
        (Some("a.db.example.com"), "one:5432"),
        (Some("A.DB.example.COM"), "one:5432"),
        (Some("b.db.example.com"), "below:5432"),
        (Some("b.c.db.example.com"), "below:5432"),
        (Some("db.example.com"), "all:5432"),
        (Some("example.com"), "rest:1"),
        (Some("badexample.com"), "rest:1"),
        (None, "rest:1"),
    ] {
        assert_eq!(to(&routes, 5432, name), expected, "{name:?}");
    }
    assert!(routes.reads_names(5432) && !routes.reads_names(5433));
    assert_eq!(to(&routes, 5433, Some("a.db.example.com")), "as it is", "the routes are for one port");
    let routes = StreamRoutes::build(&view(&texts[..4]), &db());
    assert_eq!(to(&routes, 5432, None), NoRoute::NoMatch.to_string());
    assert_eq!(to(&routes, 5432, Some("example.org")), NoRoute::NoMatch.to_string());
}

#[test]
fn weights_and_reach_are_those_of_the_backends() {
    let rules = "rules: [{ backendRefs: [{ name: a, weight: 3 }, { name: b }, { name: never, weight: 0 }] }]";
    let view = view(&[&document("TCPRoute", "split", "", rules)]);
    let routes = StreamRoutes::build(&view, &db());
    const STEP: u64 = u64::MAX / 1000;
    let mut counts = std::collections::BTreeMap::<String, u32>::new();
    for part in 0..1000u64 {
        let to = routes.route(7, None, part * STEP + STEP / 2).unwrap().unwrap();
        assert_eq!((to.port, &*to.route, to.backend.reach), (7, "shop/split", crate::host::Reach::Cluster));
        *counts.entry(to.backend.service.name().to_owned()).or_default() += 1;
    }
    assert_eq!(counts, [("a".to_owned(), 750), ("b".to_owned(), 250)].into());
    assert_eq!(
        to(&StreamRoutes::build(&view, &ServiceHost::parse("other.shop").unwrap()), 7, None),
        "as it is"
    );
}

#[test]
fn server_names_are_dns_names() {
    for good in ["db.example.com", "*.example.com", "a", "DB.Example.com", "1.example.com"] {
        assert!(check_server_name(good).is_ok(), "{good}");
    }
    for bad in ["", "*", "a.*.com", "*a.com", "1.2.3.4", "a..b", "a.", "a_b.com", "ex ample.com"] {
        assert!(check_server_name(bad).is_err(), "{bad}");
    }
}
