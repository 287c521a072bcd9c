//! Tables of cases from the specifications of W3C Trace Context and B3.

use super::*;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";

fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.append(*name, value.parse().unwrap());
    }
    headers
}

/// What a proxy that records nothing passes on.
fn passed(fields: &[(&'static str, &str)]) -> Vec<(String, String)> {
    let mut headers = headers(fields);
    Trace::begin(&headers, None, || unreachable!("nothing is begun")).put(&mut headers);
    flat(&headers)
}

fn flat(headers: &HeaderMap) -> Vec<(String, String)> {
    let pair =
        |(name, value): (&HeaderName, &HeaderValue)| (name.to_string(), value.to_str().unwrap().to_owned());
    let mut fields: Vec<_> = headers.iter().map(pair).collect();
    fields.sort();
    fields
}

/// What a proxy that records spans makes of it, its IDs counted up from 1.
fn continued(fields: &[(&'static str, &str)], percent: &str) -> (Trace, Vec<(String, String)>) {
    let mut headers = headers(fields);
    let mut last = 0;
    let random = || {
        last += 1;
        last
    };
    let trace = Trace::begin(&headers, Some(percent.parse().unwrap()), random);
    trace.put(&mut headers);
    (trace, flat(&headers))
}

fn pair(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

#[test]
fn a_traceparent_is_good_or_goes_no_further() {
    let good = format!("00-{TRACE}-{SPAN}-01");
    for value in [
        good.as_str(),
        &format!("00-{TRACE}-{SPAN}-00"),
        &format!("00-{TRACE}-{SPAN}-ff"),
        // Of a later version, with and without more behind it.
        &format!("cc-{TRACE}-{SPAN}-01"),
        &format!("cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like"),
    ] {
        assert_eq!(passed(&[("traceparent", value)]), [pair("traceparent", value)]);
    }
    for value in [
        "",
        "00",
        &format!("00-{TRACE}-{SPAN}"),
        &format!("00-{TRACE}-{SPAN}-1"),
        &format!("00-{TRACE}-{SPAN}-0x"),
        &format!("00-{TRACE}-{SPAN}-01-"),
        &format!("00-{TRACE}-{SPAN}-01-more"),
        &format!("cc-{TRACE}-{SPAN}-01.what"),
        &format!("cc-{TRACE}-{SPAN}-01-a b"),
        &format!("cc-{TRACE}-{SPAN}-01-{}", "a".repeat(256)),
        &format!("ff-{TRACE}-{SPAN}-01"),
        &format!("0x-{TRACE}-{SPAN}-01"),
        &format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
        &format!("00-{}-{SPAN}-01", "0".repeat(32)),
        &format!("00-{TRACE}-{}-01", "0".repeat(16)),
        &format!("00-{TRACE}.{SPAN}-01"),
        &format!("00-{}-{SPAN}-01", &TRACE[1..]),
    ] {
        assert_eq!(passed(&[("traceparent", value), ("tracestate", "a=1")]), [], "{value}");
    }
    assert_eq!(passed(&[("traceparent", &good), ("traceparent", &good)]), [], "two of them");
    assert_eq!(passed(&[("tracestate", "a=1")]), [], "a state of no trace");
}

#[test]
fn a_tracestate_is_passed_on_within_bounds() {
    let parent = format!("00-{TRACE}-{SPAN}-01");
    let many = |count: usize| (0..count).map(|n| format!("k{n}=v")).collect::<Vec<_>>().join(",");
    for state in [
        "foo=1",
        "foo=1,bar=2",
        "foo=1 , \t bar=2 ,",
        "t61rcwkgmze@vendor=00f067aa0ba902b7",
        "0a_-*/@z=!\"~ :",
        &many(32),
        &format!("{}=1", "a".repeat(256)),
    ] {
        let fields = passed(&[("traceparent", &parent), ("tracestate", state)]);
        assert_eq!(fields, [pair("traceparent", &parent), pair("tracestate", state)], "{state}");
    }
    for state in [
        "",
        ",",
        "foo",
        "foo=",
        "=1",
        "Foo=1",
        "foo =1",
        "foo=1=2",
        "foo=1,foo=2",
        "-foo=1",
        "foo@=1\u{e9}",
        &many(33),
        &format!("{}=1", "a".repeat(257)),
        &format!("a={}", "b".repeat(257)),
        &format!("a={},b={}", "b".repeat(255), "b".repeat(255)),
    ] {
        let mut got = headers(&[("traceparent", &parent)]);
        got.append(TRACESTATE, HeaderValue::from_bytes(state.as_bytes()).unwrap());
        Trace::begin(&got, None, || 1).put(&mut got);
        assert_eq!(flat(&got), [pair("traceparent", &parent)], "{state}");
    }
    let split = [("traceparent", parent.as_str()), ("tracestate", "foo=1"), ("tracestate", "bar=2")];
    assert_eq!(passed(&split).len(), 3, "several headers are one list");
    let twice = [("traceparent", parent.as_str()), ("tracestate", "foo=1"), ("tracestate", "foo=2")];
    assert_eq!(passed(&twice).len(), 1);
}

#[test]
fn b3_is_good_or_goes_no_further() {
    for value in [
        "0",
        "1",
        "d",
        &format!("{TRACE}-{SPAN}"),
        &format!("{TRACE}-{SPAN}-1"),
        &format!("{SPAN}-{SPAN}-d"),
        &format!("{TRACE}-{SPAN}-0-05e3ac9a4f6e3b90"),
    ] {
        assert_eq!(passed(&[("b3", value)]), [pair("b3", value)]);
    }
    for value in [
        "",
        "2",
        TRACE,
        &format!("{TRACE}-{SPAN}-x"),
        &format!("{TRACE}-{SPAN}-1-05e3"),
        &format!("{TRACE}-{SPAN}-1-05e3ac9a4f6e3b90-1"),
        &format!("{}-{SPAN}", "0".repeat(32)),
        &format!("{TRACE}-{}", SPAN.to_uppercase()),
    ] {
        assert_eq!(passed(&[("b3", value)]), [], "{value}");
    }
    for (fields, good) in [
        (&[("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN), ("x-b3-sampled", "1")][..], true),
        (&[("x-b3-traceid", SPAN), ("x-b3-spanid", SPAN)], true),
        (&[("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN), ("x-b3-flags", "1")], true),
        (&[("x-b3-sampled", "0")], true),
        (&[("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN), ("x-b3-parentspanid", SPAN)], true),
        (&[("x-b3-traceid", TRACE)], false),
        (&[("x-b3-spanid", SPAN), ("x-b3-sampled", "1")], false),
        (&[("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN), ("x-b3-sampled", "yes")], false),
        (&[("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN), ("x-b3-parentspanid", "1")], false),
        (&[("x-b3-traceid", TRACE), ("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN)], false),
    ] {
        assert_eq!(passed(fields).len(), if good { fields.len() } else { 0 }, "{fields:?}");
    }
}

#[test]
fn a_proxy_that_records_puts_itself_in_its_callers_place() {
    let parent = format!("cc-{TRACE}-{SPAN}-01-future");
    let (trace, sent) = continued(&[("traceparent", &parent), ("tracestate", "a=1")], "0");
    let own = trace.span().unwrap();
    assert_eq!((own.trace.to_string(), own.parent.to_string()), (TRACE.to_owned(), SPAN.to_owned()));
    assert!(own.sampled, "the caller has decided");
    let expected = format!("00-{TRACE}-0000000000000001-01");
    assert_eq!(sent, [pair("traceparent", &expected), pair("tracestate", "a=1")]);

    let (trace, _) = continued(&[("traceparent", &format!("00-{TRACE}-{SPAN}-00"))], "100");
    assert!(!trace.span().unwrap().sampled, "the caller has decided");

    // B3 is echoed in the form that it came in, and traceparent counts before it.
    let single = format!("{SPAN}-{SPAN}-d");
    let (_, sent) = continued(&[("b3", &single)], "0");
    assert_eq!(
        sent,
        [
            pair("b3", &format!("{SPAN}-0000000000000001-d-{SPAN}")),
            pair("traceparent", &format!("00-0000000000000000{SPAN}-0000000000000001-01")),
        ]
    );
    let several = [("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN), ("x-b3-sampled", "0"), ("b3", "nonsense")];
    let (trace, sent) = continued(&several, "100");
    assert!(!trace.span().unwrap().sampled);
    assert_eq!(
        sent,
        [
            pair("traceparent", &format!("00-{TRACE}-0000000000000001-00")),
            pair("x-b3-parentspanid", SPAN),
            pair("x-b3-sampled", "0"),
            pair("x-b3-spanid", "0000000000000001"),
            pair("x-b3-traceid", TRACE),
        ]
    );
    let both = [("traceparent", parent.as_str()), ("b3", single.as_str())];
    let (_, sent) = continued(&both, "100");
    assert_eq!(sent[0], pair("b3", &format!("{TRACE}-0000000000000001-1-{SPAN}")));
}

#[test]
fn a_trace_begins_where_there_is_none() {
    let (trace, sent) = continued(&[], "100");
    let own = *trace.span().unwrap();
    assert_eq!((own.sampled, own.parent), (true, SpanId::default()));
    assert_eq!(sent, [pair("traceparent", "00-00000000000000020000000000000003-0000000000000001-01")]);
    assert_eq!(trace.ids(), (own.trace, own.id));
    let (trace, sent) = continued(&[("traceparent", "nonsense"), ("tracestate", "a=1")], "0");
    assert!(!trace.span().unwrap().sampled);
    assert_eq!(sent.len(), 1, "an unsampled trace is told of too: {sent:?}");
    // Only a decision came.
    let (trace, sent) = continued(&[("b3", "0")], "100");
    assert!(!trace.span().unwrap().sampled && sent.len() == 2, "{sent:?}");

    assert_eq!(passed(&[("accept", "*/*")]), [pair("accept", "*/*")]);
    let nothing = Trace::begin(&headers(&[]), None, || unreachable!());
    assert_eq!(nothing.ids(), <(TraceId, SpanId)>::default());
    assert_eq!(serde_json::to_string(&nothing.ids()).unwrap(), r#"["",""]"#);
}

#[test]
fn a_share_of_the_traces_is_sampled() {
    let random = crate::runtime::worker::Random::seeded(7);
    for (percent, least, most) in [("0", 0, 0), ("1", 60, 140), ("50", 4800, 5200), ("100", 10_000, 10_000)] {
        let sampling: Sampling = percent.parse().unwrap();
        let begin = || Trace::begin(&HeaderMap::new(), Some(sampling), || random.next());
        let taken = (0..10_000).filter(|_| begin().span().unwrap().sampled).count();
        assert!((least..=most).contains(&taken), "{percent} %: {taken}");
    }
    for bad in ["", "x", "-1", "100.1", "NaN"] {
        assert!(bad.parse::<Sampling>().is_err(), "{bad}");
    }
}

impl TraceId {
    /// Of a line of the access log.
    pub(crate) fn read(text: &str) -> Self {
        id(text.as_bytes()).map(Self).unwrap_or_default()
    }
}

impl SpanId {
    pub(crate) fn read(text: &str) -> Self {
        id(text.as_bytes()).map(Self).unwrap_or_default()
    }
}
