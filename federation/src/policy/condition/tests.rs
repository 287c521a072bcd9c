//! Tests of conditions: what is read, what is refused and how that is told, what is true of which request.

use std::collections::BTreeMap;

use hanse_identity::Timestamp;
use serde_json::json;

use super::*;

struct World {
    method: &'static str,
    path: &'static str,
    headers: BTreeMap<&'static str, Vec<&'static [u8]>>,
    id: Option<SpiffeId>,
    claims: Option<Json>,
}

fn world() -> World {
    World {
        method: "GET",
        path: "/reviews/7",
        headers: BTreeMap::from([
            ("x-tenant", vec![&b"Acme"[..]]),
            ("x-twice", vec![&b"a"[..], b"b"]),
            ("x-odd", vec![&b"\xff"[..]]),
        ]),
        id: Some("spiffe://east.example/ns/shop/sa/web".parse().unwrap()),
        claims: Some(json!({
            "sub": "ann", "age": 30, "admin": true, "groups": ["staff", "friends"], "odd": [["staff"]],
            "realm_access": { "roles": ["editor"] }, "https://example.com/tier": "gold",
        })),
    }
}

fn asked(text: &str, world: &World) -> Result<bool, Unknown> {
    let condition =
        Condition::compile(text).unwrap_or_else(|wrong| panic!("{text}: {wrong} ({})", wrong.fix));
    let user = world.claims.as_ref().map(|claims| UserToken {
        principal: "https://id.example/ann".to_owned(),
        expires: Timestamp(0),
        claims: claims.as_object().unwrap().clone(),
    });
    let cluster: ClusterName = "east".parse().unwrap();
    let cluster = world.id.as_ref().map(|_| &cluster);
    let caller = Caller { id: world.id.as_ref(), cluster, user: user.as_ref() };
    let header = |name: &str, tell: &mut dyn FnMut(&[u8])| {
        world.headers.get(name).into_iter().flatten().for_each(|value| tell(value));
    };
    let asked = Asked { method: world.method, path: world.path, header: &header };
    condition.holds(&About { caller: &caller, asked: Some(&asked) })
}

#[test]
fn what_is_written_is_asked_of_the_request() {
    let world = world();
    for text in [
        "true",
        "request.method == 'GET' && request.path.startsWith('/reviews')",
        "request.url_path == \"/reviews/7\"",
        "request.method in ['GET', 'HEAD']",
        "!(request.method == 'POST')",
        "request.headers['X-Tenant'].lowerAscii() == 'acme'",
        "'x-tenant' in request.headers && !('x-other' in request.headers)",
        "request.path.matches('^/reviews/[0-9]+$')",
        "request.headers['x-tenant'].matches('cm')",
        "source.principal.endsWith('/sa/web') && source.namespace == 'shop' && source.cluster == 'east'",
        "connection.mtls",
        "request.auth.principal == 'https://id.example/ann'",
        "'editor' in claims.realm_access.roles",
        "'staff' in claims['groups'] && claims.age >= 18 && claims.admin",
        "claims['https://example.com/tier'] == 'gold'",
        "has(claims.realm_access.roles) && !has(claims.realm_access.groups)",
        "claims.groups.size() == 2 && size('abc') == 3",
        "claims.sub.startsWith('a')",
        "-1 < claims.age",
        "false || (true && true)",
        "'it\\'s' == \"it's\"",
    ] {
        assert_eq!(asked(text, &world), Ok(true), "{text}");
    }
    for text in ["false", "request.path.contains('admin')", "2 == 3", "'guest' in claims.groups", "'a' > 'b'"]
    {
        assert_eq!(asked(text, &world), Ok(false), "{text}");
    }
}

#[test]
fn what_is_not_there_is_neither_true_nor_false() {
    let world = world();
    for text in [
        "request.headers['x-other'] == 'a'",
        "request.headers['x-twice'] == 'a'",
        "request.headers['x-odd'] != 'a'",
        "'x-odd' in request.headers",
        "claims.nothing == 'a'",
        "claims.groups == 'staff'",
        "claims.sub == 30",
        "claims.sub",
        "'staff' in claims.sub",
        "'staff' in claims.odd",
        "claims.groups.startsWith('a')",
        "request.headers['x-other'] == 'a' || false",
        "true && claims.nothing == 'a'",
    ] {
        assert_eq!(asked(text, &world), Err(Unknown), "{text}");
    }
    // Where the other side decides, it does not matter.
    for (text, truth) in [
        ("claims.nothing == 'a' || true", true),
        ("claims.nothing == 'a' && false", false),
        ("'staff' in claims.groups", true),
    ] {
        assert_eq!(asked(text, &world), Ok(truth), "{text}");
    }
    let nobody = World { id: None, claims: None, method: "get", ..world };
    for text in [
        "source.principal != 'a'",
        "source.namespace != 'a'",
        "source.cluster != 'a'",
        "request.auth.principal != 'a'",
        "claims.sub != 'a'",
        "request.method != 'POST'",
    ] {
        assert_eq!(asked(text, &nobody), Err(Unknown), "{text}");
    }
    assert_eq!(asked("!connection.mtls && !has(claims.sub)", &nobody), Ok(true));
}

#[test]
fn what_is_wrong_is_told_with_its_place_and_a_way_out() {
    for (text, at, message, fix) in [
        ("request.pth == '/a'", 1, "no attribute request.pth", "did you mean request.path?"),
        ("request.method", 1, "a condition has to be true or false", "=="),
        ("request.method == 3", 16, "a text cannot be compared with a number", "alike"),
        ("request.path.beginsWith('/a')", 14, "no method beginsWith", "startsWith"),
        ("request.method == 'GET' request.path == '/'", 25, "request is not expected here", "&&"),
        ("request.method = 'GET'", 16, "'=' has no meaning here", "CEL"),
        ("'GET", 1, "the text has no end", "'"),
        ("request.headers == 'a'", 1, "asked for one header", "request.headers['x-tenant']"),
        ("request.headers['a b'] == 'a'", 17, "not the name of a header", "x-tenant"),
        ("true ? true : false", 6, "?: is not supported", "&&"),
        ("request.path.matches('/a')", 22, "in the middle of a path", "^"),
        ("request.method.matches('(')", 24, "cannot be read", "smaller"),
        ("request.path.matches('^/a)|(?:.')", 22, "cannot be read", "smaller"),
        ("request.method.matches('(\\\\w{100}){100}')", 24, "too costly", "smaller"),
        ("!request.method == 'GET'", 2, "what is negated has to be true or false", "=="),
        ("request.method in 'GET'", 19, "what it is sought in has to be a list", ""),
        ("claims == 'a'", 8, "no claim is named", "claims.groups"),
        ("has(request.path)", 5, "claims only", "has(claims.groups)"),
        ("[[1]] == 1", 2, "texts and numbers only", "||"),
        ("(true", 6, "\")\" is missing before the end", ""),
        ("", 1, "the end is not expected here", "request.method"),
        ("99999999999999999999 == 1", 1, "no whole number", "3600"),
    ] {
        let wrong = Condition::compile(text).unwrap_err();
        assert_eq!(wrong.at, at, "{text}: {wrong}");
        assert!(wrong.message.contains(message), "{text}: {wrong}");
        assert!(wrong.fix.contains(fix), "{text}: {}", wrong.fix);
    }
    let long = format!("'{}' == 'a'", "a".repeat(MAX_BYTES));
    assert!(Condition::compile(&long).unwrap_err().message.contains("longer than"));
    for deep in [format!("{}true{}", "(".repeat(200), ")".repeat(200)), format!("{}true", "!".repeat(200))] {
        assert!(Condition::compile(&deep).unwrap_err().message.contains("nested"), "{deep}");
    }
}

#[test]
fn a_pattern_of_a_path_begins_where_the_path_does_in_each_of_its_alternatives() {
    let pattern = "request.path.matches('^/public/|/health')";
    for (path, truth) in [("/public/a", true), ("/health/live", true), ("/admin/health", false)] {
        assert_eq!(asked(pattern, &World { path, ..world() }), Ok(truth), "{path}");
    }
}

#[test]
fn it_is_known_where_a_path_shuts() {
    let of = |text: &str| {
        let condition = Condition::compile(text).unwrap();
        (condition.reads_path(), condition.shuts_by_path())
    };
    for opens in [
        "request.path == '/a' || request.path.startsWith('/b')",
        "request.path in ['/a'] && request.method != 'POST'",
        "request.path.matches('^/a$')",
    ] {
        assert_eq!(of(opens), (true, false), "{opens}");
    }
    for shuts in [
        "request.path != '/a'",
        "!request.path.startsWith('/a')",
        "!(request.method == 'GET' && request.path == '/a')",
        "(request.path == '/a') == false",
        "request.path > '/a'",
        "request.path.size() < 9",
    ] {
        assert_eq!(of(shuts), (true, true), "{shuts}");
    }
    assert_eq!(of("!(request.method == 'GET')"), (false, false));
}
