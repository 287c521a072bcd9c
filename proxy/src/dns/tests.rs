//! Answers of the DNS: what exists, what does not, what is others', and what never leads into the mesh.

use std::collections::BTreeSet;
use std::str::FromStr as _;

use hanse_federation::catalog::Service;
use hanse_federation::{Change, View};

use super::*;

fn addresses(services: &[&str]) -> Addresses {
    let mut view = View::new("east".parse().unwrap(), "east.example".parse().unwrap());
    for name in services {
        let service = Service { name: name.parse().unwrap(), identities: BTreeSet::default(), export: None };
        view.apply(&Change::ServicePut(service));
    }
    Addresses::default().next(&view).unwrap()
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut request = Message::query();
    request.add_query(Query::query(Name::from_str(name).unwrap(), kind));
    request
}

/// The answer as text: its code, and its records' data; `forward` where it is others'.
fn asked(addresses: Option<&Addresses>, name: &str, kind: RecordType) -> String {
    let request = question(name, kind);
    match decide(&request, addresses) {
        Decision::Forward(query) => {
            assert_eq!(query, request.queries[0]);
            "forward".to_owned()
        }
        Decision::Ignore => "ignore".to_owned(),
        Decision::Answer(answer, label) => {
            assert_eq!((answer.metadata.id, &answer.queries), (request.metadata.id, &request.queries));
            assert_eq!(answer.metadata.message_type, MessageType::Response);
            let is_negative = answer.metadata.authoritative && answer.answers.is_empty();
            assert_eq!(answer.authorities.len(), usize::from(is_negative), "an SOA says for how long");
            let records: Vec<String> = answer.answers.iter().map(|record| record.data.to_string()).collect();
            format!("{label} {}", records.join(" ")).trim_end().to_owned()
        }
    }
}

#[test]
fn names_of_the_mesh_are_answered_here_and_others_are_forwarded() {
    let table = addresses(&["shop/reviews"]);
    let pair = table.of(&ServiceHost::parse("reviews.shop").unwrap()).unwrap();
    let here = table.of(&ServiceHost::parse("reviews.shop.svc.cluster.local").unwrap()).unwrap();
    let ask = |name: &str, kind| asked(Some(&table), name, kind);
    let reviews = "reviews.shop.svc.clusterset.local.";
    assert_eq!(ask(reviews, RecordType::A), format!("mesh {}", pair.v4));
    assert_eq!(ask(reviews, RecordType::AAAA), format!("mesh {}", pair.v6));
    assert_eq!(ask("ReViews.SHOP.svc.ClusterSet.Local.", RecordType::A), format!("mesh {}", pair.v4));
    assert_eq!(ask("reviews.shop.svc.cluster.local.", RecordType::A), format!("mesh {}", here.v4));
    for kind in [RecordType::MX, RecordType::SRV, RecordType::HTTPS, RecordType::TXT] {
        assert_eq!(ask(reviews, kind), "no_data", "{kind}");
    }
    for (name, answer) in [
        // There is something below these.
        ("clusterset.local.", "no_data"),
        ("svc.clusterset.local.", "no_data"),
        ("shop.svc.clusterset.local.", "no_data"),
        ("ratings.shop.svc.clusterset.local.", "no_such_name"),
        ("else.svc.clusterset.local.", "no_such_name"),
        ("a.reviews.shop.svc.clusterset.local.", "no_such_name"),
        ("pod.clusterset.local.", "no_such_name"),
        ("example.com.", "forward"),
        ("reviews.shop.", "forward"),
        ("kubernetes.default.svc.cluster.local.", "forward"),
        ("svc.cluster.local.", "forward"),
        ("notclusterset.local.", "forward"),
        ("reviews.shop.svc.clusterset.local.example.com.", "forward"),
        ("1.0.0.10.in-addr.arpa.", "forward"),
        (".", "forward"),
    ] {
        assert_eq!(ask(name, RecordType::A), answer, "{name}");
    }
}

#[test]
fn a_virtual_address_has_the_name_that_it_stands_for() {
    let table = addresses(&["shop/reviews"]);
    let pair = table.of(&ServiceHost::parse("reviews.shop").unwrap()).unwrap();
    let ask = |name: Name, kind| asked(Some(&table), &name.to_string(), kind);
    for address in [std::net::IpAddr::from(pair.v4), pair.v6.into()] {
        let name = Name::from(address);
        assert_eq!(ask(name.clone(), RecordType::PTR), "mesh reviews.shop.svc.clusterset.local.");
        assert_eq!(ask(name, RecordType::A), "no_data");
    }
    let nobody: std::net::IpAddr = "240.240.0.0".parse().unwrap();
    assert_eq!(ask(nobody.into(), RecordType::PTR), "no_such_name");
}

#[test]
fn before_the_first_view_nobody_is_led_past_the_mesh() {
    for name in ["reviews.shop.svc.clusterset.local.", "reviews.shop.svc.cluster.local."] {
        assert_eq!(asked(None, name, RecordType::A), "failed");
    }
    assert_eq!(asked(None, "example.com.", RecordType::A), "forward");
}

#[test]
fn what_is_no_plain_question_is_refused_and_answers_are_ignored() {
    let table = addresses(&["shop/reviews"]);
    let code = |request: &Message| match decide(request, Some(&table)) {
        Decision::Answer(answer, "refused") => answer.metadata.response_code,
        other => panic!("{other:?}"),
    };
    let name = "reviews.shop.svc.clusterset.local.";
    assert_eq!(code(&question(name, RecordType::AXFR)), ResponseCode::Refused);
    let mut chaos = question(name, RecordType::A);
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(code(&chaos), ResponseCode::Refused);
    let mut two = question(name, RecordType::A);
    two.add_query(two.queries[0].clone());
    assert_eq!(code(&two), ResponseCode::FormErr);
    let mut update = question(name, RecordType::A);
    update.metadata.op_code = OpCode::Update;
    assert_eq!(code(&update), ResponseCode::NotImp);
    let mut answer = question(name, RecordType::A);
    answer.metadata.message_type = MessageType::Response;
    assert!(matches!(decide(&answer, Some(&table)), Decision::Ignore));
}

#[test]
fn what_does_not_fit_into_a_datagram_is_to_be_asked_for_again() {
    let request = question("example.com.", RecordType::TXT);
    let mut answer = refusal(&request, ResponseCode::NoError);
    let small = to_datagram(&request, &answer).unwrap();
    assert!(!Message::from_vec(&small).unwrap().metadata.truncation);
    let name = request.queries[0].name().clone();
    for n in 0..100 {
        answer.add_answer(Record::from_rdata(name.clone(), 1, RData::A(A::new(10, 0, 0, n))));
    }
    let cut = to_datagram(&request, &answer).unwrap();
    assert!(cut.len() <= 512, "{}", cut.len());
    let cut = Message::from_vec(&cut).unwrap();
    assert_eq!((cut.metadata.truncation, cut.metadata.id, cut.answers.len()), (true, request.metadata.id, 0));
}
