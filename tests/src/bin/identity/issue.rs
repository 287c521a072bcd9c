//! What an issuance costs on one core: grant, check of the request, signature, and the second reading of what was
//! signed; beside it what the curve itself costs, from this program's own library and from openssl.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _, UnparsedPublicKey,
};
use hanse_identity::issue::certificate_request;
use hanse_identity::{
    Authority, Bundle, Evidence, Registration, Revocations, Serial, SpiffeId, Timestamp, Trust, Usage, grant,
    issue, verify,
};
use nix::sys::resource::{UsageWho, getrusage};
use serde_json::json;

use crate::scene;

const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);
const ID: &str = "spiffe://east.example/ns/shop/sa/reviews";

#[derive(clap::Args)]
pub struct Arguments {
    /// Everything is measured so often, one thing after the other: what else runs on the machine hits them all
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds that each figure is taken for, in each round
    #[arg(long, default_value_t = 1)]
    seconds: u64,
}

/// Per second of processor time of one core.
#[derive(Clone, Copy)]
struct Curve {
    signatures: f64,
    verifications: f64,
}

impl Curve {
    /// How often one signature and one verification fit into a second.
    fn bound(self) -> f64 {
        1.0 / (1.0 / self.signatures + 1.0 / self.verifications)
    }
}

impl std::fmt::Display for Curve {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { signatures, verifications } = self;
        let bound = self.bound();
        write!(
            f,
            "{signatures:.0} signatures/s, {verifications:.0} verifications/s; one of each: {bound:.0}/s"
        )
    }
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let time = Duration::from_secs(arguments.seconds);
    let (mut of_ours, mut of_openssl, mut issuances) = (Vec::new(), Vec::new(), Vec::new());
    let mut last = Vec::new();
    let authority = authority()?;
    for round in 1..=arguments.rounds {
        let ours = curve(time)?;
        let theirs = openssl(arguments.seconds);
        let issued = issuances_per_second(&authority, time, &mut last)?;
        println!("round {round}");
        println!("  P-256 by our library: {ours}");
        of_ours.push(100.0 * issued / ours.bound());
        match theirs {
            Ok(theirs) => {
                println!("  P-256 by openssl:     {theirs}");
                of_openssl.push(100.0 * issued / theirs.bound());
            }
            Err(why) => println!("  P-256 by openssl:     not measured: {why:#}"),
        }
        println!("  issued:               {issued:.0} SVIDs/s");
        issuances.push(issued);
    }
    println!("issued on one core: {} SVIDs/s", spread(&mut issuances));
    println!("  of one signature and one verification by our library: {} %", spread(&mut of_ours));
    println!("  of one signature and one verification by openssl:     {} %", spread(&mut of_openssl));

    let bundle: Bundle = serde_json::from_value(json!({
        "trust_domain": authority.trust_domain(), "sequence": 1, "authorities": [authority.certificate()],
    }))?;
    let trust = Trust::new([&bundle], Revocations::default());
    let chain: Vec<&[u8]> = last.iter().map(Vec::as_slice).collect();
    let verified = per_second(time, || Ok(verify(&trust, &chain, NOW, Usage::Client).map(drop)?))?;
    println!("verified:           {verified:.0} chains/s on one core, {:.0} µs each", 1e6 / verified);
    Ok(())
}

/// The whole of what a control node does for an SVID but for TLS and the log, each with a serial number of its own.
fn issuances_per_second(authority: &Authority, time: Duration, last: &mut Vec<Vec<u8>>) -> Result<f64> {
    let (registrations, evidence) = workload()?;
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let request = certificate_request(&key)?;
    let id: SpiffeId = ID.parse()?;
    let none = Revocations::default();
    let mut number = 0u128;
    per_second(time, || {
        number += 1;
        let ticket = grant::grant(authority.trust_domain(), &registrations, &none, &evidence, &id)?;
        let serial = Serial::from_random(number.to_be_bytes());
        *last = issue(ticket, &request, authority, serial, NOW)?.chain;
        Ok(())
    })
}

/// The median, with the least and the most.
fn spread(values: &mut [f64]) -> String {
    let [least, half, most] = [0.0, 0.5, 1.0].map(|p| scene::percentile(values, p));
    format!("{half:.0} ({least:.0} to {most:.0})")
}

fn authority() -> Result<Authority> {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let day = Duration::from_secs(24 * 3600);
    let serial = Serial::from_random([1; 16]);
    Ok(Authority::create(&"east.example".parse()?, &"control-1".parse()?, key, serial, NOW, 30 * day)?)
}

fn workload() -> Result<(Vec<Registration>, Evidence)> {
    let selectors = ["unix:uid:1000", "unix:path:/usr/bin/reviews"];
    let registration = json!({ "id": ID, "agent": "host-1", "selectors": selectors });
    let selectors: Result<BTreeSet<_>, _> = selectors.iter().map(|s| s.parse()).collect();
    let evidence = Evidence { agent: "host-1".parse()?, selectors: selectors? };
    Ok((vec![serde_json::from_value(registration)?], evidence))
}

/// Per second of this thread's own time, as `openssl speed` counts: what else runs on the machine takes none of it.
fn per_second(time: Duration, mut once: impl FnMut() -> Result<()>) -> Result<f64> {
    let (started, before, mut done) = (Instant::now(), own_time()?, 0u64);
    while started.elapsed() < time {
        for _ in 0..16 {
            once()?;
        }
        done += 16;
    }
    Ok(done as f64 / (own_time()? - before))
}

/// Seconds for which this thread has run.
fn own_time() -> Result<f64> {
    let time = getrusage(UsageWho::RUSAGE_THREAD)?.user_time();
    Ok(time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6)
}

/// Signatures and verifications per second of the library that everything here uses.
fn curve(time: Duration) -> Result<Curve> {
    let random = SystemRandom::new();
    let broken = |_| anyhow!("the library has no P-256");
    let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).map_err(broken)?;
    let message = [7u8; 600];
    let mut signature = key.sign(&random, &message).map_err(broken)?;
    let sign = per_second(time, || {
        signature = key.sign(&random, &message).map_err(broken)?;
        Ok(())
    })?;
    let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key.public_key().as_ref());
    let check = per_second(time, || public.verify(&message, signature.as_ref()).map_err(broken))?;
    Ok(Curve { signatures: sign, verifications: check })
}

/// The same by `openssl speed`, one process.
fn openssl(seconds: u64) -> Result<Curve> {
    let output = std::process::Command::new("openssl")
        .args(["speed", "-seconds", &seconds.to_string(), "ecdsap256"])
        .output()
        .context("openssl cannot be run")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line =
        text.lines().find(|l| l.contains("nistp256")).context("openssl speed says nothing of P-256")?;
    let mut numbers = line.split_whitespace().rev();
    let mut next =
        || numbers.next().and_then(|n| n.parse::<f64>().ok()).context("openssl speed is not understood");
    let verifications = next()?;
    Ok(Curve { signatures: next()?, verifications })
}
