//! What a gateway counts beside what every data-plane role counts.

use hanse_proxy::runtime::telemetry::Telemetry;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

/// Which peer cluster, and which of the two modes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Door {
    pub peer: String,
    /// `tunnel` (from the peer) or `passthrough` (towards it).
    pub mode: &'static str,
}

/// A door and a direction: `in` is from the side that dialled.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Flow {
    pub peer: String,
    pub mode: &'static str,
    pub direction: &'static str,
}

/// Labels come only from joined clusters' names, so their number is bounded by the federation's size.
#[derive(Clone, Debug, Default)]
pub struct GatewayTelemetry {
    pub streams: Family<Door, Gauge>,
    pub bytes: Family<Flow, Counter>,
    pub opened: Family<Door, Counter>,
}

/// One open stream: counted while it lives, with the counters of its two directions.
pub struct Open {
    streams: Gauge,
    pub inward: Counter,
    pub outward: Counter,
}

impl GatewayTelemetry {
    pub fn register(telemetry: &Telemetry) -> Self {
        let new = Self::default();
        telemetry.register("hanse_gateway_streams", "Streams open now", new.streams.clone());
        telemetry.register("hanse_gateway_bytes", "Bytes carried, both directions", new.bytes.clone());
        telemetry.register("hanse_gateway_streams_opened", "Streams opened", new.opened.clone());
        new
    }

    /// Counts a stream as open until the answer is dropped.
    pub fn open(&self, peer: &str, mode: &'static str) -> Open {
        let door = Door { peer: peer.to_owned(), mode };
        let flow = |direction| {
            let flow = Flow { peer: peer.to_owned(), mode, direction };
            self.bytes.get_or_create_owned(&flow)
        };
        let streams = self.streams.get_or_create_owned(&door);
        streams.inc();
        self.opened.get_or_create_owned(&door).inc();
        Open { streams, inward: flow("in"), outward: flow("out") }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.streams.dec();
    }
}
