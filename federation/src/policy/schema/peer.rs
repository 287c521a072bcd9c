//! The shape of PeerAuthentication.

use super::access::ACCESS_TARGET;
use super::text::PORT;
use super::{Shape, not_yet, required};
use crate::policy::moment::Moment;

pub static PEER_AUTHENTICATION: Shape = Shape::Object(&[
    required("targetRefs", &Shape::List { of: &ACCESS_TARGET, at_least: 1, at_most: 16 }),
    required("ports", &Shape::List { of: &PORT_MODE, at_least: 1, at_most: 16 }),
    not_yet("mtls", "strict is the default; name the ports that take plain text in ports, each with its end"),
    not_yet("portLevelMtls", "write ports: [{ port: 9080, mode: Permissive, until: 2027-01-31T12:00:00Z }]"),
    not_yet("selector", "name the services in targetRefs"),
]);

static PORT_MODE: Shape = Shape::Object(&[
    required("port", &PORT),
    required("mode", &Shape::OneOf(&["Permissive"])),
    required("until", &MOMENT),
]);

static MOMENT: Shape = Shape::Text(moment);

fn moment(text: &str) -> Result<(), String> {
    text.parse::<Moment>().map(drop).map_err(|e| e.to_string())
}
