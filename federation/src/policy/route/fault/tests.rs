//! Tests of faults: shares, for whom, for what, until when.

use super::*;
use crate::change::Change;
use crate::policy::document::fault::ExtensionKind;
use crate::policy::parse;

const NOW: Timestamp = Timestamp(1_000_000);

fn fault(spec: &str) -> Fault {
    let text = format!(
        "apiVersion: hanse.dev/v1alpha1\nkind: FaultInjection\nmetadata: {{ name: f, namespace: shop }}\nspec: {spec}\n"
    );
    let (mut document, _) = parse("test", &text).unwrap_or_else(|e| panic!("{text}\n{e:?}")).remove(0);
    document.created = NOW;
    let mut view = View::new("east".parse().unwrap(), "east.example".parse().unwrap());
    view.apply(&Change::PolicyPut(Box::new(document)));
    let reference = |name: &str| ExtensionRef {
        group: "hanse.dev".to_owned(),
        kind: ExtensionKind::FaultInjection,
        name: name.parse().unwrap(),
    };
    assert_eq!(Fault::find(&view, &reference("g"), "shop"), None);
    assert_eq!(Fault::find(&view, &reference("f"), "other"), None, "of its own namespace only");
    Fault::find(&view, &reference("f"), "shop").unwrap()
}

/// Of a thousand requests, how many are delayed and how many aborted.
fn shares(fault: &Fault) -> (usize, usize) {
    let (mut delayed, mut aborted) = (0, 0);
    let mut seed = 7u64;
    for _ in 0..1000 {
        let random = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            seed
        };
        let injected = fault.decide(NOW, &|_| None, false, random);
        delayed += usize::from(injected.delay.is_some());
        aborted += usize::from(injected.abort.is_some());
    }
    (delayed, aborted)
}

#[test]
fn each_gets_its_share_and_none_and_all_are_exact() {
    let both =
        fault("{ for: 1m, delay: { percent: 30, fixed: 2s }, abort: { percent: 5, httpStatus: 503 } }");
    let (delayed, aborted) = shares(&both);
    assert!((240..360).contains(&delayed) && (20..90).contains(&aborted), "{delayed} {aborted}");
    let exact =
        fault("{ for: 1m, delay: { percent: 100, fixed: 2s }, abort: { percent: 0, httpStatus: 503 } }");
    assert_eq!(shares(&exact), (1000, 0));
}

#[test]
fn it_is_for_whom_it_says_and_until_it_ends() {
    let gated = fault(
        "{ for: 1m, only: { header: { name: X-Chaos, value: \"on\" } }, abort: { percent: 100, httpStatus: 418 } }",
    );
    let hit = |at, value: Option<&'static str>| {
        gated.decide(at, &move |name| value.filter(|_| name == "x-chaos"), false, || 7).abort.is_some()
    };
    assert!(hit(NOW, Some("on")) && !hit(NOW, Some("off")) && !hit(NOW, None));
    let end = NOW + Duration::from_secs(60);
    assert!(hit(Timestamp(end.0 - 1), Some("on")) && !hit(end, Some("on")));
}

#[test]
fn a_status_of_grpc_is_for_calls_and_one_of_http_for_both() {
    let grpc = fault("{ for: 1m, abort: { percent: 100, grpcStatus: 14 } }");
    let abort = |fault: &Fault, is_grpc| fault.decide(NOW, &|_| None, is_grpc, || 7).abort;
    assert_eq!((abort(&grpc, true), abort(&grpc, false)), (Some(Abort::Grpc(14)), None));
    let http = fault("{ for: 1m, abort: { percent: 100, httpStatus: 503 } }");
    assert_eq!((abort(&http, true), abort(&http, false)), (Some(Abort::Http(503)), Some(Abort::Http(503))));
}
