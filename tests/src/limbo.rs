//! Certificates that other implementations have stumbled over: a file in the format of x509-limbo, put to our verifier.
//!
//! The certificates are the web's: they have DNS names, and no SPIFFE ID. `verify` refuses every one of them for that
//! alone, which would prove nothing. So each case is put to `check_path`, which is all of `verify` but the name,
//! and what differs from the expected verdict is listed in `known`, with its reason.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use hanse_identity::{Revocations, Timestamp, Trust, Usage, VerifyError, verify};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::Value;

pub mod cost;
pub mod known;

/// Each case is run so often, and the shortest time counts: what else the machine does is not the verifier's cost.
const RUNS: usize = 5;

/// One case of the file.
pub struct Case {
    pub id: String,
    pub features: Vec<String>,
    /// What a verifier should say.
    pub succeeds: bool,
    roots: Vec<Vec<u8>>,
    /// DER, leaf first.
    chain: Vec<Vec<u8>>,
    now: Timestamp,
    usage: Usage,
}

/// How our verdict compares with the expected one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    Agree,
    WrongAccept,
    WrongReject,
}

/// What became of one case.
pub struct Outcome {
    pub id: String,
    pub comparison: Comparison,
    /// Why it was refused, if it was.
    pub refusal: Option<String>,
    /// Why the difference is one that we want, if it is known.
    pub known: Option<&'static known::Difference>,
    /// Of both verifications together.
    pub took: Duration,
    /// Whether `verify` itself, which asks for a SPIFFE ID, believed it: that would be wrong for every case.
    pub believed_as_svid: bool,
}

/// Reads a file's cases; `now` is for the cases that do not say a time.
pub fn read(text: &str, now: Timestamp) -> Result<Vec<Case>> {
    let file: Value = serde_json::from_str(text)?;
    let cases = file["testcases"].as_array().context("the file has no `testcases`")?;
    cases.iter().map(|case| Case::read(case, now)).collect()
}

impl Case {
    fn read(case: &Value, now: Timestamp) -> Result<Self> {
        let id = case["id"].as_str().context("a case has no `id`")?.to_owned();
        let texts = |name: &str| -> Vec<&str> {
            case[name].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
        };
        let certificates = |name: &str| texts(name).into_iter().map(der).collect::<Result<Vec<_>>>();
        let read = || -> Result<Self> {
            let leaf = der(case["peer_certificate"].as_str().context("it has no `peer_certificate`")?)?;
            let mut chain = vec![leaf];
            chain.extend(certificates("untrusted_intermediates")?);
            Ok(Self {
                features: texts("features").into_iter().map(str::to_owned).collect(),
                succeeds: case["expected_result"].as_str().context("it has no `expected_result`")?
                    == "SUCCESS",
                roots: certificates("trusted_certs")?,
                chain,
                now: case["validation_time"].as_str().map_or(Ok(now), time)?,
                usage: if case["validation_kind"] == "CLIENT" { Usage::Client } else { Usage::Server },
                id: id.clone(),
            })
        };
        read().with_context(|| format!("case {id}"))
    }

    /// Puts the case to the verifier.
    pub fn run(&self) -> Outcome {
        let roots: Vec<&[u8]> = self.roots.iter().map(Vec::as_slice).collect();
        let chain: Vec<&[u8]> = self.chain.iter().map(Vec::as_slice).collect();
        let trust = Trust::new([], Revocations::default());
        let mut took = Duration::MAX;
        let mut path = Ok(());
        let mut svid = Err(VerifyError::NoCertificate);
        for _ in 0..RUNS {
            let start = Instant::now();
            path = hanse_identity::verify::check_path(&roots, &chain, self.now, self.usage);
            svid = verify(&trust, &chain, self.now, self.usage);
            took = took.min(start.elapsed());
        }
        let comparison = match (self.succeeds, path.is_ok()) {
            (true, true) | (false, false) => Comparison::Agree,
            (false, true) => Comparison::WrongAccept,
            (true, false) => Comparison::WrongReject,
        };
        let known = known::difference(&self.id, comparison);
        Outcome {
            id: self.id.clone(),
            comparison,
            refusal: path.err().map(|e| e.to_string()),
            known,
            took,
            believed_as_svid: svid.is_ok(),
        }
    }
}

fn der(pem: &str) -> Result<Vec<u8>> {
    Ok(CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| anyhow::anyhow!("{e:?}"))?.to_vec())
}

/// RFC 3339; fractions of a second are dropped.
fn time(text: &str) -> Result<Timestamp> {
    let at = time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339)?;
    Ok(Timestamp::from_seconds(u64::try_from(at.unix_timestamp())?))
}
