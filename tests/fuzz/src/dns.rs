//! DNS: whatever a message asks, only a question is answered, an answer is one to it and can be read, what has an address
//! has the one of that name, and no name of ours is asked of others.

use std::net::IpAddr;
use std::sync::OnceLock;

use hanse_federation::addresses::{Addresses, is_virtual};
use hanse_federation::catalog::Service;
use hanse_federation::{Change, View};
use hickory_resolver::proto::op::{Message, MessageType, Query};
use hickory_resolver::proto::rr::{Name, RData, RecordType};

use crate::answers::{Decision, MAX_DATAGRAM, decide, to_datagram};
use crate::hex;

fn addresses() -> &'static Addresses {
    static ADDRESSES: OnceLock<Addresses> = OnceLock::new();
    ADDRESSES.get_or_init(|| {
        let mut view =
            View::new("east".parse().expect("a constant"), "east.example".parse().expect("a constant"));
        for name in ["shop/reviews", "shop/ratings"] {
            let name = name.parse().expect("a constant");
            view.apply(&Change::ServicePut(Service { name, identities: Default::default(), export: None }));
        }
        Addresses::default().next(&view).expect("there were none before")
    })
}

/// Whether a name is below `clusterset.local`, by its labels as they are on the wire.
fn is_in_our_zone(name: &Name) -> bool {
    let labels: Vec<&[u8]> = name.iter().collect();
    let [.., zone, top] = &labels[..] else { return false };
    zone.eq_ignore_ascii_case(b"clusterset") && top.eq_ignore_ascii_case(b"local")
}

pub fn run(bytes: &[u8]) -> bool {
    let Ok(request) = Message::from_vec(bytes) else { return false };
    // Before there is a View, nobody is led past the mesh.
    if let Decision::Forward(query) = decide(&request, None) {
        assert!(!is_in_our_zone(query.name()), "{query:?}");
    }
    let answer = match decide(&request, Some(addresses())) {
        Decision::Ignore => {
            assert_ne!(request.metadata.message_type, MessageType::Query);
            return false;
        }
        Decision::Forward(query) => {
            assert!(request.queries == [query.clone()] && !is_in_our_zone(query.name()), "{query:?}");
            let address = query.name().parse_arpa_name();
            assert!(!address.is_ok_and(|network| is_virtual(network.addr())), "{query:?}");
            return false;
        }
        Decision::Answer(answer, _) => answer,
    };
    assert_eq!(request.metadata.message_type, MessageType::Query);
    assert_eq!(answer.metadata.message_type, MessageType::Response);
    assert_eq!((answer.metadata.id, &answer.queries), (request.metadata.id, &request.queries));
    for record in &answer.answers {
        let address: IpAddr = match &record.data {
            RData::A(v4) => v4.0.into(),
            RData::AAAA(v6) => v6.0.into(),
            RData::PTR(_) => continue,
            other => panic!("{other:?}"),
        };
        let host = addresses().at(address).unwrap_or_else(|| panic!("{address} is nobody's"));
        let name = record.name.to_ascii().to_ascii_lowercase();
        assert_eq!(name.trim_end_matches('.'), host.to_host());
        assert!(is_virtual(address));
    }
    let Some(datagram) = to_datagram(&request, &answer) else { return false };
    let most = usize::from(request.max_payload().min(MAX_DATAGRAM));
    // What repeats questions that were longer still is no longer than they.
    assert!(datagram.len() <= most.max(bytes.len()), "{} for {}", hex(&datagram), hex(bytes));
    let read = Message::from_vec(&datagram).unwrap_or_else(|error| panic!("{error}: {}", hex(&datagram)));
    assert_eq!(read.metadata.id, request.metadata.id);
    assert!(read.metadata.truncation || read.answers.len() == answer.answers.len());
    !answer.answers.is_empty()
}

pub fn seeds() -> Vec<Vec<u8>> {
    let ask = |name: &str, kind| {
        let mut request = Message::query();
        request.metadata.id = 7;
        request.add_query(Query::query(Name::from_ascii(name).expect("a constant"), kind));
        request.to_vec().expect("a question can be written")
    };
    let address = addresses().all().next().map(|(_, pair)| Name::from(IpAddr::from(pair.v4)).to_ascii());
    vec![
        ask("reviews.shop.svc.clusterset.local.", RecordType::A),
        ask("Ratings.Shop.svc.cluster.local.", RecordType::AAAA),
        ask("svc.clusterset.local.", RecordType::ANY),
        ask("nobody.shop.svc.clusterset.local.", RecordType::A),
        ask(&address.expect("there are two services"), RecordType::PTR),
        ask("example.com.", RecordType::MX),
        ask(".", RecordType::NS),
    ]
}
