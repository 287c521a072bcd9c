//! grpcio (PyPI) as an app of the mesh: a server behind a sidecar in east, called by a client through a sidecar of the
//! same cluster, and through a sidecar and the gateways of both clusters. Neither knows of a mesh.
//!
//! Skipped, with a word on stderr, where `HANSE_INTEROP_ENVOY_VENV` lacks grpcio, grpcio-health-checking or
//! grpcio-reflection.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use hanse_tests::envoy::free_address;
use hanse_tests::house::{Demo, binary};
use serde_json::{Value, json};

use super::{EAST, SOON, grpc::python_with, register, skipped, until};

const ID: &str = "spiffe://east.example/ns/shop/sa/calls";

const SERVER: &str = r#"
import sys
import threading
from concurrent import futures
import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

cancelled = threading.Event()

def unary(request, context):
    context.send_initial_metadata((("x-first", "one"),))
    context.set_trailing_metadata((("x-last", "two"), ("x-bytes-bin", bytes([0, 255]))))
    caller = dict(context.invocation_metadata()).get("x-forwarded-client-cert", "")
    return request + b" from " + caller.rpartition("URI=")[2].encode()

def count(request, context):
    for number in range(int(request)):
        yield str(number).encode()

def add(requests, context):
    return str(sum(int(request) for request in requests)).encode()

def echo(requests, context):
    yield from requests

def sleep(request, context):
    context.add_callback(cancelled.set)
    threading.Event().wait(float(request))
    return b"late"

def was_cancelled(request, context):
    return str(cancelled.wait(10)).encode()

def fail(request, context):
    context.set_trailing_metadata((("x-why", "because"),))
    context.abort(grpc.StatusCode.NOT_FOUND, "no such thing: ü %")

methods = {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "Size": grpc.unary_unary_rpc_method_handler(lambda request, _: request[::-1]),
    "Count": grpc.unary_stream_rpc_method_handler(count),
    "Add": grpc.stream_unary_rpc_method_handler(add),
    "Echo": grpc.stream_stream_rpc_method_handler(echo),
    "Sleep": grpc.unary_unary_rpc_method_handler(sleep),
    "WasCancelled": grpc.unary_unary_rpc_method_handler(was_cancelled),
    "Fail": grpc.unary_unary_rpc_method_handler(fail),
}
server = grpc.server(futures.ThreadPoolExecutor(16))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("interop.Calls", methods),))
healthy = health.HealthServicer()
healthy.set("interop.Calls", health_pb2.HealthCheckResponse.SERVING)
health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
reflection.enable_server_reflection(("interop.Calls", health.SERVICE_NAME, reflection.SERVICE_NAME), server)
server.add_insecure_port(sys.argv[1])
server.start()
print("serves", flush=True)
sys.stdin.read()
"#;

/// Makes every kind of call once, and prints what came of each.
const CLIENT: &str = r#"
import json
import queue
import signal
import sys
import time
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

address, host = sys.argv[1:3]
# Whatever hangs, here or in the library, hangs no test.
signal.alarm(45)
def channel_to(name):
    return grpc.insecure_channel(address, [("grpc.default_authority", name + host)])
channel = channel_to("calls")
path = "/interop.Calls/"
TIME = 30

def failure(call):
    began = time.monotonic()
    try:
        call()
        return ["no error"]
    except grpc.RpcError as error:
        trailers = {key: value for key, value in error.trailing_metadata() or () if key.startswith("x-why")}
        return [error.code().name, error.details(), trailers, time.monotonic() - began < 5]

said = {}
answer, call = channel.unary_unary(path + "Unary").with_call(b"hello", timeout=TIME)
said["unary"] = answer.decode()
said["first"] = dict(call.initial_metadata()).get("x-first")
trailers = dict(call.trailing_metadata())
said["last"] = [trailers.get("x-last"), list(trailers.get("x-bytes-bin", b""))]
large = bytes(range(256)) * 8192
said["large"] = channel.unary_unary(path + "Size")(large, timeout=TIME) == large[::-1]
said["count"] = len(list(channel.unary_stream(path + "Count")(b"1000", timeout=TIME)))
said["add"] = channel.stream_unary(path + "Add")(iter([b"1", b"2", b"3"]), timeout=TIME).decode()

# Each message is sent when the one before it has come back.
turns = queue.Queue()
turns.put(b"0")
echoed = []
for message in channel.stream_stream(path + "Echo")(iter(turns.get, None), timeout=TIME):
    echoed.append(message.decode())
    turns.put(None if len(echoed) == 5 else str(len(echoed)).encode())
said["echo"] = echoed

said["deadline"] = failure(lambda: channel.unary_unary(path + "Sleep")(b"20", timeout=1))
said["cancelled"] = channel.unary_unary(path + "WasCancelled")(b"", timeout=TIME).decode()
said["fail"] = failure(lambda: channel.unary_unary(path + "Fail")(b"", timeout=TIME))
said["unknown"] = failure(lambda: channel.unary_unary(path + "Nothing")(b"", timeout=TIME))[0]
said["nobody"] = failure(lambda: channel_to("nobody").unary_unary(path + "Unary")(b"", timeout=TIME))[0]
ask = health_pb2.HealthCheckRequest(service="interop.Calls")
health = health_pb2_grpc.HealthStub(channel)
# Streams are ended by hand: grpcio can lock itself up when a living one is collected.
watch = health.Watch(ask, timeout=TIME)
said["health"] = [health.Check(ask, timeout=TIME).status, next(watch).status]
watch.cancel()
reflected = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
    iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=TIME)
said["reflection"] = sorted(service.name for service in next(reflected).list_services_response.service)
reflected.cancel()
channel.close()
print(json.dumps(said))
"#;

/// A process of ours; ended with the value.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        if let Err(error) = self.0.kill().and_then(|()| self.0.wait()) {
            eprintln!("process {} did not end: {error}", self.0.id());
        }
    }
}

pub async fn pass_sidecars_and_gateways(demo: &Demo) -> Result<()> {
    let Some(python) = python_with("grpc, grpc_health.v1.health, grpc_reflection.v1alpha.reflection") else {
        let lacks = "HANSE_INTEROP_ENVOY_VENV lacks grpcio, grpcio-health-checking or grpcio-reflection";
        skipped("gRPC through sidecars", lacks);
        return Ok(());
    };
    let app = free_address()?.to_string();
    let mut server = Command::new(&python);
    server.args(["-c", SERVER, &app]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut server = Running(server.spawn()?);
    let mut line = String::new();
    BufReader::new(server.0.stdout.take().context("it is piped")?).read_line(&mut line)?;
    ensure!(line.trim() == "serves", "the gRPC server said {line:?}");

    // Which of the demo's workloads a sidecar is goes by its executable.
    let dir = tempfile::tempdir()?;
    let executable = dir.path().join("calls");
    std::fs::copy(binary()?, &executable)?;
    let executable = executable.canonicalize()?;
    register(demo, ID, &executable, &["--service", "shop/calls"])?;
    demo.run(["service", "export", "shop/calls"].iter().chain(&EAST))?;
    let mut sidecar = Command::new(&executable);
    sidecar.args(["proxy", "--name=calls-1", "--service=shop/calls", "--workers=1"]);
    sidecar.arg(format!("--socket={}", demo.address("east", "agent", "agent-1", "socket")?));
    for node in ["control-1", "control-2", "control-3"] {
        sidecar.arg(format!("--control={}", demo.address("east", "control", node, "api")?));
    }
    sidecar.arg(format!("--app={app}")).arg(format!("--inbound={}", free_address()?));
    sidecar.arg(format!("--admin={}", free_address()?));
    sidecar.stdout(std::fs::File::create(dir.path().join("log"))?);
    let _sidecar = Running(sidecar.stderr(Stdio::null()).spawn()?);

    for (cluster, host) in [("east", ".shop.svc.cluster.local"), ("west", ".shop.svc.clusterset.local")] {
        let load = demo.address(cluster, "proxy", "load-1", "outbound")?;
        let answered = async || {
            let output = Command::new(&python).args(["-c", CLIENT, &load, host]).output()?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let said: Value = serde_json::from_slice(&output.stdout)?;
            ensure!(said == expected(cluster), "{said:#}");
            Ok(())
        };
        until(&format!("a gRPC client of {cluster} makes every kind of call"), SOON, answered).await?;
    }
    demo.run(["service", "unexport", "shop/calls"].iter().chain(&EAST))?;
    demo.run(["workload", "delete", ID, "--agent", "agent-1", "--yes"].iter().chain(&EAST))?;
    Ok(())
}

fn expected(caller: &str) -> Value {
    let quickly = true;
    let serving = 1;
    json!({
        "unary": format!("hello from spiffe://{caller}.example/ns/shop/sa/load"),
        "first": "one",
        "last": ["two", [0, 255]],
        "large": true,
        "count": 1000,
        "add": "6",
        "echo": ["0", "1", "2", "3", "4"],
        "deadline": ["DEADLINE_EXCEEDED", "Deadline Exceeded", {}, quickly],
        "cancelled": "True",
        "fail": ["NOT_FOUND", "no such thing: ü %", { "x-why": "because" }, quickly],
        "unknown": "UNIMPLEMENTED",
        "nobody": "UNAVAILABLE",
        "health": [serving, serving],
        "reflection": ["grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection", "interop.Calls"],
    })
}
