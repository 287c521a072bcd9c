//! `stat`, `edges` and `top`: what proxies counted, of all control nodes' subscribers.

use hanse_federation::traffic::Report;
use tonic::Status;

use super::Call;
use crate::admin::{TrafficReply, TrafficRequest};
use crate::io::census::{Part, Query, gather};

pub async fn traffic(call: Call, _: TrafficRequest) -> Result<TrafficReply, Status> {
    let gathered = gather(&call.context, &Query::Traffic).await;
    let mut reading = call.read().await;
    reading.silent(gathered.silent.difference(&gathered.revoked));
    let (mut reports, mut reporting) = (Vec::new(), 0);
    for (_, part) in gathered.parts {
        if let Part::Traffic { report, reporting: told } = part {
            reports.push(report);
            reporting += told;
        }
    }
    let report = Report::sum(&reports);
    if report.cut {
        let what = "there is more than is told of: of each identity its busiest calls are shown".to_owned();
        reading.partial("E5401", what);
    }
    Ok(TrafficReply { meta: reading.meta, report, reporting, warnings: reading.warnings })
}
