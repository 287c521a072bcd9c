//! References to other namespaces through real sidecars: the example of ReferenceGrant, without it, with it, and withdrawn.

use hanse_federation::Change;
use hanse_federation::policy::{PolicyDocument, PolicyKind, parse, validate};

use super::*;

/// The example's documents, the grant and the route.
fn example() -> (PolicyDocument, PolicyDocument) {
    let path = format!("{}/../deploy/examples/reference-grant.yaml", env!("CARGO_MANIFEST_DIR"));
    let documents = parse("test", &std::fs::read_to_string(path).unwrap()).unwrap();
    let mut documents = documents.into_iter().map(|(document, _)| document);
    (documents.next().unwrap(), documents.next().unwrap())
}

#[test]
fn requests_cross_into_another_namespace_only_while_it_grants_that() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        let app = App::start("trial").await;
        let trial = Sidecar::start(Some(&shop.east.workload("trial")), &["trial/reviews"], Some(app.address));
        let id = shop.east.id("trial");
        shop.change(|view| {
            add_service(view, "trial/reviews", std::slice::from_ref(&id), None);
            add_endpoint(view, "trial-1", "trial/reviews", &id, trial.inbound);
        });
        let (grant, route) = example();
        let told = |view: &View, documents: &[&PolicyDocument]| {
            let documents: Vec<_> = documents.iter().map(|document| ((*document).clone(), 1)).collect();
            let codes = validate(view, "test", &documents).into_iter().map(|d| (d.code, d.severity));
            codes.map(|(code, severity)| format!("{code} {severity:?}")).collect::<Vec<_>>()
        };
        assert_eq!(told(&shop.view, &[&grant, &route]), [""; 0], "together they are whole");
        assert_eq!(told(&shop.view, &[&route]), ["E4108 Warning"], "and alone it is taken, with a warning");
        let put = |document: &PolicyDocument| Change::PolicyPut(Box::new(document.clone()));

        // Until both backends have been chosen: once in a hundred thousand million times none of 240 is for trial.
        let asked = async |shop: &mut Shop| {
            let (mut own, mut theirs, mut refused) = (0, 0, 0);
            for round in 0..240 {
                if round >= 40 && own > 0 && theirs + refused > 0 {
                    break;
                }
                let answer = shop.product.get(REVIEWS).await;
                match (answer.status.as_u16(), answer.header("x-app"), answer.header("x-hanse-reason")) {
                    (200, "trial", _) => theirs += 1,
                    (200, ..) => own += 1,
                    (500, "", "ref-not-permitted") => refused += 1,
                    _ => panic!("{answer:?}"),
                }
            }
            (own, theirs, refused)
        };
        shop.change(|view| view.apply(&put(&route)));
        let (own, theirs, refused) = asked(&mut shop).await;
        assert!(theirs == 0 && refused > 0 && own > 0, "{own} {theirs} {refused}");

        assert_eq!(told(&shop.view, &[&grant]), [""; 0]);
        shop.change(|view| view.apply(&put(&grant)));
        trial.publish(&shop.view);
        let (own, theirs, refused) = asked(&mut shop).await;
        assert!(refused == 0 && theirs > 0 && own > 0, "{own} {theirs} {refused}");

        shop.change(|view| view.policies.retain(|key, _| key.kind != PolicyKind::ReferenceGrant));
        let (own, theirs, refused) = asked(&mut shop).await;
        assert!(theirs == 0 && refused > 0 && own > 0, "{own} {theirs} {refused}");
    });
}
