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
use serde_json::json;

const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);
const ID: &str = "spiffe://east.example/ns/shop/sa/reviews";

#[derive(clap::Args)]
pub struct Arguments {
    /// Seconds that each figure is taken for
    #[arg(long, default_value_t = 2)]
    seconds: u64,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let time = Duration::from_secs(arguments.seconds);
    let (sign, check) = curve(time)?;
    let bound = 1.0 / (1.0 / sign + 1.0 / check);
    println!(
        "P-256 by our library: {sign:.0} signatures/s, {check:.0} verifications/s; one of each: {bound:.0}/s"
    );
    let theirs = openssl(arguments.seconds);
    match &theirs {
        Ok((sign, check)) => {
            let bound = 1.0 / (1.0 / sign + 1.0 / check);
            println!(
                "P-256 by openssl:     {sign:.0} signatures/s, {check:.0} verifications/s; one of each: {bound:.0}/s"
            );
        }
        Err(why) => println!("P-256 by openssl:     not measured: {why:#}"),
    }

    let authority = authority()?;
    let (registrations, evidence) = workload()?;
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let request = certificate_request(&key)?;
    let id: SpiffeId = ID.parse()?;
    let none = Revocations::default();
    let mut number = 0u128;
    let mut last = Vec::new();
    let issued = per_second(time, || {
        number += 1;
        let ticket = grant::grant(authority.trust_domain(), &registrations, &none, &evidence, &id)?;
        let serial = Serial::from_random(number.to_be_bytes());
        last = issue(ticket, &request, &authority, serial, NOW)?.chain;
        Ok(())
    })?;
    println!("issued:               {issued:.0} SVIDs/s on one core");
    println!("  of one signature and one verification by our library: {:.0} %", 100.0 * issued / bound);
    if let Ok((sign, check)) = theirs {
        let bound = 1.0 / (1.0 / sign + 1.0 / check);
        println!("  of one signature and one verification by openssl:     {:.0} %", 100.0 * issued / bound);
    }

    let bundle: Bundle = serde_json::from_value(json!({
        "trust_domain": authority.trust_domain(), "sequence": 1, "authorities": [authority.certificate()],
    }))?;
    let trust = Trust::new([&bundle], none);
    let chain: Vec<&[u8]> = last.iter().map(Vec::as_slice).collect();
    let verified = per_second(time, || Ok(verify(&trust, &chain, NOW, Usage::Client).map(drop)?))?;
    println!("verified:             {verified:.0} chains/s on one core, {:.0} µs each", 1e6 / verified);
    Ok(())
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

fn per_second(time: Duration, mut once: impl FnMut() -> Result<()>) -> Result<f64> {
    let (started, mut done) = (Instant::now(), 0u64);
    while started.elapsed() < time {
        for _ in 0..16 {
            once()?;
        }
        done += 16;
    }
    Ok(done as f64 / started.elapsed().as_secs_f64())
}

/// Signatures and verifications per second of the library that everything here uses.
fn curve(time: Duration) -> Result<(f64, f64)> {
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
    Ok((sign, check))
}

/// The same by `openssl speed`, one process.
fn openssl(seconds: u64) -> Result<(f64, f64)> {
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
    let check = next()?;
    Ok((next()?, check))
}
