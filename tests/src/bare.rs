//! Bare: a cluster of Hanse without a data plane, each process started with the flags that a test wants: control nodes, one
//! agent, and the command line towards them.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hanse::demo::process::DIE_WITH_STDIN;
use serde_json::Value;

use crate::envoy::free_address;
use crate::house::binary;

/// The name of its one agent.
pub const AGENT: &str = "host-1";
/// How long it may take until it works.
const STARTS_WITHIN: Duration = Duration::from_secs(60);

/// A running cluster; its processes end with the value.
pub struct Cluster {
    binary: PathBuf,
    dir: PathBuf,
    name: String,
    nodes: Vec<String>,
    children: Vec<Child>,
}

impl Cluster {
    /// Founds cluster NAME of trust domain NAME.example in `dir`: as many control nodes as there are lists of further flags
    /// for `hanse control`, and an agent. Returns when it has a leader and the agent has joined.
    pub fn found(dir: &Path, name: &str, flags: &[Vec<String>]) -> Result<Self> {
        Self::found_at(dir, name, Ipv4Addr::LOCALHOST.into(), flags)
    }

    /// The same, with control nodes that listen on this address of the host.
    pub fn found_at(dir: &Path, name: &str, ip: IpAddr, flags: &[Vec<String>]) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let mut cluster = Self {
            binary: binary()?,
            dir: dir.to_owned(),
            name: name.to_owned(),
            nodes: Vec::new(),
            children: Vec::new(),
        };
        let mut records = Vec::new();
        let mut listen = Vec::new();
        for number in 1..=flags.len() {
            let (data, address) =
                (cluster.data(number), SocketAddr::new(ip, free_address()?.port()).to_string());
            let (node, number) = (format!("{name}-{number}"), number.to_string());
            let trust_domain = format!("{name}.example");
            let identity = ["--cluster", name, "--trust-domain", &trust_domain, "--name", &node];
            let place = ["--raft-id", &number, "--advertise", &address, "--data-dir", &data];
            cluster.run(["node", "init"].iter().chain(&identity).chain(&place))?;
            records.push(serde_json::from_slice::<Value>(&fs::read(Path::new(&data).join("node.json"))?)?);
            listen.push(address);
        }
        cluster.nodes.clone_from(&listen);
        let (nodes, credential) = (cluster.file("nodes.json"), cluster.file("admin.json"));
        fs::write(&nodes, serde_json::to_vec(&records)?)?;
        let first = cluster.data(1);
        let mint =
            ["node", "credential", "--data-dir", &first, "--initial-nodes", &nodes, "--out", &credential];
        cluster.run(mint)?;
        fs::write(
            cluster.dir.join("config.toml"),
            format!("[contexts.{name}]\ncredential = \"admin.json\"\n"),
        )?;
        for (number, (address, flags)) in (1..).zip(listen.iter().zip(flags)) {
            let data = cluster.data(number);
            let control = ["control", "--data-dir", &data, "--initial-nodes", &nodes, "--listen", address];
            let control = control.into_iter().chain(flags.iter().map(String::as_str));
            cluster.start(&format!("control-{number}"), control)?;
        }
        let token = cluster.run(["agent", "token", "create", AGENT])?;
        let token_file = cluster.file("join-token");
        fs::write(&token_file, token)?;
        let (data, socket) = (cluster.file("agent"), cluster.file("agent.sock"));
        let agent = ["agent", "--data-dir", &data, "--name", AGENT, "--socket", &socket];
        cluster.start("agent", agent.into_iter().chain(["--join-token-file", &token_file]))?;
        let began = Instant::now();
        while !Path::new(&socket).exists() {
            ensure!(began.elapsed() < STARTS_WITHIN, "the agent has not joined\n{}", cluster.logs());
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(cluster)
    }

    /// Where its control nodes listen.
    pub fn nodes(&self) -> &[String] {
        &self.nodes
    }

    pub fn trust_domain(&self) -> String {
        format!("{}.example", self.name)
    }

    /// The Workload API of its agent, as clients name it.
    pub fn workload_api(&self) -> String {
        format!("unix://{}", self.file("agent.sock"))
    }

    /// Runs `hanse` with these arguments as the cluster's administrator, again while nobody answers or leads; what it prints.
    pub fn run<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Result<Vec<u8>> {
        let arguments: Vec<OsString> = arguments.into_iter().map(|a| a.as_ref().to_owned()).collect();
        let began = Instant::now();
        loop {
            let output = self.output(&arguments)?;
            // Not reachable, no leader (hanse help exit-codes).
            let again = matches!(output.status.code(), Some(3 | 7)) && began.elapsed() < STARTS_WITHIN;
            if !again {
                let said = String::from_utf8_lossy(&output.stderr);
                ensure!(output.status.success(), "hanse {arguments:?}: {}\n{said}", output.status);
                return Ok(output.stdout);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The same, whatever it answers.
    pub fn output<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Result<Output> {
        Ok(self.command(arguments).output()?)
    }

    /// Begins a command that takes its time.
    pub fn begin<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Result<Child> {
        let mut command = self.command(arguments);
        Ok(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?)
    }

    /// The same, of a command that prints JSON.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let said = self.run(arguments.iter().chain(&["-o", "json"]))?;
        serde_json::from_slice(&said).with_context(|| format!("{arguments:?}"))
    }

    /// A file of this cluster's directory, as an argument.
    pub fn file(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    /// The ends of all logs, for a failed assertion.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        let files = fs::read_dir(&self.dir).into_iter().flatten().flatten().map(|entry| entry.path());
        for path in files.filter(|path| path.extension().is_some_and(|e| e == "log")) {
            let log = fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            text +=
                &format!("--- {}\n{}\n", path.display(), lines[lines.len().saturating_sub(15)..].join("\n"));
        }
        text
    }

    fn command<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(arguments).env("HANSE_CONFIG", self.dir.join("config.toml"));
        command
    }

    fn data(&self, number: usize) -> String {
        self.file(&format!("control-{number}"))
    }

    fn start<'a>(&mut self, name: &str, arguments: impl IntoIterator<Item = &'a str>) -> Result<()> {
        let log = File::create(self.file(&format!("{name}.log")))?;
        // Its standard input is a pipe that nobody writes to: it ends when this process does, in whatever way.
        let child = Command::new(&self.binary)
            .args(arguments)
            .env(DIE_WITH_STDIN, "1")
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("{} cannot be run", self.binary.display()))?;
        self.children.push(child);
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in &mut self.children {
            if let Err(error) = child.kill().and_then(|()| child.wait()) {
                eprintln!("a process of {} (pid {}) did not end: {error}", self.name, child.id());
            }
        }
    }
}
