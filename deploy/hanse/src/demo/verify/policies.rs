//! The policies of the story, and applying them by the code of `hanse policy apply`.

use anyhow::ensure;
use hanse_control::admin::{PolicyDeleteRequest, ProxyListRequest, SubscriberKind};
use hanse_federation::policy::{PolicyKey, PolicyKind};

use super::Story;
use crate::commands::policy::apply_text;

/// How soon traffic goes back after a failure in the story.
pub const RETURN_AFTER_SECONDS: u64 = 2;

/// Shares of the traffic of reviews by cluster, for callers in `from`.
pub fn distribute(from: &str, to: &str, share: u32) -> String {
    format!(
        "apiVersion: hanse.dev/v1alpha1
kind: BackendPolicy
metadata: {{ name: reviews, namespace: shop }}
spec:
  targetRefs:
  - {{ group: multicluster.x-k8s.io, kind: ServiceImport, name: reviews }}
  locality:
    mode: Distribute
    distribute:
    - from: {from}
      to: {{ {from}: {share}, {to}: {rest} }}
    returnAfter: {RETURN_AFTER_SECONDS}s
",
        rest = 100 - share
    )
}

/// Failover as it is without a policy, but back after two seconds.
pub fn failover() -> String {
    format!(
        "apiVersion: hanse.dev/v1alpha1
kind: BackendPolicy
metadata: {{ name: reviews, namespace: shop }}
spec:
  targetRefs:
  - {{ group: multicluster.x-k8s.io, kind: ServiceImport, name: reviews }}
  locality:
    mode: Failover
    returnAfter: {RETURN_AFTER_SECONDS}s
"
    )
}

/// Shares of the traffic of reviews by version.
pub fn versions(share: u32) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{ name: reviews, namespace: shop }}
spec:
  parentRefs:
  - {{ group: multicluster.x-k8s.io, kind: ServiceImport, name: reviews }}
  rules:
  - backendRefs:
    - {{ group: multicluster.x-k8s.io, kind: ServiceImport, name: reviews-v1, port: 9080, weight: {share} }}
    - {{ group: multicluster.x-k8s.io, kind: ServiceImport, name: reviews-v2, port: 9080, weight: {rest} }}
",
        rest = 100 - share
    )
}

impl Story<'_> {
    /// Applies a policy at home and waits until every proxy there has it in force.
    pub(super) async fn apply(&self, text: &str) -> anyhow::Result<u64> {
        let reply = apply_text(self.demo.connection(&self.home)?, "verify.yaml", text, false).await?;
        let complaints: Vec<&str> = reply.diagnostics.iter().map(|d| d.message.as_str()).collect();
        ensure!(reply.applied, "the policy was refused: {}", complaints.join("; "));
        let revision = reply.revision.unwrap_or(reply.meta.raft_index);
        self.programmed(revision).await?;
        Ok(revision)
    }

    /// Deletes the story's policy of that kind and waits likewise.
    pub(super) async fn delete(&self, kind: PolicyKind) -> anyhow::Result<()> {
        let keys = vec![PolicyKey { kind, name: "shop/reviews".parse()? }];
        let written = self.demo.connection(&self.home)?.call(&PolicyDeleteRequest { keys }).await?;
        self.programmed(written.revision).await
    }

    /// Waits until every proxy and gateway at home has put that revision in force.
    pub(super) async fn programmed(&self, revision: u64) -> anyhow::Result<()> {
        let connection = self.demo.connection(&self.home)?;
        self.demo
            .until(&format!("revision {revision} in force"), || async {
                let proxies = connection.call(&ProxyListRequest {}).await?;
                let behind = proxies.items.iter().filter(|p| p.kind != SubscriberKind::Agent);
                let behind: Vec<&str> =
                    behind.filter(|p| p.connected && p.applied < revision).map(|p| p.name.as_str()).collect();
                ensure!(behind.is_empty(), "behind: {}", behind.join(" "));
                Ok(())
            })
            .await
    }
}
