//! A revocation list that no client can read: SVIDs go on being rotated past it, and it can be cleared.

use std::collections::BTreeMap;

use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{Secret, secret};
use hanse_identity::Crl;
use hanse_identity::crl::{LIFETIME, MAX_CRL_BYTES};

use super::callers::{SdsStream, secrets};
use super::*;
use crate::fixture::REVIEWS;

/// As large as a list may be, and no list at all.
fn bad_list(bench: &Bench) -> Crl {
    Crl {
        authority: bench.east_1.certificate().key_id,
        number: 7,
        next_update: now() + LIFETIME,
        der: vec![0xff; MAX_CRL_BYTES].into(),
    }
}

fn has_list(secret: &Secret) -> bool {
    match &secret.r#type {
        Some(secret::Type::ValidationContext(context)) => context.crl.is_some(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_bad_list_blocks_no_rotation_and_can_be_cleared() {
    let bench = Bench::with(&[REVIEWS]);
    let trust = "spiffe://east.example";
    let mut certificate = SdsStream::open(bench.connect().await, &["default"]).await.unwrap();
    let mut bundle = SdsStream::open(bench.connect().await, &[trust]).await.unwrap();
    // As Envoy asks for what one cluster of it needs.
    let mut both = SdsStream::open(bench.connect().await, &["default", trust]).await.unwrap();
    for stream in [&mut certificate, &mut bundle, &mut both] {
        let response = stream.next().await.unwrap();
        stream.answer(&response, None).await;
    }
    until(|| bench.shared.streams.applied(1) == (1, 3)).await;

    let crl = bad_list(&bench);
    bench.change(|state| drop(state.crls.insert(east(), BTreeMap::from([(crl.authority, crl)]))));
    for stream in [&mut bundle, &mut both] {
        let response = stream.next().await.unwrap();
        assert!(secrets(&response).iter().any(|s| s.name == trust && has_list(s)));
        stream.answer(&response, Some("Failed to load CRL")).await;
    }
    until(|| bench.shared.streams.sds(2).rejected == 2).await;
    assert_eq!(bench.shared.streams.applied(2).0, 1, "who refused it is behind, and is said to be");

    // Rotation goes on, three times, for those who have refused the list as for the others.
    for _ in 0..3 {
        let (key, before) = (bench.shared.svids.list()[0].key.clone(), bench.only_svid());
        assert!(bench.shared.svids.renew_now(&key));
        let new = certificate.next().await.unwrap();
        certificate.answer(&new, None).await;
        let new = both.next().await.unwrap();
        assert!(secrets(&new).iter().any(|s| s.name == "default"));
        both.answer(&new, Some("Failed to load CRL")).await;
        until(|| bench.only_svid().facts.serial != before.facts.serial).await;
    }

    bench.change(|state| state.crls.clear());
    for stream in [&mut bundle, &mut both] {
        let cleared = stream.next().await.unwrap();
        assert!(secrets(&cleared).iter().all(|s| s.name != trust || !has_list(s)));
        stream.answer(&cleared, None).await;
    }
    until(|| bench.shared.streams.applied(3) == (3, 3)).await;
    assert_eq!(bench.shared.streams.sds(3).rejected, 0);
}
