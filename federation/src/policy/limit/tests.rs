//! Tests of rate limits: credit, whose it is, what stays when a View changes.

use super::*;
use crate::change::Change;
use crate::policy::parse;

const MS: fn(u64) -> Duration = Duration::from_millis;

fn view(limits: &str) -> View {
    let text = format!(
        "apiVersion: hanse.dev/v1alpha1\nkind: RateLimit\nmetadata: {{ name: l, namespace: shop }}\nspec:\n  \
         targetRefs: [{{ kind: Service, name: reviews }}]\n  limits: {limits}\n"
    );
    let (document, _) = parse("test", &text).unwrap_or_else(|e| panic!("{text}\n{e:?}")).remove(0);
    let mut view = View::new("east".parse().unwrap(), "east.example".parse().unwrap());
    view.apply(&Change::PolicyPut(Box::new(document)));
    view
}

fn own(name: &str) -> EndpointId {
    name.parse().unwrap()
}

fn table(limits: &str) -> LimitTable {
    let services = BTreeSet::from(["shop/reviews".parse().unwrap()]);
    LimitTable::build(&view(limits), &own("reviews-1"), &services, &LimitTable::default())
}

/// A request of that account, with that x-tenant.
fn ask(table: &LimitTable, account: &str, tenant: &str, now: Duration) -> Result<(), (String, Duration)> {
    let id: SpiffeId = format!("spiffe://east.example/ns/shop/sa/{account}").parse().unwrap();
    let header = |name: &str, tell: &mut dyn FnMut(&[u8])| {
        if name == "x-tenant" && !tenant.is_empty() {
            tell(tenant.as_bytes());
        }
    };
    table.take(&Asker { id: Some(&id), header: &header }, now).map_err(|l| (l.name.to_string(), l.after))
}

#[test]
fn a_burst_at_once_and_then_the_rate() {
    let table = table("[{ name: all, requests: 10, per: 1s, burst: 3 }]");
    for _ in 0..3 {
        assert_eq!(ask(&table, "a", "", MS(0)), Ok(()));
    }
    assert_eq!(ask(&table, "b", "", MS(0)), Err(("shop/l#all".to_owned(), MS(100))));
    assert_eq!(ask(&table, "b", "", MS(60)), Err(("shop/l#all".to_owned(), MS(40))));
    assert_eq!(ask(&table, "b", "", MS(100)), Ok(()));
    let answered = (100..10_100).filter(|ms| ask(&table, "a", "", MS(*ms)).is_ok()).count();
    assert!((99..=101).contains(&answered), "ten in each second: {answered}");
    for _ in 0..3 {
        assert_eq!(ask(&table, "a", "", MS(60_000)), Ok(()), "no more is saved up than a burst");
    }
    assert!(ask(&table, "a", "", MS(60_000)).is_err());
}

#[test]
fn each_has_credit_of_their_own() {
    let table = table(
        "[{ by: Identity, requests: 2, per: 1m }, { by: Header, header: X-Tenant, requests: 1, per: 1m }]",
    );
    assert_eq!(ask(&table, "a", "blue", MS(0)), Ok(()));
    let (name, _) = ask(&table, "a", "blue", MS(0)).unwrap_err();
    assert_eq!(name, "shop/l#1");
    // What the second limit refused has taken nothing of the first.
    assert_eq!(ask(&table, "a", "green", MS(0)), Ok(()));
    assert_eq!(ask(&table, "a", "red", MS(0)).unwrap_err().0, "shop/l#0");
    assert_eq!(ask(&table, "b", "red", MS(0)), Ok(()));
    assert_eq!(ask(&table, "b", "", MS(0)), Ok(()), "without the header there is a bucket too");
    assert_eq!(ask(&table, "c", "", MS(0)).unwrap_err().0, "shop/l#1");
}

#[test]
fn whoever_asks_under_many_names_takes_no_more_memory_and_nobodys_place() {
    let table = table("[{ name: each, by: Header, header: x-tenant, requests: 1, per: 1s }]");
    // In a second of its own each: old buckets are full again, and so are given up first.
    for name in 0..20_000u64 {
        assert_eq!(ask(&table, "a", &name.to_string(), Duration::from_secs(2 * name)), Ok(()));
    }
    let at = Duration::from_secs(50_000);
    assert_eq!(ask(&table, "a", "regular", at), Ok(()));
    for name in 0..300 {
        ask(&table, "a", &format!("other-{name}"), at).unwrap();
    }
    assert!(ask(&table, "a", "regular", at).is_err(), "it is remembered beside hundreds of others");
}

#[test]
fn a_view_that_says_the_same_keeps_the_buckets() {
    let services = BTreeSet::from(["shop/reviews".parse().unwrap()]);
    let (same, other) = ("[{ name: x, requests: 1, per: 1m }]", "[{ name: x, requests: 2, per: 1m }]");
    let first = table(same);
    assert_eq!(ask(&first, "a", "", MS(0)), Ok(()));
    let again = LimitTable::build(&view(same), &own("reviews-1"), &services, &first);
    assert!(ask(&again, "a", "", MS(0)).is_err());
    let changed = LimitTable::build(&view(other), &own("reviews-1"), &services, &again);
    assert_eq!(ask(&changed, "a", "", MS(0)), Ok(()));
    let elsewhere = BTreeSet::from(["shop/ratings".parse().unwrap()]);
    assert!(LimitTable::build(&view(same), &own("reviews-1"), &elsewhere, &first).is_empty());
}

#[test]
fn workers_share_the_credit_exactly() {
    let table = Arc::new(table("[{ requests: 1000, per: 1h }]"));
    let workers: Vec<_> = (0..4)
        .map(|_| {
            let table = Arc::clone(&table);
            std::thread::spawn(move || (0..600).filter(|_| ask(&table, "a", "", MS(0)).is_ok()).count())
        })
        .collect();
    assert_eq!(workers.into_iter().map(|worker| worker.join().unwrap()).sum::<usize>(), 1000);
}

fn add(view: &mut View, name: &str, weight: u32, ready: bool) {
    let endpoint = crate::Endpoint {
        id: own(name),
        services: ["shop/reviews".parse().unwrap()].into(),
        identity: "spiffe://east.example/ns/shop/sa/reviews".parse().unwrap(),
        address: "127.0.0.1:1".parse().unwrap(),
        locality: crate::Locality::default(),
        weight,
        ready,
        session: crate::catalog::Session::of_registration(own("host")),
    };
    view.apply(&Change::EndpointPut(endpoint));
}

/// How many of 1 000 requests at each of these instances are let through.
fn let_through(view: &View, names: &[&str], now: Duration) -> Vec<usize> {
    let services = BTreeSet::from(["shop/reviews".parse().unwrap()]);
    let count = |name: &&str| {
        let table = LimitTable::build(view, &own(name), &services, &LimitTable::default());
        (0..1000).filter(|_| ask(&table, "a", "", now).is_ok()).count()
    };
    names.iter().map(count).collect()
}

#[test]
fn a_limit_across_a_cluster_is_kept_in_parts_that_make_the_whole() {
    let mut view = view("[{ across: Cluster, requests: 100, per: 1h }, { requests: 900, per: 1h }]");
    assert_eq!(let_through(&view, &["reviews-1"], MS(0)), [100], "alone, and not known of yet");
    for (name, weight, ready) in [("reviews-1", 1, true), ("reviews-2", 1, true), ("reviews-3", 1, false)] {
        add(&mut view, name, weight, ready);
    }
    // The third is not ready, gets nothing, and would have its part as soon as it is.
    assert_eq!(let_through(&view, &["reviews-1", "reviews-2"], MS(0)), [50, 50]);
    assert_eq!(let_through(&view, &["reviews-3"], MS(0)), [33]);
    add(&mut view, "reviews-3", 2, true);
    assert_eq!(let_through(&view, &["reviews-1", "reviews-2", "reviews-3"], MS(0)), [25, 25, 50]);
    for other in 4..=400 {
        add(&mut view, &format!("reviews-{other}"), 1, true);
    }
    assert_eq!(let_through(&view, &["reviews-1"], MS(0)), [1], "a part below one is one at a time");
}

#[test]
fn credit_that_is_used_up_stays_so_when_others_come_and_go() {
    let services = BTreeSet::from(["shop/reviews".parse().unwrap()]);
    let mut view = view("[{ across: Cluster, requests: 60, per: 1m }]");
    let alone = LimitTable::build(&view, &own("reviews-1"), &services, &LimitTable::default());
    assert_eq!((0..100).filter(|_| ask(&alone, "a", "", MS(0)).is_ok()).count(), 60);
    add(&mut view, "reviews-2", 1, true);
    let two = LimitTable::build(&view, &own("reviews-1"), &services, &alone);
    assert!(ask(&two, "a", "", MS(0)).is_err(), "no second burst");
    let answered = (0..600).filter(|tenth| ask(&two, "a", "", MS(100 * tenth)).is_ok()).count();
    assert!((29..=31).contains(&answered), "half the rate: {answered} in a minute");
    let again = LimitTable::build(&view, &own("reviews-1"), &services, &two);
    assert!(Arc::ptr_eq(&again.limits[0], &two.limits[0]), "nothing has changed");
}
