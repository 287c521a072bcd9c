//! Chains changed bit by bit, and bytes made up: never a wrong accept, never a panic.

use super::*;

/// A root, an intermediate and a leaf, all good; what trusts them, and the chain.
fn good() -> (Trust, Vec<Vec<u8>>) {
    let (root, root_key) = handmade(root_params(&east()));
    let mut params = root_params(&east());
    params.distinguished_name.push(DnType::CommonName, "between");
    let key = key();
    let between = params.signed_by(&key, &root_key).unwrap().der().to_vec();
    let leaf = sign(&leaf_params(&[REVIEWS]), &Issuer::new(params, key));
    (Trust::new([&handmade_bundle(&east(), &[&root])], Revocations::default()), vec![leaf, between, root])
}

fn believed(trust: &Trust, chain: &[Vec<u8>]) -> Option<VerifiedCaller> {
    let chain: Vec<&[u8]> = chain.iter().map(Vec::as_slice).collect();
    verify(trust, &chain, NOW, Usage::Client).ok()
}

#[derive(Clone, Debug)]
enum Change {
    Flip { certificate: usize, at: prop::sample::Index, mask: u8 },
    Cut { certificate: usize, from: prop::sample::Index, length: usize },
    Insert { certificate: usize, at: prop::sample::Index, bytes: Vec<u8> },
    Swap(usize, usize),
    Drop(usize),
    Repeat(usize),
}

fn change() -> impl Strategy<Value = Change> {
    let index = any::<prop::sample::Index>();
    prop_oneof![
        4 => (0..3usize, index, 1..=255u8).prop_map(|(certificate, at, mask)| Change::Flip { certificate, at, mask }),
        2 => (0..3usize, any::<prop::sample::Index>(), 1..40usize)
            .prop_map(|(certificate, from, length)| Change::Cut { certificate, from, length }),
        2 => (0..3usize, any::<prop::sample::Index>(), prop::collection::vec(any::<u8>(), 1..20))
            .prop_map(|(certificate, at, bytes)| Change::Insert { certificate, at, bytes }),
        1 => (0..3usize, 0..3usize).prop_map(|(one, other)| Change::Swap(one, other)),
        1 => (0..3usize).prop_map(Change::Drop),
        1 => (0..3usize).prop_map(Change::Repeat),
    ]
}

fn apply(chain: &mut Vec<Vec<u8>>, change: &Change) {
    let there = |chain: &Vec<Vec<u8>>, certificate: usize| certificate.min(chain.len().saturating_sub(1));
    match change {
        _ if chain.is_empty() => {}
        Change::Flip { certificate, at, mask } => {
            let certificate = there(chain, *certificate);
            let place = at.index(chain[certificate].len().max(1));
            if let Some(byte) = chain[certificate].get_mut(place) {
                *byte ^= mask;
            }
        }
        Change::Cut { certificate, from, length } => {
            let certificate = there(chain, *certificate);
            let bytes = &mut chain[certificate];
            let start = from.index(bytes.len().max(1)).min(bytes.len());
            bytes.drain(start..(start + length).min(bytes.len()));
        }
        Change::Insert { certificate, at, bytes } => {
            let certificate = there(chain, *certificate);
            let place = at.index(chain[certificate].len().max(1)).min(chain[certificate].len());
            chain[certificate].splice(place..place, bytes.iter().copied());
        }
        Change::Swap(one, other) => {
            let (one, other) = (there(chain, *one), there(chain, *other));
            chain.swap(one, other);
        }
        Change::Drop(certificate) => {
            let certificate = there(chain, *certificate);
            chain.remove(certificate);
        }
        Change::Repeat(certificate) => {
            let again = chain[there(chain, *certificate)].clone();
            chain.push(again);
        }
    }
}

#[test]
fn a_changed_chain_is_believed_only_if_leaf_and_intermediate_are_still_there() {
    let (trust, whole) = good();
    let honest = believed(&trust, &whole).unwrap();
    let mut runner =
        proptest::test_runner::TestRunner::new(ProptestConfig { cases: 1500, ..Default::default() });
    runner
        .run(&prop::collection::vec(change(), 1..5), |changes| {
            let mut chain = whole.clone();
            changes.iter().for_each(|change| apply(&mut chain, change));
            if let Some(caller) = believed(&trust, &chain) {
                prop_assert_eq!(&caller, &honest);
                prop_assert_eq!(&chain[0], &whole[0]);
                prop_assert!(chain.contains(&whole[1]));
            }
            Ok(())
        })
        .unwrap();
}

/// Every single bit of a chain of two: no change of the leaf or of its signer's certificate is overlooked.
#[test]
fn id_7_every_bit_of_the_chain_is_signed() {
    let (trust, whole) = good();
    for certificate in 0..2 {
        for place in 0..whole[certificate].len() {
            for bit in 0..8 {
                let mut chain = whole.clone();
                chain[certificate][place] ^= 1 << bit;
                assert!(
                    believed(&trust, &chain).is_none(),
                    "certificate {certificate}, byte {place}, bit {bit}"
                );
            }
        }
    }
}

proptest! {
    #[test]
    fn changed_certificates_are_parsed_without_a_panic(changes in prop::collection::vec(change(), 1..12)) {
        let (_, mut chain) = good();
        changes.iter().for_each(|change| apply(&mut chain, change));
        for der in &chain {
            let _ = SvidFacts::parse(der);
            let _ = crate::bundle::AuthorityCertificate::parse(der, &east());
        }
    }

    #[test]
    fn made_up_bundles_are_parsed_without_a_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        text in "\\PC{0,200}",
    ) {
        let _ = crate::bundle::AuthorityCertificate::parse(&bytes, &east());
        let _ = serde_json::from_slice::<Bundle>(&bytes);
        let _ = serde_json::from_str::<Bundle>(&text);
        let mut bundle = serde_json::to_value(bundle(&[&authority(&east())])).unwrap();
        bundle["authorities"][0]["der"] = text.into();
        if let Ok(bundle) = serde_json::from_value::<Bundle>(bundle) {
            prop_assert!(bundle.check().is_err());
        }
    }
}
