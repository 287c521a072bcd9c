//! What proxies counted in the last minute.

use hanse_federation::traffic::Report;
use serde::{Deserialize, Serialize};

use super::{Meta, Warning};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficRequest {}

/// All of it, added up over the proxies of the cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrafficReply {
    pub meta: Meta,
    pub report: Report,
    /// Proxies that told something.
    pub reporting: usize,
    #[serde(default)]
    pub warnings: Vec<Warning>,
}
