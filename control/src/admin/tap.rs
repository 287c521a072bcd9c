//! Live requests, for somebody who looks at them.

use hanse_federation::tap::{Request, Tap};
use hanse_identity::{ClusterName, NodeName, SpiffeId, Timestamp};
use serde::{Deserialize, Serialize};

use super::{Meta, Warning};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TapRequest {
    pub tap: Tap,
    /// The cluster that is meant, where one was named: there is an answer of the asked cluster's own proxies only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterName>,
    /// How long, ten minutes at most.
    pub seconds: u64,
}

/// What `tap` streams: first `Begun`, then what proxies tell, and `Ended` where it was not the reader who ended it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum TapEvent {
    #[serde(rename_all = "camelCase")]
    Begun {
        meta: Meta,
        /// Who is looked at now; those that come later are too.
        proxies: Vec<NodeName>,
        until: Timestamp,
        warnings: Vec<Warning>,
    },
    Part(TapPart),
    Warning(Warning),
    Ended {
        why: String,
    },
}

/// What one proxy told at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TapPart {
    /// The name and the identity of its stream.
    pub proxy: NodeName,
    pub identity: SpiffeId,
    pub requests: Vec<Request>,
    /// Requests that were asked for and are not told: above the rate, or too many to wait for their reader.
    pub left_out: u64,
}
