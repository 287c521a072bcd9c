//! grpcio (PyPI) with SVID, key and bundle as files from the Workload API: a gRPC server over mutual TLS behind an
//! address, called through our proxies by a gRPC client that knows nothing of the mesh.
//!
//! Skipped, with a word on stderr, where `HANSE_INTEROP_ENVOY_VENV` has no package grpcio.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use hanse_identity::wire::to_pem;
use hanse_tests::envoy::free_address;
use hanse_tests::house::Demo;

use super::{EAST, SOON, register, skipped, until};

const ID: &str = "spiffe://east.example/ns/shop/sa/grpc";

/// Answers with the names that it saw in the caller's certificate.
const SERVER: &str = r#"
import sys
from concurrent import futures
import grpc

svid, key, bundle, address = sys.argv[1:5]

def read(path):
    with open(path, "rb") as file:
        return file.read()

def who_am_i(request, context):
    names = context.auth_context().get("x509_subject_alternative_name", [])
    return b"saw " + b" ".join(names) + b" say " + request

method = grpc.unary_unary_rpc_method_handler(who_am_i)
server = grpc.server(futures.ThreadPoolExecutor(4))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("interop.Who", {"AmI": method}),))
tls = grpc.ssl_server_credentials([(read(key), read(svid))], read(bundle), require_client_auth=True)
server.add_secure_port(address, tls)
server.start()
print("serves", flush=True)
sys.stdin.read()
"#;

/// Calls once: in the clear through a proxy that is named as the authority wants it, or over TLS by the files.
const CLIENT: &str = r#"
import sys
import grpc

address, authority, files = sys.argv[1], sys.argv[2], sys.argv[3:]
options = [("grpc.default_authority", authority)]
if files:
    svid, key, bundle = [open(path, "rb").read() for path in files]
    channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(bundle, key, svid), options)
else:
    channel = grpc.insecure_channel(address, options)
with channel:
    try:
        print(channel.unary_unary("/interop.Who/AmI")(b"hello", timeout=20).decode())
    except grpc.RpcError as error:
        print("failed", error.code().name, error.details())
"#;

/// A gRPC server; ended with the value.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.0.kill().and_then(|()| self.0.wait()) {
            eprintln!("the gRPC server (pid {}) did not end: {error}", self.0.id());
        }
    }
}

pub async fn serves_with_our_files(demo: &Demo) -> Result<()> {
    let Some(python) = python_with("grpc") else {
        skipped("grpcio", "HANSE_INTEROP_ENVOY_VENV has no package grpcio");
        return Ok(());
    };
    let address = free_address()?.to_string();
    let me = std::env::current_exe()?.canonicalize()?;
    register(demo, ID, &me, &["--service", "shop/grpc", "--address", &address])?;
    demo.run(["service", "export", "shop/grpc"].iter().chain(&EAST))?;
    let dir = tempfile::tempdir()?;
    let files = write_files(demo, dir.path()).await?;

    let mut server = Command::new(&python);
    server.args(["-c", SERVER]).args(&files).arg(&address);
    let mut server = Server(server.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?);
    let mut line = String::new();
    BufReader::new(server.0.stdout.take().context("it is piped")?).read_line(&mut line)?;
    ensure!(line.trim() == "serves", "the gRPC server said {line:?}");

    let call = |address: &str, authority: &str, files: &[PathBuf]| -> Result<String> {
        let output = Command::new(&python).args(["-c", CLIENT, address, authority]).args(files).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    };
    for (cluster, host) in [("east", "cluster.local"), ("west", "clusterset.local")] {
        let load = demo.address(cluster, "proxy", "load-1", "outbound")?;
        let answered = async || {
            let said = call(&load, &format!("grpc.shop.svc.{host}"), &[])?;
            ensure!(said == format!("saw spiffe://{cluster}.example/ns/shop/sa/load say hello"), "{said}");
            Ok(())
        };
        until(&format!("a gRPC client of {cluster} calls grpcio's server"), SOON, answered).await?;
    }

    // grpcio's own client looks for a DNS name, which no SVID of ours has: it has to call through a proxy.
    let said = call(&address, "grpc", &files)?;
    ensure!(said.starts_with("failed UNAVAILABLE") && said.contains("Hostname Verification"), "{said}");

    demo.run(["service", "unexport", "shop/grpc"].iter().chain(&EAST))?;
    demo.run(["workload", "delete", ID, "--agent", "agent-1", "--yes"].iter().chain(&EAST))?;
    Ok(())
}

/// The virtual environment's Python, if it has these modules.
pub fn python_with(modules: &str) -> Option<PathBuf> {
    let python = Path::new(&std::env::var_os("HANSE_INTEROP_ENVOY_VENV")?).join("bin/python");
    let import = Command::new(&python).args(["-c", &format!("import {modules}")]).output();
    import.is_ok_and(|output| output.status.success()).then_some(python)
}

/// SVID, key and the bundles of both trust domains, as PEM. One file of authorities is a pool: what is behind it sees
/// the caller's name, and has to judge whose name it is.
async fn write_files(demo: &Demo, dir: &Path) -> Result<[PathBuf; 3]> {
    let agent = format!("unix://{}", demo.address("east", "agent", "agent-1", "socket")?);
    let source = tokio::time::timeout(SOON, spiffe::X509SourceBuilder::new().endpoint(&agent).build());
    let source = source.await.context("no SVID in time")??;
    let svid = source.svid()?;
    ensure!(svid.spiffe_id().to_string() == ID, "the SVID is of {}", svid.spiffe_id());
    let pem = |ders: Vec<&[u8]>| {
        ders.into_iter().map(|der| to_pem("CERTIFICATE", der).to_string()).collect::<String>()
    };
    let chain = pem(svid.cert_chain().iter().map(|c| c.as_bytes()).collect());
    let bundles = source.bundle_set()?;
    let mut authorities = String::new();
    for name in ["east.example", "west.example"] {
        let name = spiffe::TrustDomain::new(name)?;
        let bundle = bundles.get(&name).with_context(|| format!("no bundle of {name}"))?;
        authorities += &pem(bundle.authorities().iter().map(|a| a.as_bytes()).collect());
    }
    let key = to_pem("PRIVATE KEY", svid.private_key().as_bytes());
    let files = ["svid.pem", "key.pem", "bundle.pem"].map(|name| dir.join(name));
    for (file, text) in files.iter().zip([chain.as_str(), &key, &authorities]) {
        std::fs::write(file, text)?;
    }
    source.shutdown_with_timeout(SOON).await?;
    Ok(files)
}
