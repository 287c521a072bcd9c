//! Series: what a request of one kind counts in, looked up once and then found by the addresses of its names.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use hanse_federation::traffic::{EdgeKey, LatencyKey};

use super::{CLIENT_LEFT, CLIENT_LEFT_FLAG, Direction, NAMES, Reporter, Series, SeriesKey, TcpEvent};
use crate::runtime::access_log::Entry;
use crate::runtime::ends::{End, Ends, OVERFLOW};
use crate::runtime::telemetry::{DurationLabels, MAX_SERIES, RequestLabels, TcpLabels, TierLabels};
use crate::runtime::text::Text;

/// What is counted of a request when it is over.
pub(super) struct Measured {
    pub duration: Duration,
    pub received: u64,
    pub sent: u64,
}

impl Direction {
    fn ends(self, entry: &Entry) -> Ends {
        let source = End { cluster: &entry.source_cluster, principal: &entry.source_spiffe };
        let destination = End { cluster: &entry.destination_cluster, principal: &entry.destination_spiffe };
        Ends::new(self.security_policy(entry), source, destination, &entry.upstream_cluster)
    }
}

impl Reporter {
    /// Counts a TCP connection, as it is opened or when it has ended.
    pub(super) fn count_tcp(&self, direction: Direction, entry: &Entry, event: &TcpEvent) {
        let labels = TcpLabels {
            reporter: direction.reporter(),
            request_protocol: "tcp",
            response_flags: entry.response_flags,
            ends: direction.ends(entry),
        };
        let overflow = |labels: TcpLabels| TcpLabels { ends: labels.ends.overflow(), ..labels };
        let telemetry = &self.plane.telemetry;
        let mut tcp = self.tcp.borrow_mut();
        match event {
            TcpEvent::Opened => {
                tcp.opened.handle(&telemetry.tcp_opened, labels, overflow).inc();
            }
            TcpEvent::Closed { received, sent } => {
                tcp.received.handle(&telemetry.tcp_received, labels.clone(), overflow).inc_by(*received);
                tcp.sent.handle(&telemetry.tcp_sent, labels.clone(), overflow).inc_by(*sent);
                tcp.closed.handle(&telemetry.tcp_closed, labels, overflow).inc();
            }
        }
    }

    pub(super) fn count(&self, direction: Direction, entry: &Entry, measured: &Measured) {
        let series = self.series(direction, entry);
        if series.is_own && series.told.get() != self.plane.telemetry.traffic.epoch() {
            self.tell(direction, entry, &series);
        }
        series.requests.inc();
        series.durations.observe(measured.duration);
        series.received.observe(measured.received);
        series.sent.observe(measured.sent);
        if let Some(tier) = &series.tier {
            tier.inc();
        }
    }

    fn series(&self, direction: Direction, entry: &Entry) -> Rc<Series> {
        let names = [
            &entry.source_cluster,
            &entry.source_spiffe,
            &entry.destination_cluster,
            &entry.destination_spiffe,
            &entry.upstream_cluster,
        ];
        let key = SeriesKey {
            direction,
            request_protocol: entry.request_protocol,
            response_code: entry.response_code,
            response_flags: entry.response_flags,
            tier: entry.tier,
            names: names.map(Text::key),
        };
        let mut last = self.last.borrow_mut();
        if let Some((_, series)) = last.as_ref().filter(|(before, _)| *before == key) {
            return Rc::clone(series);
        }
        let mut known = self.series.borrow_mut();
        let held = known.get(&key).cloned();
        let series = held.unwrap_or_else(|| {
            // The same names are made anew from time to time, so that old keys are never asked for again.
            if known.len() >= MAX_SERIES {
                known.clear();
            }
            let series = Rc::new(self.look_up(direction, entry, names.map(Clone::clone)));
            known.insert(key, Rc::clone(&series));
            series
        });
        *last = Some((key, Rc::clone(&series)));
        series
    }

    fn look_up(&self, direction: Direction, entry: &Entry, names: [Text; NAMES]) -> Series {
        let telemetry = &self.plane.telemetry;
        let labels = RequestLabels {
            reporter: direction.reporter(),
            request_protocol: entry.request_protocol,
            response_code: u32::from(entry.response_code),
            response_flags: entry.response_flags,
            ends: direction.ends(entry),
        };
        // The app chooses its codes: where there is no room, only their class is told.
        let overflow = |labels: RequestLabels| RequestLabels {
            response_code: labels.response_code / 100 * 100,
            ends: labels.ends.overflow(),
            ..labels
        };
        let mut is_own = self.requests.borrow().has_room(&labels);
        let mut sizes = self.sizes.borrow_mut();
        let received = sizes.received.handle(&telemetry.request_bytes, labels.clone(), overflow).clone();
        let sent = sizes.sent.handle(&telemetry.response_bytes, labels.clone(), overflow).clone();
        let requests = self.requests.borrow_mut().handle(&telemetry.requests, labels, overflow).clone();
        let labels = DurationLabels {
            reporter: direction.reporter(),
            source_cluster: entry.source_cluster.to_string(),
            destination_cluster: entry.destination_cluster.to_string(),
            destination_service: entry.upstream_cluster.to_string(),
        };
        let overflow = |labels| DurationLabels { destination_service: OVERFLOW.to_owned(), ..labels };
        is_own &= self.durations.borrow().has_room(&labels);
        let durations = self.durations.borrow_mut().handle(&telemetry.durations, labels, overflow).clone();
        let tiered = direction == Direction::Outbound && !entry.tier.is_empty();
        let tier = tiered.then(|| {
            let labels = TierLabels {
                cluster: entry.source_cluster.to_string(),
                service: entry.upstream_cluster.to_string(),
                tier: entry.tier,
                destination_cluster: entry.destination_cluster.to_string(),
            };
            let overflow = |labels| TierLabels { service: OVERFLOW.to_owned(), ..labels };
            self.tiers.borrow_mut().handle(&telemetry.tiers, labels, overflow).clone()
        });
        Series { requests, durations, received, sent, tier, is_own, told: Cell::new(0), _names: names }
    }

    /// Says what these are of to whoever reads them for the control nodes. Not told if that is somebody else's turn.
    fn tell(&self, direction: Direction, entry: &Entry, series: &Series) {
        let epoch = self.plane.telemetry.traffic.epoch();
        let Some(mut table) = self.plane.telemetry.traffic.tell() else { return };
        let seen = direction.seen();
        let key = EdgeKey {
            seen,
            service: entry.upstream_cluster.to_string(),
            source: entry.source_spiffe.to_string(),
            source_cluster: entry.source_cluster.to_string(),
            destination: entry.destination_spiffe.to_string(),
            destination_cluster: entry.destination_cluster.to_string(),
        };
        let latency = LatencyKey {
            seen,
            service: key.service.clone(),
            source_cluster: key.source_cluster.clone(),
            destination_cluster: key.destination_cluster.clone(),
        };
        let code = entry.response_code;
        let is_failure = code >= 500 || (code == CLIENT_LEFT && entry.response_flags != CLIENT_LEFT_FLAG);
        table.counts_in(
            key,
            entry.request_protocol,
            code,
            entry.response_flags,
            is_failure,
            &series.requests,
        );
        table.takes_in(latency, &series.durations);
        series.told.set(epoch);
    }
}
