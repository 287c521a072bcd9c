//! Gateways: listeners that can be told apart, certificates where TLS is, and nothing where it is not.

use std::collections::BTreeMap;

use super::Findings;
use crate::policy::document::gateway::{Gateway, ListenerProtocol};

pub(super) fn check(gateway: &Gateway, findings: &mut Findings<'_>) {
    let (mut names, mut ports, mut hosts) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for (index, listener) in gateway.listeners.iter().enumerate() {
        let path = |field: &str| format!("spec.listeners[{index}].{field}");
        if let Some(first) = names.insert(&listener.name, index) {
            let message = format!("listener {} is there already, as listeners[{first}]", listener.name);
            findings.error("E4005", path("name"), message, "give one of them another name".to_owned());
        }
        let other = *ports.entry(listener.port).or_insert(listener.protocol);
        if other != listener.protocol {
            let message = format!("port {} has HTTP and HTTPS", listener.port);
            findings.error("E4005", path("protocol"), message, "give each a port of its own".to_owned());
        }
        let hostname = listener.hostname.as_ref().map(|name| name.to_ascii_lowercase());
        if let Some(first) = hosts.insert((listener.port, hostname), index) {
            let message = format!("listeners[{first}] has the same port and hosts");
            findings.error("E4005", path("hostname"), message, "remove one of them".to_owned());
        }
        match (listener.protocol, &listener.tls) {
            (ListenerProtocol::Https, None) => {
                let fix =
                    "add tls: { certificateRefs: [{ name: NAME }] }, and NAME.crt and NAME.key on its hosts";
                findings.error("E4004", path("tls"), "HTTPS needs a certificate".to_owned(), fix.to_owned());
            }
            (ListenerProtocol::Http, Some(_)) => {
                let message = "there is no TLS on a listener for HTTP".to_owned();
                findings.error(
                    "E4005",
                    path("tls"),
                    message,
                    "write protocol: HTTPS, or remove tls".to_owned(),
                );
            }
            _ => {}
        }
    }
}
