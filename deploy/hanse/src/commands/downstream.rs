//! `hanse trust downstream`: an intermediate authority for the key of a workload that issues SVIDs itself.

use std::io::Read as _;
use std::path::Path;

use hanse_identity::wire::issue::DownstreamReply;
use hanse_identity::wire::to_pem;
use hanse_identity::{Bundle, Timestamp};
use rustls::pki_types::CertificateSigningRequestDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::json;

use super::{Outcome, talk};
use crate::cli::{Global, TrustDownstream};
use crate::context::{Connection, failure};
use crate::errors::{Exit, Failure};
use crate::output;

/// Most of a file that is read: more than any request that is taken.
const MAX_CSR_FILE: u64 = 64 << 10;

pub async fn run(global: &Global, wanted: &TrustDownstream) -> Outcome {
    if global.workload_api.is_none() {
        return Err(Failure::usage(
            "a nested issuer asks with its own SVID, and nothing says where that is from",
        )
        .fix(
            "--workload-api unix:///run/hanse/agent.sock --control-node HOST:PORT, as the workload itself",
        ));
    }
    let request = request(&wanted.csr)?;
    let connection = Connection::open(global)?;
    let reply = connection.client().await?.downstream(request).await;
    let reply = reply.map_err(|e| failure(&connection.name, &e))?;
    let unusable =
        |e: String| Failure::new(Exit::Bug, "E9003", format!("what came back cannot be read: {e}"));
    let bundle: Bundle = serde_json::from_slice(&reply.bundle).map_err(|e| unusable(e.to_string()))?;
    bundle.check().map_err(|e| unusable(e.to_string()))?;
    if let Some(path) = &wanted.bundle_out {
        let written = std::fs::write(path, bundle.to_pem());
        written.map_err(|e| {
            Failure::new(Exit::Unreadable, "E1003", format!("cannot write {}: {e}", path.display()))
        })?;
    }
    let ends = Timestamp(reply.expires);
    let text = text(&reply, wanted.bundle_out.is_none().then_some(&bundle));
    let body = json!({
        "spiffeId": reply.spiffe_id,
        "trustDomain": bundle.trust_domain,
        "serial": reply.serial,
        "notAfter": ends,
        "chainPem": chain_pem(&reply),
        "bundlePem": bundle.to_pem(),
    });
    output::print(global.output, "DownstreamAuthority", &body, &text);
    let (serial, left) = (&reply.serial, output::left(ends));
    talk(
        global,
        &format!("intermediate {serial} of {}, for {left}: ask again at half of that", reply.spiffe_id),
    );
    Ok(Exit::Done)
}

/// The request of a file, DER.
fn request(path: &Path) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let read = match path.as_os_str() == "-" {
        true => std::io::stdin().take(MAX_CSR_FILE).read_to_end(&mut bytes),
        false => std::fs::File::open(path).and_then(|file| file.take(MAX_CSR_FILE).read_to_end(&mut bytes)),
    };
    read.map_err(|e| Failure::unreadable(path, e))?;
    if !bytes.starts_with(&[0x30]) {
        let request = CertificateSigningRequestDer::from_pem_slice(&bytes).map_err(|e| {
            Failure::unreadable(path, format!("it is neither DER nor PEM with a certificate request: {e:?}"))
        })?;
        return Ok(request.to_vec());
    }
    Ok(bytes)
}

fn chain_pem(reply: &DownstreamReply) -> String {
    reply.chain_der.iter().map(|der| to_pem("CERTIFICATE", der).to_string()).collect()
}

/// PEM; what reads it leaves lines outside of it alone.
fn text(reply: &DownstreamReply, bundle: Option<&Bundle>) -> String {
    let chain = chain_pem(reply);
    match bundle {
        None => chain,
        Some(bundle) => format!(
            "# intermediate {}, and what stands between it and the bundle\n{chain}# bundle of {}\n{}",
            reply.serial,
            bundle.trust_domain,
            bundle.to_pem()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_as_pem_or_der_and_nothing_else_is_sent() {
        let directory = tempfile::tempdir().unwrap();
        let key = hanse_control::io::keys::new_key_pair().unwrap();
        let der = hanse_identity::issue::certificate_request(&key).unwrap();
        let file = |name: &str, content: &[u8]| {
            let path = directory.path().join(name);
            std::fs::write(&path, content).unwrap();
            request(&path)
        };
        assert_eq!(file("a.der", &der).unwrap(), der);
        let pem = to_pem("CERTIFICATE REQUEST", &der).to_string();
        let with_key = key.serialize_pem() + &pem;
        assert_eq!(file("a.pem", with_key.as_bytes()).unwrap(), der, "the key beside it stays here");
        for wrong in [key.serialize_pem().as_bytes(), b"", b"hello"] {
            assert_eq!(file("wrong", wrong).unwrap_err().exit, Exit::Unreadable);
        }
        assert_eq!(request(&directory.path().join("none")).unwrap_err().exit, Exit::Unreadable);
    }
}
