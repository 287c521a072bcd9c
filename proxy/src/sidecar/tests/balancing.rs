//! BackendPolicy.loadBalancing and BackendPolicy.limits through real sidecars, with the documents of `deploy/examples`.

use std::collections::BTreeMap;
use std::time::Instant;

use hanse_federation::Change;
use hanse_federation::policy::{parse, validate};

use super::*;

pub(super) fn example(name: &str) -> String {
    let path = format!("{}/../deploy/examples/{name}.yaml", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(path).unwrap()
}

impl Shop {
    /// As `hanse policy apply` would, with no finding to tell.
    pub(super) fn apply(&mut self, text: &str) {
        let documents = parse("test", text).unwrap_or_else(|e| panic!("{text}\n{e:#?}"));
        let findings = validate(&self.view, "test", &documents);
        assert!(findings.is_empty(), "{text}\n{findings:#?}");
        for (document, _) in documents {
            self.change(|view| view.apply(&Change::PolicyPut(Box::new(document))));
        }
    }

    /// A BackendPolicy for reviews.
    pub(super) fn policy(&mut self, spec: &str) {
        self.apply(&format!(
            "apiVersion: hanse.dev/v1alpha1\nkind: BackendPolicy\nmetadata: {{ name: reviews, namespace: shop }}\n\
             spec:\n  targetRefs: [{{ group: multicluster.x-k8s.io, kind: ServiceImport, name: reviews }}]\n{spec}\n"
        ));
    }

    fn metrics(&self) -> String {
        self.product.plane.telemetry.to_text()
    }

    fn overflows(&self, limit: &str) -> u64 {
        let series = format!(
            "hanse_overflows_total{{service=\"shop/reviews\",destination_cluster=\"east\",limit=\"{limit}\"}} "
        );
        let metrics = self.metrics();
        metrics.lines().find_map(|line| line.strip_prefix(&series)).map_or(0, |count| count.parse().unwrap())
    }
}

/// Three instances of reviews, whose apps say their names.
pub(super) struct Three {
    pub shop: Shop,
    pub others: Vec<(App, Sidecar)>,
}

impl Three {
    pub async fn open() -> Self {
        let mut shop = Shop::open().await;
        let mut others = Vec::new();
        for (endpoint, name) in [("reviews-2", "second"), ("reviews-3", "third")] {
            let app = App::start(name).await;
            let sidecar = shop.another(endpoint, app.address);
            others.push((app, sidecar));
        }
        others.iter().for_each(|(_, sidecar)| sidecar.publish(&shop.view));
        Self { shop, others }
    }

    /// The endpoint of that app is not ready any more.
    fn leaves(&mut self, app: &str) {
        let endpoint = match app {
            "reviews-v1" => "reviews-1",
            "second" => "reviews-2",
            _ => "reviews-3",
        };
        let id = endpoint.parse().unwrap();
        self.shop.change(|view| view.endpoints.get_mut(&id).unwrap().ready = false);
    }

    /// Who answers so many requests with these headers.
    pub async fn ask(&self, times: usize, headers: &[(&'static str, &str)]) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for _ in 0..times {
            let mut request = get(REVIEWS);
            for (name, value) in headers {
                request.headers_mut().insert(*name, value.parse().unwrap());
            }
            let answer = self.shop.product.request(request).await;
            assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
            *counts.entry(answer.header("x-app").to_owned()).or_default() += 1;
        }
        counts
    }
}

/// A request that the app never answers; it is under way until the task is aborted. One that is refused is sent again.
pub(super) fn hang(sidecar: &Sidecar) -> tokio::task::JoinHandle<()> {
    let outbound = sidecar.outbound;
    tokio::task::spawn_local(async move {
        loop {
            let mut sender = http1(TcpStream::connect(outbound).await.unwrap()).await;
            let request = Request::post("/silent").header("host", "reviews.shop");
            drop(sender.send_request(request.body(Full::default()).unwrap()).await);
        }
    })
}

#[test]
fn above_its_limit_a_request_is_answered_at_once_with_503() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        shop.apply(&example("backend-policy-limits"));
        assert_eq!(shop.product.get(REVIEWS).await.status, 200, "connected");
        let hung = [hang(&shop.product), hang(&shop.product)];
        let mut overflow = None;
        until("both places are taken", async || {
            let answer = shop.product.get(REVIEWS).await;
            let taken = answer.status == 503;
            overflow = Some(answer);
            taken
        })
        .await;
        let answer = overflow.unwrap();
        assert_eq!(
            (answer.header("x-hanse-reason"), answer.header("x-hanse-answered-by")),
            ("overflow", "mesh")
        );
        assert_eq!(&answer.body[..], b"overflow: limits.maxRequests of shop/reviews in east\n");
        assert!(shop.overflows("maxRequests") >= 1);
        let metrics = shop.metrics();
        assert!(metrics.lines().any(|line| line.contains("response_flags=\"UO\"")), "{metrics}");
        hung.iter().for_each(tokio::task::JoinHandle::abort);
        until("the places are free again", async || shop.product.get(REVIEWS).await.status == 200).await;
    });
}

/// Listens and never says a word: a dial to it lasts as long as it may.
fn mute() -> (std::net::TcpListener, SocketAddr) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

#[test]
fn few_wait_for_a_connection_and_not_for_long() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        let (_mute, address) = mute();
        let id = shop.east.id("reviews");
        shop.change(|view| {
            view.endpoints.clear();
            add_endpoint(view, "reviews-mute", "shop/reviews", &id, address);
        });
        shop.policy("  limits: { maxPending: 1, connectTimeout: 400ms }");
        let (first, second) = tokio::join!(shop.product.get(REVIEWS), shop.product.get(REVIEWS));
        assert_eq!([first.status, second.status], [503, 503]);
        let reasons = [first.header("x-hanse-reason"), second.header("x-hanse-reason")];
        assert!(reasons.contains(&"overflow") && reasons.contains(&"unreachable"), "{reasons:?}");
        assert!(shop.overflows("maxPending") >= 1);

        // With somebody else there, whoever met the mute one is answered after the policy's time.
        let inbound = shop.reviews.inbound;
        shop.change(|view| add_endpoint(view, "reviews-1", "shop/reviews", &id, inbound));
        shop.policy("  limits: { connectTimeout: 100ms }\n  loadBalancing: { algorithm: RoundRobin }");
        for _ in 0..4 {
            let begun = std::time::Instant::now();
            assert_eq!(shop.product.get(REVIEWS).await.status, 200);
            assert!(begun.elapsed() < Duration::from_millis(900), "{:?}", begun.elapsed());
        }
    });
}

#[test]
fn above_the_limit_of_connections_those_that_there_are_are_used() {
    on_local_set(async {
        let mut three = Three::open().await;
        three.shop.policy("  limits: { maxConnections: 2 }\n  loadBalancing: { algorithm: RoundRobin }");
        let counts = three.ask(20, &[]).await;
        assert_eq!(counts.len(), 2, "{counts:?}");
        three.shop.policy("  loadBalancing: { algorithm: RoundRobin }");
        assert_eq!(three.ask(6, &[]).await.len(), 3);
    });
}

#[test]
fn connections_to_whom_is_out_make_room_for_one_that_answers() {
    on_local_set(async {
        let mut three = Three::open().await;
        three.shop.policy("  limits: { maxConnections: 1 }\n  loadBalancing: { algorithm: RoundRobin }");
        let before = three.ask(4, &[]).await;
        assert_eq!(before.len(), 1, "{before:?}");
        let connected = three.shop.product.plane.connections.len();
        assert_eq!(connected, 1);
        // Whoever has the connection is not ready any more.
        let out = match before.keys().next().unwrap().as_str() {
            "second" => "reviews-2",
            "third" => "reviews-3",
            _ => "reviews-1",
        };
        three.shop.change(|view| {
            let endpoints = view.endpoints.values_mut();
            endpoints.filter(|e| e.id.to_string().ends_with(out)).for_each(|e| e.ready = false);
        });
        let after = three.ask(4, &[]).await;
        assert!(after.len() == 1 && after.keys().ne(before.keys()), "{before:?}, then {after:?}");
        until("the other connection is gone", async || three.shop.product.plane.connections.len() == 1).await;
    });
}

#[test]
fn with_no_retry_allowed_the_failure_is_passed_on() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        let (ailing, _) = retries::ailing_app().await;
        let _ailing = shop.second(ailing);
        let policy = |limits: &str| {
            format!(
                "  retry: {{ on: [503] }}\n  loadBalancing: {{ algorithm: RoundRobin }}\n  \
                 health: {{ outlier: {{ consecutive5xx: 100000, consecutiveGatewayErrors: 100000 }} }}\n{limits}"
            )
        };
        shop.policy(&policy(""));
        for _ in 0..6 {
            assert_eq!(shop.product.get(REVIEWS).await.status, 200);
        }
        shop.policy(&policy("  limits: { maxRetries: 0 }"));
        let mut failed = 0;
        for _ in 0..6 {
            let answer = shop.product.get(REVIEWS).await;
            failed += usize::from(answer.status == 503 && answer.header("x-app") == "ailing");
        }
        assert_eq!(failed, 3);
        assert_eq!(shop.overflows("maxRetries"), 3);
    });
}

#[test]
fn an_idle_connection_is_let_go_when_the_policy_says() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        shop.policy("  limits: { idleTimeout: 500ms }");
        assert_eq!(shop.product.get(REVIEWS).await.status, 200);
        let live = || shop.product.plane.connections.len();
        assert_eq!(live(), 1);
        until("it is closed", async || live() == 0).await;
    });
}

#[test]
fn round_robin_shares_exactly() {
    on_local_set(async {
        let mut three = Three::open().await;
        three.shop.apply(&example("backend-policy-round-robin"));
        let counts = three.ask(30, &[]).await;
        assert!(counts.len() == 3 && counts.values().all(|count| *count == 10), "{counts:?}");
    });
}

#[test]
fn random_shares_by_weight() {
    on_local_set(async {
        let mut three = Three::open().await;
        three.shop.apply(&example("backend-policy-random"));
        three.shop.change(|view| view.endpoints.get_mut(&"reviews-2".parse().unwrap()).unwrap().weight = 300);
        let counts = three.ask(150, &[]).await;
        // 30, 90 and 30 are meant: five standard deviations off is once in a million times.
        for (app, likely) in [("reviews-v1", 6..=54), ("second", 60..=120), ("third", 6..=54)] {
            assert!(counts.get(app).is_some_and(|count| likely.contains(count)), "{app}: {counts:?}");
        }
    });
}

/// LeastRequest, one request at a time: nothing is under way anywhere, and how long answers took decides.
#[test]
fn whoever_takes_longer_gets_less() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        let other = App::start("slow").await;
        let _second = shop.second(other.address);
        let ask = async |times: usize| {
            let mut by_slow = 0;
            for _ in 0..times {
                let answer = shop.product.get(REVIEWS).await;
                assert_eq!(answer.status, StatusCode::OK);
                by_slow += usize::from(answer.header("x-app") == "slow");
            }
            by_slow
        };
        // Connected, and asked as often as it takes to be believed.
        let before = ask(40).await;
        assert!((1..40).contains(&before), "{before} of 40");
        other.mood.slow.set(Duration::from_millis(25));
        ask(20).await;
        let slow = ask(40).await;
        assert!(slow <= 10, "{slow} of 40 are the slow one's");
    });
}

#[test]
fn whoever_goes_on_failing_is_out_for_twice_as_long_each_time() {
    on_local_set(async {
        let mut three = Three::open().await;
        three.shop.policy(
            "  loadBalancing: { algorithm: RoundRobin }\n  \
             health: { outlier: { consecutive5xx: 1, ejectFor: 60ms, maxEjected: 50% } }",
        );
        three.others[0].0.mood.fails.set(true);
        let (mut failed, begun) = (Vec::new(), Instant::now());
        while failed.len() < 4 {
            let answer = three.shop.product.get(REVIEWS).await;
            if answer.status != StatusCode::OK {
                assert_eq!((answer.status.as_u16(), answer.header("x-app")), (500, "second"));
                failed.push(Instant::now());
            }
            assert!(begun.elapsed() < Duration::from_secs(10), "it is never tried again: {failed:?}");
        }
        // 60, 120 and 240 ms; a quarter is for how long its answers were on their way.
        for (times, out) in failed.windows(2).enumerate() {
            let (was, least) = (out[1] - out[0], Duration::from_millis(45 << times));
            assert!(was >= least, "ejection {times} lasted {was:?}, and not {least:?}");
        }
    });
}

#[test]
fn where_all_fail_no_more_are_out_than_the_example_says() {
    on_local_set(async {
        let mut three = Three::open().await;
        // Nobody comes back while the test lasts.
        let text = example("backend-policy-health").replace("ejectFor: 2s", "ejectFor: 1h");
        three.shop.apply(&format!("{text}  loadBalancing: {{ algorithm: RoundRobin }}\n"));
        let apps = three.others.iter().map(|(app, _)| app).chain(&three.shop.app);
        apps.for_each(|app| app.mood.fails.set(true));
        let asked = async |times: usize| {
            let mut apps = BTreeMap::new();
            for _ in 0..times {
                let answer = three.shop.product.get(REVIEWS).await;
                assert_eq!(answer.status.as_u16(), 500, "the app's own words: {answer:?}");
                assert_eq!(answer.header("x-hanse-answered-by"), "", "{answer:?}");
                *apps.entry(answer.header("x-app").to_owned()).or_insert(0) += 1;
            }
            apps
        };
        assert_eq!(asked(24).await.len(), 3, "five in a row of each");
        let kept = asked(20).await;
        assert_eq!(kept.len(), 2, "half of three, rounded down, are out: {kept:?}");
    });
}

#[test]
fn whoever_has_much_under_way_gets_no_more() {
    on_local_set(async {
        let three = Three::open().await;
        let hung: Vec<_> = (0..9).map(|_| hang(&three.shop.product)).collect();
        let under_way = |three: &Three| {
            let sidecars = three.others.iter().map(|(app, _)| app).chain(&three.shop.app);
            sidecars.map(App::live).collect::<Vec<_>>()
        };
        until("all are under way", async || under_way(&three).iter().sum::<usize>() >= 9).await;
        let shares = under_way(&three);
        assert!(shares.iter().all(|share| (1..=5).contains(share)), "{shares:?}");
        hung.iter().for_each(tokio::task::JoinHandle::abort);
    });
}

#[test]
fn the_same_user_goes_to_the_same_endpoint() {
    on_local_set(async {
        let mut three = Three::open().await;
        three.shop.apply(&example("backend-policy-balancing"));
        let mut seen = BTreeMap::new();
        for user in ["ann", "bob", "cem", "dan", "eve", "fay", "gil", "hal", "ina", "jon"] {
            let counts = three.ask(4, &[("x-user", user)]).await;
            assert_eq!(counts.len(), 1, "{user}: {counts:?}");
            seen.insert(user, counts.into_keys().next().unwrap());
        }
        let endpoints: std::collections::BTreeSet<_> = seen.values().collect();
        assert_eq!(endpoints.len(), 3, "{seen:?}");
        // Another proxy, which has never seen any of them, comes to the same.
        let other = Sidecar::start(Some(&three.shop.east.workload("productpage")), &[], None);
        other.publish(&three.shop.view);
        for (user, app) in &seen {
            let mut request = get(REVIEWS);
            request.headers_mut().insert("x-user", user.parse().unwrap());
            assert_eq!(other.request(request).await.header("x-app"), app);
        }
        three.shop.apply(&example("backend-policy-ring-hash"));
        assert_eq!(three.ask(12, &[("cookie", "a=b; user=ann")]).await.len(), 1);
        for (spec, headers) in [
            ("RingHash, hashOn: { query: q }", ("x-other", "1")),
            ("Maglev, hashOn: { sourceIdentity: true }", ("x-other", "1")),
        ] {
            three.shop.policy(&format!("  loadBalancing: {{ algorithm: {spec} }}"));
            assert_eq!(three.ask(12, &[headers]).await.len(), 1, "{spec}");
        }
    });
}

#[test]
fn a_session_stays_with_its_endpoint_while_that_is_well() {
    on_local_set(async {
        let mut three = Three::open().await;
        three.shop.apply(&example("backend-policy-session"));
        let first = three.shop.product.get(REVIEWS).await;
        let set = first.header("set-cookie").to_owned();
        assert!(set.starts_with("reviews-session=01") && set.contains("Max-Age=3600"), "{set}");
        let cookie = set.split(';').next().unwrap();
        let with = async |three: &Three, cookie: &str| {
            let mut request = get(REVIEWS);
            request.headers_mut().insert("cookie", format!("a=b; {cookie}").parse().unwrap());
            three.shop.product.request(request).await
        };
        for _ in 0..12 {
            let answer = with(&three, cookie).await;
            assert_eq!(answer.header("x-app"), first.header("x-app"));
            assert_eq!(answer.header("set-cookie"), "", "the client knows");
        }
        assert_eq!(three.ask(60, &[]).await.len(), 3, "others go elsewhere");
        // Another proxy of the same service understands it.
        let other = Sidecar::start(Some(&three.shop.east.workload("productpage")), &[], None);
        other.publish(&three.shop.view);
        let mut request = get(REVIEWS);
        request.headers_mut().insert("cookie", cookie.parse().unwrap());
        assert_eq!(other.request(request).await.header("x-app"), first.header("x-app"));
        // What a client makes up is no session, and reaches nobody whom it could not have reached.
        let forged = format!("reviews-session=01{}", "ab".repeat(16));
        let answer = with(&three, &forged).await;
        assert!(answer.status == 200 && answer.header("set-cookie").starts_with("reviews-session=01"));
        // Its endpoint leaves: the session begins anew elsewhere, and no request fails.
        three.leaves(first.header("x-app"));
        let answer = with(&three, cookie).await;
        assert_eq!(answer.status, 200);
        assert_ne!(answer.header("x-app"), first.header("x-app"));
        assert!(answer.header("set-cookie").starts_with("reviews-session=01"));
    });
}

#[test]
fn a_session_by_header_is_told_with_each_answer() {
    on_local_set(async {
        let mut three = Three::open().await;
        three.shop.apply(&example("backend-policy-session-header"));
        let with = async |three: &Three, token: &str| {
            let mut request = get(REVIEWS);
            request.headers_mut().insert("x-session", token.parse().unwrap());
            three.shop.product.request(request).await
        };
        let first = three.shop.product.get(REVIEWS).await;
        let mut token = first.header("x-session").to_owned();
        assert!(token.starts_with("01") && first.header("set-cookie").is_empty(), "{first:?}");
        // Version, and where it is; what follows is when.
        let whose = |token: &str| token[..18].to_owned();
        for _ in 0..12 {
            let answer = with(&three, &token).await;
            assert_eq!(answer.header("x-app"), first.header("x-app"));
            assert_eq!(
                whose(answer.header("x-session")),
                whose(&token),
                "clients keep what they were told last"
            );
            token = answer.header("x-session").to_owned();
        }
        assert_eq!(three.ask(60, &[]).await.len(), 3, "others go elsewhere");
        let forged = format!("01{}", "ab".repeat(16));
        let answer = with(&three, &forged).await;
        assert!(answer.status == 200 && whose(answer.header("x-session")) != whose(&forged), "{answer:?}");
        three.leaves(first.header("x-app"));
        let answer = with(&three, &token).await;
        assert!(answer.status == 200 && answer.header("x-app") != first.header("x-app"), "{answer:?}");
        assert_ne!(whose(answer.header("x-session")), whose(&token));
    });
}

#[test]
fn a_fresh_endpoint_warms_up_and_panic_brings_the_ejected_back() {
    on_local_set(async {
        let mut three = Three::open().await;
        three.shop.policy("  loadBalancing: { algorithm: Random, warmup: 1h }");
        assert_eq!(three.ask(30, &[]).await.len(), 3, "all were there before");
        let app = App::start("fresh").await;
        let fresh = three.shop.another("reviews-4", app.address);
        three.others.push((app, fresh));
        let counts = three.ask(120, &[]).await;
        assert!(counts.get("fresh").is_none_or(|count| *count <= 12), "{counts:?}");

        let (policy, out) = ("  health: { outlier: { consecutive5xx: 1, maxEjected: 90%, ejectFor: 1h }", 4);
        three.shop.policy(&format!("{policy} }}\n  loadBalancing: {{ algorithm: RoundRobin }}"));
        let product = &three.shop.product;
        let mut failed = 0;
        while failed < out - 1 {
            failed += usize::from(product.get("http://reviews.shop/status/500").await.status == 500);
        }
        assert_eq!(three.ask(20, &[]).await.len(), 1, "three of four are out");
        three
            .shop
            .policy(&format!("{policy}, panicBelow: 30% }}\n  loadBalancing: {{ algorithm: RoundRobin }}"));
        // One that succeeds is well again, and as soon as enough are, the others stay out.
        assert_eq!(three.ask(20, &[]).await.len(), 2);
    });
}
