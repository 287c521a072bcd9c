//! Ends: who called and who was called, in Istio's labels. What the mesh knows of a workload is its SPIFFE ID, so that names
//! it; what nobody knows is `unknown`, as with Istio.

use prometheus_client::encoding::EncodeLabelSet;

/// In place of names, where there are too many.
pub const OVERFLOW: &str = "overflow";
const UNKNOWN: &str = "unknown";
/// Istio's word for a workload that says no revision.
const NO_REVISION: &str = "latest";

/// One end, as a record has it; empty where it is not known.
#[derive(Clone, Copy)]
pub struct End<'e> {
    pub cluster: &'e str,
    /// Its SPIFFE ID.
    pub principal: &'e str,
}

/// Both ends. The names of a workload follow from its principal, and make no series more than that does.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Ends {
    pub connection_security_policy: &'static str,
    pub source_cluster: String,
    pub source_principal: String,
    pub source_workload: String,
    pub source_workload_namespace: String,
    pub source_canonical_service: String,
    pub source_canonical_revision: &'static str,
    pub source_app: String,
    pub source_version: &'static str,
    pub destination_cluster: String,
    pub destination_principal: String,
    pub destination_workload: String,
    pub destination_workload_namespace: String,
    pub destination_canonical_service: String,
    pub destination_canonical_revision: &'static str,
    pub destination_app: String,
    pub destination_version: &'static str,
    pub destination_service: String,
    pub destination_service_name: String,
    pub destination_service_namespace: String,
}

/// What a SPIFFE ID says of a workload.
struct Workload<'p> {
    namespace: &'p str,
    name: &'p str,
    revision: &'static str,
}

impl<'p> Workload<'p> {
    /// Of `spiffe://<trust domain>/ns/<namespace>/sa/<account>`.
    fn of(principal: &'p str) -> Self {
        let path = principal.strip_prefix("spiffe://").and_then(|rest| rest.split_once('/'));
        match path.and_then(|(_, path)| path.strip_prefix("ns/")?.split_once("/sa/")) {
            Some((namespace, name)) => Self { namespace, name, revision: NO_REVISION },
            None => Self { namespace: UNKNOWN, name: UNKNOWN, revision: UNKNOWN },
        }
    }
}

impl Ends {
    /// `service`: what was asked for, mostly `namespace/name`.
    pub fn new(
        connection_security_policy: &'static str,
        source: End<'_>,
        destination: End<'_>,
        service: &str,
    ) -> Self {
        let (caller, called) = (Workload::of(source.principal), Workload::of(destination.principal));
        let (namespace, name) = service.split_once('/').unwrap_or(("", service));
        Self {
            connection_security_policy,
            source_cluster: known(source.cluster),
            source_principal: known(source.principal),
            source_workload: caller.name.to_owned(),
            source_workload_namespace: caller.namespace.to_owned(),
            source_canonical_service: caller.name.to_owned(),
            source_canonical_revision: caller.revision,
            source_app: caller.name.to_owned(),
            source_version: UNKNOWN,
            destination_cluster: known(destination.cluster),
            destination_principal: known(destination.principal),
            destination_workload: called.name.to_owned(),
            destination_workload_namespace: called.namespace.to_owned(),
            destination_canonical_service: called.name.to_owned(),
            destination_canonical_revision: called.revision,
            destination_app: called.name.to_owned(),
            destination_version: UNKNOWN,
            destination_service: known(service),
            destination_service_name: known(name),
            destination_service_namespace: known(namespace),
        }
    }

    /// The same without its names, of which there are too many.
    pub fn overflow(self) -> Self {
        let nobody = || OVERFLOW.to_owned();
        Self {
            source_principal: nobody(),
            source_workload: nobody(),
            source_workload_namespace: nobody(),
            source_canonical_service: nobody(),
            source_canonical_revision: OVERFLOW,
            source_app: nobody(),
            destination_principal: nobody(),
            destination_workload: nobody(),
            destination_workload_namespace: nobody(),
            destination_canonical_service: nobody(),
            destination_canonical_revision: OVERFLOW,
            destination_app: nobody(),
            destination_service: nobody(),
            destination_service_name: nobody(),
            destination_service_namespace: nobody(),
            ..self
        }
    }
}

fn known(text: &str) -> String {
    if text.is_empty() { UNKNOWN } else { text }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(source: &str, destination: &str, service: &str) -> Ends {
        let of = |principal| End { cluster: "east", principal };
        Ends::new("mutual_tls", of(source), of(destination), service)
    }

    #[test]
    fn a_workload_is_called_by_its_spiffe_id_and_what_is_not_known_is_unknown() {
        let both = ends("spiffe://east.example/ns/shop/sa/productpage", "", "shop/reviews");
        let caller = (both.source_workload.as_str(), both.source_workload_namespace.as_str());
        assert_eq!(caller, ("productpage", "shop"));
        assert_eq!(
            (both.source_app.as_str(), both.source_canonical_service.as_str()),
            ("productpage", "productpage")
        );
        assert_eq!((both.source_canonical_revision, both.source_version), ("latest", "unknown"));
        let called = (both.destination_workload.as_str(), both.destination_workload_namespace.as_str());
        assert_eq!((called, both.destination_canonical_revision), (("unknown", "unknown"), "unknown"));
        assert_eq!(both.destination_principal, "unknown");
        let service = (both.destination_service_name.as_str(), both.destination_service_namespace.as_str());
        assert_eq!(service, ("reviews", "shop"));
        for foreign in ["spiffe://other.example/web/ns/x/sa/y", "spiffe://other.example", "ns/x/sa/y"] {
            assert_eq!(ends(foreign, "", "").source_workload, "unknown", "{foreign}");
        }
        let passed = ends("", "", "PassthroughCluster");
        let service =
            (passed.destination_service_name.as_str(), passed.destination_service_namespace.as_str());
        assert_eq!(service, ("PassthroughCluster", "unknown"));
    }

    #[test]
    fn whoever_is_too_many_has_no_name_left() {
        let one = ends("spiffe://east.example/ns/shop/sa/a", "spiffe://east.example/ns/shop/sa/b", "shop/b");
        let other = ends("spiffe://east.example/ns/x/sa/y", "", "x/z");
        assert_eq!(one.clone().overflow(), other.overflow());
        assert_eq!(one.overflow().source_cluster, "east");
    }
}
