//! Server names: the forms, the bound, and that nothing but what was written is read.

use proptest::prelude::*;

use super::*;

#[test]
fn has_two_forms() {
    let gateway = Sni::Gateway { gateway: "gw-1".parse().unwrap(), cluster: "east".parse().unwrap() };
    assert_eq!(gateway.to_name().unwrap(), "gw-1.gateway.east.hanse");
    assert_eq!(Sni::parse("gw-1.gateway.east.hanse"), Some(gateway));
    let service = Sni::Service { service: "shop/reviews".parse().unwrap(), cluster: "east".parse().unwrap() };
    assert_eq!(service.to_name().unwrap(), "reviews.shop.service.east.hanse");
    assert_eq!(Sni::parse("reviews.shop.service.east.hanse"), Some(service));
}

#[test]
fn the_longest_names_fit_into_dns() {
    let label = "a".repeat(63);
    let service = ServiceName::new(&label, &label).unwrap();
    let name = Sni::Service { service, cluster: label.parse().unwrap() }.to_name().unwrap();
    assert_eq!(name.len(), 3 * 63 + ".".len() + ".service.".len() + ".hanse".len());
    assert!(Sni::parse(&name).is_some());
    let name =
        Sni::Gateway { gateway: label.parse().unwrap(), cluster: label.parse().unwrap() }.to_name().unwrap();
    assert!(Sni::parse(&name).is_some());
}

#[test]
fn labels_that_look_like_the_form_are_still_told_apart() {
    for (name, expected) in [
        ("gateway.gateway.gateway.hanse", "gateway"),
        ("service.service.service.service.hanse", "service"),
        ("a.gateway.service.hanse.hanse", "service"),
        ("service.gateway.service.gateway.hanse", "service"),
    ] {
        let sni = Sni::parse(name).unwrap();
        let form = if matches!(sni, Sni::Gateway { .. }) { "gateway" } else { "service" };
        assert_eq!((form, sni.to_name().unwrap().as_str()), (expected, name));
    }
}

#[test]
fn refuses_everything_else() {
    let long = format!("{}.gateway.east.hanse", "a".repeat(64));
    for junk in [
        "",
        ".",
        "hanse",
        ".hanse",
        "hanse.internal",
        "gateway.east.hanse",
        "gw.gateway.east",
        "gw.gateway.east.hanse.",
        "gw.gateway.east.hanse.local",
        "GW.gateway.east.hanse",
        "gw.gateway.East.hanse",
        "gw.Gateway.east.hanse",
        "gw.gateway.east.HANSE",
        ".gateway.east.hanse",
        "gw.gateway..hanse",
        "gw..gateway.east.hanse",
        "gw.service.east.hanse",
        "reviews.shop.gateway.east.hanse",
        "x.reviews.shop.service.east.hanse",
        "reviews.shop.service.east.hanse.hanse",
        "-gw.gateway.east.hanse",
        "g_w.gateway.east.hanse",
        "gw.gateway.east.hanse:443",
        &long,
        &"a.".repeat(300),
    ] {
        assert_eq!(Sni::parse(junk), None, "{junk:?}");
    }
}

fn label() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", Just("gateway".into()), Just("service".into())]
}

fn sni() -> impl Strategy<Value = Sni> {
    (label(), label(), label(), any::<bool>()).prop_map(|(a, b, cluster, gateway)| {
        let cluster = cluster.parse().unwrap();
        match gateway {
            true => Sni::Gateway { gateway: a.parse().unwrap(), cluster },
            false => Sni::Service { service: ServiceName::new(&a, &b).unwrap(), cluster },
        }
    })
}

proptest! {
    #[test]
    fn reading_undoes_writing(sni in sni()) {
        let name = sni.to_name().unwrap();
        prop_assert!(name.len() <= MAX_NAME_BYTES);
        prop_assert_eq!(Sni::parse(&name), Some(sni));
    }

    #[test]
    fn what_is_read_is_what_would_be_written(
        name in prop_oneof![".{0,260}", "([a-zA-Z-]{0,2}|gateway|service|hanse)(\\.([a-z]{0,2}|gateway|service|hanse)){2,6}"],
    ) {
        if let Some(sni) = Sni::parse(&name) {
            prop_assert_eq!(sni.to_name(), Some(name));
        }
    }
}
