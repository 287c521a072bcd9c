//! A workload as an administrator: its SVID from the SPIFFE Workload API in place of a credential file.

use std::time::Duration;

use hanse_agent::client::{Fetched, WorkloadApi};
use hanse_control::client::Credential;
use hanse_identity::{AuthorityCertificate, Bundle, ClusterName, TrustDomain};

use crate::errors::{Exit, Failure};

/// Where the SVID comes from, and whom it is shown.
pub(super) struct Workload {
    pub(super) api: WorkloadApi,
    /// `host:port`.
    pub(super) control_nodes: Vec<String>,
}

impl Workload {
    /// The SVID of the moment: the agent renews it.
    pub(super) async fn credential(&self, timeout: Duration) -> Result<Credential, Failure> {
        let fetched = self.api.fetch(timeout).await.map_err(|e| {
            Failure::new(Exit::Unreachable, "E1012", format!("{}: {e}", self.api)).fix(
                "hanse workload register gives this process an identity, --admin lets it be an administrator's, and hanse role bind gives it roles; --downstream lets it be a nested issuer",
            )
        })?;
        of(fetched, &self.control_nodes)
            .map_err(|why| Failure::new(Exit::Unreadable, "E1003", format!("{}: {why}", self.api)))
    }
}

fn of(fetched: Fetched, control_nodes: &[String]) -> Result<Credential, String> {
    let Fetched { svid, trust_domain, authorities } = fetched;
    let authorities = authorities.iter().map(|der| AuthorityCertificate::parse(der, &trust_domain));
    let authorities = authorities.collect::<Result<Vec<_>, _>>().map_err(|e| e.to_string())?;
    let bundle = Bundle::new(trust_domain.clone(), 0, authorities);
    Ok(Credential {
        cluster: called(&trust_domain),
        trust_domain,
        endpoints: control_nodes.to_vec(),
        chain_pem: svid.chain_pem(),
        key_pem: svid.key_pem().to_string(),
        bundle_pem: bundle.to_pem(),
    })
}

/// What a cluster is called in messages that nobody has told its name to: after its trust domain.
fn called(trust_domain: &TrustDomain) -> ClusterName {
    let label = trust_domain.as_str().split('.').next().unwrap_or_default();
    label.parse().unwrap_or_else(|_| "cluster".parse().expect("it is a label"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_whose_name_is_not_known_is_called_after_its_trust_domain() {
        let name = |text: &str| called(&text.parse().unwrap()).to_string();
        assert_eq!((name("east.example"), name("_x.example")), ("east".to_owned(), "cluster".to_owned()));
    }
}
