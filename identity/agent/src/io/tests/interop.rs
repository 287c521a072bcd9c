//! The Workload API as software that nobody here wrote understands it: the crate `spiffe`, and PyPI `spiffe` if the
//! Python virtual environment that `HANSE_INTEROP_ENVOY_VENV` names has it (`pip install spiffe`).

use std::io::Write as _;
use std::process::{Command, Output};

use hanse_identity::RevocationTarget;
use spiffe::{JwtSource, JwtSvid, WorkloadApiClient, X509Source};

use super::*;
use crate::fixture::{RATINGS, REVIEWS, id, revocation};

const AUDIENCE: &str = "ledger";

fn endpoint(bench: &Bench) -> String {
    format!("unix://{}", bench.socket.display())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_spiffe_crate_fetches_and_validates_both_kinds_of_svid() {
    let bench = Bench::with(&[REVIEWS, RATINGS]);
    let x509 = soon(X509Source::builder().endpoint(endpoint(&bench)).build()).await.unwrap();
    assert_eq!(x509.svid().unwrap().spiffe_id().to_string(), REVIEWS, "the first is the default");

    let jwt = soon(JwtSource::builder().endpoint(endpoint(&bench)).build()).await.unwrap();
    let token = jwt.fetch_jwt_svid([AUDIENCE]).await.unwrap();
    assert_eq!(token.spiffe_id().to_string(), REVIEWS);
    let other = jwt.fetch_jwt_svid_with_id([AUDIENCE], Some(&RATINGS.parse().unwrap())).await.unwrap();
    assert_eq!(other.spiffe_id().to_string(), RATINGS);
    // Offline, with the keys of our bundle and another's code.
    let offline = JwtSvid::parse_and_validate(token.token(), &jwt, &[AUDIENCE]).unwrap();
    assert_eq!(offline.spiffe_id().to_string(), REVIEWS);
    assert!(JwtSvid::parse_and_validate(token.token(), &jwt, &["other"]).is_err());

    let client = WorkloadApiClient::connect_to(endpoint(&bench)).await.unwrap();
    let online = client.validate_jwt_token(AUDIENCE, token.token()).await.unwrap();
    assert_eq!(online.spiffe_id().to_string(), REVIEWS);
    assert!(client.validate_jwt_token("other", token.token()).await.is_err());
    let all = client.fetch_all_jwt_svids([AUDIENCE], None).await.unwrap();
    assert_eq!(all.len(), 2);

    bench.change(|state| state.revocations.insert(revocation(9, RevocationTarget::Identity(id(REVIEWS)))));
    assert!(client.validate_jwt_token(AUDIENCE, token.token()).await.is_err(), "revoked");
    until(|| x509.svid().is_ok_and(|svid| svid.spiffe_id().to_string() == RATINGS)).await;
    assert_eq!(jwt.fetch_jwt_svid([AUDIENCE]).await.unwrap().spiffe_id().to_string(), RATINGS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w_4_the_endpoint_is_named_by_the_absolute_path_of_the_socket() {
    let bench = Bench::with(&[REVIEWS]);
    assert!(bench.socket.is_absolute());
    let client = WorkloadApiClient::connect_to(endpoint(&bench)).await.unwrap();
    assert_eq!(client.fetch_x509_svid().await.unwrap().spiffe_id().to_string(), REVIEWS);
    let path = bench.socket.display();
    for other in [format!("unix://localhost{path}"), format!("http://{path}"), format!("{path}")] {
        assert!(WorkloadApiClient::connect_to(&other).await.is_err(), "{other}");
    }
}

/// Says what it sees, one line each; any surprise is an exception.
///
/// grpcio since 1.57 names a socket by its percent-encoded path in `:authority`, and h2 refuses that before any of our
/// code is asked (hyperium/h2 pull request 487). Until it does not, such clients have to be told another authority.
const SCRIPT: &str = r#"
import sys
import grpc
plain = grpc.insecure_channel
grpc.insecure_channel = lambda target: plain(target, options=[("grpc.default_authority", "localhost")])
from spiffe import WorkloadApiClient, TrustDomain, SpiffeId, JwtSvid
client = WorkloadApiClient(sys.argv[1], default_timeout=10)
svids = client.fetch_x509_svids()
print("x509", *[str(svid.spiffe_id) for svid in svids])
bundles = client.fetch_x509_bundles()
east = bundles.get_bundle_for_trust_domain(TrustDomain("east.example"))
print("x509-authorities", len(east.x509_authorities))
tokens = client.fetch_jwt_svids(audience={"ledger"})
print("jwt", *[str(token.spiffe_id) for token in tokens])
token = tokens[0].token
print("online", client.validate_jwt_svid(token, "ledger").spiffe_id)
keys = client.fetch_jwt_bundles().get_bundle_for_trust_domain(TrustDomain("east.example"))
print("offline", JwtSvid.parse_and_validate(token, keys, {"ledger"}).spiffe_id)
try:
    client.validate_jwt_svid(token, "other")
    print("another audience was believed")
except Exception as error:
    print("refused", type(error).__name__)
client.close()
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn py_spiffe_fetches_and_validates_both_kinds_of_svid() {
    let python = std::env::var_os("HANSE_INTEROP_ENVOY_VENV").map(|venv| Path::new(&venv).join("bin/python"));
    let has_it = |python: &PathBuf| {
        let import = Command::new(python).args(["-c", "import spiffe"]).output();
        import.is_ok_and(|output| output.status.success())
    };
    let Some(python) = python.filter(has_it) else {
        // Past the test harness, which would keep it to itself.
        let _ =
            writeln!(std::io::stderr(), "skipped: py-spiffe: HANSE_INTEROP_ENVOY_VENV has no package spiffe");
        return;
    };
    let bench = Bench::with(&[REVIEWS, RATINGS]);
    let endpoint = endpoint(&bench);
    let run = tokio::task::spawn_blocking(move || {
        Command::new(python).args(["-c", SCRIPT, &endpoint]).output().unwrap()
    });
    // A slow machine takes long to read all that Python imports.
    let run = tokio::time::timeout(6 * PATIENCE, run).await.expect("the script ends");
    let Output { status, stdout, stderr } = run.unwrap();
    let said = String::from_utf8(stdout).unwrap();
    assert!(status.success(), "{said}{}", String::from_utf8_lossy(&stderr));
    let lines: Vec<&str> = said.lines().collect();
    let both = format!("{REVIEWS} {RATINGS}");
    let wanted = [
        format!("x509 {both}"),
        "x509-authorities 1".to_owned(),
        format!("jwt {both}"),
        format!("online {REVIEWS}"),
        format!("offline {REVIEWS}"),
    ];
    assert_eq!(lines[..5], wanted, "{said}");
    assert!(lines[5].starts_with("refused "), "{said}");
}
