//! The steps of the tour: each document, and what it has to change.

use std::path::Path;
use std::time::Duration;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::{Answered, Seen, Tour, count, statuses, told, versions};

/// Requests over which shares are taken.
const REQUESTS: usize = 200;
/// The same for statuses.
const SOME: usize = 40;
/// Requests at once, and how many of them a breaker lets through: of one worker its part of that.
const AT_ONCE: usize = 40;
const THROUGH: usize = 4;
/// What one caller has at one instance.
const LIMIT: usize = 5;
/// The delay of the fault.
const DELAY: Duration = Duration::from_millis(300);
/// Whom the tokens of the tour are of; nobody else knows the key.
const ISSUER: &str = "https://tour.example";

/// An HTTPRoute of reviews with these rules.
fn route(rules: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{ name: reviews, namespace: shop }}
spec:
  parentRefs:
  - {{ group: multicluster.x-k8s.io, kind: ServiceImport, name: reviews }}
  rules:
{rules}"
    )
}

fn backend(version: &str) -> String {
    format!("{{ group: multicluster.x-k8s.io, kind: ServiceImport, name: reviews-{version} }}")
}

/// A document of ours for reviews.
fn for_reviews(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: hanse.dev/v1alpha1
kind: {kind}
metadata: {{ name: {name}, namespace: shop }}
spec:
  targetRefs: [{{ kind: Service, name: reviews }}]
{spec}"
    )
}

fn share(answers: &[Answered], version: &str) -> usize {
    versions(answers).get(version).copied().unwrap_or_default()
}

fn all_of(answers: &[Answered], version: &str) -> bool {
    answers.iter().all(|answer| answer.status == 200 && answer.version == version)
}

impl Tour {
    pub(super) async fn canary(&self, file: &Path) -> anyhow::Result<Seen> {
        let before = self.ask_each(REQUESTS, &[]).await?;
        let (v1, v2) = (backend("v1"), backend("v2"));
        let weighed = |backend: &str, weight: u32| backend.replace(" }", &format!(", weight: {weight} }}"));
        let rules = format!("  - backendRefs:\n    - {}\n    - {}\n", weighed(&v1, 90), weighed(&v2, 10));
        self.apply(file, &route(&rules)).await?;
        let after = self.ask_each(REQUESTS, &[]).await?;
        // A tenth of 200 is further away than this once in ten thousand times. Before, load decides: v2 has at least what
        // comes of two draws that both fell on it.
        let ok = share(&before, "v2") > REQUESTS / 10 && (4..=40).contains(&share(&after, "v2"));
        let ok = ok && count(&before, 200) == REQUESTS && count(&after, 200) == REQUESTS;
        Ok(Seen { before: told(&before), after: told(&after), ok })
    }

    pub(super) async fn steering(&self, file: &Path) -> anyhow::Result<Seen> {
        let beta = &[("x-beta", "yes")];
        let before = self.ask_each(SOME, beta).await?;
        let rules = format!(
            "  - matches: [{{ headers: [{{ name: x-beta, value: \"yes\" }}] }}]\n    backendRefs: [{}]\n  - backendRefs: [{}]\n",
            backend("v2"),
            backend("v1")
        );
        self.apply(file, &route(&rules)).await?;
        let (steered, others) = (self.ask_each(SOME, beta).await?, self.ask_each(SOME, &[]).await?);
        Ok(Seen {
            ok: !all_of(&before, "v2") && all_of(&steered, "v2") && all_of(&others, "v1"),
            before: format!("with x-beta: {}", told(&before)),
            after: format!("with x-beta: {}; without: {}", told(&steered), told(&others)),
        })
    }

    pub(super) async fn mirroring(&self, file: &Path) -> anyhow::Result<Seen> {
        let copies = async || {
            let labels = ["service=\"shop/reviews-v2\"", "outcome=\"sent\""];
            self.metric("hanse_mirrored_total", &labels).await
        };
        let start = copies().await?;
        let before = self.ask_each(SOME, &[]).await?;
        let none = copies().await? - start;
        let rules = format!(
            "  - filters:\n    - {{ type: RequestMirror, requestMirror: {{ backendRef: {}, percent: 100 }} }}\n    backendRefs: [{}]\n",
            backend("v2"),
            backend("v1")
        );
        self.apply(file, &route(&rules)).await?;
        let after = self.ask_each(SOME, &[]).await?;
        // Nobody waits for a copy, so the last may be under way.
        let mut sent = copies().await? - start;
        for _ in 0..100 {
            if sent >= SOME as u64 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
            sent = copies().await? - start;
        }
        Ok(Seen {
            ok: none == 0 && sent == SOME as u64 && all_of(&after, "v1"),
            before: format!("{}; {none} copies to v2", told(&before)),
            after: format!("{}; {sent} copies to v2", told(&after)),
        })
    }

    pub(super) async fn faults(&self, file: &Path) -> anyhow::Result<Seen> {
        let chaos = &[("x-chaos", "on")];
        // One after the other: at once, a busy machine alone might delay them as long.
        let before = self.ask_each(SOME, chaos).await?;
        let fault = format!(
            "apiVersion: hanse.dev/v1alpha1
kind: FaultInjection
metadata: {{ name: chaos, namespace: shop }}
spec:
  for: 5m
  only: {{ header: {{ name: x-chaos, value: \"on\" }} }}
  delay: {{ percent: 100, fixed: {}ms }}
  abort: {{ percent: 50, httpStatus: 503 }}
---
",
            DELAY.as_millis()
        );
        let rules = format!(
            "  - filters:\n    - {{ type: ExtensionRef, extensionRef: {{ group: hanse.dev, kind: FaultInjection, name: chaos }} }}\n    backendRefs: [{}]\n",
            backend("v1")
        );
        self.apply(file, &format!("{fault}{}", route(&rules))).await?;
        let after = self.ask_at_once(SOME, "/", chaos).await?;
        let spared = self.ask_at_once(SOME, "/", &[]).await?;
        let least = |answers: &[Answered]| answers.iter().map(|a| a.took).min().unwrap_or_default();
        let aborted = after.iter().filter(|a| a.status == 503 && a.reason == "fault").count();
        self.delete("HTTPRoute", &["reviews"]).await?;
        self.delete("FaultInjection", &["chaos"]).await?;
        Ok(Seen {
            ok: count(&before, 200) == SOME
                && (SOME / 8..SOME - SOME / 8).contains(&aborted)
                && aborted + count(&after, 200) == SOME
                && least(&after) >= DELAY
                && least(&before) < DELAY
                && count(&spared, 200) == SOME,
            before: format!(
                "with x-chaos: {}, the fastest {} ms",
                statuses(&before),
                least(&before).as_millis()
            ),
            after: format!(
                "with x-chaos: {}, the fastest {} ms; without: {}",
                statuses(&after),
                least(&after).as_millis(),
                statuses(&spared)
            ),
        })
    }

    pub(super) async fn breakers(&self, file: &Path) -> anyhow::Result<Seen> {
        let slow = "/slow?ms=500";
        let before = self.ask_at_once(AT_ONCE, slow, &[]).await?;
        let spec = format!("  limits: {{ maxPending: {THROUGH}, maxRequests: {THROUGH} }}\n");
        self.apply(
            file,
            &for_reviews("BackendPolicy", "reviews", &spec).replace(
                "[{ kind: Service, name: reviews }]",
                "[{ group: multicluster.x-k8s.io, kind: ServiceImport, name: reviews }]",
            ),
        )
        .await?;
        let after = self.ask_at_once(AT_ONCE, slow, &[]).await?;
        self.delete("BackendPolicy", &["reviews"]).await?;
        let through = count(&after, 200);
        let refused: Vec<&Answered> = after.iter().filter(|answer| answer.status == 503).collect();
        let slowest = refused.iter().map(|answer| answer.took).max().unwrap_or_default();
        Ok(Seen {
            // Workers have at least one each, and a busy machine may begin some requests when others have ended.
            ok: count(&before, 200) == AT_ONCE
                && (1..=AT_ONCE / 2).contains(&through)
                && through + refused.len() == AT_ONCE
                && slowest < Duration::from_millis(500),
            before: statuses(&before),
            after: format!("{}, told within {} ms", statuses(&after), slowest.as_millis()),
        })
    }

    pub(super) async fn limits(&self, file: &Path) -> anyhow::Result<Seen> {
        let asked = self.instances * LIMIT * 4;
        let before = self.ask_each(asked, &[]).await?;
        let spec = format!("  limits:\n  - {{ name: caller, by: Identity, requests: {LIMIT}, per: 1h }}\n");
        self.apply(file, &for_reviews("RateLimit", "reviews", &spec)).await?;
        let after = self.ask_each(asked, &[]).await?;
        self.delete("RateLimit", &["reviews"]).await?;
        let (good, limited) = (count(&after, 200), count(&after, 429));
        Ok(Seen {
            // Each instance has its own limit, and the balance may leave some of them unasked: who refuses is quick.
            ok: count(&before, 200) == asked
                && (LIMIT..=self.instances * LIMIT).contains(&good)
                && good + limited == asked,
            before: statuses(&before),
            after: format!("{}, by {} instances", statuses(&after), self.instances),
        })
    }

    pub(super) async fn jwt(&self, file: &Path) -> anyhow::Result<Seen> {
        let key = Ed25519KeyPair::generate()?;
        let good = format!("Bearer {}", token(&key));
        let forged = format!("Bearer {}", token(&Ed25519KeyPair::generate()?));
        let each = async || -> anyhow::Result<[Answered; 3]> {
            Ok([
                self.ask("/", &[]).await?,
                self.ask("/", &[("authorization", &forged)]).await?,
                self.ask("/", &[("authorization", &good)]).await?,
            ])
        };
        let before = each().await?;
        let jwks = json!({ "keys": [
            { "kty": "OKP", "crv": "Ed25519", "kid": "tour", "x": URL_SAFE_NO_PAD.encode(key.public_key()) }
        ] });
        let authentication =
            format!("  jwtRules:\n  - issuer: {ISSUER}\n    audiences: [reviews]\n    jwks: '{jwks}'\n");
        let access = "  action: Allow
  rules:
  - name: users
    from: { requestPrincipals: [\"https://tour.example/*\"] }
  - name: product-page
    from: { identities: [\"spiffe://*/ns/shop/sa/productpage\"] }
";
        let text = format!(
            "{}---\n{}",
            for_reviews("RequestAuthentication", "reviews", &authentication),
            for_reviews("AccessPolicy", "reviews", access)
        );
        self.apply(file, &text).await?;
        let after = each().await?;
        self.delete("AccessPolicy", &["reviews"]).await?;
        self.delete("RequestAuthentication", &["reviews"]).await?;
        let line = |[none, forged, good]: &[Answered; 3]| {
            format!("no token {}, a forged one {}, a good one {}", none.status, forged.status, good.status)
        };
        let statuses = |answers: &[Answered; 3]| answers.each_ref().map(|answer| answer.status);
        Ok(Seen {
            ok: statuses(&before) == [200; 3] && statuses(&after) == [403, 401, 200],
            before: line(&before),
            after: line(&after),
        })
    }
}

/// A token of the tour's issuer, for a minute.
fn token(key: &Ed25519KeyPair) -> String {
    let b64 = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let expires = crate::now().seconds() + 60;
    let claims = json!({ "iss": ISSUER, "sub": "ann", "aud": "reviews", "exp": expires });
    let signed = format!("{}.{}", b64(json!({ "alg": "EdDSA", "kid": "tour" })), b64(claims));
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(key.sign(signed.as_bytes())))
}
