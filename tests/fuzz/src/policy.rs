//! Policy documents as users write them: what is read is told again in the same form, read the same, and can be looked
//! over and put in force whatever it says.

use hanse_federation::change::Change;
use hanse_federation::host::ServiceHost;
use hanse_federation::policy::{RequestParts, RouteTable, parse, validate};
use hanse_federation::view::View;

pub fn run(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let Ok(documents) = parse("fuzz.yaml", text) else { return false };
    let mut view =
        View::new("east".parse().expect("a constant"), "east.example".parse().expect("a constant"));
    for (document, _) in &documents {
        let told = document.to_json().to_string();
        let again = parse("again.json", &told).unwrap_or_else(|problems| panic!("{told}: {problems:?}"));
        assert!(matches!(&again[..], [(same, _)] if same == document), "{told} for {document:?}");
    }
    validate(&view, "fuzz.yaml", &documents);
    for (document, _) in &documents {
        view.apply(&Change::PolicyPut(Box::new(document.clone())));
    }
    let host = ServiceHost::parse("reviews.shop").expect("a constant");
    let header = |name: &str| (name == "x-canary").then_some("yes");
    let (method, path, query) = ("OPTIONS", "/a/b", Some("q=1"));
    let parts = RequestParts { method, path, query, header: &header, preflight: Some("GET") };
    // Of any random number comes a backend or a word why there is none.
    for random in [0, 7, u64::MAX] {
        let _ = RouteTable::build(&view, &host).route(&host, &parts, random);
    }
    !documents.is_empty()
}

/// Every document of `deploy/examples`.
pub fn seeds() -> Vec<Vec<u8>> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/examples");
    let files = std::fs::read_dir(folder).expect("the examples are in the tree");
    let mut seeds: Vec<_> = files
        .map(|file| {
            std::fs::read(file.expect("a folder that can be read").path()).expect("a file that can be read")
        })
        .collect();
    seeds.sort();
    seeds
}
