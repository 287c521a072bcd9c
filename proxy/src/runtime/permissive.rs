//! The alarm about ports that take callers without an identity: a warning when one opens and every hour that it stays open, and
//! when it will close, as a metric.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use hanse_federation::policy::PolicyDuration;
use hanse_federation::policy::permissive::PermissivePorts;
use hanse_identity::{ServiceName, Timestamp};

use super::drain::Stop;
use super::telemetry::{PortLabels, Telemetry};
use super::{Plane, now};
use crate::plain::ASKED_AGAIN;

const WARN_EVERY: Duration = Duration::from_secs(3600);

/// What was last told.
#[derive(Default)]
struct Alarm {
    open: PermissivePorts,
    warned: Option<Timestamp>,
}

/// Tells of every change, until the process ends.
pub async fn follow(plane: Arc<Plane>, services: Arc<BTreeSet<ServiceName>>, mut stop: Stop) {
    let mut revisions = plane.knowledge.revisions();
    let mut alarm = Alarm::default();
    loop {
        let next = match plane.knowledge.view() {
            Some(view) => alarm.tell(PermissivePorts::build(&view, &services), now(), &plane.telemetry),
            None => ASKED_AGAIN,
        };
        tokio::select! {
            () = stop.ended() => return,
            changed = revisions.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(next) => {}
        }
    }
}

impl Alarm {
    /// Tells what has changed; after which time there may be more to tell, by a clock that may be set.
    fn tell(&mut self, said: PermissivePorts, now: Timestamp, telemetry: &Telemetry) -> Duration {
        let open = said.at(now);
        for (port, _) in self.open.iter().filter(|(port, _)| open.open(*port, now).is_none()) {
            telemetry.permissive_until.remove(&PortLabels { port: port.into() });
            tracing::info!(port, "the port takes mutual TLS only, again");
        }
        let again = self.warned.is_none_or(|warned| now < warned || now.since(warned) >= WARN_EVERY);
        for (port, permissive) in open.iter() {
            let until = i64::try_from(permissive.until.seconds()).unwrap_or(i64::MAX);
            telemetry.permissive_until.get_or_create(&PortLabels { port: port.into() }).set(until);
            if again || self.open.open(port, now) != Some(permissive) {
                let (policy, until) = (&permissive.policy, permissive.until);
                let left = PolicyDuration::new(until.left(now));
                tracing::warn!(
                    port, %policy, %until, %left,
                    "the port takes callers without an identity, in plain text: delete the PeerAuthentication \
                     as soon as they are in the mesh"
                );
                self.warned = Some(now);
            }
        }
        let ends = open.iter().map(|(_, permissive)| permissive.until.left(now)).min();
        self.open = open;
        ends.map_or(ASKED_AGAIN, |ends| ends.min(ASKED_AGAIN))
    }
}

#[cfg(test)]
mod tests {
    use hanse_federation::policy::parse;
    use hanse_federation::{Change, View};

    use super::*;

    #[test]
    fn an_open_port_is_told_until_it_has_closed() {
        let at = Timestamp::from_seconds(1_800_000_000);
        let until = at + Duration::from_secs(7200);
        let text = format!(
            "apiVersion: hanse.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {{ name: a, namespace: shop }}\nspec:\n  \
             targetRefs: [{{ kind: Service, name: reviews }}]\n  ports: [{{ port: 9080, mode: Permissive, until: {until} }}]\n"
        );
        let mut view = View::new("east".parse().unwrap(), "east.example".parse().unwrap());
        let (mut document, _) = parse("test", &text).unwrap().remove(0);
        document.created = at;
        view.apply(&Change::PolicyPut(Box::new(document)));
        let ports = PermissivePorts::build(&view, &BTreeSet::from(["shop/reviews".parse().unwrap()]));
        let (telemetry, mut alarm) = (Telemetry::default(), Alarm::default());
        let shown = |telemetry: &Telemetry| {
            telemetry.to_text().contains("hanse_permissive_until_timestamp_seconds{port=\"9080\"} 1800007200")
        };
        assert_eq!(alarm.tell(ports.clone(), at, &telemetry), ASKED_AGAIN);
        assert!(shown(&telemetry) && alarm.warned == Some(at));
        let later = at + Duration::from_secs(3599);
        assert_eq!(alarm.tell(ports.clone(), later, &telemetry), ASKED_AGAIN);
        assert_eq!(alarm.warned, Some(at), "once an hour");
        let later = at + Duration::from_secs(3601);
        alarm.tell(ports.clone(), later, &telemetry);
        assert_eq!(alarm.warned, Some(later));
        let last = until - Duration::from_secs(9);
        assert_eq!(alarm.tell(ports.clone(), last, &telemetry), Duration::from_secs(9));
        alarm.tell(ports, until, &telemetry);
        assert!(!shown(&telemetry), "{}", telemetry.to_text());
    }
}
