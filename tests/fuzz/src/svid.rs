//! Certificates: what is taken for an SVID another reader of X.509 takes for a leaf of the same one name, and of all edits
//! of a good one none is believed.

use std::sync::OnceLock;
use std::time::Duration;

use hanse_identity::grant::{Evidence, Registration, Selector, grant};
use hanse_identity::issue::certificate_request;
use hanse_identity::{
    Authority, Bundle, Revocations, Serial, SpiffeId, SvidFacts, Timestamp, Trust, Usage, issue, verify,
};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::{edit, hex};

const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);

fn issued() -> &'static (Trust, Vec<u8>) {
    static ISSUED: OnceLock<(Trust, Vec<u8>)> = OnceLock::new();
    ISSUED.get_or_init(|| {
        let id: SpiffeId = "spiffe://east.example/ns/shop/sa/reviews".parse().expect("a constant");
        let domain = id.trust_domain();
        let new_key = || rcgen::KeyPair::generate().expect("the system has random numbers");
        let serial = |n| Serial::from_random([n; 16]);
        let (day, node) = (Duration::from_secs(86_400), "node-1".parse().expect("a constant"));
        let authority = Authority::create(domain, &node, new_key(), serial(1), NOW - day, 30 * day)
            .expect("a new authority");
        let agent = "host-1".parse().expect("a constant");
        let evidence = Evidence { agent, selectors: [Selector::Uid(1)].into() };
        let registration = Registration::new(id.clone(), evidence.agent.clone(), [Selector::Uid(1)]);
        let none = Revocations::default();
        let ticket = grant(domain, [&registration], &none, &evidence, &id).expect("it is registered");
        let request = certificate_request(&new_key()).expect("a request");
        let chain = issue(ticket, &request, &authority, serial(2), NOW).expect("by its own authority").chain;
        let bundle = Bundle::new(domain.clone(), 1, vec![authority.certificate().clone()]);
        (Trust::new([&bundle], none), chain[0].clone())
    })
}

/// Whether it is taken for an SVID.
fn is_read_alike(der: &[u8]) -> bool {
    let Ok(facts) = SvidFacts::parse(der) else { return false };
    let Ok((rest, certificate)) = X509Certificate::from_der(der) else {
        panic!("another reader does not read {}", hex(der));
    };
    assert!(rest.is_empty() && !certificate.is_ca(), "{}", hex(der));
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.iter().flat_map(|names| &names.value.general_names);
    let uris = names.filter_map(|name| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    });
    assert_eq!(uris.collect::<Vec<_>>(), [facts.id.to_string()], "{}", hex(der));
    true
}

pub fn run(bytes: &[u8]) -> bool {
    let (trust, leaf) = issued();
    let der = edit::edited(leaf, bytes);
    let taken = is_read_alike(&der) | is_read_alike(bytes);
    // Signatures are checked last, so this costs no more than a parser for nearly all of them.
    for usage in [Usage::Client, Usage::Server] {
        let believed = verify(trust, &[&der], NOW, usage);
        assert_eq!(believed.is_ok(), der == *leaf, "{believed:?}: {} for {}", hex(&der), hex(leaf));
    }
    taken
}

pub fn seeds() -> Vec<Vec<u8>> {
    edit::seeds()
}
