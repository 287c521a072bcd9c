//! Ports of one workload that take callers without an identity, compiled from PeerAuthentications. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hanse_identity::{ServiceName, Timestamp};

use super::document::PolicySpec;
use super::document::peer::PeerAuthentication;
use crate::view::View;

/// The ports, and until when each is open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PermissivePorts(BTreeMap<u16, Permissive>);

/// Why a port takes plain text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permissive {
    /// `namespace/name` of the document that keeps it open longest.
    pub policy: Arc<str>,
    /// From then on it does not, whether or not the document has been removed.
    pub until: Timestamp,
}

impl PermissivePorts {
    /// What is said of any of these services, which one workload serves.
    pub fn build(view: &View, services: &BTreeSet<ServiceName>) -> Self {
        let mut ports: BTreeMap<u16, Permissive> = BTreeMap::new();
        for document in view.policies.values() {
            let PolicySpec::PeerAuthentication(policy) = &document.spec else { continue };
            let namespace = document.name.namespace();
            if !policy.target_refs.iter().any(|target| services.contains(&target.service(namespace))) {
                continue;
            }
            for port in &policy.ports {
                let until = PeerAuthentication::closes(port, document.created);
                let known = ports.get(&port.port).is_some_and(|known| known.until >= until);
                if !known {
                    let policy = document.name.to_string().into();
                    ports.insert(port.port, Permissive { policy, until });
                }
            }
        }
        Self(ports)
    }

    /// Whether no port is ever open.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Why the port is open, if it is.
    pub fn open(&self, port: u16, now: Timestamp) -> Option<&Permissive> {
        self.0.get(&port).filter(|permissive| now < permissive.until)
    }

    /// Those that are open.
    pub fn at(&self, now: Timestamp) -> Self {
        let open = self.0.iter().filter(|(_, permissive)| now < permissive.until);
        Self(open.map(|(port, permissive)| (*port, permissive.clone())).collect())
    }

    pub fn iter(&self) -> impl Iterator<Item = (u16, &Permissive)> {
        self.0.iter().map(|(port, permissive)| (*port, permissive))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::Change;
    use crate::policy::{PolicyDocument, Severity, in_time, parse, validate};

    const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);
    const HOUR: Duration = Duration::from_secs(3600);

    fn text(name: &str, service: &str, port: u16, until: &str) -> String {
        format!(
            "apiVersion: hanse.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {{ name: {name}, namespace: shop }}\n\
             spec:\n  targetRefs: [{{ kind: Service, name: {service} }}]\n  \
             ports: [{{ port: {port}, mode: Permissive, until: {until} }}]\n"
        )
    }

    fn built(documents: &[(String, Timestamp)]) -> PermissivePorts {
        let mut view = View::new("east".parse().unwrap(), "east.example".parse().unwrap());
        for (text, created) in documents {
            let (document, _) = parse("test", text).unwrap().remove(0);
            view.apply(&Change::PolicyPut(Box::new(PolicyDocument { created: *created, ..document })));
        }
        PermissivePorts::build(&view, &BTreeSet::from(["shop/reviews".parse().unwrap()]))
    }

    #[test]
    fn a_port_is_open_until_its_end_and_no_other_ever() {
        let until = (NOW + HOUR).to_string();
        let ports = built(&[
            (text("one", "reviews", 9080, &until), NOW),
            (text("other", "ratings", 9081, &until), NOW),
        ]);
        assert_eq!(ports.open(9080, NOW).unwrap().policy.as_ref(), "shop/one");
        assert!(ports.open(9080, NOW + HOUR - Duration::from_millis(1)).is_some());
        assert!(ports.open(9080, NOW + HOUR).is_none());
        assert!(ports.open(9081, NOW).is_none(), "another service's");
        assert!(built(&[]).is_empty());
    }

    #[test]
    fn the_longest_counts_and_none_is_longer_than_ninety_days() {
        let far = (NOW + 24 * 365 * HOUR).to_string();
        let ports = built(&[
            (text("long", "reviews", 9080, &far), NOW),
            (text("short", "reviews", 9080, &(NOW + HOUR).to_string()), NOW),
        ]);
        assert_eq!(ports.iter().map(|(_, open)| open.until).collect::<Vec<_>>(), [NOW + 24 * 90 * HOUR]);
        assert_eq!(ports.open(9080, NOW).unwrap().policy.as_ref(), "shop/long");
    }

    #[test]
    fn an_end_is_needed_that_has_not_passed_and_is_not_far() {
        let view = View::new("east".parse().unwrap(), "east.example".parse().unwrap());
        let found = |text: &str| -> Vec<(String, Severity)> {
            let documents = match parse("test", text) {
                Ok(documents) => documents,
                Err(wrong) => return wrong.into_iter().map(|d| (d.code, d.severity)).collect(),
            };
            let mut all = validate(&view, "test", &documents);
            all.extend(in_time("test", &documents, NOW));
            all.into_iter().filter(|d| d.code != "E4131").map(|d| (d.code, d.severity)).collect()
        };
        let until = |at: Timestamp| found(&text("a", "reviews", 9080, &at.to_string()));
        assert_eq!(until(NOW + HOUR), [("E4142".to_owned(), Severity::Warning)]);
        let wrong = [("E4141".to_owned(), Severity::Error)];
        assert_eq!(until(NOW), wrong);
        assert_eq!(until(NOW + 24 * 91 * HOUR), wrong);
        let code = |text: &str| found(text).into_iter().map(|(code, _)| code).collect::<Vec<_>>();
        assert_eq!(code(&text("a", "reviews", 9080, "tomorrow")), ["E4005"]);
        let endless = text("a", "reviews", 9080, "x").replace(", until: x", "");
        assert_eq!(code(&endless), ["E4004"]);
        let global =
            endless.replace("ports: [{ port: 9080, mode: Permissive }]", "mtls: { mode: PERMISSIVE }");
        assert_eq!(code(&global), ["E4004", "E4125"]);
        assert_eq!(code(&endless.replace("Permissive", "Disable")), ["E4004", "E4005"]);
    }
}
