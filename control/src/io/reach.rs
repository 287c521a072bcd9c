//! Reach: whether another cluster's control nodes and gateways answer where they say they are, as who they say.
//!
//! Used by both sides of a join and by `cluster check`. Nothing is believed here that an offer's own bundle, or a
//! committed one, does not vouch for.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use hanse_federation::catalog::GatewaySummary;
use hanse_federation::join::{Check, Greeting, Offer};
use hanse_federation::sni::Sni;
use hanse_federation::wire::decode;
use hanse_identity::tls::{Expect, TrustSource, client_config, pinned_client_config};
use hanse_identity::{Bundle, ClusterName, Revocations, Trust};

use super::context::Context;
use super::dial::{self, ALPN_H2, FIXED_SERVER_NAME, FixedTrust};
use crate::wire::control::Document;
use crate::wire::control::peer_client::PeerClient;

/// How long a greeting may take once connected.
const GREET_TIMEOUT: Duration = Duration::from_secs(2);

/// Dials the gateways of a cluster: (name, round trip or why not). Reachable means that TCP connects and the
/// gateway's SVID verifies; it may refuse us after that, for it may not know us yet.
pub async fn gateways(
    context: &Context,
    cluster: &ClusterName,
    trust: Arc<dyn TrustSource>,
    gateways: &[GatewaySummary],
) -> Vec<(String, Result<Duration, String>)> {
    let dials = gateways.iter().map(|gateway| {
        let trust = trust.clone();
        async move { (gateway.name.to_string(), dial_gateway(context, cluster, trust, gateway).await) }
    });
    join_all(dials).await
}

async fn dial_gateway(
    context: &Context,
    cluster: &ClusterName,
    trust: Arc<dyn TrustSource>,
    gateway: &GatewaySummary,
) -> Result<Duration, String> {
    let expect = Expect::Identities(Arc::new(BTreeSet::from([gateway.identity.clone()])));
    let config = client_config(trust, context.own.clone(), expect, ALPN_H2);
    let sni = Sni::Gateway { gateway: gateway.name.clone(), cluster: cluster.clone() }.to_name();
    let began = Instant::now();
    dial::tls(&gateway.tunnel, sni.as_deref().unwrap_or(FIXED_SERVER_NAME), config)
        .await
        .map(|_| began.elapsed())
        .map_err(|e| e.to_string())
}

/// The trust that an offer's own bundle gives: for looking at who answers, before anything is committed.
pub fn trust_of(bundle: &Bundle) -> Arc<dyn TrustSource> {
    Arc::new(FixedTrust(Arc::new(Trust::new([bundle], Revocations::default()))))
}

/// Asks who is at an address; the answering node must have one of the bundle's roots.
pub async fn greet_pinned(address: &str, bundle: &Bundle) -> Result<(Greeting, Duration), String> {
    let config = pinned_client_config(&bundle.trust_domain, &bundle.pins(), ALPN_H2);
    let link = dial::connect(address, config).await.map_err(|e| e.to_string())?;
    greet(link.channel).await
}

/// Asks who is at the other end of a channel, and how long the answer takes.
pub async fn greet(channel: tonic::transport::Channel) -> Result<(Greeting, Duration), String> {
    let began = Instant::now();
    let asked = tokio::time::timeout(GREET_TIMEOUT, async move {
        PeerClient::new(channel).greet(Document::default()).await
    });
    let reply = asked.await.map_err(|_| format!("no answer within {GREET_TIMEOUT:?}"))?;
    let took = began.elapsed();
    let reply = reply.map_err(|status| status.message().to_owned())?.into_inner();
    Ok((decode("greeting", &reply.json).map_err(|e| e.to_string())?, took))
}

/// The inviter's dials back to the joiner: its control nodes, one of which must answer, and its gateways.
pub async fn back(context: &Context, offer: &Offer) -> Vec<Check> {
    let greetings =
        join_all(offer.endpoints.iter().map(|address| greet_pinned(address, &offer.bundle))).await;
    let named = |result: Result<(Greeting, Duration), String>| {
        result.and_then(|(greeting, took)| {
            if greeting.cluster == offer.cluster && greeting.trust_domain == offer.trust_domain {
                Ok(took)
            } else {
                Err(format!("cluster {} of {} answers there", greeting.cluster, greeting.trust_domain))
            }
        })
    };
    let nodes = offer.endpoints.iter().cloned().zip(greetings.into_iter().map(named)).collect();
    let back = check("reachBack", "control nodes", nodes);
    if offer.gateways.is_empty() {
        return vec![back];
    }
    let dialled = gateways(context, &offer.cluster, trust_of(&offer.bundle), &offer.gateways).await;
    vec![back, check("gateways", &format!("{} gateways", offer.cluster), dialled)]
}

/// One line about a set of dials: well if at least one of them is.
pub fn check(name: &str, what: &str, dials: Vec<(String, Result<Duration, String>)>) -> Check {
    let total = dials.len();
    let reached: Vec<Duration> = dials.iter().filter_map(|(_, r)| r.as_ref().ok().copied()).collect();
    let mut detail = format!("{what} {}/{total}", reached.len());
    if let Some(best) = reached.iter().min() {
        detail.push_str(&format!(", {:.1} ms", best.as_secs_f64() * 1000.0));
    }
    for (who, result) in &dials {
        if let Err(why) = result {
            detail.push_str(&format!("; {who}: {why}"));
        }
    }
    Check { name: name.to_owned(), ok: !reached.is_empty(), detail }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_answers_is_enough_and_the_others_are_named() {
        let dials = vec![
            ("a:1".to_owned(), Ok(Duration::from_millis(7))),
            ("b:1".to_owned(), Err("refused".to_owned())),
            ("c:1".to_owned(), Ok(Duration::from_millis(4))),
        ];
        let line = check("reachBack", "control nodes", dials);
        assert!(line.ok);
        assert_eq!(line.detail, "control nodes 2/3, 4.0 ms; b:1: refused");
        assert!(!check("reachBack", "control nodes", vec![("b:1".to_owned(), Err("refused".to_owned()))]).ok);
        assert!(!check("reachBack", "control nodes", vec![]).ok);
    }
}
