//! What is no request: `websockets` (PyPI) and a server of plain TCP that speaks first, behind one sidecar in east, called
//! by clients through sidecars of both clusters, and from west through the gateways of both. None of them knows of a mesh.
//!
//! Skipped, with a word on stderr, where `HANSE_INTEROP_ENVOY_VENV` lacks websockets.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use hanse_tests::envoy::free_address;
use hanse_tests::house::{Demo, binary};
use serde_json::{Value, json};

use super::calls::Running;
use super::{EAST, SOON, grpc::python_with, register, skipped, until};

const ID: &str = "spiffe://east.example/ns/shop/sa/streams";

/// WebSocket messages come back with the caller's name; the lines of TCP, after a greeting, in reverse.
const SERVER: &str = r#"
import socketserver
import sys
import threading
from websockets.sync.server import serve

def chat(socket):
    caller = socket.request.headers["x-forwarded-client-cert"].rpartition("URI=")[2]
    for message in socket:
        socket.send(message if isinstance(message, bytes) else message + " from " + caller)

class Lines(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(b"220 ready\n")
        for line in self.rfile:
            self.wfile.write(line.strip()[::-1] + b"\n")
        self.wfile.write(b"221 bye\n")

http, tcp = [address.rpartition(":") for address in sys.argv[1:3]]
socketserver.ThreadingTCPServer.allow_reuse_address = True
lines = socketserver.ThreadingTCPServer((tcp[0], int(tcp[2])), Lines)
threading.Thread(target=lines.serve_forever, daemon=True).start()
server = serve(chat, http[0], int(http[2]), max_size=None)
threading.Thread(target=server.serve_forever, daemon=True).start()
print("serves", flush=True)
sys.stdin.read()
"#;

const CLIENT: &str = r#"
import json
import signal
import socket
import sys
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

outbound, host, listener = [*sys.argv[1:], ""][:3]
signal.alarm(45)

def dial(address):
    name, _, port = address.rpartition(":")
    return socket.create_connection((name, int(port)), 20)

said = {}
with connect("ws://streams" + host + "/chat", sock=dial(outbound), max_size=None) as chat:
    chat.send("hello")
    said["text"] = chat.recv(20)
    large = bytes(range(256)) * 8192
    chat.send(large)
    said["large"] = chat.recv(20) == large
    said["pong"] = chat.ping().wait(20)
said["closed"] = chat.close_code
try:
    connect("ws://nobody" + host + "/chat", sock=dial(outbound))
except InvalidStatus as refused:
    said["nobody"] = refused.response.status_code

def talk(stream, lines):
    first = lines.readline()
    stream.sendall(b"abc\nno end")
    stream.shutdown(socket.SHUT_WR)
    return [first.decode(), *map(bytes.decode, lines)]

def by_connect(authority):
    stream = dial(outbound)
    stream.sendall(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode())
    lines = stream.makefile("rb")
    status = lines.readline().split()[1].decode()
    while lines.readline().strip():
        pass
    return stream, lines, status

stream, lines, status = by_connect("streams" + host + ":7")
said["tcp"] = [status, *talk(stream, lines)]
said["undeclared"] = by_connect("streams" + host + ":8")[2]
if listener:
    stream = dial(listener)
    said["listener"] = talk(stream, stream.makefile("rb"))
print(json.dumps(said))
"#;

pub async fn pass_sidecars_and_gateways(demo: &Demo) -> Result<()> {
    let Some(python) = python_with("websockets.sync.server") else {
        skipped("WebSocket and TCP through sidecars", "HANSE_INTEROP_ENVOY_VENV lacks websockets");
        return Ok(());
    };
    let (http, tcp, listener) =
        (free_address()?.to_string(), free_address()?.to_string(), free_address()?.to_string());
    let mut server = Command::new(&python);
    server.args(["-c", SERVER, &http, &tcp]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut server = Running(server.spawn()?);
    let mut line = String::new();
    BufReader::new(server.0.stdout.take().context("it is piped")?).read_line(&mut line)?;
    ensure!(line.trim() == "serves", "the server said {line:?}");

    let dir = tempfile::tempdir()?;
    let executable = dir.path().join("streams");
    std::fs::copy(binary()?, &executable)?;
    let executable = executable.canonicalize()?;
    register(demo, ID, &executable, &["--service", "shop/streams"])?;
    demo.run(["service", "export", "shop/streams"].iter().chain(&EAST))?;
    let mut sidecar = Command::new(&executable);
    sidecar.args(["proxy", "--name=streams-1", "--service=shop/streams", "--workers=1"]);
    sidecar.arg(format!("--socket={}", demo.address("east", "agent", "agent-1", "socket")?));
    for node in ["control-1", "control-2", "control-3"] {
        sidecar.arg(format!("--control={}", demo.address("east", "control", node, "api")?));
    }
    sidecar.arg(format!("--app={http}")).arg(format!("--tcp-port=7={tcp}"));
    sidecar.arg(format!("--tcp-upstream=shop/streams:7={listener}"));
    sidecar.arg(format!("--inbound={}", free_address()?)).arg(format!("--admin={}", free_address()?));
    sidecar.stdout(std::fs::File::create(dir.path().join("log"))?);
    let _sidecar = Running(sidecar.stderr(Stdio::null()).spawn()?);

    for (cluster, host) in [("east", ".shop.svc.cluster.local"), ("west", ".shop.svc.clusterset.local")] {
        let load = demo.address(cluster, "proxy", "load-1", "outbound")?;
        let answered = async || {
            let mut client = Command::new(&python);
            client.args(["-c", CLIENT, &load, host]).args((cluster == "east").then_some(&listener));
            let output = client.output()?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let said: Value = serde_json::from_slice(&output.stdout)?;
            ensure!(said == expected(cluster), "{said:#}");
            Ok(())
        };
        until(&format!("a client of {cluster} has its streams"), SOON, answered).await?;
    }
    demo.run(["service", "unexport", "shop/streams"].iter().chain(&EAST))?;
    demo.run(["workload", "delete", ID, "--agent", "agent-1", "--yes"].iter().chain(&EAST))?;
    Ok(())
}

fn expected(caller: &str) -> Value {
    let lines = ["220 ready\n", "cba\n", "dne on\n", "221 bye\n"];
    let mut said = json!({
        "text": format!("hello from spiffe://{caller}.example/ns/shop/sa/load"),
        "large": true,
        "pong": true,
        "closed": 1000,
        "nobody": 503,
        "tcp": ["200", lines[0], lines[1], lines[2], lines[3]],
        "undeclared": "404",
    });
    if caller == "east" {
        said["listener"] = json!(lines);
    }
    said
}
