//! Metrics of the agent, in Prometheus text.

use std::sync::Mutex;
use std::sync::atomic::AtomicI64;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Counters are counted where things happen; gauges are set just before they are read.
pub struct Metrics {
    registry: Mutex<Registry>,
    pub svids_issued: Counter,
    pub renew_failures: Counter,
    pub nacks: Counter,
    pub acks: Counter,
    pub stale: Counter,
    pub unanswered: Counter,
    pub attestation_failures: Counter,
    pub connections_refused: Counter,
    pub floods: Counter,
    pub denials: Counter,
    pub svids_dropped: Counter,
    pub control_connections: Counter,
    pub control_failures: Counter,
    pub rejoins: Counter,
    pub sds_streams: Gauge,
    pub sds_behind: Gauge,
    pub sds_rejecting: Gauge,
    pub workload_api_streams: Gauge,
    pub svids_held: Gauge,
    pub min_not_after: Gauge<i64, AtomicI64>,
    pub own_not_after: Gauge<i64, AtomicI64>,
    pub must_join_anew: Gauge,
    pub applied_revision: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("hanse_agent");
        let mut counter = |name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let svids_issued = counter("svids_issued", "SVIDs received for local workloads");
        let renew_failures = counter("renew_failures", "Failed attempts to get or renew an SVID");
        let nacks = counter("sds_nacks", "SDS responses that a client rejected");
        let acks = counter("sds_acks", "SDS responses that a client put in force");
        let stale = counter("sds_stale", "SDS requests that answered no response that waited for one");
        let unanswered =
            counter("sds_unanswered", "SDS streams closed because a response was left unanswered");
        let attestation_failures =
            counter("attestation_failures", "Local connections that were not attested");
        let connections_refused = counter("connections_refused", "Local connections over the limit");
        let floods = counter("http2_floods", "Local connections closed for flooding HTTP/2 frames");
        let denials = counter("denials", "Streams refused or ended because the caller is not entitled");
        let svids_dropped =
            counter("svids_dropped", "Held SVIDs dropped by a revocation or registration change");
        let control_connections = counter("control_connections", "Connections made to control nodes");
        let control_failures =
            counter("control_failures", "Connections to control nodes that failed or broke");
        let rejoins = counter("rejoins", "Joins with a new token after the own SVID was no longer accepted");
        let mut gauge = |name: &str, help: &str| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let sds_streams = gauge("sds_streams", "SDS streams open now");
        let sds_behind =
            gauge("sds_behind", "SDS streams whose client has not put in force what it should have");
        let sds_rejecting =
            gauge("sds_rejecting", "SDS streams whose client has refused what it was sent last");
        let workload_api_streams = gauge("workload_api_streams", "Workload API streams open now");
        let svids_held = gauge("svids_held", "SVIDs held for local workloads");
        let min_not_after =
            gauge("svid_min_not_after_seconds", "Earliest end of a held SVID, Unix time; 0 = none");
        let own_not_after =
            gauge("own_svid_not_after_seconds", "End of the agent's own SVID, Unix time; 0 = none");
        let must_join_anew =
            gauge("must_join_anew", "1 = the own SVID is not accepted any more, a new join token is needed");
        let applied_revision = gauge("applied_revision", "Revision that every stream has followed");
        Self {
            registry: Mutex::new(registry),
            svids_issued,
            renew_failures,
            nacks,
            acks,
            stale,
            unanswered,
            attestation_failures,
            connections_refused,
            floods,
            denials,
            svids_dropped,
            control_connections,
            control_failures,
            rejoins,
            sds_streams,
            sds_behind,
            sds_rejecting,
            workload_api_streams,
            svids_held,
            min_not_after,
            own_not_after,
            must_join_anew,
            applied_revision,
        }
    }
}

impl Metrics {
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        let registry = self.registry.lock().expect("no holder of this lock panics");
        encode(&mut text, &registry).expect("writing to a string does not fail");
        text
    }
}
