//! Ours: sidecars of the bench's own, one worker each, in front of the bench's app. Workloads of the demo's two clusters,
//! registered by where their executables are.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use hanse_tests::house::{self, Demo};

use crate::process::{Process, free_address};

/// In east, where it is asked for.
const NEAR: &str = "shop/bench";
/// In west only, so that what is asked of it passes the gateways.
const FAR: &str = "shop/bench-far";
/// As the mesh names the app's port.
const TCP_PORT: u16 = 9000;
/// Who opens connections to sidecars and gateways: the bench itself.
const LOADER: &str = "spiffe://east.example/ns/shop/sa/bench-loader";
/// A service whose only endpoint is a bare server.
const BARE: &str = "shop/bench-bare";

/// A caller in east, and what it calls.
pub struct Mesh {
    pub caller: Process,
    pub target: Process,
    pub far_target: Process,
    /// Takes HTTP.
    pub outbound: SocketAddr,
    /// Takes bytes for the target in east.
    pub bytes: SocketAddr,
    /// Where the target takes mutual TLS.
    pub inbound: SocketAddr,
}

pub const NEAR_HOST: &str = "bench.shop.svc.cluster.local";
pub const FAR_HOST: &str = "bench-far.shop.svc.clusterset.local";
/// Server name by which a gateway of east leads to the bare server.
pub const BARE_NAME: &str = "bench-bare.shop.service.east.hanse";

impl Mesh {
    pub fn start(demo: &Demo, app: SocketAddr) -> Result<Self> {
        let (outbound, bytes) = (free_address()?, free_address()?);
        let (inbound, far_inbound) = (free_address()?, free_address()?);
        let serves = |service: &str, inbound: SocketAddr| {
            vec![format!("--service={service}"), format!("--inbound={inbound}"), format!("--app={app}")]
        };
        let mut target = serves(NEAR, inbound);
        target.push(format!("--tcp-port={TCP_PORT}={app}"));
        let target = sidecar(demo, "east", "bench-target", Some(NEAR), &target, inbound)?;
        let far = serves(FAR, far_inbound);
        let far_target = sidecar(demo, "west", "bench-far", Some(FAR), &far, far_inbound)?;
        demo.run(["service", "export", FAR, "--context", "demo-west"])?;
        let calls = [format!("--outbound={outbound}"), format!("--tcp-upstream={NEAR}:{TCP_PORT}={bytes}")];
        let caller = sidecar(demo, "east", "bench-caller", None, &calls, outbound)?;
        Ok(Self { caller, target, far_target, outbound, bytes, inbound })
    }

    /// Gives the bench an SVID of its own, and makes `bare` what `BARE_NAME` leads to.
    pub fn register_loader(demo: &Demo, bare: SocketAddr) -> Result<()> {
        let me = std::env::current_exe()?.canonicalize()?;
        register(demo, "east", LOADER, &me, &["--service", BARE, "--address", &bare.to_string()])?;
        demo.run(["service", "export", BARE, "--context", "demo-east"]).map(drop)
    }
}

fn register(demo: &Demo, cluster: &str, id: &str, executable: &Path, more: &[&str]) -> Result<()> {
    let (context, selector) = (format!("demo-{cluster}"), format!("unix:path:{}", executable.display()));
    let mut register = vec!["workload", "register", id, "--context", &context, "--agent", "agent-1"];
    register.extend(["--selector", &selector]);
    register.extend(more);
    demo.run(register).map(drop)
}

/// A sidecar with an identity of its own, once it listens.
fn sidecar(
    demo: &Demo,
    cluster: &str,
    name: &str,
    service: Option<&str>,
    flags: &[String],
    listens: SocketAddr,
) -> Result<Process> {
    // By its path only this program gets the identity.
    let executable = demo.dir().join("bin").join(name);
    std::fs::copy(house::binary()?, &executable)?;
    register_sidecar(demo, cluster, name, service, &executable)?;
    let mut command = Command::new(&executable);
    command.env("RUST_LOG", "error").args(["proxy", "--workers=1"]).arg(format!("--name={name}"));
    command.arg(format!("--admin={}", free_address()?)).args(flags).args(links(demo, cluster)?);
    Process::listening(command, listens)
}

/// An identity for what runs that executable.
pub fn register_sidecar(
    demo: &Demo,
    cluster: &str,
    name: &str,
    service: Option<&str>,
    executable: &Path,
) -> Result<()> {
    let serves: Vec<&str> = service.into_iter().flat_map(|service| ["--service", service]).collect();
    register(demo, cluster, &format!("spiffe://{cluster}.example/ns/shop/sa/{name}"), executable, &serves)
}

/// How a sidecar finds its agent and its control nodes: as the demo's own do.
pub fn links(demo: &Demo, cluster: &str) -> Result<Vec<String>> {
    let pid = demo.pid(cluster, "proxy", "load-1")?;
    let told = std::fs::read(Path::new("/proc").join(pid.to_string()).join("cmdline"))
        .with_context(|| format!("the command line of process {pid}"))?;
    let told = told.split(|byte| *byte == 0).map(|argument| String::from_utf8_lossy(argument).into_owned());
    let links: Vec<_> =
        told.filter(|flag| flag.starts_with("--socket=") || flag.starts_with("--control=")).collect();
    ensure!(links.len() >= 2, "the demo's sidecar in {cluster} has no links");
    Ok(links)
}
