//! grpcio on a host whose connections are captured: a client that has a name and nothing else, and a server behind a sidecar.
//!
//! Skipped, with a word on stderr, where `HANSE_INTEROP_ENVOY_VENV` has no package grpcio.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use super::{CLIENT_ADMIN, Running, SERVER, Story, as_user, register, sidecar, until};
use crate::grpc::python_with;
use crate::skipped;

/// The user of the app's sidecar.
const PROXY: &str = "41339";
const APP: &str = "127.0.0.1:50051";
const NAME: &str = "calls.shop.svc.clusterset.local";

/// Counts up to the request, and tells of the caller before and of the count behind.
const APP_SERVER: &str = r#"
import sys
from concurrent import futures
import grpc

def count(request, context):
    caller = dict(context.invocation_metadata()).get("x-forwarded-client-cert", "nobody")
    context.send_initial_metadata([("caller", caller)])
    for number in range(int(request)):
        yield str(number).encode()
    context.set_trailing_metadata([("counted", request.decode())])

method = grpc.unary_stream_rpc_method_handler(count)
server = grpc.server(futures.ThreadPoolExecutor(4))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("interop.Counter", {"Count": method}),))
server.add_insecure_port(sys.argv[1])
server.start()
print("serves", flush=True)
sys.stdin.read()
"#;

const CLIENT: &str = r#"
import sys
import grpc

with grpc.insecure_channel(sys.argv[1]) as channel:
    call = channel.unary_stream("/interop.Counter/Count")(b"3", timeout=20)
    counted = b" ".join(call).decode()
    told = dict(call.initial_metadata())["caller"], dict(call.trailing_metadata())["counted"]
    print(counted, *told)
"#;

/// The app and its sidecar, for as long as the value lives; nothing where there is no grpcio.
pub struct App(Option<[Running; 2]>);

impl App {
    pub fn serve(story: &Story) -> Result<Self> {
        let Some(python) = python_with("grpc") else {
            skipped("gRPC behind capture", "HANSE_INTEROP_ENVOY_VENV has no package grpcio");
            return Ok(Self(None));
        };
        register(&story.cluster, "calls", PROXY, &["shop/calls"])?;
        let mut server = Command::new(python);
        server.args(["-c", APP_SERVER, APP]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut server = Running(server.spawn()?);
        let mut line = String::new();
        BufReader::new(server.0.stdout.take().context("it is piped")?).read_line(&mut line)?;
        ensure!(line.trim() == "serves", "the gRPC server said {line:?}");
        let flags = [
            "--service=shop/calls",
            &format!("--inbound={SERVER}:15016"),
            &format!("--app={APP}"),
            "--admin=127.0.0.1:15010",
        ];
        let beside =
            sidecar(&story.cluster, story.dir.path(), "calls", as_user(PROXY, &story.binary), &flags)?;
        Ok(Self(Some([server, beside])))
    }

    /// A stream through both sidecars, with what comes before and behind it.
    pub fn is_called(&self, story: &Story) -> Result<()> {
        let Some(python) = self.0.as_ref().and_then(|_| python_with("grpc")) else { return Ok(()) };
        let known = || story.client.run("0", &["curl", "-sf", &format!("http://{CLIENT_ADMIN}/addresses")]);
        until("the gRPC app's sidecar is known", || {
            ensure!(known()?.contains(NAME), "it has no address");
            Ok(())
        })?;
        until("a gRPC client that knows nothing of a mesh is answered", || {
            // As root, whom capture does not spare either: nobody else may read every Python.
            let mut client = story.client.command("0", &python.to_string_lossy());
            // It is to ask the name itself.
            for proxy in ["http_proxy", "https_proxy", "grpc_proxy"] {
                client.env_remove(proxy);
            }
            let output = client.args(["-c", CLIENT, &format!("{NAME}:80")]).output()?;
            let (said, why) = (String::from_utf8(output.stdout)?, String::from_utf8_lossy(&output.stderr));
            let as_it_should = said.starts_with("0 1 2 ") && said.trim_end().ends_with(" 3");
            ensure!(as_it_should && said.contains("sa/client"), "{said:?} {why}");
            Ok(())
        })
    }
}
