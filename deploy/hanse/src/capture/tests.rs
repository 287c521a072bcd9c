//! Capture: the table as text, what is refused, and what is read from /proc.

use super::*;

fn plan() -> Plan {
    Plan {
        spared_uids: [1337, 990].into(),
        outbound: Some(Outbound {
            port: 15001,
            all: true,
            exclude_ports: vec!["22".parse().unwrap(), "7000-7010".parse().unwrap()],
            exclude_networks: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()],
        }),
        dns: Some(Dns { port: 15053, spared_uids: [101].into() }),
        inbound: Some(Inbound { port: 15006, app_ports: vec!["6379".parse().unwrap()] }),
    }
}

#[test]
fn the_table_is_replaced_whole_and_spares_the_proxy_before_anything_else() {
    let expected = "\
add table inet hanse
delete table inet hanse
table inet hanse {
\tchain outbound {
\t\ttype nat hook output priority -100; policy accept;
\t\tmeta skuid 990 return
\t\tmeta skuid 1337 return
\t\tmeta skuid 101 udp dport 53 return
\t\tudp dport 53 redirect to :15053
\t\tmeta skuid 101 tcp dport 53 return
\t\ttcp dport 53 redirect to :15053
\t\tmeta l4proto tcp ip daddr 240.240.0.0/12 redirect to :15001
\t\tmeta l4proto tcp ip6 daddr fd68:616e:7365::/48 redirect to :15001
\t\toifname \"lo\" return
\t\ttcp dport 22 return
\t\ttcp dport 7000-7010 return
\t\tip daddr 10.0.0.0/8 return
\t\tip6 daddr fd00::/8 return
\t\tmeta l4proto tcp redirect to :15001
\t}

\tchain inbound {
\t\ttype nat hook prerouting priority -100; policy accept;
\t\tiifname \"lo\" return
\t\tfib daddr type local tcp dport 6379 redirect to :15006
\t}

\tchain input {
\t\ttype filter hook input priority 0; policy accept;
\t\tiifname \"lo\" return
\t\tct direction reply return
\t\ttcp dport 6379 reject with tcp reset
\t\tmeta l4proto { udp, udplite, sctp, dccp } th dport 6379 drop
\t}

\tchain output {
\t\ttype filter hook output priority 0; policy accept;
\t\toifname \"lo\" return
\t\tct state new,untracked tcp sport 6379 tcp flags & syn == 0 drop
\t}
}
";
    assert_eq!(plan().ruleset(), expected);
    plan().check().unwrap();
}

#[test]
fn a_part_that_is_not_wanted_leaves_no_chain() {
    let outbound = Outbound { all: false, ..plan().outbound.unwrap() };
    let mesh = Plan { outbound: Some(outbound), dns: None, inbound: None, ..plan() }.ruleset();
    assert!(mesh.contains("fd68:616e:7365::/48 redirect to :15001\n\t}\n}\n"), "{mesh}");
    assert!(!mesh.contains("dport 53") && !mesh.contains("chain in"), "{mesh}");
    let inbound = Plan { outbound: None, dns: None, ..plan() }.ruleset();
    assert!(!inbound.contains("skuid") && !inbound.contains("chain outbound"), "{inbound}");
}

#[test]
fn what_cannot_be_meant_is_refused() {
    let refused = |change: fn(&mut Plan)| {
        let mut plan = plan();
        change(&mut plan);
        plan.check().unwrap_err()
    };
    assert!(refused(|plan| *plan = Plan::default()).contains("nothing"));
    assert!(refused(|plan| plan.dns.as_mut().unwrap().port = 15001).contains("different"));
    let own = refused(|plan| plan.inbound.as_mut().unwrap().app_ports.push("15000-15010".parse().unwrap()));
    assert!(own.contains("15001"), "{own}");
    for bad in ["0", "70000", "80-79", "a", "1-", "-1", ""] {
        assert!(bad.parse::<Ports>().is_err(), "{bad}");
    }
    for bad in ["10.0.0.1/8", "10.0.0.0/33", "fd00::1/64", "::/129", "10.0.0.0/", "example.com", "1.2.3.4;"] {
        assert!(bad.parse::<Network>().is_err(), "{bad}");
    }
    for (good, text) in
        [("0.0.0.0/0", "0.0.0.0/0"), ("192.0.2.1", "192.0.2.1/32"), ("::1", "::1/128"), ("::/0", "::/0")]
    {
        assert_eq!(good.parse::<Network>().unwrap().to_string(), text);
    }
}

#[test]
fn a_plan_is_kept_as_json() {
    let json = serde_json::to_string(&plan()).unwrap();
    assert!(json.contains("\"excludePorts\":[\"22\",\"7000-7010\"]"), "{json}");
    assert_eq!(serde_json::from_str::<Plan>(&json).unwrap(), plan());
    assert!(serde_json::from_str::<Ports>("\"0\"").is_err());
}

#[test]
fn who_listens_is_read_from_the_kernels_tables() {
    let udp = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n  \
               12: 3500007F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000   101        0 1 2 0 0\n  \
               13: 00000000:0044 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 1 2 0 0\n";
    assert_eq!(name_servers(udp), BTreeSet::from([101]));
    let tcp = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
               0: 0100007F:3A99 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1337        0 1 1 0 100\n   \
               1: 0100007F:3A99 0100007F:C350 01 00000000:00000000 00:00000000 00000000     7        0 1 1 0 100\n   \
               2: 00000000000000000000000001000000:3A99 00000000000000000000000000000000:0000 0A 0:0 00:0 0  1338  0\n";
    assert_eq!(listeners(tcp, 15001), BTreeSet::from([1337, 1338]));
    assert_eq!(listeners(tcp, 15002), BTreeSet::new());
    assert_eq!(listeners("what is this\n", 15001), BTreeSet::new());
}
