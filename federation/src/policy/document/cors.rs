//! The CORS filter of a route as documents write it (Gateway API v1, HTTPCORSFilter): plain data.

use serde::{Deserialize, Serialize};

/// Which pages of other origins may ask, and read the answers; the browser keeps it, by headers that are written here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cors {
    /// `scheme://host` or `scheme://host:port`, where the host may be `*`, or begin with `*.` for one label or more; or `*` alone, for all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow_origins: Vec<String>,
    /// Whether requests may carry cookies and the like.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_credentials: Option<bool>,
    /// Or `*` alone. GET, HEAD and POST need not be named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow_methods: Vec<String>,
    /// Of the request; `*`: any, Authorization too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow_headers: Vec<String>,
    /// Of the answer, that a page may read; `*`: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expose_headers: Vec<String>,
    /// Seconds for which the answer to a preflight may be kept; absent = 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age: Option<u32>,
}

/// Every origin, method or header.
pub const ANY: &str = "*";
