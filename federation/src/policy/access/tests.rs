//! Tests of access: who may call, what doubt does, and paths that are read in two ways.

use super::*;
use crate::change::Change;
use crate::policy::parse;

/// AccessPolicies for shop/reviews: each with its action and rules.
fn table(policies: &[(&str, &str)]) -> AccessTable {
    let mut view = View::new("west".parse().unwrap(), "west.example".parse().unwrap());
    for (index, (action, rules)) in policies.iter().enumerate() {
        let text = format!(
            "apiVersion: hanse.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{ name: p{index}, namespace: shop }}\nspec:\n  \
             targetRefs: [{{ kind: Service, name: reviews }}]\n  action: {action}\n  rules: {rules}\n"
        );
        let (document, _) = parse("test", &text).unwrap_or_else(|e| panic!("{text}{e:#?}")).remove(0);
        assert_eq!(parse("again", &document.to_json().to_string()).unwrap()[0].0, document);
        view.apply(&Change::PolicyPut(Box::new(document)));
    }
    AccessTable::build(&view, &BTreeSet::from(["shop/reviews".parse().unwrap()]))
}

/// Asks for `GET /` unless told otherwise; the answer in a word.
fn ask(table: &AccessTable, id: &str, method: &str, path: &str, headers: &[(&str, &[u8])]) -> String {
    let id: SpiffeId = id.parse().unwrap();
    let cluster = id.trust_domain().as_str().strip_suffix(".example").map(|name| name.parse().unwrap());
    let header = |name: &str, tell: &mut dyn FnMut(&[u8])| {
        headers.iter().filter(|(n, _)| *n == name).for_each(|(_, value)| tell(value));
    };
    let asked = Asked { method, path, header: &header };
    let caller = Caller { id: Some(&id), cluster: cluster.as_ref(), user: None };
    match table.decide(&caller, &"west".parse().unwrap(), &asked) {
        Ok(granted) => match (granted.audited.is_empty(), granted.by.is_empty()) {
            (true, true) => "free".to_owned(),
            (true, false) => granted.by.to_string(),
            (false, _) => format!("{} audited by {}", granted.by, granted.audited.join(", ")),
        },
        Err(denied) => denied.to_string(),
    }
}

fn get(table: &AccessTable, id: &str) -> String {
    ask(table, id, "GET", "/", &[])
}

const WEB: &str = "spiffe://west.example/ns/shop/sa/web";
const BOT: &str = "spiffe://west.example/ns/shop/sa/bot";
const OPS: &str = "spiffe://west.example/ns/ops/sa/web";
const EAST: &str = "spiffe://east.example/ns/shop/sa/web";

#[test]
fn without_policies_everybody_may_and_with_one_allow_nobody_else() {
    assert!(table(&[]).is_empty());
    assert_eq!(get(&table(&[]), WEB), "free");
    let one = table(&[(
        "Allow",
        "[{ name: web, from: { identities: ['spiffe://west.example/ns/shop/sa/web'] } }]",
    )]);
    assert_eq!(get(&one, WEB), "shop/p0#web");
    for other in [BOT, OPS, EAST] {
        assert_eq!(get(&one, other), "allowed by no policy");
    }
    let nobody = table(&[("Allow", "[]")]);
    assert!(!nobody.is_empty());
    assert_eq!(get(&nobody, WEB), "allowed by no policy");
    let elsewhere = AccessTable::build(
        &View::new("west".parse().unwrap(), "west.example".parse().unwrap()),
        &BTreeSet::from(["shop/ratings".parse().unwrap()]),
    );
    assert!(elsewhere.is_empty());
}

#[test]
fn deny_goes_before_allow_wherever_it_stands_and_audit_only_tells() {
    let deny = ("Deny", "[{ name: no-bots, from: { identities: ['spiffe://*/ns/*/sa/bot'] } }]");
    let allow = ("Allow", "[{ from: { namespaces: [shop] } }]");
    let audit = ("Audit", "[{ name: seen, from: { namespaces: [shop] } }]");
    for order in [[deny, allow, audit], [audit, allow, deny], [allow, deny, audit]] {
        let table = table(&order);
        assert!(get(&table, BOT).ends_with("#no-bots"), "{order:?}");
        assert!(get(&table, WEB).contains("#0 audited by "), "{order:?}");
        assert_eq!(get(&table, OPS), "allowed by no policy");
    }
    let only = table(&[deny]);
    assert_eq!(get(&only, WEB), "free", "a Deny alone allows the others");
    assert_eq!(get(&table(&[audit]), WEB), " audited by shop/p0#seen");
}

#[test]
fn a_namespace_alone_means_our_own_clusters() {
    let own = table(&[("Allow", "[{ from: { namespaces: [shop] } }]")]);
    assert_eq!(get(&own, WEB), "shop/p0#0");
    assert_eq!(get(&own, EAST), "allowed by no policy");
    let both = table(&[("Allow", "[{ from: { namespaces: [shop], clusters: [east, west] } }]")]);
    assert_eq!((get(&both, WEB), get(&both, EAST)), ("shop/p0#0".into(), "shop/p0#0".into()));
    assert_eq!(get(&both, OPS), "allowed by no policy");
    let east = table(&[("Allow", "[{ from: { clusters: [east] } }]")]);
    assert_eq!((get(&east, WEB), get(&east, EAST)), ("allowed by no policy".into(), "shop/p0#0".into()));
    assert_eq!(get(&east, "spiffe://stranger/ns/shop/sa/web"), "allowed by no policy");
    // An ID that only looks like a workload's has no namespace.
    assert_eq!(get(&own, "spiffe://west.example/ns/shop/sa/web/more"), "allowed by no policy");
    assert_eq!(get(&own, "spiffe://west.example/ns/shop"), "allowed by no policy");
}

#[test]
fn identities_are_compared_part_by_part() {
    for (pattern, id, expected) in [
        ("spiffe://west.example/ns/shop/sa/web", WEB, true),
        ("spiffe://*/ns/shop/sa/web", EAST, true),
        ("spiffe://west.example/ns/*/sa/web", OPS, true),
        ("spiffe://west.example/ns/*/sa", OPS, false),
        ("spiffe://west.example/**", OPS, true),
        ("spiffe://west.example/ns/shop/**", WEB, true),
        ("spiffe://west.example/ns/sho/**", WEB, false),
        ("spiffe://west.example/ns/shop/sa/web/**", WEB, false),
        ("spiffe://west.example/**", EAST, false),
        ("spiffe://west.example/**", "spiffe://west.example", false),
        ("spiffe://*/**", EAST, true),
        ("spiffe://westXexample/**", WEB, false),
    ] {
        let matches = IdPattern::parse(pattern).map(|p| p.matches(&id.parse().unwrap()));
        match pattern {
            "spiffe://westXexample/**" => assert!(matches.is_err(), "upper case is in no trust domain"),
            _ => assert_eq!(matches, Ok(expected), "{pattern} {id}"),
        }
    }
    for bad in [
        "",
        "west.example/**",
        "spiffe://",
        "spiffe:///x",
        "spiffe://a/b*",
        "spiffe://a/**/b",
        "spiffe://a//b",
        "spiffe://a/",
    ] {
        assert!(IdPattern::parse(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn methods_paths_and_headers_narrow_a_rule() {
    let table = table(&[(
        "Allow",
        "[{ name: read, to: { methods: [GET, HEAD], paths: [{ type: PathPrefix, value: /r }, { type: Exact, value: /one }] } }, \
          { name: tagged, to: { headers: [{ name: X-Tag, value: a }, { type: RegularExpression, name: x-n, value: '[0-9]+' }] } }]",
    )]);
    let asked = |method: &str, path: &str| ask(&table, WEB, method, path, &[]);
    assert_eq!(asked("GET", "/r"), "shop/p0#read");
    assert_eq!(asked("HEAD", "/r/x"), "shop/p0#read");
    assert_eq!(asked("GET", "/one"), "shop/p0#read");
    for (method, path) in
        [("POST", "/r"), ("get", "/r"), ("GET", "/rr"), ("GET", "/one/"), ("GET", "/R"), ("GET", "/%72")]
    {
        assert_eq!(asked(method, path), "allowed by no policy", "{method} {path}");
    }
    let tagged = |headers: &[(&str, &[u8])]| ask(&table, WEB, "POST", "/", headers);
    assert_eq!(tagged(&[("x-tag", b"a"), ("x-n", b"12")]), "shop/p0#tagged");
    // Every value counts, and one that cannot be read is none that allows.
    for headers in [
        &[("x-tag", b"a".as_slice())][..],
        &[("x-tag", b"a"), ("x-n", b"12"), ("x-tag", b"b")],
        &[("x-tag", b"a"), ("x-n", b"12"), ("x-n", b"\xff")],
        &[("x-tag", b"a,b"), ("x-n", b"12")],
    ] {
        assert_eq!(tagged(headers), "allowed by no policy", "{headers:?}");
    }
}

#[test]
fn doubt_denies() {
    let table = table(&[(
        "Deny",
        "[{ name: bad, to: { methods: [DELETE], headers: [{ name: x-tag, value: bad }] } }]",
    )]);
    let asked = |method: &str, headers: &[(&str, &[u8])]| ask(&table, WEB, method, "/", headers);
    for method in ["DELETE", "delete", "DeLeTe"] {
        assert_eq!(asked(method, &[("x-tag", b"bad")]), "denied by shop/p0#bad");
        assert_eq!(asked(method, &[("x-tag", b"good"), ("x-tag", b"bad")]), "denied by shop/p0#bad");
        assert_eq!(asked(method, &[("x-tag", b"\xff")]), "denied by shop/p0#bad");
        assert_eq!(asked(method, &[("x-tag", b"good")]), "free");
    }
    assert_eq!(asked("GET", &[("x-tag", b"bad")]), "free");
}

/// What servers make of a path: those that decode, merge slashes, resolve dots, strip parameters, read backslashes as
/// slashes, in the orders in which some do.
fn read_by_servers(path: &str) -> Vec<String> {
    fn decode(path: &str) -> String {
        let bytes = path.as_bytes();
        let (mut decoded, mut at) = (Vec::new(), 0);
        while at < bytes.len() {
            match (bytes[at], encoded(&bytes[at..])) {
                (b'%', Some(byte)) => {
                    decoded.push(byte);
                    at += 3;
                }
                (byte, _) => {
                    decoded.push(byte);
                    at += 1;
                }
            }
        }
        String::from_utf8_lossy(&decoded).into_owned()
    }
    fn merge(path: &str) -> String {
        let mut merged = path.to_owned();
        while merged.contains("//") {
            merged = merged.replace("//", "/");
        }
        merged
    }
    fn dots(path: &str) -> String {
        let mut kept: Vec<&str> = Vec::new();
        for segment in path.split('/') {
            match segment {
                "." => {}
                ".." => drop(kept.pop()),
                segment => kept.push(segment),
            }
        }
        let joined = kept.join("/");
        if joined.starts_with('/') { joined } else { format!("/{joined}") }
    }
    fn parameters(path: &str) -> String {
        path.split('/').map(|s| s.split(';').next().unwrap_or_default()).collect::<Vec<_>>().join("/")
    }
    fn slashes(path: &str) -> String {
        path.replace('\\', "/")
    }
    fn cut(path: &str) -> String {
        path.split(['#', '\0']).next().unwrap_or_default().to_owned()
    }
    type Step = fn(&str) -> String;
    let steps: [&[Step]; 12] = [
        &[],
        &[decode],
        &[decode, dots],
        &[dots, decode],
        &[parameters, decode, dots],
        &[decode, parameters, dots],
        &[merge, decode, dots],
        &[decode, merge, dots],
        &[slashes, decode, dots],
        &[decode, slashes, merge, dots],
        &[decode, decode, dots],
        &[decode, cut, parameters, slashes, dots, merge],
    ];
    steps.iter().map(|steps| steps.iter().fold(path.to_owned(), |path, step| step(&path))).collect()
}

/// T17: whatever is let through by a prefix that it has, no server takes for a path outside of it.
#[test]
fn t17_no_path_that_is_allowed_is_read_as_another_by_any_server() {
    let table = table(&[("Allow", "[{ to: { paths: [{ type: PathPrefix, value: /public }] } }]")]);
    let pieces = [
        "public", "admin", "/", "//", ".", "..", "%2e", "%2E%2e", "%2f", "%5c", "\\", ";", ";x", "%3b",
        "%00", "%", "%25", "2e", "%252e", "%32", "%65", "%c0%ae", "%ff", "#", "x", "%61", "ä",
    ];
    let (mut state, mut allowed) = (7u64, 0);
    let mut next = |below: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        usize::try_from(state >> 33).unwrap() % below
    };
    for round in 0..200_000 {
        let mut path = String::from(if round % 2 == 0 { "/public/" } else { "/" });
        for _ in 0..=next(7) {
            path.push_str(pieces[next(pieces.len())]);
        }
        if ask(&table, WEB, "GET", &path, &[]) != "shop/p0#0" {
            continue;
        }
        allowed += 1;
        for read in read_by_servers(&path) {
            let inside = read == "/public" || read.starts_with("/public/") || read.starts_with("/public;");
            assert!(inside, "{path:?} was allowed, and a server reads {read:?}");
        }
    }
    assert!(allowed > 1_000, "the test has to let something through: {allowed}");
}

#[test]
fn paths_that_are_read_in_two_ways_are_refused_where_paths_count_and_only_there() {
    let with = table(&[("Allow", "[{ to: { paths: [{ value: / }] } }]")]);
    let without = table(&[("Allow", "[{ to: { methods: [GET] } }]")]);
    for (path, trouble) in [
        ("/a/../b", PathTrouble::Dots),
        ("/a/%2e%2E/b", PathTrouble::Dots),
        ("/a/..;x/b", PathTrouble::Dots),
        ("/a/.", PathTrouble::Dots),
        ("/a%2fb", PathTrouble::Separator),
        ("/a%5Cb", PathTrouble::Separator),
        ("/a\\b", PathTrouble::Separator),
        ("/a%00", PathTrouble::Separator),
        ("/a#b", PathTrouble::Separator),
        ("/%252e%252e/b", PathTrouble::Twice),
        ("/%25%32%65%25%32%65/b", PathTrouble::Twice),
        ("/%c0%af", PathTrouble::Encoding),
        ("/%zz", PathTrouble::Encoding),
        ("/%2", PathTrouble::Encoding),
        ("*", PathTrouble::NotAbsolute),
    ] {
        assert_eq!(plain_path(path), Err(trouble), "{path}");
        assert_eq!(ask(&with, WEB, "GET", path, &[]), format!("the path {trouble}"));
        assert_eq!(ask(&without, WEB, "GET", path, &[]), "shop/p0#0");
    }
    for fine in [
        "/",
        "/a//b",
        "/a;v=1/b",
        "/%C3%A4",
        "/ä",
        "/a%20b",
        "/...",
        "/100%25",
        "/.well-known/x",
        "/a/%2ehidden",
    ] {
        assert_eq!(plain_path(fine), Ok(()), "{fine}");
    }
}

#[test]
fn ports_are_of_connections_and_doubt_keeps_requests_out() {
    let unread = |table: &AccessTable, port: u16| {
        let id: SpiffeId = WEB.parse().unwrap();
        let caller = Caller { id: Some(&id), cluster: Some(&"west".parse().unwrap()), user: None };
        table.decide_stream(&caller, &"west".parse().unwrap(), port).is_ok()
    };
    let rules = "[{ to: { ports: [6379, 6380] } }]";
    let allow = table(&[("Allow", rules)]);
    assert!(unread(&allow, 6379) && unread(&allow, 6380) && !unread(&allow, 6381));
    assert_eq!(get(&allow, WEB), "allowed by no policy");
    let deny = table(&[("Deny", rules)]);
    assert!(!unread(&deny, 6379) && unread(&deny, 6381));
    assert_eq!(get(&deny, WEB), "denied by shop/p0#0");
    for looks in ["to: { ports: [6379], methods: [GET] }", "to: { headers: [{ name: x, value: z }] }"] {
        let rules = format!("[{{ {looks} }}]");
        assert!(!unread(&table(&[("Allow", &rules)]), 6379), "{looks}");
        assert!(!unread(&table(&[("Deny", &rules)]), 6379), "{looks}");
    }
}

#[test]
fn an_authorizer_is_asked_once_beside_the_policies_and_about_no_stream() {
    let external = "External\n  external: { address: '127.0.0.1:9191', failOpen: true }";
    let table = table(&[
        (external, "[{ to: { methods: [POST] } }, { to: { methods: [POST, PUT] } }]"),
        ("Deny", "[{ from: { identities: ['spiffe://*/ns/*/sa/bot'] } }]"),
    ]);
    let (id, own): (SpiffeId, ClusterName) = (WEB.parse().unwrap(), "west".parse().unwrap());
    let caller = Caller { id: Some(&id), cluster: Some(&own), user: None };
    let asked = |method: &str| {
        let asked = Asked { method, path: "/", header: &|_, _| {} };
        table.decide(&caller, &own, &asked).unwrap().external
    };
    assert!(asked("GET").is_empty());
    for method in ["POST", "post", "PUT"] {
        let asked = asked(method);
        assert_eq!(asked.len(), 1, "{method}");
        assert_eq!((asked[0].timeout, asked[0].fail_open), (DEFAULT_TIMEOUT, true));
    }
    assert_eq!(ask(&table, BOT, "POST", "/", &[]), "denied by shop/p1#0");
    assert!(
        ask(&table, WEB, "GET", "/a/%2e%2e/b", &[]).starts_with("the path"),
        "it could be read otherwise"
    );
    assert_eq!(table.decide_stream(&caller, &own, 5432), Err(Denied::By("shop/p0".into())));
}
